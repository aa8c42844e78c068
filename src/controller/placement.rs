//! Which node announces an address. Pure.
//!
//! [`super::eligibility`] says which nodes can. They are ordered: highest preference weight, then those whose speaker hears the other
//! speakers on that interface (a standby: its primary), then the nodes that another address of the same Service is on, fewest
//! addresses, name. A standby that does not hear its primary could not follow it: it is replaced when another node can.
//!
//! [`assign`] then decides, and changes as little as it can:
//! 1. who answers on the wire already, under the present placement or a later one, is Primary (facts are adopted);
//! 2. else the present Primary stays if it is still a candidate (sticky: a node that returns takes nothing back);
//! 3. else a new one is named, under a new placement: a candidate that is Leaving and still answers; else the first standby that
//!    is a candidate; else the best candidate. The old Primary stays as Leaving until the new one's claim is reported, if it
//!    lives and answers;
//! 4. no candidate at all: everything stays as it is, except what the administrator has excluded.
//!
//! The caller may [`Wish`] for something else, and may say that a move has to wait: then the present Primary stays although it is
//! no candidate.
//!
//! A controller that starts does not know yet who is dead: a node whose speaker it has not heard keeps its part in an address, and
//! is given none in one that is there already.
//!
//! Standbys are the next best, at most [`STANDBYS`] for an address and [`STANDBY_NODES`] different nodes for one primary, so
//! that what a node has to watch grows with the nodes and not with the addresses.

use std::{cmp::Reverse, collections::BTreeSet};

use super::eligibility::{Candidate, Candidates};
use crate::api::{Assignment, Role};

/// Standbys of one address.
pub const STANDBYS: usize = 2;
/// Different nodes that stand by for the addresses of one primary.
pub const STANDBY_NODES: usize = 3;

/// What was decided for an address.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Decision {
    /// Who does what.
    pub assignments: Vec<Assignment>,
    /// Grows with each new Primary.
    pub placement: i64,
}

impl Decision {
    /// The node that is to announce.
    pub fn primary(&self) -> Option<&str> {
        self.with_role(Role::Primary).next()
    }

    /// The nodes with this role, in order.
    pub fn with_role(&self, role: Role) -> impl Iterator<Item = &str> {
        self.assignments.iter().filter(move |entry| entry.role == role).map(|entry| entry.node.as_str())
    }

    /// Whether the node has a part.
    pub fn has(&self, node: &str) -> bool {
        self.assignments.iter().any(|entry| entry.node == node)
    }

    /// Whether an old primary answers until a new one has claimed.
    pub fn is_moving(&self) -> bool {
        self.with_role(Role::Leaving).next().is_some()
    }

    fn interface(&self, node: &str) -> Option<&str> {
        self.assignments.iter().find(|entry| entry.node == node).map(|entry| entry.interface.as_str())
    }
}

/// A speaker says that it answers for the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct OwnerClaim {
    /// Its node.
    pub node: String,
    /// The placement that it answers.
    pub placement: i64,
    /// Claims are ordered by when they reached us.
    pub arrival: u64,
}

/// What is wanted beyond what the state of the nodes asks for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Wish<'a> {
    /// Nothing.
    #[default]
    None,
    /// The Primary has not said anything about its placement: it is named anew.
    AskAgain,
    /// It has not said anything several times: another node is named if there is one.
    AskAnother,
    /// This node is to have the address.
    MoveTo(&'a str),
}

/// What a decision is made from.
#[derive(Clone, Copy)]
pub struct Case<'a> {
    /// What was decided before.
    pub current: &'a Decision,
    /// Who answers.
    pub claims: &'a [OwnerClaim],
    /// The highest placement that any claim answers, of whatever state: a new one has to be new to every speaker.
    pub highest: i64,
    /// Who can.
    pub candidates: &'a Candidates,
    /// Of how many addresses a node is the Primary.
    pub load: &'a dyn Fn(&str) -> usize,
    /// The nodes that stand by for other addresses of a primary.
    pub partners: &'a dyn Fn(&str) -> BTreeSet<String>,
    /// The nodes of the other address of the same Service, the primary first.
    pub together: &'a [String],
    /// What is wanted beyond that.
    pub wish: Wish<'a>,
    /// Whether the present Primary is to keep the address although it is no candidate: others move first.
    pub hold: bool,
    /// Whether there is nothing yet that could be left as it is.
    pub is_new: bool,
}

/// Decides who announces the address from now on.
pub fn assign(case: &Case<'_>) -> Decision {
    let Case { current, claims, candidates, .. } = *case;
    let present = current.primary();
    let entry = |candidate: &Candidate, role| {
        let kept = current.interface(&candidate.node).filter(|name| candidate.interfaces.iter().any(|i| i == name));
        let interface = kept.or(candidate.interfaces.first().map(String::as_str)).unwrap_or_default().to_owned();
        Assignment { node: candidate.node.clone(), role, interface }
    };
    let held = current.assignments.iter().find(|entry| case.hold && entry.role == Role::Primary);
    let (primary, named) = match held {
        Some(held) => (held.clone(), false),
        None => {
            let Some((chosen, is_fact)) = choose(case) else { return without_candidates(case) };
            let primary = entry(chosen, Role::Primary);
            let is_same = present == Some(primary.node.as_str())
                && current.interface(&primary.node) == Some(primary.interface.as_str());
            let asked = !is_fact && matches!(case.wish, Wish::AskAgain | Wish::AskAnother);
            // A fact is adopted as it is, unless its speaker has to go to another interface.
            let adopted = is_fact && present != Some(primary.node.as_str());
            (primary, asked || (!is_same && !adopted))
        }
    };
    // What a speaker says may be anything.
    let placement = if named { current.placement.max(case.highest).saturating_add(1) } else { current.placement };

    let handed_over = claims.iter().any(|claim| claim.node == primary.node && claim.placement >= placement);
    let leaving = current.assignments.iter().filter(|entry| {
        (entry.role == Role::Leaving || (entry.role == Role::Primary && named))
            && entry.node != primary.node
            && !handed_over
            && candidates.may_answer(&entry.node)
            && claims.iter().any(|claim| claim.node == entry.node)
    });
    let leaving: Vec<Assignment> = leaving.map(|entry| Assignment { role: Role::Leaving, ..entry.clone() }).collect();

    let taken = |node: &str| node == primary.node || leaving.iter().any(|entry| entry.node == node);
    let mut assignments = vec![primary.clone()];
    assignments.extend(standbys(case, &primary.node, taken).into_iter().map(|standby| entry(standby, Role::Standby)));
    assignments.extend(leaving);
    Decision { assignments, placement }
}

/// The next Primary, and whether that is what the wire says anyway.
fn choose<'a>(case: &Case<'a>) -> Option<(&'a Candidate, bool)> {
    let Case { current, claims, candidates, .. } = *case;
    let present = current.primary();
    if let Wish::MoveTo(node) = case.wish
        && let Some(target) = candidates.get(node)
    {
        return Some((target, false));
    }
    let answering = claims
        .iter()
        .filter(|claim| claim.placement >= current.placement && candidates.get(&claim.node).is_some())
        .max_by_key(|claim| (claim.arrival, Some(claim.node.as_str()) == present));
    if let Some(fact) = answering.and_then(|claim| candidates.get(&claim.node)) {
        return Some((fact, true));
    }
    let stays = present.and_then(|node| candidates.get(node));
    if case.wish != Wish::AskAnother && stays.is_some() {
        return stays.map(|stays| (stays, false));
    }
    let still_answers = |node: &&str| claims.iter().any(|claim| claim.node == **node);
    let returning = || current.with_role(Role::Leaving).filter(still_answers).find_map(|node| candidates.get(node));
    let beside = |node: &&str| case.together.iter().any(|known| known == node);
    let standby = || {
        let fit = |node: &&str| candidates.get(node).is_some();
        let both = current.with_role(Role::Standby).filter(fit).find(beside);
        both.or_else(|| current.with_role(Role::Standby).find(fit)).and_then(|node| candidates.get(node))
    };
    let best = || {
        let others = candidates.fit().filter(|candidate| Some(candidate.node.as_str()) != present);
        let others = others.filter(|candidate| candidate.heard || case.is_new);
        others.min_by_key(|candidate| rank(case, candidate, !candidate.unheard.is_empty()))
    };
    returning().or_else(standby).or_else(best).or(stays).map(|chosen| (chosen, false))
}

/// Candidates are best that come first in this order.
fn rank<'a>(case: &Case<'_>, candidate: &'a Candidate, deaf: bool) -> (Reverse<u64>, bool, usize, usize, &'a str) {
    let beside = case.together.iter().position(|node| *node == candidate.node).unwrap_or(usize::MAX);
    (Reverse(candidate.weight), deaf, beside, (case.load)(&candidate.node), &candidate.node)
}

fn standbys<'a>(case: &Case<'a>, primary: &str, taken: impl Fn(&str) -> bool) -> Vec<&'a Candidate> {
    let Case { current, candidates, .. } = *case;
    let present = current.with_role(Role::Standby).filter(|node| !taken(node)).filter_map(|node| candidates.get(node));
    let deaf = |candidate: &Candidate| candidate.unheard.contains(primary);
    let (kept, doubtful): (Vec<&Candidate>, Vec<&Candidate>) = present.partition(|candidate| !deaf(candidate));
    let mut standbys: Vec<&Candidate> = kept.into_iter().take(STANDBYS).collect();
    if standbys.len() == STANDBYS {
        return standbys;
    }
    let mut partners = (case.partners)(primary);
    partners.extend(standbys.iter().map(|standby| standby.node.clone()));
    // A partner that cannot stand by for this address, or does not hear the primary, does not use up a place.
    partners.retain(|node| candidates.get(node).is_some_and(|partner| !deaf(partner)));
    let is_standby = |standbys: &[&Candidate], node: &str| standbys.iter().any(|known| known.node == node);
    while standbys.len() < STANDBYS {
        let free = candidates.fit().filter(|candidate| {
            let room = partners.len() < STANDBY_NODES || partners.contains(&candidate.node);
            let stays = is_standby(&doubtful, &candidate.node);
            (candidate.heard || case.is_new || stays)
                && (room || stays)
                && !taken(&candidate.node)
                && !is_standby(&standbys, &candidate.node)
        });
        let order = |candidate: &&Candidate| {
            let is_deaf = deaf(candidate);
            // Of those that do not hear it, one that stands by already stays.
            (is_deaf, is_deaf && !is_standby(&doubtful, &candidate.node))
        };
        let Some(next) = free.min_by_key(|candidate| (order(candidate), rank(case, candidate, false))) else { break };
        partners.insert(next.node.clone());
        standbys.push(next);
    }
    standbys
}

/// Nobody can: it may be us who cannot see, so what is stays, except where the administrator said no. A hand-over that is
/// done is done.
fn without_candidates(case: &Case<'_>) -> Decision {
    let Case { current, claims, candidates, .. } = *case;
    let primary = current.primary();
    let handed_over =
        claims.iter().any(|claim| Some(claim.node.as_str()) == primary && claim.placement >= current.placement);
    let goes = |entry: &Assignment| candidates.is_excluded(&entry.node) || (handed_over && entry.role == Role::Leaving);
    let assignments = current.assignments.iter().filter(|entry| !goes(entry)).cloned().collect();
    Decision { assignments, placement: current.placement }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
