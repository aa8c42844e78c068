//! The API server, or somebody else, has it otherwise.

use serde_json::json;

use super::*;

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
fn what_a_standby_once_saw_is_no_conflict_while_the_primary_has_the_address_undisputed() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut vip = world.vips["192.0.2.64"].clone();
    let claims = &mut vip.status.as_mut().unwrap().claims;
    let seen = Claim {
        node: "node2".to_owned(),
        state: ClaimState::Blocked,
        conflict_mac: Some("02:00:00:00:ff:ff".to_owned()),
        ..claims[0].clone()
    };
    claims.insert(0, seen);
    world.put_vip(vip.clone());
    world.run();
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "Announced");
    // Without an owner it is what there is to say.
    vip.status.as_mut().unwrap().claims[1].state = ClaimState::Probing;
    world.put_vip(vip);
    world.run();
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "AddressConflict");
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
