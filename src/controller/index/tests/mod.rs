//! The index against a small API server: exactly these writes, and then silence.

mod answers;
mod balance;
mod churn;
mod disagreement;
mod families;
mod keeping;
mod lifecycle;
mod living;
mod model;
mod moving;
mod nodes;
mod properties;
mod quarantine;
mod reallocation;
mod requests;
mod scale;
mod sharing;
mod speed;
mod withheld;
mod world;

use serde_json::json;

use self::world::*;
use super::*;
use crate::api::{Assignment, Claim, FailoverClass, VirtualIPSpec};

fn entry(node: &str, role: Role) -> Assignment {
    Assignment { node: node.to_owned(), role, interface: "eth0".to_owned() }
}

#[test]
fn a_service_comes_up_with_two_writes_of_ours_one_event_and_then_silence() {
    let mut world = World::new();
    world.put_service(service("web"));
    let spec = VirtualIPSpec {
        address: "192.0.2.64".to_owned(),
        pool: "lan".to_owned(),
        services: vec!["default/web".to_owned()],
        failover: FailoverClass::Standard,
        placement: 1,
        assignments: vec![entry("node1", Role::Primary), entry("node2", Role::Standby), entry("node3", Role::Standby)],
    };
    assert_eq!(but_pools(world.run()), [Change::CreateVirtualIP { spec }]);
    assert_eq!(but_pools(world.run()), []);
    world.speak();
    let changes = but_pools(world.run());
    let [Change::ServiceStatus(status), Change::ServiceEvent { event, .. }] = &changes[..] else {
        panic!("{changes:?}")
    };
    assert_eq!(status.addresses, ["192.0.2.64".parse::<IpAddr>().unwrap()]);
    assert_eq!(event.message, "192.0.2.64 by node1 (eth0, 02:00:00:00:01:01)");
    assert!(!event.warning);
    let allocated = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!(allocated, ("True".to_owned(), "Allocated".to_owned(), "192.0.2.64 from pool lan".to_owned()));
    let announced = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!((announced.0.as_str(), announced.2), ("True", event.message.clone()));
    assert_eq!(but_pools(world.pass(60)), []);
}

#[test]
fn nothing_is_written_before_every_kind_is_listed() {
    let mut world = World::unlisted();
    world.services.insert("default/web".to_owned(), service("web"));
    let lists = world.lists();
    for missing in 0..lists.len() {
        let mut index = Index::new(None);
        for (_, input) in lists.iter().enumerate().filter(|(at, _)| *at != missing) {
            index.handle(input.clone(), world.now);
        }
        assert_eq!(index.poll_change(world.now), None);
        index.handle(lists[missing].clone(), world.now);
        assert!(index.poll_change(world.now).is_some());
    }
}

#[test]
fn an_address_that_nobody_claims_is_shown_after_two_seconds() {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    world.pass(1);
    assert!(world.shown("web").is_empty());
    world.pass(1);
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    let (status, reason, message) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "AwaitingSpeaker"));
    assert_eq!(message, "192.0.2.64: node1 is to announce it on eth0; it has not claimed the address yet");
}

#[test]
fn while_its_speaker_claims_others_an_address_is_waited_for() {
    let mut world = World::new();
    for node in ["node2", "node3"] {
        world.change_node(node, |node| node["metadata"]["labels"] = json!({ api::EXCLUDE_LABEL: "" }));
    }
    for number in 0..6 {
        world.put_service(service(&format!("s{number}")));
    }
    let mut changes = world.run();
    // One each 1.5 s: the last is claimed 9 s after it was made.
    for number in 0..6 {
        world.now += Duration::from_millis(500);
        changes.extend(world.pass(1));
        world.speak_of(&format!("192.0.2.{}", 64 + number));
        changes.extend(world.run());
    }
    changes.extend(world.pass(60));
    let statuses = changes.iter().filter(|change| matches!(change, Change::ServiceStatus(_))).count();
    assert_eq!(statuses, 6, "{changes:?}");
}

#[test]
fn a_restart_writes_nothing() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.bring_up(service(name));
    }
    world.pass(3);
    world.restart();
    assert_eq!(world.run(), []);
    assert_eq!(world.pass(60), []);
}

#[test]
fn a_deleted_service_gives_its_address_back() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.delete_service("web");
    let changes = but_pools(world.run());
    assert!(
        matches!(&changes[..], [Change::DeleteVirtualIP { uid, .. }] if uid.starts_with("uid-vip-")),
        "{changes:?}"
    );
    // It rests for a while.
    world.bring_up(service("next"));
    assert_eq!(world.shown("next"), ["192.0.2.65"]);
}

#[test]
fn a_service_deleted_while_the_controller_was_away_is_noticed_at_the_start() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.services.clear();
    world.services.insert("default/next".to_owned(), service("next"));
    world.restart();
    world.run();
    assert_eq!(world.vips.keys().collect::<Vec<_>>(), ["192.0.2.65"]);
}

#[test]
fn a_service_that_is_ours_no_more_is_left_without_a_trace() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut changed = service("web");
    changed["spec"]["type"] = "ClusterIP".into();
    world.put_service(changed);
    world.run();
    assert!(world.vips.is_empty());
    assert!(world.shown("web").is_empty());
    assert_eq!(world.condition("web", api::CONDITION_ALLOCATED), None);
    assert_eq!(but_pools(world.pass(10)), []);
}

#[test]
fn only_services_of_our_class_are_touched() {
    let mut classed = service("web");
    classed["spec"]["loadBalancerClass"] = "example.com/other".into();
    let mut world = World::new();
    world.put_service(classed.clone());
    assert_eq!(but_pools(world.pass(5)), []);
    world.index = Index::new(Some("example.com/other".to_owned()));
    world.services.insert("default/plain".to_owned(), service("plain"));
    world.list();
    world.pass(5);
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    assert!(world.shown("plain").is_empty());
}
