//! The books of a stream, without clocks or sockets: what was sent, answered and given up, and the longest silence.
//!
//! What is older than the patience is settled, by its own failure or when nothing is left to hear ([`Ledger::handle_silence`]), so that
//! the memory is bounded by rate and patience.

use std::collections::VecDeque;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use super::{Failure, Gap, Outcome};

const FAILURES: usize = 100;
const WAYS: usize = 1000;

#[derive(Debug)]
struct Entry {
    begun: Instant,
    settled: bool,
}

/// The books.
#[derive(Debug)]
pub(super) struct Ledger {
    patience: Duration,
    /// The number of the first entry.
    first: u64,
    entries: VecDeque<Entry>,
    /// The oldest that has seen no answer, neither its own nor one to a later number: since then the client waits.
    waiting: Option<(u64, Instant)>,
    /// The highest number that was answered, plus one: ways are told in the order of sending.
    answered_below: u64,
    outcome: Outcome,
}

impl Ledger {
    pub(super) fn new(patience: Duration) -> Self {
        Self {
            patience,
            first: 0,
            entries: VecDeque::new(),
            waiting: None,
            answered_below: 0,
            outcome: Outcome::default(),
        }
    }

    /// The next one is sent. Its number, from 0.
    pub(super) fn handle_begun(&mut self, at: Instant) -> u64 {
        while self.entries.front().is_some_and(|entry| entry.settled) {
            self.entries.pop_front();
            self.first += 1;
        }
        let number = self.first + self.entries.len() as u64;
        self.entries.push_back(Entry { begun: at, settled: false });
        self.outcome.begun += 1;
        self.waiting.get_or_insert((number, at));
        number
    }

    /// An answer came. One that comes a second time, or after it was given up, changes nothing; one that comes too late is none.
    pub(super) fn handle_answer(&mut self, number: u64, at: Instant, seen: IpAddr) {
        let Some(begun) = self.settle(number) else { return };
        if at.saturating_duration_since(begun) > self.patience {
            return self.fail(begun, Failure::Unanswered);
        }
        self.outcome.answered += 1;
        self.outcome.slowest = self.outcome.slowest.max(at.saturating_duration_since(begun));
        if number >= self.answered_below {
            self.answered_below = number + 1;
            let ways = &mut self.outcome.ways;
            if ways.last().is_none_or(|(_, last)| *last != seen) && ways.len() < WAYS {
                ways.push((begun, seen));
            }
        }
        self.hear(number, at);
    }

    /// It came to nothing.
    pub(super) fn handle_failure(&mut self, number: u64, failure: Failure) {
        if let Some(begun) = self.settle(number) {
            self.fail(begun, failure);
        }
    }

    /// Every answer that had come by then was handled: what has waited too long is lost. Whoever does not hear the answers cannot know
    /// that, however late it is: they may wait to be read.
    pub(super) fn handle_silence(&mut self, until: Instant) {
        self.give_up_until(until);
    }

    /// The end: what is still open is lost, a silence that goes on ends here.
    pub(super) fn finish(mut self, now: Instant) -> Outcome {
        self.give_up_until(now + self.patience * 2);
        if let Some((_, since)) = self.waiting {
            self.note_gap(since, now);
        }
        self.outcome
    }

    /// Whether anything waits for its answer.
    pub(super) fn is_settled(&self) -> bool {
        self.entries.iter().all(|entry| entry.settled)
    }

    /// What is known so far; what is open counts as neither.
    pub(super) fn so_far(&self) -> &Outcome {
        &self.outcome
    }

    fn settle(&mut self, number: u64) -> Option<Instant> {
        let place = usize::try_from(number.checked_sub(self.first)?).ok()?;
        let entry = self.entries.get_mut(place).filter(|entry| !entry.settled)?;
        entry.settled = true;
        Some(entry.begun)
    }

    fn hear(&mut self, number: u64, at: Instant) {
        let Some((waiting, since)) = self.waiting.filter(|(waiting, _)| *waiting <= number) else { return };
        debug_assert!(waiting <= number);
        self.note_gap(since, at);
        let next = number + 1;
        let place = usize::try_from(next.saturating_sub(self.first)).unwrap_or(usize::MAX);
        self.waiting = self.entries.get(place).map(|entry| (next, entry.begun));
    }

    fn note_gap(&mut self, since: Instant, until: Instant) {
        let lasted = until.saturating_duration_since(since);
        if self.outcome.gap.is_none_or(|gap| gap.lasted < lasted) {
            self.outcome.gap = Some(Gap { since, lasted });
        }
    }

    fn give_up_until(&mut self, now: Instant) {
        while let Some(entry) = self.entries.front()
            && now.saturating_duration_since(entry.begun) > self.patience
        {
            let (begun, settled) = (entry.begun, entry.settled);
            self.entries.pop_front();
            self.first += 1;
            if !settled {
                self.fail(begun, Failure::Unanswered);
            }
        }
    }

    fn fail(&mut self, begun: Instant, failure: Failure) {
        *self.outcome.failed.entry(failure).or_default() += 1;
        if self.outcome.failures.len() < FAILURES {
            self.outcome.failures.push((begun, failure));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const NODE: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 100, 0, 11));
    const OTHER: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(10, 100, 0, 12));

    fn milliseconds(count: u64) -> Duration {
        Duration::from_millis(count)
    }

    /// One each millisecond; an answer after one more, unless `lost` says otherwise.
    fn play(count: u64, lost: impl Fn(u64) -> bool) -> (Instant, Outcome) {
        let start = Instant::now();
        let mut ledger = Ledger::new(milliseconds(3000));
        for number in 0..count {
            assert_eq!(ledger.handle_begun(start + milliseconds(number)), number);
            if !lost(number) {
                ledger.handle_answer(number, start + milliseconds(number + 1), NODE);
            }
        }
        (start, ledger.finish(start + milliseconds(count)))
    }

    #[test]
    fn a_break_is_as_long_as_nobody_answered() {
        let (start, outcome) = play(2000, |number| (500..1200).contains(&number));
        assert_eq!((outcome.begun, outcome.answered, outcome.lost()), (2000, 1300, 700));
        assert_eq!(outcome.gap, Some(Gap { since: start + milliseconds(500), lasted: milliseconds(701) }));
        assert_eq!(outcome.failures.len(), FAILURES);
        assert_eq!(outcome.failures[0], (start + milliseconds(500), Failure::Unanswered));
    }

    #[test]
    fn nothing_wrong_is_a_gap_of_one_round_trip() {
        let (start, outcome) = play(100, |_| false);
        assert_eq!((outcome.lost(), outcome.slowest), (0, milliseconds(1)));
        assert_eq!(outcome.gap.unwrap().lasted, milliseconds(1));
        assert_eq!(outcome.ways, [(start, NODE)]);
    }

    #[test]
    fn a_break_that_does_not_end_lasts_until_the_end_also_beyond_the_patience() {
        let (start, outcome) = play(9000, |number| number >= 1000);
        assert_eq!(outcome.gap, Some(Gap { since: start + milliseconds(1000), lasted: milliseconds(8000) }));
        assert_eq!(outcome.lost(), 8000);
    }

    #[test]
    fn a_break_longer_than_the_patience_is_measured_whole() {
        let (_, outcome) = play(9000, |number| (1000..8000).contains(&number));
        assert_eq!((outcome.gap.unwrap().lasted, outcome.lost()), (milliseconds(7001), 7000));
    }

    #[test]
    fn what_is_late_is_not_lost_and_a_client_that_sends_nothing_waits_for_nothing() {
        let start = Instant::now();
        let mut ledger = Ledger::new(milliseconds(3000));
        ledger.handle_begun(start);
        ledger.handle_begun(start + milliseconds(1));
        ledger.handle_answer(1, start + milliseconds(2), NODE);
        // Held up for 800 ms, then the first answer comes.
        ledger.handle_answer(0, start + milliseconds(802), OTHER);
        ledger.handle_answer(0, start + milliseconds(803), OTHER);
        ledger.handle_begun(start + milliseconds(802));
        ledger.handle_answer(2, start + milliseconds(803), OTHER);
        let outcome = ledger.finish(start + milliseconds(900));
        assert_eq!((outcome.lost(), outcome.answered, outcome.slowest), (0, 3, milliseconds(802)));
        assert_eq!(outcome.gap.unwrap().lasted, milliseconds(2));
        assert_eq!(outcome.ways, [(start + milliseconds(1), NODE), (start + milliseconds(802), OTHER)]);
    }

    #[test]
    fn an_answer_that_waits_to_be_read_is_not_lost_however_late_the_next_is_sent() {
        let start = Instant::now();
        let mut ledger = Ledger::new(milliseconds(3000));
        ledger.handle_begun(start);
        ledger.handle_begun(start + milliseconds(1));
        // Everything stands still, then the sender is the first to go on.
        ledger.handle_begun(start + milliseconds(4000));
        assert_eq!(ledger.so_far().lost(), 0);
        ledger.handle_answer(0, start + milliseconds(2), NODE);
        ledger.handle_silence(start + milliseconds(4001));
        assert_eq!((ledger.so_far().lost(), ledger.so_far().answered), (1, 1));
        ledger.handle_begun(start + milliseconds(4001));
        ledger.handle_answer(2, start + milliseconds(4002), NODE);
        ledger.handle_answer(3, start + milliseconds(8000), NODE);
        let outcome = ledger.finish(start + milliseconds(8001));
        assert_eq!((outcome.lost(), outcome.answered, outcome.slowest), (2, 2, milliseconds(2)));
    }

    #[test]
    fn settled_entries_are_forgotten() {
        let start = Instant::now();
        let mut ledger = Ledger::new(milliseconds(100));
        for number in 0..10_000 {
            ledger.handle_begun(start + milliseconds(number));
            ledger.handle_failure(number, Failure::Refused);
            assert!(ledger.entries.len() <= 102, "{}", ledger.entries.len());
        }
        assert!(ledger.is_settled());
        assert_eq!(ledger.so_far().failed[&Failure::Refused], 10_000);
    }
}
