//! One case for each rule of the owner protocol whose loss random histories seldom show: other rules cover for it as a rule,
//! until the second thing goes wrong.

use l2lb::{
    api::Role,
    speaker::{
        owner::Timing,
        wire::{Operation, Packet},
    },
};

use crate::{
    cases::{at_rest, kill, owner_of, plain, sound},
    history::{Event, Fault, MS},
    hosts::Entry,
    node::{NIC, mac, node_addresses, unspecified},
    world::World,
};

/// Runs so long, and says who answers then.
fn after(world: &mut World, milliseconds: u64) -> usize {
    world.run_until(world.now + milliseconds * MS);
    owner_of(world, 0)
}

/// As [`after`], and at every moment somebody answers.
fn somebody_answers(world: &mut World, milliseconds: u64) -> usize {
    for _ in 0..milliseconds {
        world.run_until(world.now + MS);
        assert!(!world.answering(0).is_empty(), "nobody answers\n{}", world.log().join("\n"));
    }
    owner_of(world, 0)
}

/// So many lines of the timeline have this in them.
fn told(world: &World, text: &str) -> usize {
    world.log().iter().filter(|line| line.contains(text)).count()
}

/// Node 0 is cut off from the others, and the host that never asks again with it; another takes over.
fn split(world: &mut World) -> usize {
    world.parts.0[0] = 1;
    world.parts.1[0] = 1;
    world.run_until(world.now + 1_500 * MS);
    let answering = world.answering(0);
    assert!(answering.len() == 2 && answering[0] == 0, "{answering:?}\n{}", world.log().join("\n"));
    answering[1]
}

fn heal(world: &mut World) {
    world.parts.0.fill(0);
    world.parts.1.fill(0);
}

/// Rule 1: of two orders in quick succession only the second is carried out.
#[test]
fn who_is_not_named_any_more_before_it_has_claimed_does_not_claim() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.controller.place(world.now, 0, 1);
        world.deliver_all();
        while told(&world, "node1 probes for") == 0 {
            world.run_until(world.now + MS);
        }
        world.controller.place(world.now, 0, 2);
        world.deliver_all();
        assert_eq!(after(&mut world, 3_000), 2);
        assert_eq!(told(&world, "node1 announces"), 0, "{}", world.log().join("\n"));
        sound(&world);
    }
}

/// Rule 1: every write to the object delivers the order again, and it is no new one; nor for who was named as the owner.
#[test]
fn an_order_that_was_carried_out_once_takes_no_address_back() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        if seed % 2 == 1 {
            world.controller.place(world.now, 0, 0);
            world.deliver_all();
            world.run_until(world.now + 300 * MS);
        }
        world.controller.away = true;
        let heir = split(&mut world);
        // It loses the tie, and is Primary still.
        let claim = claim_of(&world, heir);
        world.pass(0, |station, now| station.handle_packet(now, NIC, &claim));
        heal(&mut world);
        assert_eq!(after(&mut world, 1_000), heir, "{}", world.log().join("\n"));
        for _ in 0..5 {
            world.deliver_all();
            assert_eq!(after(&mut world, 1_000), heir, "{}", world.log().join("\n"));
        }
        sound(&world);
    }
}

fn claim_of(world: &World, node: usize) -> Packet {
    let vip = world.history.families.vip(0);
    Packet { operation: Operation::Request, broadcast: true, sender_mac: mac(node), sender_ip: vip, target_ip: vip }
}

/// Rule 1: a switch that answers for others answers for the dead as well, but only those who ask everybody.
#[test]
fn a_switch_that_answers_for_the_dead_keeps_no_address_from_the_living() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.controller.away = true;
        kill(&mut world, 0);
        let vip = world.history.families.vip(0);
        let mut answered = [0, 0];
        for _ in 0..2_000 {
            world.run_until(world.now + MS);
            for node in [1, 2] {
                let asked = told(&world, &format!("node{node} probes for"));
                if std::mem::replace(&mut answered[node - 1], asked) == asked {
                    continue;
                }
                let target_ip = node_addresses(node)[usize::from(vip.is_ipv6())];
                let answer = Packet {
                    operation: Operation::Reply,
                    broadcast: false,
                    sender_mac: mac(0),
                    sender_ip: vip,
                    target_ip,
                };
                world.pass(node, |station, now| station.handle_packet(now, NIC, &answer));
            }
        }
        assert_ne!(after(&mut world, 0), 0);
        sound(&world);
    }
}

/// Rule 2: who restarted just now knows the owner from the status, before it has heard it claim.
#[test]
fn standbys_that_have_just_restarted_take_over_from_an_owner_that_dies() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.restart(1);
        world.restart(2);
        world.run_until(world.now + 900 * MS);
        world.controller.away = true;
        kill(&mut world, 0);
        assert_ne!(after(&mut world, 1_100), 0);
        sound(&world);
    }
}

/// Rule 2: one address that goes unanswered is taken, although its owner answers for another.
#[test]
fn one_address_that_its_owner_has_left_is_taken_while_the_owner_lives() {
    for seed in 0..30 {
        // Both are node 0's.
        let mut world = plain(seed, 3, 4);
        assert_eq!((owner_of(&world, 0), owner_of(&world, 3)), (0, 0));
        world.controller.away = true;
        world.nodes[1].api = false;
        world.nodes[2].api = false;
        world.controller.vips[0].assignments = vec![(1, Role::Primary), (2, Role::Standby)];
        world.deliver_all();
        assert_ne!(after(&mut world, 2_000), 0);
        assert_eq!(owner_of(&world, 3), 0);
        sound(&world);
    }
}

/// Rule 2: the owner is who claimed last, and not who was named last.
#[test]
fn of_three_nodes_two_can_die_one_after_the_other_without_a_controller() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.controller.away = true;
        kill(&mut world, 0);
        let heir = after(&mut world, 2_000);
        kill(&mut world, heir);
        assert_eq!(after(&mut world, 1_100), 3 - heir);
        sound(&world);
    }
}

/// Rule 2: who hears an earlier one claim leaves the address to it, and watches it from then on.
#[test]
fn of_two_standbys_one_takes_over_and_the_other_keeps_quiet() {
    let mut both = 0;
    for seed in 0..60 {
        let mut world = plain(seed, 3, 1);
        world.controller.away = true;
        kill(&mut world, 0);
        while world.answering(0).is_empty() {
            world.run_until(world.now + MS);
        }
        // What is on its way arrives.
        world.run_until(world.now + 5 * MS);
        let probes = told(&world, "probes for");
        after(&mut world, 3_000);
        assert_eq!(told(&world, "probes for"), probes, "{}", world.log().join("\n"));
        both += u32::from(told(&world, "node1 announces") > 0 && told(&world, "node2 announces") > 0);
        sound(&world);
    }
    assert!(both <= 2, "in {both} of 60 both claimed: their claims cross within a frame's way only");
}

/// Rule 2: who did not hear who took over learns it by asking once, and does not go on asking everybody.
#[test]
fn a_standby_that_missed_a_claim_asks_once() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.nodes[2].api = false;
        world.parts.0[2] = 1;
        world.controller.place(world.now, 0, 1);
        world.deliver_all();
        world.run_until(world.now + 300 * MS);
        assert_eq!(world.answering(0), [1]);
        heal(&mut world);
        kill(&mut world, 0);
        world.controller.away = true;
        assert_eq!(after(&mut world, 12_000), 1);
        let probes = told(&world, "node2 probes for");
        assert!(probes <= 3, "{probes} probes\n{}", world.log().join("\n"));
        sound(&world);
    }
}

/// Rule 2: the time in which a standby stood still itself does not count against the owner.
#[test]
fn a_standby_that_stood_still_does_not_doubt_the_owner() {
    for seed in 0..30 {
        let stop = Event { at: 6_000 * MS, lasts: 3_000 * MS, fault: Fault::Stop { node: 1 } };
        let mut world = at_rest(seed, 3, 1, &[stop], Timing::default());
        assert_eq!(after(&mut world, 6_000), 0);
        assert_eq!(told(&world, "node1 probes for"), 0, "{}", world.log().join("\n"));
        sound(&world);
    }
}

/// Rule 5: a standby that was stopped after its last probe has not heard who took over meanwhile.
#[test]
fn who_stood_still_while_it_asked_asks_anew() {
    for seed in 0..30 {
        let without_owner = |events: &[Event]| {
            let mut world = at_rest(seed, 3, 1, events, Timing::default());
            world.controller.away = true;
            kill(&mut world, 0);
            world
        };
        let mut world = without_owner(&[]);
        while told(&world, "node1 probes for") < 2 && world.answering(0).is_empty() {
            world.run_until(world.now + MS);
        }
        let stop = Event { at: world.now, lasts: 12_000 * MS, fault: Fault::Stop { node: 1 } };
        let mut world = without_owner(&[stop]);
        assert_eq!(after(&mut world, 20_000), 2);
        assert_eq!(told(&world, "node1 announces"), 0, "{}", world.log().join("\n"));
        sound(&world);
    }
}

/// Rule 3: what the old owner said last comes in after the new one's claim, which stands.
#[test]
fn the_last_words_of_the_old_owner_take_nothing_from_the_new_one() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.controller.place(world.now, 0, 1);
        world.deliver_all();
        while !world.answering(0).contains(&1) {
            world.run_until(world.now + MS);
        }
        world.run_until(world.now + 5 * (seed % 10) * MS);
        let claim = claim_of(&world, 0);
        let announced = told(&world, "node1 announces");
        world.pass(1, |station, now| station.handle_packet(now, NIC, &claim));
        world.run_until(world.now + 30 * MS);
        assert!(world.answering(0).contains(&1), "{}", world.log().join("\n"));
        assert!(seed % 10 < 4 || told(&world, "node1 announces") > announced, "hosts have heard the old one last");
        assert_eq!(after(&mut world, 1_000), 1);
        sound(&world);
    }
}

/// Rule 4: whoever doubts has a reason, and some host may believe what is wrong.
#[test]
fn an_owner_that_is_doubted_puts_the_hosts_right() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        let right = Entry { mac: mac(0), port: world.nodes[0].port };
        world.hosts[0].cache.insert(0, Entry { mac: mac(1), port: world.nodes[1].port });
        let vip = world.history.families.vip(0);
        let probe = Packet { sender_ip: unspecified(vip), ..claim_of(&world, 1) };
        world.pass(0, |station, now| station.handle_packet(now, NIC, &probe));
        world.run_until(world.now + 50 * MS);
        assert_eq!(world.hosts[0].cache.get(&0), Some(&right));
        sound(&world);
    }
}

/// Rule 3: where each node holds itself for the better one, the lower MAC address decides in the end.
#[test]
fn two_owners_of_whom_the_api_told_each_that_it_comes_first_do_not_quarrel_for_long() {
    for seed in 0..30 {
        let mut world = plain(seed, 2, 1);
        world.nodes[0].api = false;
        world.parts.0[0] = 1;
        world.controller.place(world.now, 0, 1);
        world.deliver_all();
        world.run_until(world.now + 5_000 * MS);
        assert_eq!(world.answering(0), [0, 1]);
        heal(&mut world);
        somebody_answers(&mut world, 1_500);
        sound(&world);
    }
}

/// Rule 6: while a move is under way, at no moment nobody answers; and the old owner does not come back.
#[test]
fn a_single_move_changes_the_owner_once() {
    for seed in 0..100 {
        let mut world = plain(seed, 3, 1);
        world.controller.place(world.now, 0, 1);
        world.deliver_all();
        let mut owners = vec![0];
        for _ in 0..2_500 {
            world.run_until(world.now + MS);
            match world.answering(0)[..] {
                [] => panic!("nobody answers\n{}", world.log().join("\n")),
                [owner] if owners.last() != Some(&owner) => owners.push(owner),
                _ => {}
            }
        }
        assert_eq!(owners, [0, 1], "{}", world.log().join("\n"));
        sound(&world);
    }
}

/// Rule 7: a short loss of the link is nobody's gain.
#[test]
fn a_link_that_is_back_before_anybody_doubts_it_keeps_its_addresses() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.set_link(0, false);
        world.run_until(world.now + 100 * MS);
        world.set_link(0, true);
        assert_eq!(after(&mut world, 300), 0);
        assert_eq!(after(&mut world, 3_000), 0);
        sound(&world);
    }
}

/// Rule 7: a link that is back takes nothing back from who took over meanwhile, though the API names the node still.
#[test]
fn a_node_whose_link_is_back_does_not_take_its_addresses_back() {
    for seed in 0..30 {
        let mut world = plain(seed, 3, 1);
        world.controller.away = true;
        world.set_link(0, false);
        let heir = after(&mut world, 1_500);
        world.set_link(0, true);
        for _ in 0..300 {
            assert_eq!(after(&mut world, 10), heir, "{}", world.log().join("\n"));
        }
        sound(&world);
    }
}

/// Rule 7: who took over by itself owns the address again when its link is back, whatever the API says of it.
#[test]
fn who_took_over_by_itself_keeps_its_addresses_over_a_lost_link() {
    for seed in 0..30 {
        let mut world = plain(seed, 2, 1);
        world.controller.away = true;
        kill(&mut world, 0);
        assert_eq!(after(&mut world, 1_500), 1);
        world.set_link(1, false);
        world.run_until(world.now + 100 * MS);
        world.set_link(1, true);
        assert_eq!(after(&mut world, 400), 1);
        sound(&world);
    }
}

/// Rule 8: long after the last claim, each owner announces once a minute, and no more.
#[test]
fn at_rest_an_owner_announces_once_a_minute() {
    let mut world = plain(7, 2, 2);
    world.run_until(700_000 * MS);
    let before = [0, 1].map(|node| world.announcements(node));
    world.run_until(1_000_000 * MS);
    let told = [0, 1].map(|node| world.announcements(node) - before[node]);
    assert_eq!(told, [5, 5]);
    sound(&world);
}

/// Rules 4 and 9: whom the API names keeps the address when the LAN is whole again, and announces it, so that whoever was
/// cut off from it learns of it at once.
#[test]
fn a_lan_that_is_whole_again_belongs_to_whom_the_api_names() {
    for seed in 0..40 {
        let mut world = plain(seed, 3, 1);
        let heir = split(&mut world);
        world.run_until(world.now + (1_000 + 37 * seed) * MS);
        assert_eq!(world.controller.vips[0].primary(), heir, "the claim was reported");
        let announced = told(&world, "node0 announces");
        heal(&mut world);
        assert_eq!(somebody_answers(&mut world, 1_200), heir, "{}", world.log().join("\n"));
        assert_eq!(told(&world, "node0 announces"), announced, "it knows that it is not named");
        let expected = Entry { mac: mac(heir), port: world.nodes[heir].port };
        assert_eq!(world.hosts[0].cache.get(&0), Some(&expected), "{}", world.log().join("\n"));
        sound(&world);
    }
}
