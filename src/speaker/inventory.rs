//! The node's interfaces: which there are, and which of them can announce. [`judge`] decides; [`list`] looks.

use std::{collections::BTreeSet, fs, net::IpAddr, path::Path};

use pnet_datalink::NetworkInterface as Seen;

use crate::api::NetworkInterface;

/// The API takes no more.
const MAX_LISTED: usize = 512;
// Linux: include/uapi/linux/if.h.
const IFF_NOARP: u32 = 0x80;
const IFF_SLAVE: u32 = 0x800;
/// Names of interfaces of which each container has one. They come and go with the containers and are not even listed.
const OF_ONE_CONTAINER: [&str; 5] = ["veth", "cali", "lxc", "azv", "eni"];
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

/// An interface as it was found.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Interface {
    /// Its index, which stays when it is renamed.
    pub index: u32,
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
    if TO_CONTAINERS.iter().chain(&OF_ONE_CONTAINER).any(|prefix| name.starts_with(prefix)) {
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

/// The interfaces of this node, those that can announce first, then by name.
pub fn list() -> Vec<Interface> {
    let routes = fs::read_to_string("/proc/net/route").unwrap_or_default();
    let default_routes = default_route_interfaces(&routes);
    let mut found: Vec<Interface> = pnet_datalink::interfaces()
        .iter()
        .filter(|seen| !OF_ONE_CONTAINER.iter().any(|prefix| seen.name.starts_with(prefix)))
        .map(|seen| describe(seen, master_of(seen), default_routes.contains(seen.name.as_str())))
        .collect();
    found.sort_by(|a, b| (!a.entry.announces, &a.entry.name).cmp(&(!b.entry.announces, &b.entry.name)));
    found.truncate(MAX_LISTED);
    found
}

fn describe(seen: &Seen, master: Option<String>, default_route: bool) -> Interface {
    let facts = Facts {
        name: seen.name.clone(),
        has_mac: seen.mac.is_some_and(|mac| !mac.is_zero()),
        loopback: seen.is_loopback(),
        broadcast: seen.is_broadcast() && !seen.is_point_to_point(),
        arp: seen.flags & IFF_NOARP == 0,
        master,
        up: seen.is_up(),
        carrier: seen.is_lower_up(),
    };
    let verdict = judge(&facts);
    let entry = NetworkInterface {
        name: facts.name,
        mac: seen.mac.filter(|mac| !mac.is_zero()).map(|mac| mac.to_string()).unwrap_or_default(),
        addresses: seen.ips.iter().map(ToString::to_string).collect(),
        carrier: facts.carrier,
        default_route,
        announces: verdict.is_ok(),
        reason: verdict.err().unwrap_or_default(),
    };
    Interface { index: seen.index, entry }
}

/// The bond, bridge or team that owns the interface. /sys may be another network namespace's than ours (a process that
/// joined one without mounting it anew): it is believed only where it knows the same interface.
fn master_of(seen: &Seen) -> Option<String> {
    let folder = Path::new("/sys/class/net").join(&seen.name);
    let says =
        |file: &str, expected: String| fs::read_to_string(folder.join(file)).is_ok_and(|text| text.trim() == expected);
    let mac = seen.mac.map(|mac| mac.to_string()).unwrap_or_default();
    if !says("ifindex", seen.index.to_string()) || !says("address", mac) {
        return (seen.flags & IFF_SLAVE != 0).then(|| "a bond".to_owned());
    }
    let master = fs::read_link(folder.join("master")).ok()?;
    let name = master.file_name()?.to_string_lossy().into_owned();
    let uevent = fs::read_to_string(Path::new("/sys/class/net").join(&name).join("uevent")).unwrap_or_default();
    // A VRF takes its ports' routes, not their frames.
    (!uevent.lines().any(|line| line == "DEVTYPE=vrf")).then_some(name)
}

/// The interfaces through which a default route leaves, from the text of `/proc/net/route`.
fn default_route_interfaces(routes: &str) -> BTreeSet<&str> {
    routes
        .lines()
        .skip(1)
        .filter_map(|line| {
            let mut fields = line.split_whitespace();
            let (name, destination) = (fields.next()?, fields.next()?);
            let mask = fields.nth(5)?;
            (destination == "00000000" && mask == "00000000").then_some(name)
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn eth0() -> Facts {
        Facts {
            name: "eth0".to_owned(),
            has_mac: true,
            broadcast: true,
            arp: true,
            up: true,
            carrier: true,
            ..Facts::default()
        }
    }

    #[test]
    fn an_ethernet_interface_with_a_link_announces() {
        assert_eq!(judge(&eth0()), Ok(()));
        assert_eq!(judge(&Facts { name: "br0".to_owned(), ..eth0() }), Ok(()));
        assert_eq!(judge(&Facts { name: "bond0.12".to_owned(), ..eth0() }), Ok(()));
    }

    #[test]
    fn each_obstacle_is_named() {
        let table = [
            (Facts { loopback: true, ..eth0() }, "loopback"),
            (Facts { name: "veth12ab".to_owned(), ..eth0() }, "containers"),
            (Facts { name: "cni0".to_owned(), ..eth0() }, "containers"),
            (Facts { name: "flannel.1".to_owned(), ..eth0() }, "containers"),
            (Facts { master: Some("bond0".to_owned()), ..eth0() }, "bond0"),
            (Facts { has_mac: false, ..eth0() }, "MAC"),
            (Facts { broadcast: false, ..eth0() }, "point-to-point"),
            (Facts { arp: false, ..eth0() }, "ARP"),
            (Facts { up: false, carrier: false, ..eth0() }, "down"),
            (Facts { carrier: false, ..eth0() }, "no link"),
        ];
        for (facts, word) in table {
            let reason = judge(&facts).unwrap_err();
            assert!(reason.contains(word), "{facts:?}: {reason}");
        }
    }

    #[test]
    fn the_default_route_is_found() {
        let text = "Iface\tDestination\tGateway\tFlags\tRefCnt\tUse\tMetric\tMask\tMTU\tWindow\tIRTT\n\
                    eth0\t00000000\t010200C0\t0003\t0\t0\t0\t00000000\t0\t0\t0\n\
                    eth0\t000200C0\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n\
                    mgmt0\t0000640A\t00000000\t0001\t0\t0\t0\t00FFFFFF\t0\t0\t0\n";
        assert_eq!(default_route_interfaces(text), BTreeSet::from(["eth0"]));
        assert!(default_route_interfaces("").is_empty());
    }

    #[test]
    fn this_machine_has_a_loopback_interface_that_does_not_announce() {
        let interfaces = list();
        let lo = interfaces.iter().find(|interface| interface.entry.name == "lo").unwrap();
        assert!(!lo.entry.announces && !lo.entry.reason.is_empty());
    }
}
