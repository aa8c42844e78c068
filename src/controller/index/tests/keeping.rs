//! What a Service has stays with it, whatever becomes of pools and of the controller.

use serde_json::json;

use super::{super::*, world::*};

#[test]
fn what_is_in_use_outlasts_its_pool_for_a_while() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.100"] })));
    world.pass(3);
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    let (_, _, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    let homeless =
        "from pool lan, which does not hold it any more; it is taken back 30 s after that unless a pool holds it";
    assert_eq!(message, format!("192.0.2.64 {homeless}"));
}

#[test]
fn an_address_in_use_stays_when_its_pool_is_removed_and_made_anew() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.bring_up(annotated("asks", "l2lb.io/pool", "lan"));
    let before = (world.shown("web"), world.shown("asks"));
    let removed = world.pools.remove("lan").unwrap();
    world.index.handle(Input::Pool(Delta::Delete("lan".to_owned(), String::new())), world.now);
    world.bring_up(service("next"));
    assert_eq!((world.shown("web"), world.shown("asks")), before);
    assert_eq!(world.vips.len(), 2);
    assert_eq!(world.condition("next", api::CONDITION_ALLOCATED).unwrap().1, "NoMatchingPool");
    let (_, _, message) = world.condition("asks", api::CONDITION_ALLOCATED).unwrap();
    assert!(message.starts_with("192.0.2.65 from pool lan, which does not hold it any more; "), "{message}");
    world.restart();
    world.pass(5);
    assert_eq!((world.shown("web"), world.shown("asks")), before);
    world.put_pool(removed);
    world.pass(5);
    assert_eq!((world.shown("web"), world.shown("asks")), before);
}

#[test]
fn a_service_that_names_a_pool_leaves_an_address_that_lies_in_no_pool() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.100"] })));
    world.put_pool(pool("other", json!({ "addresses": ["192.0.2.200"] })));
    world.bring_up(annotated("web", "l2lb.io/pool", "other"));
    assert_eq!(world.shown("web"), ["192.0.2.200"]);
}

#[test]
fn after_a_restart_amid_a_move_the_new_address_stays() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"], "namespaces": ["other"] })));
    world.put_pool(pool("new", json!({ "addresses": ["192.0.2.200/29"] })));
    // The new VirtualIP is made, and the controller dies before it removes the old one.
    loop {
        let (target, change) = world.index.poll_change(world.now).expect("the new VirtualIP");
        let skipped = matches!(change, Change::DeleteVirtualIP { .. });
        let outcome = if skipped { Outcome::Failed } else { world.write(&change) };
        world.index.handle_outcome(&target, outcome, world.now);
        if matches!(change, Change::CreateVirtualIP { .. }) {
            break;
        }
    }
    assert_eq!(world.vips.len(), 2);
    world.restart();
    world.pass(5);
    assert_eq!(world.vips.keys().collect::<Vec<_>>(), ["192.0.2.200"]);
    assert_eq!(world.shown("web"), ["192.0.2.200"]);
}

#[test]
fn after_a_restart_recorded_and_shown_addresses_go_before_new_ones() {
    let mut world = World::new();
    world.bring_up(service("zebra"));
    // Another load balancer gave this one its address; a third Service waits and would come first by name.
    let mut adopted = service("moved");
    adopted["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.65" }] } });
    world.services.insert("default/moved".to_owned(), adopted);
    world.services.insert("default/apple".to_owned(), service("apple"));
    world.restart();
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.shown("zebra"), ["192.0.2.64"]);
    assert_eq!(world.shown("moved"), ["192.0.2.65"]);
    assert_eq!(world.shown("apple"), ["192.0.2.66"]);
}

#[test]
fn what_somebody_else_keeps_undoing_is_put_right_ever_more_slowly() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut writes = 0;
    for _ in 0..30 {
        // Another load balancer takes the Service for its own.
        let theirs = json!({ "loadBalancer": { "ingress": [{ "ip": "10.0.0.1" }] } });
        world.services.get_mut("default/web").unwrap()["status"]["loadBalancer"] = theirs["loadBalancer"].clone();
        let again = world.services["default/web"].clone();
        world.put_service(again);
        let changes = world.pass(1);
        let statuses = changes.iter().filter(|change| matches!(change, Change::ServiceStatus(_)));
        writes += statuses.count();
    }
    assert!((3..10).contains(&writes), "{writes}");
    world.pass(60);
    assert_eq!(world.shown("web"), ["192.0.2.64"], "it gives up, and so it is put right in the end");
}

#[test]
fn what_somebody_changes_once_is_put_right_at_once() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.services.get_mut("default/web").unwrap()["status"]["loadBalancer"] = json!({});
    let edited = world.services["default/web"].clone();
    world.put_service(edited);
    world.run();
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
}

#[test]
fn of_those_who_share_the_one_that_changed_while_nobody_looked_is_the_one_to_go() {
    for changed in ["a", "b"] {
        let shared = |name: &str, port: u16| {
            let mut service = annotated(name, api::ANNOTATION_SHARING_KEY, "dns");
            service["spec"]["ports"] = json!([{ "port": port, "protocol": "TCP" }]);
            service
        };
        let mut world = World::new();
        world.bring_up(shared("a", 53));
        world.bring_up(shared("b", 54));
        assert_eq!(world.shown("a"), world.shown("b"));
        let stays = if changed == "a" { "b" } else { "a" };
        let before = world.shown(stays);
        world.services.get_mut(&format!("default/{changed}")).unwrap()["metadata"]["annotations"] = json!({});
        world.restart();
        world.run();
        world.speak();
        world.pass(5);
        assert_eq!(world.shown(stays), before, "{changed} changed");
        assert_ne!(world.shown(changed), before, "{changed} changed");
    }
}
