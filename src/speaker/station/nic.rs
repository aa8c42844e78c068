//! One NIC of a station: its link, its addresses, its pace, and whom it watches.

use std::{
    collections::BTreeSet,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    sync::Arc,
    time::Duration,
};

use super::Link;
use crate::speaker::{
    monitor::Monitor,
    schedule::{Pacer, Repetition, Rotation},
    search::Search,
    wire::MacAddr,
};

/// What a station knows of one of its NICs.
pub(super) struct Nic {
    pub(super) link: Link,
    /// Whether it can announce IPv6 while its link is there.
    pub(super) ipv6: Result<(), Arc<str>>,
    pub(super) mac: Option<MacAddr>,
    pub(super) vips: BTreeSet<IpAddr>,
    pub(super) owned: BTreeSet<IpAddr>,
    pub(super) pacer: Pacer,
    pub(super) rotation: Rotation,
    pub(super) repetition: Repetition,
    pub(super) monitor: Monitor,
    pub(super) search: Search,
    /// Whom it cannot hear, as last told.
    pub(super) unheard: Vec<Arc<str>>,
    /// Its own, as the node's configuration has them.
    pub(super) addresses: Vec<IpAddr>,
    /// Of the addresses that it owns, as last published.
    pub(super) shortest_fence: Option<Duration>,
    /// Its receive thread stands still, or not all is heard yet that it handed over when it ran again.
    pub(super) deaf: bool,
    pub(super) watch_changed: bool,
    pub(super) parts_changed: bool,
}

impl Nic {
    /// With no address.
    pub(super) fn new(link: Link) -> Self {
        Self {
            mac: link.as_ref().ok().copied(),
            link,
            ipv6: Ok(()),
            vips: BTreeSet::new(),
            owned: BTreeSet::new(),
            pacer: Pacer::default(),
            rotation: Rotation::default(),
            repetition: Repetition::default(),
            monitor: Monitor::default(),
            search: Search::default(),
            unheard: Vec::new(),
            addresses: Vec::new(),
            shortest_fence: None,
            deaf: false,
            watch_changed: true,
            parts_changed: true,
        }
    }

    /// The sender address of a request for `vip`: one of the NIC's own that is no virtual IP, for IPv6 its link-local one.
    pub(super) fn asks_as(&self, vip: IpAddr, is_virtual: impl Fn(&IpAddr) -> bool) -> IpAddr {
        let fits = |address: &&IpAddr| match (vip, address) {
            (IpAddr::V4(_), IpAddr::V4(_)) => true,
            (IpAddr::V6(_), IpAddr::V6(address)) => address.is_unicast_link_local(),
            _ => false,
        };
        let none = || match vip {
            IpAddr::V4(_) => IpAddr::V4(Ipv4Addr::UNSPECIFIED),
            IpAddr::V6(_) => IpAddr::V6(Ipv6Addr::UNSPECIFIED),
        };
        self.addresses.iter().filter(fits).find(|address| !is_virtual(address)).copied().unwrap_or_else(none)
    }

    /// What the machine of `vip` is told of it: whether it can be used, and the MAC address that it has or had.
    pub(super) fn for_machine(&self, vip: IpAddr) -> (Result<(), Arc<str>>, MacAddr) {
        let link = self.link.clone().map(|_| ());
        let link = if vip.is_ipv6() { link.and(self.ipv6.clone()) } else { link };
        (link, self.mac.unwrap_or_default())
    }
}
