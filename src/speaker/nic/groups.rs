//! Membership in the multicast groups in which solicitations for virtual IPs arrive, on one NIC.
//!
//! A switch with MLD snooping passes the frames of a group only to ports on which somebody joined it, and the NIC itself drops
//! those of groups that nobody wants. So each group is joined through an ordinary socket: the kernel sends the reports (RFC
//! 3810), again when the link is back, and answers the queries of routers. A group is shared by the virtual IPs with the same
//! last 24 bits, and left with the last of them. Nothing is ever received through these sockets.

use std::{
    collections::{BTreeMap, BTreeSet},
    fs, io,
    net::Ipv6Addr,
    sync::Arc,
};

use socket2::{Domain, Protocol, Socket, Type};
use thiserror::Error;

use crate::speaker::wire::nd::solicited_node;

/// Groups joined through one socket. The kernel walks through them all at each join, and charges each to the memory that a
/// socket may have for options (`net.core.optmem_max`), which may be used up earlier.
const PER_SOCKET: usize = 2_000;

/// Why a NIC cannot receive all solicitations. The groups that were joined before stay joined.
#[derive(Debug, Error)]
pub enum JoinError {
    /// The kernel was built or started without IPv6.
    #[error("this node's kernel has no IPv6")]
    NoIpv6,
    /// The administrator turned it off on this interface.
    #[error("IPv6 is turned off on {0}: set the sysctl net.ipv6.conf.{0}.disable_ipv6 to 0")]
    TurnedOff(Arc<str>),
    /// The kernel refused.
    #[error("the multicast group {group} cannot be joined on {interface}: {error}")]
    Group {
        /// Name of the interface.
        interface: Arc<str>,
        /// The group.
        group: Ipv6Addr,
        /// What the kernel said.
        error: io::Error,
    },
}

/// The groups joined on one NIC. Dropping it leaves them all.
#[derive(Debug)]
pub struct Groups {
    name: Arc<str>,
    index: u32,
    sockets: Vec<Shard>,
    /// With the place of the socket through which each is joined.
    joined: BTreeMap<Ipv6Addr, usize>,
}

#[derive(Debug)]
struct Shard {
    socket: Socket,
    joined: usize,
    /// The kernel has no more memory for its options.
    full: bool,
}

impl Groups {
    /// None yet, on the interface `name` whose index is `index`.
    pub fn new(name: Arc<str>, index: u32) -> Self {
        Self { name, index, sockets: Vec::new(), joined: BTreeMap::new() }
    }

    /// Joins the groups of `vips`, and leaves all others.
    ///
    /// # Errors
    /// See [`JoinError`]. To be called again later.
    pub fn keep(&mut self, vips: impl IntoIterator<Item = Ipv6Addr>) -> Result<(), JoinError> {
        let wanted: BTreeSet<Ipv6Addr> = vips.into_iter().map(solicited_node).collect();
        let unwanted: Vec<Ipv6Addr> = self.joined.keys().filter(|group| !wanted.contains(group)).copied().collect();
        for group in unwanted {
            self.leave(group);
        }
        // The kernel would let it join, but neither report nor receive anything.
        if !wanted.is_empty() && is_turned_off(&self.name) {
            return Err(JoinError::TurnedOff(self.name.clone()));
        }
        let mut outcome = Ok(());
        for group in wanted {
            if !self.joined.contains_key(&group) {
                outcome = outcome.and(self.join(group));
            }
        }
        outcome
    }

    /// How many groups are joined.
    pub fn joined(&self) -> usize {
        self.joined.len()
    }

    /// Through how many sockets.
    pub fn sockets(&self) -> usize {
        self.sockets.len()
    }

    fn join(&mut self, group: Ipv6Addr) -> Result<(), JoinError> {
        let failed = |error| JoinError::Group { interface: self.name.clone(), group, error };
        for (place, shard) in self.sockets.iter_mut().enumerate().filter(|(_, shard)| shard.has_room()) {
            match shard.join(group, self.index) {
                Ok(()) => {
                    self.joined.insert(group, place);
                    return Ok(());
                }
                Err(error) if is_out_of_memory(&error) => shard.full = true,
                Err(error) => return Err(failed(error)),
            }
        }
        let socket = Socket::new(Domain::IPV6, Type::DGRAM, Some(Protocol::UDP)).map_err(|error| {
            let no_ipv6 = error.raw_os_error() == Some(libc::EAFNOSUPPORT);
            if no_ipv6 { JoinError::NoIpv6 } else { failed(error) }
        })?;
        let mut shard = Shard { socket, joined: 0, full: false };
        shard.join(group, self.index).map_err(failed)?;
        self.joined.insert(group, self.sockets.len());
        self.sockets.push(shard);
        Ok(())
    }

    fn leave(&mut self, group: Ipv6Addr) {
        let Some(shard) = self.joined.remove(&group).and_then(|place| self.sockets.get_mut(place)) else { return };
        // It fails only when the interface is gone, and the membership with it.
        if shard.socket.leave_multicast_v6(&group, self.index).is_ok() {
            shard.full = false;
        }
        shard.joined -= 1;
        while self.sockets.last().is_some_and(|last| last.joined == 0) {
            self.sockets.pop();
        }
    }
}

impl Shard {
    fn has_room(&self) -> bool {
        !self.full && self.joined < PER_SOCKET
    }

    fn join(&mut self, group: Ipv6Addr, index: u32) -> io::Result<()> {
        self.socket.join_multicast_v6(&group, index)?;
        self.joined += 1;
        Ok(())
    }
}

fn is_out_of_memory(error: &io::Error) -> bool {
    matches!(error.raw_os_error(), Some(libc::ENOBUFS | libc::ENOMEM))
}

fn is_turned_off(name: &str) -> bool {
    fs::read_to_string(format!("/proc/sys/net/ipv6/conf/{name}/disable_ipv6")).is_ok_and(|text| text.trim() == "1")
}
