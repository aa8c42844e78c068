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
    answers_soon(bench, &address).context("a client that asks anew, while the API server is away")?;
    let stream = bench.requests(&address)?;
    bench.start_api_server()?;
    eventually(PATIENCE * 3, "the controller works again", || {
        bench.apply(&service("afterwards", json!({})))?;
        Ok(bench.get("service", "afterwards")?["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(|_| ()))
    })?;
    stream.none_failed()?;
    ensure!(announcing_node(bench, &address)? == owner, "the address moved because the API server was away");
    ensure!(bench.restarts()? == restarts, "a process ended because the API server was away");
    // Every speaker hears of new addresses again, as soon as it has found the API server.
    let mut made = vec!["lasting".to_owned(), "afterwards".to_owned()];
    let mut nodes = BTreeSet::from([owner, announcing_node(bench, &announced(bench, "afterwards")?)?]);
    eventually(PATIENCE, "every node announces something", || {
        let name = format!("heard-{}", made.len());
        bench.apply(&service(&name, json!({})))?;
        made.push(name.clone());
        nodes.insert(announcing_node(bench, &announced(bench, &name)?)?);
        Ok((nodes.len() == 3).then_some(()))
    })?;
    delete_services(bench, &made.iter().map(String::as_str).collect::<Vec<_>>())
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
    answers(bench, &address).context("a client that asks while a node is dead")?;
    ensure!(address_of(bench, "orphan")? == address, "the address changed");
    let renewed = || -> Result<String> {
        let lease = format!("l2lb-speaker-{owner}");
        bench.kubectl(&["-n", "l2lb-system", "get", "lease", &lease, "-o", "jsonpath={.spec.renewTime}"])
    };
    let before = renewed()?;
    bench.power_on(&owner)?;
    // Until its speaker is back, its objects say what was true before the power cut.
    eventually(PATIENCE * 2, "the node is back with its speaker", || {
        let speaker = condition(&bench.get("speaker", &owner)?, "Ready");
        let node = condition(&bench.get("node", &owner)?, "Ready");
        let is_back = renewed()? != before && speaker["status"] == "True" && node["status"] == "True";
        Ok(is_back.then_some(()))
    })?;
    // Of the Services that come now one goes to the node that returned, which has the fewest: the controller counts it in again, and yet
    // moves nothing.
    let mut made = vec!["orphan".to_owned()];
    eventually(PATIENCE, "the returned node announces something new", || {
        let name = format!("fresh-{}", made.len());
        bench.apply(&service(&name, json!({})))?;
        made.push(name.clone());
        Ok((announcing_node(bench, &announced(bench, &name)?)? == owner).then_some(()))
    })?;
    ensure!(announcing_node(bench, &address)? == next, "the returning node took its address back");
    delete_services(bench, &made.iter().map(String::as_str).collect::<Vec<_>>())
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
    stream.no_connection_failed()?;
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

/// Sees to it that the controller that leads is on another node than this one: with its node it would be gone until its own Lease had
/// run out.
fn led_from_elsewhere(bench: &Bench, node: &str) -> Result<()> {
    // What comes in the place of one that ends does not come here.
    bench.kubectl(&["cordon", node])?;
    let moved = eventually(PATIENCE * 2, &format!("a controller leads that is not on {node}"), || {
        let leader = leader_after(bench, "")?;
        let is_at = bench.kubectl(&["-n", "l2lb-system", "get", "pod", &leader, "-o", "jsonpath={.spec.nodeName}"])?;
        if is_at != node {
            return Ok(Some(()));
        }
        bench.kubectl(&["-n", "l2lb-system", "delete", "pod", &leader])?;
        bench.controllers_are(2)?;
        leader_after(bench, &leader)?;
        Ok(None)
    });
    bench.kubectl(&["uncordon", node])?;
    moved
}

/// An administrator says that the node is off: nobody waits for its Lease to run out.
fn out_of_service(bench: &Bench) -> Result<()> {
    bench.apply(&service("lost", json!({})))?;
    let address = announced(bench, "lost")?;
    let owner = announcing_node(bench, &address)?;
    led_from_elsewhere(bench, &owner)?;
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
    answers(bench, &address)?;
    bench.kubectl(&["taint", "node", &owner, &format!("{taint}-")])?;
    bench.power_on(&owner)?;
    bench.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
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
    delete_services(bench, &["wiped"])
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
    for name in ["by-hand", "witness"] {
        let mut local = service(name, json!({"spec": {"externalTrafficPolicy": "Local"}}));
        local["spec"].as_object_mut().context("a spec")?.remove("selector");
        bench.apply(&local)?;
    }
    says(bench, "by-hand", "Announced", "NoEndpoint", &["the Service has no endpoint"])?;
    let address = address_of(bench, "by-hand")?;
    let endpoint = |node: Value, conditions: Value| json!({"addresses": ["192.0.2.9"], "nodeName": node, "conditions": conditions});
    let write_of = |service: &str, endpoints: Value| {
        bench.apply(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4", "endpoints": endpoints,
            "metadata": {
                "name": format!("{service}-1"), "namespace": "default", "labels": {"kubernetes.io/service-name": service},
            },
            "ports": [{"port": 8080, "protocol": "TCP"}],
        }))
    };
    let write = |endpoints: Value| write_of("by-hand", endpoints);
    let ready = json!({"ready": true});
    let unready = json!({"ready": false});
    let ending = json!({"ready": false, "serving": true, "terminating": true});
    write(json!([endpoint(json!("node2"), ready.clone()), endpoint(json!("node3"), unready.clone())]))?;
    announced(bench, "by-hand")?;
    ensure!(announcing_node(bench, &address)? == "node2");
    // It ends, and another one is ready: the address moves. It ends, and no other is: the address stays while it serves.
    write(json!([endpoint(json!("node2"), ending.clone()), endpoint(json!("node3"), ready.clone())]))?;
    ensure!(moved_from(bench, &address, "node2")? == "node3");
    write(json!([endpoint(json!("node2"), unready.clone()), endpoint(json!("node3"), ending)]))?;
    // Events of one kind come in their order: who has seen the endpoint of this Service has seen what became of the other's.
    says(bench, "witness", "Announced", "NoEndpoint", &["the Service has no endpoint"])?;
    write_of("witness", json!([endpoint(json!("node1"), ready)]))?;
    announced(bench, "witness")?;
    announced(bench, "by-hand")?;
    ensure!(announcing_node(bench, &address)? == "node3");
    write(json!([endpoint(json!("node2"), unready.clone()), endpoint(json!("node3"), unready)]))?;
    says(bench, "by-hand", "Announced", "NoLocalEndpoint", &["no node has a serving endpoint"])?;
    // Whoever does not say on which node its endpoint is, is told.
    write(json!([endpoint(Value::Null, json!({"ready": true}))]))?;
    says(bench, "by-hand", "Announced", "NoLocalEndpoint", &["no endpoint says on which node it is"])?;
    ensure!(address_of(bench, "by-hand")? == address);
    bench.kubectl(&["delete", "endpointslice", "by-hand-1", "witness-1"])?;
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
    let set =
        |rate: &str| bench.upgrade(&["--reuse-values", "--set", &format!("controller.rebalanceMovesPerMinute={rate}")]);
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
