//! The node's interfaces: which there are, and which of them can announce.
//!
//! [`Inventory`] folds what the kernel tells ([`Event`]) into its state; [`judge`] decides; [`Inventory::interfaces`] is the
//! result. [`message`] reads the kernel's messages, and [`follow`] asks for what the events do not tell. Interfaces of single
//! containers, which come and go by the thousand, are left out at the door.

pub mod filter;
pub mod follow;
pub mod message;

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use ipnet::IpNet;
use pnet_base::MacAddr;

use crate::api::NetworkInterface;

/// The API takes no more.
const MAX_LISTED: usize = 512;
/// Names of interfaces of which each container has one. They come and go with the containers and are not even listed.
pub const OF_ONE_CONTAINER: [&str; 5] = ["veth", "cali", "lxc", "azv", "eni"];
/// Names of interfaces that lead to this node's containers, not to a LAN.
const TO_CONTAINERS: [&str; 16] = [
    "cni",
    "flannel",
    "docker",
    "cilium",
    "kube-",
    "nodelocaldns",
    "virbr",
    "weave",
    "vxlan",
    "ovs-",
    "genev",
    "tunl",
    "tun",
    "tap",
    "wg",
    "dummy",
];

/// An interface as it is now.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Interface {
    /// Its index, which stays when it is renamed.
    pub index: u32,
    /// How often it has lost its link. A loss that was over before anybody looked is told by this alone.
    pub carrier_losses: u32,
    /// What the Speaker object says about it.
    pub entry: NetworkInterface,
}

impl Interface {
    /// Its addresses.
    pub fn addresses(&self) -> Vec<IpAddr> {
        let address = |text: &String| text.split('/').next().and_then(|address| address.parse().ok());
        self.entry.addresses.iter().filter_map(address).collect()
    }
}

/// What decides whether an interface can announce.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Facts {
    /// Its name.
    pub name: String,
    /// Whether it has a MAC address, not zero.
    pub has_mac: bool,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether frames to everybody can be sent, and it is no point-to-point link.
    pub broadcast: bool,
    /// Whether ARP is on.
    pub arp: bool,
    /// The bond, bridge or team that it is a port of.
    pub master: Option<String>,
    /// Whether the administrator has it up.
    pub up: bool,
    /// Whether it has a link.
    pub carrier: bool,
}

/// Whether the interface can announce.
///
/// # Errors
/// Why it cannot, for people.
pub fn judge(facts: &Facts) -> Result<(), String> {
    let name = &facts.name;
    if facts.loopback {
        return Err("it is the loopback interface".to_owned());
    }
    if is_of_one_container(name) || TO_CONTAINERS.iter().any(|prefix| name.starts_with(prefix)) {
        return Err("it leads to containers or through a tunnel, not to a LAN (by its name)".to_owned());
    }
    if let Some(master) = &facts.master {
        return Err(format!("it is a port of {master}, which is used instead"));
    }
    if !facts.has_mac {
        return Err("it has no MAC address".to_owned());
    }
    if !facts.broadcast {
        return Err("it is a point-to-point link, or cannot broadcast".to_owned());
    }
    if !facts.arp {
        return Err("ARP is turned off on it".to_owned());
    }
    if !facts.up {
        return Err("it is down".to_owned());
    }
    if !facts.carrier {
        return Err("it has no link".to_owned());
    }
    Ok(())
}

/// What the kernel says about one interface.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct LinkState {
    /// Its index.
    pub index: u32,
    /// Its name.
    pub name: String,
    /// Its MAC address, where it is an Ethernet interface and that is not zero.
    pub mac: Option<MacAddr>,
    /// The interface that owns its frames: a bond, bridge or team. (A VRF takes its ports' routes, not their frames.)
    pub master: Option<u32>,
    /// Whether it is the loopback interface.
    pub loopback: bool,
    /// Whether frames to everybody can be sent, and it is no point-to-point link.
    pub broadcast: bool,
    /// Whether ARP is on.
    pub arp: bool,
    /// Whether the administrator has it up.
    pub up: bool,
    /// Whether it has a link.
    pub carrier: bool,
    /// How often it has lost its link.
    pub carrier_losses: u32,
}

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

/// One thing that the kernel says: when asked for all there is, or because it has changed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// There is such an interface.
    Link {
        /// How it is now.
        link: LinkState,
        /// Whether the kernel has just made it, so that it has no address yet.
        is_new: bool,
    },
    /// The interface with this index is gone.
    LinkGone(u32),
    /// An interface has an address.
    Address {
        /// The interface.
        index: u32,
        /// The address, with the length of its prefix.
        network: IpNet,
    },
    /// An interface has an address no more.
    AddressGone {
        /// The interface.
        index: u32,
        /// The address, with the length of its prefix.
        network: IpNet,
    },
    /// A default route leaves through these interfaces.
    DefaultRoute {
        /// Of which family.
        family: Family,
        /// The interfaces.
        through: Vec<u32>,
    },
    /// A default route is gone. Another one of the same kind may be left.
    DefaultRouteGone(Family),
}

/// All interfaces of this node, but those of single containers.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Inventory {
    links: BTreeMap<u32, Known>,
    default_routes: BTreeSet<(Family, u32)>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Known {
    link: LinkState,
    /// In the kernel's order: an interface's own address comes before those that were added to it.
    addresses: Vec<IpNet>,
}

/// What an event meant.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Folded {
    /// Nothing new, or nothing that matters here.
    Nothing,
    /// Something changed, and with it the default routes may have gone: the kernel does not tell of each.
    Changed,
    /// An interface appeared whose addresses were told of before it mattered: everything has to be asked for.
    Unknown,
}

impl Inventory {
    /// Takes in an event.
    pub fn fold(&mut self, event: &Event) -> Folded {
        let changed = match event {
            Event::Link { link, .. } if is_of_one_container(&link.name) => self.links.remove(&link.index).is_some(),
            Event::Link { link, is_new } => match self.links.get_mut(&link.index) {
                Some(known) => std::mem::replace(&mut known.link, link.clone()) != *link,
                None => {
                    self.links.insert(link.index, Known { link: link.clone(), addresses: Vec::new() });
                    if !is_new {
                        return Folded::Unknown;
                    }
                    true
                }
            },
            Event::LinkGone(index) => {
                self.default_routes.retain(|(_, through)| through != index);
                self.links.remove(index).is_some()
            }
            Event::Address { index, network } => self.links.get_mut(index).is_some_and(|known| {
                let is_new = !known.addresses.contains(network);
                if is_new {
                    known.addresses.push(*network);
                }
                is_new
            }),
            Event::AddressGone { index, network } => self.links.get_mut(index).is_some_and(|known| {
                let before = known.addresses.len();
                known.addresses.retain(|address| address != network);
                known.addresses.len() != before
            }),
            Event::DefaultRoute { family, through } => {
                let before = self.default_routes.len();
                self.default_routes.extend(through.iter().map(|index| (*family, *index)));
                self.default_routes.len() != before
            }
            // Whether it was the last one through its interface is for the kernel to say.
            Event::DefaultRouteGone(_) => true,
        };
        if changed { Folded::Changed } else { Folded::Nothing }
    }

    /// Forgets the default routes.
    pub fn clear_default_routes(&mut self) {
        self.default_routes.clear();
    }

    /// Takes over all that `newer` has; what only this one has stays.
    pub fn merge(&mut self, newer: Self) {
        for (index, newer) in newer.links {
            let known = self.links.entry(index).or_insert_with(|| newer.clone());
            known.link = newer.link;
            // Each of its addresses may be what the kernel left out.
            let is_new = |address: &IpNet| !known.addresses.contains(address);
            let new: Vec<IpNet> = newer.addresses.into_iter().filter(is_new).collect();
            known.addresses.extend(new);
        }
        self.default_routes.extend(newer.default_routes);
    }

    /// The interfaces, those that can announce first, then by name. `ipv6` says of one that can whether it can announce IPv6
    /// addresses, too, or why not.
    pub fn interfaces(&self, ipv6: impl Fn(&str) -> Result<(), String>) -> Vec<Interface> {
        let mut all: Vec<Interface> = self.links.values().map(|known| self.describe(known, &ipv6)).collect();
        all.sort_by(|a, b| (!a.entry.announces, &a.entry.name).cmp(&(!b.entry.announces, &b.entry.name)));
        all.truncate(MAX_LISTED);
        all
    }

    fn describe(&self, known: &Known, ipv6: impl Fn(&str) -> Result<(), String>) -> Interface {
        let link = &known.link;
        let master = link.master.map(|index| match self.links.get(&index) {
            Some(master) => master.link.name.clone(),
            None => "another interface".to_owned(),
        });
        let facts = Facts {
            name: link.name.clone(),
            has_mac: link.mac.is_some(),
            loopback: link.loopback,
            broadcast: link.broadcast,
            arp: link.arp,
            master,
            up: link.up,
            carrier: link.carrier,
        };
        let verdict = judge(&facts);
        let verdict_ipv6 = if verdict.is_ok() { ipv6(&facts.name) } else { Err(String::new()) };
        let entry = NetworkInterface {
            name: facts.name,
            mac: link.mac.map(|mac| mac.to_string()).unwrap_or_default(),
            addresses: known.addresses.iter().map(ToString::to_string).collect(),
            carrier: facts.carrier,
            default_route: self.default_routes.contains(&(Family::V4, link.index)),
            default_route_ipv6: self.default_routes.contains(&(Family::V6, link.index)),
            unheard: Vec::new(),
            announces: verdict.is_ok(),
            reason: verdict.err().unwrap_or_default(),
            announces_ipv6: verdict_ipv6.is_ok(),
            reason_ipv6: verdict_ipv6.err().unwrap_or_default(),
        };
        Interface { index: link.index, carrier_losses: link.carrier_losses, entry }
    }
}

fn is_of_one_container(name: &str) -> bool {
    OF_ONE_CONTAINER.iter().any(|prefix| name.starts_with(prefix))
}

#[cfg(test)]
mod tests;
