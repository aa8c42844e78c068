//! What a station wants done.

use std::{net::IpAddr, sync::Arc};

use crate::speaker::{
    owner::Report,
    triage::Snapshot,
    wire::{MacAddr, Message},
};

/// What the caller has to do.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Effect {
    /// The NIC has to listen for these addresses; with none, it is to be closed.
    Watch {
        /// Name of the interface.
        nic: Arc<str>,
        /// All the addresses.
        vips: Vec<IpAddr>,
    },
    /// The NIC's receive path works by this from now on.
    Publish {
        /// Name of the interface.
        nic: Arc<str>,
        /// What it answers for.
        snapshot: Snapshot,
    },
    /// Send this.
    Send {
        /// Name of the interface.
        nic: Arc<str>,
        /// What it says.
        message: Message,
    },
    /// These are the nodes whose speakers do not answer on the NIC although they own addresses that this node stands by for.
    Unheard {
        /// Name of the interface.
        nic: Arc<str>,
        /// All of them, in order.
        nodes: Vec<Arc<str>>,
    },
    /// Report this to the API.
    Report {
        /// The virtual IP.
        vip: IpAddr,
        /// Name of the interface.
        nic: Arc<str>,
        /// Its MAC address, as last known.
        mac: Option<MacAddr>,
        /// What is reported.
        report: Report,
    },
}
