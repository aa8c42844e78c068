//! A steady rate by absolute time: what a call takes, and how late the thread was woken, does not add up.

use std::time::{Duration, Instant};

/// A caller that is later than this does not do all at once what it has missed.
const CATCH_UP: Duration = Duration::from_millis(20);

/// When the next call is due.
#[derive(Debug)]
pub(crate) struct Pace {
    interval: Duration,
    next: Option<Instant>,
    missed: u64,
}

impl Pace {
    /// So many calls per second, the first at once.
    pub(crate) fn new(per_second: u32) -> Self {
        Self { interval: Duration::from_secs(1) / per_second.max(1), next: None, missed: 0 }
    }

    /// Sleeps until the next call is due.
    pub(crate) fn wait(&mut self) {
        let now = Instant::now();
        std::thread::sleep(self.handle_call(now).saturating_duration_since(now));
    }

    /// Calls that were left out because the caller itself was held up.
    pub(crate) fn missed(&self) -> u64 {
        self.missed
    }

    /// When the call is due that the caller wants to make at `now`.
    fn handle_call(&mut self, now: Instant) -> Instant {
        let mut due = self.next.unwrap_or(now);
        let late = now.saturating_duration_since(due);
        if late > CATCH_UP {
            self.missed += u64::try_from(late.as_nanos() / self.interval.as_nanos().max(1)).unwrap_or(u64::MAX);
            due = now;
        }
        self.next = Some(due + self.interval);
        due
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn lateness_does_not_add_up_and_a_long_one_is_not_made_good_for() {
        let start = Instant::now();
        let at = |milliseconds: u64| start + Duration::from_millis(milliseconds);
        let mut pace = Pace::new(1000);
        assert_eq!(pace.handle_call(at(0)), at(0));
        // 5 ms late: the calls of these 5 ms are due at once.
        assert_eq!(pace.handle_call(at(6)), at(1));
        assert_eq!(pace.handle_call(at(6)), at(2));
        assert_eq!(pace.missed(), 0);
        assert_eq!(pace.handle_call(at(103)), at(103));
        assert_eq!((pace.missed(), pace.handle_call(at(103))), (100, at(104)));
    }
}
