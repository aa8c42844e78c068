//! A pool: the addresses that are left of what its administrator wrote, and the order in which pools are tried.

use std::net::IpAddr;

use super::{
    AddressRange, Family, RangeSet,
    range::{to_address, to_number},
};

/// What an administrator wrote, with the ranges read.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct PoolConfig {
    /// Name of the pool.
    pub name: String,
    /// What it holds.
    pub addresses: Vec<AddressRange>,
    /// What of that is never handed out.
    pub exclude: Vec<AddressRange>,
    /// Whether those who ask for nothing get an address from it.
    pub auto_assign: bool,
    /// Whether IPv4 addresses that end in .0 or .255 are left out.
    pub avoid_buggy_ips: bool,
    /// Lower is tried first.
    pub priority: Option<u32>,
    /// Whether only some may use it.
    pub selective: bool,
    /// Whether part of what it holds could not be read. Nothing that is in use is taken for having left it then.
    pub incomplete: bool,
    /// Whether it hands out nothing, because what limits it could not be read. What is in use stays.
    pub halted: bool,
}

/// The addresses that a pool lists, and those of them that it can hand out, merged.
#[derive(Clone, Debug)]
pub struct Pool {
    name: String,
    auto_assign: bool,
    avoid_buggy_ips: bool,
    incomplete: bool,
    order: (bool, u32),
    listed: RangeSet,
    usable: RangeSet,
    /// Of IPv4 and IPv6.
    totals: [u128; 2],
}

impl Pool {
    /// Merges the ranges and takes the excluded ones out.
    pub fn new(config: PoolConfig) -> Self {
        let mut listed: RangeSet = config.addresses.into_iter().collect();
        for excluded in config.exclude {
            listed.remove(excluded);
        }
        let plain = config.priority.is_none() && !config.selective;
        let mut pool = Self {
            name: config.name,
            auto_assign: config.auto_assign,
            avoid_buggy_ips: config.avoid_buggy_ips,
            incomplete: config.incomplete,
            order: (plain, config.priority.unwrap_or(u32::MAX)),
            usable: if config.halted { RangeSet::default() } else { listed.clone() },
            listed,
            totals: [0; 2],
        };
        pool.count();
        pool
    }

    /// Name of the pool.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Whether those who ask for nothing get an address from it.
    pub fn auto_assign(&self) -> bool {
        self.auto_assign
    }

    /// Pools are tried in ascending order of this: those with a priority or a selector first, by priority, then by name.
    pub fn order(&self) -> (bool, u32, &str) {
        (self.order.0, self.order.1, &self.name)
    }

    /// Whether the pool can hand the address out.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.usable.contains(address) && !self.is_buggy(Family::of(address), to_number(address))
    }

    /// Whether the pool holds the address, handed out or not: something else may have it withheld.
    pub fn lists(&self, address: IpAddr) -> bool {
        self.listed.contains(address) && !self.is_buggy(Family::of(address), to_number(address))
    }

    /// Whether it lists any address of the family, whether or not it can hand one out.
    pub fn lists_family(&self, family: Family) -> bool {
        let mut ranges = self.listed.ranges().filter(|range| range.family() == family);
        ranges.any(|range| self.unbuggy(range) > 0)
    }

    /// Whether part of what it holds could not be read.
    pub fn is_incomplete(&self) -> bool {
        self.incomplete
    }

    /// How many addresses of the family it can hand out, at most `u128::MAX`.
    pub fn total(&self, family: Family) -> u128 {
        self.totals[family as usize]
    }

    /// Hands none of these addresses out any more, and returns which of them it would have.
    pub fn withhold(&mut self, range: AddressRange) -> Vec<AddressRange> {
        let mut parts = self.usable.within(range);
        if !parts.is_empty() {
            self.usable.remove(range);
            self.count();
        }
        parts.retain(|part| self.unbuggy(*part) > 0);
        parts
    }

    fn count(&mut self) {
        self.totals = Family::ALL.map(|family| {
            let ranges = self.usable.ranges().filter(|range| range.family() == family);
            ranges.fold(0, |sum: u128, range| sum.saturating_add(self.unbuggy(range)))
        });
    }

    /// How many addresses of the range are not left out as buggy.
    fn unbuggy(&self, range: AddressRange) -> u128 {
        if !self.avoid_buggy_ips || range.family() != Family::V4 {
            return range.count();
        }
        let (first, last) = range.bounds();
        range.count() - (buggy_below(last + 1) - buggy_below(first))
    }

    /// The lowest address of the family at or after `from` (after: `Some`; from the start: `None`) that it can hand out.
    pub fn next(&self, family: Family, from: Option<IpAddr>) -> Option<IpAddr> {
        self.next_number(family, from.map_or(0, to_number)).map(|number| to_address(family, number))
    }

    pub(super) fn next_number(&self, family: Family, from: u128) -> Option<u128> {
        let mut number = self.usable.at_or_after(family, from)?;
        while self.is_buggy(family, number) {
            number = self.usable.at_or_after(family, number.checked_add(1)?)?;
        }
        Some(number)
    }

    fn is_buggy(&self, family: Family, number: u128) -> bool {
        self.avoid_buggy_ips && family == Family::V4 && matches!(number & 0xff, 0 | 255)
    }
}

/// How many of the IPv4 addresses below `number` end in .0 or .255.
fn buggy_below(number: u128) -> u128 {
    number / 256 * 2 + (number % 256).min(1)
}

/// Two pools hold the same addresses; the younger one does not use them.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Overlap {
    /// The pool that keeps the addresses.
    pub older: String,
    /// The pool that does not use them.
    pub younger: String,
    /// The addresses.
    pub range: AddressRange,
}

/// Takes out of each pool what an earlier one of the slice holds, and says what that was. `pools` are in order of age, the
/// oldest first.
pub fn withhold_overlaps(pools: &mut [Pool]) -> Vec<Overlap> {
    let mut overlaps = Vec::new();
    for young in 1..pools.len() {
        let (elders, rest) = pools.split_at_mut(young);
        let younger = &mut rest[0];
        for older in elders.iter() {
            // What the older one lists and does not hand out at the moment is not free for others either.
            for listed in older.listed.ranges() {
                for range in younger.withhold(listed) {
                    overlaps.push(Overlap { older: older.name.clone(), younger: younger.name.clone(), range });
                }
            }
        }
    }
    overlaps
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pool(name: &str, addresses: &[&str], exclude: &[&str], avoid_buggy_ips: bool) -> Pool {
        let read = |texts: &[&str]| texts.iter().map(|text| text.parse().unwrap()).collect();
        Pool::new(PoolConfig {
            name: name.to_owned(),
            addresses: read(addresses),
            exclude: read(exclude),
            auto_assign: true,
            avoid_buggy_ips,
            ..PoolConfig::default()
        })
    }

    #[test]
    fn excluded_addresses_are_not_counted_and_not_given() {
        let pool = pool("lan", &["192.0.2.0/29", "192.0.2.4-192.0.2.9"], &["192.0.2.1", "192.0.2.8/30"], false);
        assert_eq!(pool.total(Family::V4), 7);
        assert_eq!(pool.next(Family::V4, Some("192.0.2.1".parse().unwrap())), Some("192.0.2.2".parse().unwrap()));
        assert_eq!(pool.next(Family::V4, Some("192.0.2.8".parse().unwrap())), None);
        assert!(!pool.contains("192.0.2.9".parse().unwrap()));
    }

    #[test]
    fn buggy_addresses_are_left_out_of_lists_and_counts_alike() {
        let pool = pool("lan", &["192.0.2.254-192.0.4.1"], &[], true);
        let mut listed = 0;
        let mut from = None;
        while let Some(address) = pool.next(Family::V4, from) {
            listed += 1;
            let IpAddr::V4(v4) = address else { panic!("{address}") };
            assert!(!matches!(v4.octets()[3], 0 | 255));
            from = Some(IpAddr::V4(std::net::Ipv4Addr::from_bits(v4.to_bits() + 1)));
        }
        assert_eq!(pool.total(Family::V4), listed);
        assert_eq!(listed, 1 + 254 + 1);
    }

    #[test]
    fn a_slash_64_is_counted_and_walked_without_listing_it() {
        let pool = pool("six", &["2001:db8::/64"], &["2001:db8::-2001:db8::ffff"], true);
        assert_eq!(pool.total(Family::V6), (1 << 64) - 65_536);
        assert_eq!(pool.next(Family::V6, None), Some("2001:db8::1:0".parse().unwrap()));
        assert_eq!(pool.total(Family::V4), 0);
    }

    #[test]
    fn what_is_withheld_is_listed_and_not_counted() {
        let mut pool = pool("lan", &["192.0.2.0/29", "192.0.2.32/30"], &["192.0.2.1"], false);
        let withheld = pool.withhold("192.0.2.0-192.0.2.32".parse().unwrap());
        let withheld: Vec<String> = withheld.iter().map(AddressRange::to_string).collect();
        assert_eq!(withheld, ["192.0.2.0", "192.0.2.2-192.0.2.7", "192.0.2.32"]);
        let address = "192.0.2.2".parse().unwrap();
        assert!(pool.lists(address) && !pool.contains(address));
        assert!(!pool.lists("192.0.2.1".parse().unwrap()), "it is excluded");
        assert_eq!(pool.total(Family::V4), 3);
        assert_eq!(pool.withhold("192.0.2.0-192.0.2.32".parse().unwrap()), []);
    }

    #[test]
    fn a_halted_pool_keeps_what_it_lists_from_younger_ones() {
        let halted = PoolConfig {
            name: "old".to_owned(),
            addresses: vec!["10.0.0.0/24".parse().unwrap()],
            halted: true,
            ..PoolConfig::default()
        };
        let mut pools = [Pool::new(halted), pool("new", &["10.0.0.8-10.0.1.3"], &[], false)];
        withhold_overlaps(&mut pools);
        assert_eq!((pools[0].total(Family::V4), pools[1].total(Family::V4)), (0, 4));
        assert!(pools[0].lists("10.0.0.9".parse().unwrap()));
    }

    #[test]
    fn the_younger_pool_does_not_use_what_the_older_holds() {
        let mut pools =
            [pool("old", &["10.0.0.1-10.0.0.9"], &[], false), pool("new", &["10.0.0.8-10.0.0.12"], &[], false)];
        let overlaps = withhold_overlaps(&mut pools);
        assert_eq!(overlaps.len(), 1);
        assert_eq!(overlaps[0].range.to_string(), "10.0.0.8-10.0.0.9");
        assert_eq!((pools[0].total(Family::V4), pools[1].total(Family::V4)), (9, 3));
    }
}
