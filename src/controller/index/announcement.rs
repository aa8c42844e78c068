//! Which node announces an address: the VirtualIP as it should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::{Index, owns};
use crate::{
    api::{self, Claim, ClaimState, Role, VirtualIPSpec},
    controller::{
        change::Change,
        placement::{self, Candidates, Decision, NodeFacts, OwnerClaim, Question, Rejected, Rejection},
        view::AnnounceView,
    },
};

impl Index {
    /// What is wanted of the VirtualIP for this address.
    pub(super) fn derive_virtual_ip(&mut self, address: IpAddr) -> Option<Change> {
        let users: Vec<String> = self.allocator.users(address).map(str::to_owned).collect();
        let observed = self.vips.get(&api::virtual_ip_name(address)).cloned();
        if users.is_empty() && !self.allocator.is_quarantined(address) {
            self.set_decision(address, None);
            let vip = observed.filter(|vip| !vip.deleting)?;
            return Some(Change::DeleteVirtualIP { address, uid: vip.uid, resource_version: vip.resource_version });
        }
        // Whoever uses the address may have something else to show now.
        self.dirty.extend(users.iter().cloned().map(super::Target::Service));

        let candidates = self.candidates(address);
        let current = self.decisions.get(&address).cloned().unwrap_or_default();
        // The address does not count for its present holder when somebody has to be chosen.
        let decision = placement::assign(&current, &self.owner_claims(address), &candidates, |primary| {
            self.loads.get(primary).map(|load| load.standbys.keys().cloned().collect()).unwrap_or_default()
        });
        let wanted = VirtualIPSpec {
            address: address.to_string(),
            pool: self.allocator.pool_of_held(address).unwrap_or_default().to_owned(),
            services: users,
            failover: self.announce_of(address).failover,
            placement: decision.placement,
            assignments: decision.assignments.clone(),
        };
        self.set_decision(address, Some(decision));

        let Some(vip) = observed else { return Some(Change::CreateVirtualIP { spec: wanted }) };
        if vip.deleting {
            return None; // Made again when it is gone.
        }
        let labels = virtual_ip_labels(&wanted);
        if vip.spec != wanted || vip.node_labels != labels {
            let stale_labels = vip.node_labels.into_keys().filter(|label| !labels.contains_key(label)).collect();
            let resource_version = vip.resource_version;
            return Some(Change::UpdateVirtualIP { resource_version, spec: wanted, stale_labels });
        }
        let unassigned = |claim: &Claim| !wanted.assignments.iter().any(|entry| entry.node == claim.node);
        let index = vip.claims.iter().position(unassigned)?;
        let node = vip.claims[index].node.clone();
        Some(Change::RemoveClaim { address, resource_version: vip.resource_version, index, node })
    }

    /// The decision in the object counts: nothing that we decided since is on its way.
    pub(super) fn decide_as_observed(&mut self, address: IpAddr) {
        let Some(vip) = self.vips.get(&api::virtual_ip_name(address)) else { return };
        let decision = Decision { assignments: vip.spec.assignments.clone(), placement: vip.spec.placement };
        self.set_decision(address, Some(decision));
    }

    /// All nodes, sorted into those that can announce the address and those that cannot.
    pub(super) fn candidates(&self, address: IpAddr) -> Candidates {
        let announce = self.announce_of(address);
        let local_nodes = self.local_nodes(address);
        let question = Question { address, announce: &announce, local_nodes: local_nodes.as_ref() };
        let facts = self.nodes.values().map(|node| NodeFacts {
            node,
            speaker: self.speakers.get(&node.name),
            alive: self.liveness.is_alive(&node.name),
            load: self.loads.get(&node.name).map_or(0, |load| load.primary),
        });
        let mut candidates = placement::candidates(&question, facts);
        // An administrator who removes a Node wants nothing of it any more.
        let removed = self.decisions.get(&address).into_iter().flat_map(|decision| &decision.assignments);
        for entry in removed.filter(|entry| self.nodes.get(&entry.node).is_none()) {
            let reason = Rejection::NoNode;
            candidates.rejected.insert(entry.node.clone(), Rejected { reason, is_excluded: true, is_alive: false });
        }
        candidates
    }

    /// What the living speakers say that have a part in the address.
    pub(super) fn claims_that_count(&self, address: IpAddr) -> Vec<&Claim> {
        let vip = self.vips.get(&api::virtual_ip_name(address));
        let decision = self.decisions.get(&address);
        let has_part = |claim: &&Claim| {
            decision.is_some_and(|decision| decision.assignments.iter().any(|entry| entry.node == claim.node))
                && self.liveness.is_alive(&claim.node)
        };
        let claims = vip.into_iter().flat_map(|vip| vip.claims.iter().filter(|claim| claim.uid == vip.uid));
        claims.filter(has_part).collect()
    }

    /// For an address with a Service of policy Local: the nodes with a serving endpoint of every such Service.
    pub(super) fn local_nodes(&self, address: IpAddr) -> Option<BTreeSet<String>> {
        let local = self.allocator.users(address).filter_map(|key| self.services.get(key)).filter(|view| view.is_local);
        local.map(|service| self.serving_nodes(&service.key)).reduce(|all, these| &all & &these)
    }

    /// The nodes with a serving endpoint of the Service.
    pub(super) fn serving_nodes(&self, service: &str) -> BTreeSet<String> {
        let slices = self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices.flat_map(|slice| slice.serving.iter().cloned()).collect()
    }

    /// Whether the Service has any endpoint.
    pub(super) fn has_endpoints(&self, service: &str) -> bool {
        let mut slices = self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices.any(|slice| slice.has_endpoints)
    }

    fn announce_of(&self, address: IpAddr) -> AnnounceView {
        let pool = self.allocator.pool_of_held(address).and_then(|pool| self.pools.get(pool));
        pool.map(|pool| pool.announce.clone()).unwrap_or_default()
    }

    fn owner_claims(&self, address: IpAddr) -> Vec<OwnerClaim> {
        let Some(vip) = self.vips.get(&api::virtual_ip_name(address)) else { return Vec::new() };
        let claims = vip.claims.iter().filter(|claim| claim.state == ClaimState::Owner && owns(vip, &claim.node));
        let claim = |claim: &Claim| OwnerClaim {
            node: claim.node.clone(),
            placement: claim.placement,
            arrival: self.arrivals.get(&(address, claim.node.clone())).copied().unwrap_or(0),
        };
        claims.map(claim).collect()
    }
}

/// The labels by which speakers find what they are assigned.
pub fn virtual_ip_labels(spec: &VirtualIPSpec) -> BTreeMap<String, String> {
    let label = |role: Role| role.label_value().to_owned();
    spec.assignments.iter().map(|entry| (api::node_label(&entry.node), label(entry.role))).collect()
}
