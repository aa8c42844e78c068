//! Requests, as an API server understands them: paths, pages, watches.

use std::collections::BTreeMap;
use std::convert::Infallible;
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures::stream;
use http_body_util::{BodyExt as _, Full, StreamBody, combinators::UnsyncBoxBody};
use hyper::body::{Bytes, Frame, Incoming};
use hyper::header::{CONTENT_TYPE, HeaderValue};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::TokioIo;
use serde_json::{Value, json};
use tokio::net::TcpListener;
use tokio::sync::watch;
use tokio::task::JoinSet;
use tokio::time::{Instant, timeout_at};

use super::Shared;
use super::store::{RESOURCES, Refused, Resource, Selector};

type Answer = Response<UnsyncBoxBody<Bytes, Infallible>>;

/// News in one piece of a watch.
const BATCH: usize = 500;
/// A watch that names no end is ended after this.
const WATCH_SECONDS: u64 = 300;

/// Serves a door until the task is aborted.
pub(super) async fn serve(shared: Arc<Shared>, listener: TcpListener, mut open: watch::Receiver<bool>) {
    // Its connections end with it.
    let mut connections = JoinSet::new();
    loop {
        tokio::select! {
            accepted = listener.accept() => {
                let Ok((stream, _)) = accepted else { continue };
                if *open.borrow() {
                    let shared = shared.clone();
                    connections.spawn(async move {
                        let service = service_fn(move |request| handle(shared.clone(), request));
                        // A client that goes away is none of our business.
                        http1::Builder::new().serve_connection(TokioIo::new(stream), service).await.ok();
                    });
                }
            }
            Some(_) = connections.join_next() => {}
            changed = open.changed() => {
                if changed.is_err() {
                    return;
                }
                if !*open.borrow() {
                    connections.shutdown().await;
                }
            }
        }
    }
}

/// What a path names.
#[derive(Clone, Debug, PartialEq, Eq)]
struct Target {
    resource: Resource,
    /// `name` or `namespace/name`; none: all of them.
    name: Option<String>,
    status: bool,
}

impl Target {
    /// `/apis/GROUP/VERSION[/namespaces/NS]/PLURAL[/NAME[/status]]`.
    fn parse(path: &str) -> Option<Self> {
        let mut parts = path.strip_prefix("/apis/")?.split('/');
        let (group, version, mut plural) = (parts.next()?, parts.next()?, parts.next()?);
        let mut namespace = None;
        if plural == "namespaces" {
            (namespace, plural) = (Some(parts.next()?), parts.next()?);
        }
        let api_version = format!("{group}/{version}");
        let fits = |resource: &Resource| resource.plural == plural && resource.api_version == api_version;
        let resource = RESOURCES.into_iter().find(fits)?;
        let name = match (parts.next(), namespace) {
            (Some(name), Some(namespace)) => Some(format!("{namespace}/{name}")),
            (Some(name), None) => Some(name.to_owned()),
            (None, _) => None,
        };
        let status = match parts.next() {
            None => false,
            Some("status") => true,
            Some(_) => return None,
        };
        Some(Self { resource, name, status })
    }
}

async fn handle(shared: Arc<Shared>, request: Request<Incoming>) -> Result<Answer, hyper::Error> {
    let (parts, body) = request.into_parts();
    let body = body.collect().await?.to_bytes();
    let query = query(parts.uri.query().unwrap_or_default());
    let Some(target) = Target::parse(parts.uri.path()) else {
        return Ok(failure(StatusCode::NOT_FOUND, &format!("the fake API server has no {}", parts.uri.path())));
    };
    Ok(match (&parts.method, &target.name) {
        (&Method::GET, None) if query.contains_key("watch") => watched(shared, target.resource, &query),
        (&Method::GET, None) => list(&shared, target.resource, &query),
        (&Method::GET, Some(name)) => match shared.store().get(target.resource.plural, name) {
            Some(stored) => answer(StatusCode::OK, stored.json.clone()),
            None => failure(StatusCode::NOT_FOUND, &format!("{} {name} not found", target.resource.plural)),
        },
        (&Method::PATCH, Some(name)) => apply(&shared, &target, name, &body),
        (&Method::DELETE, Some(name)) => {
            shared.writes.fetch_add(1, Ordering::Relaxed);
            match shared.change(|store| store.delete(target.resource.plural, name)) {
                true => answer(StatusCode::OK, status("Success", 200, "").to_string()),
                false => failure(StatusCode::NOT_FOUND, &format!("{} {name} not found", target.resource.plural)),
            }
        }
        (method, _) => failure(StatusCode::METHOD_NOT_ALLOWED, &format!("the fake API server has no {method} here")),
    })
}

fn apply(shared: &Shared, target: &Target, name: &str, body: &Bytes) -> Answer {
    let Ok(patch) = serde_json::from_slice::<Value>(body) else {
        return failure(StatusCode::UNSUPPORTED_MEDIA_TYPE, "the fake API server takes JSON only");
    };
    shared.writes.fetch_add(1, Ordering::Relaxed);
    match shared.change(|store| store.apply(target.resource, name, target.status, patch)) {
        Ok(stored) => answer(StatusCode::OK, stored.json.clone()),
        Err(Refused::NotFound) => {
            failure(StatusCode::NOT_FOUND, &format!("{} {name} not found", target.resource.plural))
        }
        Err(Refused::OtherUid) => failure(StatusCode::CONFLICT, "the object has another uid"),
    }
}

/// One page. It shows what is there now; the version is that of the first page, so that a watch from there misses nothing.
fn list(shared: &Shared, resource: Resource, query: &BTreeMap<String, String>) -> Answer {
    let Some(selector) = selector(query) else { return failure(StatusCode::BAD_REQUEST, "an unknown label selector") };
    let limit =
        query.get("limit").and_then(|limit| limit.parse().ok()).filter(|limit| *limit > 0).unwrap_or(usize::MAX);
    let store = shared.store();
    let begin = query.get("continue").and_then(|token| token.split_once(':'));
    let (version, after) = match begin {
        Some((version, after)) => (version.to_owned(), after),
        None => (store.version().to_string(), ""),
    };
    let mut items = String::new();
    let mut found = store.list(resource.plural, after, &selector);
    let mut last = None;
    for (name, stored) in found.by_ref().take(limit) {
        if last.is_some() {
            items.push(',');
        }
        items.push_str(&stored.json);
        last = Some(name);
    }
    let more = found.next().is_some();
    let next = last.filter(|_| more).map(|name| format!("{version}:{name}")).unwrap_or_default();
    let metadata = json!({"resourceVersion": version, "continue": next});
    let (kind, api_version) = (resource.kind, resource.api_version);
    let text =
        format!(r#"{{"kind":"{kind}List","apiVersion":"{api_version}","metadata":{metadata},"items":[{items}]}}"#);
    answer(StatusCode::OK, text)
}

/// Lines, one for each change, until the time is over that the client asked for.
fn watched(shared: Arc<Shared>, resource: Resource, query: &BTreeMap<String, String>) -> Answer {
    let Some(selector) = selector(query) else { return failure(StatusCode::BAD_REQUEST, "an unknown label selector") };
    let begin = query.get("resourceVersion").and_then(|version| version.parse().ok());
    let begin = begin.unwrap_or_else(|| shared.store().version());
    let seconds = query.get("timeoutSeconds").and_then(|seconds| seconds.parse().ok()).unwrap_or(WATCH_SECONDS);
    let end = Instant::now() + Duration::from_secs(seconds);
    let changes = shared.version.subscribe();
    let lines = stream::unfold((changes, Some(begin)), move |(mut changes, told)| {
        let (shared, selector) = (shared.clone(), selector.clone());
        async move {
            let mut told = told?;
            loop {
                changes.borrow_and_update();
                let news = shared.store().news(resource.plural, told, &selector, BATCH);
                let Some((lines, up_to)) = news else {
                    let gone = status("Failure", 410, "too old resource version");
                    return Some((line("ERROR", &gone), (changes, None)));
                };
                told = up_to;
                if !lines.is_empty() {
                    return Some((Bytes::from(lines), (changes, Some(told))));
                }
                if !matches!(timeout_at(end, changes.changed()).await, Ok(Ok(()))) {
                    let bookmark = json!({
                        "kind": resource.kind, "apiVersion": resource.api_version,
                        "metadata": {"resourceVersion": told.to_string()},
                    });
                    return Some((line("BOOKMARK", &bookmark), (changes, None)));
                }
            }
        }
    });
    let frames = futures::StreamExt::map(lines, |bytes| Ok::<_, Infallible>(Frame::data(bytes)));
    json_answer(StatusCode::OK, StreamBody::new(frames).boxed_unsync())
}

fn line(word: &str, object: &Value) -> Bytes {
    Bytes::from(json!({"type": word, "object": object}).to_string() + "\n")
}

fn selector(query: &BTreeMap<String, String>) -> Option<Selector> {
    Selector::parse(query.get("labelSelector").map_or("", String::as_str))
}

fn query(text: &str) -> BTreeMap<String, String> {
    let pairs = text.split('&').filter_map(|pair| pair.split_once('='));
    pairs.map(|(key, value)| (key.to_owned(), decoded(value))).collect()
}

/// Without the escapes of a URL's query.
fn decoded(text: &str) -> String {
    let mut bytes = Vec::with_capacity(text.len());
    let mut rest = text.as_bytes();
    while let [first, tail @ ..] = rest {
        rest = tail;
        let escaped = (*first == b'%').then(|| std::str::from_utf8(tail.get(..2)?).ok()).flatten();
        match escaped.and_then(|digits| u8::from_str_radix(digits, 16).ok()) {
            Some(byte) => {
                bytes.push(byte);
                rest = &tail[2..];
            }
            None => bytes.push(if *first == b'+' { b' ' } else { *first }),
        }
    }
    String::from_utf8_lossy(&bytes).into_owned()
}

fn status(word: &str, code: u16, message: &str) -> Value {
    json!({"kind": "Status", "apiVersion": "v1", "metadata": {}, "status": word, "message": message, "code": code})
}

fn failure(code: StatusCode, message: &str) -> Answer {
    answer(code, status("Failure", code.as_u16(), message).to_string())
}

fn answer(code: StatusCode, text: String) -> Answer {
    json_answer(code, Full::from(text).boxed_unsync())
}

fn json_answer(code: StatusCode, body: UnsyncBoxBody<Bytes, Infallible>) -> Answer {
    let mut answer = Response::new(body);
    *answer.status_mut() = code;
    answer.headers_mut().insert(CONTENT_TYPE, HeaderValue::from_static("application/json"));
    answer
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths_are_read() {
        let target =
            |path: &str| Target::parse(path).map(|target| (target.resource.plural, target.name, target.status));
        let named = |name: &str| Some(name.to_owned());
        assert_eq!(target("/apis/l2lb.io/v1alpha1/virtualips"), Some(("virtualips", None, false)));
        let status = "/apis/l2lb.io/v1alpha1/virtualips/192.0.2.1/status";
        assert_eq!(target(status), Some(("virtualips", named("192.0.2.1"), true)));
        let lease = "/apis/coordination.k8s.io/v1/namespaces/l2lb-system/leases/l2lb-speaker-a";
        assert_eq!(target(lease), Some(("leases", named("l2lb-system/l2lb-speaker-a"), false)));
        assert_eq!(target("/apis/l2lb.io/v1/virtualips"), None);
        assert_eq!(target("/api/v1/services"), None);
        assert_eq!(decoded("node.l2lb.io%2Fa%3Dprimary"), "node.l2lb.io/a=primary");
        assert_eq!(decoded("a%2"), "a%2");
    }
}
