//! A node: a network namespace on the LAN and on the management network, a real kube-proxy, the stand-in kubelet, and a
//! heartbeat (Node object and Lease) without which Kubernetes calls it dead.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};
use std::path::PathBuf;
use std::process::Command;
use std::sync::{Arc, Weak};
use std::time::Duration;

use anyhow::{Context as _, Result};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::Node as NodeObject;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, Time};
use k8s_openapi::jiff::Timestamp;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use nix::sys::signal::Signal;
use pnet_base::MacAddr;
use serde_json::json;
use tokio::task::JoinHandle;
use tokio::time::sleep;

use crate::control_plane::{ControlPlane, POD_RANGE, SERVICE_RANGE, User};
use crate::families::{POD_RANGE_V6, SERVICE_RANGE_V6, beside, beside_on_lan, has_ipv6};
use crate::kubelet::network::{PodRange, is_pod_of};
use crate::kubelet::{self, NodeContext};
use crate::lan::{self, Lan, PortId};
use crate::netns::Netns;
use crate::process::{Process, run, signal, wait_for};
use crate::runtime;

/// How many nodes there is room for in the addressing (192.0.2.11 to .60, below the pool of the examples).
pub const MAX_NODES: u8 = 50;
/// The gateway of the LAN for IPv6.
pub(crate) const GATEWAY_V6: &str = "2001:db8:1::1";
const LEASE_PERIOD: Duration = Duration::from_secs(2);
const STATUS_PERIOD: Duration = Duration::from_secs(10);
const RETRY: Duration = Duration::from_secs(1);
/// How long a kubelet's tasks may take to end: they wait for a few short commands at most.
const KUBELET_LIMIT: Duration = Duration::from_secs(30);
const KUBELET_POLL: Duration = Duration::from_millis(5);
const FIELD_MANAGER: &str = "l2lb-lab";

/// The name of node number `index` (from 1).
pub fn name(index: u8) -> String {
    format!("node{index}")
}

/// Its address on the management network, which Kubernetes knows as its InternalIP.
pub fn management_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(10, 100, 0, 10 + index)
}

/// Its address on the LAN.
pub fn lan_address(index: u8) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 10 + index)
}

/// Its IPv6 address on the LAN, if IPv6 is on there.
pub fn lan_address_v6(index: u8) -> Ipv6Addr {
    beside_on_lan(lan_address(index))
}

/// The MAC address of its `eth0`.
pub fn lan_mac(index: u8) -> MacAddr {
    MacAddr::new(2, 0, 0, 0, 1, index)
}

/// The parts of a node that do not need the API server: a machine that is switched on and has booted nothing yet.
pub(crate) struct Machine {
    pub(crate) index: u8,
    pub(crate) netns: Netns,
    pub(crate) port: PortId,
}

impl Machine {
    /// Makes the namespace and connects it.
    pub(crate) fn create(index: u8, nodes: u8, lan: &mut Lan, control_plane: &ControlPlane) -> Result<Self> {
        let netns = Netns::create(&name(index))?;
        for family in ["all", "default"] {
            netns.sysctl(&format!("net.ipv4.conf.{family}.rp_filter"), "0")?;
        }
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        if has_ipv6() {
            netns.sysctl("net.ipv6.conf.all.forwarding", "1")?;
        }
        let port = lan.attach(&netns, "eth0", lan_mac(index), Some(&format!("{}/24", lan_address(index))))?;
        netns.ip(&["route", "add", "default", "via", "192.0.2.1"])?;
        if has_ipv6() {
            lan::turn_ipv6_on(&netns, "eth0", &format!("{}/64", lan_address_v6(index)))?;
            netns.ip(&["-6", "route", "add", "default", "via", GATEWAY_V6])?;
        }
        let management = control_plane.management();
        management.attach(&netns, "mgmt0", management_address(index))?;
        // So that a node that is cut off the LAN still reaches the API server by its Service's address.
        netns.ip(&["route", "add", SERVICE_RANGE, "dev", "mgmt0"])?;
        let range = PodRange::new(index);
        netns.ip(&["address", "add", &format!("{}/32", range.gateway()), "dev", "lo"])?;
        if has_ipv6() {
            netns.ip(&["route", "add", SERVICE_RANGE_V6, "dev", "mgmt0"])?;
        }
        for other in (1..=nodes).filter(|other| *other != index) {
            for (cidr, via) in pods_by_way(other) {
                netns.ip(&["route", "add", &cidr, "via", &via.to_string()])?;
            }
        }
        for (cidr, via) in pods_by_way(index) {
            control_plane.netns().ip(&["route", "replace", &cidr, "via", &via.to_string()])?;
            management.route(&cidr, via)?;
        }
        Ok(Self { index, netns, port })
    }
}

/// The Pods of a node, and its address on the management network, in each family.
fn pods_by_way(index: u8) -> Vec<(String, IpAddr)> {
    let (range, via) = (PodRange::new(index), management_address(index));
    let mut ways = vec![(range.cidr(), via.into())];
    if has_ipv6() {
        ways.push((range.cidr_v6(), beside(via).into()));
    }
    ways
}

/// A running node.
pub struct Node {
    name: String,
    machine: Machine,
    proxy: Process,
    heart: JoinHandle<()>,
    kubelet: JoinHandle<()>,
    /// Held by each task of the kubelet.
    context: Weak<NodeContext>,
}

impl Node {
    /// Boots a machine: its objects, kube-proxy, then its Pods.
    pub(crate) fn boot(machine: Machine, control_plane: &ControlPlane, context: NodeContext) -> Result<Self> {
        let name = name(machine.index);
        let proxy = start_proxy(&machine, control_plane)?;
        let client = context.client.clone();
        let index = machine.index;
        runtime::block_on(async { register(&client, index).await })?;
        let runtime = runtime::handle()?;
        let heart = runtime.spawn(beat(client, index));
        let _entered = runtime.enter();
        let context = Arc::new(context);
        let kubelet = kubelet::start(context.clone());
        Ok(Self { name, machine, proxy, heart, kubelet, context: Arc::downgrade(&context) })
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its number, from 1.
    pub fn index(&self) -> u8 {
        self.machine.index
    }

    /// Its network namespace.
    pub fn netns(&self) -> &Netns {
        &self.machine.netns
    }

    /// Where its `eth0` is on the LAN.
    pub fn port(&self) -> PortId {
        self.machine.port
    }

    /// The kube-proxy.
    pub fn proxy(&mut self) -> &mut Process {
        &mut self.proxy
    }

    /// A power cut: first its cables, so that nothing that dies can say farewell, then all its processes, then its
    /// namespaces with their rules and routes.
    pub(crate) fn power_off(mut self, lan: &mut Lan, control_plane: &ControlPlane) -> Result<()> {
        let link = lan.set_link(self.machine.port, false);
        control_plane.management().detach(&self.machine.netns)?;
        link?;
        self.heart.abort();
        self.kubelet.abort();
        self.proxy.kill()?;
        runtime::block_on(async {
            // An error is that it was cancelled, as it should be.
            let _ = (&mut self.heart).await;
            let _ = (&mut self.kubelet).await;
            Ok(())
        })?;
        // Its tasks for Pods were told to end, and end when they wait next: one of them may be making a Pod's namespace.
        let ended = wait_for(&format!("the kubelet of {} ends", self.name), KUBELET_LIMIT, KUBELET_POLL, || {
            let left = self.context.strong_count();
            Ok(if left == 0 { Ok(()) } else { Err(format!("{left} tasks are left")) })
        });
        // If it does not end, too: otherwise the node could never be switched on again.
        for namespace in namespaces_of(&self.name)? {
            for pid in run(Command::new("ip").args(["netns", "pids", &namespace]))?.split_whitespace() {
                signal(pid.parse().context("ip netns pids")?, Signal::SIGKILL)?;
            }
            run(Command::new("ip").args(["netns", "delete", &namespace]))?;
        }
        lan.detach(self.machine.port)?;
        ended
    }
}

/// The node's namespace and those of its Pods.
fn namespaces_of(node: &str) -> Result<Vec<String>> {
    let entries = fs::read_dir("/run/netns").context("cannot read /run/netns")?;
    let names = entries.filter_map(|entry| entry.ok()?.file_name().into_string().ok());
    Ok(names.filter(|name| name == node || is_pod_of(node, name)).collect())
}

/// kube-proxy in iptables mode, with an xtables.lock of its own as on a machine of its own. It leaves the machine's global settings alone.
fn start_proxy(machine: &Machine, control_plane: &ControlPlane) -> Result<Process> {
    let name = name(machine.index);
    let config = json!({
        "apiVersion": "kubeproxy.config.k8s.io/v1alpha1",
        "kind": "KubeProxyConfiguration",
        "clientConnection": {"kubeconfig": control_plane.kubeconfig_of(User::KubeProxy)},
        "mode": "iptables",
        "hostnameOverride": name,
        "clusterCIDR": if has_ipv6() { format!("{POD_RANGE},{POD_RANGE_V6}") } else { POD_RANGE.to_owned() },
        "oomScoreAdj": 0,
        "conntrack": {"maxPerCore": 0, "min": 0, "tcpEstablishedTimeout": "0s", "tcpCloseWaitTimeout": "0s"},
    });
    let path = control_plane.state().join(format!("kube-proxy-{name}.json"));
    fs::write(&path, config.to_string()).with_context(|| format!("cannot write {}", path.display()))?;
    let mut command = machine.netns.command("unshare");
    let script = "touch \"$1\" /run/xtables.lock && mount --bind \"$1\" /run/xtables.lock && shift && exec \"$@\"";
    let program = control_plane.kit().program("kube-proxy");
    command
        .args(["--mount", "--propagation", "private", "--", "sh", "-c", script, "sh"])
        .arg(control_plane.state().join(format!("xtables-{name}.lock")))
        .arg(program)
        .arg(format!("--config={}", path.display()));
    Process::spawn(&format!("kube-proxy of {name}"), &mut command, &log(control_plane, &name))
}

fn log(control_plane: &ControlPlane, node: &str) -> PathBuf {
    control_plane.logs().join(format!("kube-proxy-{node}.log"))
}

/// Makes the Node object, or takes it over, and calls it Ready.
async fn register(client: &Client, index: u8) -> Result<()> {
    let name = name(index);
    let cidrs: Vec<String> = pods_by_way(index).into_iter().map(|(cidr, _)| cidr).collect();
    let object = json!({
        "apiVersion": "v1",
        "kind": "Node",
        "metadata": {
            "name": name,
            "labels": {
                "kubernetes.io/hostname": name,
                "kubernetes.io/os": "linux",
                "kubernetes.io/arch": std::env::consts::ARCH,
            },
        },
        "spec": {"podCIDR": cidrs[0], "podCIDRs": cidrs},
    });
    let nodes: Api<NodeObject> = Api::all(client.clone());
    nodes.patch(&name, &apply(), &Patch::Apply(object)).await.with_context(|| format!("Node {name}"))?;
    report_ready(&nodes, index, &Time(Timestamp::now())).await.with_context(|| format!("status of Node {name}"))
}

async fn report_ready(nodes: &Api<NodeObject>, index: u8, since: &Time) -> Result<()> {
    let name = name(index);
    let resources = json!({"cpu": "2", "memory": "4Gi", "pods": "110"});
    let own = pods_by_way(index).into_iter().map(|(_, address)| json!({"type": "InternalIP", "address": address}));
    // The list is merged by type, and there are two of one: kubelets say so, too.
    let whole = [json!({"$patch": "replace"})].into_iter();
    let addresses: Vec<_> = whole.chain(own).chain([json!({"type": "Hostname", "address": name})]).collect();
    let status = json!({"status": {
        "addresses": addresses,
        "capacity": resources,
        "allocatable": resources,
        "nodeInfo": {
            "architecture": std::env::consts::ARCH, "operatingSystem": "linux", "osImage": "l2lb lab",
            "kubeletVersion": "l2lb-lab", "kubeProxyVersion": "", "containerRuntimeVersion": "l2lb-lab://1",
            "kernelVersion": "", "bootID": "", "machineID": name, "systemUUID": "",
        },
        "conditions": [{
            "type": "Ready", "status": "True", "reason": "KubeletReady", "message": "the lab's kubelet runs",
            "lastHeartbeatTime": Time(Timestamp::now()), "lastTransitionTime": since,
        }],
    }});
    nodes.patch_status(&name, &PatchParams::default(), &Patch::Strategic(status)).await?;
    Ok(())
}

/// Renews the node's Lease, and now and then its status. What fails is tried again.
async fn beat(client: Client, index: u8) {
    let nodes: Api<NodeObject> = Api::all(client.clone());
    let leases: Api<Lease> = Api::namespaced(client, "kube-node-lease");
    let name = name(index);
    let since = Time(Timestamp::now());
    let mut reported = tokio::time::Instant::now();
    loop {
        let lease = json!({
            "apiVersion": "coordination.k8s.io/v1",
            "kind": "Lease",
            "metadata": {"name": name},
            "spec": {"holderIdentity": name, "leaseDurationSeconds": 40, "renewTime": MicroTime(Timestamp::now())},
        });
        let renewed = leases.patch(&name, &apply(), &Patch::Apply(lease)).await.map(drop).map_err(anyhow::Error::from);
        let said = if reported.elapsed() >= STATUS_PERIOD {
            report_ready(&nodes, index, &since).await.inspect(|()| reported = tokio::time::Instant::now())
        } else {
            Ok(())
        };
        match renewed.and(said) {
            Ok(()) => sleep(LEASE_PERIOD).await,
            Err(error) => {
                tracing::debug!(node = name, %error, "the heartbeat was not heard");
                sleep(RETRY).await;
            }
        }
    }
}

fn apply() -> PatchParams {
    PatchParams::apply(FIELD_MANAGER).force()
}
