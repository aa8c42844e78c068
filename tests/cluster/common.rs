//! What the tests make, and what they ask.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use l2lb::api::virtual_ip_name;
use lab::netns::Netns;
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    support::{Bench, eventually},
};

pub fn pool(name: &str, addresses: &[&str]) -> Value {
    json!({"apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name}, "spec": {"addresses": addresses}})
}

/// A pool that gives only to those who ask for it: not to the Services of other tests.
pub fn private_pool(name: &str, addresses: &[&str]) -> Value {
    let mut pool = pool(name, addresses);
    pool["spec"]["autoAssign"] = json!(false);
    pool
}

pub fn service(name: &str, changes: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    merge(&mut service, changes);
    service
}

/// A Service with annotations.
pub fn asking(name: &str, annotations: Value) -> Value {
    service(name, json!({"metadata": {"annotations": annotations}}))
}

pub fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

/// A merge patch.
pub fn patch(bench: &Bench, kind: &str, name: &str, change: Value) -> Result<()> {
    bench.kubectl(&["patch", kind, name, "--type=merge", "-p", &change.to_string()]).map(drop)
}

/// Waits until kube-proxy forwards the address on every node, and then for an answer. kube-proxy is not l2lb's: until it is ready a
/// node loses connections whoever announces, and what it sent on untranslated it remembers for two minutes.
pub fn answered_through_every_node(bench: &Bench, address: &str) -> Result<()> {
    for node in ["node1", "node2", "node3"] {
        eventually(PATIENCE, &format!("kube-proxy on {node} forwards {address}"), || {
            let (tables, length) = if address.contains(':') { ("ip6tables", 128) } else { ("iptables", 32) };
            let rules = bench.in_node(node, &[tables, "-t", "nat", "-S"])?;
            Ok(rules.contains(&format!("{address}/{length} ")).then_some(()))
        })?;
    }
    answers(bench, address).map(drop)
}

/// What the client gets from an address, or `address:port`, as soon as it gets something.
pub fn answers(bench: &Bench, address: &str) -> Result<String> {
    eventually(PATIENCE, &format!("the client gets an answer from {address}"), || bench.curl(address).map(Some))
}

/// What the client gets within 10 s, without a question to the API server: one answer may take longer than curl waits.
pub fn answers_soon(bench: &Bench, address: &str) -> Result<String> {
    eventually(Duration::from_secs(10), &format!("the client gets an answer from {address}"), || {
        bench.curl(address).map(Some)
    })
}

/// The condition of a type, or null.
pub fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|condition| condition["type"] == kind)).cloned().unwrap_or_default()
}

pub fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The addresses that an object of a Service shows.
pub fn shown(service: &Value) -> Vec<String> {
    let ingress = service["status"]["loadBalancer"]["ingress"].as_array();
    ingress.into_iter().flatten().map(|entry| text(&entry["ip"])).collect()
}

/// The address that a Service shows, as soon as it does.
pub fn address_of(bench: &Bench, name: &str) -> Result<String> {
    Ok(addresses_of(bench, name)?.remove(0))
}

/// The addresses that a Service shows, as soon as it shows any.
pub fn addresses_of(bench: &Bench, name: &str) -> Result<Vec<String>> {
    eventually(PATIENCE, &format!("Service {name} has an address"), || {
        Ok(Some(shown(&bench.get("service", name)?)).filter(|addresses| !addresses.is_empty()))
    })
}

/// The address of a Service that is announced.
pub fn announced(bench: &Bench, name: &str) -> Result<String> {
    announced_in(bench, "default", name)
}

/// The address of a Service of some namespace that is announced.
pub fn announced_in(bench: &Bench, namespace: &str, name: &str) -> Result<String> {
    let service = format!("service/{name}");
    bench.kubectl(&["-n", namespace, "wait", "--for=condition=l2lb.io/Announced", &service, "--timeout=60s"])?;
    let service = bench.get_in(namespace, "service", name)?;
    shown(&service).first().cloned().context("an announced Service shows no address")
}

/// The message of a condition, as soon as it has this reason and these words.
pub fn says(bench: &Bench, service: &str, kind: &str, reason: &str, words: &[&str]) -> Result<String> {
    let kind = format!("l2lb.io/{kind}");
    let mut last = Value::Null;
    let found = eventually(PATIENCE, &format!("{service} says {reason} with {words:?}"), || {
        last = condition(&bench.get("service", service)?, &kind);
        let message = text(&last["message"]);
        let fits = last["reason"] == reason && words.iter().all(|word| message.contains(word));
        Ok(fits.then_some(message))
    });
    found.with_context(|| format!("{service} says {last}"))
}

/// The message of a pool's condition, as soon as it has this reason and these words.
pub fn pool_says(bench: &Bench, pool: &str, reason: &str, words: &[&str]) -> Result<String> {
    let mut last = Value::Null;
    let found = eventually(PATIENCE, &format!("pool {pool} says {reason} with {words:?}"), || {
        last = condition(&bench.get("ippool", pool)?, "Ready");
        let message = text(&last["message"]);
        let fits = last["reason"] == reason && words.iter().all(|word| message.contains(word));
        Ok(fits.then_some(message))
    });
    found.with_context(|| format!("{pool} says {last}"))
}

/// The events of a Service of this reason, by what they say.
pub fn events(bench: &Bench, service: &str, reason: &str) -> Result<Vec<String>> {
    let of = format!("regarding.name={service},reason={reason}");
    let list = bench.kubectl(&["get", "events.events.k8s.io", "--field-selector", &of, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    Ok(list["items"].as_array().into_iter().flatten().map(|event| text(&event["note"])).collect())
}

/// All events that l2lb has written about a Service, by what they say.
pub fn events_of_ours(bench: &Bench, service: &str) -> Result<Vec<String>> {
    let of = format!("regarding.name={service}");
    let list = bench.kubectl(&["get", "events.events.k8s.io", "--field-selector", &of, "-o", "json"])?;
    let list: Value = serde_json::from_str(&list)?;
    let all = list["items"].as_array().into_iter().flatten();
    let ours = all.filter(|event| event["reportingController"] == "l2lb.io/controller");
    Ok(ours.map(|event| text(&event["note"])).collect())
}

/// Waits until a pool holds so many addresses of a family: what it counts is written after what became of its Services.
pub fn total_is(bench: &Bench, pool: &str, family: &str, total: &str) -> Result<()> {
    let mut last = Value::Null;
    let found = eventually(PATIENCE, &format!("pool {pool} holds {total} addresses"), || {
        last = bench.get("ippool", pool)?["status"][family]["total"].clone();
        Ok((last == total).then_some(()))
    });
    found.with_context(|| format!("pool {pool} counts {last}"))
}

/// The controller that leads, by the name of its Pod.
pub fn leader(bench: &Bench) -> Result<String> {
    let holder = ["-n", "l2lb-system", "get", "lease", "l2lb-controller", "-o", "jsonpath={.spec.holderIdentity}"];
    bench.kubectl(&holder)
}

/// The controller that leads, as soon as it is another one than this.
pub fn leader_after(bench: &Bench, first: &str) -> Result<String> {
    eventually(PATIENCE, &format!("another controller than {first} leads"), || {
        Ok(Some(leader(bench)?).filter(|leader| !leader.is_empty() && leader != first))
    })
}

/// Waits until an address is nobody's.
pub fn given_back(bench: &Bench, address: &str) -> Result<()> {
    let name = virtual_ip_name(address.parse().with_context(|| format!("'{address}'"))?);
    eventually(PATIENCE, &format!("{address} is given back"), || Ok(bench.is_gone("virtualip", &name)?.then_some(())))
}

/// Deletes Services, and waits until their addresses are nobody's.
pub fn delete_services(bench: &Bench, names: &[&str]) -> Result<()> {
    let mut addresses = Vec::new();
    for name in names {
        addresses.extend(shown(&bench.get("service", name)?));
    }
    bench.kubectl(&[&["delete", "service"], names].concat())?;
    addresses.iter().try_for_each(|address| given_back(bench, address))
}

/// The node whose speaker owns an address, as soon as one does.
pub fn announcing_node(bench: &Bench, address: &str) -> Result<String> {
    eventually(PATIENCE, &format!("a node announces {address}"), || announcing_now(bench, address))
}

/// The node whose speaker owns an address now, if one does.
pub fn announcing_now(bench: &Bench, address: &str) -> Result<Option<String>> {
    let virtual_ip = bench.get("virtualip", &virtual_ip_name(address.parse().context("an address")?))?;
    let claims = virtual_ip["status"]["claims"].as_array().cloned().unwrap_or_default();
    Ok(claims.iter().find(|claim| claim["state"] == "Owner").map(|claim| text(&claim["node"])))
}

/// Waits until another node than this one announces.
pub fn moved_from(bench: &Bench, address: &str, node: &str) -> Result<String> {
    eventually(PATIENCE, &format!("another node than {node} announces {address}"), || {
        Ok(Some(announcing_node(bench, address)?).filter(|owner| owner != node))
    })
}

/// A host on the LAN that answers for an address, and is none of the speakers; until it is dropped.
pub struct ForeignHost {
    netns: Netns,
    address: String,
}

impl ForeignHost {
    pub fn with(bench: &Bench, address: &str) -> Result<Self> {
        let length = if address.contains(':') { 128 } else { 32 };
        let (netns, address) = (bench.foreign_host()?, format!("{address}/{length}"));
        netns.ip(&["address", "add", &address, "dev", "eth0"])?;
        Ok(Self { netns, address })
    }

    pub fn netns(&self) -> &Netns {
        &self.netns
    }

    /// It leaves the LAN.
    pub fn leave(self) -> Result<()> {
        let before = self.netns.ip(&["address", "show", "dev", "eth0"])?;
        ensure!(before.contains(&self.address), "it was there: {before}");
        Ok(())
    }
}

impl Drop for ForeignHost {
    fn drop(&mut self) {
        let removed = self.netns.ip(&["address", "del", &self.address, "dev", "eth0"]);
        removed.map_or_else(|error| eprintln!("{error:#}"), drop);
    }
}
