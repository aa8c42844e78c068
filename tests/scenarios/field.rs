//! The LAN that a scenario is played on, and how traffic on it is judged: by frames, so that no program has to run
//! behind the virtual IP.

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use lab::lan::{Gateway, Lan, LanKind, PortId, RecordedFrame, SwitchOptions};
use lab::netns::Netns;
use pnet_base::MacAddr;

use crate::announcer::{Announcer, Failure, Kind, eventually, found};

/// Where scenarios send their datagrams.
pub const UDP_PORT: u16 = 9000;
/// How long anything may take that bare responders do at once, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(5);

/// A node's NIC on the LAN.
#[derive(Clone, Debug)]
pub struct Node {
    pub netns: Netns,
    pub ip: Ipv4Addr,
    pub mac: MacAddr,
    pub port: PortId,
}

/// A LAN with a client and nodes, whoever made it.
pub struct Field<'a> {
    pub lan: &'a Lan,
    pub client: &'a Netns,
    pub nodes: &'a [Node],
    /// How long anything may take before it counts as missing.
    pub patience: Duration,
}

/// A datagram for the virtual IP, as it crossed the switch.
#[derive(Clone, Debug)]
pub struct Datagram {
    pub at: Instant,
    pub mac: MacAddr,
    pub egress: Vec<PortId>,
    pub flooded: bool,
}

impl Field<'_> {
    pub fn gateway(&self) -> Result<&Gateway> {
        self.lan.gateway().context("the LAN has no gateway that stores ports")
    }

    /// The datagrams for `vip` among the frames recorded since they were last forgotten.
    pub fn datagrams(&self, vip: IpAddr) -> Result<Vec<Datagram>> {
        let target = SocketAddr::new(vip, UDP_PORT);
        let datagram = |frame: RecordedFrame| {
            frame.udp().filter(|udp| udp.destination == target)?;
            Some(Datagram { at: frame.at, mac: frame.destination()?, egress: frame.egress, flooded: frame.flooded })
        };
        Ok(self.lan.frames()?.into_iter().filter_map(datagram).collect())
    }

    /// Waits until `wanted` datagrams in a row have reached the announcer's owner and nobody else.
    pub fn wait_for_traffic(&self, announcer: &dyn Announcer, wanted: usize) -> Result<usize, Failure> {
        let vip = announcer.vip();
        self.lan.forget_frames()?;
        let arrived = eventually(self.patience, || {
            let Some(owner) = announcer.owner()? else { return Ok(None) };
            let datagrams = self.datagrams(vip)?;
            let in_a_row = datagrams.iter().rev().take_while(|datagram| self.is_for(datagram, owner)).count();
            Ok((in_a_row >= wanted).then_some(owner))
        })?;
        if let Some(owner) = arrived {
            return Ok(owner);
        }
        let node = announcer.owner()?.map(|owner| &self.nodes[owner]);
        let node = node.ok_or_else(|| found(Kind::NotAnswered, format!("no node is the owner of {vip}")))?;
        match self.datagrams(vip)?.last() {
            None => Err(found(Kind::NotAnswered, format!("no datagram was sent to {vip}: it was never resolved"))),
            Some(last) if last.flooded => Err(found(
                Kind::Flooded,
                format!("datagrams for {vip} at {} are flooded: its owner is never heard on {}", last.mac, node.port),
            )),
            Some(last) => Err(found(
                Kind::NotFollowed,
                format!(
                    "datagrams for {vip} go to {} out of {:?}, its owner is {} on {}",
                    last.mac, last.egress, node.mac, node.port
                ),
            )),
        }
    }

    /// Whether it reached this node's NIC, with that NIC's address, and no other.
    pub fn is_for(&self, datagram: &Datagram, node: usize) -> bool {
        let node = &self.nodes[node];
        datagram.mac == node.mac && datagram.egress == [node.port]
    }

    /// Unicast frames that were flooded since frames were last forgotten.
    pub fn flooded(&self) -> Result<Vec<RecordedFrame>> {
        Ok(self.lan.frames()?.into_iter().filter(|frame| frame.flooded).collect())
    }
}

/// A field without a cluster: a client and three nodes that are nothing but namespaces.
pub struct Bare {
    lan: Lan,
    client: Netns,
    pub nodes: Vec<Node>,
}

impl Bare {
    /// Makes it, with namespaces whose names end in `suffix`.
    pub fn new(suffix: &str) -> Result<Self> {
        let mut lan = Lan::named(LanKind::Switch(SwitchOptions::default()), suffix)?;
        let client = Netns::create(&format!("client{suffix}"))?;
        lan.attach(&client, "eth0", MacAddr(2, 0, 0, 0, 0xcc, 3), Some("192.0.2.3/24"))?;
        let mut nodes = Vec::new();
        for number in 1..=3 {
            let netns = Netns::create(&format!("node{number}{suffix}"))?;
            let (ip, mac) = (Ipv4Addr::new(192, 0, 2, 10 + number), MacAddr(2, 0, 0, 0, 1, number));
            let port = lan.attach(&netns, "eth0", mac, Some(&format!("{ip}/24")))?;
            nodes.push(Node { netns, ip, mac, port });
        }
        Ok(Self { lan, client, nodes })
    }

    pub fn view(&self) -> Field<'_> {
        Field { lan: &self.lan, client: &self.client, nodes: &self.nodes, patience: PATIENCE }
    }
}

impl Drop for Bare {
    fn drop(&mut self) {
        for netns in self.nodes.iter().map(|node| &node.netns).chain([&self.client]) {
            if let Err(error) = netns.clone().delete() {
                eprintln!("warning: {error:#}");
            }
        }
    }
}
