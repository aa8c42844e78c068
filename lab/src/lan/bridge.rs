//! The other kind of LAN: a Linux bridge in the LAN's network namespace, for speed. The gateway is a host like any
//! other.

use anyhow::Result;

use super::PortId;
use crate::netns::Netns;

pub(super) const BRIDGE: &str = "br0";

/// Makes the bridge. It goes with the namespace.
pub(super) fn create(lan: &Netns) -> Result<()> {
    lan.ip(&["link", "add", BRIDGE, "type", "bridge", "stp_state", "0", "forward_delay", "0"])?;
    super::disable_ipv6(lan, BRIDGE)?;
    lan.ip(&["link", "set", BRIDGE, "up"]).map(drop)
}

/// Makes the LAN's end of a cable a port of the bridge.
pub(super) fn add_port(lan: &Netns, port: PortId) -> Result<()> {
    lan.ip(&["link", "set", &port.device(), "master", BRIDGE]).map(drop)
}
