//! Logs, health and metrics: what an operator sees of a running role.
//!
//! `/livez` fails only for what a restart cures, `/readyz` names every part that cannot do its work, `/metrics` is the
//! OpenMetrics text of the role's registry. One task serves them; dropping its handle ends it.

use std::{collections::BTreeMap, convert::Infallible, net::SocketAddr, sync::Arc, sync::Mutex, time::Duration};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::net::TcpListener;
use tracing::{debug, info, warn};
use tracing_subscriber::EnvFilter;

/// How log lines are written.
#[derive(clap::ValueEnum, Clone, Copy, Debug, Default)]
pub enum LogFormat {
    /// One readable line each.
    #[default]
    Text,
    /// One JSON object each.
    Json,
}

/// What is not logged unless the filter asks for it.
const QUIET: &str = "kube_client::client::builder=off";

/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Starts logging to standard error. `filter` is a tracing filter such as `info` or `info,l2lb::speaker=debug`.
///
/// # Errors
/// If the filter cannot be read; nothing was started then.
pub fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    // The client logs each refused connection as an error of its own; who made the request says it once, with the reason.
    let filter = EnvFilter::try_new(format!("{QUIET},{filter}")).with_context(|| {
        format!("the log filter '{filter}' cannot be read: write a level (info) or target=level pairs")
    })?;
    let builder = tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr);
    match format {
        LogFormat::Text => builder.with_ansi(std::io::IsTerminal::is_terminal(&std::io::stderr())).init(),
        LogFormat::Json => builder.json().init(),
    }
    Ok(())
}

/// What is wrong now, by part. Shared by all tasks of a role; empty means healthy.
#[derive(Clone, Debug, Default)]
pub struct Health(Arc<Mutex<Faults>>);

#[derive(Debug, Default)]
struct Faults {
    not_ready: BTreeMap<String, String>,
    not_alive: BTreeMap<String, String>,
}

impl Health {
    /// Says that `part` cannot do its work now, and why.
    pub fn not_ready(&self, part: impl Into<String>, reason: impl Into<String>) {
        self.faults().not_ready.insert(part.into(), reason.into());
    }

    /// Says that `part` does its work (again).
    pub fn ready(&self, part: &str) {
        self.faults().not_ready.remove(part);
    }

    /// Says that `part` has failed in a way that only a restart cures.
    pub fn dead(&self, part: impl Into<String>, reason: impl Into<String>) {
        self.faults().not_alive.insert(part.into(), reason.into());
    }

    fn faults(&self) -> std::sync::MutexGuard<'_, Faults> {
        // A panic while it was held cannot leave a map half written.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    fn report(&self, path: &str) -> Option<(StatusCode, String)> {
        let faults = self.faults();
        let listed = match path {
            "/livez" => faults.not_alive.clone(),
            "/readyz" => {
                faults.not_alive.iter().chain(&faults.not_ready).map(|(k, v)| (k.clone(), v.clone())).collect()
            }
            _ => return None,
        };
        if listed.is_empty() {
            return Some((StatusCode::OK, "ok\n".to_owned()));
        }
        let lines: String = listed.iter().map(|(part, reason)| format!("{part}: {reason}\n")).collect();
        Some((StatusCode::SERVICE_UNAVAILABLE, lines))
    }
}

/// Serves `/livez`, `/readyz` and `/metrics` on `address` until the future is dropped.
///
/// # Errors
/// If the address cannot be bound.
pub async fn serve(address: SocketAddr, health: Health, registry: Arc<Registry>) -> anyhow::Result<()> {
    let listener = TcpListener::bind(address).await.with_context(|| {
        format!("health and metrics cannot listen on {address}: choose a free address with --health-address")
    })?;
    info!(%address, "health and metrics");
    serve_on(listener, health, registry).await;
    Ok(())
}

async fn serve_on(listener: TcpListener, health: Health, registry: Arc<Registry>) {
    let mut connections = tokio::task::JoinSet::new();
    loop {
        let stream = match listener.accept().await {
            Ok((stream, _)) => stream,
            Err(error) => {
                // A caller that went away, or too many open files: no reason to end what the role is there for.
                warn!(%error, "a health connection was not accepted");
                tokio::time::sleep(ACCEPT_PAUSE).await;
                continue;
            }
        };
        while connections.try_join_next().is_some() {}
        let (health, registry) = (health.clone(), registry.clone());
        connections.spawn(async move {
            let answer = service_fn(move |request| {
                let response = respond(&request, &health, &registry);
                async move { Ok::<_, Infallible>(response) }
            });
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await {
                debug!(%error, "health connection ended early");
            }
        });
    }
}

fn respond<B>(request: &Request<B>, health: &Health, registry: &Registry) -> Response<Full<Bytes>> {
    let mut response = Response::new(Full::default());
    if request.method() != Method::GET {
        *response.status_mut() = StatusCode::METHOD_NOT_ALLOWED;
    } else if let Some((status, text)) = health.report(request.uri().path()) {
        *response.status_mut() = status;
        *response.body_mut() = Full::from(text);
    } else if request.uri().path() == "/metrics" {
        let mut text = String::new();
        match encode(&mut text, registry) {
            Ok(()) => {
                let content_type = "application/openmetrics-text; version=1.0.0; charset=utf-8";
                response.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static(content_type));
                *response.body_mut() = Full::from(text);
            }
            Err(error) => {
                *response.status_mut() = StatusCode::INTERNAL_SERVER_ERROR;
                *response.body_mut() = Full::from(format!("metrics cannot be written: {error}\n"));
            }
        }
    } else {
        *response.status_mut() = StatusCode::NOT_FOUND;
        *response.body_mut() = Full::from("there are /livez, /readyz and /metrics\n");
    }
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    fn get(path: &str, health: &Health) -> StatusCode {
        let request = Request::get(path).body(()).unwrap();
        respond(&request, health, &Registry::default()).status()
    }

    #[test]
    fn a_part_that_cannot_work_fails_readiness_but_not_liveness() {
        let health = Health::default();
        assert_eq!(get("/readyz", &health), StatusCode::OK);
        health.not_ready("nic eth0", "it is not open");
        assert_eq!(get("/readyz", &health), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get("/livez", &health), StatusCode::OK);
        health.ready("nic eth0");
        assert_eq!(get("/readyz", &health), StatusCode::OK);
    }

    #[test]
    fn a_dead_part_fails_both() {
        let health = Health::default();
        health.dead("responder", "its thread ended");
        assert_eq!(get("/readyz", &health), StatusCode::SERVICE_UNAVAILABLE);
        assert_eq!(get("/livez", &health), StatusCode::SERVICE_UNAVAILABLE);
    }

    #[tokio::test]
    async fn a_connection_that_cannot_be_accepted_does_not_end_the_role() {
        // Bound but not listening: every attempt to accept fails.
        let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None).unwrap();
        socket.bind(&SocketAddr::from(([127, 0, 0, 1], 0)).into()).unwrap();
        socket.set_nonblocking(true).unwrap();
        let listener = TcpListener::from_std(socket.into()).unwrap();
        assert!(listener.accept().await.is_err());
        let serving = serve_on(listener, Health::default(), Arc::default());
        assert!(tokio::time::timeout(2 * ACCEPT_PAUSE, serving).await.is_err(), "it goes on");
    }

    #[test]
    fn other_paths_say_what_there_is() {
        assert_eq!(get("/", &Health::default()), StatusCode::NOT_FOUND);
        assert_eq!(get("/metrics", &Health::default()), StatusCode::OK);
    }
}
