//! Single cases with one point each, played from many seeds.

use std::time::Duration;

use l2lb::{api::FailoverClass, speaker::owner::Timing};

use crate::{
    history::{Event, FAMILIES, Fault, History, MS},
    node::{Process, mac},
    world::World,
};

/// A LAN that has come up.
pub fn at_rest(seed: u64, nodes: usize, vips: usize, events: &[Event], timing: Timing) -> World {
    let families = FAMILIES[(seed % 3) as usize];
    let history = History { seed, nodes, vips, families, loss: 0, delay: 2 * MS, events: events.to_vec() };
    let mut world = World::new(&history, timing, true);
    world.run_until(5_500 * MS);
    world
}

pub fn plain(seed: u64, nodes: usize, vips: usize) -> World {
    at_rest(seed, nodes, vips, &[], Timing::default())
}

pub fn owner_of(world: &World, vip: usize) -> usize {
    let answering = world.answering(vip);
    assert_eq!(answering.len(), 1, "{answering:?} answer for vip{vip}\n{}", world.log().join("\n"));
    answering[0]
}

pub fn sound(world: &World) {
    assert!(world.violation.is_none(), "{:?}\n{}", world.violation, world.log().join("\n"));
}

pub fn kill(world: &mut World, node: usize) {
    world.nodes[node].process = Process::Dead;
    world.nodes[node].life += 1;
}

#[test]
fn the_first_standby_takes_over_as_a_rule_and_the_second_where_that_one_is_dead() {
    let mut by_the_first = 0;
    for seed in 0..200 {
        let mut world = plain(seed, 3, 1);
        world.run_until(world.now + seed * 7 * MS);
        world.controller.away = true;
        kill(&mut world, 0);
        world.run_until(world.now + 1_000 * MS);
        by_the_first += u32::from(owner_of(&world, 0) == 1);
        sound(&world);

        let mut world = plain(seed, 3, 1);
        kill(&mut world, 0);
        kill(&mut world, 1);
        world.run_until(world.now + 1_000 * MS);
        assert_eq!(owner_of(&world, 0), 2);
    }
    // Each asks in a rhythm of its own, up to an interval apart, and the second waits half an interval.
    assert!(by_the_first >= 150, "{by_the_first} of 200");
}

#[test]
fn a_node_that_comes_back_does_not_take_its_addresses_back() {
    for seed in 0..50 {
        let crash = Event { at: 6_000 * MS, lasts: 3_000 * MS, fault: Fault::Crash { node: 0 } };
        let mut world = at_rest(seed, 3, 1, &[crash], Timing::default());
        world.run_until(8_000 * MS);
        let heir = owner_of(&world, 0);
        assert_ne!(heir, 0);
        world.run_until(30_000 * MS);
        assert_eq!(owner_of(&world, 0), heir);
        sound(&world);
    }
}

#[test]
fn a_speaker_that_is_back_before_anybody_doubts_it_keeps_its_addresses() {
    for seed in 0..50 {
        let crash = Event { at: 6_000 * MS, lasts: 100 * MS, fault: Fault::Crash { node: 0 } };
        let mut world = at_rest(seed, 3, 1, &[crash], Timing::default());
        world.run_until(9_000 * MS);
        assert_eq!(owner_of(&world, 0), 0);
        assert_eq!(world.controller.vips[0].placement, 1, "it needed no new order");
        sound(&world);
    }
}

#[test]
fn who_took_over_by_itself_keeps_its_addresses_over_a_restart_while_the_controller_is_away() {
    for seed in 0..50 {
        let mut world = plain(seed, 2, 1);
        world.controller.away = true;
        kill(&mut world, 0);
        world.run_until(world.now + 2_000 * MS);
        assert_eq!(owner_of(&world, 0), 1);
        let history_end = world.now + 5_000 * MS;
        world.restart(1);
        assert!(world.answering(0).is_empty(), "nothing is claimed before the API was read");
        world.run_until(history_end);
        assert_eq!(owner_of(&world, 0), 1, "nobody else is there, although the API names another");
        sound(&world);
    }
}

#[test]
fn in_a_move_somebody_answers_at_every_moment() {
    for seed in 0..50 {
        let mut world = plain(seed, 3, 1);
        world.controller.place(world.now, 0, 2);
        world.deliver_all();
        for _ in 0..3_000 {
            world.run_until(world.now + MS);
            assert!(!world.answering(0).is_empty(), "{}", world.log().join("\n"));
        }
        assert_eq!(owner_of(&world, 0), 2);
        sound(&world);
    }
}

#[test]
fn when_all_are_dead_who_could_take_over_the_controller_names_another() {
    for seed in 0..20 {
        let mut world = plain(seed, 4, 1);
        for node in 0..3 {
            kill(&mut world, node);
        }
        world.run_until(world.now + 10_000 * MS);
        assert!(world.answering(0).is_empty());
        world.run_until(world.now + 15_000 * MS);
        assert_eq!(owner_of(&world, 0), 3);
        sound(&world);
    }
}

#[test]
fn a_standby_on_a_segment_of_its_own_takes_nothing() {
    for seed in 0..20 {
        let mut world = plain(seed, 3, 1);
        world.parts.0[2] = 1;
        // What it heard before was on the LAN that its NIC came up on.
        world.set_link(2, false);
        world.run_until(world.now + 100 * MS);
        world.set_link(2, true);
        world.run_until(world.now + 60_000 * MS);
        assert_eq!(world.answering(0), [0]);
        sound(&world);
    }
}

#[test]
fn a_thousand_addresses_are_back_within_a_second_and_a_half() {
    for (class, within) in [(FailoverClass::Standard, 1_500), (FailoverClass::Fast, 1_200)] {
        let mut world = at_rest(1, 3, 1_000, &[], Timing::of(class));
        // All of them on one node.
        for vip in 0..1_000 {
            if world.controller.vips[vip].primary() != 0 {
                world.controller.place(world.now, vip, 0);
            }
        }
        world.deliver_all();
        world.run_until(world.now + 20_000 * MS);
        assert!((0..1_000).all(|vip| world.answering(vip) == [0]));
        world.controller.away = true;
        let sent = world.sent;
        kill(&mut world, 0);
        world.run_until(world.now + within * MS);
        let back = (0..1_000).filter(|vip| world.answering(*vip).len() == 1).count();
        assert_eq!(back, 1_000, "{class:?}");
        // Two probes, and announcements in two forms, twice within this time; and the second standby's doubts.
        assert!(world.sent - sent < 10_000, "{} frames", world.sent - sent);
        sound(&world);
    }
}

#[test]
fn at_rest_what_is_sent_grows_with_the_nodes_and_not_with_the_addresses() {
    let sent = |vips| {
        let mut world = plain(3, 3, vips);
        world.run_until(700_000 * MS);
        let before = world.sent;
        world.run_until(760_000 * MS);
        world.sent - before
    };
    let (few, many) = (sent(3), sent(300));
    assert!(many <= few + few / 10, "{few} with 3 addresses, {many} with 300");
}

#[test]
fn another_program_on_a_peer_that_answers_for_an_address_is_reported_and_left_alone() {
    use l2lb::speaker::wire::{Operation, Packet};
    let mut world = plain(5, 2, 1);
    let nic = crate::node::NIC;
    let mut announced = 0;
    for _ in 0..40 {
        let vip = world.history.families.vip(0);
        let answer = Packet {
            operation: Operation::Reply,
            broadcast: false,
            sender_mac: mac(1),
            sender_ip: vip,
            target_ip: crate::node::node_addresses(0)[usize::from(vip.is_ipv6())],
        };
        world.conflicts_allowed = true;
        world.pass(0, |station, now| station.handle_packet(now, nic, &answer));
        let before = world.announcements(0);
        world.run_until(world.now + Duration::from_millis(500).as_micros() as u64);
        announced += world.announcements(0) - before;
    }
    assert_eq!(owner_of(&world, 0), 0);
    assert!(announced <= 16, "{announced}");
    let split = world.log().iter().filter(|line| line.contains("answers too")).count();
    assert_eq!(split, 1, "{}", world.log().join("\n"));
    sound(&world);
}

#[test]
fn without_api_server_and_controller_a_dead_node_is_replaced_as_quickly() {
    for (class, within) in [(FailoverClass::Standard, 1_000), (FailoverClass::Fast, 300)] {
        for seed in 0..100 {
            let mut world = at_rest(seed, 3, 1, &[], Timing::of(class));
            (world.api_down, world.controller.away) = (true, true);
            world.run_until(world.now + (5_000 + seed * 7) * MS);
            kill(&mut world, 0);
            world.run_until(world.now + within * MS);
            assert!(!world.answering(0).is_empty(), "{class:?}, seed {seed}\n{}", world.log().join("\n"));
            sound(&world);
        }
    }
}
