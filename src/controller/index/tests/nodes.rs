//! Nodes and speakers that die, drain, are excluded, take over.

use serde_json::json;

use super::*;

#[test]
fn a_dead_node_is_replaced_after_15_seconds_and_its_claim_is_taken_away() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.pass(5);
    world.kill("node1");
    world.pass(14);
    assert_eq!(world.roles("192.0.2.64")[0].0, "node1");
    world.pass(1);
    assert_eq!(world.roles("192.0.2.64"), [("node2".to_owned(), Role::Primary), ("node3".to_owned(), Role::Standby)]);
    let vip = &world.vips["192.0.2.64"];
    assert_eq!(vip.spec.placement, 2);
    assert!(vip.status.as_ref().unwrap().claims.is_empty());
    assert_eq!(vip.metadata.labels.as_ref().unwrap().get("node.l2lb.io/node1"), None);
    // A hand-over in good time is one status write and one event, not a report of the moment between.
    world.speak();
    let changes = but_pools(world.run());
    assert!(matches!(&changes[..], [Change::ServiceStatus(_), Change::ServiceEvent { .. }]), "{changes:?}");
    // The node that returns stands by.
    world.leases.insert("node1".to_owned(), 0);
    world.pass(20);
    let roles = world.roles("192.0.2.64");
    assert_eq!((roles[0].0.as_str(), roles.len()), ("node2", 3));
}

#[test]
fn an_outage_of_all_speakers_moves_nothing_and_is_said() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let before = world.roles("192.0.2.64");
    world.leases.clear();
    world.pass(60);
    assert_eq!(world.roles("192.0.2.64"), before);
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    let (_, reason, message) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(reason, "NoEligibleNode");
    assert!(message.contains("node1: its speaker has not renewed its Lease for 15 s; node2: "), "{message}");
}

#[test]
fn a_broken_watch_of_leases_moves_nothing() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.index.handle_lease_watch_lost(world.now);
    world.leases.clear();
    assert_eq!(but_pools(world.pass(600)), []);
}

#[test]
fn a_drained_node_hands_over_before_it_leaves() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.change_speaker("node1", |speaker| speaker["status"]["draining"] = true.into());
    world.run();
    let leaving = ("node1".to_owned(), Role::Leaving);
    assert_eq!(world.roles("192.0.2.64")[0], ("node2".to_owned(), Role::Primary));
    assert!(world.roles("192.0.2.64").contains(&leaving));
    let labels = world.vips["192.0.2.64"].metadata.labels.clone().unwrap();
    assert_eq!(labels["node.l2lb.io/node1"], "leaving");
    let (_, reason, _) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(reason, "Announced");
    world.speak();
    world.run();
    assert!(!world.roles("192.0.2.64").contains(&leaving));
    assert_eq!(but_pools(world.pass(10)), []);
}

#[test]
fn an_excluded_node_loses_the_address_even_if_nobody_else_can_have_it() {
    let mut world = World::new();
    world.kill("node2");
    world.kill("node3");
    world.bring_up(service("web"));
    world.pass(30);
    world.change_node("node1", |node| node["metadata"]["labels"] = json!({ api::EXCLUDE_LABEL: "" }));
    world.run();
    assert!(world.roles("192.0.2.64").is_empty());
    let (_, reason, _) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(reason, "NoEligibleNode");
}

#[test]
fn a_standby_that_took_over_is_adopted() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut vip = world.vips["192.0.2.64"].clone();
    let claims = &mut vip.status.as_mut().unwrap().claims;
    claims.push(Claim { node: "node3".to_owned(), mac: "02:00:00:00:01:03".to_owned(), ..claims[0].clone() });
    world.put_vip(vip);
    world.run();
    assert_eq!(world.roles("192.0.2.64")[0], ("node3".to_owned(), Role::Primary));
    assert_eq!(world.vips["192.0.2.64"].spec.placement, 1);
}

#[test]
fn a_claim_for_an_earlier_object_of_the_name_counts_for_nothing() {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    world.speak();
    let mut vip = world.vips["192.0.2.64"].clone();
    vip.status.as_mut().unwrap().claims[0].uid = "earlier".to_owned();
    world.put_vip(vip);
    world.run();
    assert!(world.shown("web").is_empty());
}

#[test]
fn a_local_service_is_announced_where_it_has_an_endpoint() {
    let mut world = World::new();
    let mut local = service("web");
    local["spec"]["externalTrafficPolicy"] = "Local".into();
    world.put_service(local);
    world.pass(3);
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "NoEndpoint");
    world.put_slice("web", &["node3"]);
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.roles("192.0.2.64"), [("node3".to_owned(), Role::Primary)]);
    world.put_slice("web", &["node2"]);
    world.run();
    assert_eq!(world.roles("192.0.2.64")[0], ("node2".to_owned(), Role::Primary));
}

#[test]
fn addresses_are_spread_over_the_nodes() {
    let mut world = World::new();
    for number in 0..6 {
        world.bring_up(service(&format!("s{number}")));
    }
    let mut loads: BTreeMap<String, usize> = BTreeMap::new();
    for vip in world.vips.values() {
        *loads.entry(vip.spec.assignments[0].node.clone()).or_default() += 1;
    }
    assert_eq!(loads.into_values().collect::<Vec<_>>(), [2, 2, 2]);
}

#[test]
fn a_speaker_is_tied_to_its_node() {
    let mut world = World::unlisted();
    world.speakers.get_mut("node2").unwrap()["metadata"]["ownerReferences"] = json!([]);
    world.list();
    let owner = Change::SpeakerOwner {
        node: "node2".to_owned(),
        node_uid: "uid-node2".to_owned(),
        speaker_uid: "uid-speaker-node2".to_owned(),
    };
    assert_eq!(but_pools(world.run()), [owner]);
}
