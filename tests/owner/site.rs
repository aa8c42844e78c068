//! A LAN with nodes, each of which runs a speaker, and what can happen to them.
//!
//! A node forwards what reaches it for a virtual IP to the API server's host, as one with kube-proxy would: by its kernel, whether
//! the speaker runs or not.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::ops::Range;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use l2lb::api::{Claim, ClaimState, FailoverClass};
use lab::lan::frame::ArpForm;
use lab::lan::{Gateway, Ingress, Lan, LanKind, PortId, RecordedFrame, SwitchOptions};
use lab::netns::Netns;
use lab::process::{Process, signal, tail};
use nix::sys::signal::Signal;
use pnet_base::MacAddr;

use crate::books::{BEHIND, Books, Entry, NAMESPACE, SiteNumber, VIRTUAL, eventually};
use crate::hosts::Host;
use lab::stalls::Stalls;

/// A site has no more nodes, and addresses. Those of all sites stand side by side.
const NODES_MAX: u8 = 4;
const VIPS: u8 = 8;
/// A thread that wakes up no later than this finds the machine calm. The shortest fence is 125 ms.
pub const CALM: Duration = Duration::from_millis(100);
/// Two shorter ones are enough where so much begins at once.
const CALM_BEGINNING: Duration = Duration::from_millis(30);
/// So often addresses are given to a node that is to have them.
const SETTLES: usize = 5;
const HEALTH: &str = "127.0.0.1:7473";

/// A node's place in its site, from 0.
pub type Place = usize;

/// A LAN with its nodes.
pub struct Site<'a> {
    pub books: &'a Books,
    pub lan: Lan,
    nodes: Vec<Node>,
    hosts: u8,
    /// Every port that a node ever had.
    ports: BTreeMap<PortId, Place>,
    stalls: Stalls,
    /// The last: another site may have its number when all else is gone.
    number: SiteNumber<'a>,
}

struct Node {
    name: String,
    mac: MacAddr,
    address: Ipv4Addr,
    /// Nothing while it is off.
    machine: Option<Machine>,
}

struct Machine {
    netns: Netns,
    port: PortId,
    speaker: Option<Process>,
    reaches_api: bool,
}

impl<'a> Site<'a> {
    /// A LAN with so many nodes, whose speakers run and know each other.
    pub fn new(books: &'a Books, nodes: u8) -> Result<Self> {
        let taken = books.take_number()?;
        let number = taken.get();
        let lan = Lan::named(LanKind::Switch(SwitchOptions::default()), &format!("-{number}"))?;
        let mut site = Self {
            books,
            lan,
            nodes: Vec::new(),
            hosts: 0,
            ports: BTreeMap::new(),
            stalls: Stalls::watch()?,
            number: taken,
        };
        for index in 1..=nodes {
            site.nodes.push(Node {
                name: format!("s{number}-n{index}"),
                mac: MacAddr(2, 0, 0, number, 1, index),
                address: Ipv4Addr::new(192, 0, 2, 10 + index),
                machine: None,
            });
            site.power_on(usize::from(index) - 1)?;
        }
        for place in 0..site.nodes.len() {
            site.wait_until_ready(place)?;
        }
        Ok(site)
    }

    /// Whether this machine had time for the speakers since then. Where it stood still for longer than their fences, addresses
    /// move although nothing happened to their owners, and only what must hold always can be judged.
    pub fn is_calm_since(&self, since: Instant) -> bool {
        let worst = self.stalled_since(since);
        if worst >= CALM {
            println!("the machine stood still for {} ms: times and owners are not judged", worst.as_millis());
        }
        worst < CALM
    }

    /// How long this machine stood still at worst since then.
    pub fn stalled_since(&self, since: Instant) -> Duration {
        self.stalls.worst_since(since)
    }

    /// The same, of what was not over yet at `from` and had begun at `to`.
    pub fn stalled_within(&self, from: Instant, to: Instant) -> Duration {
        self.stalls.worst_within(from, to)
    }

    /// An address of this site; there are eight.
    pub fn vip(&self, index: u8) -> Ipv4Addr {
        assert!(index < VIPS, "a site has eight addresses");
        Ipv4Addr::new(192, 0, 2, 64 + VIPS * self.number.get() + index)
    }

    pub fn name(&self, place: Place) -> &str {
        &self.nodes[place].name
    }

    pub fn mac(&self, place: Place) -> MacAddr {
        self.nodes[place].mac
    }

    /// The node's port; it has another one each time it is switched on.
    pub fn port(&self, place: Place) -> Result<PortId> {
        Ok(self.machine(place)?.port)
    }

    pub fn netns(&self, place: Place) -> Result<&Netns> {
        Ok(&self.machine(place)?.netns)
    }

    pub fn pid(&self, place: Place) -> Result<u32> {
        Ok(self.speaker(place)?.pid())
    }

    pub fn gateway(&self) -> Result<&Gateway> {
        self.lan.gateway().context("the LAN has no gateway that stores ports")
    }

    pub fn places(&self) -> Range<Place> {
        0..self.nodes.len()
    }

    /// Another host on the LAN, with an address of its own.
    pub fn host(&mut self, name: &str) -> Result<Host> {
        self.hosts += 1;
        let ip = Ipv4Addr::new(192, 0, 2, 30 + self.hosts);
        let mac = MacAddr(2, 0, 0, self.number.get(), 0xcc, self.hosts);
        Host::create(&mut self.lan, &format!("{name}-{}", self.number.get()), mac, ip)
    }

    /// Gives an address to these nodes, the first as Primary.
    pub fn entry(&self, class: FailoverClass, vip: Ipv4Addr, places: &[Place]) -> Entry {
        Entry { class, vip, nodes: places.iter().map(|place| self.name(*place).to_owned()).collect() }
    }

    /// Gives the addresses to the first three nodes, and waits until the first has them and these standbys watch it. Where so much
    /// begins at once, a standby may not hear the owner for as long as its class allows, and take an address: then they are given
    /// anew, and said so; once at most where the machine did not stand still. When they were given.
    pub fn settle(&self, vips: &[(FailoverClass, Ipv4Addr)], watchers: &[Place]) -> Result<Instant> {
        let places: Vec<Place> = self.places().take(3).collect();
        let entries: Vec<Entry> = vips.iter().map(|(class, vip)| self.entry(*class, *vip, &places)).collect();
        let mut calm = 0;
        for _ in 0..SETTLES {
            let given = Instant::now();
            self.books.assign(&entries)?;
            let settled = eventually("the first node has its addresses, and is watched", || {
                for (_, vip) in vips {
                    match self.is_settled(*vip, watchers, given)? {
                        Some(true) => {}
                        other => return Ok(other),
                    }
                }
                Ok(Some(true))
            });
            if settled.with_context(|| self.report())? {
                return Ok(given);
            }
            let stalled = self.stalled_since(given);
            calm += usize::from(stalled < CALM_BEGINNING);
            ensure!(
                calm < 2,
                "a standby took an address over before all had begun, twice, and the machine did not stand still\n{}",
                self.report()
            );
            println!(
                "\nPLAYED AGAIN: a standby took an address over before all had begun, the machine stood still for {} ms; given anew",
                stalled.as_millis()
            );
            self.books.withdraw(vips.iter().map(|(_, vip)| *vip))?;
        }
        bail!("a standby took an address over each time that they were given to the first node\n{}", self.report())
    }

    /// Whether the first node has an address and these watch it; nothing as long as that is to come. When another one has it, it
    /// stays there.
    fn is_settled(&self, vip: Ipv4Addr, watchers: &[Place], since: Instant) -> Result<Option<bool>> {
        let claims = self.books.claims(vip)?;
        let is = |claim: &&Claim, state| claim.state == state;
        let (own, others): (Vec<&Claim>, Vec<&Claim>) = claims.iter().partition(|claim| claim.node == self.name(0));
        if own.iter().any(|claim| is(claim, ClaimState::Yielded))
            || others.iter().any(|claim| is(claim, ClaimState::Owner))
        {
            return Ok(Some(false));
        }
        if !own.iter().any(|claim| is(claim, ClaimState::Owner)) {
            return Ok(None);
        }
        for watcher in watchers {
            if !self.is_watched(Some(vip), 0, *watcher, since)? {
                return Ok(None);
            }
        }
        Ok(Some(true))
    }

    // ---- what can happen to a node ----

    /// Switches a node on: a fresh kernel, and a speaker that starts.
    pub fn power_on(&mut self, place: Place) -> Result<()> {
        let node = &self.nodes[place];
        ensure!(node.machine.is_none(), "{} is on", node.name);
        let netns = Netns::create(&node.name)?;
        for name in ["all", "default"] {
            netns.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0")?;
        }
        netns.sysctl("net.ipv4.ip_forward", "1")?;
        let port = self.lan.attach(&netns, "eth0", node.mac, Some(&format!("{}/24", node.address)))?;
        self.ports.insert(port, place);
        let mut machine = Machine { netns, port, speaker: None, reaches_api: false };
        self.connect_api(place, &mut machine)?;
        machine.speaker = Some(self.spawn(place, &machine.netns)?);
        self.nodes[place].machine = Some(machine);
        Ok(())
    }

    /// A power cut: its cables go first, so that nothing says farewell. When they were gone: other LANs may make the kernel wait
    /// with that, and with the rest.
    pub fn power_off(&mut self, place: Place) -> Result<Instant> {
        let port = self.port(place)?;
        self.lan.set_link(port, false)?;
        let cut = Instant::now();
        let machine = self.nodes[place].machine.take().context("it is off")?;
        if machine.reaches_api {
            self.books.control_plane().management().detach(&machine.netns)?;
        }
        drop(machine.speaker);
        machine.netns.delete()?;
        self.lan.detach(port)?;
        Ok(cut)
    }

    /// Pulls the LAN cable of a node, or plugs it in.
    pub fn set_link(&mut self, place: Place, up: bool) -> Result<()> {
        let port = self.port(place)?;
        self.lan.set_link(port, up)
    }

    /// Cuts all nodes off the API server. What they said to it last stays.
    pub fn cut_api(&mut self) -> Result<()> {
        for node in &mut self.nodes {
            if let Some(machine) = &mut node.machine
                && std::mem::take(&mut machine.reaches_api)
            {
                self.books.control_plane().management().detach(&machine.netns)?;
            }
        }
        Ok(())
    }

    fn connect_api(&self, place: Place, machine: &mut Machine) -> Result<()> {
        let address = Ipv4Addr::new(10, 100, 0, 10 + NODES_MAX * self.number.get() + u8::try_from(place)?);
        self.books.control_plane().management().attach(&machine.netns, "mgmt0", address)?;
        for range in VIRTUAL {
            machine.netns.ip(&["route", "add", range, "via", BEHIND])?;
        }
        machine.reaches_api = true;
        Ok(())
    }

    /// Sends the speaker of a node a signal.
    pub fn signal(&self, place: Place, what: Signal) -> Result<()> {
        signal(self.pid(place)?, what)
    }

    /// Kills the speaker of a node, which stays on.
    pub fn kill(&mut self, place: Place) -> Result<()> {
        let machine = self.nodes[place].machine.as_mut().context("it is off")?;
        machine.speaker.take().context("no speaker runs")?.kill().map(drop)
    }

    /// Starts it again.
    pub fn restart(&mut self, place: Place) -> Result<()> {
        let speaker = self.spawn(place, self.netns(place)?)?;
        let machine = self.nodes[place].machine.as_mut().context("it is off")?;
        machine.speaker = Some(speaker);
        Ok(())
    }

    fn spawn(&self, place: Place, netns: &Netns) -> Result<Process> {
        let name = &self.nodes[place].name;
        let mut command = netns.command(env!("CARGO_BIN_EXE_l2lb"));
        command.args(["speaker", "--node-name", name, "--namespace", NAMESPACE, "--health-address", HEALTH]);
        command.args(["--log", "info"]).env("KUBECONFIG", self.books.kubeconfig());
        Process::spawn(name, &mut command, &self.log(place))
    }

    fn log(&self, place: Place) -> std::path::PathBuf {
        self.books.logs().join(format!("{}.log", self.nodes[place].name))
    }

    // ---- what can be asked ----

    /// The ends of the speakers' logs, for who reads a failure.
    pub fn report(&self) -> String {
        let of = |place: Place| format!("--- {}\n{}\n", self.name(place), tail(&self.log(place), 25));
        self.places().map(of).collect()
    }

    /// The metrics of a node's speaker.
    pub fn metrics(&self, place: Place) -> Result<String> {
        self.get(place, "/metrics")
    }

    pub fn wait_until_ready(&self, place: Place) -> Result<()> {
        let ready = eventually(&format!("the speaker of {} is ready", self.name(place)), || {
            Ok(self.get(place, "/readyz").ok().filter(|text| text.starts_with("HTTP/1.1 200")))
        });
        ready.map(drop).with_context(|| self.report())
    }

    fn get(&self, place: Place, path: &str) -> Result<String> {
        self.netns(place)?.run(|| {
            let mut stream = TcpStream::connect(HEALTH)?;
            stream.set_read_timeout(Some(Duration::from_secs(5)))?;
            write!(stream, "GET {path} HTTP/1.1\r\nHost: speaker\r\nConnection: close\r\n\r\n")?;
            let mut text = String::new();
            stream.read_to_string(&mut text)?;
            Ok(text)
        })?
    }

    /// Waits until `watcher` watches `owner`, which answers it for `vip` (or for any address): from then on the one would
    /// notice the other's end.
    pub fn wait_until_watched(&self, vip: Option<Ipv4Addr>, owner: Place, watcher: Place) -> Result<()> {
        let what = format!("{} watches {}", self.name(watcher), self.name(owner));
        let since = Instant::now();
        let watched = eventually(&what, || Ok(self.is_watched(vip, owner, watcher, since)?.then_some(())));
        watched.with_context(|| self.report())
    }

    /// Whether it did so after `since`.
    pub fn is_watched(&self, vip: Option<Ipv4Addr>, owner: Place, watcher: Place, since: Instant) -> Result<bool> {
        let (owner_mac, watcher_mac) = (self.mac(owner), self.mac(watcher));
        let answer = |frame: &RecordedFrame| {
            let arp = frame.arp().filter(|arp| arp.form() == ArpForm::Reply && arp.sender_mac == owner_mac)?;
            let wanted = vip.is_none_or(|vip| arp.sender_ip == vip) && frame.destination() == Some(watcher_mac);
            // Whoever only looks for second owners asks without an address of its own.
            (wanted && !arp.target_ip.is_unspecified() && frame.at > since).then_some(())
        };
        Ok(!self.lan.select(answer)?.is_empty())
    }

    /// The node out of whose NIC a frame came, by the port that it came in on.
    pub fn source(&self, ingress: Ingress) -> Option<Place> {
        match ingress {
            Ingress::Port(port) => self.ports.get(&port).copied(),
            Ingress::Gateway => None,
        }
    }

    fn machine(&self, place: Place) -> Result<&Machine> {
        let node = &self.nodes[place];
        node.machine.as_ref().with_context(|| format!("{} is off", node.name))
    }

    fn speaker(&self, place: Place) -> Result<&Process> {
        match &self.machine(place)?.speaker {
            Some(speaker) => Ok(speaker),
            None => bail!("no speaker runs on {}", self.name(place)),
        }
    }
}

impl Drop for Site<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            return;
        }
        let mut is_gone = true;
        for place in self.places() {
            if self.nodes[place].machine.is_some()
                && let Err(error) = self.power_off(place)
            {
                is_gone = false;
                eprintln!("warning: {error:#}");
            }
        }
        let own: Vec<Ipv4Addr> = (0..VIPS).map(|index| self.vip(index)).collect();
        match self.books.withdraw_any(&own) {
            Ok(()) if is_gone => self.number.give_back(),
            Ok(()) => {}
            Err(error) => eprintln!("warning: addresses of a site are left: {error:#}"),
        }
    }
}
