//! An HTTP proxy between one controller and the API server, which loses, delays, refuses and forges as it is told, and keeps
//! a record of every write that passes.
//!
//! The controller speaks plain HTTP to it, so that nothing of its client is replaced; the other side is an ordinary client with
//! all rights that tries nothing again.

use std::{
    collections::BTreeMap,
    net::{Ipv4Addr, SocketAddr},
    path::{Path, PathBuf},
    pin::pin,
    sync::{Arc, Mutex, MutexGuard, PoisonError, mpsc},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result};
use futures::{Stream, StreamExt as _, stream};
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::{
    Method, Request, Response, StatusCode,
    body::{Bytes, Frame, Incoming},
    header::{CONTENT_TYPE, HOST, RETRY_AFTER},
    server::conn::http1,
    service::service_fn,
};
use hyper_util::rt::TokioIo;
use kube::{
    Client, Config,
    config::{KubeConfigOptions, Kubeconfig},
};
use serde_json::{Value, json};
use tokio::{net::TcpListener, sync::watch, task::JoinSet, time::sleep};

type BoxError = Box<dyn std::error::Error + Send + Sync>;
type Answer = Response<UnsyncBoxBody<Bytes, BoxError>>;

/// What is done to one request.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Fault {
    /// Answered with this status, and not handed on.
    Refuse(StatusCode),
    /// Answered with 429, and how many seconds to wait.
    TooMany(u32),
    /// Not handed on and never answered.
    Ignore,
    /// Carried out; then the connection ends without an answer.
    LoseAnswer,
    /// Carried out and never answered.
    NeverAnswer,
    /// Carried out; the answer comes this late. Of a watch, each event does.
    Late(Duration),
    /// A watch that ends with an error in the middle of an event, after this long.
    Break(Duration),
    /// A watch that is told 410 Gone.
    Gone,
    /// A watch that begins this many resource versions earlier, so that what was seen comes again.
    Replay(u64),
}

/// A request, as far as rules look at it.
#[derive(Clone, Debug)]
pub struct Asked {
    /// Its method.
    pub method: Method,
    /// Path and query.
    pub path: String,
    /// What it is about: the path, for a new object its name, and for a status what it says, times apart.
    pub about: String,
}

impl Asked {
    /// A watch.
    pub fn is_watch(&self) -> bool {
        self.method == Method::GET && self.path.contains("watch=")
    }

    /// A list.
    pub fn is_list(&self) -> bool {
        self.method == Method::GET && !self.is_watch() && !self.is_election()
    }

    /// About the Lease by which controllers elect their leader.
    pub fn is_election(&self) -> bool {
        self.path.contains("/leases/l2lb-controller") || self.about.ends_with("/leases/l2lb-controller")
    }

    /// A write, those of the election apart.
    pub fn is_write(&self) -> bool {
        self.method != Method::GET && !self.is_election()
    }

    /// Whether the kind with this plural is meant.
    pub fn is_of(&self, plural: &str) -> bool {
        self.path.split(['/', '?']).any(|part| part == plural)
    }
}

/// A write that reached the proxy.
#[derive(Clone, Debug)]
pub struct Write {
    /// When.
    pub at: Instant,
    /// When the API server had answered it.
    pub done: Option<Instant>,
    /// What it was.
    pub asked: Asked,
    /// What the API server said; `None`: it was not handed on, or not answered yet.
    pub code: Option<u16>,
    /// What was done to it.
    pub fault: Option<Fault>,
}

impl Write {
    /// Whether the API server took it.
    pub fn is_done(&self) -> bool {
        self.code.is_some_and(|code| (200..300).contains(&code))
    }
}

/// Decides what becomes of a request.
type Rule = Box<dyn FnMut(&Asked) -> Option<Fault> + Send>;

/// What [`Proxy::once`] does; it may change how the network is.
type Act = Box<dyn FnOnce(&watch::Sender<Network>) -> Result<()> + Send>;

/// What is done in the middle of everything, and who waits to hear that it was.
struct Due {
    /// So many requests before it.
    left: usize,
    is_meant: Box<dyn Fn(&Asked) -> bool + Send>,
    act: Act,
    told: mpsc::Sender<Result<Instant>>,
}

/// How the network is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Network {
    /// In order.
    Open,
    /// Connections are refused, those that there were are gone.
    Refusing,
    /// Nothing arrives, in neither direction. What was sent arrives when the network is in order again.
    Parted,
}

/// See the module. Dropping it closes it.
pub struct Proxy {
    shared: Arc<Shared>,
    port: u16,
    task: tokio::task::JoinHandle<()>,
}

struct Shared {
    upstream: Client,
    network: watch::Sender<Network>,
    /// Counts the times that all watches were cut.
    cuts: watch::Sender<u64>,
    rule: Mutex<Option<Rule>>,
    due: Mutex<Option<Due>>,
    writes: Mutex<Vec<Write>>,
    faults: Mutex<BTreeMap<String, usize>>,
}

impl Proxy {
    /// A proxy to the API server of this kubeconfig, on a free port of this host.
    ///
    /// # Errors
    /// If there is no port, or the kubeconfig cannot be read.
    pub async fn start(kubeconfig: &Path) -> Result<Self> {
        let read = Kubeconfig::read_from(kubeconfig)?;
        let mut config = Config::from_custom_kubeconfig(read, &KubeConfigOptions::default()).await?;
        config.default_retry = false;
        let shared = Arc::new(Shared {
            upstream: Client::try_from(config)?,
            network: watch::Sender::new(Network::Open),
            cuts: watch::Sender::new(0),
            rule: Mutex::default(),
            due: Mutex::default(),
            writes: Mutex::default(),
            faults: Mutex::default(),
        });
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).await.context("a port for the proxy")?;
        let address = listener.local_addr()?;
        let task = tokio::spawn(serve(shared.clone(), listener, address));
        Ok(Self { shared, port: address.port(), task })
    }

    /// Writes a kubeconfig that leads to this proxy.
    pub fn kubeconfig(&self, folder: &Path) -> Result<PathBuf> {
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "proxy",
            "clusters": [{"name": "proxy", "cluster": {"server": format!("http://127.0.0.1:{}", self.port)}}],
            "users": [{"name": "proxy", "user": {}}],
            "contexts": [{"name": "proxy", "context": {"cluster": "proxy", "user": "proxy"}}],
        });
        let path = folder.join(format!("proxy-{}.kubeconfig", self.port));
        std::fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path)
    }

    /// From now on this rule decides. Watches that run are cut, so that it sees all of them.
    pub fn obey(&self, rule: impl FnMut(&Asked) -> Option<Fault> + Send + 'static) {
        *lock(&self.shared.rule) = Some(Box::new(rule));
        self.cut_watches();
    }

    /// Passes everything on from now on. Watches that are late or deaf go on to be so until they end.
    pub fn pass(&self) {
        *lock(&self.shared.rule) = None;
    }

    /// Does this when it has `count` of these requests, before it hands on the last of them. Returns where to hear when that was.
    pub fn once(
        &self,
        count: usize,
        is_meant: impl Fn(&Asked) -> bool + Send + 'static,
        act: impl FnOnce(&watch::Sender<Network>) -> Result<()> + Send + 'static,
    ) -> mpsc::Receiver<Result<Instant>> {
        let (told, done) = mpsc::channel();
        let due = Due { left: count.saturating_sub(1), is_meant: Box::new(is_meant), act: Box::new(act), told };
        *lock(&self.shared.due) = Some(due);
        done
    }

    /// Ends all watches in the middle.
    pub fn cut_watches(&self) {
        self.shared.cuts.send_modify(|count| *count += 1);
    }

    /// The network is like this from now on.
    pub fn set_network(&self, network: Network) {
        self.shared.network.send_replace(network);
    }

    /// Every write that reached the proxy, those of the election among them.
    pub fn writes(&self) -> Vec<Write> {
        lock(&self.shared.writes).clone()
    }

    /// How often each fault was met.
    pub fn faults(&self) -> BTreeMap<String, usize> {
        lock(&self.shared.faults).clone()
    }
}

impl Drop for Proxy {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

impl Shared {
    fn do_what_is_due(&self, asked: &Asked) {
        let mut place = lock(&self.due);
        let is_meant = place.as_ref().is_some_and(|due| (due.is_meant)(asked));
        if let Some(due) = place.as_mut().filter(|due| is_meant && due.left > 0) {
            due.left -= 1;
        } else if is_meant && let Some(due) = place.take() {
            // Nobody listens any more when the trial has failed.
            due.told.send((due.act)(&self.network).map(|()| Instant::now())).ok();
        }
    }
}

async fn serve(shared: Arc<Shared>, listener: TcpListener, address: SocketAddr) {
    let mut network = shared.network.subscribe();
    let mut listener = Some(listener);
    loop {
        let open = match listener.take() {
            Some(open) => open,
            None => match TcpListener::bind(address).await {
                Ok(open) => open,
                Err(_) => {
                    sleep(Duration::from_millis(20)).await;
                    continue;
                }
            },
        };
        // Its connections end with it.
        let mut connections = JoinSet::new();
        loop {
            tokio::select! {
                accepted = open.accept() => {
                    let Ok((stream, _)) = accepted else { continue };
                    let shared = shared.clone();
                    connections.spawn(async move {
                        let service = service_fn(move |request| handle(shared.clone(), request));
                        // It ends early when that is the fault.
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
                    });
                }
                Some(_) = connections.join_next() => {}
                _ = network.wait_for(|now| *now == Network::Refusing) => break,
            }
        }
        drop((open, connections));
        if network.wait_for(|now| *now != Network::Refusing).await.is_err() {
            return;
        }
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, BoxError> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let path = parts.uri.path_and_query().map(ToString::to_string).unwrap_or_default();
    let asked = Asked { method: parts.method.clone(), about: about(&path, &body), path };
    let fault = lock(&shared.rule).as_mut().and_then(|rule| rule(&asked));
    if let Some(fault) = fault {
        let name = format!("{fault:?}");
        let name = name.split('(').next().unwrap_or_default().to_owned();
        *lock(&shared.faults).entry(name).or_default() += 1;
    }
    let number = (parts.method != Method::GET).then(|| {
        let mut writes = lock(&shared.writes);
        writes.push(Write { at: Instant::now(), done: None, asked: asked.clone(), code: None, fault });
        writes.len() - 1
    });
    match fault {
        Some(Fault::Refuse(status)) => return Ok(refusal(status, None)),
        Some(Fault::TooMany(seconds)) => return Ok(refusal(StatusCode::TOO_MANY_REQUESTS, Some(seconds))),
        Some(Fault::Ignore) => return std::future::pending().await,
        Some(Fault::Gone) => {
            let line = json!({"type": "ERROR", "object": status(StatusCode::GONE, None)}).to_string() + "\n";
            return Ok(Response::new(Full::from(line).map_err(BoxError::from).boxed_unsync()));
        }
        _ => {}
    }
    shared.do_what_is_due(&asked);
    let path = if let Some(Fault::Replay(back)) = fault { earlier(&asked.path, back) } else { asked.path.clone() };
    // What was sent arrives, whether or not somebody still waits for the answer.
    let task = tokio::spawn({
        let shared = shared.clone();
        async move {
            let mut network = shared.network.subscribe();
            network.wait_for(|now| *now != Network::Parted).await?;
            let mut onward = Request::builder().method(parts.method).uri(path);
            for (name, value) in parts.headers.iter().filter(|(name, _)| *name != HOST) {
                onward = onward.header(name, value);
            }
            let answer = shared.upstream.send(onward.body(kube::client::Body::from(body.to_vec()))?).await?;
            if let Some(write) = lock(&shared.writes).get_mut(number.unwrap_or(usize::MAX)) {
                (write.code, write.done) = (Some(answer.status().as_u16()), Some(Instant::now()));
            }
            network.wait_for(|now| *now != Network::Parted).await?;
            Ok::<_, BoxError>(answer)
        }
    });
    let (parts, body) = task.await??.into_parts();
    let chunks = body.into_data_stream().map(|chunk| chunk.map_err(BoxError::from));
    let body = match fault {
        Some(Fault::LoseAnswer) => return Err("the answer is lost".into()),
        Some(Fault::NeverAnswer) => return std::future::pending().await,
        _ if asked.is_watch() => {
            let lateness = if let Some(Fault::Late(time)) = fault { time } else { Duration::ZERO };
            let broken = if let Some(Fault::Break(time)) = fault { Some(time) } else { None };
            let frames = watched(shared, chunks, lateness, broken).map(|chunk| chunk.map(Frame::data));
            StreamBody::new(frames).boxed_unsync()
        }
        _ => {
            if let Some(Fault::Late(time)) = fault {
                sleep(time).await;
            }
            StreamBody::new(chunks.map(|chunk| chunk.map(Frame::data))).boxed_unsync()
        }
    };
    Ok(Response::from_parts(parts, body))
}

/// The events of a watch: as late as they are to be, held up while the network is parted, and cut when that is due.
fn watched(
    shared: Arc<Shared>,
    chunks: impl Stream<Item = Result<Bytes, BoxError>> + Send + 'static,
    lateness: Duration,
    broken: Option<Duration>,
) -> impl Stream<Item = Result<Bytes, BoxError>> + Send {
    let (sender, receiver) = tokio::sync::mpsc::unbounded_channel();
    let (mut cuts, network) = (shared.cuts.subscribe(), shared.network.subscribe());
    tokio::spawn(async move {
        let mut chunks = pin!(chunks);
        let break_off = async {
            match broken {
                Some(time) => sleep(time).await,
                None => std::future::pending().await,
            }
        };
        let mut break_off = pin!(break_off);
        loop {
            let chunk = tokio::select! {
                chunk = chunks.next() => chunk,
                () = &mut break_off => Some(Err("the watch is broken off".into())),
                _ = cuts.changed() => Some(Err("all watches are cut".into())),
                () = sender.closed() => return,
            };
            let Some(chunk) = chunk else { return };
            let ends = chunk.is_err();
            if ends {
                // The beginning of an event, of which the rest never comes.
                sender.send((Instant::now(), Ok(Bytes::from_static(b"{\"type\":\"MODI")))).ok();
            }
            if sender.send((Instant::now(), chunk)).is_err() || ends {
                return;
            }
        }
    });
    stream::unfold(receiver, move |mut receiver| {
        let mut network = network.clone();
        async move {
            let (at, chunk): (Instant, Result<Bytes, BoxError>) = receiver.recv().await?;
            tokio::time::sleep_until((at + lateness).into()).await;
            network.wait_for(|now| *now != Network::Parted).await.ok();
            Some((chunk, receiver))
        }
    })
}

/// What a request is about.
fn about(path: &str, body: &Bytes) -> String {
    let path = path.split('?').next().unwrap_or_default();
    let mut object: Value = serde_json::from_slice(body).unwrap_or_default();
    if path.ends_with("/status") {
        for condition in object["status"]["conditions"].as_array_mut().into_iter().flatten() {
            condition["lastTransitionTime"] = Value::Null;
        }
        return format!("{path} {}", object["status"]);
    }
    let named = |object: &Value| object["name"].as_str().map(str::to_owned);
    match named(&object["regarding"]).or_else(|| named(&object["metadata"])) {
        Some(name) if !path.contains(&name) => format!("{path}/{name}"),
        _ => path.to_owned(),
    }
}

/// The same watch, from an earlier version on.
fn earlier(path: &str, back: u64) -> String {
    let Some((head, tail)) = path.split_once("resourceVersion=") else { return path.to_owned() };
    let digits = tail.chars().take_while(char::is_ascii_digit).count();
    let version: u64 = tail[..digits].parse().unwrap_or(0);
    format!("{head}resourceVersion={}{}", version.saturating_sub(back).max(1), &tail[digits..])
}

fn status(code: StatusCode, retry_after: Option<u32>) -> Value {
    let mut status = json!({
        "kind": "Status", "apiVersion": "v1", "metadata": {}, "status": "Failure",
        "message": format!("a fault that the test made: {code}"), "reason": "Test", "code": code.as_u16(),
    });
    if let Some(seconds) = retry_after {
        status["details"] = json!({"retryAfterSeconds": seconds});
    }
    status
}

fn refusal(code: StatusCode, retry_after: Option<u32>) -> Answer {
    let body = Full::from(status(code, retry_after).to_string()).map_err(BoxError::from).boxed_unsync();
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, hyper::header::HeaderValue::from_static("application/json"));
    if let Some(seconds) = retry_after {
        answer.headers_mut().insert(RETRY_AFTER, seconds.into());
    }
    answer
}
