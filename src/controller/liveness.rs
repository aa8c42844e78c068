//! Which speakers live, as far as this controller has seen itself. Pure.
//!
//! A speaker lives while its Lease changes; it is dead when the Lease has not changed for [`DEAD_AFTER`] of our own time. No
//! clock of another machine is read. While the watch of Leases is broken nobody dies, and when it is back everybody gets a
//! full period: what we could not see is no evidence. Nor is it when all fall silent at once, which is how a watch looks whose
//! connection is dead without saying so: then nobody dies before all do, and who is heard first brings all of them back.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::view::LeaseView;

/// A speaker whose Lease has not changed for this long is dead. Speakers renew each 5 seconds.
pub const DEAD_AFTER: Duration = Duration::from_secs(15);
/// When no Lease at all has changed for this long, it is not one speaker that is silent.
const ALL_SILENT_AFTER: Duration = Duration::from_secs(7);

/// The Leases of the speakers, and when each was last seen to change.
///
/// Inputs: [`Liveness::handle_lease`], [`Liveness::handle_reset`], [`Liveness::handle_gone`], [`Liveness::handle_watch_lost`];
/// output: [`Liveness::poll_changed`]; next deadline: [`Liveness::deadline`].
#[derive(Debug, Default)]
pub struct Liveness {
    seen: BTreeMap<String, Seen>,
    alive: BTreeSet<String>,
    /// When any Lease was last seen to change.
    heard: Duration,
    /// While the watch is broken: who lived when it broke.
    spared: Option<BTreeSet<String>>,
    /// Whose first sign of life came since the last [`Liveness::poll_changed`].
    has_news: bool,
}

#[derive(Debug)]
struct Seen {
    mark: String,
    at: Duration,
    /// Whether it was renewed or made before our eyes. What was only listed may be the Lease of a speaker that is long dead.
    heard: bool,
}

impl Liveness {
    /// A Lease was made or renewed.
    pub fn handle_lease(&mut self, lease: LeaseView, now: Duration) {
        self.handle(lease, true, now);
    }

    fn handle(&mut self, lease: LeaseView, is_news: bool, now: Duration) {
        self.handle_watch_back(now);
        match self.seen.get_mut(&lease.node) {
            Some(seen) if seen.mark == lease.mark => {}
            _ => {
                if now > self.heard + ALL_SILENT_AFTER {
                    let lived = self.seen.values_mut().filter(|seen| self.heard < seen.at + DEAD_AFTER);
                    lived.for_each(|seen| seen.at = now);
                }
                self.heard = now;
                let before = self.seen.get(&lease.node);
                let heard = is_news || before.is_some();
                self.has_news |= heard && !before.is_some_and(|before| before.heard);
                self.seen.insert(lease.node, Seen { mark: lease.mark, at: now, heard });
            }
        }
    }

    /// All Leases there are now. A Lease that is gone is one that is not renewed.
    pub fn handle_reset(&mut self, leases: Vec<LeaseView>, now: Duration) {
        self.handle_watch_back(now);
        for lease in leases {
            self.handle(lease, false, now);
        }
    }

    /// The watch broke: from here on silence means nothing.
    pub fn handle_watch_lost(&mut self, now: Duration) {
        if self.spared.is_none() {
            // A controller that only follows does not poll: those whom it heard live as well.
            let heard = self.seen.iter().filter(|(_, seen)| now < seen.at + DEAD_AFTER).map(|(node, _)| node);
            self.spared = Some(self.alive.iter().chain(heard).cloned().collect());
        }
    }

    /// These speakers have no Lease and no Node any more: nothing is kept of them.
    pub fn handle_gone(&mut self, is_gone: impl Fn(&str) -> bool) {
        self.seen.retain(|node, _| !is_gone(node));
        if let Some(spared) = &mut self.spared {
            spared.retain(|node| !is_gone(node));
        }
    }

    /// Of how many speakers something is kept.
    #[cfg(test)]
    pub fn known(&self) -> usize {
        self.seen.len()
    }

    /// Whether the speaker lived at the last [`Liveness::poll_changed`].
    pub fn is_alive(&self, node: &str) -> bool {
        self.alive.contains(node)
    }

    /// Whether the speaker was seen to give a sign of life, ever. Who was not may live, as far as we know, but is given nothing new.
    pub fn was_heard(&self, node: &str) -> bool {
        self.seen.get(node).is_some_and(|seen| seen.heard)
    }

    /// Brings [`Liveness::is_alive`] up to `now`, and says whether it or [`Liveness::was_heard`] changed for anyone.
    pub fn poll_changed(&mut self, now: Duration) -> bool {
        if self.spared.is_some() {
            return false;
        }
        let all_silent = self.heard + ALL_SILENT_AFTER;
        let judged = if now < self.heard + DEAD_AFTER { now.min(all_silent) } else { now };
        let lives = |seen: &Seen| judged < seen.at + DEAD_AFTER;
        let alive: BTreeSet<String> =
            self.seen.iter().filter(|(_, seen)| lives(seen)).map(|(node, _)| node.clone()).collect();
        let changed = alive != self.alive;
        self.alive = alive;
        std::mem::take(&mut self.has_news) || changed
    }

    /// When the next speaker dies if nothing is heard.
    pub fn deadline(&self) -> Option<Duration> {
        if self.spared.is_some() {
            return None;
        }
        let first = self.alive.iter().filter_map(|node| self.seen.get(node)).map(|seen| seen.at + DEAD_AFTER).min()?;
        Some(if first <= self.heard + ALL_SILENT_AFTER { first } else { self.heard + DEAD_AFTER })
    }

    fn handle_watch_back(&mut self, now: Duration) {
        let Some(spared) = self.spared.take() else { return };
        self.heard = now;
        for node in spared {
            if let Some(seen) = self.seen.get_mut(&node) {
                seen.at = now;
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
        LeaseView {
            node: node.to_owned(),
            mark: mark.to_owned(),
            namespace: "l2lb-system".to_owned(),
            uid: format!("uid-lease-{node}"),
            owner_nodes: BTreeSet::new(),
        }
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
        liveness.handle_watch_lost(at(14));
        assert!(!liveness.poll_changed(at(10_000)));
        assert_eq!(liveness.deadline(), None);
        liveness.handle_reset(vec![lease("a", "2"), lease("b", "1")], at(20_000));
        assert!(liveness.poll_changed(at(20_014)), "a was heard for the first time");
        assert!(liveness.is_alive("b") && !liveness.was_heard("b") && liveness.was_heard("a"));
        assert!(liveness.poll_changed(at(20_015)));
    }

    #[test]
    fn an_outage_that_a_follower_saw_kills_nobody_when_it_comes_to_lead() {
        let mut liveness = Liveness::default();
        liveness.handle_reset(vec![lease("a", "1"), lease("b", "1"), lease("c", "1")], at(0));
        for now in [5, 10, 15, 20] {
            liveness.handle_lease(lease("a", &now.to_string()), at(now));
            liveness.handle_lease(lease("b", &now.to_string()), at(now));
        }
        liveness.handle_watch_lost(at(21));
        // Of the two that lived, one has had no time to renew yet.
        liveness.handle_reset(vec![lease("a", "300"), lease("b", "20"), lease("c", "1")], at(300));
        liveness.poll_changed(at(301));
        assert!(liveness.is_alive("a") && liveness.is_alive("b"));
        assert!(!liveness.is_alive("c"), "it was silent before");
    }

    #[test]
    fn when_all_fall_silent_nobody_dies_alone() {
        let mut liveness = Liveness::default();
        liveness.handle_lease(lease("a", "1"), at(0));
        liveness.handle_lease(lease("b", "1"), at(1));
        liveness.handle_lease(lease("c", "1"), at(4));
        assert!(liveness.poll_changed(at(4)));
        for now in 5..19 {
            assert!(!liveness.poll_changed(at(now)), "{now} s");
            assert_eq!(liveness.deadline(), Some(at(19)));
        }
        assert!(liveness.poll_changed(at(19)));
        assert!(!liveness.is_alive("a") && !liveness.is_alive("c"));
        // The connection is back, and what was missed comes one by one.
        liveness.handle_lease(lease("b", "9"), at(80));
        assert!(liveness.poll_changed(at(80)));
        assert!(liveness.is_alive("a") && liveness.is_alive("b"));
        liveness.handle_lease(lease("b", "10"), at(85));
        liveness.handle_lease(lease("b", "11"), at(90));
        liveness.poll_changed(at(94));
        assert!(liveness.is_alive("a"));
        liveness.poll_changed(at(95));
        assert!(!liveness.is_alive("a") && liveness.is_alive("b"));
    }

    #[test]
    fn the_dead_stay_dead_through_an_outage() {
        let mut liveness = Liveness::default();
        liveness.handle_lease(lease("a", "1"), at(0));
        liveness.poll_changed(at(0));
        liveness.poll_changed(at(60));
        liveness.handle_watch_lost(at(70));
        liveness.handle_reset(vec![lease("a", "1")], at(100));
        liveness.poll_changed(at(100));
        assert!(!liveness.is_alive("a"));
    }
}
