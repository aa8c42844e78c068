//! What the controller knows and what it therefore wants written. Pure; one task owns it.
//!
//! Inputs: [`Index::handle`] (what a watch says), [`Index::handle_lease_watch_lost`], [`Index::handle_outcome`] (what became
//! of a write). Output: [`Index::poll_change`], one write at a time, until it returns `None`; then [`Index::poll_timeout`]
//! says when to ask again if nothing happens before. `now` is the time since any fixed moment and never goes back.
//!
//! The index is level-triggered: an input marks objects dirty, and a dirty object's wanted state is derived from all that is
//! known and compared with what was observed. For each object one write is on its way at most; its result is taken as an
//! observation, so that a slow watch makes no duplicates. A write that failed is derived anew after a pause, never replayed.
//!
//! Nothing is wanted before every kind is synced. Then, once: the VirtualIPs say who has which address; Services that already
//! show an address of a pool keep it; only then addresses are handed out.

mod allocation;
mod announcement;
mod eligible;
mod leases;
mod moves;
mod outcomes;
mod pools;
mod quarantine;
mod rebalance;
mod reserved;
mod seek;
mod slices;
mod status;
mod table;
mod waiting;

use std::{
    collections::{BTreeMap, BTreeSet, btree_map::Entry},
    net::IpAddr,
    time::Duration,
};

use self::{
    allocation::{Departure, Grant},
    eligible::Answers,
    leases::LeaseObject,
    moves::{Asked, Moves},
    outcomes::{Backoff, EVENTS_KEPT, Written},
    pools::Stale,
    rebalance::Rebalance,
    reserved::{Collision, Reservations},
    table::Table,
    waiting::Waiting,
};
pub use self::{
    announcement::virtual_ip_labels,
    moves::{MOVE_TIME, MOVES_AT_ONCE},
    table::Delta,
};
use super::{
    change::{Change, ServiceEvent, ServiceStatus, Target},
    liveness::Liveness,
    placement::Decision,
    view::{
        AnnounceView, LeaseView, NamespaceView, NodeView, PoolView, ServiceRangeView, ServiceView, SliceView,
        SpeakerView, VirtualIPView,
    },
};
use crate::{
    api::{self, ClaimState, Role},
    ipam::{Allocator, Family, Overlap},
    small::SmallSet,
};

/// A new address is shown after this long even if no speaker has claimed it yet.
pub const PUBLISH_UNCLAIMED_AFTER: Duration = Duration::from_secs(2);
/// And after this long while so much is written, or the speaker has so many others to claim, that the claim may have to wait its
/// turn.
pub const PUBLISH_AT_LAST: Duration = Duration::from_secs(30);
/// Writes on their way at once that are many.
const BUSY: usize = 8;
/// A Service that was announced is not said to await its speaker before this long: most hand-overs are done by then.
pub const AWAITING_SAID_AFTER: Duration = Duration::from_secs(2);
/// An address that no pool holds any more is replaced after this long: so that a pool can be made anew, renamed or split by two
/// commands without disturbing anybody.
pub const REALLOCATED_AFTER: Duration = Duration::from_secs(30);
/// The counts of a pool are written at most this often.
pub const POOL_STATUS_EVERY: Duration = Duration::from_secs(1);

/// What a watch says about one of the kinds.
#[derive(Clone, Debug, PartialEq)]
pub enum Input {
    /// Services.
    Service(Delta<ServiceView>),
    /// EndpointSlices.
    Slice(Delta<SliceView>),
    /// Nodes.
    Node(Delta<NodeView>),
    /// Namespaces.
    Namespace(Delta<NamespaceView>),
    /// IPPools.
    Pool(Delta<PoolView>),
    /// VirtualIPs.
    VirtualIP(Delta<VirtualIPView>),
    /// Speakers.
    Speaker(Delta<SpeakerView>),
    /// Leases of speakers.
    Lease(Delta<LeaseView>),
    /// ServiceCIDRs.
    ServiceRange(Delta<ServiceRangeView>),
}

/// What became of a write.
#[derive(Clone, Debug, PartialEq)]
pub enum Outcome {
    /// It was done; the object is now like this.
    Service(ServiceView),
    /// It was done; the object is now like this.
    VirtualIP(VirtualIPView),
    /// It was done.
    Done,
    /// The object is not what the write was derived from.
    Conflict,
    /// It was not done, or we do not know.
    Failed,
}

/// The state of all Services in numbers, for metrics.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Summary {
    /// Services of ours by the reason of their Allocated condition.
    pub services: BTreeMap<&'static str, i64>,
    /// VirtualIPs.
    pub virtual_ips: i64,
    /// Speakers that live.
    pub live_speakers: i64,
    /// (pool, family) to (used, free).
    pub pools: BTreeMap<(String, &'static str), (u128, u128)>,
    /// Objects that wait to be looked at.
    pub queued: i64,
}

/// See the module.
#[derive(Debug, Default)]
pub struct Index {
    class: Option<String>,

    services: Table<ServiceView>,
    slices: Table<SliceView>,
    slices_of: BTreeMap<String, SmallSet<String>>,
    nodes: Table<NodeView>,
    namespaces: Table<NamespaceView>,
    pools: Table<PoolView>,
    /// What pools that were removed said of announcing, as long as addresses of theirs may be in use.
    removed_pools: BTreeMap<String, AnnounceView>,
    service_ranges: Table<ServiceRangeView>,
    overlaps: Vec<Overlap>,
    reservations: Reservations,
    collisions: Vec<Collision>,
    /// What of the above the allocator has not been told yet.
    stale: Stale,
    vips: Table<VirtualIPView>,
    speakers: Table<SpeakerView>,
    liveness: Liveness,
    leases: BTreeMap<String, LeaseObject>,
    leases_synced: bool,
    settled: bool,

    allocator: Allocator,
    /// What each Service gets.
    grants: BTreeMap<String, Grant>,
    /// What is kept for each Service in the allocator: what it gets, and what it still shows.
    holdings: BTreeMap<String, BTreeSet<IpAddr>>,
    /// Why a Service does not have any more what it shows.
    departures: BTreeMap<String, BTreeMap<IpAddr, Departure>>,
    waiting: Waiting,
    /// Where an address has become free, and nobody who waits has been looked at yet.
    freed: BTreeSet<(String, Family)>,
    /// Addresses in use that no pool holds any more, and when they are taken back.
    homeless: BTreeMap<IpAddr, Duration>,
    /// The same in order of time, without those that have been taken back.
    evictions: BTreeSet<(Duration, IpAddr)>,
    decisions: BTreeMap<IpAddr, Decision>,
    /// Of how many addresses each node is Primary, and which nodes stand by for how many of them.
    loads: BTreeMap<String, Load>,
    answers: Answers,
    moves: Moves,
    /// Who was named and has not claimed yet.
    asked: BTreeMap<IpAddr, Asked>,
    rebalance: Rebalance,
    /// The object for each address: its uid, and when we first saw it.
    seen: BTreeMap<IpAddr, (String, Duration)>,
    /// When each Owner claim reached us, as a number.
    arrivals: BTreeMap<(IpAddr, String), u64>,
    arrived: u64,
    /// When the last of them came from each node.
    claimed_at: BTreeMap<String, Duration>,
    awaiting_since: BTreeMap<String, Duration>,
    pool_written: BTreeMap<String, Duration>,

    dirty_services: BTreeSet<String>,
    dirty: BTreeSet<Target>,
    in_flight: BTreeMap<Target, Change>,
    /// What was seen to go while a write for it was on its way.
    gone: BTreeSet<Target>,
    /// The last write that was done.
    written: BTreeMap<Target, Written>,
    backoff: BTreeMap<Target, Backoff>,
    timers: BTreeSet<(Duration, Target)>,
    /// By number, the oldest first.
    events: BTreeMap<u64, ServiceEvent>,
    next_event: u64,
    /// What was written to Services without an answer, and whose event waits until it is seen there.
    unanswered: BTreeMap<String, ServiceStatus>,
}

#[derive(Debug, Default)]
struct Load {
    primary: usize,
    standbys: BTreeMap<String, usize>,
}

impl Index {
    /// An index of the Services with this loadBalancerClass; `None`: of those without one.
    pub fn new(class: Option<String>) -> Self {
        Self { class, ..Self::default() }
    }

    /// The same index, with what an earlier one of this process heard of the speakers.
    pub fn with_liveness(self, liveness: Liveness) -> Self {
        Self { liveness, ..self }
    }

    /// What this index heard of the speakers, for the next one.
    pub fn into_liveness(self) -> Liveness {
        self.liveness
    }

    /// Takes in what a watch says.
    pub fn handle(&mut self, input: Input, now: Duration) {
        match input {
            Input::Service(delta) => {
                for key in self.services.fold(delta) {
                    if self.services.get(&key).is_none() {
                        self.gone_meanwhile(Target::Service(key.clone()));
                    }
                    self.tell_if_answered(&key);
                    self.dirty_services.insert(key.clone());
                    self.object_changed(Target::Service(key));
                }
            }
            Input::Slice(delta) => self.handle_slices(delta),
            Input::Node(delta) => self.handle_nodes(delta),
            Input::Namespace(delta) => {
                for namespace in self.namespaces.fold(delta) {
                    let inside = self.services.values().filter(|service| service.namespace == namespace);
                    self.dirty_services.extend(inside.map(|service| service.key.clone()));
                }
            }
            Input::Pool(delta) => self.handle_pools(delta),
            Input::VirtualIP(delta) => {
                for name in self.vips.fold(delta) {
                    if let Some(address) = api::address_of_name(&name) {
                        if self.vips.get(&name).is_none() {
                            self.gone_meanwhile(Target::VirtualIP(address));
                        }
                        self.virtual_ip_changed(&name, address, now);
                    }
                }
            }
            Input::Speaker(delta) => self.handle_speakers(delta),
            Input::ServiceRange(delta) => self.handle_service_ranges(delta),
            Input::Lease(delta) => self.handle_leases(delta, now),
        }
    }

    /// The watch of Leases broke: silence means nothing until it is back.
    pub fn handle_lease_watch_lost(&mut self, now: Duration) {
        self.liveness.handle_watch_lost(now);
    }

    /// The next write that is wanted. The caller reports what became of it with [`Index::handle_outcome`].
    pub fn poll_change(&mut self, now: Duration) -> Option<(Target, Change)> {
        if !self.is_synced() {
            return None;
        }
        if self.liveness.poll_changed(now) {
            self.mark_all_addresses();
        }
        while self.timers.first().is_some_and(|(due, _)| *due <= now) {
            self.dirty.extend(self.timers.pop_first().map(|(_, target)| target));
        }
        self.evict(now);
        self.rebuild_pools(&BTreeSet::new(), now);
        if !std::mem::replace(&mut self.settled, true) {
            self.settle(now);
        }
        self.balance(now);
        while self.stale != Stale::Nothing || !self.dirty_services.is_empty() || !self.freed.is_empty() {
            self.rebuild_pools(&BTreeSet::new(), now);
            while let Some(service) = self.dirty_services.pop_first() {
                self.allocate(&service, now);
            }
            self.hand_on(now);
        }
        while let Some(target) = self.next_dirty() {
            if self.in_flight.contains_key(&target) {
                continue; // Its outcome makes it dirty again.
            }
            if let Some(until) = self.backoff.get(&target).map(|backoff| backoff.until).filter(|until| *until > now) {
                self.timers.insert((until, target));
                continue;
            }
            if let Some(change) = self.derive(&target, now) {
                self.in_flight.insert(target.clone(), change.clone());
                return Some((target, change));
            }
            self.backoff.remove(&target);
        }
        None
    }

    /// Events come after what they tell of, but not so late that some have to be forgotten.
    fn next_dirty(&mut self) -> Option<Target> {
        if self.events.len() >= EVENTS_KEPT / 2
            && let Some(event) = self.dirty.range(Target::Event(0)..=Target::Event(u64::MAX)).next().cloned()
        {
            self.dirty.remove(&event);
            return Some(event);
        }
        self.dirty.pop_first()
    }

    /// When [`Index::poll_change`] is to be asked again if there is no input before.
    pub fn poll_timeout(&self) -> Option<Duration> {
        if !self.is_synced() {
            return None; // Until then nothing that is due is done.
        }
        let timer = self.timers.first().map(|(due, _)| *due);
        let eviction = self.evictions.first().map(|(due, _)| *due);
        [timer, eviction, self.liveness.deadline(), self.rebalance.deadline()].into_iter().flatten().min()
    }

    /// Whether every kind has been listed.
    pub fn is_synced(&self) -> bool {
        self.services.is_synced()
            && self.slices.is_synced()
            && self.nodes.is_synced()
            && self.namespaces.is_synced()
            && self.pools.is_synced()
            && self.vips.is_synced()
            && self.speakers.is_synced()
            && self.service_ranges.is_synced()
            && self.leases_synced
    }

    /// The state in numbers.
    pub fn summary(&self) -> Summary {
        let mut summary = Summary {
            virtual_ips: count(self.vips.values().count()),
            live_speakers: count(self.speakers.values().filter(|view| self.liveness.is_alive(&view.node)).count()),
            queued: count(self.dirty.len() + self.dirty_services.len()),
            ..Summary::default()
        };
        for reason in api::AllocatedReason::ALL {
            summary.services.insert(reason.as_str(), 0);
        }
        for grant in self.grants.values() {
            let reason = grant.problem.as_ref().map_or(api::AllocatedReason::Allocated, |problem| problem.reason);
            *summary.services.entry(reason.as_str()).or_default() += 1;
        }
        for (pool, usage) in self.allocator.usage() {
            for (family, usage) in [("IPv4", usage.v4), ("IPv6", usage.v6)] {
                if let Some(usage) = usage {
                    summary.pools.insert((pool.to_owned(), family), (usage.used, usage.total - usage.used));
                }
            }
        }
        summary
    }

    /// Whether a claim to the address may be on its way, behind much else that is written: by us, or by the speaker that is named,
    /// which claims one address after the other.
    fn may_be_claimed_late(&self, address: IpAddr, now: Duration) -> bool {
        let primary = self.decisions.get(&address).and_then(Decision::primary);
        let claims =
            primary.and_then(|node| self.claimed_at.get(node)).is_some_and(|at| now < *at + PUBLISH_UNCLAIMED_AFTER);
        claims || self.in_flight.len() >= BUSY
    }

    /// Writes that are on their way.
    pub fn in_flight(&self) -> usize {
        self.in_flight.len()
    }

    fn derive(&mut self, target: &Target, now: Duration) -> Option<Change> {
        let change = match target {
            Target::VirtualIP(address) => self.derive_virtual_ip(*address, now),
            Target::Service(key) => self.derive_service(key, now),
            Target::Event(number) => {
                self.events.get(number).map(|event| Change::ServiceEvent { number: *number, event: event.clone() })
            }
            Target::Pool(name) => self.derive_pool(name, now),
            Target::Speaker(node) => self.derive_speaker(node),
            Target::Lease(node) => self.derive_lease(node),
        }?;
        self.unless_futile(target, change, now)
    }

    fn virtual_ip_changed(&mut self, name: &str, address: IpAddr, now: Duration) {
        let target = Target::VirtualIP(address);
        let mut services: BTreeSet<String> = self.allocator.users(address).map(str::to_owned).collect();
        let silent: Vec<(IpAddr, String)> = self
            .arrivals
            .range((address, String::new())..)
            .map(|(key, _)| key.clone())
            .take_while(|(known, _)| *known == address)
            .filter(|(_, node)| !self.vips.get(name).is_some_and(|vip| owns(vip, node)))
            .collect();
        for key in silent {
            self.arrivals.remove(&key);
        }
        if let Some(vip) = self.vips.get(name) {
            services.extend(vip.spec.services.iter().cloned());
            let owners: Vec<String> =
                vip.claims.iter().map(|claim| claim.node.clone()).filter(|node| owns(vip, node)).collect();
            // Claims that reach us together are of one age.
            let number = self.arrived + 1;
            for node in owners {
                if let Entry::Vacant(place) = self.arrivals.entry((address, node.clone())) {
                    place.insert(number);
                    self.arrived = number;
                    self.claimed_at.insert(node, now);
                }
            }
            if self.seen.get(&address).is_none_or(|(uid, _)| *uid != vip.uid) {
                self.seen.insert(address, (vip.uid.clone(), now));
            }
            if !self.in_flight.contains_key(&target) {
                self.decide_as_observed(address);
            }
        } else {
            self.seen.remove(&address);
        }
        self.dirty.extend(services.into_iter().map(Target::Service));
        self.object_changed(target);
        self.look_for_strangers(name, address, now);
    }

    /// Somebody has changed the object: what we wrote before counts no more, and a conflict may be over.
    fn object_changed(&mut self, target: Target) {
        let is_gone = matches!(&target, Target::Service(key) if self.services.get(key).is_none());
        match self.written.get_mut(&target) {
            Some(written) if matches!(target, Target::Service(_)) && !is_gone => written.is_past = true,
            _ => drop(self.written.remove(&target)),
        }
        if self.backoff.get(&target).is_some_and(|backoff| backoff.conflict) {
            self.backoff.remove(&target);
        }
        self.dirty.insert(target);
    }

    fn mark_all_addresses(&mut self) {
        self.answers.clear();
        self.dirty.extend(self.allocator.held().map(Target::VirtualIP));
        self.dirty.extend(self.vips.values().map(|vip| Target::VirtualIP(vip.address)));
    }

    fn set_decision(&mut self, address: IpAddr, decision: Option<Decision>) {
        self.moves.note(address, decision.as_ref().is_some_and(Decision::is_moving));
        let old = match decision {
            Some(decision) => {
                self.count_load(&decision, true);
                self.decisions.insert(address, decision)
            }
            None => self.decisions.remove(&address),
        };
        if let Some(old) = old {
            self.count_load(&old, false);
        }
    }

    fn count_load(&mut self, decision: &Decision, more: bool) {
        let Some(primary) = decision.primary() else { return };
        let change = |count: &mut usize| *count = if more { *count + 1 } else { count.saturating_sub(1) };
        let load = self.loads.entry(primary.to_owned()).or_default();
        change(&mut load.primary);
        for standby in decision.with_role(Role::Standby) {
            change(load.standbys.entry(standby.to_owned()).or_default());
        }
        load.standbys.retain(|_, count| *count > 0);
        if load.primary == 0 && load.standbys.is_empty() {
            self.loads.remove(primary);
        }
    }
}

/// Whether the speaker of `node` says of this very object that it answers.
fn owns(vip: &VirtualIPView, node: &str) -> bool {
    vip.claims.iter().any(|claim| claim.node == node && claim.uid == vip.uid && claim.state == ClaimState::Owner)
}

fn count(number: usize) -> i64 {
    i64::try_from(number).unwrap_or(i64::MAX)
}

#[cfg(test)]
mod tests;
