//! One address for several Services.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("services_that_share_are_both_reached_and_the_last_one_frees_the_address", both_reached),
    ("who_does_not_get_along_with_the_others_is_told_why", objections),
    ("a_change_in_place_is_checked_again", changes_in_place),
    ("with_policy_local_only_the_same_backends_share", same_backends),
    ("services_of_other_namespaces_share_too", other_namespaces),
];

/// A Service on one port with a sharing key.
fn sharing(name: &str, key: &str, port: u16) -> Value {
    let mut service = asking(name, json!({"l2lb.io/sharing-key": key}));
    service["spec"]["ports"] = json!([{"port": port, "targetPort": 8080}]);
    service
}

fn both_reached(bench: &Bench) -> Result<()> {
    bench.apply(&sharing("share-80", "lab", 80))?;
    let address = announced(bench, "share-80")?;
    bench.apply(&sharing("share-81", "lab", 81))?;
    ensure!(announced(bench, "share-81")? == address);
    answers(bench, &address)?;
    answers(bench, &format!("{address}:81"))?;
    ensure!(bench.get("virtualip", &address)?["spec"]["services"] == json!(["default/share-80", "default/share-81"]));
    // One goes: the other one is served on.
    let stream = bench.requests(&address)?;
    bench.kubectl(&["delete", "service", "share-81"])?;
    eventually(PATIENCE, "one user is left", || {
        Ok((bench.get("virtualip", &address)?["spec"]["services"] == json!(["default/share-80"])).then_some(()))
    })?;
    stream.none_failed()?;
    delete_services(bench, &["share-80"])
}

fn objections(bench: &Bench) -> Result<()> {
    let mut first = sharing("share-first", "lab", 80);
    first["metadata"]["annotations"]["l2lb.io/addresses"] = json!("192.0.2.91");
    bench.apply(&first)?;
    announced(bench, "share-first")?;
    let refused = |name: &str, port: u16, key: Option<&str>, reason: &str, words: &str| -> Result<()> {
        let mut service = sharing(name, key.unwrap_or_default(), port);
        service["metadata"]["annotations"]["l2lb.io/addresses"] = json!("192.0.2.91");
        bench.apply(&service)?;
        says(bench, name, "Allocated", reason, &["192.0.2.91", words])?;
        ensure!(shown(&bench.get("service", name)?).is_empty(), "{name} shows an address");
        delete_services(bench, &[name])
    };
    refused(
        "share-same-port",
        80,
        Some("lab"),
        "PortCollision",
        "default/share-first, which already uses port 80/TCP",
    )?;
    refused("share-other-key", 81, Some("other"), "SharingMismatch", "another sharing key than 'other'")?;
    refused("share-no-key", 81, None, "AddressInUse", "in use by default/share-first")?;
    // Who asks for no certain address gets one of its own.
    bench.apply(&sharing("share-elsewhere", "lab", 80))?;
    ensure!(announced(bench, "share-elsewhere")? != "192.0.2.91");
    delete_services(bench, &["share-first", "share-elsewhere"])
}

fn changes_in_place(bench: &Bench) -> Result<()> {
    bench.apply(&sharing("share-1", "lab", 80))?;
    let address = announced(bench, "share-1")?;
    bench.apply(&sharing("share-2", "lab", 81))?;
    ensure!(announced(bench, "share-2")? == address);
    // Another key: it moves to an address of its own, and the other one stays.
    bench.apply(&sharing("share-2", "other", 81))?;
    let own = eventually(PATIENCE, "it has an address of its own", || {
        Ok(Some(address_of(bench, "share-2")?).filter(|own| *own != address))
    })?;
    let told = eventually(PATIENCE, "an event tells of it", || Ok(events(bench, "share-2", "AddressChanged")?.pop()))?;
    ensure!(told.contains(&format!("{own} replaces {address}")), "{told}");
    // A port that collides: the same.
    bench.apply(&sharing("share-3", "lab", 82))?;
    ensure!(announced(bench, "share-3")? == address);
    bench.apply(&sharing("share-3", "lab", 80))?;
    eventually(PATIENCE, "two Services with one port do not share", || {
        Ok((address_of(bench, "share-3")? != address).then_some(()))
    })?;
    ensure!(address_of(bench, "share-1")? == address, "who was there first was moved");
    answers(bench, &address)?;
    delete_services(bench, &["share-1", "share-2", "share-3"])
}

fn same_backends(bench: &Bench) -> Result<()> {
    let local = |name: &str, port: u16, selector: Value| {
        let mut service = sharing(name, "lab-local", port);
        service["spec"]["externalTrafficPolicy"] = json!("Local");
        service["spec"]["selector"] = selector;
        service
    };
    bench.apply(&local("share-local-1", 80, json!({"app": "web"})))?;
    let address = announced(bench, "share-local-1")?;
    bench.apply(&local("share-local-2", 81, json!({"app": "web"})))?;
    ensure!(announced(bench, "share-local-2")? == address);
    answers(bench, &format!("{address}:81"))?;
    for (name, other) in [
        ("share-local-3", local("share-local-3", 82, json!({"app": "other"}))),
        ("share-cluster", sharing("share-cluster", "lab-local", 83)),
    ] {
        let mut other = other;
        other["metadata"]["annotations"]["l2lb.io/addresses"] = json!(address);
        bench.apply(&other)?;
        let words = ["with externalTrafficPolicy Local both need the same policy and selector"];
        says(bench, name, "Allocated", "SharingMismatch", &words)?;
        delete_services(bench, &[name])?;
    }
    delete_services(bench, &["share-local-1", "share-local-2"])
}

fn other_namespaces(bench: &Bench) -> Result<()> {
    bench.kubectl(&["create", "namespace", "neighbour"])?;
    bench.apply(&sharing("share-here", "lab", 80))?;
    let address = announced(bench, "share-here")?;
    let mut there = sharing("share-there", "lab", 81);
    there["metadata"]["namespace"] = json!("neighbour");
    bench.apply(&there)?;
    ensure!(announced_in(bench, "neighbour", "share-there")? == address);
    // With its namespace the Service goes, and the address stays with the other one.
    bench.kubectl(&["delete", "namespace", "neighbour"])?;
    eventually(PATIENCE, "one user is left", || {
        Ok((bench.get("virtualip", &address)?["spec"]["services"] == json!(["default/share-here"])).then_some(()))
    })?;
    delete_services(bench, &["share-here"])
}
