//! Controllers that end and start.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    common::*,
    support::{Bench, Test},
};

pub const TESTS: &[Test] = &[
    ("a_restarted_controller_changes_nothing", controller_restart),
    ("another_controller_takes_over_from_one_that_ends", controller_hand_over),
];

fn controller_restart(bench: &Bench) -> Result<()> {
    let names = ["kept-1", "kept-2", "kept-3"];
    let mut addresses = BTreeMap::new();
    for name in names {
        bench.apply(&service(name, json!({})))?;
        bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", &format!("service/{name}"), "--timeout=60s"])?;
        addresses.insert(name, address_of(bench, name)?);
    }
    // One Service goes while nobody looks.
    bench.apply(&service("goes", json!({})))?;
    let goes = announced(bench, "goes")?;
    bench.scale_controller(0)?;
    bench.kubectl(&["delete", "service", "goes"])?;
    let before = bench.writes()?;
    bench.scale_controller(2)?;
    given_back(bench, &goes)?;
    for (name, address) in &addresses {
        ensure!(address_of(bench, name)? == *address, "{name} has changed its address");
        answers_soon(bench, address)?;
    }
    let written = bench.writes()?.since(&before, &["virtualips/status", "services/status"])?;
    ensure!(written.values().all(|count| *count == 0), "the restart wrote {written:?}");
    delete_services(bench, &names)
}

fn controller_hand_over(bench: &Bench) -> Result<()> {
    bench.apply(&service("before", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/before", "--timeout=60s"])?;
    let address = address_of(bench, "before")?;
    let owner = announcing_node(bench, &address)?;
    let first = leader(bench)?;
    ensure!(first.starts_with("l2lb-controller-"), "the leader is named after its Pod, not '{first}'");
    bench.kubectl(&["-n", "l2lb-system", "delete", "pod", &first, "--wait=false"])?;
    leader_after(bench, &first)?;
    bench.apply(&service("after", json!({})))?;
    ensure!(address_of(bench, "after")? != address, "an address was given twice");
    ensure!(address_of(bench, "before")? == address && announcing_node(bench, &address)? == owner, "an address moved");
    bench.controllers_are(2)?;
    delete_services(bench, &["before", "after"])
}
