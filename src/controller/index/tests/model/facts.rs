//! What people wrote and machines report, in the fewest words that tell every case apart, and the same as API objects.

use std::{
    collections::{BTreeMap, BTreeSet},
    fmt,
    net::IpAddr,
    time::Duration,
};

use serde_json::{Value, json};

/// The small world of the model: so few of everything that they get in each other's way.
pub const POOLS: [&str; 4] = ["lan", "new", "old", "six"];
pub const SPACES: [&str; 2] = ["shop", "test"];
pub const NODES: [&str; 4] = ["node1", "node2", "node3", "node4"];
/// Some of them end in .255 and .0.
pub const FOURS: u8 = 10;
pub const SIXES: u8 = 5;

/// The IPv4 address of this number.
pub fn four(number: u8) -> IpAddr {
    let at = 251 + u16::from(number);
    IpAddr::from([192, 0, 2 + (at / 256) as u8, (at % 256) as u8])
}

/// The IPv6 address of this number.
pub fn six(number: u8) -> IpAddr {
    format!("2001:db8::{number:x}").parse().unwrap()
}

/// The first addresses of the one network that is too large to be listed.
fn vast(number: u16) -> IpAddr {
    format!("2001:db8:64::{number:x}").parse().unwrap()
}

/// A set of addresses, each of which can be listed but for one /64.
#[derive(Clone, Copy, Default, PartialEq, Eq)]
pub struct Addrs {
    pub fours: u16,
    pub sixes: u8,
    pub vast: bool,
}

impl Addrs {
    /// Every address; of the /64 only the first ones, more than are ever in use.
    pub fn list(self) -> Vec<IpAddr> {
        let fours = (0..FOURS).filter(move |number| self.fours & (1 << number) != 0).map(four);
        let sixes = (0..SIXES).filter(move |number| self.sixes & (1 << number) != 0).map(six);
        let vasts = (0..if self.vast { 40 } else { 0 }).map(vast);
        fours.chain(sixes).chain(vasts).collect()
    }

    pub fn has(self, address: IpAddr) -> bool {
        let in_vast = matches!(address, IpAddr::V6(v6) if v6.segments()[..4] == [0x2001, 0xdb8, 0x64, 0]);
        if in_vast { self.vast } else { self.list().contains(&address) }
    }

    pub fn without(self, other: Self) -> Self {
        Self { fours: self.fours & !other.fours, sixes: self.sixes & !other.sixes, vast: self.vast && !other.vast }
    }

    /// As an administrator writes them: neighbours as ranges.
    pub fn written(self) -> Vec<String> {
        let mut written = Vec::new();
        let mut runs = |count: u8, has: &dyn Fn(u8) -> bool, address: fn(u8) -> IpAddr| {
            let mut number = 0;
            while number < count {
                let first = number;
                while number < count && has(number) {
                    number += 1;
                }
                match number - first {
                    0 => number += 1,
                    1 => written.push(address(first).to_string()),
                    _ => written.push(format!("{}-{}", address(first), address(number - 1))),
                }
            }
        };
        runs(FOURS, &|number| self.fours & (1 << number) != 0, four);
        runs(SIXES, &|number| self.sixes & (1 << number) != 0, six);
        if self.vast {
            written.push("2001:db8:64::/64".to_owned());
        }
        written
    }
}

impl fmt::Debug for Addrs {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "[{}]", self.written().join(" "))
    }
}

/// An item that cannot be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Bad {
    /// The rest of the pool can be used.
    Address,
    /// What is held back is not known: nothing can be used.
    Exclude,
}

#[derive(Clone, Debug, PartialEq)]
pub struct PoolFact {
    pub addresses: Addrs,
    pub exclude: Addrs,
    pub bad: Option<Bad>,
    pub auto: bool,
    pub avoid_buggy: bool,
    pub priority: Option<u8>,
    /// Which `tier` label a Service has to have.
    pub tier: Option<u8>,
    /// Namespaces by name.
    pub spaces: Vec<u8>,
    /// Which `env` label a namespace has to have.
    pub env: Option<u8>,
    /// Which `zone` label a node has to have.
    pub zone: Option<u8>,
    /// The interface that has to be used.
    pub interface: Option<&'static str>,
    /// Failover class Fast.
    pub fast: bool,
    /// Seconds.
    pub created: u64,
}

impl PoolFact {
    /// With nothing but addresses: for every Service, on every node.
    pub fn plain(addresses: Addrs, created: u64) -> Self {
        Self {
            addresses,
            exclude: Addrs::default(),
            bad: None,
            auto: true,
            avoid_buggy: false,
            priority: None,
            tier: None,
            spaces: vec![],
            env: None,
            zone: None,
            interface: None,
            fast: false,
            created,
        }
    }

    pub fn object(&self, name: &str, status: &Value) -> Value {
        let mut addresses = self.addresses.written();
        let mut exclude = self.exclude.written();
        match self.bad {
            Some(Bad::Address) => addresses.push("192.0.2.9-192.0.2.1".to_owned()),
            Some(Bad::Exclude) => exclude.push("192.0.2.9-192.0.2.1".to_owned()),
            None => {}
        }
        let labels = |key: &str, value: Option<u8>| value.map(|value| json!({ "matchLabels": { key: label(value) } }));
        let spaces: Vec<&str> = self.spaces.iter().map(|space| SPACES[usize::from(*space)]).collect();
        json!({
            "apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool",
            "metadata": {
                "name": name, "uid": format!("uid-{name}-{}", self.created), "generation": 1,
                "creationTimestamp": format!("2026-01-01T{:02}:{:02}:{:02}Z", self.created / 3600, self.created / 60 % 60, self.created % 60),
            },
            "spec": {
                "addresses": addresses, "exclude": exclude, "autoAssign": self.auto, "avoidBuggyIPs": self.avoid_buggy,
                "priority": self.priority, "serviceSelector": labels("tier", self.tier), "namespaces": spaces,
                "namespaceSelector": labels("env", self.env),
                "announce": {
                    "nodeSelector": labels("zone", self.zone), "interfaces": self.interface.into_iter().collect::<Vec<_>>(),
                    "failover": if self.fast { "Fast" } else { "Standard" },
                },
            },
            "status": status,
        })
    }
}

/// Under which name something is asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Via {
    Ours,
    MetalLb,
    OldMetalLb,
}

impl Via {
    fn annotation(self, ours: &str, metallb: &str) -> String {
        match self {
            Self::Ours => format!("l2lb.io/{ours}"),
            Self::MetalLb => format!("metallb.io/{metallb}"),
            Self::OldMetalLb => format!("metallb.universe.tf/{metallb}"),
        }
    }
}

/// Which addresses a Service asks for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Ask {
    Nothing,
    Four(Via, u8),
    Six(Via, u8),
    Both(Via, u8, u8),
    /// By `spec.loadBalancerIP`.
    Field(u8),
    /// What is no address.
    Malformed,
    /// Two of one family.
    Two,
    /// One in the annotation and another in the field.
    Contradiction,
}

impl Ask {
    /// The addresses, or `None` for a request that means nothing.
    pub fn addresses(self) -> Option<Vec<IpAddr>> {
        match self {
            Self::Nothing => Some(vec![]),
            Self::Four(_, number) | Self::Field(number) => Some(vec![four(number)]),
            Self::Six(_, number) => Some(vec![six(number)]),
            Self::Both(_, v4, v6) => Some(vec![four(v4), six(v6)]),
            Self::Malformed | Self::Two | Self::Contradiction => None,
        }
    }
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Four,
    Six,
    /// PreferDualStack in a cluster of one family.
    PreferFour,
    PreferFourSix,
    PreferSixFour,
    RequireFourSix,
    RequireSixFour,
}

impl Families {
    /// Whether each is IPv4, in order.
    pub fn order(self) -> &'static [bool] {
        match self {
            Self::Four | Self::PreferFour => &[true],
            Self::Six => &[false],
            Self::PreferFourSix | Self::RequireFourSix => &[true, false],
            Self::PreferSixFour | Self::RequireSixFour => &[false, true],
        }
    }

    pub fn policy(self) -> &'static str {
        match self {
            Self::Four | Self::Six => "SingleStack",
            Self::PreferFour | Self::PreferFourSix | Self::PreferSixFour => "PreferDualStack",
            Self::RequireFourSix | Self::RequireSixFour => "RequireDualStack",
        }
    }
}

/// What makes a Service one of ours, or not.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    LoadBalancer,
    ClusterIp,
    /// Of another class.
    Foreign,
    /// On its way out; something still holds it.
    Terminating,
}

#[derive(Clone, Debug, PartialEq)]
pub struct ServiceFact {
    pub uid: u64,
    pub space: u8,
    pub kind: Kind,
    pub tier: Option<u8>,
    pub families: Families,
    pub pool: Option<(Via, u8)>,
    pub ask: Ask,
    pub key: Option<u8>,
    /// Bits: 80/TCP, 443/TCP, 80/UDP.
    pub ports: u8,
    pub local: bool,
    pub selector: Option<u8>,
}

impl ServiceFact {
    pub fn is_ours(&self) -> bool {
        self.kind == Kind::LoadBalancer
    }

    pub fn ports(&self) -> BTreeSet<(&'static str, u16)> {
        let all = [("TCP", 80), ("TCP", 443), ("UDP", 80)];
        (0..3).filter(|bit| self.ports & (1 << bit) != 0).map(|bit| all[bit]).collect()
    }

    pub fn object(&self, name: &str, version: u64, managed: bool, status: &Value) -> Value {
        let mut annotations = serde_json::Map::new();
        let mut load_balancer_ip = Value::Null;
        if let Some((via, pool)) = self.pool {
            annotations.insert(via.annotation("pool", "address-pool"), POOLS[usize::from(pool)].into());
        }
        let addresses = |via: Via| via.annotation("addresses", "loadBalancerIPs");
        match self.ask {
            Ask::Nothing => {}
            Ask::Four(via, _) | Ask::Six(via, _) | Ask::Both(via, ..) => {
                let texts: Vec<String> = self.ask.addresses().unwrap().iter().map(ToString::to_string).collect();
                annotations.insert(addresses(via), texts.join(",").into());
            }
            Ask::Field(number) => load_balancer_ip = four(number).to_string().into(),
            Ask::Malformed => drop(annotations.insert(addresses(Via::Ours), "192.0.2.300".into())),
            Ask::Two => drop(annotations.insert(addresses(Via::Ours), "192.0.2.251,192.0.2.252".into())),
            Ask::Contradiction => {
                annotations.insert(addresses(Via::MetalLb), four(0).to_string().into());
                load_balancer_ip = four(1).to_string().into();
            }
        }
        if let Some(key) = self.key {
            annotations.insert(Via::Ours.annotation("sharing-key", ""), format!("key{key}").into());
        }
        let families: Vec<&str> =
            self.families.order().iter().map(|is_four| if *is_four { "IPv4" } else { "IPv6" }).collect();
        let ports: Vec<Value> = self
            .ports()
            .into_iter()
            .map(|(protocol, port)| json!({ "name": format!("{protocol}{port}").to_lowercase(), "protocol": protocol, "port": port }))
            .collect();
        let managed = if managed {
            json!([{ "manager": "l2lb-controller", "subresource": "status", "operation": "Apply" }])
        } else {
            json!([])
        };
        json!({
            "metadata": {
                "name": name, "namespace": SPACES[usize::from(self.space)], "uid": format!("uid-{name}-{}", self.uid),
                "resourceVersion": version.to_string(), "annotations": annotations,
                "labels": labels("tier", self.tier),
                "deletionTimestamp": (self.kind == Kind::Terminating).then_some("2026-01-01T00:00:00Z"),
        "managedFields": managed,
            },
            "spec": {
                "type": if self.kind == Kind::ClusterIp { "ClusterIP" } else { "LoadBalancer" },
                "loadBalancerClass": (self.kind == Kind::Foreign).then_some("example.com/other"),
                "loadBalancerIP": load_balancer_ip,
                "ipFamilies": families, "ipFamilyPolicy": self.families.policy(),
                "externalTrafficPolicy": if self.local { "Local" } else { "Cluster" },
                "ports": ports, "selector": labels("app", self.selector),
            },
            "status": status,
        })
    }
}

#[derive(Clone, Debug, PartialEq)]
pub struct NodeFact {
    pub uid: u64,
    pub ready: bool,
    pub excluded: bool,
    pub zone: u8,
    /// The annotation `l2lb.io/drain`.
    pub drain: bool,
    pub out_of_service: bool,
    /// An address of the pools' range in its status.
    pub address: Option<u8>,
    /// The range of its pods holds this address, and its neighbour.
    pub pods: Option<u8>,
}

impl NodeFact {
    pub fn object(&self, name: &str) -> Value {
        let mut labels = json!({ "zone": label(self.zone) });
        if self.excluded {
            labels["node.kubernetes.io/exclude-from-external-load-balancers"] = "".into();
        }
        let mut addresses = vec![json!({ "type": "InternalIP", "address": "192.0.2.11" })];
        addresses.extend(self.address.map(|at| json!({ "type": "ExternalIP", "address": four(at).to_string() })));
        let taint =
            json!({ "key": "node.kubernetes.io/out-of-service", "value": "nodeshutdown", "effect": "NoExecute" });
        json!({
            "metadata": {
                "name": name, "uid": format!("uid-{name}-{}", self.uid), "labels": labels,
                "annotations": if self.drain { json!({ "l2lb.io/drain": "true" }) } else { json!({}) },
            },
            "spec": { "podCIDRs": self.pods.map(pair).into_iter().collect::<Vec<_>>(), "taints": if self.out_of_service { json!([taint]) } else { json!([]) } },
            "status": {
                "conditions": [{ "type": "Ready", "status": if self.ready { "True" } else { "Unknown" } }],
                "addresses": addresses,
            },
        })
    }
}

/// The interfaces of a node.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Nics {
    /// eth0 in the pools' subnets.
    One,
    /// The same without IPv6.
    NoIpv6,
    /// eth0 in the pools' subnets, and eth1 elsewhere with the default route.
    Two,
    NoLink,
    /// eth0 in another subnet, without a default route.
    Elsewhere,
    /// eth0 in another subnet, with the default route.
    DefaultRoute,
}

#[derive(Clone, Debug, PartialEq)]
pub struct SpeakerFact {
    pub draining: bool,
    pub nics: Nics,
    /// An address of the pools' range on eth0.
    pub address: Option<u8>,
    /// An address that kube-proxy has put on its own interface.
    pub ipvs: Option<u8>,
}

impl SpeakerFact {
    /// The interface on which the speaker can announce an address of the pools, if `wanted` is the only one that may.
    pub fn interface(&self, wanted: Option<&str>, is_four: bool) -> Option<&'static str> {
        match (self.nics, wanted) {
            (Nics::NoIpv6, _) if !is_four => None,
            (Nics::One | Nics::NoIpv6 | Nics::Two, None | Some("eth0")) | (Nics::DefaultRoute, None) => Some("eth0"),
            (Nics::Two, Some("eth1")) => Some("eth1"),
            (Nics::DefaultRoute | Nics::Elsewhere, Some("eth0")) => Some("eth0"),
            _ => None,
        }
    }

    /// An interface in the pools' subnet may bear an address of a pool.
    pub fn own_address(&self) -> Option<u8> {
        self.address.filter(|_| matches!(self.nics, Nics::One | Nics::NoIpv6 | Nics::Two))
    }

    pub fn object(&self, name: &str, node: Option<&NodeFact>) -> Value {
        let here = "192.0.2.11/23";
        let there = "10.0.0.11/24";
        let nic = |name: &str, net: &str, carrier: bool, default_route: bool| {
            let addresses = if net == here { vec![net, "2001:db8:ffff::11/32"] } else { vec![net] };
            json!({
                "name": name, "mac": "02:00:00:00:01:01", "carrier": carrier, "announces": true,
                "announcesIpv6": self.nics != Nics::NoIpv6, "defaultRoute": default_route, "defaultRouteIpv6": default_route, "addresses": addresses,
            })
        };
        let mut interfaces = match self.nics {
            Nics::One | Nics::NoIpv6 => vec![nic("eth0", here, true, true)],
            Nics::Two => vec![nic("eth0", here, true, false), nic("eth1", there, true, true)],
            Nics::NoLink => vec![nic("eth0", here, false, true)],
            Nics::Elsewhere => vec![nic("eth0", there, true, false)],
            Nics::DefaultRoute => vec![nic("eth0", there, true, true)],
        };
        if let Some(at) = self.own_address() {
            interfaces[0]["addresses"].as_array_mut().unwrap().push(format!("{}/23", four(at)).into());
        }
        if let Some(at) = self.ipvs {
            let mut nic = nic("kube-ipvs0", &format!("{}/32", four(at)), false, false);
            nic["announces"] = false.into();
            interfaces.push(nic);
        }
        let uid = node.map_or(0, |node| node.uid);
        json!({
            "metadata": {
                "name": name, "uid": format!("uid-speaker-{name}"),
                "ownerReferences": [
                    { "apiVersion": "v1", "kind": "Node", "name": name, "uid": format!("uid-{name}-{uid}") },
                ],
            },
            "spec": {}, "status": { "draining": self.draining, "interfaces": interfaces },
        })
    }
}

/// What an endpoint can do.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Endpoint {
    Ready,
    NotReady,
    /// It terminates, but serves.
    Terminating,
}

/// An EndpointSlice: nodes and what stands there.
pub type SliceFact = Vec<(u8, Endpoint)>;

pub fn slice_object(service: &str, part: u8, endpoints: &SliceFact) -> Value {
    let (namespace, name) = service.split_once('/').unwrap();
    let endpoints: Vec<Value> = endpoints
        .iter()
        .map(|(node, endpoint)| {
            let conditions = match endpoint {
                Endpoint::Ready => json!({ "ready": true, "serving": true, "terminating": false }),
                Endpoint::NotReady => json!({ "ready": false, "serving": false, "terminating": false }),
                Endpoint::Terminating => json!({ "ready": false, "serving": true, "terminating": true }),
            };
            json!({ "addresses": ["10.0.0.1"], "nodeName": NODES[usize::from(*node)], "conditions": conditions })
        })
        .collect();
    json!({
        "metadata": {
            "name": format!("{name}-{part}"), "namespace": namespace, "labels": { "kubernetes.io/service-name": name },
        },
        "addressType": if part < 2 { "IPv4" } else { "IPv6" }, "endpoints": endpoints,
    })
}

/// All that is written and reported; statuses, VirtualIPs and Leases apart.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Facts {
    /// By `namespace/name`.
    pub services: BTreeMap<String, ServiceFact>,
    pub pools: BTreeMap<String, PoolFact>,
    /// The `env` label of each namespace.
    pub spaces: BTreeMap<String, Option<u8>>,
    pub nodes: BTreeMap<String, NodeFact>,
    pub speakers: BTreeMap<String, SpeakerFact>,
    /// By Service and number.
    pub slices: BTreeMap<(String, u8), SliceFact>,
    /// The cluster's own ranges: each holds the address of this number, and its neighbour.
    pub ranges: BTreeMap<String, u8>,
    /// When the index was last told of a renewal of each node's Lease, or could not have been.
    pub heard: BTreeMap<String, Duration>,
}

/// The range of two that holds the address.
pub fn pair(number: u8) -> String {
    let IpAddr::V4(address) = four(number) else { unreachable!() };
    format!("{}/31", std::net::Ipv4Addr::from_bits(address.to_bits() & !1))
}

/// Whether the range of two that holds the one address holds the other.
pub fn in_pair(number: u8, address: IpAddr) -> bool {
    let (IpAddr::V4(one), IpAddr::V4(other)) = (four(number), address) else { return false };
    one.to_bits() / 2 == other.to_bits() / 2
}

/// Labels have one of few values.
fn label(value: u8) -> String {
    format!("v{value}")
}

pub fn labels(key: &str, value: Option<u8>) -> Value {
    value.map_or(json!({}), |value| json!({ key: label(value) }))
}
