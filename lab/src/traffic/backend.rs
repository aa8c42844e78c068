//! The server behind the address: says of every datagram and request which it was, and whom it saw.
//!
//! It has a thread for UDP and one for TCP, apart from the rest of the lab, and sockets with room for a second of traffic.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context as _, Result};
use socket2::{Domain, Protocol, SockRef, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream};
use tokio::time::timeout;

use super::{Losses, REQUEST, answer_to};
use crate::netns::Netns;

const RECEIVE_BUFFER: usize = 4 << 20;
const BACKLOG: i32 = 4096;
/// A connection on which nothing comes for so long is dropped: its client was cut off.
const IDLE: Duration = Duration::from_secs(5);
const LOOK: Duration = Duration::from_millis(50);

/// A server for [`super::Datagrams`], [`super::Connections`] and [`super::Messages`]. Dropping it ends it.
#[derive(Debug)]
pub struct Backend {
    netns: Netns,
    before: Losses,
    stopping: Arc<AtomicBool>,
    threads: Vec<JoinHandle<()>>,
}

impl Backend {
    /// Listens on that UDP and TCP port of all addresses of a host.
    ///
    /// # Errors
    /// When the port is taken.
    pub fn start(netns: &Netns, port: u16) -> Result<Self> {
        let context = || format!("cannot serve port {port} in {}", netns.name());
        let (datagrams, listener) = netns
            .run(|| {
                let datagrams = bound(port, Type::DGRAM, Protocol::UDP)?;
                let listener = bound(port, Type::STREAM, Protocol::TCP)?;
                listener.listen(BACKLOG)?;
                Ok::<_, io::Error>((datagrams, listener))
            })?
            .with_context(context)?;
        datagrams.set_recv_buffer_size(RECEIVE_BUFFER).with_context(context)?;
        datagrams.set_read_timeout(Some(LOOK)).with_context(context)?;
        listener.set_nonblocking(true).with_context(context)?;
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().with_context(context)?;
        let stopping = Arc::<AtomicBool>::default();
        let mut backend = Self {
            netns: netns.clone(),
            before: Losses::read(netns)?,
            stopping: stopping.clone(),
            threads: Vec::new(),
        };
        backend.spawn("lab-echo-udp", {
            let stopping = stopping.clone();
            move || echo(&UdpSocket::from(datagrams), &stopping)
        })?;
        backend.spawn("lab-echo-tcp", move || {
            runtime.block_on(async {
                tokio::select! {
                    () = serve(listener) => {}
                    () = until(&stopping) => {}
                }
            });
        })?;
        Ok(backend)
    }

    /// What it has dropped so far because it was too slow.
    ///
    /// # Errors
    /// When the kernel's counters cannot be read.
    pub fn losses(&self) -> Result<Losses> {
        Ok(Losses::read(&self.netns)?.since(self.before))
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.context("cannot start a server's thread")?);
        Ok(())
    }
}

impl Drop for Backend {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there was printed by that thread.
            drop(thread.join());
        }
    }
}

/// Both families where the kernel has IPv6.
fn bound(port: u16, kind: Type, protocol: Protocol) -> io::Result<Socket> {
    let open = |domain: Domain, address: SocketAddr| {
        let socket = Socket::new(domain, kind, Some(protocol))?;
        if domain == Domain::IPV6 {
            socket.set_only_v6(false)?;
        }
        socket.set_reuse_address(kind == Type::STREAM)?;
        socket.bind(&address.into())?;
        Ok(socket)
    };
    open(Domain::IPV6, (Ipv6Addr::UNSPECIFIED, port).into()).or_else(|error: io::Error| match error.kind() {
        io::ErrorKind::AddrInUse => Err(error),
        _ => open(Domain::IPV4, (Ipv4Addr::UNSPECIFIED, port).into()),
    })
}

fn echo(socket: &UdpSocket, stopping: &AtomicBool) {
    let mut buffer = [0; 2048];
    while !stopping.load(Ordering::Relaxed) {
        // An error is the timeout, or an ICMP message about an answer.
        let Ok((length, from)) = socket.recv_from(&mut buffer) else { continue };
        if let Some(request) = buffer[..length].first_chunk::<REQUEST>() {
            // What is not sent is missed by the client, who counts it.
            let _ = socket.send_to(&answer_to(*request, from), from);
        }
    }
}

async fn until(stopping: &AtomicBool) {
    while !stopping.load(Ordering::Relaxed) {
        tokio::time::sleep(LOOK).await;
    }
}

async fn serve(listener: Socket) {
    let listener = match TcpListener::from_std(listener.into()) {
        Ok(listener) => listener,
        Err(error) => return tracing::warn!(%error, "the backend cannot listen"),
    };
    let mut connections = tokio::task::JoinSet::new();
    loop {
        match listener.accept().await {
            Ok((stream, from)) => {
                connections.spawn(async move {
                    // An error is how most of them end: the client resets what it has its answer from.
                    let _ = answer_all(stream, from).await;
                });
            }
            Err(error) => {
                tracing::debug!(%error, "a connection was not accepted");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
        }
        while connections.try_join_next().is_some() {}
    }
}

async fn answer_all(mut stream: TcpStream, from: SocketAddr) -> io::Result<()> {
    // A connection that is dropped is gone at once: a port of the client comes round again within a minute.
    SockRef::from(&stream).set_linger(Some(Duration::ZERO))?;
    stream.set_nodelay(true)?;
    let mut request = [0; REQUEST];
    loop {
        timeout(IDLE, stream.read_exact(&mut request)).await.map_err(|_| io::ErrorKind::TimedOut)??;
        stream.write_all(&answer_to(request, from)).await?;
    }
}
