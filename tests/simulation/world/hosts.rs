//! The hosts of the LAN: what they hear, and when they ask.

use std::net::IpAddr;

use l2lb::speaker::wire::{MacAddr, Operation, Packet};

use super::{Event, World};
use crate::{
    history::MS,
    hosts::{CHECK, DELAY, Entry, HOSTS, Kind, REACHABLE, UNICAST},
};

impl World {
    pub(super) fn tell_host(&mut self, node: usize, host: usize, vip: usize, entry: Entry, announcement: bool) {
        if self.parts.0[node] == self.parts.1[host] && !self.random.percent(self.history.loss) {
            let at = self.now + self.delay();
            self.at(at, Event::ToHost { host, vip, entry, announcement });
        }
    }

    pub(super) fn host_hears(&mut self, host: usize, vip: usize, entry: Entry, announcement: bool) {
        if !announcement {
            self.hosts[host].hear_answer(vip, entry);
            if self.is_nud(host, vip) {
                let reachable = REACHABLE.0 + self.random.below(REACHABLE.1 - REACHABLE.0);
                self.check_at(self.now + reachable + DELAY, host, vip);
            }
        } else if self.is_nud(host, vip) && self.hosts[host].unanswered.get(&vip).is_some_and(|times| *times > UNICAST)
        {
            // Linux takes no unsolicited advertisement into an entry that failed.
        } else if self.hosts[host].hear_announcement(vip, entry) && self.is_nud(host, vip) {
            // Stale: what is sent next goes there, and makes it check.
            self.check_at(self.now + DELAY, host, vip);
        }
    }

    /// The next check of an entry is then, and no other.
    pub(super) fn check_at(&mut self, at: u64, host: usize, vip: usize) {
        self.hosts[host].check_at.insert(vip, at);
        self.at(at, Event::HostCheck { host, vip });
    }

    pub(super) fn host_checks(&mut self, host: usize, vip: usize) {
        if self.hosts[host].check_at.get(&vip) != Some(&self.now) {
            return;
        }
        let known = self.hosts[host].cache.get(&vip).copied();
        match (HOSTS[host], known) {
            (_, None) => {
                self.host_asks(host, vip, None);
                self.check_at(self.now + 500 * MS, host, vip);
            }
            (Kind::Credulous, Some(_)) => {}
            (Kind::Gateway, Some(_)) => {
                self.host_asks(host, vip, None);
                self.check_at(self.now + 2 * CHECK, host, vip);
            }
            (Kind::Linux, Some(known)) => {
                let unanswered = self.hosts[host].unanswered.entry(vip).or_default();
                *unanswered += 1;
                let to = (*unanswered <= UNICAST).then_some(known.mac);
                let again = if *unanswered == 1 && !self.is_nud(host, vip) { CHECK } else { 1_000 * MS };
                self.host_asks(host, vip, to);
                self.check_at(self.now + again, host, vip);
            }
        }
    }

    /// Whether the host checks the entry as Linux does by neighbour unreachability detection (RFC 4861 section 7.3).
    fn is_nud(&self, host: usize, vip: usize) -> bool {
        HOSTS[host] == Kind::Linux && self.history.families.vip(vip).is_ipv6()
    }

    fn host_asks(&mut self, host: usize, vip: usize, to: Option<MacAddr>) {
        let vip = self.history.families.vip(vip);
        let packet = Packet { broadcast: to.is_none(), ..request_of(host, vip) };
        self.transmit(None, host, packet, to);
    }
}

fn host_mac(host: usize) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0xcc, u8::try_from(host).unwrap())
}

pub(super) fn host_of(mac: MacAddr) -> Option<usize> {
    (0..HOSTS.len()).find(|host| host_mac(*host) == mac)
}

/// A host asks everybody for an address.
pub(super) fn request_of(host: usize, vip: IpAddr) -> Packet {
    let number = 200 + u8::try_from(host).unwrap();
    let sender_ip = match vip {
        IpAddr::V4(_) => IpAddr::from([192, 0, 2, number]),
        IpAddr::V6(_) => IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(number)]),
    };
    Packet { operation: Operation::Request, broadcast: true, sender_mac: host_mac(host), sender_ip, target_ip: vip }
}
