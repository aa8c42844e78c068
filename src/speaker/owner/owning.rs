//! What an owner remembers: its burst of announcements, how it came to own, and a rival.

use std::time::{Duration, Instant};

use super::Cause;
use crate::speaker::wire::MacAddr;

/// When the announcements of a claim are sent, counted from the claim: a burst too quick is one update for some receivers,
/// and one frame alone may be lost.
pub const BURST: [Duration; 5] = [
    Duration::ZERO,
    Duration::from_millis(250),
    Duration::from_secs(1),
    Duration::from_secs(2),
    Duration::from_secs(4),
];
/// For this long after it claimed as named, an owner holds another speaker's claim for that one's last words (rule 3a).
pub(super) const HAND_OVER: Duration = Duration::from_millis(300);
/// Two owners that both claimed by themselves within this time compare ranks (rule 3b).
const TIE: Duration = Duration::from_secs(1);
/// After this many rounds of a tie, the lower MAC address alone decides.
pub(super) const TIE_ROUNDS: u32 = 2;
/// At least this long between two answers to claims: both forms of one claim are one.
const SAME_CLAIM: Duration = Duration::from_millis(20);
/// At least this long between two answers to speakers' probes (rule 4).
const ANNOUNCE_AGAIN: Duration = Duration::from_secs(1);
/// An answer that comes in later than this after a claim was not under way before it.
const UNDER_WAY: Duration = Duration::from_millis(100);
/// A second owner is announced against so many times. A speaker yields to the first that it hears.
pub(super) const SECOND_ROUNDS: u32 = 3;
/// A second owner that was not heard for this long is a new one.
const SECOND_FORGOTTEN: Duration = Duration::from_secs(20);
/// What answers in spite of all is looked at again after this, and then has this long to answer.
pub(super) const LOOK_AGAIN: Duration = Duration::from_secs(60);
const LOOK_ANSWERED: Duration = Duration::from_secs(2);
/// At least this long between two defences against a foreign host (RFC 5227 section 2.4).
const DEFEND_EVERY: Duration = Duration::from_secs(10);
/// A rival not heard for this long has fallen silent.
pub(super) const RIVAL_SILENT: Duration = Duration::from_secs(30);

/// The memory of an owner.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Owning {
    /// When it claimed as named.
    named_at: Option<Instant>,
    /// When it last claimed by itself, or held a tie.
    alone_at: Option<Instant>,
    tie_rounds: u32,
    /// The next announcement of the burst: its index and its time.
    next: Option<(usize, Instant)>,
    /// When the last burst began.
    announced_at: Instant,
    /// When it last announced again because of another speaker's claim.
    stood_at: Option<Instant>,
    /// Rare, and therefore in a box.
    rival: Option<Box<Rival>>,
    /// Who was known to hold the address before: it may believe that it still does.
    pub(super) predecessor: Option<MacAddr>,
    /// As rare.
    second: Option<Box<Second>>,
}

/// Another speaker's NIC that answers for the address as well (rule 9).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Second {
    mac: MacAddr,
    answered_at: Instant,
    /// How often it was announced against.
    rounds: u32,
    /// Once that was in vain: when it is looked at again.
    look_at: Option<Instant>,
}

/// What an answer of a second owner leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum SecondOwner {
    /// Nothing is new.
    Ignore,
    /// Announced against: a speaker yields.
    Announced,
    /// Announcing is in vain: a speaker would have yielded, so something else on that node answers. This is new.
    Split,
}

/// A foreign host that uses the address while we own it. Of several, the first one heard.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Rival {
    mac: MacAddr,
    heard_at: Instant,
    defended_at: Instant,
}

impl Owning {
    /// An owner that claims now, and sends the first announcement of its burst itself.
    pub(super) fn new(now: Instant, cause: Cause, predecessor: Option<MacAddr>) -> Self {
        let (named_at, alone_at) = match cause {
            Cause::Named => (Some(now), None),
            Cause::Dead | Cause::Recheck => (None, Some(now)),
        };
        let mut owning = Self {
            named_at,
            alone_at,
            tie_rounds: 0,
            next: Some((0, now)),
            announced_at: now,
            stood_at: None,
            rival: None,
            predecessor,
            second: None,
        };
        owning.take_due(now);
        owning
    }

    /// Another speaker's claim was heard. Whether this owner stays, and announces again (rule 3); otherwise it yields.
    /// `ranks` are this node's and the other's.
    pub(super) fn stands_against(
        &mut self,
        now: Instant,
        still_named: bool,
        ranks: (usize, usize),
        own: MacAddr,
        other: MacAddr,
    ) -> bool {
        let within = |at: Option<Instant>, time| at.is_some_and(|at| now.saturating_duration_since(at) < time);
        let last_words = still_named && within(self.named_at, HAND_OVER);
        let wins_tie = within(self.alone_at, TIE) && self.is_better(ranks, own, other);
        if !last_words && wins_tie {
            self.alone_at = Some(now);
            self.tie_rounds += 1;
        }
        let stays = last_words || wins_tie;
        // Also when this owner's own claim went out only just before: the other's came after it, and is what hosts believe.
        if stays && !within(self.stood_at, SAME_CLAIM) {
            self.stood_at = Some(now);
            self.start_burst(now);
        }
        stays
    }

    /// Another speaker probed for the address: some cache may be wrong (rule 4).
    pub(super) fn handle_probe(&mut self, now: Instant) {
        if now.saturating_duration_since(self.announced_at) >= ANNOUNCE_AGAIN {
            self.start_burst(now);
        }
    }

    /// Whether an answer that comes in now may have been under way since before the last claim.
    pub(super) fn has_just_announced(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.announced_at) < UNDER_WAY
    }

    /// Another speaker's NIC answered for the address (rule 9), and this owner stays.
    pub(super) fn handle_second(&mut self, now: Instant, mac: MacAddr) -> SecondOwner {
        let again = self.second.as_deref().filter(|second| {
            second.mac == mac && (second.look_at.is_some() || now <= second.answered_at + SECOND_FORGOTTEN)
        });
        let rounds = again.map_or(0, |second| second.rounds) + 1;
        let was_split = again.is_some_and(|second| second.look_at.is_some());
        let split = rounds > SECOND_ROUNDS;
        let look_at = split.then(|| now + LOOK_AGAIN);
        let rounds = rounds.min(SECOND_ROUNDS + 1);
        self.second = Some(Box::new(Second { mac, answered_at: now, rounds, look_at }));
        if was_split {
            return SecondOwner::Ignore;
        }
        if split {
            return SecondOwner::Split;
        }
        if self.alone_at.is_none_or(|at| now.saturating_duration_since(at) >= TIE) {
            // The rounds of an earlier tie: the other one may not count them.
            self.tie_rounds = 0;
        }
        self.alone_at = Some(now);
        self.start_burst(now);
        SecondOwner::Announced
    }

    /// A NIC that goes on answering although it was announced against.
    pub(super) fn split_with(&self) -> Option<MacAddr> {
        self.second.as_ref().filter(|second| second.look_at.is_some()).map(|second| second.mac)
    }

    /// Whether that one has to be asked whether it still answers. `gone` is set if it did not when it was last asked.
    pub(super) fn take_look(&mut self, now: Instant, gone: &mut bool) -> Option<MacAddr> {
        let second = self.second.as_mut()?;
        let at = second.look_at.filter(|at| now >= *at)?;
        if at > second.answered_at + LOOK_AGAIN {
            // The look before was in vain.
            *gone = true;
            self.second = None;
            return None;
        }
        second.look_at = Some(now + LOOK_ANSWERED);
        Some(second.mac)
    }

    /// A foreign host used the address. Whether it has to be defended now, and whether this is new.
    pub(super) fn handle_rival(&mut self, now: Instant, mac: MacAddr) -> (bool, bool) {
        let Some(rival) = &mut self.rival else {
            self.rival = Some(Box::new(Rival { mac, heard_at: now, defended_at: now }));
            return (true, true);
        };
        rival.heard_at = now;
        let defend = now.saturating_duration_since(rival.defended_at) >= DEFEND_EVERY;
        if defend {
            rival.defended_at = now;
        }
        (defend, false)
    }

    /// Forgets the rival if it fell silent; whether it did.
    pub(super) fn take_silent_rival(&mut self, now: Instant) -> bool {
        self.rival.take_if(|rival| now >= rival.heard_at + RIVAL_SILENT).is_some()
    }

    /// Forgets the rival if it is none after all; which one was forgotten.
    pub(super) fn take_rival_unless(&mut self, is_rival: impl FnOnce(MacAddr) -> bool) -> Option<MacAddr> {
        self.rival.take_if(|rival| !is_rival(rival.mac)).map(|rival| rival.mac)
    }

    /// The foreign host that uses the address too.
    pub(super) fn rival(&self) -> Option<MacAddr> {
        self.rival.as_ref().map(|rival| rival.mac)
    }

    /// Whether an announcement is due; if so, the one after it is planned.
    pub(super) fn take_due(&mut self, now: Instant) -> bool {
        let Some((index, at)) = self.next else { return false };
        if now < at {
            return false;
        }
        let later = index + 1;
        self.next = BURST.get(later).map(|offset| (later, now + (*offset - BURST[index])));
        true
    }

    pub(super) fn poll_timeout(&self) -> Option<Instant> {
        let rival = self.rival.as_ref().map(|rival| rival.heard_at + RIVAL_SILENT);
        let look = self.second.as_ref().and_then(|second| second.look_at);
        self.next.map(|(_, at)| at).into_iter().chain(rival).chain(look).min()
    }

    fn start_burst(&mut self, now: Instant) {
        self.announced_at = now;
        self.next = Some((0, now));
    }

    fn is_better(&self, (mine, theirs): (usize, usize), own: MacAddr, other: MacAddr) -> bool {
        if self.tie_rounds < TIE_ROUNDS && mine != theirs { mine < theirs } else { own < other }
    }
}
