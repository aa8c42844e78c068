//! Addresses on which a foreign host answers.

use serde_json::json;

use super::{super::*, world::*};

const MAC: &str = "02:00:00:00:ff:ff";

/// A Service was just given .64, and another host answers there.
fn blocked() -> World {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    world.block("192.0.2.64", MAC);
    world
}

fn settle(world: &mut World) -> Vec<Change> {
    let mut changes = world.run();
    world.speak();
    changes.extend(world.run());
    changes.extend(world.pass(2));
    but_pools(changes)
}

#[test]
fn another_address_is_given_and_the_bad_one_is_shown_and_looked_at_again() {
    let mut world = blocked();
    let roles = world.roles("192.0.2.64");
    let changes = settle(&mut world);
    assert_eq!(world.shown("web"), ["192.0.2.65"]);
    let told = format!(
        "AddressChanged: 192.0.2.65 replaces 192.0.2.64: a host with MAC address {MAC}, which is none of the speakers, \
         answers for 192.0.2.64; 192.0.2.65 by node2 (eth0, 02:00:00:00:01:02)"
    );
    assert_eq!(World::events(&changes), [told]);
    let bad = &world.vips["192.0.2.64"];
    assert!(bad.spec.services.is_empty());
    assert_eq!(world.roles("192.0.2.64"), roles, "its speaker goes on asking");
    world.pass(2);
    let status = &world.pools["lan"]["status"];
    assert_eq!(status["ipv4"], json!({ "total": "64", "used": "2", "free": "62" }));
    assert_eq!(status["conditions"][0]["reason"], "AddressConflict");
    let message = status["conditions"][0]["message"].as_str().unwrap();
    assert!(message.starts_with(&format!("a host with MAC address {MAC} answers for 192.0.2.64")), "{message}");
    assert_eq!(but_pools(world.pass(600)), []);
}

#[test]
fn an_address_that_is_found_free_again_is_given_after_the_usual_rest() {
    let mut world = blocked();
    settle(&mut world);
    world.unblock("192.0.2.64");
    let changes = but_pools(world.run());
    assert!(matches!(&changes[..], [Change::DeleteVirtualIP { .. }]), "{changes:?}");
    world.pass(2);
    assert_eq!(world.pools["lan"]["status"]["conditions"][0]["status"], "True");
    assert_eq!(world.pools["lan"]["status"]["ipv4"]["used"], "1");
    world.bring_up(service("next"));
    assert_eq!(world.shown("next"), ["192.0.2.66"]);
    world.pass(300);
    world.bring_up(service("later"));
    assert_eq!(world.shown("later"), ["192.0.2.64"]);
    assert_eq!(world.shown("web"), ["192.0.2.65"], "nobody goes back");
}

#[test]
fn a_quarantine_outlasts_the_controller() {
    let mut world = blocked();
    settle(&mut world);
    world.restart();
    assert_eq!(but_pools(world.pass(3)), []);
    assert!(world.vips["192.0.2.64"].spec.services.is_empty());
    world.bring_up(service("next"));
    assert_eq!(world.shown("next"), ["192.0.2.66"]);
    world.unblock("192.0.2.64");
    world.run();
    assert!(!world.vips.contains_key("192.0.2.64"));
}

#[test]
fn a_restart_at_any_write_of_the_move_ends_in_the_same() {
    for writes in 0..8 {
        let mut world = blocked();
        for _ in 0..writes {
            let Some((target, change)) = world.index.poll_change(world.now) else { break };
            let outcome = world.write(&change);
            world.index.handle_outcome(&target, outcome, world.now);
        }
        world.restart();
        settle(&mut world);
        assert_eq!(world.shown("web"), ["192.0.2.65"], "{writes}");
        assert_eq!(world.vips["192.0.2.65"].spec.services, ["default/web"], "{writes}");
        assert!(world.vips["192.0.2.64"].spec.services.is_empty(), "{writes}");
    }
}

#[test]
fn an_address_that_clients_know_or_that_was_asked_for_is_not_replaced() {
    let mut world = World::new();
    world.bring_up(service("known"));
    world.block("192.0.2.64", MAC);
    world.put_service(annotated("asked", "l2lb.io/addresses", "192.0.2.80"));
    world.run();
    world.block("192.0.2.80", MAC);
    settle(&mut world);
    assert_eq!(world.shown("known"), ["192.0.2.64"]);
    assert!(world.shown("asked").is_empty(), "clients would reach the other host");
    for name in ["known", "asked"] {
        let (_, reason, message) = world.condition(name, api::CONDITION_ANNOUNCED).unwrap();
        assert_eq!(reason, "AddressConflict");
        assert!(message.contains(MAC), "{message}");
    }
    assert_eq!(world.vips.len(), 2);
    // Who does not ask for it any more gets another one.
    world.put_service(service("asked"));
    settle(&mut world);
    assert_eq!(world.shown("asked"), ["192.0.2.65"]);
}

#[test]
fn who_asks_for_a_quarantined_address_gets_it_and_hears_of_the_other_host() {
    let mut world = blocked();
    settle(&mut world);
    world.put_service(annotated("asked", "l2lb.io/addresses", "192.0.2.64"));
    settle(&mut world);
    assert_eq!(world.vips["192.0.2.64"].spec.services, ["default/asked"]);
    let (_, reason, message) = world.condition("asked", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(reason, "AddressConflict");
    assert!(message.contains(MAC), "{message}");
    world.delete_service("asked");
    world.run();
    assert!(!world.vips.contains_key("192.0.2.64"));
}

#[test]
fn without_another_address_the_disputed_one_stays_and_says_so() {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["192.0.2.64-192.0.2.65"] })));
    world.list();
    world.bring_up(annotated("other", "l2lb.io/addresses", "192.0.2.65"));
    world.put_service(service("web"));
    world.run();
    world.block("192.0.2.64", MAC);
    settle(&mut world);
    assert_eq!(world.vips["192.0.2.64"].spec.services, ["default/web"]);
    let (status, _, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!(status, "True");
    assert_eq!(
        message,
        format!(
            "192.0.2.64 from pool lan, a host with MAC address {MAC}, which is none of the speakers, answers for 192.0.2.64, and \
             there is no other to give: no free IPv4 address is left in pool lan; add addresses to the pool or remove a Service"
        )
    );
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "AddressConflict");
    // One becomes free: it moves there.
    world.delete_service("other");
    settle(&mut world);
    assert_eq!(world.shown("web"), ["192.0.2.65"]);
    assert!(world.vips["192.0.2.64"].spec.services.is_empty());
}

/// Whatever a Service is given, somebody has it.
fn with_a_router_that_answers_for_all() -> World {
    let mut world = World::new();
    world.put_service(service("web"));
    for _ in 0..40 {
        world.run();
        let address = world.vips.values().find(|vip| !vip.spec.services.is_empty()).unwrap().spec.address.clone();
        world.block(&address, MAC);
        world.pass(1);
    }
    world
}

#[test]
fn a_router_that_answers_for_everything_does_not_empty_the_pool() {
    let world = with_a_router_that_answers_for_all();
    assert_eq!(world.vips.len(), 17);
    let message = world.condition("web", api::CONDITION_ALLOCATED).unwrap().2;
    assert!(message.contains("other hosts answer for 16 more addresses of pool lan"), "{message}");
}

#[test]
fn all_who_share_a_bad_address_move_together() {
    let mut world = World::new();
    let sharing = |name: &str, port: u16| {
        let mut service = annotated(name, "l2lb.io/sharing-key", "k");
        service["spec"]["ports"][0]["port"] = port.into();
        service
    };
    world.put_service(sharing("a", 80));
    world.put_service(sharing("b", 443));
    world.run();
    world.block("192.0.2.64", MAC);
    settle(&mut world);
    assert_eq!(world.vips["192.0.2.65"].spec.services, ["default/a", "default/b"]);
    assert!(world.vips["192.0.2.64"].spec.services.is_empty());
    assert_eq!((world.shown("a"), world.shown("b")), (vec!["192.0.2.65".to_owned()], vec!["192.0.2.65".to_owned()]));
}

#[test]
fn a_quarantine_ends_with_its_pool() {
    let mut world = blocked();
    settle(&mut world);
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.65-192.0.2.70"] })));
    world.run();
    assert!(!world.vips.contains_key("192.0.2.64"));
    assert_eq!(world.shown("web"), ["192.0.2.65"]);
}

#[test]
fn when_the_node_that_asks_dies_another_one_asks() {
    let mut world = blocked();
    settle(&mut world);
    let before = world.roles("192.0.2.64")[0].0.clone();
    world.kill(&before);
    world.pass(20);
    let after = world.roles("192.0.2.64")[0].0.clone();
    assert_ne!(before, after);
    assert!(world.vips["192.0.2.64"].spec.services.is_empty());
    world.restart();
    world.pass(3);
    assert!(
        world.vips["192.0.2.64"].spec.services.is_empty(),
        "its claim is gone with the dead node; the quarantine is not"
    );
}

#[test]
fn who_waits_for_an_address_to_share_joins_when_the_other_host_is_gone() {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["192.0.2.64"] })));
    world.list();
    let sharing = |name: &str, port: u16| {
        let mut service = annotated(name, "l2lb.io/sharing-key", "k");
        service["spec"]["ports"][0]["port"] = port.into();
        service
    };
    world.bring_up(sharing("a", 80));
    world.block("192.0.2.64", MAC);
    world.put_service(sharing("b", 443));
    settle(&mut world);
    assert_eq!(world.condition("b", api::CONDITION_ALLOCATED).unwrap().1, "PoolExhausted");
    world.unblock("192.0.2.64");
    settle(&mut world);
    assert_eq!(world.vips["192.0.2.64"].spec.services, ["default/a", "default/b"]);
}

#[test]
fn a_bad_address_is_left_by_all_when_the_last_one_leaves_that_clients_know() {
    let mut world = World::new();
    let sharing = |name: &str, port: u16| {
        let mut service = annotated(name, "l2lb.io/sharing-key", "k");
        service["spec"]["ports"][0]["port"] = port.into();
        service
    };
    world.bring_up(sharing("known", 80));
    world.put_service(sharing("new", 443));
    // Before the second one shows the address, a host appears there.
    let (target, change) = world.next_but_pools().unwrap();
    let outcome = world.write(&change);
    world.block("192.0.2.64", MAC);
    world.index.handle_outcome(&target, outcome, world.now);
    settle(&mut world);
    assert_eq!((world.shown("known"), world.shown("new")), (vec!["192.0.2.64".to_owned()], vec![]));
    world.put_service(annotated("known", "l2lb.io/addresses", "192.0.2.99"));
    settle(&mut world);
    assert_eq!(world.shown("new"), ["192.0.2.65"]);
    assert!(world.vips["192.0.2.64"].spec.services.is_empty());
}

#[test]
fn what_no_pool_holds_is_not_quarantined() {
    let mut world = blocked();
    // The VirtualIP of the next address is made, and the controller ends; meanwhile the pool is removed.
    let changes: Vec<Change> = (0..2).filter_map(|_| world.next_but_pools().map(|(_, change)| change)).collect();
    for change in &changes {
        if matches!(change, Change::CreateVirtualIP { .. }) {
            world.write(change);
        }
    }
    assert_eq!(world.vips.len(), 2, "{changes:?}");
    world.pools.clear();
    world.restart();
    settle(&mut world);
    assert_eq!(world.vips.keys().collect::<Vec<_>>(), ["192.0.2.65"]);
}

#[test]
fn when_one_of_too_many_bad_addresses_is_free_again_whoever_kept_a_bad_one_moves() {
    let mut world = with_a_router_that_answers_for_all();
    assert_eq!(world.vips["192.0.2.80"].spec.services, ["default/web"]);
    world.unblock("192.0.2.64");
    settle(&mut world);
    assert_eq!(world.shown("web"), ["192.0.2.81"]);
    assert!(world.vips["192.0.2.80"].spec.services.is_empty());
}
