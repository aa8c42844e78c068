//! Whose MAC address is it? What the Speaker objects of all nodes say about their interfaces.

use std::{
    collections::{BTreeMap, HashMap},
    sync::Arc,
};

use super::wire::MacAddr;

/// To whom a MAC address belongs.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Who<'a> {
    /// Another node's speaker.
    Speaker(&'a Arc<str>),
    /// This node, on some interface.
    Own,
    /// No node that has a speaker.
    Foreign,
}

/// The MAC addresses of all speakers' interfaces.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Peers {
    own: Arc<str>,
    nodes: HashMap<MacAddr, Arc<str>>,
    nics: BTreeMap<(Arc<str>, Arc<str>), MacAddr>,
}

impl Peers {
    /// As the speaker of the node `own` sees them: each node, with the name and the MAC address of an interface. An address that several nodes name (those of virtual bridges can be
    /// alike) counts for this node first: a speaker never takes itself for another.
    pub fn new(own: Arc<str>, interfaces: impl IntoIterator<Item = (Arc<str>, Arc<str>, MacAddr)>) -> Self {
        let mut nodes = HashMap::new();
        let mut nics = BTreeMap::new();
        for (node, nic, mac) in interfaces {
            if mac.is_unicast() && !mac.is_zero() && (node == own || nodes.get(&mac) != Some(&own)) {
                nodes.insert(mac, node.clone());
                nics.insert((node, nic), mac);
            }
        }
        Self { own, nodes, nics }
    }

    /// The MAC address of a node's interface.
    pub fn mac_of(&self, node: &Arc<str>, nic: &Arc<str>) -> Option<MacAddr> {
        self.nics.get(&(node.clone(), nic.clone())).copied()
    }

    /// To whom `mac` belongs.
    pub fn who(&self, mac: MacAddr) -> Who<'_> {
        match self.nodes.get(&mac) {
            Some(node) if *node == self.own => Who::Own,
            Some(node) => Who::Speaker(node),
            None => Who::Foreign,
        }
    }
}
