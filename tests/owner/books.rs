//! The API server, and what a controller would write into it: here the scenario does.

use std::collections::VecDeque;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::api::core::v1::Namespace;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, PostParams};
use kube::{Api, Client};
use l2lb::api::{self, Claim, ClaimState, FailoverClass, Role, VirtualIP, node_label};
use lab::control_plane::{ControlPlane, ControlPlaneOptions, Program};
use lab::kit::Kit;
use lab::runtime::block_on;
use serde_json::{Map, Value, json};

/// How long anything may take that a test waits for, on a machine that does much else.
pub const PATIENCE: Duration = Duration::from_secs(60);
/// How often it looks.
const POLL: Duration = Duration::from_millis(20);
/// The namespace of the speakers' Leases.
pub const NAMESPACE: &str = "l2lb-system";
/// The API server's host, which also is what is behind every virtual IP.
pub const BEHIND: &str = "10.100.0.2";
/// All virtual IPs of all scenarios: two halves of the LAN's own subnet, and room for many.
pub const VIRTUAL: [&str; 3] = ["192.0.2.64/26", "192.0.2.128/25", "10.20.64.0/20"];
/// Requests at once.
const AT_ONCE: usize = 32;

/// Looks until there is a value.
///
/// # Errors
/// When there is none within [`PATIENCE`].
pub fn eventually<T>(what: &str, mut look: impl FnMut() -> Result<Option<T>>) -> Result<T> {
    let end = Instant::now() + PATIENCE;
    loop {
        if let Some(value) = look()? {
            return Ok(value);
        }
        if Instant::now() >= end {
            bail!("not within {PATIENCE:?}: {what}");
        }
        std::thread::sleep(POLL);
    }
}

/// One virtual IP as a scenario wants it: class, address, and the nodes with a part in it, the Primary first.
pub struct Entry {
    pub class: FailoverClass,
    pub vip: Ipv4Addr,
    pub nodes: Vec<String>,
}

/// There are addresses for so many sites at once.
const SITES_MAX: u8 = 22;

/// A number of a site. It is given back with the value, if nothing is left of the site.
pub struct SiteNumber<'a> {
    number: u8,
    is_free: bool,
    numbers: &'a Mutex<VecDeque<u8>>,
}

impl SiteNumber<'_> {
    pub fn get(&self) -> u8 {
        self.number
    }

    /// Nobody has an address of the site any more, and no node of it runs: another one may have the number when this
    /// value is gone.
    pub fn give_back(&mut self) {
        self.is_free = true;
    }
}

impl Drop for SiteNumber<'_> {
    fn drop(&mut self) {
        if self.is_free {
            self.numbers.lock().unwrap_or_else(PoisonError::into_inner).push_back(self.number);
        }
    }
}

/// A running API server with the definitions of l2lb.
pub struct Books {
    control_plane: ControlPlane,
    client: Client,
    numbers: Mutex<VecDeque<u8>>,
}

impl Books {
    pub fn open(kit: &Kit) -> Result<Self> {
        let mut control_plane = ControlPlane::start(kit, ControlPlaneOptions::default())?;
        // The nodes of the scenarios have no kubelet, which nobody is to find.
        control_plane.kill_program(Program::ControllerManager)?;
        let client = block_on(async {
            let client = control_plane.client().await?;
            let create = PostParams::default();
            let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
            for definition in api::custom_resource_definitions() {
                definitions.create(&create, &definition).await?;
            }
            let namespace = serde_json::from_value(json!({"metadata": {"name": NAMESPACE}}))?;
            Api::<Namespace>::all(client.clone()).create(&create, &namespace).await?;
            Ok(client)
        })?;
        let books = Self { control_plane, client, numbers: Mutex::new((1..=SITES_MAX).collect()) };
        // The definitions are in force a moment later than they are made.
        eventually("the definitions are in force", || Ok(books.virtual_ips().ok()))?;
        let behind = books.control_plane.netns();
        for name in ["all", "mgmt0"] {
            behind.sysctl(&format!("net.ipv4.conf.{name}.rp_filter"), "0")?;
        }
        for range in VIRTUAL {
            behind.ip(&["route", "add", "local", range, "dev", "lo"])?;
        }
        Ok(books)
    }

    /// A number for a site that no other has, from 1: a new one, or the one that was given back first.
    pub fn take_number(&self) -> Result<SiteNumber<'_>> {
        let mut free = self.numbers.lock().unwrap_or_else(PoisonError::into_inner);
        let number = free.pop_front().context("there are too many sites at once: no number is free")?;
        Ok(SiteNumber { number, is_free: false, numbers: &self.numbers })
    }

    pub fn control_plane(&self) -> &ControlPlane {
        &self.control_plane
    }

    pub fn client(&self) -> &Client {
        &self.client
    }

    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane.kubeconfig()
    }

    pub fn logs(&self) -> PathBuf {
        Path::new(&self.control_plane.logs()).to_owned()
    }

    /// Names the nodes for each of the addresses: the first as Primary, the others to stand by in this order.
    pub fn assign(&self, entries: &[Entry]) -> Result<()> {
        let api: Api<VirtualIP> = Api::all(self.client.clone());
        let create = |entry: &Entry| {
            let (api, object) = (api.clone(), virtual_ip(entry));
            async move {
                api.create(&PostParams::default(), &serde_json::from_value(object)?).await?;
                anyhow::Ok(())
            }
        };
        block_on(stream::iter(entries.iter().map(create)).map(Ok).try_buffer_unordered(AT_ONCE).try_collect::<()>())
    }

    /// Takes addresses away.
    pub fn withdraw(&self, vips: impl IntoIterator<Item = Ipv4Addr>) -> Result<()> {
        let api: Api<VirtualIP> = Api::all(self.client.clone());
        let delete = |vip: Ipv4Addr| {
            let api = api.clone();
            async move { anyhow::Ok(api.delete(&vip.to_string(), &DeleteParams::default()).await.map(drop)?) }
        };
        let all: Vec<Ipv4Addr> = vips.into_iter().collect();
        block_on(stream::iter(all.into_iter().map(delete)).map(Ok).try_buffer_unordered(AT_ONCE).try_collect::<()>())
    }

    /// Takes those of these addresses away that are there.
    pub fn withdraw_any(&self, vips: &[Ipv4Addr]) -> Result<()> {
        let there = self.virtual_ips()?.into_iter().filter_map(|object| object.spec.address.parse().ok());
        self.withdraw(there.filter(|vip| vips.contains(vip)).collect::<Vec<_>>())
    }

    pub fn virtual_ips(&self) -> Result<Vec<VirtualIP>> {
        let api: Api<VirtualIP> = Api::all(self.client.clone());
        block_on(async { Ok(api.list(&ListParams::default()).await?.items) })
    }

    /// What speakers say about an address.
    pub fn claims(&self, vip: Ipv4Addr) -> Result<Vec<Claim>> {
        let api: Api<VirtualIP> = Api::all(self.client.clone());
        let object = block_on(async { Ok(api.get(&vip.to_string()).await?) })?;
        Ok(object.status.map(|status| status.claims).unwrap_or_default())
    }

    /// What the speaker of a node says about an address.
    pub fn claim(&self, vip: Ipv4Addr, node: &str) -> Result<Option<Claim>> {
        Ok(self.claims(vip)?.into_iter().find(|claim| claim.node == node))
    }

    /// Waits until the speaker of a node says this about an address.
    pub fn wait_for_claim(&self, vip: Ipv4Addr, node: &str, state: ClaimState) -> Result<Claim> {
        let mut last = None;
        let said = eventually(&format!("{node} says {state:?} about {vip}"), || {
            last = self.claim(vip, node)?;
            Ok(last.clone().filter(|claim| claim.state == state))
        });
        said.with_context(|| format!("it says {last:?}"))
    }
}

fn virtual_ip(entry: &Entry) -> Value {
    let role = |place: usize| if place == 0 { Role::Primary } else { Role::Standby };
    let parts = || entry.nodes.iter().enumerate().map(|(place, node)| (node, role(place)));
    let labels: Map<String, Value> =
        parts().map(|(node, role)| (node_label(node), Value::from(role.label_value()))).collect();
    let assignments: Vec<Value> =
        parts().map(|(node, role)| json!({"node": node, "role": role, "interface": "eth0"})).collect();
    json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": entry.vip.to_string(), "labels": labels},
        "spec": {
            "address": entry.vip.to_string(), "pool": "lan", "services": ["default/test"], "failover": entry.class,
            "placement": 1, "assignments": assignments,
        },
    })
}

/// A line of Prometheus text, by its name with labels.
pub fn metric(text: &str, name: &str) -> Result<u64> {
    let line = text.lines().find_map(|line| line.strip_prefix(name)?.strip_prefix(' '));
    let value: f64 = line.with_context(|| format!("no metric {name}"))?.trim().parse()?;
    ensure!(value >= 0.0, "{name} is {value}");
    Ok(value as u64)
}
