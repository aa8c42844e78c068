//! The LAN, the API server and the clock: events in their order, and what follows from each.

mod faults;
mod hosts;

use std::{cmp::Reverse, collections::BinaryHeap, net::IpAddr, sync::Arc, time::Instant};

use l2lb::{
    api::ClaimState,
    speaker::{
        owner::{Report, Timing},
        station::{Change, Effect, Station},
        wire::{AnnouncementForm, MacAddr, Message, Operation, Packet},
    },
};

use crate::{
    controller::Controller,
    history::{History, MS, vip_index},
    hosts::{Entry, HOSTS, Host},
    node::{BACKLOG, NIC, Node, Pending, Process, mac, node_addresses, unspecified},
    random::Random,
};

const ALL_NODES: IpAddr = IpAddr::V6(std::net::Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));

/// What a broken promise is called, and when it was broken.
#[derive(Clone, Debug)]
pub struct Violation {
    pub at: u64,
    pub what: String,
}

enum Event {
    Timer {
        node: usize,
        life: u32,
    },
    Frame {
        node: usize,
        packet: Packet,
    },
    ToHost {
        host: usize,
        vip: usize,
        entry: Entry,
        announcement: bool,
    },
    Deliver {
        node: usize,
        life: u32,
    },
    Write {
        node: usize,
        life: u32,
    },
    Renew {
        node: usize,
    },
    Control,
    HostCheck {
        host: usize,
        vip: usize,
    },
    Begin(usize),
    End(usize),
    /// Whoever kept an address against a claim has said so by now.
    Kept {
        node: usize,
        vip: IpAddr,
        claimed_at: u64,
    },
}

struct Scheduled {
    at: u64,
    sequence: u64,
    event: Event,
}

impl PartialEq for Scheduled {
    fn eq(&self, other: &Self) -> bool {
        (self.at, self.sequence) == (other.at, other.sequence)
    }
}
impl Eq for Scheduled {}
impl PartialOrd for Scheduled {
    fn partial_cmp(&self, other: &Self) -> Option<std::cmp::Ordering> {
        Some(self.cmp(other))
    }
}
impl Ord for Scheduled {
    fn cmp(&self, other: &Self) -> std::cmp::Ordering {
        (self.at, self.sequence).cmp(&(other.at, other.sequence))
    }
}

pub struct World {
    pub now: u64,
    pub history: History,
    pub nodes: Vec<Node>,
    pub controller: Controller,
    pub hosts: Vec<Host>,
    pub api_down: bool,
    /// The part of the LAN that each node and each host is in.
    pub parts: (Vec<u8>, Vec<u8>),
    pub violation: Option<Violation>,
    /// When something last happened from outside, or the controller changed its mind.
    pub disturbed_at: u64,
    random: Random,
    queue: BinaryHeap<Reverse<Scheduled>>,
    sequence: u64,
    next_port: u64,
    /// Which event has hold of a node, of the LAN, of the API.
    held: Vec<Option<usize>>,
    log: Option<Vec<String>>,
    /// Frames that speakers sent, but answers to hosts.
    pub sent: u64,
    /// Reports of a conflict are no defect.
    pub conflicts_allowed: bool,
}

impl World {
    /// Everything starts at once, on a LAN that works. With `log`, a timeline is kept.
    pub fn new(history: &History, timing: Timing, log: bool) -> Self {
        let mut random = Random(history.seed);
        let start = Instant::now();
        let count = history.nodes;
        let nodes =
            (0..count).map(|node| Node::new(node, count, i64::try_from(random.below(400)).unwrap() - 200, start));
        let nodes = nodes.collect();
        let mut world = Self {
            now: 0,
            nodes,
            controller: Controller::new(count, history.vips, history.families, timing),
            hosts: vec![Host::default(); HOSTS.len()],
            api_down: false,
            parts: (vec![0; count], vec![0; HOSTS.len()]),
            violation: None,
            disturbed_at: 0,
            random,
            queue: BinaryHeap::new(),
            sequence: 0,
            next_port: 100,
            held: vec![None; count * 2 + 3],
            log: log.then(Vec::new),
            sent: 0,
            conflicts_allowed: false,
            history: history.clone(),
        };
        for node in 0..count {
            world.deliver(node);
            world.at(world.now, Event::Renew { node });
        }
        world.at(100 * MS, Event::Control);
        for (number, event) in history.events.iter().enumerate() {
            world.at(event.at, Event::Begin(number));
        }
        for host in 0..HOSTS.len() {
            for vip in 0..history.vips {
                world.check_at(1_000 * MS, host, vip);
            }
        }
        world
    }

    /// The timeline.
    pub fn log(&self) -> &[String] {
        self.log.as_deref().unwrap_or_default()
    }

    pub fn say(&mut self, what: impl FnOnce() -> String) {
        if let Some(log) = &mut self.log {
            log.push(format!("{:>10.1} ms  {}", self.now as f64 / 1e3, what()));
        }
    }

    pub fn violate(&mut self, what: impl FnOnce() -> String) {
        if self.violation.is_none() {
            let what = what();
            self.say(|| format!("VIOLATED: {what}"));
            self.violation = Some(Violation { at: self.now, what });
        }
    }

    fn at(&mut self, at: u64, event: Event) {
        self.sequence += 1;
        let at = at.max(self.now);
        self.queue.push(Reverse(Scheduled { at, sequence: self.sequence, event }));
    }

    /// Until then, or until a promise is broken.
    pub fn run_until(&mut self, end: u64) {
        while self.violation.is_none() {
            match self.queue.peek() {
                Some(Reverse(next)) if next.at <= end => {}
                _ => break,
            }
            let Some(Reverse(next)) = self.queue.pop() else { break };
            self.now = next.at;
            self.handle(next.event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Timer { node, life } => {
                let it = &self.nodes[node];
                if it.life == life && it.timer_at == Some(self.now) && it.runs() {
                    self.pass(node, |_, _| {});
                }
            }
            Event::Frame { node, packet } => self.arrive(node, packet),
            Event::ToHost { host, vip, entry, announcement } => self.host_hears(host, vip, entry, announcement),
            Event::Deliver { node, life } => self.delivered(node, life),
            Event::Write { node, life } => self.write(node, life),
            Event::Renew { node } => {
                if self.reaches_api(node) && self.nodes[node].runs() {
                    self.controller.handle_renewal(self.now, node);
                }
                self.at(self.now + 5_000 * MS, Event::Renew { node });
            }
            Event::Control => self.control(),
            Event::HostCheck { host, vip } => self.host_checks(host, vip),
            Event::Begin(number) => self.begin(number),
            Event::End(number) => self.end(number),
            Event::Kept { node, vip, claimed_at } => {
                let it = &self.nodes[node];
                let said = it.announced_at.get(&vip).is_some_and(|at| at + 25 * MS >= claimed_at);
                if it.runs() && it.link && it.station.answers(vip) && !said {
                    self.violate(|| format!("(b) node{node} heard a claim of {vip}, answers on and says nothing"));
                }
            }
        }
    }

    fn reaches_api(&self, node: usize) -> bool {
        self.nodes[node].api && !self.api_down && self.nodes[node].process != Process::Dead
    }

    /// One pass of a node's loop, as the driver makes it.
    pub fn pass(&mut self, node: usize, input: impl FnOnce(&mut Station, Instant)) {
        let now = self.nodes[node].instant(self.now);
        self.nodes[node].undecided.clear();
        let waiting = std::mem::take(&mut self.nodes[node].backlog);
        let station = &mut self.nodes[node].station;
        station.handle_wake(now);
        input(station, now);
        for packet in waiting {
            self.nodes[node].station.handle_packet(now, NIC, &packet);
        }
        self.nodes[node].station.handle_timers(now);
        self.carry_out(node);
        if !self.nodes[node].link && self.nodes[node].station.owned() > 0 {
            self.violate(|| format!("(link) node{node} owns addresses and has no link"));
        }
        let it = &mut self.nodes[node];
        it.beat = it.clock(self.now);
        it.timer_at = it.station.poll_timeout(now).map(|at| it.global(at).max(self.now + 1));
        if let Some(at) = it.timer_at {
            let life = it.life;
            self.at(at, Event::Timer { node, life });
        }
    }

    fn carry_out(&mut self, node: usize) {
        while let Some(effect) = self.nodes[node].station.poll_effect() {
            match effect {
                Effect::Watch { .. } | Effect::Unheard { .. } => {}
                Effect::Publish { snapshot, .. } => self.nodes[node].snapshot = snapshot,
                Effect::Send { message, .. } => self.send(node, message),
                Effect::Report { vip, report, .. } => self.report(node, vip, report),
            }
        }
    }

    /// As the reporter does it: the newest for each address, and probing only if it lasts.
    fn report(&mut self, node: usize, vip: IpAddr, report: Report) {
        self.say(|| format!("node{node} {vip}: {:?} ({})", report.state, report.reason));
        if report.conflict_mac.is_some() && !self.conflicts_allowed {
            self.violate(|| format!("node{node} takes another node for a stranger: {report:?}"));
        }
        let hold = if report.state == ClaimState::Probing { 500 * MS } else { 0 };
        let not_before = self.now + hold;
        self.nodes[node].pending.insert(vip, Pending { not_before, report });
        let delay = hold + (1 + self.random.below(60)) * MS;
        let life = self.nodes[node].life;
        self.at(self.now + delay, Event::Write { node, life });
    }

    fn write(&mut self, node: usize, life: u32) {
        if self.nodes[node].life != life || !self.nodes[node].runs() || !self.reaches_api(node) {
            return;
        }
        let pending = std::mem::take(&mut self.nodes[node].pending);
        let (due, later): (Vec<_>, Vec<_>) =
            pending.into_iter().partition(|(_, pending)| pending.not_before <= self.now);
        self.nodes[node].pending = later.into_iter().collect();
        for (vip, Pending { report, .. }) in due {
            if self.controller.vips[vip_index(vip)].role_of(node).is_some() {
                self.controller.handle_report(vip_index(vip), node, &report);
                self.deliver_all();
                self.decide();
            }
        }
    }

    fn control(&mut self) {
        self.decide();
        self.at(self.now + 100 * MS, Event::Control);
    }

    fn decide(&mut self) {
        if self.controller.away || self.api_down {
            return;
        }
        let said = self.controller.decide(self.now);
        if !said.is_empty() {
            self.disturbed_at = self.now;
            self.deliver_all();
            for line in said {
                self.say(|| format!("controller: {line}"));
            }
        }
    }

    /// Tells everybody what the API has now.
    pub fn deliver_all(&mut self) {
        for node in 0..self.nodes.len() {
            self.deliver(node);
        }
    }

    fn deliver(&mut self, node: usize) {
        if !std::mem::replace(&mut self.nodes[node].deliver_pending, true) {
            let (delay, life) = ((1 + self.random.below(80)) * MS, self.nodes[node].life);
            self.at(self.now + delay, Event::Deliver { node, life });
        }
    }

    fn delivered(&mut self, node: usize, life: u32) {
        if self.nodes[node].life != life || !self.nodes[node].deliver_pending {
            return;
        }
        if !self.nodes[node].runs() || !self.reaches_api(node) {
            // It comes when the node, or its connection, is back.
            self.nodes[node].deliver_pending = false;
            return;
        }
        self.nodes[node].deliver_pending = false;
        let change = Change::Reset(self.controller.assigned_to(node));
        let link = if self.nodes[node].link { Ok(mac(node)) } else { Err(Arc::from("it has no link")) };
        self.pass(node, |station, now| {
            if station.nics().next().is_none() {
                station.handle_link(now, &Arc::from(NIC), link);
                station.handle_addresses(NIC, node_addresses(node));
            }
            station.handle_change(now, change);
        });
    }

    /// What a frame becomes at its receivers. Only the sender's own MAC address can be in it: a message has none.
    fn send(&mut self, node: usize, message: Message) {
        let (operation, to, sender_ip, target_ip) = match message {
            Message::Answer { vip, to_mac, to_ip } if vip.is_ipv6() && to_ip.is_unspecified() => {
                // To all nodes, but in a frame to the prober alone: an answer, and no claim.
                (Operation::Reply, Some(to_mac), vip, ALL_NODES)
            }
            Message::Answer { vip, to_mac, to_ip } => (Operation::Reply, Some(to_mac), vip, to_ip),
            Message::Announcement { vip, form } => {
                if !self.nodes[node].station.answers(vip) {
                    self.violate(|| format!("(a) node{node} announces {vip} and is not its owner"));
                }
                self.nodes[node].announced_at.insert(vip, self.now);
                if form == AnnouncementForm::Request {
                    self.say(|| format!("node{node} announces {vip}"));
                    (Operation::Request, None, vip, vip)
                } else {
                    if vip.is_ipv6() {
                        self.violate(|| format!("node{node} announces {vip} in a form that there is not"));
                    }
                    (Operation::Reply, None, vip, vip)
                }
            }
            Message::Probe { vip, to } => {
                self.nodes[node].must_probe.remove(&vip);
                if to.is_none() {
                    self.say(|| format!("node{node} probes for {vip}"));
                }
                (Operation::Request, to, unspecified(vip), vip)
            }
            Message::Request { vip, to, from } => {
                if !node_addresses(node).contains(&from) || from.is_ipv6() != vip.is_ipv6() {
                    self.violate(|| format!("(a) node{node} asks for {vip} in the name of {from}"));
                }
                (Operation::Request, Some(to), from, vip)
            }
        };
        if matches!(message, Message::Answer { .. } | Message::Announcement { .. })
            && self.nodes[node].must_probe.contains(&message.vip())
        {
            self.violate(|| format!("(fence) node{node} speaks for {} before it has probed", message.vip()));
        }
        if !self.nodes[node].link {
            return;
        }
        self.sent += u64::from(!matches!(message, Message::Answer { to_mac, .. } if hosts::host_of(to_mac).is_some()));
        let packet = Packet { operation, broadcast: to.is_none(), sender_mac: mac(node), sender_ip, target_ip };
        self.transmit(Some(node), 0, packet, to);
        let entry = Entry { mac: mac(node), port: self.nodes[node].port };
        if let Message::Announcement { vip, .. } = message {
            for host in 0..HOSTS.len() {
                self.tell_host(node, host, vip_index(vip), entry, true);
            }
        }
        if let Message::Answer { vip, to_mac, .. } = message
            && let Some(host) = hosts::host_of(to_mac)
        {
            self.tell_host(node, host, vip_index(vip), entry, false);
        }
    }

    fn delay(&mut self) -> u64 {
        20 + self.random.below(self.history.delay)
    }

    /// Carries a frame from a node, or a host, to the nodes.
    fn transmit(&mut self, node: Option<usize>, host: usize, packet: Packet, to: Option<MacAddr>) {
        let part = node.map_or(self.parts.1[host], |node| self.parts.0[node]);
        for receiver in 0..self.nodes.len() {
            let meant = to.is_none_or(|to| to == mac(receiver)) && node != Some(receiver);
            if meant && self.parts.0[receiver] == part && !self.random.percent(self.history.loss) {
                let at = self.now + self.delay();
                self.at(at, Event::Frame { node: receiver, packet });
            }
        }
    }

    fn arrive(&mut self, node: usize, packet: Packet) {
        if !self.nodes[node].link {
            return;
        }
        match self.nodes[node].process {
            Process::Dead => {}
            Process::Stopped | Process::Frozen(_) => {
                if self.nodes[node].backlog.len() < BACKLOG {
                    self.nodes[node].backlog.push(packet);
                }
            }
            Process::Runs | Process::Starved => self.receive(node, packet),
        }
    }

    /// The receive path, and then the loop.
    fn receive(&mut self, node: usize, packet: Packet) {
        if let Some(answer) = self.nodes[node].answer(self.now, &packet) {
            self.send(node, answer);
        }
        let wanted = self.nodes[node].snapshot.queue(&packet).is_some();
        if self.nodes[node].process == Process::Starved {
            if wanted {
                if packet.is_announcement() {
                    self.nodes[node].undecided.insert(packet.sender_ip);
                }
                self.nodes[node].backlog.push(packet);
            }
            return;
        }
        if wanted {
            self.pass(node, |station, now| station.handle_packet(now, NIC, &packet));
        }
        let vip = packet.sender_ip;
        if packet.is_announcement() && wanted && self.nodes[node].station.answers(vip) {
            // It may keep the address only if it has claimed it just now, and then it says so.
            let said = self.nodes[node].announced_at.get(&vip).copied();
            if said.is_none_or(|said| self.now - said > 1_100 * MS) {
                self.violate(|| format!("(b) node{node} keeps {vip} against a claim though it did not claim just now"));
            }
            let claimed_at = self.now;
            self.at(self.now + 60 * MS, Event::Kept { node, vip, claimed_at });
        }
    }

    /// Who would answer a request for the address now.
    pub fn answering(&self, vip: usize) -> Vec<usize> {
        let request = hosts::request_of(0, self.history.families.vip(vip));
        let answers = |node: &&Node| node.receives() && node.link && node.answer(self.now, &request).is_some();
        self.nodes.iter().filter(answers).map(|node| node.index).collect()
    }

    pub fn is_connected(&self) -> bool {
        let parts = self.parts.0.iter().chain(&self.parts.1);
        parts.clone().max() == parts.min()
    }
}
