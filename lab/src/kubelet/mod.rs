//! The lab's stand-in for a kubelet: runs the Pods that are bound to a node, as processes in its network namespaces, with
//! the user, capabilities, token and probes that they ask for, and reports their status truthfully.
//!
//! One task watches the node's Pods and holds one task for each (`pod`), which holds one for each container
//! (`container`). Aborting the first ends all of them: programs are killed, sockets closed. What the stand-in does not
//! do, it says in the container's status: init containers, exec probes, other volumes than a token, a Secret, a ConfigMap, the Pod's
//! fields or an empty folder. It applies no seccomp profile and no resource limits.

mod container;
pub mod environment;
pub mod network;
mod pod;
pub mod probe;
pub mod registry;
pub mod status;
mod volumes;
pub mod walls;

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::pin::pin;
use std::sync::Arc;
use std::time::Duration;

use futures::StreamExt as _;
use k8s_openapi::api::core::v1::Pod;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use tokio::sync::watch;
use tokio::task::{JoinHandle, JoinSet};

use self::network::PodRange;
use self::registry::Registry;
use crate::netns::Netns;

/// Tells a person one line.
pub type Notes = Arc<dyn Fn(&str) + Send + Sync>;

/// What all Pods of a node share.
pub struct NodeContext {
    /// A client with all rights: the kubelet is not what the lab tests.
    pub client: Client,
    /// The node's name.
    pub name: String,
    /// Its network namespace.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// Addresses of its Pods.
    pub range: PodRange,
    /// Where its Pods' files are.
    pub folder: PathBuf,
    /// Where its containers' logs are.
    pub logs: PathBuf,
    /// Programs by the last part of the image's repository; other images are the built-in stand-in.
    pub programs: Vec<(String, PathBuf)>,
    /// What runs.
    pub registry: Registry,
    /// Whether other users than root can be used.
    pub change_user: bool,
    /// How long a container that keeps ending waits at most until it is started again.
    pub longest_backoff: Duration,
    /// Where to say what a person has to know.
    pub notes: Notes,
}

impl NodeContext {
    fn note(&self, text: &str) {
        (self.notes)(&format!("{}: {text}", self.name));
    }
}

/// Starts the kubelet on the current tokio runtime. It ends when the task is aborted.
pub fn start(context: Arc<NodeContext>) -> JoinHandle<()> {
    tokio::spawn(run(context))
}

async fn run(context: Arc<NodeContext>) {
    let pods: Api<Pod> = Api::all(context.client.clone());
    let mine = watcher::Config::default().fields(&format!("spec.nodeName={}", context.name));
    let mut events = pin!(watcher(pods, mine).default_backoff());
    let mut workers: BTreeMap<String, watch::Sender<Pod>> = BTreeMap::new();
    let mut tasks: JoinSet<String> = JoinSet::new();
    let mut listed = BTreeSet::new();
    loop {
        tokio::select! {
            Some(ended) = tasks.join_next() => match ended {
                Ok(uid) => drop(workers.remove(&uid)),
                Err(error) => tracing::error!(node = context.name, %error, "a Pod's task failed"),
            },
            event = events.next() => match event {
                None => return,
                Some(Err(error)) => tracing::debug!(node = context.name, %error, "watching Pods"),
                Some(Ok(watcher::Event::Init)) => listed.clear(),
                Some(Ok(watcher::Event::InitApply(pod))) => {
                    listed.insert(pod.uid().unwrap_or_default());
                    apply(&context, &mut workers, &mut tasks, pod);
                }
                Some(Ok(watcher::Event::InitDone)) => workers.retain(|uid, _| listed.contains(uid)),
                Some(Ok(watcher::Event::Apply(pod))) => apply(&context, &mut workers, &mut tasks, pod),
                Some(Ok(watcher::Event::Delete(pod))) => drop(workers.remove(&pod.uid().unwrap_or_default())),
            },
        }
    }
}

fn apply(
    context: &Arc<NodeContext>,
    workers: &mut BTreeMap<String, watch::Sender<Pod>>,
    tasks: &mut JoinSet<String>,
    pod: Pod,
) {
    let uid = pod.uid().unwrap_or_default();
    if let Some(worker) = workers.get(&uid) {
        worker.send_replace(pod);
        return;
    }
    let phase = pod.status.as_ref().and_then(|status| status.phase.as_deref());
    if matches!(phase, Some("Succeeded" | "Failed")) && pod.metadata.deletion_timestamp.is_none() {
        return;
    }
    let (sender, object) = watch::channel(pod);
    workers.insert(uid.clone(), sender);
    let context = context.clone();
    tasks.spawn(async move {
        pod::run(context, object).await;
        uid
    });
}
