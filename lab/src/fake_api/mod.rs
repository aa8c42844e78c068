//! A small API server for tests of speakers alone: lists, watches with label selectors, server-side apply of statuses, Speakers and
//! Leases, over plain HTTP and without a password. No controller, no validation, no rights: the test itself writes what a controller would.
//!
//! ```text
//!  test --put, get, delete--> FakeApi <--- Door on 127.0.0.1 in netns a <--- l2lb speaker of a
//!                                     <--- Door on 127.0.0.1 in netns b <--- l2lb speaker of b
//! ```
//! Each speaker has a [`Door`] in its own network namespace, so that no management network is needed, and the way of one node to the
//! API server can be closed without the others'. It holds some ten thousand objects; what it does not serve it answers with 404.
//! Everything runs on the lab's runtime; dropping a door closes it.

mod http;
mod store;

use std::net::{Ipv4Addr, SocketAddr, TcpListener};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use anyhow::{Context as _, Result};
use serde::Serialize;
use serde_json::{Value, json};
use tokio::sync::watch;
use tokio::task::JoinHandle;

use self::store::{RESOURCES, Resource, Selector, Store};
use crate::netns::Netns;
use crate::runtime;

/// The API server. Clones are the same one.
#[derive(Clone, Debug)]
pub struct FakeApi(Arc<Shared>);

#[derive(Debug)]
struct Shared {
    store: Mutex<Store>,
    /// The version of the last change, for those who wait for one.
    version: watch::Sender<u64>,
    writes: AtomicU64,
}

impl Shared {
    /// The store, to be read. It is changed by [`Shared::change`], which wakes who waits for news.
    fn store(&self) -> MutexGuard<'_, Store> {
        // No change is ever half made.
        self.store.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn change<T>(&self, change: impl FnOnce(&mut Store) -> T) -> T {
        let mut store = self.store();
        let result = change(&mut store);
        self.version.send_replace(store.version());
        result
    }
}

impl Default for FakeApi {
    fn default() -> Self {
        Self::new()
    }
}

impl FakeApi {
    /// One without objects and without doors.
    pub fn new() -> Self {
        let version = watch::Sender::new(0);
        Self(Arc::new(Shared { store: Mutex::default(), version, writes: AtomicU64::new(0) }))
    }

    /// Makes or replaces an object (VirtualIP, Speaker, IPPool, Lease). An object that is there keeps its uid, and its status if
    /// none is given.
    ///
    /// # Errors
    /// When it cannot be written as JSON, or has no name or another kind.
    pub fn put(&self, object: &impl Serialize) -> Result<()> {
        let mut value = serde_json::to_value(object).context("an object as JSON")?;
        let kind = value["kind"].as_str().unwrap_or_default();
        let resource = RESOURCES.into_iter().find(|resource| resource.kind == kind);
        let resource = resource.with_context(|| format!("the fake API server holds no kind '{kind}'"))?;
        let name = value["metadata"]["name"].as_str().with_context(|| format!("a {kind} without a name"))?;
        let name = match (resource.namespaced, value["metadata"]["namespace"].as_str()) {
            (true, namespace) => format!("{}/{name}", namespace.unwrap_or("default")),
            (false, _) => name.to_owned(),
        };
        self.0.change(|store| {
            if value["status"].is_null()
                && let Some(before) = store.get(resource.plural, &name)
            {
                value["status"] = before.value["status"].clone();
            }
            store.put(resource, &name, value);
        });
        Ok(())
    }

    /// An object as it is now; `plural` is `virtualips`, `speakers`, `ippools` or `leases`, `name` is `namespace/name` of a Lease.
    pub fn get(&self, plural: &str, name: &str) -> Option<Value> {
        let resource = resource(plural)?;
        self.0.store().get(resource.plural, name).map(|stored| stored.value.clone())
    }

    /// All objects of a kind, by name.
    pub fn list(&self, plural: &str) -> Vec<Value> {
        let Some(resource) = resource(plural) else { return Vec::new() };
        let store = self.0.store();
        store.list(resource.plural, "", &Selector::default()).map(|(_, stored)| stored.value.clone()).collect()
    }

    /// Deletes an object. Whether it was there.
    pub fn delete(&self, plural: &str, name: &str) -> bool {
        resource(plural).is_some_and(|resource| self.0.change(|store| store.delete(resource.plural, name)))
    }

    /// What the speaker of `node` says about a virtual IP; `name` is the VirtualIP's.
    pub fn claim(&self, name: &str, node: &str) -> Option<Value> {
        let object = self.get("virtualips", name)?;
        object["status"]["claims"].as_array()?.iter().find(|claim| claim["node"] == node).cloned()
    }

    /// Writes that came in through doors so far.
    pub fn writes(&self) -> u64 {
        self.0.writes.load(Ordering::Relaxed)
    }

    /// A way in for the speaker in this network namespace.
    ///
    /// # Errors
    /// When there is no port, or the lab's runtime cannot be started.
    pub fn door_in(&self, netns: &Netns) -> Result<Door> {
        let listener = netns.run(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        self.door(listener.with_context(|| format!("no port for the fake API server in {}", netns.name()))?)
    }

    /// A way in through a listener that is there already.
    ///
    /// # Errors
    /// When the listener is unfit, or the lab's runtime cannot be started.
    pub fn door(&self, listener: TcpListener) -> Result<Door> {
        let address = listener.local_addr().context("the fake API server's port")?;
        listener.set_nonblocking(true).context("the fake API server's port")?;
        let runtime = runtime::handle()?;
        let guard = runtime.enter();
        let listener = tokio::net::TcpListener::from_std(listener).context("the fake API server's port")?;
        drop(guard);
        let open = watch::Sender::new(true);
        let task = runtime.spawn(http::serve(self.0.clone(), listener, open.subscribe()));
        Ok(Door { address, open, task })
    }
}

/// A way to the fake API server. Dropping it closes it for good, and with it the connections that came through it.
#[derive(Debug)]
pub struct Door {
    address: SocketAddr,
    open: watch::Sender<bool>,
    task: JoinHandle<()>,
}

impl Door {
    /// Closes or opens it. Closed, all connections through it end, and each new one ends as soon as it is made.
    pub fn set_open(&self, open: bool) {
        self.open.send_replace(open);
    }

    /// Its address.
    pub fn address(&self) -> SocketAddr {
        self.address
    }

    /// Writes a kubeconfig that leads here, for the environment variable `KUBECONFIG`.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn kubeconfig(&self, path: &Path) -> Result<PathBuf> {
        // Nobody is to be trusted, in base64: otherwise the client reads all of the machine's certificates, and wants some.
        let no_authority = "Cg==";
        let server = format!("http://{}", self.address);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "fake",
            "clusters": [{"name": "fake", "cluster": {"server": server, "certificate-authority-data": no_authority}}],
            "users": [{"name": "fake", "user": {}}],
            "contexts": [{"name": "fake", "context": {"cluster": "fake", "user": "fake"}}],
        });
        std::fs::write(path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
        Ok(path.to_owned())
    }
}

impl Drop for Door {
    fn drop(&mut self) {
        self.task.abort();
    }
}

fn resource(plural: &str) -> Option<Resource> {
    RESOURCES.into_iter().find(|resource| resource.plural == plural)
}

#[cfg(test)]
mod tests;
