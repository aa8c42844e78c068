//! Which speakers live, as far as this controller has seen itself. Pure.
//!
//! A speaker lives while its Lease changes; it is dead when the Lease has not changed for [`DEAD_AFTER`] of our own time. No
//! clock of another machine is read. While the watch of Leases is broken nobody dies, and when it is back everybody gets a
//! full period: what we could not see is no evidence.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::view::LeaseView;

/// A speaker whose Lease has not changed for this long is dead. Speakers renew each 5 seconds.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);

/// The Leases of the speakers, and when each was last seen to change.
///
/// Inputs: [`Liveness::handle_lease`], [`Liveness::handle_reset`], [`Liveness::handle_watch_lost`]; output:
/// [`Liveness::poll_changed`]; next deadline: [`Liveness::deadline`].
#[derive(Debug, Default)]
pub struct Liveness {
    seen: BTreeMap<String, Seen>,
    watch_lost: bool,
    alive: BTreeSet<String>,
}

#[derive(Debug)]
struct Seen {
    mark: String,
    at: Duration,
}

impl Liveness {
    /// A Lease was listed, made or renewed.
    pub fn handle_lease(&mut self, lease: LeaseView, now: Duration) {
        self.handle_watch_back(now);
        match self.seen.get_mut(&lease.node) {
            Some(seen) if seen.mark == lease.mark => {}
            _ => {
                self.seen.insert(lease.node, Seen { mark: lease.mark, at: now });
            }
        }
    }

    /// All Leases there are now. A Lease that is gone is one that is not renewed.
    pub fn handle_reset(&mut self, leases: Vec<LeaseView>, now: Duration) {
        self.handle_watch_back(now);
        for lease in leases {
            self.handle_lease(lease, now);
        }
    }

    /// The watch broke: from here on silence means nothing.
    pub fn handle_watch_lost(&mut self) {
        self.watch_lost = true;
    }

    /// Whether the speaker lived at the last [`Liveness::poll_changed`].
    pub fn is_alive(&self, node: &str) -> bool {
        self.alive.contains(node)
    }

    /// Whether it was ever heard of.
    pub fn is_known(&self, node: &str) -> bool {
        self.seen.contains_key(node)
    }

    /// Brings [`Liveness::is_alive`] up to `now`, and says whether it changed for anyone.
    pub fn poll_changed(&mut self, now: Duration) -> bool {
        if self.watch_lost {
            return false;
        }
        let alive: BTreeSet<String> =
            self.seen.iter().filter(|(_, seen)| now < seen.at + DEAD_AFTER).map(|(node, _)| node.clone()).collect();
        let changed = alive != self.alive;
        self.alive = alive;
        changed
    }

    /// When the next speaker dies if nothing is heard.
    pub fn deadline(&self) -> Option<Duration> {
        if self.watch_lost {
            return None;
        }
        self.alive.iter().filter_map(|node| self.seen.get(node)).map(|seen| seen.at + DEAD_AFTER).min()
    }

    fn handle_watch_back(&mut self, now: Duration) {
        if std::mem::take(&mut self.watch_lost) {
            for node in &self.alive {
                if let Some(seen) = self.seen.get_mut(node) {
                    seen.at = now;
                }
            }
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at(seconds: u64) -> Duration {
        Duration::from_secs(seconds)
    }

    fn lease(node: &str, mark: &str) -> LeaseView {
        LeaseView { node: node.to_owned(), mark: mark.to_owned() }
    }

    #[test]
    fn a_speaker_lives_while_its_lease_changes_and_dies_15_seconds_after() {
        let mut liveness = Liveness::default();
        liveness.handle_lease(lease("a", "1"), at(0));
        assert!(liveness.poll_changed(at(0)));
        liveness.handle_lease(lease("a", "2"), at(10));
        liveness.handle_lease(lease("a", "2"), at(20));
        assert!(!liveness.poll_changed(at(24)));
        assert_eq!(liveness.deadline(), Some(at(25)));
        assert!(liveness.poll_changed(at(25)));
        assert!(!liveness.is_alive("a"));
        liveness.handle_lease(lease("a", "3"), at(30));
        assert!(liveness.poll_changed(at(30)));
        assert!(liveness.is_alive("a"));
    }

    #[test]
    fn nobody_is_dead_before_a_full_period_after_the_start() {
        let mut liveness = Liveness::default();
        liveness.handle_reset(vec![lease("a", "an hour ago")], at(100));
        liveness.poll_changed(at(114));
        assert!(liveness.is_alive("a"));
    }

    #[test]
    fn an_outage_of_any_length_kills_nobody() {
        let mut liveness = Liveness::default();
        liveness.handle_reset(vec![lease("a", "1"), lease("b", "1")], at(0));
        liveness.poll_changed(at(0));
        liveness.handle_watch_lost();
        assert!(!liveness.poll_changed(at(10_000)));
        assert_eq!(liveness.deadline(), None);
        liveness.handle_reset(vec![lease("a", "2"), lease("b", "1")], at(20_000));
        assert!(!liveness.poll_changed(at(20_014)));
        assert!(liveness.is_alive("b"));
        assert!(liveness.poll_changed(at(20_015)));
    }

    #[test]
    fn the_dead_stay_dead_through_an_outage() {
        let mut liveness = Liveness::default();
        liveness.handle_lease(lease("a", "1"), at(0));
        liveness.poll_changed(at(0));
        liveness.poll_changed(at(60));
        liveness.handle_watch_lost();
        liveness.handle_reset(vec![lease("a", "1")], at(100));
        liveness.poll_changed(at(100));
        assert!(!liveness.is_alive("a"));
    }
}
