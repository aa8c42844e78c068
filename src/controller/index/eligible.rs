//! Who can announce an address. The answer is worked out once for all addresses of a pool and a subnet, and kept until a node,
//! a speaker or a pool changes: with thousands of addresses nothing else would be as dear.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use ipnet::IpNet;

use super::Index;
use crate::{
    api::NetworkInterface,
    controller::{
        eligibility::{self, Candidates, Eligible, LocalEndpoints, NodeFacts, Question},
        view::AnnounceView,
    },
    ipam::Family,
};

/// Answers that are still true.
#[derive(Debug, Default)]
pub(super) struct Answers {
    /// Every subnet that an interface of any node has.
    subnets: Option<Vec<IpNet>>,
    known: BTreeMap<Key, Arc<Eligible>>,
}

/// Addresses that are alike in all that an answer depends on.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    pool: Option<String>,
    family: Family,
    /// The subnets that hold the address, by position.
    subnets: Vec<usize>,
}

impl Answers {
    /// A node, a speaker, its life or a pool has changed.
    pub(super) fn clear(&mut self) {
        *self = Self::default();
    }
}

impl Index {
    /// All nodes, sorted into those that can announce the address and those that cannot.
    pub(super) fn candidates(&mut self, address: IpAddr) -> Candidates {
        let local = self.local_endpoints(address);
        let pool = self.allocator.pool_of_held(address).filter(|_| self.announce_of(address).is_some());
        let speakers = &self.speakers;
        let subnets = self.answers.subnets.get_or_insert_with(|| {
            let interfaces = speakers.values().flat_map(|speaker| &speaker.interfaces);
            let mut subnets: Vec<IpNet> = interfaces.flat_map(eligibility::subnets).collect();
            subnets.sort_unstable();
            subnets.dedup();
            subnets
        });
        let holding = subnets.iter().enumerate().filter(|(_, net)| net.contains(&address)).map(|(at, _)| at);
        let key = Key { pool: pool.map(str::to_owned), family: Family::of(address), subnets: holding.collect() };
        if let Some(known) = self.answers.known.get(&key) {
            return Candidates::new(known.clone(), local);
        }
        let everywhere = AnnounceView::default();
        let announce = self.announce_of(address).unwrap_or(&everywhere);
        let facts = self.nodes.values().map(|node| NodeFacts {
            node,
            speaker: self.speakers.get(&node.name),
            alive: self.liveness.is_alive(&node.name),
            heard: self.liveness.was_heard(&node.name),
        });
        let found = Arc::new(eligibility::eligible(&Question { address, announce }, facts));
        self.answers.known.insert(key, found.clone());
        Candidates::new(found, local)
    }

    /// What the pool of the address says about announcing it, or said when it was removed: it may be made anew, or under another
    /// name.
    pub(super) fn announce_of(&self, address: IpAddr) -> Option<&AnnounceView> {
        let name = self.allocator.pool_of_held(address)?;
        self.pools.get(name).map(|pool| &pool.announce).or_else(|| self.removed_pools.get(name))
    }

    /// Whether the speaker of the node works, as far as we know: its Lease is renewed and nobody says that the node is off.
    pub(super) fn is_living(&self, node: &str) -> bool {
        self.liveness.is_alive(node) && !self.nodes.get(node).is_some_and(|node| node.out_of_service)
    }

    /// The node that has an interface with this MAC address.
    pub(super) fn node_with_mac(&self, mac: &str) -> Option<&str> {
        let has = |interface: &NetworkInterface| interface.mac.eq_ignore_ascii_case(mac);
        let speaker = self.speakers.values().find(|speaker| speaker.interfaces.iter().any(has))?;
        Some(speaker.node.as_str())
    }

    /// For an address with a Service of policy Local: where every such Service has endpoints.
    fn local_endpoints(&self, address: IpAddr) -> Option<LocalEndpoints> {
        let local = self.allocator.users(address).filter_map(|key| self.services.get(key)).filter(|view| view.is_local);
        let endpoints = local.map(|service| self.endpoints(&service.key, Family::of(address)));
        endpoints.reduce(|all, these| all.and(&these))
    }
}
