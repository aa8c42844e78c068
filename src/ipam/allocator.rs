//! Who uses which address. The only place where an address is given away: an [`Allocated`] can be made nowhere else.
//!
//! Inputs: [`Allocator::handle_pools`], [`Allocator::adopt`] (what was given earlier), [`Allocator::allocate`],
//! [`Allocator::request`], [`Allocator::release`]. Everything else is a query. Taken addresses are kept as merged ranges, so
//! that finding the lowest free one costs the logarithm of their number, not their number.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{AddressRange, AllocateError, Family, Pool, RangeSet, range::to_address};

/// How long a released address is left alone while others are free, so that a neighbour's stale cache does not send the
/// traffic of the last user to the next one.
pub const REST_AFTER_RELEASE: Duration = Duration::from_secs(300);

/// An address that somebody holds. Only the allocator makes it.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Allocated {
    address: IpAddr,
    pool: String,
}

impl Allocated {
    /// The address.
    pub fn address(&self) -> IpAddr {
        self.address
    }

    /// The pool it comes from.
    pub fn pool(&self) -> &str {
        &self.pool
    }
}

/// How much of a pool is used.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct FamilyUsage {
    /// Addresses that the pool can hand out at all.
    pub total: u128,
    /// Those of them that are in use.
    pub used: u128,
}

/// Usage of both families; `None` where the pool has no addresses of that family.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Usage {
    /// IPv4.
    pub v4: Option<FamilyUsage>,
    /// IPv6.
    pub v6: Option<FamilyUsage>,
}

/// What a user does with its addresses, as far as it decides who may share one.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Use {
    /// Those with the same key may share an address. `None`: not shared.
    pub sharing_key: Option<String>,
    /// Protocol and port of everything that it serves.
    pub ports: BTreeSet<(String, u16)>,
    /// What receives the traffic, where the traffic has to meet it on the announcing node; equal among those who share.
    pub backend: Option<String>,
}

#[derive(Debug)]
struct Holding {
    pool: String,
    users: BTreeMap<String, Use>,
}

impl Holding {
    /// Why `user` cannot be here too, or cannot stay with another use.
    fn objection(&self, address: IpAddr, user: &str, wanted: &Use) -> Option<AllocateError> {
        let others: Vec<(&String, &Use)> = self.users.iter().filter(|(other, _)| *other != user).collect();
        if others.is_empty() {
            return None;
        }
        let users = || others.iter().map(|(other, _)| (*other).clone()).collect();
        let keys = others.iter().map(|(_, theirs)| theirs.sharing_key.as_ref());
        match &wanted.sharing_key {
            None => return Some(AllocateError::InUse { address, users: users() }),
            Some(key) if keys.clone().all(|theirs| theirs.is_none()) => {
                let key = key.clone();
                return Some(AllocateError::NotShared { address, key, users: users() });
            }
            Some(key) if keys.clone().any(|theirs| theirs != Some(key)) => {
                let key = key.clone();
                return Some(AllocateError::OtherKey { address, key, users: users() });
            }
            Some(_) => {}
        }
        for (other, theirs) in &others {
            if let Some((protocol, port)) = theirs.ports.intersection(&wanted.ports).next() {
                let (protocol, port) = (protocol.clone(), *port);
                return Some(AllocateError::PortCollision { address, protocol, port, user: (*other).clone() });
            }
            if theirs.backend != wanted.backend {
                return Some(AllocateError::OtherBackend { address, user: (*other).clone() });
            }
        }
        None
    }
}

/// All pools and who uses what.
#[derive(Debug, Default)]
pub struct Allocator {
    /// In the order in which they are tried.
    pools: Vec<Pool>,
    held: BTreeMap<IpAddr, Holding>,
    taken: RangeSet,
    resting: RangeSet,
    /// When each resting address may be used again, in order of release.
    wake: VecDeque<(Duration, IpAddr)>,
    /// The entry of `wake` that counts, for addresses that were released more than once.
    rests_until: BTreeMap<IpAddr, Duration>,
}

impl Allocator {
    /// Replaces the pools. Nothing that is held is taken away, not even where no pool holds it any more.
    pub fn handle_pools(&mut self, mut pools: Vec<Pool>) {
        pools.sort_by(|a, b| a.order().cmp(&b.order()));
        self.pools = pools;
        for (address, holding) in &mut self.held {
            if let Some(pool) = self.pools.iter().find(|pool| pool.contains(*address)) {
                holding.pool = pool.name().to_owned();
            }
        }
    }

    /// The pools in the order in which they are tried.
    pub fn pools(&self) -> &[Pool] {
        &self.pools
    }

    /// The pool that can hand the address out.
    pub fn pool_of(&self, address: IpAddr) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.contains(address))
    }

    /// Records what was given earlier, without asking whether a pool would give it today; `recorded_pool` is used where no
    /// pool holds the address now. Returns `None` and changes nothing if somebody who does not share holds it.
    pub fn adopt(&mut self, address: IpAddr, user: &str, wanted: &Use, recorded_pool: &str) -> Option<Allocated> {
        if self.held.get(&address).is_some_and(|holding| holding.objection(address, user, wanted).is_some()) {
            return None;
        }
        let held = self.held.get(&address).map(|holding| holding.pool.clone());
        let pool = held.or_else(|| self.pool_of(address).map(|pool| pool.name().to_owned()));
        Some(self.hold(address, user, wanted, pool.unwrap_or_else(|| recorded_pool.to_owned())))
    }

    /// Whether `user`, who holds the address, may keep it for what it wants now; records what that is.
    ///
    /// # Errors
    /// If it shares the address with somebody who does not get along with that. It still holds the address then.
    pub fn keep(&mut self, address: IpAddr, user: &str, wanted: &Use) -> Result<Allocated, AllocateError> {
        let Some(holding) = self.held.get_mut(&address).filter(|holding| holding.users.contains_key(user)) else {
            let users = self.users(address).map(str::to_owned).collect();
            return Err(AllocateError::InUse { address, users });
        };
        if let Some(objection) = holding.objection(address, user, wanted) {
            return Err(objection);
        }
        holding.users.insert(user.to_owned(), wanted.clone());
        Ok(Allocated { address, pool: holding.pool.clone() })
    }

    /// The lowest free address of the family in the first of the named pools that has one; before that, for those who
    /// share, the lowest one that they can share. Addresses released less than
    /// [`REST_AFTER_RELEASE`] ago are given only when no other is free in any of them.
    ///
    /// # Errors
    /// If there is none.
    pub fn allocate(
        &mut self,
        user: &str,
        wanted: &Use,
        family: Family,
        pools: &[String],
        now: Duration,
    ) -> Result<Allocated, AllocateError> {
        self.wake_rested(now);
        let named = || self.pools.iter().filter(|pool| pools.iter().any(|name| name == pool.name()));
        if named().all(|pool| pool.total(family) == 0) {
            return Err(AllocateError::NoSuchFamily { family, pools: pools.to_vec() });
        }
        if let Some((address, pool)) = self.shareable(user, wanted, family, pools) {
            return Ok(self.hold(address, user, wanted, pool));
        }
        let fresh = named().find_map(|pool| Some((self.lowest(pool, family, true)?, pool.name())));
        let found = fresh.or_else(|| named().find_map(|pool| Some((self.lowest(pool, family, false)?, pool.name()))));
        let Some((address, pool)) = found.map(|(address, pool)| (address, pool.to_owned())) else {
            return Err(AllocateError::Exhausted { family, pools: pools.to_vec() });
        };
        Ok(self.hold(address, user, wanted, pool))
    }

    /// Exactly this address, from one of the named pools. Asking again for what one holds already is no error.
    ///
    /// # Errors
    /// If none of those pools holds it, or somebody else has it.
    pub fn request(
        &mut self,
        user: &str,
        wanted: &Use,
        address: IpAddr,
        pools: &[String],
    ) -> Result<Allocated, AllocateError> {
        let Some(pool) = self.pool_of(address).map(Pool::name).filter(|name| pools.iter().any(|pool| pool == name))
        else {
            return Err(AllocateError::NotInPool { address, pools: pools.to_vec() });
        };
        if let Some(objection) = self.held.get(&address).and_then(|held| held.objection(address, user, wanted)) {
            return Err(objection);
        }
        let pool = pool.to_owned();
        Ok(self.hold(address, user, wanted, pool))
    }

    /// Takes the address from one user; when the last one is gone it rests from now on. Nothing happens if that user does
    /// not hold it.
    pub fn release(&mut self, address: IpAddr, user: &str, now: Duration) {
        let Some(holding) = self.held.get_mut(&address) else { return };
        if holding.users.remove(user).is_none() || !holding.users.is_empty() {
            return;
        }
        self.held.remove(&address);
        self.taken.remove(AddressRange::single(address));
        self.resting.insert(AddressRange::single(address));
        self.wake.push_back((now + REST_AFTER_RELEASE, address));
        self.rests_until.insert(address, now + REST_AFTER_RELEASE);
    }

    /// Takes back what `user` was given a moment ago and nobody has seen yet: the address does not rest.
    pub fn undo(&mut self, address: IpAddr, user: &str) {
        let Some(holding) = self.held.get_mut(&address) else { return };
        if holding.users.remove(user).is_some() && holding.users.is_empty() {
            self.held.remove(&address);
            self.taken.remove(AddressRange::single(address));
        }
    }

    /// Who holds the address, by name.
    pub fn users(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.held.get(&address).into_iter().flat_map(|holding| holding.users.keys().map(String::as_str))
    }

    /// What `user` does with the address that it holds.
    pub fn use_of(&self, address: IpAddr, user: &str) -> Option<&Use> {
        self.held.get(&address)?.users.get(user)
    }

    /// The pool that the held address comes from.
    pub fn pool_of_held(&self, address: IpAddr) -> Option<&str> {
        self.held.get(&address).map(|holding| holding.pool.as_str())
    }

    /// All addresses that are held.
    pub fn held(&self) -> impl Iterator<Item = IpAddr> {
        self.held.keys().copied()
    }

    /// How much of each pool is used, in the order of [`Allocator::pools`].
    pub fn usage(&self) -> Vec<(&str, Usage)> {
        let mut used: BTreeMap<(&str, Family), u128> = BTreeMap::new();
        for (address, holding) in &self.held {
            if self.pool_of(*address).is_some_and(|pool| pool.name() == holding.pool) {
                *used.entry((&holding.pool, Family::of(*address))).or_default() += 1;
            }
        }
        let family = |pool: &Pool, family| {
            let total = pool.total(family);
            let used = used.get(&(pool.name(), family)).copied().unwrap_or(0);
            (total > 0).then_some(FamilyUsage { total, used })
        };
        let usage = |pool| Usage { v4: family(pool, Family::V4), v6: family(pool, Family::V6) };
        self.pools.iter().map(|pool| (pool.name(), usage(pool))).collect()
    }

    fn hold(&mut self, address: IpAddr, user: &str, wanted: &Use, pool: String) -> Allocated {
        self.taken.insert(AddressRange::single(address));
        self.resting.remove(AddressRange::single(address));
        self.rests_until.remove(&address);
        let holding =
            self.held.entry(address).or_insert_with(|| Holding { pool: pool.clone(), users: BTreeMap::new() });
        holding.users.insert(user.to_owned(), wanted.clone());
        Allocated { address, pool }
    }

    fn shareable(&self, user: &str, wanted: &Use, family: Family, pools: &[String]) -> Option<(IpAddr, String)> {
        let key = wanted.sharing_key.as_ref()?;
        let fits = |(address, holding): &(&IpAddr, &Holding)| {
            Family::of(**address) == family
                && holding.users.values().any(|theirs| theirs.sharing_key.as_ref() == Some(key))
                && holding.objection(**address, user, wanted).is_none()
                && self.pool_of(**address).is_some_and(|pool| pools.iter().any(|name| name == pool.name()))
        };
        self.held.iter().find(fits).map(|(address, holding)| (*address, holding.pool.clone()))
    }

    fn lowest(&self, pool: &Pool, family: Family, rested_only: bool) -> Option<IpAddr> {
        let mut number = pool.next_number(family, 0)?;
        loop {
            let occupied = self.taken.span_of(family, number);
            let occupied = occupied.or_else(|| rested_only.then(|| self.resting.span_of(family, number)).flatten());
            let Some(end) = occupied else {
                return Some(to_address(family, number));
            };
            number = pool.next_number(family, end.checked_add(1)?)?;
        }
    }

    fn wake_rested(&mut self, now: Duration) {
        while let Some(&(until, address)) = self.wake.front()
            && until <= now
        {
            self.wake.pop_front();
            // Otherwise it was given away or released again since: a later entry counts.
            if self.rests_until.get(&address) == Some(&until) {
                self.rests_until.remove(&address);
                self.resting.remove(AddressRange::single(address));
            }
        }
    }
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
