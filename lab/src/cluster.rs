//! A whole cluster: the LAN with a client, the control plane, and nodes.
//!
//! ```text
//!    LAN 192.0.2.0/24, 2001:db8:1::/64             management 10.100.0.0/24
//!  gateway .1 ──┐                                      ┌── cp .2 (API server)
//!  client  .3 ──┼── node1 .11 ── eth0  node1  mgmt0 ───┼── .11
//!               ├── node2 .12 ── eth0  node2  mgmt0 ───┼── .12
//! ```
//! One cluster at a time in a sandbox. All of it goes when the value is dropped.

use std::collections::BTreeMap;
use std::net::IpAddr;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use kube::Client;
use nix::sys::signal::Signal;
use pnet_base::MacAddr;
use tokio::task::JoinHandle;

use crate::control_plane::{ControlPlane, ControlPlaneOptions, KUBERNETES_SERVICE};
use crate::families::has_ipv6;
use crate::kit::Kit;
use crate::kubelet::network::PodRange;
use crate::kubelet::registry::{Registry, RunningContainer};
use crate::kubelet::{NodeContext, Notes};
use crate::lan::{self, Lan, LanKind, PortId};
use crate::netns::Netns;
use crate::node::{self, MAX_NODES, Machine, Node};
use crate::process::{run, signal, tail, wait_for};
use crate::{runtime, sandbox, scheduler};

/// The namespace that the chart is installed to.
pub const NAMESPACE: &str = "l2lb-system";
/// The client's address on the LAN.
pub const CLIENT: &str = "192.0.2.3/24";
/// Its IPv6 address there, where the kernel has IPv6.
pub const CLIENT_V6: &str = "2001:db8:1::3/64";
const CLIENT_MAC: MacAddr = MacAddr(2, 0, 0, 0, 0xcc, 3);
const POLL: Duration = Duration::from_millis(100);
const BOOT_LIMIT: Duration = Duration::from_secs(120);

/// What a cluster is made of.
#[derive(Clone)]
pub struct Options {
    /// How many nodes.
    pub nodes: u8,
    /// Which LAN.
    pub lan: LanKind,
    /// Programs by image: the last part of the image's repository, and the file that runs in its place. All other images
    /// are the built-in stand-in, a web server.
    pub programs: Vec<(String, PathBuf)>,
    /// The control plane's settings.
    pub control_plane: ControlPlaneOptions,
    /// How long a container that keeps ending waits at most until it is started again.
    pub longest_backoff: Duration,
    /// Where to say what goes on.
    pub notes: Notes,
}

impl Options {
    /// Two nodes on a bridge, which say nothing.
    pub fn new() -> Self {
        Self {
            nodes: 2,
            lan: LanKind::Bridge,
            programs: Vec::new(),
            control_plane: ControlPlaneOptions::default(),
            longest_backoff: Duration::from_secs(30),
            notes: Arc::new(|_| {}),
        }
    }

    /// Runs this file as image `l2lb`.
    #[must_use]
    pub fn with_l2lb(mut self, program: &Path) -> Self {
        self.programs.push(("l2lb".to_owned(), program.to_owned()));
        self
    }
}

impl Default for Options {
    fn default() -> Self {
        Self::new()
    }
}

/// A running cluster.
pub struct Cluster {
    nodes: BTreeMap<String, Node>,
    scheduler: JoinHandle<()>,
    client: Client,
    client_port: PortId,
    client_ns: Netns,
    lan: Lan,
    control_plane: ControlPlane,
    registry: Registry,
    options: Options,
}

impl Cluster {
    /// Brings it up, and returns when all nodes are Ready and reach the API server by its Service.
    ///
    /// # Errors
    /// When something does not start, with the end of its log.
    pub fn start(kit: &Kit, options: Options) -> Result<Self> {
        if !(1..=MAX_NODES).contains(&options.nodes) {
            bail!("a lab has 1 to {MAX_NODES} nodes, not {}", options.nodes);
        }
        let note = options.notes.clone();
        note("control plane: etcd and kube-apiserver start");
        let mut control_plane = ControlPlane::launch(kit, options.control_plane.clone())?;
        note("LAN, client and nodes are wired");
        let mut lan = Lan::new(options.lan.clone())?;
        let client_ns = Netns::create("client")?;
        let client_port = lan.attach(&client_ns, "eth0", CLIENT_MAC, Some(CLIENT))?;
        client_ns.ip(&["route", "add", "default", "via", "192.0.2.1"])?;
        if has_ipv6() {
            lan::turn_ipv6_on(&client_ns, "eth0", CLIENT_V6)?;
            client_ns.ip(&["-6", "route", "add", "default", "via", node::GATEWAY_V6])?;
            if let Some(gateway) = lan.gateway_netns() {
                lan::turn_ipv6_on(gateway, "eth0", &format!("{}/64", node::GATEWAY_V6))?;
            }
        }
        let machines = (1..=options.nodes).map(|index| Machine::create(index, options.nodes, &mut lan, &control_plane));
        let machines = machines.collect::<Result<Vec<_>>>()?;
        control_plane.finish_launch()?;
        note("kube-apiserver is ready; nodes boot");
        let client = runtime::block_on(control_plane.client())?;
        let scheduler = {
            let runtime = runtime::handle()?;
            let _entered = runtime.enter();
            scheduler::start(client.clone())
        };
        let mut cluster = Self {
            nodes: BTreeMap::new(),
            scheduler,
            client,
            client_port,
            client_ns,
            lan,
            control_plane,
            registry: Registry::default(),
            options,
        };
        if !sandbox::has_uid_range() {
            note(
                "started by an ordinary user: containers that ask for another user run as root of the sandbox, without capabilities",
            );
        }
        for machine in machines {
            cluster.boot(machine)?;
        }
        cluster.wait_for_nodes()?;
        Ok(cluster)
    }

    /// Installs the chart of this repository, waits until its Pods are ready, and returns what helm said. `arguments` come
    /// last (`--set`, `key=value`).
    ///
    /// # Errors
    /// With the state of the Pods and the ends of their logs.
    pub fn install_chart(&self, arguments: &[&str]) -> Result<String> {
        let chart = repository().join("charts/l2lb").display().to_string();
        let fixed =
            ["install", "l2lb", &chart, "--namespace", NAMESPACE, "--create-namespace", "--wait", "--timeout", "120s"];
        self.control_plane.helm(&[&fixed[..], arguments].concat()).with_context(|| self.report(NAMESPACE))
    }

    /// `kubectl apply -f` of a file or folder.
    pub fn apply(&self, path: &Path) -> Result<String> {
        self.kubectl(&["apply", "-f", &path.display().to_string()])
    }

    /// Runs kubectl as the administrator.
    pub fn kubectl(&self, arguments: &[&str]) -> Result<String> {
        self.control_plane.kubectl(arguments)
    }

    /// Waits until kubectl's output (without the last line break) is accepted; `what` names it in the error.
    ///
    /// # Errors
    /// At the limit, with the last output.
    pub fn wait_for_kubectl(
        &self,
        what: &str,
        limit: Duration,
        arguments: &[&str],
        accept: impl Fn(&str) -> bool,
    ) -> Result<String> {
        wait_for(what, limit, POLL, || {
            Ok(match self.kubectl(arguments) {
                Ok(output) if accept(output.trim_end()) => Ok(output.trim_end().to_owned()),
                Ok(output) => Err(output),
                Err(error) => Err(format!("{error:#}")),
            })
        })
    }

    /// What the client gets from `http://<host>/` within 1 s; `host` may name a port, and is an IPv6 address with or without
    /// brackets.
    ///
    /// # Errors
    /// When there is no answer, with curl's words.
    pub fn client_curl(&self, host: &str) -> Result<String> {
        let host =
            host.parse::<std::net::Ipv6Addr>().map_or_else(|_| host.to_owned(), |address| format!("[{address}]"));
        run(self.client_ns.command("curl").args(["-sS", "--max-time", "1", &format!("http://{host}/")]))
    }

    /// The network namespace of the client on the LAN.
    pub fn client_ns(&self) -> &Netns {
        &self.client_ns
    }

    /// The client's port on the LAN.
    pub fn client_port(&self) -> PortId {
        self.client_port
    }

    /// The LAN.
    pub fn lan(&self) -> &Lan {
        &self.lan
    }

    /// The LAN, to attach more hosts to.
    pub fn lan_mut(&mut self) -> &mut Lan {
        &mut self.lan
    }

    /// The control plane.
    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    /// The control plane, to stop and start its programs.
    pub fn control_plane_mut(&mut self) -> &mut ControlPlane {
        &mut self.control_plane
    }

    /// A client with all rights, on the lab's runtime (see [`runtime::block_on`]).
    pub fn client(&self) -> &Client {
        &self.client
    }

    /// The nodes that are on, by name.
    pub fn nodes(&self) -> &BTreeMap<String, Node> {
        &self.nodes
    }

    /// A node that is on.
    pub fn node(&self, name: &str) -> Result<&Node> {
        self.nodes.get(name).with_context(|| format!("no node {name} is on"))
    }

    /// Containers that were started, in all namespaces.
    pub fn containers(&self) -> Vec<RunningContainer> {
        self.registry.list()
    }

    /// The running container of the speaker on a node.
    pub fn speaker(&self, node: &str) -> Result<RunningContainer> {
        let mut containers = self.registry.on_node(node).into_iter();
        let speaker = containers.find(|container| container.namespace == NAMESPACE && container.container == "speaker");
        speaker.with_context(|| format!("no speaker runs on {node}"))
    }

    /// Sends a signal to the speaker of a node: SIGSTOP and SIGCONT to pause it, SIGKILL to crash it.
    pub fn signal_speaker(&self, node: &str, what: Signal) -> Result<()> {
        let pid = self.speaker(node)?.pid.with_context(|| format!("the speaker of {node} does not run now"))?;
        signal(pid, what)
    }

    /// A power cut of one node: nothing of it is left, and nothing of it says farewell.
    pub fn power_off(&mut self, name: &str) -> Result<()> {
        let node = self.nodes.remove(name).with_context(|| format!("no node {name} is on"))?;
        let off = node.power_off(&mut self.lan, &self.control_plane);
        self.registry.remove_node(name);
        off
    }

    /// Switches a node on that was off, and returns when it is Ready.
    pub fn power_on(&mut self, name: &str) -> Result<()> {
        let index = (1..=self.options.nodes).find(|index| node::name(*index) == name);
        let index = index.with_context(|| format!("the cluster has no node {name}"))?;
        if self.nodes.contains_key(name) {
            bail!("{name} is on");
        }
        let machine = Machine::create(index, self.options.nodes, &mut self.lan, &self.control_plane)?;
        self.boot(machine)?;
        self.wait_for_nodes()
    }

    /// Pulls the LAN cable of a node, or plugs it in. Its management network stays.
    pub fn set_link(&mut self, name: &str, up: bool) -> Result<()> {
        let port = self.node(name)?.port();
        self.lan.set_link(port, up)
    }

    /// What a person looks at first when a namespace does not come up: its Pods, its last events, and the ends of its logs.
    pub fn report(&self, namespace: &str) -> String {
        let ask = |arguments: &[&str]| self.kubectl(arguments).unwrap_or_else(|error| format!("{error:#}\n"));
        let mut text = ask(&["get", "pods", "-n", namespace, "-o", "wide"]);
        let statuses = "jsonpath={range .items[*]}{.metadata.name}: {.status.containerStatuses[*].state}{\"\\n\"}{end}";
        text += &ask(&["get", "pods", "-n", namespace, "-o", statuses]);
        text += &ask(&["get", "events", "-n", namespace]);
        text + &self.logs(namespace, 15)
    }

    /// The last `lines` lines that each container of a namespace has written. It asks no API server.
    pub fn logs(&self, namespace: &str, lines: usize) -> String {
        let list = self.registry.list();
        let of_namespace = list.iter().filter(|container| container.namespace == namespace && container.log.exists());
        let end = |container: &RunningContainer| {
            format!("--- {} on {}\n{}\n", container.pod, container.node, tail(&container.log, lines))
        };
        of_namespace.map(end).collect()
    }

    fn boot(&mut self, machine: Machine) -> Result<()> {
        let name = node::name(machine.index);
        let context = NodeContext {
            client: self.client.clone(),
            netns: machine.netns.clone(),
            address: node::management_address(machine.index),
            range: PodRange::new(machine.index),
            folder: self.control_plane.state().join("pods").join(&name),
            logs: self.control_plane.logs().join("pods"),
            programs: self.options.programs.clone(),
            registry: self.registry.clone(),
            change_user: sandbox::has_uid_range(),
            longest_backoff: self.options.longest_backoff,
            notes: self.options.notes.clone(),
            name: name.clone(),
        };
        let node = Node::boot(machine, &self.control_plane, context)?;
        self.nodes.insert(name, node);
        Ok(())
    }

    /// Until Kubernetes calls all nodes Ready that are on, without the taint of a new node, and kube-proxy serves them.
    fn wait_for_nodes(&mut self) -> Result<()> {
        let columns = "jsonpath={range .items[*]}{.metadata.name}={.status.conditions[?(@.type==\"Ready\")].status}{.spec.taints[*].key} {end}";
        let expected: Vec<String> = self.nodes.keys().map(|name| format!("{name}=True")).collect();
        self.wait_for_kubectl("the nodes are not Ready", BOOT_LIMIT, &["get", "nodes", "-o", columns], |output| {
            let said: Vec<&str> = output.split_whitespace().collect();
            expected.iter().all(|node| said.contains(&node.as_str()))
        })?;
        for node in self.nodes.values_mut() {
            let what = format!("{} does not reach the API server by its Service", node.name());
            let to =
                (IpAddr::from(KUBERNETES_SERVICE.parse::<std::net::Ipv4Addr>().context("the Service's address")?), 443);
            let netns = node.netns().clone();
            wait_for(&what, BOOT_LIMIT, POLL, || {
                node.proxy().expect_running()?;
                let connected = netns.run(|| std::net::TcpStream::connect_timeout(&to.into(), POLL))?;
                Ok(connected.map(drop).map_err(|error| error.to_string()))
            })?;
        }
        Ok(())
    }
}

impl Drop for Cluster {
    fn drop(&mut self) {
        self.scheduler.abort();
        for (name, node) in std::mem::take(&mut self.nodes) {
            if let Err(error) = node.power_off(&mut self.lan, &self.control_plane) {
                tracing::warn!(node = name, error = format!("{error:#}"), "a node was left behind");
            }
        }
        if let Err(error) = self.client_ns.clone().delete() {
            tracing::warn!(error = format!("{error:#}"), "the client was left behind");
        }
    }
}

/// The repository that this lab was built in.
pub fn repository() -> PathBuf {
    let lab = Path::new(env!("CARGO_MANIFEST_DIR"));
    lab.parent().unwrap_or(lab).to_owned()
}
