//! When frames may be sent: the pace of a NIC, and whose turn it is to refresh.

use std::{
    collections::BTreeSet,
    net::Ipv4Addr,
    ops::Bound,
    time::{Duration, Instant},
};

/// So many announcements or probes may leave at once.
const BURST: u32 = 1000;
/// After that, one in this time.
const INTERVAL: Duration = Duration::from_millis(1);

/// Paces one NIC: a thousand at once, then a thousand each second.
#[derive(Clone, Copy, Debug, Default)]
pub struct Pacer {
    /// When everything sent so far would have left at the even pace.
    even: Option<Instant>,
}

impl Pacer {
    /// When the next one may leave; in the past if it may leave now.
    pub fn ready_at(&self, now: Instant) -> Instant {
        self.even.and_then(|even| even.checked_sub(INTERVAL * BURST)).map_or(now, |at| at)
    }

    /// Counts one that leaves now.
    pub fn spend(&mut self, now: Instant) {
        self.even = Some(self.even.map_or(now, |even| even.max(now)) + INTERVAL);
    }
}

/// Whose turn it is: one announcement of one virtual IP in each interval keeps the NIC's MAC address in the switches'
/// tables, whatever the number of virtual IPs (a switch forgets after 300 s, some far sooner).
#[derive(Clone, Copy, Debug, Default)]
pub struct Rotation {
    next_at: Option<Instant>,
    last: Option<Ipv4Addr>,
}

impl Rotation {
    /// The set of owned addresses changed.
    pub fn handle_owned(&mut self, now: Instant, interval: Duration, owned: &BTreeSet<Ipv4Addr>) {
        self.next_at = if owned.is_empty() { None } else { Some(self.next_at.unwrap_or(now + interval)) };
    }

    /// The address that is due for a refresh now.
    pub fn take_due(&mut self, now: Instant, interval: Duration, owned: &BTreeSet<Ipv4Addr>) -> Option<Ipv4Addr> {
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_thousand_leave_at_once_and_then_a_thousand_a_second() {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        let mut sent = 0;
        for millisecond in 0..3000u32 {
            let now = start + Duration::from_millis(millisecond.into());
            while pacer.ready_at(now) <= now && sent < 10_000 {
                pacer.spend(now);
                sent += 1;
            }
            if millisecond == 0 {
                assert!((1000..=1001).contains(&sent), "{sent}");
            }
        }
        assert!((3999..=4001).contains(&sent), "{sent}");
    }

    #[test]
    fn a_quiet_nic_gets_its_burst_back() {
        let start = Instant::now();
        let mut pacer = Pacer::default();
        for _ in 0..1000 {
            pacer.spend(start);
        }
        let later = start + Duration::from_secs(10);
        for _ in 0..1000 {
            assert!(pacer.ready_at(later) <= later);
            pacer.spend(later);
        }
    }

    #[test]
    fn refreshes_go_round_one_in_each_interval() {
        let interval = Duration::from_secs(60);
        let start = Instant::now();
        let owned: BTreeSet<Ipv4Addr> = (1..=3).map(|host| Ipv4Addr::new(192, 0, 2, host)).collect();
        let mut rotation = Rotation::default();
        assert_eq!(rotation.poll_timeout(), None);
        rotation.handle_owned(start, interval, &owned);
        let mut seen = Vec::new();
        for second in 0..=240 {
            let now = start + Duration::from_secs(second);
            rotation.handle_owned(now, interval, &owned);
            seen.extend(rotation.take_due(now, interval, &owned).map(|vip| (second, vip.octets()[3])));
        }
        assert_eq!(seen, [(60, 1), (120, 2), (180, 3), (240, 1)]);
        rotation.handle_owned(start, interval, &BTreeSet::new());
        assert_eq!(rotation.poll_timeout(), None);
    }
}
