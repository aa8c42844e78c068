//! Logs, health and metrics: what an operator sees of a running role.
//!
//! `/livez` fails only for what a restart cures, `/readyz` names every part that cannot do its work, `/metrics` is the
//! OpenMetrics text of the role's registry. Parts say themselves what is wrong with them ([`Health::not_ready`],
//! [`Health::dead`]); a part that may be stuck cannot, and is looked at with each request ([`Health::check`]). One task serves
//! all, and it has to be another one than those that it speaks of; aborting it ends it.

use std::{
    collections::{BTreeMap, VecDeque},
    convert::Infallible,
    net::SocketAddr,
    sync::{Arc, Mutex},
    time::Duration,
};

use anyhow::Context as _;
use http_body_util::Full;
use hyper::{
    Method, Request, Response, StatusCode, body::Bytes, header::CONTENT_TYPE, server::conn::http1, service::service_fn,
};
use hyper_util::rt::TokioIo;
use prometheus_client::{encoding::text::encode, registry::Registry};
use tokio::{net::TcpListener, task::AbortHandle};
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

/// What is not logged unless the filter asks for it, by these names. Of certificates only warnings are.
const QUIET: &str = "kube_client::client=off,kube_client::client::tls=warn,kube_runtime::watcher=off";

/// So many connections are open at the same time. The oldest makes room: who opens many and says nothing cannot keep a probe
/// from being answered, nor use up the files that the process may open.
const CONNECTIONS: usize = 64;
/// After a connection could not be accepted.
const ACCEPT_PAUSE: Duration = Duration::from_millis(200);

/// Starts logging to standard error. `filter` is a tracing filter such as `info` or `info,l2lb::speaker=debug`.
///
/// # Errors
/// If the filter cannot be read; nothing was started then.
pub fn start_logging(format: LogFormat, filter: &str) -> anyhow::Result<()> {
    // The client and its watches log each refused or broken connection themselves; who asked says it once, with the reason. Nobody
    // else says what goes wrong with certificates.
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
pub struct Health(Arc<Mutex<Parts>>);

#[derive(Default)]
struct Parts {
    not_ready: BTreeMap<String, String>,
    not_alive: BTreeMap<String, String>,
    checks: BTreeMap<u64, (String, Look)>,
    next_check: u64,
}

type Look = Arc<dyn Fn() -> Verdict + Send + Sync>;

/// What a look at a part says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Verdict {
    /// It does its work.
    Well,
    /// It cannot do its work now, and why. It may come back by itself.
    NotReady(String),
    /// It has failed, and why; only a restart cures that.
    Dead(String),
}

/// A part is looked at for as long as this lives.
#[derive(Debug)]
pub struct Check {
    health: Health,
    number: u64,
}

impl Drop for Check {
    fn drop(&mut self) {
        self.health.parts().checks.remove(&self.number);
    }
}

impl std::fmt::Debug for Parts {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let checks: Vec<&String> = self.checks.values().map(|(part, _)| part).collect();
        let mut parts = f.debug_struct("Parts");
        parts.field("not_ready", &self.not_ready).field("not_alive", &self.not_alive).field("checks", &checks).finish()
    }
}

impl Health {
    /// Says that `part` cannot do its work now, and why.
    pub fn not_ready(&self, part: impl Into<String>, reason: impl Into<String>) {
        self.parts().not_ready.insert(part.into(), reason.into());
    }

    /// Says that `part` does its work (again).
    pub fn ready(&self, part: &str) {
        self.parts().not_ready.remove(part);
    }

    /// Says that `part` has failed in a way that only a restart cures.
    pub fn dead(&self, part: impl Into<String>, reason: impl Into<String>) {
        self.parts().not_alive.insert(part.into(), reason.into());
    }

    /// Says that `part` needs no restart (any more).
    pub fn alive(&self, part: &str) {
        self.parts().not_alive.remove(part);
    }

    /// Has `look` called with each request, from the task that serves it, until what is returned is dropped. It must neither
    /// wait nor use this `Health`.
    #[must_use = "the part is looked at only as long as this lives"]
    pub fn check(&self, part: impl Into<String>, look: impl Fn() -> Verdict + Send + Sync + 'static) -> Check {
        let mut parts = self.parts();
        let number = parts.next_check;
        parts.next_check += 1;
        parts.checks.insert(number, (part.into(), Arc::new(look)));
        Check { health: self.clone(), number }
    }

    fn parts(&self) -> std::sync::MutexGuard<'_, Parts> {
        // A panic while it was held cannot leave a map half written.
        self.0.lock().unwrap_or_else(std::sync::PoisonError::into_inner)
    }

    /// What a request for `path` is answered; nothing where there is no such path.
    pub(crate) fn report(&self, path: &str) -> Option<(StatusCode, String)> {
        let with_unready = match path {
            "/livez" => false,
            "/readyz" => true,
            _ => return None,
        };
        let (mut faults, checks) = {
            let parts = self.parts();
            let unready = parts.not_ready.iter().filter(|_| with_unready);
            let faults: Vec<(String, String)> =
                parts.not_alive.iter().chain(unready).map(|(part, reason)| (part.clone(), reason.clone())).collect();
            (faults, parts.checks.values().cloned().collect::<Vec<_>>())
        };
        for (part, look) in checks {
            match look() {
                Verdict::NotReady(reason) if with_unready => faults.push((part, reason)),
                Verdict::Dead(reason) => faults.push((part, reason)),
                Verdict::Well | Verdict::NotReady(_) => {}
            }
        }
        if faults.is_empty() {
            return Some((StatusCode::OK, "ok\n".to_owned()));
        }
        faults.sort();
        let lines: String = faults.iter().map(|(part, reason)| format!("{part}: {reason}\n")).collect();
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
    let mut open: VecDeque<AbortHandle> = VecDeque::new();
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
        open.retain(|connection| !connection.is_finished());
        if open.len() >= CONNECTIONS
            && let Some(oldest) = open.pop_front()
        {
            oldest.abort();
        }
        let (health, registry) = (health.clone(), registry.clone());
        open.push_back(connections.spawn(async move {
            let answer = service_fn(move |request| {
                let response = respond(&request, &health, &registry);
                async move { Ok::<_, Infallible>(response) }
            });
            if let Err(error) = http1::Builder::new().serve_connection(TokioIo::new(stream), answer).await {
                debug!(%error, "health connection ended early");
            }
        }));
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
        health.alive("responder");
        assert_eq!(get("/livez", &health), StatusCode::OK);
    }

    #[test]
    fn a_part_that_is_looked_at_counts_as_it_is_at_the_time_of_the_request_and_while_it_is_there() {
        let health = Health::default();
        let verdict = Arc::new(Mutex::new(Verdict::Well));
        let seen = verdict.clone();
        let check = health.check("loop", move || seen.lock().unwrap().clone());
        for (now, ready, alive) in [
            (Verdict::Well, StatusCode::OK, StatusCode::OK),
            (Verdict::NotReady("late".to_owned()), StatusCode::SERVICE_UNAVAILABLE, StatusCode::OK),
            (Verdict::Dead("stuck".to_owned()), StatusCode::SERVICE_UNAVAILABLE, StatusCode::SERVICE_UNAVAILABLE),
        ] {
            *verdict.lock().unwrap() = now;
            assert_eq!((get("/readyz", &health), get("/livez", &health)), (ready, alive));
        }
        drop(check);
        assert_eq!(get("/readyz", &health), StatusCode::OK);
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

    #[tokio::test]
    async fn connections_that_say_nothing_make_room_for_a_probe() {
        use tokio::{
            io::{AsyncReadExt as _, AsyncWriteExt as _},
            net::TcpStream,
        };
        let listener = TcpListener::bind(("127.0.0.1", 0)).await.unwrap();
        let address = listener.local_addr().unwrap();
        let serving = tokio::spawn(serve_on(listener, Health::default(), Arc::default()));
        let mut silent = Vec::new();
        for _ in 0..2 * CONNECTIONS {
            silent.push(TcpStream::connect(address).await.unwrap());
        }
        let mut probe = TcpStream::connect(address).await.unwrap();
        probe.write_all(b"GET /livez HTTP/1.1\r\nHost: l2lb\r\nConnection: close\r\n\r\n").await.unwrap();
        let (mut text, patience) = (String::new(), Duration::from_secs(30));
        tokio::time::timeout(patience, probe.read_to_string(&mut text)).await.unwrap().unwrap();
        assert!(text.starts_with("HTTP/1.1 200"), "{text}");
        let end = tokio::time::timeout(patience, silent[0].read_u8()).await.expect("the oldest is closed");
        assert!(end.is_err());
        serving.abort();
    }

    #[test]
    fn other_paths_say_what_there_is() {
        assert_eq!(get("/", &Health::default()), StatusCode::NOT_FOUND);
        assert_eq!(get("/metrics", &Health::default()), StatusCode::OK);
    }
}
