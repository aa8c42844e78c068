//! VirtualIP: one address in use. The controller writes its spec, the speakers their claims in its status.

// Each printcolumn is an attribute of its own, which clippy takes for a repetition.
#![allow(clippy::duplicated_attributes)]

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use kube::{CustomResource, KubeSchema};
use schemars::JsonSchema;
use serde::{Deserialize, Serialize};
use std::net::{IpAddr, Ipv6Addr};

use super::FailoverClass;

/// One address in use: for which Services, and which node announces it. Written by l2lb; read it to see who announces.
#[derive(CustomResource, KubeSchema, Serialize, Deserialize, Clone, Debug, PartialEq)]
#[kube(
    group = "l2lb.io",
    version = "v1alpha1",
    kind = "VirtualIP",
    doc = "One address in use: for which Services, and which node announces it. Written by l2lb; read it to see who announces.",
    plural = "virtualips",
    status = "VirtualIPStatus",
    shortname = "vip",
    category = "l2lb",
    derive = "PartialEq",
    validation = ("self.spec.address.contains(':') || self.metadata.name == self.spec.address", "a VirtualIP is named after its address, so that no address is given twice; l2lb makes these objects"),
    printcolumn(
        name = "ADDRESS",
        type_ = "string",
        json_path = ".spec.address",
        description = "The virtual IP address"
    ),
    printcolumn(name = "POOL", type_ = "string", json_path = ".spec.pool"),
    printcolumn(
        name = "SERVICE",
        type_ = "string",
        json_path = ".spec.services",
        description = "Services that use the address"
    ),
    printcolumn(
        name = "NODE",
        type_ = "string",
        json_path = ".status.claims[?(@.state=='Owner')].node",
        description = "The node that answers for the address"
    ),
    printcolumn(name = "INTERFACE", type_ = "string", json_path = ".status.claims[?(@.state=='Owner')].interface"),
    printcolumn(
        name = "MAC",
        type_ = "string",
        json_path = ".status.claims[?(@.state=='Owner')].mac",
        description = "The MAC address in its answers"
    ),
    printcolumn(name = "STATE", type_ = "string", json_path = ".status.claims[?(@.state!='Yielded')].state"),
    printcolumn(name = "AGE", type_ = "date", json_path = ".metadata.creationTimestamp")
)]
#[serde(rename_all = "camelCase")]
pub struct VirtualIPSpec {
    /// The address. The object is named after it, so that no address can be given twice.
    #[x_kube(validation = ("isIP(self)", "address must be an IPv4 or IPv6 address"))]
    #[x_kube(validation = ("self == oldSelf", "address cannot be changed"))]
    #[schemars(length(max = 45))]
    pub address: String,

    /// The IPPool that the address was taken from.
    #[schemars(length(max = 253))]
    pub pool: String,

    /// The Services that use the address, as namespace/name. Empty: none may, because a foreign host answers for it; it is asked
    /// for again until that host is gone.
    #[serde(default)]
    #[schemars(length(max = 256))]
    pub services: Vec<String>,

    /// How quick the speakers are for this address.
    #[serde(default)]
    pub failover: FailoverClass,

    /// Grows with each decision to name a Primary. A speaker that is named by a placement that it has not claimed for yet
    /// claims the address.
    #[serde(default)]
    pub placement: i64,

    /// Which nodes announce the address or stand by for it, in order.
    #[serde(default)]
    #[schemars(length(max = 16), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub assignments: Vec<Assignment>,
}

/// A node's part in announcing an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq, Eq)]
#[serde(rename_all = "camelCase")]
pub struct Assignment {
    /// Name of the Node.
    pub node: String,
    /// What the node does with the address.
    pub role: Role,
    /// The interface on which it announces.
    pub interface: String,
}

/// What a node does with an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    /// Claims the address and answers for it.
    Primary,
    /// Watches the owner on the network, and takes over when it falls silent.
    Standby,
    /// Answers until the new primary has claimed the address.
    Leaving,
}

impl Role {
    /// The role as the value of the VirtualIP's node label.
    pub fn label_value(self) -> &'static str {
        match self {
            Self::Primary => "primary",
            Self::Standby => "standby",
            Self::Leaving => "leaving",
        }
    }
}

/// What the speakers say about an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, Default, PartialEq)]
pub struct VirtualIPStatus {
    /// One entry for each speaker that has something to say, written by that speaker.
    #[serde(default)]
    #[schemars(length(max = 64), extend("x-kubernetes-list-type" = "map", "x-kubernetes-list-map-keys" = ["node"]))]
    pub claims: Vec<Claim>,
}

/// What one speaker says about an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Debug, PartialEq)]
#[serde(rename_all = "camelCase")]
pub struct Claim {
    /// Name of the speaker's Node.
    pub node: String,
    /// The interface that the speaker uses for this address.
    pub interface: String,
    /// That interface's MAC address: the only one that its frames carry.
    pub mac: String,
    /// What the speaker does with the address now.
    pub state: ClaimState,
    /// Since when, by the node's clock. For people only: nothing compares clocks.
    pub since: Time,
    /// Why it is in this state, for people.
    #[serde(default, skip_serializing_if = "String::is_empty")]
    pub reason: String,
    /// MAC address of a host that is not one of ours and answers for this address.
    #[serde(default, rename = "conflictMAC", skip_serializing_if = "Option::is_none")]
    pub conflict_mac: Option<String>,
    /// The uid of the VirtualIP that this claim answers. A claim with another one speaks of an earlier object of this name.
    pub uid: String,
    /// The placement that this claim answers.
    pub placement: i64,
}

/// What a speaker does with an address.
#[derive(Serialize, Deserialize, JsonSchema, Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimState {
    /// It asks the network whether anyone answers for the address.
    Probing,
    /// It answers for the address.
    Owner,
    /// It has left the address to another speaker.
    Yielded,
    /// It does not answer, because a host that is not one of ours does.
    Blocked,
    /// It cannot answer, because its interface has no link.
    LinkDown,
}

/// The name of the VirtualIP object for `address`: dotted IPv4 as it is; IPv6 in full, without leading zeros, with dashes
/// (`2001-db8-1-0-0-0-0-1`). Each address has one name only.
pub fn virtual_ip_name(address: IpAddr) -> String {
    match address {
        IpAddr::V4(v4) => v4.to_string(),
        IpAddr::V6(v6) => v6.segments().map(|segment| format!("{segment:x}")).as_slice().join("-"),
    }
}

/// The address that a VirtualIP of this name stands for, or `None` if no VirtualIP is named so.
pub fn address_of_name(name: &str) -> Option<IpAddr> {
    let address = if name.contains('-') {
        let segments: Vec<u16> =
            name.split('-').map(|part| u16::from_str_radix(part, 16)).collect::<Result<_, _>>().ok()?;
        IpAddr::V6(Ipv6Addr::from(<[u16; 8]>::try_from(segments).ok()?))
    } else {
        name.parse().ok()?
    };
    (virtual_ip_name(address) == name).then_some(address)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn names_and_addresses_are_one_to_one() {
        for (address, name) in
            [("192.0.2.64", "192.0.2.64"), ("2001:db8:1::1", "2001-db8-1-0-0-0-0-1"), ("::", "0-0-0-0-0-0-0-0")]
        {
            let address: IpAddr = address.parse().unwrap();
            assert_eq!(virtual_ip_name(address), name);
            assert_eq!(address_of_name(name), Some(address));
        }
    }

    #[test]
    fn other_spellings_of_an_address_are_no_names() {
        for name in
            ["2001-0db8-1-0-0-0-0-1", "2001-DB8-1-0-0-0-0-1", "1-2-3", "192.0.2.064", "::1", "", "a-b-c-d-e-f-0-+1"]
        {
            assert_eq!(address_of_name(name), None, "{name}");
        }
    }
}
