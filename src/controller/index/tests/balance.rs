//! Moves for the sake of balance alone, for those who want them.

use serde_json::json;

use super::{super::*, world::*};

fn loads(world: &World) -> [usize; 3] {
    let on = |node: &str| world.vips.values().filter(|vip| vip.spec.assignments[0].node == node).count();
    [on("node1"), on("node2"), on("node3")]
}

/// Six addresses, all on node1, since the others came later.
fn one_sided(moves_per_minute: u32) -> World {
    let mut world = World::unlisted();
    world.leases.retain(|node, _| node == "node1");
    world.index = Index::new(None).with_rebalance(moves_per_minute);
    world.list();
    for number in 0..6 {
        world.bring_up(service(&format!("s{number}")));
    }
    for node in ["node2", "node3"] {
        world.leases.insert(node.to_owned(), 0);
    }
    world.renew_now();
    world.run();
    world
}

/// Seconds pass; speakers do what they are told. The moves that began, by second.
fn watch(world: &mut World, seconds: u64) -> Vec<(u64, String)> {
    let (begun, mut moves) = (world.now, Vec::new());
    while world.now < begun + Duration::from_secs(seconds) {
        let before = world.vips.clone();
        world.pass(1);
        for (address, vip) in
            world.vips.iter().filter(|(address, vip)| before[*address].spec.placement < vip.spec.placement)
        {
            assert!(vip.spec.assignments.iter().any(|entry| entry.role == Role::Leaving), "make before break: {vip:?}");
            moves.push(((world.now - begun).as_secs(), address.clone()));
        }
        world.speak();
        world.run();
    }
    moves
}

#[test]
fn without_being_asked_nobody_moves_anything() {
    let mut world = one_sided(0);
    assert_eq!(watch(&mut world, 600), []);
    assert_eq!(loads(&world), [6, 0, 0]);
}

#[test]
fn addresses_are_evened_out_one_at_a_time_and_then_there_is_peace() {
    let mut world = one_sided(4);
    let moves = watch(&mut world, 300);
    assert_eq!(loads(&world), [2, 2, 2]);
    assert_eq!(moves.len(), 4);
    assert!(moves.windows(2).all(|pair| pair[1].0 - pair[0].0 == 15), "{moves:?}");
    assert_eq!(but_pools(world.pass(300)), []);
}

#[test]
fn nothing_is_moved_for_balance_to_a_node_that_may_be_dead_or_does_not_hear_the_others() {
    let mut world = one_sided(60);
    world.change_speaker("node2", |speaker| speaker["status"]["interfaces"][0]["unheard"] = json!(["node3"]));
    world.kill("node3");
    // This one has only seen that node3 has a Lease, and would learn of its death in 15 s.
    world.index = Index::new(None).with_rebalance(60);
    world.list();
    world.run();
    assert_eq!(watch(&mut world, 10), []);
}

#[test]
fn a_difference_of_one_is_none() {
    let mut world = one_sided(60);
    for number in 1..6 {
        world.delete_service(&format!("s{number}"));
    }
    world.run();
    assert_eq!(watch(&mut world, 60), []);
    assert_eq!(loads(&world), [1, 0, 0]);
}

#[test]
fn preferences_and_selectors_are_honoured() {
    let mut world = one_sided(60);
    world.change_node("node1", |node| node["metadata"]["labels"] = json!({ "rack": "1" }));
    let preferred = json!([{ "weight": 1, "selector": { "matchLabels": { "rack": "1" } } }]);
    let announce = json!({ "preferredNodes": preferred });
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"], "announce": announce })));
    assert_eq!(watch(&mut world, 60), []);
    let announce = json!({ "nodeSelector": { "matchLabels": { "rack": "1" } } });
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"], "announce": announce })));
    assert_eq!(watch(&mut world, 60), []);
    // Of two nodes that are as good, one is idle.
    world.change_node("node3", |node| node["metadata"]["labels"] = json!({ "rack": "1" }));
    watch(&mut world, 60);
    assert_eq!(loads(&world), [3, 0, 3]);
}

#[test]
fn while_something_moves_anyway_balance_waits() {
    let mut world = one_sided(60);
    let mut local = service("s3");
    local["spec"]["externalTrafficPolicy"] = "Local".into();
    world.put_service(local);
    world.put_slice("s3", &["node2"]);
    world.run();
    let moved = |world: &World| world.vips.values().filter(|vip| vip.spec.placement == 2).count();
    assert_eq!(moved(&world), 1);
    world.pass(1);
    assert_eq!(moved(&world), 1);
    world.speak();
    world.pass(2);
    assert_eq!(moved(&world), 2);
}

#[test]
fn an_address_that_nobody_claims_yet_is_left_alone() {
    let mut world = one_sided(60);
    for vip in world.vips.values().cloned().collect::<Vec<_>>() {
        world.put_vip(crate::api::VirtualIP { status: None, ..vip });
    }
    world.pass(60);
    assert_eq!(loads(&world), [6, 0, 0]);
}
