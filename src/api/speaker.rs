//! Speaker: what the speaker of one node says about itself.

// Each printcolumn is an attribute of its own, which clippy takes for a repetition.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Condition;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

/// The speaker of one node: its interfaces, and whether each can announce. Written by that speaker, named after its Node.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, Default, PartialEq)]
#[kube(
    group = "l2lb.io",
    version = "v1alpha1",
    kind = "Speaker",
    doc = "The speaker of one node: its interfaces, and whether each can announce. Written by that speaker, named after its Node.",
    plural = "speakers",
    status = "SpeakerStatus",
    shortname = "spk",
    category = "l2lb",
    derive = "PartialEq",
    printcolumn(name = "READY", type_ = "string", json_path = ".status.conditions[?(@.type=='Ready')].status"),
    printcolumn(name = "DRAINING", type_ = "boolean", json_path = ".status.draining"),
    printcolumn(
        name = "INTERFACES",
        type_ = "string",
        json_path = ".status.announcing",
        description = "Interfaces that can announce"
    ),
    printcolumn(name = "VERSION", type_ = "string", json_path = ".status.version"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
pub struct SpeakerSpec {}

/// What the speaker sees on its node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct SpeakerStatus {
    /// The node's interfaces.
    #[serde(default)]
    #[schemars(length(max = 512), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["name"]))]
    pub interfaces: Vec<NetworkInterface>,
    /// Names of the interfaces that can announce, comma separated.
    #[serde(default)]
    pub announcing: String,
    /// Whether the speaker asks for its addresses to be moved to other nodes.
    #[serde(default)]
    pub draining: bool,
    /// Version of the speaker.
    #[serde(default)]
    pub version: String,
    /// Ready: False where the speaker cannot do its work, with the reason in the message.
    #[serde(default)]
    #[schemars(extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["type"]))]
    pub conditions: Vec<Condition>,
}

/// A network interface of a node.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct NetworkInterface {
    /// Name of the interface.
    pub name: String,
    /// Its MAC address.
    #[serde(default)]
    pub mac: String,
    /// Its addresses with prefix length (192.0.2.11/24).
    #[serde(default)]
    pub addresses: Vec<String>,
    /// Whether it has a link.
    #[serde(default)]
    pub carrier: bool,
    /// Whether the node's IPv4 default route leaves through it.
    #[serde(default)]
    pub default_route: bool,
    /// Whether the node's IPv6 default route leaves through it.
    #[serde(default)]
    pub default_route_ipv6: bool,
    /// Whether it can announce.
    #[serde(default)]
    pub announces: bool,
    /// Why it cannot announce.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// Whether it can announce IPv6 addresses, too.
    #[serde(default)]
    pub announces_ipv6: bool,
    /// Why it cannot announce IPv6 addresses, where it can announce others.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason_ipv6: String,
}
