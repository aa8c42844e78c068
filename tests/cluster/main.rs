//! The whole product on real parts: the chart installed by helm on a real API server with three nodes, kube-proxy, and a client on
//! the LAN. One cluster for all tests, in the order in which they stand, but for those that wait for half a minute and do not
//! concern each other: these run together. Each leaves the cluster as it found it. A test
//! that says which address is given has addresses of its own: those of an earlier test rest for five minutes.

mod api;
mod common;
mod conflicts;
mod controllers;
mod examples;
mod families;
mod lifecycle;
mod moves;
mod nodes;
mod pools;
mod services;
mod sharing;
#[path = "../support/mod.rs"]
mod support;

use std::time::Duration;

use anyhow::{Context as _, Result};
use libtest_mimic::Trial;
use support::{Bench, Stage, Test};

/// Long enough for a slow day; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

fn main() -> Result<()> {
    let last: &[Test] = &[("uninstall_keeps_the_pools", uninstall)];
    let stages = [
        Stage::InOrder(
            [
                api::TESTS,
                examples::TESTS,
                pools::TESTS,
                services::TESTS,
                sharing::TESTS,
                families::TESTS,
                lifecycle::TESTS,
                conflicts::TESTS,
            ]
            .concat(),
        ),
        Stage::Together([pools::SLOW, families::SLOW, conflicts::SLOW].concat()),
        Stage::InOrder([moves::TESTS, controllers::TESTS, nodes::TESTS, last].concat()),
    ];
    let arguments = libtest_mimic::Arguments::from_args();
    if arguments.list {
        let tests = stages.iter().flat_map(Stage::tests);
        libtest_mimic::run(&arguments, tests.map(|(name, _)| Trial::test(*name, || Ok(()))).collect()).exit();
    }
    let bench = Bench::start()?;
    support::run_in_order(arguments, bench, &stages)
}

fn uninstall(bench: &Bench) -> Result<()> {
    bench.helm(&["uninstall", "l2lb", "-n", "l2lb-system", "--wait"])?;
    bench.get("ippool", "lan").context("the pool is gone with the chart")?;
    Ok(())
}
