//! Addresses move: when, in what order, how many at a time, and what becomes of a move that goes wrong.

use serde_json::{Value, json};

use super::{super::*, world::*};
use crate::api::{ClaimState, DRAIN_ANNOTATION, OUT_OF_SERVICE_TAINT};

const VIP: &str = "192.0.2.64";

fn primary(world: &World, address: &str) -> String {
    let primary = world.roles(address).into_iter().find(|(_, role)| *role == Role::Primary);
    primary.map(|(node, _)| node).unwrap_or_default()
}

fn leaving(world: &World) -> usize {
    let leaving = |vip: &&crate::api::VirtualIP| vip.spec.assignments.iter().any(|entry| entry.role == Role::Leaving);
    world.vips.values().filter(leaving).count()
}

fn taint(node: &mut Value) {
    node["spec"] =
        json!({ "taints": [{ "key": OUT_OF_SERVICE_TAINT, "value": "nodeshutdown", "effect": "NoExecute" }] });
}

fn drain(world: &mut World, node: &str, value: &str) {
    world.change_node(node, |node| node["metadata"]["annotations"] = json!({ DRAIN_ANNOTATION: value }));
}

/// A claim that stands there in another state.
fn set_claim(world: &mut World, address: &str, node: &str, state: ClaimState, placement: i64) {
    let mut vip = world.vips[address].clone();
    let claims = &mut vip.status.get_or_insert_default().claims;
    let mut claim = claims.first().cloned().unwrap();
    claims.retain(|claim| claim.node != node);
    (claim.node, claim.state, claim.placement) = (node.to_owned(), state, placement);
    claims.push(claim);
    world.put_vip(vip);
}

/// Time passes in steps of a tenth of a second.
fn wait(world: &mut World, tenths: u32) -> Vec<Change> {
    let mut changes = Vec::new();
    for _ in 0..tenths {
        world.now += Duration::from_millis(100);
        world.renew();
        changes.extend(world.run());
    }
    changes
}

fn updates(changes: &[Change]) -> usize {
    changes.iter().filter(|change| matches!(change, Change::UpdateVirtualIP { .. })).count()
}

#[test]
fn a_node_out_of_service_is_replaced_at_once() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.change_node("node1", taint);
    world.run();
    // No hand-over: nobody is there to hand over.
    assert_eq!(world.roles(VIP), [("node2".to_owned(), Role::Primary), ("node3".to_owned(), Role::Standby)]);
    assert!(world.vips[VIP].status.as_ref().unwrap().claims.is_empty());
}

#[test]
fn an_address_stays_on_a_node_out_of_service_when_nobody_else_can_have_it() {
    let mut world = World::new();
    world.kill("node2");
    world.kill("node3");
    world.pass(20);
    world.bring_up(service("web"));
    world.change_node("node1", taint);
    world.run();
    assert_eq!(world.roles(VIP), [("node1".to_owned(), Role::Primary)]);
    let (_, reason, message) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(reason, "NoEligibleNode");
    assert!(message.contains("node1: it has the taint node.kubernetes.io/out-of-service"), "{message}");
}

#[test]
fn the_drain_annotation_moves_what_the_node_has_and_keeps_it_away_until_it_goes() {
    let mut world = World::new();
    world.bring_up(service("web"));
    drain(&mut world, "node1", "false");
    assert_eq!(but_pools(world.run()), [], "false is no");
    drain(&mut world, "node1", "true");
    world.run();
    assert!(world.roles(VIP).contains(&("node1".to_owned(), Role::Leaving)));
    world.speak();
    world.run();
    assert_eq!(world.roles(VIP), [("node2".to_owned(), Role::Primary), ("node3".to_owned(), Role::Standby)]);
    world.change_node("node1", |node| node["metadata"]["annotations"] = json!({}));
    world.renew_now();
    world.run();
    let stands_by = ("node1".to_owned(), Role::Standby);
    assert_eq!((primary(&world, VIP).as_str(), world.roles(VIP).contains(&stands_by)), ("node2", true));
}

#[test]
fn a_target_that_dies_before_it_claims_is_replaced_and_the_old_owner_goes_on() {
    let mut world = World::new();
    world.bring_up(service("web"));
    drain(&mut world, "node1", "true");
    world.run();
    assert_eq!(primary(&world, VIP), "node2");
    world.change_node("node2", taint);
    world.run();
    assert_eq!(world.roles(VIP), [("node3".to_owned(), Role::Primary), ("node1".to_owned(), Role::Leaving)]);
    // The third dies as well, but the first may stay after all.
    drain(&mut world, "node1", "false");
    assert_eq!(primary(&world, VIP), "node3");
    world.change_node("node3", taint);
    world.run();
    assert_eq!(world.roles(VIP), [("node1".to_owned(), Role::Primary)]);
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "Announced");
}

fn local(name: &str) -> Value {
    let mut local = service(name);
    local["spec"]["externalTrafficPolicy"] = "Local".into();
    local
}

fn endpoint(node: &str, ready: bool, serving: bool, terminating: bool) -> Value {
    json!({
        "addresses": ["10.0.0.1"], "nodeName": node,
        "conditions": { "ready": ready, "serving": serving, "terminating": terminating },
    })
}

#[test]
fn a_terminating_endpoint_keeps_its_address_until_another_one_is_ready() {
    let mut world = World::new();
    world.put_endpoints("web", "IPv4", json!([endpoint("node2", true, true, false)]));
    world.bring_up(local("web"));
    assert_eq!(primary(&world, VIP), "node2");
    let ends = endpoint("node2", false, true, true);
    // Its successor starts: kube-proxy goes on with the one that ends.
    world.put_endpoints("web", "IPv4", json!([ends, endpoint("node3", false, false, false)]));
    assert_eq!(but_pools(world.run()), []);
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "Announced");
    world.put_endpoints("web", "IPv4", json!([ends, endpoint("node3", true, true, false)]));
    world.run();
    assert_eq!(world.roles(VIP), [("node3".to_owned(), Role::Primary), ("node2".to_owned(), Role::Leaving)]);
    world.speak();
    world.run();
    assert_eq!(world.roles(VIP), [("node3".to_owned(), Role::Primary)]);
}

#[test]
fn an_address_without_any_serving_endpoint_moves_to_where_one_still_serves() {
    let mut world = World::new();
    world.put_endpoints("web", "IPv4", json!([endpoint("node2", true, true, false)]));
    world.bring_up(local("web"));
    world.put_endpoints("web", "IPv4", json!([endpoint("node1", false, true, true)]));
    world.run();
    assert_eq!(primary(&world, VIP), "node1");
}

#[test]
fn endpoints_that_are_not_ready_or_name_no_node_are_said_to_be_so() {
    let mut world = World::new();
    world.put_service(local("web"));
    let mut nowhere = endpoint("", true, true, false);
    nowhere.as_object_mut().unwrap().remove("nodeName");
    for (endpoints, reason, words) in [
        (json!([]), "NoEndpoint", "the Service has no endpoint; are its pods running?"),
        (json!([endpoint("node1", false, false, false)]), "NoLocalEndpoint", "no node has a serving endpoint"),
        (json!([endpoint("node1", false, false, true)]), "NoLocalEndpoint", "no node has a serving endpoint"),
        (json!([nowhere]), "NoLocalEndpoint", "no endpoint says on which node it is; set nodeName"),
    ] {
        world.put_endpoints("web", "IPv4", endpoints);
        world.pass(3);
        let (status, shown, message) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
        assert_eq!((status.as_str(), shown.as_str()), ("False", reason), "{message}");
        assert!(message.contains(words), "{message}");
    }
    // A selector-less Service whose slice says nothing of conditions: ready, as for kube-proxy.
    world.put_endpoints("web", "IPv4", json!([{ "addresses": ["10.0.0.1"], "nodeName": "node3" }]));
    world.run();
    assert_eq!(primary(&world, VIP), "node3");
}

#[test]
fn only_endpoints_of_the_addresss_family_count() {
    let mut world = World::new();
    world.put_endpoints("web", "IPv6", json!([endpoint("node1", true, true, false)]));
    world.put_service(local("web"));
    world.pass(3);
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "NoEndpoint");
    world.put_endpoints("web", "IPv4", json!([endpoint("node3", true, true, false)]));
    world.run();
    assert_eq!(world.roles(VIP), [("node3".to_owned(), Role::Primary)]);
}

/// A LAN with so many Services, all announced by node1.
fn crowd(services: usize) -> World {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["10.1.0.0/16"] })));
    for speaker in world.speakers.values_mut() {
        speaker["status"]["interfaces"][0]["addresses"] = json!(["10.1.255.1/16"]);
    }
    world.leases.retain(|node, _| node == "node1");
    for number in 0..services {
        world.services.insert(format!("default/s{number:04}"), service(&format!("s{number:04}")));
    }
    world.list();
    world.run_all();
    world.speak();
    world.run_all();
    for node in ["node2", "node3"] {
        world.leases.insert(node.to_owned(), 0);
    }
    world.now += Duration::from_secs(5);
    world.renew();
    world.run_all();
    world
}

#[test]
fn a_drain_of_a_thousand_moves_fifty_at_a_time_without_a_pause_between() {
    let mut world = crowd(1_000);
    assert_eq!(world.vips.values().filter(|vip| vip.spec.assignments[0].node == "node1").count(), 1_000);
    world.change_speaker("node1", |speaker| speaker["status"]["draining"] = true.into());
    let (begun, mut rounds) = (world.now, 0);
    let mut moved: Vec<String> = Vec::new();
    while world.vips.values().any(|vip| vip.spec.assignments.iter().any(|entry| entry.node == "node1")) {
        world.run_all();
        assert!(leaving(&world) <= MOVES_AT_ONCE, "{}", leaving(&world));
        let now = world.vips.iter().filter(|(_, vip)| vip.spec.placement > 1).map(|(address, _)| address.clone());
        moved.extend(now.filter(|address| !moved.contains(address)).collect::<Vec<_>>());
        world.speak();
        rounds += 1;
        assert!(rounds < 30, "{} moved", moved.len());
    }
    assert_eq!((rounds, world.now), (1_000 / MOVES_AT_ONCE + 1, begun), "a move that ends lets the next one begin");
    let by_address = |address: &String| address.parse::<IpAddr>().unwrap();
    assert!(moved.chunks(MOVES_AT_ONCE).map(|chunk| chunk.iter().map(by_address).max()).is_sorted(), "in their order");
    world.run_all();
    assert!(world.vips.values().all(|vip| vip.spec.placement == 2), "each moved once");
    assert_eq!(but_pools(world.pass(10)), []);
}

#[test]
fn moves_that_hang_hold_the_others_up_for_a_moment_only() {
    let mut world = crowd(120);
    world.change_speaker("node1", |speaker| speaker["status"]["draining"] = true.into());
    world.run_all();
    assert_eq!(leaving(&world), 50);
    wait(&mut world, 14);
    assert_eq!(leaving(&world), 50);
    wait(&mut world, 1);
    assert_eq!(leaving(&world), 100);
}

#[test]
fn moves_away_from_a_dead_node_wait_for_nobody() {
    let mut world = crowd(300);
    world.change_node("node1", taint);
    world.run_all();
    assert!(world.vips.values().all(|vip| vip.spec.assignments[0].node != "node1"));
}

#[test]
fn addresses_that_are_served_no_more_where_they_are_wait_for_nobody() {
    let mut world = crowd(60);
    world.change_speaker("node1", |speaker| speaker["status"]["draining"] = true.into());
    world.run_all();
    assert_eq!(leaving(&world), 50);
    // The ten that wait lose their interface: they do not wait any more, and nobody waits for them.
    world.change_speaker("node1", |speaker| {
        speaker["status"]["draining"] = false.into();
        speaker["status"]["interfaces"][0]["carrier"] = false.into();
    });
    world.run_all();
    assert_eq!(leaving(&world), 60);
    world.speak();
    world.run_all();
    assert_eq!((leaving(&world), world.vips.values().filter(|vip| vip.spec.placement == 2).count()), (0, 60));
    assert_eq!(but_pools(world.pass(5)), []);
}

#[test]
fn a_drain_that_is_called_off_leaves_what_has_not_moved() {
    let mut world = crowd(200);
    drain(&mut world, "node1", "");
    world.run_all();
    drain(&mut world, "node1", "false");
    world.run_all();
    world.speak();
    world.run_all();
    let moved = world.vips.values().filter(|vip| vip.spec.placement > 1).count();
    assert_eq!((moved, leaving(&world)), (50, 0));
}

#[test]
fn a_controller_that_starts_amid_a_drain_goes_on_with_it() {
    let mut world = crowd(120);
    drain(&mut world, "node1", "true");
    world.run_all();
    world.restart();
    world.run_all();
    assert_eq!(leaving(&world), 50, "those that move already count");
    for _ in 0..4 {
        world.speak();
        world.run_all();
    }
    assert!(world.vips.values().all(|vip| vip.spec.assignments[0].node != "node1" && vip.spec.placement == 2));
}

#[test]
fn a_move_of_which_nothing_is_heard_is_asked_for_again_ever_more_rarely() {
    let mut world = World::new();
    world.bring_up(service("web"));
    drain(&mut world, "node1", "true");
    world.run();
    let mut asked = Vec::new();
    for tenth in 1..=3_000_u32 {
        if updates(&wait(&mut world, 1)) > 0 {
            asked.push((tenth, world.vips[VIP].spec.placement, primary(&world, VIP)));
        }
    }
    let times: Vec<u32> = asked.iter().map(|(at, ..)| *at).collect();
    assert_eq!(times, [15, 45, 105, 225, 465, 945, 1_545, 2_145, 2_745]);
    let placements: Vec<i64> = asked.iter().map(|(_, placement, _)| *placement).collect();
    assert!(placements.windows(2).all(|pair| pair[1] == pair[0] + 1), "{placements:?}");
    // Twice the same, then the next one: it may have better luck.
    assert_eq!(asked[..3].iter().map(|(.., node)| node.as_str()).collect::<Vec<_>>(), ["node2", "node2", "node3"]);
    assert!(world.roles(VIP).contains(&("node1".to_owned(), Role::Leaving)), "it answers all the while");
    world.speak();
    world.run();
    assert_eq!(leaving(&world), 0);
    assert_eq!(but_pools(wait(&mut world, 700)), []);
}

#[test]
fn who_has_said_why_it_does_not_announce_is_not_asked_again() {
    use ClaimState::{Blocked, LinkDown, Probing, Yielded};
    // A speaker without a link, or that asks a foreign host rarely, may speak of an earlier placement.
    for (state, placement, asked) in [
        (Blocked, 2, 0),
        (Probing, 2, 0),
        (LinkDown, 2, 0),
        (Blocked, 1, 0),
        (LinkDown, 1, 0),
        (Probing, 1, 1),
        (Yielded, 1, 1),
        (Yielded, 2, 1),
    ] {
        let mut world = World::new();
        world.bring_up(service("web"));
        drain(&mut world, "node1", "true");
        world.run();
        set_claim(&mut world, VIP, "node2", state, placement);
        assert_eq!(updates(&wait(&mut world, 40)), asked, "{state:?} {placement}");
    }
}

#[test]
fn a_primary_that_gave_up_is_asked_again() {
    let mut world = World::new();
    world.bring_up(service("web"));
    set_claim(&mut world, VIP, "node1", ClaimState::Yielded, 1);
    world.run();
    assert_eq!(updates(&wait(&mut world, 99)), 0, "who took over may say so late");
    assert_eq!(updates(&wait(&mut world, 1)), 1);
    assert_eq!((primary(&world, VIP).as_str(), world.vips[VIP].spec.placement), ("node1", 2));
    world.speak();
    world.run();
    assert_eq!(updates(&wait(&mut world, 700)), 0);
}

/// A speaker that restarts while a standby takes over says so before the standby does, and is not named again for that: the
/// address would move twice.
#[test]
fn a_primary_that_restarts_while_a_standby_takes_over_is_not_moved_back_to() {
    use ClaimState::{Owner, Probing, Yielded};
    for late in [0, 5, 14, 16, 40, 95] {
        let mut world = World::new();
        world.bring_up(service("web"));
        wait(&mut world, 300);
        set_claim(&mut world, VIP, "node1", Probing, 1);
        let mut changes = wait(&mut world, 2);
        set_claim(&mut world, VIP, "node1", Yielded, 1);
        changes.extend(wait(&mut world, late));
        assert_eq!(updates(&changes), 0, "{late} tenths of a second: {changes:?}");
        set_claim(&mut world, VIP, "node2", Owner, 1);
        let adopted = wait(&mut world, 700);
        assert_eq!(updates(&adopted), 1, "{adopted:?}");
        assert_eq!((primary(&world, VIP).as_str(), world.vips[VIP].spec.placement), ("node2", 1));
        assert_eq!(leaving(&world), 0);
    }
}

#[test]
fn a_new_address_whose_speaker_is_slow_costs_no_more_writes() {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    assert_eq!(updates(&wait(&mut world, 600)), 0);
}
