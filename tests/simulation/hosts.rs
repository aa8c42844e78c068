//! The other hosts: what they believe, and how they come to it.

use std::collections::BTreeMap;

use l2lb::speaker::wire::MacAddr;

use crate::history::MS;

/// What a cache entry says: which MAC address, and on which port (a gateway keeps that, too).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Entry {
    pub mac: MacAddr,
    pub port: u64,
}

/// How a host treats its cache.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Believes announcements, and never asks again: the worst case.
    Credulous,
    /// As Linux: checks an entry by unicast, and asks everybody when that is in vain. For IPv6 by neighbour unreachability
    /// detection, with its longer times; an announcement of another MAC address makes an entry stale, and so checked.
    Linux,
    /// Stores the port that a frame came in on, and asks anew when the entry is old.
    Gateway,
}

/// The hosts of every LAN here.
pub const HOSTS: [Kind; 3] = [Kind::Credulous, Kind::Linux, Kind::Gateway];
/// Linux: an entry in use is checked about this often.
pub const CHECK: u64 = 7_000 * MS;
/// Linux, IPv6: an entry that was confirmed is stale after any time between these, and a stale one in use is checked after
/// this.
pub const REACHABLE: (u64, u64) = (15_000 * MS, 45_000 * MS);
pub const DELAY: u64 = 5_000 * MS;
/// And asked for by unicast so many times, a second apart.
pub const UNICAST: u32 = 3;

#[derive(Clone, Debug, Default)]
pub struct Host {
    pub cache: BTreeMap<usize, Entry>,
    /// Requests by unicast that went unanswered.
    pub unanswered: BTreeMap<usize, u32>,
    /// When each entry is looked at next.
    pub check_at: BTreeMap<usize, u64>,
}

impl Host {
    /// A gratuitous ARP, or an unsolicited advertisement with the override bit, changes what is there, and makes nothing new
    /// (`arp_accept` 0). Whether it changed anything.
    pub fn hear_announcement(&mut self, vip: usize, entry: Entry) -> bool {
        let Some(known) = self.cache.get_mut(&vip) else { return false };
        self.unanswered.remove(&vip);
        std::mem::replace(known, entry) != entry
    }

    pub fn hear_answer(&mut self, vip: usize, entry: Entry) {
        self.cache.insert(vip, entry);
        self.unanswered.remove(&vip);
    }
}
