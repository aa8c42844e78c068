//! What a test that failed halfway has left behind, and the next one must not find.

use anyhow::Result;
use lab::{cluster::NAMESPACE, control_plane::Program};
use serde_json::Value;

use super::{Bench, CONTROLLERS, NODES, eventually};
use crate::PATIENCE;

/// Labels that tests give to nodes.
const LABELS: [&str; 4] =
    ["node.kubernetes.io/exclude-from-external-load-balancers-", "lan-", "uplink-", "lab-witness-"];

impl Bench {
    /// Brings back what every test begins with: the API server runs, every node is on and unmarked, the chart has its own values, there
    /// is only the pool of `examples/` and no Service of type LoadBalancer, and the controllers remember nothing: neither addresses that
    /// rest, nor events that they have written.
    pub(super) fn tidy(&self) -> Result<()> {
        if !self.cluster().control_plane().is_started(Program::ApiServer) {
            self.start_api_server()?;
        }
        eventually(PATIENCE, "the API server answers", || self.kubectl(&["get", "--raw", "/readyz"]).map(Some))?;
        self.tidy_nodes()?;
        self.upgrade(&["--reset-values"])?;
        // By hand it may have other replicas than the chart's.
        self.scale_controller(CONTROLLERS)?;
        self.tidy_objects()?;
        self.scale_controller(0)?;
        self.kubectl(&["delete", "events.events.k8s.io", "--all", "-n", "default"])?;
        self.scale_controller(CONTROLLERS)?;
        if lab::families::has_ipv6() {
            self.client_neighbours_are_checked(30_000, 5)?;
        }
        self.forget_client_neighbours()
    }

    fn tidy_nodes(&self) -> Result<()> {
        for index in 1..=NODES {
            let node = lab::node::name(index);
            self.kubectl(&["uncordon", &node])?;
            self.kubectl(&[&["label", "node", &node][..], &LABELS].concat())?;
            self.kubectl(&["annotate", "node", &node, "l2lb.io/drain-"])?;
            self.kubectl(&["patch", "node", &node, "--type=merge", "-p", r#"{"spec":{"taints":null}}"#])?;
        }
        // Now: with a taint of its own none would count as ready.
        let off: Vec<String> = {
            let cluster = self.cluster();
            (1..=NODES).map(lab::node::name).filter(|name| !cluster.nodes().contains_key(name)).collect()
        };
        off.iter().try_for_each(|name| self.power_on(name))
    }

    fn tidy_objects(&self) -> Result<()> {
        let services: Value = serde_json::from_str(&self.kubectl(&["get", "services", "-A", "-o", "json"])?)?;
        for service in services["items"].as_array().into_iter().flatten() {
            let (namespace, name) = (&service["metadata"]["namespace"], &service["metadata"]["name"]);
            if let (Some(namespace), Some(name)) = (namespace.as_str(), name.as_str())
                && name != "kubernetes"
            {
                self.kubectl(&["-n", namespace, "delete", "service", name])?;
            }
        }
        self.kubectl(&["delete", "endpointslices", "-l", "kubernetes.io/service-name!=kubernetes"])?;
        self.kubectl(&["delete", "deployments", "--field-selector=metadata.name!=web"])?;
        for pool in self.kubectl(&["get", "ippools", "-o", "name"])?.lines().filter(|name| !name.ends_with("/lan")) {
            self.kubectl(&["delete", pool])?;
        }
        self.cluster().apply(&lab::cluster::repository().join("examples/pool.yaml"))?;
        let namespaces = self.kubectl(&["get", "namespaces", "-o", "jsonpath={.items[*].metadata.name}"])?;
        let made = |name: &&str| *name != "default" && *name != NAMESPACE && !name.starts_with("kube-");
        for namespace in namespaces.split_whitespace().filter(made) {
            self.kubectl(&["delete", "namespace", namespace])?;
        }
        eventually(PATIENCE, "all addresses are given back", || {
            Ok(self.kubectl(&["get", "virtualips", "-o", "name"])?.is_empty().then_some(()))
        })?;
        self.kubectl(&["scale", "deployment/web", "--replicas=2"])?;
        self.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
        self.kubectl(&["wait", "--for=condition=Ready", "speakers", "--all", "--timeout=120s"]).map(drop)
    }
}
