//! Which nodes can announce an address, and why the others cannot. Pure.
//!
//! [`eligible`] is a row of filters; a node that fails one carries its reason. In order:
//! 1. it has no taint `node.kubernetes.io/out-of-service` (such a node counts as dead at once),
//! 2. its speaker lives (its Lease is renewed),
//! 3. the Node is Ready,
//! 4. it has no label `node.kubernetes.io/exclude-from-external-load-balancers`,
//! 5. the pool's nodeSelector takes it,
//! 6. neither its annotation `l2lb.io/drain` nor its speaker asks for its addresses to be moved away,
//! 7. it has an interface for the address ([`eligible_interfaces`]).
//!
//! The answer is the same for all addresses of a pool and a subnet, and is shared among them. With `externalTrafficPolicy:
//! Local` [`Candidates`] adds what differs from Service to Service: where the endpoints are ([`LocalEndpoints`]). As kube-proxy
//! does it, a node serves with its ready endpoints, and while it has none with those that still serve while they terminate.
//! Nodes with a ready endpoint are the candidates; where there is none of them, nodes with a terminating one are.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    sync::Arc,
};

use ipnet::IpNet;
use kube::core::SelectorExt as _;

use super::view::{AnnounceView, NodeView, SpeakerView};
use crate::api::{DRAIN_ANNOTATION, EXCLUDE_LABEL, NetworkInterface, OUT_OF_SERVICE_TAINT};

/// What is asked: who can announce this?
#[derive(Clone, Copy, Debug)]
pub struct Question<'a> {
    /// The address.
    pub address: IpAddr,
    /// The pool's wishes.
    pub announce: &'a AnnounceView,
}

/// What is known of a node.
#[derive(Clone, Copy, Debug)]
pub struct NodeFacts<'a> {
    /// The Node.
    pub node: &'a NodeView,
    /// Its Speaker object.
    pub speaker: Option<&'a SpeakerView>,
    /// Whether its speaker renews its Lease.
    pub alive: bool,
    /// Whether its speaker was seen to renew it since we look.
    pub heard: bool,
}

/// Why a node cannot announce an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Rejection {
    /// The out-of-service taint: the node is off, an administrator says.
    OutOfService,
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
    /// The drain annotation.
    DrainAsked,
    /// The speaker asks for its addresses to be moved away.
    Draining,
    /// No interface for the address, and why.
    NoInterface(String),
    /// `externalTrafficPolicy: Local`, and nothing serves there.
    NoLocalEndpoint,
    /// `externalTrafficPolicy: Local`, and all that still serves there is terminating.
    EndpointTerminating,
}

impl Rejection {
    /// Whether an address that is on such a node still works there, so that moving it can wait for its turn.
    pub fn leaves_time(&self) -> bool {
        match self {
            Self::NotReady
            | Self::Excluded
            | Self::NotSelected
            | Self::DrainAsked
            | Self::Draining
            | Self::EndpointTerminating => true,
            Self::OutOfService | Self::NoSpeaker | Self::SpeakerDead | Self::NoInterface(_) | Self::NoLocalEndpoint => {
                false
            }
        }
    }
}

impl fmt::Display for Rejection {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::OutOfService => write!(f, "it has the taint {OUT_OF_SERVICE_TAINT}"),
            Self::NoSpeaker => f.write_str("no speaker runs there"),
            Self::SpeakerDead => f.write_str("its speaker has not renewed its Lease for 15 s"),
            Self::NotReady => f.write_str("the Node is not Ready"),
            Self::Excluded => write!(f, "it has the label {EXCLUDE_LABEL}"),
            Self::NotSelected => f.write_str("the pool's announce.nodeSelector does not select it"),
            Self::DrainAsked => write!(f, "it has the annotation {DRAIN_ANNOTATION}"),
            Self::Draining => f.write_str("its speaker is draining"),
            Self::NoInterface(reason) => f.write_str(reason),
            Self::NoLocalEndpoint => f.write_str("it has no serving endpoint (externalTrafficPolicy: Local)"),
            Self::EndpointTerminating => {
                f.write_str("its last serving endpoint is terminating (externalTrafficPolicy: Local)")
            }
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
    /// How much the pool prefers the node.
    pub weight: u64,
    /// Nodes whose speakers do not answer it on the first of the interfaces, although they should.
    pub unheard: BTreeSet<String>,
    /// Whether its speaker has given a sign of life since we look: of one that has not nobody knows yet.
    pub heard: bool,
}

#[cfg(test)]
impl Candidate {
    /// Nothing is special about it.
    pub(super) fn plain(node: &str) -> Self {
        let interfaces = vec!["eth0".to_owned()];
        Self { node: node.to_owned(), interfaces, weight: 0, unheard: BTreeSet::new(), heard: true }
    }
}

/// All nodes, sorted into those that can announce an address and those that cannot, wherever its endpoints are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Eligible {
    /// Those that can, by name.
    pub fit: BTreeMap<String, Candidate>,
    /// The others, by name, with the reason.
    pub rejected: BTreeMap<String, Rejected>,
}

/// For `externalTrafficPolicy: Local`: the nodes on which the endpoints of an address are.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LocalEndpoints {
    /// Nodes with a ready endpoint.
    pub ready: BTreeSet<String>,
    /// Nodes that have no ready endpoint, but one that serves while it terminates.
    pub terminating: BTreeSet<String>,
}

impl LocalEndpoints {
    /// The nodes that serve both: Services that share an address share the nodes that can announce it.
    pub fn and(&self, other: &Self) -> Self {
        let serve = |one: &Self, node: &String| one.ready.contains(node) || one.terminating.contains(node);
        let ready: BTreeSet<String> = &self.ready & &other.ready;
        let both = self.ready.iter().chain(&self.terminating).filter(|node| serve(other, node));
        let terminating = both.filter(|node| !ready.contains(*node)).cloned().collect();
        Self { ready, terminating }
    }
}

/// All nodes, sorted into those that can announce one address and those that cannot.
#[derive(Clone, Debug, Default)]
pub struct Candidates {
    eligible: Arc<Eligible>,
    local: Option<LocalEndpoints>,
    /// With `local`: the eligible nodes of the best kind there is.
    serving: BTreeSet<String>,
}

impl Candidates {
    /// The eligible nodes, with `externalTrafficPolicy: Local` of those only the ones that serve.
    pub fn new(eligible: Arc<Eligible>, local: Option<LocalEndpoints>) -> Self {
        let among = |nodes: &BTreeSet<String>| -> BTreeSet<String> {
            nodes.iter().filter(|node| eligible.fit.contains_key(*node)).cloned().collect()
        };
        let serving = local.as_ref().map_or_else(BTreeSet::new, |local| {
            let ready = among(&local.ready);
            if ready.is_empty() { among(&local.terminating) } else { ready }
        });
        Self { eligible, local, serving }
    }

    /// The candidate of this name.
    pub fn get(&self, node: &str) -> Option<&Candidate> {
        self.eligible.fit.get(node).filter(|_| self.local.is_none() || self.serving.contains(node))
    }

    /// All candidates, by name.
    pub fn fit(&self) -> impl Iterator<Item = &Candidate> {
        self.eligible.fit.values().filter(|candidate| self.local.is_none() || self.serving.contains(&candidate.node))
    }

    /// Whether no node can announce the address.
    pub fn is_empty(&self) -> bool {
        self.fit().next().is_none()
    }

    /// Why the node of this name, which exists, is no candidate.
    pub fn rejection(&self, node: &str) -> Option<Rejection> {
        if let Some(rejected) = self.eligible.rejected.get(node) {
            return Some(rejected.reason.clone());
        }
        let known = self.eligible.fit.contains_key(node) && self.get(node).is_none();
        let terminating = self.local.as_ref().is_some_and(|local| local.terminating.contains(node));
        known.then_some(if terminating { Rejection::EndpointTerminating } else { Rejection::NoLocalEndpoint })
    }

    /// Every node that is no candidate, by name, and why.
    pub fn rejections(&self) -> impl Iterator<Item = (&str, Rejection)> {
        let names: BTreeSet<&String> = self.eligible.rejected.keys().chain(self.eligible.fit.keys()).collect();
        names.into_iter().filter_map(|node| Some((node.as_str(), self.rejection(node)?)))
    }

    /// Whether an administrator wants nothing of the node: it is excluded, or there is no such Node any more.
    pub fn is_excluded(&self, node: &str) -> bool {
        match self.eligible.rejected.get(node) {
            Some(rejected) => rejected.is_excluded,
            None => !self.eligible.fit.contains_key(node),
        }
    }

    /// Whether the speaker of the node may still answer for an address that it has.
    pub fn may_answer(&self, node: &str) -> bool {
        self.eligible.fit.contains_key(node) || self.eligible.rejected.get(node).is_some_and(|node| node.is_alive)
    }
}

/// Sorts the nodes into those that can announce the address and those that cannot, wherever its endpoints are.
pub fn eligible<'a>(question: &Question<'_>, nodes: impl IntoIterator<Item = NodeFacts<'a>>) -> Eligible {
    let mut found = Eligible::default();
    for facts in nodes {
        let node = facts.node.name.clone();
        match judge(question, &facts) {
            Ok(interfaces) => {
                let preferred = question.announce.preferred.iter();
                let weight = preferred
                    .filter(|(_, selector)| selector.matches(&facts.node.labels))
                    .map(|(weight, _)| u64::from(*weight))
                    .sum();
                let speaker = facts.speaker.into_iter().flat_map(|speaker| &speaker.interfaces);
                let first = speaker.filter(|interface| Some(&interface.name) == interfaces.first());
                let unheard = first.flat_map(|interface| interface.unheard.iter().cloned()).collect();
                found.fit.insert(node.clone(), Candidate { node, interfaces, weight, unheard, heard: facts.heard });
            }
            Err(reason) => {
                let is_excluded = excluded(question, facts.node).is_some();
                let is_alive = facts.alive && !facts.node.out_of_service;
                found.rejected.insert(node, Rejected { reason, is_excluded, is_alive });
            }
        }
    }
    found
}

fn judge(question: &Question<'_>, facts: &NodeFacts<'_>) -> Result<Vec<String>, Rejection> {
    if facts.node.out_of_service {
        return Err(Rejection::OutOfService);
    }
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
    if facts.node.drain_asked {
        return Err(Rejection::DrainAsked);
    }
    if speaker.draining {
        return Err(Rejection::Draining);
    }
    eligible_interfaces(question.address, &question.announce.interfaces, &speaker.interfaces)
        .map_err(Rejection::NoInterface)
}

/// What an administrator has against the node.
fn excluded(question: &Question<'_>, node: &NodeView) -> Option<Rejection> {
    if node.labels.contains_key(EXCLUDE_LABEL) {
        return Some(Rejection::Excluded);
    }
    let selector = question.announce.node_selector.as_ref();
    selector.is_some_and(|selector| !selector.matches(&node.labels)).then_some(Rejection::NotSelected)
}

/// The subnets of an interface. An address without neighbours is none: kube-proxy's IPVS mode puts every virtual IP so on an
/// interface of its own. Nor is a link-local address: every interface has one of the same IPv6 subnet.
pub fn subnets(interface: &NetworkInterface) -> impl Iterator<Item = IpNet> {
    let nets = interface.addresses.iter().filter_map(|text| text.parse::<IpNet>().ok());
    let is_link_local = |net: &IpNet| matches!(net, IpNet::V6(net) if net.addr().is_unicast_link_local());
    nets.filter(move |net| net.prefix_len() < net.max_prefix_len() && !is_link_local(net)).map(|net| net.trunc())
}

/// The interfaces that can announce the address, best first: those that the globs name, in the order of the globs; without
/// globs those whose subnet holds the address; where there is none, those of the default route of its family.
///
/// # Errors
/// A clause that says why there is none.
pub fn eligible_interfaces(
    address: IpAddr,
    globs: &[String],
    interfaces: &[NetworkInterface],
) -> Result<Vec<String>, String> {
    let holds = |interface: &&NetworkInterface| subnets(interface).any(|net| net.contains(&address));
    let mut wanted: Vec<&NetworkInterface> = Vec::new();
    if globs.is_empty() {
        wanted.extend(interfaces.iter().filter(holds));
        if wanted.is_empty() {
            let is_default = |interface: &&NetworkInterface| {
                if address.is_ipv6() { interface.default_route_ipv6 } else { interface.default_route }
            };
            wanted.extend(interfaces.iter().filter(is_default));
        }
        if wanted.is_empty() {
            let route = if address.is_ipv6() { "IPv6 default route" } else { "default route" };
            let nowhere = format!("no interface has the address in its subnet, and there is no {route}");
            // With IPv6 turned off on it an interface has no subnet either: that is then the cause.
            let able = |interface: &&NetworkInterface| interface.announces && interface.carrier;
            let off = interfaces.iter().filter(able).filter_map(|interface| can_announce(address, interface).err());
            return Err(std::iter::once(nowhere).chain(off).collect::<Vec<_>>().join("; "));
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
        wanted.into_iter().map(|interface| can_announce(address, interface)).partition(Result::is_ok);
    if fit.is_empty() {
        let reasons: Vec<String> = unfit.into_iter().filter_map(Result::err).collect();
        return Err(reasons.join(", "));
    }
    Ok(fit.into_iter().flatten().cloned().collect())
}

/// The name of the interface, if it can announce the address, or why it cannot.
fn can_announce(address: IpAddr, interface: &NetworkInterface) -> Result<&String, String> {
    let because = |what: &str, reason: &str| match reason {
        "" => format!("{} cannot announce{what}", interface.name),
        reason => format!("{} cannot announce{what}: {reason}", interface.name),
    };
    if !interface.carrier {
        return Err(format!("{} has no link", interface.name));
    }
    if !interface.announces {
        return Err(because("", &interface.reason));
    }
    if address.is_ipv6() && !interface.announces_ipv6 {
        return Err(because(" IPv6 addresses", &interface.reason_ipv6));
    }
    Ok(&interface.name)
}

/// Whether `*` in `glob` can stand for something that makes it `name`.
fn matches_glob(glob: &str, name: &str) -> bool {
    let Some((head, tail)) = glob.split_once('*') else { return glob == name };
    let Some(rest) = name.strip_prefix(head) else { return false };
    let (middle, end) = tail.rsplit_once('*').unwrap_or(("", tail));
    let Some(mut rest) = rest.strip_suffix(end) else { return false };
    // Each part as early as it can be: no other choice leaves more for those after it.
    for part in middle.split('*') {
        let Some((_, after)) = rest.split_once(part) else { return false };
        rest = after;
    }
    true
}

#[cfg(test)]
#[path = "eligibility_tests.rs"]
mod tests;
