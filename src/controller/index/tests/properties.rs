//! What holds whatever happens, and in whatever order.

use proptest::prelude::*;
use proptest::sample::Index as Pick;
use serde_json::json;

use super::{super::*, world::*};

#[derive(Clone, Debug)]
enum Step {
    Put(u8),
    Ask(u8, u8),
    Delete(u8),
    Type(u8),
    Kill(u8),
    Revive(u8),
    Drain(u8, bool),
    Exclude(u8, bool),
    /// The first standby of every address has lost sight of the owner and claims.
    TakeOver,
    Pool(u8),
    Speak,
    Pass(u8),
    Restart,
    /// So many writes are done, then the controller dies.
    Crash(u8),
    /// A write is done, but its answer is lost.
    Lose(u8),
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        4 => (0u8..6).prop_map(Step::Put),
        2 => (0u8..6, 0u8..5).prop_map(|(service, address)| Step::Ask(service, address)),
        2 => (0u8..6).prop_map(Step::Delete),
        1 => (0u8..6).prop_map(Step::Type),
        1 => (1u8..4).prop_map(Step::Kill),
        1 => (1u8..4).prop_map(Step::Revive),
        1 => (1u8..4, any::<bool>()).prop_map(|(node, on)| Step::Drain(node, on)),
        1 => (1u8..4, any::<bool>()).prop_map(|(node, on)| Step::Exclude(node, on)),
        1 => Just(Step::TakeOver),
        1 => (1u8..6).prop_map(Step::Pool),
        4 => Just(Step::Speak),
        2 => (1u8..20).prop_map(Step::Pass),
        1 => Just(Step::Restart),
        1 => (0u8..4).prop_map(Step::Crash),
        1 => (0u8..4).prop_map(Step::Lose),
    ]
}

fn do_step(world: &mut World, step: Step) {
    let name = |number: u8| format!("s{number}");
    match step {
        Step::Put(number) => world.put_service(service(&name(number))),
        Step::Ask(number, address) => {
            world.put_service(annotated(&name(number), "l2lb.io/addresses", &format!("192.0.2.{}", 64 + address)));
        }
        Step::Delete(number) => {
            if world.services.contains_key(&format!("default/{}", name(number))) {
                world.delete_service(&name(number));
            }
        }
        Step::Type(number) => {
            let mut service = service(&name(number));
            service["spec"]["type"] = "ClusterIP".into();
            world.put_service(service);
        }
        Step::Kill(node) => world.kill(&format!("node{node}")),
        Step::Revive(node) => {
            world.leases.insert(format!("node{node}"), 0);
        }
        Step::Drain(node, on) => {
            world.change_speaker(&format!("node{node}"), |speaker| speaker["status"]["draining"] = on.into());
        }
        Step::Exclude(node, on) => {
            let labels = if on { json!({ api::EXCLUDE_LABEL: "" }) } else { json!({}) };
            world.change_node(&format!("node{node}"), |node| node["metadata"]["labels"] = labels.clone());
        }
        Step::TakeOver => world.take_over(),
        Step::Pool(size) => {
            let addresses = format!("192.0.2.64-192.0.2.{}", 63 + size);
            world.put_pool(pool("lan", json!({ "addresses": [addresses] })));
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
            // The watch tells what the answer would have told.
            world.list();
        }
    }
}

/// Until nothing is left to do.
fn settle(world: &mut World) {
    for _ in 0..40 {
        world.run();
        world.speak();
        world.pass(1);
    }
}

fn shown(world: &World) -> BTreeMap<String, Vec<String>> {
    let names = world.services.keys().map(|key| key.trim_start_matches("default/").to_owned());
    names.map(|name| (name.clone(), world.shown(&name))).collect()
}

fn check(world: &World) -> Result<(), TestCaseError> {
    let mut users: BTreeMap<String, String> = BTreeMap::new();
    for (name, addresses) in shown(world) {
        for address in addresses {
            let other = users.insert(address.clone(), name.clone());
            prop_assert!(other.is_none(), "{} shown by {} and {:?}", address, name, other);
            let vip = world.vips.get(&address);
            prop_assert!(vip.is_some_and(|vip| vip.spec.services == [format!("default/{name}")]), "{:?}", vip);
        }
    }
    prop_assert_eq!(world.vips.len(), users.len());
    for (key, object) in &world.services {
        let name = key.trim_start_matches("default/");
        let wanted = object["spec"]["type"] == "LoadBalancer";
        let has = users.values().any(|user| user == name);
        prop_assert!(wanted || !has, "{} is no LoadBalancer", name);
        if wanted && !has {
            let (_, reason, _) = world.condition(name, api::CONDITION_ALLOCATED).unwrap();
            match reason.as_str() {
                "PoolExhausted" => {
                    let pool = &world.pools["lan"]["status"]["ipv4"];
                    prop_assert_eq!(pool["free"].as_str(), Some("0"));
                }
                "AddressInUse" | "AddressNotInPool" => {}
                other => prop_assert!(false, "{}: {}", name, other),
            }
        }
    }
    for (address, vip) in &world.vips {
        let with = |role| vip.spec.assignments.iter().filter(move |entry| entry.role == role);
        prop_assert!(with(Role::Primary).count() <= 1);
        for entry in &vip.spec.assignments {
            let labels = &world.nodes[&entry.node]["metadata"]["labels"];
            prop_assert!(labels.get(api::EXCLUDE_LABEL).is_none(), "{} is excluded: {:?}", entry.node, vip.spec);
        }
        // A hand-over ends, unless its target died and nobody else can take the address.
        let target_lives = with(Role::Primary).any(|entry| world.leases.contains_key(&entry.node));
        prop_assert!(!target_lives || with(Role::Leaving).count() == 0, "{} {:?}", address, vip.spec);
    }
    Ok(())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 150, ..ProptestConfig::default() })]

    #[test]
    fn every_history_ends_in_order_and_in_silence(steps in prop::collection::vec(step(), 1..40)) {
        let mut world = World::new();
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

    #[test]
    fn no_restart_changes_an_address(steps in prop::collection::vec(0u8..6, 1..10), crash in 0usize..12) {
        let mut world = World::new();
        for number in steps {
            world.put_service(service(&format!("s{number}")));
        }
        for _ in 0..crash {
            let Some((target, change)) = world.index.poll_change(world.now) else { break };
            let outcome = world.write(&change);
            world.index.handle_outcome(&target, outcome, world.now);
            world.speak();
        }
        let recorded: BTreeMap<String, String> =
            world.vips.iter().map(|(address, vip)| (vip.spec.services[0].clone(), address.clone())).collect();
        world.restart();
        settle(&mut world);
        for (service, address) in recorded {
            prop_assert_eq!(&world.vips[&address].spec.services, &vec![service]);
        }
        check(&world)?;
    }

    #[test]
    fn the_order_of_the_first_lists_does_not_matter(
        count in 1u8..8,
        cuts in prop::collection::vec(any::<Pick>(), 16),
    ) {
        let mut world = World::unlisted();
        for number in 0..count {
            let service = service(&format!("s{number}"));
            world.services.insert(format!("default/s{number}"), service);
        }
        let mut expected = World::unlisted();
        expected.services = world.services.clone();
        expected.list();
        settle(&mut expected);

        let mut lists = world.lists();
        for (at, cut) in cuts.iter().enumerate() {
            let (a, b) = (at % lists.len(), cut.index(lists.len()));
            lists.swap(a, b);
        }
        for input in lists {
            world.index.handle(input, world.now);
            world.run();
        }
        settle(&mut world);
        prop_assert_eq!(shown(&world), shown(&expected));
        let specs = |world: &World| world.vips.values().map(|vip| vip.spec.clone()).collect::<Vec<_>>();
        prop_assert_eq!(specs(&world), specs(&expected));
    }
}
