//! Many histories of a LAN with three speakers, two hosts and a controller: nodes that crash and come back, processes that
//! stand still, moves, a lost API connection, lost frames. Time is virtual and everything is drawn from a seed, so that a
//! failure names the run that shows it.
//!
//! The speakers are real ([`Station`]: all that a speaker decides); the LAN, the API and the controller are models. Left out
//! are partitions of the LAN: they need the owner to look for a second one, which is not there yet.
#![allow(clippy::unwrap_used)]

use std::{
    cmp::Reverse,
    collections::{BTreeMap, BinaryHeap},
    net::Ipv4Addr,
    sync::Arc,
    time::{Duration, Instant},
};

use l2lb::{
    api::{ClaimState, Role},
    speaker::{
        owner::{Epoch, LastClaim, Order, Ranked, Report, Timing},
        peers::Peers,
        station::{Assigned, Change, Effect, Station},
        triage::Snapshot,
        wire::{
            AnnouncementForm, MacAddr, Message,
            arp::{Operation, Packet},
        },
    },
};

const NODES: usize = 3;
const VIPS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 64), Ipv4Addr::new(192, 0, 2, 65)];
const HOSTS: [Ipv4Addr; 2] = [Ipv4Addr::new(192, 0, 2, 1), Ipv4Addr::new(192, 0, 2, 3)];
const NIC: &str = "eth0";
/// The controller holds a node dead that was silent for so long, and asks again for a claim that does not come.
const DEAD_AFTER: u64 = 15_000;
const ASK_AGAIN: u64 = 1_500;
/// Everything that was started has come to rest by then: the longest fault, the dead node's Lease, and a burst.
const SETTLE: u64 = 30_000;

fn mac(node: usize) -> MacAddr {
    MacAddr(2, 0, 0, 0, 1, u8::try_from(node).unwrap())
}

fn name(node: usize) -> Arc<str> {
    Arc::from(format!("node{node}"))
}

/// SplitMix64: small, and the same everywhere.
struct Random(u64);

impl Random {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        z ^ (z >> 31)
    }

    fn below(&mut self, end: u64) -> u64 {
        self.next() % end
    }

    fn pick<T: Copy>(&mut self, from: &[T]) -> T {
        from[usize::try_from(self.below(from.len() as u64)).unwrap()]
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Fault {
    Crash,
    Pause,
    Move,
    ApiCut,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Event {
    /// A node's loop has a timer. Of an earlier life, it is void.
    Timer {
        node: usize,
        life: u32,
    },
    /// A frame arrives, by its place in `frames`.
    Frame {
        node: usize,
        frame: usize,
    },
    /// The API server tells a node what is so now.
    Deliver {
        node: usize,
        life: u32,
    },
    /// A report arrives at the API server.
    Report {
        node: usize,
        report: usize,
    },
    /// The controller looks.
    Control,
    /// A fault begins.
    Fault(Fault),
    Restart(usize),
    Resume(usize),
    ApiBack(usize),
}

struct Node {
    life: u32,
    alive: bool,
    paused: bool,
    api: bool,
    /// When it was last able to renew its Lease.
    seen: u64,
    station: Station,
    snapshot: Snapshot,
    beat: u64,
    /// When its loop wants to run next.
    timer_at: Option<u64>,
    backlog: Vec<Packet>,
    /// Reports made while the API was away: the newest for each address.
    unreported: BTreeMap<Ipv4Addr, Report>,
    claimed_at: BTreeMap<Ipv4Addr, u64>,
}

/// What the controller has decided for one address, and what was reported to it.
struct Decision {
    placement: i64,
    primary: usize,
    leaving: Option<usize>,
    named_at: u64,
    claims: BTreeMap<usize, (ClaimState, i64)>,
}

struct Lan {
    seed: u64,
    random: Random,
    loss_percent: u64,
    start: Instant,
    now: u64,
    queue: BinaryHeap<Reverse<(u64, u64, Event)>>,
    sequence: u64,
    nodes: Vec<Node>,
    decisions: BTreeMap<Ipv4Addr, Decision>,
    frames: Vec<Packet>,
    reports: Vec<(Ipv4Addr, Report)>,
    caches: Vec<BTreeMap<Ipv4Addr, MacAddr>>,
    answers: u64,
}

impl Lan {
    fn new(seed: u64, loss_percent: u64) -> Self {
        let decision = |index: usize| Decision {
            placement: 1,
            primary: index % NODES,
            leaving: None,
            named_at: 0,
            claims: BTreeMap::new(),
        };
        let mut lan = Self {
            seed,
            random: Random(seed),
            loss_percent,
            start: Instant::now(),
            now: 0,
            queue: BinaryHeap::new(),
            sequence: 0,
            nodes: (0..NODES).map(Node::new).collect(),
            decisions: VIPS.iter().enumerate().map(|(index, vip)| (*vip, decision(index))).collect(),
            frames: Vec::new(),
            reports: Vec::new(),
            caches: vec![BTreeMap::new(); HOSTS.len()],
            answers: 0,
        };
        for node in 0..NODES {
            lan.begin(node);
        }
        lan.at(100, Event::Control);
        lan
    }

    fn at(&mut self, delay: u64, event: Event) {
        self.sequence += 1;
        self.queue.push(Reverse((self.now + delay, self.sequence, event)));
    }

    fn instant(&self) -> Instant {
        self.start + Duration::from_millis(self.now)
    }

    fn run_until(&mut self, end: u64) {
        while let Some(Reverse((at, _, event))) = self.queue.pop() {
            if at > end {
                self.queue.push(Reverse((at, 0, event)));
                break;
            }
            self.now = at;
            self.handle(event);
        }
        self.now = end;
    }

    fn handle(&mut self, event: Event) {
        match event {
            Event::Timer { node, life } => {
                let due = self.nodes[node].timer_at == Some(self.now);
                if due && self.nodes[node].life == life && self.runs(node) {
                    self.pass(node, |_, _| {});
                }
            }
            Event::Frame { node, frame } => self.arrive(node, frame),
            Event::Deliver { node, life } => {
                if self.nodes[node].life == life && self.runs(node) && self.nodes[node].api {
                    let change = Change::Reset(self.assigned_to(node));
                    self.pass(node, |station, now| {
                        if station.nics().next().is_none() {
                            station.handle_link(now, &Arc::from(NIC), Ok(mac(node)));
                        }
                        station.handle_change(now, change);
                    });
                }
            }
            Event::Report { node, report } => {
                let (vip, report) = self.reports[report].clone();
                if self.nodes[node].api {
                    self.reported(node, vip, &report);
                } else {
                    self.nodes[node].unreported.insert(vip, report);
                }
            }
            Event::Control => {
                self.control();
                self.at(100, Event::Control);
            }
            Event::Fault(fault) => self.fault(fault),
            Event::Restart(node) => self.begin(node),
            Event::Resume(node) => self.resume(node),
            Event::ApiBack(node) => {
                self.nodes[node].api = true;
                for (vip, report) in std::mem::take(&mut self.nodes[node].unreported) {
                    self.reported(node, vip, &report);
                }
                self.deliver(node);
            }
        }
    }

    fn runs(&self, node: usize) -> bool {
        self.nodes[node].alive && !self.nodes[node].paused
    }

    /// A speaker starts: it knows nothing but what the API tells.
    fn begin(&mut self, node: usize) {
        let life = self.nodes[node].life + 1;
        let api = self.nodes[node].api;
        self.nodes[node] = Node { life, api, seen: self.now, ..Node::new(node) };
        self.deliver(node);
    }

    fn resume(&mut self, node: usize) {
        if !self.nodes[node].alive || !self.nodes[node].paused {
            return;
        }
        self.nodes[node].paused = false;
        // The receive thread wakes as well, before the loop has run: it has to be mute.
        for packet in std::mem::take(&mut self.nodes[node].backlog) {
            self.receive(node, packet);
        }
        self.pass(node, |_, _| {});
        self.deliver(node);
    }

    /// One pass of a node's loop, as the driver makes it.
    fn pass(&mut self, node: usize, input: impl FnOnce(&mut Station, Instant)) {
        let now = self.instant();
        let station = &mut self.nodes[node].station;
        station.handle_wake(now);
        input(station, now);
        station.handle_timers(now);
        while let Some(effect) = self.nodes[node].station.poll_effect() {
            match effect {
                Effect::Watch { .. } => {}
                Effect::Publish { snapshot, .. } => self.nodes[node].snapshot = snapshot,
                Effect::Send { message, .. } => self.send(node, message),
                // Probing is over before it is written, as a rule: see the reporter.
                Effect::Report { report, .. }
                    if report.state == ClaimState::Probing && report.conflict_mac.is_none() => {}
                Effect::Report { vip, report, .. } => {
                    if report.state == ClaimState::Owner {
                        self.nodes[node].claimed_at.insert(vip, self.now);
                    }
                    self.reports.push((vip, report));
                    let delay = 1 + self.random.below(60);
                    self.at(delay, Event::Report { node, report: self.reports.len() - 1 });
                }
            }
        }
        self.nodes[node].beat = self.now;
        if let Some(at) = self.nodes[node].station.poll_timeout(now) {
            let delay = u64::try_from(at.saturating_duration_since(now).as_micros().div_ceil(1000)).unwrap();
            let life = self.nodes[node].life;
            self.nodes[node].timer_at = Some(self.now + delay.max(1));
            self.at(delay.max(1), Event::Timer { node, life });
        }
    }

    /// What a frame becomes at its receivers. Only the sender's own MAC address can be in it: a message has none.
    fn send(&mut self, node: usize, message: Message) {
        let (operation, to, sender_ip, target_ip) = match message {
            Message::ArpReply { vip, to_mac, to_ip } => (Operation::Reply, Some(to_mac), vip, to_ip),
            Message::Announcement { vip, form } => {
                assert!(self.nodes[node].station.answers(vip), "{self}: node {node} announces without being the owner");
                let operation = match form {
                    AnnouncementForm::Request => Operation::Request,
                    AnnouncementForm::Reply => Operation::Reply,
                };
                (operation, None, vip, vip)
            }
            Message::Probe { vip, to } => (Operation::Request, to, Ipv4Addr::UNSPECIFIED, vip),
            Message::Request { vip, to, from } => (Operation::Request, Some(to), from, vip),
        };
        let packet = Packet { operation, broadcast: to.is_none(), sender_mac: mac(node), sender_ip, target_ip };
        self.frames.push(packet);
        let frame = self.frames.len() - 1;
        for receiver in (0..NODES).filter(|receiver| *receiver != node && to.is_none_or(|to| to == mac(*receiver))) {
            if self.random.below(100) >= self.loss_percent {
                let delay = self.random.below(3);
                self.at(delay, Event::Frame { node: receiver, frame });
            }
        }
        if packet.is_announcement() {
            for host in 0..HOSTS.len() {
                if self.random.below(100) >= self.loss_percent {
                    self.caches[host].entry(sender_ip).and_modify(|known| *known = mac(node));
                }
            }
        }
    }

    fn arrive(&mut self, node: usize, frame: usize) {
        let packet = self.frames[frame];
        if !self.nodes[node].alive {
            return;
        }
        if self.nodes[node].paused {
            self.nodes[node].backlog.push(packet);
            return;
        }
        self.receive(node, packet);
    }

    /// The receive path, and then the loop.
    fn receive(&mut self, node: usize, packet: Packet) {
        if let Some(answer) = self.answer(node, &packet) {
            self.send(node, answer);
        }
        if self.nodes[node].snapshot.queue(&packet).is_some() {
            self.pass(node, |station, now| station.handle_packet(now, NIC, &packet));
        }
        let vip = packet.sender_ip;
        if packet.is_announcement() && self.nodes[node].station.answers(vip) {
            // It may keep the address only if it has claimed it just now, and then it says so.
            let claimed = self.nodes[node].claimed_at.get(&vip).copied().unwrap_or(0);
            assert!(self.now - claimed <= 1_300, "{self}: node {node} answers for {vip} after another's claim");
        }
    }

    fn answer(&self, node: usize, packet: &Packet) -> Option<Message> {
        let since = Duration::from_millis(self.now - self.nodes[node].beat);
        self.nodes[node].snapshot.answer(packet, || since).ok()
    }

    /// Who would answer a request for the address now.
    fn answering(&self, vip: Ipv4Addr) -> Vec<usize> {
        let request = Packet {
            operation: Operation::Request,
            broadcast: true,
            sender_mac: MacAddr(2, 0, 0, 0, 0xcc, 3),
            sender_ip: HOSTS[1],
            target_ip: vip,
        };
        (0..NODES).filter(|node| self.runs(*node) && self.answer(*node, &request).is_some()).collect()
    }

    /// Each host asks for each address once, so that its cache is warm.
    fn hosts_ask(&mut self) {
        for vip in VIPS {
            for node in self.answering(vip) {
                self.answers += 1;
                for cache in &mut self.caches {
                    cache.insert(vip, mac(node));
                }
            }
        }
    }

    fn assigned_to(&self, node: usize) -> Vec<Assigned> {
        let part = |(vip, decision): (&Ipv4Addr, &Decision)| {
            let role = if decision.primary == node {
                Role::Primary
            } else if decision.leaving == Some(node) {
                Role::Leaving
            } else {
                Role::Standby
            };
            let others = (0..NODES).filter(|other| *other != decision.primary);
            let last_claim = decision.claims.get(&node).and_then(|(state, placement)| {
                let finished = matches!(state, ClaimState::Owner | ClaimState::Yielded | ClaimState::LinkDown);
                let owned = (*state, *placement) == (ClaimState::Owner, decision.placement);
                let epoch = Epoch { uid: Arc::from("u"), placement: *placement };
                finished.then_some(LastClaim { epoch, owned })
            });
            Assigned {
                vip: *vip,
                nic: Arc::from(NIC),
                order: Order {
                    epoch: Epoch { uid: Arc::from("u"), placement: decision.placement },
                    role,
                    node: name(node),
                    ranking: std::iter::once(decision.primary)
                        .chain(others)
                        .map(|node| Ranked { node: name(node), nic: Arc::from(NIC) })
                        .collect(),
                    holder: None,
                    timing: Timing::default(),
                },
                last_claim,
            }
        };
        self.decisions.iter().map(part).collect()
    }

    fn deliver(&mut self, node: usize) {
        let (delay, life) = (1 + self.random.below(80), self.nodes[node].life);
        self.at(delay, Event::Deliver { node, life });
    }

    fn reported(&mut self, node: usize, vip: Ipv4Addr, report: &Report) {
        let decision = self.decisions.get_mut(&vip).unwrap();
        decision.claims.insert(node, (report.state, report.epoch.placement));
        if node == decision.primary && (report.state, report.epoch.placement) == (ClaimState::Owner, decision.placement)
        {
            decision.leaving = None;
        }
        // Every write of the status delivers the object anew.
        for other in 0..NODES {
            self.deliver(other);
        }
    }

    /// The controller: names another node for a dead one, and asks again for what was not done.
    fn control(&mut self) {
        for node in 0..NODES {
            if self.runs(node) && self.nodes[node].api {
                self.nodes[node].seen = self.now;
            }
        }
        let live: Vec<usize> = (0..NODES).filter(|node| self.now - self.nodes[*node].seen < DEAD_AFTER).collect();
        for vip in VIPS {
            let decision = &self.decisions[&vip];
            let claimed = decision.claims.get(&decision.primary) == Some(&(ClaimState::Owner, decision.placement));
            if !live.contains(&decision.primary) {
                if let Some(next) = live.first() {
                    self.place(vip, *next);
                }
            } else if !claimed && self.now - decision.named_at > ASK_AGAIN {
                self.place(vip, decision.primary);
            }
        }
    }

    fn place(&mut self, vip: Ipv4Addr, node: usize) {
        let decision = self.decisions.get_mut(&vip).unwrap();
        decision.placement += 1;
        decision.named_at = self.now;
        if decision.primary != node {
            decision.leaving = Some(decision.primary);
            decision.primary = node;
        }
        for other in 0..NODES {
            self.deliver(other);
        }
    }

    fn fault(&mut self, fault: Fault) {
        let node = self.random.pick(&[0, 1, 2]);
        let time = self.random.pick(&[120, 280, 600, 1_500, 4_000, 17_000]);
        match fault {
            Fault::Crash if self.nodes[node].alive => {
                self.nodes[node].alive = false;
                self.nodes[node].life += 1;
                self.at(time, Event::Restart(node));
            }
            Fault::Pause if self.runs(node) => {
                self.nodes[node].paused = true;
                self.at(time, Event::Resume(node));
            }
            Fault::ApiCut if self.nodes[node].api => {
                self.nodes[node].api = false;
                self.at(time, Event::ApiBack(node));
            }
            Fault::Move => {
                let vip = self.random.pick(&VIPS);
                self.place(vip, node);
            }
            _ => {}
        }
    }

    fn owner_of(&self, vip: Ipv4Addr) -> usize {
        let answering = self.answering(vip);
        assert_eq!(answering.len(), 1, "{self}: {vip} is answered for by {answering:?}");
        answering[0]
    }

    /// Invariants (c) and (d): once quiet, one speaker answers for each address, the one that the API names, and every
    /// cache holds its MAC address.
    fn assert_settled(&self) {
        for vip in VIPS {
            let owner = self.owner_of(vip);
            let decision = &self.decisions[&vip];
            assert_eq!(owner, decision.primary, "{self}: {vip}");
            for (host, cache) in self.caches.iter().enumerate() {
                assert_eq!(cache.get(&vip), Some(&mac(owner)), "{self}: host {host}, {vip}");
            }
        }
    }
}

impl std::fmt::Display for Lan {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "seed {} at {} ms", self.seed, self.now)
    }
}

impl Node {
    fn new(own: usize) -> Self {
        let peers = Peers::new(name(own), (0..NODES).map(|node| (name(node), Arc::from(NIC), mac(node))));
        Self {
            life: 0,
            alive: true,
            paused: false,
            api: true,
            seen: 0,
            station: Station::new(Arc::new(peers), Duration::from_secs(60)),
            snapshot: Snapshot::default(),
            beat: 0,
            timer_at: None,
            backlog: Vec::new(),
            unreported: BTreeMap::new(),
            claimed_at: BTreeMap::new(),
        }
    }
}

/// A LAN that has come up, with warm caches.
fn at_rest(seed: u64, loss_percent: u64) -> Lan {
    let mut lan = Lan::new(seed, loss_percent);
    lan.run_until(6_000);
    lan.hosts_ask();
    lan.assert_settled();
    lan
}

fn histories(runs: u64, loss_percent: u64, faults: &[Fault], count: u64) {
    for seed in 0..runs {
        let mut lan = at_rest(seed, loss_percent);
        for _ in 0..count {
            let (fault, delay) = (lan.random.pick(faults), lan.random.below(3_000));
            lan.at(delay, Event::Fault(fault));
        }
        lan.run_until(6_000 + 3_000 + 2 * SETTLE);
        lan.assert_settled();
    }
}

#[test]
fn a_crash_moves_the_vips_and_the_returning_node_does_not_take_them_back() {
    for seed in 0..50 {
        let mut lan = at_rest(seed, 0);
        let owner = lan.owner_of(VIPS[0]);
        lan.nodes[owner].alive = false;
        lan.nodes[owner].life += 1;
        lan.run_until(lan.now + DEAD_AFTER + 2_000);
        let heir = lan.owner_of(VIPS[0]);
        assert_ne!(heir, owner, "{lan}");
        lan.begin(owner);
        lan.run_until(lan.now + SETTLE);
        assert_eq!(lan.owner_of(VIPS[0]), heir, "{lan}");
        lan.assert_settled();
    }
}

#[test]
fn a_speaker_that_restarts_in_time_keeps_its_vips() {
    for seed in 0..50 {
        let mut lan = at_rest(seed, 0);
        let owner = lan.owner_of(VIPS[0]);
        lan.begin(owner);
        assert!(lan.answering(VIPS[0]).is_empty(), "{lan}: nothing is claimed before the API was read");
        lan.run_until(lan.now + 1_000);
        assert_eq!(lan.owner_of(VIPS[0]), owner, "{lan}");
        assert_eq!(lan.decisions[&VIPS[0]].placement, 1, "{lan}: it needed no new order");
    }
}

#[test]
fn in_a_move_somebody_answers_at_every_moment() {
    for seed in 0..50 {
        let mut lan = at_rest(seed, 0);
        let target = (lan.owner_of(VIPS[0]) + 1) % NODES;
        lan.place(VIPS[0], target);
        for _ in 0..3_000 {
            lan.run_until(lan.now + 1);
            assert!(!lan.answering(VIPS[0]).is_empty(), "{lan}");
        }
        assert_eq!(lan.owner_of(VIPS[0]), target, "{lan}");
    }
}

#[test]
fn a_speaker_that_stood_still_wakes_up_mute() {
    for seed in 0..50 {
        let mut lan = at_rest(seed, 0);
        let owner = lan.owner_of(VIPS[0]);
        lan.nodes[owner].paused = true;
        lan.run_until(lan.now + 17_000);
        let heir = lan.owner_of(VIPS[0]);
        assert_ne!(heir, owner);
        lan.nodes[owner].paused = false;
        assert_eq!(lan.owner_of(VIPS[0]), heir, "{lan}: its receive thread runs, its loop did not yet");
        lan.nodes[owner].paused = true;
        // The claims that it missed are lost as well: its buffer was full.
        lan.nodes[owner].backlog.clear();
        lan.resume(owner);
        assert_eq!(lan.owner_of(VIPS[0]), heir, "{lan}");
        lan.run_until(lan.now + SETTLE);
        assert_eq!(lan.owner_of(VIPS[0]), heir, "{lan}");
    }
}

#[test]
fn moves_settle() {
    histories(60, 0, &[Fault::Move], 3);
}

#[test]
fn crashes_and_pauses_settle() {
    histories(60, 0, &[Fault::Crash, Fault::Pause], 2);
}

#[test]
fn everything_at_once_settles() {
    histories(80, 0, &[Fault::Crash, Fault::Pause, Fault::Move, Fault::ApiCut], 4);
}

#[test]
fn everything_at_once_settles_on_a_lan_that_loses_frames() {
    histories(80, 5, &[Fault::Crash, Fault::Pause, Fault::Move, Fault::ApiCut], 4);
}
