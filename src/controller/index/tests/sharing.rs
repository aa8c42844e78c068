//! Who may share an address with whom, and what becomes of it when one of them changes.

use serde_json::{Value, json};

use super::{super::*, world::*};

fn sharing(name: &str, key: &str, port: u16) -> Value {
    let mut service = annotated(name, "l2lb.io/sharing-key", key);
    service["spec"]["ports"][0]["port"] = port.into();
    service
}

fn local(mut service: Value, selector: Value) -> Value {
    service["spec"]["externalTrafficPolicy"] = "Local".into();
    service["spec"]["selector"] = selector;
    service
}

fn settle(world: &mut World) -> Vec<Change> {
    let mut changes = world.run();
    world.speak();
    changes.extend(world.pass(3));
    world.check_shown();
    changes
}

fn users(world: &World) -> Vec<Vec<String>> {
    world.vips.values().map(|vip| vip.spec.services.clone()).collect()
}

#[test]
fn who_shares_with_whom_does_not_depend_on_who_comes_first() {
    let app = || json!({ "app": "x" });
    let udp = |mut service: Value| {
        service["spec"]["ports"][0]["protocol"] = "UDP".into();
        service
    };
    let mut elsewhere = local(sharing("b", "k", 443), app());
    elsewhere["metadata"]["namespace"] = "other".into();
    let mut cluster_elsewhere = sharing("b", "k", 443);
    cluster_elsewhere["metadata"]["namespace"] = "other".into();
    for (name, one, other, shared) in [
        ("ports apart", sharing("a", "k", 80), sharing("b", "k", 443), true),
        ("one port", sharing("a", "k", 80), sharing("b", "k", 80), false),
        ("one port, two protocols", sharing("a", "k", 80), udp(sharing("b", "k", 80)), true),
        ("another key", sharing("a", "k", 80), sharing("b", "j", 443), false),
        ("no key", sharing("a", "k", 80), service("b"), false),
        ("both local, one selector", local(sharing("a", "k", 80), app()), local(sharing("b", "k", 443), app()), true),
        (
            "both local, other selector",
            local(sharing("a", "k", 80), app()),
            local(sharing("b", "k", 443), json!({ "app": "y" })),
            false,
        ),
        ("one is local", local(sharing("a", "k", 80), app()), sharing("b", "k", 443), false),
        (
            "both local, no selector",
            local(sharing("a", "k", 80), json!({})),
            local(sharing("b", "k", 443), json!({})),
            false,
        ),
        ("two namespaces", sharing("a", "k", 80), cluster_elsewhere, true),
        ("two namespaces, both local", local(sharing("a", "k", 80), app()), elsewhere, false),
    ] {
        for turned in [false, true] {
            let mut world = World::new();
            let (first, second) = if turned { (&other, &one) } else { (&one, &other) };
            world.put_service(first.clone());
            settle(&mut world);
            world.put_service(second.clone());
            settle(&mut world);
            let expected = if shared { 1 } else { 2 };
            assert_eq!(world.vips.len(), expected, "{name}, turned: {turned}");
            let before = users(&world);
            world.restart();
            assert_eq!(but_pools(world.pass(2)), [], "{name}, turned: {turned}");
            assert_eq!(users(&world), before);
        }
    }
}

#[test]
fn a_change_in_place_is_looked_at_again() {
    for (name, changed, reason) in [
        ("port", sharing("b", "k", 80), "192.0.2.64 is shared with default/a, which already uses port 80/TCP"),
        ("key", sharing("b", "j", 443), "192.0.2.64 is shared by default/a under another sharing key than 'j'"),
        (
            "policy",
            local(sharing("b", "k", 443), json!({ "app": "b" })),
            "192.0.2.64 is shared with default/a, and with externalTrafficPolicy Local both need the same policy and selector",
        ),
        (
            "no key",
            {
                let mut plain = service("b");
                plain["spec"]["ports"][0]["port"] = 443.into();
                plain
            },
            "192.0.2.64 is in use by default/a",
        ),
    ] {
        let mut world = World::new();
        world.put_service(sharing("a", "k", 80));
        world.put_service(sharing("b", "k", 443));
        settle(&mut world);
        assert_eq!(users(&world), [["default/a", "default/b"]], "{name}");
        world.put_service(changed);
        let changes = settle(&mut world);
        assert_eq!(users(&world), [["default/a"], ["default/b"]], "{name}");
        assert_eq!(
            (world.shown("a"), world.shown("b")),
            (vec!["192.0.2.64".to_owned()], vec!["192.0.2.65".to_owned()])
        );
        let events = World::events(&changes).join("\n");
        let told = format!("AddressChanged: 192.0.2.65 replaces 192.0.2.64: {reason}; ");
        assert!(events.contains(&told), "{name}: {events}");
    }
}

#[test]
fn a_change_that_still_fits_moves_nobody() {
    let mut world = World::new();
    world.put_service(sharing("a", "k", 80));
    world.put_service(sharing("b", "k", 443));
    settle(&mut world);
    world.put_service(sharing("b", "k", 8443));
    assert_eq!(but_pools(world.pass(3)), []);
    // The port that it left is free for another one.
    world.put_service(sharing("c", "k", 443));
    settle(&mut world);
    assert_eq!(users(&world), [["default/a", "default/b", "default/c"]]);
}

#[test]
fn the_last_user_frees_the_address() {
    let mut world = World::new();
    world.put_service(sharing("a", "k", 80));
    world.put_service(sharing("b", "k", 443));
    settle(&mut world);
    world.delete_service("a");
    world.run();
    assert_eq!(users(&world), [["default/b"]]);
    world.delete_service("b");
    world.run();
    assert!(world.vips.is_empty());
    world.pass(2);
    assert_eq!(world.pools["lan"]["status"]["ipv4"]["used"], "0");
}

#[test]
fn who_asks_for_a_shared_address_is_told_why_not_and_gets_it_as_soon_as_it_fits() {
    let mut world = World::new();
    let asks = |name: &str, key: &str, port: u16| {
        let mut service = sharing(name, key, port);
        service["metadata"]["annotations"]["l2lb.io/addresses"] = "192.0.2.70".into();
        service
    };
    world.put_service(asks("a", "k", 80));
    settle(&mut world);
    world.put_service(asks("b", "k", 80));
    world.put_service(asks("c", "j", 443));
    let mut plain = asks("d", "k", 444);
    plain["metadata"]["annotations"] = json!({ "l2lb.io/addresses": "192.0.2.70" });
    world.put_service(plain);
    settle(&mut world);
    let told = |world: &World, name: &str| {
        let (_, reason, message) = world.condition(name, api::CONDITION_ALLOCATED).unwrap();
        format!("{reason}: {message}")
    };
    assert_eq!(told(&world, "b"), "PortCollision: 192.0.2.70 is shared with default/a, which already uses port 80/TCP");
    let other_key = "192.0.2.70 is shared by default/a under another sharing key than 'j'";
    assert_eq!(told(&world, "c"), format!("SharingMismatch: {other_key}"));
    assert_eq!(told(&world, "d"), "AddressInUse: 192.0.2.70 is in use by default/a");
    // Both change their key, one after the other: the one that waits hears of it.
    world.put_service(asks("a", "j", 80));
    settle(&mut world);
    assert_eq!(users(&world), [["default/a", "default/c"]]);
    // And the other one changes its port, while another user still has another key.
    assert!(
        told(&world, "b").starts_with("SharingMismatch: 192.0.2.70 is shared by default/a, default/c"),
        "{}",
        told(&world, "b")
    );
}

#[test]
fn who_waits_for_an_address_to_share_gets_one_as_soon_as_its_key_is_there() {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["192.0.2.64"] })));
    world.list();
    world.put_service(service("a"));
    settle(&mut world);
    world.put_service(sharing("b", "k", 443));
    settle(&mut world);
    assert_eq!(world.condition("b", api::CONDITION_ALLOCATED).unwrap().1, "PoolExhausted");
    world.put_service(sharing("a", "k", 80));
    settle(&mut world);
    assert_eq!(users(&world), [["default/a", "default/b"]]);
}

#[test]
fn no_more_share_one_address_than_its_virtual_ip_can_name() {
    let mut world = World::new();
    for number in 0..300_u16 {
        let service = sharing(&format!("s{number:03}"), "k", 1_000 + number);
        world.services.insert(format!("default/s{number:03}"), service);
    }
    world.restart();
    settle(&mut world);
    let sizes: Vec<usize> = world.vips.values().map(|vip| vip.spec.services.len()).collect();
    assert_eq!(sizes, [256, 44]);
    let mut asks = sharing("late", "k", 9_999);
    asks["metadata"]["annotations"]["l2lb.io/addresses"] = "192.0.2.64".into();
    world.put_service(asks);
    settle(&mut world);
    let (_, reason, message) = world.condition("late", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!(reason, "SharingMismatch");
    let full = "192.0.2.64 is shared by 256 already, which is as many as one address takes; choose another sharing key";
    assert_eq!(message, full);
    world.delete_service("s007");
    settle(&mut world);
    assert_eq!(world.shown("late"), ["192.0.2.64"]);
}
