//! The stand-in for any image that the lab has no program for: a server that says who answered and whom it saw.
//!
//! It runs as tasks of the lab with sockets in the Pod's network namespace: one HTTP server for each TCP port of the container
//! and one UDP responder for each UDP port. Dropping the [`Workload`] closes them all.

use std::convert::Infallible;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener as StdListener, UdpSocket as StdSocket};
use std::sync::Arc;

use anyhow::{Context as _, Result};
use http_body_util::Full;
use hyper::body::Bytes;
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Request, Response};
use hyper_util::rt::TokioIo;
use k8s_openapi::api::core::v1::Container;
use tokio::net::{TcpListener, UdpSocket};
use tokio::task::JoinSet;
use tracing::debug;

use crate::netns::Netns;

/// Servers of one container.
#[derive(Debug)]
pub struct Workload {
    _tasks: JoinSet<()>,
}

impl Workload {
    /// Listens on the container's ports in `netns`. Every TCP answer is `pod=<pod> node=<node> from=<client>`, and every UDP
    /// datagram is answered with the same and `count=<datagrams so far>`.
    ///
    /// # Errors
    /// When a port is taken.
    pub fn start(netns: &Netns, pod: &str, node: &str, container: &Container) -> Result<Self> {
        let mut tasks = JoinSet::new();
        let name: Arc<str> = format!("pod={pod} node={node}").into();
        for port in container.ports.iter().flatten() {
            let number = u16::try_from(port.container_port).context("a container port above 65535")?;
            let protocol = port.protocol.as_deref().unwrap_or("TCP");
            let context = || format!("{protocol} port {number} of Pod {pod}");
            match protocol {
                "TCP" => {
                    let listener = netns.run(|| bound(number, StdListener::bind))?.with_context(context)?;
                    listener.set_nonblocking(true).with_context(context)?;
                    let listener = TcpListener::from_std(listener).with_context(context)?;
                    tasks.spawn(serve_http(listener, name.clone()));
                }
                "UDP" => {
                    let socket = netns.run(|| bound(number, StdSocket::bind))?.with_context(context)?;
                    socket.set_nonblocking(true).with_context(context)?;
                    let socket = UdpSocket::from_std(socket).with_context(context)?;
                    tasks.spawn(serve_datagrams(socket, name.clone()));
                }
                other => debug!(protocol = other, pod, "the stand-in does not serve this protocol"),
            }
        }
        Ok(Self { _tasks: tasks })
    }
}

/// Both families where the kernel has IPv6.
fn bound<T>(port: u16, bind: impl Fn(SocketAddr) -> std::io::Result<T>) -> std::io::Result<T> {
    let any: [IpAddr; 2] = [Ipv6Addr::UNSPECIFIED.into(), Ipv4Addr::UNSPECIFIED.into()];
    bind((any[0], port).into()).or_else(|error| match error.kind() {
        std::io::ErrorKind::AddrInUse => Err(error),
        _ => bind((any[1], port).into()),
    })
}

async fn serve_http(listener: TcpListener, name: Arc<str>) {
    let mut connections = JoinSet::new();
    loop {
        let (stream, client) = match listener.accept().await {
            Ok(accepted) => accepted,
            Err(error) => {
                debug!(%error, "a connection was not accepted");
                tokio::time::sleep(std::time::Duration::from_millis(10)).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let client = SocketAddr::new(client.ip().to_canonical(), client.port());
        let text = format!("{name} from={client}\n");
        connections.spawn(async move {
            let answer = service_fn(move |_: Request<hyper::body::Incoming>| {
                let response = Response::new(Full::new(Bytes::from(text.clone())));
                async move { Ok::<_, Infallible>(response) }
            });
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await {
                debug!(%error, "a connection ended early");
            }
        });
    }
}

async fn serve_datagrams(socket: UdpSocket, name: Arc<str>) {
    let mut buffer = [0; 2048];
    let mut count = 0_u64;
    loop {
        match socket.recv_from(&mut buffer).await {
            Ok((_, client)) => {
                count += 1;
                let from = SocketAddr::new(client.ip().to_canonical(), client.port());
                let answer = format!("{name} from={from} count={count}\n");
                if let Err(error) = socket.send_to(answer.as_bytes(), client).await {
                    debug!(%error, "a datagram was not answered");
                }
            }
            Err(error) => debug!(%error, "a datagram was not received"),
        }
    }
}
