//! The index against a small API server: exactly these writes, and then silence.

mod answers;
mod balance;
mod churn;
mod families;
mod keeping;
mod lifecycle;
mod living;
mod model;
mod moving;
mod properties;
mod quarantine;
mod reallocation;
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
fn services_that_ask_for_what_cannot_be_had_say_why() {
    let mut world = World::new();
    world.put_pool(pool("one", json!({ "addresses": ["192.0.2.200"], "autoAssign": false })));
    world.put_pool(pool("closed", json!({ "addresses": ["192.0.2.201"], "namespaces": ["other"] })));
    world.bring_up(annotated("first", "l2lb.io/pool", "one"));
    assert_eq!(world.shown("first"), ["192.0.2.200"]);
    let mut six = service("six");
    six["spec"]["ipFamilies"] = json!(["IPv6"]);
    let mut both = service("both");
    both["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    both["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    let mut field = service("field");
    field["spec"]["loadBalancerIP"] = "10.9.9.9".into();
    for (service, reason, message) in [
        (
            annotated("a", "l2lb.io/pool", "one"),
            "PoolExhausted",
            "no free IPv4 address is left in pool one; add addresses to the pool or remove a Service",
        ),
        (
            annotated("b", "l2lb.io/pool", "none"),
            "NoMatchingPool",
            "annotation l2lb.io/pool asks for pool 'none', which does not exist",
        ),
        (
            annotated("c", "l2lb.io/pool", "closed"),
            "NoMatchingPool",
            "annotation l2lb.io/pool asks for pool 'closed', which does not admit the Service: it is not for namespace default",
        ),
        (
            annotated("d", "metallb.io/loadBalancerIPs", "192.0.2.200"),
            "AddressInUse",
            "192.0.2.200 is in use by default/first",
        ),
        (
            annotated("e", "l2lb.io/addresses", "x"),
            "InvalidRequest",
            "annotation l2lb.io/addresses: 'x' is not an IP address",
        ),
        (
            annotated("f", "l2lb.io/addresses", "2001:db8::1"),
            "InvalidRequest",
            "annotation l2lb.io/addresses asks for 2001:db8::1, but spec.ipFamilies has no IPv6",
        ),
        (field, "AddressNotInPool", "10.9.9.9 is not in pools lan, one"),
        (six, "FamilyUnavailable", "no IPv6 addresses are in pool lan; add some to a pool or change spec.ipFamilies"),
        (both, "FamilyUnavailable", "no IPv6 addresses are in pool lan; add some to a pool or change spec.ipFamilies"),
    ] {
        let name = service["metadata"]["name"].as_str().unwrap().to_owned();
        let changes = but_pools(world.bring_up(service));
        let told = ("False".to_owned(), reason.to_owned(), message.to_owned());
        assert_eq!(world.condition(&name, api::CONDITION_ALLOCATED), Some(told), "{name}");
        assert!(world.shown(&name).is_empty());
        let [Change::ServiceStatus(_), Change::ServiceEvent { event, .. }] = &changes[..] else {
            panic!("{changes:?}")
        };
        assert_eq!((event.warning, event.reason, event.message.as_str()), (true, reason, message));
    }
    assert_eq!(but_pools(world.pass(5)), []);
    // The address becomes free: the one that asks for it goes before the one that waits for its pool.
    world.delete_service("first");
    let told = world.run().iter().filter(|change| matches!(change, Change::ServiceStatus(_))).count();
    assert_eq!(told, 1, "nobody else is told anything new");
    assert_eq!(world.shown("d"), ["192.0.2.200"]);
    world.delete_service("d");
    world.run();
    assert_eq!(world.shown("a"), ["192.0.2.200"]);
}

#[test]
fn a_service_that_asks_for_another_address_moves_to_it() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.bring_up(annotated("web", "l2lb.io/addresses", "192.0.2.99"));
    assert_eq!(world.shown("web"), ["192.0.2.99"]);
    assert_eq!(world.vips.keys().collect::<Vec<_>>(), ["192.0.2.99"]);
}

#[test]
fn without_any_pool_the_way_to_one_is_told() {
    let mut world = World::unlisted();
    world.pools.clear();
    world.list();
    world.bring_up(service("web"));
    let (_, reason, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("NoMatchingPool", "there is no IPPool; make one (kubectl explain ippool.spec)")
    );
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/26"] })));
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
}

#[test]
fn a_bad_range_is_named_in_the_pools_condition_and_the_rest_is_used() {
    let mut world = World::new();
    world.put_pool(pool("bad", json!({ "addresses": ["10.0.0.20", "10.0.0.9-10.0.0.1"], "priority": 1 })));
    world.run();
    let condition = &world.pools["bad"]["status"]["conditions"][0];
    assert_eq!((condition["status"].as_str(), condition["reason"].as_str()), (Some("False"), Some("InvalidSpec")));
    let message = "spec.addresses[1]: '10.0.0.9-10.0.0.1' ends before it starts; write 10.0.0.1-10.0.0.9";
    assert_eq!(condition["message"], message);
    world.bring_up(service("web"));
    world.pass(2);
    assert_eq!(world.shown("web"), ["10.0.0.20"]);
    world.bring_up(service("next"));
    assert_eq!(world.shown("next"), ["192.0.2.64"]);
    let shown = &world.pools["lan"]["status"];
    assert_eq!(shown["conditions"][0]["status"], "True");
    world.pass(2);
    assert_eq!(world.pools["lan"]["status"]["ipv4"], json!({ "total": "64", "used": "1", "free": "63" }));
}

#[test]
fn a_pool_whose_exclusions_cannot_be_read_hands_out_nothing() {
    let mut world = World::unlisted();
    world
        .pools
        .insert("lan".into(), pool("lan", json!({ "addresses": ["10.0.0.0/24"], "exclude": ["10.0.0.9-10.0.0.1"] })));
    world.list();
    world.bring_up(service("web"));
    assert!(world.vips.is_empty());
    let message = world.pools["lan"]["status"]["conditions"][0]["message"].as_str().unwrap();
    assert!(
        message.ends_with(
            "nothing is handed out until this is corrected, because what spec.exclude holds back is not known"
        ),
        "{message}"
    );
}

#[test]
fn the_younger_of_two_overlapping_pools_says_what_it_does_not_use() {
    let mut world = World::new();
    let mut younger = pool("a", json!({ "addresses": ["192.0.2.120-192.0.2.130"] }));
    younger["metadata"]["creationTimestamp"] = "2026-02-01T00:00:00Z".into();
    let mut older = pool("lan", json!({ "addresses": ["192.0.2.64/26"] }));
    older["metadata"]["creationTimestamp"] = "2026-01-01T00:00:00Z".into();
    world.put_pool(older);
    world.put_pool(younger);
    world.pass(2);
    let status = &world.pools["a"]["status"];
    let message = "192.0.2.120-192.0.2.127 is also in pool lan, which is older; it is not used here";
    assert_eq!(status["conditions"][0]["message"], message);
    assert_eq!(status["ipv4"]["total"], "3");
    assert_eq!(world.pools["lan"]["status"]["conditions"][0]["status"], "True");
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
fn a_failed_write_is_derived_anew_after_a_pause() {
    let mut world = World::new();
    world.put_service(service("web"));
    let fail = |world: &mut World| {
        let failed = world.now;
        let (target, change) = loop {
            match world.next_but_pools() {
                Some(next) => break next,
                None => world.now = world.index.poll_timeout().unwrap(),
            }
        };
        let pause = world.now - failed;
        assert!(matches!(change, Change::CreateVirtualIP { .. }), "{change:?}");
        assert_eq!(world.next_but_pools(), None, "one write for an object at a time");
        world.index.handle_outcome(&target, Outcome::Failed, world.now);
        assert_eq!(world.next_but_pools(), None);
        pause
    };
    let pauses: Vec<Duration> = (0..5).map(|_| fail(&mut world)).collect();
    assert!(pauses.windows(2).all(|pair| pair[1] > pair[0]), "{pauses:?}");
    world.pass(10);
    assert!(world.vips.contains_key("192.0.2.64"));
}

#[test]
fn a_conflict_is_looked_at_again_with_the_next_news() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.change_node("node1", |node| node["metadata"]["labels"] = json!({ api::EXCLUDE_LABEL: "" }));
    let (target, change) = world.index.poll_change(world.now).unwrap();
    assert!(matches!(change, Change::UpdateVirtualIP { .. }), "{change:?}");
    world.index.handle_outcome(&target, Outcome::Conflict, world.now);
    let vip = world.vips["192.0.2.64"].clone();
    world.put_vip(vip);
    let (_, again) = world.index.poll_change(world.now).unwrap();
    let Change::UpdateVirtualIP { resource_version, .. } = &again else { panic!("{again:?}") };
    assert_eq!(Some(resource_version), world.vips["192.0.2.64"].metadata.resource_version.as_ref());
}

#[test]
fn late_news_of_what_we_wrote_ourselves_makes_no_writes() {
    let mut world = World::new();
    world.put_service(service("web"));
    let before = ServiceView::from(&read::<k8s_openapi::api::core::v1::Service>(&world.services["default/web"]));
    world.run();
    let empty = VirtualIPView::read(&world.vips["192.0.2.64"]).unwrap();
    world.speak();
    world.run();
    world.index.handle(Input::Service(Delta::Apply(before)), world.now);
    world.index.handle(Input::VirtualIP(Delta::Apply(empty)), world.now);
    assert_eq!(but_pools(world.run()), []);
}

#[test]
fn what_the_api_server_does_not_keep_is_not_written_for_ever() {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    world.speak();
    let mut writes = 0;
    while let Some((target, change)) = world.index.poll_change(world.now) {
        let mut outcome = world.write(&change);
        if let Outcome::Service(view) = &mut outcome {
            view.shown_as_ours = false; // ipMode was dropped, say.
            writes += 1;
        }
        world.index.handle_outcome(&target, outcome, world.now);
        assert!(writes < 3);
    }
    assert_eq!(writes, 1);
}

#[test]
fn a_virtual_ip_that_somebody_removes_or_rewrites_is_put_right() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let old = world.vips.remove("192.0.2.64").unwrap();
    let gone = Delta::Delete("192.0.2.64".to_owned(), old.metadata.uid.clone().unwrap());
    world.index.handle(Input::VirtualIP(gone), world.now);
    world.run();
    assert_eq!(world.vips["192.0.2.64"].spec.assignments, old.spec.assignments);
    let mut edited = world.vips["192.0.2.64"].clone();
    edited.spec.services = vec!["default/other".to_owned()];
    world.put_vip(edited);
    world.run();
    assert_eq!(world.vips["192.0.2.64"].spec.services, ["default/web"]);
}

#[test]
fn a_foreign_host_on_the_address_is_reported_with_its_mac() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut vip = world.vips["192.0.2.64"].clone();
    let claim = &mut vip.status.as_mut().unwrap().claims[0];
    (claim.state, claim.conflict_mac) = (ClaimState::Blocked, Some("02:00:00:00:ff:ff".to_owned()));
    world.put_vip(vip);
    world.run();
    let (_, reason, message) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(reason, "AddressConflict");
    assert!(message.contains("02:00:00:00:ff:ff") && message.contains("seen by node1 on eth0"), "{message}");
}

#[test]
fn an_address_that_turns_out_to_be_taken_is_not_shown() {
    let mut world = World::new();
    world.put_service(service("web"));
    world.run();
    world.speak();
    let mut vip = world.vips["192.0.2.64"].clone();
    let claim = &mut vip.status.as_mut().unwrap().claims[0];
    // What a speaker says at once, seconds before it is sure that this is no new speaker.
    (claim.state, claim.conflict_mac) = (ClaimState::Probing, Some("02:00:00:00:ff:ff".to_owned()));
    world.put_vip(vip.clone());
    let changes = but_pools(world.run());
    assert!(matches!(&changes[..], [Change::ServiceStatus(_), Change::ServiceEvent { .. }]), "{changes:?}");
    let (_, reason, message) = world.condition("web", api::CONDITION_ANNOUNCED).unwrap();
    assert_eq!(reason, "AddressConflict");
    assert!(message.contains("02:00:00:00:ff:ff"), "{message}");
    assert_eq!(but_pools(world.pass(10)), []);
    assert!(world.shown("web").is_empty());
    // It was a new speaker, or the other host is gone.
    let claim = &mut vip.status.as_mut().unwrap().claims[0];
    (claim.state, claim.conflict_mac) = (ClaimState::Owner, None);
    world.put_vip(vip);
    world.run();
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "Announced");
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
fn services_with_one_key_share_an_address_and_its_virtual_ip() {
    let mut world = World::new();
    let mut second = annotated("b", "metallb.io/allow-shared-ip", "k");
    second["spec"]["ports"][0]["port"] = 443.into();
    world.bring_up(annotated("a", "l2lb.io/sharing-key", "k"));
    world.bring_up(second);
    assert_eq!(world.vips["192.0.2.64"].spec.services, ["default/a", "default/b"]);
    world.delete_service("a");
    world.run();
    assert_eq!(world.vips["192.0.2.64"].spec.services, ["default/b"]);
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
