//! When frames may be sent: the pace of a NIC, and whose turn it is to refresh.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound,
    time::{Duration, Instant},
};

/// So many announcements or probes may leave at once, and then one in this time: no receiver's buffer overflows.
const AT_ONCE: Bucket = Bucket { burst: 50, interval: Duration::from_micros(200) };
/// So many may leave at that pace, and then one in this time. A thousand addresses of a node that died take three thousand.
const IN_THE_LONG_RUN: Bucket = Bucket { burst: 4_000, interval: Duration::from_millis(1) };

/// A burst, and an even pace beyond it.
#[derive(Clone, Copy, Debug)]
pub struct Bucket {
    /// So many at once.
    pub burst: u32,
    /// And then one in this time.
    pub interval: Duration,
}

/// Paces one NIC: four thousand within 0.8 s, then a thousand each second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pacer {
    at_once: Level,
    in_the_long_run: Level,
}

/// How full a [`Bucket`] is: when everything so far would have left at the even pace.
#[derive(Clone, Copy, Debug, Default)]
pub struct Level(Option<Instant>);

impl Pacer {
    /// When the next one may leave; in the past if it may leave now.
    pub fn ready_at(&self, now: Instant) -> Instant {
        self.at_once.ready_at(AT_ONCE, now).max(self.in_the_long_run.ready_at(IN_THE_LONG_RUN, now))
    }

    /// Counts one that leaves now.
    pub fn spend(&mut self, now: Instant) {
        self.at_once.spend(AT_ONCE, now);
        self.in_the_long_run.spend(IN_THE_LONG_RUN, now);
    }
}

impl Level {
    /// When the next one may leave; in the past if it may leave now.
    pub fn ready_at(self, bucket: Bucket, now: Instant) -> Instant {
        self.0.and_then(|even| even.checked_sub(bucket.interval * bucket.burst)).unwrap_or(now)
    }

    /// Counts one that leaves now.
    pub fn spend(&mut self, bucket: Bucket, now: Instant) {
        self.0 = Some(self.0.map_or(now, |even| even.max(now)) + bucket.interval);
    }
}

/// Whose turn it is: one announcement of one virtual IP in each interval keeps the NIC's MAC address in the switches'
/// tables, whatever the number of virtual IPs (a switch forgets after 300 s, some far sooner).
#[derive(Clone, Copy, Debug, Default)]
pub struct Rotation {
    next_at: Option<Instant>,
    last: Option<IpAddr>,
}

impl Rotation {
    /// The set of owned addresses changed.
    pub fn handle_owned(&mut self, now: Instant, interval: Duration, owned: &BTreeSet<IpAddr>) {
        self.next_at = if owned.is_empty() { None } else { Some(self.next_at.unwrap_or(now + interval)) };
    }

    /// The address that is due for a refresh now.
    pub fn take_due(&mut self, now: Instant, interval: Duration, owned: &BTreeSet<IpAddr>) -> Option<IpAddr> {
        if now < self.next_at? {
            return None;
        }
        self.next_at = Some(now + interval);
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        self.last = owned.range((after, Bound::Unbounded)).next().or(owned.first()).copied();
        self.last
    }

    /// When the next refresh is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_at
    }
}

/// So often an address that was claimed not long ago is announced once more, and for so long. Hosts that could not be reached
/// meanwhile, because the LAN was in two parts, believe what was before, and nothing tells when they are back.
const REPEAT: (Duration, Duration) = (Duration::from_secs(10), Duration::from_secs(600));
/// At least this long between two repetitions of one NIC, whatever the number of addresses.
const REPEAT_GAP: Duration = Duration::from_millis(100);

/// The addresses of a NIC that were claimed not long ago, in turn.
#[derive(Clone, Debug, Default)]
pub struct Repetition {
    /// With the time at which each is left to the [`Rotation`].
    until: BTreeMap<IpAddr, Instant>,
    next_at: Option<Instant>,
    last: Option<IpAddr>,
}

impl Repetition {
    /// It was claimed now.
    pub fn add(&mut self, now: Instant, vip: IpAddr) {
        self.until.insert(vip, now + REPEAT.1);
        self.next_at.get_or_insert(now + REPEAT.0);
    }

    /// It is not owned any more.
    pub fn remove(&mut self, vip: IpAddr) {
        self.until.remove(&vip);
        if self.until.is_empty() {
            self.next_at = None;
        }
    }

    /// The address that is due now.
    pub fn take_due(&mut self, now: Instant) -> Option<IpAddr> {
        if now < self.next_at? {
            return None;
        }
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let (vip, until) = self.until.range((after, Bound::Unbounded)).next().or(self.until.first_key_value())?;
        let (vip, is_last) = (*vip, now >= *until);
        self.last = Some(vip);
        self.next_at = Some(now + self.gap());
        if is_last {
            self.remove(vip);
        }
        Some(vip)
    }

    /// When the next one is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.next_at
    }

    fn gap(&self) -> Duration {
        let count = u32::try_from(self.until.len()).unwrap_or(u32::MAX).max(1);
        (REPEAT.0 / count).max(REPEAT_GAP)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_a_thousand_addresses_take_leaves_within_a_second_and_the_rest_at_an_even_pace() {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        let mut sent = Vec::new();
        for millisecond in 0..3_000u32 {
            let now = start + Duration::from_millis(millisecond.into());
            while pacer.ready_at(now) <= now && sent.len() < 100_000 {
                pacer.spend(now);
                sent.push(millisecond);
            }
        }
        let until = |millisecond| sent.partition_point(|at| *at < millisecond);
        assert!((50..=51).contains(&until(1)), "{}", until(1));
        assert!(until(650) >= 3_000, "{}", until(650));
        assert!(until(2_000) - until(1_000) <= 1_020, "{}", until(2_000) - until(1_000));
    }

    #[test]
    fn a_quiet_nic_gets_its_burst_back() {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        for _ in 0..10_000 {
            pacer.spend(start);
        }
        let later = start + Duration::from_secs(20);
        for _ in 0..50 {
            assert!(pacer.ready_at(later) <= later);
            pacer.spend(later);
        }
    }

    #[test]
    fn what_was_claimed_not_long_ago_is_repeated_for_ten_minutes_and_never_too_often() {
        let start = Instant::now();
        for (vips, each, within) in [(2u8, 59, 11), (200, 30, 25)] {
            let mut repetition = Repetition::default();
            for host in 0..vips {
                repetition.add(start, IpAddr::from([192, 0, 2, host]));
            }
            let mut times: BTreeMap<IpAddr, Vec<Instant>> = BTreeMap::new();
            let mut before = start;
            while let Some(at) = repetition.poll_timeout() {
                assert!(at >= before + REPEAT_GAP, "{:?}", at - start);
                before = at;
                if let Some(vip) = repetition.take_due(at) {
                    times.entry(vip).or_default().push(at);
                }
            }
            assert_eq!(times.len(), usize::from(vips));
            for times in times.values() {
                assert!(times.len().abs_diff(each) <= 2, "{}", times.len());
                // The last round is slower: fewer and fewer are left.
                assert!(times.windows(2).rev().skip(1).all(|pair| pair[1] - pair[0] <= Duration::from_secs(within)));
            }
        }
        let mut repetition = Repetition::default();
        repetition.add(start, IpAddr::from([192, 0, 2, 1]));
        repetition.remove(IpAddr::from([192, 0, 2, 1]));
        assert_eq!(repetition.poll_timeout(), None);
    }

    #[test]
    fn refreshes_go_round_one_in_each_interval() {
        let interval = Duration::from_secs(60);
        let start = Instant::now();
        let owned: BTreeSet<IpAddr> = (1..=3).map(|host| IpAddr::from([192, 0, 2, host])).collect();
        let mut rotation = Rotation::default();
        assert_eq!(rotation.poll_timeout(), None);
        rotation.handle_owned(start, interval, &owned);
        let mut seen = Vec::new();
        for second in 0..=240 {
            let now = start + Duration::from_secs(second);
            rotation.handle_owned(now, interval, &owned);
            seen.extend(rotation.take_due(now, interval, &owned).map(|vip| (second, vip)));
        }
        let expected = [(60, 1), (120, 2), (180, 3), (240, 1)].map(|(at, host)| (at, IpAddr::from([192, 0, 2, host])));
        assert_eq!(seen, expected);
        rotation.handle_owned(start, interval, &BTreeSet::new());
        assert_eq!(rotation.poll_timeout(), None);
    }
}
