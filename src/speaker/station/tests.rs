use super::*;
use std::net::{Ipv4Addr, Ipv6Addr};

use crate::{
    api::{ClaimState, Role},
    speaker::{
        owner::{Epoch, Ranked, Timing},
        wire::{AnnouncementForm, Operation},
    },
};

const OWN: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const PEER: MacAddr = MacAddr(2, 0, 0, 0, 1, 2);

fn vip(index: u32) -> IpAddr {
    IpAddr::V4(Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 0, 0, 0)) + index))
}

fn peers() -> Peers {
    let nic = |node: &str, mac| (Arc::from(node), Arc::from("eth0"), mac);
    Peers::new(Arc::from("own"), [nic("own", OWN), nic("peer", PEER)])
}

fn snapshot<const N: usize>(parts: [(IpAddr, Part); N]) -> Snapshot {
    parts.into_iter().collect::<Snapshot>().with_peers(Arc::new(peers()))
}

fn primary(vip: IpAddr) -> Assigned {
    let order = Order {
        epoch: Epoch { uid: Arc::from("u"), placement: 1 },
        role: Role::Primary,
        node: Arc::from("own"),
        ranking: Arc::from([Ranked { node: Arc::from("own"), nic: Arc::from("eth0") }]),
        holder: None,
        timing: Timing::default(),
    };
    Assigned { vip, nic: Arc::from("eth0"), order, last_claim: None }
}

/// A station with a clock. Effects are kept with their time, in milliseconds.
struct Bench {
    start: Instant,
    now: Instant,
    station: Station,
    effects: Vec<(u128, Effect)>,
}

impl Bench {
    fn new(vips: u32) -> Self {
        let peers = peers();
        let start = Instant::now();
        let station = Station::new(Arc::new(peers), Duration::from_secs(60));
        let mut bench = Self { start, now: start, station, effects: Vec::new() };
        bench.pass(|station, now| {
            station.handle_link(now, &Arc::from("eth0"), Ok(OWN));
            station.handle_change(now, Change::Reset((0..vips).map(|index| primary(vip(index))).collect()));
        });
        bench
    }

    fn pass(&mut self, input: impl FnOnce(&mut Station, Instant)) {
        self.station.handle_wake(self.now);
        input(&mut self.station, self.now);
        self.station.handle_timers(self.now);
        while let Some(effect) = self.station.poll_effect() {
            self.effects.push(((self.now - self.start).as_millis(), effect));
        }
    }

    fn run(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.station.poll_timeout(self.now).filter(|at| *at <= end) {
            assert!(at > self.now, "the loop would spin");
            self.now = at;
            self.pass(|_, _| {});
        }
        self.now = end;
    }

    /// Lets time pass in which the peer answers what it is asked.
    fn answer_requests_for(&mut self, time: Duration) {
        let end = self.now + time;
        while let Some(at) = self.station.poll_timeout(self.now).filter(|at| *at <= end) {
            self.now = at;
            let seen = self.effects.len();
            self.pass(|_, _| {});
            let asked: Vec<IpAddr> = self.effects[seen..]
                .iter()
                .filter_map(|(_, effect)| match effect {
                    Effect::Send { message: Message::Request { vip, .. }, .. } => Some(*vip),
                    _ => None,
                })
                .collect();
            for sender_ip in asked {
                let answer = Packet {
                    operation: Operation::Reply,
                    broadcast: false,
                    sender_mac: PEER,
                    sender_ip,
                    target_ip: IpAddr::from([192, 0, 2, 11]),
                };
                self.pass(|station, now| station.handle_packet(now, "eth0", &answer));
            }
        }
        self.now = end;
    }

    /// Times of the request form of the announcements.
    fn announcements(&self) -> Vec<(u128, IpAddr)> {
        let announcement = |(at, effect): &(u128, Effect)| match effect {
            Effect::Send { message: Message::Announcement { vip, form: AnnouncementForm::Request }, .. } => {
                Some((*at, *vip))
            }
            _ => None,
        };
        self.effects.iter().filter_map(announcement).collect()
    }

    fn claim_by_peer(&mut self, of: IpAddr) {
        let packet =
            Packet { operation: Operation::Request, broadcast: true, sender_mac: PEER, sender_ip: of, target_ip: of };
        self.pass(|station, now| station.handle_packet(now, "eth0", &packet));
    }
}

#[test]
fn the_filter_and_the_snapshot_come_before_the_frames() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_millis(150));
    let position = |wanted: fn(&Effect) -> bool| bench.effects.iter().position(|(_, effect)| wanted(effect)).unwrap();
    let watch = position(|effect| matches!(effect, Effect::Watch { vips, .. } if vips.len() == 1));
    let probe = position(|effect| matches!(effect, Effect::Send { message: Message::Probe { .. }, .. }));
    let owned = snapshot([(vip(0), Part::Owned { fence: Timing::default().fence })]);
    let answers = bench
        .effects
        .iter()
        .position(|(_, effect)| matches!(effect, Effect::Publish { snapshot, .. } if *snapshot == owned))
        .unwrap();
    let announced = position(|effect| matches!(effect, Effect::Send { message: Message::Announcement { .. }, .. }));
    assert!(watch < probe && probe < answers && answers < announced);
}

#[test]
fn many_vips_are_paced_and_all_are_announced_once_before_any_twice() {
    let mut bench = Bench::new(2_000);
    bench.run(Duration::from_secs(60));
    let announced = bench.announcements();
    let mut firsts = BTreeSet::new();
    let first_repeat = announced.iter().position(|(_, vip)| !firsts.insert(*vip)).unwrap();
    // While the last wait for answers to their probes, the pace has room for repeats; nobody waits for one.
    assert!(first_repeat > 1_900, "{first_repeat}");
    assert_eq!(bench.station.owned(), 2_000);
    let sent: Vec<u128> = bench
        .effects
        .iter()
        .filter(|(_, effect)| match effect {
            Effect::Send { message: Message::Announcement { form, .. }, .. } => *form == AnnouncementForm::Request,
            Effect::Send { .. } => true,
            _ => false,
        })
        .map(|(at, _)| *at)
        .collect();
    for (time, at_most) in [(10, 101), (1_000, 5_000)] {
        for (index, at) in sent.iter().enumerate() {
            let before = sent[..=index].iter().filter(|earlier| *earlier + time > *at).count();
            assert!(before <= at_most, "{before} in {time} ms at {at} ms");
        }
    }
    let later = sent.iter().filter(|at| (2_000..4_000).contains(*at)).count();
    assert!(later <= 2_060, "{later}");
    assert!((5..=6).contains(&announced.iter().filter(|(_, announced)| *announced == vip(1_999)).count()));
}

fn standby(vip: IpAddr) -> Assigned {
    let part = primary(vip);
    let ranking = ["peer", "own"].map(|node| Ranked { node: Arc::from(node), nic: Arc::from("eth0") }).into();
    let order = Order { role: Role::Standby, ranking, holder: Some(PEER), ..part.order.clone() };
    Assigned { order, ..part }
}

/// A standby of so many addresses of one node, which answers until it is told not to.
fn watching(vips: u32) -> Bench {
    let mut bench = Bench::new(0);
    let nic = Arc::from("eth0");
    bench.pass(|station, now| {
        station.handle_link(now, &nic, Ok(OWN));
        station.handle_addresses(&nic, vec![vip(1), IpAddr::from([192, 0, 2, 11])]);
        station.handle_change(now, Change::Reset((0..vips).map(|index| standby(vip(index))).collect()));
    });
    bench.claim_by_peer(vip(0));
    bench
}

#[test]
fn a_standby_asks_the_owner_by_its_own_name_once_in_each_interval() {
    let mut bench = watching(1_000);
    bench.answer_requests_for(Duration::from_secs(10));
    let requests: Vec<_> = bench
        .effects
        .iter()
        .filter_map(|(_, effect)| match effect {
            Effect::Send { message: Message::Request { to, from, .. }, .. } => Some((*to, *from)),
            Effect::Send { message, .. } => panic!("{message:?}"),
            _ => None,
        })
        .collect();
    assert!((50..=51).contains(&requests.len()), "{}", requests.len());
    // Its first address is one of the virtual IPs.
    assert!(requests.iter().all(|asked| *asked == (PEER, IpAddr::from([192, 0, 2, 11]))));
    assert_eq!(bench.station.streams(), 1);
}

#[test]
fn an_owner_that_is_not_heard_is_told_once_and_told_when_it_is() {
    let mut bench = Bench::new(0);
    let nic: Arc<str> = Arc::from("eth0");
    bench.pass(|station, now| {
        station.handle_link(now, &nic, Ok(OWN));
        station.handle_change(now, Change::Reset(vec![standby(vip(0))]));
    });
    bench.run(Duration::from_secs(30));
    let told = |bench: &Bench| -> Vec<Vec<Arc<str>>> {
        let unheard = bench.effects.iter().filter_map(|(_, effect)| match effect {
            Effect::Unheard { nodes, .. } => Some(nodes.clone()),
            _ => None,
        });
        unheard.collect()
    };
    assert_eq!(told(&bench), [vec![Arc::from("peer")]]);
    bench.claim_by_peer(vip(0));
    assert_eq!(told(&bench)[1..], [vec![]]);
}

#[test]
fn an_ipv6_owner_is_asked_from_the_link_local_address_or_without_one() {
    let vip: IpAddr = "2001:db8:1::64".parse().unwrap();
    let own = ["192.0.2.11", "2001:db8:1::11", "fe80::11"];
    for (addresses, expected) in [(&own[..], "fe80::11"), (&own[..2], "::"), (&[], "::")] {
        let mut bench = Bench::new(0);
        let nic = Arc::from("eth0");
        bench.pass(|station, now| {
            station.handle_link(now, &nic, Ok(OWN));
            station.handle_change(now, Change::Reset(vec![standby(vip)]));
            station.handle_addresses(&nic, addresses.iter().map(|address| address.parse().unwrap()).collect());
        });
        bench.claim_by_peer(vip);
        bench.run(Duration::from_millis(100));
        let from = bench.effects.iter().find_map(|(_, effect)| match effect {
            Effect::Send { message: Message::Request { from, .. }, .. } => Some(*from),
            _ => None,
        });
        assert_eq!(from, Some(expected.parse().unwrap()), "{addresses:?}");
    }
}

#[test]
fn a_thousand_addresses_of_a_dead_node_are_back_within_a_second_and_a_half() {
    let mut bench = watching(1_000);
    bench.answer_requests_for(Duration::from_secs(3));
    let died = (bench.now - bench.start).as_millis();
    bench.effects.clear();
    bench.run(Duration::from_millis(1_500));
    assert_eq!(bench.station.owned(), 1_000);
    let sent = bench.effects.iter().filter(|(_, effect)| matches!(effect, Effect::Send { .. })).map(|(at, _)| *at);
    let sent: Vec<u128> = sent.collect();
    for at in died / 10..(died + 1_500) / 10 {
        let frames = sent.iter().filter(|sent| **sent / 10 == at).count();
        assert!(frames <= 210, "{frames} frames in 10 ms");
    }
}

#[test]
fn of_the_addresses_of_a_dead_node_the_first_are_back_before_the_last_are_probed_for() {
    let mut bench = watching(1_000);
    bench.answer_requests_for(Duration::from_secs(3));
    bench.effects.clear();
    bench.run(Duration::from_millis(1_500));
    let mut asked = BTreeMap::new();
    for (at, effect) in &bench.effects {
        if let Effect::Send { message: Message::Probe { vip, .. }, .. } = effect {
            asked.entry(*vip).or_insert(*at);
        }
    }
    let (first, last) = (asked.values().min().unwrap(), asked.values().max().unwrap());
    let back = bench.announcements();
    let meanwhile = back.iter().filter(|(at, _)| at < last).count();
    assert!(meanwhile > 400, "{meanwhile} were back when the last was probed for");
    // Two probes, and the pace of the fifty probes at once and of those that follow.
    assert!(back[0].0 <= first + 160, "the first was back {} ms after its probe", back[0].0 - first);
}

#[test]
fn without_a_part_in_it_the_address_is_not_answered_from_the_same_pass_on() {
    let mut bench = Bench::new(2);
    bench.run(Duration::from_secs(1));
    assert_eq!(bench.station.owned(), 2);
    bench.effects.clear();
    bench.pass(|station, now| station.handle_change(now, Change::Remove(vip(0))));
    assert_eq!(bench.station.owned(), 1);
    let published = bench.effects.iter().any(|(_, effect)| {
        matches!(effect, Effect::Publish { snapshot: published, .. } if *published == snapshot([(vip(1), Part::Owned { fence: Timing::default().fence })]))
    });
    assert!(published, "{:?}", bench.effects);
    bench.effects.clear();
    bench.pass(|station, now| station.handle_change(now, Change::Reset(Vec::new())));
    let closed = Effect::Watch { nic: Arc::from("eth0"), vips: Vec::new() };
    assert!(bench.effects.iter().any(|(_, effect)| *effect == closed));
    bench.effects.clear();
    bench.run(Duration::from_secs(600));
    assert!(bench.effects.is_empty(), "{:?}", bench.effects);
}

/// The first address, claimed by this one.
fn claim_of(sender_mac: MacAddr) -> Packet {
    Packet { operation: Operation::Request, broadcast: true, sender_mac, sender_ip: vip(0), target_ip: vip(0) }
}

#[test]
fn what_was_queued_before_it_yielded_is_not_sent() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(30));
    bench.effects.clear();
    bench.pass(|station, now| {
        station.handle_packet(now, "eth0", &claim_of(MacAddr(2, 0, 0, 0, 0xff, 1)));
        station.handle_packet(now, "eth0", &claim_of(PEER));
    });
    assert!(bench.announcements().is_empty());
}

#[test]
fn nothing_is_reported_of_an_address_that_was_taken_away_in_the_same_pass() {
    let mut bench = Bench::new(2);
    bench.run(Duration::from_secs(1));
    bench.effects.clear();
    bench.pass(|station, now| {
        station.handle_link(now, &Arc::from("eth0"), Err(Arc::from("no link")));
        station.handle_change(now, Change::Remove(vip(0)));
    });
    let reported = bench.effects.iter().filter_map(|(_, effect)| match effect {
        Effect::Report { vip, .. } => Some(*vip),
        _ => None,
    });
    assert_eq!(reported.collect::<Vec<_>>(), [vip(1)]);
}

#[test]
fn what_is_announced_by_a_loop_that_is_held_up_in_the_middle_of_a_pass_is_too_late() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(10));
    let announcement = Message::Announcement { vip: vip(0), form: AnnouncementForm::Request };
    let probe = Message::Probe { vip: vip(0), to: None };
    bench.pass(|_, _| {});
    let fence = Timing::default().fence;
    let late = |milliseconds| bench.now + fence - Duration::from_millis(1) + Duration::from_millis(milliseconds);
    assert!(!bench.station.is_too_late(late(0), &announcement));
    assert!(bench.station.is_too_late(late(1), &announcement));
    assert!(!bench.station.is_too_late(late(1), &probe));
    // The next pass notices.
    bench.now = late(1);
    bench.pass(|_, _| {});
    assert_eq!(bench.station.owned(), 0);
}

#[test]
fn what_was_queued_before_its_part_was_taken_away_is_not_sent() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(30));
    bench.effects.clear();
    bench.pass(|station, now| {
        station.handle_packet(now, "eth0", &claim_of(MacAddr(2, 0, 0, 0, 0xff, 1)));
        station.handle_change(now, Change::Remove(vip(0)));
    });
    assert!(bench.announcements().is_empty());
}

/// Rule 11: its own last claim, read from the status, tells a restart from an order.
#[test]
fn what_it_claimed_before_it_restarted_is_no_new_order() {
    let mut bench = Bench::new(0);
    let claimed = LastClaim { epoch: primary(vip(0)).order.epoch, owned: true };
    let assigned = Assigned { last_claim: Some(claimed), ..primary(vip(0)) };
    bench.pass(|station, now| {
        station.handle_link(now, &Arc::from("eth0"), Ok(OWN));
        station.handle_change(now, Change::Reset(vec![assigned]));
    });
    assert_eq!(bench.station.to_hand_over(), 1, "it rechecks");
    bench.claim_by_peer(vip(0));
    // Long enough to claim, and too short to doubt the peer.
    bench.run(Duration::from_millis(300));
    assert_eq!(bench.station.owned(), 0, "a peer took over meanwhile");
    assert!(bench.announcements().is_empty());
}

/// Rule 7: claims name the MAC address by which the node answers now.
#[test]
fn with_a_new_mac_the_claim_is_reported_with_that_one() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(10));
    bench.effects.clear();
    let new = MacAddr(2, 0, 0, 0, 1, 0xee);
    bench.pass(|station, now| station.handle_link(now, &Arc::from("eth0"), Ok(new)));
    bench.run(Duration::from_secs(1));
    let reported = bench.effects.iter().filter_map(|(_, effect)| match effect {
        Effect::Report { mac, report, .. } => Some((report.state, *mac)),
        _ => None,
    });
    let expected = [ClaimState::Probing, ClaimState::Owner].map(|state| (state, Some(new)));
    assert_eq!(reported.collect::<Vec<_>>(), expected);
}

#[test]
fn a_loop_that_was_late_is_mute_in_the_pass_that_notices() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.station.owned(), 1);
    bench.now += Duration::from_millis(501);
    bench.pass(|_, _| {});
    assert_eq!(bench.station.owned(), 0);
    bench.run(Duration::from_millis(200));
    assert_eq!(bench.station.owned(), 1);
}

#[test]
fn an_owner_that_only_rechecks_still_has_something_to_hand_over() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(10));
    bench.now += Duration::from_secs(1);
    bench.pass(|_, _| {});
    assert_eq!((bench.station.owned(), bench.station.to_hand_over()), (0, 1));
    bench.run(Duration::from_secs(1));
    assert_eq!((bench.station.owned(), bench.station.to_hand_over()), (1, 1));
    bench.claim_by_peer(vip(0));
    assert_eq!((bench.station.owned(), bench.station.to_hand_over()), (1, 1), "it claimed by itself just now");
    bench.run(Duration::from_secs(2));
    bench.claim_by_peer(vip(0));
    assert_eq!((bench.station.owned(), bench.station.to_hand_over()), (0, 0));
}

#[test]
fn an_owner_wakes_the_loop_several_times_within_the_fence() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(10));
    let next = bench.station.poll_timeout(bench.now).unwrap();
    assert!(next - bench.now <= Timing::default().fence / 2);
    bench.claim_by_peer(vip(0));
    let next = bench.station.poll_timeout(bench.now).unwrap();
    assert_eq!(next - bench.now, Timing::default().interval, "a speaker that owns nothing only watches");
}

#[test]
fn one_refresh_a_minute_for_all_of_a_nic() {
    let mut bench = Bench::new(3);
    bench.run(Duration::from_secs(630));
    bench.effects.clear();
    bench.run(Duration::from_secs(180));
    let announced = bench.announcements();
    assert_eq!(announced.len(), 3);
    assert_eq!(announced.iter().map(|(_, vip)| *vip).collect::<BTreeSet<_>>().len(), 3, "they take turns");
}

#[test]
fn a_nic_that_was_opened_anew_may_have_missed_claims_and_rechecks() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(10));
    bench.effects.clear();
    bench.pass(|station, now| station.handle_link(now, &Arc::from("eth0"), Ok(OWN)));
    assert_eq!(bench.station.owned(), 0);
    bench.run(Duration::from_secs(1));
    assert_eq!(bench.station.owned(), 1);
    assert_eq!(bench.announcements().len(), 2);
}

#[test]
fn a_nic_that_cannot_announce_ipv6_goes_on_with_ipv4() {
    let (ipv4, ipv6) = (vip(0), IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x64)));
    let mut bench = Bench::new(1);
    bench.pass(|station, now| station.handle_change(now, Change::Apply(primary(ipv6))));
    bench.run(Duration::from_secs(5));
    assert!(bench.station.answers(ipv4) && bench.station.answers(ipv6));
    let eth0 = Arc::from("eth0");
    let tell = |bench: &mut Bench, state: Result<(), &str>| {
        bench.effects.clear();
        bench.pass(|station, now| station.handle_ipv6(now, &eth0, state.map_err(Arc::from)));
    };

    tell(&mut bench, Err("IPv6 is turned off on it"));
    assert!(bench.station.answers(ipv4) && !bench.station.answers(ipv6));
    let published = snapshot([(ipv4, Part::Owned { fence: Timing::default().fence }), (ipv6, Part::Watched)]);
    let published = Effect::Publish { nic: eth0.clone(), snapshot: published };
    assert!(bench.effects.iter().any(|(_, effect)| *effect == published), "{:?}", bench.effects);
    let said = |(_, effect): &(u128, Effect)| match effect {
        Effect::Report { vip, report, .. } => Some((*vip, report.state, report.reason.clone())),
        _ => None,
    };
    let said: Vec<_> = bench.effects.iter().filter_map(said).collect();
    assert_eq!(said.len(), 1);
    assert!(said[0].0 == ipv6 && said[0].1 == ClaimState::LinkDown && said[0].2.contains("turned off"), "{said:?}");
    // A link that comes back does not bring it back.
    bench.pass(|station, now| station.handle_link(now, &eth0, Ok(OWN)));
    bench.run(Duration::from_secs(5));
    assert!(bench.station.answers(ipv4) && !bench.station.answers(ipv6));

    for _ in 0..2 {
        // When it can, and when its socket was opened anew: claims may have gone unheard.
        tell(&mut bench, Ok(()));
        assert!(bench.station.answers(ipv4) && !bench.station.answers(ipv6));
        bench.run(Duration::from_secs(5));
        assert!(bench.station.answers(ipv4) && bench.station.answers(ipv6));
    }
}

#[test]
fn an_address_that_moves_to_another_interface_is_claimed_there() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_secs(1));
    bench.effects.clear();
    bench.pass(|station, now| {
        station.handle_link(now, &Arc::from("eth1"), Ok(PEER));
        station.handle_change(now, Change::Apply(Assigned { nic: Arc::from("eth1"), ..primary(vip(0)) }));
    });
    assert_eq!(bench.station.owned(), 0);
    bench.run(Duration::from_millis(200));
    let owner = bench.effects.iter().find_map(|(_, effect)| match effect {
        Effect::Report { nic, mac, report, .. } if report.state == ClaimState::Owner => Some((nic.clone(), *mac)),
        _ => None,
    });
    assert_eq!(owner, Some((Arc::from("eth1"), Some(PEER))));
}

#[test]
fn a_probe_that_did_not_leave_is_no_silence() {
    let mut bench = Bench::new(2);
    bench.run(Duration::from_millis(20));
    let probes = |bench: &Bench| {
        let is_probe = |effect: &Effect| matches!(effect, Effect::Send { message: Message::Probe { vip: asked, .. }, .. } if *asked == vip(0));
        bench.effects.iter().filter(|(_, effect)| is_probe(effect)).count()
    };
    assert!(probes(&bench) > 0);
    let before = probes(&bench);
    for _ in 0..20 {
        bench.pass(|station, now| station.handle_unsent(now, vip(0)));
        bench.run(Duration::from_millis(100));
    }
    assert!(!bench.station.answers(vip(0)) && bench.station.answers(vip(1)), "only this one is concerned");
    assert!(probes(&bench) >= before + 19, "it is sent again and again");
    bench.run(Duration::from_secs(1));
    assert!(bench.station.answers(vip(0)));
    // What went well meanwhile is not disturbed.
    let before = bench.effects.len();
    bench.pass(|station, now| station.handle_unsent(now, vip(1)));
    assert_eq!(bench.effects.len(), before);
}

#[test]
fn a_loop_that_stood_still_while_it_asked_claims_nothing_before_it_has_asked_anew() {
    let mut bench = Bench::new(1);
    bench.run(Duration::from_millis(149));
    bench.effects.clear();
    // Another node may have taken over, and its claim wait in a buffer that the receive thread has not read yet.
    bench.now += Duration::from_secs(12);
    bench.pass(|_, _| {});
    bench.run(Duration::from_millis(140));
    assert!(!bench.station.answers(vip(0)));
    let probes = bench
        .effects
        .iter()
        .filter(|(_, effect)| matches!(effect, Effect::Send { message: Message::Probe { .. }, .. }));
    assert_eq!(probes.count(), 2);
    bench.run(Duration::from_millis(20));
    assert!(bench.station.answers(vip(0)));
}

#[test]
fn while_nothing_can_be_heard_nothing_is_claimed() {
    let mut bench = Bench::new(2);
    bench.run(Duration::from_millis(100));
    bench.station.handle_deaf("eth0", true, true);
    bench.run(Duration::from_secs(10));
    assert_eq!(bench.station.owned(), 0);
    // Its receive thread runs again; what it handed over is not all heard.
    bench.station.handle_deaf("eth0", false, false);
    bench.run(Duration::from_millis(20));
    assert_eq!(bench.station.owned(), 0);
    // There was no answer among it.
    bench.station.handle_deaf("eth0", false, true);
    bench.run(Duration::from_millis(20));
    assert_eq!(bench.station.owned(), 2);
}
