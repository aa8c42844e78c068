//! The LAN of the lab: 192.0.2.0/24 with its gateway at .1, as a Linux bridge or as a user-space switch. IPv6 is off on its NICs
//! unless it is turned on for one ([`turn_ipv6_on`]); then it is 2001:db8:1::/64.
//!
//! ```text
//!  netns node1   netns node2   netns client
//!    eth0          eth0          eth0           LanKind::Bridge   a Linux bridge: fast, for measurements
//!     │ veth        │ veth        │ veth
//!  ┌──┴─────────────┴─────────────┴──┐          LanKind::Switch   packet sockets and a thread of this process:
//!  │ port 1      port 2      port 3  │                            ageing, delay, loss and partitions as ordered, every
//!  └──────────── netns lan ──────────┘                            frame recorded, and a layer-3 gateway that stores
//!                                                                 ports in its ARP table
//! ```
//! `table`, `gateway`, `switch` and `frame` are pure; `cable`, `runner`, `tap` and `bridge` touch the kernel.

mod bridge;
mod cable;
pub mod frame;
mod gateway;
pub mod host;
pub mod nd;
mod record;
mod runner;
mod switch;
mod table;
pub mod tap;

use std::collections::BTreeMap;
use std::fmt;
use std::io;
use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use pnet_base::MacAddr;

use self::cable::Cable;
pub use self::gateway::{GATEWAY_IP, GATEWAY_MAC, GatewayEntry, GatewayFact};
use self::host::Stream;
pub use self::record::{Ingress, RecordedFrame, Said, arp_replies_for, is_question, said, said_about};
use self::runner::{Runner, Shared};
pub use self::table::{SwitchTable, Way};
use crate::netns::Netns;

/// Which LAN to make.
#[derive(Clone, Debug)]
pub enum LanKind {
    /// A Linux bridge. No faults, no record.
    Bridge,
    /// The user-space switch.
    Switch(SwitchOptions),
}

/// How a user-space switch starts.
#[derive(Clone, Debug)]
pub struct SwitchOptions {
    /// How long a MAC address is kept that is not heard.
    pub ageing: Duration,
    /// One-way delay of each port's cable.
    pub delay: Duration,
    /// Probability, 0 to 1, with which a frame is lost on each port's cable.
    pub loss: f64,
    /// Makes the losses repeatable.
    pub seed: u64,
    /// How long the gateway keeps an ARP entry.
    pub gateway_ttl: Duration,
}

impl Default for SwitchOptions {
    fn default() -> Self {
        Self {
            ageing: Duration::from_secs(300),
            delay: Duration::ZERO,
            loss: 0.0,
            seed: 1,
            gateway_ttl: Duration::from_secs(1200),
        }
    }
}

/// A port of the LAN. Numbers are not used twice.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct PortId(pub u32);

impl PortId {
    fn device(self) -> String {
        format!("port{}", self.0)
    }
}

impl fmt::Display for PortId {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "port {}", self.0)
    }
}

/// A LAN. Dropping it takes the switch or the bridge away; the hosts' namespaces stay.
#[derive(Debug)]
pub struct Lan {
    netns: Netns,
    fabric: Fabric,
    ports: BTreeMap<PortId, Port>,
    // Also those that were detached: what the gateway held once is judged later.
    macs: BTreeMap<PortId, MacAddr>,
    next_port: u32,
}

#[derive(Debug)]
enum Fabric {
    Bridge { gateway: Netns },
    Switch { runner: Runner, gateway: Gateway },
}

#[derive(Debug)]
struct Port {
    name: String,
}

impl Lan {
    /// Makes a LAN in the network namespace `lan`, with the gateway 192.0.2.1 (on a bridge: in the network namespace
    /// `gateway`).
    pub fn new(kind: LanKind) -> Result<Self> {
        Self::named(kind, "")
    }

    /// Makes a LAN whose network namespaces' names end in `suffix`, so that several can be there at once.
    pub fn named(kind: LanKind, suffix: &str) -> Result<Self> {
        let netns = Netns::create(&format!("lan{suffix}"))?;
        let fabric = match kind {
            LanKind::Bridge => {
                bridge::create(&netns)?;
                Fabric::Bridge { gateway: Netns::create(&format!("gateway{suffix}"))? }
            }
            LanKind::Switch(options) => {
                let runner = Runner::start(options)?;
                let gateway = Gateway { shared: runner.shared().clone() };
                Fabric::Switch { runner, gateway }
            }
        };
        let mut lan = Self { netns, fabric, ports: BTreeMap::new(), macs: BTreeMap::new(), next_port: 1 };
        if let Fabric::Bridge { gateway } = &lan.fabric {
            lan.attach(&gateway.clone(), "eth0", GATEWAY_MAC, Some(&format!("{GATEWAY_IP}/24")))?;
        }
        Ok(lan)
    }

    /// Makes a NIC in `ns`, up, with that MAC and, if given, that address (`192.0.2.11/24`), and connects it.
    ///
    /// IPv6 is off on it, so that the LAN carries only what somebody caused.
    pub fn attach(&mut self, ns: &Netns, ifname: &str, mac: MacAddr, cidr: Option<&str>) -> Result<PortId> {
        let port = PortId(self.next_port);
        let name = format!("{}/{ifname}", ns.name());
        self.connect(port, ns, ifname, mac).with_context(|| format!("cannot connect {name} to the LAN"))?;
        self.next_port += 1;
        self.ports.insert(port, Port { name });
        self.macs.insert(port, mac);
        disable_ipv6(ns, ifname)?;
        if let Some(cidr) = cidr {
            ns.ip(&["addr", "add", cidr, "dev", ifname])?;
        }
        ns.ip(&["link", "set", ifname, "up"])?;
        Ok(port)
    }

    fn connect(&self, port: PortId, host: &Netns, ifname: &str, mac: MacAddr) -> Result<()> {
        let (device, mac) = (port.device(), mac.to_string());
        let peer = ["peer", "name", ifname, "address", &mac, "netns", host.name()];
        self.netns.ip(&[&["link", "add", &device, "type", "veth"], &peer[..]].concat())?;
        disable_ipv6(&self.netns, &device)?;
        // Before a socket is opened on it: one on a device that is down starts with an error.
        self.netns.ip(&["link", "set", &device, "up"])?;
        match &self.fabric {
            Fabric::Bridge { .. } => bridge::add_port(&self.netns, port)?,
            Fabric::Switch { runner, .. } => {
                host.run(|| cable::turn_offloads_off(ifname))??;
                runner.add(port, self.netns.run(|| Cable::open(&device))??);
            }
        }
        Ok(())
    }

    /// Lets frames with payloads of so many octets cross a LAN of the kind [`LanKind::Bridge`]; hosts' NICs have an MTU of their own.
    ///
    /// # Errors
    /// When a device cannot be set.
    pub fn set_mtu(&self, mtu: u32) -> Result<()> {
        let mtu = mtu.to_string();
        for port in self.ports.keys() {
            self.netns.ip(&["link", "set", &port.device(), "mtu", &mtu])?;
        }
        match &self.fabric {
            Fabric::Bridge { .. } => self.netns.ip(&["link", "set", bridge::BRIDGE, "mtu", &mtu]).map(drop),
            Fabric::Switch { .. } => Ok(()),
        }
    }

    /// Pulls the cable out of a host's NIC (it sees its carrier go), or plugs it in.
    pub fn set_link(&mut self, port: PortId, up: bool) -> Result<()> {
        let change = || self.netns.ip(&["link", "set", &port.device(), if up { "up" } else { "down" }]).map(drop);
        match &self.fabric {
            Fabric::Bridge { .. } => change(),
            Fabric::Switch { runner, .. } => runner.set_link(port, up, change),
        }
        .with_context(|| format!("cannot set the link of {}", self.port_name(port)))
    }

    /// Takes a NIC away, also when its namespace is gone already.
    pub fn detach(&mut self, port: PortId) -> Result<()> {
        self.ports.remove(&port).with_context(|| format!("no {port} on the LAN"))?;
        if let Fabric::Switch { runner, .. } = &self.fabric {
            runner.remove(port);
        }
        let device = port.device();
        // Both ends of a veth pair go together, so it may have gone with the host's namespace (a moment after its end).
        match self.netns.ip(&["link", "delete", &device]) {
            Err(error) if self.netns.ip(&["link", "show", "dev", &device]).is_ok() => Err(error),
            _ => Ok(()),
        }
    }

    /// Frames that the lab itself lost since the last call, because its thread came too late: who measures loss
    /// checks that there are none. Only on a switch.
    pub fn take_overruns(&self) -> Result<u64> {
        self.shared()?.take_overruns().context("cannot read a packet socket's statistics")
    }

    /// The host and NIC on a port, as `node1/eth0`.
    pub fn port_name(&self, port: PortId) -> String {
        self.ports.get(&port).map_or_else(|| port.to_string(), |port| port.name.clone())
    }

    /// The port whose NIC has this MAC.
    pub fn port_of(&self, mac: MacAddr) -> Option<PortId> {
        self.ports.keys().copied().find(|port| self.macs.get(port) == Some(&mac))
    }

    /// Cuts the LAN into these groups of ports, until the next call. Ports in none of them stay together, with the
    /// gateway; no groups heal it. Only on a switch.
    pub fn partition(&self, groups: &[Vec<PortId>]) -> Result<()> {
        self.order(|switch, _| switch.handle_partition(groups))
    }

    /// Sets the probability, 0 to 1, with which a frame is lost on this port's cable, both ways. Only on a switch.
    pub fn set_loss(&self, port: PortId, loss: f64) -> Result<()> {
        self.order(|switch, _| switch.handle_loss(port, loss))
    }

    /// Sets the delay of this port's cable, each way. Only on a switch.
    pub fn set_delay(&self, port: PortId, delay: Duration) -> Result<()> {
        self.order(|switch, _| switch.handle_delay(port, delay))
    }

    /// Sets how long a MAC address is kept that is not heard. Only on a switch.
    pub fn set_ageing(&self, ageing: Duration) -> Result<()> {
        self.order(|switch, _| switch.handle_ageing(ageing))
    }

    /// Loses the ARP messages that come from this port with `ip` as their sender, as a host does that has forgotten one of its
    /// addresses; or carries them again. Only on a switch.
    pub fn mute(&self, port: PortId, ip: Ipv4Addr, muted: bool) -> Result<()> {
        self.order(|switch, _| switch.handle_mute(port, ip, muted))
    }

    /// What `pick` makes of the recorded frames, oldest first, without a copy of all of them. Only on a switch.
    pub fn select<T>(&self, pick: impl FnMut(&RecordedFrame) -> Option<T>) -> Result<Vec<T>> {
        Ok(self.shared()?.read(|switch| switch.recorder().iter().filter_map(pick).collect()))
    }

    /// The frames that crossed the switch, oldest first (the last 262,144). Only on a switch.
    pub fn frames(&self) -> Result<Vec<RecordedFrame>> {
        Ok(self.shared()?.read(|switch| switch.recorder().frames()))
    }

    /// Forgets the frames recorded so far. Only on a switch.
    pub fn forget_frames(&self) -> Result<()> {
        self.order(|switch, _| switch.forget_frames())
    }

    /// Which MAC address the switch believes on which port. Only on a switch.
    pub fn mac_table(&self) -> Result<Vec<(MacAddr, PortId)>> {
        Ok(self.shared()?.read(|switch| switch.mac_table(Instant::now())))
    }

    /// The layer-3 gateway inside the switch; `None` on a bridge.
    pub fn gateway(&self) -> Option<&Gateway> {
        match &self.fabric {
            Fabric::Bridge { .. } => None,
            Fabric::Switch { gateway, .. } => Some(gateway),
        }
    }

    /// The network namespace of the gateway, a Linux host; `None` on a switch.
    pub fn gateway_netns(&self) -> Option<&Netns> {
        match &self.fabric {
            Fabric::Bridge { gateway } => Some(gateway),
            Fabric::Switch { .. } => None,
        }
    }

    /// Of all that the gateway ever held: what was not true, because the NIC on that port has another MAC.
    pub fn wrong_gateway_entries(&self) -> Result<Vec<GatewayFact>> {
        let gateway = self.gateway().context("a bridge has no gateway that stores ports")?;
        let wrong = |fact: &GatewayFact| self.macs.get(&fact.port) != Some(&fact.mac);
        Ok(gateway.history().into_iter().filter(wrong).collect())
    }

    fn shared(&self) -> Result<&Arc<Shared>> {
        match &self.fabric {
            Fabric::Bridge { .. } => bail!("a bridge records nothing and makes no faults: use LanKind::Switch"),
            Fabric::Switch { runner, .. } => Ok(runner.shared()),
        }
    }

    fn order(&self, order: impl FnOnce(&mut switch::Switch, Instant)) -> Result<()> {
        self.shared()?.order(order);
        Ok(())
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        let gone = match &self.fabric {
            Fabric::Bridge { gateway } => gateway.clone().delete(),
            Fabric::Switch { .. } => Ok(()),
        };
        let gone = gone.and(self.netns.clone().delete());
        if let Err(error) = gone {
            tracing::warn!(error = format!("{error:#}"), "the LAN could not be taken away");
        }
    }
}

/// The layer-3 gateway inside the user-space switch. Its ARP table stores the port that an ARP frame came in on, and
/// its own traffic goes there.
#[derive(Clone, Debug)]
pub struct Gateway {
    shared: Arc<Shared>,
}

impl Gateway {
    /// Sends one datagram of its own, from port 4000, asking for the MAC first where it has none.
    pub fn send_udp(&self, to: SocketAddrV4, payload: &[u8]) {
        let packet = gateway::datagram(to, payload);
        self.shared.order(|switch, now| switch.with_gateway(now, |host| host.handle_packet(*to.ip(), packet, now)));
    }

    /// Sends numbered datagrams (8 bytes, big endian) of its own until the stream is stopped or dropped.
    pub fn stream_udp(&self, to: SocketAddrV4, per_second: u32) -> Result<Stream> {
        let gateway = self.clone();
        Stream::start(per_second, move |number| {
            gateway.send_udp(to, &number.to_be_bytes());
            Ok(())
        })
    }

    /// Asks for an address by broadcast without dropping the entry, as a switch's consistency check does.
    pub fn ask_again(&self, ip: Ipv4Addr) {
        self.shared.order(|switch, now| switch.with_gateway(now, |host| host.handle_ask(ip)));
    }

    /// Drops an entry as if its time were over. Whether there was one.
    pub fn expire(&self, ip: Ipv4Addr) -> bool {
        self.shared.order(|switch, now| switch.with_gateway(now, |host| host.handle_expire(ip)))
    }

    /// The ARP table, by address.
    pub fn table(&self) -> Vec<GatewayEntry> {
        self.shared.read(|switch| switch.gateway().table(Instant::now()))
    }

    /// The entry of an address.
    pub fn entry(&self, ip: Ipv4Addr) -> Option<GatewayEntry> {
        self.table().into_iter().find(|entry| entry.ip == ip)
    }

    /// Every (ip, mac, port) that it ever held, in order; a repetition of the one before is not in it.
    pub fn history(&self) -> Vec<GatewayFact> {
        self.shared.read(|switch| switch.gateway().history().to_vec())
    }
}

/// Turns IPv6 on on a NIC of a LAN, with an address (`2001:db8:1::11/64`) and its link-local one, both usable at once. The NIC
/// asks for no router and believes none; what it sends by itself are reports of the groups that it listens to.
pub fn turn_ipv6_on(ns: &Netns, ifname: &str, cidr: &str) -> Result<()> {
    let set = |key: &str, value: &str| ns.sysctl(&format!("net.ipv6.conf.{}.{key}", ifname.replace('.', "/")), value);
    for (key, value) in [
        ("accept_dad", "0"),
        ("dad_transmits", "0"),
        ("accept_ra", "0"),
        ("autoconf", "0"),
        ("router_solicitations", "0"),
    ] {
        set(key, value)?;
    }
    set("disable_ipv6", "0")?;
    ns.ip(&["addr", "add", cidr, "dev", ifname, "nodad"]).map(drop)
}

/// Turns IPv6 off again on a NIC: it loses its IPv6 addresses and routes.
pub fn turn_ipv6_off(ns: &Netns, ifname: &str) -> Result<()> {
    disable_ipv6(ns, ifname)
}

/// Turns IPv6 off on a NIC, if the kernel has it.
fn disable_ipv6(ns: &Netns, ifname: &str) -> Result<()> {
    match ns.sysctl(&format!("net.ipv6.conf.{}.disable_ipv6", ifname.replace('.', "/")), "1") {
        Err(error)
            if error.downcast_ref::<io::Error>().is_some_and(|error| error.kind() == io::ErrorKind::NotFound) =>
        {
            Ok(())
        }
        result => result,
    }
}
