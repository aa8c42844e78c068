//! IPPool: the addresses that an administrator gives to l2lb, and who may use and announce them.

// Each printcolumn is an attribute of its own, which clippy takes for a repetition.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, LabelSelector};
use kube::{CustomResource, KubeSchema};
use schemars::{JsonSchema, Schema, SchemaGenerator, json_schema};
use serde::{Deserialize, Serialize};
use std::borrow::Cow;

/// A pool of addresses of the local network. Services of type LoadBalancer get their addresses from it.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "l2lb.io",
    version = "v1alpha1",
    kind = "IPPool",
    doc = "Addresses of the local network that Services of type LoadBalancer get theirs from.",
    plural = "ippools",
    status = "IPPoolStatus",
    shortname = "ipp",
    category = "l2lb",
    derive = "PartialEq",
    printcolumn(
        name = "ADDRESSES",
        type_ = "string",
        json_path = ".spec.addresses",
        description = "What the pool holds"
    ),
    printcolumn(
        name = "IPV4-USED",
        type_ = "string",
        json_path = ".status.ipv4.used",
        description = "IPv4 addresses in use"
    ),
    printcolumn(
        name = "IPV4-FREE",
        type_ = "string",
        json_path = ".status.ipv4.free",
        description = "IPv4 addresses that can still be given"
    ),
    printcolumn(
        name = "IPV6-USED",
        type_ = "string",
        json_path = ".status.ipv6.used",
        description = "IPv6 addresses in use",
        priority = 1
    ),
    printcolumn(
        name = "IPV6-FREE",
        type_ = "string",
        json_path = ".status.ipv6.free",
        description = "IPv6 addresses that can still be given",
        priority = 1
    ),
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct IPPoolSpec {
    /// The addresses: CIDRs (192.0.2.64/26), ranges (192.0.2.200-192.0.2.220) and single addresses (192.0.2.5),
    /// IPv4 and IPv6. Every address of a CIDR is handed out, its first and last too, except the first and the last of an
    /// IPv4 subnet of the nodes.
    #[schemars(length(min = 1, max = 256))]
    pub addresses: Vec<AddressRangeSpec>,

    /// Addresses that are never handed out, written like those in addresses.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub exclude: Vec<AddressRangeSpec>,

    /// Whether Services that ask for nothing get an address from this pool. With false, a Service has to ask for the pool
    /// (annotation l2lb.io/pool) or for one of its addresses (annotation l2lb.io/addresses, or spec.loadBalancerIP).
    #[serde(default = "yes")]
    pub auto_assign: bool,

    /// Whether IPv4 addresses that end in .0 or .255 are left out, for clients that mishandle them.
    #[serde(default, rename = "avoidBuggyIPs")]
    pub avoid_buggy_ips: bool,

    /// The order in which pools are tried: lower first. Pools with a priority or a selector come before plain ones; pools
    /// that are equal in this are tried by name.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    #[schemars(with = "Option<i32>", range(min = 0))]
    pub priority: Option<u32>,

    /// Which Services may use the pool, by their labels. A Service has to match this and, where given, one of namespaces and
    /// namespaceSelector. Empty: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub service_selector: Option<LabelSelector>,

    /// Namespaces whose Services may use the pool. Empty, with no namespaceSelector: all.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 256))]
    pub namespaces: Vec<String>,

    /// Namespaces whose Services may use the pool, by the namespaces' labels.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace_selector: Option<LabelSelector>,

    /// Who announces the addresses of this pool, and how.
    #[serde(default)]
    pub announce: Announce,
}

/// Who announces the addresses of a pool, and how.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Announce {
    /// Which nodes may announce. Empty: all.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub node_selector: Option<LabelSelector>,

    /// Names of the interfaces that may announce, in order of preference; * stands for any characters (eth*). Empty: the
    /// interface whose subnet holds the address, else the one of the default route.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub interfaces: Vec<String>,

    /// Nodes that are preferred. A preference is soft: another node announces when no preferred one can.
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    #[schemars(length(max = 64))]
    pub preferred_nodes: Vec<PreferredNode>,

    /// How quick the speakers are for these addresses: Standard, Fast or Relaxed. Standbys ask the owner on the network, and one of them
    /// takes over when it has been silent for three intervals and nobody answers a probe: after a second at most, 0.3 s with Fast, 5 s with Relaxed. Quicker
    /// classes take a busy node for a dead one sooner.
    #[serde(default)]
    pub failover: FailoverClass,
}

/// A preference for some nodes.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
pub struct PreferredNode {
    /// How much the nodes are preferred. The weights of all the preferences that a node matches are added up.
    #[schemars(with = "i32", range(min = 1, max = 100))]
    pub weight: u32,
    /// Which nodes, by their labels.
    pub selector: LabelSelector,
}

/// How quick the speakers are for an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FailoverClass {
    /// Watched each 200 ms; probes 75 ms apart; mute after standing still for 500 ms. Another node answers within a second.
    #[default]
    Standard,
    /// Watched each 50 ms; probes 30 ms apart; mute after standing still for 125 ms. Another node answers within 0.3 s.
    Fast,
    /// Watched each second; probes 75 ms apart; mute after standing still for 2.5 s. Another node answers within 5 s.
    Relaxed,
}

/// How much of a pool is used, and whether all of it can be.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct IPPoolStatus {
    /// IPv4 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv4: Option<FamilyCount>,
    /// IPv6 addresses.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ipv6: Option<FamilyCount>,
    /// Ready: False where part of the pool cannot be used, with that part and what it collides with in the message. Reasons: InvalidSpec,
    /// Overlap (with an older pool, a node's address or the cluster's own ranges), AddressConflict (a foreign host answers).
    #[serde(default, skip_serializing_if = "Vec::is_empty")]
    pub conditions: Vec<Condition>,
}

/// Counts of one family's addresses. They are decimal strings, because an IPv6 pool can hold more addresses than a JSON number.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq, Eq)]
pub struct FamilyCount {
    /// Addresses that the pool can give, or that are in use: without the excluded ones, and without those that are withheld because
    /// something else has them (see the Ready condition).
    pub total: String,
    /// Addresses in use, by Services or by foreign hosts that were found there.
    pub used: String,
    /// Addresses that can still be given.
    pub free: String,
}

/// One item of `addresses` or `exclude`, as written. [`crate::ipam`] reads it.
#[derive(Serialize, Deserialize, Clone, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
#[serde(transparent)]
pub struct AddressRangeSpec(pub String);

impl From<&str> for AddressRangeSpec {
    fn from(text: &str) -> Self {
        Self(text.to_owned())
    }
}

/// What the API server itself can check of an item. That a range starts before it ends it cannot compare: the controller
/// says so in the pool's Ready condition.
impl JsonSchema for AddressRangeSpec {
    fn schema_name() -> Cow<'static, str> {
        "AddressRange".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        json_schema!({
            "type": "string",
            "maxLength": 87,
            "x-kubernetes-validations": [{
                "rule": "self.contains('/') ? isCIDR(self) : self.contains('-') ? \
                         self.split('-').size() == 2 && isIP(self.split('-')[0]) && isIP(self.split('-')[1]) && \
                         ip(self.split('-')[0]).family() == ip(self.split('-')[1]).family() : isIP(self)",
                "messageExpression": "\"'\" + self + \"' is not an address (192.0.2.5), a CIDR (192.0.2.64/26) or a range of one \
                                      family (192.0.2.200-192.0.2.220); write it as one of these\"",
            }],
        })
    }
}

fn yes() -> bool {
    true
}
