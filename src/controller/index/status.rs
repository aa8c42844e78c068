//! What Services, pools and Speakers show.

use std::{net::IpAddr, time::Duration};

use super::{AWAITING_SAID_AFTER, Index, PUBLISH_AT_LAST, PUBLISH_UNCLAIMED_AFTER, Target};
use crate::{
    api::{self, AnnouncedReason, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, ClaimState, EVENT_ADDRESS_CHANGED},
    controller::{
        change::{Change, ServiceEvent, ServiceStatus, WantedCondition},
        conditions::{self, AddressFacts, AddressState, AllocationFacts},
        view::ServiceView,
    },
    ipam::{Allocated, Family},
};

impl Index {
    /// What the Service is to show.
    pub(super) fn derive_service(&mut self, key: &str, now: Duration) -> Option<Change> {
        let Some(service) = self.services.get(key).cloned() else {
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
        let grant = self.grants.get(key)?;
        let allocated = grant.addresses.clone();
        let held = self.holdings.get(key).into_iter().flatten();
        let homeless = held.copied().filter(|address| self.homeless.contains_key(address)).collect();
        let departures = self.departures.get(key).cloned().unwrap_or_default();
        let mut facts = AllocationFacts {
            addresses: &allocated,
            problem: grant.problem.as_ref(),
            remarks: &grant.remarks,
            homeless: &homeless,
            taken_back: Vec::new(),
        };
        let lost = departures.iter().filter(|(address, _)| service.shown.contains(address));
        facts.taken_back.extend(lost.map(|(address, why)| (*address, why.sentence.as_str())));
        let mut conditions = vec![conditions::allocated(&facts, service.conditions.get(CONDITION_ALLOCATED))];
        let mut addresses: Vec<IpAddr> = allocated.iter().map(Allocated::address).collect();
        if !addresses.is_empty() {
            if !self.may_be_shown(&service, &allocated, now) {
                return None;
            }
            let states = self.address_states(&service, &addresses);
            if self.is_passing(&service, &states, now) {
                return None;
            }
            conditions.push(conditions::announced(&states));
            // Clients would reach the host that answers there.
            addresses.retain(|address| service.shown.contains(address) || !self.is_disputed(*address));
        }
        for wanted in &mut conditions {
            let shown = service.conditions.get(wanted.type_).filter(|shown| shown.status == wanted.status);
            wanted.since = shown.map(|shown| shown.since.clone());
        }
        if shows(&service, &addresses, &conditions) {
            return None;
        }
        let departures = departures.iter().map(|(address, why)| (*address, why.sentence.as_str()));
        let event = event(&service, &conditions, &addresses, &departures.collect::<Vec<_>>());
        status(addresses, conditions, event)
    }

    /// Whether a foreign host answers for the address and no speaker does.
    fn is_disputed(&self, address: IpAddr) -> bool {
        let claims = self.claims_that_count(address);
        let owned = claims.iter().any(|claim| claim.state == ClaimState::Owner);
        !owned && self.decisions.get(&address).is_some_and(|decision| conditions::conflict(&claims, decision).is_some())
    }

    /// Not before every address is recorded as the Service's, and not before a speaker has claimed it, or had the time to; what is
    /// shown already stays.
    fn may_be_shown(&mut self, service: &ServiceView, allocated: &[Allocated], now: Duration) -> bool {
        for allocated in allocated {
            let address = allocated.address();
            if service.shown.contains(&address) {
                continue;
            }
            // A controller that starts believes the record, not the Service.
            let vip = self.vips.get(&api::virtual_ip_name(address));
            if !vip.is_some_and(|vip| vip.spec.services.contains(&service.key)) {
                return false; // Its next state brings us back.
            }
            let claimed = || self.claims_that_count(address).iter().any(|claim| claim.state == ClaimState::Owner);
            if claimed() || self.is_disputed(address) {
                continue;
            }
            // The object is not there yet; its first sight brings us back.
            let Some((_, since)) = self.seen.get(&address) else { return false };
            let may_wait = now < *since + PUBLISH_AT_LAST && self.may_be_claimed_late(address, now);
            let due = match *since + PUBLISH_UNCLAIMED_AFTER {
                // Two writes in place of one would not make it quicker.
                due if due <= now && may_wait => now + PUBLISH_UNCLAIMED_AFTER,
                due if due <= now => continue,
                due => due,
            };
            self.timers.insert((due, Target::Service(service.key.clone())));
            return false;
        }
        true
    }

    fn address_states(&mut self, service: &ServiceView, addresses: &[IpAddr]) -> Vec<AddressState> {
        addresses
            .iter()
            .map(|address| {
                let candidates = self.candidates(*address);
                let decision = self.decisions.get(address).cloned().unwrap_or_default();
                let claims = self.claims_that_count(*address);
                let conflict = conditions::conflict(&claims, &decision).and_then(|claim| claim.conflict_mac.as_deref());
                conditions::address_state(&AddressFacts {
                    address: *address,
                    decision: &decision,
                    candidates: &candidates,
                    claims: &claims,
                    conflicting_node: conflict.and_then(|mac| self.node_with_mac(mac)),
                    endpoints: service.is_local.then(|| self.endpoint_state(&service.key, Family::of(*address))),
                })
            })
            .collect()
    }

    /// Between two owners there is a moment without a claim; saying so would cost two writes and tell nobody anything.
    fn is_passing(&mut self, service: &ServiceView, states: &[AddressState], now: Duration) -> bool {
        let was_announced = service.conditions.get(CONDITION_ANNOUNCED).is_some_and(|shown| shown.status);
        let mut silent = states.iter().filter_map(AddressState::why_silent).peekable();
        let awaits = silent.peek().is_some() && silent.all(|reason| reason == AnnouncedReason::AwaitingSpeaker);
        if !awaits || !was_announced {
            self.awaiting_since.remove(&service.key);
            return false;
        }
        let due = *self.awaiting_since.entry(service.key.clone()).or_insert(now) + AWAITING_SAID_AFTER;
        if due > now {
            self.timers.insert((due, Target::Service(service.key.clone())));
        }
        due > now
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

/// What the user is told of this change: another address, that there is none, who announces now, or why nobody does.
fn event(
    service: &ServiceView,
    wanted: &[WantedCondition],
    addresses: &[IpAddr],
    departures: &[(IpAddr, &str)],
) -> Option<ServiceEvent> {
    let event = |warning, reason, message| ServiceEvent {
        namespace: service.namespace.clone(),
        name: service.name.clone(),
        uid: service.uid.clone(),
        warning,
        reason,
        message,
    };
    let has_news = |condition: &WantedCondition| {
        let shown = service.conditions.get(condition.type_);
        let other_reason = shown.is_none_or(|shown| shown.reason != condition.reason);
        let other_words = shown.is_none_or(|shown| shown.message != condition.message);
        (other_reason, other_words)
    };
    let allocated = wanted.iter().find(|condition| condition.type_ == CONDITION_ALLOCATED);
    if allocated.is_some_and(|condition| condition.status && has_news(condition).1) && !departures.is_empty() {
        let announced = wanted.iter().find(|condition| condition.type_ == CONDITION_ANNOUNCED);
        let warning = announced.is_some_and(|condition| !condition.status);
        let mut message = conditions::address_changed(&service.shown, addresses, departures);
        if let Some(announced) = announced {
            message = format!("{message}; {}", announced.message);
        }
        return Some(event(warning, EVENT_ADDRESS_CHANGED, message));
    }
    let told = wanted.iter().find(|condition| {
        let (other_reason, other_words) = has_news(condition);
        match (condition.type_, condition.status) {
            (CONDITION_ALLOCATED, true) => false, // Who announces it is told with the address.
            (CONDITION_ALLOCATED, false) => other_reason || other_words,
            (_, true) => other_words,
            // A hand-over that takes its time is no news, and lists of reasons change with every node.
            (_, false) => other_reason && condition.reason != AnnouncedReason::AwaitingSpeaker.as_str(),
        }
    });
    // What was wrong is put right, and who announces has not changed: the last that was told was a warning.
    let put_right = allocated.filter(|condition| {
        condition.status && service.conditions.get(CONDITION_ALLOCATED).is_some_and(|shown| !shown.status)
    });
    let told = told.or(put_right)?;
    Some(event(!told.status, told.reason, told.message.clone()))
}
