//! A small API server with time of its own: it keeps objects, does what the index wants, and tells it what happened.

use std::collections::BTreeMap;

use k8s_openapi::api::{
    coordination::v1::Lease,
    core::v1::{Node, Service},
    discovery::v1::EndpointSlice,
    networking::v1::ServiceCIDR,
};
use serde_json::{Value, json};

use super::super::*;
use crate::{
    api::{Claim, ClaimState, IPPool, Speaker, VirtualIP},
    controller::{
        change::{ServiceStatus, WantedCondition},
        index::virtual_ip_labels,
    },
};

pub struct World {
    pub index: Index,
    pub now: Duration,
    pub services: BTreeMap<String, Value>,
    pub pools: BTreeMap<String, Value>,
    pub vips: BTreeMap<String, VirtualIP>,
    pub nodes: BTreeMap<String, Value>,
    pub speakers: BTreeMap<String, Value>,
    pub slices: BTreeMap<String, Value>,
    pub service_ranges: BTreeMap<String, Value>,
    /// Whose Lease is renewed, and the last renewal.
    pub leases: BTreeMap<String, u64>,
    /// Whether each write is followed by [`World::check_shown`].
    pub checks_shown: bool,
    version: u64,
}

pub fn read<T: serde::de::DeserializeOwned>(value: &Value) -> T {
    serde_json::from_value(value.clone()).unwrap()
}

pub fn pool(name: &str, spec: Value) -> Value {
    json!({ "apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": { "name": name, "generation": 1 }, "spec": spec })
}

pub fn service(name: &str) -> Value {
    json!({
        "metadata": { "name": name, "namespace": "default", "uid": format!("uid-{name}"), "labels": { "app": name } },
        "spec": {
            "type": "LoadBalancer", "ipFamilies": ["IPv4"], "ipFamilyPolicy": "SingleStack",
            "externalTrafficPolicy": "Cluster", "ports": [{ "port": 80, "protocol": "TCP" }], "selector": { "app": name },
        },
    })
}

pub fn annotated(name: &str, key: &str, value: &str) -> Value {
    let mut service = service(name);
    service["metadata"]["annotations"] = json!({ key: value });
    service
}

impl World {
    /// A LAN of three nodes and one pool, listed and at rest.
    pub fn new() -> Self {
        let mut world = Self::unlisted();
        world.list();
        world.renew_now();
        world.run();
        world
    }

    pub fn unlisted() -> Self {
        let mut world = Self {
            index: Index::new(None),
            now: Duration::from_secs(100),
            services: BTreeMap::new(),
            pools: BTreeMap::new(),
            vips: BTreeMap::new(),
            nodes: BTreeMap::new(),
            speakers: BTreeMap::new(),
            slices: BTreeMap::new(),
            service_ranges: BTreeMap::new(),
            leases: BTreeMap::new(),
            checks_shown: false,
            version: 1,
        };
        world.pools.insert("lan".into(), pool("lan", json!({ "addresses": ["192.0.2.64/26"] })));
        for number in 1..=3 {
            let name = format!("node{number}");
            let node = json!({
                "metadata": { "name": name, "uid": format!("uid-{name}") },
                "status": { "conditions": [{ "type": "Ready", "status": "True" }] },
            });
            let speaker = json!({
                "apiVersion": "l2lb.io/v1alpha1", "kind": "Speaker",
                "metadata": {
                    "name": name, "uid": format!("uid-speaker-{name}"),
                    "ownerReferences": [
                        { "apiVersion": "v1", "kind": "Node", "name": name, "uid": format!("uid-{name}") },
                    ],
                },
                "spec": {},
                "status": { "interfaces": [{
                    "name": "eth0", "mac": format!("02:00:00:00:01:0{number}"), "carrier": true, "announces": true,
                    "addresses": [format!("192.0.2.1{number}/24")],
                }] },
            });
            world.nodes.insert(name.clone(), node);
            world.speakers.insert(name.clone(), speaker);
            world.leases.insert(name, 0);
        }
        world
    }

    /// A controller that starts anew and has listed everything.
    pub fn restart(&mut self) {
        self.index = Index::new(None);
        self.list();
    }

    pub fn list(&mut self) {
        for input in self.lists() {
            self.index.handle(input, self.now);
        }
    }

    pub fn lists(&self) -> Vec<Input> {
        vec![
            Input::Service(Delta::Reset(
                self.services.values().map(|o| ServiceView::from(&read::<Service>(o))).collect(),
            )),
            Input::Slice(Delta::Reset(
                self.slices.values().filter_map(|o| SliceView::read(&read::<EndpointSlice>(o))).collect(),
            )),
            Input::Node(Delta::Reset(self.nodes.values().map(|o| NodeView::from(&read::<Node>(o))).collect())),
            Input::Namespace(Delta::Reset(vec![NamespaceView { name: "default".into(), labels: BTreeMap::new() }])),
            Input::Pool(Delta::Reset(self.pools.values().map(|o| PoolView::from(&read::<IPPool>(o))).collect())),
            Input::VirtualIP(Delta::Reset(self.vips.values().filter_map(VirtualIPView::read).collect())),
            Input::Speaker(Delta::Reset(
                self.speakers.values().map(|o| SpeakerView::from(&read::<Speaker>(o))).collect(),
            )),
            Input::ServiceRange(Delta::Reset(
                self.service_ranges.values().map(|o| ServiceRangeView::from(&read::<ServiceCIDR>(o))).collect(),
            )),
            Input::Lease(Delta::Reset(self.leases.iter().map(|(node, mark)| lease(node, *mark)).collect())),
        ]
    }

    pub fn put_service(&mut self, mut service: Value) {
        let metadata = &service["metadata"];
        let key = format!("{}/{}", metadata["namespace"].as_str().unwrap(), metadata["name"].as_str().unwrap());
        if let Some(known) = self.services.get(&key) {
            service["status"] = known["status"].clone();
            service["metadata"]["managedFields"] = known["metadata"]["managedFields"].clone();
        }
        service["metadata"]["resourceVersion"] = self.next_version().into();
        let view = ServiceView::from(&read::<Service>(&service));
        self.services.insert(key, service);
        self.index.handle(Input::Service(Delta::Apply(view)), self.now);
    }

    pub fn delete_service(&mut self, name: &str) {
        let key = format!("default/{name}");
        self.services.remove(&key).unwrap();
        self.index.handle(Input::Service(Delta::Delete(key, format!("uid-{name}"))), self.now);
    }

    pub fn put_pool(&mut self, pool: Value) {
        let view = PoolView::from(&read::<IPPool>(&pool));
        self.pools.insert(view.name.clone(), pool);
        self.index.handle(Input::Pool(Delta::Apply(view)), self.now);
    }

    pub fn remove_pool(&mut self, name: &str) {
        self.pools.remove(name).unwrap();
        self.index.handle(Input::Pool(Delta::Delete(name.to_owned(), String::new())), self.now);
    }

    pub fn put_service_range(&mut self, name: &str, ranges: &[&str]) {
        let range = json!({ "metadata": { "name": name }, "spec": { "cidrs": ranges } });
        let view = ServiceRangeView::from(&read::<ServiceCIDR>(&range));
        self.service_ranges.insert(name.to_owned(), range);
        self.index.handle(Input::ServiceRange(Delta::Apply(view)), self.now);
    }

    pub fn put_slice(&mut self, service: &str, nodes: &[&str]) {
        let endpoints: Vec<Value> =
            nodes.iter().map(|node| json!({ "addresses": ["10.0.0.1"], "nodeName": node })).collect();
        self.put_endpoints(service, "IPv4", endpoints.into());
    }

    /// One slice of this address type.
    pub fn put_endpoints(&mut self, service: &str, address_type: &str, endpoints: Value) {
        let name = if address_type == "IPv4" { service.to_owned() } else { format!("{service}-6") };
        let slice = json!({
            "metadata": {
                "name": name, "namespace": "default",
                "labels": { "kubernetes.io/service-name": service },
            },
            "addressType": address_type, "endpoints": endpoints,
        });
        let view = SliceView::read(&read::<EndpointSlice>(&slice)).unwrap();
        self.slices.insert(view.key.clone(), slice);
        self.index.handle(Input::Slice(Delta::Apply(view)), self.now);
    }

    pub fn change_node(&mut self, name: &str, change: impl Fn(&mut Value)) {
        let node = self.nodes.get_mut(name).unwrap();
        change(node);
        let view = NodeView::from(&read::<Node>(node));
        self.index.handle(Input::Node(Delta::Apply(view)), self.now);
    }

    pub fn change_speaker(&mut self, name: &str, change: impl Fn(&mut Value)) {
        let speaker = self.speakers.get_mut(name).unwrap();
        change(speaker);
        let view = SpeakerView::from(&read::<Speaker>(speaker));
        self.index.handle(Input::Speaker(Delta::Apply(view)), self.now);
    }

    /// The node's speaker is gone: its Lease is not renewed any more.
    pub fn kill(&mut self, node: &str) {
        self.leases.remove(node);
    }

    /// Lets time pass; living speakers renew their Leases each 5 seconds.
    pub fn pass(&mut self, seconds: u64) -> Vec<Change> {
        let mut changes = Vec::new();
        let end = self.now + Duration::from_secs(seconds);
        while self.now < end {
            self.now = (self.now + Duration::from_secs(1)).min(end);
            self.renew();
            changes.extend(self.run());
        }
        changes
    }

    /// Living speakers renew their Leases each 5 seconds.
    pub fn renew(&mut self) {
        if self.now.subsec_nanos() == 0 && self.now.as_secs().is_multiple_of(5) {
            self.renew_now();
        }
    }

    pub fn renew_now(&mut self) {
        let now = self.now.as_secs();
        for (node, mark) in &mut self.leases {
            *mark = now;
            self.index.handle(Input::Lease(Delta::Apply(lease(node, now))), self.now);
        }
    }

    /// Lets time pass without asking the index for anything.
    pub fn pass_quietly(&mut self, seconds: u64) {
        for _ in 0..seconds {
            self.now += Duration::from_secs(1);
            self.renew();
        }
    }

    /// As [`World::run`], for thousands of objects.
    pub fn run_all(&mut self) -> usize {
        let mut changes = 0;
        while let Some((target, change)) = self.index.poll_change(self.now) {
            let outcome = self.write(&change);
            self.index.handle_outcome(&target, outcome, self.now);
            changes += 1;
            assert!(changes < 100_000, "no end of changes: {change:?}");
        }
        changes
    }

    /// Does all that the index wants now.
    pub fn run(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        while let Some((target, change)) = self.index.poll_change(self.now) {
            let outcome = self.write(&change);
            self.index.handle_outcome(&target, outcome, self.now);
            if self.checks_shown {
                self.check_shown();
            }
            changes.push(change);
            assert!(changes.len() < 50_000, "no end of changes: {:?}", &changes[49_990..]);
        }
        changes
    }

    /// The next change that is not about a pool; those are done on the way.
    pub fn next_but_pools(&mut self) -> Option<(Target, Change)> {
        loop {
            let (target, change) = self.index.poll_change(self.now)?;
            if !matches!(change, Change::PoolStatus { .. }) {
                return Some((target, change));
            }
            let outcome = self.write(&change);
            self.index.handle_outcome(&target, outcome, self.now);
        }
    }

    /// The speakers do what they are told: whoever is named and lives claims, the others yield.
    pub fn speak(&mut self) {
        for name in self.vips.keys().cloned().collect::<Vec<_>>() {
            self.speak_of(&name);
        }
    }

    /// The same for one address.
    pub fn speak_of(&mut self, name: &str) {
        let mut vip = self.vips[name].clone();
        let primary = vip.spec.assignments.iter().find(|entry| entry.role == Role::Primary).cloned();
        let Some(primary) = primary.filter(|primary| self.leases.contains_key(&primary.node)) else { return };
        let uid = vip.metadata.uid.clone().unwrap();
        let claims = &mut vip.status.get_or_insert_default().claims;
        if claims.iter().any(|claim| claim.node == primary.node && claim.placement == vip.spec.placement) {
            return;
        }
        claims.retain(|claim| claim.node != primary.node);
        for claim in claims.iter_mut().filter(|claim| self.leases.contains_key(&claim.node)) {
            claim.state = ClaimState::Yielded;
        }
        let number = primary.node.trim_start_matches("node");
        claims.push(Claim {
            mac: format!("02:00:00:00:01:0{number}"),
            node: primary.node,
            interface: primary.interface,
            state: ClaimState::Owner,
            since: read(&json!("2026-01-01T00:00:00Z")),
            reason: String::new(),
            conflict_mac: None,
            uid,
            placement: vip.spec.placement,
        });
        self.put_vip(vip);
    }

    /// The first living standby of each address claims it by itself.
    pub fn take_over(&mut self) {
        for name in self.vips.keys().cloned().collect::<Vec<_>>() {
            if let Some(vip) = taken_over(&self.vips[&name], |node| self.leases.contains_key(node)) {
                self.put_vip(vip);
            }
        }
    }

    pub fn put_vip(&mut self, mut vip: VirtualIP) {
        vip.metadata.resource_version = Some(self.next_version());
        let view = VirtualIPView::read(&vip).unwrap();
        self.vips.insert(view.name.clone(), vip);
        self.index.handle(Input::VirtualIP(Delta::Apply(view)), self.now);
    }

    pub fn write(&mut self, change: &Change) -> Outcome {
        match change {
            Change::CreateVirtualIP { spec } => {
                let name = api::virtual_ip_name(spec.address.parse().unwrap());
                if self.vips.contains_key(&name) {
                    return Outcome::Conflict;
                }
                let mut vip = VirtualIP::new(&name, spec.clone());
                let version = self.next_version();
                vip.metadata.uid = Some(format!("uid-vip-{version}"));
                vip.metadata.resource_version = Some(version);
                vip.metadata.labels = Some(virtual_ip_labels(spec));
                self.keep_vip(vip)
            }
            Change::UpdateVirtualIP { resource_version, spec, .. } => {
                let name = api::virtual_ip_name(spec.address.parse().unwrap());
                let Some(mut vip) = self.same_vip(&name, resource_version) else { return Outcome::Conflict };
                vip.spec = spec.clone();
                vip.metadata.labels = Some(virtual_ip_labels(spec));
                vip.metadata.resource_version = Some(self.next_version());
                self.keep_vip(vip)
            }
            Change::RemoveClaim { address, resource_version, index, node } => {
                let Some(mut vip) = self.same_vip(&api::virtual_ip_name(*address), resource_version) else {
                    return Outcome::Conflict;
                };
                let gone = vip.status.as_mut().unwrap().claims.remove(*index);
                assert_eq!(gone.node, *node);
                vip.metadata.resource_version = Some(self.next_version());
                self.keep_vip(vip)
            }
            Change::DeleteVirtualIP { address, uid, resource_version } => {
                let name = api::virtual_ip_name(*address);
                if self.same_vip(&name, resource_version).is_none() {
                    return Outcome::Conflict;
                }
                self.vips.remove(&name);
                self.index.handle(Input::VirtualIP(Delta::Delete(name, uid.clone())), self.now);
                Outcome::Done
            }
            Change::ServiceStatus(status) => self.write_status(status),
            Change::PoolStatus { name, status } => {
                let mut pool = self.pools[name].clone();
                pool["status"] = json!(status);
                self.put_pool(pool);
                Outcome::Done
            }
            Change::SpeakerOwner { .. } | Change::LeaseOwner { .. } | Change::ServiceEvent { .. } => Outcome::Done,
        }
    }

    fn write_status(&mut self, status: &ServiceStatus) -> Outcome {
        let version = self.next_version();
        let Some(service) = self.services.get_mut(&format!("{}/{}", status.namespace, status.name)) else {
            return Outcome::Conflict;
        };
        if service["metadata"]["resourceVersion"].as_str().unwrap_or_default() != status.resource_version {
            return Outcome::Conflict;
        }
        service["status"] = applied(status);
        let managed = json!([{ "manager": "l2lb-controller", "subresource": "status", "operation": "Apply" }]);
        service["metadata"]["managedFields"] = if status.conditions.is_empty() { json!([]) } else { managed };
        service["metadata"]["resourceVersion"] = version.into();
        Outcome::Service(ServiceView::from(&read::<Service>(service)))
    }

    fn same_vip(&self, name: &str, version: &str) -> Option<VirtualIP> {
        self.vips.get(name).filter(|vip| vip.metadata.resource_version.as_deref() == Some(version)).cloned()
    }

    fn keep_vip(&mut self, vip: VirtualIP) -> Outcome {
        let view = VirtualIPView::read(&vip).unwrap();
        self.vips.insert(view.name.clone(), vip);
        Outcome::VirtualIP(view)
    }

    fn next_version(&mut self) -> String {
        self.version += 1;
        self.version.to_string()
    }

    /// A speaker says of an address that another host answers there, if the address is this one.
    pub fn block(&mut self, address: &str, mac: &str) {
        let name = api::virtual_ip_name(address.parse().unwrap());
        let mut vip = self.vips[&name].clone();
        let primary = vip.spec.assignments[0].clone();
        let uid = vip.metadata.uid.clone().unwrap();
        let placement = vip.spec.placement;
        let claims = &mut vip.status.get_or_insert_default().claims;
        claims.retain(|claim| claim.node != primary.node);
        claims.push(Claim {
            mac: "02:00:00:00:01:01".to_owned(),
            node: primary.node,
            interface: primary.interface,
            state: ClaimState::Blocked,
            since: read(&json!("2026-01-01T00:00:00Z")),
            reason: String::new(),
            conflict_mac: Some(mac.to_owned()),
            uid,
            placement,
        });
        self.put_vip(vip);
    }

    /// The other host is gone: the speaker that was blocked answers for the address.
    pub fn unblock(&mut self, address: &str) {
        let mut vip = self.vips[&api::virtual_ip_name(address.parse().unwrap())].clone();
        let claims = &mut vip.status.as_mut().unwrap().claims;
        let blocked = claims.iter_mut().find(|claim| claim.state == ClaimState::Blocked).unwrap();
        (blocked.state, blocked.conflict_mac) = (ClaimState::Owner, None);
        self.put_vip(vip);
    }

    /// The events among these changes, as `reason: message`.
    pub fn events(changes: &[Change]) -> Vec<String> {
        let events = changes.iter().filter_map(|change| match change {
            Change::ServiceEvent { event, .. } => Some(format!("{}: {}", event.reason, event.message)),
            _ => None,
        });
        events.collect()
    }

    /// Whoever is sent to an address that a Service shows finds a node that announces it: there is a VirtualIP.
    pub fn check_shown(&self) {
        for (key, service) in &self.services {
            for address in service["status"]["loadBalancer"]["ingress"].as_array().into_iter().flatten() {
                let address = address["ip"].as_str().unwrap().parse().unwrap();
                let is_there = self.vips.contains_key(&api::virtual_ip_name(address));
                assert!(is_there, "{key} shows {address}, which has no VirtualIP");
            }
        }
    }

    /// Brings a Service up, claim and all.
    pub fn bring_up(&mut self, service: Value) -> Vec<Change> {
        self.put_service(service);
        let mut changes = self.run();
        self.speak();
        changes.extend(self.run());
        changes
    }

    pub fn shown(&self, name: &str) -> Vec<String> {
        let ingress = &self.services[&format!("default/{name}")]["status"]["loadBalancer"]["ingress"];
        ingress.as_array().into_iter().flatten().map(|entry| entry["ip"].as_str().unwrap().to_owned()).collect()
    }

    /// `(status, reason, message)` of the condition.
    pub fn condition(&self, name: &str, type_: &str) -> Option<(String, String, String)> {
        let conditions = self.services[&format!("default/{name}")]["status"]["conditions"].as_array()?;
        let condition = conditions.iter().find(|condition| condition["type"] == type_)?;
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        Some((text("status"), text("reason"), text("message")))
    }

    pub fn roles(&self, address: &str) -> Vec<(String, Role)> {
        self.vips[address].spec.assignments.iter().map(|entry| (entry.node.clone(), entry.role)).collect()
    }
}

/// What a Service has in its status when this was written.
pub fn applied(status: &ServiceStatus) -> Value {
    let ingress: Vec<Value> =
        status.addresses.iter().map(|address| json!({ "ip": address, "ipMode": "VIP" })).collect();
    let condition = |wanted: &WantedCondition| {
        json!({
            "type": wanted.type_, "status": if wanted.status { "True" } else { "False" },
            "reason": wanted.reason, "message": wanted.message, "lastTransitionTime": "2026-01-01T00:00:00Z",
        })
    };
    let conditions: Vec<Value> = status.conditions.iter().map(condition).collect();
    json!({ "loadBalancer": { "ingress": ingress }, "conditions": conditions })
}

/// The address after the first standby that lives has claimed it by itself; `None` if there is none, or no owner.
pub fn taken_over(vip: &VirtualIP, lives: impl Fn(&str) -> bool) -> Option<VirtualIP> {
    let mut vip = vip.clone();
    let mut standbys = vip.spec.assignments.iter().filter(|entry| entry.role == Role::Standby);
    let standby = standbys.find(|entry| lives(&entry.node)).cloned()?;
    let claims = &mut vip.status.get_or_insert_default().claims;
    let owner = claims.iter().find(|claim| claim.state == ClaimState::Owner).cloned()?;
    claims.retain(|claim| claim.node != standby.node);
    let placement = vip.spec.placement;
    claims.push(Claim { node: standby.node, interface: standby.interface, placement, ..owner });
    Some(vip)
}

pub fn lease(node: &str, mark: u64) -> LeaseView {
    let lease: Lease = read(&json!({
        "metadata": {
            "name": format!("l2lb-speaker-{node}"), "namespace": "l2lb-system", "uid": format!("uid-lease-{node}"),
            "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": format!("uid-{node}") }],
        },
        "spec": { "holderIdentity": node, "renewTime": format!("2026-01-01T00:00:00.{mark:06}Z") },
    }));
    LeaseView::read(&lease).unwrap()
}

/// Without what is written about pools.
pub fn but_pools(changes: Vec<Change>) -> Vec<Change> {
    changes.into_iter().filter(|change| !matches!(change, Change::PoolStatus { .. })).collect()
}
