//! From the first sight of a Service to its end, and what others do to it meanwhile.

use k8s_openapi::api::core::v1::Service;
use serde_json::{Value, json};

use super::{super::*, world::*};

fn classed(name: &str, class: &str) -> Value {
    let mut service = service(name);
    service["spec"]["loadBalancerClass"] = class.into();
    service
}

fn of_type(name: &str, type_: &str) -> Value {
    let mut service = service(name);
    service["spec"]["type"] = type_.into();
    service
}

/// The Service as the API server made it before the controller was there.
fn showing(mut service: Value, address: &str) -> Value {
    service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": address }] } });
    service
}

#[test]
fn a_service_that_is_made_anew_with_another_class_is_another_ones() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.delete_service("web");
    let mut again = classed("web", "example.com/other");
    again["metadata"]["uid"] = "uid-again".into();
    world.put_service(again);
    let changes = but_pools(world.run());
    assert!(matches!(&changes[..], [Change::DeleteVirtualIP { .. }]), "{changes:?}");
    assert!(world.shown("web").is_empty());
    // And back: it may get another address, since the old one rests.
    world.services.remove("default/web");
    world.index.handle(Input::Service(Delta::Delete("default/web".into(), "uid-again".into())), world.now);
    world.bring_up(service("web"));
    assert_eq!(world.shown("web"), ["192.0.2.65"]);
}

#[test]
fn a_service_made_anew_unseen_is_a_new_one() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut again = service("web");
    again["metadata"]["uid"] = "uid-again".into();
    world.services.remove("default/web");
    world.put_service(again);
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.shown("web"), ["192.0.2.64"], "nobody can tell, and nobody minds");
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "Announced");
}

#[test]
fn types_change_both_ways() {
    let mut world = World::new();
    for type_ in ["ClusterIP", "NodePort", "ExternalName"] {
        world.put_service(of_type("web", type_));
        assert_eq!(but_pools(world.run()), [], "{type_}");
        world.bring_up(service("web"));
        assert_eq!(world.shown("web").len(), 1, "{type_}");
        world.put_service(of_type("web", type_));
        world.run();
        assert!(world.shown("web").is_empty() && world.vips.is_empty(), "{type_}");
        assert_eq!(world.condition("web", api::CONDITION_ALLOCATED), None);
        assert_eq!(but_pools(world.pass(3)), [], "{type_}");
    }
}

#[test]
fn a_service_on_its_way_out_lets_go_at_once() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let mut deleting = service("web");
    deleting["metadata"]["deletionTimestamp"] = "2026-01-01T00:00:00Z".into();
    deleting["metadata"]["finalizers"] = json!(["example.com/slow"]);
    world.put_service(deleting);
    let changes = but_pools(world.run());
    assert!(world.vips.is_empty(), "{changes:?}");
    assert!(world.shown("web").is_empty(), "somebody else may have the address by now");
    assert_eq!(but_pools(world.pass(3)), []);
}

#[test]
fn a_namespace_goes_with_all_its_services() {
    let mut world = World::new();
    for number in 0..5 {
        world.put_service(service(&format!("s{number}")));
    }
    world.run();
    assert_eq!(world.vips.len(), 5);
    world.index.handle(Input::Namespace(Delta::Delete("default".to_owned(), String::new())), world.now);
    for number in 0..5 {
        world.delete_service(&format!("s{number}"));
    }
    let changes = but_pools(world.run());
    assert_eq!(changes.len(), 5, "{changes:?}");
    assert!(world.vips.is_empty());
}

#[test]
fn all_that_went_away_while_nobody_looked_is_noticed_at_the_start() {
    let mut world = World::new();
    for name in ["deleted", "typed", "reclassed", "stays"] {
        world.bring_up(service(name));
    }
    world.services.remove("default/deleted");
    // The API server takes status and class away with the type.
    world.services.get_mut("default/typed").unwrap()["spec"]["type"] = "ClusterIP".into();
    world.services.insert("default/reclassed".to_owned(), classed("reclassed", "example.com/other"));
    let mut changed = annotated("asks", "l2lb.io/addresses", "192.0.2.64");
    changed["metadata"]["resourceVersion"] = "1000".into();
    world.services.insert("default/asks".to_owned(), changed);
    world.restart();
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.vips.keys().collect::<Vec<_>>(), ["192.0.2.64", "192.0.2.67"]);
    assert_eq!(
        (world.shown("stays"), world.shown("asks")),
        (vec!["192.0.2.67".to_owned()], vec!["192.0.2.64".to_owned()])
    );
    assert!(world.shown("typed").is_empty() && world.shown("reclassed").is_empty());
}

#[test]
fn a_status_that_somebody_edits_is_put_right_without_a_word() {
    type Edit = fn(&mut Value);
    let edits: [(&str, Edit); 6] = [
        ("emptied", |service| service["status"] = json!({})),
        ("another address", |service| service["status"]["loadBalancer"]["ingress"] = json!([{ "ip": "10.0.0.1" }])),
        ("one more address", |service| {
            service["status"]["loadBalancer"]["ingress"].as_array_mut().unwrap().push(json!({ "ip": "192.0.2.99" }));
        }),
        ("a free address of the pool", |service| {
            service["status"]["loadBalancer"]["ingress"] = json!([{ "ip": "192.0.2.99", "ipMode": "VIP" }])
        }),
        ("a name", |service| service["status"]["loadBalancer"]["ingress"] = json!([{ "hostname": "web.example.com" }])),
        ("a condition", |service| service["status"]["conditions"][0]["message"] = "nonsense".into()),
    ];
    for (name, edit) in edits {
        let mut world = World::new();
        world.bring_up(service("web"));
        let right = world.services["default/web"]["status"].clone();
        edit(world.services.get_mut("default/web").unwrap());
        let edited = world.services["default/web"].clone();
        world.put_service(edited);
        let changes = but_pools(world.run());
        assert!(matches!(&changes[0], Change::ServiceStatus(_)), "{name}: {changes:?}");
        assert_eq!(world.services["default/web"]["status"], right, "{name}");
        assert_eq!(world.vips.keys().collect::<Vec<_>>(), ["192.0.2.64"], "{name}");
        if name != "emptied" {
            assert_eq!(World::events(&changes), Vec::<String>::new(), "{name}");
        }
    }
}

#[test]
fn what_another_load_balancer_gave_is_kept_where_a_pool_holds_it() {
    let mut world = World::unlisted();
    world.pools.insert(
        "lan".into(),
        pool("lan", json!({ "addresses": ["192.0.2.64/28", "2001:db8::/64"], "exclude": ["192.0.2.79"] })),
    );
    world.pools.insert("asked".into(), pool("asked", json!({ "addresses": ["192.0.2.200"], "autoAssign": false })));
    world.pools.insert("closed".into(), pool("closed", json!({ "addresses": ["192.0.2.210"], "namespaces": ["x"] })));
    let mut both = service("both");
    both["spec"]["ipFamilies"] = json!(["IPv4", "IPv6"]);
    both["spec"]["ipFamilyPolicy"] = "RequireDualStack".into();
    both["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": "192.0.2.70" }, { "ip": "2001:db8::70" }] } });
    let asks = showing(annotated("asks", "metallb.io/loadBalancerIPs", "192.0.2.71"), "192.0.2.71");
    for service in [
        showing(service("plain"), "192.0.2.69"),
        showing(service("asked-only"), "192.0.2.200"),
        showing(service("closed"), "192.0.2.210"),
        showing(service("excluded"), "192.0.2.79"),
        showing(service("foreign"), "10.0.0.1"),
        showing(service("twice"), "192.0.2.69"),
        showing(classed("theirs", "example.com/other"), "192.0.2.64"),
        both,
        asks,
    ] {
        let name = service["metadata"]["name"].as_str().unwrap().to_owned();
        world.services.insert(format!("default/{name}"), service);
    }
    world.list();
    let mut changes = world.run();
    world.speak();
    changes.extend(world.run());
    changes.extend(world.pass(3));
    for (name, shown) in [
        ("plain", vec!["192.0.2.69"]),
        ("asked-only", vec!["192.0.2.200"]),
        ("both", vec!["192.0.2.70", "2001:db8::70"]),
        ("asks", vec!["192.0.2.71"]),
        ("theirs", vec!["192.0.2.64"]),
    ] {
        assert_eq!(world.shown(name), shown, "{name}");
    }
    assert_eq!(world.condition("theirs", api::CONDITION_ALLOCATED), None);
    let events = World::events(&changes).join("\n");
    for (name, why) in [
        ("closed", "192.0.2.210 is in pool closed, which does not admit the Service: it is not for namespace default"),
        ("excluded", "192.0.2.79 is not in pools asked, lan"),
        ("foreign", "10.0.0.1 is not in pools asked, lan"),
        ("twice", "192.0.2.69 is in use by default/plain"),
    ] {
        let [new] = &world.shown(name)[..] else { panic!("{name}: {:?}", world.shown(name)) };
        let old = why.split(' ').next().unwrap();
        let told = format!("AddressChanged: {new} replaces {old}: {why}; {new} by ");
        assert!(events.contains(&told), "{name}: {told}\n{events}");
    }
    world.restart();
    assert_eq!(but_pools(world.pass(3)), []);
}

#[test]
fn what_another_load_balancer_gave_and_nobody_can_give_is_cleared_with_the_reason() {
    let mut world = World::unlisted();
    world.pools.clear();
    world.services.insert("default/web".to_owned(), showing(service("web"), "10.0.0.1"));
    world.list();
    world.pass(3);
    assert!(world.shown("web").is_empty());
    assert_eq!(world.condition("web", api::CONDITION_ALLOCATED).unwrap().1, "NoMatchingPool");
}

#[test]
fn external_ips_and_node_ports_make_no_difference() {
    let mut world = World::new();
    let mut service = service("web");
    service["spec"]["externalIPs"] = json!(["192.0.2.64"]);
    service["spec"]["allocateLoadBalancerNodePorts"] = false.into();
    let spec = service["spec"].clone();
    world.bring_up(service);
    assert_eq!(world.shown("web").len(), 1);
    assert_eq!(world.services["default/web"]["spec"], spec);
    assert_eq!(world.condition("web", api::CONDITION_ANNOUNCED).unwrap().1, "Announced");
}

#[test]
fn a_request_that_cannot_be_understood_takes_nothing_away() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_service(annotated("web", "l2lb.io/addresses", "192.0.2.300"));
    world.run();
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    let (status, reason, message) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!((status.as_str(), reason.as_str()), ("False", "InvalidRequest"));
    let wrong = "annotation l2lb.io/addresses: '192.0.2.300' is not an IP address";
    assert_eq!(message, format!("{wrong}; it keeps 192.0.2.64 from pool lan"));
    world.restart();
    assert_eq!(but_pools(world.pass(3)), []);
    world.put_service(service("web"));
    world.run();
    assert_eq!(world.condition("web", api::CONDITION_ALLOCATED).unwrap().1, "Allocated");
    // One that has nothing gets nothing.
    world.bring_up(annotated("new", "l2lb.io/addresses", "192.0.2.300"));
    assert!(world.shown("new").is_empty());
}

#[test]
fn a_request_says_where_the_address_is_that_cannot_be_had() {
    let mut world = World::new();
    world.put_pool(pool("closed", json!({ "addresses": ["192.0.2.201"], "namespaces": ["other"] })));
    world.put_pool(pool("asked", json!({ "addresses": ["192.0.2.200"], "autoAssign": false })));
    let both = |pool: &str, address: &str| {
        let mut service = service("web");
        service["metadata"]["annotations"] =
            json!({ "metallb.universe.tf/address-pool": pool, "l2lb.io/addresses": address });
        service
    };
    for (service, reason, message) in [
        (
            annotated("web", "metallb.universe.tf/loadBalancerIPs", "192.0.2.201"),
            "AddressNotInPool",
            "192.0.2.201 is in pool closed, which does not admit the Service: it is not for namespace default",
        ),
        (
            both("asked", "192.0.2.70"),
            "AddressNotInPool",
            "192.0.2.70 is in pool lan, but annotation metallb.universe.tf/address-pool asks for pool 'asked'",
        ),
        (both("asked", "10.0.0.1"), "AddressNotInPool", "10.0.0.1 is not in pool asked"),
    ] {
        world.bring_up(service);
        let (_, told, words) = world.condition("web", api::CONDITION_ALLOCATED).unwrap();
        assert_eq!((told.as_str(), words.as_str()), (reason, message));
    }
    world.bring_up(both("asked", "192.0.2.200"));
    assert_eq!(world.shown("web"), ["192.0.2.200"]);
}

#[test]
fn a_slice_that_comes_to_belong_to_another_service_leaves_the_first() {
    let mut world = World::new();
    for name in ["a", "b"] {
        let mut local = service(name);
        local["spec"]["externalTrafficPolicy"] = "Local".into();
        world.put_service(local);
    }
    world.put_slice("a", &["node3"]);
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.roles("192.0.2.64"), [("node3".to_owned(), Role::Primary)]);
    let mut slice = world.slices["default/a"].clone();
    slice["metadata"]["labels"]["kubernetes.io/service-name"] = "b".into();
    let view = SliceView::read(&read(&slice)).unwrap();
    world.index.handle(Input::Slice(Delta::Apply(view)), world.now);
    world.run();
    world.speak();
    world.pass(3);
    assert_eq!(world.condition("a", api::CONDITION_ANNOUNCED).unwrap().1, "NoEndpoint");
    assert_eq!(world.roles("192.0.2.65"), [("node3".to_owned(), Role::Primary)]);
}

#[test]
fn a_view_keeps_what_decides_and_nothing_else() {
    let mut service = service("web");
    let before = ServiceView::from(&read::<Service>(&service));
    service["metadata"]["annotations"] = json!({ "example.com/log": "line 1" });
    service["spec"]["externalIPs"] = json!(["192.0.2.64"]);
    assert_eq!(ServiceView::from(&read::<Service>(&service)), before);
}

#[test]
fn nothing_is_kept_of_objects_that_are_gone() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let node = world.roles("192.0.2.64")[0].0.clone();
    world.delete_service("web");
    // The watch is quicker than the answer to the write that removes the VirtualIP.
    world.run();
    assert!(world.vips.is_empty());
    world.nodes.remove(&node);
    world.index.handle(Input::Node(Delta::Delete(node, String::new())), world.now);
    world.run();
    let index = &world.index;
    assert!(index.written.keys().all(|target| !matches!(target, Target::VirtualIP(_) | Target::Service(_))));
    assert!(index.loads.is_empty(), "{:?}", index.loads);
}
