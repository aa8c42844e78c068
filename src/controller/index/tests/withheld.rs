//! What is never handed out: addresses of nodes, and the cluster's own ranges.

use serde_json::json;

use super::{super::*, world::*};

fn ready(world: &World, pool: &str) -> (String, String) {
    let condition = &world.pools[pool]["status"]["conditions"][0];
    let text = |field: &str| condition[field].as_str().unwrap().to_owned();
    (text("reason"), text("message"))
}

fn with_pool(addresses: &[&str]) -> World {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": addresses })));
    world.list();
    world.run();
    world
}

#[test]
fn an_address_of_a_node_is_not_handed_out_not_even_when_asked_for() {
    let mut world = with_pool(&["192.0.2.11-192.0.2.14"]);
    world.change_node("node1", |node| {
        node["status"]["addresses"] =
            json!([{ "type": "Hostname", "address": "node1" }, { "type": "InternalIP", "address": "192.0.2.11" }]);
    });
    world.change_node("node2", |node| {
        node["status"]["addresses"] = json!([{ "type": "ExternalIP", "address": "192.0.2.14" }]);
    });
    world.pass(2);
    let (reason, message) = ready(&world, "lan");
    assert_eq!(reason, "Overlap");
    assert_eq!(
        message,
        "192.0.2.11 is an address of node node1 (eth0); it is not used; \
         192.0.2.12 is an address of node node2 (eth0); it is not used; \
         192.0.2.13 is an address of node node3 (eth0); it is not used; \
         192.0.2.14 is an address of node node2; it is not used"
    );
    assert_eq!(world.pools["lan"]["status"]["ipv4"], json!(null), "there is nothing to give");
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.11-192.0.2.15"] })));
    world.bring_up(service("web"));
    assert_eq!(world.shown("web"), ["192.0.2.15"]);
    world.bring_up(annotated("asks", "l2lb.io/addresses", "192.0.2.12"));
    let (_, reason, message) = world.condition("asks", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!((reason.as_str(), message.as_str()), ("AddressInUse", "192.0.2.12 is an address of node node2 (eth0)"));
    // The node gets another address: who asks for this one gets it.
    world.change_speaker("node2", |speaker| {
        speaker["status"]["interfaces"][0]["addresses"] = json!(["192.0.2.99/24"]);
    });
    world.pass(3);
    assert_eq!(world.shown("asks"), ["192.0.2.12"]);
}

#[test]
fn the_clusters_own_ranges_are_not_handed_out() {
    let mut world = with_pool(&["10.96.0.0-10.96.0.3", "10.244.1.0/30", "192.0.2.64", "2001:db8:1::/126"]);
    world.put_service_range("kubernetes", &["10.96.0.0/12", "2001:db8:1::/112"]);
    world.change_node("node1", |node| node["spec"]["podCIDRs"] = json!(["10.244.1.0/24"]));
    world.change_node("node2", |node| node["spec"]["podCIDR"] = json!("10.244.2.0/24"));
    world.pass(2);
    let (reason, message) = ready(&world, "lan");
    assert_eq!(reason, "Overlap");
    assert_eq!(
        message,
        "10.244.1.0-10.244.1.3 is in 10.244.1.0/24, the pods of node node1; it is not used; 10.96.0.0-10.96.0.3 is in 10.96.0.0/12, \
         the cluster's own range for Services (ServiceCIDR kubernetes); it is not used; 2001:db8:1::-2001:db8:1::3 is in \
         2001:db8:1::/112, the cluster's own range for Services (ServiceCIDR kubernetes); it is not used"
    );
    assert_eq!(world.pools["lan"]["status"]["ipv4"]["total"], "1");
    assert_eq!(world.pools["lan"]["status"]["ipv6"], json!(null));
    for (name, address) in [("a", "10.96.0.1"), ("b", "10.244.1.2")] {
        world.bring_up(annotated(name, "l2lb.io/addresses", address));
        let (_, reason, message) = world.condition(name, api::CONDITION_ALLOCATED).unwrap();
        assert_eq!(reason, "AddressInUse");
        assert!(message.starts_with(&format!("{address} is in 10.")), "{message}");
    }
    world.bring_up(service("web"));
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
}

#[test]
fn what_is_in_use_is_not_taken_away_because_a_node_gets_the_address() {
    let mut world = World::new();
    world.bring_up(service("web"));
    let before = world.pools["lan"]["status"].clone();
    world.change_node("node1", |node| {
        node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "192.0.2.64" }]);
    });
    assert_eq!(but_pools(world.pass(60)), []);
    assert_eq!(world.shown("web"), ["192.0.2.64"]);
    assert_eq!(ready(&world, "lan").1, "192.0.2.64 is an address of node node1; it is not used");
    assert_eq!(world.pools["lan"]["status"]["ipv4"], json!({ "total": "64", "used": "1", "free": "63" }), "{before}");
    world.restart();
    assert_eq!(world.run(), []);
    // Who leaves it does not get it back.
    world.delete_service("web");
    world.pass(301);
    world.bring_up(service("web"));
    assert_eq!(world.shown("web"), ["192.0.2.65"]);
    assert_eq!(world.pools["lan"]["status"]["ipv4"]["total"], "63");
}

#[test]
fn what_kube_proxy_puts_on_nodes_is_no_address_of_theirs() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.pass(2);
    let add = |name: &'static str, address: &'static str| {
        move |speaker: &mut serde_json::Value| {
            let interface = json!({ "name": name, "carrier": true, "addresses": [address] });
            speaker["status"]["interfaces"].as_array_mut().unwrap().push(interface);
        }
    };
    world.change_speaker("node1", add("kube-ipvs0", "192.0.2.80/32"));
    assert_eq!(world.pass(2), [], "IPVS holds the addresses of all Services");
    // Another program holds the address of a Service on an interface of its own, as long as the Service has it.
    world.change_speaker("node2", add("vip0", "192.0.2.64/32"));
    assert_eq!(world.pass(2), []);
    world.delete_service("web");
    world.pass(2);
    assert_eq!(ready(&world, "lan").1, "192.0.2.64 is an address of node node2 (vip0); it is not used");
}

#[test]
fn an_address_shown_at_the_start_is_adopted_unless_it_is_a_nodes_own() {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["192.0.2.11", "192.0.2.64-192.0.2.70"] })));
    for (name, address) in [("klipper", "192.0.2.11"), ("vip", "192.0.2.70")] {
        let mut service = service(name);
        service["status"] = json!({ "loadBalancer": { "ingress": [{ "ip": address }] } });
        world.services.insert(format!("default/{name}"), service);
    }
    // One load balancer shows addresses of nodes, another puts the Service's address on the node's interface.
    world.nodes.get_mut("node1").unwrap()["status"]["addresses"] =
        json!([{ "type": "InternalIP", "address": "192.0.2.11" }]);
    world.speakers.get_mut("node2").unwrap()["status"]["interfaces"][0]["addresses"] =
        json!(["192.0.2.12/24", "192.0.2.70/32"]);
    world.list();
    world.run();
    world.speak();
    world.run();
    assert_eq!(
        (world.shown("klipper"), world.shown("vip")),
        (vec!["192.0.2.64".to_owned()], vec!["192.0.2.70".to_owned()])
    );
}

#[test]
fn a_pool_of_a_slash_64_is_counted_to_the_last_address() {
    let mut world = with_pool(&["2001:db8:1::/64"]);
    world.change_node("node1", |node| {
        node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": "2001:db8:1::1" }]);
    });
    let mut six = service("six");
    six["spec"]["ipFamilies"] = json!(["IPv6"]);
    world.put_service(six);
    world.pass(4);
    assert_eq!(world.shown("six"), ["2001:db8:1::"]);
    let counts = json!({ "total": "18446744073709551615", "used": "1", "free": "18446744073709551614" });
    assert_eq!(world.pools["lan"]["status"]["ipv6"], counts);
}

#[test]
fn what_no_host_can_have_is_not_handed_out() {
    let mut world = with_pool(&["0.0.0.0/1", "224.0.0.0/8", "255.255.255.255", "::-::2", "fe80::/64", "ff02::/64"]);
    world.pass(2);
    let (reason, message) = ready(&world, "lan");
    assert_eq!(reason, "Overlap");
    for sentence in [
        "0.0.0.0-0.255.255.255 is in 0.0.0.0/8, which no host can have; it is not used",
        "127.0.0.0-127.255.255.255 is in 127.0.0.0/8, the loopback of every host; it is not used",
        "224.0.0.0-224.255.255.255 is in 224.0.0.0/4, which is for multicast; it is not used",
        "255.255.255.255 is the broadcast address of every network; it is not used",
        ":: is no address of a host; it is not used",
        "::1 is the loopback of every host; it is not used",
        "fe80::-fe80::ffff:ffff:ffff:ffff is in fe80::/10, which is link-local and means nothing without an interface",
        "ff02::-ff02::ffff:ffff:ffff:ffff is in ff00::/8, which is for multicast; it is not used",
    ] {
        assert!(message.contains(sentence), "{sentence}: {message}");
    }
    world.bring_up(annotated("asks", "l2lb.io/addresses", "224.0.0.5"));
    let (_, reason, message) = world.condition("asks", api::CONDITION_ALLOCATED).unwrap();
    assert_eq!(
        (reason.as_str(), message.as_str()),
        ("AddressInUse", "224.0.0.5 is in 224.0.0.0/4, which is for multicast")
    );
    world.bring_up(service("web"));
    world.pass(3);
    assert_eq!(world.shown("web"), ["1.0.0.0"]);
}

#[test]
fn the_first_and_the_last_address_of_a_nodes_subnet_are_not_handed_out() {
    let mut world = with_pool(&["192.0.2.0", "192.0.2.254-192.0.3.0"]);
    world.pass(2);
    let (reason, message) = ready(&world, "lan");
    assert_eq!(reason, "Overlap");
    assert_eq!(
        message,
        "192.0.2.0 is the network address of 192.0.2.0/24, the subnet of node node1 (eth0); it is not used; \
         192.0.2.255 is the broadcast address of 192.0.2.0/24, the subnet of node node1 (eth0); it is not used"
    );
    for name in ["a", "b"] {
        world.bring_up(service(name));
    }
    world.pass(3);
    assert_eq!((world.shown("a"), world.shown("b")), (vec!["192.0.2.254".to_owned()], vec!["192.0.3.0".to_owned()]));
    // Two hosts on a line of their own.
    for node in ["node1", "node2", "node3"] {
        world.change_speaker(node, |speaker| {
            speaker["status"]["interfaces"][0]["addresses"] = json!(["192.0.2.254/31"]);
        });
    }
    world.pass(2);
    world.bring_up(service("c"));
    world.pass(3);
    assert_eq!(world.shown("c"), ["192.0.2.0"]);
}

#[test]
fn a_service_is_told_why_its_pool_has_nothing_to_give() {
    let mut world = with_pool(&["10.96.0.0/24"]);
    world.put_service_range("kubernetes", &["10.96.0.0/12"]);
    let broken = json!({ "matchExpressions": [{ "key": "a", "operator": "Is", "values": ["b"] }] });
    world.put_pool(pool(
        "halted",
        json!({ "addresses": ["192.0.2.64"], "serviceSelector": broken, "autoAssign": false }),
    ));
    world.put_pool(pool("bad", json!({ "addresses": ["192.0.2.9-192.0.2.1"], "autoAssign": false })));
    world.pass(2);
    let told = |world: &mut World, pool: &str| {
        world.bring_up(annotated(pool, "l2lb.io/pool", pool));
        let (_, reason, message) = world.condition(pool, api::CONDITION_ALLOCATED).unwrap();
        (reason, message)
    };
    let (reason, message) = told(&mut world, "lan");
    assert_eq!(reason, "PoolExhausted");
    assert_eq!(
        message,
        "no free IPv4 address is left in pool lan; add addresses to the pool or remove a Service; pool lan is not Ready: 10.96.0.0-10.96.0.255 \
         is in 10.96.0.0/12, the cluster's own range for Services (ServiceCIDR kubernetes); it is not used"
    );
    let (reason, message) = told(&mut world, "halted");
    assert_eq!(reason, "PoolExhausted");
    assert_eq!(
        message,
        "no free IPv4 address is left in pool halted; add addresses to the pool or remove a Service; pool halted is not Ready: \
         spec.serviceSelector: 'Is' is no operator; write In, NotIn, Exists or DoesNotExist; nothing is handed out until this is corrected, \
         because whom it is for is not known"
    );
    let (reason, message) = told(&mut world, "bad");
    assert_eq!(reason, "FamilyUnavailable");
    assert_eq!(
        message,
        "no IPv4 addresses are in pool bad; add some to a pool or change spec.ipFamilies; pool bad is not Ready: \
         spec.addresses[0]: '192.0.2.9-192.0.2.1' ends before it starts; write 192.0.2.1-192.0.2.9"
    );
    world.put_pool(pool("bad", json!({ "addresses": ["192.0.2.9"], "autoAssign": false })));
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.shown("bad"), ["192.0.2.9"]);
}

#[test]
fn a_pool_that_excludes_all_that_it_lists_says_so() {
    let mut world = with_pool(&["192.0.2.64/30"]);
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.64/30"], "exclude": ["192.0.2.0/24"] })));
    world.pass(2);
    let nothing = "spec.exclude takes out all of spec.addresses; leave something to give".to_owned();
    assert_eq!(ready(&world, "lan"), ("InvalidSpec".to_owned(), nothing));
    world.put_pool(pool("lan", json!({ "addresses": ["192.0.2.0", "192.0.2.255"], "avoidBuggyIPs": true })));
    world.pass(2);
    let nothing = "spec.avoidBuggyIPs leaves out all of spec.addresses; leave something to give".to_owned();
    assert_eq!(ready(&world, "lan"), ("InvalidSpec".to_owned(), nothing));
}

#[test]
fn a_request_that_is_put_right_is_told_of() {
    let mut world = World::new();
    world.bring_up(service("web"));
    world.put_service(annotated("web", "l2lb.io/addresses", "192.0.2.x"));
    let events = |changes: Vec<Change>| -> Vec<(bool, &'static str, String)> {
        let events = changes.into_iter().filter_map(|change| match change {
            Change::ServiceEvent { event, .. } => Some((event.warning, event.reason, event.message)),
            _ => None,
        });
        events.collect()
    };
    let wrong = events(world.run());
    assert_eq!((wrong.len(), wrong[0].1), (1, "InvalidRequest"));
    world.put_service(annotated("web", "l2lb.io/addresses", "192.0.2.64"));
    assert_eq!(events(world.run()), [(false, "Allocated", "192.0.2.64 from pool lan".to_owned())]);
    assert_eq!(events(world.pass(60)), []);
}
