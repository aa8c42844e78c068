//! Nodes and speakers that go, and come back.

use std::{
    collections::BTreeSet,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("a_node_with_the_drain_annotation_hands_over_without_a_lost_request", drained_node),
    ("a_claim_wiped_by_hand_comes_back", wiped_claim),
    ("the_lease_of_a_speaker_belongs_to_its_node", lease_owner),
    ("hand_written_endpoints_decide_where_policy_local_announces", hand_written_endpoints),
    ("addresses_are_spread_anew_only_on_request", rebalance),
    ("without_an_api_server_addresses_go_on_answering", api_outage),
    ("a_dead_node_is_replaced_and_does_not_take_its_addresses_back", dead_node),
    ("a_node_that_is_out_of_service_is_replaced_at_once", out_of_service),
];

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
    // Every speaker hears of new addresses again.
    let names = ["heard-1", "heard-2", "heard-3"];
    let mut nodes = BTreeSet::new();
    for name in names {
        bench.apply(&service(name, json!({})))?;
        nodes.insert(announcing_node(bench, &announced(bench, name)?)?);
    }
    nodes.insert(announcing_node(bench, &announced(bench, "afterwards")?)?);
    ensure!(nodes.len() == 3, "five addresses on {nodes:?}");
    delete_services(bench, &["lasting", "afterwards", "heard-1", "heard-2", "heard-3"])
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

/// By annotation, and back: without a lost request, and without a second move.
fn drained_node(bench: &Bench) -> Result<()> {
    let names = ["drained-1", "drained-2", "drained-3"];
    let mut addresses = Vec::new();
    for name in names {
        bench.apply(&service(name, json!({})))?;
        addresses.push(announced(bench, name)?);
    }
    let owner = announcing_node(bench, &addresses[0])?;
    let elsewhere: Vec<(String, String)> = addresses[1..]
        .iter()
        .map(|address| Ok((address.clone(), announcing_node(bench, address)?)))
        .collect::<Result<_>>()?;
    ensure!(elsewhere.iter().all(|(_, node)| *node != owner), "three addresses on three nodes: {elsewhere:?}");
    for address in &addresses {
        answered_through_every_node(bench, address)?;
    }
    // "false" is no wish.
    bench.kubectl(&["annotate", "node", &owner, "l2lb.io/drain=false"])?;
    let stream = bench.requests(&addresses[0])?;
    bench.kubectl(&["annotate", "node", &owner, "l2lb.io/drain=kernel update", "--overwrite"])?;
    let next = moved_from(bench, &addresses[0], &owner)?;
    says(bench, "drained-1", "Announced", "Announced", &[&next])?;
    stream.no_connection_failed(1)?;
    // A Service that comes now goes elsewhere.
    bench.apply(&service("drained-4", json!({})))?;
    let fourth = announced(bench, "drained-4")?;
    ensure!(announcing_node(bench, &fourth)? != owner, "a draining node got a new address");
    // The node is back: nothing moves, and what comes next goes to it, the one with the fewest.
    bench.kubectl(&["annotate", "node", &owner, "l2lb.io/drain-"])?;
    bench.apply(&service("drained-5", json!({})))?;
    let fifth = announced(bench, "drained-5")?;
    ensure!(announcing_node(bench, &fifth)? == owner, "the node that is back is not used");
    ensure!(announcing_node(bench, &addresses[0])? == next, "the node that is back took its address back");
    for (address, node) in &elsewhere {
        ensure!(announcing_node(bench, address)? == *node, "{address} has moved from {node}, which was not drained");
    }
    delete_services(bench, &["drained-1", "drained-2", "drained-3", "drained-4", "drained-5"])
}

/// An administrator says that the node is off: nobody waits for its Lease to run out.
fn out_of_service(bench: &Bench) -> Result<()> {
    bench.apply(&service("lost", json!({})))?;
    let address = announced(bench, "lost")?;
    let owner = announcing_node(bench, &address)?;
    bench.power_off(&owner)?;
    let taint = "node.kubernetes.io/out-of-service";
    let begin = Instant::now();
    bench.kubectl(&["taint", "node", &owner, &format!("{taint}=nodeshutdown:NoExecute")])?;
    moved_from(bench, &address, &owner)?;
    // The standbys need no taint for that. But what the dead node claimed, and its part, are taken away before its Lease has run out,
    // which takes 10 s at least.
    eventually(PATIENCE, "nothing is left of the dead node", || {
        let vip = bench.get("virtualip", &address)?;
        let of_owner = |entries: &Value| entries.as_array().into_iter().flatten().any(|entry| entry["node"] == *owner);
        Ok((!of_owner(&vip["status"]["claims"]) && !of_owner(&vip["spec"]["assignments"])).then_some(()))
    })?;
    let after = begin.elapsed();
    ensure!(after < Duration::from_secs(9), "the dead node counts as dead after {after:?} only");
    eventually(PATIENCE, "the client gets an answer", || Ok(bench.curl(&address).ok()))?;
    bench.kubectl(&["taint", "node", &owner, &format!("{taint}-")])?;
    bench.power_on(&owner)?;
    bench.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    delete_services(bench, &["lost"])
}

/// Endpoints that somebody writes by hand, for policy Local: where they serve, there the address is announced.
fn wiped_claim(bench: &Bench) -> Result<()> {
    bench.apply(&service("wiped", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/wiped", "--timeout=60s"])?;
    let address = address_of(bench, "wiped")?;
    let owner = announcing_node(bench, &address)?;
    let before = bench.get("virtualip", &address)?;
    let wipe = r#"{"status":{"claims":[]}}"#;
    let wiped =
        bench.kubectl(&["patch", "vip", &address, "--subresource=status", "--type=merge", "-p", wipe, "-o", "json"])?;
    let wiped: Value = serde_json::from_str(&wiped)?;
    ensure!(wiped["status"]["claims"].as_array().is_none_or(Vec::is_empty), "not wiped: {wiped}");
    ensure!(announcing_node(bench, &address)? == owner);
    let after = bench.get("virtualip", &address)?;
    ensure!(after["spec"] == before["spec"], "it was moved for that: {after}");
    bench.kubectl(&["delete", "service", "wiped"])?;
    Ok(())
}

fn lease_owner(bench: &Bench) -> Result<()> {
    for node in ["node1", "node2", "node3"] {
        let uid = text(&bench.get("node", node)?["metadata"]["uid"]);
        let name = format!("l2lb-speaker-{node}");
        eventually(PATIENCE, "the Lease is tied to the Node", || {
            let lease = bench.kubectl(&["-n", "l2lb-system", "get", "lease", &name, "-o", "json"])?;
            let lease: Value = serde_json::from_str(&lease)?;
            Ok((text(&lease["metadata"]["ownerReferences"][0]["uid"]) == uid).then_some(()))
        })?;
    }
    Ok(())
}

fn hand_written_endpoints(bench: &Bench) -> Result<()> {
    let mut local = service("by-hand", json!({"spec": {"externalTrafficPolicy": "Local"}}));
    local["spec"].as_object_mut().context("a spec")?.remove("selector");
    bench.apply(&local)?;
    says(bench, "by-hand", "Announced", "NoEndpoint", &["the Service has no endpoint"])?;
    let address = address_of(bench, "by-hand")?;
    let endpoint = |node: Value, conditions: Value| json!({"addresses": ["192.0.2.9"], "nodeName": node, "conditions": conditions});
    let write = |endpoints: Value| {
        bench.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {"name": "by-hand-1", "namespace": "default", "labels": {"kubernetes.io/service-name": "by-hand"}},
            "ports": [{"port": 8080, "protocol": "TCP"}],
        }))
    };
    let ready = json!({"ready": true});
    let unready = json!({"ready": false});
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    write(json!([endpoint(json!("node2"), ready.clone()), endpoint(json!("node3"), unready.clone())]))?;
    announced(bench, "by-hand")?;
    ensure!(announcing_node(bench, &address)? == "node2");
    // It ends, and another one is ready: the address moves. It ends, and no other is: the address stays while it serves.
    write(json!([endpoint(json!("node2"), ending.clone()), endpoint(json!("node3"), ready)]))?;
    ensure!(moved_from(bench, &address, "node2")? == "node3");
    write(json!([endpoint(json!("node2"), unready.clone()), endpoint(json!("node3"), ending)]))?;
    bench.apply(&service("witness", json!({})))?;
    announced(bench, "witness")?;
    announced(bench, "by-hand")?;
    ensure!(announcing_node(bench, &address)? == "node3");
    write(json!([endpoint(json!("node2"), unready.clone()), endpoint(json!("node3"), unready)]))?;
    says(bench, "by-hand", "Announced", "NoLocalEndpoint", &["no node has a serving endpoint"])?;
    // Whoever does not say on which node its endpoint is, is told.
    write(json!([endpoint(Value::Null, json!({"ready": true}))]))?;
    says(bench, "by-hand", "Announced", "NoLocalEndpoint", &["no endpoint says on which node it is"])?;
    ensure!(address_of(bench, "by-hand")? == address);
    bench.kubectl(&["delete", "endpointslice", "by-hand-1"])?;
    delete_services(bench, &["by-hand", "witness"])
}

/// Only where an administrator wants it: from the node with most addresses to the one with fewest.
fn rebalance(bench: &Bench) -> Result<()> {
    let names = ["even-1", "even-2", "even-3"];
    let addresses: Vec<String> = names
        .iter()
        .map(|name| {
            bench.apply(&service(name, json!({})))?;
            announced(bench, name)
        })
        .collect::<Result<_>>()?;
    let owner = announcing_node(bench, &addresses[0])?;
    bench.kubectl(&["annotate", "node", &owner, "l2lb.io/drain=yes"])?;
    let crowded = moved_from(bench, &addresses[0], &owner)?;
    bench.kubectl(&["annotate", "node", &owner, "l2lb.io/drain-"])?;
    let chart = lab::cluster::repository().join("charts/l2lb").display().to_string();
    let set = |rate: &str| -> Result<()> {
        let value = format!("controller.rebalanceMovesPerMinute={rate}");
        bench
            .helm(&["upgrade", "l2lb", &chart, "-n", "l2lb-system", "--reuse-values", "--wait", "--set", &value])
            .map(drop)
    };
    set("60")?;
    eventually(PATIENCE, &format!("{owner} has an address again, and {crowded} one less"), || {
        let mut nodes = Vec::new();
        for address in &addresses {
            nodes.push(announcing_node(bench, address)?);
        }
        nodes.sort();
        Ok((nodes == ["node1", "node2", "node3"]).then_some(()))
    })?;
    for name in names {
        announced(bench, name)?;
    }
    set("0")?;
    delete_services(bench, &names)
}
