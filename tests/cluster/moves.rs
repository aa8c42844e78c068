//! Planned moves, and speakers that end: no datagram and no new connection is lost, at a thousand of each in a second. A connection that
//! had been accepted before may be cut (docs/moves.md): how many were is printed.

use std::{
    net::{IpAddr, UdpSocket},
    time::Instant,
};

use anyhow::{Context as _, Result, ensure};
use lab::{lan::host::neighbour, traffic::service as traffic_service};
use nix::sys::signal::Signal;
use serde_json::json;

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, Traffic, eventually},
};

pub const TESTS: &[Test] = &[
    ("an_excluded_node_hands_over_and_loses_nothing", excluded_node),
    ("a_cordon_moves_nothing_and_a_drain_loses_nothing", drain_and_cordon),
    ("a_speaker_that_is_told_to_end_loses_nothing", ended_speaker),
    ("a_killed_speaker_loses_nothing", killed_speaker),
    ("a_rolling_restart_loses_nothing", rolling_restart),
];

const EXCLUSION: &str = "node.kubernetes.io/exclude-from-external-load-balancers";
/// Selects the one node on which a Service is announced that shows what the controller has seen.
const WITNESS: &str = "lab-witness";
/// How long a speaker may go on after it was told to end: its own drain timeout and a little more.
const ENDED: usize = 60;

/// A Service of its own under traffic.
struct Scene<'a> {
    bench: &'a Bench,
    name: &'static str,
    address: String,
    owner: String,
    traffic: Traffic,
}

impl<'a> Scene<'a> {
    fn open(bench: &'a Bench, name: &'static str, address: &str) -> Result<Self> {
        bench.apply(&private_pool(name, &[address]))?;
        let backend = bench.backend_address();
        bench.apply(&traffic_service(name, address.parse()?, "Cluster", &[(backend, "node1")]))?;
        ensure!(announced(bench, name)? == address);
        let owner = announcing_node(bench, address)?;
        for node in ["node1", "node2", "node3"] {
            eventually(PATIENCE, &format!("kube-proxy on {node} forwards {address}"), || {
                let rules = bench.in_node(node, &["iptables", "-t", "nat", "-S"])?;
                let of =
                    |protocol: &str| rules.lines().any(|rule| rule.contains(&format!("-d {address}/32 -p {protocol}")));
                Ok((of("udp") && of("tcp")).then_some(()))
            })?;
        }
        let traffic = bench.traffic(address)?;
        traffic.flows(1000)?;
        Ok(Self { bench, name, address: address.to_owned(), owner, traffic })
    }

    /// Until another node claims, the Service says so, and its traffic goes there.
    fn moved(&self, from: &str) -> Result<String> {
        let next = moved_from(self.bench, &self.address, from)?;
        says(self.bench, self.name, "Announced", "Announced", &[&next])?;
        self.traffic.flows(500)?;
        Ok(next)
    }

    fn close(self, what: &str) -> Result<()> {
        let Self { bench, name, address, traffic, .. } = self;
        traffic.flows(500)?;
        traffic.nothing_lost(what)?;
        ensure!(address_of(bench, name)? == address, "the address changed");
        delete_services(bench, &[name])?;
        bench.kubectl(&["delete", "ippool", name]).map(drop)
    }
}

fn excluded_node(bench: &Bench) -> Result<()> {
    let scene = Scene::open(bench, "excluded", "192.0.2.240")?;
    bench.kubectl(&["label", "node", &scene.owner, &format!("{EXCLUSION}=")])?;
    scene.moved(&scene.owner)?;
    bench.kubectl(&["label", "node", &scene.owner, &format!("{EXCLUSION}-")])?;
    scene.close("a move by the controller")
}

fn drain_and_cordon(bench: &Bench) -> Result<()> {
    let scene = Scene::open(bench, "drained", "192.0.2.241")?;
    let mut pool = private_pool("witness", &["192.0.2.245"]);
    pool["spec"]["announce"] = json!({"nodeSelector": {"matchLabels": {(WITNESS): "yes"}}});
    bench.apply(&pool)?;
    bench.apply(&asking("witness", json!({"l2lb.io/pool": "witness"})))?;
    says(bench, "witness", "Announced", "NoEligibleNode", &["announce.nodeSelector does not select it"])?;
    let before = bench.get("virtualip", &scene.address)?;
    bench.kubectl(&["cordon", &scene.owner])?;
    // Who has seen this label has seen the cordon: both are of one object.
    bench.kubectl(&["label", "node", &scene.owner, &format!("{WITNESS}=yes")])?;
    announced(bench, "witness")?;
    let after = bench.get("virtualip", &scene.address)?;
    ensure!(after["spec"] == before["spec"], "a cordon alone has changed {after}");
    ensure!(announcing_node(bench, "192.0.2.245")? == scene.owner, "a cordoned node does not announce");
    delete_services(bench, &["witness"])?;
    bench.kubectl(&["delete", "ippool", "witness"])?;
    bench.kubectl(&["label", "node", &scene.owner, &format!("{WITNESS}-")])?;

    bench.kubectl(&["annotate", "node", &scene.owner, "l2lb.io/drain=maintenance"])?;
    let next = scene.moved(&scene.owner)?;
    bench.kubectl(&["annotate", "node", &scene.owner, "l2lb.io/drain-"])?;
    bench.kubectl(&["uncordon", &scene.owner])?;
    ensure!(announcing_node(bench, &scene.address)? == next, "it moved back");
    scene.close("a drain")
}

fn ended_speaker(bench: &Bench) -> Result<()> {
    let scene = Scene::open(bench, "ended", "192.0.2.242")?;
    bench.end_speaker(&scene.owner, Signal::SIGTERM)?;
    ensure!(scene.moved(&scene.owner)? != scene.owner);
    scene.close("the end of the owner's speaker")
}

/// Its node goes on forwarding: either the new process is there before a standby doubts it, or the address moves.
fn killed_speaker(bench: &Bench) -> Result<()> {
    let scene = Scene::open(bench, "killed", "192.0.2.243")?;
    bench.end_speaker(&scene.owner, Signal::SIGKILL)?;
    // Another host than the one under traffic: what waits in a kernel for an answer is lost when its neighbours are forgotten.
    let asker = bench.foreign_host()?;
    asker.ip(&["neigh", "flush", "to", &scene.address, "dev", "eth0"])?;
    let address: IpAddr = scene.address.parse()?;
    eventually(PATIENCE, "somebody answers who asks anew", || {
        asker.run(|| UdpSocket::bind("0.0.0.0:0")?.send_to(b"?", (address, 9)))??;
        Ok(neighbour(&asker, "eth0", address)?.and_then(|known| known.mac))
    })?;
    scene.close("a crash of the owner's speaker")
}

/// Each of them moves its addresses away first.
fn rolling_restart(bench: &Bench) -> Result<()> {
    let scene = Scene::open(bench, "rolled", "192.0.2.244")?;
    let begun = Instant::now();
    bench.kubectl(&["-n", "l2lb-system", "rollout", "restart", "daemonset/l2lb-speaker"])?;
    let limit = format!("--timeout={}s", 3 * ENDED);
    let done = bench.kubectl(&["-n", "l2lb-system", "rollout", "status", "daemonset/l2lb-speaker", &limit]);
    done.with_context(|| format!("after {:?}", begun.elapsed()))?;
    scene.close("a rolling restart")
}
