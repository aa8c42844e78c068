//! Small views of what is watched, made at the door: only what decides something is kept, so that a heartbeat of a Node or
//! a new log line in an annotation compares equal and wakes nobody.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{Node, Service},
        discovery::v1::EndpointSlice,
        networking::v1::ServiceCIDR,
    },
    apimachinery::pkg::apis::meta::v1::{Condition, OwnerReference, Time},
};
use kube::{ResourceExt as _, core::ObjectMeta};

use crate::{
    api::{self, NetworkInterface, Speaker, VirtualIP},
    controller::request::{self, AddressRequest},
    ipam::{AddressRange, Family, Use},
    small::{SmallMap, SmallSet},
};

/// What a table of views needs to know of one.
pub trait View: Clone + PartialEq {
    /// Name, with the namespace before it where there is one.
    fn key(&self) -> &str;
    /// Tells an object from a later one of the same name. Empty where that makes no difference.
    fn uid(&self) -> &str {
        ""
    }
    /// Tells an older state of an object from a newer one.
    fn version(&self) -> Option<u64> {
        None
    }
}

macro_rules! view {
    ($name:ident, $key:ident) => {
        impl View for $name {
            fn key(&self) -> &str {
                &self.$key
            }
        }
    };
    ($name:ident, $key:ident, versioned) => {
        impl View for $name {
            fn key(&self) -> &str {
                &self.$key
            }
            fn uid(&self) -> &str {
                &self.uid
            }
            fn version(&self) -> Option<u64> {
                self.resource_version.parse().ok()
            }
        }
    };
}

// Below the macro, which it uses.
mod pool;
pub use pool::{AnnounceView, PoolView};

/// A condition as it stands on a Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ShownCondition {
    /// `True`?
    pub status: bool,
    /// Its reason.
    pub reason: String,
    /// Its message.
    pub message: String,
    /// Since when the status is what it is.
    pub since: Time,
}

/// How many families a Service wants.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum FamilyPolicy {
    /// One.
    #[default]
    Single,
    /// Both if they can be had.
    Prefer,
    /// Both or nothing.
    Require,
}

/// A Service.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceView {
    /// `namespace/name`.
    pub key: String,
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Its labels.
    pub labels: SmallMap<String, String>,
    /// Whether it is of type LoadBalancer and not on its way out.
    pub is_load_balancer: bool,
    /// Its loadBalancerClass.
    pub class: Option<String>,
    /// The families it wants addresses of, in order.
    pub families: Vec<Family>,
    /// Whether it needs all of them.
    pub family_policy: FamilyPolicy,
    /// The pool or addresses it asks for, or what is wrong with the request, as a sentence.
    pub request: Result<AddressRequest, String>,
    /// What it would do with an address.
    pub wanted_use: Use,
    /// `externalTrafficPolicy: Local`.
    pub is_local: bool,
    /// The addresses in its status.
    pub shown: Vec<IpAddr>,
    /// Whether those stand there as we write them.
    pub shown_as_ours: bool,
    /// Our conditions on it, by type.
    pub conditions: SmallMap<String, ShownCondition>,
    /// Whether anything in its status was written by us.
    pub has_our_status: bool,
}
view!(ServiceView, key, versioned);

impl From<&Service> for ServiceView {
    fn from(service: &Service) -> Self {
        let (namespace, name) = (service.namespace().unwrap_or_default(), service.name_any());
        let spec = service.spec.clone().unwrap_or_default();
        let status = service.status.clone().unwrap_or_default();
        let ingress = status.load_balancer.and_then(|balancer| balancer.ingress).unwrap_or_default();
        let conditions: SmallMap<String, ShownCondition> = status
            .conditions
            .unwrap_or_default()
            .into_iter()
            .filter(|condition| {
                [api::CONDITION_ALLOCATED, api::CONDITION_ANNOUNCED].contains(&condition.type_.as_str())
            })
            .map(|condition| (condition.type_.clone(), shown(condition)))
            .collect();
        let applied = service.metadata.managed_fields.iter().flatten().any(|entry| {
            entry.manager.as_deref() == Some(api::CONTROLLER_FIELD_MANAGER)
                && entry.subresource.as_deref() == Some("status")
        });
        let deleting = service.metadata.deletion_timestamp.is_some();
        let is_local = spec.external_traffic_policy.as_deref() == Some("Local");
        let families = spec.ip_families.iter().flatten().filter_map(|family| match family.as_str() {
            "IPv4" => Some(Family::V4),
            "IPv6" => Some(Family::V6),
            _ => None,
        });
        let families: Vec<Family> = families.collect();
        let ports = spec.ports.iter().flatten().filter_map(|port| {
            let protocol = port.protocol.clone().unwrap_or_else(|| "TCP".to_owned());
            Some((protocol, u16::try_from(port.port).ok()?))
        });
        let selector = spec.selector.iter().flatten().map(|(key, value)| format!("{key}={value}"));
        let wanted_use = Use {
            sharing_key: request::sharing_key(service.annotations()),
            ports: ports.collect(),
            // A Service without a selector shares its endpoints with nobody.
            backend: is_local.then(|| {
                let selector: Vec<String> = selector.collect();
                if selector.is_empty() {
                    format!("{namespace}/{name}")
                } else {
                    format!("{namespace}: {}", selector.join(","))
                }
            }),
        };
        Self {
            key: format!("{namespace}/{name}"),
            uid: service.uid().unwrap_or_default(),
            resource_version: service.resource_version().unwrap_or_default(),
            labels: service.labels().into(),
            is_load_balancer: spec.type_.as_deref() == Some("LoadBalancer") && !deleting,
            class: spec.load_balancer_class,
            families: if families.is_empty() { vec![Family::V4] } else { families },
            family_policy: match spec.ip_family_policy.as_deref() {
                Some("PreferDualStack") => FamilyPolicy::Prefer,
                Some("RequireDualStack") => FamilyPolicy::Require,
                _ => FamilyPolicy::Single,
            },
            request: request::read(service.annotations(), spec.load_balancer_ip.as_deref()),
            wanted_use,
            is_local,
            shown: ingress.iter().filter_map(|entry| entry.ip.as_deref()?.parse().ok()).collect(),
            shown_as_ours: ingress
                .iter()
                .all(|entry| entry.ip.is_some() && entry.ip_mode.as_deref() == Some("VIP") && entry.hostname.is_none()),
            has_our_status: applied,
            conditions,
            namespace,
            name,
        }
    }
}

fn shown(condition: Condition) -> ShownCondition {
    ShownCondition {
        status: condition.status == "True",
        reason: condition.reason,
        message: condition.message,
        since: condition.last_transition_time,
    }
}

/// An EndpointSlice: on which nodes its Service has endpoints that kube-proxy uses there.
#[derive(Clone, Debug, PartialEq)]
pub struct SliceView {
    /// `namespace/name`.
    pub key: String,
    /// The Service that it belongs to, as `namespace/name`.
    pub service: String,
    /// The family of its endpoints; `None` where kube-proxy uses none of them (FQDN).
    pub family: Option<Family>,
    /// Nodes with a ready endpoint.
    pub ready: SmallSet<String>,
    /// Nodes with an endpoint that serves while it terminates: used there while no other one is ready.
    pub terminating: SmallSet<String>,
    /// Whether it has any endpoint at all.
    pub has_endpoints: bool,
    /// Whether it has an endpoint that names its node.
    pub names_nodes: bool,
}
view!(SliceView, key);

impl SliceView {
    /// `None` for a slice that belongs to no Service.
    pub fn read(slice: &EndpointSlice) -> Option<Self> {
        let service = slice.labels().get("kubernetes.io/service-name")?;
        let namespace = slice.namespace().unwrap_or_default();
        let endpoints = &slice.endpoints;
        let (mut ready, mut terminating) = (SmallSet::default(), SmallSet::default());
        for endpoint in endpoints {
            let Some(node) = endpoint.node_name.clone() else { continue };
            // What is not said counts as kube-proxy counts it.
            let conditions = endpoint.conditions.clone().unwrap_or_default();
            if conditions.ready.unwrap_or(true) {
                ready.insert(node);
            } else if conditions.serving.unwrap_or(true) && conditions.terminating.unwrap_or(false) {
                terminating.insert(node);
            }
        }
        Some(Self {
            key: format!("{namespace}/{}", slice.name_any()),
            service: format!("{namespace}/{service}"),
            family: match slice.address_type.as_str() {
                "IPv4" => Some(Family::V4),
                "IPv6" => Some(Family::V6),
                _ => None,
            },
            ready,
            terminating,
            has_endpoints: !endpoints.is_empty(),
            names_nodes: endpoints.iter().any(|endpoint| endpoint.node_name.is_some()),
        })
    }
}

/// A Node.
#[derive(Clone, Debug, PartialEq)]
pub struct NodeView {
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
    /// Whether its Ready condition is True.
    pub ready: bool,
    /// Whether it has the taint that says that it is off.
    pub out_of_service: bool,
    /// Whether an annotation asks for its addresses to be moved away.
    pub drain_asked: bool,
    /// Its addresses, by its status.
    pub addresses: Vec<IpAddr>,
    /// The ranges of its pods, read and as written.
    pub pod_ranges: Vec<(AddressRange, String)>,
}
view!(NodeView, name);

impl From<&Node> for NodeView {
    fn from(node: &Node) -> Self {
        let conditions = node.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
        let taints = node.spec.as_ref().and_then(|spec| spec.taints.as_deref()).unwrap_or_default();
        Self {
            name: node.name_any(),
            uid: node.uid().unwrap_or_default(),
            labels: node.labels().clone(),
            ready: conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True"),
            out_of_service: taints.iter().any(|taint| taint.key == api::OUT_OF_SERVICE_TAINT),
            drain_asked: node.annotations().get(api::DRAIN_ANNOTATION).is_some_and(|value| value != "false"),
            addresses: {
                let addresses = node.status.iter().flat_map(|status| status.addresses.iter().flatten());
                addresses.filter_map(|entry| entry.address.parse().ok()).collect()
            },
            pod_ranges: {
                let spec = node.spec.as_ref();
                let ranges = spec.and_then(|spec| spec.pod_cidrs.as_deref()).unwrap_or_default();
                // An older field, which is the first of the list where both are there.
                let single = spec.and_then(|spec| spec.pod_cidr.as_ref()).filter(|_| ranges.is_empty());
                ranges_of(ranges.iter().chain(single))
            },
        }
    }
}

/// A ServiceCIDR: addresses that the cluster gives to Services itself.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceRangeView {
    /// Its name.
    pub name: String,
    /// Its ranges, read and as written.
    pub ranges: Vec<(AddressRange, String)>,
}
view!(ServiceRangeView, name);

impl From<&ServiceCIDR> for ServiceRangeView {
    fn from(range: &ServiceCIDR) -> Self {
        let spec = range.spec.as_ref();
        let ranges = spec.and_then(|spec| spec.cidrs.as_deref()).unwrap_or_default();
        Self { name: range.name_any(), ranges: ranges_of(ranges) }
    }
}

/// Ranges that the API server has checked.
fn ranges_of<'a>(texts: impl IntoIterator<Item = &'a String>) -> Vec<(AddressRange, String)> {
    texts.into_iter().filter_map(|text| Some((text.parse().ok()?, text.clone()))).collect()
}

/// A Namespace.
#[derive(Clone, Debug, PartialEq)]
pub struct NamespaceView {
    /// Its name.
    pub name: String,
    /// Its labels.
    pub labels: BTreeMap<String, String>,
}
view!(NamespaceView, name);

impl From<&ObjectMeta> for NamespaceView {
    fn from(metadata: &ObjectMeta) -> Self {
        Self { name: metadata.name.clone().unwrap_or_default(), labels: metadata.labels.clone().unwrap_or_default() }
    }
}

/// A VirtualIP.
#[derive(Clone, Debug, PartialEq)]
pub struct VirtualIPView {
    /// Its name.
    pub name: String,
    /// The address that its name stands for.
    pub address: IpAddr,
    /// Its uid.
    pub uid: String,
    /// Its resourceVersion.
    pub resource_version: String,
    /// Whether it is on its way out.
    pub deleting: bool,
    /// Its labels that tell speakers of their part.
    pub node_labels: SmallMap<String, String>,
    /// Its spec.
    pub spec: api::VirtualIPSpec,
    /// What the speakers say.
    pub claims: Vec<api::Claim>,
}
view!(VirtualIPView, name, versioned);

impl VirtualIPView {
    /// `None` if the name is not that of an address, or the spec speaks of another one: such an object is not ours.
    pub fn read(vip: &VirtualIP) -> Option<Self> {
        let name = vip.name_any();
        let address = api::address_of_name(&name)?;
        if vip.spec.address.parse() != Ok(address) {
            return None;
        }
        let prefix = format!("node.{}/", api::GROUP);
        let labels = vip.labels().iter().filter(|(key, _)| key.starts_with(&prefix));
        Some(Self {
            address,
            uid: vip.uid().unwrap_or_default(),
            resource_version: vip.resource_version().unwrap_or_default(),
            deleting: vip.metadata.deletion_timestamp.is_some(),
            node_labels: labels.map(|(key, value)| (key.clone(), value.clone())).collect(),
            spec: vip.spec.clone(),
            claims: vip.status.clone().unwrap_or_default().claims,
            name,
        })
    }
}

/// A Speaker.
#[derive(Clone, Debug, PartialEq)]
pub struct SpeakerView {
    /// Name of its node.
    pub node: String,
    /// Its uid.
    pub uid: String,
    /// Its node's interfaces.
    pub interfaces: Vec<NetworkInterface>,
    /// Whether it asks for its addresses to be moved away.
    pub draining: bool,
    /// The uids of the Nodes that own it.
    pub owner_nodes: BTreeSet<String>,
}
view!(SpeakerView, node);

impl From<&Speaker> for SpeakerView {
    fn from(speaker: &Speaker) -> Self {
        let status = speaker.status.clone().unwrap_or_default();
        Self {
            node: speaker.name_any(),
            uid: speaker.uid().unwrap_or_default(),
            interfaces: status.interfaces,
            draining: status.draining,
            owner_nodes: owner_nodes(speaker.owner_references()),
        }
    }
}

fn owner_nodes(references: &[OwnerReference]) -> BTreeSet<String> {
    references.iter().filter(|owner| owner.kind == "Node").map(|owner| owner.uid.clone()).collect()
}

/// The Lease of a speaker: any change of `mark` is a sign of life. Its times are not read as times.
#[derive(Clone, Debug, PartialEq)]
pub struct LeaseView {
    /// Name of the speaker's node.
    pub node: String,
    /// Changes with each renewal.
    pub mark: String,
    /// Its namespace.
    pub namespace: String,
    /// Its uid.
    pub uid: String,
    /// The uids of the Nodes that own it.
    pub owner_nodes: BTreeSet<String>,
}
view!(LeaseView, node);

impl LeaseView {
    /// `None` for a Lease that is not a speaker's.
    pub fn read(lease: &Lease) -> Option<Self> {
        let name = lease.name_any();
        let node = name.strip_prefix(&api::speaker_lease_name(""))?;
        let spec = lease.spec.clone().unwrap_or_default();
        let renewed = spec.renew_time.map(|time| time.0.to_string()).unwrap_or_default();
        let mark = format!("{renewed} {}", spec.holder_identity.unwrap_or_default());
        Some(Self {
            node: node.to_owned(),
            mark,
            namespace: lease.namespace().unwrap_or_default(),
            uid: lease.uid().unwrap_or_default(),
            owner_nodes: owner_nodes(lease.owner_references()),
        })
    }
}
