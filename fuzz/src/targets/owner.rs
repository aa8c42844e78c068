//! One owner machine, told anything in any order, at any time: what the module's documentation promises holds.

use std::{
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use arbitrary::{Arbitrary, Unstructured};
use l2lb::{
    api::{ClaimState, FailoverClass, Role},
    speaker::{
        owner::{Epoch, LastClaim, Order, Output, Owner, Ranked, Report, Timing},
        peers::{Peers, Who},
        wire::{MacAddr, Message, Operation, Packet},
    },
};

use super::History;

/// More than any history needs.
const MOST_STEPS: usize = 250;
/// An owner that has spoken less than this ago may keep an address against another speaker's claim.
const STANDS: Duration = Duration::from_secs(1);

/// A host on the LAN.
#[derive(Arbitrary, Clone, Copy, Debug, PartialEq, Eq)]
pub enum Host {
    Own,
    OwnOther,
    Peer,
    Third,
    Stranger,
    OtherStranger,
}

impl Host {
    pub fn mac(self) -> MacAddr {
        match self {
            Self::Own => MacAddr(2, 0, 0, 0, 1, 2),
            Self::OwnOther => MacAddr(2, 0, 0, 0, 1, 9),
            Self::Peer => MacAddr(2, 0, 0, 0, 1, 3),
            Self::Third => MacAddr(2, 0, 0, 0, 1, 1),
            Self::Stranger => MacAddr(2, 0, 0, 0, 0xff, 9),
            Self::OtherStranger => MacAddr(2, 0, 0, 0, 0, 9),
        }
    }
}

/// Which IP address stands in a packet.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Place {
    Vip,
    OtherVip,
    Nobody,
    Client,
    Everybody,
}

/// What packets say of the addresses of one family.
pub fn address(place: Place, vips: [IpAddr; 2]) -> IpAddr {
    match (place, vips[0]) {
        (Place::Vip, _) => vips[0],
        (Place::OtherVip, _) => vips[1],
        (Place::Nobody, IpAddr::V4(_)) => Ipv4Addr::UNSPECIFIED.into(),
        (Place::Nobody, IpAddr::V6(_)) => Ipv6Addr::UNSPECIFIED.into(),
        (Place::Client, IpAddr::V4(_)) => [192, 0, 2, 3].into(),
        (Place::Client, IpAddr::V6(_)) => [0xfe80, 0, 0, 0, 0, 0, 0, 3].into(),
        (Place::Everybody, IpAddr::V4(_)) => Ipv4Addr::BROADCAST.into(),
        (Place::Everybody, IpAddr::V6(_)) => [0xff02, 0, 0, 0, 0, 0, 0, 1].into(),
    }
}

/// A packet that a reader may have accepted.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Heard {
    pub request: bool,
    pub broadcast: bool,
    pub from: Host,
    pub sender: Place,
    pub target: Place,
}

impl Heard {
    pub fn packet(self, vips: [IpAddr; 2]) -> Packet {
        Packet {
            operation: if self.request { Operation::Request } else { Operation::Reply },
            broadcast: self.broadcast,
            sender_mac: self.from.mac(),
            sender_ip: address(self.sender, vips),
            target_ip: address(self.target, vips),
        }
    }
}

/// Some time, short or long.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub enum Time {
    Milliseconds(u16),
    Exactly(u8),
    Days(u8),
}

impl Time {
    pub fn duration(self) -> Duration {
        // What the rules count with, so that their edges are met.
        const EDGES: [u64; 20] =
            [0, 1, 10, 19, 20, 25, 30, 50, 75, 99, 100, 125, 150, 200, 250, 300, 500, 1_000, 5_000, 30_000];
        match self {
            Self::Milliseconds(count) => Duration::from_millis(u64::from(count)),
            Self::Exactly(index) => Duration::from_millis(EDGES[usize::from(index) % EDGES.len()]),
            Self::Days(count) => Duration::from_secs(86_400) * u32::from(count),
        }
    }
}

/// The part of a node in one placement.
#[derive(Arbitrary, Clone, Copy, Debug)]
pub struct Part {
    pub role: u8,
    pub placement: u8,
    pub ranking: u8,
    pub holder: Option<Host>,
    pub class: u8,
}

impl Part {
    pub fn order(self) -> Order {
        let names: &[&str] = match self.ranking % 5 {
            0 => &["own", "peer", "third"],
            1 => &["peer", "own", "third"],
            2 => &["third", "peer", "own"],
            3 => &["peer", "third"],
            _ => &[],
        };
        let class = [FailoverClass::Standard, FailoverClass::Fast, FailoverClass::Relaxed][usize::from(self.class % 3)];
        Order {
            epoch: epoch(self.placement),
            role: [Role::Primary, Role::Standby, Role::Leaving][usize::from(self.role % 3)],
            node: Arc::from("own"),
            ranking: names.iter().map(|node| Ranked { node: Arc::from(*node), nic: Arc::from("eth0") }).collect(),
            holder: self.holder.map(Host::mac),
            timing: Timing::of(class),
        }
    }
}

/// A few placements of two objects.
pub fn epoch(number: u8) -> Epoch {
    let uid = if number & 8 == 0 { "first" } else { "second" };
    Epoch { uid: Arc::from(uid), placement: i64::from(number & 7) }
}

/// Who is known: a bit for each of three speakers' NICs.
pub fn peers(known: u8) -> Peers {
    let all = [("own", Host::Own), ("own", Host::OwnOther), ("peer", Host::Peer), ("third", Host::Third)];
    // The odd one out is a stranger until its node says whose it is.
    let late = (known & 8 != 0).then_some(("peer", Host::Stranger));
    // This node has the place and a MAC address of another one, whose words still stand in the API.
    let gone = (known & 16 != 0).then_some(("third", Host::OwnOther));
    let nics = all.into_iter().enumerate().filter(|(index, _)| *index == 0 || (known >> (index - 1)) & 1 != 0);
    let nic = |index: usize| Arc::from(if index == 1 || index == 4 { "eth1" } else { "eth0" });
    let nics = nics.chain(late.map(|late| (4, late))).chain(gone.map(|gone| (5, gone)));
    Peers::new(Arc::from("own"), nics.map(|(index, (node, host))| (Arc::from(node), nic(index), host.mac())))
}

#[derive(Arbitrary, Clone, Copy, Debug)]
enum Step {
    Wait {
        time: Time,
        prompt: bool,
    },
    Hear(Heard),
    /// A claim, an answer or a probe by this host: what matters most, so that it is drawn often.
    Claim(Host),
    Answer(Host),
    Probe(Host),
    Order(Part),
    Silence,
    Refresh,
    Speakers(u8),
    Link {
        up: bool,
        other_mac: bool,
    },
    LateLoop(Time),
    Tick,
}

/// A machine, and what was seen of it.
struct Bench {
    vips: [IpAddr; 2],
    now: Instant,
    peers: Peers,
    machine: Owner,
    own: MacAddr,
    link: bool,
    ordered: bool,
    reported: Option<Report>,
    /// Since it last stopped answering, lost its link or got another MAC address.
    probes: u32,
    /// When it last claimed, stood against a claim, or heard a second owner's answer.
    stood_at: Option<Instant>,
}

/// What one input led to.
#[derive(Default)]
struct Said {
    announcements: usize,
    probes: usize,
    reports: usize,
}

/// Plays what `data` tells.
pub fn run(data: &[u8]) {
    let mut input = Unstructured::new(data);
    let Ok((ipv6, last, known)) = input.arbitrary::<(bool, Option<(u8, bool)>, u8)>() else { return };
    let mut bench = Bench::new(ipv6, last, known);
    let mut history = History(Vec::new());
    for step in input.arbitrary_iter::<Step>().into_iter().flatten().take(MOST_STEPS) {
        let Ok(step) = step else { break };
        history.0.push(step);
        bench.take(step);
    }
}

impl Bench {
    fn new(ipv6: bool, last: Option<(u8, bool)>, known: u8) -> Self {
        let vips: [IpAddr; 2] = if ipv6 {
            [[0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x64].into(), [0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x65].into()]
        } else {
            [[192, 0, 2, 64].into(), [192, 0, 2, 65].into()]
        };
        let own = Host::Own.mac();
        let last = last.map(|(placement, owned)| LastClaim { epoch: epoch(placement), owned });
        let machine = Owner::new(vips[0], own, last, Ok(()));
        Self {
            vips,
            now: Instant::now(),
            peers: peers(known),
            machine,
            own,
            link: true,
            ordered: false,
            reported: None,
            probes: 0,
            stood_at: None,
        }
    }

    fn take(&mut self, step: Step) {
        let now = self.now;
        match step {
            Step::Wait { time, prompt } => self.wait(time.duration(), prompt),
            Step::Tick => self.tick(),
            Step::Hear(heard) => self.hear(&heard.packet(self.vips)),
            Step::Claim(from) => self.hear_from(from, !self.vips[0].is_ipv6(), true, Place::Vip, Place::Vip),
            Step::Answer(from) => self.hear_from(from, false, false, Place::Vip, Place::Nobody),
            Step::Probe(from) => self.hear_from(from, true, true, Place::Nobody, Place::Vip),
            Step::Order(part) => {
                self.ordered = true;
                self.input(|machine, _| machine.handle_order(now, part.order()));
            }
            Step::Silence => {
                let before = self.machine.answers();
                self.input(|machine, _| machine.handle_silence(now));
                assert_eq!(self.machine.answers(), before, "a doubt decides nothing");
            }
            Step::Refresh => {
                let said = self.input(|machine, _| machine.handle_refresh());
                assert_eq!(said.announcements > 0, self.machine.answers());
            }
            Step::Speakers(known) => {
                self.peers = peers(known);
                self.input(|machine, peers| machine.handle_speakers(now, peers));
            }
            Step::Link { up, other_mac } => self.link(up, other_mac),
            Step::LateLoop(time) => {
                let gap = time.duration();
                self.input(|machine, _| machine.handle_late_loop(now, gap));
                assert!(gap < self.machine.fence() || !self.machine.answers(), "it was mute, and answers unasked");
            }
        }
    }

    fn hear_from(&mut self, from: Host, request: bool, broadcast: bool, sender: Place, target: Place) {
        self.hear(&Heard { request, broadcast, from, sender, target }.packet(self.vips));
    }

    fn link(&mut self, up: bool, other_mac: bool) {
        let now = self.now;
        let before = self.own;
        self.own = if other_mac { Host::OwnOther.mac() } else { Host::Own.mac() };
        self.link = up;
        if !up || self.own != before {
            // Nobody heard them, or the answers go to the address before.
            self.probes = 0;
        }
        let (link, own) = (if up { Ok(()) } else { Err(Arc::from("it has no link")) }, self.own);
        self.input(|machine, _| machine.handle_link(now, link, own));
        assert!(up || !self.machine.answers(), "it answers without a link");
    }

    fn hear(&mut self, packet: &Packet) {
        let (now, answered) = (self.now, self.machine.answers());
        let vip = self.vips[0];
        let own = packet.sender_mac == self.own || self.peers.who(packet.sender_mac) == Who::Own;
        let from_speaker = !own && matches!(self.peers.who(packet.sender_mac), Who::Speaker(_));
        let is_claim = from_speaker && packet.sender_ip == vip && packet.is_announcement();
        let is_answer = from_speaker && packet.sender_ip == vip && !packet.broadcast;
        let said = self.input(|machine, peers| machine.handle_packet(now, packet, peers));
        assert!(answered || !self.machine.answers(), "nobody claims because of what was heard");
        if packet.sender_ip != vip && packet.target_ip != vip {
            assert_eq!(said.announcements + said.probes + said.reports, 0, "{packet:?} is of no concern");
        }
        if own {
            assert_eq!(answered, self.machine.answers(), "its own frames came back");
            assert_eq!(said.announcements + said.probes + said.reports, 0, "its own frames came back");
        }
        if is_claim && self.machine.answers() {
            let stood = self.stood_at.map(|at| now.saturating_duration_since(at));
            assert!(stood.is_some_and(|ago| ago < STANDS), "it keeps the address, and stood for it {stood:?} ago");
        }
        if (is_claim || is_answer) && self.machine.answers() {
            self.stood_at = Some(now);
        }
    }

    fn wait(&mut self, time: Duration, prompt: bool) {
        let end = self.now + time;
        let mut left = 300;
        while prompt
            && left > 0
            && let Some(at) = self.machine.poll_timeout().filter(|at| *at <= end)
        {
            left -= 1;
            self.now = self.now.max(at);
            self.tick();
        }
        self.now = end;
    }

    fn tick(&mut self) {
        let now = self.now;
        // A tick leads on: after a few at the same time nothing is due any more.
        for _ in 0..8 {
            let due = self.machine.poll_timeout().is_some_and(|at| at <= now);
            let answered = self.machine.answers();
            let said = self.input(|machine, peers| machine.handle_tick(now, peers));
            if !due {
                assert_eq!(said.announcements + said.probes + said.reports, 0, "nothing was due");
            }
            if !answered && self.machine.answers() {
                assert!(said.announcements > 0, "a claim is announced at once");
                self.stood_at = Some(now);
            }
            if self.machine.poll_timeout().is_none_or(|at| at > now) {
                return;
            }
        }
        panic!("ticks lead nowhere: {:?}", self.machine);
    }

    /// Gives the machine an input, and looks at all that follows.
    fn input(&mut self, input: impl FnOnce(&mut Owner, &Peers)) -> Said {
        let answered = self.machine.answers();
        input(&mut self.machine, &self.peers);
        let answers = self.machine.answers();
        let mut said = Said::default();
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Send(Message::Announcement { vip, .. }) => {
                    assert!(answers && vip == self.vips[0], "only an owner announces");
                    said.announcements += 1;
                }
                Output::Send(Message::Probe { vip, to }) => {
                    assert_eq!(vip, self.vips[0]);
                    assert_ne!(to, Some(self.own), "it asks itself");
                    said.probes += 1;
                    self.probes += u32::from(to.is_none() && !answers);
                }
                Output::Send(message) => panic!("the machine has no business with {message:?}"),
                Output::Report(report) => {
                    self.judge(&report, answers);
                    said.reports += 1;
                    assert_ne!(self.reported.as_ref(), Some(&report), "nothing is new");
                    self.reported = Some(report);
                }
            }
        }
        assert!(said.announcements <= 2 && said.probes <= 1 && said.reports <= 2, "much for one input");
        if answers && !answered {
            assert!(self.probes >= 2, "it claims after {} probes", self.probes);
        }
        if !answers && answered {
            self.probes = u32::try_from(said.probes).unwrap();
        }
        assert!(!answers || self.link && self.ordered, "it answers without a link, or unordered");
        let watched = self.machine.watches(&self.peers);
        assert!(watched.is_none() || !answers && self.link, "it watches whom it should be");
        assert!(watched.is_none_or(|watched| watched.owner != self.own), "it watches itself");
        let rivals = self.machine.rivals(&self.peers);
        assert!(answers || rivals.is_empty(), "it looks for second owners, and is none");
        assert!(!rivals.contains(&self.own), "it looks for itself");
        assert!(!(answers && self.machine.rechecks()));
        said
    }

    fn judge(&self, report: &Report, answers: bool) {
        match report.state {
            ClaimState::Owner => assert!(answers, "{report:?}"),
            ClaimState::LinkDown => assert!(!self.link && !answers, "{report:?}"),
            ClaimState::Probing | ClaimState::Yielded | ClaimState::Blocked => assert!(!answers, "{report:?}"),
        }
        assert!(report.state != ClaimState::Blocked || report.conflict_mac.is_some(), "{report:?}");
        assert!(!report.reason.is_empty());
    }
}
