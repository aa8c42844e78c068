use super::{
    owning::{HAND_OVER, RIVAL_SILENT, TIE_ROUNDS},
    *,
};
use crate::speaker::wire::arp::Operation;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);
const OWN: MacAddr = MacAddr(2, 0, 0, 0, 1, 2);
const PEER: MacAddr = MacAddr(2, 0, 0, 0, 1, 3);
const LOWER_PEER: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const STRANGER: MacAddr = MacAddr(2, 0, 0, 0, 0xff, 9);
const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);

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
    peers: Peers,
    machine: Owner,
    sent: Vec<(Duration, Message)>,
    reports: Vec<Report>,
}

impl Bench {
    fn new(claimed: Option<i64>) -> Self {
        let start = Instant::now();
        let peers = peers(&[("own", OWN), ("peer", PEER), ("lower", LOWER_PEER)]);
        let machine =
            Owner::new(VIP, OWN, claimed.map(|placement| LastClaim { epoch: epoch(placement), owned: false }), Ok(()));
        Self { start, now: start, peers, machine, sent: Vec::new(), reports: Vec::new() }
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

    fn hear(&mut self, operation: Operation, broadcast: bool, from: MacAddr, sender_ip: Ipv4Addr, target_ip: Ipv4Addr) {
        let packet = Packet { operation, broadcast, sender_mac: from, sender_ip, target_ip };
        self.machine.handle_packet(self.now, &packet, &self.peers);
        self.drain();
    }

    fn claim_from(&mut self, from: MacAddr) {
        self.hear(Operation::Request, true, from, VIP, VIP);
    }

    fn answer_from(&mut self, from: MacAddr) {
        self.hear(Operation::Reply, false, from, VIP, Ipv4Addr::UNSPECIFIED);
    }

    fn probe_from(&mut self, from: MacAddr) {
        self.hear(Operation::Request, true, from, Ipv4Addr::UNSPECIFIED, VIP);
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

#[test]
fn words_of_the_old_owner_that_were_under_way_are_answered_by_announcing_again() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(150));
    bench.run(ms(100));
    bench.forget();
    bench.claim_from(PEER);
    assert!(bench.machine.answers());
    bench.run(ms(1));
    assert_eq!(bench.announcements(), 2);
    // Later than 300 ms it is a real claim.
    bench.run(ms(250));
    bench.claim_from(PEER);
    assert!(!bench.machine.answers());
}

#[test]
fn an_owner_yields_to_a_claim_at_once_and_stays_silent() {
    let mut bench = Bench::owner();
    bench.claim_from(PEER);
    assert!(!bench.machine.answers());
    bench.run(RECHECK_SILENT - ms(1));
    assert_eq!(bench.announcements(), 0, "the rest of the burst is not sent");
    assert_eq!(bench.states(), [ClaimState::Yielded]);
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

#[test]
fn a_unicast_answer_is_no_claim() {
    let mut bench = Bench::owner();
    bench.answer_from(PEER);
    assert!(bench.machine.answers());
}

#[test]
fn a_leaving_owner_answers_until_it_hears_the_claim() {
    let mut bench = Bench::owner();
    bench.order(Role::Leaving, 2);
    bench.run(ms(5_000));
    assert!(bench.machine.answers());
    bench.claim_from(PEER);
    assert!(!bench.machine.answers());
}

#[test]
fn a_restarted_primary_rechecks_and_leaves_the_address_to_a_peer_that_answers() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.run(ms(1));
    assert_eq!(bench.probes().last(), Some(&(10, Some(PEER))), "a broadcast answer alone does not count");
    bench.answer_from(PEER);
    bench.run(RECHECK_SILENT - ms(1));
    assert!(!bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::Probing, ClaimState::Yielded]);
}

#[test]
fn a_restarted_primary_claims_again_when_nobody_answers() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(150));
    assert!(bench.machine.answers());
}

#[test]
fn a_standby_probes_when_the_owner_fell_silent_and_claims_if_nobody_answers() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    assert_eq!(bench.machine.watches(&bench.peers), None, "it does not know whom");
    bench.claim_from(PEER);
    let target = Target { owner: PEER, interval: Timing::default().interval, rank: 0 };
    assert_eq!(bench.machine.watches(&bench.peers), Some(target));
    bench.silence();
    bench.run(ms(149));
    assert!(!bench.machine.answers());
    // Every write of the status delivers the order anew.
    bench.order(Role::Standby, 1);
    bench.run(ms(1));
    assert!(bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::Owner]);
    assert_eq!(bench.machine.watches(&bench.peers), None);
}

#[test]
fn a_doubt_in_vain_costs_two_probes_and_no_report() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    for _ in 0..2 {
        bench.silence();
        bench.run(ms(10));
        bench.answer_from(PEER);
        bench.run(ms(10));
        bench.answer_from(PEER);
        bench.run(ms(1_000));
    }
    assert!(!bench.machine.answers() && bench.reports.is_empty());
    assert_eq!(bench.probes().len(), 4);
    assert!(bench.machine.watches(&bench.peers).is_some());
}

#[test]
fn a_standby_that_hears_another_one_claim_stays_silent_and_watches_that_one() {
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.silence();
    bench.run(ms(100));
    bench.claim_from(LOWER_PEER);
    bench.run(ms(1_000));
    assert!(!bench.machine.answers() && bench.reports.is_empty());
    let watched = bench.machine.watches(&bench.peers).map(|target| (target.owner, target.rank));
    assert_eq!(watched, Some((LOWER_PEER, 1)), "the Primary comes before it");
}

#[test]
fn until_it_hears_an_owner_a_standby_believes_the_status() {
    let mut bench = Bench::new(None);
    let told = |mac| Order { holder: Some(mac), ..order(Role::Standby, 1) };
    bench.machine.handle_order(bench.now, told(PEER));
    assert_eq!(bench.machine.held_by(), Some(PEER));
    bench.claim_from(LOWER_PEER);
    bench.machine.handle_order(bench.now, told(PEER));
    assert_eq!(bench.machine.held_by(), Some(LOWER_PEER));
    // Behind another port it has to learn anew.
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    assert_eq!(bench.machine.watches(&bench.peers), None);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

#[test]
fn a_primary_that_left_the_address_to_a_peer_claims_it_when_that_one_is_gone() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.run(ms(10));
    bench.answer_from(PEER);
    assert_eq!(bench.states().last(), Some(&ClaimState::Yielded));
    assert_eq!(bench.machine.watches(&bench.peers).map(|target| (target.owner, target.rank)), Some((PEER, 0)));
    bench.silence();
    bench.run(ms(200));
    assert!(bench.machine.answers(), "nobody else does");
}

#[test]
fn a_silent_node_that_is_leaving_or_has_no_link_watches_nobody() {
    let mut bench = Bench::owner();
    bench.claim_from(PEER);
    bench.order(Role::Leaving, 2);
    assert_eq!(bench.machine.watches(&bench.peers), None);
    bench.forget();
    bench.silence();
    bench.run(10 * RECHECK_SILENT);
    assert!(bench.sent.is_empty());
}

#[test]
fn an_answer_for_the_dead_from_the_switch_does_not_count() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(PEER);
    bench.run(ms(400));
    assert!(bench.machine.answers(), "the unicast requests went unanswered");
    assert_eq!(bench.probes().iter().filter(|(_, to)| *to == Some(PEER)).count(), 2);
}

#[test]
fn a_restarted_node_that_is_standby_now_claims_nothing() {
    let mut bench = Bench::new(Some(1));
    bench.order(Role::Standby, 2);
    bench.run(ms(60_000));
    assert!(bench.sent.is_empty());
}

#[test]
fn a_foreign_host_that_answers_blocks_the_address_after_its_mac_stayed_unknown() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(STRANGER);
    bench.run(ms(10));
    bench.answer_from(STRANGER);
    assert_eq!(bench.reports.last().unwrap().conflict_mac, Some(STRANGER), "said at once");
    bench.run(ms(5_000));
    let last = bench.reports.last().unwrap();
    assert_eq!((last.state, last.conflict_mac), (ClaimState::Blocked, Some(STRANGER)));
    bench.run(RETRY_BLOCKED - ms(6_000));
    bench.forget();
    // Asked again, slowly; while it answers nothing new is reported.
    bench.run(ms(6_010));
    assert_eq!(bench.probes().len(), 1);
    bench.answer_from(STRANGER);
    bench.run(ms(1));
    bench.answer_from(STRANGER);
    bench.run(ms(1_000));
    assert!(bench.reports.is_empty(), "{:?}", bench.reports);
    // It is gone.
    bench.run(RETRY_BLOCKED + ms(150));
    assert!(bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::Owner]);
}

#[test]
fn an_unknown_mac_that_becomes_a_speakers_does_not_block() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.answer_from(STRANGER);
    bench.run(ms(1));
    bench.answer_from(STRANGER);
    bench.run(ms(2_000));
    bench.peers = peers(&[("own", OWN), ("new", STRANGER)]);
    bench.machine.handle_speakers(bench.now, &bench.peers);
    bench.run(ms(150));
    assert!(bench.machine.answers());
}

#[test]
fn a_foreign_host_that_probes_at_the_same_time_blocks() {
    let mut bench = Bench::new(None);
    bench.order(Role::Primary, 1);
    bench.run(ms(10));
    bench.probe_from(STRANGER);
    bench.run(ms(5_100));
    assert_eq!(bench.states().last(), Some(&ClaimState::Blocked));
}

#[test]
fn an_owner_defends_against_a_foreign_host_once_in_ten_seconds_and_says_whose_mac_it_is() {
    let mut bench = Bench::owner();
    bench.run(ms(10_000));
    bench.forget();
    for _ in 0..15 {
        bench.hear(Operation::Request, true, STRANGER, VIP, CLIENT_IP);
        bench.run(ms(1_000));
        assert!(bench.machine.answers());
    }
    assert_eq!(bench.announcements(), 2);
    let conflicts: Vec<_> = bench.reports.iter().map(|report| (report.state, report.conflict_mac)).collect();
    assert_eq!(conflicts, [(ClaimState::Owner, Some(STRANGER))]);
    // When the rival is silent, every cache is put right once more.
    bench.forget();
    bench.run(RIVAL_SILENT);
    assert_eq!(bench.announcements(), 2);
    assert_eq!(bench.reports.iter().map(|report| report.conflict_mac).collect::<Vec<_>>(), [None]);
}

#[test]
fn an_owner_that_took_a_new_speakers_claim_for_a_strangers_asks_who_holds_the_address_now() {
    let unknown = MacAddr(2, 0, 0, 0, 1, 4);
    let becomes_known = || {
        let mut bench = Bench::owner();
        bench.run(ms(10_000));
        bench.claim_from(unknown);
        assert!(bench.machine.answers(), "a stranger does not get it");
        bench.peers = peers(&[("own", OWN), ("peer", PEER), ("new", unknown)]);
        bench.machine.handle_speakers(bench.now, &bench.peers);
        bench.drain();
        assert!(!bench.machine.answers(), "another speaker's claim was heard");
        bench.run(ms(10));
        bench
    };
    let mut bench = becomes_known();
    bench.answer_from(unknown);
    bench.run(ms(10));
    bench.answer_from(unknown);
    bench.run(ms(1_000));
    assert_eq!(bench.states().last(), Some(&ClaimState::Yielded));
    assert_eq!(bench.machine.held_by(), Some(unknown));
    // It had yielded to our defence: nobody else answers.
    let mut bench = becomes_known();
    bench.run(ms(1_000));
    assert!(bench.machine.answers());
}

#[test]
fn an_owner_that_is_probed_by_a_speaker_announces_anew_at_most_once_a_second() {
    let mut bench = Bench::owner();
    bench.run(ms(10_000));
    bench.forget();
    bench.probe_from(PEER);
    bench.run(ms(75));
    bench.probe_from(PEER);
    bench.run(ms(10));
    assert_eq!(bench.announcements(), 2);
    bench.forget();
    bench.run(ms(20_000));
    bench.forget();
    bench.probe_from(STRANGER);
    bench.run(ms(10));
    assert_eq!(bench.announcements(), 0, "a stranger's probe is answered, not announced against");
}

#[test]
fn a_late_loop_rechecks_only_beyond_the_fence() {
    let mut bench = Bench::owner();
    bench.machine.handle_late_loop(bench.now, ms(499));
    assert!(bench.machine.answers());
    bench.machine.handle_late_loop(bench.now, ms(500));
    assert!(!bench.machine.answers());
    bench.run(ms(150));
    assert!(bench.machine.answers(), "nobody else took over");
}

#[test]
fn of_two_owners_that_claimed_by_themselves_the_better_one_stays() {
    let alone = |rival, role| {
        let mut bench = Bench::owner();
        bench.machine.handle_late_loop(bench.now, ms(600));
        bench.order(role, 1);
        bench.run(ms(150));
        bench.claim_from(rival);
        bench.machine.answers()
    };
    assert!(alone(PEER, Role::Primary), "it comes first in the ranking");
    assert!(alone(LOWER_PEER, Role::Primary), "the rank goes before the MAC address");
}

#[test]
fn after_two_rounds_of_a_tie_the_lower_mac_stays() {
    for (rival, stays) in [(LOWER_PEER, false), (PEER, true)] {
        let mut bench = Bench::owner();
        bench.machine.handle_late_loop(bench.now, ms(600));
        bench.run(ms(150));
        for _ in 0..TIE_ROUNDS {
            bench.claim_from(rival);
            bench.run(ms(100));
            assert!(bench.machine.answers());
        }
        bench.claim_from(rival);
        assert_eq!(bench.machine.answers(), stays, "{rival}");
    }
}

#[test]
fn an_owner_looks_for_second_owners_among_those_who_have_a_part_and_who_had_it_before() {
    let bench = Bench::owner();
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER, PEER]);
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    assert!(bench.machine.rivals(&bench.peers).is_empty(), "it is no owner");
    bench.claim_from(STRANGER);
    bench.machine.handle_order(bench.now, Order { holder: Some(STRANGER), ..order(Role::Standby, 1) });
    bench.silence();
    bench.run(ms(150));
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER, PEER, STRANGER]);
}

#[test]
fn an_owner_announces_against_a_second_one_unless_the_api_names_that_one() {
    let mut bench = Bench::owner();
    bench.run(ms(20_000));
    bench.forget();
    bench.answer_from(PEER);
    bench.run(ms(1));
    assert!(bench.machine.answers());
    assert_eq!(bench.announcements(), 2);
    // A standby that took over while the Primary was paused.
    let mut bench = Bench::new(None);
    bench.order(Role::Standby, 1);
    bench.claim_from(PEER);
    bench.silence();
    bench.run(ms(150));
    bench.answer_from(PEER);
    assert!(bench.machine.answers(), "it may have been under way");
    bench.run(ms(5_000));
    bench.forget();
    bench.answer_from(LOWER_PEER);
    assert!(bench.machine.answers(), "neither is named, and this one ranks first");
    bench.run(ms(5_000));
    bench.forget();
    bench.answer_from(PEER);
    assert!(!bench.machine.answers());
    assert_eq!(
        bench.sent.iter().map(|(_, message)| *message).collect::<Vec<_>>(),
        [Message::Probe { vip: VIP, to: None }]
    );
    assert_eq!(bench.states(), [ClaimState::Yielded]);
    assert_eq!(bench.machine.held_by(), Some(PEER));
}

#[test]
fn what_answers_on_after_three_announcements_is_reported_and_looked_at_once_a_minute() {
    let mut bench = Bench::owner();
    bench.run(ms(20_000));
    bench.forget();
    for _ in 0..3 {
        bench.answer_from(PEER);
        bench.run(ms(250));
    }
    assert_eq!(bench.announcements(), 12, "three bursts, each with one repeat before the next");
    assert!(bench.reports.is_empty());
    bench.answer_from(PEER);
    let last = bench.reports.last().unwrap();
    assert_eq!((last.state, last.conflict_mac), (ClaimState::Owner, Some(PEER)));
    assert!(last.reason.contains("IPVS"), "{}", last.reason);
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER]);
    for _ in 0..3 {
        bench.run(ms(20_000));
        bench.forget();
        bench.run(ms(40_500));
        assert_eq!(bench.probes().len(), 1, "once a minute");
        bench.answer_from(PEER);
        bench.run(ms(100));
        assert!(bench.reports.is_empty() && bench.announcements() == 0);
    }
    bench.forget();
    bench.run(ms(65_000));
    assert_eq!(bench.reports.iter().map(|report| report.conflict_mac).collect::<Vec<_>>(), [None]);
    assert_eq!(bench.machine.rivals(&bench.peers), [LOWER_PEER, PEER]);
}

#[test]
fn who_was_the_owner_when_it_restarted_or_lost_its_link_rechecks_whatever_its_role() {
    let mut bench = Bench::new(None);
    let last_claim = LastClaim { epoch: epoch(1), owned: true };
    bench.machine = Owner::new(VIP, OWN, Some(last_claim), Ok(()));
    bench.order(Role::Standby, 1);
    bench.run(ms(150));
    assert!(bench.machine.answers(), "it had taken over, and the controller does not know yet");
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.run(ms(150));
    assert!(bench.machine.answers());
    bench.run(ms(2_000));
    bench.claim_from(PEER);
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.run(ms(150));
    assert!(!bench.machine.answers(), "it had yielded");
}

#[test]
fn a_lost_link_gives_up_and_a_link_that_is_back_is_probed_first() {
    let mut bench = Bench::owner();
    bench.machine.handle_link(bench.now, Err(Arc::from("it has no link")), OWN);
    bench.drain();
    assert!(!bench.machine.answers());
    assert_eq!(bench.states(), [ClaimState::LinkDown]);
    bench.run(ms(1_000));
    assert_eq!(bench.announcements(), 0);
    bench.machine.handle_link(bench.now, Ok(()), OWN);
    bench.run(ms(150));
    assert!(bench.machine.answers());
    assert_eq!(bench.probes().len(), 2);
}

#[test]
fn a_new_mac_is_probed_and_announced() {
    let mut bench = Bench::owner();
    bench.machine.handle_link(bench.now, Ok(()), MacAddr(2, 0, 0, 0, 1, 0xee));
    assert!(!bench.machine.answers());
    bench.run(ms(150));
    assert!(bench.machine.answers() && bench.announcements() == 2);
}

#[test]
fn a_refresh_is_one_announcement_of_an_owner() {
    let mut bench = Bench::owner();
    bench.run(ms(10_000));
    bench.forget();
    bench.machine.handle_refresh();
    bench.drain();
    assert_eq!(bench.announcements(), 1);
    bench.claim_from(PEER);
    bench.machine.handle_refresh();
    bench.drain();
    assert_eq!(bench.announcements(), 1);
}

mod random {
    use super::*;
    use proptest::prelude::*;

    #[derive(Clone, Debug)]
    enum Input {
        Order(Role, i64),
        Claim(MacAddr),
        Answer(MacAddr),
        Probe(MacAddr),
        Link(bool),
        Late(u64),
        Silence,
        Refresh,
        Run(u64),
    }

    fn input() -> impl Strategy<Value = Input> {
        let mac = || prop_oneof![Just(PEER), Just(LOWER_PEER), Just(STRANGER)];
        let role = prop_oneof![Just(Role::Primary), Just(Role::Standby), Just(Role::Leaving)];
        prop_oneof![
            2 => (role, 1..4i64).prop_map(|(role, placement)| Input::Order(role, placement)),
            2 => mac().prop_map(Input::Claim),
            1 => mac().prop_map(Input::Answer),
            1 => mac().prop_map(Input::Probe),
            1 => any::<bool>().prop_map(Input::Link),
            1 => (0..700u64).prop_map(Input::Late),
            1 => Just(Input::Refresh),
            1 => Just(Input::Silence),
            4 => (0..3_000u64).prop_map(Input::Run),
        ]
    }

    proptest! {
        /// The two promises of the module's head, for any history.
        #[test]
        fn the_vip_is_a_sender_address_only_while_owned(inputs in proptest::collection::vec(input(), 0..60)) {
            let mut bench = Bench::new(None);
            for input in inputs {
                bench.forget();
                let owned_before = bench.machine.answers();
                let mut may_own = owned_before;
                match input.clone() {
                    Input::Order(role, placement) => bench.order(role, placement),
                    Input::Claim(mac) => bench.claim_from(mac),
                    Input::Answer(mac) => bench.answer_from(mac),
                    Input::Probe(mac) => bench.probe_from(mac),
                    Input::Link(up) => {
                        let link = if up { Ok(()) } else { Err(Arc::from("it has no link")) };
                        bench.machine.handle_link(bench.now, link, OWN);
                    }
                    Input::Late(gap) => bench.machine.handle_late_loop(bench.now, ms(gap)),
                    Input::Refresh => bench.machine.handle_refresh(),
                    Input::Silence => bench.silence(),
                    Input::Run(time) => {
                        bench.run(ms(time));
                        may_own = true;
                    }
                }
                bench.drain();
                prop_assert!(may_own || !bench.machine.answers(), "only time makes an owner: {:?}", input);
                if !owned_before && !bench.machine.answers() {
                    prop_assert_eq!(bench.announcements(), 0, "{:?}", input);
                }
                prop_assert!(bench.machine.poll_timeout().is_none_or(|at| at + ms(1) > bench.now), "a timer was missed");
            }
        }
    }
}
