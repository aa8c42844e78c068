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
    rival: Option<Rival>,
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
    pub(super) fn new(now: Instant, cause: Cause) -> Self {
        let (named_at, alone_at) = match cause {
            Cause::Named => (Some(now), None),
            Cause::Dead | Cause::Recheck => (None, Some(now)),
        };
        let mut owning =
            Self { named_at, alone_at, tie_rounds: 0, next: Some((0, now)), announced_at: now, rival: None };
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
        if (last_words || wins_tie) && now.saturating_duration_since(self.announced_at) >= SAME_CLAIM {
            self.start_burst(now);
        }
        last_words || wins_tie
    }

    /// Another speaker probed for the address: some cache may be wrong (rule 4).
    pub(super) fn handle_probe(&mut self, now: Instant) {
        if now.saturating_duration_since(self.announced_at) >= ANNOUNCE_AGAIN {
            self.start_burst(now);
        }
    }

    /// A foreign host used the address. Whether it has to be defended now, and whether this is new.
    pub(super) fn handle_rival(&mut self, now: Instant, mac: MacAddr) -> (bool, bool) {
        let Some(rival) = &mut self.rival else {
            self.rival = Some(Rival { mac, heard_at: now, defended_at: now });
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
        self.rival.map(|rival| rival.mac)
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
        let rival = self.rival.map(|rival| rival.heard_at + RIVAL_SILENT);
        self.next.map(|(_, at)| at).into_iter().chain(rival).min()
    }

    fn start_burst(&mut self, now: Instant) {
        self.announced_at = now;
        self.next = Some((0, now));
    }

    fn is_better(&self, (mine, theirs): (usize, usize), own: MacAddr, other: MacAddr) -> bool {
        if self.tie_rounds < TIE_ROUNDS && mine != theirs { mine < theirs } else { own < other }
    }
}
