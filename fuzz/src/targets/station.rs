//! A whole station, with several addresses on two NICs: what leaves, and what the receive path is told, follows from who owns.

use std::{
    collections::BTreeMap,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

use arbitrary::{Arbitrary, Unstructured};
use l2lb::speaker::{
    owner::LastClaim,
    peers::Who,
    station::{Assigned, Change, Effect, Station},
    triage::Snapshot,
    wire::{MacAddr, Message, Operation, Packet},
};

use super::{
    History,
    owner::{Heard, Host, Part, Place, Time, epoch, peers},
};

const MOST_STEPS: usize = 150;
const NICS: [&str; 2] = ["eth0", "eth1"];
const REFRESH: Duration = Duration::from_secs(60);
/// Both forms of a claim, and what was under way, count as one.
const SAME_CLAIM: Duration = Duration::from_millis(20);

#[derive(Arbitrary, Clone, Copy, Debug)]
struct Assignment {
    vip: u8,
    nic: bool,
    part: Part,
    last: Option<(u8, bool)>,
}

#[derive(Arbitrary, Clone, Debug)]
enum Step {
    Wait { time: Time, prompt: bool },
    Apply(Assignment),
    Remove(u8),
    Reset(Vec<Assignment>),
    Hear { nic: bool, vip: u8, heard: Heard },
    Claim { nic: bool, vip: u8, from: Host },
    Ask { nic: bool, vip: u8, from: Host },
    Speakers(u8),
    Link { nic: bool, up: bool, other_mac: bool },
    Addresses { nic: bool, count: u8 },
}

struct Bench {
    now: Instant,
    known: u8,
    /// Of each NIC, since it was first open.
    macs: BTreeMap<Arc<str>, MacAddr>,
    station: Station,
    snapshots: BTreeMap<Arc<str>, Snapshot>,
    watched: BTreeMap<Arc<str>, Vec<IpAddr>>,
    announced_at: BTreeMap<IpAddr, Instant>,
    /// Until when the loop sleeps if it hears nothing.
    wakes_at: Option<Instant>,
}

/// Plays what `data` tells.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok(known) = input.arbitrary::<u8>() else { return };
    let mut bench = Bench::new(known);
    let mut history = History(Vec::new());
    for step in input.arbitrary_iter::<Step>().into_iter().flatten().take(MOST_STEPS) {
        let Ok(step) = step else { break };
        history.0.push(step.clone());
        bench.take(step);
    }
}

/// Three of each family; the last one of IPv4 is a node's own address as well.
fn vips(number: u8) -> [IpAddr; 2] {
    let (family, number) = (number & 4, number % 3);
    let one = |number: u8| {
        if family == 0 {
            IpAddr::from([192, 0, 2, 64 + number])
        } else {
            [0x2001, 0xdb8, 1, 0, 0, 0, 0, u16::from(number)].into()
        }
    };
    [one(number), one((number + 1) % 3)]
}

fn name(nic: bool) -> Arc<str> {
    Arc::from(NICS[usize::from(nic)])
}

impl Assignment {
    fn assigned(self) -> Assigned {
        let last_claim = self.last.map(|(placement, owned)| LastClaim { epoch: epoch(placement), owned });
        Assigned { vip: vips(self.vip)[0], nic: name(self.nic), order: self.part.order(), last_claim }
    }
}

impl Bench {
    fn new(known: u8) -> Self {
        Self {
            now: Instant::now(),
            known,
            macs: BTreeMap::new(),
            station: Station::new(Arc::new(peers(known)), REFRESH),
            snapshots: BTreeMap::new(),
            watched: BTreeMap::new(),
            announced_at: BTreeMap::new(),
            wakes_at: None,
        }
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Wait { time, prompt } => self.wait(time.duration(), prompt),
            Step::Apply(one) => self.pass(|station, now| station.handle_change(now, Change::Apply(one.assigned()))),
            Step::Remove(vip) => {
                self.pass(|station, now| station.handle_change(now, Change::Remove(vips(vip)[0])));
                assert!(!self.station.has_part_in(vips(vip)[0]) && !self.station.answers(vips(vip)[0]));
            }
            Step::Reset(all) => {
                let mut all: Vec<Assigned> = all.into_iter().take(6).map(Assignment::assigned).collect();
                // The API has one object for each.
                all.sort_by_key(|assigned| assigned.vip);
                all.dedup_by_key(|assigned| assigned.vip);
                let count = all.len();
                self.pass(|station, now| station.handle_change(now, Change::Reset(all)));
                assert_eq!(self.station.assigned(), count);
            }
            Step::Hear { nic, vip, heard } => self.hear(nic, &heard.packet(vips(vip))),
            Step::Claim { nic, vip, from } => self.hear_from(nic, vip, from, Place::Vip, true),
            Step::Ask { nic, vip, from } => self.hear_from(nic, vip, from, Place::Client, false),
            Step::Speakers(known) => {
                self.known = known;
                self.pass(|station, now| station.handle_speakers(now, Arc::new(peers(known))));
            }
            Step::Link { nic, up, other_mac } => {
                let mac = if other_mac { Host::OwnOther.mac() } else { Host::Own.mac() };
                let link = if up { Ok(mac) } else { Err(Arc::from("it has no link")) };
                if up {
                    self.macs.insert(name(nic), mac);
                }
                self.pass(|station, now| station.handle_link(now, &name(nic), link));
            }
            Step::Addresses { nic, count } => {
                // Some of them are virtual IPs: an administrator may err.
                let all = [[192, 0, 2, 66].into(), [192, 0, 2, 11].into(), [0xfe80, 0, 0, 0, 0, 0, 0, 11].into()];
                let some: Vec<IpAddr> = all.into_iter().take(usize::from(count % 4)).collect();
                self.pass(|station, _| station.handle_addresses(&name(nic), some));
            }
        }
    }

    fn hear_from(&mut self, nic: bool, vip: u8, from: Host, sender: Place, broadcast: bool) {
        self.hear(nic, &Heard { request: true, broadcast, from, sender, target: Place::Vip }.packet(vips(vip)));
    }

    /// As the receive path does: the loop hears what the snapshot finds a use for.
    fn hear(&mut self, nic: bool, packet: &Packet) {
        let name = name(nic);
        let wanted = self.snapshots.get(&name).and_then(|snapshot| snapshot.queue(packet)).is_some();
        let vip = packet.sender_ip;
        let before = self.station.answers(vip);
        // A pass also does what it would have done anyway.
        let due = self.wakes_at.is_some_and(|at| at <= self.now);
        self.pass(|station, now| station.handle_packet(now, &name, packet));
        assert!(before || due || !self.station.answers(vip), "nobody claims because of what was heard");
        let known = peers(self.known);
        // Whatever the API says of whose MAC address the NIC's own is: the reader drops such frames.
        let own = self.macs.get(&name) == Some(&packet.sender_mac);
        let is_claim = !own && packet.is_announcement() && matches!(known.who(packet.sender_mac), Who::Speaker(_));
        if is_claim && self.on(&name, vip) && self.station.answers(vip) {
            assert!(wanted, "the loop has to hear of {packet:?}");
            let said = self.announced_at.get(&vip).copied();
            let ago = said.map(|at| self.now.saturating_duration_since(at));
            assert!(ago.is_some_and(|ago| ago <= SAME_CLAIM), "it keeps {vip} and announced it {ago:?} ago");
        }
    }

    fn on(&self, nic: &Arc<str>, vip: IpAddr) -> bool {
        self.watched.get(nic).is_some_and(|vips| vips.contains(&vip))
    }

    fn wait(&mut self, time: Duration, prompt: bool) {
        let end = self.now + time;
        // Then it starves.
        let mut left = 100;
        while prompt
            && left > 0
            && let Some(at) = self.station.poll_timeout(self.now).filter(|at| *at <= end)
        {
            left -= 1;
            self.now = self.now.max(at);
            self.pass(|_, _| {});
        }
        self.now = end;
    }

    /// One pass of the loop, and others until it would sleep.
    fn pass(&mut self, input: impl FnOnce(&mut Station, Instant)) {
        let now = self.now;
        self.station.handle_wake(now);
        input(&mut self.station, now);
        self.station.handle_timers(now);
        self.carry_out();
        for _ in 0..12 {
            self.wakes_at = self.station.poll_timeout(now);
            if self.wakes_at.is_none_or(|at| at > now) {
                return;
            }
            self.station.handle_wake(now);
            self.station.handle_timers(now);
            self.carry_out();
        }
        panic!("the loop never sleeps: {:?}", self.station.poll_timeout(now).map(|at| at - now));
    }

    fn carry_out(&mut self) {
        let mut effects = 0;
        while let Some(effect) = self.station.poll_effect() {
            effects += 1;
            // Six addresses, each with at most a few frames and reports.
            assert!(effects <= 150, "much for one pass");
            match effect {
                Effect::Watch { nic, vips } => drop(self.watched.insert(nic, vips)),
                Effect::Publish { nic, snapshot } => drop(self.snapshots.insert(nic, snapshot)),
                Effect::Send { nic, message } => self.sent(&nic, message),
                Effect::Unheard { nodes, .. } => assert!(nodes.windows(2).all(|pair| pair[0] < pair[1]), "{nodes:?}"),
                Effect::Report { .. } => {}
            }
        }
        self.published();
    }

    fn sent(&mut self, nic: &Arc<str>, message: Message) {
        let vip = message.vip();
        assert!(self.on(nic, vip), "{message:?} leaves by {nic}, and is none of its addresses");
        match message {
            Message::Announcement { .. } => {
                assert!(self.station.answers(vip), "only an owner announces: {message:?}");
                self.announced_at.insert(vip, self.now);
            }
            Message::Answer { .. } => panic!("the receive path answers, and the loop does not"),
            Message::Probe { to, .. } => assert!(to.is_none_or(|to| to.is_unicast())),
            Message::Request { to, from, .. } => {
                assert!(to.is_unicast() && from.is_ipv4() == vip.is_ipv4(), "{message:?}");
                assert!(!self.station.has_part_in(from), "asked in the name of a virtual IP: {message:?}");
            }
        }
    }

    /// The receive path answers for what the station owns, and for nothing else.
    fn published(&self) {
        let mut owned = 0;
        for vip in (0..8).filter(|number| number % 4 < 3).map(|number| vips(number)[0]) {
            let request = Packet {
                operation: Operation::Request,
                broadcast: true,
                sender_mac: Host::Stranger.mac(),
                sender_ip: Heard {
                    request: true,
                    broadcast: true,
                    from: Host::Stranger,
                    sender: Place::Client,
                    target: Place::Vip,
                }
                .packet([vip; 2])
                .sender_ip,
                target_ip: vip,
            };
            let answering =
                self.snapshots.iter().filter(|(nic, snapshot)| self.on(nic, vip) && snapshot.answer(&request).is_ok());
            assert_eq!(answering.count(), usize::from(self.station.answers(vip)), "{vip}");
            owned += usize::from(self.station.answers(vip));
        }
        assert_eq!(self.station.owned(), owned);
        assert!(self.station.to_hand_over() >= owned && self.station.assigned() >= owned);
    }
}
