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

use self::{cluster::*, history::*};
use super::super::*;

const ALLOC: bool = false;
const PLACE: bool = false;

/// How many histories: `share` of a hundred, or of what is asked for.
fn cases(share: u32) -> ProptestConfig {
    let asked = std::env::var("L2LB_CASES").ok().and_then(|text| text.parse::<u32>().ok());
    ProptestConfig { cases: asked.unwrap_or(100) * share / 100, max_shrink_iters: 4_000, ..ProptestConfig::default() }
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
}
