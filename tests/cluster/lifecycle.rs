//! A Service's life: what others write to it, what it is changed to, and who served it before.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("a_status_that_somebody_edits_is_healed", edited_status),
    ("conditions_and_external_ips_of_others_are_left_alone", what_is_not_ours),
    ("types_change_both_ways", types),
    ("a_service_that_is_made_anew_in_another_class_gives_its_address_back", classes),
    ("addresses_that_another_load_balancer_gave_are_taken_over", adoption),
    ("with_a_namespace_its_addresses_go", namespace_deletion),
    ("a_request_that_cannot_be_understood_takes_nothing_away", broken_request),
];

fn edit_status(bench: &Bench, name: &str, status: &Value) -> Result<()> {
    let change = json!({"status": status}).to_string();
    bench.kubectl(&["patch", "service", name, "--subresource=status", "--type=merge", "-p", &change]).map(drop)
}

fn edited_status(bench: &Bench) -> Result<()> {
    bench.apply(&service("edited", json!({})))?;
    let address = announced(bench, "edited")?;
    answered_through_every_node(bench, &address)?;
    for status in [
        json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.250"}]}}),
        json!({"loadBalancer": {"ingress": null}}),
        json!({"loadBalancer": {"ingress": [{"hostname": "lb.example.com"}]}}),
        json!({"loadBalancer": {"ingress": [{"ip": address, "ipMode": "Proxy"}]}}),
        json!({"conditions": null}),
    ] {
        edit_status(bench, "edited", &status)?;
        eventually(PATIENCE, &format!("{status} is healed"), || {
            let service = bench.get("service", "edited")?;
            let ingress = json!([{"ip": address, "ipMode": "VIP"}]);
            let is_announced = condition(&service, "l2lb.io/Announced")["status"] == "True";
            let is_allocated = condition(&service, "l2lb.io/Allocated")["status"] == "True";
            let healed = service["status"]["loadBalancer"]["ingress"] == ingress && is_announced && is_allocated;
            Ok(healed.then_some(()))
        })?;
    }
    answers(bench, &address)?;
    // One that has none shows none.
    bench.apply(&asking("without", json!({"l2lb.io/addresses": "192.0.2.x"})))?;
    says(bench, "without", "Allocated", "InvalidRequest", &["'192.0.2.x'"])?;
    edit_status(bench, "without", &json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.9"}]}}))?;
    eventually(PATIENCE, "it shows none", || Ok(shown(&bench.get("service", "without")?).is_empty().then_some(())))?;
    delete_services(bench, &["edited", "without"])
}

fn what_is_not_ours(bench: &Bench) -> Result<()> {
    bench.apply(&service("common", json!({"spec": {"externalIPs": ["192.0.2.230"]}})))?;
    let address = announced(bench, "common")?;
    let theirs = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": "common", "namespace": "default"},
        "status": {"conditions": [{
            "type": "example.com/Checked", "status": "True", "reason": "Fine", "message": "another controller says so",
            "lastTransitionTime": "2026-01-01T00:00:00Z",
        }]},
    });
    bench.apply_text(&theirs.to_string(), &["--server-side", "--subresource=status", "--field-manager=other"])?;
    let theirs = condition(&bench.get("service", "common")?, "example.com/Checked");
    ensure!(theirs["reason"] == "Fine");
    let unharmed = |service: &Value| {
        condition(service, "example.com/Checked") == theirs && service["spec"]["externalIPs"] == json!(["192.0.2.230"])
    };
    // Its status is written again, and at the end all that is ours is taken out of it.
    bench.apply(&service(
        "common",
        json!({"metadata": {"annotations": {"l2lb.io/addresses": "192.0.2.210"}}, "spec": {"externalIPs": ["192.0.2.230"]}}),
    ))?;
    let changed = eventually(PATIENCE, "it shows the address that it asks for now", || {
        let service = bench.get("service", "common")?;
        Ok((shown(&service) == ["192.0.2.210"]).then_some(service))
    })?;
    ensure!(address != "192.0.2.210" && unharmed(&changed), "{changed}");
    patch(bench, "service", "common", json!({"spec": {"type": "ClusterIP"}}))?;
    let left = eventually(PATIENCE, "nothing of ours is left", || {
        let service = bench.get("service", "common")?;
        let ours = ["l2lb.io/Allocated", "l2lb.io/Announced"].map(|kind| condition(&service, kind));
        Ok((shown(&service).is_empty() && ours.iter().all(Value::is_null)).then_some(service))
    })?;
    ensure!(unharmed(&left), "{left}");
    bench.kubectl(&["delete", "service", "common"]).map(drop)
}

fn types(bench: &Bench) -> Result<()> {
    bench.apply(&service("changing", json!({"spec": {"type": "ClusterIP"}})))?;
    for (kind, has_one) in [("LoadBalancer", true), ("NodePort", false), ("LoadBalancer", true), ("ClusterIP", false)] {
        patch(bench, "service", "changing", json!({"spec": {"type": kind}}))?;
        if has_one {
            let address = announced(bench, "changing")?;
            answers(bench, &address)?;
            continue;
        }
        eventually(PATIENCE, &format!("as {kind} it has none"), || {
            let service = bench.get("service", "changing")?;
            let free = bench.kubectl(&["get", "virtualips", "-o", "name"])?.is_empty();
            let silent = condition(&service, "l2lb.io/Allocated").is_null();
            Ok((free && silent && shown(&service).is_empty()).then_some(()))
        })?;
    }
    bench.kubectl(&["delete", "service", "changing"]).map(drop)
}

fn classes(bench: &Bench) -> Result<()> {
    bench.apply(&service("classy", json!({})))?;
    let address = announced(bench, "classy")?;
    bench.kubectl(&["delete", "service", "classy"])?;
    bench.apply(&service("classy", json!({"spec": {"loadBalancerClass": "example.com/other"}})))?;
    given_back(bench, &address)?;
    let service_now = bench.get("service", "classy")?;
    ensure!(shown(&service_now).is_empty() && service_now["status"]["conditions"].is_null(), "{service_now}");
    // What its own load balancer shows there is left alone.
    edit_status(bench, "classy", &json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.240"}]}}))?;
    bench.kubectl(&["label", "service", "classy", "touched=yes"])?;
    bench.apply(&service("witness", json!({})))?;
    announced(bench, "witness")?;
    ensure!(shown(&bench.get("service", "classy")?) == ["192.0.2.240"]);
    // And back.
    bench.kubectl(&["delete", "service", "classy"])?;
    bench.apply(&service("classy", json!({})))?;
    announced(bench, "classy")?;
    delete_services(bench, &["classy", "witness"])
}

/// As the migration page has it: the controller starts when the other load balancer has ended.
fn adoption(bench: &Bench) -> Result<()> {
    bench.scale_controller(0)?;
    let theirs = [("taken-1", "192.0.2.85"), ("taken-2", "192.0.2.66"), ("taken-3", "192.0.2.207")];
    for (name, address) in theirs {
        bench.apply(&service(name, json!({})))?;
        edit_status(bench, name, &json!({"loadBalancer": {"ingress": [{"ip": address}]}}))?;
    }
    // Shared among two as MetalLB does it, under its annotation.
    for (name, port) in [("taken-4", 80), ("taken-5", 81)] {
        let mut shared = asking(name, json!({"metallb.universe.tf/allow-shared-ip": "key"}));
        shared["spec"]["ports"] = json!([{"port": port, "targetPort": 8080}]);
        bench.apply(&shared)?;
        edit_status(bench, name, &json!({"loadBalancer": {"ingress": [{"ip": "192.0.2.68"}]}}))?;
    }
    // In no pool of ours; and one without any, whose name comes first.
    bench.apply(&service("taken-6", json!({})))?;
    edit_status(bench, "taken-6", &json!({"loadBalancer": {"ingress": [{"ip": "203.0.113.77"}]}}))?;
    bench.apply(&service("a-new-one", json!({})))?;
    bench.scale_controller(2)?;
    for (name, address) in [theirs.as_slice(), &[("taken-4", "192.0.2.68"), ("taken-5", "192.0.2.68")]].concat() {
        let given = announced(bench, name)?;
        ensure!(given == address, "{name} showed {address} and has {given}");
    }
    answers(bench, "192.0.2.85")?;
    answers(bench, "192.0.2.68:81")?;
    let fresh = announced(bench, "a-new-one")?;
    ensure!(
        !["192.0.2.85", "192.0.2.66", "192.0.2.207", "192.0.2.68"].contains(&fresh.as_str()),
        "{fresh} was given twice"
    );
    let replaced = eventually(PATIENCE, "what is in no pool is replaced", || {
        Ok(shown(&bench.get("service", "taken-6")?).pop().filter(|address| address != "203.0.113.77"))
    })?;
    ensure!(replaced.starts_with("192.0.2."), "{replaced}");
    let told = eventually(PATIENCE, "and it is told", || Ok(events(bench, "taken-6", "AddressChanged")?.pop()))?;
    ensure!(told.contains("203.0.113.77"), "{told}");
    delete_services(bench, &["taken-1", "taken-2", "taken-3", "taken-4", "taken-5", "taken-6", "a-new-one"])
}

fn namespace_deletion(bench: &Bench) -> Result<()> {
    bench.kubectl(&["create", "namespace", "short-lived"])?;
    let mut addresses = Vec::new();
    for name in ["one", "two", "three"] {
        let mut service = service(name, json!({}));
        service["metadata"]["namespace"] = json!("short-lived");
        bench.apply(&service)?;
        addresses.push(announced_in(bench, "short-lived", name)?);
    }
    bench.kubectl(&["delete", "namespace", "short-lived"])?;
    addresses.iter().try_for_each(|address| given_back(bench, address))
}

fn broken_request(bench: &Bench) -> Result<()> {
    bench.apply(&asking("broken", json!({"l2lb.io/addresses": "192.0.2.93"})))?;
    ensure!(announced(bench, "broken")? == "192.0.2.93");
    bench.apply(&asking("broken", json!({"l2lb.io/addresses": "192.0.2.93,"})))?;
    says(
        bench,
        "broken",
        "Allocated",
        "InvalidRequest",
        &["annotation l2lb.io/addresses: '' is not an IP address", "it keeps 192.0.2.93"],
    )?;
    ensure!(shown(&bench.get("service", "broken")?) == ["192.0.2.93"]);
    answers(bench, "192.0.2.93")?;
    // Two places that contradict each other are both named.
    let contradiction = json!({"l2lb.io/addresses": "192.0.2.93", "metallb.io/loadBalancerIPs": "192.0.2.94"});
    bench.apply(&asking("broken", contradiction))?;
    let words =
        ["l2lb.io/addresses asks for 192.0.2.93", "metallb.io/loadBalancerIPs for 192.0.2.94", "keep one of them"];
    says(bench, "broken", "Allocated", "InvalidRequest", &words)?;
    ensure!(shown(&bench.get("service", "broken")?) == ["192.0.2.93"]);
    // Corrected to something else: at once.
    bench.apply(&asking("broken", json!({"l2lb.io/addresses": "192.0.2.94", "metallb.io/loadBalancerIPs": null})))?;
    eventually(PATIENCE, "it has what it asks for", || {
        Ok((shown(&bench.get("service", "broken")?) == ["192.0.2.94"]).then_some(()))
    })?;
    eventually(PATIENCE, "an event tells of it", || {
        let told = events(bench, "broken", "AddressChanged")?;
        Ok(told.iter().any(|told| told.contains("192.0.2.94 replaces 192.0.2.93")).then_some(()))
    })?;
    delete_services(bench, &["broken"])
}
