//! Which Service has which address.
//!
//! [`Index::allocate`] looks at one Service: it asks [`Index::seek`] what the Service should have, and takes what it should not
//! have. An address that the Service shows is kept for it until it shows another: clients may still be sent there.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{Index, Target, quarantine, waiting::Wait};
use crate::{
    controller::{conditions::Problem, view::ServiceView},
    ipam::{Allocated, Family, Use},
};

/// What a Service gets.
#[derive(Debug, Default)]
pub(super) struct Grant {
    /// In the order of its families.
    pub(super) addresses: Vec<Allocated>,
    /// Why that is not what it wants.
    pub(super) problem: Option<Problem>,
    /// What there is to say though it gets what it wants.
    pub(super) remarks: Vec<String>,
    /// What would change this.
    pub(super) waits: BTreeSet<Wait>,
    /// Why it does not get what it had.
    pub(super) reasons: BTreeMap<IpAddr, Departure>,
    pub(super) wanted: Use,
}

impl Grant {
    /// Whether it might get more if there were more.
    pub(super) fn lacks_something(&self) -> bool {
        self.problem.is_some() || !self.remarks.is_empty() || !self.waits.is_empty()
    }
}

/// Why a Service left an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Departure {
    pub(super) sentence: String,
    /// Whether somebody else on the network has it: nobody was told of the address then.
    pub(super) to_stranger: bool,
}

impl From<String> for Departure {
    fn from(sentence: String) -> Self {
        Self { sentence, to_stranger: false }
    }
}

impl Index {
    /// Once, when everything has been listed: what is recorded and what is shown is taken as given, in this order, before
    /// any address is handed out.
    pub(super) fn settle(&mut self, now: Duration) {
        let recorded: Vec<_> = self
            .vips
            .values()
            .map(|vip| (vip.address, vip.spec.pool.clone(), vip.spec.services.clone(), quarantine::is_blocked(vip)))
            .collect();
        let owned: BTreeSet<IpAddr> =
            self.vips.values().filter(|vip| quarantine::is_owned(vip)).map(|vip| vip.address).collect();
        for (address, pool, services, blocked) in recorded {
            if services.is_empty() && !owned.contains(&address) {
                self.allocator.adopt_quarantined(address, &pool);
                continue;
            }
            for key in services {
                if self.services.get(&key).is_some_and(|service| self.is_ours(service)) {
                    self.allocator.adopt(address, &key, &pool);
                    self.holdings.entry(key).or_default().insert(address);
                }
            }
            self.allocator.set_blocked(address, blocked);
            // Where its user went away while we did not look, the address rests like any other released one.
            self.allocator.rest(address, now);
        }
        let showing: Vec<ServiceView> = self
            .services
            .values()
            .filter(|service| self.is_ours(service) && !service.shown.is_empty())
            .cloned()
            .collect();
        // Now that it is known what is in use.
        self.stale = super::pools::Stale::Pools;
        self.rebuild_pools(&showing.iter().flat_map(|service| service.shown.iter().copied()).collect(), now);
        for service in showing {
            let held = self.holdings.get(&service.key).cloned().unwrap_or_default();
            let pools = self.admitting(&service).0;
            for address in service.shown.iter().filter(|address| !held.contains(*address)) {
                let family = Family::of(*address);
                let family_held = held.iter().any(|known| Family::of(*known) == family);
                if !family_held
                    && service.families.contains(&family)
                    && self.allocator.request(&service.key, &service.wanted_use, *address, &pools).is_ok()
                {
                    self.holdings.entry(service.key.clone()).or_default().insert(*address);
                }
            }
        }
        self.dirty.extend(self.speakers.values().map(|speaker| Target::Speaker(speaker.node.clone())));
        self.dirty.extend(self.leases.keys().cloned().map(Target::Lease));
        // Of those who share an address, one that does not want to any more is the one that changed, and the one to go: the others
        // are asked first.
        let shared = self.vips.values().filter(|vip| vip.spec.services.len() > 1).flat_map(|vip| &vip.spec.services);
        let shares = |key: &&String| self.services.get(key).is_some_and(|view| view.wanted_use.sharing_key.is_some());
        let sharers: BTreeSet<String> = shared.filter(shares).cloned().collect();
        for service in sharers {
            self.allocate(&service, now);
        }
    }

    /// Gives the Service what it should have, and takes what it should not have.
    pub(super) fn allocate(&mut self, key: &str, now: Duration) {
        let service = self.services.get(key).filter(|service| self.is_ours(service)).cloned();
        let before = self.holdings.remove(key).unwrap_or_default();
        let grant = service.as_ref().map(|service| self.seek(service, &before, now));
        let wanted: BTreeSet<IpAddr> =
            grant.iter().flat_map(|grant| &grant.addresses).map(Allocated::address).collect();
        let shown: &[IpAddr] = service.as_ref().map_or(&[], |service| &service.shown);

        self.dirty.extend(before.union(&wanted).map(|address| Target::VirtualIP(*address)));
        self.dirty.insert(Target::Service(key.to_owned()));
        let mut touched: BTreeSet<IpAddr> = wanted.difference(&before).copied().collect();
        let mut holding = wanted.clone();
        for address in before.difference(&wanted).copied() {
            if shown.contains(&address) {
                holding.insert(address);
                continue;
            }
            let pool = self.allocator.counted_pool(address).map(str::to_owned);
            let departure = grant.as_ref().and_then(|grant| grant.reasons.get(&address));
            // What no pool holds nobody would be given anyhow.
            let has_home = self.allocator.home(address).is_some();
            if has_home && departure.is_some_and(|departure| departure.to_stranger) {
                self.allocator.quarantine(address, key);
            } else {
                self.allocator.release(address, key, now);
            }
            if self.allocator.users(address).next().is_none() && !self.allocator.is_quarantined(address) {
                self.note_free(address, pool.clone());
            }
            self.dirty.extend(pool.map(Target::Pool));
            touched.insert(address);
        }
        if !holding.is_empty() {
            self.holdings.insert(key.to_owned(), holding);
        }

        self.note_departures(key, grant.as_ref(), &wanted, shown);
        let old = match grant {
            Some(mut grant) => {
                grant.addresses.shrink_to_fit();
                self.grants.insert(key.to_owned(), grant)
            }
            None => self.grants.remove(key),
        };
        let old = old.unwrap_or_default();
        let (none, new_use) = (Grant::default(), self.grants.get(key).map(|grant| grant.wanted.clone()));
        let waits = &self.grants.get(key).unwrap_or(&none).waits;
        self.waiting.replace(key, &old.waits, waits);
        if new_use.as_ref() != Some(&old.wanted) {
            touched.extend(&wanted);
        }
        self.tell_of(&touched, key, [Some(old.wanted), new_use].into_iter().flatten());
    }

    /// Wakes those who wait for what has changed about these addresses.
    fn tell_of(&mut self, touched: &BTreeSet<IpAddr>, key: &str, uses: impl Iterator<Item = Use>) {
        if touched.is_empty() {
            return;
        }
        // The keys of those who stay count too: the one that left may have done so earlier, and only now shows it no more.
        let staying = touched.iter().flat_map(|address| self.allocator.users(*address));
        let theirs = staying.filter_map(|user| self.grants.get(user)?.wanted.sharing_key.clone());
        let keys: BTreeSet<String> = uses.filter_map(|used| used.sharing_key).chain(theirs).collect();
        let addresses = touched.iter().map(|address| Wait::Address(*address));
        for wait in addresses.chain(keys.into_iter().map(Wait::Key)) {
            self.dirty_services.extend(self.waiting.of(&wait).filter(|waiting| *waiting != key).cloned());
        }
        // Who shares a disputed address may leave it when the last one does that clients know it of.
        for address in touched.iter().filter(|address| self.allocator.is_blocked(**address)) {
            self.dirty_services.extend(self.allocator.users(*address).filter(|user| *user != key).map(str::to_owned));
        }
        let pools = touched.iter().filter_map(|address| self.allocator.counted_pool(*address));
        self.dirty.extend(pools.map(|pool| Target::Pool(pool.to_owned())));
    }

    /// Keeps in mind why the Service does not have any more what it shows, until it has been told.
    fn note_departures(&mut self, key: &str, grant: Option<&Grant>, wanted: &BTreeSet<IpAddr>, shown: &[IpAddr]) {
        let mut departures = self.departures.remove(key).unwrap_or_default();
        let Some(grant) = grant else { return };
        departures.retain(|address, departure| departure.to_stranger || shown.contains(address));
        let news = grant.reasons.iter().filter(|(address, why)| why.to_stranger || shown.contains(address));
        for (address, why) in news {
            departures.entry(*address).or_insert_with(|| why.clone());
        }
        departures.retain(|address, _| !wanted.contains(address));
        if !departures.is_empty() {
            self.departures.insert(key.to_owned(), departures);
        }
    }

    /// Those who wait for a free address, in the order of their names, get what has become free.
    pub(super) fn hand_on(&mut self, now: Duration) {
        while let Some((pool, family)) = self.freed.pop_first() {
            let wait = Wait::Free(pool.clone(), family);
            let mut last: Option<String> = None;
            while self.allocator.can_give(&pool, family)
                && let Some(key) = self.waiting.next(&wait, last.as_deref())
            {
                self.allocate(&key, now);
                last = Some(key);
            }
        }
    }

    /// Whether the Service is ours to serve.
    pub(super) fn is_ours(&self, service: &ServiceView) -> bool {
        service.is_load_balancer && service.class == self.class
    }
}
