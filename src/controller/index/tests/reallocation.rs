//! What becomes of addresses in use when pools change.

use serde_json::json;

use super::{super::*, world::*};

fn lan(addresses: &[&str]) -> serde_json::Value {
    pool("lan", json!({ "addresses": addresses }))
}

/// Until nothing is left to do, with speakers that claim; what is shown always has its VirtualIP.
fn settle(world: &mut World, seconds: u64) -> Vec<Change> {
    let mut changes = Vec::new();
    for _ in 0..seconds {
        changes.extend(run_checked(world));
        world.speak();
        changes.extend(run_checked(world));
        changes.extend(world.pass(1));
        world.check_shown();
    }
    but_pools(changes)
}

fn run_checked(world: &mut World) -> Vec<Change> {
    let mut changes = Vec::new();
    while let Some((target, change)) = world.index.poll_change(world.now) {
        let outcome = world.write(&change);
        world.index.handle_outcome(&target, outcome, world.now);
        world.check_shown();
        changes.push(change);
    }
    changes
}

#[test]
fn an_address_that_no_pool_holds_any_more_is_replaced_after_30_seconds() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_pool(lan(&["192.0.2.100-192.0.2.110"]));
    let changes = settle(&mut world, 29);
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    assert!(matches!(&changes[..], [Change::ServiceStatus(_)]), "its condition says so, and no more: {changes:?}");
    assert_eq!(world.condition("web", api::CONDITION_ALLOCATED).unwrap().0, "True");
    let changes = settle(&mut world, 3);
    assert_eq!(world.shown("web"), ["192.0.2.100"]);
    let told = "AddressChanged: 192.0.2.100 replaces 192.0.2.64: no pool holds 192.0.2.64 any more; \
                192.0.2.100 by node2 (eth0, 02:00:00:00:01:02)";
    assert_eq!(World::events(&changes), [told]);
    // The new one is there before the old one goes, and the old one goes when nobody is sent there any more.
    let kinds: Vec<&str> = changes
        .iter()
        .map(|change| match change {
            Change::CreateVirtualIP { .. } => "create",
            Change::ServiceStatus(_) => "status",
            Change::DeleteVirtualIP { .. } => "delete",
            Change::ServiceEvent { .. } => "event",
            other => panic!("{other:?}"),
        })
        .collect();
    assert!(kinds == ["create", "status", "delete", "event"], "{kinds:?}");
    assert_eq!(world.vips.keys().collect::<Vec<_>>(), ["192.0.2.100"]);
    assert_eq!(settle(&mut world, 60), []);
}

#[test]
fn a_pool_that_holds_the_address_again_in_time_disturbs_nobody() {
    type Edit = fn(&mut World);
    let edits: [(&str, Edit, Edit); 5] = [
        ("shrunk and grown", |w| w.put_pool(lan(&["192.0.2.100"])), |w| w.put_pool(lan(&["192.0.2.64/26"]))),
        ("removed and made anew", |w| w.remove_pool("lan"), |w| w.put_pool(lan(&["192.0.2.64/27"]))),
        ("renamed", |w| w.remove_pool("lan"), |w| w.put_pool(pool("new", json!({ "addresses": ["192.0.2.64/26"] })))),
        (
            "split",
            |w| w.put_pool(lan(&["192.0.2.80-192.0.2.127"])),
            |w| w.put_pool(pool("low", json!({ "addresses": ["192.0.2.64/28"] }))),
        ),
        (
            "excluded",
            |w| w.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"], "exclude": ["192.0.2.64/30"] }))),
            |w| w.put_pool(lan(&["192.0.2.64/26"])),
        ),
    ];
    for (name, first, second) in edits {
        let mut world = World::new();
        world.bring_up(service("web"));
        first(&mut world);
        settle(&mut world, 25);
        second(&mut world);
        let changes = settle(&mut world, 60);
        assert_eq!(world.shown("web"), ["192.0.2.64"], "{name}");
        assert_eq!(World::events(&changes), Vec::<String>::new(), "{name}");
        let pool = world.vips["192.0.2.64"].spec.pool.clone();
        let message = world.condition("web", api::CONDITION_ALLOCATED).unwrap().2;
        assert_eq!(message, format!("192.0.2.64 from pool {pool}"), "{name}");
        assert!(world.pools.contains_key(&pool), "{name}: {pool}");
        world.restart();
        assert_eq!(world.run(), [], "{name}");
    }
}

#[test]
fn without_another_address_the_service_is_told_which_one_it_lost_and_why() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.remove_pool("lan");
    let changes = settle(&mut world, 40);
    assert!(world.shown("web").is_empty());
    assert!(world.vips.is_empty());
    let (_, reason, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!(reason, "NoMatchingPool");
    let lost = "192.0.2.64 was taken back: no pool holds 192.0.2.64 any more";
    assert_eq!(message, format!("there is no IPPool; make one (kubectl explain ippool.spec); {lost}"));
    assert_eq!(World::events(&changes), [format!("NoMatchingPool: {message}")]);
    // That is remembered, and no reason to write.
    world.restart();
    assert_eq!(but_pools(world.pass(5)), []);
    world.put_pool(lan(&["192.0.2.200"]));
    world.bring_up(service("first"));
    let (_, reason, _) = world.condition("first", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!((reason.as_str(), world.shown("web")), ("Allocated", vec![]), "it was there first");
}

#[test]
fn an_address_that_was_asked_for_and_fell_out_is_not_replaced() {
    let mut world = World::new();
    world.bring_up(annotated("web", "l2lb.io/addresses", "192.0.2.70"));
    world.put_pool(lan(&["192.0.2.100"]));
    settle(&mut world, 40);
    let (_, reason, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!(reason, "AddressNotInPool");
    let lost = "192.0.2.70 was taken back: no pool holds 192.0.2.70 any more";
    assert_eq!(message, format!("192.0.2.70 is not in pool lan; {lost}"));
    world.put_pool(lan(&["192.0.2.64/26"]));
    settle(&mut world, 3);
    assert_eq!(world.shown("web"), ["192.0.2.70"]);
}

#[test]
fn a_pool_that_cannot_be_read_whole_takes_nothing_away() {
    for spec in [
        json!({ "addresses": ["192.0.2.64-192.0.2.1"] }),
        json!({ "addresses": ["192.0.2.64/26"], "exclude": ["192.0.2.9-192.0.2.1"] }),
        json!({ "addresses": ["192.0.2.64/26"], "serviceSelector": { "matchExpressions": [{ "key": "a", "operator": "Is" }] } }),
    ] {
        let mut world = World::new();
        world.bring_up(service("web"));
        world.put_pool(pool("lan", spec.clone()));
        let changes = settle(&mut world, 60);
        assert_eq!(world.shown("web"), ["192.0.2.64"], "{spec}");
        assert_eq!(changes, [], "{spec}");
        assert_eq!(world.pools["lan"]["status"]["conditions"][0]["reason"], "InvalidSpec");
    }
}

#[test]
fn what_an_older_pool_comes_to_hold_stays_with_who_has_it() {
    let mut world = World::new();
    let aged = |name: &str, created: &str, spec| {
        let mut pool = pool(name, spec);
        pool["metadata"]["creationTimestamp"] = created.into();
        pool
    };
    let old = |addresses: &str| {
        aged("old", "2026-01-01T00:00:00Z", json!({ "addresses": [addresses], "namespaces": ["other"] }))
    };
    world.put_pool(aged("lan", "2026-02-01T00:00:00Z", json!({ "addresses": ["192.0.2.64/30"] })));
    world.put_pool(old("192.0.2.200"));
    world.bring_up(service("web"));
    world.put_pool(old("192.0.2.64-192.0.2.66"));
    let changes = settle(&mut world, 60);
    assert_eq!((world.shown("web"), changes), (vec!["192.0.2.64".to_owned()], vec![]));
    // What is free is exact: .67 in the younger one, .65 and .66 in the older one.
    let counts = |world: &World, pool: &str| world.pools[pool]["status"]["ipv4"].clone();
    assert_eq!(counts(&world, "lan"), json!({ "total": "1", "used": "0", "free": "1" }));
    assert_eq!(counts(&world, "old"), json!({ "total": "3", "used": "1", "free": "2" }));
    world.restart();
    assert_eq!(world.run(), []);
}

#[test]
fn a_pool_that_does_not_admit_the_service_any_more_is_left_at_once_and_that_is_said() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_pool(pool("spare", json!({ "addresses": ["192.0.2.200"] })));
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"], "namespaces": ["other"] })));
    let changes = settle(&mut world, 1);
    assert_eq!(world.shown("web"), ["192.0.2.200"]);
    let told = "AddressChanged: 192.0.2.200 replaces 192.0.2.64: pool lan does not admit the Service: \
                it is not for namespace default; 192.0.2.200 by node2 (eth0, 02:00:00:00:01:02)";
    assert_eq!(World::events(&changes), [told]);
}

#[test]
fn auto_assign_that_is_set_to_false_takes_nothing_away() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"], "autoAssign": false })));
    assert_eq!(settle(&mut world, 60), []);
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
}

#[test]
fn another_request_is_followed_at_once_and_that_is_said() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_service(annotated("web", "l2lb.io/addresses", "192.0.2.99"));
    let changes = settle(&mut world, 1);
    let told = "AddressChanged: 192.0.2.99 replaces 192.0.2.64: annotation l2lb.io/addresses asks for 192.0.2.99; \
                192.0.2.99 by node2 (eth0, 02:00:00:00:01:02)";
    assert_eq!(World::events(&changes), [told]);
    world.put_service(annotated("web", "l2lb.io/addresses", "10.0.0.1"));
    settle(&mut world, 1);
    let message = world.condition("web", api::CONDITION_ALLOCATED).unwrap().2;
    let lost = "192.0.2.99 was taken back: annotation l2lb.io/addresses asks for 10.0.0.1";
    assert_eq!(message, format!("10.0.0.1 is not in pool lan; {lost}"));
}

#[test]
fn two_that_change_places_both_get_what_they_ask_for() {
    let mut world = World::new();
    world.bring_up(annotated("a", "l2lb.io/addresses", "192.0.2.64"));
    world.bring_up(annotated("b", "l2lb.io/addresses", "192.0.2.65"));
    world.put_service(annotated("a", "l2lb.io/addresses", "192.0.2.65"));
    world.put_service(annotated("b", "l2lb.io/addresses", "192.0.2.64"));
    settle(&mut world, 5);
    assert_eq!((world.shown("a"), world.shown("b")), (vec!["192.0.2.65".to_owned()], vec!["192.0.2.64".to_owned()]));
}

#[test]
fn a_hundred_services_find_their_place_in_a_smaller_pool() {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["192.0.2.100-192.0.2.199"] })));
    for number in 0..100 {
        let name = format!("s{number:02}");
        world.services.insert(format!("default/{name}"), service(&name));
    }
    world.list();
    settle(&mut world, 3);
    assert_eq!(world.vips.len(), 100);
    world.put_pool(lan(&["192.0.2.170-192.0.2.239"]));
    settle(&mut world, 40);
    let shown: Vec<String> = world.services.keys().flat_map(|key| world.shown(&key["default/".len()..])).collect();
    assert_eq!((shown.len(), world.vips.len()), (70, 70));
    let without = world.services.keys().filter(|key| world.shown(&key["default/".len()..]).is_empty());
    for key in without {
        let (_, reason, message) = world.condition(&key["default/".len()..], api::CONDITION_ALLOCATED).unwrap();
        assert_eq!(reason, "PoolExhausted");
        assert!(message.contains(" was taken back: no pool holds 192.0.2.1"), "{message}");
    }
    assert_eq!(world.pools["lan"]["status"]["ipv4"], json!({ "total": "70", "used": "70", "free": "0" }));
}

#[test]
fn while_its_pool_is_made_anew_an_address_is_announced_as_that_pool_said() {
    let mut world = World::new();
    for number in 1..=3 {
        world.change_speaker(&format!("node{number}"), |speaker| {
            let mut other = speaker["status"]["interfaces"][0].clone();
            (other["name"], other["addresses"]) = ("eth1".into(), json!([]));
            speaker["status"]["interfaces"].as_array_mut().unwrap().push(other);
        });
    }
    world.nodes.keys().cloned().collect::<Vec<_>>().iter().for_each(|node| {
        world.change_node(node, |node| node["metadata"]["labels"] = json!({ "rack": node["metadata"]["name"] }));
    });
    let announce = json!({
        "interfaces": ["eth1"], "failover": "Fast",
        "nodeSelector": { "matchExpressions": [{ "key": "rack", "operator": "NotIn", "values": ["node3"] }] },
    });
    let spec = json!({ "addresses": ["192.0.2.64/26"], "announce": announce });
    world.put_pool(pool("lan", spec.clone()));
    world.bring_up(service("web"));
    let before = world.vips["192.0.2.64"].spec.clone();
    assert_eq!((before.assignments[0].interface.as_str(), before.assignments.len()), ("eth1", 2));
    world.remove_pool("lan");
    settle(&mut world, 10);
    assert_eq!(world.vips["192.0.2.64"].spec, before);
    // Under another name: that is all that changes.
    world.put_pool(pool("renamed", spec));
    settle(&mut world, 40);
    assert_eq!(world.vips["192.0.2.64"].spec, api::VirtualIPSpec { pool: "renamed".to_owned(), ..before });
}
