//! Which node announces an address. Pure.
//!
//! [`candidates`] is a row of filters; a node that fails one carries its reason. In order:
//! 1. its speaker lives (its Lease is renewed),
//! 2. the Node is Ready,
//! 3. it has no label `node.kubernetes.io/exclude-from-external-load-balancers`,
//! 4. the pool's nodeSelector takes it,
//! 5. its speaker is not draining,
//! 6. it has an interface for the address ([`eligible_interfaces`]),
//! 7. with `externalTrafficPolicy: Local`, it has a serving endpoint.
//!
//! Those that are left are ordered: highest preference weight, fewest addresses, name.
//!
//! [`assign`] then decides, and changes as little as it can:
//! 1. who answers on the wire already, under the present placement or a later one, is Primary (facts are adopted);
//! 2. else the present Primary stays if it is still a candidate (sticky: a node that returns takes nothing back);
//! 3. else the first standby that is a candidate, else the first candidate, under a new placement. The old Primary stays as
//!    Leaving until the new one's claim is reported, if it lives and answers;
//! 4. no candidate at all: everything stays as it is, except what the administrator has excluded.
//!
//! Standbys are the next best, at most [`STANDBYS`] for an address and [`STANDBY_NODES`] different nodes for one primary, so
//! that what a node has to watch grows with the nodes and not with the addresses.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
};

use ipnet::IpNet;
use kube::core::SelectorExt as _;

use super::view::{AnnounceView, NodeView, SpeakerView};
use crate::api::{Assignment, EXCLUDE_LABEL, NetworkInterface, Role};

/// Standbys of one address.
pub const STANDBYS: usize = 2;
/// Different nodes that stand by for the addresses of one primary.
pub const STANDBY_NODES: usize = 3;

/// What is asked: who can announce this?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The address.
    pub address: IpAddr,
    /// The pool's wishes.
    pub announce: &'a AnnounceView,
    /// With `externalTrafficPolicy: Local`: the nodes with a serving endpoint.
    pub local_nodes: Option<&'a BTreeSet<String>>,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    /// The Node.
    pub node: &'a NodeView,
    /// Its Speaker object.
    pub speaker: Option<&'a SpeakerView>,
    /// Whether its speaker lives.
    pub alive: bool,
    /// Of how many addresses it is the Primary.
    pub load: usize,
}

/// Why a node cannot announce an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// There is no such Node any more.
    NoNode,
    /// No speaker has ever reported from there.
    NoSpeaker,
    /// The speaker's Lease is not renewed.
    SpeakerDead,
    /// The Node is not Ready.
    NotReady,
    /// The exclude label.
    Excluded,
    /// The pool's nodeSelector.
    NotSelected,
    /// The speaker asks for its addresses to be moved away.
    Draining,
    /// The address is IPv6, which speakers do not announce yet.
    Ipv6,
    /// No interface for the address, and why.
    NoInterface(String),
    /// `externalTrafficPolicy: Local`, and nothing serves there.
    NoLocalEndpoint,
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoNode => f.write_str("the Node does not exist"),
            Self::NoSpeaker => f.write_str("no speaker runs there"),
            Self::SpeakerDead => f.write_str("its speaker has not renewed its Lease for 15 s"),
            Self::NotReady => f.write_str("the Node is not Ready"),
            Self::Excluded => write!(f, "it has the label {EXCLUDE_LABEL}"),
            Self::NotSelected => f.write_str("the pool's announce.nodeSelector does not select it"),
            Self::Draining => f.write_str("its speaker is draining"),
            Self::Ipv6 => f.write_str("speakers do not announce IPv6 addresses yet"),
            Self::NoInterface(reason) => f.write_str(reason),
            Self::NoLocalEndpoint => f.write_str("it has no serving endpoint (externalTrafficPolicy: Local)"),
        }
    }
}

/// A node that cannot announce the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rejected {
    /// The first filter that it failed.
    pub reason: Rejection,
    /// Whether an administrator said so, whatever else is wrong with it: then the address is taken from it even if no
    /// other node can have it.
    pub is_excluded: bool,
    /// Whether the speaker there may still answer for an address that it has.
    pub is_alive: bool,
}

/// A node that can announce the address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Candidate {
    /// Name of the node.
    pub node: String,
    /// Interfaces that can, best first; never empty.
    pub interfaces: Vec<String>,
}

/// All nodes, sorted into those that can and those that cannot.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Candidates {
    /// Best first.
    pub fit: Vec<Candidate>,
    /// With the reason.
    pub rejected: BTreeMap<String, Rejected>,
}

impl Candidates {
    /// The candidate of this name.
    pub fn get(&self, node: &str) -> Option<&Candidate> {
        self.fit.iter().find(|candidate| candidate.node == node)
    }

    fn may_answer(&self, node: &str) -> bool {
        self.get(node).is_some() || self.rejected.get(node).is_some_and(|node| node.is_alive)
    }
}

/// Sorts the nodes into those that can announce the address and those that cannot.
pub fn candidates<'a>(question: &Question<'_>, nodes: impl IntoIterator<Item = NodeFacts<'a>>) -> Candidates {
    let mut fit = Vec::new();
    let mut rejected = BTreeMap::new();
    for facts in nodes {
        let name = facts.node.name.clone();
        match judge(question, &facts) {
            Ok(interfaces) => {
                let preferred = question.announce.preferred.iter();
                let weight: u64 = preferred
                    .filter(|(_, selector)| selector.matches(&facts.node.labels))
                    .map(|(weight, _)| u64::from(*weight))
                    .sum();
                let rank = (std::cmp::Reverse(weight), facts.load, name.clone());
                fit.push((rank, Candidate { node: name, interfaces }));
            }
            Err(reason) => {
                let is_excluded = excluded(question, facts.node).is_some();
                rejected.insert(name, Rejected { reason, is_excluded, is_alive: facts.alive });
            }
        }
    }
    fit.sort_by(|(a, _), (b, _)| a.cmp(b));
    Candidates { fit: fit.into_iter().map(|(_, candidate)| candidate).collect(), rejected }
}

fn judge(question: &Question<'_>, facts: &NodeFacts<'_>) -> Result<Vec<String>, Rejection> {
    let Some(speaker) = facts.speaker else { return Err(Rejection::NoSpeaker) };
    if !facts.alive {
        return Err(Rejection::SpeakerDead);
    }
    if !facts.node.ready {
        return Err(Rejection::NotReady);
    }
    if let Some(reason) = excluded(question, facts.node) {
        return Err(reason);
    }
    if speaker.draining {
        return Err(Rejection::Draining);
    }
    if question.address.is_ipv6() {
        return Err(Rejection::Ipv6);
    }
    let interfaces = eligible_interfaces(question.address, &question.announce.interfaces, &speaker.interfaces)
        .map_err(Rejection::NoInterface)?;
    if question.local_nodes.is_some_and(|nodes| !nodes.contains(&facts.node.name)) {
        return Err(Rejection::NoLocalEndpoint);
    }
    Ok(interfaces)
}

/// What an administrator has against the node.
fn excluded(question: &Question<'_>, node: &NodeView) -> Option<Rejection> {
    if node.labels.contains_key(EXCLUDE_LABEL) {
        return Some(Rejection::Excluded);
    }
    let selector = question.announce.node_selector.as_ref();
    selector.is_some_and(|selector| !selector.matches(&node.labels)).then_some(Rejection::NotSelected)
}

/// The interfaces that can announce the address, best first: those that the globs name, in the order of the globs; without
/// globs those whose subnet holds the address; where there is none, those of the default route.
///
/// # Errors
/// A clause that says why there is none.
pub fn eligible_interfaces(
    address: IpAddr,
    globs: &[String],
    interfaces: &[NetworkInterface],
) -> Result<Vec<String>, String> {
    let holds = |interface: &&NetworkInterface| {
        interface.addresses.iter().filter_map(|text| text.parse::<IpNet>().ok()).any(|net| net.contains(&address))
    };
    let mut wanted: Vec<&NetworkInterface> = Vec::new();
    if globs.is_empty() {
        wanted.extend(interfaces.iter().filter(holds));
        if wanted.is_empty() {
            wanted.extend(interfaces.iter().filter(|interface| interface.default_route));
        }
        if wanted.is_empty() {
            return Err(format!("no interface has {address} in its subnet, and there is no default route"));
        }
    } else {
        for glob in globs {
            for interface in interfaces.iter().filter(|interface| matches_glob(glob, &interface.name)) {
                if !wanted.iter().any(|known| known.name == interface.name) {
                    wanted.push(interface);
                }
            }
        }
        if wanted.is_empty() {
            return Err(format!("no interface is named {}", globs.join(" or ")));
        }
    }
    let (fit, unfit): (Vec<_>, Vec<_>) =
        wanted.into_iter().partition(|interface| interface.announces && interface.carrier);
    if fit.is_empty() {
        let reasons: Vec<String> = unfit
            .iter()
            .map(|interface| match (interface.carrier, interface.reason.as_str()) {
                (false, _) => format!("{} has no link", interface.name),
                (true, "") => format!("{} cannot announce", interface.name),
                (true, reason) => format!("{} cannot announce: {reason}", interface.name),
            })
            .collect();
        return Err(reasons.join(", "));
    }
    Ok(fit.into_iter().map(|interface| interface.name.clone()).collect())
}

/// Whether `*` in `glob` can stand for something that makes it `name`.
fn matches_glob(glob: &str, name: &str) -> bool {
    let Some((head, tail)) = glob.split_once('*') else { return glob == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    (0..=rest.len()).filter(|at| rest.is_char_boundary(*at)).any(|at| matches_glob(tail, &rest[at..]))
}

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

/// Decides who announces the address from now on. `partners` are the nodes that stand by for other addresses of the primary
/// that is asked for.
pub fn assign(
    current: &Decision,
    claims: &[OwnerClaim],
    candidates: &Candidates,
    partners: impl Fn(&str) -> BTreeSet<String>,
) -> Decision {
    let present = current.primary();
    let answering = claims
        .iter()
        .filter(|claim| claim.placement >= current.placement && candidates.get(&claim.node).is_some())
        .max_by_key(|claim| (claim.arrival, Some(claim.node.as_str()) == present));
    let successor = || {
        let standby = current.with_role(Role::Standby).find_map(|node| candidates.get(node));
        standby.or_else(|| candidates.fit.first())
    };
    let chosen = answering
        .and_then(|claim| candidates.get(&claim.node))
        .or_else(|| present.and_then(|node| candidates.get(node)))
        .or_else(successor);
    let Some(chosen) = chosen else { return without_candidates(current, claims, candidates) };

    let entry = |candidate: &Candidate, role| {
        let kept = current.interface(&candidate.node).filter(|name| candidate.interfaces.iter().any(|i| i == name));
        let interface = kept.or(candidate.interfaces.first().map(String::as_str)).unwrap_or_default().to_owned();
        Assignment { node: candidate.node.clone(), role, interface }
    };
    let primary = entry(chosen, Role::Primary);
    let adopted = answering.is_some() && present != Some(&primary.node);
    let named = !adopted
        && (present != Some(&primary.node) || current.interface(&primary.node) != Some(primary.interface.as_str()));
    let placement = if named {
        let highest = claims.iter().map(|claim| claim.placement).max().unwrap_or(0);
        current.placement.max(highest) + 1
    } else {
        current.placement
    };

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
    let mut standbys: Vec<&Candidate> = current
        .with_role(Role::Standby)
        .filter(|node| !taken(node))
        .filter_map(|node| candidates.get(node))
        .take(STANDBYS)
        .collect();
    let mut partners = partners(&primary.node);
    partners.extend(standbys.iter().map(|standby| standby.node.clone()));
    // A partner that cannot stand by for this address does not use up a place.
    partners.retain(|node| candidates.get(node).is_some());
    for candidate in &candidates.fit {
        if standbys.len() == STANDBYS {
            break;
        }
        let room = partners.len() < STANDBY_NODES || partners.contains(&candidate.node);
        if room && !taken(&candidate.node) && !standbys.iter().any(|known| known.node == candidate.node) {
            partners.insert(candidate.node.clone());
            standbys.push(candidate);
        }
    }

    let mut assignments = vec![primary.clone()];
    assignments.extend(standbys.into_iter().map(|standby| entry(standby, Role::Standby)));
    assignments.extend(leaving);
    Decision { assignments, placement }
}

/// Nobody can: it may be us who cannot see, so what is stays, except where the administrator said no. A hand-over that is
/// done is done.
fn without_candidates(current: &Decision, claims: &[OwnerClaim], candidates: &Candidates) -> Decision {
    let primary = current.primary();
    let handed_over =
        claims.iter().any(|claim| Some(claim.node.as_str()) == primary && claim.placement >= current.placement);
    let excluded = |node: &str| candidates.rejected.get(node).is_some_and(|node| node.is_excluded);
    let goes = |entry: &Assignment| excluded(&entry.node) || (handed_over && entry.role == Role::Leaving);
    let assignments = current.assignments.iter().filter(|entry| !goes(entry)).cloned().collect();
    Decision { assignments, placement: current.placement }
}

#[cfg(test)]
#[path = "placement_tests.rs"]
mod tests;
