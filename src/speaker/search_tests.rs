use super::*;
use std::net::Ipv4Addr;

const PEER: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const OTHER: MacAddr = MacAddr(2, 0, 0, 0, 1, 2);

fn vip(number: u16) -> IpAddr {
    let [high, low] = number.to_be_bytes();
    IpAddr::V4(Ipv4Addr::new(10, 0, high, low))
}

struct Bench {
    start: Instant,
    now: Instant,
    search: Search,
    asked: Vec<(u64, IpAddr, MacAddr)>,
}

impl Bench {
    fn new(vips: u16) -> Self {
        let start = Instant::now();
        let mut search = Search::default();
        for number in 0..vips {
            search.set(start, vip(number), &[PEER]);
        }
        Self { start, now: start, search, asked: Vec::new() }
    }

    fn run(&mut self, milliseconds: u64) {
        let end = self.now + Duration::from_millis(milliseconds);
        while let Some(at) = self.search.poll_timeout().filter(|at| *at <= end) {
            self.now = self.now.max(at);
            self.search.handle_tick(self.now);
            let elapsed = u64::try_from((self.now - self.start).as_millis()).unwrap();
            while let Some(Ask { vip, to }) = self.search.poll_output() {
                self.asked.push((elapsed, vip, to));
            }
        }
        self.now = end;
    }

    fn asked_between(&self, from: u64, until: u64) -> usize {
        self.asked.iter().filter(|(at, _, _)| (from..until).contains(at)).count()
    }
}

#[test]
fn a_peer_is_asked_less_and_less_whatever_the_number_of_addresses() {
    let mut bench = Bench::new(300);
    bench.run(1_000_000);
    assert_eq!(bench.asked_between(0, 10_000), 39);
    assert!((588..=592).contains(&bench.asked_between(10_000, 600_000)));
    assert_eq!(bench.asked_between(700_000, 800_000), 10);
    let different: BTreeSet<IpAddr> = bench.asked.iter().map(|(_, vip, _)| *vip).collect();
    assert_eq!(different.len(), 300, "they take turns");
}

#[test]
fn a_peer_that_watches_is_asked_rarely_and_at_once_when_it_stops() {
    let mut bench = Bench::new(3);
    for round in 0..100 {
        bench.search.handle_watched(bench.now, PEER, vip(round % 3), Duration::from_millis(500));
        bench.run(200);
    }
    assert_eq!(bench.asked_between(500, 20_001), 1, "{:?}", bench.asked);
    bench.run(1_000);
    assert!((3..=4).contains(&bench.asked_between(20_001, 21_000)), "{:?}", bench.asked);
}

#[test]
fn a_peer_that_watches_for_one_address_may_believe_that_it_owns_another() {
    let mut bench = Bench::new(2);
    for _ in 0..40 {
        bench.search.handle_watched(bench.now, PEER, vip(0), Duration::from_millis(500));
        bench.run(200);
    }
    assert!((30..=32).contains(&bench.asked.len()), "{}", bench.asked.len());
    assert!(bench.asked.iter().all(|(_, asked, _)| *asked == vip(1)));
}

#[test]
fn an_answer_leads_to_paced_sweeps_over_all_that_is_shared() {
    let mut bench = Bench::new(500);
    bench.search.set(bench.now, vip(900), &[OTHER]);
    bench.run(600_000);
    bench.asked.clear();
    bench.search.handle_answer(bench.now, PEER, vip(7));
    bench.run(95);
    let first: BTreeSet<IpAddr> = bench.asked.iter().map(|(_, vip, _)| *vip).collect();
    assert_eq!((bench.asked.len(), first.len()), (500, 500));
    for at in 600_000..600_100 {
        assert!(bench.asked_between(at, at + 1) <= 50);
    }
    bench.run(5_000);
    assert!(bench.asked.iter().filter(|(_, _, to)| *to == PEER).count() >= 1_500, "some are lost");
    let of_the_other = |(_, asked, to): &(u64, IpAddr, MacAddr)| (*asked == vip(900)) == (*to == OTHER);
    assert!(bench.asked.iter().all(of_the_other));
}

#[test]
fn a_peer_that_is_heard_again_after_a_silence_is_asked_for_everything() {
    let mut bench = Bench::new(30);
    bench.run(100_000);
    bench.asked.clear();
    bench.search.handle_heard(bench.now, PEER);
    bench.run(1);
    assert_eq!(bench.asked.len(), 30);
    // Not while it is heard all the time, and not of one that watches.
    for _ in 0..100 {
        bench.run(300);
        bench.search.handle_heard(bench.now, PEER);
    }
    assert!(bench.asked.len() < 70, "{}", bench.asked.len());
    bench.asked.clear();
    for number in 0..30 {
        bench.search.handle_watched(bench.now, PEER, vip(number), Duration::from_secs(3));
    }
    bench.run(2_000);
    bench.search.handle_heard(bench.now, PEER);
    bench.run(500);
    assert!(bench.asked.len() <= 1);
}

#[test]
fn what_is_not_owned_any_more_is_not_asked_for() {
    let mut bench = Bench::new(2);
    bench.search.set(bench.now, vip(0), &[]);
    bench.run(5_000);
    assert!(bench.asked.iter().all(|(_, asked, _)| *asked == vip(1)));
    bench.search.set(bench.now, vip(1), &[]);
    assert_eq!(bench.search.poll_timeout(), None);
}

#[test]
fn a_new_address_begins_the_search_anew() {
    let mut bench = Bench::new(1);
    bench.run(700_000);
    bench.asked.clear();
    bench.search.set(bench.now, vip(1), &[PEER]);
    bench.run(1_000);
    assert_eq!(bench.asked.len(), 4);
}
