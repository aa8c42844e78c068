//! Which Service has which address.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use kube::core::SelectorExt as _;

use super::{Index, Target};
use crate::{
    api::AllocatedReason,
    controller::{
        conditions::Problem,
        view::{FamilyPolicy, PoolView, ServiceView},
    },
    ipam::{Allocated, Family},
};

impl Index {
    /// Once, when everything has been listed: what is recorded and what is shown is taken as given, in this order, before
    /// any address is handed out.
    pub(super) fn settle(&mut self, now: Duration) {
        let recorded: Vec<_> =
            self.vips.values().map(|vip| (vip.address, vip.spec.pool.clone(), vip.spec.services.clone())).collect();
        for (address, pool, services) in recorded {
            for key in services {
                let living = self.services.get(&key).filter(|service| self.is_ours(service));
                let Some(wanted) = living.map(|service| service.wanted_use.clone()) else { continue };
                if self.allocator.adopt(address, &key, &wanted, &pool).is_some() {
                    self.holdings.entry(key).or_default().insert(address);
                }
            }
            if self.allocator.users(address).next().is_none() {
                // Its user went away while we did not look: the address rests like any other released one.
                let nobody = "";
                self.allocator.adopt(address, nobody, &crate::ipam::Use::default(), &pool);
                self.allocator.release(address, nobody, now);
            }
        }
        let showing: Vec<ServiceView> = self
            .services
            .values()
            .filter(|service| self.is_ours(service) && !service.shown.is_empty())
            .cloned()
            .collect();
        for service in showing {
            let held = self.holdings.get(&service.key).cloned().unwrap_or_default();
            let pools = self.admitting(&service).0;
            for address in service.shown.iter().filter(|address| !held.contains(*address)) {
                let family_held = held.iter().any(|known| Family::of(*known) == Family::of(*address));
                if !family_held && self.allocator.request(&service.key, &service.wanted_use, *address, &pools).is_ok() {
                    self.holdings.entry(service.key.clone()).or_default().insert(*address);
                }
            }
        }
        self.dirty_services.extend(self.services.values().map(|service| service.key.clone()));
        self.mark_all_addresses();
        self.mark_all_pools();
        self.dirty.extend(self.speakers.values().map(|speaker| Target::Speaker(speaker.node.clone())));
    }

    /// Gives the Service what it should have, and takes what it should not have.
    pub(super) fn allocate(&mut self, key: &str, now: Duration) {
        let service = self.services.get(key).filter(|service| self.is_ours(service)).cloned();
        let before = self.holdings.remove(key).unwrap_or_default();
        let outcome = service.map(|service| self.seek(&service, &before, now));
        let after: BTreeSet<IpAddr> = match &outcome {
            Some(Ok(addresses)) => addresses.iter().map(Allocated::address).collect(),
            _ => BTreeSet::new(),
        };
        for address in before.difference(&after) {
            self.allocator.release(*address, key, now);
        }
        if before.difference(&after).next().is_some() {
            let waiting = self.outcomes.iter().filter(|(other, outcome)| outcome.is_err() && *other != key);
            self.dirty_services.extend(waiting.map(|(key, _)| key.clone()));
        }
        if before != after {
            self.mark_all_pools();
        }
        self.dirty.extend(before.union(&after).map(|address| Target::VirtualIP(*address)));
        self.dirty.insert(Target::Service(key.to_owned()));
        if !after.is_empty() {
            self.holdings.insert(key.to_owned(), after);
        }
        match outcome {
            Some(outcome) => self.outcomes.insert(key.to_owned(), outcome),
            None => self.outcomes.remove(key),
        };
    }

    /// Whether the Service is ours to serve.
    pub(super) fn is_ours(&self, service: &ServiceView) -> bool {
        service.is_load_balancer && service.class == self.class
    }

    /// The pools that admit the Service, in order, and why each other one does not.
    fn admitting(&self, service: &ServiceView) -> (Vec<String>, Vec<String>) {
        let (mut admitting, mut refusing) = (Vec::new(), Vec::new());
        for pool in self.allocator.pools() {
            let Some(view) = self.pools.get(pool.name()) else { continue };
            match self.admits(view, service) {
                Ok(()) => admitting.push(view.name.clone()),
                Err(reason) => refusing.push(format!("{}: {reason}", view.name)),
            }
        }
        (admitting, refusing)
    }

    fn admits(&self, pool: &PoolView, service: &ServiceView) -> Result<(), String> {
        if pool.service_selector.as_ref().is_some_and(|selector| !selector.matches(&service.labels)) {
            return Err("its serviceSelector does not select the Service".to_owned());
        }
        if pool.namespaces.is_empty() && pool.namespace_selector.is_none() {
            return Ok(());
        }
        let by_label = || {
            let namespace = self.namespaces.get(&service.namespace);
            let selector = pool.namespace_selector.as_ref();
            selector.zip(namespace).is_some_and(|(selector, namespace)| selector.matches(&namespace.labels))
        };
        if pool.namespaces.contains(&service.namespace) || by_label() {
            return Ok(());
        }
        Err(format!("it is not for namespace {}", service.namespace))
    }

    fn seek(
        &mut self,
        service: &ServiceView,
        held: &BTreeSet<IpAddr>,
        now: Duration,
    ) -> Result<Vec<Allocated>, Problem> {
        let request =
            service.request.clone().map_err(|sentence| Problem::new(AllocatedReason::InvalidRequest, sentence))?;
        for address in &request.addresses {
            let family = Family::of(*address);
            if !service.families.contains(&family) {
                let message =
                    format!("{} asks for {address}, but spec.ipFamilies has no {family}", request.addresses_source);
                return Err(Problem::new(AllocatedReason::InvalidRequest, message));
            }
        }
        let (admitting, refusing) = self.admitting(service);
        let no_pool = |message| Problem::new(AllocatedReason::NoMatchingPool, message);
        if self.pools.is_empty() {
            return Err(no_pool("there is no IPPool; make one (kubectl explain ippool.spec)".to_owned()));
        }
        let (allowed, automatic) = match &request.pool {
            Some((pool, source)) => {
                if self.pools.get(pool).is_none() {
                    return Err(no_pool(format!("{source} asks for pool '{pool}', which does not exist")));
                }
                if !admitting.contains(pool) {
                    return Err(no_pool(format!(
                        "{source} asks for a pool that does not admit the Service; {}",
                        refusing.join("; ")
                    )));
                }
                (vec![pool.clone()], vec![pool.clone()])
            }
            None => {
                let automatic = |name: &&String| self.pools.get(name).is_some_and(|pool| pool.config.auto_assign);
                let automatic: Vec<String> = admitting.iter().filter(automatic).cloned().collect();
                (admitting, automatic)
            }
        };
        let mut reasons = refusing;
        if request.pool.is_none() {
            let asked_only = allowed.iter().filter(|name| !automatic.contains(name));
            reasons.extend(asked_only.map(|name| format!("{name}: autoAssign is false, ask for it with l2lb.io/pool")));
        }
        let mut search = Search { service, allowed, automatic, reasons, now };
        let mut given: Vec<Allocated> = Vec::new();
        for family in service.families.clone() {
            let asked = request.addresses.iter().copied().find(|address| Family::of(*address) == family);
            let mine = held.iter().copied().find(|address| Family::of(*address) == family);
            match self.one(&search, family, asked, mine) {
                Ok(allocated) => {
                    search.prefer(allocated.pool());
                    given.push(allocated);
                }
                Err(_)
                    if service.family_policy == FamilyPolicy::Prefer
                        && asked.is_none()
                        && service.families.len() > 1 => {}
                Err(problem) => return Err(self.give_back(service, given, held, problem)),
            }
        }
        if given.is_empty() {
            let problem = self.one(&search, service.families[0], None, None);
            let problem = problem.err().unwrap_or_else(|| no_pool("no address was found".to_owned()));
            return Err(problem);
        }
        Ok(given)
    }

    /// One address of this family: the one asked for, else the one held, else the one shown, else the lowest free one.
    fn one(
        &mut self,
        search: &Search<'_>,
        family: Family,
        asked: Option<IpAddr>,
        mine: Option<IpAddr>,
    ) -> Result<Allocated, Problem> {
        let (key, wanted) = (&search.service.key, &search.service.wanted_use);
        // What lies in no pool any more is kept: a pool that is rewritten takes nothing away.
        let kept = mine.filter(|address| {
            asked.is_none_or(|asked| asked == *address)
                && self
                    .allocator
                    .pool_of(*address)
                    .is_none_or(|pool| search.allowed.iter().any(|name| name == pool.name()))
        });
        if let Some(address) = kept {
            match self.allocator.keep(address, key, wanted) {
                Ok(allocated) => return Ok(allocated),
                Err(error) if asked.is_some() => return Err(error.into()),
                Err(_) => {}
            }
        }
        if let Some(address) = asked {
            return self.allocator.request(key, wanted, address, &search.allowed).map_err(Problem::from);
        }
        let shown = search.service.shown.iter().copied().filter(|address| Family::of(*address) == family);
        for address in shown {
            if mine != Some(address)
                && let Ok(allocated) = self.allocator.request(key, wanted, address, &search.allowed)
            {
                return Ok(allocated);
            }
        }
        if search.automatic.is_empty() {
            let message = format!("no pool admits the Service; {}", search.reasons.join("; "));
            return Err(Problem::new(AllocatedReason::NoMatchingPool, message));
        }
        Ok(self.allocator.allocate(key, wanted, family, &search.automatic, search.now)?)
    }

    fn give_back(
        &mut self,
        service: &ServiceView,
        given: Vec<Allocated>,
        held: &BTreeSet<IpAddr>,
        problem: Problem,
    ) -> Problem {
        for allocated in given.iter().filter(|allocated| !held.contains(&allocated.address())) {
            self.allocator.undo(allocated.address(), &service.key);
        }
        problem
    }
}

struct Search<'a> {
    service: &'a ServiceView,
    /// Pools that the Service may have an address of.
    allowed: Vec<String>,
    /// Those of them that give one without being asked.
    automatic: Vec<String>,
    /// Why the others do not.
    reasons: Vec<String>,
    now: Duration,
}

impl Search<'_> {
    /// The second address comes from the pool of the first one if it can.
    fn prefer(&mut self, pool: &str) {
        self.automatic.sort_by_key(|name| name != pool);
    }
}
