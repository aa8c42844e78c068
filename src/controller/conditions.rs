//! The words that users and administrators read: the two conditions of a Service and the Ready condition of a pool. Pure.

use std::{collections::BTreeSet, net::IpAddr};

use super::{
    change::WantedCondition,
    eligibility::{Candidates, Rejection},
    index::REALLOCATED_AFTER,
    placement::Decision,
    view::ShownCondition,
};
use crate::{
    api::{AllocatedReason, AnnouncedReason, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, Claim, ClaimState, Role},
    ipam::{AllocateError, Allocated, Overlap},
};

/// So many addresses of nodes and of the cluster are listed in the condition of a pool.
const LISTED_COLLISIONS: usize = 16;

/// So many nodes are listed with their reasons; a condition is read by people.
const LISTED_NODES: usize = 12;

/// A message longer than 32 KiB is refused by the API server, with the whole condition; nobody reads half as much.
const MESSAGE_BYTES: usize = 4_096;

const TAKEN_BACK: &str = " was taken back: ";

/// Why a Service has no address, or not all that it wants.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Problem {
    /// The reason of its condition.
    pub reason: AllocatedReason,
    /// The message.
    pub message: String,
}

impl Problem {
    /// A problem in these words.
    pub fn new(reason: AllocatedReason, message: impl Into<String>) -> Self {
        Self { reason, message: message.into() }
    }
}

impl From<AllocateError> for Problem {
    fn from(error: AllocateError) -> Self {
        let (reason, remedy) = match &error {
            AllocateError::Exhausted { .. } => {
                (AllocatedReason::PoolExhausted, "; add addresses to the pool or remove a Service")
            }
            AllocateError::NoSuchFamily { .. } => {
                (AllocatedReason::FamilyUnavailable, "; add some to a pool or change spec.ipFamilies")
            }
            AllocateError::NotInPool { .. } => (AllocatedReason::AddressNotInPool, ""),
            AllocateError::InUse { .. } => (AllocatedReason::AddressInUse, ""),
            AllocateError::NotShared { .. }
            | AllocateError::OtherKey { .. }
            | AllocateError::OtherBackend { .. }
            | AllocateError::Full { .. } => (AllocatedReason::SharingMismatch, ""),
            AllocateError::PortCollision { .. } => (AllocatedReason::PortCollision, ""),
        };
        Self { reason, message: format!("{error}{remedy}") }
    }
}

/// What is known about the addresses of a Service.
#[derive(Debug)]
pub struct AllocationFacts<'a> {
    /// What it has.
    pub addresses: &'a [Allocated],
    /// Why that is not what it wants.
    pub problem: Option<&'a Problem>,
    /// What else there is to say.
    pub remarks: &'a [String],
    /// Those of its addresses that no pool holds any more.
    pub homeless: &'a BTreeSet<IpAddr>,
    /// What it shows and does not have any more, and why.
    pub taken_back: Vec<(IpAddr, &'a str)>,
}

/// The condition of a Service that has its addresses, or not. `shown` is that condition as it stands.
pub fn allocated(facts: &AllocationFacts<'_>, shown: Option<&ShownCondition>) -> WantedCondition {
    let condition = |status, reason: AllocatedReason, message| {
        let (type_, reason) = (CONDITION_ALLOCATED, reason.as_str());
        WantedCondition { type_, status, reason, message: readable(message), since: None }
    };
    let has: Vec<String> = facts
        .addresses
        .iter()
        .map(|allocated| {
            let (address, pool) = (allocated.address(), allocated.pool());
            if facts.homeless.contains(&address) {
                let seconds = REALLOCATED_AFTER.as_secs();
                format!(
                    "{address} from pool {pool}, which does not hold it any more; it is taken back {seconds} s \
                     after that unless a pool holds it"
                )
            } else {
                format!("{address} from pool {pool}")
            }
        })
        .collect();
    let Some(problem) = facts.problem else {
        let said = has.into_iter().chain(facts.remarks.iter().cloned());
        return condition(true, AllocatedReason::Allocated, said.collect::<Vec<_>>().join(", "));
    };
    let mut message = problem.message.clone();
    if !has.is_empty() {
        message = format!("{message}; it keeps {}", has.join(", "));
    }
    // Of what it had until now its condition goes on to tell, as long as nothing else is wrong.
    let told = shown.filter(|shown| {
        let rest = shown.message.strip_prefix(&message);
        shown.reason == problem.reason.as_str() && rest.is_some_and(|rest| rest.contains(TAKEN_BACK))
    });
    match told {
        Some(told) if facts.taken_back.is_empty() => message.clone_from(&told.message),
        _ => {
            for (address, why) in &facts.taken_back {
                message = format!("{message}; {address}{TAKEN_BACK}{why}");
            }
        }
    }
    condition(false, problem.reason, message)
}

/// What a Service that showed `old` is told when it gets `new`, because it had to leave `departures`.
pub fn address_changed(old: &[IpAddr], new: &[IpAddr], departures: &[(IpAddr, &str)]) -> String {
    let texts = departures.iter().map(|(address, why)| {
        let replaces = |other: &&IpAddr| other.is_ipv4() == address.is_ipv4() && !old.contains(other);
        match new.iter().find(replaces) {
            Some(other) => format!("{other} replaces {address}: {why}"),
            None => format!("{address}{TAKEN_BACK}{why}"),
        }
    });
    texts.collect::<Vec<_>>().join("; ")
}

/// Who answers for one address, or why nobody does.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum AddressState {
    /// Node, interface and MAC address.
    Announced(String),
    /// Why not.
    Silent(AnnouncedReason, String),
}

impl AddressState {
    /// The reason, if nobody answers.
    pub fn why_silent(&self) -> Option<AnnouncedReason> {
        match self {
            Self::Announced(_) => None,
            Self::Silent(reason, _) => Some(*reason),
        }
    }
}

/// What is known about one address of a Service.
#[derive(Debug)]
pub struct AddressFacts<'a> {
    /// The address.
    pub address: IpAddr,
    /// Who is to announce it.
    pub decision: &'a Decision,
    /// Who can.
    pub candidates: &'a Candidates,
    /// What the speakers say that have a part in it and live.
    pub claims: &'a [&'a Claim],
    /// With `externalTrafficPolicy: Local`: what there is to serve it with.
    pub endpoints: Option<Endpoints>,
    /// The node whose interface has the MAC address that [`conflict`] names: then it is no foreign host.
    pub conflicting_node: Option<&'a str>,
}

/// What a Service with `externalTrafficPolicy: Local` has to serve an address with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoints {
    /// No endpoint of the address's family.
    None,
    /// Endpoints that do not say on which node they are: kube-proxy takes none of them for one of its own.
    Nowhere,
    /// Endpoints, none of which is ready or still serves.
    Unready,
    /// Some node serves.
    Serve,
}

/// Sums up who answers for an address.
pub fn address_state(facts: &AddressFacts<'_>) -> AddressState {
    let address = facts.address;
    let silent = |reason, message: String| AddressState::Silent(reason, format!("{address}: {message}"));
    if let Some(claim) = conflict(facts.claims, facts.decision) {
        let mac = claim.conflict_mac.as_deref().unwrap_or("unknown");
        let (node, interface) = (&claim.node, &claim.interface);
        if let Some(other) = facts.conflicting_node.filter(|_| claim.state == ClaimState::Owner) {
            let why = if claim.reason.is_empty() { "it does not yield" } else { &claim.reason };
            let message =
                format!("{node} ({interface}, {}) answers for it, and so does {other} ({mac}); {why}", claim.mac);
            return silent(AnnouncedReason::SplitClaim, message);
        }
        return silent(
            AnnouncedReason::AddressConflict,
            format!(
                "a host with MAC address {mac}, which is none of the speakers, answers for it (seen by {node} on \
                 {interface}); give that host another address, or exclude this one from the pool"
            ),
        );
    }
    match facts.endpoints {
        Some(Endpoints::None) => {
            return silent(
                AnnouncedReason::NoEndpoint,
                "the Service has no endpoint; are its pods running?".to_owned(),
            );
        }
        Some(Endpoints::Unready) => {
            let message = "externalTrafficPolicy is Local and no node has a serving endpoint; are the pods ready?";
            return silent(AnnouncedReason::NoLocalEndpoint, message.to_owned());
        }
        Some(Endpoints::Nowhere) => {
            let message = "externalTrafficPolicy is Local and no endpoint says on which node it is; set nodeName in the \
                           EndpointSlices, or use the policy Cluster";
            return silent(AnnouncedReason::NoLocalEndpoint, message.to_owned());
        }
        Some(Endpoints::Serve) | None => {}
    }
    let primary = facts.decision.primary();
    let owners = facts.claims.iter().filter(|claim| claim.state == ClaimState::Owner);
    if let Some(owner) = owners.max_by_key(|claim| Some(claim.node.as_str()) == primary) {
        return AddressState::Announced(format!("{address} by {} ({}, {})", owner.node, owner.interface, owner.mac));
    }
    if facts.candidates.is_empty() {
        return silent(AnnouncedReason::NoEligibleNode, rejections(facts.candidates));
    }
    let Some(primary) = primary else {
        return silent(AnnouncedReason::AwaitingSpeaker, "a node is being chosen".to_owned());
    };
    let interface =
        facts.decision.assignments.iter().find(|entry| entry.role == Role::Primary).map(|entry| &entry.interface);
    let interface = interface.map(String::as_str).unwrap_or_default();
    let said = facts.claims.iter().find(|claim| claim.node == primary).map(|claim| match claim.state {
        ClaimState::Probing => "it is asking the network whether the address is free".to_owned(),
        ClaimState::LinkDown => format!("{} has no link", claim.interface),
        _ if !claim.reason.is_empty() => claim.reason.clone(),
        _ => "it has not claimed the address yet".to_owned(),
    });
    let said = said.unwrap_or_else(|| "it has not claimed the address yet".to_owned());
    silent(AnnouncedReason::AwaitingSpeaker, format!("{primary} is to announce it on {interface}; {said}"))
}

/// The claim that speaks of a foreign host on the address. A speaker names its MAC address while it still asks, seconds before
/// it is sure. What another one than the primary once saw counts no more when the primary owns the address undisputed.
pub fn conflict<'a>(claims: &[&'a Claim], decision: &Decision) -> Option<&'a Claim> {
    let disputed = |claim: &Claim| claim.state == ClaimState::Blocked || claim.conflict_mac.is_some();
    let primary = claims.iter().find(|claim| decision.primary() == Some(claim.node.as_str()));
    let owned = primary.is_some_and(|claim| claim.state == ClaimState::Owner && !disputed(claim));
    let mut disputing = claims.iter().filter(|claim| disputed(claim) && (!owned || claim.state == ClaimState::Owner));
    disputing.next().copied()
}

fn rejections(candidates: &Candidates) -> String {
    let rejections: Vec<(&str, Rejection)> = candidates.rejections().collect();
    if rejections.is_empty() {
        return "there is no Node".to_owned();
    }
    let listed = rejections.iter().take(LISTED_NODES);
    let mut texts: Vec<String> = listed.map(|(node, reason)| format!("{node}: {reason}")).collect();
    let more = rejections.len().saturating_sub(LISTED_NODES);
    if more > 0 {
        texts.push(format!("and {more} more nodes"));
    }
    format!("no node can announce it; {}", texts.join("; "))
}

/// The condition of a Service whose addresses are in these states.
pub fn announced(states: &[AddressState]) -> WantedCondition {
    let good: Vec<&str> = states
        .iter()
        .filter_map(|state| match state {
            AddressState::Announced(text) => Some(text.as_str()),
            AddressState::Silent(..) => None,
        })
        .collect();
    let bad = states.iter().find_map(|state| match state {
        AddressState::Silent(reason, message) => Some((*reason, message.clone())),
        AddressState::Announced(_) => None,
    });
    let (status, reason, message) = match bad {
        None => (true, AnnouncedReason::Announced, good.join(", ")),
        Some((reason, message)) if good.is_empty() => (false, reason, message),
        Some((reason, message)) => {
            (false, AnnouncedReason::PartlyAnnounced, format!("{}; {reason}: {message}", good.join(", ")))
        }
    };
    let message = readable(message);
    WantedCondition { type_: CONDITION_ANNOUNCED, status, reason: reason.as_str(), message, since: None }
}

/// What users write is quoted, and they may write a lot.
fn readable(mut message: String) -> String {
    if message.len() > MESSAGE_BYTES {
        let end = (0..=MESSAGE_BYTES).rev().find(|end| message.is_char_boundary(*end));
        message.truncate(end.unwrap_or(0));
        message.push_str(" ...");
    }
    message
}

/// Status, reason and message of a pool's Ready condition. `collisions` are sentences about what else lies in its ranges;
/// `quarantined` are addresses that other hosts use, with their MAC addresses.
pub fn pool_ready(
    problems: &[String],
    overlaps: &[&Overlap],
    collisions: &[&str],
    quarantined: &[(IpAddr, Option<&str>)],
) -> (bool, &'static str, String) {
    let mut sentences = problems.to_vec();
    sentences.extend(overlaps.iter().map(|overlap| {
        let (range, older) = (&overlap.range, &overlap.older);
        format!("{range} is also in pool {older}, which is older; it is not used here")
    }));
    sentences.extend(collisions.iter().take(LISTED_COLLISIONS).map(|sentence| (*sentence).to_owned()));
    let more = collisions.len().saturating_sub(LISTED_COLLISIONS);
    if more > 0 {
        sentences.push(format!("and {more} more addresses and ranges that are not free"));
    }
    sentences.extend(quarantined.iter().map(|(address, mac)| {
        let mac = mac.unwrap_or("unknown");
        format!(
            "a host with MAC address {mac} answers for {address}; it is not given unasked as long as that host is there"
        )
    }));
    let reason = match (problems.is_empty(), overlaps.is_empty() && collisions.is_empty(), quarantined.is_empty()) {
        (true, true, true) => return (true, "Ready", "all addresses can be given".to_owned()),
        (true, true, false) => "AddressConflict",
        (true, false, _) => "Overlap",
        (false, ..) => "InvalidSpec",
    };
    (false, reason, readable(sentences.join("; ")))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_of_two_addresses_is_said_to_be_announced_partly() {
        let condition = announced(&[
            AddressState::Announced("192.0.2.64 by node1 (eth0, 02:00:00:00:01:01)".to_owned()),
            AddressState::Silent(AnnouncedReason::NoEligibleNode, "2001:db8::1: no node".to_owned()),
        ]);
        assert_eq!((condition.status, condition.reason), (false, "PartlyAnnounced"));
        let both = "192.0.2.64 by node1 (eth0, 02:00:00:00:01:01); NoEligibleNode: 2001:db8::1: no node";
        assert_eq!(condition.message, both);
    }

    #[test]
    fn what_a_user_wrote_at_length_is_cut() {
        let problem = Problem::new(AllocatedReason::InvalidRequest, format!("x{}", "ü".repeat(100_000)));
        let facts = AllocationFacts {
            addresses: &[],
            problem: Some(&problem),
            remarks: &[],
            homeless: &BTreeSet::new(),
            taken_back: Vec::new(),
        };
        let message = allocated(&facts, None).message;
        assert!(message.len() < 5_000 && message.ends_with("ü ..."), "{} bytes", message.len());
    }

    #[test]
    fn a_pool_says_all_that_is_wrong_with_it() {
        assert!(pool_ready(&[], &[], &[], &[]).0);
        let overlap =
            Overlap { older: "old".to_owned(), younger: "new".to_owned(), range: "10.0.0.1-10.0.0.4".parse().unwrap() };
        let (status, reason, message) = pool_ready(
            &["spec.addresses[1]: '' is empty".to_owned()],
            &[&overlap],
            &["192.0.2.11 is an address of node node1 (eth0); it is not used"],
            &[("192.0.2.64".parse().unwrap(), Some("02:00:00:00:ff:ff"))],
        );
        assert_eq!((status, reason), (false, "InvalidSpec"));
        assert_eq!(
            message,
            "spec.addresses[1]: '' is empty; 10.0.0.1-10.0.0.4 is also in pool old, which is older; it is not used here; \
             192.0.2.11 is an address of node node1 (eth0); it is not used; a host with MAC address 02:00:00:00:ff:ff answers for \
             192.0.2.64; it is not given unasked as long as that host is there"
        );
    }
}
