//! The lab's stand-in for the scheduler: binds each Pod to the node that suits it and has the fewest. [`choose`] is pure.

use std::cmp::Reverse;
use std::collections::BTreeMap;
use std::pin::pin;
use std::time::Duration;

use anyhow::Result;
use futures::StreamExt as _;
use k8s_openapi::api::core::v1::{Binding, Node, NodeSelectorRequirement, NodeSelectorTerm, Pod};
use kube::api::PostParams;
use kube::core::Status;
use kube::runtime::{WatchStreamExt as _, watcher};
use kube::{Api, Client, ResourceExt as _};
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::sleep;

/// Pods that could not be bound are tried again after this time.
const RETRY: Duration = Duration::from_secs(1);

/// Starts it on the current tokio runtime. It ends when the task is aborted.
pub fn start(client: Client) -> JoinHandle<()> {
    tokio::spawn(run(client))
}

async fn run(client: Client) {
    let mut pods = pin!(watcher(Api::<Pod>::all(client.clone()), watcher::Config::default()).default_backoff());
    let mut nodes = pin!(watcher(Api::<Node>::all(client.clone()), watcher::Config::default()).default_backoff());
    let mut known_pods = Known::default();
    let mut known_nodes = Known::default();
    loop {
        tokio::select! {
            Some(event) = pods.next() => known_pods.handle(event),
            Some(event) = nodes.next() => known_nodes.handle(event),
            () = sleep(RETRY) => {}
        }
        let waiting: Vec<Pod> = known_pods.objects.values().filter(|pod| is_pending(pod)).cloned().collect();
        for pod in waiting {
            let node = match choose(&pod, known_nodes.objects.values(), known_pods.objects.values()) {
                Ok(node) => node,
                Err(reason) => {
                    tracing::debug!(pod = pod.name_any(), reason, "not bound");
                    continue;
                }
            };
            match bind(&client, &pod, &node).await {
                // The watch will say so too, but the next Pod has to see it now.
                Ok(()) => known_pods.bound(&pod, node),
                Err(error) => tracing::debug!(pod = pod.name_any(), %error, "not bound"),
            }
        }
    }
}

async fn bind(client: &Client, pod: &Pod, node: &str) -> Result<()> {
    let binding: Binding = serde_json::from_value(json!({
        "metadata": {"name": pod.name_any(), "uid": pod.uid()},
        "target": {"apiVersion": "v1", "kind": "Node", "name": node},
    }))?;
    let pods: Api<Pod> = Api::namespaced(client.clone(), &pod.namespace().unwrap_or_default());
    pods.create_subresource::<_, Status>("binding", &pod.name_any(), &PostParams::default(), &binding).await?;
    Ok(())
}

/// Objects of one kind by uid.
struct Known<K> {
    objects: BTreeMap<String, K>,
    listed: BTreeMap<String, K>,
}

impl<K> Default for Known<K> {
    fn default() -> Self {
        Self { objects: BTreeMap::new(), listed: BTreeMap::new() }
    }
}

impl<K: kube::Resource> Known<K> {
    fn handle(&mut self, event: watcher::Result<watcher::Event<K>>) {
        let key = |object: &K| object.uid().unwrap_or_default();
        match event {
            Ok(watcher::Event::Init) => self.listed.clear(),
            Ok(watcher::Event::InitApply(object)) => drop(self.listed.insert(key(&object), object)),
            Ok(watcher::Event::InitDone) => self.objects = std::mem::take(&mut self.listed),
            Ok(watcher::Event::Apply(object)) => drop(self.objects.insert(key(&object), object)),
            Ok(watcher::Event::Delete(object)) => drop(self.objects.remove(&key(&object))),
            Err(error) => tracing::debug!(%error, "the scheduler's watch"),
        }
    }
}

impl Known<Pod> {
    fn bound(&mut self, pod: &Pod, node: String) {
        let known = self.objects.get_mut(&pod.uid().unwrap_or_default());
        if let Some(spec) = known.and_then(|pod| pod.spec.as_mut()) {
            spec.node_name = Some(node);
        }
    }
}

fn is_pending(pod: &Pod) -> bool {
    let unbound = pod.spec.as_ref().is_some_and(|spec| spec.node_name.as_deref().unwrap_or_default().is_empty());
    unbound && pod.metadata.deletion_timestamp.is_none()
}

/// The node for a Pod: of those that are Ready, not cordoned, and suit its nodeSelector and required node affinity, the one
/// with the fewest Pods of the same owner, then the fewest Pods, then the last by name.
///
/// # Errors
/// Why no node will do, each node with its reason.
pub fn choose<'a>(
    pod: &Pod,
    nodes: impl IntoIterator<Item = &'a Node>,
    pods: impl IntoIterator<Item = &'a Pod> + Clone,
) -> Result<String, String> {
    let mut refused = Vec::new();
    let mut best: Option<Rank> = None;
    for node in nodes {
        let name = node.name_any();
        match refusal(pod, node) {
            Some(reason) => refused.push(format!("{name} {reason}")),
            None => {
                let here = |other: &&Pod| {
                    other.spec.as_ref().and_then(|spec| spec.node_name.as_deref()) == Some(&name)
                        && other.metadata.deletion_timestamp.is_none()
                };
                let load = pods.clone().into_iter().filter(here).count();
                let same = pods.clone().into_iter().filter(here).filter(|other| owner(other) == owner(pod)).count();
                let rank = (same, load, Reverse(name));
                if best.as_ref().is_none_or(|least| rank < *least) {
                    best = Some(rank);
                }
            }
        }
    }
    best.map(|(_, _, Reverse(name))| name)
        .ok_or_else(|| if refused.is_empty() { "there are no nodes".to_owned() } else { refused.join(", ") })
}

/// Pods of the same owner, all Pods, name: the least is the best.
type Rank = (usize, usize, Reverse<String>);

fn owner(pod: &Pod) -> Option<&str> {
    pod.metadata.owner_references.as_ref()?.iter().find(|owner| owner.controller == Some(true)).map(|owner| &*owner.uid)
}

fn refusal(pod: &Pod, node: &Node) -> Option<&'static str> {
    let ready = node
        .status
        .iter()
        .flat_map(|status| status.conditions.iter().flatten())
        .any(|condition| condition.type_ == "Ready" && condition.status == "True");
    let daemon = pod.metadata.owner_references.iter().flatten().any(|owner| owner.kind == "DaemonSet");
    let cordoned = node.spec.as_ref().and_then(|spec| spec.unschedulable) == Some(true);
    let spec = pod.spec.as_ref()?;
    let selected = spec.node_selector.iter().flatten().all(|(key, value)| node.labels().get(key) == Some(value));
    let affinity = spec.affinity.as_ref().and_then(|affinity| affinity.node_affinity.as_ref());
    let required = affinity.and_then(|affinity| affinity.required_during_scheduling_ignored_during_execution.as_ref());
    let liked = required.is_none_or(|required| required.node_selector_terms.iter().any(|term| fits(term, node)));
    if !selected || !liked {
        Some("is not selected")
    } else if !ready {
        Some("is not Ready")
    } else if cordoned && !daemon {
        Some("is cordoned")
    } else {
        None
    }
}

fn fits(term: &NodeSelectorTerm, node: &Node) -> bool {
    let by_label = |need: &NodeSelectorRequirement| holds(need, node.labels().get(&need.key));
    let by_field =
        |need: &NodeSelectorRequirement| need.key == "metadata.name" && holds(need, node.metadata.name.as_ref());
    term.match_expressions.iter().flatten().all(by_label) && term.match_fields.iter().flatten().all(by_field)
}

fn holds(need: &NodeSelectorRequirement, value: Option<&String>) -> bool {
    let listed = value.is_some_and(|value| need.values.iter().flatten().any(|wanted| wanted == value));
    match need.operator.as_str() {
        "In" => listed,
        "NotIn" => !listed,
        "Exists" => value.is_some(),
        "DoesNotExist" => value.is_none(),
        // Gt and Lt: nothing in the lab has numbers as labels.
        _ => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn node(name: &str, ready: &str) -> Node {
        serde_json::from_value(json!({
            "metadata": {"name": name, "labels": {"kubernetes.io/hostname": name}},
            "status": {"conditions": [{"type": "Ready", "status": ready}]},
        }))
        .unwrap()
    }

    fn pod(owner: &str, on: Option<&str>, spec: serde_json::Value) -> Pod {
        let mut spec = spec;
        spec["containers"] = json!([]);
        spec["nodeName"] = json!(on);
        let owners =
            json!([{"apiVersion": "apps/v1", "kind": "ReplicaSet", "name": owner, "uid": owner, "controller": true}]);
        serde_json::from_value(json!({"metadata": {"name": "p", "ownerReferences": owners}, "spec": spec})).unwrap()
    }

    #[test]
    fn replicas_are_spread() {
        let nodes = [node("a", "True"), node("b", "True"), node("c", "True")];
        let others = [pod("x", Some("a"), json!({})), pod("y", Some("b"), json!({}))];
        assert_eq!(choose(&pod("z", None, json!({})), &nodes, &others), Ok("c".into()));
        assert_eq!(choose(&pod("x", None, json!({})), &nodes[..2], &others), Ok("b".into()));
    }

    #[test]
    fn a_daemon_pod_goes_to_its_node_only() {
        let affinity = json!({"affinity": {"nodeAffinity": {"requiredDuringSchedulingIgnoredDuringExecution":
            {"nodeSelectorTerms": [{"matchFields": [{"key": "metadata.name", "operator": "In", "values": ["b"]}]}]}}}});
        let nodes = [node("a", "True"), node("b", "True")];
        assert_eq!(choose(&pod("d", None, affinity.clone()), &nodes, &[]), Ok("b".into()));
        let reason = choose(&pod("d", None, affinity), &[node("a", "True"), node("b", "Unknown")], &[]);
        assert_eq!(reason, Err("a is not selected, b is not Ready".into()));
    }

    #[test]
    fn selectors_are_honoured() {
        let nodes = [node("a", "True"), node("b", "True")];
        let wants = |name: &str| pod("s", None, json!({"nodeSelector": {"kubernetes.io/hostname": name}}));
        assert_eq!(choose(&wants("b"), &nodes, &[]), Ok("b".into()));
        assert!(choose(&wants("c"), &nodes, &[]).is_err());
        assert_eq!(choose(&wants("c"), &[], &[]), Err("there are no nodes".into()));
    }
}
