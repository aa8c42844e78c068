//! Pools, and what becomes of addresses when pools change.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] =
    &[("a_pool_that_the_api_server_cannot_judge_says_not_ready_and_others_go_on", backward_range)];

fn backward_range(bench: &Bench) -> Result<()> {
    bench.apply(&pool("backward", &["10.0.0.9-10.0.0.1", "192.0.2.250"]))?;
    let message = eventually(PATIENCE, "the pool says that it is not ready", || {
        let pool = bench.get("ippool", "backward")?;
        let ready = condition(&pool, "Ready");
        Ok((ready["status"] == "False").then(|| text(&ready["message"])))
    })?;
    ensure!(message.contains("'10.0.0.9-10.0.0.1'") && message.contains("spec.addresses[0]"), "{message}");
    // The rest of that pool works, and so does the other one.
    bench.apply(&service("from-the-rest", json!({"metadata": {"annotations": {"l2lb.io/pool": "backward"}}})))?;
    ensure!(address_of(bench, "from-the-rest")? == "192.0.2.250");
    bench.apply(&service("from-the-other", json!({})))?;
    address_of(bench, "from-the-other")?;
    bench.kubectl(&["delete", "service", "from-the-rest", "from-the-other"])?;
    bench.kubectl(&["delete", "ippool", "backward"])?;
    Ok(())
}
