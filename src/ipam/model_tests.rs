//! Range sets, pools and the allocator against naive models that list every address.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    time::Duration,
};

use proptest::prelude::*;

use super::*;

/// Addresses around an end of a byte, so that .0 and .255 take part.
const BASE: u32 = 0x0a00_00e0;
const WIDTH: u32 = 64;

fn address(offset: u32) -> IpAddr {
    Ipv4Addr::from_bits(BASE + offset).into()
}

fn range() -> impl Strategy<Value = (u32, u32)> {
    (0..WIDTH, 0..WIDTH).prop_map(|(a, b)| (a.min(b), a.max(b)))
}

fn parsed((first, last): (u32, u32)) -> AddressRange {
    format!("{}-{}", address(first), address(last)).parse().unwrap()
}

fn listed(ranges: &[(u32, u32)]) -> BTreeSet<IpAddr> {
    ranges.iter().flat_map(|(first, last)| (*first..=*last).map(address)).collect()
}

proptest! {
    #[test]
    fn a_range_set_is_a_set(steps in prop::collection::vec((any::<bool>(), range()), 0..24)) {
        let (mut set, mut model) = (RangeSet::default(), BTreeSet::new());
        for (insert, bounds) in steps {
            if insert {
                set.insert(parsed(bounds));
                model.extend(listed(&[bounds]));
            } else {
                set.remove(parsed(bounds));
                model = model.difference(&listed(&[bounds])).copied().collect();
            }
            for offset in 0..WIDTH {
                prop_assert_eq!(set.contains(address(offset)), model.contains(&address(offset)));
            }
            prop_assert_eq!(set.ranges().map(|range| range.count()).sum::<u128>(), model.len() as u128);
        }
    }

    #[test]
    fn a_pool_holds_what_was_written_and_no_more(
        addresses in prop::collection::vec(range(), 1..5),
        exclude in prop::collection::vec(range(), 0..3),
        avoid_buggy_ips: bool,
    ) {
        let mut model: BTreeSet<IpAddr> = listed(&addresses).difference(&listed(&exclude)).copied().collect();
        if avoid_buggy_ips {
            model.retain(|address| !address.to_string().ends_with(".0") && !address.to_string().ends_with(".255"));
        }
        let pool = Pool::new(PoolConfig {
            name: "lan".to_owned(),
            addresses: addresses.into_iter().map(parsed).collect(),
            exclude: exclude.into_iter().map(parsed).collect(),
            avoid_buggy_ips,
            ..PoolConfig::default()
        });
        prop_assert_eq!(pool.total(Family::V4), model.len() as u128);
        for offset in 0..WIDTH {
            let from = address(offset);
            prop_assert_eq!(pool.contains(from), model.contains(&from));
            prop_assert_eq!(pool.next(Family::V4, Some(from)), model.range(from..).next().copied());
        }
    }

    #[test]
    fn the_allocator_does_what_a_list_would_do(
        ranges in prop::collection::vec(range(), 1..4),
        steps in prop::collection::vec((0u8..5, 0u8..12, 0..WIDTH, 0u64..200), 1..60),
    ) {
        let model_pool = listed(&ranges);
        let mut allocator = Allocator::default();
        allocator.handle_pools(vec![Pool::new(PoolConfig {
            name: "lan".to_owned(),
            addresses: ranges.into_iter().map(parsed).collect(),
            auto_assign: true,
            ..PoolConfig::default()
        })]);
        let pools = ["lan".to_owned()];
        let plain = Use::default();
        let mut held: BTreeMap<IpAddr, String> = BTreeMap::new();
        let mut released: BTreeMap<IpAddr, Duration> = BTreeMap::new();
        let mut now = Duration::ZERO;
        for (what, user, offset, later) in steps {
            now += Duration::from_secs(later);
            let (user, wish) = (format!("u{user}"), address(offset));
            match what {
                0 => {
                    let free = || model_pool.iter().filter(|address| !held.contains_key(address));
                    let rested = |address: &&IpAddr| {
                        released.get(*address).is_none_or(|since| now >= *since + REST_AFTER_RELEASE)
                    };
                    let expected = free().find(rested).or_else(|| free().next()).copied();
                    let given = allocator.allocate(&user, &plain, Family::V4, &pools, now).ok();
                    prop_assert_eq!(given.as_ref().map(Allocated::address), expected);
                    held.extend(expected.map(|address| (address, user)));
                }
                1 => {
                    let mine_or_free = held.get(&wish).is_none_or(|holder| *holder == user);
                    let expected = model_pool.contains(&wish) && mine_or_free;
                    prop_assert_eq!(allocator.request(&user, &plain, wish, &pools).is_ok(), expected);
                    if expected {
                        held.insert(wish, user);
                        released.remove(&wish);
                    }
                }
                2 => {
                    // Given by mistake and taken back at once: as if it had not been.
                    let held_before = held.contains_key(&wish);
                    if !held_before && allocator.request(&user, &plain, wish, &pools).is_ok() {
                        allocator.undo(wish, &user);
                        released.remove(&wish);
                    }
                }
                3 => {
                    let quarantined = held.get(&wish) == Some(&user);
                    allocator.quarantine(wish, &user);
                    prop_assert_eq!(allocator.is_quarantined(wish), quarantined);
                    allocator.end_quarantine(wish, now);
                    if quarantined {
                        held.remove(&wish);
                        released.insert(wish, now);
                    }
                }
                _ => {
                    allocator.release(wish, &user, now);
                    if held.get(&wish) == Some(&user) {
                        held.remove(&wish);
                        released.insert(wish, now);
                    }
                }
            }
            prop_assert_eq!(allocator.held().collect::<Vec<_>>(), held.keys().copied().collect::<Vec<_>>());
            let expected = FamilyUsage { total: model_pool.len() as u128, used: held.len() as u128 };
            prop_assert_eq!(allocator.usage_of_pool("lan").unwrap().v4, Some(expected));
        }
    }

    #[test]
    fn no_text_makes_the_parser_panic(text in "[0-9a-f:./%\\- ]{0,48}") {
        if let Ok(range) = text.parse::<AddressRange>() {
            prop_assert!(range.contains(range.first()) && range.contains(range.last()));
        }
    }
}
