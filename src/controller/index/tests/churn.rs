//! Random histories of everything that decides about addresses: pools, requests, sharing, families, foreign hosts, node addresses.

use proptest::prelude::*;
use serde_json::{Value, json};

use super::{super::*, world::*};

#[derive(Clone, Debug)]
enum Step {
    Plain(u8),
    Ask(u8, u8),
    Share(u8, u8, u8),
    Families(u8, bool, bool),
    Local(u8, u8),
    Garble(u8),
    Delete(u8),
    ClusterIp(u8),
    /// The pool holds these, and leaves the middle out.
    Lan(u8, bool),
    /// One more pool, of both families, or none.
    Second(Option<u8>),
    NoLan,
    NodeHas(u8),
    /// A foreign host answers for this one of the addresses in use, and is gone again.
    Block(u8),
    Unblock,
    Kill(u8),
    Revive(u8),
    Speak,
    Pass(u8),
    Restart,
    Crash(u8),
    Lose(u8),
}

fn step() -> impl Strategy<Value = Step> {
    let service = || 0u8..6;
    prop_oneof![
        4 => service().prop_map(Step::Plain),
        2 => (service(), 0u8..8).prop_map(|(service, address)| Step::Ask(service, address)),
        3 => (service(), 0u8..2, 0u8..3).prop_map(|(service, key, port)| Step::Share(service, key, port)),
        2 => (service(), any::<bool>(), any::<bool>()).prop_map(|(service, six, all)| Step::Families(service, six, all)),
        1 => (service(), 0u8..2).prop_map(|(service, key)| Step::Local(service, key)),
        1 => service().prop_map(Step::Garble),
        2 => service().prop_map(Step::Delete),
        1 => service().prop_map(Step::ClusterIp),
        2 => (1u8..7, any::<bool>()).prop_map(|(size, hole)| Step::Lan(size, hole)),
        2 => prop::option::of(0u8..6).prop_map(Step::Second),
        1 => Just(Step::NoLan),
        1 => (0u8..8).prop_map(Step::NodeHas),
        2 => (0u8..8).prop_map(Step::Block),
        1 => Just(Step::Unblock),
        1 => (1u8..4).prop_map(Step::Kill),
        1 => (1u8..4).prop_map(Step::Revive),
        4 => Just(Step::Speak),
        3 => (1u8..40).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => (0u8..5).prop_map(Step::Crash),
        1 => (0u8..5).prop_map(Step::Lose),
    ]
}

fn name(number: u8) -> String {
    format!("s{number}")
}

fn sharing(number: u8, key: u8, port: u8) -> Value {
    let mut service = annotated(&name(number), "l2lb.io/sharing-key", &format!("k{key}"));
    service["spec"]["ports"][0]["port"] = (80 + u16::from(port)).into();
    service
}

fn do_step(world: &mut World, step: Step) {
    match step {
        Step::Plain(number) => world.put_service(service(&name(number))),
        Step::Ask(number, address) => {
            world.put_service(annotated(&name(number), "l2lb.io/addresses", &format!("192.0.2.{}", 64 + address)));
        }
        Step::Share(number, key, port) => world.put_service(sharing(number, key, port)),
        Step::Families(number, six_first, all) => {
            let mut service = service(&name(number));
            service["spec"]["ipFamilies"] = if six_first { json!(["IPv6", "IPv4"]) } else { json!(["IPv4", "IPv6"]) };
            service["spec"]["ipFamilyPolicy"] = if all { "RequireDualStack" } else { "PreferDualStack" }.into();
            world.put_service(service);
        }
        Step::Local(number, key) => {
            let mut service = sharing(number, key, number);
            service["spec"]["externalTrafficPolicy"] = "Local".into();
            service["spec"]["selector"] = json!({ "app": "shared" });
            world.put_service(service);
        }
        Step::Garble(number) => world.put_service(annotated(&name(number), "l2lb.io/addresses", "192.0.2.0/33")),
        Step::Delete(number) => {
            if world.services.contains_key(&format!("default/{}", name(number))) {
                world.delete_service(&name(number));
            }
        }
        Step::ClusterIp(number) => {
            let mut service = service(&name(number));
            service["spec"]["type"] = "ClusterIP".into();
            world.put_service(service);
            // The API server takes it away with the type.
            let key = format!("default/{}", name(number));
            if let Some(status) = world.services.get_mut(&key).and_then(|service| service["status"].as_object_mut()) {
                status.remove("loadBalancer");
            }
            let seen = world.services[&key].clone();
            world.put_service(seen);
        }
        Step::Lan(size, hole) => {
            let addresses = format!("192.0.2.64-192.0.2.{}", 63 + size);
            let exclude = if hole { json!(["192.0.2.65-192.0.2.66"]) } else { json!([]) };
            world.put_pool(pool("lan", json!({ "addresses": [addresses], "exclude": exclude })));
        }
        Step::Second(Some(first)) => {
            let four = format!("192.0.2.{}-192.0.2.72", 64 + first);
            world.put_pool(pool("second", json!({ "addresses": [four, "2001:db8::-2001:db8::2"] })));
        }
        Step::Second(None) if world.pools.contains_key("second") => world.remove_pool("second"),
        Step::NoLan if world.pools.contains_key("lan") => world.remove_pool("lan"),
        Step::Second(None) | Step::NoLan => {}
        Step::NodeHas(address) => world.change_node("node1", |node| {
            let address = format!("192.0.2.{}", 64 + address);
            node["status"]["addresses"] = json!([{ "type": "InternalIP", "address": address }]);
        }),
        Step::Block(which) => {
            let assigned = world.vips.values().filter(|vip| !vip.spec.assignments.is_empty());
            let addresses: Vec<String> = assigned.map(|vip| vip.spec.address.clone()).collect();
            if !addresses.is_empty() {
                world.block(&addresses[usize::from(which) % addresses.len()], "02:00:00:00:ff:ff");
            }
        }
        Step::Unblock => {
            let blocked = world.vips.values().find(|vip| {
                let claims = vip.status.iter().flat_map(|status| &status.claims);
                claims.into_iter().any(|claim| claim.state == ClaimState::Blocked)
            });
            if let Some(address) = blocked.map(|vip| vip.spec.address.clone()) {
                world.unblock(&address);
            }
        }
        Step::Kill(node) => world.kill(&format!("node{node}")),
        Step::Revive(node) => {
            world.leases.insert(format!("node{node}"), 0);
        }
        Step::Speak => world.speak(),
        Step::Pass(seconds) => {
            world.pass(seconds.into());
        }
        Step::Restart => world.restart(),
        Step::Crash(writes) => {
            for _ in 0..writes {
                if let Some((_, change)) = world.index.poll_change(world.now) {
                    world.write(&change);
                }
            }
            world.restart();
        }
        Step::Lose(writes) => {
            for _ in 0..writes {
                if let Some((target, change)) = world.index.poll_change(world.now) {
                    world.write(&change);
                    world.index.handle_outcome(&target, Outcome::Failed, world.now);
                }
            }
            world.list();
        }
    }
}

fn settle(world: &mut World) {
    for _ in 0..45 {
        world.run();
        world.speak();
        world.pass(1);
    }
}

fn shown(world: &World) -> BTreeMap<String, Vec<String>> {
    let names = world.services.keys().map(|key| key.trim_start_matches("default/").to_owned());
    names.map(|name| (name.clone(), world.shown(&name))).collect()
}

/// What has to hold when all has come to rest.
fn check(world: &World) -> Result<(), TestCaseError> {
    world.check_shown();
    let read_service =
        |key: &str| ServiceView::from(&read::<k8s_openapi::api::core::v1::Service>(&world.services[key]));
    for (name, vip) in &world.vips {
        let users = &vip.spec.services;
        let claims = vip.status.iter().flat_map(|status| &status.claims);
        let owned = claims.into_iter().any(|claim| claim.state == ClaimState::Owner);
        prop_assert!(!users.is_empty() || !owned, "a quarantine that is over: {} {:?}", name, vip);
        for user in users {
            prop_assert!(world.services.contains_key(user), "{} of {}, which is gone", name, user);
            let one = read_service(user).wanted_use;
            for other in users.iter().filter(|other| *other != user) {
                let other = read_service(other).wanted_use;
                prop_assert!(one.sharing_key.is_some() && one.sharing_key == other.sharing_key);
                prop_assert!(one.ports.intersection(&other.ports).next().is_none() && one.backend == other.backend);
            }
        }
        let address: IpAddr = vip.spec.address.parse().unwrap();
        let held = world
            .pools
            .values()
            .any(|pool| crate::ipam::Pool::new(PoolView::from(&read::<api::IPPool>(pool)).config).lists(address));
        prop_assert!(held, "{} is in no pool: {:?}", name, vip);
    }
    for (key, object) in &world.services {
        let name = key.trim_start_matches("default/");
        let service = read_service(key);
        let Some((status, reason, message)) = world.condition(name, api::CONDITION_ALLOCATED) else {
            prop_assert!(!service.is_load_balancer, "{} was not told anything: {}", name, object);
            continue;
        };
        prop_assert!(service.is_load_balancer);
        let mine: Vec<&String> =
            world.vips.values().filter(|vip| vip.spec.services.contains(key)).map(|vip| &vip.spec.address).collect();
        prop_assert!(status == "False" || !mine.is_empty(), "{}", name);
        let asked = service.request.as_ref().map(|request| request.addresses.clone()).unwrap_or_default();
        for address in &service.shown {
            prop_assert!(mine.contains(&&address.to_string()), "{} shows {}", name, address);
        }
        for address in asked.iter().filter(|_| status == "True") {
            prop_assert!(mine.contains(&&address.to_string()), "{} asked for {}", name, address);
        }
        match reason.as_str() {
            "PoolExhausted" => {
                let family = if message.contains("no free IPv4") { "ipv4" } else { "ipv6" };
                for pool in world.pools.values() {
                    let free = &pool["status"][family]["free"];
                    prop_assert!(free.is_null() || free == "0", "{}: {} {}", name, message, pool);
                }
            }
            "Allocated" => prop_assert_eq!(status, "True"),
            "NoMatchingPool" => prop_assert!(world.pools.is_empty()),
            "AddressInUse" | "AddressNotInPool" | "SharingMismatch" | "PortCollision" => {
                prop_assert!(!asked.is_empty())
            }
            "FamilyUnavailable" | "InvalidRequest" => {}
            other => prop_assert!(false, "{}: {}", name, other),
        }
    }
    // Every count is exact.
    for (name, pool) in &world.pools {
        for family in ["ipv4", "ipv6"] {
            let count =
                |field: &str| pool["status"][family][field].as_str().map_or(0, |text| text.parse::<u64>().unwrap());
            prop_assert_eq!(count("total"), count("used") + count("free"), "{} {}", name, pool);
        }
    }
    let used: u64 = world
        .pools
        .values()
        .flat_map(|pool| [&pool["status"]["ipv4"]["used"], &pool["status"]["ipv6"]["used"]])
        .filter_map(|text| text.as_str()?.parse::<u64>().ok())
        .sum();
    prop_assert_eq!(used, world.vips.len() as u64);
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: ProptestConfig::default().cases / 2, ..ProptestConfig::default() })]

    #[test]
    fn every_history_of_addresses_ends_in_order_and_in_silence(steps in prop::collection::vec(step(), 1..50)) {
        let mut world = World::new();
        world.checks_shown = true;
        for step in steps {
            do_step(&mut world, step);
        }
        settle(&mut world);
        check(&world)?;
        prop_assert_eq!(world.pass(5), vec![]);
        let before = shown(&world);
        world.restart();
        prop_assert_eq!(world.run(), vec![], "a restart at rest");
        settle(&mut world);
        prop_assert_eq!(shown(&world), before);
    }
}
