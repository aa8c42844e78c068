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
        self.dirty.extend(self.leases.keys().cloned().map(Target::Lease));
    }

    /// Gives the Service what it should have, and takes what it should not have.
    pub(super) fn allocate(&mut self, key: &str, now: Duration) {
        let service = self.services.get(key).filter(|service| self.is_ours(service)).cloned();
        let before = self.holdings.remove(key).unwrap_or_default();
        let used_before = self.use_of(key, &before);
        let outcome = service.map(|service| self.seek(&service, &before, now));
        let after: BTreeSet<IpAddr> = match &outcome {
            Some(Ok(addresses)) => addresses.iter().map(Allocated::address).collect(),
            _ => BTreeSet::new(),
        };
        for address in before.difference(&after) {
            self.allocator.release(*address, key, now);
        }
        if before != after {
            self.mark_all_pools();
        }
        self.waiting_is_stale |= before != after || used_before != self.use_of(key, &after);
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

    fn use_of(&self, key: &str, addresses: &BTreeSet<IpAddr>) -> Option<crate::ipam::Use> {
        addresses.first().and_then(|address| self.allocator.use_of(*address, key)).cloned()
    }

    /// The Services that have fewer addresses than they would take: what others have says what these can have, and why not.
    pub(super) fn waiting(&self) -> Vec<String> {
        let wants_more = |(key, outcome): &(&String, &Result<Vec<Allocated>, Problem>)| match outcome {
            Err(_) => true,
            Ok(given) => self.services.get(key).is_some_and(|service| given.len() < service.families.len()),
        };
        self.outcomes.iter().filter(wants_more).map(|(key, _)| key.clone()).collect()
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
        let mut missing = None;
        let (allowed, automatic) = match &request.pool {
            _ if self.pools.is_empty() => {
                missing = Some(no_pool("there is no IPPool; make one (kubectl explain ippool.spec)".to_owned()));
                (Vec::new(), Vec::new())
            }
            Some((pool, source)) if self.pools.get(pool).is_none() => {
                missing = Some(no_pool(format!("{source} asks for pool '{pool}', which does not exist")));
                (Vec::new(), Vec::new())
            }
            Some((pool, source)) => {
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
        let pool = request.pool.as_ref().map(|(pool, _)| pool.clone());
        let mut search = Search { service, pool, allowed, automatic, reasons, missing, now };
        let mut given: Vec<Allocated> = Vec::new();
        for family in service.families.clone() {
            let asked = request.addresses.iter().copied().find(|address| Family::of(*address) == family);
            let mine: Vec<IpAddr> = held.iter().copied().filter(|address| Family::of(*address) == family).collect();
            match self.one(&search, family, asked, &mine) {
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
            let problem = self.one(&search, service.families[0], None, &[]);
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
        mine: &[IpAddr],
    ) -> Result<Allocated, Problem> {
        let (key, wanted) = (&search.service.key, &search.service.wanted_use);
        // A crash amid a move leaves two: the one that is shown goes first.
        let mut kept: Vec<IpAddr> = mine.iter().copied().filter(|at| self.may_stay(search, asked, *at)).collect();
        kept.sort_by_key(|address| !search.service.shown.contains(address));
        for address in kept {
            match self.allocator.keep(address, key, wanted) {
                Ok(allocated) => return Ok(allocated),
                Err(error) if asked.is_some() => return Err(error.into()),
                Err(_) => {}
            }
        }
        if let Some(problem) = &search.missing {
            return Err(problem.clone());
        }
        if let Some(address) = asked {
            return self.allocator.request(key, wanted, address, &search.allowed).map_err(Problem::from);
        }
        let shown = search.service.shown.iter().copied().filter(|address| Family::of(*address) == family);
        for address in shown {
            if !mine.contains(&address)
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

    /// Whether what the Service asks for and what the pools say lets it stay on an address that it has.
    fn may_stay(&self, search: &Search<'_>, asked: Option<IpAddr>, address: IpAddr) -> bool {
        if asked.is_some_and(|asked| asked != address) {
            return false;
        }
        match self.allocator.pool_of(address) {
            Some(pool) => search.allowed.iter().any(|name| name == pool.name()),
            // What lies in no pool any more is kept: a pool that is rewritten or removed takes nothing away.
            // What nobody has seen yet is no reason to go against the pools.
            None if !self.seen.contains_key(&address) && !search.service.shown.contains(&address) => false,
            None => search.pool.as_deref().is_none_or(|pool| self.allocator.pool_of_held(address) == Some(pool)),
        }
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
    /// The pool that it asks for.
    pool: Option<String>,
    /// Pools that the Service may have an address of.
    allowed: Vec<String>,
    /// Those of them that give one without being asked.
    automatic: Vec<String>,
    /// Why the others do not.
    reasons: Vec<String>,
    /// Why no pool can give it anything new, where the pool is not there.
    missing: Option<Problem>,
    now: Duration,
}

impl Search<'_> {
    /// The second address comes from the pool of the first one if it can.
    fn prefer(&mut self, pool: &str) {
        self.automatic.sort_by_key(|name| name != pool);
    }
}
