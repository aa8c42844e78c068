//! One Pod on its node, from its first event to the removal of its object.

use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;

use anyhow::Result;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::api::{DeleteParams, Patch, PatchParams, Preconditions};
use kube::{Api, ResourceExt as _};
use tokio::sync::{mpsc, watch};
use tokio::task::{JoinSet, block_in_place};
use tokio::time::sleep;

use super::NodeContext;
use super::container::{self, Launch};
use super::environment::Facts;
use super::network::PodNetwork;
use super::status::{self, ContainerState, ContainerView};
use super::volumes;
use crate::families::both;

/// How soon what failed for want of the API server is tried again.
const RETRY: Duration = Duration::from_secs(1);
/// The status is written again so often, because others write to it too (a node that was NotReady comes back).
const REASSERT: Duration = Duration::from_secs(10);

/// Runs the Pod until it was deleted. A dropped sender says that its object is gone already.
pub(super) async fn run(context: Arc<NodeContext>, mut object: watch::Receiver<Pod>) {
    let pod = object.borrow_and_update().clone();
    let folder = context.folder.join(pod.uid().unwrap_or_default());
    let worker = Worker {
        pods: Api::namespaced(context.client.clone(), &pod.namespace().unwrap_or_default()),
        context,
        pod,
        folder,
    };
    if worker.pod.metadata.deletion_timestamp.is_none() {
        let Some(network) = worker.network(&mut object).await else { return worker.remove_object().await };
        let network = Arc::new(network);
        worker.run_containers(&mut object, &network).await;
        worker.context.registry.remove_pod(&worker.pod.namespace().unwrap_or_default(), &worker.pod.name_any());
        if let Some(network) = Arc::into_inner(network) {
            let removed = block_in_place(|| network.remove(&worker.context.netns, &worker.context.range));
            if let Err(error) = removed {
                tracing::warn!(
                    pod = worker.pod.name_any(),
                    error = format!("{error:#}"),
                    "a Pod's network was left behind"
                );
            }
        }
        if let Err(error) = std::fs::remove_dir_all(&worker.folder) {
            tracing::debug!(%error, "a Pod's folder was left behind");
        }
    }
    worker.remove_object().await;
}

struct Worker {
    context: Arc<NodeContext>,
    pods: Api<Pod>,
    pod: Pod,
    folder: PathBuf,
}

impl Worker {
    /// The Pod's network; tries until it is there. `None` when the Pod was deleted before.
    async fn network(&self, object: &mut watch::Receiver<Pod>) -> Option<PodNetwork> {
        let host_network = self.pod.spec.as_ref().and_then(|spec| spec.host_network) == Some(true);
        if host_network {
            return Some(PodNetwork::of_node(&self.context.netns, self.context.address));
        }
        loop {
            match block_in_place(|| PodNetwork::create(&self.context.netns, &self.context.range)) {
                Ok(network) => return Some(network),
                Err(error) => self.context.note(&format!("{}: network: {error:#}", self.pod.name_any())),
            }
            sleep(RETRY).await;
            if is_leaving(object) {
                return None;
            }
        }
    }

    async fn run_containers(&self, object: &mut watch::Receiver<Pod>, network: &Arc<PodNetwork>) {
        let since = self.pod.status.as_ref().and_then(|status| status.start_time.clone());
        let since = since.unwrap_or_else(|| Time(k8s_openapi::jiff::Timestamp::now()));
        let (stop, _) = watch::channel(None);
        let (views, mut changes) = mpsc::unbounded_channel();
        let mut tasks = JoinSet::new();
        let mut shown = self.first_views();
        let mut begun = false;
        let mut dirty = true;
        loop {
            if !begun {
                match self.start_all(network, &stop, &views, &mut tasks).await {
                    Ok(()) => begun = true,
                    Err(error) => {
                        let message = format!("{error:#}");
                        for view in &mut shown {
                            view.state = ContainerState::Waiting {
                                reason: "CreateContainerConfigError",
                                message: message.clone(),
                            };
                        }
                        dirty = true;
                    }
                }
            }
            if dirty {
                let patch = status::patch(
                    &object.borrow(),
                    &both(self.context.address),
                    &both(network.address),
                    &since,
                    &shown,
                );
                dirty = self.write_status(&patch).await;
            }
            tokio::select! {
                Some((index, view)) = changes.recv() => {
                    set(&mut shown, index, view);
                    // What came together is told together.
                    while let Ok((index, view)) = changes.try_recv() {
                        set(&mut shown, index, view);
                    }
                    dirty = true;
                }
                changed = object.changed() => {
                    if changed.is_err() || is_leaving(object) {
                        stop.send_replace(Some(grace(&object.borrow(), changed.is_err())));
                        while tasks.join_next().await.is_some() {}
                        return;
                    }
                }
                () = sleep(if dirty || !begun { RETRY } else { REASSERT }) => dirty = true,
            }
        }
    }

    /// Fills the volumes and starts all containers.
    async fn start_all(
        &self,
        network: &Arc<PodNetwork>,
        stop: &watch::Sender<Option<Duration>>,
        views: &mpsc::UnboundedSender<(usize, ContainerView)>,
        tasks: &mut JoinSet<()>,
    ) -> Result<()> {
        let spec = self.pod.spec.clone().unwrap_or_default();
        if spec.init_containers.is_some_and(|containers| !containers.is_empty()) {
            anyhow::bail!("the lab runs no init containers");
        }
        let facts =
            Facts { pod: &self.pod, node: &self.context.name, host_ip: self.context.address, pod_ip: network.address };
        let volumes = volumes::prepare(&self.context.client, facts, &self.folder).await?;
        for (index, (container, view)) in spec.containers.into_iter().zip(self.first_views()).enumerate() {
            let launch = Launch {
                context: self.context.clone(),
                pod: self.pod.clone(),
                container,
                network: network.clone(),
                volumes: volumes.clone(),
                folder: self.folder.clone(),
                restarts: view.restarts,
            };
            let views = views.clone();
            // The receiver lives as long as the tasks; what is told after it went is of no interest.
            tasks.spawn(container::run(launch, stop.subscribe(), move |view| drop(views.send((index, view)))));
        }
        Ok(())
    }

    /// A Pod that ran before (its node was off) counts that as one more start.
    fn first_views(&self) -> Vec<ContainerView> {
        let containers = self.pod.spec.iter().flat_map(|spec| &spec.containers);
        let statuses =
            self.pod.status.as_ref().and_then(|status| status.container_statuses.clone()).unwrap_or_default();
        containers
            .map(|container| {
                let before = statuses.iter().find(|status| status.name == container.name);
                let ran =
                    before.is_some_and(|status| status.state.as_ref().is_some_and(|state| state.waiting.is_none()));
                ContainerView::new(before.map_or(0, |status| status.restart_count) + i32::from(ran))
            })
            .collect()
    }

    /// Whether it has to be written again.
    async fn write_status(&self, patch: &serde_json::Value) -> bool {
        let written = self.pods.patch_status(&self.pod.name_any(), &PatchParams::default(), &Patch::Merge(patch)).await;
        match written {
            Ok(_) => false,
            Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => false,
            Err(error) => {
                tracing::debug!(pod = self.pod.name_any(), %error, "the status was not written");
                true
            }
        }
    }

    /// Removes the object, which the API server keeps until the kubelet says that all has ended.
    async fn remove_object(&self) {
        let precondition = Preconditions { uid: self.pod.uid(), resource_version: None };
        let params = DeleteParams {
            grace_period_seconds: Some(0),
            preconditions: Some(precondition),
            ..DeleteParams::default()
        };
        loop {
            match self.pods.delete(&self.pod.name_any(), &params).await {
                Ok(_) => return,
                Err(kube::Error::Api(status)) if status.code == 404 || status.code == 409 => return,
                Err(error) => tracing::debug!(pod = self.pod.name_any(), %error, "the object was not removed"),
            }
            sleep(RETRY).await;
        }
    }
}

fn set(views: &mut [ContainerView], index: usize, view: ContainerView) {
    if let Some(slot) = views.get_mut(index) {
        *slot = view;
    }
}

/// Whether the Pod was deleted, or its object is gone.
fn is_leaving(object: &watch::Receiver<Pod>) -> bool {
    object.has_changed().is_err() || object.borrow().metadata.deletion_timestamp.is_some()
}

fn grace(pod: &Pod, gone: bool) -> Duration {
    if gone {
        return Duration::ZERO;
    }
    let asked = pod.metadata.deletion_grace_period_seconds;
    let seconds = asked.or_else(|| pod.spec.as_ref()?.termination_grace_period_seconds).unwrap_or(30);
    Duration::from_secs(u64::try_from(seconds).unwrap_or(0))
}
