//! What a trial plays with: a LAN (a Linux bridge) whose cables are all tapped, a host on it that asks, nodes with a speaker each, and
//! the API server, in which the trial writes what a controller would.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    path::PathBuf,
    process::Command,
    sync::atomic::{AtomicU32, Ordering},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, bail, ensure};
use l2lb::api::{Assignment, FailoverClass, Role, VirtualIP, VirtualIPSpec, node_label};
use lab::{
    fake_api::{Door, FakeApi},
    lan::{
        frame::{ARP_REPLY, ARP_REQUEST, Arp, arp_frame},
        tap::{Tap, TappedFrame},
    },
    netns::Netns,
    process::{Process, run, tail, wait_for},
};
use pnet_base::MacAddr;
use serde_json::Value;

use crate::host::SPEAKER;

/// For everything that is to happen.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// How often a condition is looked at, and a question asked again.
pub const LOOK: Duration = Duration::from_millis(50);
/// The NIC that leads to the other virtual machine.
const JOINT: &str = "eth0";
/// The host that asks.
pub const TESTER: (MacAddr, Ipv4Addr) = (MacAddr(2, 0, 0, 0, 0, 0xfe), Ipv4Addr::new(192, 0, 2, 200));
/// Who asks where nobody is to answer.
pub const STRANGER: (MacAddr, Ipv4Addr) = (MacAddr(2, 0, 0, 0, 0, 0xfd), Ipv4Addr::new(192, 0, 2, 201));

/// A LAN, its tester and its API server. Dropping it takes it away.
pub struct World {
    /// Makes the namespaces' names unlike those of the trials before.
    number: u32,
    lan: Netns,
    /// The tester's end of its cable.
    pub tester: Tap,
    pub api: FakeApi,
    /// Of the addresses that are assigned.
    pub failover: FailoverClass,
    others: Vec<Netns>,
}

/// A cable from a node's NIC to the LAN.
pub struct Port {
    device: String,
    /// The LAN's end.
    pub tap: Tap,
}

/// A node.
pub struct Node {
    pub name: &'static str,
    pub netns: Netns,
    pub ports: Vec<Port>,
    speaker: Option<(Process, Door)>,
}

impl World {
    pub fn new() -> Result<Self> {
        static NUMBER: AtomicU32 = AtomicU32::new(1);
        let number = NUMBER.fetch_add(1, Ordering::Relaxed);
        let lan = Netns::create(&format!("lan{number}"))?;
        let host = Netns::create(&format!("tester{number}"))?;
        lan.ip(&["link", "add", "br0", "type", "bridge", "stp_state", "0", "mcast_snooping", "0"])?;
        lan.ip(&["link", "set", "br0", "up"])?;
        cable(&lan, "tester", &host, "eth0", TESTER.0)?;
        host.ip(&["link", "set", "eth0", "up"])?;
        let tester = Tap::open(&host, "eth0")?;
        Ok(Self { number, lan, tester, api: FakeApi::new(), failover: FailoverClass::Standard, others: vec![host] })
    }

    /// A node with NICs eth0, eth1 ... of these MAC addresses, all on the LAN and up.
    pub fn node(&mut self, name: &'static str, macs: &[MacAddr]) -> Result<Node> {
        let netns = Netns::create(&format!("{name}{}", self.number))?;
        self.others.push(netns.clone());
        let mut ports = Vec::new();
        for (number, mac) in macs.iter().enumerate() {
            let device = format!("{name}-{number}");
            let nic = format!("eth{number}");
            cable(&self.lan, &device, &netns, &nic, *mac)?;
            netns.ip(&["link", "set", &nic, "up"])?;
            ports.push(Port { tap: Tap::open(&self.lan, &device)?, device });
        }
        Ok(Node { name, netns, ports, speaker: None })
    }

    /// Makes the virtual machine's own NIC a port of the LAN, so that the other machine's LAN is the same one. Returns a look at it.
    pub fn join(&self) -> Result<Tap> {
        // It comes back a moment after the LAN that had it before is gone.
        self.eventually("the virtual machine's NIC is there", || {
            Ok(std::fs::exists(format!("/sys/class/net/{JOINT}"))?.then_some(()))
        })?;
        run(Command::new("ip").args(["link", "set", JOINT, "netns", self.lan.name()]))?;
        self.lan.ip(&["link", "set", JOINT, "master", "br0", "up"])?;
        Tap::open(&self.lan, JOINT)
    }

    /// Cuts what [`World::join`] joined, or joins it again.
    pub fn set_joined(&self, joined: bool) -> Result<()> {
        self.lan.ip(&["link", "set", JOINT, if joined { "up" } else { "down" }]).map(drop)
    }

    /// Pulls the cable out of a node's NIC, or plugs it in.
    pub fn set_link(&self, port: &Port, up: bool) -> Result<()> {
        self.lan.ip(&["link", "set", &port.device, if up { "up" } else { "down" }]).map(drop)
    }

    /// Starts the speaker of a node.
    pub fn start_speaker(&self, node: &mut Node) -> Result<()> {
        let door = self.api.door_in(&node.netns)?;
        let file = |suffix: &str| PathBuf::from(format!("/run/{}{}.{suffix}", node.name, self.number));
        let kubeconfig = door.kubeconfig(&file("kubeconfig"))?;
        let mut command = node.netns.command(SPEAKER);
        command.args(["speaker", "--node-name", node.name]).env("KUBECONFIG", kubeconfig);
        let speaker = Process::spawn(&format!("the speaker of {}", node.name), &mut command, &file("log"))?;
        node.speaker = Some((speaker, door));
        self.eventually("the speaker reports its interfaces", || {
            Ok(self.api.get("speakers", node.name).filter(|speaker| speaker["status"]["interfaces"].is_array()))
        })
        .with_context(|| node.log())
        .map(drop)
    }

    /// Writes what a controller would: this address has these parts, as node, role and interface.
    pub fn assign(&self, vip: Ipv4Addr, parts: &[(&str, Role, &str)]) -> Result<()> {
        let assignments = parts.iter().map(|(node, role, interface)| Assignment {
            node: (*node).to_owned(),
            role: *role,
            interface: (*interface).to_owned(),
        });
        let spec = VirtualIPSpec {
            address: vip.to_string(),
            pool: "lan".to_owned(),
            services: vec!["default/web".to_owned()],
            failover: self.failover,
            placement: 1,
            assignments: assignments.collect(),
        };
        let mut object = VirtualIP::new(&vip.to_string(), spec);
        let labels = parts.iter().map(|(node, role, _)| (node_label(node), role.label_value().to_owned()));
        object.metadata.labels = Some(labels.collect());
        self.api.put(&object)
    }

    /// What the Speaker object of the node says about one of its interfaces.
    pub fn interface(&self, node: &Node, name: &str) -> Option<Value> {
        let speaker = self.api.get("speakers", node.name)?;
        speaker["status"]["interfaces"].as_array()?.iter().find(|interface| interface["name"] == name).cloned()
    }

    /// Waits until the node claims the address in this state, and returns the claim.
    pub fn claims(&self, node: &Node, vip: Ipv4Addr, state: &str) -> Result<Value> {
        let what = format!("{} says {state} of {vip}", node.name);
        let claim = || self.api.claim(&vip.to_string(), node.name);
        self.eventually(&what, || Ok(claim().filter(|claim| claim["state"] == state)))
            .with_context(|| format!("the claim is {}\n{}", claim().unwrap_or_default(), node.log()))
    }

    /// Asks the LAN for the address until somebody answers, and returns the answer as the tester got it.
    pub fn answer(&self, vip: Ipv4Addr, vlan: Option<u16>) -> Result<TappedFrame> {
        self.answer_after(vip, vlan, Instant::now())
    }

    /// The same; what came in before `since` does not count.
    pub fn answer_after(&self, vip: Ipv4Addr, vlan: Option<u16>, since: Instant) -> Result<TappedFrame> {
        self.eventually(&format!("{vip} is answered for, VLAN {vlan:?}"), || {
            let frames = self.tester.frames();
            let answer = frames.into_iter().find(|frame| {
                frame.at >= since && frame.vlan == vlan && frame.arp().is_some_and(|arp| is_answer(&arp, vip))
            });
            if answer.is_none() {
                self.ask(vip, vlan)?;
            }
            Ok(answer)
        })
    }

    /// Sends one request to everybody.
    pub fn ask(&self, vip: Ipv4Addr, vlan: Option<u16>) -> Result<()> {
        self.tester.send(vlan, &request(TESTER, vip))
    }

    /// Sends one request to everybody, of a host that is to get no answer.
    pub fn ask_wrongly(&self, vip: Ipv4Addr, vlan: Option<u16>) -> Result<()> {
        self.tester.send(vlan, &request(STRANGER, vip))
    }

    /// Tries until there is a value, for as long as anything may take.
    pub fn eventually<T>(&self, what: &str, mut attempt: impl FnMut() -> Result<Option<T>>) -> Result<T> {
        wait_for(what, PATIENCE, LOOK, || Ok(attempt()?.ok_or_else(|| "not yet".to_owned())))
    }
}

impl Drop for World {
    fn drop(&mut self) {
        for netns in self.others.drain(..).chain([self.lan.clone()]) {
            if let Err(error) = netns.delete() {
                println!("a network namespace stays: {error:#}");
            }
        }
    }
}

impl Node {
    /// Runs `ip` on it, words separated by spaces.
    pub fn ip(&self, words: &str) -> Result<String> {
        self.netns.ip(&words.split(' ').collect::<Vec<_>>())
    }

    /// Names of the interfaces on which a packet socket is open.
    pub fn opened(&self) -> Result<BTreeSet<String>> {
        let table = self.netns.run(|| std::fs::read_to_string("/proc/thread-self/net/packet"))?;
        let table = table.context("the table of packet sockets")?;
        let mut opened = BTreeSet::new();
        // Columns: address, references, type, protocol, interface ...
        for index in table.lines().skip(1).filter_map(|line| line.split_whitespace().nth(4)) {
            let name = self.ip("-o link")?.lines().find_map(|line| {
                let (number, rest) = line.split_once(": ")?;
                (number == index).then(|| rest.split([':', '@']).next().unwrap_or_default().to_owned())
            });
            opened.insert(name.unwrap_or_else(|| format!("interface {index}")));
        }
        Ok(opened)
    }

    /// The end of the speaker's log.
    pub fn log(&self) -> String {
        let log = self.speaker.as_ref().map(|(speaker, _)| tail(speaker.log(), 40));
        format!("the speaker of {}:\n{}", self.name, log.unwrap_or_default())
    }
}

/// A cable between the bridge and a host.
fn cable(lan: &Netns, device: &str, host: &Netns, nic: &str, mac: MacAddr) -> Result<()> {
    let mac = mac.to_string();
    let peer = ["peer", "name", nic, "address", &mac, "netns", host.name()];
    lan.ip(&[&["link", "add", device, "type", "veth"], &peer[..]].concat())?;
    lan.ip(&["link", "set", device, "master", "br0", "up"]).map(drop)
}

fn request((mac, ip): (MacAddr, Ipv4Addr), vip: Ipv4Addr) -> Vec<u8> {
    let arp =
        Arp { operation: ARP_REQUEST, sender_mac: mac, sender_ip: ip, target_mac: MacAddr::zero(), target_ip: vip };
    arp_frame(MacAddr::broadcast(), mac, arp)
}

/// Whether this answers the tester's question.
pub fn is_answer(arp: &Arp, vip: Ipv4Addr) -> bool {
    arp.operation == ARP_REPLY && arp.sender_ip == vip && arp.target_ip == TESTER.1
}

/// The sender of a frame: its Ethernet source, which has to be what ARP says too.
pub fn honest_source(frame: &TappedFrame) -> Result<MacAddr> {
    let arp = frame.arp().context("no ARP")?;
    let source = lab::lan::frame::ethernet(&frame.bytes).context("no Ethernet frame")?.source;
    ensure!(source == arp.sender_mac, "a frame from {source} says that it is from {}", arp.sender_mac);
    Ok(source)
}

/// Everything that a tap saw a node say about the address, with its VLAN: each frame has to carry this MAC address.
pub fn all_said(tap: &Tap, vip: Ipv4Addr, mac: MacAddr, vlan: Option<u16>) -> Result<usize> {
    let mut count = 0;
    for frame in tap.frames().into_iter().filter(|frame| !frame.outgoing) {
        let Some(arp) = frame.arp().filter(|arp| arp.sender_ip == vip) else { continue };
        let source = honest_source(&frame)?;
        if source != mac || frame.vlan != vlan {
            bail!("a frame about {vip} is from {source} in VLAN {:?}, not from {mac} in {vlan:?}: {arp:?}", frame.vlan);
        }
        count += 1;
    }
    Ok(count)
}
