//! Many Services: what happens to one concerns no other.

use serde_json::json;

use super::{super::*, world::*};

/// So many Services, named in order, and these addresses for them.
fn many(count: usize, addresses: &str) -> World {
    let mut world = World::unlisted();
    world.pools.insert("lan".into(), pool("lan", json!({ "addresses": [addresses] })));
    for (number, speaker) in world.speakers.values_mut().enumerate() {
        speaker["status"]["interfaces"][0]["addresses"] = json!([format!("10.255.255.{}/8", 1 + number)]);
    }
    for number in 0..count {
        let name = name(number);
        world.services.insert(format!("default/{name}"), service(&name));
    }
    world.list();
    world
}

fn name(number: usize) -> String {
    format!("s{number:05}")
}

#[test]
fn what_becomes_free_goes_to_the_first_who_waits_and_nobody_else_hears_of_it() {
    let mut world = many(600, "10.0.0.1-10.0.1.44");
    world.run();
    world.speak();
    world.run();
    assert_eq!(world.vips.len(), 300);
    for number in 0..100 {
        world.delete_service(&name(number));
        let changes = but_pools(world.run());
        let [Change::UpdateVirtualIP { spec, .. }, Change::ServiceStatus(status), Change::ServiceEvent { .. }] =
            &changes[..]
        else {
            panic!("{changes:?}")
        };
        assert_eq!(spec.services, [format!("default/{}", name(300 + number))], "in the order of names");
        assert_eq!(status.name, name(300 + number));
    }
    // One that frees nothing wakes nobody.
    world.delete_service(&name(599));
    assert_eq!(but_pools(world.run()), []);
}

#[test]
fn no_event_is_forgotten_when_thousands_come_up_at_once() {
    let mut world = many(2_500, "10.0.0.0/16");
    world.run();
    world.speak();
    let changes = world.run();
    let statuses = changes.iter().filter(|change| matches!(change, Change::ServiceStatus(_))).count();
    assert_eq!((statuses, World::events(&changes).len()), (2_500, 2_500));
    world.restart();
    assert_eq!(but_pools(world.run()), []);
}
