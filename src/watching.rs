//! Watches that cannot fall deaf for long, for both roles.
//!
//! kube's watcher begins again after every error, but waits for ever where there is none: for the answer to a list, on a connection
//! whose other end lost its power. Here a list has a deadline, the API server is asked to end each watch after a minute, and the
//! client gives a connection up on which nothing arrives for longer ([`LONGEST_SILENCE`]).

use std::{fmt::Debug, time::Duration};

use futures::{
    Stream, StreamExt as _,
    stream::{self, BoxStream},
};
use kube::{
    Api, Resource,
    runtime::{
        WatchStreamExt as _,
        watcher::{self, watcher},
    },
};
use serde::de::DeserializeOwned;

use crate::retry::Patience;

/// The API server ends each watch after this long.
const WATCH_SECONDS: u32 = 60;
/// A connection on which nothing arrives for so long while something is awaited is dead.
pub const LONGEST_SILENCE: Duration = Duration::from_secs(75);
/// Lists come in pages of so many: each takes ten times the memory that is kept of it, until it is read.
const PAGE: u32 = 100;

/// How long a watch may say nothing.
#[derive(Clone, Copy, Debug)]
pub struct Limits {
    /// While it lists: a list, or a page of it, that takes longer will not come.
    pub listing: Duration,
    /// While it watches; `None`: as long as it likes.
    pub watching: Option<Duration>,
}

impl Default for Limits {
    fn default() -> Self {
        Self { listing: Duration::from_secs(15), watching: None }
    }
}

/// Watches for ever, with backoff. `None` says that a list was not answered in time; it is asked for again.
pub fn watch<K>(
    api: Api<K>,
    config: watcher::Config,
    limits: Limits,
) -> impl Stream<Item = Option<watcher::Result<watcher::Event<K>>>> + Send
where
    K: Resource + Clone + DeserializeOwned + Debug + Send + 'static,
{
    let config = config.timeout(WATCH_SECONDS).page_size(PAGE);
    within(limits, move || watcher(api.clone(), config.clone()).backoff(Patience::default()).boxed())
}

type WatchStream<K> = BoxStream<'static, watcher::Result<watcher::Event<K>>>;

/// Starts a watch, and another one in its place when it is silent for too long: with `None` first if that was while it listed.
fn within<K: Send + 'static>(
    limits: Limits,
    start: impl Fn() -> WatchStream<K> + Send + 'static,
) -> impl Stream<Item = Option<watcher::Result<watcher::Event<K>>>> + Send {
    let first = start();
    stream::unfold((start, first, true), move |(start, mut watch, mut lists)| async move {
        loop {
            let limit = if lists { Some(limits.listing) } else { limits.watching };
            let next = match limit {
                Some(limit) => tokio::time::timeout(limit, watch.next()).await,
                None => Ok(watch.next().await),
            };
            match next {
                Ok(event) => {
                    let event = event?;
                    match &event {
                        Ok(watcher::Event::Init) => lists = true,
                        Ok(watcher::Event::InitDone) => lists = false,
                        _ => {}
                    }
                    return Some((Some(event), (start, watch, lists)));
                }
                Err(_) => {
                    watch = start();
                    if std::mem::replace(&mut lists, true) {
                        return Some((None, (start, watch, lists)));
                    }
                }
            }
        }
    })
}
