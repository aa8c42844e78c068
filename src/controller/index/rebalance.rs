//! Spreading addresses anew, if an administrator wants it: one at a time, rarely, and never to and fro.

use std::{net::IpAddr, time::Duration};

use super::{Index, Target};
use crate::{api::Role, controller::placement::Decision};

/// A move evens something out only if the one node has so many addresses more than the other. A move makes the sum of the
/// squares of all loads smaller, so that it comes to an end.
const WORTH_IT: usize = 2;

/// When an address is moved for the sake of balance.
#[derive(Debug, Default)]
pub(super) struct Rebalance {
    /// From one move to the next; `None`: never.
    pause: Option<Duration>,
    next: Option<Duration>,
    /// What is to move, and where.
    wish: Option<(IpAddr, String)>,
}

impl Rebalance {
    pub(super) fn per_minute(moves: u32) -> Self {
        let pause = Duration::from_secs(60).checked_div(moves);
        Self { pause, ..Self::default() }
    }

    /// When something may be moved next.
    pub(super) fn deadline(&self) -> Option<Duration> {
        self.next
    }

    /// Where the address is to move, once.
    pub(super) fn take(&mut self, address: IpAddr) -> Option<String> {
        self.wish.take_if(|(known, _)| *known == address).map(|(_, node)| node)
    }
}

impl Index {
    /// The same index, which moves so many addresses a minute from the busiest node to the idlest one; 0: none.
    pub fn with_rebalance(self, moves_per_minute: u32) -> Self {
        Self { rebalance: Rebalance::per_minute(moves_per_minute), ..self }
    }

    /// Chooses the next move when it is time to.
    pub(super) fn balance(&mut self, now: Duration) {
        let Some(pause) = self.rebalance.pause else { return };
        // Whoever just began to lead does not know yet what is going on.
        let due = *self.rebalance.next.get_or_insert(now + pause);
        if now < due {
            return;
        }
        self.rebalance.next = Some(now + pause);
        self.rebalance.wish = None;
        if !self.moves.is_idle() {
            return;
        }
        if let Some((address, node)) = self.evening_move() {
            self.rebalance.wish = Some((address, node));
            self.dirty.insert(Target::VirtualIP(address));
        }
    }

    /// The move from the busiest node to the idlest one that can have one of its addresses.
    fn evening_move(&mut self) -> Option<(IpAddr, String)> {
        let mut loads: Vec<(usize, String)> =
            self.nodes.values().map(|node| (self.load_of(&node.name), node.name.clone())).collect();
        loads.sort_by(|(a, a_name), (b, b_name)| b.cmp(a).then_with(|| a_name.cmp(b_name)));
        let least = loads.last().map(|(load, _)| *load)?;
        for (load, from) in loads {
            if load < least + WORTH_IT {
                return None;
            }
            let here = self.decisions.iter().filter(|(_, decision)| decision.primary() == Some(from.as_str()));
            let mut addresses: Vec<IpAddr> = here.map(|(address, _)| *address).collect();
            addresses.retain(|address| self.is_at_rest(*address));
            let found = addresses.into_iter().find_map(|address| Some((address, self.idler(address, &from, load)?)));
            if found.is_some() {
                return found;
            }
        }
        None
    }

    /// The idlest node to which the address can move without being worse off.
    fn idler(&mut self, address: IpAddr, from: &str, load: usize) -> Option<String> {
        let candidates = self.candidates(address);
        let weight = candidates.get(from)?.weight;
        // Nor to one that may be dead or could not be followed: no balance is worth that.
        let sound = candidates.fit().filter(|candidate| candidate.heard && candidate.unheard.is_empty());
        let good = sound.filter(|candidate| candidate.weight >= weight);
        let with_load = good.map(|candidate| (self.load_of(&candidate.node), candidate.node.as_str()));
        let (_, node) = with_load.filter(|(other, _)| other + WORTH_IT <= load).min()?;
        Some(node.to_owned())
    }

    /// Whether the address is announced by its primary, is on no way, and is the only one of its Services: two addresses of one
    /// Service stay together.
    fn is_at_rest(&self, address: IpAddr) -> bool {
        let Some(decision) = self.decisions.get(&address) else { return false };
        let answers = |decision: &Decision| {
            let claims = self.owner_claims(address);
            let primary = decision.primary();
            claims.iter().any(|claim| Some(claim.node.as_str()) == primary && claim.placement >= decision.placement)
        };
        let together = self.together(address);
        let alone = !decision.with_role(Role::Primary).any(|node| together.first().is_some_and(|other| other == node));
        answers(decision) && alone && !self.in_flight.contains_key(&Target::VirtualIP(address))
    }
}
