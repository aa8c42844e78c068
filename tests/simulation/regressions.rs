//! Histories that once showed a defect.

use l2lb::speaker::owner::Timing;

use crate::{
    history::{Event, FAMILIES, Fault, History, MS},
    judge::{Promise, must_hold},
};

fn event(at: u64, lasts: u64, fault: Fault) -> Event {
    Event { at: at * MS, lasts: lasts * MS, fault }
}

fn holds(seed: u64, nodes: usize, vips: usize, events: &[Event]) {
    let promise = Promise {
        one_owner_after: 1_500 * MS,
        dark: 60_000 * MS,
        stale: 11_000 * MS,
        changes: 6,
        settled_after: 45_000 * MS,
        timing: Timing::default(),
    };
    for families in FAMILIES {
        let history = History { seed, nodes, vips, families, loss: 0, delay: 2 * MS, events: events.to_vec() };
        must_hold(&history, &promise);
    }
}

/// The node that lost the address had no part in it any more when the LAN was whole again: there was no second owner to
/// find, and the hosts beside it believed in it until the next refresh.
#[test]
fn hosts_that_were_cut_off_learn_who_took_over() {
    holds(16, 4, 2, &[event(7_623, 9_000, Fault::Partition { nodes: 13, hosts: 6 })]);
}

/// Of three addresses that it shares with a peer it asked for one each second, and only one had two owners.
#[test]
fn one_of_several_addresses_with_two_owners_is_found_at_once() {
    holds(89, 3, 3, &[event(9_439, 20_000, Fault::Partition { nodes: 6, hosts: 3 })]);
}

/// The machine that went on watched for one address and answered for another: who watches was not searched at all.
#[test]
fn a_peer_that_watches_for_one_address_may_own_another() {
    holds(250, 3, 3, &[event(8_514, 9_000, Fault::Freeze { node: 2 })]);
}
