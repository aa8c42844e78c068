//! The other kind of LAN: a Linux bridge in a network namespace, for speed. Hosts are on veth pairs, the gateway is a
//! host like any other.

use std::collections::BTreeMap;

use anyhow::{Context, Result};
use pnet_base::MacAddr;

use super::PortId;
use super::gateway::{GATEWAY_IP, GATEWAY_MAC};
use crate::netns::Netns;

const BRIDGE: &str = "br0";

#[derive(Debug)]
pub(super) struct BridgeLan {
    netns: Netns,
    gateway: Option<Netns>,
    ports: BTreeMap<PortId, String>,
}

impl BridgeLan {
    /// Makes the bridge in `netns`.
    pub(super) fn new(netns: Netns) -> Result<Self> {
        netns.ip(&["link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0"])?;
        super::disable_ipv6(&netns, BRIDGE)?;
        netns.ip(&["link", "set", BRIDGE, "up"])?;
        Ok(Self { netns, gateway: None, ports: BTreeMap::new() })
    }

    /// Makes the gateway's namespace, with its NIC on `port`.
    pub(super) fn add_gateway(&mut self, port: PortId, name: &str) -> Result<()> {
        let gateway = Netns::create(name)?;
        self.attach(port, &gateway, "eth0", GATEWAY_MAC)?;
        gateway.ip(&["addr", "add", &format!("{GATEWAY_IP}/24"), "dev", "eth0"])?;
        gateway.ip(&["link", "set", "eth0", "up"])?;
        self.gateway = Some(gateway);
        Ok(())
    }

    /// Makes a NIC in `host` and connects it. It is down and has no IP address yet.
    pub(super) fn attach(&mut self, port: PortId, host: &Netns, ifname: &str, mac: MacAddr) -> Result<()> {
        let end = port.device();
        let (mac, peer_netns) = (mac.to_string(), host.name());
        self.netns
            .ip(&["link", "add", &end, "type", "veth", "peer", "name", ifname, "address", &mac, "netns", peer_netns])?;
        super::disable_ipv6(&self.netns, &end)?;
        self.netns.ip(&["link", "set", &end, "master", BRIDGE, "up"])?;
        self.ports.insert(port, end);
        Ok(())
    }

    pub(super) fn set_link(&self, port: PortId, up: bool) -> Result<()> {
        let end = self.ports.get(&port).context("no such port")?;
        self.netns.ip(&["link", "set", end, if up { "up" } else { "down" }]).map(drop)
    }

    pub(super) fn detach(&mut self, port: PortId) -> Result<()> {
        let end = self.ports.remove(&port).context("no such port")?;
        // Both ends of a veth pair go together, so it may have gone with the host's namespace (a moment after its end).
        match self.netns.ip(&["link", "delete", &end]) {
            Err(error) if self.netns.ip(&["link", "show", "dev", &end]).is_ok() => Err(error),
            _ => Ok(()),
        }
    }

    pub(super) fn delete(&mut self) -> Result<()> {
        self.gateway.take().map_or(Ok(()), Netns::delete)
    }
}
