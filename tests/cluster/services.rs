//! What a Service gets and shows.

use std::collections::BTreeMap;

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("a_service_gets_an_address_that_answers_and_says_where", service_comes_up),
    ("services_come_up_with_three_writes_and_one_event_each", few_writes),
    ("a_service_that_asks_for_what_cannot_be_had_keeps_none_and_says_why", impossible_requests),
    ("a_requested_address_is_given", requested_address),
    ("a_service_that_changes_its_type_gives_its_address_back", type_change),
    ("with_policy_local_a_node_with_an_endpoint_announces_and_the_client_is_seen", local_policy),
    ("a_service_of_another_class_is_not_touched", other_class),
];

fn service_comes_up(bench: &Bench) -> Result<()> {
    bench.apply(&service("web-1", json!({})))?;
    let address = address_of(bench, "web-1")?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/web-1", "--timeout=60s"])?;
    let service = bench.get("service", "web-1")?;
    ensure!(service["status"]["loadBalancer"]["ingress"][0]["ipMode"] == "VIP", "{}", service["status"]);
    let node = announcing_node(bench, &address)?;
    let number = node.trim_start_matches("node").to_owned();
    let announced = condition(&service, "l2lb.io/Announced");
    let message = text(&announced["message"]);
    for word in [&node, "eth0", &format!("02:00:00:00:01:0{number}")] {
        ensure!(message.contains(word), "the message has no {word}: {message}");
    }
    ensure!(text(&condition(&service, "l2lb.io/Allocated")["message"]).contains("lan"), "the pool is named");
    answered_through_every_node(bench, &address)?;
    let columns = bench.kubectl(&["get", "virtualip", &address])?;
    for word in ["NODE", "MAC", "STATE", &node, "eth0", "Owner", "default/web-1"] {
        ensure!(columns.contains(word), "`kubectl get virtualips` shows no {word}: {columns}");
    }
    // Events are written after what they tell of.
    eventually(PATIENCE, "`kubectl describe` shows an event", || {
        let events = bench.kubectl(&["describe", "service", "web-1"])?;
        let shows = |line: &str| line.contains("l2lb.io/controller") && line.contains("Announced");
        Ok(events.lines().any(shows).then_some(()))
    })?;
    // Nothing of the address is configured on a node: the speaker answers by itself.
    for node in ["node1", "node2", "node3"] {
        ensure!(!bench.in_node(node, &["ip", "address"])?.contains(&address), "{node} has {address} on an interface");
        ensure!(
            !bench.in_node(node, &["ip", "-d", "link", "show", "eth0"])?.contains("promiscuity 1"),
            "{node} is promiscuous"
        );
    }
    delete_services(bench, &["web-1"])?;
    eventually(PATIENCE, "nobody answers for it", || Ok(bench.curl(&address).is_err().then_some(())))
}

fn few_writes(bench: &Bench) -> Result<()> {
    const SERVICES: usize = 8;
    let (before, rechecks) = (bench.writes()?, bench.rechecks());
    let names: Vec<String> = (0..SERVICES).map(|number| format!("few-{number}")).collect();
    for name in &names {
        bench.apply(&service(name, json!({})))?;
    }
    for name in &names {
        let service = format!("service/{name}");
        bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", &service, "--timeout=60s"])?;
    }
    let mut grown = bench.writes()?.since(&before, &["virtualips", "virtualips/status", "services/status"])?;
    // One speaker may stand still where this test does not, and then tells its claims anew: one at most when it begins to ask, and one
    // when it is sure.
    let rechecks = bench.rechecks().saturating_sub(rechecks);
    let (all, told) = (SERVICES as u64, grown.get("virtualips/status").copied().unwrap_or_default());
    if (all + 1..=all + 2 * rechecks as u64).contains(&told) {
        println!(
            "{told} claims were told: {rechecks} owners asked anew, because their speaker did not run for a while"
        );
        grown.insert("virtualips/status", all);
    }
    let expected: BTreeMap<&str, u64> = grown.keys().map(|resource| (*resource, all)).collect();
    ensure!(grown == expected, "writes for {SERVICES} Services: {grown:?}");
    // Kubernetes' own controllers write events, too, and the API server's counts do not tell whose.
    for name in &names {
        let told = eventually(PATIENCE, &format!("{name} has an event"), || {
            let told = events_of_ours(bench, name)?;
            Ok((!told.is_empty()).then_some(told))
        })?;
        ensure!(told.len() == 1, "{name}: {told:?}");
    }
    // Fairly spread, too.
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        *owners.entry(announcing_node(bench, &address_of(bench, name)?)?).or_default() += 1;
    }
    ensure!(owners.values().all(|count| (2..=3).contains(count)), "8 addresses on 3 nodes: {owners:?}");
    delete_services(bench, &names.iter().map(String::as_str).collect::<Vec<_>>())
}

fn impossible_requests(bench: &Bench) -> Result<()> {
    bench.apply(&service("taker", json!({"metadata": {"annotations": {"l2lb.io/addresses": "192.0.2.90"}}})))?;
    ensure!(address_of(bench, "taker")? == "192.0.2.90");
    let annotated = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    for (name, changes, reason, words) in [
        ("no-such-pool", annotated("l2lb.io/pool", "moon"), "NoMatchingPool", "moon"),
        ("no-such-address", annotated("l2lb.io/addresses", "203.0.113.9"), "AddressNotInPool", "203.0.113.9"),
        ("no-address", annotated("l2lb.io/addresses", "192.0.2.x"), "InvalidRequest", "192.0.2.x"),
        ("taken", annotated("metallb.io/loadBalancerIPs", "192.0.2.90"), "AddressInUse", "default/taker"),
        ("excluded", json!({"spec": {"loadBalancerIP": "192.0.2.70"}}), "AddressNotInPool", "192.0.2.70"),
    ] {
        bench.apply(&service(name, changes))?;
        let message = eventually(PATIENCE, &format!("{name} says {reason}"), || {
            let allocated = condition(&bench.get("service", name)?, "l2lb.io/Allocated");
            Ok((allocated["reason"] == reason && allocated["status"] == "False").then(|| text(&allocated["message"])))
        })?;
        ensure!(message.contains(words), "{name}: '{words}' is not in: {message}");
        ensure!(bench.get("service", name)?["status"]["loadBalancer"]["ingress"].is_null(), "{name} shows an address");
        delete_services(bench, &[name])?;
    }
    delete_services(bench, &["taker"])
}

fn requested_address(bench: &Bench) -> Result<()> {
    for (name, changes) in [
        ("by-annotation", json!({"metadata": {"annotations": {"l2lb.io/addresses": "192.0.2.201"}}})),
        ("by-field", json!({"spec": {"loadBalancerIP": "192.0.2.201"}})),
        ("by-metallb", json!({"metadata": {"annotations": {"metallb.universe.tf/loadBalancerIPs": "192.0.2.201"}}})),
    ] {
        bench.apply(&service(name, changes))?;
        ensure!(address_of(bench, name)? == "192.0.2.201", "{name}");
        delete_services(bench, &[name])?;
    }
    Ok(())
}

fn type_change(bench: &Bench) -> Result<()> {
    bench.apply(&service("fickle", json!({})))?;
    let address = address_of(bench, "fickle")?;
    bench.kubectl(&["patch", "service", "fickle", "--type=merge", "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    eventually(PATIENCE, "the address is given back and the Service speaks no more of it", || {
        let service = bench.get("service", "fickle")?;
        let gone = bench.is_gone("virtualip", &address)?;
        let ours =
            condition(&service, "l2lb.io/Allocated").is_null() && condition(&service, "l2lb.io/Announced").is_null();
        Ok((gone && ours && service["status"]["loadBalancer"]["ingress"].is_null()).then_some(()))
    })?;
    bench.kubectl(&["delete", "service", "fickle"])?;
    Ok(())
}

fn local_policy(bench: &Bench) -> Result<()> {
    bench.apply(&service("local", json!({"spec": {"externalTrafficPolicy": "Local"}})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/local", "--timeout=60s"])?;
    let address = address_of(bench, "local")?;
    let owner = announcing_node(bench, &address)?;
    let nodes = bench.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    ensure!(nodes.split_whitespace().any(|node| node == owner), "{owner} announces, the Pods are on {nodes}");
    answered_through_every_node(bench, &address)?;
    let answer = answers_soon(bench, &address)?;
    ensure!(answer.contains("from=192.0.2.3:"), "the Pod sees another client: {answer}");
    // Nobody has an endpoint any more: the Service says so, and keeps its address.
    bench.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    eventually(PATIENCE, "the Service says that it has no endpoint", || {
        let announced = condition(&bench.get("service", "local")?, "l2lb.io/Announced");
        Ok((announced["status"] == "False" && text(&announced["reason"]).starts_with("No")).then_some(()))
    })?;
    ensure!(address_of(bench, "local")? == address);
    bench.kubectl(&["scale", "deployment/web", "--replicas=2"])?;
    bench.kubectl(&["rollout", "status", "deployment/web", "--timeout=120s"])?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/local", "--timeout=60s"])?;
    delete_services(bench, &["local"])
}

fn other_class(bench: &Bench) -> Result<()> {
    bench.apply(&service("foreign", json!({"spec": {"loadBalancerClass": "example.com/other"}})))?;
    // A Service of ours that comes later is served: by then the other one was seen, too.
    bench.apply(&service("ours", json!({})))?;
    address_of(bench, "ours")?;
    let foreign = bench.get("service", "foreign")?;
    ensure!(
        foreign["status"]["conditions"].is_null() && foreign["status"]["loadBalancer"]["ingress"].is_null(),
        "{foreign}"
    );
    delete_services(bench, &["foreign", "ours"])
}
