//! With a controller: a rival of a Service's address is told on the Service; and all nodes die that had a part in it.

use std::net::Ipv4Addr;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use k8s_openapi::api::core::v1::{Node, Service};
use k8s_openapi::jiff::Timestamp;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams, PostParams};
use kube::{Api, ResourceExt as _};
use l2lb::api::{ClaimState, IPPool, VirtualIP};
use lab::process::{Process, tail};
use lab::runtime::block_on;
use serde_json::{Value, json};

use crate::books::{Books, NAMESPACE, eventually};
use crate::site::{Place, Site};
use crate::voices::ms;

const NODES: u8 = 4;
const SERVICE: &str = "web";
const POOL: &str = "lan";
const EACH: Duration = Duration::from_millis(50);
/// A Lease counts for 15 s, and is renewed each 5 s.
const NAMED_WITHIN: Duration = Duration::from_secs(40);

pub fn all_dead(books: &Books) -> Result<()> {
    let mut site = Site::new(books, NODES)?;
    let vip = site.vip(0);
    let (asker, rival) = (site.host("asker")?, site.host("rival")?);
    clear(books)?;
    make_objects(&site, vip)?;
    let mut controller = start_controller(books)?;
    let told = play(&mut site, vip, &asker, &rival);
    let log = tail(controller.log(), 40);
    let status = controller.terminate(Duration::from_secs(10))?;
    told.with_context(|| format!("{}\n--- controller\n{log}", site.report()))?;
    ensure!(status.success(), "the controller ended with {status}");
    Ok(())
}

fn play(site: &mut Site<'_>, vip: Ipv4Addr, asker: &crate::hosts::Host, rival: &crate::hosts::Host) -> Result<()> {
    wait_for_condition(site.books, "l2lb.io/Announced", "True", "")?;
    let _asking = asker.ask(vec![vip], None, EACH)?;
    site.wait_for_answers(vip, Instant::now(), 10)?;
    let rivalry = rival.claim(vip, Duration::from_millis(500))?;
    let message = wait_for_condition(site.books, "l2lb.io/Announced", "False", "AddressConflict")?;
    ensure!(message.contains(&rival.mac.to_string()), "{message}");
    println!("the Service says: {message}");
    drop(rivalry);

    let virtual_ip = virtual_ip(site.books, vip)?;
    let with_part: Vec<Place> = site
        .places()
        .filter(|place| virtual_ip.spec.assignments.iter().any(|entry| entry.node == site.name(*place)))
        .collect();
    let without: Vec<Place> = site.places().filter(|place| !with_part.contains(place)).collect();
    ensure!(with_part.len() == 3 && without.len() == 1, "{:?}", virtual_ip.spec.assignments);
    for place in &with_part {
        site.set_link(*place, false)?;
    }
    let cut = Instant::now();
    for place in &with_part {
        site.power_off(*place)?;
    }
    let (by, at) = site.wait_for_word(vip, cut, |place| place == without[0])?;
    println!("node {}, which had no part in it, took over {} ms after all others had died", by + 1, ms(cut, at));
    ensure!(at < cut + NAMED_WITHIN || !site.is_calm_since(cut), "only {} ms after the others", ms(cut, at));
    site.books.wait_for_claim(vip, site.name(by), ClaimState::Owner)?;
    site.turns(vip)?;
    delete_service(site.books)?;
    eventually("the address is given back", || Ok(site.books.virtual_ips()?.is_empty().then_some(())))
}

fn start_controller(books: &Books) -> Result<Process> {
    let mut command = Command::new(env!("CARGO_BIN_EXE_l2lb"));
    command.args(["controller", "--namespace", NAMESPACE, "--identity", "only", "--health-address", "127.0.0.1:17100"]);
    command.args(["--log", "info"]).env("KUBECONFIG", books.kubeconfig());
    Process::spawn("controller", &mut command, &books.logs().join("controller.log"))
}

/// Nothing is left of a round that failed, nor of what the other scenarios wrote, which is no controller's.
fn clear(books: &Books) -> Result<()> {
    let client = books.client().clone();
    let services: Api<Service> = Api::namespaced(client.clone(), "default");
    let (pools, nodes): (Api<IPPool>, Api<Node>) = (Api::all(client.clone()), Api::all(client));
    let is_left = || -> Result<bool> {
        block_on(async {
            let service = services.get_opt(SERVICE).await?.is_some();
            let pool = pools.get_opt(POOL).await?.is_some();
            Ok(service || pool || !nodes.list(&ListParams::default()).await?.items.is_empty())
        })
    };
    block_on(async {
        if services.get_opt(SERVICE).await?.is_some() {
            services.delete(SERVICE, &DeleteParams::default()).await?;
        }
        if pools.get_opt(POOL).await?.is_some() {
            pools.delete(POOL, &DeleteParams::default()).await?;
        }
        nodes.delete_collection(&DeleteParams::default(), &ListParams::default()).await?;
        Ok(())
    })?;
    books.withdraw(books.virtual_ips()?.iter().filter_map(|object| object.spec.address.parse().ok()))?;
    eventually(
        "nothing of another round is left",
        || Ok((!is_left()? && books.virtual_ips()?.is_empty()).then_some(())),
    )
}

/// The nodes, a pool with the one address, and a Service that gets it.
fn make_objects(site: &Site<'_>, vip: Ipv4Addr) -> Result<()> {
    let client = site.books.client().clone();
    block_on(async {
        let create = PostParams::default();
        let nodes: Api<Node> = Api::all(client.clone());
        for place in site.places() {
            let name = site.name(place);
            nodes.create(&create, &serde_json::from_value(json!({"metadata": {"name": name}}))?).await?;
            let now = Timestamp::now().to_string();
            let ready = json!({"type": "Ready", "status": "True", "reason": "Test", "message": "",
                "lastHeartbeatTime": now, "lastTransitionTime": now});
            let patch = json!({"status": {"conditions": [ready]}, "spec": {"taints": null}});
            nodes.patch_status(name, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
        }
        let pool = json!({
            "apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": {"name": POOL},
            "spec": {"addresses": [vip.to_string()]},
        });
        Api::<IPPool>::all(client.clone()).create(&create, &serde_json::from_value(pool)?).await?;
        let service = json!({
            "metadata": {"name": SERVICE},
            "spec": {"type": "LoadBalancer", "selector": {"app": SERVICE}, "ports": [{"port": 80}]},
        });
        let services: Api<Service> = Api::namespaced(client, "default");
        services.create(&create, &serde_json::from_value(service)?).await?;
        Ok(())
    })
}

fn delete_service(books: &Books) -> Result<()> {
    let services: Api<Service> = Api::namespaced(books.client().clone(), "default");
    block_on(async { Ok(services.delete(SERVICE, &DeleteParams::default()).await.map(drop)?) })
}

fn virtual_ip(books: &Books, vip: Ipv4Addr) -> Result<VirtualIP> {
    let found = books.virtual_ips()?.into_iter().find(|object| object.name_any() == vip.to_string());
    found.with_context(|| format!("no VirtualIP {vip}"))
}

/// The message of a condition of the Service, as soon as it has this status and this reason (any, if none is given).
fn wait_for_condition(books: &Books, kind: &str, status: &str, reason: &str) -> Result<String> {
    let services: Api<Service> = Api::namespaced(books.client().clone(), "default");
    let mut last = Value::Null;
    let found = eventually(&format!("the Service says {kind}={status} {reason}"), || {
        let service = block_on(async { Ok(services.get(SERVICE).await?) })?;
        last = serde_json::to_value(&service.status)?;
        let conditions = last["conditions"].as_array().cloned().unwrap_or_default();
        let condition = conditions.into_iter().find(|condition| condition["type"] == kind).unwrap_or_default();
        let fits = condition["status"] == status && (reason.is_empty() || condition["reason"] == reason);
        Ok(fits.then(|| condition["message"].as_str().unwrap_or_default().to_owned()))
    });
    found.with_context(|| format!("it says {last}"))
}
