//! A real API server with everything that the controller looks at, except nodes: those, their speakers, Leases and claims are
//! made by this test.

use std::{
    collections::{BTreeMap, BTreeSet},
    io::{Read as _, Write as _},
    net::TcpStream,
    path::{Path, PathBuf},
    process::Command,
    sync::{
        Arc,
        atomic::{AtomicU16, Ordering},
    },
    time::Duration,
};

use anyhow::{Context as _, Result, bail, ensure};
use futures::{StreamExt as _, TryStreamExt as _, stream};
use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Namespace, Node, Service},
        discovery::v1::EndpointSlice,
        events::v1::Event,
    },
    apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition,
    jiff::Timestamp,
};
use kube::{
    Api, Client, ResourceExt as _,
    api::{DeleteParams, ListParams, Patch, PatchParams, PostParams},
};
use l2lb::api::{self, ClaimState, IPPool, Role, Speaker, VirtualIP};
use lab::{
    control_plane::{ControlPlane, ControlPlaneOptions, Program},
    kit::Kit,
    process::{Process, signal, tail, wait_for},
    runtime::{block_on, handle},
};
use nix::sys::signal::Signal;
use serde::de::DeserializeOwned;
use serde_json::{Value, json};

use crate::{
    proxy::{Proxy, Write},
    speakers,
};

/// The namespace of the Leases.
pub const NAMESPACE: &str = "l2lb-system";
/// How long anything may take that the test waits for.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// How often it looks.
pub const POLL: Duration = Duration::from_millis(100);
/// Requests of this test at once.
const AT_ONCE: usize = 32;
/// For this long nothing may be written before it counts as rest.
const REST: Duration = Duration::from_millis(1200);

/// The API server and its objects.
pub struct World {
    /// A client with all rights.
    pub client: Client,
    control_plane: ControlPlane,
}

impl World {
    /// Starts it, with three nodes, their speakers, and one pool.
    pub fn start(kit: &Kit) -> Result<Self> {
        let mut control_plane = ControlPlane::start(kit, ControlPlaneOptions::default())?;
        // Nothing but the controller is to write, and nobody may find that these nodes have no kubelet.
        control_plane.kill_program(Program::ControllerManager)?;
        let client = block_on(async {
            let client = control_plane.client().await?;
            install(&client).await?;
            Ok(client)
        })?;
        handle()?.spawn(speakers::renew_leases(client.clone()));
        handle()?.spawn(speakers::claim(client.clone()));
        Ok(Self { client, control_plane })
    }

    /// The administrator's kubeconfig.
    pub fn kubeconfig(&self) -> PathBuf {
        self.control_plane.kubeconfig()
    }

    /// Where files of the test go.
    pub fn folder(&self) -> &Path {
        self.control_plane.state()
    }

    /// Takes all Services, slices, VirtualIPs, events and the election away.
    pub fn clear(&self) -> Result<()> {
        block_on(async {
            let (delete, all) = (DeleteParams::default(), ListParams::default());
            self.delete_services(self.service_names().await?).await?;
            Api::<EndpointSlice>::namespaced(self.client.clone(), "default").delete_collection(&delete, &all).await?;
            Api::<VirtualIP>::all(self.client.clone()).delete_collection(&delete, &all).await?;
            Api::<Event>::namespaced(self.client.clone(), "default").delete_collection(&delete, &all).await?;
            let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
            if leases.get_opt("l2lb-controller").await?.is_some() {
                leases.delete("l2lb-controller", &delete).await?;
            }
            Ok(())
        })
    }

    /// Makes Services of type LoadBalancer.
    pub fn make_services(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), "default");
        block_on(each(names, |name| {
            let services = services.clone();
            async move {
                // Node ports would run out at 2,768 Services.
                let service = json!({
                    "metadata": {"name": name, "labels": {"app.kubernetes.io/name": name, "app.kubernetes.io/part-of": "test"}},
                    "spec": {
                        "type": "LoadBalancer", "allocateLoadBalancerNodePorts": false, "selector": {"app": name},
                        "ports": [{"name": "http", "port": 80, "targetPort": 8080}],
                    },
                });
                services.create(&PostParams::default(), &serde_json::from_value(service)?).await?;
                Ok(())
            }
        }))
    }

    /// Removes Services.
    pub async fn delete_services(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let services: Api<Service> = Api::namespaced(self.client.clone(), "default");
        each(names, |name| {
            let services = services.clone();
            async move { Ok(services.delete(&name, &DeleteParams::default()).await.map(drop)?) }
        })
        .await
    }

    /// Makes the EndpointSlices that a cluster would have for these Services.
    pub fn make_slices(&self, names: impl IntoIterator<Item = String>) -> Result<()> {
        let slices: Api<EndpointSlice> = Api::namespaced(self.client.clone(), "default");
        block_on(each(names, |name| {
            let slices = slices.clone();
            async move {
                let endpoint = |node: &str, address: &str| {
                    let conditions = json!({"ready": true, "serving": true, "terminating": false});
                    json!({"addresses": [address], "nodeName": node, "conditions": conditions})
                };
                let slice = json!({
                    "metadata": {"name": format!("{name}-x7k2p"), "labels": {"kubernetes.io/service-name": name}},
                    "addressType": "IPv4", "ports": [{"name": "http", "port": 8080, "protocol": "TCP"}],
                    "endpoints": [endpoint("node1", "10.244.1.7"), endpoint("node2", "10.244.2.9")],
                });
                slices.create(&PostParams::default(), &serde_json::from_value(slice)?).await?;
                Ok(())
            }
        }))
    }

    /// The names of all Services of this test.
    pub async fn service_names(&self) -> Result<Vec<String>> {
        let services: Vec<Service> = self.list(&Api::namespaced(self.client.clone(), "default")).await?;
        let ours = services
            .iter()
            .filter(|service| service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer")));
        Ok(ours.map(kube::ResourceExt::name_any).collect())
    }

    /// All objects of a kind, in pages.
    async fn list<K>(&self, api: &Api<K>) -> Result<Vec<K>>
    where
        K: Clone + DeserializeOwned + std::fmt::Debug,
    {
        let mut params = ListParams::default().limit(500);
        let mut all = Vec::new();
        loop {
            let page = api.list(&params).await?;
            all.extend(page.items);
            match page.metadata.continue_.filter(|token| !token.is_empty()) {
                Some(token) => params = params.continue_token(&token),
                None => return Ok(all),
            }
        }
    }

    /// What is not as it should be when everything is done, or `None`.
    pub fn fault(&self) -> Result<Option<String>> {
        block_on(async {
            let services: Vec<Service> = self.list(&Api::namespaced(self.client.clone(), "default")).await?;
            let vips: Vec<VirtualIP> = self.list(&Api::all(self.client.clone())).await?;
            Ok(wrong(&services, &vips))
        })
    }

    /// Waits until every Service has an address that nobody else has, which its node's speaker owns, and the VirtualIPs are
    /// exactly those in use.
    pub fn wait_until_served(&self) -> Result<()> {
        wait_for("the Services are not all served", PATIENCE, POLL, || {
            Ok(match self.fault() {
                Ok(None) => Ok(()),
                Ok(Some(fault)) => Err(fault),
                Err(error) => Err(format!("{error:#}")),
            })
        })
    }

    /// Waits until the API server sees no write but those of Leases; fails if they never end.
    pub fn wait_for_rest(&self) -> Result<()> {
        wait_for("there is no end of writes", PATIENCE, Duration::ZERO, || {
            let before = self.requests()?;
            std::thread::sleep(REST);
            let grown = self.requests()?.since(&before);
            Ok(if grown.is_empty() { Ok(()) } else { Err(format!("{grown:?}")) })
        })
    }

    /// The events of each Service, as (reason, note).
    pub fn events(&self) -> Result<BTreeMap<String, Vec<(String, String)>>> {
        let events: Vec<Event> = block_on(self.list(&Api::namespaced(self.client.clone(), "default")))?;
        let mut told: BTreeMap<String, Vec<(String, String)>> = BTreeMap::new();
        // The API server tells of its own repairs, too.
        for event in
            events.into_iter().filter(|event| event.reporting_controller.as_deref() == Some("l2lb.io/controller"))
        {
            let name = event.regarding.and_then(|regarding| regarding.name).unwrap_or_default();
            told.entry(name).or_default().push((event.reason.unwrap_or_default(), event.note.unwrap_or_default()));
        }
        Ok(told)
    }

    /// About how many events there are, those of the API server among them.
    pub fn count_events(&self) -> Result<usize> {
        let events: Api<Event> = Api::namespaced(self.client.clone(), "default");
        let page = block_on(async { Ok(events.list(&ListParams::default().limit(1)).await?) })?;
        let rest = page.metadata.remaining_item_count.unwrap_or(0);
        Ok(page.items.len() + usize::try_from(rest)?)
    }

    /// The addresses of all Services.
    pub fn addresses(&self) -> Result<BTreeMap<String, String>> {
        let services: Vec<Service> = block_on(self.list(&Api::namespaced(self.client.clone(), "default")))?;
        Ok(services.iter().filter_map(|service| Some((service.name_any(), shown(service).pop()?))).collect())
    }

    /// What the API server has counted.
    pub fn requests(&self) -> Result<Requests> {
        let text = block_on(async {
            let request = hyper::Request::get("/metrics").body(Vec::new())?;
            Ok(self.client.request_text(request).await?)
        })?;
        let mut requests = Requests::default();
        for line in text.lines().filter(|line| line.starts_with("apiserver_request_total{")) {
            let label = |name: &str| -> &str {
                let rest = line.split_once(&format!("{name}=\"")).map(|(_, rest)| rest).unwrap_or_default();
                rest.split('"').next().unwrap_or_default()
            };
            let resource = label("resource");
            let is_write = ["POST", "PUT", "PATCH", "APPLY", "DELETE"].contains(&label("verb"));
            // Of the API server itself: it keeps its own Leases, Endpoints and account of addresses.
            let is_foreign = ["leases", "endpoints", "ipaddresses", "configmaps"].contains(&resource)
                || (resource == "events" && label("group") != "events.k8s.io");
            if !is_write || is_foreign {
                continue;
            }
            let subresource = label("subresource");
            let resource =
                if subresource.is_empty() { resource.to_owned() } else { format!("{resource}/{subresource}") };
            let count: f64 = line.rsplit(' ').next().unwrap_or_default().parse().with_context(|| line.to_owned())?;
            let key = (resource, label("verb").to_owned(), label("code").to_owned());
            *requests.0.entry(key).or_default() += count as u64;
        }
        ensure!(!requests.0.is_empty(), "the API server shows no counters");
        Ok(requests)
    }

    /// Who holds the election Lease, and how often it has changed hands.
    pub fn leader(&self) -> Result<(String, i32)> {
        block_on(async {
            let leases: Api<Lease> = Api::namespaced(self.client.clone(), NAMESPACE);
            let spec = leases.get_opt("l2lb-controller").await?.and_then(|lease| lease.spec).unwrap_or_default();
            Ok((spec.holder_identity.unwrap_or_default(), spec.lease_transitions.unwrap_or_default()))
        })
    }

    /// Waits until this controller leads.
    pub fn wait_for_leader(&self, name: &str, limit: Duration) -> Result<()> {
        wait_for(&format!("{name} does not lead"), limit, POLL, || {
            let (leader, _) = self.leader()?;
            Ok(if leader == name { Ok(()) } else { Err(format!("'{leader}' does")) })
        })
    }
}

/// Writes that an API server counted, by resource, verb and code.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Requests(BTreeMap<(String, String, String), u64>);

impl Requests {
    /// What was counted since.
    pub fn since(&self, before: &Self) -> BTreeMap<String, u64> {
        let grown = self.0.iter().filter_map(|(key, count)| {
            let more = count - before.0.get(key).unwrap_or(&0);
            (more > 0).then(|| (format!("{} {} {}", key.1, key.0, key.2), more))
        });
        grown.collect()
    }
}

/// A running controller.
pub struct Controller {
    /// Its name in the election.
    pub name: String,
    process: Process,
    port: u16,
}

impl Controller {
    /// Starts the program of this repository.
    pub fn start(world: &World, name: &str, kubeconfig: &Path) -> Result<Self> {
        static PORT: AtomicU16 = AtomicU16::new(17_000);
        let port = PORT.fetch_add(1, Ordering::Relaxed);
        let mut command = Command::new(env!("CARGO_BIN_EXE_l2lb"));
        command.args(["controller", "--namespace", NAMESPACE, "--identity", name, "--log", "info"]);
        command.args(["--health-address", &format!("127.0.0.1:{port}")]).env("KUBECONFIG", kubeconfig);
        let log = world.folder().join("logs").join(format!("{name}.log"));
        Ok(Self { name: name.to_owned(), process: Process::spawn(name, &mut command, &log)?, port })
    }

    /// Waits until it is ready, or is not because of this.
    pub fn wait_for_readiness(&self, why_not: Option<&str>) -> Result<()> {
        let status = if why_not.is_some() { "HTTP/1.1 503" } else { "HTTP/1.1 200" };
        wait_for(&format!("/readyz is not {status} {}", why_not.unwrap_or_default()), PATIENCE, POLL, || {
            let mut stream = TcpStream::connect(("127.0.0.1", self.port))?;
            stream.write_all(b"GET /readyz HTTP/1.1\r\nHost: l2lb\r\nConnection: close\r\n\r\n")?;
            let mut said = String::new();
            stream.read_to_string(&mut said)?;
            let is_so = said.starts_with(status) && said.contains(why_not.unwrap_or_default());
            Ok(if is_so { Ok(()) } else { Err(said) })
        })
    }

    /// Sends it a signal.
    pub fn signal(&self, what: Signal) -> Result<()> {
        signal(self.process.pid(), what)
    }

    /// Its process.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// Waits until all its threads sleep, and have between two looks: it is in the middle of nothing.
    pub fn wait_for_sleep(&self) -> Result<()> {
        let look = || -> Result<(bool, Vec<String>)> {
            let (mut asleep, mut switches) = (true, Vec::new());
            for thread in std::fs::read_dir(format!("/proc/{}/task", self.process.pid()))? {
                let status = std::fs::read_to_string(thread?.path().join("status"))?;
                asleep &= status.lines().any(|line| line.starts_with("State:") && line.contains("(sleeping)"));
                switches.extend(status.lines().filter(|line| line.contains("ctxt_switches")).map(str::to_owned));
            }
            Ok((asleep, switches))
        };
        let mut before = look()?;
        wait_for(&format!("{} does not come to rest", self.name), PATIENCE, Duration::from_millis(5), || {
            let now = look()?;
            let rests = now.0 && now == before;
            before = now;
            Ok(if rests { Ok(()) } else { Err("its threads run".to_owned()) })
        })
    }

    /// Fails if it runs no more.
    pub fn expect_running(&mut self) -> Result<()> {
        self.process.expect_running()
    }

    /// The most memory that it has had, in KiB.
    pub fn peak_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmHWM:")).context("VmHWM")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// Of that what is not the program itself, now, in KiB.
    pub fn own_memory(&self) -> Result<u64> {
        let status = std::fs::read_to_string(format!("/proc/{}/status", self.process.pid()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("RssAnon:")).context("RssAnon")?;
        Ok(line.trim().trim_end_matches(" kB").parse()?)
    }

    /// How much processor time it has used.
    pub fn processor_time(&self) -> Result<Duration> {
        let stat = std::fs::read_to_string(format!("/proc/{}/stat", self.process.pid()))?;
        let after_name = stat.rsplit(')').next().unwrap_or_default();
        let fields: Vec<&str> = after_name.split_whitespace().collect();
        let ticks = |at: usize| fields.get(at).and_then(|text| text.parse::<u64>().ok()).context("ticks");
        Ok(Duration::from_millis((ticks(11)? + ticks(12)?) * 10))
    }

    /// Tells it to end, which it has to do by itself and without complaint.
    pub fn stop(mut self) -> Result<()> {
        self.expect_running()?;
        let status = self.process.terminate(Duration::from_secs(10))?;
        ensure!(status.success(), "{} ended with {status}: {}", self.name, tail(self.process.log(), 20));
        Ok(())
    }

    /// Kills it.
    pub fn kill(mut self) -> Result<()> {
        self.process.kill().map(drop)
    }

    /// The end of its log.
    pub fn log(&self) -> String {
        tail(self.process.log(), 40)
    }

    /// How often it has said that.
    pub fn count_said(&self, what: &str) -> Result<usize> {
        let log = std::fs::read_to_string(self.process.log()).context("a controller's log")?;
        Ok(log.lines().filter(|line| line.contains(what)).count())
    }
}

/// A controller behind a proxy of its own.
pub struct Proxied {
    /// The proxy.
    pub proxy: Proxy,
    /// The controller.
    pub controller: Controller,
}

impl Proxied {
    /// Starts both.
    pub fn start(world: &World, name: &str) -> Result<Self> {
        let proxy = block_on(Proxy::start(&world.kubeconfig()))?;
        let kubeconfig = proxy.kubeconfig(world.folder())?;
        Ok(Self { controller: Controller::start(world, name, &kubeconfig)?, proxy })
    }

    /// Fails if the API server took the same write from it twice.
    pub fn expect_none_twice(&self) -> Result<()> {
        none_twice(&self.proxy.writes())
    }
}

/// Fails if a VirtualIP was made twice, or a Service told the same twice, or an event written twice. An address that was given
/// back may be given again.
pub fn none_twice(writes: &[Write]) -> Result<()> {
    let mut done: BTreeMap<&str, i32> = BTreeMap::new();
    for write in writes.iter().filter(|write| write.is_done()) {
        let asked = &write.asked;
        let step = match asked.method.as_str() {
            "POST" => 1,
            "PATCH" if asked.is_of("services") => 1,
            "DELETE" if asked.is_of("virtualips") => -1,
            _ => continue,
        };
        *done.entry(&asked.about).or_default() += step;
    }
    let twice: Vec<_> = done.iter().filter(|(_, count)| **count > 1).collect();
    ensure!(twice.is_empty(), "done more than once: {twice:?}");
    Ok(())
}

async fn each<F>(names: impl IntoIterator<Item = String>, work: impl Fn(String) -> F) -> Result<()>
where
    F: Future<Output = Result<()>>,
{
    stream::iter(names).map(|name| Ok(work(name))).try_buffer_unordered(AT_ONCE).try_collect().await
}

/// The addresses that a Service shows.
fn shown(service: &Service) -> Vec<String> {
    let balancer = service.status.as_ref().and_then(|status| status.load_balancer.as_ref());
    let ingress = balancer.and_then(|balancer| balancer.ingress.clone()).unwrap_or_default();
    ingress.into_iter().filter_map(|entry| entry.ip).collect()
}

fn wrong(services: &[Service], vips: &[VirtualIP]) -> Option<String> {
    let mut users: BTreeMap<String, Vec<String>> = BTreeMap::new();
    let ours = services
        .iter()
        .filter(|service| service.spec.as_ref().is_some_and(|spec| spec.type_.as_deref() == Some("LoadBalancer")));
    let mut without: Vec<String> = Vec::new();
    for service in ours {
        let name = service.name_any();
        let conditions = service.status.iter().flat_map(|status| status.conditions.iter().flatten());
        let met: BTreeSet<&str> = conditions
            .filter(|condition| condition.status == "True")
            .map(|condition| condition.type_.as_str())
            .collect();
        match shown(service).as_slice() {
            [address] if met.contains("l2lb.io/Allocated") && met.contains("l2lb.io/Announced") => {
                users.entry(address.clone()).or_default().push(format!("default/{name}"));
            }
            other => without.push(format!("{name} shows {other:?} and {met:?}")),
        }
    }
    if let Some(first) = without.first() {
        return Some(format!("{} Services are not served yet; {first}", without.len()));
    }
    if let Some((address, names)) = users.iter().find(|(_, names)| names.len() > 1) {
        return Some(format!("{address} was given to {names:?}"));
    }
    for vip in vips {
        let (name, spec) = (vip.name_any(), &vip.spec);
        if users.get(&spec.address) != Some(&spec.services) {
            return Some(format!(
                "VirtualIP {name} is for {:?}, used by {:?}",
                spec.services,
                users.get(&spec.address)
            ));
        }
        let primary = spec.assignments.iter().find(|entry| entry.role == Role::Primary).map(|entry| &entry.node);
        let claims = vip.status.iter().flat_map(|status| &status.claims);
        let owners: Vec<&String> =
            claims.filter(|claim| claim.state == ClaimState::Owner).map(|claim| &claim.node).collect();
        if owners != primary.into_iter().collect::<Vec<_>>() {
            return Some(format!("VirtualIP {name} is {primary:?}'s, claimed by {owners:?}"));
        }
    }
    (users.len() != vips.len()).then(|| format!("{} addresses are in use, {} VirtualIPs", users.len(), vips.len()))
}

/// Everything but Services.
async fn install(client: &Client) -> Result<()> {
    let create = PostParams::default();
    let definitions: Api<CustomResourceDefinition> = Api::all(client.clone());
    for definition in api::custom_resource_definitions() {
        definitions.create(&create, &definition).await?;
    }
    let namespace = json!({"metadata": {"name": NAMESPACE}});
    Api::<Namespace>::all(client.clone()).create(&create, &serde_json::from_value(namespace)?).await?;
    let nodes: Api<Node> = Api::all(client.clone());
    for node in speakers::NODES {
        nodes.create(&create, &serde_json::from_value(json!({"metadata": {"name": node}}))?).await?;
        let now = Timestamp::now().to_string();
        let ready = json!({"type": "Ready", "status": "True", "reason": "Test", "message": "",
            "lastHeartbeatTime": now, "lastTransitionTime": now});
        let patch = json!({"status": {"conditions": [ready]}, "spec": {"taints": null}});
        nodes.patch_status(node, &PatchParams::default(), &Patch::Strategic(&patch)).await?;
    }
    let pool = json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "lan"},
        "spec": {"addresses": ["10.20.64.0/18"]},
    });
    // The definitions are in force a moment later than they are made.
    until_made(|| async {
        Ok(Api::<IPPool>::all(client.clone()).create(&create, &serde_json::from_value(pool.clone())?).await?)
    })
    .await?;
    let speaker_api: Api<Speaker> = Api::all(client.clone());
    for (number, node) in speakers::NODES.iter().enumerate() {
        let (object, status): (Value, Value) = speakers::speaker(node, number);
        until_made(|| async { Ok(speaker_api.create(&create, &serde_json::from_value(object.clone())?).await?) })
            .await?;
        speaker_api.patch_status(node, &PatchParams::default(), &Patch::Merge(&status)).await?;
    }
    let vips: Api<VirtualIP> = Api::all(client.clone());
    until_made(|| async { Ok(vips.list(&ListParams::default()).await?) }).await?;
    Ok(())
}

async fn until_made<T, F: Future<Output = Result<T>>>(attempt: impl Fn() -> F) -> Result<T> {
    let deadline = tokio::time::Instant::now() + PATIENCE;
    loop {
        match attempt().await {
            Ok(made) => return Ok(made),
            Err(error) if tokio::time::Instant::now() > deadline => return Err(error),
            Err(error) if matches!(error.downcast_ref(), Some(kube::Error::Api(status)) if status.code != 404) => {
                bail!(error)
            }
            Err(_) => tokio::time::sleep(POLL).await,
        }
    }
}

/// Shared by the trials, one after the other.
pub type Shared = Arc<std::sync::Mutex<Option<World>>>;
