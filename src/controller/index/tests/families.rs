//! Single stack and dual stack: what a Service gets of which families, for every kind of cluster and pool.

use serde_json::{Value, json};

use super::{super::*, world::*};

fn with_families(name: &str, policy: &str, families: &[&str]) -> Value {
    let mut service = service(name);
    service["spec"]["ipFamilies"] = json!(families);
    service["spec"]["ipFamilyPolicy"] = policy.into();
    service
}

const FOUR: &str = "192.0.2.64";
const SIX: &str = "2001:db8::";

/// A world with these pools: name, addresses.
fn with_pools(pools: &[(&str, &[&str])]) -> World {
    let mut world = World::unlisted();
    world.pools.clear();
    for (name, addresses) in pools {
        world.pools.insert((*name).to_owned(), pool(name, json!({ "addresses": addresses })));
    }
    world.list();
    world.run();
    world
}

fn settle(world: &mut World) {
    world.run();
    world.speak();
    world.pass(3);
    world.speak();
    world.run();
    world.check_shown();
}

#[test]
fn every_policy_gets_what_every_cluster_and_pool_can_give() {
    // What the API server makes of a policy depends on the cluster: ipFamilies names one family in a single-stack cluster.
    let wishes: [(&str, &[&str]); 8] = [
        ("SingleStack", &["IPv4"]),
        ("SingleStack", &["IPv6"]),
        ("PreferDualStack", &["IPv4"]),
        ("PreferDualStack", &["IPv6"]),
        ("PreferDualStack", &["IPv4", "IPv6"]),
        ("PreferDualStack", &["IPv6", "IPv4"]),
        ("RequireDualStack", &["IPv4", "IPv6"]),
        ("RequireDualStack", &["IPv6", "IPv4"]),
    ];
    let both: &[&str] = &["192.0.2.64/26", "2001:db8::/64"];
    let no = "FamilyUnavailable";
    let full = "PoolExhausted";
    type Pools<'a> = &'a [(&'a str, &'a [&'a str])];
    let table: [(&str, Pools<'_>, [&str; 8]); 6] = [
        ("IPv4 only", &[("lan", &["192.0.2.64/26"])], ["4", no, "4", no, "4", "4", no, no]),
        ("IPv6 only", &[("lan", &["2001:db8::/64"])], [no, "6", no, "6", "6", "6", no, no]),
        ("both in one", &[("lan", both)], ["4", "6", "4", "6", "4 6", "6 4", "4 6", "6 4"]),
        (
            "both in two",
            &[("a", &["192.0.2.64/26"]), ("b", &["2001:db8::/64"])],
            ["4", "6", "4", "6", "4 6", "6 4", "4 6", "6 4"],
        ),
        ("no IPv6 left", &[("lan", &["192.0.2.64/26", "2001:db8::f"])], ["4", full, "4", full, "4", "4", full, full]),
        ("no IPv4 left", &[("lan", &["192.0.2.15", "2001:db8::/64"])], [full, "6", full, "6", "6", "6", full, full]),
    ];
    for (pools_name, pools, expected) in table {
        for ((policy, families), expected) in wishes.iter().zip(expected) {
            let mut world = with_pools(pools);
            for taken in ["2001:db8::f", "192.0.2.15"] {
                if pools[0].1.contains(&taken) {
                    let mut other =
                        with_families("other", "SingleStack", &[if taken.contains(':') { "IPv6" } else { "IPv4" }]);
                    other["metadata"]["annotations"] = json!({ api::ANNOTATION_ADDRESSES: taken });
                    world.put_service(other);
                }
            }
            settle(&mut world);
            world.put_service(with_families("web", policy, families));
            settle(&mut world);
            let shown: Vec<&str> =
                world.shown("web").iter().map(|address| if address.contains(':') { "6" } else { "4" }).collect();
            let reason = world.condition("web", api::CONDITION_ALLOCATED).unwrap().1;
            let got = if shown.is_empty() { reason } else { shown.join(" ") };
            assert_eq!(got, expected, "{pools_name}: {policy} {families:?}");
            // A second look, and a controller that starts anew, find nothing to do.
            assert_eq!(but_pools(world.pass(2)), [], "{pools_name}: {policy} {families:?}");
            world.restart();
            assert_eq!(but_pools(world.pass(2)), [], "{pools_name}: {policy} {families:?}");
        }
    }
}

#[test]
fn both_addresses_come_from_one_pool_if_one_has_both() {
    let mut world = with_pools(&[
        ("a", &["192.0.2.64/26"]),
        ("b", &["192.0.2.200-192.0.2.210", "2001:db8:b::/64"]),
        ("c", &["2001:db8:c::/64"]),
    ]);
    world.put_service(with_families("web", "RequireDualStack", &["IPv4", "IPv6"]));
    world.put_service(service("single"));
    settle(&mut world);
    assert_eq!(world.shown("web"), ["192.0.2.200", "2001:db8:b::"]);
    assert_eq!(world.shown("single"), [FOUR]);
    // One that has its IPv4 address already: no pool has both for it, and it keeps what it has.
    world.put_service(with_families("single", "RequireDualStack", &["IPv4", "IPv6"]));
    settle(&mut world);
    assert_eq!(world.shown("single"), [FOUR, "2001:db8:b::1"]);
}

#[test]
fn an_upgrade_keeps_the_first_address_and_a_downgrade_the_one_that_remains() {
    let mut world = with_pools(&[("lan", &["192.0.2.64/26", "2001:db8::/64"])]);
    world.put_service(with_families("web", "SingleStack", &["IPv4"]));
    settle(&mut world);
    for policy in ["PreferDualStack", "RequireDualStack"] {
        world.put_service(with_families("web", policy, &["IPv4", "IPv6"]));
        settle(&mut world);
        assert_eq!(world.shown("web")[0], FOUR, "{policy}");
        assert_eq!(world.shown("web").len(), 2, "{policy}");
        let second = world.shown("web")[1].clone();
        world.put_service(with_families("web", "SingleStack", &["IPv4"]));
        let changes = world.run();
        assert_eq!(world.shown("web"), [FOUR], "{policy}");
        let told = &World::events(&changes)[0];
        let why = format!("AddressChanged: {second} was taken back: spec.ipFamilies has no IPv6; {FOUR} by node1");
        assert!(told.starts_with(&why), "{told}");
        assert_eq!(world.vips.len(), 1, "{policy}");
    }
}

#[test]
fn an_upgrade_for_which_there_is_no_second_address_takes_nothing_away() {
    let mut world = with_pools(&[("lan", &["192.0.2.64/26"])]);
    world.bring_up(service("web"));
    world.put_service(with_families("web", "RequireDualStack", &["IPv4", "IPv6"]));
    settle(&mut world);
    assert_eq!(world.shown("web"), [FOUR]);
    let (status, reason, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "FamilyUnavailable"));
    let lacks = "no IPv6 addresses are in pool lan; add some to a pool or change spec.ipFamilies";
    assert_eq!(message, format!("{lacks}; it keeps 192.0.2.64 from pool lan"));
    world.restart();
    assert_eq!(but_pools(world.pass(3)), []);
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26", "2001:db8::/64"] })));
    settle(&mut world);
    assert_eq!(world.shown("web"), [FOUR, SIX]);
}

#[test]
fn one_of_two_that_loses_its_pool_takes_nothing_from_the_other() {
    for policy in ["PreferDualStack", "RequireDualStack"] {
        let mut world = with_pools(&[("lan", &["192.0.2.64/26", "2001:db8::/64"])]);
        world.put_service(with_families("web", policy, &["IPv6", "IPv4"]));
        settle(&mut world);
        assert_eq!(world.shown("web"), [SIX, FOUR]);
        world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"] })));
        for _ in 0..35 {
            world.pass(1);
            world.check_shown();
        }
        assert_eq!(world.shown("web"), [FOUR], "{policy}");
        let (status, _, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
        assert_eq!(status, if policy == "PreferDualStack" { "True" } else { "False" });
        assert!(message.contains("no IPv6 addresses are in pool lan"), "{message}");
        world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26", "2001:db8::/64"] })));
        settle(&mut world);
        assert_eq!(world.shown("web").len(), 2, "{policy}");
        assert_eq!(world.shown("web")[1], FOUR, "{policy}: IPv6 goes first again");
    }
}

#[test]
fn who_prefers_two_gets_the_second_when_one_becomes_free() {
    let mut world = with_pools(&[("lan", &["192.0.2.64/26", "2001:db8::f"])]);
    world.put_service(with_families("first", "SingleStack", &["IPv6"]));
    settle(&mut world);
    world.put_service(with_families("web", "PreferDualStack", &["IPv4", "IPv6"]));
    settle(&mut world);
    assert_eq!(world.shown("web"), [FOUR]);
    let message = world.condition("web", api::CONDITION_ALLOCATED).unwrap().2;
    assert_eq!(
        message,
        "192.0.2.64 from pool lan, no IPv6 address: no free IPv6 address is left in pool lan; \
         add addresses to the pool or remove a Service"
    );
    world.delete_service("first");
    settle(&mut world);
    assert_eq!(world.shown("web"), [FOUR, "2001:db8::f"]);
}

#[test]
fn addresses_of_both_families_can_be_asked_for() {
    let mut world = with_pools(&[("lan", &["192.0.2.64/26", "2001:db8::/64"])]);
    let mut web = with_families("web", "RequireDualStack", &["IPv6", "IPv4"]);
    web["metadata"]["annotations"] = json!({ "metallb.io/loadBalancerIPs": "192.0.2.99,2001:db8::99" });
    world.put_service(web);
    settle(&mut world);
    assert_eq!(world.shown("web"), ["2001:db8::99", "192.0.2.99"]);
    // One of them only: the other one is any.
    let mut half = with_families("half", "PreferDualStack", &["IPv4", "IPv6"]);
    half["metadata"]["annotations"] = json!({ "l2lb.io/addresses": "2001:db8::77" });
    world.put_service(half.clone());
    settle(&mut world);
    assert_eq!(world.shown("half"), [FOUR, "2001:db8::77"]);
    // What is asked for is needed, also by those who only prefer two.
    half["metadata"]["name"] = "late".into();
    world.put_service(half);
    settle(&mut world);
    assert!(world.shown("late").is_empty());
    let (_, reason, message) = world.condition("late", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!((reason.as_str(), message.as_str()), ("AddressInUse", "2001:db8::77 is in use by default/half"));
}

#[test]
fn of_two_things_that_lack_the_one_that_was_told_is_told_on() {
    let mut world = with_pools(&[("lan", &["192.0.2.64"])]);
    world.put_service(with_families("web", "RequireDualStack", &["IPv4", "IPv6"]));
    settle(&mut world);
    assert_eq!(world.condition("web", api::CONDITION_ALLOCATED).unwrap().1, "FamilyUnavailable");
    // Now there is no IPv4 address either, which would be the first thing to say.
    world.bring_up(service("other"));
    assert_eq!(world.shown("other"), [FOUR]);
    world.restart();
    assert_eq!(but_pools(world.pass(3)), []);
}

#[test]
fn the_second_address_comes_from_the_pool_of_the_first_and_not_from_the_first_pool() {
    let mut world = with_pools(&[("a", &["2001:db8:a::/64"]), ("b", &["192.0.2.64/26", "2001:db8:b::/64"])]);
    world.bring_up(service("web"));
    world.put_service(with_families("web", "RequireDualStack", &["IPv4", "IPv6"]));
    settle(&mut world);
    assert_eq!(world.shown("web"), [FOUR, "2001:db8:b::"]);
    let mut asks = with_families("asks", "RequireDualStack", &["IPv6", "IPv4"]);
    asks["metadata"]["annotations"] = json!({ "l2lb.io/addresses": "192.0.2.99" });
    world.put_service(asks);
    settle(&mut world);
    assert_eq!(world.shown("asks"), ["2001:db8:b::1", "192.0.2.99"]);
}

#[test]
fn a_moment_between_two_owners_is_no_news_for_one_of_two_addresses_either() {
    let mut world = with_pools(&[("lan", &["192.0.2.64/26", "2001:db8::/64"])]);
    for node in ["node1", "node2", "node3"] {
        world.change_speaker(node, |speaker| {
            let interface = &mut speaker["status"]["interfaces"][0];
            (interface["announcesIpv6"], interface["defaultRouteIpv6"]) = (true.into(), true.into());
        });
    }
    world.put_service(with_families("web", "RequireDualStack", &["IPv4", "IPv6"]));
    settle(&mut world);
    let announced = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(announced.1, "Announced", "{announced:?}");
    // The owner's cable is pulled: it says so of one address after the other, and a standby claims each a moment later.
    let names: Vec<String> = world.vips.keys().cloned().collect();
    let set_state = |world: &mut World, name: &String, state| {
        let mut vip = world.vips[name].clone();
        vip.status.as_mut().unwrap().claims[0].state = state;
        world.put_vip(vip);
        world.run()
    };
    for (name, state) in
        [(0, ClaimState::LinkDown), (1, ClaimState::LinkDown), (0, ClaimState::Owner), (1, ClaimState::Owner)]
    {
        let changes = set_state(&mut world, &names[name], state);
        assert!(!changes.iter().any(|change| matches!(change, Change::ServiceStatus(_))), "{changes:?}");
    }
    // One that nobody claims is said to be silent in the end.
    set_state(&mut world, &names[1], ClaimState::LinkDown);
    world.pass(3);
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "PartlyAnnounced");
}
