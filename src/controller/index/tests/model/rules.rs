//! The naive model: what is right, by looking at every address and every Service. It shares nothing with the controller but
//! the names of the reasons.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use super::facts::*;

/// Who uses which address.
pub type Users = BTreeMap<IpAddr, BTreeSet<String>>;

/// Whether two Services get along on one address, or what is in the way.
pub fn quarrel(new: &ServiceFact, old: &ServiceFact) -> Option<&'static str> {
    match (new.key, old.key) {
        (None, _) => return Some("AddressInUse"),
        (Some(new), Some(old)) if new == old => {}
        _ => return Some("SharingMismatch"),
    }
    if !new.ports().is_disjoint(&old.ports()) {
        return Some("PortCollision");
    }
    let same_backend = match (new.local, old.local) {
        (false, false) => true,
        (true, true) => new.selector.is_some() && (new.space, new.selector) == (old.space, old.selector),
        _ => false,
    };
    (!same_backend).then_some("SharingMismatch")
}

fn in_use_of(address: IpAddr, in_use: bool) -> impl Fn(IpAddr) -> bool {
    move |other| other == address && in_use
}

impl Facts {
    /// What the pool lists and does not exclude.
    fn listed(&self, pool: &str) -> Addrs {
        self.pools.get(pool).map_or(Addrs::default(), |pool| pool.addresses.without(pool.exclude))
    }

    /// Whether the pool lists the address, whoever has a say against giving it.
    pub fn holds(&self, pool: &str, address: IpAddr) -> bool {
        let buggy = matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255));
        let avoided = buggy && self.pools.get(pool).is_some_and(|pool| pool.avoid_buggy);
        self.listed(pool).has(address) && !avoided
    }

    /// Whether what the pool lists cannot be read whole.
    pub fn is_incomplete(&self, pool: &str) -> bool {
        self.pools.get(pool).is_some_and(|pool| pool.bad == Some(Bad::Address))
    }

    /// Whether an older pool lists the address as well.
    fn is_an_elders(&self, pool: &str, address: IpAddr) -> bool {
        let age = |name: &str| (self.pools[name].created, name.to_owned());
        self.pools.keys().any(|other| age(other) < age(pool) && self.listed(other).has(address))
    }

    /// Whether the address belongs to somebody, and no pool gives it. What a Service has is on interfaces of nodes because of
    /// that.
    pub fn is_withheld(&self, address: IpAddr, in_use: bool) -> bool {
        let nodes = self.nodes.values();
        let mut of_nodes = nodes
            .flat_map(|node| [node.address.map(|at| four(at) == address), node.pods.map(|at| in_pair(at, address))]);
        let mut on_nics = self.speakers.values().filter_map(SpeakerFact::own_address);
        of_nodes.any(|has| has == Some(true))
            || self.ranges.values().any(|at| in_pair(*at, address))
            || (!in_use && on_nics.any(|at| four(at) == address))
    }

    /// The pool that gives the address.
    pub fn giver(&self, address: IpAddr, in_use: bool) -> Option<&str> {
        let gives = |pool: &&String| {
            self.gives(pool, in_use_of(address, in_use)).contains(&address) || self.is_vast_in(pool, address)
        };
        let mut givers = self.pools.keys().filter(gives);
        let giver = givers.next()?;
        assert!(givers.next().is_none(), "{address} is given by two pools");
        Some(giver)
    }

    /// Addresses of the /64 beyond those that are listed.
    fn is_vast_in(&self, pool: &str, address: IpAddr) -> bool {
        !Addrs { vast: true, ..Addrs::default() }.list().contains(&address)
            && self.holds(pool, address)
            && !address.is_ipv4()
            && self.pools[pool].bad != Some(Bad::Exclude)
            && !self.is_an_elders(pool, address)
    }

    /// Every address that the pool can ever give; of the /64 the first ones.
    pub fn gives(&self, pool: &str, in_use: impl Fn(IpAddr) -> bool) -> Vec<IpAddr> {
        if self.pools[pool].bad == Some(Bad::Exclude) {
            return vec![];
        }
        let listed = self.listed(pool).list().into_iter().filter(|at| self.holds(pool, *at));
        listed.filter(|at| !self.is_an_elders(pool, *at) && !self.is_withheld(*at, in_use(*at))).collect()
    }

    /// Whether the pool is for this Service.
    pub fn admits(&self, pool: &str, service: &ServiceFact) -> bool {
        let pool = &self.pools[pool];
        if pool.tier.is_some() && pool.tier != service.tier {
            return false;
        }
        if pool.spaces.is_empty() && pool.env.is_none() {
            return true;
        }
        let env = self.spaces.get(SPACES[usize::from(service.space)]).copied().flatten();
        pool.spaces.contains(&service.space) || (pool.env.is_some() && pool.env == env)
    }

    /// Whether the Service may be served from this pool.
    pub fn may_use(&self, pool: &str, service: &ServiceFact) -> bool {
        self.admits(pool, service) && service.pool.is_none_or(|(_, asked)| POOLS[usize::from(asked)] == pool)
    }

    /// Whether the request means anything, and something that this Service can have at all.
    pub fn makes_sense(&self, service: &ServiceFact) -> bool {
        let Some(asked) = service.ask.addresses() else { return false };
        asked.iter().all(|at| service.families.order().contains(&at.is_ipv4()))
    }

    /// The address of this family that the Service asks for.
    pub fn asked(service: &ServiceFact, is_four: bool) -> Option<IpAddr> {
        service.ask.addresses().into_iter().flatten().find(|at| at.is_ipv4() == is_four)
    }

    /// Why the Service may not be on the address together with the others there.
    pub fn objection(&self, key: &str, address: IpAddr, users: &Users) -> Option<&'static str> {
        let others = users.get(&address).into_iter().flatten().filter(|other| *other != key);
        let others = others.filter_map(|other| self.services.get(other)).filter(|other| other.is_ours());
        others.filter_map(|other| quarrel(&self.services[key], other)).next()
    }

    /// Every address of the family that the Service could be given now.
    pub fn choices(&self, key: &str, is_four: bool, users: &Users, barred: &BTreeSet<IpAddr>) -> Vec<IpAddr> {
        let service = &self.services[key];
        let asked = Self::asked(service, is_four);
        let pools = self.pools.keys().filter(|pool| self.may_use(pool, service));
        let pools = pools.filter(|pool| asked.is_some() || service.pool.is_some() || self.pools[*pool].auto);
        let all = pools.flat_map(|pool| self.gives(pool, |at| users.contains_key(&at)));
        // What is asked for is given even if a foreign host has it.
        all.filter(|at| at.is_ipv4() == is_four)
            .filter(|at| asked.is_none_or(|asked| asked == *at))
            .filter(|at| asked.is_some() || !barred.contains(at))
            .filter(|at| self.objection(key, *at, users).is_none())
            .collect()
    }

    /// Whether the Service itself has nothing against staying on an address that it has. A request that means nothing changes
    /// nothing.
    fn wants(&self, key: &str, address: IpAddr, users: &Users) -> bool {
        let Some(service) = self.services.get(key) else { return false };
        let asks_for_other = || Self::asked(service, address.is_ipv4()).is_some_and(|asked| asked != address);
        service.is_ours()
            && service.families.order().contains(&address.is_ipv4())
            && !(self.makes_sense(service) && asks_for_other())
            && self.objection(key, address, users).is_none()
    }

    /// Whether the pool is for this Service, as far as its request can be understood.
    fn serves(&self, pool: &str, service: &ServiceFact) -> bool {
        if self.makes_sense(service) { self.may_use(pool, service) } else { self.admits(pool, service) }
    }

    /// Whether the Service may stay on an address that it has and that is recorded as one of pool `home`.
    pub fn may_stay(&self, key: &str, address: IpAddr, users: &Users, home: &str) -> bool {
        let at_home = self.pools.contains_key(home) && (self.holds(home, address) || self.is_incomplete(home));
        self.wants(key, address, users) && at_home && self.serves(home, &self.services[key])
    }

    /// Whether nothing justifies taking the address from the Service. `passing` tells whether the time has not passed yet
    /// that a pool may be gone.
    pub fn must_stay(&self, key: &str, address: IpAddr, users: &Users, home: &str, passing: bool) -> bool {
        if !self.wants(key, address, users) {
            return false;
        }
        let service = &self.services[key];
        if self.holds(home, address) {
            return self.serves(home, service);
        }
        if let Some(giver) = self.giver(address, true) {
            return self.serves(giver, service);
        }
        let mut holders = self.pools.keys().filter(|pool| self.holds(pool, address)).peekable();
        if holders.peek().is_some() {
            return holders.all(|pool| self.serves(pool, service));
        }
        if self.is_incomplete(home) {
            return self.serves(home, service);
        }
        let asked = service.pool.filter(|_| self.makes_sense(service));
        passing && asked.is_none_or(|(_, asked)| POOLS[usize::from(asked)] == home)
    }

    /// The families of which the Service needs an address, or the whole is a failure.
    pub fn needs(&self, key: &str) -> Vec<bool> {
        let service = &self.services[key];
        let prefers = service.families.policy() == "PreferDualStack" && service.families.order().len() > 1;
        let needed = service.families.order().iter().copied();
        needed.filter(|is_four| !prefers || Self::asked(service, *is_four).is_some()).collect()
    }

    /// Whether the Service says that something is wrong.
    pub fn has_problem(&self, key: &str, held: &BTreeSet<IpAddr>) -> bool {
        let has = |is_four: bool| held.iter().any(|at| at.is_ipv4() == is_four);
        let service = &self.services[key];
        held.is_empty() || !self.makes_sense(service) || !self.needs(key).into_iter().all(has)
    }

    /// Every reason that would be true of a Service that lacks an address.
    pub fn reasons(
        &self,
        key: &str,
        held: &BTreeSet<IpAddr>,
        users: &Users,
        barred: &BTreeSet<IpAddr>,
    ) -> BTreeSet<&'static str> {
        let service = &self.services[key];
        if !self.makes_sense(service) {
            return ["InvalidRequest"].into();
        }
        let mut reasons = BTreeSet::new();
        for is_four in service.families.order() {
            let has = held.iter().any(|at| at.is_ipv4() == *is_four);
            if !has && self.choices(key, *is_four, users, barred).is_empty() {
                reasons.extend(self.reasons_of(key, *is_four, users));
            }
        }
        reasons
    }

    fn reasons_of(&self, key: &str, is_four: bool, users: &Users) -> BTreeSet<&'static str> {
        let service = &self.services[key];
        let in_use = |at: IpAddr| users.contains_key(&at);
        let pools: Vec<&String> = self.pools.keys().filter(|pool| self.may_use(pool, service)).collect();
        let mut reasons = BTreeSet::new();
        if pools.is_empty() {
            reasons.insert("NoMatchingPool");
        }
        if let Some(asked) = Self::asked(service, is_four) {
            let listed = self.pools.keys().any(|pool| self.holds(pool, asked));
            match self.giver(asked, in_use(asked)) {
                Some(giver) if pools.iter().any(|pool| *pool == giver) => {
                    reasons.extend(self.objection(key, asked, users))
                }
                None if listed && self.is_withheld(asked, in_use(asked)) => drop(reasons.insert("AddressInUse")),
                _ => drop(reasons.insert("AddressNotInPool")),
            }
            return reasons;
        }
        let automatic: Vec<&&String> =
            pools.iter().filter(|pool| service.pool.is_some() || self.pools[**pool].auto).collect();
        let of_family = |at: &IpAddr| at.is_ipv4() == is_four;
        let known = || (0..FOURS).map(four).chain((0..SIXES).map(six)).filter(of_family);
        // What is listed and withheld is not lacking: it is not to be had.
        let has = automatic
            .iter()
            .any(|pool| known().any(|at| self.holds(pool, at)) || self.gives(pool, in_use).iter().any(of_family));
        reasons.insert(match (automatic.is_empty(), has) {
            (true, _) => "NoMatchingPool",
            (_, false) => "FamilyUnavailable",
            (_, true) => "PoolExhausted",
        });
        reasons
    }

    /// The pool whose wishes about nodes count for the address.
    fn zone(&self, pool: &str) -> (Option<u8>, Option<&'static str>) {
        self.pools.get(pool).map_or((None, None), |pool| (pool.zone, pool.interface))
    }

    /// The nodes that can announce an address of this pool and family for these Services.
    pub fn candidates(
        &self,
        pool: &str,
        is_four: bool,
        users: &BTreeSet<String>,
        lives: &dyn Fn(&str) -> bool,
    ) -> BTreeSet<&'static str> {
        let (zone, interface) = self.zone(pool);
        let is_fit = |node: &&str| {
            let (Some(fact), Some(speaker)) = (self.nodes.get(*node), self.speakers.get(*node)) else { return false };
            lives(node)
                && fact.ready
                && !fact.excluded
                && !fact.drain
                && !fact.out_of_service
                && zone.is_none_or(|zone| zone == fact.zone)
                && !speaker.draining
                && speaker.interface(interface, is_four).is_some()
        };
        let fit = || NODES.iter().copied().filter(is_fit);
        let local: Vec<&String> =
            users.iter().filter(|key| self.services.get(*key).is_some_and(|service| service.local)).collect();
        let all_have = |node: &str, kinds: &[Endpoint]| {
            local.iter().all(|key| {
                self.endpoints(key, is_four)
                    .any(|(at, endpoint)| NODES[usize::from(at)] == node && kinds.contains(&endpoint))
            })
        };
        let ready: BTreeSet<&str> = fit().filter(|node| all_have(node, &[Endpoint::Ready])).collect();
        if !ready.is_empty() {
            return ready;
        }
        fit().filter(|node| all_have(node, &[Endpoint::Ready, Endpoint::Terminating])).collect()
    }

    /// Whether an administrator does not want the node to announce.
    pub fn is_excluded(&self, node: &str, pool: &str) -> bool {
        let Some(fact) = self.nodes.get(node) else { return true };
        fact.excluded || self.zone(pool).0.is_some_and(|zone| zone != fact.zone)
    }

    /// All endpoints of the Service of one family.
    pub fn endpoints(&self, key: &str, is_four: bool) -> impl Iterator<Item = (u8, Endpoint)> {
        let slices = self.slices.iter().filter(move |((service, part), _)| service == key && (*part < 2) == is_four);
        slices.flat_map(|(_, endpoints)| endpoints.iter().copied())
    }
}
