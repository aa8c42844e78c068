//! Nodes and speakers that go, and come back.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("an_excluded_node_hands_over_without_a_lost_request", planned_move),
    ("a_speaker_that_ends_or_crashes_costs_no_request", speaker_restarts),
    ("without_an_api_server_addresses_go_on_answering", api_outage),
    ("a_dead_node_is_replaced_and_does_not_take_its_addresses_back", dead_node),
];

fn planned_move(bench: &Bench) -> Result<()> {
    bench.apply(&service("moved", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/moved", "--timeout=60s"])?;
    let address = address_of(bench, "moved")?;
    let owner = announcing_node(bench, &address)?;
    answered_through_every_node(bench, &address)?;
    let exclusion = "node.kubernetes.io/exclude-from-external-load-balancers";
    let stream = bench.requests(&address)?;
    bench.kubectl(&["label", "node", &owner, &format!("{exclusion}=")])?;
    let next = eventually(PATIENCE, "another node announces", || {
        let node = announcing_node(bench, &address)?;
        Ok((node != owner).then_some(node))
    })?;
    eventually(PATIENCE, "the Service names the new node", || {
        let announced = condition(&bench.get("service", "moved")?, "l2lb.io/Announced");
        Ok(text(&announced["message"]).contains(&next).then_some(()))
    })?;
    stream.none_failed()?;
    bench.kubectl(&["label", "node", &owner, &format!("{exclusion}-")])?;
    ensure!(address_of(bench, "moved")? == address);
    bench.kubectl(&["delete", "service", "moved"])?;
    Ok(())
}

fn speaker_restarts(bench: &Bench) -> Result<()> {
    bench.apply(&service("steady", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/steady", "--timeout=60s"])?;
    let address = address_of(bench, "steady")?;
    let owner = announcing_node(bench, &address)?;
    answered_through_every_node(bench, &address)?;

    // It crashes: its node forwards on, and the new process asks before it answers again.
    let stream = bench.requests(&address)?;
    bench.crash_speaker(&owner)?;
    stream.none_failed()?;
    eventually(PATIENCE, "the speaker that crashed answers again", || {
        bench.forget_client_neighbours()?;
        Ok(bench.curl(&address).ok())
    })?;
    ensure!(announcing_node(bench, &address)? == owner, "the address moved because a speaker was started again");

    // All are restarted, one after the other: each drains first.
    let stream = bench.requests(&address)?;
    bench.kubectl(&["-n", "l2lb-system", "rollout", "restart", "daemonset/l2lb-speaker"])?;
    bench.kubectl(&["-n", "l2lb-system", "rollout", "status", "daemonset/l2lb-speaker", "--timeout=120s"])?;
    stream.none_failed()?;
    ensure!(address_of(bench, "steady")? == address);
    bench.kubectl(&["delete", "service", "steady"])?;
    Ok(())
}

fn api_outage(bench: &Bench) -> Result<()> {
    bench.apply(&service("lasting", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/lasting", "--timeout=60s"])?;
    let address = address_of(bench, "lasting")?;
    let owner = announcing_node(bench, &address)?;
    answered_through_every_node(bench, &address)?;
    let restarts = bench.restarts()?;
    let stream = bench.requests(&address)?;
    bench.kill_api_server()?;
    // Longer than a speaker's Lease lives: what looks dead to the controller afterwards is only the API server's silence.
    std::thread::sleep(Duration::from_secs(20));
    stream.none_failed()?;
    bench.forget_client_neighbours()?;
    bench.curl(&address).context("a client that asks anew, while the API server is away")?;
    let stream = bench.requests(&address)?;
    bench.start_api_server()?;
    eventually(PATIENCE * 3, "the controller works again", || {
        bench.apply(&service("afterwards", json!({})))?;
        Ok(bench.get("service", "afterwards")?["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(|_| ()))
    })?;
    stream.none_failed()?;
    ensure!(announcing_node(bench, &address)? == owner, "the address moved because the API server was away");
    ensure!(bench.restarts()? == restarts, "a process ended because the API server was away");
    bench.kubectl(&["delete", "service", "lasting", "afterwards"])?;
    Ok(())
}

fn dead_node(bench: &Bench) -> Result<()> {
    bench.apply(&service("orphan", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/orphan", "--timeout=60s"])?;
    let address = address_of(bench, "orphan")?;
    let owner = announcing_node(bench, &address)?;
    bench.power_off(&owner)?;
    let next = eventually(PATIENCE, "another node announces", || {
        let node = announcing_node(bench, &address)?;
        Ok((node != owner).then_some(node))
    })?;
    eventually(PATIENCE, "the client gets an answer from it", || Ok(bench.curl(&address).ok()))?;
    ensure!(address_of(bench, "orphan")? == address, "the address changed");
    bench.power_on(&owner)?;
    eventually(PATIENCE * 2, "the node is back with its speaker", || {
        let rejected = condition(&bench.get("speaker", &owner)?, "Ready");
        let node = condition(&bench.get("node", &owner)?, "Ready");
        Ok((rejected["status"] == "True" && node["status"] == "True").then_some(()))
    })?;
    // A Service that comes now goes to the node that returned: the controller counts it in again, and yet moves nothing.
    bench.apply(&service("fresh", json!({})))?;
    eventually(PATIENCE, "the returned node announces something new", || {
        let address = address_of(bench, "fresh")?;
        if announcing_node(bench, &address)? == owner {
            return Ok(Some(()));
        }
        bench.kubectl(&["delete", "service", "fresh"])?;
        bench.apply(&service("fresh", json!({})))?;
        Ok(None)
    })?;
    ensure!(announcing_node(bench, &address)? == next, "the returning node took its address back");
    bench.kubectl(&["delete", "service", "orphan", "fresh"])?;
    Ok(())
}
