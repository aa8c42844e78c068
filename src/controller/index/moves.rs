//! Moves of addresses whose old node still answers: how many at a time, whose turn it is, and what is asked for again.

use std::{collections::BTreeMap, net::IpAddr, time::Duration};

use super::{Index, Target};
use crate::{
    api::{self, ClaimState},
    controller::placement::{Decision, Wish},
};

/// So many addresses move at a time where moving can wait: a drain of a node with a thousand of them neither floods the LAN with
/// announcements nor the API server with writes. An address whose node is dead waits for nobody.
pub const MOVES_AT_ONCE: usize = 50;
/// A move that has not ended by then keeps nobody waiting any more, and is asked for again if nothing was heard of it.
pub const MOVE_TIME: Duration = Duration::from_millis(1_500);
/// A primary that gave the address up without being about to get it is asked again after this: it yielded to somebody, whose claim
/// may be on its way for a while when thousands are.
const YIELD_TIME: Duration = Duration::from_secs(10);
/// Later it is asked for ever more rarely, in the end this often.
const ASKED_AT_LEAST_EVERY: Duration = Duration::from_secs(60);
/// Asked so often in vain, a node is passed over if there is another one.
const ASKED_THE_SAME: u32 = 2;

/// Whose turn it is.
#[derive(Debug, Default)]
pub(super) struct Moves {
    /// Addresses that have a node that leaves, and since when as far as it is known.
    under_way: BTreeMap<IpAddr, Option<Duration>>,
    /// Those that would move, in the order in which they came.
    waiting: BTreeMap<u64, IpAddr>,
    /// The number of each that waits, or that has had its turn and may have to come again.
    numbers: BTreeMap<IpAddr, u64>,
    last: u64,
}

impl Moves {
    /// What was decided for an address last.
    pub(super) fn note(&mut self, address: IpAddr, is_moving: bool) {
        if is_moving {
            self.under_way.entry(address).or_default();
        } else {
            self.under_way.remove(&address);
        }
    }

    /// An address that moves counts from now on. When it counts no more, if that is not known already.
    pub(super) fn begun(&mut self, address: IpAddr, now: Duration) -> Option<Duration> {
        let since = self.under_way.get_mut(&address).filter(|since| since.is_none())?;
        *since = Some(now);
        Some(now + MOVE_TIME)
    }

    /// Whether the address may begin to move. If not, it waits.
    pub(super) fn has_turn(&mut self, address: IpAddr, now: Duration) -> bool {
        if self.under_way.contains_key(&address) {
            return true;
        }
        let number = *self.numbers.entry(address).or_insert_with(|| {
            self.last += 1;
            self.last
        });
        self.waiting.insert(number, address);
        let free = self.free(now);
        self.waiting.range(..number).take(free).count() < free
    }

    /// It was decided about the address without making it wait.
    pub(super) fn decided(&mut self, address: IpAddr, is_moving: bool) {
        if !is_moving {
            self.forget(address);
        } else if let Some(number) = self.numbers.get(&address) {
            // It keeps its number: if it has to begin anew, it comes first.
            self.waiting.remove(number);
        }
    }

    /// The address is nobody's any more.
    pub(super) fn forget(&mut self, address: IpAddr) {
        if let Some(number) = self.numbers.remove(&address) {
            self.waiting.remove(&number);
        }
    }

    /// Those whose turn it is now.
    pub(super) fn next(&self, now: Duration) -> Vec<IpAddr> {
        if self.waiting.is_empty() {
            return Vec::new();
        }
        let waiting = self.waiting.values().filter(|address| !self.under_way.contains_key(*address));
        waiting.take(self.free(now)).copied().collect()
    }

    /// Whether nothing moves and nothing waits.
    pub(super) fn is_idle(&self) -> bool {
        self.under_way.is_empty() && self.waiting.is_empty()
    }

    fn free(&self, now: Duration) -> usize {
        let counts = |since: &&Option<Duration>| since.is_none_or(|since| now < since + MOVE_TIME);
        MOVES_AT_ONCE.saturating_sub(self.under_way.values().filter(counts).count())
    }
}

/// A node was named and has not answered yet.
#[derive(Debug)]
pub(super) struct Asked {
    node: String,
    placement: i64,
    since: Duration,
    /// How often it was asked again.
    again: u32,
}

impl Index {
    /// Whether the Primary has to be asked again. Each answer is better than none: of one that is `Blocked`, say, no more is
    /// asked.
    pub(super) fn ask_again(&mut self, address: IpAddr, current: &Decision, now: Duration) -> Wish<'static> {
        let Some(node) = current.primary().filter(|_| self.is_awaited(address, current)) else {
            self.asked.remove(&address);
            return Wish::None;
        };
        let placement = current.placement;
        let fresh = |again| Asked { node: node.to_owned(), placement, since: now, again };
        let asked = self.asked.entry(address).or_insert_with(|| fresh(0));
        if asked.placement != placement {
            // What we asked for was not written, or somebody else was named.
            *asked = fresh(if asked.node == node { asked.again } else { 0 });
        }
        let first = if current.is_moving() { MOVE_TIME } else { YIELD_TIME };
        let due = asked.since + first.saturating_mul(1 << asked.again.min(16)).min(ASKED_AT_LEAST_EVERY);
        if now < due {
            self.timers.insert((due, Target::VirtualIP(address)));
            return Wish::None;
        }
        let wish = if asked.again < ASKED_THE_SAME { Wish::AskAgain } else { Wish::AskAnother };
        asked.again += 1;
        wish
    }

    /// Who was asked.
    pub(super) fn has_asked(&mut self, address: IpAddr, decision: &Decision, now: Duration) {
        if let (Some(asked), Some(node)) = (self.asked.get_mut(&address), decision.primary()) {
            (asked.node, asked.placement, asked.since) = (node.to_owned(), decision.placement, now);
        }
    }

    /// Whether the Primary was told of its placement, could answer, and has said nothing of it but that it gave up. Only moves
    /// are waited for, which are few at a time: after the death of a node with thousands of addresses the claims of the others
    /// may take longer than any of our periods, and none is missing.
    fn is_awaited(&self, address: IpAddr, current: &Decision) -> bool {
        let Some(vip) = self.vips.get(&api::virtual_ip_name(address)).filter(|vip| !vip.deleting) else { return false };
        let Some(primary) = current.primary().filter(|node| self.is_living(node)) else { return false };
        if vip.spec.placement != current.placement || self.in_flight.contains_key(&Target::VirtualIP(address)) {
            return false;
        }
        let said = vip.claims.iter().find(|claim| claim.node == primary && claim.uid == vip.uid);
        let answers = said.is_some_and(|claim| claim.placement == current.placement);
        match said.map(|claim| claim.state) {
            Some(ClaimState::Blocked | ClaimState::LinkDown) => false,
            Some(ClaimState::Yielded) if answers => true,
            Some(_) if answers => false,
            _ => current.is_moving(),
        }
    }
}
