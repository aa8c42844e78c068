//! A Pod's network: the node's own, or a network namespace with one address of each family out of the node's Pod range.
//!
//! The namespace hangs on a veth pair of its own with a host route, without a bridge: so every packet of a Pod is routed
//! through the node, and kube-proxy's rules see all of them.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;
use std::sync::Mutex;

use anyhow::{Context as _, Result};

use crate::families::{beside, has_ipv6};
use crate::netns::Netns;

/// The node's address on every Pod's link.
const GATEWAY_V6: &str = "fe80::1";

/// Pod addresses of one node: 10.244.`index`.0/24, the node itself at .1.
#[derive(Debug)]
pub struct PodRange {
    index: u8,
    used: Mutex<BTreeSet<u8>>,
}

impl PodRange {
    /// The range of node number `index`.
    pub fn new(index: u8) -> Self {
        Self { index, used: Mutex::default() }
    }

    /// In CIDR form.
    pub fn cidr(&self) -> String {
        format!("10.244.{}.0/24", self.index)
    }

    /// The IPv6 addresses beside them.
    pub fn cidr_v6(&self) -> String {
        format!("{}/64", beside(Ipv4Addr::new(10, 244, self.index, 0)))
    }

    /// The node's own address in it, the gateway of its Pods.
    pub fn gateway(&self) -> Ipv4Addr {
        Ipv4Addr::new(10, 244, self.index, 1)
    }

    fn take(&self) -> Option<u8> {
        let mut used = self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner);
        let free = (2..255).find(|number| !used.contains(number))?;
        used.insert(free);
        Some(free)
    }

    fn give_back(&self, number: u8) {
        self.used.lock().unwrap_or_else(std::sync::PoisonError::into_inner).remove(&number);
    }
}

/// The network of one Pod.
#[derive(Debug)]
pub struct PodNetwork {
    /// Where its programs run.
    pub netns: Netns,
    /// Its address.
    pub address: Ipv4Addr,
    /// The last byte of its own address; none on the node's network.
    number: Option<u8>,
}

impl PodNetwork {
    /// The node's own network.
    pub fn of_node(node: &Netns, address: Ipv4Addr) -> Self {
        Self { netns: node.clone(), address, number: None }
    }

    /// A network of its own.
    ///
    /// # Errors
    /// When the range is used up, or an `ip` command fails; nothing is left then.
    pub fn create(node: &Netns, range: &PodRange) -> Result<Self> {
        let number = range.take().with_context(|| format!("all addresses of {} are in use", range.cidr()))?;
        let build = || {
            // Left by a Pod whose network could not be taken away, as by a power cut: nothing uses this number any more.
            Netns::delete_left_over(&namespace_name(node, number))?;
            let netns = Netns::create(&namespace_name(node, number))?;
            Self::connect(node, &netns, range, number).inspect_err(|_| {
                // The first error is the one to tell.
                let _ = netns.clone().delete();
            })
        };
        build().inspect_err(|_| range.give_back(number))
    }

    fn connect(node: &Netns, netns: &Netns, range: &PodRange, number: u8) -> Result<Self> {
        let address = Ipv4Addr::new(10, 244, range.index, number);
        let (port, gateway) = (port_name(number), range.gateway().to_string());
        node.ip(&["link", "add", &port, "type", "veth", "peer", "name", "eth0", "netns", netns.name()])?;
        node.ip(&["link", "set", &port, "up"])?;
        node.ip(&["route", "replace", &format!("{address}/32"), "dev", &port, "src", &gateway])?;
        netns.ip(&["address", "add", &format!("{address}/32"), "dev", "eth0"])?;
        netns.ip(&["link", "set", "eth0", "up"])?;
        netns.ip(&["route", "add", &gateway, "dev", "eth0", "scope", "link"])?;
        netns.ip(&["route", "add", "default", "via", &gateway])?;
        if has_ipv6() {
            let second = format!("{}/128", beside(address));
            node.ip(&["address", "add", &format!("{GATEWAY_V6}/64"), "dev", &port, "nodad"])?;
            node.ip(&["route", "replace", &second, "dev", &port])?;
            netns.ip(&["address", "add", &second, "dev", "eth0", "nodad"])?;
            netns.ip(&["route", "add", "default", "via", GATEWAY_V6, "dev", "eth0"])?;
        }
        Ok(Self { netns: netns.clone(), address, number: Some(number) })
    }

    /// Takes the network away. The programs in it have ended.
    ///
    /// # Errors
    /// When an `ip` command fails, as it does on a node that is gone.
    pub fn remove(self, node: &Netns, range: &PodRange) -> Result<()> {
        let Some(number) = self.number else { return Ok(()) };
        let link = node.ip(&["link", "delete", &port_name(number)]);
        self.netns.delete()?;
        link?;
        range.give_back(number);
        Ok(())
    }
}

/// Whether a network namespace belongs to a Pod of this node.
pub(crate) fn is_pod_of(node: &str, namespace: &str) -> bool {
    namespace.strip_prefix(node).is_some_and(|rest| rest.starts_with("-p"))
}

fn namespace_name(node: &Netns, number: u8) -> String {
    format!("{}-p{number}", node.name())
}

fn port_name(number: u8) -> String {
    format!("veth-pod{number}")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn addresses_are_given_once_until_they_come_back() {
        let range = PodRange::new(3);
        assert_eq!((range.take(), range.take()), (Some(2), Some(3)));
        range.give_back(2);
        assert_eq!((range.take(), range.take()), (Some(2), Some(4)));
        assert_eq!(range.cidr_v6(), "fd00:10:244:3::/64");
        assert_eq!((range.cidr().as_str(), range.gateway()), ("10.244.3.0/24", [10, 244, 3, 1].into()));
    }

    #[test]
    fn node_1_is_not_node_12() {
        assert!(is_pod_of("node1", "node1-p2") && !is_pod_of("node1", "node12-p2") && !is_pod_of("node1", "node1"));
    }
}
