//! The cluster with everything that no subject brings: the server behind the address, two clients, power and cables.

use std::collections::BTreeSet;
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;
use pnet_base::MacAddr;

use super::PATIENCE;
use super::event::Case;
use crate::cluster::{Cluster, NAMESPACE};
use crate::lan::{Ingress, PortId, arp_replies_for};
use crate::netns::Netns;
use crate::process::{run, signal, wait_for};
use crate::screen::Screen;
use crate::traffic::{Backend, Connections, Datagrams, Losses, Messages, MessagesOutcome, Outcome, PORT};
use crate::{node, traffic};

/// The server's address on the management network.
const SERVER: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 3);
const SECOND_CLIENT: &str = "192.0.2.4/24";
const SECOND_CLIENT_MAC: MacAddr = MacAddr(2, 0, 0, 0, 0xcc, 4);
const PER_SECOND: u32 = 1000;
const ESTABLISHED: u32 = 20;
/// Within this time an owner answers.
const ANSWERED: Duration = Duration::from_millis(200);
pub(super) const POLL: Duration = Duration::from_millis(20);

/// Somebody who makes a node answer for an address.
pub(super) trait Subject {
    fn name(&self) -> String;
    fn vip(&self) -> Ipv4Addr;
    /// What makes sense for it, in the order in which it is played.
    fn cases(&self) -> Vec<Case>;
    fn install(&mut self, stage: &mut Stage) -> Result<()>;
    /// Before the runs of a case.
    fn prepare(&mut self, _stage: &mut Stage, _case: Case) -> Result<()> {
        Ok(())
    }
    /// Waits until one node answers and another is known to stand by. The one that answers.
    fn ready(&mut self, stage: &mut Stage, case: Case) -> Result<String>;
    /// Who answers now by its own books, if somebody does.
    fn owner(&self, stage: &Stage) -> Result<Option<String>>;
    /// Sends a signal to its program on a node.
    fn signal(&mut self, stage: &Stage, node: &str, what: Signal) -> Result<()>;
    /// Gives the order that a case is about, or takes it back.
    fn order(&mut self, stage: &Stage, case: Case, node: &str, begin: bool) -> Result<()>;
    /// Starts its program on a node again where nobody else does.
    fn revive(&mut self, _stage: &Stage, _node: &str) -> Result<()> {
        Ok(())
    }
    /// After how long without its program on the owner an address has moved, if it ever does.
    fn notices_within(&self) -> Duration;
    fn remove(&mut self, stage: &mut Stage) -> Result<()>;
}

pub(super) struct Stage {
    pub(super) cluster: Cluster,
    pub(super) screen: Screen,
    pub(super) second: (Netns, PortId),
    server: Backend,
    /// Servers on the nodes themselves, while the policy is Local.
    local_servers: Vec<Backend>,
    /// What the Service has now.
    endpoints: Vec<(IpAddr, String)>,
}

impl Stage {
    pub(super) fn new(mut cluster: Cluster, screen: Screen) -> Result<Self> {
        cluster.lan().frames().context("what crosses the LAN has to be seen: use --lan switch")?;
        let host = Netns::create("server")?;
        cluster.control_plane().management().attach(&host, "mgmt0", SERVER)?;
        let server = Backend::start(&host, PORT)?;
        let second = Netns::create("client2")?;
        let port = cluster.lan_mut().attach(&second, "eth0", SECOND_CLIENT_MAC, Some(SECOND_CLIENT))?;
        Ok(Self { cluster, screen, second: (second, port), server, local_servers: Vec::new(), endpoints: Vec::new() })
    }

    /// The endpoints of a Service: the server, or with policy Local one on each node.
    fn set_endpoints(&mut self, local: bool) -> Result<()> {
        self.local_servers.clear();
        self.endpoints.clear();
        if !local {
            self.endpoints.push((SERVER.into(), "node1".to_owned()));
            return Ok(());
        }
        for (name, node) in self.cluster.nodes() {
            self.local_servers.push(Backend::start(node.netns(), PORT)?);
            // The one that it answers a client of the LAN from.
            self.endpoints.push((node::lan_address(node.index()).into(), name.clone()));
        }
        Ok(())
    }

    /// Applies objects.
    pub(super) fn apply(&self, name: &str, objects: &str) -> Result<()> {
        let path = self.cluster.control_plane().state().join(format!("bench-{name}.yaml"));
        std::fs::write(&path, objects).with_context(|| format!("cannot write {}", path.display()))?;
        self.cluster.apply(&path).map(drop)
    }

    /// A [`traffic::service`] with changes.
    pub(super) fn apply_service(
        &mut self,
        name: &str,
        vip: Ipv4Addr,
        local: bool,
        change: impl FnOnce(&mut serde_json::Value),
    ) -> Result<()> {
        self.set_endpoints(local)?;
        let endpoints: Vec<_> = self.endpoints.iter().map(|(address, node)| (*address, node.as_str())).collect();
        let policy = if local { "Local" } else { "Cluster" };
        let mut objects = traffic::service(name, vip.into(), policy, &endpoints);
        change(&mut objects["items"][0]);
        self.apply(name, &objects.to_string())
    }

    /// Waits until kube-proxy on every node forwards the address, and to the endpoints that there are now.
    pub(super) fn is_served(&self, vip: Ipv4Addr) -> Result<()> {
        wait_for(&format!("kube-proxy does not forward {vip} on every node"), PATIENCE, POLL, || {
            for (name, node) in self.cluster.nodes() {
                let rules = run(node.netns().command("iptables-save").args(["-t", "nat"]))?;
                let of = |words: String| rules.lines().filter(|rule| rule.contains(&words)).count();
                let endpoint = |(address, _): &(IpAddr, String)| of(format!("--to-destination {address}:{PORT}")) == 2;
                let forwards = ["udp", "tcp"].iter().all(|protocol| of(format!("-d {vip}/32 -p {protocol}")) > 0);
                if !forwards || !self.endpoints.iter().all(endpoint) {
                    return Ok(Err(format!("{name} does not")));
                }
            }
            Ok(Ok(()))
        })
    }

    /// Cuts API server and controllers off, or brings them back: the cable of the API server's machine is pulled, and the controllers stand
    /// still, which to all others is as good as dead and is over at once.
    pub(super) fn set_head(&self, up: bool) -> Result<()> {
        let control_plane = self.cluster.control_plane();
        control_plane.management().set_link(control_plane.netns(), up)?;
        for container in self.cluster.containers() {
            if container.namespace == NAMESPACE
                && container.container == "controller"
                && let Some(pid) = container.pid
            {
                signal(pid, if up { Signal::SIGCONT } else { Signal::SIGSTOP })?;
            }
        }
        Ok(())
    }

    /// What the servers have dropped so far.
    pub(super) fn dropped(&self) -> Result<Losses> {
        self.server.losses()
    }

    /// The port of a node.
    pub(super) fn port(&self, node: &str) -> Result<PortId> {
        Ok(self.cluster.node(node)?.port())
    }

    /// The one node that answers who asks for the address now; none if none does, or two.
    pub(super) fn answerer(&self, vip: Ipv4Addr) -> Result<Option<String>> {
        let lan = self.cluster.lan();
        lan.forget_frames()?;
        self.ask(vip);
        std::thread::sleep(ANSWERED);
        let answers: BTreeSet<Ingress> =
            arp_replies_for(&lan.frames()?, vip).into_iter().map(|said| said.ingress).collect();
        let of = |port: PortId| self.cluster.nodes().iter().find(|(_, node)| node.port() == port);
        Ok(match answers.into_iter().collect::<Vec<_>>()[..] {
            [Ingress::Port(port)] => of(port).map(|(name, _)| name.clone()),
            _ => None,
        })
    }

    /// Asks for the address by broadcast, as a gateway does whose entry grows old.
    pub(super) fn ask(&self, vip: Ipv4Addr) {
        if let Some(gateway) = self.cluster.lan().gateway() {
            gateway.ask_again(vip);
        }
    }
}

/// All traffic of one client.
pub(super) struct Probes {
    datagrams: Datagrams,
    connections: Connections,
    messages: Messages,
}

impl Probes {
    /// Starts, and waits until it flows.
    pub(super) fn start(client: &Netns, vip: Ipv4Addr) -> Result<Self> {
        let to = SocketAddr::from((vip, PORT));
        let probes = Self {
            datagrams: Datagrams::start(client, to, PER_SECOND)?,
            connections: Connections::start(client, to, PER_SECOND)?,
            messages: Messages::start(client, to, ESTABLISHED, Duration::from_millis(50))?,
        };
        probes.flow(300)?;
        Ok(probes)
    }

    /// Waits for so many more answers of each kind.
    pub(super) fn flow(&self, more: u64) -> Result<()> {
        let answered = || self.datagrams.so_far().answered.min(self.connections.so_far().answered);
        let wanted = answered() + more;
        wait_for("the client gets no answers", PATIENCE, POLL, || {
            let now = answered();
            Ok(if now >= wanted { Ok(()) } else { Err(format!("{now} of {wanted} answers")) })
        })
    }

    /// Who forwards datagrams by what the server sees, and since which one.
    pub(super) fn forwarder(&self) -> Option<(Instant, IpAddr)> {
        self.datagrams.so_far().ways.last().copied()
    }

    /// Begins nothing new; what is under way goes on.
    pub(super) fn halt(&mut self) {
        self.datagrams.halt();
        self.connections.halt();
        self.messages.halt();
    }

    pub(super) fn stop(self) -> Result<(Outcome, Outcome, MessagesOutcome)> {
        Ok((self.datagrams.stop()?, self.connections.stop()?, self.messages.stop()?))
    }
}
