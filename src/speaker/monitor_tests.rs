use super::*;
use std::net::Ipv4Addr;

const OWNER: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const OTHER: MacAddr = MacAddr(2, 0, 0, 0, 1, 2);
const STANDARD: Duration = Duration::from_millis(200);

fn vip(number: u8) -> IpAddr {
    IpAddr::V4(Ipv4Addr::new(192, 0, 2, number))
}

fn target(rank: u32) -> Option<Target> {
    Some(Target { owner: OWNER, interval: STANDARD, rank })
}

/// A monitor with a clock, and an owner that answers for the addresses that it holds.
struct Bench {
    start: Instant,
    now: Instant,
    monitor: Monitor,
    answered: BTreeSet<IpAddr>,
    asked: Vec<(u128, IpAddr)>,
    silent: Vec<(u128, IpAddr)>,
}

impl Bench {
    fn new(vips: u8, rank: u32) -> Self {
        let start = Instant::now();
        let mut monitor = Monitor::default();
        for number in 1..=vips {
            monitor.set(start, vip(number), target(rank));
        }
        monitor.handle_speaker_heard(OWNER);
        let answered = (1..=vips).map(vip).collect();
        Self { start, now: start, monitor, answered, asked: Vec::new(), silent: Vec::new() }
    }

    fn milliseconds(&self) -> u128 {
        (self.now - self.start).as_millis()
    }

    fn tick(&mut self) {
        self.monitor.handle_tick(self.now);
        while let Some(output) = self.monitor.poll_output() {
            match output {
                Output::Ask { vip, to } => {
                    self.asked.push((self.milliseconds(), vip));
                    if self.answered.contains(&vip) {
                        self.monitor.handle_answer(self.now, to, vip, STANDARD);
                    }
                }
                Output::Silent { vip } => self.silent.push((self.milliseconds(), vip)),
            }
        }
    }

    fn run(&mut self, milliseconds: u64) {
        let end = self.now + Duration::from_millis(milliseconds);
        while let Some(at) = self.monitor.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.tick();
        }
        self.now = end;
    }
}

#[test]
fn one_request_in_each_interval_whatever_the_number_of_addresses() {
    let mut bench = Bench::new(50, 0);
    bench.run(9_999);
    assert_eq!(bench.asked.len(), 50);
    assert_eq!(bench.asked.iter().map(|(_, vip)| *vip).collect::<BTreeSet<_>>().len(), 50, "they take turns");
    assert!(bench.asked.windows(2).all(|pair| pair[1].0 - pair[0].0 == 200));
    assert!(bench.silent.is_empty());
    assert_eq!(bench.monitor.streams(), 1);
}

#[test]
fn a_silent_owner_is_told_after_three_intervals_and_the_time_of_those_who_come_first() {
    for (rank, expected) in [(0, 1_600), (1, 1_700), (2, 1_800)] {
        let mut bench = Bench::new(3, rank);
        bench.run(1_100);
        bench.answered.clear();
        bench.run(2_000);
        assert_eq!(bench.silent, [(expected, vip(1)), (expected, vip(2)), (expected, vip(3))]);
        assert_eq!(bench.monitor.poll_timeout(), None, "there is nobody left to watch");
    }
}

#[test]
fn an_owner_that_answers_again_in_time_is_not_silent() {
    let mut bench = Bench::new(3, 0);
    bench.run(1_100);
    let held = std::mem::take(&mut bench.answered);
    bench.run(299);
    bench.answered = held;
    bench.run(10_000);
    assert!(bench.silent.is_empty(), "{:?}", bench.silent);
}

#[test]
fn one_address_that_goes_unanswered_is_asked_for_again_at_once_and_told_alone() {
    let mut bench = Bench::new(5, 0);
    bench.run(900);
    bench.answered.remove(&vip(2));
    bench.run(2_000);
    let of_two: Vec<u128> =
        bench.asked.iter().filter(|(at, asked)| *at > 900 && *asked == vip(2)).map(|(at, _)| *at).collect();
    assert_eq!(of_two, [1_200, 1_400, 1_600, 1_800]);
    assert_eq!(bench.silent, [(1_800, vip(2))]);
    bench.run(10_000);
    assert_eq!(bench.silent.len(), 1, "the others are answered");
    // Who comes first has its time.
    let mut second = Bench::new(5, 1);
    second.run(900);
    second.answered.remove(&vip(2));
    second.run(2_000);
    assert_eq!(second.silent, [(1_900, vip(2))]);
}

#[test]
fn a_lost_request_for_one_address_is_no_silence() {
    let mut bench = Bench::new(5, 0);
    bench.run(900);
    bench.answered.remove(&vip(2));
    bench.run(400);
    bench.answered.insert(vip(2));
    bench.run(10_000);
    assert!(bench.silent.is_empty());
}

#[test]
fn on_a_nic_that_heard_no_speaker_nobody_is_told_silent() {
    let mut bench = Bench::new(3, 0);
    bench.run(1_100);
    bench.monitor.handle_link_lost();
    bench.answered.clear();
    bench.run(10_000);
    assert!(bench.silent.is_empty());
    bench.monitor.handle_speaker_heard(OWNER);
    bench.run(1_000);
    assert_eq!(bench.silent.len(), 3);
}

#[test]
fn a_standby_that_stood_still_itself_does_not_blame_the_owner() {
    let mut bench = Bench::new(3, 0);
    bench.run(1_100);
    bench.now += Duration::from_secs(12);
    bench.tick();
    assert_eq!(bench.monitor.unheard().count(), 0, "nor does it say that it cannot hear it");
    bench.run(5_000);
    assert!(bench.silent.is_empty(), "{:?}", bench.silent);
}

#[test]
fn classes_and_owners_are_watched_apart() {
    let mut bench = Bench::new(2, 0);
    bench.monitor.set(bench.now, vip(3), Some(Target { owner: OTHER, interval: STANDARD, rank: 0 }));
    let fast = Duration::from_millis(50);
    bench.monitor.set(bench.now, vip(4), Some(Target { owner: OWNER, interval: fast, rank: 0 }));
    assert_eq!(bench.monitor.streams(), 3);
    // Of the slow class of the same owner, answers say nothing about the quick one.
    bench.run(1_000);
    let told: BTreeSet<IpAddr> = bench.silent.iter().map(|(_, vip)| *vip).collect();
    assert_eq!(told, BTreeSet::from([vip(3), vip(4)]));
    assert_eq!(bench.silent.iter().find(|(_, told)| *told == vip(4)).map(|(at, _)| *at), Some(150));
}

#[test]
fn an_address_that_goes_to_another_owner_starts_anew() {
    let mut bench = Bench::new(1, 0);
    bench.run(1_100);
    bench.answered.clear();
    bench.run(400);
    bench.monitor.set(bench.now, vip(1), Some(Target { owner: OTHER, interval: STANDARD, rank: 0 }));
    bench.run(500);
    assert!(bench.silent.is_empty());
    bench.run(200);
    assert_eq!(bench.silent.len(), 1);
    bench.monitor.set(bench.now, vip(1), None);
    assert_eq!((bench.monitor.streams(), bench.monitor.poll_timeout()), (0, None));
}

#[test]
fn who_is_never_heard_is_named_until_it_is_heard_or_long_past() {
    let mut bench = Bench::new(2, 0);
    bench.monitor.handle_link_lost();
    bench.answered.clear();
    let unheard = |bench: &Bench| bench.monitor.unheard().collect::<Vec<_>>();
    bench.run(4_900);
    assert!(unheard(&bench).is_empty());
    bench.run(300);
    assert_eq!(unheard(&bench), [OWNER]);
    assert!(bench.silent.is_empty(), "it may sit on another segment");
    bench.monitor.handle_speaker_heard(OTHER);
    assert_eq!(unheard(&bench), [OWNER], "that was another one");
    bench.monitor.handle_speaker_heard(OWNER);
    assert!(unheard(&bench).is_empty());

    bench.monitor.handle_link_lost();
    bench.run(400);
    assert_eq!(unheard(&bench), [OWNER], "asked all the while");
    for number in 1..=2 {
        bench.monitor.set(bench.now, vip(number), None);
    }
    bench.now += UNHEARD_FOR - Duration::from_secs(1);
    bench.tick();
    assert_eq!(unheard(&bench), [OWNER], "nobody asks it any more");
    bench.now += Duration::from_secs(2);
    bench.tick();
    assert!(unheard(&bench).is_empty());
}
