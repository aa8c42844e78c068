//! The owner machine against a clock that the tests move: how it comes to claim here, the rest by concept beside it.

mod coming_back;
mod failover;
mod random;
mod rivals;
mod strangers;

use super::{
    owning::{HAND_OVER, RIVAL_SILENT, TIE_ROUNDS},
    *,
};

use crate::speaker::wire::Operation;
use std::net::{Ipv4Addr, Ipv6Addr};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 64));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x64));
const ALL_NODES: IpAddr = IpAddr::V6(Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1));
const OWN: MacAddr = MacAddr(2, 0, 0, 0, 1, 2);
const PEER: MacAddr = MacAddr(2, 0, 0, 0, 1, 3);
const LOWER_PEER: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const STRANGER: MacAddr = MacAddr(2, 0, 0, 0, 0xff, 9);
const CLIENT_IP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 3));

fn ms(milliseconds: u64) -> Duration {
    Duration::from_millis(milliseconds)
}

fn epoch(placement: i64) -> Epoch {
    Epoch { uid: Arc::from("u"), placement }
}

fn order(role: Role, placement: i64) -> Order {
    let names = match role {
        Role::Primary => ["own", "peer", "lower"],
        _ => ["peer", "own", "lower"],
    };
    let ranking = names.map(|node| Ranked { node: Arc::from(node), nic: Arc::from("eth0") }).into();
    let timing = Timing::default();
    Order { epoch: epoch(placement), role, node: Arc::from("own"), ranking, holder: None, timing }
}

fn peers(known: &[(&str, MacAddr)]) -> Peers {
    Peers::new(Arc::from("own"), known.iter().map(|(node, mac)| (Arc::from(*node), Arc::from("eth0"), *mac)))
}

/// A machine with a clock: what it sends and reports is kept with its time.
struct Bench {
    start: Instant,
    now: Instant,
    vip: IpAddr,
    peers: Peers,
    machine: Owner,
    sent: Vec<(Duration, Message)>,
    reports: Vec<Report>,
}

impl Bench {
    fn new(claimed: Option<i64>) -> Self {
        Self::of(VIP, claimed)
    }

    fn of(vip: IpAddr, claimed: Option<i64>) -> Self {
        let start = Instant::now();
        let peers = peers(&[("own", OWN), ("peer", PEER), ("lower", LOWER_PEER)]);
        let machine =
            Owner::new(vip, OWN, claimed.map(|placement| LastClaim { epoch: epoch(placement), owned: false }), Ok(()));
        Self { start, now: start, vip, peers, machine, sent: Vec::new(), reports: Vec::new() }
    }

    /// An owner that was named in placement 1, 300 ms after it claimed.
    fn owner() -> Self {
        let mut bench = Self::new(None);
        bench.order(Role::Primary, 1);
        bench.run(ms(150));
        assert!(bench.machine.answers());
        bench.run(HAND_OVER);
        bench.forget();
        bench
    }

    fn forget(&mut self) {
        self.sent.clear();
        self.reports.clear();
    }

    fn order(&mut self, role: Role, placement: i64) {
        self.machine.handle_order(self.now, order(role, placement));
        self.drain();
    }

    fn hear(&mut self, operation: Operation, broadcast: bool, from: MacAddr, sender_ip: IpAddr, target_ip: IpAddr) {
        let packet = Packet { operation, broadcast, sender_mac: from, sender_ip, target_ip };
        self.machine.handle_packet(self.now, &packet, &self.peers);
        self.drain();
    }

    fn claim_from(&mut self, from: MacAddr) {
        // An advertisement is a reply.
        let operation = if self.vip.is_ipv6() { Operation::Reply } else { Operation::Request };
        self.hear(operation, true, from, self.vip, self.vip);
    }

    fn answer_from(&mut self, from: MacAddr) {
        let to = if self.vip.is_ipv6() { ALL_NODES } else { Ipv4Addr::UNSPECIFIED.into() };
        self.hear(Operation::Reply, false, from, self.vip, to);
    }

    fn probe_from(&mut self, from: MacAddr) {
        let nobody = if self.vip.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        self.hear(Operation::Request, true, from, nobody, self.vip);
    }

    fn silence(&mut self) {
        self.machine.handle_silence(self.now);
        self.drain();
    }

    fn drain(&mut self) {
        while let Some(output) = self.machine.poll_output() {
            match output {
                Output::Send(message) => self.sent.push((self.now - self.start, message)),
                Output::Report(report) => self.reports.push(report),
            }
        }
    }

    /// Lets time pass, with a tick whenever the machine wants one.
    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.machine.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.machine.handle_tick(self.now, &self.peers);
            self.drain();
        }
        self.now = end;
    }

    fn states(&self) -> Vec<ClaimState> {
        self.reports.iter().map(|report| report.state).collect()
    }

    fn announcements(&self) -> usize {
        self.sent.iter().filter(|(_, message)| matches!(message, Message::Announcement { .. })).count()
    }

    fn probes(&self) -> Vec<(u64, Option<MacAddr>)> {
        let probe = |(at, message): &(Duration, Message)| match message {
            Message::Probe { to, .. } => Some((u64::try_from(at.as_millis()).unwrap(), *to)),
            _ => None,
        };
        self.sent.iter().filter_map(probe).collect()
    }
}

#[test]
fn a_named_node_probes_twice_and_then_claims_with_the_whole_burst_in_both_forms() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(149));
    assert_eq!(bench.probes(), [(0, None), (75, None)]);
    assert!(!bench.machine.answers());
    bench.run(ms(20_000));
    assert!(bench.machine.answers());
    let claims: Vec<(u64, AnnouncementForm)> = bench
        .sent
        .iter()
        .filter_map(|(at, message)| match message {
            Message::Announcement { form, .. } => Some((u64::try_from(at.as_millis()).unwrap(), *form)),
            _ => None,
        })
        .collect();
    let both = |at| [(at, AnnouncementForm::Request), (at, AnnouncementForm::Reply)];
    let expected: Vec<_> = [150, 400, 1150, 2150, 4150].into_iter().flat_map(both).collect();
    assert_eq!(claims, expected);
    assert_eq!(bench.states(), [ClaimState::Probing, ClaimState::Owner]);
    assert_eq!(bench.machine.poll_timeout(), None, "an owner at rest wants nothing");
}

#[test]
fn an_ipv6_address_is_probed_for_alike_and_announced_in_its_one_form() {
    let mut bench = Bench::of(VIP6, None);
    bench.order(Role::Primary, 1);
    bench.run(ms(20_000));
    let at = |at, message| (ms(at), message);
    let probe = Message::Probe { vip: VIP6, to: None };
    let announcement = Message::Announcement { vip: VIP6, form: AnnouncementForm::Request };
    let claims = [150, 400, 1150, 2150, 4150].map(|time| at(time, announcement));
    let expected: Vec<_> = [at(0, probe), at(75, probe)].into_iter().chain(claims).collect();
    assert_eq!(bench.sent, expected);
    bench.forget();
    bench.machine.handle_refresh();
    bench.drain();
    bench.hear(Operation::Request, false, STRANGER, VIP6, "2001:db8:1::3".parse().unwrap());
    let sent: Vec<Message> = bench.sent.iter().map(|(_, message)| *message).collect();
    assert_eq!(sent, [announcement; 2], "a refresh, and the defence against a host that uses the address as its own");
}

/// Two owners that answer one probe must not take each other's answers for claims.
#[test]
fn what_an_ipv6_owner_says_to_a_prober_alone_is_an_answer_and_no_claim() {
    let mut bench = Bench::of(VIP6, None);
    bench.order(Role::Primary, 1);
    bench.run(ms(2_000));
    bench.answer_from(PEER);
    assert!(bench.machine.answers(), "it announces against a second owner");
    bench.run(ms(1_100));
    bench.claim_from(PEER);
    assert!(!bench.machine.answers(), "it yields to a claim");
    let mut bench = Bench::of(VIP6, Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.run(ms(10));
    bench.answer_from(PEER);
    assert_eq!(bench.machine.held_by(), Some(PEER), "who rechecks leaves it to who answers");
    assert!(!bench.machine.answers() && !bench.machine.rechecks());
}

#[test]
fn fast_failover_probes_quicker() {
    let mut bench = Bench::new(None);
    let fast = Order { timing: Timing::of(crate::api::FailoverClass::Fast), ..order(Role::Primary, 1) };
    bench.machine.handle_order(bench.now, fast);
    bench.run(ms(60));
    assert!(bench.machine.answers());
    assert_eq!(bench.probes(), [(0, None), (30, None)]);
}

#[test]
fn standbys_and_leaving_nodes_do_not_claim() {
    for role in [Role::Standby, Role::Leaving] {
        let mut bench = Bench::new(None);
        bench.order(role, 1);
        bench.run(ms(60_000));
        assert!(bench.sent.is_empty() && bench.reports.is_empty(), "{role:?}");
    }
}

#[test]
fn the_same_order_delivered_anew_is_no_new_order() {
    let mut bench = Bench::owner();
    bench.claim_from(PEER);
    assert!(!bench.machine.answers());
    bench.order(Role::Primary, 1);
    bench.run(ms(10_000));
    assert!(!bench.machine.answers(), "it yielded, and was not named again");
    bench.order(Role::Primary, 2);
    bench.run(ms(150));
    assert!(bench.machine.answers());
}

#[test]
fn an_owner_that_is_named_again_counts_the_placement_as_claimed() {
    let mut bench = Bench::owner();
    bench.order(Role::Primary, 2);
    assert_eq!(bench.reports.last().map(|report| (report.state, report.epoch.placement)), Some((ClaimState::Owner, 2)));
    assert!(bench.probes().is_empty());
    bench.claim_from(PEER);
    bench.order(Role::Primary, 2);
    bench.run(ms(10_000));
    assert!(!bench.machine.answers());
}

#[test]
fn another_speaker_that_answers_does_not_stop_a_hand_over() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.claim_from(PEER);
    bench.run(ms(140));
    assert!(bench.machine.answers());
}
