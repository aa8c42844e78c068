//! Pools, and what becomes of addresses when pools change.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("a_pool_that_the_api_server_cannot_judge_says_not_ready_and_others_go_on", backward_range),
    ("the_lowest_free_address_is_given_and_a_released_one_last", order_of_addresses),
    ("who_may_use_a_pool_acts_at_once_and_auto_assign_takes_nothing", admission_changes),
    ("of_two_pools_with_the_same_addresses_the_younger_does_not_use_them", overlaps),
    ("addresses_of_nodes_and_of_the_cluster_are_never_given", nodes_and_cluster_ranges),
];

/// Half a minute each, which is the product's; they run beside each other.
pub const SLOW: &[Test] = &[("what_no_pool_holds_any_more_is_replaced_after_30_s_and_said", live_reconfiguration)];

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
    delete_services(bench, &["from-the-rest", "from-the-other"])?;
    bench.kubectl(&["delete", "ippool", "backward"])?;
    Ok(())
}

/// One test for all that takes 30 s: a pool may be made anew, renamed or split meanwhile, and nothing happens; what no pool holds
/// after that is replaced, and said.
fn live_reconfiguration(bench: &Bench) -> Result<()> {
    let ask_for = |name: &str, pool: &str| bench.apply(&asking(name, json!({"l2lb.io/pool": pool})));
    for (name, range) in
        [("lab-shrunk", "192.0.2.150-192.0.2.151"), ("lab-doomed", "192.0.2.152"), ("lab-anew", "192.0.2.153")]
    {
        bench.apply(&private_pool(name, &[range]))?;
    }
    bench.apply(&private_pool("lab-renamed", &["192.0.2.154-192.0.2.155"]))?;
    ask_for("shrunk", "lab-shrunk")?;
    ask_for("doomed", "lab-doomed")?;
    ask_for("anew", "lab-anew")?;
    bench.apply(&asking("renamed", json!({"l2lb.io/addresses": "192.0.2.155"})))?;
    bench.apply(&asking("wanted", json!({"l2lb.io/addresses": "192.0.2.154"})))?;
    for (name, address) in [
        ("shrunk", "192.0.2.150"),
        ("doomed", "192.0.2.152"),
        ("anew", "192.0.2.153"),
        ("renamed", "192.0.2.155"),
        ("wanted", "192.0.2.154"),
    ] {
        let given = announced(bench, name)?;
        ensure!(given == address, "{name}: {given}");
    }

    let begin = Instant::now();
    patch(bench, "ippool", "lab-shrunk", json!({"spec": {"addresses": ["192.0.2.151"]}}))?;
    bench.kubectl(&["delete", "ippool", "lab-doomed", "lab-anew", "lab-renamed"])?;
    let words = ["192.0.2.150 from pool lab-shrunk", "does not hold it any more", "30 s"];
    let said = says(bench, "shrunk", "Allocated", "Allocated", &words)?;
    ensure!(begin.elapsed() < Duration::from_secs(25), "it is said late: {said}");
    answers(bench, "192.0.2.150").context("until it is replaced, the old address is announced")?;
    bench.apply(&private_pool("lab-anew", &["192.0.2.153"]))?;
    // Renamed, and split: one address of it is held no more.
    bench.apply(&private_pool("lab-other-name", &["192.0.2.155"]))?;
    says(bench, "renamed", "Allocated", "Allocated", &["192.0.2.155 from pool lab-other-name"])?;

    let replaced = eventually(PATIENCE, "the address is replaced", || {
        let given = shown(&bench.get("service", "shrunk")?);
        Ok((given != ["192.0.2.150"]).then_some(given))
    })?;
    let after = begin.elapsed();
    ensure!(replaced == ["192.0.2.151"], "{replaced:?}");
    ensure!(after > Duration::from_secs(28), "it was replaced after {after:?} already");
    let told = eventually(PATIENCE, "an event tells of it", || Ok(events(bench, "shrunk", "AddressChanged")?.pop()))?;
    ensure!(told.contains("192.0.2.151 replaces 192.0.2.150: no pool holds 192.0.2.150 any more"), "{told}");
    answers(bench, "192.0.2.151")?;
    // None can be had: it is said which one was taken back.
    let words = ["lab-doomed", "192.0.2.152 was taken back: no pool holds 192.0.2.152 any more"];
    says(bench, "doomed", "Allocated", "NoMatchingPool", &words)?;
    says(bench, "wanted", "Allocated", "AddressNotInPool", &["192.0.2.154", "was taken back"])?;
    for name in ["doomed", "wanted"] {
        eventually(PATIENCE, "it shows none", || Ok(shown(&bench.get("service", name)?).is_empty().then_some(())))?;
    }
    given_back(bench, "192.0.2.152")?;
    ensure!(shown(&bench.get("service", "anew")?) == ["192.0.2.153"], "a pool that was made anew cost an address");
    ensure!(shown(&bench.get("service", "renamed")?) == ["192.0.2.155"], "a pool that was renamed cost an address");
    // As soon as a pool holds it again, it is given again.
    bench.apply(&private_pool("lab-doomed", &["192.0.2.152"]))?;
    ensure!(announced(bench, "doomed")? == "192.0.2.152");

    delete_services(bench, &["shrunk", "doomed", "anew", "renamed", "wanted"])?;
    bench.kubectl(&["delete", "ippool", "lab-shrunk", "lab-doomed", "lab-anew", "lab-other-name"])?;
    Ok(())
}

/// What the pool says about who may use it acts at once; autoAssign takes nothing away.
fn admission_changes(bench: &Bench) -> Result<()> {
    let mut selective = pool("lab-selective", &["192.0.2.170-192.0.2.171"]);
    selective["spec"]["serviceSelector"] = json!({"matchLabels": {"lab": "yes"}});
    bench.apply(&selective)?;
    bench.apply(&service("selected", json!({"metadata": {"labels": {"lab": "yes"}}})))?;
    ensure!(announced(bench, "selected")? == "192.0.2.170");
    patch(bench, "ippool", "lab-selective", json!({"spec": {"autoAssign": false}}))?;
    bench.apply(&service("unasked", json!({"metadata": {"labels": {"lab": "yes"}}})))?;
    announced(bench, "unasked")?;
    says(bench, "unasked", "Allocated", "Allocated", &["from pool lan"])?;
    ensure!(shown(&bench.get("service", "selected")?) == ["192.0.2.170"], "autoAssign: false took an address away");
    let begin = Instant::now();
    bench.kubectl(&["label", "service", "selected", "lab-"])?;
    says(bench, "selected", "Allocated", "Allocated", &["from pool lan"])?;
    ensure!(begin.elapsed() < Duration::from_secs(25), "it took {:?}", begin.elapsed());
    let words =
        "replaces 192.0.2.170: pool lab-selective does not admit the Service: its serviceSelector does not select";
    eventually(PATIENCE, "an event tells of it", || {
        Ok(events(bench, "selected", "AddressChanged")?.iter().any(|told| told.contains(words)).then_some(()))
    })?;
    delete_services(bench, &["selected", "unasked"])?;
    bench.kubectl(&["delete", "ippool", "lab-selective"])?;
    Ok(())
}

fn overlaps(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-older", &["192.0.2.174-192.0.2.177"]))?;
    // Creation is noted in seconds; with the same age the name decides.
    bench.apply(&private_pool("lab-younger", &["192.0.2.176-192.0.2.179"]))?;
    pool_says(
        bench,
        "lab-younger",
        "Overlap",
        &["192.0.2.176-192.0.2.177 is also in pool lab-older", "not used here"],
    )?;
    pool_says(bench, "lab-older", "Ready", &[])?;
    // What is withheld is not counted.
    total_is(bench, "lab-younger", "ipv4", "2")?;
    bench.apply(&asking("younger", json!({"l2lb.io/pool": "lab-younger"})))?;
    ensure!(announced(bench, "younger")? == "192.0.2.178", "an address of the older pool was given by the younger one");
    // What the older one gives up the younger one has.
    patch(bench, "ippool", "lab-older", json!({"spec": {"addresses": ["192.0.2.174-192.0.2.175"]}}))?;
    pool_says(bench, "lab-younger", "Ready", &[])?;
    ensure!(shown(&bench.get("service", "younger")?) == ["192.0.2.178"]);
    delete_services(bench, &["younger"])?;
    bench.kubectl(&["delete", "ippool", "lab-older", "lab-younger"])?;
    Ok(())
}

fn nodes_and_cluster_ranges(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool(
        "lab-nodes",
        &["192.0.2.10-192.0.2.14", "10.100.0.12", "10.96.200.0/30", "10.244.2.4/30"],
    ))?;
    for words in [
        "192.0.2.11 is an address of node node1 (eth0)",
        "192.0.2.12 is an address of node node2 (eth0)",
        "192.0.2.13 is an address of node node3 (eth0)",
        "10.100.0.12 is an address of node node2",
        "10.96.200.0-10.96.200.3 is in 10.96.0.0/16, the cluster's own range for Services",
        "10.244.2.4-10.244.2.7 is in 10.244.2.0/24, the pods of node node2",
    ] {
        pool_says(bench, "lab-nodes", "Overlap", &[words])?;
    }
    total_is(bench, "lab-nodes", "ipv4", "2")?;
    for (name, address) in [("beside-1", "192.0.2.10"), ("beside-2", "192.0.2.14")] {
        bench.apply(&asking(name, json!({"l2lb.io/pool": "lab-nodes"})))?;
        ensure!(address_of(bench, name)? == address);
    }
    bench.apply(&asking("third", json!({"l2lb.io/pool": "lab-nodes"})))?;
    says(bench, "third", "Allocated", "PoolExhausted", &["lab-nodes"])?;
    for (name, address, words) in [
        ("node", "192.0.2.11", "192.0.2.11 is an address of node node1 (eth0)"),
        ("management", "10.100.0.12", "10.100.0.12 is an address of node node2"),
        ("cluster-ip", "10.96.200.1", "the cluster's own range for Services"),
        ("pod", "10.244.2.5", "the pods of node node2"),
    ] {
        bench.apply(&asking(name, json!({"l2lb.io/addresses": address})))?;
        says(bench, name, "Allocated", "AddressInUse", &[words])?;
        ensure!(shown(&bench.get("service", name)?).is_empty(), "{name} shows {address}");
        delete_services(bench, &[name])?;
    }
    // Nothing of this has disturbed a node.
    for node in ["node1", "node2", "node3"] {
        ensure!(condition(&bench.get("node", node)?, "Ready")["status"] == "True", "{node} is not Ready");
    }
    delete_services(bench, &["beside-1", "beside-2", "third"])?;
    bench.kubectl(&["delete", "ippool", "lab-nodes"])?;
    Ok(())
}

/// A released address is the last to be given again, and the lowest one is given first.
fn order_of_addresses(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-order", &["192.0.2.150-192.0.2.152"]))?;
    let ask = |name: &str| bench.apply(&asking(name, json!({"l2lb.io/pool": "lab-order"})));
    for (name, address) in [("order-1", "192.0.2.150"), ("order-2", "192.0.2.151")] {
        ask(name)?;
        ensure!(announced(bench, name)? == address);
    }
    delete_services(bench, &["order-1"])?;
    for (name, address) in [("order-3", "192.0.2.152"), ("order-4", "192.0.2.150")] {
        ask(name)?;
        let given = announced(bench, name)?;
        ensure!(given == address, "{name}: {given}");
    }
    // Full: the first that is released goes to the one that waits.
    ask("order-5")?;
    says(bench, "order-5", "Allocated", "PoolExhausted", &["no free IPv4 address is left in pool lab-order"])?;
    bench.kubectl(&["delete", "service", "order-2"])?;
    ensure!(announced(bench, "order-5")? == "192.0.2.151");
    delete_services(bench, &["order-3", "order-4", "order-5"])?;
    bench.kubectl(&["delete", "ippool", "lab-order"])?;
    Ok(())
}
