//! How dear decisions are with many addresses and nodes. Printed, not asserted: this machine may be busy.
//! `L2LB_ADDRESSES=5000 cargo test --lib controller::index::tests::speed -- --nocapture`

use std::time::Instant;

use serde_json::json;

use super::{super::*, world::*};

const NODES: usize = 50;

fn addresses() -> usize {
    std::env::var("L2LB_ADDRESSES").map_or(1_000, |number| number.parse().unwrap())
}

/// All that the index wants is done; the time that it took the index alone.
fn run_timed(world: &mut World) -> (usize, Duration) {
    let (mut changes, mut took) = (0, Duration::ZERO);
    loop {
        let begun = Instant::now();
        let next = world.index.poll_change(world.now);
        took += begun.elapsed();
        let Some((target, change)) = next else { return (changes, took) };
        let outcome = world.write(&change);
        let begun = Instant::now();
        world.index.handle_outcome(&target, outcome, world.now);
        took += begun.elapsed();
        changes += 1;
        assert!(changes < 500_000, "no end of changes: {change:?}");
    }
}

fn large() -> World {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["10.1.0.0/16"] })));
    for number in 1..=NODES {
        let name = format!("node{number}");
        let node = json!({
            "metadata": { "name": name, "uid": format!("uid-{name}") },
            "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
        });
        let mut speaker = world.speakers["node1"].clone();
        let text = speaker.to_string().replace("node1", &name);
        speaker = serde_json::from_str(&text).unwrap();
        let pods = json!({
            "name": "cni0", "mac": "02:00:00:00:02:01", "carrier": true, "announces": false,
            "addresses": [format!("10.2.{number}.1/24")],
        });
        speaker["status"]["interfaces"][0]["addresses"] = json!(["10.1.255.1/16"]);
        speaker["status"]["interfaces"].as_array_mut().unwrap().push(pods);
        world.nodes.insert(name.clone(), node);
        world.speakers.insert(name.clone(), speaker);
        world.leases.insert(name, 0);
    }
    for number in 0..addresses() {
        let name = format!("s{number:04}");
        world.services.insert(format!("default/{name}"), service(&name));
    }
    world.list();
    world
}

#[test]
fn thousands_of_addresses_on_many_nodes() {
    let mut world = large();
    let print = |what: &str, (changes, took): (usize, Duration)| {
        println!("{what}: {changes} writes, {took:.2?} of the index, {} addresses, {NODES} nodes", addresses());
    };
    let mut up = run_timed(&mut world);
    world.speak();
    let rest = run_timed(&mut world);
    up = (up.0 + rest.0, up.1 + rest.1);
    print("come up", up);

    let begun = Instant::now();
    world.change_node("node7", |node| node["metadata"]["labels"] = json!({ "any": "" }));
    let handled = begun.elapsed();
    let (changes, took) = run_timed(&mut world);
    assert_eq!(changes, 0);
    print("a Node's label changes", (changes, handled + took));

    world.change_speaker("node1", |speaker| speaker["status"]["draining"] = true.into());
    let mut drain = (0, Duration::ZERO);
    while world.vips.values().any(|vip| vip.spec.assignments.iter().any(|entry| entry.node == "node1")) {
        let (changes, took) = run_timed(&mut world);
        drain = (drain.0 + changes, drain.1 + took);
        world.speak();
    }
    print("a node with a fiftieth of them drains", drain);

    for number in 3..=NODES {
        world.kill(&format!("node{number}"));
    }
    world.pass_quietly(20);
    let dead = run_timed(&mut world);
    print("all but one of the others die", dead);
    assert!(world.vips.values().all(|vip| vip.spec.assignments[0].node == "node2"));
    world.speak();
    run_timed(&mut world);

    for number in 3..=NODES {
        world.leases.insert(format!("node{number}"), 0);
    }
    world.renew_now();
    print("they come back", run_timed(&mut world));
    world.change_speaker("node2", |speaker| speaker["status"]["draining"] = true.into());
    let mut drain = (0, Duration::ZERO);
    while world.vips.values().any(|vip| vip.spec.assignments.iter().any(|entry| entry.node == "node2")) {
        let (changes, took) = run_timed(&mut world);
        assert!(changes > 0);
        drain = (drain.0 + changes, drain.1 + took);
        world.speak();
    }
    print("a node with all of them drains", drain);
}
