//! What Services ask for and what pools say of themselves.

use serde_json::json;

use super::*;

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
