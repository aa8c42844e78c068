//! What a Service should have, by what it asks for, what it has and what the pools can give.
//!
//! In this order, for each family: the address asked for, else one that it has, else one that it shows, else the lowest free one.
//! What it has stays with it as long as it may: only a request for something else, a pool that does not admit it any more or that
//! does not hold the address any more, or a neighbour on a shared address takes it away.

use std::{collections::BTreeSet, net::IpAddr, time::Duration};

use kube::core::SelectorExt as _;

use super::{
    Index,
    allocation::{Departure, Grant},
    quarantine::QUARANTINED_AT_MOST,
    waiting::Wait,
};
use crate::{
    api::{AllocatedReason, CONDITION_ALLOCATED},
    controller::{
        conditions::Problem,
        request::AddressRequest,
        view::{FamilyPolicy, PoolView, ServiceView},
    },
    ipam::{AllocateError, Allocated, Family},
};

/// Why there is no address, and what would change that.
struct Refusal {
    problem: Problem,
    waits: Vec<Wait>,
}

impl From<Problem> for Refusal {
    fn from(problem: Problem) -> Self {
        Self { problem, waits: Vec::new() }
    }
}

struct Search<'a> {
    service: &'a ServiceView,
    request: AddressRequest,
    /// Pools that the Service may have an address of.
    allowed: Vec<String>,
    /// Those of them that give one without being asked.
    automatic: Vec<String>,
    /// Why each other one does not admit it.
    refusing: Vec<(String, String)>,
    /// Why nothing new can be given, whatever the pools hold.
    missing: Option<Problem>,
    /// What is wrong with the request: then nothing changes.
    unreadable: Option<Problem>,
    now: Duration,
}

impl Search<'_> {
    /// Addresses come from this pool if they can.
    fn prefer(&mut self, pool: &str) {
        self.automatic.sort_by_key(|name| name != pool);
    }

    /// Whether the pool gives the Service an address, asked for by it or not.
    fn gives(&self, pool: &str, asked: bool) -> bool {
        let givers = if asked { &self.allowed } else { &self.automatic };
        givers.iter().any(|name| name == pool)
    }

    fn refusals(&self) -> String {
        let texts: Vec<String> = self.refusing.iter().map(|(pool, reason)| format!("{pool}: {reason}")).collect();
        texts.join("; ")
    }

    fn refusal(&self, pool: &str) -> &str {
        let found = self.refusing.iter().find(|(name, _)| name == pool);
        found.map_or("the Service asks for another pool", |(_, reason)| reason)
    }
}

/// Whether the Service's condition speaks of this.
fn is_told(service: &ServiceView, problem: &Problem) -> bool {
    let shown = service.conditions.get(CONDITION_ALLOCATED);
    shown.is_some_and(|shown| shown.reason == problem.reason.as_str() && shown.message.starts_with(&problem.message))
}

impl Index {
    pub(super) fn seek(&mut self, service: &ServiceView, held: &BTreeSet<IpAddr>, now: Duration) -> Grant {
        let mut grant = Grant { wanted: service.wanted_use.clone(), ..Grant::default() };
        for address in held.iter().chain(&service.shown) {
            let family = Family::of(*address);
            if !service.families.contains(&family) {
                let sentence = format!("spec.ipFamilies has no {family}");
                grant.reasons.insert(*address, sentence.into());
            }
        }
        let mut search = self.search(service, now);
        self.order_pools(&mut search, held);
        let mut refusals: Vec<(bool, Family, Refusal)> = Vec::new();
        for family in service.families.clone() {
            let asked = search.request.addresses.iter().copied().find(|address| Family::of(*address) == family);
            let mine: Vec<IpAddr> = held.iter().copied().filter(|address| Family::of(*address) == family).collect();
            match self.one(&search, &mut grant, family, asked, &mine) {
                Ok(allocated) => {
                    search.prefer(allocated.pool());
                    grant.addresses.push(allocated);
                }
                Err(refusal) => refusals.push((asked.is_some(), family, refusal)),
            }
        }
        let none = grant.addresses.is_empty();
        let mut problems = Vec::new();
        for (asked, family, refusal) in refusals {
            grant.waits.extend(refusal.waits);
            if service.family_policy == FamilyPolicy::Prefer && !asked && !none {
                grant.remarks.push(format!("no {family} address: {}", refusal.problem.message));
            } else {
                problems.push(refusal.problem);
            }
        }
        // Of two, the one that was told already is told on: the other one may come and go without being looked at.
        let told = problems.iter().position(|problem| is_told(service, problem)).unwrap_or(0);
        grant.problem = problems.into_iter().nth(told);
        if let Some(problem) = search.unreadable {
            grant.problem = Some(problem);
        }
        if grant.problem.is_some() {
            // It needs all that it asks for; what it has is not taken from it because of what it lacks.
            for new in grant.addresses.extract_if(.., |allocated| !held.contains(&allocated.address())) {
                self.allocator.undo(new.address(), &service.key);
                // Without this one there would be more to say.
                grant.waits.insert(Wait::Address(new.address()));
            }
        }
        grant
    }

    fn search<'a>(&self, service: &'a ServiceView, now: Duration) -> Search<'a> {
        let (admitting, refusing) = self.admitting(service);
        let invalid = |sentence: String| Some(Problem::new(AllocatedReason::InvalidRequest, sentence));
        let (request, unreadable) = match &service.request {
            Ok(request) => {
                let has_family = |address: &&IpAddr| service.families.contains(&Family::of(**address));
                match request.addresses.iter().find(|address| !has_family(address)) {
                    Some(address) => {
                        let (source, family) = (&request.addresses_source, Family::of(*address));
                        let sentence = format!("{source} asks for {address}, but spec.ipFamilies has no {family}");
                        (AddressRequest::default(), invalid(sentence))
                    }
                    None => (request.clone(), None),
                }
            }
            Err(sentence) => (AddressRequest::default(), invalid(sentence.clone())),
        };
        let no_pool = |message| Some(Problem::new(AllocatedReason::NoMatchingPool, message));
        let mut search = Search {
            service,
            request,
            allowed: Vec::new(),
            automatic: Vec::new(),
            refusing,
            missing: None,
            unreadable,
            now,
        };
        match &search.request.pool {
            _ if self.pools.is_empty() => {
                search.missing = no_pool("there is no IPPool; make one (kubectl explain ippool.spec)".to_owned());
            }
            Some((pool, source)) if self.pools.get(pool).is_none() => {
                search.missing = no_pool(format!("{source} asks for pool '{pool}', which does not exist"));
            }
            Some((pool, source)) if !admitting.contains(pool) => {
                let reason = search.refusal(pool);
                search.missing =
                    no_pool(format!("{source} asks for pool '{pool}', which does not admit the Service: {reason}"));
            }
            Some((pool, _)) => {
                search.automatic.push(pool.clone());
                search.allowed.push(pool.clone());
            }
            None => {
                for pool in &admitting {
                    if self.pools.get(pool).is_some_and(|pool| pool.config.auto_assign) {
                        search.automatic.push(pool.clone());
                    } else {
                        let reason = "autoAssign is false, ask for it with l2lb.io/pool";
                        search.refusing.push((pool.clone(), reason.to_owned()));
                    }
                }
                search.allowed = admitting;
            }
        }
        search
    }

    /// Two addresses come from one pool if they can: from that of the one that the Service has or asks for, else from the first one
    /// that has both.
    fn order_pools(&self, search: &mut Search<'_>, held: &BTreeSet<IpAddr>) {
        let families = &search.service.families;
        if families.len() < 2 {
            return;
        }
        let asked = search.request.addresses.iter().filter_map(|address| self.allocator.pool_of(*address));
        let given = held.iter().filter_map(|address| self.allocator.home(*address));
        let first = asked.chain(given).map(|pool| pool.name().to_owned()).next();
        match first {
            Some(pool) => search.prefer(&pool),
            None => search
                .automatic
                .sort_by_key(|pool| !families.iter().all(|family| self.allocator.can_give(pool, *family))),
        }
    }

    /// One address of this family.
    fn one(
        &mut self,
        search: &Search<'_>,
        grant: &mut Grant,
        family: Family,
        asked: Option<IpAddr>,
        mine: &[IpAddr],
    ) -> Result<Allocated, Refusal> {
        let (key, wanted) = (&search.service.key, &search.service.wanted_use);
        // A move that is under way leaves two: the one that is shown goes first.
        let mut mine = mine.to_vec();
        mine.sort_by_key(|address| !search.service.shown.contains(address));
        let mut disputed = None;
        for address in mine.iter().copied() {
            if let Some(sentence) = self.reason_to_leave(search, asked, address) {
                grant.reasons.insert(address, sentence.into());
            } else if self.is_replaceable(address) && search.unreadable.is_none() {
                disputed = disputed.or(Some(address));
            } else {
                match self.allocator.keep(address, key, wanted) {
                    Ok(allocated) => {
                        // A restart amid the move away from a disputed address.
                        let moved = disputed.map(|address| (address, self.taken_by_stranger(address)));
                        grant.reasons.extend(moved);
                        return Ok(allocated);
                    }
                    Err(error) => {
                        grant.reasons.insert(address, error.to_string().into());
                        if asked.is_some() {
                            return Err(self.refusal(search, error));
                        }
                    }
                }
            }
        }
        if let Some(address) = disputed {
            return self.instead_of(address, search, grant, family);
        }
        if let Some(problem) = search.unreadable.as_ref().or(search.missing.as_ref()) {
            return Err(problem.clone().into());
        }
        if let Some(address) = asked {
            let given = self.allocator.request(key, wanted, address, &search.allowed);
            return given.map_err(|error| self.refusal(search, error));
        }
        for address in search.service.shown.iter().copied().filter(|address| Family::of(*address) == family) {
            if mine.contains(&address) {
                continue;
            }
            match self.allocator.request(key, wanted, address, &search.allowed) {
                Ok(allocated) => return Ok(allocated),
                Err(error) => {
                    let sentence = self.refusal(search, error).problem.message;
                    grant.reasons.insert(address, sentence.into());
                }
            }
        }
        if search.automatic.is_empty() {
            let message = format!("no pool admits the Service; {}", search.refusals());
            return Err(Problem::new(AllocatedReason::NoMatchingPool, message).into());
        }
        let given = self.allocator.allocate(key, wanted, family, &search.automatic, search.now);
        given.map_err(|error| self.refusal(search, error))
    }

    /// Another address than this one, which another host has and nobody knows of. Without another one it stays.
    fn instead_of(
        &mut self,
        address: IpAddr,
        search: &Search<'_>,
        grant: &mut Grant,
        family: Family,
    ) -> Result<Allocated, Refusal> {
        let (key, wanted) = (&search.service.key, &search.service.wanted_use);
        let departure = self.taken_by_stranger(address);
        let pool = self.allocator.counted_pool(address).unwrap_or_default().to_owned();
        let quarantined = self.quarantined_in(&pool).count();
        let refused = if quarantined >= QUARANTINED_AT_MOST {
            // One of them less, and there is another one to give.
            grant.waits.insert(Wait::Free(pool.clone(), family));
            format!(
                "other hosts answer for {quarantined} more addresses of pool {pool}; is there a router that answers for all?"
            )
        } else if search.automatic.is_empty() {
            "no pool gives another one".to_owned()
        } else {
            match self.allocator.allocate(key, wanted, family, &search.automatic, search.now) {
                Ok(allocated) => {
                    grant.reasons.insert(address, departure);
                    return Ok(allocated);
                }
                Err(error) => {
                    let refusal = self.refusal(search, error);
                    grant.waits.extend(refusal.waits);
                    refusal.problem.message
                }
            }
        };
        grant.remarks.push(format!("{}, and there is no other to give: {refused}", departure.sentence));
        self.allocator.keep(address, key, wanted).map_err(|error| self.refusal(search, error))
    }

    fn taken_by_stranger(&self, address: IpAddr) -> Departure {
        let mac = self.foreign_mac(address).unwrap_or("unknown");
        let sentence = format!("a host with MAC address {mac}, which is none of the speakers, answers for {address}");
        Departure { sentence, to_stranger: true }
    }

    /// Why what the Service asks for and what the pools say does not let it stay on an address that it has.
    fn reason_to_leave(&self, search: &Search<'_>, asked: Option<IpAddr>, address: IpAddr) -> Option<String> {
        if let Some(asked) = asked.filter(|asked| *asked != address) {
            return Some(format!("{} asks for {asked}", search.request.addresses_source));
        }
        // What nobody has seen yet is no reason to go against the pools.
        let is_seen = self.seen.contains_key(&address) || search.service.shown.contains(&address);
        let given = || self.allocator.pool_of(address).is_some_and(|pool| search.gives(pool.name(), asked.is_some()));
        if !is_seen && (search.unreadable.is_some() || !given()) {
            return Some(format!("no pool gives {address} any more"));
        }
        let home = self.allocator.home(address).map(|pool| pool.name());
        if home.is_some_and(|pool| search.allowed.iter().any(|name| name == pool)) {
            return None;
        }
        let recorded = home.or_else(|| self.allocator.pool_of_held(address)).unwrap_or_default();
        match (&search.request.pool, home) {
            (Some((pool, source)), _) if pool != recorded => Some(format!("{source} asks for pool '{pool}'")),
            (_, Some(pool)) => Some(format!("pool {pool} does not admit the Service: {}", search.refusal(pool))),
            (_, None) => self.is_evicted(address, search.now).then(|| format!("no pool holds {address} any more")),
        }
    }

    /// The error in words that say all that is known.
    fn refusal(&self, search: &Search<'_>, error: AllocateError) -> Refusal {
        let mut waits = Vec::new();
        match &error {
            AllocateError::Exhausted { family, pools } => {
                waits.extend(pools.iter().map(|pool| Wait::Free(pool.clone(), *family)));
                waits.extend(search.service.wanted_use.sharing_key.clone().map(Wait::Key));
            }
            AllocateError::NotInPool { address, .. } => {
                if let Some(problem) = self.whose(*address, search) {
                    return problem.into();
                }
            }
            AllocateError::InUse { address, .. }
            | AllocateError::NotShared { address, .. }
            | AllocateError::OtherKey { address, .. }
            | AllocateError::Full { address, .. }
            | AllocateError::OtherBackend { address, .. }
            | AllocateError::PortCollision { address, .. } => waits.push(Wait::Address(*address)),
            AllocateError::NoSuchFamily { .. } => {}
        }
        let faults = match &error {
            AllocateError::Exhausted { family, pools } | AllocateError::NoSuchFamily { family, pools } => {
                pools.iter().filter_map(|pool| Some((pool.clone(), self.why_nothing(pool, *family)?))).collect()
            }
            _ => Vec::new(),
        };
        let mut problem = Problem::from(error);
        for (pool, fault) in faults {
            problem.message = format!("{}; pool {pool} is not Ready: {fault}", problem.message);
        }
        Refusal { problem, waits }
    }

    /// Whose the address is that the Service cannot have though a pool lists it.
    fn whose(&self, address: IpAddr, search: &Search<'_>) -> Option<Problem> {
        let listing = self.allocator.pools().iter().find(|pool| pool.lists(address))?;
        if let Some(pool) = self.allocator.pool_of(address) {
            let (name, reason) = (pool.name(), search.refusal(pool.name()));
            let message = match &search.request.pool {
                Some((wanted, source)) => format!("{address} is in pool {name}, but {source} asks for pool '{wanted}'"),
                None => format!("{address} is in pool {name}, which does not admit the Service: {reason}"),
            };
            return Some(Problem::new(AllocatedReason::AddressNotInPool, message));
        }
        let in_use = |address| self.allocator.users(address).next().is_some();
        Some(match self.reservations.whose(address, in_use) {
            Some(what) => Problem::new(AllocatedReason::AddressInUse, format!("{address} is {what}")),
            None => {
                let message = format!("{address} is in pool {}, which hands out nothing as it is", listing.name());
                Problem::new(AllocatedReason::AddressNotInPool, message)
            }
        })
    }

    /// The pools that admit the Service, in order, and why each other one does not.
    pub(super) fn admitting(&self, service: &ServiceView) -> (Vec<String>, Vec<(String, String)>) {
        let (mut admitting, mut refusing) = (Vec::new(), Vec::new());
        for pool in self.allocator.pools() {
            let Some(view) = self.pools.get(pool.name()) else { continue };
            match self.admits(view, service) {
                Ok(()) => admitting.push(view.name.clone()),
                Err(reason) => refusing.push((view.name.clone(), reason)),
            }
        }
        (admitting, refusing)
    }

    fn admits(&self, pool: &PoolView, service: &ServiceView) -> Result<(), String> {
        if pool.service_selector.as_ref().is_some_and(|selector| !selector.matches(&(&service.labels).into())) {
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
}
