//! A layer-3 gateway inside the switch, whose ARP table stores the *port* as some switches do.
//!
//! An entry is (ip, mac, port, ttl): the MAC is what the ARP message says, the port is where its frame came in. The
//! gateway's own traffic goes to that MAC out of that port only; the MAC table is not asked. So a speaker whose frames
//! tell one MAC and come from another is cut off here, although every host finds it.
//!
//! Pure: frames, orders and `now` go in (`handle_*`), frames come out ([`GatewayHost::poll_output`]).

use std::collections::{BTreeMap, VecDeque};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use ipnet::Ipv4Net;
use pnet_base::MacAddr;
use pnet_packet::Packet;
use pnet_packet::ethernet::EtherTypes;
use pnet_packet::icmp::{self, IcmpPacket, IcmpTypes, MutableIcmpPacket};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv4::Ipv4Packet;

use super::PortId;
use super::frame::{self, ARP_REPLY, ARP_REQUEST, Arp, ArpForm, Ethernet};

/// The gateway's address on the LAN.
pub const GATEWAY_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 1);
/// The gateway's MAC address.
pub const GATEWAY_MAC: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);

const ASK_INTERVAL: Duration = Duration::from_secs(1);
const ASK_TRIES: u8 = 3;
/// Packets that wait for one answer; more are dropped.
const WAITING: usize = 16;

/// A line of the gateway's ARP table.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayEntry {
    /// The address.
    pub ip: Ipv4Addr,
    /// The sender hardware address that the ARP message told.
    pub mac: MacAddr,
    /// The port that its frame came in on.
    pub port: PortId,
    /// When the entry goes.
    pub expires: Instant,
}

/// A (ip, mac, port) that the gateway held from `at` on.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct GatewayFact {
    /// When it was learned.
    pub at: Instant,
    /// The address.
    pub ip: Ipv4Addr,
    /// The MAC that was told.
    pub mac: MacAddr,
    /// The port that it was told on.
    pub port: PortId,
}

/// A frame that the gateway sends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Output {
    /// `None`: to all ports.
    pub(super) port: Option<PortId>,
    pub(super) bytes: Vec<u8>,
}

#[derive(Debug)]
struct Asking {
    next: Instant,
    tries_left: u8,
    packets: VecDeque<Vec<u8>>,
}

/// The gateway.
#[derive(Debug)]
pub(super) struct GatewayHost {
    network: Ipv4Net,
    ttl: Duration,
    entries: BTreeMap<Ipv4Addr, GatewayEntry>,
    history: Vec<GatewayFact>,
    asking: BTreeMap<Ipv4Addr, Asking>,
    output: VecDeque<Output>,
}

impl GatewayHost {
    pub(super) fn new(ttl: Duration) -> Self {
        Self {
            network: Ipv4Net::new_assert(GATEWAY_IP, 24),
            ttl,
            entries: BTreeMap::new(),
            history: Vec::new(),
            asking: BTreeMap::new(),
            output: VecDeque::new(),
        }
    }

    // ---- inputs ----

    /// A frame that came in on `port` and is for a group or for the gateway.
    pub(super) fn handle_frame(&mut self, port: PortId, bytes: &[u8], now: Instant) {
        if let Some(arp) = frame::arp(bytes) {
            self.handle_arp(port, arp, now);
        } else if frame::ipv4_addresses(bytes)
            .is_some_and(|(_, to, protocol)| to == GATEWAY_IP && protocol == IpNextHeaderProtocols::Icmp)
        {
            self.handle_echo(&bytes[14..], now);
        }
    }

    /// Sends an IPv4 packet of the gateway's own, after asking for the MAC where there is no entry.
    pub(super) fn handle_packet(&mut self, to: Ipv4Addr, packet: Vec<u8>, now: Instant) {
        self.expire_old(now);
        if let Some(entry) = self.entries.get(&to) {
            let header = Ethernet { destination: entry.mac, source: GATEWAY_MAC, ethertype: EtherTypes::Ipv4 };
            let bytes = frame::ethernet_frame(header, &packet);
            self.output.push_back(Output { port: Some(entry.port), bytes });
            return;
        }
        let asking = self.asking.entry(to).or_insert_with(|| Asking {
            next: now,
            tries_left: ASK_TRIES,
            packets: VecDeque::new(),
        });
        if asking.packets.len() < WAITING {
            asking.packets.push_back(packet);
        }
        self.handle_timeout(now);
    }

    /// Asks for `ip` by broadcast, whatever the table says (the switch's consistency check).
    pub(super) fn handle_ask(&mut self, ip: Ipv4Addr) {
        let arp = Arp {
            operation: ARP_REQUEST,
            sender_mac: GATEWAY_MAC,
            sender_ip: GATEWAY_IP,
            target_mac: MacAddr::zero(),
            target_ip: ip,
        };
        let bytes = frame::arp_frame(MacAddr::broadcast(), GATEWAY_MAC, arp);
        self.output.push_back(Output { port: None, bytes });
    }

    /// Drops the entry of `ip` as if its time were over. Whether there was one.
    pub(super) fn handle_expire(&mut self, ip: Ipv4Addr) -> bool {
        self.entries.remove(&ip).is_some()
    }

    /// The link of `port` went down: its entries go.
    pub(super) fn handle_link_down(&mut self, port: PortId) {
        self.entries.retain(|_, entry| entry.port != port);
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        let due: Vec<_> = self.asking.iter().filter(|(_, asking)| asking.next <= now).map(|(ip, _)| *ip).collect();
        for ip in due {
            let Some(asking) = self.asking.get_mut(&ip) else { continue };
            if asking.tries_left == 0 {
                self.asking.remove(&ip);
                continue;
            }
            asking.tries_left -= 1;
            asking.next = now + ASK_INTERVAL;
            self.handle_ask(ip);
        }
    }

    // ---- outputs ----

    /// The next frame to send. Pull until `None` after each input.
    pub(super) fn poll_output(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    /// When [`Self::handle_timeout`] is wanted.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        self.asking.values().map(|asking| asking.next).min()
    }

    pub(super) fn table(&self, now: Instant) -> Vec<GatewayEntry> {
        self.entries.values().filter(|entry| entry.expires > now).copied().collect()
    }

    pub(super) fn history(&self) -> &[GatewayFact] {
        &self.history
    }

    fn handle_arp(&mut self, port: PortId, arp: Arp, now: Instant) {
        let for_us = arp.target_ip == GATEWAY_IP;
        let teaches = match arp.form() {
            ArpForm::Probe => false,
            ArpForm::Request | ArpForm::Reply => for_us,
            ArpForm::AnnouncementRequest | ArpForm::AnnouncementReply => true,
        };
        let credible = self.network.contains(&arp.sender_ip) && arp.sender_ip != GATEWAY_IP;
        if teaches && credible {
            self.learn(GatewayFact { at: now, ip: arp.sender_ip, mac: arp.sender_mac, port });
        }
        if for_us && arp.operation == ARP_REQUEST {
            let answer = Arp {
                operation: ARP_REPLY,
                sender_mac: GATEWAY_MAC,
                sender_ip: GATEWAY_IP,
                target_mac: arp.sender_mac,
                target_ip: arp.sender_ip,
            };
            let bytes = frame::arp_frame(arp.sender_mac, GATEWAY_MAC, answer);
            self.output.push_back(Output { port: Some(port), bytes });
        }
    }

    fn learn(&mut self, fact: GatewayFact) {
        let GatewayFact { at, ip, mac, port } = fact;
        let old = self.entries.insert(ip, GatewayEntry { ip, mac, port, expires: at + self.ttl });
        if old.is_none_or(|old| (old.mac, old.port) != (mac, port)) {
            self.history.push(fact);
        }
        for packet in self.asking.remove(&ip).into_iter().flat_map(|asking| asking.packets) {
            self.handle_packet(ip, packet, at);
        }
    }

    fn expire_old(&mut self, now: Instant) {
        self.entries.retain(|_, entry| entry.expires > now);
    }

    fn handle_echo(&mut self, packet: &[u8], now: Instant) {
        let Some(outer) = Ipv4Packet::new(packet) else { return };
        let mut answer = outer.payload().to_vec();
        if IcmpPacket::new(&answer).is_none_or(|echo| echo.get_icmp_type() != IcmpTypes::EchoRequest) {
            return;
        }
        if let Some(mut echo) = MutableIcmpPacket::new(&mut answer) {
            echo.set_icmp_type(IcmpTypes::EchoReply);
            let checksum = icmp::checksum(&echo.to_immutable());
            echo.set_checksum(checksum);
        }
        let to = outer.get_source();
        let packet = frame::ip_packet(GATEWAY_IP, to, IpNextHeaderProtocols::Icmp, &answer);
        self.handle_packet(to, packet, now);
    }
}

/// A datagram of the gateway's own, from its port 4000.
pub(super) fn datagram(to: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    frame::udp_packet(SocketAddrV4::new(GATEWAY_IP, 4000), to, payload)
}

#[cfg(test)]
#[path = "gateway_tests.rs"]
mod tests;
