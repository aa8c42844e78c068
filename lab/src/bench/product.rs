//! l2lb, as its chart installs it.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use serde_json::Value;

use super::PATIENCE;
use super::event::{Case, Class, Event};
use super::stage::{POLL, Stage, Subject};
use crate::cluster::NAMESPACE;
use crate::lan::is_question;
use crate::process::wait_for;
use crate::{node, virtual_ip};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 150);
/// In the table, where only its promises are judged.
pub(super) const NAME: &str = "l2lb";
const SERVICE: &str = "bench-l2lb";
const EXCLUSION: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

#[derive(Debug, Default)]
pub(super) struct L2lb {
    prepared: Option<(Class, bool)>,
}

impl Subject for L2lb {
    fn name(&self) -> String {
        NAME.to_owned()
    }

    fn vip(&self) -> Ipv4Addr {
        VIP
    }

    fn cases(&self) -> Vec<Case> {
        let mut cases = Vec::new();
        let mut add = |event: Event, class: Class, headless: bool, local: bool| {
            cases.push(Case { event, class: Some(class), headless, local });
        };
        add(Event::Nothing, Class::Standard, false, false);
        for class in [Class::Standard, Class::Fast] {
            for event in [Event::PowerOff, Event::PortDown, Event::CarrierLost] {
                add(event, class, false, false);
                if event == Event::PowerOff {
                    add(event, class, true, false);
                }
            }
        }
        for event in [Event::Killed, Event::Ended, Event::Drained, Event::Rolled, Event::Moved] {
            add(event, Class::Standard, false, false);
        }
        add(Event::Moved, Class::Standard, false, true);
        add(Event::Paused, Class::Standard, false, false);
        add(Event::Partitioned, Class::Standard, false, false);
        cases
    }

    fn install(&mut self, stage: &mut Stage) -> Result<()> {
        stage.cluster.install_chart(&[])?;
        let pool = serde_json::json!({
            "apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": {"name": SERVICE},
            "spec": {"addresses": [VIP]},
        });
        stage.apply(&format!("{SERVICE}-pool"), &pool.to_string())
    }

    fn prepare(&mut self, stage: &mut Stage, case: Case) -> Result<()> {
        let class = case.class.unwrap_or(Class::Standard);
        if self.prepared == Some((class, case.local)) {
            return Ok(());
        }
        let patch = format!(r#"{{"spec":{{"announce":{{"failover":"{class:?}"}}}}}}"#);
        stage.cluster.kubectl(&["patch", "ippool", SERVICE, "--type=merge", "-p", &patch])?;
        if self.prepared.is_none_or(|(_, local)| local != case.local) {
            stage.apply_service(SERVICE, VIP, case.local, |_| {})?;
        }
        self.prepared = Some((class, case.local));
        Ok(())
    }

    fn ready(&mut self, stage: &mut Stage, case: Case) -> Result<String> {
        let class = format!("{:?}", case.class.unwrap_or(Class::Standard));
        let (owner, standby) = wait_for("the address has no owner with two standbys", PATIENCE, POLL, || {
            let Some(data) = virtual_ip::read(&stage.cluster, &VIP.to_string())? else {
                return Ok(Err("no VirtualIP".to_owned()));
            };
            Ok(settled(&data, &class).ok_or_else(|| data.to_string()))
        })?;
        stage.is_served(VIP)?;
        stage.cluster.lan().forget_frames()?;
        let mac = |name: &str| Some(node::lan_mac(name.trim_start_matches("node").parse().ok()?));
        let (from, to) = mac(&standby).zip(mac(&owner)).context("nodes of the lab")?;
        // Two questions: the second comes after an answer.
        wait_for(&format!("{standby} does not watch {owner}"), PATIENCE, POLL, || {
            let frames = stage.cluster.lan().frames()?;
            let questions = frames.iter().filter(|frame| is_question(frame, VIP, from, to)).count();
            Ok(if questions > 1 { Ok(()) } else { Err(format!("{questions} questions")) })
        })?;
        Ok(owner)
    }

    fn owner(&self, stage: &Stage) -> Result<Option<String>> {
        Ok(virtual_ip::owner(&stage.cluster, &VIP.to_string())?.map(|owner| owner.node))
    }

    fn signal(&mut self, stage: &Stage, node: &str, what: Signal) -> Result<()> {
        stage.cluster.signal_speaker(node, what)
    }

    fn order(&mut self, stage: &Stage, case: Case, node: &str, begin: bool) -> Result<()> {
        let kubectl = |arguments: &[&str]| stage.cluster.kubectl(arguments).map(drop);
        match (case.event, begin) {
            (Event::Drained, true) => kubectl(&["annotate", "node", node, "l2lb.io/drain=maintenance"]),
            (Event::Drained, false) => kubectl(&["annotate", "node", node, "l2lb.io/drain-"]),
            (Event::Moved, true) => kubectl(&["label", "node", node, &format!("{EXCLUSION}=")]),
            (Event::Moved, false) => kubectl(&["label", "node", node, &format!("{EXCLUSION}-")]),
            (Event::Rolled, true) => {
                let set = "daemonset/l2lb-speaker";
                kubectl(&["-n", NAMESPACE, "rollout", "restart", set])?;
                kubectl(&["-n", NAMESPACE, "rollout", "status", set, "--timeout=120s"])
            }
            _ => Ok(()),
        }
    }

    /// Three intervals, two probes, and time for the new process to come up.
    fn notices_within(&self) -> Duration {
        Duration::from_secs(3)
    }

    fn remove(&mut self, stage: &mut Stage) -> Result<()> {
        if self.prepared.is_some() {
            stage.cluster.kubectl(&["delete", "service", SERVICE])?;
        }
        stage.cluster.control_plane().helm(&["uninstall", "l2lb", "-n", NAMESPACE, "--wait"]).map(drop)
    }
}

/// Owner and first standby, when the controller has two standbys and the primary has claimed.
fn settled(data: &Value, class: &str) -> Option<(String, String)> {
    let assignments = data["spec"]["assignments"].as_array()?;
    let of = |role: &str| -> Vec<&str> {
        let with_role = assignments.iter().filter(|assignment| assignment["role"] == role);
        with_role.filter_map(|assignment| assignment["node"].as_str()).collect()
    };
    let (primary, standbys, leaving) = (of("Primary"), of("Standby"), of("Leaving"));
    let claims = data["status"]["claims"].as_array()?;
    let owners: Vec<_> = claims.iter().filter(|claim| claim["state"] == "Owner").collect();
    let claimed = matches!(owners[..], [claim] if claim["node"] == primary.first().copied()?
        && claim["placement"] == data["spec"]["placement"]);
    let right = claimed && leaving.is_empty() && standbys.len() == 2 && data["spec"]["failover"] == class;
    right.then(|| Some((primary.first()?.to_string(), standbys.first()?.to_string())))?
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn settled_is_one_claim_of_the_primary_and_two_standbys() {
        let data = |role: &str, placement: u64| {
            json!({
                "spec": {"placement": 3, "failover": "Fast", "assignments": [
                    {"node": "node2", "role": "Primary"}, {"node": "node3", "role": "Standby"}, {"node": "node1", "role": role},
                ]},
                "status": {"claims": [{"node": "node2", "state": "Owner", "placement": placement}]},
            })
        };
        assert_eq!(settled(&data("Standby", 3), "Fast"), Some(("node2".to_owned(), "node3".to_owned())));
        assert_eq!(settled(&data("Standby", 3), "Standard"), None);
        assert_eq!(settled(&data("Standby", 2), "Fast"), None);
        assert_eq!(settled(&data("Leaving", 3), "Fast"), None);
    }
}
