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
/// Groups joined or left in one step, so that the caller's loop goes on in between: with thousands of them a join takes the
/// kernel a tenth of a millisecond.
const STEP: usize = 100;

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
    /// Those to be joined, or left if they are joined.
    todo: Vec<Ipv6Addr>,
    /// The first trouble since the groups were last set.
    trouble: Option<JoinError>,
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
        Self { name, index, sockets: Vec::new(), joined: BTreeMap::new(), todo: Vec::new(), trouble: None }
    }

    /// From now on the groups of `vips` are wanted, and no others. [`Groups::proceed`] joins and leaves. What could not be joined
    /// before is tried again.
    pub fn set(&mut self, vips: impl IntoIterator<Item = Ipv6Addr>) {
        let wanted: BTreeSet<Ipv6Addr> = vips.into_iter().map(solicited_node).collect();
        let missing = wanted.iter().filter(|group| !self.joined.contains_key(group));
        let unwanted = self.joined.keys().filter(|group| !wanted.contains(group));
        // Done from the end: what is left makes room.
        self.todo = missing.rev().chain(unwanted).copied().collect();
        self.trouble = None;
    }

    /// Whether something is left to be done.
    pub fn is_due(&self) -> bool {
        !self.todo.is_empty()
    }

    /// Takes one more step; `true` when all is done.
    ///
    /// # Errors
    /// When all is done but what could not be: see [`JoinError`].
    pub fn proceed(&mut self) -> Result<bool, JoinError> {
        // The kernel would let it join, but neither report nor receive anything.
        let turned_off = self.is_due() && is_turned_off(&self.name);
        for _ in 0..STEP {
            let Some(group) = self.todo.pop() else { break };
            if self.joined.contains_key(&group) {
                self.leave(group);
                continue;
            }
            let outcome = if turned_off { Err(JoinError::TurnedOff(self.name.clone())) } else { self.join(group) };
            if let Err(error) = outcome {
                self.trouble.get_or_insert(error);
            }
        }
        match self.trouble.take() {
            Some(error) if self.todo.is_empty() => Err(error),
            trouble => {
                self.trouble = trouble;
                Ok(self.todo.is_empty())
            }
        }
    }

    /// How many groups are joined.
    #[cfg(test)]
    pub(in crate::speaker) fn joined(&self) -> usize {
        self.joined.len()
    }

    /// Through how many sockets.
    #[cfg(test)]
    pub(in crate::speaker) fn sockets(&self) -> usize {
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
