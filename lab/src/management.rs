//! The management network: a bridge in the lab's root network namespace, apart from the LAN that the tests look at.
//!
//! It carries what is not a load balancer's traffic (API server, Pod to Pod), so that the LAN's frames are those of interest.

use std::net::{IpAddr, Ipv4Addr};
use std::process::Command;

use anyhow::Result;

use crate::families::{beside, has_ipv6};
use crate::netns::Netns;
use crate::process::run;

const BRIDGE: &str = "mgmt";
/// The lab program's own address on it.
const OWN: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 1);

/// Where the API server listens.
pub const API_SERVER: Ipv4Addr = Ipv4Addr::new(10, 100, 0, 2);

/// The bridge. Dropping it takes it away.
#[derive(Debug)]
pub struct Management(());

impl Management {
    /// Makes the bridge.
    ///
    /// # Errors
    /// When there is one already: one cluster at a time.
    pub fn create() -> Result<Self> {
        ip(&["link", "add", BRIDGE, "type", "bridge"])?;
        let management = Self(());
        ip(&["address", "add", &format!("{OWN}/24"), "dev", BRIDGE])?;
        ip(&["link", "set", BRIDGE, "up"])?;
        if has_ipv6() {
            ip(&["address", "add", &format!("{}/64", beside(OWN)), "dev", BRIDGE, "nodad"])?;
        }
        Ok(management)
    }

    /// Gives a network namespace an interface on the bridge, with this address and the one beside it.
    pub fn attach(&self, netns: &Netns, interface: &str, address: Ipv4Addr) -> Result<()> {
        let port = port_name(netns);
        ip(&["link", "add", &port, "type", "veth", "peer", "name", interface, "netns", netns.name()])?;
        ip(&["link", "set", &port, "master", BRIDGE, "up"])?;
        netns.ip(&["address", "add", &format!("{address}/24"), "dev", interface])?;
        if has_ipv6() {
            netns.ip(&["address", "add", &format!("{}/64", beside(address)), "dev", interface, "nodad"])?;
        }
        netns.ip(&["link", "set", interface, "up"])?;
        Ok(())
    }

    /// Pulls the cable of a namespace's interface, or plugs it in.
    pub fn set_link(&self, netns: &Netns, up: bool) -> Result<()> {
        ip(&["link", "set", &port_name(netns), if up { "up" } else { "down" }])
    }

    /// Takes the interface away, both ends at once.
    pub fn detach(&self, netns: &Netns) -> Result<()> {
        ip(&["link", "delete", &port_name(netns)])
    }

    /// Adds or changes a route of the lab program's own namespace.
    pub fn route(&self, destination: &str, via: IpAddr) -> Result<()> {
        ip(&["route", "replace", destination, "via", &via.to_string()])
    }
}

impl Drop for Management {
    fn drop(&mut self) {
        if let Err(error) = ip(&["link", "delete", BRIDGE]) {
            tracing::warn!(%error, "the management bridge was left behind");
        }
    }
}

fn port_name(netns: &Netns) -> String {
    format!("m-{}", netns.name())
}

fn ip(arguments: &[&str]) -> Result<()> {
    run(Command::new("ip").args(arguments)).map(drop)
}
