//! keepalived as Debian ships it: VRRP between the nodes, the address on the master's NIC, kube-proxy behind it (`externalIPs`).
//!
//! All start as backups of different priority and do not preempt, so that a node that returns leaves the address where it is.

use std::collections::BTreeMap;
use std::fs;
use std::net::Ipv4Addr;
use std::path::PathBuf;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use nix::sys::signal::Signal;

use super::PATIENCE;
use super::event::{Case, Event};
use super::stage::{POLL, Stage, Subject};
use crate::process::{Process, signal, wait_for};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 151);
const NAME: &str = "bench-keepalived";

/// keepalived on every node.
#[derive(Debug)]
pub(super) struct Keepalived {
    name: String,
    /// Seconds between two advertisements; a backup takes over after a little more than three.
    interval: &'static str,
    running: BTreeMap<String, Process>,
    /// How often it was started: each has a log of its own.
    starts: u32,
    last_log: BTreeMap<String, PathBuf>,
}

impl Keepalived {
    pub(super) fn new(name: &str, interval: &'static str) -> Self {
        Self { name: name.to_owned(), interval, running: BTreeMap::new(), starts: 0, last_log: BTreeMap::new() }
    }

    fn config(&self, node: &str, index: u8) -> String {
        format!(
            "global_defs {{
                router_id {node}
                vrrp_version 3
            }}
            vrrp_instance address {{
                state BACKUP
                nopreempt
                interface eth0
                virtual_router_id 51
                priority {}
                advert_int {}
                virtual_ipaddress {{
                    {VIP}/32 dev eth0
                }}
            }}\n",
            100 - index,
            self.interval
        )
    }

    fn start(&mut self, stage: &Stage, name: &str) -> Result<()> {
        let node = stage.cluster.node(name)?;
        let folder = stage.cluster.control_plane().state();
        let config = folder.join(format!("keepalived-{name}.conf"));
        fs::write(&config, self.config(name, node.index()))
            .with_context(|| format!("cannot write {}", config.display()))?;
        self.starts += 1;
        let log = stage.cluster.control_plane().logs().join(format!("keepalived-{name}-{}.log", self.starts));
        let pid = |what: &str| format!("--{what}={}", log.with_extension(what).display());
        let mut command = node.netns().command("keepalived");
        command.args(["--vrrp", "--dont-fork", "--log-console", "--log-detail"]);
        command.arg(format!("--use-file={}", config.display())).args([pid("pid"), pid("vrrp_pid")]);
        let process = Process::spawn(&format!("keepalived of {name}"), &mut command, &log)?;
        self.running.insert(name.to_owned(), process);
        self.last_log.insert(name.to_owned(), log);
        Ok(())
    }

    /// The nodes whose NIC has the address.
    fn holders(stage: &Stage) -> Result<Vec<String>> {
        let mut holders = Vec::new();
        for (name, node) in stage.cluster.nodes() {
            if node.netns().ip(&["-4", "-o", "address", "show", "dev", "eth0"])?.contains(&format!("{VIP}/")) {
                holders.push(name.clone());
            }
        }
        Ok(holders)
    }

    /// The program and its child, which speaks VRRP.
    fn processes(&self, node: &str) -> Result<Vec<u32>> {
        let parent = self.running.get(node).with_context(|| format!("no keepalived on {node}"))?.pid();
        let children = fs::read_to_string(format!("/proc/{parent}/task/{parent}/children"));
        let children = children.context("the children of keepalived")?;
        let children = children.split_whitespace().map(str::parse).collect::<Result<Vec<u32>, _>>();
        Ok([vec![parent], children.context("the children of keepalived")?].concat())
    }
}

impl Subject for Keepalived {
    fn name(&self) -> String {
        self.name.clone()
    }

    fn vip(&self) -> Ipv4Addr {
        VIP
    }

    fn cases(&self) -> Vec<Case> {
        Case::all_but(&[Event::Drained, Event::Rolled, Event::Moved])
    }

    fn install(&mut self, stage: &mut Stage) -> Result<()> {
        stage.apply_service(NAME, VIP, false, |service| {
            service["metadata"]["annotations"] = serde_json::json!({});
            service["spec"]["type"] = "ClusterIP".into();
            service["spec"]["externalIPs"] = serde_json::json!([VIP]);
        })?;
        let nodes: Vec<String> = stage.cluster.nodes().keys().cloned().collect();
        nodes.iter().try_for_each(|node| self.start(stage, node))
    }

    fn ready(&mut self, stage: &mut Stage, _case: Case) -> Result<String> {
        stage.is_served(VIP)?;
        for process in self.running.values_mut() {
            process.expect_running()?;
        }
        wait_for("the address is on one NIC, the others stand by", PATIENCE, POLL, || {
            let holders = Self::holders(stage)?;
            let [owner] = &holders[..] else { return Ok(Err(format!("it is on {holders:?}"))) };
            for (node, log) in self.last_log.iter().filter(|(node, _)| *node != owner) {
                // The last that it said of its state.
                let said = fs::read_to_string(log).unwrap_or_default();
                let said = said.lines().rev().find_map(|line| line.split_once("Entering ").map(|(_, state)| state));
                if said.is_none_or(|state| !state.starts_with("BACKUP")) {
                    return Ok(Err(format!("{node} is {said:?}")));
                }
            }
            Ok(Ok(owner.clone()))
        })
    }

    fn owner(&self, stage: &Stage) -> Result<Option<String>> {
        Ok(Self::holders(stage)?.first().cloned())
    }

    fn signal(&mut self, _stage: &Stage, node: &str, what: Signal) -> Result<()> {
        let processes = self.processes(node)?;
        let told = if what == Signal::SIGTERM { &processes[..1] } else { &processes };
        told.iter().try_for_each(|pid| signal(*pid, what))
    }

    fn order(&mut self, _stage: &Stage, case: Case, _node: &str, _begin: bool) -> Result<()> {
        bail!("keepalived knows no such order: {case}")
    }

    fn revive(&mut self, stage: &Stage, node: &str) -> Result<()> {
        if let Some(mut process) = self.running.remove(node) {
            process.terminate(Duration::from_secs(5))?;
        }
        self.start(stage, node)
    }

    fn notices_within(&self) -> Duration {
        Duration::from_secs(5)
    }

    fn remove(&mut self, stage: &mut Stage) -> Result<()> {
        for process in std::mem::take(&mut self.running).values_mut() {
            process.terminate(Duration::from_secs(5))?;
        }
        for node in stage.cluster.nodes().values() {
            let address = format!("{VIP}/32");
            if node.netns().ip(&["address", "show", "dev", "eth0"])?.contains(&address) {
                node.netns().ip(&["address", "del", &address, "dev", "eth0"])?;
            }
        }
        stage.cluster.kubectl(&["delete", "service", NAME, "--ignore-not-found"]).map(drop)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_first_node_has_the_highest_priority() {
        let keepalived = Keepalived::new("keepalived", "0.1");
        let config = keepalived.config("node1", 1);
        assert!(config.contains("priority 99") && config.contains("advert_int 0.1"), "{config}");
        assert!(keepalived.config("node2", 2).contains("priority 98"));
    }
}
