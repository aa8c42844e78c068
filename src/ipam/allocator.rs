//! Who uses which address. The only place where an address is given away: an [`Allocated`] can be made nowhere else.
//!
//! Inputs: [`Allocator::handle_pools`], [`Allocator::adopt`] (what was given earlier), [`Allocator::allocate`],
//! [`Allocator::request`], [`Allocator::keep`], [`Allocator::release`], [`Allocator::quarantine`]. Everything else is a query.
//! Taken addresses are kept as merged ranges and counts are kept up to date, so that neither finding the lowest free address
//! nor counting them costs more where more are in use.
//!
//! An address is *at home* in a pool that lists it. What is held stays held when no pool lists it any more: who holds it is
//! asked to go by the caller ([`Allocator::home`]).

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    time::Duration,
};

use super::{
    AddressRange, AllocateError, Family, Pool, RangeSet,
    range::{to_address, to_number},
};
use crate::small::{SmallMap, SmallSet};

/// How long a released address is left alone while others are free, so that a neighbour's stale cache does not send the
/// traffic of the last user to the next one.
pub const REST_AFTER_RELEASE: Duration = Duration::from_secs(300);
/// So many share one address at most.
pub const MAX_SHARERS: usize = 256;

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
    pub ports: SmallSet<(String, u16)>,
    /// What receives the traffic, where the traffic has to meet it on the announcing node; equal among those who share.
    pub backend: Option<String>,
}

#[derive(Debug)]
struct Holding {
    pool: String,
    /// With what each does with it, where that is known: somebody who held it before we looked was not asked yet. Nobody: the
    /// address is in quarantine.
    users: SmallMap<String, Option<Use>>,
    /// Whether somebody else on the network uses the address.
    blocked: bool,
    /// The pool in whose counts it is.
    counted: Option<Counted>,
}

#[derive(Clone, Debug)]
struct Counted {
    pool: String,
    /// Whether the pool lists it and cannot hand it out: it is counted on top of the pool's total.
    beyond: bool,
}

#[derive(Clone, Copy, Debug, Default)]
struct Counts {
    used: u128,
    beyond: u128,
}

impl Holding {
    /// Why `user` cannot be here too, or cannot stay with another use. What those do whose use is not known got along with all
    /// who are here, and may not with anybody else.
    fn objection(&self, address: IpAddr, user: &str, wanted: &Use) -> Option<AllocateError> {
        let here = self.users.contains_key(user);
        let others = || self.users.iter().filter(|(other, _)| *other != user);
        let known = || others().filter_map(|(other, theirs)| Some((other, theirs.as_ref()?)));
        let in_use = || AllocateError::InUse { address, users: others().map(|(other, _)| other.clone()).collect() };
        if !here && others().count() > known().count() {
            return Some(in_use());
        }
        known().next()?;
        let users = || known().map(|(other, _)| other.clone()).collect();
        let Some(key) = &wanted.sharing_key else { return Some(in_use()) };
        if known().all(|(_, theirs)| theirs.sharing_key.is_none()) {
            return Some(AllocateError::NotShared { address, key: key.clone(), users: users() });
        }
        if known().any(|(_, theirs)| theirs.sharing_key.as_ref() != Some(key)) {
            return Some(AllocateError::OtherKey { address, key: key.clone(), users: users() });
        }
        for (other, theirs) in known() {
            if let Some((protocol, port)) = theirs.ports.intersection(&wanted.ports).next() {
                let (protocol, port) = (protocol.clone(), *port);
                return Some(AllocateError::PortCollision { address, protocol, port, user: other.clone() });
            }
            if theirs.backend != wanted.backend {
                return Some(AllocateError::OtherBackend { address, user: other.clone() });
            }
        }
        (!here && others().count() >= MAX_SHARERS).then_some(AllocateError::Full { address, max: MAX_SHARERS })
    }
}

/// All pools and who uses what.
#[derive(Debug, Default)]
pub struct Allocator {
    /// In the order in which they are tried.
    pools: Vec<Pool>,
    held: BTreeMap<IpAddr, Holding>,
    counts: BTreeMap<(String, Family), Counts>,
    /// The addresses with a user of each sharing key.
    shared: BTreeMap<String, BTreeSet<IpAddr>>,
    quarantined: BTreeSet<IpAddr>,
    taken: RangeSet,
    /// Taken or resting, in one: of a thousand addresses that rest among those taken, none is a step of the search for a free one.
    unrested: RangeSet,
    /// When each resting address may be used again, in order of release.
    wake: VecDeque<(Duration, IpAddr)>,
    /// The entry of `wake` that counts, for addresses that were released more than once. One that was given before its rest was
    /// over keeps it until then: it may be taken back.
    rests_until: BTreeMap<IpAddr, Duration>,
    /// Below this number no address of the pool is both free and rested.
    floors: BTreeMap<(String, Family), u128>,
}

impl Allocator {
    /// Replaces the pools. Nothing that is held is taken away, not even where no pool lists it any more.
    pub fn handle_pools(&mut self, mut pools: Vec<Pool>) {
        pools.sort_by(|a, b| a.order().cmp(&b.order()));
        self.pools = pools;
        self.counts.clear();
        self.floors.clear();
        for address in self.held.keys().copied().collect::<Vec<_>>() {
            let home = self.home(address).map(|pool| pool.name().to_owned());
            if let Some(holding) = self.held.get_mut(&address) {
                holding.counted = None;
                holding.pool = home.unwrap_or_else(|| holding.pool.clone());
            }
            self.count_in(address);
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

    /// The pool in which the address is at home: the one that it was given from, as long as that lists it, or cannot be read
    /// whole; else the one that can hand it out, or the first that lists it.
    pub fn home(&self, address: IpAddr) -> Option<&Pool> {
        let recorded = self.pool_of_held(address).and_then(|name| self.pool(name));
        recorded
            .filter(|pool| pool.lists(address))
            .or_else(|| self.home_but(address))
            .or_else(|| recorded.filter(|pool| pool.is_incomplete()))
    }

    fn home_but(&self, address: IpAddr) -> Option<&Pool> {
        self.pool_of(address).or_else(|| self.pools.iter().find(|pool| pool.lists(address)))
    }

    fn pool(&self, name: &str) -> Option<&Pool> {
        self.pools.iter().find(|pool| pool.name() == name)
    }

    /// Records what was given earlier, whether or not it would be given today: [`Allocator::keep`] asks that, once the use is
    /// known. `recorded_pool` is used where no pool lists the address now.
    pub fn adopt(&mut self, address: IpAddr, user: &str, recorded_pool: &str) {
        if !self.held.contains_key(&address) {
            let pool = self.adopted_pool(address, recorded_pool);
            self.insert(address, pool);
        }
        if let Some(holding) = self.held.get_mut(&address)
            && !holding.users.contains_key(user)
        {
            holding.users.insert(user.to_owned(), None);
        }
    }

    fn adopted_pool(&self, address: IpAddr, recorded: &str) -> String {
        if let Some(held) = self.pool_of_held(address) {
            return held.to_owned();
        }
        let named = self.pool(recorded).filter(|pool| pool.lists(address));
        named.or_else(|| self.home_but(address)).map_or(recorded, Pool::name).to_owned()
    }

    /// Records that nobody has the address and nobody shall get it unasked, because somebody else on the network uses it.
    pub fn adopt_quarantined(&mut self, address: IpAddr, recorded_pool: &str) {
        if !self.held.contains_key(&address) {
            let pool = self.adopted_pool(address, recorded_pool);
            self.insert(address, pool);
            self.quarantined.insert(address);
            if let Some(holding) = self.held.get_mut(&address) {
                holding.blocked = true;
            }
        }
    }

    /// Whether `user`, who holds the address, may keep it for what it wants now; records what that is.
    ///
    /// # Errors
    /// If it shares the address with somebody who does not get along with that. It still holds the address then.
    pub fn keep(&mut self, address: IpAddr, user: &str, wanted: &Use) -> Result<Allocated, AllocateError> {
        let Some(holding) = self.held.get(&address).filter(|holding| holding.users.contains_key(user)) else {
            let users = self.users(address).map(str::to_owned).collect();
            return Err(AllocateError::InUse { address, users });
        };
        if let Some(objection) = holding.objection(address, user, wanted) {
            return Err(objection);
        }
        let pool = holding.pool.clone();
        Ok(self.hold(address, user, wanted, pool))
    }

    /// The lowest free address of the family in the first of these pools that has one; before that, for those who
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
        let named = || pools.iter().filter_map(|name| self.pool(name));
        if !named().any(|pool| pool.lists_family(family)) {
            return Err(AllocateError::NoSuchFamily { family, pools: self.in_order(pools) });
        }
        if let Some((address, pool)) = self.shareable(user, wanted, family, pools) {
            return Ok(self.hold(address, user, wanted, pool));
        }
        let with_room: Vec<String> =
            named().filter(|pool| self.has_free(pool, family)).map(|pool| pool.name().to_owned()).collect();
        let rested = with_room.iter().find_map(|pool| Some((self.lowest_rested(pool, family)?, pool)));
        let found = rested.or_else(|| with_room.iter().find_map(|pool| Some((self.lowest(pool, family)?, pool))));
        let Some((address, pool)) = found else {
            return Err(AllocateError::Exhausted { family, pools: self.in_order(pools) });
        };
        Ok(self.hold(address, user, wanted, pool.clone()))
    }

    /// In which order they were tried makes no difference to what is wrong.
    fn in_order(&self, pools: &[String]) -> Vec<String> {
        let named = self.pools.iter().map(Pool::name).filter(|name| pools.iter().any(|pool| pool == name));
        named.map(str::to_owned).collect()
    }

    /// Whether the pool of this name can hand out another address of the family.
    pub fn can_give(&self, pool: &str, family: Family) -> bool {
        self.pool(pool).is_some_and(|pool| self.has_free(pool, family))
    }

    fn has_free(&self, pool: &Pool, family: Family) -> bool {
        self.usage_of(pool, family).is_some_and(|usage| usage.used < usage.total)
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
        if self.leave(address, user) {
            self.remove(address);
            self.rest(address, now);
        }
    }

    /// Takes back what `user` was given a moment ago and nobody has seen yet: the address does not rest, unless it did before.
    pub fn undo(&mut self, address: IpAddr, user: &str) {
        if self.leave(address, user) {
            self.remove(address);
            if self.rests_until.contains_key(&address) {
                self.unrested.insert(AddressRange::single(address));
            } else {
                self.lower_floors(address);
            }
        }
    }

    /// Takes the address from one user, because somebody else on the network uses it. When the last one is gone, it stays
    /// in quarantine: nobody gets it unasked.
    pub fn quarantine(&mut self, address: IpAddr, user: &str) {
        if self.leave(address, user) {
            self.quarantined.insert(address);
        }
    }

    /// Whether somebody else on the network uses a held address: nobody is invited to share it then.
    pub fn set_blocked(&mut self, address: IpAddr, blocked: bool) {
        if let Some(holding) = self.held.get_mut(&address) {
            holding.blocked = blocked;
        }
    }

    /// Whether somebody else on the network uses a held address.
    pub fn is_blocked(&self, address: IpAddr) -> bool {
        self.held.get(&address).is_some_and(|holding| holding.blocked)
    }

    /// Ends a quarantine; the address rests from now on. Nothing happens to an address that is in none.
    pub fn end_quarantine(&mut self, address: IpAddr, now: Duration) {
        if self.quarantined.contains(&address) {
            self.remove(address);
            self.rest(address, now);
        }
    }

    /// The addresses that nobody has and nobody gets unasked, because somebody else on the network uses them.
    pub fn quarantined(&self) -> impl Iterator<Item = IpAddr> {
        self.quarantined.iter().copied()
    }

    /// Whether the address is in quarantine.
    pub fn is_quarantined(&self, address: IpAddr) -> bool {
        self.quarantined.contains(&address)
    }

    /// An address that was in use, by whomever, until now rests from now on.
    pub fn rest(&mut self, address: IpAddr, now: Duration) {
        if self.held.contains_key(&address) {
            return;
        }
        self.unrested.insert(AddressRange::single(address));
        self.wake.push_back((now + REST_AFTER_RELEASE, address));
        self.rests_until.insert(address, now + REST_AFTER_RELEASE);
    }

    /// Who holds the address, by name.
    pub fn users(&self, address: IpAddr) -> impl Iterator<Item = &str> {
        self.held.get(&address).into_iter().flat_map(|holding| holding.users.keys().map(String::as_str))
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
        let usage = |pool| Usage { v4: self.usage_of(pool, Family::V4), v6: self.usage_of(pool, Family::V6) };
        self.pools.iter().map(|pool| (pool.name(), usage(pool))).collect()
    }

    /// How much of the pool of this name is used.
    pub fn usage_of_pool(&self, name: &str) -> Option<Usage> {
        let pool = self.pool(name)?;
        Some(Usage { v4: self.usage_of(pool, Family::V4), v6: self.usage_of(pool, Family::V6) })
    }

    /// An address counts in the pool that can hand it out, else in the one that it was given from, if that still lists it. So
    /// what is free is exact, and nothing is counted twice.
    fn usage_of(&self, pool: &Pool, family: Family) -> Option<FamilyUsage> {
        let counts = self.counts.get(&(pool.name().to_owned(), family)).copied().unwrap_or_default();
        let total = pool.total(family).saturating_add(counts.beyond);
        (total > 0).then_some(FamilyUsage { total, used: counts.used })
    }

    /// The pool in whose counts the held address is.
    pub fn counted_pool(&self, address: IpAddr) -> Option<&str> {
        self.held.get(&address)?.counted.as_ref().map(|counted| counted.pool.as_str())
    }

    fn hold(&mut self, address: IpAddr, user: &str, wanted: &Use, pool: String) -> Allocated {
        if !self.held.contains_key(&address) {
            self.insert(address, pool);
        }
        self.quarantined.remove(&address);
        let (mut before, mut given_from) = (None, String::new());
        if let Some(holding) = self.held.get_mut(&address) {
            before = holding.users.insert(user.to_owned(), Some(wanted.clone())).flatten();
            given_from.clone_from(&holding.pool);
        }
        let old_key = before.and_then(|before| before.sharing_key);
        if old_key != wanted.sharing_key {
            self.forget_key(address, old_key.as_deref());
            if let Some(key) = &wanted.sharing_key {
                self.shared.entry(key.clone()).or_default().insert(address);
            }
        }
        Allocated { address, pool: given_from }
    }

    fn insert(&mut self, address: IpAddr, pool: String) {
        self.taken.insert(AddressRange::single(address));
        self.unrested.insert(AddressRange::single(address));
        let holding = Holding { pool, users: SmallMap::default(), blocked: false, counted: None };
        self.held.insert(address, holding);
        self.count_in(address);
    }

    fn remove(&mut self, address: IpAddr) {
        if let Some(counted) = self.held.remove(&address).and_then(|holding| holding.counted)
            && let Some(counts) = self.counts.get_mut(&(counted.pool, Family::of(address)))
        {
            counts.used -= 1;
            counts.beyond -= u128::from(counted.beyond);
        }
        self.quarantined.remove(&address);
        self.taken.remove(AddressRange::single(address));
        self.unrested.remove(AddressRange::single(address));
    }

    /// Takes one user away, and says whether that was the last one.
    fn leave(&mut self, address: IpAddr, user: &str) -> bool {
        let Some(holding) = self.held.get_mut(&address) else { return false };
        let Some(was) = holding.users.remove(user) else { return false };
        let last = holding.users.is_empty();
        self.forget_key(address, was.and_then(|was| was.sharing_key).as_deref());
        last
    }

    fn forget_key(&mut self, address: IpAddr, key: Option<&str>) {
        let Some(key) = key else { return };
        let mut users = self.held.get(&address).into_iter().flat_map(|holding| holding.users.values().flatten());
        if !users.any(|theirs| theirs.sharing_key.as_deref() == Some(key))
            && let Some(addresses) = self.shared.get_mut(key)
        {
            addresses.remove(&address);
            if addresses.is_empty() {
                self.shared.remove(key);
            }
        }
    }

    fn count_in(&mut self, address: IpAddr) {
        let usable = self.pool_of(address).map(|pool| Counted { pool: pool.name().to_owned(), beyond: false });
        let counted = usable.or_else(|| {
            let pool = self.pool(self.pool_of_held(address)?).filter(|pool| pool.lists(address))?;
            Some(Counted { pool: pool.name().to_owned(), beyond: true })
        });
        if let Some(counted) = &counted {
            let counts = self.counts.entry((counted.pool.clone(), Family::of(address))).or_default();
            counts.used += 1;
            counts.beyond += u128::from(counted.beyond);
        }
        if let Some(holding) = self.held.get_mut(&address) {
            holding.counted = counted;
        }
    }

    fn shareable(&self, user: &str, wanted: &Use, family: Family, pools: &[String]) -> Option<(IpAddr, String)> {
        let addresses = self.shared.get(wanted.sharing_key.as_ref()?)?;
        addresses.iter().filter(|address| Family::of(**address) == family).find_map(|address| {
            let holding = self.held.get(address).filter(|holding| !holding.blocked)?;
            let pool = self.pool_of(*address).filter(|pool| pools.iter().any(|name| name == pool.name()))?;
            let fits = holding.objection(*address, user, wanted).is_none();
            fits.then(|| (*address, pool.name().to_owned()))
        })
    }

    /// The lowest free address of the pool that does not rest.
    fn lowest_rested(&mut self, name: &str, family: Family) -> Option<IpAddr> {
        let floor = (name.to_owned(), family);
        let from = self.floors.get(&floor).copied().unwrap_or(0);
        let found = self.search(self.pool(name)?, family, from, true);
        self.floors.insert(floor, found.unwrap_or(u128::MAX));
        found.map(|number| to_address(family, number))
    }

    fn lowest(&self, name: &str, family: Family) -> Option<IpAddr> {
        self.search(self.pool(name)?, family, 0, false).map(|number| to_address(family, number))
    }

    fn search(&self, pool: &Pool, family: Family, from: u128, rested_only: bool) -> Option<u128> {
        let mut number = pool.next_number(family, from)?;
        loop {
            let occupied = if rested_only { &self.unrested } else { &self.taken };
            let Some(end) = occupied.span_of(family, number) else { return Some(number) };
            number = pool.next_number(family, end.checked_add(1)?)?;
        }
    }

    /// The address is free and rested from now on.
    fn lower_floors(&mut self, address: IpAddr) {
        let number = to_number(address);
        for ((_, family), floor) in &mut self.floors {
            if *family == Family::of(address) {
                *floor = number.min(*floor);
            }
        }
    }

    fn wake_rested(&mut self, now: Duration) {
        while let Some(&(until, address)) = self.wake.front()
            && until <= now
        {
            self.wake.pop_front();
            // Otherwise it was released again since: a later entry counts.
            if self.rests_until.get(&address) == Some(&until) {
                self.rests_until.remove(&address);
                if !self.held.contains_key(&address) {
                    self.unrested.remove(AddressRange::single(address));
                    self.lower_floors(address);
                }
            }
        }
    }
}

#[cfg(test)]
#[path = "allocator_tests.rs"]
mod tests;
