//! Addresses that are somebody's already: those of nodes, the cluster's own ranges, and those that no host can have. They are never
//! handed out.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;

use crate::{
    controller::view::{NodeView, ServiceRangeView, SpeakerView},
    ipam::{AddressRange, Pool},
};

/// kube-proxy and kube-router put the addresses of all Services on these, ours among them.
const SERVICE_INTERFACES: [&str; 2] = ["kube-ipvs0", "kube-dummy-if"];

/// Ranges of which no Service could be reached by an address, whoever lists them (RFC 6890).
const NO_HOSTS: [(&str, &str); 8] = [
    ("0.0.0.0/8", "which no host can have"),
    ("127.0.0.0/8", "the loopback of every host"),
    ("224.0.0.0/4", "which is for multicast"),
    ("255.255.255.255", "the broadcast address of every network"),
    ("::", "no address of a host"),
    ("::1", "the loopback of every host"),
    ("fe80::/10", "which is link-local and means nothing without an interface"),
    ("ff00::/8", "which is for multicast"),
];

/// The object that says so. In this order they are asked: an interface says more than a Node.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Source {
    /// The rules of the Internet Protocol.
    Protocol,
    Speaker(String),
    Node(String),
    ServiceRange(String),
}

/// What is reserved, and a phrase that goes on after "192.0.2.11 is".
type Item = (AddressRange, String);

/// Part of a pool that is not handed out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Collision {
    pub(super) pool: String,
    /// What it is and what it collides with.
    pub(super) sentence: String,
}

/// All that is reserved, by the object that says so.
#[derive(Debug)]
pub(super) struct Reservations {
    items: BTreeMap<Source, Vec<Item>>,
    /// Addresses on interfaces. A Service's address may be one of them: some load balancers put it there.
    on_interfaces: BTreeMap<IpAddr, BTreeSet<Source>>,
}

impl Default for Reservations {
    /// What is reserved everywhere.
    fn default() -> Self {
        let item = |(text, whose): &(&str, &str)| {
            let range: AddressRange = text.parse().ok()?;
            Some((
                range,
                if range.first() == range.last() { (*whose).to_owned() } else { format!("in {text}, {whose}") },
            ))
        };
        let items = BTreeMap::from([(Source::Protocol, NO_HOSTS.iter().filter_map(item).collect())]);
        Self { items, on_interfaces: BTreeMap::new() }
    }
}

impl Reservations {
    /// What this object says now; returns what is reserved by it since, and what is not any more.
    pub(super) fn set(&mut self, source: Source, items: Vec<Item>) -> Vec<AddressRange> {
        let old = if items.is_empty() {
            self.items.remove(&source)
        } else {
            self.items.insert(source.clone(), items.clone())
        };
        let old = old.unwrap_or_default();
        if matches!(source, Source::Speaker(_)) && old != items {
            for (range, _) in &old {
                if let Some(sources) = self.on_interfaces.get_mut(&range.first()) {
                    sources.remove(&source);
                }
            }
            for (range, _) in &items {
                self.on_interfaces.entry(range.first()).or_default().insert(source.clone());
            }
            self.on_interfaces.retain(|_, sources| !sources.is_empty());
        }
        let gone = old.iter().filter(|item| !items.contains(item));
        let new = items.iter().filter(|item| !old.contains(item));
        gone.chain(new).map(|(range, _)| *range).collect()
    }

    /// Whether some node has the address on an interface.
    pub(super) fn is_on_interface(&self, address: IpAddr) -> bool {
        self.on_interfaces.contains_key(&address)
    }

    /// Whose the address is. What a Service has in use is not a node's own because it is on an interface.
    pub(super) fn whose(&self, address: IpAddr, in_use: impl Fn(IpAddr) -> bool) -> Option<&str> {
        self.counting(in_use).find(|(range, _)| range.contains(address)).map(|(_, what)| what.as_str())
    }

    /// Takes everything out of the pools, and says what that was.
    pub(super) fn withhold(&self, pools: &mut [Pool], in_use: impl Fn(IpAddr) -> bool) -> Vec<Collision> {
        let mut collisions = Vec::new();
        for (range, what) in self.counting(in_use) {
            for pool in pools.iter_mut() {
                for part in pool.withhold(*range) {
                    let sentence = format!("{part} is {what}; it is not used");
                    collisions.push(Collision { pool: pool.name().to_owned(), sentence });
                }
            }
        }
        collisions
    }

    fn counting(&self, in_use: impl Fn(IpAddr) -> bool) -> impl Iterator<Item = &Item> {
        self.items.iter().flat_map(|(source, items)| items.iter().map(move |item| (source, item))).filter_map(
            move |(source, item)| {
                let of_service = matches!(source, Source::Speaker(_)) && in_use(item.0.first());
                (!of_service).then_some(item)
            },
        )
    }
}

/// What a Node says of its own addresses and of those of its pods.
pub(super) fn of_node(node: &NodeView) -> Vec<Item> {
    let own = node
        .addresses
        .iter()
        .map(|address| (AddressRange::single(*address), format!("an address of node {}", node.name)));
    let pods =
        node.pod_ranges.iter().map(|(range, text)| (*range, format!("in {text}, the pods of node {}", node.name)));
    own.chain(pods).collect()
}

/// What a speaker sees on the interfaces of its node. The first and the last address of an IPv4 subnet are those of the subnet itself:
/// hosts in it send what is for them to everybody, or do not send it (RFC 1122 3.2.1.3).
pub(super) fn of_speaker(speaker: &SpeakerView) -> Vec<Item> {
    let interfaces =
        speaker.interfaces.iter().filter(|interface| !SERVICE_INTERFACES.contains(&interface.name.as_str()));
    let nets = interfaces.flat_map(|interface| {
        let nets = interface.addresses.iter().filter_map(|text| text.parse::<IpNet>().ok());
        nets.map(move |net| (interface, net))
    });
    let (node, mut items, mut of_subnets) = (&speaker.node, Vec::new(), Vec::new());
    for (interface, net) in nets {
        let place = format!("node {node} ({})", interface.name);
        items.push((AddressRange::single(net.addr()), format!("an address of {place}")));
        // A subnet of two hosts, or of one, has no such addresses (RFC 3021).
        if let IpNet::V4(subnet) = net
            && subnet.prefix_len() < 31
        {
            let subnet = subnet.trunc();
            for (address, kind) in [(subnet.network(), "network"), (subnet.broadcast(), "broadcast")] {
                let what = format!("the {kind} address of {subnet}, the subnet of {place}");
                of_subnets.push((AddressRange::single(address.into()), what));
            }
        }
    }
    items.extend(of_subnets);
    items
}

/// What a ServiceCIDR says.
pub(super) fn of_service_range(view: &ServiceRangeView) -> Vec<Item> {
    let what = |text: &String| format!("in {text}, the cluster's own range for Services (ServiceCIDR {})", view.name);
    view.ranges.iter().map(|(range, text)| (*range, what(text))).collect()
}
