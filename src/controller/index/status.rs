//! What Services, pools and Speakers show.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{AWAITING_SAID_AFTER, Index, POOL_STATUS_EVERY, PUBLISH_UNCLAIMED_AFTER, Target};
use crate::{
    api::{
        AnnouncedReason, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, CONDITION_READY, ClaimState, FamilyCount,
        IPPoolStatus,
    },
    controller::{
        change::{Change, ServiceEvent, ServiceStatus, WantedCondition},
        conditions::{self, AddressFacts},
        view::ServiceView,
    },
    ipam::{Allocated, FamilyUsage, Overlap},
};

impl Index {
    /// What the Service is to show.
    pub(super) fn derive_service(&mut self, key: &str, now: Duration) -> Option<Change> {
        let Some(service) = self.services.get(key).filter(|service| !service.deleting).cloned() else {
            self.awaiting_since.remove(key);
            return None;
        };
        let status = |addresses, conditions, event| {
            let (namespace, name, uid) = (service.namespace.clone(), service.name.clone(), service.uid.clone());
            let resource_version = service.resource_version.clone();
            let status = ServiceStatus { namespace, name, uid, resource_version, addresses, conditions, event };
            Some(Change::ServiceStatus(status))
        };
        if !self.is_ours(&service) {
            return service.has_our_status.then(|| status(Vec::new(), Vec::new(), None)).flatten();
        }
        let (addresses, mut conditions) = match self.outcomes.get(key)? {
            Err(problem) => (Vec::new(), vec![conditions::allocated(Err(problem), &BTreeSet::new())]),
            Ok(allocated) => {
                let allocated = allocated.clone();
                if !self.may_be_shown(&service, &allocated, now) {
                    return None;
                }
                let addresses: Vec<IpAddr> = allocated.iter().map(Allocated::address).collect();
                let announced = self.announced(&service, &addresses);
                if self.is_passing(&service, &announced, now) {
                    return None;
                }
                let in_no_pool = addresses.iter().copied().filter(|at| self.allocator.pool_of(*at).is_none()).collect();
                // Clients would reach the host that answers there.
                let taken = |address: &IpAddr| !service.shown.contains(address) && self.is_disputed(*address);
                let addresses = addresses.into_iter().filter(|address| !taken(address)).collect();
                (addresses, vec![conditions::allocated(Ok(&allocated), &in_no_pool), announced])
            }
        };
        for wanted in &mut conditions {
            let shown = service.conditions.get(wanted.type_).filter(|shown| shown.status == wanted.status);
            wanted.since = shown.map(|shown| shown.since.clone());
        }
        if shows(&service, &addresses, &conditions) {
            return None;
        }
        let event = event(&service, &conditions);
        status(addresses, conditions, event)
    }

    /// Whether a foreign host answers for the address and no speaker does.
    fn is_disputed(&self, address: IpAddr) -> bool {
        let claims = self.claims_that_count(address);
        let owned = claims.iter().any(|claim| claim.state == ClaimState::Owner);
        !owned && self.decisions.get(&address).is_some_and(|decision| conditions::conflict(&claims, decision).is_some())
    }

    /// Not before a speaker has claimed every address, or had the time to; what is shown already stays.
    fn may_be_shown(&mut self, service: &ServiceView, allocated: &[Allocated], now: Duration) -> bool {
        for allocated in allocated {
            let address = allocated.address();
            let claimed = || self.claims_that_count(address).iter().any(|claim| claim.state == ClaimState::Owner);
            if service.shown.contains(&address) || claimed() || self.is_disputed(address) {
                continue;
            }
            match self.seen.get(&address).map(|(_, since)| *since + PUBLISH_UNCLAIMED_AFTER) {
                Some(due) if due <= now => {}
                Some(due) => {
                    self.timers.insert((due, Target::Service(service.key.clone())));
                    return false;
                }
                None => return false, // The object is not there yet; its first sight brings us back.
            }
        }
        true
    }

    fn announced(&self, service: &ServiceView, addresses: &[IpAddr]) -> WantedCondition {
        let states: Vec<_> = addresses
            .iter()
            .map(|address| {
                let serves = || !self.serving_nodes(&service.key).is_empty();
                conditions::address_state(&AddressFacts {
                    address: *address,
                    decision: &self.decisions.get(address).cloned().unwrap_or_default(),
                    candidates: &self.candidates(*address),
                    claims: &self.claims_that_count(*address),
                    local_endpoints: service.is_local.then(|| (self.has_endpoints(&service.key), serves())),
                })
            })
            .collect();
        conditions::announced(&states)
    }

    /// Between two owners there is a moment without a claim; saying so would cost two writes and tell nobody anything.
    fn is_passing(&mut self, service: &ServiceView, announced: &WantedCondition, now: Duration) -> bool {
        let was_announced = service.conditions.get(CONDITION_ANNOUNCED).is_some_and(|shown| shown.status);
        if announced.reason != AnnouncedReason::AwaitingSpeaker.as_str() || !was_announced {
            self.awaiting_since.remove(&service.key);
            return false;
        }
        let due = *self.awaiting_since.entry(service.key.clone()).or_insert(now) + AWAITING_SAID_AFTER;
        if due > now {
            self.timers.insert((due, Target::Service(service.key.clone())));
        }
        due > now
    }

    /// What the pool is to show.
    pub(super) fn derive_pool(&mut self, name: &str, now: Duration) -> Option<Change> {
        let Some(pool) = self.pools.get(name) else {
            self.pool_written.remove(name);
            return None;
        };
        let usage = self.allocator.usage().into_iter().find(|(known, _)| *known == name).map(|(_, usage)| usage)?;
        let overlaps: Vec<&Overlap> = self.overlaps.iter().filter(|overlap| overlap.younger == name).collect();
        let (ready, reason, message) = conditions::pool_ready(&pool.problems, &overlaps);
        let shown = pool.status.conditions.iter().find(|shown| shown.type_ == CONDITION_READY);
        let status = if ready { "True" } else { "False" };
        let since = shown.filter(|shown| shown.status == status).map(|shown| shown.last_transition_time.clone());
        let wanted = IPPoolStatus {
            ipv4: usage.v4.map(family_count),
            ipv6: usage.v6.map(family_count),
            conditions: vec![Condition {
                type_: CONDITION_READY.to_owned(),
                status: status.to_owned(),
                reason: reason.to_owned(),
                message,
                observed_generation: pool.generation,
                // The writer puts the time of the write for this mark.
                last_transition_time: since.unwrap_or(Time(Timestamp::UNIX_EPOCH)),
            }],
        };
        if pool.status == wanted {
            return None;
        }
        let due = self.pool_written.get(name).map(|last| *last + POOL_STATUS_EVERY).filter(|due| *due > now);
        if let Some(due) = due {
            self.timers.insert((due, Target::Pool(name.to_owned())));
            return None;
        }
        self.pool_written.insert(name.to_owned(), now);
        Some(Change::PoolStatus { name: name.to_owned(), status: wanted })
    }

    /// Whether the Speaker has to be tied to its Node.
    pub(super) fn derive_speaker(&self, node: &str) -> Option<Change> {
        let (speaker, owner) = (self.speakers.get(node)?, self.nodes.get(node)?);
        let tied = speaker.owner_nodes.contains(&owner.uid);
        (!tied).then(|| Change::SpeakerOwner {
            node: node.to_owned(),
            node_uid: owner.uid.clone(),
            speaker_uid: speaker.uid.clone(),
        })
    }
}

fn family_count(usage: FamilyUsage) -> FamilyCount {
    FamilyCount {
        total: usage.total.to_string(),
        used: usage.used.to_string(),
        free: (usage.total - usage.used).to_string(),
    }
}

/// Whether the Service shows these addresses and conditions already.
pub(super) fn shows(service: &ServiceView, addresses: &[IpAddr], wanted: &[WantedCondition]) -> bool {
    let same = |condition: &WantedCondition| {
        service.conditions.get(condition.type_).is_some_and(|shown| {
            (shown.status, shown.reason.as_str(), shown.message.as_str())
                == (condition.status, condition.reason, condition.message.as_str())
        })
    };
    service.shown == addresses
        && service.shown_as_ours
        && service.conditions.len() == wanted.len()
        && wanted.iter().all(same)
}

/// What the user is told of this change: that there is no address, who announces now, or why nobody does.
fn event(service: &ServiceView, wanted: &[WantedCondition]) -> Option<ServiceEvent> {
    let told = wanted.iter().find(|condition| {
        let shown = service.conditions.get(condition.type_);
        let other_reason = shown.is_none_or(|shown| shown.reason != condition.reason);
        let other_words = shown.is_none_or(|shown| shown.message != condition.message);
        match (condition.type_, condition.status) {
            (CONDITION_ALLOCATED, true) => false, // Who announces it is told with the address.
            (CONDITION_ALLOCATED, false) => other_reason || other_words,
            (_, true) => other_words,
            // A hand-over that takes its time is no news, and lists of reasons change with every node.
            (_, false) => other_reason && condition.reason != AnnouncedReason::AwaitingSpeaker.as_str(),
        }
    })?;
    Some(ServiceEvent {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        uid: service.uid.clone(),
        warning: !told.status,
        reason: told.reason,
        message: told.message.clone(),
    })
}
