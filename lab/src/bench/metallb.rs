//! MetalLB in layer 2 mode, from its own programs and manifest. It is given a class of its own, so that l2lb may stand beside it, and
//! no webhooks, whose certificates would have to be renewed under the Pod.

use std::fs;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::PATIENCE;
use super::event::{Case, Event};
use super::stage::{POLL, Stage, Subject};
use crate::process::{signal, wait_for};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 152);
const NAME: &str = "bench-metallb";
const NAMESPACE: &str = "metallb-system";
const CLASS: &str = "metallb.io/bench";
const MANIFEST: &str = "metallb-native.yaml";
const EXCLUSION: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

/// The programs of the folder, by the images that they stand for.
///
/// # Errors
/// When one is missing.
pub fn programs(folder: &Path) -> Result<Vec<(String, PathBuf)>> {
    let files = ["controller", "speaker", MANIFEST].map(|name| (name, folder.join(name)));
    if let Some((name, _)) = files.iter().find(|(_, path)| !path.is_file()) {
        bail!("{} has no {name}: it has to hold controller, speaker and {MANIFEST} of one release", folder.display());
    }
    let real = |path: &PathBuf| path.canonicalize().with_context(|| path.display().to_string());
    files[..2].iter().map(|(name, path)| Ok(((*name).to_owned(), real(path)?))).collect()
}

/// MetalLB.
#[derive(Debug)]
pub(super) struct MetalLb {
    manifest: String,
}

impl MetalLb {
    pub(super) fn new(folder: &Path) -> Result<Self> {
        let path = folder.join(MANIFEST);
        let manifest = fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
        Ok(Self { manifest: adapted(&manifest) })
    }

    fn speaker(stage: &Stage, node: &str) -> Option<u32> {
        let containers = stage.cluster.containers();
        let speaker = |container: &&crate::kubelet::registry::RunningContainer| {
            container.namespace == NAMESPACE && container.container == "speaker" && container.node == node
        };
        containers.iter().find(speaker)?.pid
    }
}

/// With a class, without webhooks.
fn adapted(manifest: &str) -> String {
    let argument = "- --log-level=info";
    let class = format!("{argument}\n        - --lb-class={CLASS}");
    let controller = format!("{class}\n        - --webhook-mode=disabled");
    let documents = manifest.split("\n---\n").filter(|document| !document.contains("kind: ValidatingWebhook"));
    let adapt = |document: &str| {
        let arguments = if document.contains("kind: Deployment") { &controller } else { &class };
        document.replace(argument, arguments)
    };
    let documents: Vec<String> = documents.map(adapt).collect();
    documents.join("\n---\n")
}

impl Subject for MetalLb {
    fn name(&self) -> String {
        "MetalLB".to_owned()
    }

    fn vip(&self) -> Ipv4Addr {
        VIP
    }

    fn cases(&self) -> Vec<Case> {
        Case::all_but(&[Event::Drained])
    }

    fn install(&mut self, stage: &mut Stage) -> Result<()> {
        stage.apply(NAME, &self.manifest)?;
        let kubectl = |arguments: &[&str]| stage.cluster.kubectl(arguments).map(drop);
        for crd in ["ipaddresspools", "l2advertisements"] {
            kubectl(&["wait", "--for=condition=Established", &format!("crd/{crd}.metallb.io"), "--timeout=30s"])?;
        }
        for set in ["deployment/controller", "daemonset/speaker"] {
            kubectl(&["-n", NAMESPACE, "rollout", "status", set, "--timeout=120s"])
                .with_context(|| stage.cluster.report(NAMESPACE))?;
        }
        let pool = serde_json::json!({"apiVersion": "v1", "kind": "List", "items": [
            {
                "apiVersion": "metallb.io/v1beta1", "kind": "IPAddressPool",
                "metadata": {"name": NAME, "namespace": NAMESPACE}, "spec": {"addresses": [format!("{VIP}/32")]},
            },
            {
                "apiVersion": "metallb.io/v1beta1", "kind": "L2Advertisement",
                "metadata": {"name": NAME, "namespace": NAMESPACE},
            },
        ]});
        stage.apply(&format!("{NAME}-pool"), &pool.to_string())?;
        stage.apply_service(NAME, VIP, false, |service| {
            service["metadata"]["annotations"] = serde_json::json!({});
            service["spec"]["loadBalancerClass"] = CLASS.into();
        })
    }

    fn ready(&mut self, stage: &mut Stage, _case: Case) -> Result<String> {
        stage.is_served(VIP)?;
        let set = ["-n", NAMESPACE, "rollout", "status", "daemonset/speaker", "--timeout=90s"];
        stage.cluster.kubectl(&set).with_context(|| stage.cluster.report(NAMESPACE))?;
        wait_for("every node has a speaker, and one announces", PATIENCE, POLL, || {
            for node in stage.cluster.nodes().keys() {
                if Self::speaker(stage, node).is_none() {
                    return Ok(Err(format!("{node} has no speaker")));
                }
            }
            Ok(self.owner(stage)?.ok_or_else(|| "not one node answers".to_owned()))
        })
    }

    /// Its own books keep an entry of a node that is off.
    fn owner(&self, stage: &Stage) -> Result<Option<String>> {
        stage.answerer(VIP)
    }

    fn signal(&mut self, stage: &Stage, node: &str, what: Signal) -> Result<()> {
        signal(Self::speaker(stage, node).with_context(|| format!("no speaker runs on {node}"))?, what)
    }

    fn order(&mut self, stage: &Stage, case: Case, node: &str, begin: bool) -> Result<()> {
        let kubectl = |arguments: &[&str]| stage.cluster.kubectl(arguments).map(drop);
        match (case.event, begin) {
            (Event::Moved, true) => kubectl(&["label", "node", node, &format!("{EXCLUSION}=")]),
            (Event::Moved, false) => kubectl(&["label", "node", node, &format!("{EXCLUSION}-")]),
            (Event::Rolled, true) => {
                kubectl(&["-n", NAMESPACE, "rollout", "restart", "daemonset/speaker"])?;
                kubectl(&["-n", NAMESPACE, "rollout", "status", "daemonset/speaker", "--timeout=180s"])
            }
            (Event::Rolled, false) => Ok(()),
            _ => bail!("MetalLB knows no such order: {case}"),
        }
    }

    fn notices_within(&self) -> Duration {
        Duration::from_secs(10)
    }

    fn remove(&mut self, stage: &mut Stage) -> Result<()> {
        stage.cluster.kubectl(&["delete", "service", NAME, "--ignore-not-found"])?;
        stage.cluster.kubectl(&["delete", "namespace", NAMESPACE, "--ignore-not-found", "--wait=false"]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_manifest_gets_a_class_and_loses_its_webhooks() {
        let manifest = "kind: Deployment\n        - --log-level=info\n---\nkind: DaemonSet\n        - --log-level=info\n---\nkind: ValidatingWebhookConfiguration\n";
        let adapted = adapted(manifest);
        assert_eq!(adapted.matches(CLASS).count(), 2);
        assert_eq!(adapted.matches("--webhook-mode=disabled").count(), 1);
        assert!(!adapted.contains("ValidatingWebhook"));
    }
}
