//! l2lb itself under the scenarios: a whole cluster with the chart installed, and one Service per scenario. What is
//! behind the virtual IP is a sink on the control plane's host: nothing ever comes back over the LAN.

use std::net::IpAddr;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, anyhow, bail};
use kube::Api;
use l2lb::api::{ClaimState, EXCLUDE_LABEL, FailoverClass, Role, VirtualIP};
use lab::cluster::{Cluster, NAMESPACE, Options, repository};
use lab::control_plane::Program;
use lab::kit::Kit;
use lab::lan::host::UdpSink;
use lab::lan::{LanKind, SwitchOptions};
use lab::stalls::NoExcuse;
use lab::{node, runtime};

use crate::Scenario;
use crate::announcer::{Announcer, Failure, eventually};
use crate::field::{Field, Node, UDP_PORT};

/// A cluster's moves go through an API server, on a machine that does all of it.
const PATIENCE: Duration = Duration::from_secs(30);
/// kube-proxy's, for what the API server says: it may try to reach one that was away, again and again, up to a minute apart.
const KUBE_PROXY_PATIENCE: Duration = Duration::from_secs(120);
/// How much of each log is shown when a trial fails.
const LINES: usize = 40;
/// The control plane's host on the management network.
const SINK: [&str; 2] = ["10.100.0.2", "fd00:10:100::2"];

/// A cluster with l2lb.
pub struct Product {
    cluster: Cluster,
    nodes: Vec<Node>,
    // Without it, the kernel would send an ICMP error for each datagram, and the owner's NIC would not be silent.
    _sink: UdpSink,
}

impl Product {
    pub fn start(kit: &Kit) -> Result<Self> {
        let options = Options { nodes: 3, lan: LanKind::Switch(SwitchOptions::default()), ..Options::new() };
        let cluster = Cluster::start(kit, options.with_l2lb(Path::new(env!("CARGO_BIN_EXE_l2lb"))))?;
        cluster.install_chart(&["--set", "speaker.refreshIntervalSeconds=1"])?;
        cluster.apply(&repository().join("examples/pool.yaml"))?;
        let more = r#"[{"op": "add", "path": "/spec/addresses/-", "value": "2001:db8:1:0:0:0:2:0/112"}]"#;
        cluster.kubectl(&["patch", "ippool", "lan", "--type=json", "-p", more])?;
        let of_field = |machine: &node::Node| Node {
            netns: machine.netns().clone(),
            ip: node::lan_address(machine.index()),
            mac: node::lan_mac(machine.index()),
            port: machine.port(),
        };
        let nodes = cluster.nodes().values().map(of_field).collect();
        let sink = UdpSink::listen(cluster.control_plane().netns(), UDP_PORT)?;
        Ok(Self { cluster, nodes, _sink: sink })
    }

    /// Plays a scenario with a Service and an address of its own, and leaves the cluster as it was.
    pub fn play(&self, name: &str, vip: IpAddr, scenario: Scenario) -> Result<(), Failure> {
        let (lan, field) = (self.cluster.lan(), self.field());
        let mut service = Service::create(&self.cluster, &self.nodes, name, vip)?;
        let result = scenario(&field, &mut service);
        service.remove()?;
        // What a host still believes of this address it would check by itself, in the midst of another scenario. Nodes
        // know it, too, when a datagram came before kube-proxy knew the Service: they forward it back to the LAN.
        for host in self.nodes.iter().map(|node| &node.netns).chain([field.client]) {
            for (family, state) in [("-4", "all"), ("-4", "permanent"), ("-6", "all"), ("-6", "permanent")] {
                host.ip(&[family, "neigh", "flush", "dev", "eth0", "nud", state])?;
            }
        }
        lan.set_ageing(SwitchOptions::default().ageing)?;
        result
    }
}

impl Product {
    /// The LAN and the nodes.
    pub fn field(&self) -> Field<'_> {
        Field { lan: self.cluster.lan(), client: self.cluster.client_ns(), nodes: &self.nodes, patience: PATIENCE }
    }

    /// What failed, and what l2lb has to say about it.
    pub fn explain(&self, failure: &anyhow::Error) -> anyhow::Error {
        let told = format!("{failure:#}\n{}", self.cluster.logs(NAMESPACE, LINES));
        if NoExcuse::is_in(failure) { NoExcuse(told).into() } else { anyhow!(told) }
    }

    /// Makes a Service with that address, served by every node. Its owner.
    pub fn create(&self, name: &str, vip: IpAddr) -> Result<usize, Failure> {
        let service = Service::create(&self.cluster, &self.nodes, name, vip)?;
        Ok(service.owner()?.with_context(|| format!("no node claims {vip}"))?)
    }

    /// Who claims the address.
    pub fn owner_of(&self, name: &str, vip: IpAddr) -> Result<Option<usize>> {
        self.service(name, vip).owner()
    }

    /// Whom the controller names for that role, and as the first of those.
    pub fn first_of(&self, role: Role, name: &str, vip: IpAddr) -> Result<Option<usize>> {
        let virtual_ip = self.service(name, vip).virtual_ip()?;
        let assignments = virtual_ip.map(|virtual_ip| virtual_ip.spec.assignments).unwrap_or_default();
        let Some(first) = assignments.iter().find(|entry| entry.role == role) else { return Ok(None) };
        let port = self.cluster.node(&first.node)?.port();
        Ok(self.nodes.iter().position(|node| node.port == port))
    }

    /// The failover class that the speakers are told.
    pub fn failover_of(&self, name: &str, vip: IpAddr) -> Result<Option<FailoverClass>> {
        Ok(self.service(name, vip).virtual_ip()?.map(|virtual_ip| virtual_ip.spec.failover))
    }

    /// Deletes that Service.
    pub fn remove(&self, name: &str, vip: IpAddr) -> Result<(), Failure> {
        self.service(name, vip).remove()
    }

    fn service(&self, name: &str, vip: IpAddr) -> Service<'_> {
        Service { cluster: &self.cluster, nodes: &self.nodes, name: name.to_owned(), vip, excluded: Vec::new() }
    }

    /// The failover class of the example's pool.
    pub fn set_failover(&self, class: &str) -> Result<()> {
        let patch = format!(r#"{{"spec":{{"announce":{{"failover":"{class}"}}}}}}"#);
        self.cluster.kubectl(&["patch", "ippool", "lan", "--type=merge", "-p", &patch]).map(drop)
    }

    /// Pulls the plug of a node's LAN port, or puts it back.
    pub fn set_link(&mut self, node: usize, up: bool) -> Result<()> {
        let port = self.nodes[node].port;
        let machine = self.cluster.nodes().values().find(|machine| machine.port() == port);
        let name = machine.context("a node on that port")?.name().to_owned();
        self.cluster.set_link(&name, up)
    }

    /// Kills the API server, and with it all that a controller can do; or starts it.
    pub fn set_api_server(&mut self, up: bool) -> Result<()> {
        let control_plane = self.cluster.control_plane_mut();
        if up {
            control_plane.start_program(Program::ApiServer)
        } else {
            control_plane.kill_program(Program::ApiServer)
        }
    }
}

/// A Service of type LoadBalancer and its address.
struct Service<'a> {
    cluster: &'a Cluster,
    nodes: &'a [Node],
    name: String,
    vip: IpAddr,
    excluded: Vec<String>,
}

impl<'a> Service<'a> {
    fn create(cluster: &'a Cluster, nodes: &'a [Node], name: &str, vip: IpAddr) -> Result<Self> {
        let manifest = cluster.control_plane().state().join(format!("{name}.yaml"));
        std::fs::write(&manifest, manifest_of(name, vip)).context("cannot write a manifest")?;
        cluster.apply(&manifest)?;
        let service = format!("service/{name}");
        let announced = ["wait", "--for=condition=l2lb.io/Announced", &service, "--timeout=60s"];
        cluster.kubectl(&announced).with_context(|| cluster.report(NAMESPACE))?;
        let created = Self { cluster, nodes, name: name.to_owned(), vip, excluded: Vec::new() };
        // A node that gets a datagram before its kube-proxy knows the address forwards it back to the LAN, and goes on
        // with that flow: true of any cluster in the first second of a Service, and not what the scenarios ask about.
        match eventually(KUBE_PROXY_PATIENCE, || Ok(created.is_served_everywhere()?.then_some(()))) {
            Ok(Some(())) => Ok(created),
            Ok(None) => bail!("kube-proxy does not serve {vip} on every node"),
            Err(failure) => bail!("{failure}"),
        }
    }

    fn is_served_everywhere(&self) -> Result<bool> {
        let (save, length) = if self.vip.is_ipv6() { ("ip6tables-save", 128) } else { ("iptables-save", 32) };
        let rule = format!("-d {}/{length} ", self.vip);
        for node in self.nodes {
            let rules = node.netns.command(save).args(["-t", "nat"]).output().context(save)?;
            if !String::from_utf8_lossy(&rules.stdout).contains(&rule) {
                return Ok(false);
            }
        }
        Ok(true)
    }

    fn remove(mut self) -> Result<(), Failure> {
        for node in std::mem::take(&mut self.excluded) {
            self.cluster.kubectl(&["label", "node", &node, &format!("{EXCLUDE_LABEL}-")])?;
        }
        self.cluster.kubectl(&["delete", "service", &self.name])?;
        let gone = eventually(PATIENCE, || Ok(self.virtual_ip()?.is_none().then_some(())))?;
        gone.with_context(|| format!("{} is not given back", self.vip))?;
        Ok(())
    }

    fn virtual_ip(&self) -> Result<Option<VirtualIP>> {
        let api = Api::<VirtualIP>::all(self.cluster.client().clone());
        let name = l2lb::api::virtual_ip_name(self.vip);
        runtime::block_on(async { api.get_opt(&name).await.with_context(|| format!("cannot read VirtualIP {name}")) })
    }

    /// While an address moves, two nodes may claim it: the one that was named last counts.
    fn owner_name(&self) -> Result<Option<String>> {
        let virtual_ip = self.virtual_ip()?.with_context(|| format!("no VirtualIP {}", self.vip))?;
        let claims = virtual_ip.status.map(|status| status.claims).unwrap_or_default();
        let claimed = |node: &str| claims.iter().any(|claim| claim.node == node && claim.state == ClaimState::Owner);
        let by_role = |role: Role| {
            virtual_ip.spec.assignments.iter().find(|assignment| assignment.role == role && claimed(&assignment.node))
        };
        let owner = by_role(Role::Primary).or_else(|| by_role(Role::Leaving)).or_else(|| by_role(Role::Standby));
        Ok(owner.map(|owner| owner.node.clone()))
    }
}

impl Announcer for Service<'_> {
    fn vip(&self) -> IpAddr {
        self.vip
    }

    fn owner(&self) -> Result<Option<usize>> {
        let Some(name) = self.owner_name()? else { return Ok(None) };
        let machine = self.cluster.node(&name)?;
        let place = self.nodes.iter().position(|node| node.port == machine.port());
        place.map(Some).with_context(|| format!("{name} is not on the LAN"))
    }

    fn move_away(&mut self) -> Result<()> {
        let owner = self.owner_name()?.with_context(|| format!("no node claims {}", self.vip))?;
        self.cluster.kubectl(&["label", "node", &owner, &format!("{EXCLUDE_LABEL}=")])?;
        self.excluded.push(owner);
        Ok(())
    }
}

/// A Service whose only endpoint is the sink.
fn manifest_of(name: &str, vip: IpAddr) -> String {
    let (family, [sink_v4, sink_v6]) = (if vip.is_ipv6() { "IPv6" } else { "IPv4" }, SINK);
    let sink = if vip.is_ipv6() { sink_v6 } else { sink_v4 };
    format!(
        "\
apiVersion: v1
kind: Service
metadata:
  name: {name}
  annotations: {{l2lb.io/addresses: '{vip}'}}
spec:
  type: LoadBalancer
  ipFamilies: [{family}]
  ports: [{{name: datagrams, protocol: UDP, port: {UDP_PORT}}}]
---
apiVersion: discovery.k8s.io/v1
kind: EndpointSlice
metadata:
  name: {name}
  labels: {{kubernetes.io/service-name: {name}}}
addressType: {family}
ports: [{{name: datagrams, protocol: UDP, port: {UDP_PORT}}}]
endpoints:
  - addresses: ['{sink}']
    nodeName: node1
    conditions: {{ready: true, serving: true, terminating: false}}
"
    )
}
