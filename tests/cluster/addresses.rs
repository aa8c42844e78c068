//! Which addresses Services get on a real API server and a real LAN, when pools change and when others use the addresses.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use super::{
    PATIENCE, address_of, condition, merge, service,
    support::{Bench, eventually},
    text,
};

/// A pool from which only those get an address who ask for it.
fn reserve(name: &str, addresses: &[&str]) -> Value {
    let mut pool = super::pool(name, addresses);
    merge(&mut pool, json!({"spec": {"autoAssign": false}}));
    pool
}

fn asking(name: &str, pool: &str) -> Value {
    service(name, json!({"metadata": {"annotations": {"l2lb.io/pool": pool}}}))
}

/// What `kubectl describe` would list, newest last or not.
fn events(bench: &Bench, name: &str) -> Result<Vec<String>> {
    let field = format!("involvedObject.name={name}");
    let listed = bench.kubectl(&["get", "events", "-n", "default", "--field-selector", &field, "-o", "json"])?;
    let listed: Value = serde_json::from_str(&listed)?;
    let items = listed["items"].as_array().cloned().unwrap_or_default();
    Ok(items.iter().map(|event| format!("{}: {}", text(&event["reason"]), text(&event["message"]))).collect())
}

pub fn shrunk_pool(bench: &Bench) -> Result<()> {
    bench.apply(&reserve("shrinking", &["192.0.2.240"]))?;
    bench.apply(&asking("settler", "shrinking"))?;
    ensure!(address_of(bench, "settler")? == "192.0.2.240");
    bench.apply(&reserve("shrinking", &["192.0.2.241"]))?;
    eventually(PATIENCE, "the condition says what will happen", || {
        let allocated = condition(&bench.get("service", "settler")?, "l2lb.io/Allocated");
        Ok(text(&allocated["message"]).contains("which does not hold it any more").then_some(()))
    })?;
    ensure!(bench.curl("192.0.2.240").is_ok(), "the old address answers until then");
    eventually(PATIENCE, "the Service shows the new address", || {
        Ok((address_of(bench, "settler")? == "192.0.2.241").then_some(()))
    })?;
    eventually(PATIENCE, "the new address answers", || Ok(bench.curl("192.0.2.241").is_ok().then_some(())))?;
    eventually(PATIENCE, "the old VirtualIP goes", || {
        Ok(bench.get("virtualip", "192.0.2.240").is_err().then_some(()))
    })?;
    let told = eventually(PATIENCE, "an event tells of it", || {
        Ok(events(bench, "settler")?.into_iter().find(|event| event.starts_with("AddressChanged: ")))
    })?;
    ensure!(told.contains("192.0.2.241 replaces 192.0.2.240: no pool holds 192.0.2.240 any more"), "{told}");
    bench.kubectl(&["delete", "service", "settler"])?;
    bench.kubectl(&["delete", "ippool", "shrinking"])?;
    Ok(())
}

pub fn edited_status(bench: &Bench) -> Result<()> {
    let edit = |name: &str| {
        let status = r#"{"status":{"loadBalancer":{"ingress":[{"ip":"203.0.113.9"},{"hostname":"web.example.com"}]}}}"#;
        bench.kubectl(&["patch", "service", name, "--subresource=status", "--type=merge", "-p", status])
    };
    bench.apply(&service("edited", json!({})))?;
    let address = address_of(bench, "edited")?;
    edit("edited")?;
    eventually(PATIENCE, "the Service shows its address again", || {
        let ingress = bench.get("service", "edited")?["status"]["loadBalancer"]["ingress"].clone();
        Ok((ingress == json!([{"ip": address, "ipMode": "VIP"}])).then_some(()))
    })?;
    // One that has none shows none.
    bench.apply(&service("without", json!({"metadata": {"annotations": {"l2lb.io/addresses": "192.0.2.x"}}})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Allocated=false", "service/without", "--timeout=60s"])?;
    edit("without")?;
    eventually(PATIENCE, "the Service shows nothing", || {
        Ok(bench.get("service", "without")?["status"]["loadBalancer"]["ingress"].is_null().then_some(()))
    })?;
    bench.kubectl(&["delete", "service", "edited", "without"])?;
    Ok(())
}

pub fn withheld_ranges(bench: &Bench) -> Result<()> {
    bench.apply(&reserve("overlapping", &["192.0.2.11-192.0.2.12", "10.96.0.0/30", "192.0.2.242"]))?;
    let message = eventually(PATIENCE, "the pool names what it does not use", || {
        let ready = condition(&bench.get("ippool", "overlapping")?, "Ready");
        Ok((ready["reason"] == "Overlap").then(|| text(&ready["message"])))
    })?;
    for words in [
        "192.0.2.11 is an address of node ",
        "192.0.2.12 is an address of node ",
        "10.96.0.0-10.96.0.3 is in 10.96.0.0/16",
    ] {
        ensure!(message.contains(words), "'{words}' is not in: {message}");
    }
    bench.apply(&asking("careful", "overlapping"))?;
    ensure!(address_of(bench, "careful")? == "192.0.2.242");
    for (name, address, words) in [
        ("greedy", "192.0.2.11", "is an address of node "),
        ("bold", "10.96.0.2", "the cluster's own range for Services"),
    ] {
        bench.apply(&service(name, json!({"metadata": {"annotations": {"l2lb.io/addresses": address}}})))?;
        let message = eventually(PATIENCE, "it is told whose the address is", || {
            let allocated = condition(&bench.get("service", name)?, "l2lb.io/Allocated");
            Ok((allocated["reason"] == "AddressInUse").then(|| text(&allocated["message"])))
        })?;
        ensure!(message.contains(words), "{message}");
    }
    bench.kubectl(&["delete", "service", "careful", "greedy", "bold"])?;
    bench.kubectl(&["delete", "ippool", "overlapping"])?;
    Ok(())
}

/// The client of the LAN has 192.0.2.3 and answers for it.
pub fn quarantine(bench: &Bench) -> Result<()> {
    bench.apply(&reserve("disputed", &["192.0.2.3", "192.0.2.243"]))?;
    bench.apply(&asking("unlucky", "disputed"))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/unlucky", "--timeout=60s"])?;
    ensure!(address_of(bench, "unlucky")? == "192.0.2.243");
    let bad = bench.get("virtualip", "192.0.2.3")?;
    ensure!(bad["spec"]["services"] == json!([]), "{bad}");
    ensure!(bad["status"]["claims"][0]["state"] == "Blocked", "{bad}");
    eventually(PATIENCE, "the pool names the host", || {
        let pool = bench.get("ippool", "disputed")?;
        let ready = condition(&pool, "Ready");
        let named = ready["reason"] == "AddressConflict" && text(&ready["message"]).contains("192.0.2.3");
        Ok((named && pool["status"]["ipv4"]["free"] == "0").then_some(()))
    })?;
    let events = events(bench, "unlucky")?;
    let told =
        events.iter().any(|event| event.starts_with("AddressChanged: 192.0.2.243 replaces 192.0.2.3: a host with MAC"));
    ensure!(told, "{events:?}");
    bench.kubectl(&["delete", "service", "unlucky"])?;
    bench.kubectl(&["delete", "ippool", "disputed"])?;
    eventually(PATIENCE, "the quarantine ends with the pool", || {
        Ok(bench.get("virtualip", "192.0.2.3").is_err().then_some(()))
    })
}
