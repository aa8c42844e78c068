//! What runs now, for tests and for people: process ids, logs, addresses.

use std::collections::BTreeMap;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

/// A container that was started and has not been removed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct RunningContainer {
    /// Namespace of its Pod.
    pub namespace: String,
    /// Its Pod.
    pub pod: String,
    /// Its name in the Pod.
    pub container: String,
    /// Its node.
    pub node: String,
    /// The Pod's address.
    pub address: Ipv4Addr,
    /// Its process now; none while it waits to be started again, and for the built-in stand-in.
    pub pid: Option<u32>,
    /// Its output.
    pub log: PathBuf,
}

/// All of them. Clones are the same list.
#[derive(Clone, Debug, Default)]
pub struct Registry(Arc<Mutex<Containers>>);

/// By namespace, Pod and container.
type Containers = BTreeMap<(String, String, String), RunningContainer>;

impl Registry {
    /// The containers now, by namespace, Pod and name.
    pub fn list(&self) -> Vec<RunningContainer> {
        self.lock().values().cloned().collect()
    }

    /// The containers of one node.
    pub fn on_node(&self, node: &str) -> Vec<RunningContainer> {
        self.list().into_iter().filter(|container| container.node == node).collect()
    }

    pub(super) fn put(&self, container: RunningContainer) {
        let key = (container.namespace.clone(), container.pod.clone(), container.container.clone());
        self.lock().insert(key, container);
    }

    pub(super) fn remove_pod(&self, namespace: &str, pod: &str) {
        self.lock().retain(|_, container| container.namespace != namespace || container.pod != pod);
    }

    pub(crate) fn remove_node(&self, node: &str) {
        self.lock().retain(|_, container| container.node != node);
    }

    fn lock(&self) -> MutexGuard<'_, Containers> {
        // No entry is ever half written.
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }
}
