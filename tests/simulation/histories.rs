//! Random histories: so many that everything which can happen has happened, most of it at the same time as something else.

use l2lb::{api::FailoverClass, speaker::owner::Timing};

use crate::{
    history::{ALL, Event, FAMILIES, Fault, History, Kind, MS, Mix},
    judge::{Account, Promise, must_hold},
};

/// So many times as many histories are played.
fn factor() -> f64 {
    std::env::var("L2LB_SIMULATION").ok().and_then(|text| text.parse().ok()).unwrap_or(1.0)
}

fn promise() -> Promise {
    Promise {
        one_owner_after: 1_500 * MS,
        dark: 60_000 * MS,
        stale: 3_500 * MS,
        changes: 6,
        settled_after: 45_000 * MS,
        timing: Timing::default(),
    }
}

/// After several faults more can have happened to an address, and a host may have to wait for the announcement that each owner
/// repeats: the node that it believes in may have lost its part in the address, so that nobody finds a second owner there.
fn several() -> Promise {
    Promise { stale: 11_500 * MS, changes: 6, ..promise() }
}

/// Where frames are lost, the first look for a second owner can be in vain, and the announcement against it.
fn lossy() -> Promise {
    Promise { one_owner_after: 4_000 * MS, stale: 22_000 * MS, ..several() }
}

fn mix(kinds: &'static [Kind], faults: usize, loss: u64) -> Mix {
    Mix { kinds, faults, loss, delay: 2 * MS, stale: 1 }
}

/// Plays so many histories of a mix.
fn hold(runs: u64, mix: Mix, promise: Promise) {
    let runs = (runs as f64 * factor()) as u64;
    let mut worst = Account::default();
    for seed in 0..runs {
        let account = must_hold(&History::of(&mix, seed), &promise);
        worst = worst.max(account);
    }
    println!(
        "{runs} histories of {:?}, {} faults, {} % loss: nobody answered for {} ms at most, two for {} ms, a host \
         erred for {} ms, {} changes of owner",
        mix.kinds,
        mix.faults,
        mix.loss,
        worst.dark / MS,
        worst.double / MS,
        worst.stale / MS,
        worst.changes
    );
}

#[test]
fn a_node_that_dies_is_replaced_within_a_second() {
    hold(1_000, mix(&[Kind::Crash], 1, 0), Promise { dark: 1_000 * MS, ..promise() });
}

#[test]
fn a_node_that_dies_is_replaced_within_three_tenths_of_a_second_where_that_is_asked_for() {
    let timing = Timing::of(FailoverClass::Fast);
    hold(1_000, mix(&[Kind::Crash], 1, 0), Promise { dark: 300 * MS, timing, ..promise() });
}

/// Where claims cross on their way, one of the two stays: if both yielded, nobody would answer until the next doubt.
#[test]
fn of_two_claims_that_cross_on_a_slow_lan_one_stays() {
    for seed in 0..600 {
        // The standbys' rhythms are shifted against each other, by any time.
        let shift = Event { at: 6_000 * MS, lasts: (1 + seed * 7 % 400) * MS, fault: Fault::Stop { node: 1 } };
        let crash = Event { at: 9_000 * MS, lasts: 9_000 * MS, fault: Fault::Crash { node: 0 } };
        let events = vec![shift, crash];
        let families = FAMILIES[(seed % 2) as usize];
        let history = History { seed, nodes: 3, vips: 1, families, loss: 0, delay: 40 * MS, events };
        must_hold(&history, &Promise { dark: 1_200 * MS, ..promise() });
    }
}

#[test]
fn without_api_server_and_controller_it_is_the_same() {
    let kinds = &[Kind::Crash, Kind::ApiDown, Kind::ControllerAway];
    hold(1_000, mix(kinds, 3, 0), Promise { dark: 22_000 * MS, ..several() });
}

#[test]
fn moves_leave_no_gap() {
    // A node that is alive takes an address over while the old one answers; only a move that meets another one leaves a moment.
    hold(1_000, mix(&[Kind::Move], 2, 0), Promise { dark: 250 * MS, ..promise() });
}

#[test]
fn a_pause_of_any_kind_ends_with_one_owner() {
    hold(1_000, mix(&[Kind::Stop, Kind::Freeze, Kind::Starve], 1, 0), Promise { dark: 1_000 * MS, ..promise() });
}

#[test]
fn a_partition_that_heals_ends_with_one_owner_and_right_caches() {
    hold(1_000, mix(&[Kind::Partition], 1, 0), promise());
}

#[test]
fn a_link_that_is_lost_and_comes_back_elsewhere_ends_with_right_caches() {
    hold(1_000, mix(&[Kind::Link], 1, 0), Promise { dark: 1_000 * MS, ..promise() });
}

#[test]
fn everything_at_once() {
    hold(1_500, mix(&ALL, 4, 0), several());
}

#[test]
fn everything_at_once_on_a_lan_that_loses_frames() {
    hold(1_500, mix(&ALL, 4, 5), lossy());
}

#[test]
fn everything_at_once_on_a_slow_lan_where_frames_overtake_each_other() {
    hold(1_000, Mix { delay: 25 * MS, ..mix(&ALL, 3, 2) }, lossy());
}

/// What the API says may be minutes old: orders stay, and who restarts meanwhile waits for them.
#[test]
fn everything_at_once_while_the_api_is_stale_for_minutes() {
    hold(400, Mix { stale: 10, ..mix(&ALL, 4, 1) }, Promise { dark: 240_000 * MS, ..lossy() });
}
