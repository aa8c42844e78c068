//! Addresses that a foreign host on the LAN uses.

use anyhow::{Result, ensure};
use serde_json::json;

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[("an_address_that_a_foreign_host_uses_is_set_aside_until_it_is_free", quarantine)];

/// Half a minute each, which is the product's; they run beside each other.
pub const SLOW: &[Test] = &[("a_requested_address_that_a_foreign_host_uses_is_not_replaced", requested)];

/// The gateway's MAC address.
const FOREIGN_MAC: &str = "02:00:00:00:00:01";

fn quarantine(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-contested", &["192.0.2.160-192.0.2.162"]))?;
    let host = ForeignHost::with(bench, "192.0.2.160")?;
    bench.apply(&asking("careful", json!({"l2lb.io/pool": "lab-contested"})))?;
    ensure!(announced(bench, "careful")? == "192.0.2.161", "the address of a foreign host was given");
    answers(bench, "192.0.2.161")?;
    // The bad one is shown: to who looks at addresses, at the pool, at the Service's events.
    let line = eventually(PATIENCE, "the bad address is shown", || {
        let line = bench.kubectl(&["get", "vip", "192.0.2.160", "--no-headers"])?;
        Ok(line.contains("Blocked").then_some(line))
    })?;
    ensure!(line.contains("[]"), "it has no Service: {line}");
    pool_says(bench, "lab-contested", "AddressConflict", &["192.0.2.160", FOREIGN_MAC])?;
    eventually(PATIENCE, "it does not count as free", || {
        Ok((bench.get("ippool", "lab-contested")?["status"]["ipv4"]["free"] == "1").then_some(()))
    })?;
    let told = eventually(PATIENCE, "an event tells of it", || Ok(events(bench, "careful", "AddressChanged")?.pop()))?;
    ensure!(told.contains("192.0.2.160") && told.contains(FOREIGN_MAC), "{told}");
    // A controller that starts anew knows of it.
    bench.scale_controller(0)?;
    bench.scale_controller(2)?;
    bench.apply(&asking("second", json!({"l2lb.io/pool": "lab-contested"})))?;
    ensure!(announced(bench, "second")? == "192.0.2.162");
    bench.apply(&asking("third", json!({"l2lb.io/pool": "lab-contested"})))?;
    says(bench, "third", "Allocated", "PoolExhausted", &["lab-contested"])?;
    // Nobody answers any more: the speaker finds that within 30 s, and who waited gets the address.
    host.leave()?;
    ensure!(announced(bench, "third")? == "192.0.2.160");
    answers(bench, "192.0.2.160")?;
    pool_says(bench, "lab-contested", "Ready", &[])?;
    delete_services(bench, &["careful", "second", "third"])?;
    // A quarantine ends with its pool, too.
    patch(bench, "ippool", "lab-contested", json!({"spec": {"addresses": ["192.0.2.3", "192.0.2.163"]}}))?;
    bench.apply(&asking("careful", json!({"l2lb.io/pool": "lab-contested"})))?;
    ensure!(announced(bench, "careful")? == "192.0.2.163", "the client has 192.0.2.3");
    ensure!(!bench.is_gone("virtualip", "192.0.2.3")?);
    delete_services(bench, &["careful"])?;
    bench.kubectl(&["delete", "ippool", "lab-contested"])?;
    given_back(bench, "192.0.2.3")
}

fn requested(bench: &Bench) -> Result<()> {
    let host = ForeignHost::with(bench, "192.0.2.92")?;
    bench.apply(&asking("stubborn", json!({"l2lb.io/addresses": "192.0.2.92"})))?;
    says(
        bench,
        "stubborn",
        "Announced",
        "AddressConflict",
        &["192.0.2.92", FOREIGN_MAC, "give that host another address"],
    )?;
    says(bench, "stubborn", "Allocated", "Allocated", &["192.0.2.92"])?;
    ensure!(shown(&bench.get("service", "stubborn")?).is_empty(), "clients would reach the foreign host");
    host.leave()?;
    bench.forget_client_neighbours()?;
    ensure!(announced(bench, "stubborn")? == "192.0.2.92");
    answers(bench, "192.0.2.92")?;
    delete_services(bench, &["stubborn"])
}
