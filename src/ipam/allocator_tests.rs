//! Table tests of the allocator; the comparison with a naive model is in `model_tests.rs`.

use super::*;
use crate::ipam::PoolConfig;

const NOW: Duration = Duration::from_secs(1_000);

fn config(name: &str, addresses: &str) -> PoolConfig {
    PoolConfig {
        name: name.to_owned(),
        addresses: vec![addresses.parse().unwrap()],
        auto_assign: true,
        ..PoolConfig::default()
    }
}

fn allocator(configs: Vec<PoolConfig>) -> (Allocator, Vec<String>) {
    let mut allocator = Allocator::default();
    allocator.handle_pools(configs.into_iter().map(Pool::new).collect());
    let names = allocator.pools().iter().map(|pool| pool.name().to_owned()).collect();
    (allocator, names)
}

fn ip(text: &str) -> IpAddr {
    text.parse().unwrap()
}

fn shared(key: &str, port: u16) -> Use {
    Use { sharing_key: Some(key.into()), ports: [("TCP".to_owned(), port)].into_iter().collect(), backend: None }
}

#[test]
fn pools_are_tried_by_priority_then_selector_then_name() {
    let first = PoolConfig { priority: Some(1), ..config("z", "10.0.0.1") };
    let second = PoolConfig { priority: Some(5), ..config("y", "10.0.1.1") };
    let third = PoolConfig { selective: true, ..config("x", "10.0.2.1") };
    let (mut allocator, names) =
        allocator(vec![config("b", "10.0.4.1"), config("a", "10.0.3.1"), third, second, first]);
    assert_eq!(names, ["z", "y", "x", "a", "b"]);
    let order: Vec<String> = (0..5)
        .map(|n| allocator.allocate(&format!("s{n}"), &Use::default(), Family::V4, &names, NOW).unwrap())
        .map(|allocated| allocated.address().to_string())
        .collect();
    assert_eq!(order, ["10.0.0.1", "10.0.1.1", "10.0.2.1", "10.0.3.1", "10.0.4.1"]);
}

#[test]
fn the_caller_may_prefer_a_pool() {
    let (mut allocator, _) = allocator(vec![config("a", "10.0.0.1-10.0.0.9"), config("b", "10.0.1.1")]);
    let pools = ["b".to_owned(), "a".to_owned()];
    let mut give = |user: &str| allocator.allocate(user, &Use::default(), Family::V4, &pools, NOW).unwrap();
    assert_eq!((give("1").pool(), give("2").pool()), ("b", "a"));
}

#[test]
fn a_released_address_rests_five_minutes_while_others_are_free() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.2")]);
    let give = |allocator: &mut Allocator, user: &str, now| {
        allocator.allocate(user, &Use::default(), Family::V4, &names, now).unwrap().address()
    };
    assert_eq!(give(&mut allocator, "a", NOW), ip("10.0.0.1"));
    allocator.release(ip("10.0.0.1"), "a", NOW);
    assert_eq!(give(&mut allocator, "b", NOW), ip("10.0.0.2"));
    // No other is free: a resting one is better than none.
    assert_eq!(give(&mut allocator, "c", NOW), ip("10.0.0.1"));
    allocator.release(ip("10.0.0.1"), "c", NOW);
    allocator.release(ip("10.0.0.2"), "b", NOW);
    assert_eq!(give(&mut allocator, "d", NOW + REST_AFTER_RELEASE), ip("10.0.0.1"));
}

#[test]
fn a_requested_address_is_refused_with_the_name_of_its_user() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.2")]);
    let plain = Use::default();
    allocator.request("default/a", &plain, ip("10.0.0.2"), &names).unwrap();
    allocator.request("default/a", &plain, ip("10.0.0.2"), &names).unwrap();
    let error = allocator.request("default/b", &plain, ip("10.0.0.2"), &names).unwrap_err();
    assert_eq!(error.to_string(), "10.0.0.2 is in use by default/a");
    let error = allocator.request("default/b", &plain, ip("10.0.0.3"), &names).unwrap_err();
    assert_eq!(error.to_string(), "10.0.0.3 is not in pool lan");
}

#[test]
fn exhausted_and_family_errors_name_the_pools() {
    let (mut allocator, names) = allocator(vec![config("a", "10.0.0.1"), config("b", "10.0.0.2")]);
    let error = allocator.allocate("s", &Use::default(), Family::V6, &names, NOW).unwrap_err();
    assert_eq!(error.to_string(), "no IPv6 addresses are in pools a, b");
    for user in ["1", "2"] {
        allocator.allocate(user, &Use::default(), Family::V4, &names, NOW).unwrap();
    }
    let error = allocator.allocate("3", &Use::default(), Family::V4, &names, NOW).unwrap_err();
    assert_eq!(error.to_string(), "no free IPv4 address is left in pools a, b");
}

#[test]
fn an_address_is_shared_by_key_until_a_port_collides_and_freed_by_the_last() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.9")]);
    let address = allocator.allocate("a", &shared("k", 80), Family::V4, &names, NOW).unwrap().address();
    assert_eq!(allocator.allocate("b", &shared("k", 443), Family::V4, &names, NOW).unwrap().address(), address);
    assert_ne!(allocator.allocate("c", &shared("k", 80), Family::V4, &names, NOW).unwrap().address(), address);
    let error = allocator.request("d", &shared("k", 80), address, &names).unwrap_err();
    assert_eq!(error.to_string(), "10.0.0.1 is shared with a, which already uses port 80/TCP");
    assert!(matches!(
        allocator.request("d", &shared("other", 81), address, &names),
        Err(AllocateError::OtherKey { .. })
    ));
    assert!(matches!(allocator.keep(address, "b", &shared("k", 80)), Err(AllocateError::PortCollision { .. })));
    allocator.release(address, "a", NOW);
    assert_eq!(allocator.users(address).collect::<Vec<_>>(), ["b"]);
    allocator.release(address, "b", NOW);
    assert_eq!(allocator.users(address).count(), 0);
}

#[test]
fn local_services_share_only_with_the_same_backends() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.9")]);
    let local = |port, selector: &str| Use { backend: Some(selector.to_owned()), ..shared("k", port) };
    let address = allocator.allocate("a", &local(80, "app=x"), Family::V4, &names, NOW).unwrap().address();
    assert!(allocator.request("b", &local(81, "app=x"), address, &names).is_ok());
    let error = allocator.request("c", &local(82, "app=y"), address, &names).unwrap_err();
    assert!(matches!(error, AllocateError::OtherBackend { .. }), "{error}");
}

#[test]
fn what_is_held_stays_held_when_its_pool_goes() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1")]);
    let address = allocator.allocate("a", &Use::default(), Family::V4, &names, NOW).unwrap().address();
    allocator.handle_pools(Vec::new());
    assert_eq!(allocator.keep(address, "a", &Use::default()).unwrap().pool(), "lan");
    allocator.handle_pools(vec![Pool::new(config("renamed", "10.0.0.0/24"))]);
    assert_eq!(allocator.keep(address, "a", &Use::default()).unwrap().pool(), "renamed");
}

#[test]
fn an_address_is_at_home_where_it_was_given_as_long_as_that_pool_lists_it() {
    let home = |allocator: &Allocator| allocator.home(ip("10.0.0.1")).map(|pool| pool.name().to_owned());
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.0/24")]);
    allocator.request("a", &Use::default(), ip("10.0.0.1"), &names).unwrap();
    let mut withheld = Pool::new(config("lan", "10.0.0.0/24"));
    withheld.withhold("10.0.0.1".parse().unwrap());
    allocator.handle_pools(vec![withheld, Pool::new(config("a-first", "10.0.0.1"))]);
    assert_eq!(home(&allocator), Some("lan".to_owned()));
    let counts = |total, used| Usage { v4: Some(FamilyUsage { total, used }), v6: None };
    assert_eq!(allocator.usage(), [("a-first", counts(1, 1)), ("lan", counts(255, 0))]);
    allocator.handle_pools(vec![Pool::new(config("other", "10.0.0.0/24"))]);
    assert_eq!(home(&allocator), Some("other".to_owned()));
    // Part of this one cannot be read: it may have been that.
    let incomplete = PoolConfig { incomplete: true, ..config("other", "10.0.9.9") };
    allocator.handle_pools(vec![Pool::new(incomplete)]);
    assert_eq!(home(&allocator), Some("other".to_owned()));
    allocator.handle_pools(vec![Pool::new(config("other", "10.0.9.9"))]);
    assert_eq!(home(&allocator), None);
    assert_eq!(allocator.usage(), [("other", counts(1, 0))]);
}

#[test]
fn what_a_pool_lists_and_cannot_hand_out_counts_while_it_is_in_use() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.4")]);
    allocator.request("a", &Use::default(), ip("10.0.0.1"), &names).unwrap();
    let mut withheld = Pool::new(config("lan", "10.0.0.1-10.0.0.4"));
    withheld.withhold("10.0.0.1-10.0.0.2".parse().unwrap());
    allocator.handle_pools(vec![withheld]);
    let counts = |total, used| Usage { v4: Some(FamilyUsage { total, used }), v6: None };
    assert_eq!(allocator.usage_of_pool("lan"), Some(counts(3, 1)));
    allocator.release(ip("10.0.0.1"), "a", NOW);
    assert_eq!(allocator.usage_of_pool("lan"), Some(counts(2, 0)));
}

#[test]
fn a_quarantined_address_is_nobodys_until_somebody_asks_for_it() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.2")]);
    let key = shared("k", 80);
    let address = allocator.allocate("a", &key, Family::V4, &names, NOW).unwrap().address();
    allocator.set_blocked(address, true);
    assert_eq!(allocator.allocate("b", &shared("k", 443), Family::V4, &names, NOW).unwrap().address(), ip("10.0.0.2"));
    allocator.quarantine(address, "a");
    assert!(allocator.is_quarantined(address) && allocator.users(address).next().is_none());
    assert!(!allocator.can_give("lan", Family::V4));
    assert!(matches!(
        allocator.allocate("c", &Use::default(), Family::V4, &names, NOW),
        Err(AllocateError::Exhausted { .. })
    ));
    allocator.request("c", &Use::default(), address, &names).unwrap();
    assert!(!allocator.is_quarantined(address));
    allocator.end_quarantine(address, NOW);
    assert_eq!(allocator.users(address).collect::<Vec<_>>(), ["c"], "it is in none");
    allocator.quarantine(address, "c");
    allocator.end_quarantine(address, NOW);
    assert_eq!(allocator.usage_of_pool("lan").unwrap().v4, Some(FamilyUsage { total: 2, used: 1 }));
}

#[test]
fn what_was_given_earlier_is_recorded_as_it_was_and_looked_at_one_by_one() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.2")]);
    let address = ip("10.0.0.1");
    for user in ["a", "b", "c"] {
        allocator.adopt(address, user, "gone");
    }
    assert_eq!(allocator.pool_of_held(address), Some("lan"));
    let newcomer = allocator.request("d", &shared("k", 1), address, &names).unwrap_err();
    assert_eq!(newcomer.to_string(), "10.0.0.1 is in use by a, b, c");
    // One of them does not share any more, and leaves; the others stay together.
    allocator.keep(address, "b", &shared("k", 80)).unwrap();
    assert!(matches!(allocator.keep(address, "a", &Use::default()), Err(AllocateError::InUse { .. })));
    assert!(matches!(allocator.keep(address, "c", &shared("k", 80)), Err(AllocateError::PortCollision { .. })));
    allocator.keep(address, "c", &shared("k", 443)).unwrap();
    allocator.release(address, "a", NOW);
    allocator.request("d", &shared("k", 1), address, &names).unwrap();
}

#[test]
fn an_address_takes_no_more_than_256_who_share_it() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.2")]);
    for port in 1..=300_u16 {
        allocator.allocate(&format!("s{port}"), &shared("k", port), Family::V4, &names, NOW).unwrap();
    }
    assert_eq!((allocator.users(ip("10.0.0.1")).count(), allocator.users(ip("10.0.0.2")).count()), (256, 44));
    let error = allocator.request("late", &shared("k", 1_000), ip("10.0.0.1"), &names).unwrap_err();
    assert_eq!(error, AllocateError::Full { address: ip("10.0.0.1"), max: MAX_SHARERS });
    assert!(allocator.keep(ip("10.0.0.1"), "s7", &shared("k", 2_000)).is_ok(), "who is in stays in");
    let error = allocator.request("late", &Use::default(), ip("10.0.0.1"), &names).unwrap_err();
    assert_eq!(error.to_string(), "10.0.0.1 is in use by s1, s10, s100, s101, s102, s103, s104, s105 and 248 more");
}

#[test]
fn usage_counts_what_lies_in_the_pool() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.4"), config("six", "2001:db8::/64")]);
    allocator.allocate("a", &Use::default(), Family::V4, &names, NOW).unwrap();
    allocator.allocate("b", &Use::default(), Family::V6, &names, NOW).unwrap();
    let usage = allocator.usage();
    assert_eq!(usage[0], ("lan", Usage { v4: Some(FamilyUsage { total: 4, used: 1 }), v6: None }));
    assert_eq!(usage[1], ("six", Usage { v4: None, v6: Some(FamilyUsage { total: 1 << 64, used: 1 }) }));
}

#[test]
fn what_is_taken_back_unseen_rests_as_long_as_it_would_have() {
    let (mut allocator, names) = allocator(vec![config("lan", "10.0.0.1-10.0.0.2")]);
    let give = |allocator: &mut Allocator, user: &str, now| {
        allocator.allocate(user, &Use::default(), Family::V4, &names, now).unwrap().address()
    };
    assert_eq!(give(&mut allocator, "a", NOW), ip("10.0.0.1"));
    assert_eq!(give(&mut allocator, "b", NOW), ip("10.0.0.2"));
    allocator.release(ip("10.0.0.1"), "a", NOW);
    // It is all there is, and then it is not wanted.
    assert_eq!(give(&mut allocator, "c", NOW), ip("10.0.0.1"));
    allocator.undo(ip("10.0.0.1"), "c");
    let later = NOW + REST_AFTER_RELEASE / 2;
    allocator.handle_pools(vec![Pool::new(config("lan", "10.0.0.1-10.0.0.3"))]);
    assert_eq!(give(&mut allocator, "d", later), ip("10.0.0.3"));
    assert_eq!(give(&mut allocator, "e", later), ip("10.0.0.1"));
    // The end of a rest that was cut short is no end of anything: it is in use.
    let rested = NOW + REST_AFTER_RELEASE;
    allocator.release(ip("10.0.0.3"), "d", later);
    assert_eq!(give(&mut allocator, "f", rested), ip("10.0.0.3"));
    let full = allocator.allocate("g", &Use::default(), Family::V4, &names, rested);
    assert!(matches!(full, Err(AllocateError::Exhausted { .. })), "{full:?}");
}
