//! Which addresses there are to give: pools, what is withheld from them, and who has to leave an address that no pool holds.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use k8s_openapi::{
    apimachinery::pkg::apis::meta::v1::{Condition, Time},
    jiff::Timestamp,
};

use super::{
    Delta, Index, POOL_STATUS_EVERY, REALLOCATED_AFTER, Target,
    reserved::{self, Source},
    table::Table,
};
use crate::{
    api::{self, CONDITION_READY, FamilyCount, IPPoolStatus},
    controller::{
        change::Change,
        conditions,
        view::{NodeView, PoolView, ServiceRangeView, SpeakerView},
    },
    ipam::{Family, FamilyUsage, Overlap, Pool, withhold_overlaps},
};

/// What the pools that the allocator knows lack.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Stale {
    #[default]
    Nothing,
    /// Something else is reserved now.
    Reservations,
    /// A pool was made, changed or removed.
    Pools,
}

impl Index {
    pub(super) fn handle_pools(&mut self, delta: Delta<PoolView>) {
        let said = |pools: &Table<PoolView>| -> Vec<PoolView> {
            let status = api::IPPoolStatus::default();
            pools.values().map(|pool| PoolView { status: status.clone(), ..pool.clone() }).collect()
        };
        let before = said(&self.pools);
        for name in self.pools.fold(delta) {
            match before.iter().find(|pool| pool.name == name) {
                Some(removed) if self.pools.get(&name).is_none() => {
                    self.removed_pools.insert(name.clone(), removed.announce.clone());
                }
                _ => drop(self.removed_pools.remove(&name)),
            }
            self.object_changed(Target::Pool(name));
        }
        // Otherwise only what we ourselves write has changed.
        if before != said(&self.pools) {
            self.stale = Stale::Pools;
        }
    }

    pub(super) fn handle_nodes(&mut self, delta: Delta<NodeView>) {
        let changed = self.nodes.fold(delta);
        if !changed.is_empty() {
            self.mark_all_addresses();
            self.forget_speakers();
        }
        for node in changed {
            let items = self.nodes.get(&node).map(reserved::of_node).unwrap_or_default();
            if !self.reservations.set(Source::Node(node.clone()), items).is_empty() {
                self.stale = self.stale.max(Stale::Reservations);
            }
            self.object_changed(Target::Lease(node.clone()));
            self.object_changed(Target::Speaker(node));
        }
    }

    pub(super) fn handle_speakers(&mut self, delta: Delta<SpeakerView>) {
        let changed = self.speakers.fold(delta);
        if !changed.is_empty() {
            self.mark_all_addresses();
        }
        for node in changed {
            let items = self.speakers.get(&node).map(reserved::of_speaker).unwrap_or_default();
            let ranges = self.reservations.set(Source::Speaker(node.clone()), items);
            // A Service's own address comes and goes on the interfaces of some nodes.
            if ranges.iter().any(|range| !self.is_in_use(range.first())) {
                self.stale = self.stale.max(Stale::Reservations);
            }
            self.object_changed(Target::Speaker(node));
        }
    }

    pub(super) fn handle_service_ranges(&mut self, delta: Delta<ServiceRangeView>) {
        for name in self.service_ranges.fold(delta) {
            let items = self.service_ranges.get(&name).map(reserved::of_service_range).unwrap_or_default();
            if !self.reservations.set(Source::ServiceRange(name), items).is_empty() {
                self.stale = self.stale.max(Stale::Reservations);
            }
        }
    }

    /// Tells the allocator of the pools as they are now. What Services show that are about to be adopted is in use as well.
    pub(super) fn rebuild_pools(&mut self, shown: &BTreeSet<IpAddr>, now: Duration) {
        let stale = std::mem::take(&mut self.stale);
        if stale == Stale::Nothing {
            return;
        }
        let mut by_age: Vec<&PoolView> = self.pools.values().collect();
        by_age.sort_by(|a, b| (a.created, &a.name).cmp(&(b.created, &b.name)));
        let mut pools: Vec<Pool> = by_age.into_iter().map(|view| Pool::new(view.config.clone())).collect();
        self.overlaps = withhold_overlaps(&mut pools);
        let in_use = |address| self.is_in_use(address) || shown.contains(&address);
        self.collisions = self.reservations.withhold(&mut pools, in_use);
        self.allocator.handle_pools(pools);
        self.mark_all_pools();
        if stale == Stale::Pools {
            self.dirty_services.extend(self.services.values().map(|service| service.key.clone()));
            self.mark_all_addresses();
            self.find_homeless(now);
        } else {
            let lacking = self.grants.iter().filter(|(_, grant)| grant.lacks_something());
            self.dirty_services.extend(lacking.map(|(key, _)| key.clone()));
        }
    }

    /// Whether a Service has the address.
    fn is_in_use(&self, address: IpAddr) -> bool {
        self.allocator.users(address).next().is_some()
    }

    /// Notes since when no pool holds an address that is in use. A quarantine ends there.
    pub(super) fn find_homeless(&mut self, now: Duration) {
        let held: Vec<IpAddr> = self.allocator.held().filter(|at| self.allocator.home(*at).is_none()).collect();
        let homeless: BTreeSet<IpAddr> =
            held.iter().copied().filter(|address| !self.allocator.is_quarantined(*address)).collect();
        self.homeless.retain(|address, _| homeless.contains(address));
        for address in homeless {
            self.homeless.entry(address).or_insert(now + REALLOCATED_AFTER);
        }
        let in_use: BTreeSet<&str> = held.iter().filter_map(|address| self.allocator.pool_of_held(*address)).collect();
        self.removed_pools.retain(|pool, _| in_use.contains(pool.as_str()));
        self.evictions = self.homeless.iter().map(|(address, due)| (*due, *address)).collect();
        for address in held {
            self.end_quarantine(address, now);
        }
    }

    /// Whether no pool has held the address for so long that who has it gets another one.
    pub(super) fn is_evicted(&self, address: IpAddr, now: Duration) -> bool {
        self.homeless.get(&address).is_some_and(|due| *due <= now)
    }

    /// Those whose time is over look for another address.
    pub(super) fn evict(&mut self, now: Duration) {
        while let Some((due, address)) = self.evictions.first().copied().filter(|(due, _)| *due <= now) {
            self.evictions.remove(&(due, address));
            self.dirty_services.extend(self.allocator.users(address).map(str::to_owned));
        }
    }

    /// What keeps a pool from giving addresses, other than that they are in use: what is wrong with it, or that all is withheld.
    pub(super) fn why_nothing(&self, name: &str, family: Family) -> Option<String> {
        let view = self.pools.get(name)?;
        if !view.problems.is_empty() {
            return Some(view.problems.join("; "));
        }
        let pool = self.allocator.pools().iter().find(|pool| pool.name() == name)?;
        if pool.total(family) > 0 || !pool.lists_family(family) {
            return None;
        }
        let (overlaps, collisions) = self.taken_from(name);
        let (ready, _, message) = conditions::pool_ready(&[], &overlaps, &collisions, &[]);
        (!ready).then_some(message)
    }

    /// What is withheld from the pool, and what for.
    fn taken_from(&self, name: &str) -> (Vec<&Overlap>, Vec<&str>) {
        let overlaps = self.overlaps.iter().filter(|overlap| overlap.younger == name).collect();
        let collisions = self.collisions.iter().filter(|collision| collision.pool == name);
        (overlaps, collisions.map(|collision| collision.sentence.as_str()).collect())
    }

    pub(super) fn mark_all_pools(&mut self) {
        self.dirty.extend(self.pools.values().map(|pool| Target::Pool(pool.name.clone())));
    }

    /// What the pool is to show.
    pub(super) fn derive_pool(&mut self, name: &str, now: Duration) -> Option<Change> {
        let Some(pool) = self.pools.get(name) else {
            self.pool_written.remove(name);
            return None;
        };
        let due = self.pool_written.get(name).map(|last| *last + POOL_STATUS_EVERY).filter(|due| *due > now);
        if let Some(due) = due {
            self.timers.insert((due, Target::Pool(name.to_owned())));
            return None;
        }
        let usage = self.allocator.usage_of_pool(name)?;
        let (overlaps, collisions) = self.taken_from(name);
        let quarantined: Vec<(IpAddr, Option<&str>)> =
            self.quarantined_in(name).map(|address| (address, self.foreign_mac(address))).collect();
        let (ready, reason, message) = conditions::pool_ready(&pool.problems, &overlaps, &collisions, &quarantined);
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
        self.pool_written.insert(name.to_owned(), now);
        Some(Change::PoolStatus { name: name.to_owned(), status: wanted })
    }
}

fn family_count(usage: FamilyUsage) -> FamilyCount {
    FamilyCount {
        total: usage.total.to_string(),
        used: usage.used.to_string(),
        free: (usage.total - usage.used).to_string(),
    }
}
