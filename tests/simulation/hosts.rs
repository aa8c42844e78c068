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
    /// As Linux: checks an entry by unicast, and asks everybody when that is in vain.
    Linux,
    /// Stores the port that a frame came in on, and asks anew when the entry is old.
    Gateway,
}

/// The hosts of every LAN here.
pub const HOSTS: [Kind; 3] = [Kind::Credulous, Kind::Linux, Kind::Gateway];
/// Linux: an entry in use is checked about this often.
pub const CHECK: u64 = 7_000 * MS;
/// And asked for by unicast so many times, a second apart.
pub const UNICAST: u32 = 3;

#[derive(Clone, Debug, Default)]
pub struct Host {
    pub cache: BTreeMap<usize, Entry>,
    /// Requests by unicast that went unanswered.
    pub unanswered: BTreeMap<usize, u32>,
}

impl Host {
    /// A gratuitous ARP changes what is there, and makes nothing new (`arp_accept` 0).
    pub fn hear_announcement(&mut self, vip: usize, entry: Entry) {
        if let Some(known) = self.cache.get_mut(&vip) {
            *known = entry;
            self.unanswered.remove(&vip);
        }
    }

    pub fn hear_answer(&mut self, vip: usize, entry: Entry) {
        self.cache.insert(vip, entry);
        self.unanswered.remove(&vip);
    }
}
