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

impl Facts {
    /// What the pool lists and does not exclude.
    fn listed(&self, pool: &str) -> Addrs {
        match self.pools.get(pool) {
            Some(pool) if pool.bad != Some(Bad::Exclude) => pool.addresses.without(pool.exclude),
            _ => Addrs::default(),
        }
    }

    /// Whether the pool lists the address and would give it, if nobody else had a say.
    pub fn holds(&self, pool: &str, address: IpAddr) -> bool {
        let buggy = matches!(address, IpAddr::V4(v4) if matches!(v4.octets()[3], 0 | 255));
        let avoided = buggy && self.pools.get(pool).is_some_and(|pool| pool.avoid_buggy);
        self.listed(pool).has(address) && !avoided
    }

    /// Whether an older pool lists the address as well.
    fn is_an_elders(&self, pool: &str, address: IpAddr) -> bool {
        let age = |name: &str| (self.pools[name].created, name.to_owned());
        self.pools.keys().any(|other| age(other) < age(pool) && self.listed(other).has(address))
    }

    /// The node that has the address itself.
    pub fn node_with(&self, address: IpAddr) -> Option<&str> {
        let of_node = self.nodes.iter().find(|(_, node)| node.address.is_some_and(|at| four(at) == address));
        let of_speaker =
            self.speakers.iter().find(|(_, speaker)| speaker.own_address().is_some_and(|at| four(at) == address));
        of_node.map(|(name, _)| name.as_str()).or(of_speaker.map(|(name, _)| name.as_str()))
    }

    /// Whether the address is none that a pool could ever give.
    pub fn is_withheld(&self, address: IpAddr) -> bool {
        self.node_with(address).is_some()
    }

    /// The pool that gives the address.
    pub fn giver(&self, address: IpAddr) -> Option<&str> {
        let mut givers = self.pools.keys().filter(|pool| self.holds(pool, address) && !self.is_an_elders(pool, address));
        let giver = givers.next()?;
        assert!(givers.next().is_none(), "{address} is given by two pools");
        Some(giver)
    }

    /// Every address that the pool can ever give; of the /64 the first ones.
    pub fn gives(&self, pool: &str) -> Vec<IpAddr> {
        let listed = self.listed(pool).list();
        listed.into_iter().filter(|at| self.holds(pool, *at) && !self.is_an_elders(pool, *at)).collect()
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
        let all = pools.flat_map(|pool| self.gives(pool)).filter(|at| at.is_ipv4() == is_four);
        all.filter(|at| asked.is_none_or(|asked| asked == *at))
            .filter(|at| !self.is_withheld(*at) && !barred.contains(at))
            .filter(|at| self.objection(key, *at, users).is_none())
            .collect()
    }

    /// Whether the Service itself has nothing against staying on an address that it has.
    fn wants(&self, key: &str, address: IpAddr, users: &Users) -> bool {
        let Some(service) = self.services.get(key) else { return false };
        service.is_ours()
            && self.makes_sense(service)
            && service.families.order().contains(&address.is_ipv4())
            && Self::asked(service, address.is_ipv4()).is_none_or(|asked| asked == address)
            && self.objection(key, address, users).is_none()
    }

    /// Whether the Service may stay on an address that it has.
    pub fn may_stay(&self, key: &str, address: IpAddr, users: &Users) -> bool {
        let mut holders = self.pools.keys().filter(|pool| self.holds(pool, address));
        self.wants(key, address, users) && holders.any(|pool| self.may_use(pool, &self.services[key]))
    }

    /// Whether nothing justifies taking the address from the Service. `home` is the pool that it comes from, `passing` tells
    /// whether the time has not passed yet that a pool may be gone.
    pub fn must_stay(&self, key: &str, address: IpAddr, users: &Users, home: &str, passing: bool) -> bool {
        if !self.wants(key, address, users) {
            return false;
        }
        let service = &self.services[key];
        if !self.pools.keys().any(|pool| self.holds(pool, address)) {
            return passing && service.pool.is_none_or(|(_, asked)| POOLS[usize::from(asked)] == home);
        }
        let admitted = |pool: &str| self.holds(pool, address) && self.may_use(pool, service);
        admitted(home) || self.giver(address).is_some_and(admitted)
    }

    /// Whether the Service needs this and does not have it: both of two families, or what it asks for. Then it has nothing.
    pub fn lacks(&self, key: &str, held: &BTreeSet<IpAddr>) -> bool {
        let service = &self.services[key];
        service.families.order().iter().any(|is_four| {
            let has = held.iter().any(|at| at.is_ipv4() == *is_four);
            !has && (service.families.policy() == "RequireDualStack" || Self::asked(service, *is_four).is_some())
        })
    }

    /// Every reason that would be true of a Service without an address.
    pub fn reasons(&self, key: &str, users: &Users, barred: &BTreeSet<IpAddr>) -> BTreeSet<&'static str> {
        let service = &self.services[key];
        if !self.makes_sense(service) {
            return ["InvalidRequest"].into();
        }
        let mut reasons = BTreeSet::new();
        for is_four in service.families.order() {
            let asked = Self::asked(service, *is_four);
            let lacking = self.choices(key, *is_four, users, barred).is_empty();
            if !lacking {
                continue;
            }
            let pools: Vec<&String> = self.pools.keys().filter(|pool| self.may_use(pool, service)).collect();
            if pools.is_empty() {
                reasons.insert("NoMatchingPool");
            }
            if let Some(asked) = asked {
                match self.giver(asked) {
                    Some(_) if self.is_withheld(asked) => drop(reasons.insert("AddressInUse")),
                    Some(giver) if pools.iter().any(|pool| *pool == giver) => {
                        reasons.extend(self.objection(key, asked, users));
                        if barred.contains(&asked) {
                            reasons.insert("AddressInUse");
                        }
                    }
                    _ => drop(reasons.insert("AddressNotInPool")),
                }
                continue;
            }
            let automatic: Vec<&&String> =
                pools.iter().filter(|pool| service.pool.is_some() || self.pools[**pool].auto).collect();
            let given: Vec<IpAddr> = automatic.iter().flat_map(|pool| self.gives(pool)).collect();
            let given: Vec<IpAddr> = given.into_iter().filter(|at| at.is_ipv4() == *is_four).collect();
            match (automatic.is_empty(), given.iter().all(|at| self.is_withheld(*at))) {
                (true, _) => drop(reasons.insert("NoMatchingPool")),
                (_, true) => drop(reasons.insert("FamilyUnavailable")),
                _ => drop(reasons.insert("PoolExhausted")),
            }
            if !given.is_empty() {
                reasons.insert("PoolExhausted");
            }
        }
        reasons
    }

    /// The pool whose wishes about nodes count for the address.
    fn zone(&self, pool: &str) -> (Option<u8>, Option<&'static str>) {
        self.pools.get(pool).map_or((None, None), |pool| (pool.zone, pool.interface))
    }

    /// The nodes that can announce an IPv4 address of this pool for these Services.
    pub fn candidates(
        &self,
        pool: &str,
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
                && speaker.interface(interface).is_some()
        };
        let fit = || NODES.iter().copied().filter(is_fit);
        let local: Vec<&String> =
            users.iter().filter(|key| self.services.get(*key).is_some_and(|service| service.local)).collect();
        let all_have = |node: &str, kinds: &[Endpoint]| {
            local.iter().all(|key| {
                self.endpoints(key, true).any(|(at, endpoint)| NODES[usize::from(at)] == node && kinds.contains(&endpoint))
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
