//! Who lives, and what becomes of what the dead have left: claims, Leases, memory.

use serde_json::json;

use super::{super::*, world::*};
use crate::api::{Claim, ClaimState};

const VIP: &str = "192.0.2.64";

fn claims(world: &World, address: &str) -> Vec<String> {
    let status = world.vips[address].status.clone().unwrap_or_default();
    status.claims.into_iter().map(|claim| claim.node).collect()
}

/// Nothing was heard of the API server for so long.
fn outage(world: &mut World, seconds: u64) {
    world.index.handle_lease_watch_lost(world.now);
    let end = world.now + Duration::from_secs(seconds);
    while world.now < end {
        world.now += Duration::from_secs(1);
        world.run();
    }
}

fn back(world: &mut World) {
    let listed = world.leases.iter().map(|(node, mark)| lease(node, *mark)).collect();
    world.index.handle(Input::Lease(Delta::Reset(listed)), world.now);
}

#[test]
fn after_an_outage_only_those_are_dead_that_stay_silent() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.bring_up(service(name));
    }
    world.pass(5);
    let before: Vec<_> = world.vips.values().map(|vip| vip.spec.clone()).collect();
    outage(&mut world, 600);
    back(&mut world);
    world.run();
    let same = |world: &World| world.vips.values().map(|vip| vip.spec.clone()).collect::<Vec<_>>() == before;
    assert!(same(&world));
    // One of three speakers died meanwhile; the others come back one by one.
    world.kill("node1");
    world.pass(14);
    assert!(same(&world), "a full period for everybody");
    world.pass(2);
    for vip in world.vips.values() {
        assert!(vip.spec.assignments.iter().all(|entry| entry.node != "node1"), "{:?}", vip.spec);
    }
    let moved = world.vips.values().filter(|vip| vip.spec.placement == 2).count();
    assert_eq!(moved, 1, "what the others had stays with them");
}

#[test]
fn a_controller_that_starts_during_an_outage_of_the_speakers_moves_nothing_until_it_has_seen_for_itself() {
    let mut world = World::new();
    for name in ["a", "b", "c"] {
        world.bring_up(service(name));
    }
    world.pass(600);
    let before: Vec<_> = world.vips.values().map(|vip| vip.spec.clone()).collect();
    let specs = |world: &World| world.vips.values().map(|vip| vip.spec.clone()).collect::<Vec<_>>();
    // No speaker reaches the API server: their Leases are old, and stay so.
    let marks = std::mem::take(&mut world.leases);
    world.now += Duration::from_secs(3600);
    world.leases = marks.clone();
    world.restart();
    world.leases.clear();
    world.pass(120);
    assert_eq!(specs(&world), before, "nobody is left: it may be we who do not see");
    assert!(!claims(&world, VIP).is_empty(), "what they said last stays as well");
    // The first that is heard brings all of them back for a period, then it is the only one.
    world.leases.insert("node3".to_owned(), 0);
    world.pass(5);
    assert_eq!(specs(&world), before);
    world.leases = marks;
    world.pass(60);
    assert_eq!(specs(&world), before);
}

#[test]
fn the_claim_of_a_dead_node_is_taken_away_even_if_it_keeps_the_address() {
    let mut world = World::new();
    world.change_node("node1", |node| node["metadata"]["labels"] = json!({ "edge": "" }));
    let announce = json!({ "nodeSelector": { "matchLabels": { "edge": "" } } });
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"], "announce": announce })));
    world.bring_up(service("web"));
    world.kill("node1");
    world.pass(20);
    assert_eq!(world.roles(VIP), [("node1".to_owned(), Role::Primary)]);
    assert!(claims(&world, VIP).is_empty());
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "NoEligibleNode");
    // It lives, and says so again.
    world.leases.insert("node1".to_owned(), 0);
    world.pass(5);
    world.speak();
    world.run();
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "Announced");
    assert_eq!(but_pools(world.pass(30)), []);
}

#[test]
fn claims_of_nodes_without_a_part_are_taken_away_one_by_one() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut vip = world.vips[VIP].clone();
    let claims_there = &mut vip.status.as_mut().unwrap().claims;
    let own = claims_there[0].clone();
    for node in ["gone1", "gone2"] {
        claims_there.insert(0, Claim { node: node.to_owned(), state: ClaimState::Yielded, ..own.clone() });
    }
    world.put_vip(vip);
    let changes = but_pools(world.run());
    assert!(matches!(&changes[..], [Change::RemoveClaim { .. }, Change::RemoveClaim { .. }]), "{changes:?}");
    assert_eq!(claims(&world, VIP), ["node1"]);
}

#[test]
fn after_a_restore_placements_go_on_above_every_claim() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut vip = world.vips[VIP].clone();
    let claims = &mut vip.status.as_mut().unwrap().claims;
    // What node1 reports again is of a placement that the restored object does not know; node2 has seen a later one.
    claims[0].placement = 7;
    let yielded = Claim { node: "node2".to_owned(), state: ClaimState::Yielded, placement: 9, ..claims[0].clone() };
    claims.push(yielded);
    world.put_vip(vip);
    assert_eq!(but_pools(world.pass(5)), [], "who answers goes on");
    world.kill("node1");
    world.pass(20);
    assert_eq!((world.roles(VIP)[0].0.as_str(), world.vips[VIP].spec.placement), ("node2", 10));
}

#[test]
fn of_two_owners_the_one_counts_whose_claim_came_last_whatever_their_clocks_say() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut vip = world.vips[VIP].clone();
    let claims = &mut vip.status.as_mut().unwrap().claims;
    let late = Claim { node: "node2".to_owned(), since: read(&json!("2020-01-01T00:00:00Z")), ..claims[0].clone() };
    claims.insert(0, late);
    world.put_vip(vip);
    world.run();
    assert_eq!(world.roles(VIP)[0].0, "node2");
}

#[test]
fn a_node_that_answers_beside_the_owner_is_no_foreign_host() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut vip = world.vips[VIP].clone();
    let claim = &mut vip.status.as_mut().unwrap().claims[0];
    claim.conflict_mac = Some("02:00:00:00:01:03".to_owned());
    claim.reason = "node3 answers too, although it was announced against".to_owned();
    world.put_vip(vip.clone());
    world.run();
    let (status, reason, message) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "SplitClaim"));
    let words =
        "node1 (eth0, 02:00:00:00:01:01) answers for it, and so does node3 (02:00:00:00:01:03); node3 answers too";
    assert!(message.contains(words), "{message}");
    assert_eq!(world.shown("web"), [VIP], "it is announced all the same");
    // The same of a host that is none of the nodes.
    let claim = &mut vip.status.as_mut().unwrap().claims[0];
    claim.conflict_mac = Some("02:00:00:00:ff:03".to_owned());
    world.put_vip(vip);
    world.run();
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "AddressConflict");
}

#[test]
fn a_lease_is_tied_to_its_node_once() {
    let mut world = World::new();
    let untied = LeaseView { owner_nodes: BTreeSet::new(), ..lease("node2", 7) };
    world.index.handle(Input::Lease(Delta::Apply(untied.clone())), world.now);
    let tie = Change::LeaseOwner {
        namespace: "l2lb-system".to_owned(),
        node: "node2".to_owned(),
        node_uid: "uid-node2".to_owned(),
        lease_uid: "uid-lease-node2".to_owned(),
    };
    assert_eq!(but_pools(world.run()), [tie]);
    world.index.handle(Input::Lease(Delta::Apply(lease("node2", 8))), world.now);
    assert_eq!(but_pools(world.run()), []);
    // The Node was made anew under its name, and so was the Lease.
    world.change_node("node2", |node| node["metadata"]["uid"] = "uid-other".into());
    let changes = but_pools(world.run());
    assert!(
        changes.iter().any(|change| matches!(change, Change::LeaseOwner { node_uid, .. } if node_uid == "uid-other")),
        "{changes:?}"
    );
    // Of a node that is not there nothing can be tied.
    let stray = LeaseView { node: "stray".to_owned(), ..untied };
    world.index.handle(Input::Lease(Delta::Apply(stray)), world.now);
    assert_eq!(but_pools(world.run()), []);
}

#[test]
fn a_lease_that_is_gone_is_not_renewed_and_forgotten_with_its_node_only() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.pass(5);
    let deleted = || Input::Lease(Delta::Delete("l2lb-system/l2lb-speaker-node1".into(), "uid-lease-node1".into()));
    world.kill("node1");
    world.index.handle(deleted(), world.now);
    world.pass(14);
    assert_eq!(world.roles(VIP)[0].0, "node1", "that somebody deleted it says nothing of the speaker");
    world.pass(1);
    assert_eq!(world.roles(VIP)[0].0, "node2");
    assert_eq!(world.index.liveness.known(), 3);
    world.index.handle(Input::Node(Delta::Delete("node1".into(), String::new())), world.now);
    assert_eq!(world.index.liveness.known(), 2);
    // The other way round.
    world.index.handle(Input::Node(Delta::Delete("node3".into(), String::new())), world.now);
    assert_eq!(world.index.liveness.known(), 2);
    let listed = vec![lease("node2", 1)];
    world.index.handle(Input::Lease(Delta::Reset(listed)), world.now);
    assert_eq!(world.index.liveness.known(), 1);
}

#[test]
fn what_a_speaker_claimed_before_it_ended_is_taken_away_when_another_one_has_the_address() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let left = world.vips[VIP].status.clone().unwrap().claims[0].clone();
    world.change_speaker("node1", |speaker| speaker["status"]["draining"] = true.into());
    world.run();
    world.speak();
    // It ended before it could say that it yielded, and is back.
    let mut vip = world.vips[VIP].clone();
    vip.status.as_mut().unwrap().claims[0] = left;
    world.put_vip(vip);
    world.change_speaker("node1", |speaker| speaker["status"]["draining"] = false.into());
    world.run();
    assert!(world.roles(VIP).contains(&("node1".to_owned(), Role::Standby)), "{:?}", world.roles(VIP));
    let changes = but_pools(world.pass(9));
    assert!(!changes.iter().any(|change| matches!(change, Change::RemoveClaim { .. })), "it may say so itself");
    // That the owner's Node object is made anew, as kubelet does when it is gone, does not put it off for ever.
    world.index.handle(Input::Node(Delta::Delete("node2".into(), String::new())), world.now);
    world.change_node("node2", |_| {});
    let changes = but_pools(world.pass(15));
    assert!(matches!(&changes[..], [Change::RemoveClaim { node, .. }] if node == "node1"), "{changes:?}");
    assert_eq!(claims(&world, VIP), ["node2"]);
    assert_eq!(but_pools(world.pass(60)), []);
}

#[test]
fn a_controller_that_starts_gives_nothing_new_to_a_node_that_it_has_not_heard() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.kill("node3");
    world.pass(60);
    assert!(world.roles("192.0.2.64").iter().all(|(node, _)| node != "node3"), "{:?}", world.roles("192.0.2.64"));
    world.restart();
    assert_eq!(world.run(), []);
    assert_eq!(world.pass(8), [], "the others are heard");
    // Moved within that time, an address goes to one that is heard.
    world.change_node("node1", |node| node["metadata"]["labels"] = json!({ api::EXCLUDE_LABEL: "" }));
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.roles("192.0.2.64"), [("node2".to_owned(), Role::Primary)]);
    let changes = but_pools(world.pass(60));
    assert!(!changes.iter().any(|change| matches!(change, Change::UpdateVirtualIP { .. })), "{changes:?}");
}

#[test]
fn before_everything_is_listed_nobodys_death_wakes_the_controller() {
    let mut world = World::new();
    world.pass(5);
    // It leads anew, and some kind cannot be listed; whom it knew of are due to die meanwhile.
    let liveness = std::mem::take(&mut world.index).into_liveness();
    assert!(liveness.deadline().is_some());
    let mut index = Index::new(None).with_liveness(liveness);
    world.now += Duration::from_secs(60);
    assert_eq!(index.poll_change(world.now), None);
    assert_eq!(index.poll_timeout(), None, "it would be asked again at once, for ever");
}
