//! Random histories of a small cluster against a naive model of what is right.
//!
//! `facts` are what people write and machines report, `rules` what follows from them, `cluster` an API server with lagging
//! watches, speakers and a controller that may die, `history` what may happen, `judge` the comparison. A history that fails is
//! printed as it can be written into a test. `L2LB_CASES=20000` runs more of them than a build has time for.

mod cluster;
mod facts;
mod history;
mod judge;
mod rules;

use proptest::prelude::*;

use self::{cluster::*, facts::NODES, history::*};
use super::super::*;

/// How many histories: `share` of a hundred, or of what is asked for.
fn cases(share: u32) -> ProptestConfig {
    let asked = std::env::var("L2LB_CASES").ok().and_then(|text| text.parse::<u32>().ok());
    ProptestConfig { cases: asked.unwrap_or(100) * share / 100, max_shrink_iters: 4_000, ..ProptestConfig::default() }
}

/// Everything that can be seen, times and uids apart.
fn picture(cluster: &Cluster) -> Vec<String> {
    let vips = cluster.vips.values().map(|vip| {
        let spec = &vip.spec;
        format!("{} of {} for {:?}: {:?}", spec.address, spec.pool, spec.services, spec.assignments)
    });
    let services = cluster.shown.iter().map(|(key, shown)| format!("{key} {}", shown.status));
    let pools = cluster.pool_status.iter().map(|(name, status)| format!("{name} {status}"));
    vips.chain(services).chain(pools).collect()
}

/// Lets all of it happen. Returns what was wrong first.
fn tell(history: &[Op]) -> (Cluster, Option<String>) {
    let mut cluster = Cluster::new();
    for (at, op) in history.iter().enumerate() {
        cluster.happen(op);
        if let Some(fault) = &cluster.judge.fault {
            let fault = format!("after {at} ({op:?}): {fault}");
            return (cluster, Some(fault));
        }
    }
    (cluster, None)
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn whatever_happens_every_address_is_right(history in histories(40)) {
        let (mut cluster, fault) = tell(&history.0);
        prop_assert!(fault.is_none(), "{}", fault.unwrap());
        cluster.settle();
        prop_assert!(cluster.judge.fault.is_none(), "at the end: {}", cluster.judge.fault.unwrap());
        let changes = cluster.pass(Duration::from_secs(70));
        prop_assert!(changes.is_empty(), "no silence: {:?}", changes);
        cluster.restart();
        let changes = cluster.pass(Duration::from_secs(70));
        let dead = cluster.truth.nodes.keys().any(|node| !cluster.alive.contains(node));
        prop_assert!(changes.is_empty() || dead, "a restart at rest writes: {:?}", changes);
        for sentence in judge::settled(&cluster) {
            prop_assert!(false, "after a restart: {}", sentence);
        }
    }

    #[test]
    fn the_order_in_which_simultaneous_events_are_told_does_not_matter(
        history in histories(12),
        batch in prop::collection::vec(event(), 1..8),
        order in Just(WATCHES.to_vec()).prop_shuffle(),
        relisted in prop::collection::vec(any::<bool>(), WATCHES.len()),
    ) {
        let ends: Vec<Vec<String>> = [true, false]
            .into_iter()
            .map(|in_order| {
                let (mut cluster, _) = tell(&history.0);
                cluster.settle();
                batch.iter().for_each(|op| cluster.happen(op));
                if !in_order {
                    order.iter().zip(&relisted).filter(|(_, relisted)| **relisted).for_each(|(watch, _)| cluster.relist(*watch));
                    order.iter().for_each(|watch| cluster.deliver(*watch));
                }
                cluster.settle();
                picture(&cluster)
            })
            .collect();
        let only = |one: usize, other: usize| -> Vec<&String> {
            ends[one].iter().filter(|line| !ends[other].contains(line)).collect()
        };
        prop_assert!(ends[0] == ends[1], "in order: {:?}; otherwise: {:?}", only(0, 1), only(1, 0));
    }

    #[test]
    fn a_controller_that_dies_amid_it_all_is_replaced_by_one_that_ends_at_the_same(
        history in histories(12),
        batch in prop::collection::vec(event(), 1..8),
    ) {
        let ends: Vec<Vec<String>> = [true, false]
            .into_iter()
            .map(|survives| {
                let (mut cluster, _) = tell(&history.0);
                // Of a speaker that is dead already a new controller hears only by and by.
                NODES.iter().enumerate().for_each(|(at, _)| cluster.happen(&Op::Node(at as u8, NodeEvent::Lives)));
                cluster.settle();
                cluster.pass(Duration::from_secs(310));
                batch.iter().for_each(|op| cluster.happen(op));
                if !survives {
                    cluster.restart();
                }
                cluster.settle();
                picture(&cluster)
            })
            .collect();
        let only = |one: usize, other: usize| -> Vec<&String> {
            ends[one].iter().filter(|line| !ends[other].contains(line)).collect()
        };
        prop_assert!(ends[0] == ends[1], "without: {:?}; with a restart: {:?}", only(0, 1), only(1, 0));
    }
}
