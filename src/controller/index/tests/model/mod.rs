//! Random histories of a small cluster against a naive model of what is right.
//!
//! `facts` are what people write and machines report, `rules` what follows from them, `cluster` an API server with lagging
//! watches, speakers and a controller that may die, `history` what may happen, `happening` what that does, `judge` the
//! comparison. A history that fails is printed as it can be written into a test. `L2LB_CASES=20000` runs more of them than a build has time for.

mod cluster;
mod facts;
mod happening;
mod history;
mod judge;
mod pinned;
mod rules;

use proptest::{prelude::*, test_runner::RngSeed};

use self::{
    cluster::*,
    facts::{NODES, ServiceFact},
    history::*,
};
use super::super::*;

/// Longer than anything that the controller puts off.
const A_WHILE: Duration = Duration::from_secs(70);

/// How many histories: `share` of a hundred, the same ones in each build; or of what is asked for, and then new ones each time.
fn cases(share: u32) -> ProptestConfig {
    let asked = std::env::var("L2LB_CASES").ok().and_then(|text| text.parse::<u32>().ok());
    let rng_seed = asked.map_or(RngSeed::Fixed(20_261), |_| RngSeed::Random);
    let cases = asked.unwrap_or(600) * share / 100;
    // What fails is printed as it can be pinned; a seed means something else as soon as more can happen.
    let failure_persistence = None;
    ProptestConfig { failure_persistence, cases, rng_seed, max_shrink_iters: 4_000, ..ProptestConfig::default() }
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
fn tell(history: &[Op]) -> (Cluster, Result<(), String>) {
    let mut cluster = Cluster::new();
    for (at, op) in history.iter().enumerate() {
        cluster.happen(op);
        if let Some(fault) = &cluster.judge.fault {
            let fault = format!("after {op:?}, number {at}: {fault}");
            return (cluster, Err(fault));
        }
    }
    (cluster, Ok(()))
}

/// Lets all of it happen and nothing after it, and then a restart.
fn verify(history: &[Op]) -> Result<(), String> {
    let (mut cluster, faultless) = tell(history);
    faultless?;
    cluster.settle();
    if let Some(fault) = cluster.judge.fault {
        return Err(format!("at the end: {fault}"));
    }
    let changes = cluster.pass(A_WHILE);
    if !changes.is_empty() {
        return Err(format!("no silence: {changes:?}"));
    }
    cluster.restart();
    let changes = cluster.pass(A_WHILE);
    // Of a speaker that is dead already a new controller hears only by and by, and says so again.
    let dead = cluster.truth.nodes.keys().any(|node| !cluster.alive.contains(node));
    if !changes.is_empty() && !dead {
        return Err(format!("a restart at rest writes: {changes:?}"));
    }
    let faults = judge::settled(&cluster);
    if faults.is_empty() { Ok(()) } else { Err(format!("after a restart: {faults:?}")) }
}

proptest! {
    #![proptest_config(cases(100))]

    #[test]
    fn whatever_happens_every_address_is_right(history in histories(40)) {
        verify(&history.0).map_err(TestCaseError::fail)?;
    }
}

proptest! {
    #![proptest_config(cases(30))]

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
        prop_assert!(ends[0] == ends[1], "in order: {:?}; otherwise: {:?}", only(&ends[0], &ends[1]), only(&ends[1], &ends[0]));
    }

    #[test]
    fn a_controller_that_dies_amid_it_all_is_replaced_by_one_that_ends_at_the_same(
        history in histories(12),
        batch in prop::collection::vec(event(), 1..8),
    ) {
        let ends = [true, false].map(|survives| {
            let (mut cluster, _) = tell(&history.0);
            // Of a speaker that is dead already a new controller hears only by and by.
            NODES.iter().enumerate().for_each(|(at, _)| cluster.happen(&Op::Node(at as u8, NodeEvent::Lives)));
            cluster.settle();
            cluster.pass(Duration::from_secs(310));
            // Of two that share an address and do not get along any more, a new controller cannot know which one has changed.
            let divides = |edit: &Edit| matches!(edit, Edit::Key(_) | Edit::Ports(_) | Edit::Local(_) | Edit::Selector(_));
            let divides = |op: &&Op| match op {
                Op::Edit(_, edit) => divides(edit),
                Op::Service(_, edits) => edits.iter().any(divides),
                _ => false,
            };
            batch.iter().filter(|op| !divides(op)).for_each(|op| cluster.happen(op));
            if !survives {
                cluster.restart();
            }
            cluster.settle();
            cluster
        });
        // Who of several gets the last address depends on who came first.
        let lacks = |(key, service): (&String, &ServiceFact)| {
            service.is_ours() && !ends.iter().all(|end| end.condition(key, api::CONDITION_ALLOCATED).is_some_and(|told| told.0))
        };
        prop_assume!(!ends[0].truth.services.iter().any(lacks));
        let ends = ends.map(|end| picture(&end));
        prop_assert!(ends[0] == ends[1], "without: {:?}; with a restart: {:?}", only(&ends[0], &ends[1]), only(&ends[1], &ends[0]));
    }
}

fn only<'a>(one: &'a [String], other: &[String]) -> Vec<&'a String> {
    one.iter().filter(|line| !other.contains(line)).collect()
}
