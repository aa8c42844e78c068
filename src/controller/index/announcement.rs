//! Which node announces an address: the VirtualIP as it should be.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{Index, Target, owns};
use crate::{
    api::{self, Claim, ClaimState, Role, VirtualIPSpec},
    controller::{
        change::Change,
        eligibility::{Candidates, Rejection},
        placement::{self, Case, Decision, OwnerClaim, Wish},
        view::VirtualIPView,
    },
    ipam::Allocated,
};

/// Who had an address says that it has it no more within this time after the new owner's claim.
const LEFT_BEHIND_AFTER: Duration = Duration::from_secs(10);

impl Index {
    /// What is wanted of the VirtualIP for this address.
    pub(super) fn derive_virtual_ip(&mut self, address: IpAddr, now: Duration) -> Option<Change> {
        let users: Vec<String> = self.allocator.users(address).map(str::to_owned).collect();
        let observed = self.vips.get(&api::virtual_ip_name(address)).cloned();
        if users.is_empty() && !self.allocator.is_quarantined(address) {
            self.set_decision(address, None);
            self.asked.remove(&address);
            self.moves.forget(address);
            self.moves_go_on(now);
            let vip = observed.filter(|vip| !vip.deleting)?;
            return Some(Change::DeleteVirtualIP { address, uid: vip.uid, resource_version: vip.resource_version });
        }
        // Whoever uses the address may have something else to show now.
        self.dirty.extend(users.iter().cloned().map(Target::Service));

        let decision = self.decide(address, now);
        let wanted = VirtualIPSpec {
            address: address.to_string(),
            pool: self.allocator.pool_of_held(address).unwrap_or_default().to_owned(),
            services: users,
            failover: self.announce_of(address).map(|announce| announce.failover).unwrap_or_default(),
            placement: decision.placement,
            assignments: decision.assignments.clone(),
        };
        self.set_decision(address, Some(decision));
        if let Some(end) = self.moves.begun(address, now) {
            self.timers.insert((end, Target::VirtualIP(address)));
        }
        self.moves_go_on(now);

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
        let index = self.void_claim(&vip).or_else(|| self.left_behind(&vip, now))?;
        let node = vip.claims[index].node.clone();
        Some(Change::RemoveClaim { address, resource_version: vip.resource_version, index, node })
    }

    fn decide(&mut self, address: IpAddr, now: Duration) -> Decision {
        let candidates = self.candidates(address);
        let current = self.decisions.get(&address).cloned().unwrap_or_default();
        let target = self.rebalance.take(address);
        let wish = match &target {
            Some(node) => Wish::MoveTo(node),
            None => self.ask_again(address, &current, now),
        };
        let (claims, together) = (self.owner_claims(address), self.together(address));
        let loads = &self.loads;
        let case = Case {
            current: &current,
            claims: &claims,
            highest: self.highest_placement(address),
            candidates: &candidates,
            load: &|node| loads.get(node).map_or(0, |load| load.primary),
            partners: &|primary| {
                loads.get(primary).map(|load| load.standbys.keys().cloned().collect()).unwrap_or_default()
            },
            together: &together,
            wish,
            hold: false,
            is_new: self.vips.get(&api::virtual_ip_name(address)).is_none(),
        };
        let decision = placement::assign(&case);
        if begins_to_move(&current, &decision, &candidates) && !self.moves.has_turn(address, now) {
            return placement::assign(&Case { wish: Wish::None, hold: true, ..case });
        }
        self.moves.decided(address, decision.is_moving());
        if matches!(wish, Wish::AskAgain | Wish::AskAnother) {
            self.has_asked(address, &decision, now);
        }
        decision
    }

    /// The decision in the object counts: nothing that we decided since is on its way.
    pub(super) fn decide_as_observed(&mut self, address: IpAddr) {
        let Some(vip) = self.vips.get(&api::virtual_ip_name(address)) else { return };
        let decision = Decision { assignments: vip.spec.assignments.clone(), placement: vip.spec.placement };
        self.set_decision(address, Some(decision));
    }

    /// What the living speakers say that have a part in the address.
    pub(super) fn claims_that_count(&self, address: IpAddr) -> Vec<&Claim> {
        let vip = self.vips.get(&api::virtual_ip_name(address));
        let decision = self.decisions.get(&address);
        let has_part =
            |claim: &&Claim| decision.is_some_and(|decision| decision.has(&claim.node)) && self.is_living(&claim.node);
        let claims = vip.into_iter().flat_map(|vip| vip.claims.iter().filter(|claim| claim.uid == vip.uid));
        claims.filter(has_part).collect()
    }

    /// Who says of this very object that it answers, dead or alive.
    pub(super) fn owner_claims(&self, address: IpAddr) -> Vec<OwnerClaim> {
        let Some(vip) = self.vips.get(&api::virtual_ip_name(address)) else { return Vec::new() };
        let claims = vip.claims.iter().filter(|claim| claim.state == ClaimState::Owner && owns(vip, &claim.node));
        let claim = |claim: &Claim| OwnerClaim {
            node: claim.node.clone(),
            placement: claim.placement,
            arrival: self.arrivals.get(&(address, claim.node.clone())).copied().unwrap_or(0),
        };
        claims.map(claim).collect()
    }

    /// Of how many addresses the node is the Primary.
    pub(super) fn load_of(&self, node: &str) -> usize {
        self.loads.get(node).map_or(0, |load| load.primary)
    }

    /// The nodes of the other addresses of the Services that use this one, primaries first.
    pub(super) fn together(&self, address: IpAddr) -> Vec<String> {
        let given =
            self.allocator.users(address).filter_map(|user| self.grants.get(user)).flat_map(|grant| &grant.addresses);
        // One that is on its way out is no company.
        let others: BTreeSet<IpAddr> = given.map(Allocated::address).filter(|other| *other != address).collect();
        let decisions: Vec<&Decision> = others.iter().filter_map(|other| self.decisions.get(other)).collect();
        let with = |role| decisions.iter().flat_map(move |decision| decision.with_role(role));
        with(Role::Primary).chain(with(Role::Standby)).map(str::to_owned).collect()
    }

    fn highest_placement(&self, address: IpAddr) -> i64 {
        let Some(vip) = self.vips.get(&api::virtual_ip_name(address)) else { return 0 };
        let claims = vip.claims.iter().filter(|claim| claim.uid == vip.uid);
        claims.map(|claim| claim.placement).max().unwrap_or(0)
    }

    /// The position of a claim that says nothing any more: of a node without a part, or of one whose speaker is dead. When
    /// nobody lives it is more likely that we do not see them.
    fn void_claim(&self, vip: &VirtualIPView) -> Option<usize> {
        let lives = |node: &str| self.is_living(node) && self.liveness.was_heard(node);
        let anybody_lives = || self.nodes.values().any(|node| lives(&node.name));
        let has_part = |node: &str| vip.spec.assignments.iter().any(|entry| entry.node == node);
        vip.claims.iter().position(|claim| !has_part(&claim.node) || (!self.is_living(&claim.node) && anybody_lives()))
    }

    /// The position of a claim to answer of a living standby, under a placement under which another node was named since, and has
    /// the address: its speaker ended before it could say that it yielded, and the next process never answered.
    fn left_behind(&mut self, vip: &VirtualIPView, now: Duration) -> Option<usize> {
        let named = |claim: &Claim| claim.state == ClaimState::Owner && claim.uid == vip.uid;
        let role = |node: &str| vip.spec.assignments.iter().find(|entry| entry.node == node).map(|entry| entry.role);
        let answers = |claim: &&Claim| {
            role(&claim.node) == Some(Role::Primary) && named(claim) && claim.placement == vip.spec.placement
        };
        let owner = vip.claims.iter().find(answers)?.node.clone();
        let is_stale = |claim: &Claim| {
            named(claim) && claim.placement < vip.spec.placement && role(&claim.node) == Some(Role::Standby)
        };
        let stale = vip.claims.iter().position(is_stale)?;
        // As a rule it says so itself a moment later.
        let due = *self.claimed_at.entry(owner).or_insert(now) + LEFT_BEHIND_AFTER;
        if now < due {
            self.timers.insert((due, Target::VirtualIP(vip.address)));
            return None;
        }
        Some(stale)
    }

    fn moves_go_on(&mut self, now: Duration) {
        self.dirty.extend(self.moves.next(now).into_iter().map(Target::VirtualIP));
    }
}

/// Whether the decision sends an address on its way that could stay a while where it is.
fn begins_to_move(current: &Decision, decision: &Decision, candidates: &Candidates) -> bool {
    current.primary().is_some_and(|old| {
        decision.with_role(Role::Leaving).any(|node| node == old)
            && candidates.rejection(old).as_ref().is_none_or(Rejection::leaves_time)
    })
}

/// The labels by which speakers find what they are assigned.
pub fn virtual_ip_labels(spec: &VirtualIPSpec) -> BTreeMap<String, String> {
    let label = |role: Role| role.label_value().to_owned();
    spec.assignments.iter().map(|entry| (api::node_label(&entry.node), label(entry.role))).collect()
}
