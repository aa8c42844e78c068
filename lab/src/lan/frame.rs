//! Frames as the lab reads and builds them: Ethernet, ARP, UDP. (Neighbour discovery is in [`super::nd`].)

use std::net::{Ipv4Addr, SocketAddr, SocketAddrV4};

use pnet_base::MacAddr;
use pnet_packet::Packet;
use pnet_packet::arp::{ArpHardwareTypes, ArpOperation, ArpOperations, ArpPacket, MutableArpPacket};
use pnet_packet::ethernet::{EtherType, EtherTypes, EthernetPacket, MutableEthernetPacket};
use pnet_packet::ip::{IpNextHeaderProtocol, IpNextHeaderProtocols};
use pnet_packet::ipv4::{self, Ipv4Packet, MutableIpv4Packet};
use pnet_packet::ipv6::Ipv6Packet;
use pnet_packet::udp::{self, MutableUdpPacket, UdpPacket};

const ETHERNET_HEADER: usize = 14;
const IPV4_HEADER: usize = 20;
const IPV6_HEADER: usize = 40;
const UDP_HEADER: usize = 8;
const ARP_LENGTH: usize = 28;

/// The Ethernet header of a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ethernet {
    /// Destination.
    pub destination: MacAddr,
    /// Source: what a switch learns from.
    pub source: MacAddr,
    /// The payload's type.
    pub ethertype: EtherType,
}

/// Reads the Ethernet header; `None` if the frame is shorter than that.
pub fn ethernet(frame: &[u8]) -> Option<Ethernet> {
    let packet = EthernetPacket::new(frame)?;
    Some(Ethernet {
        destination: packet.get_destination(),
        source: packet.get_source(),
        ethertype: packet.get_ethertype(),
    })
}

/// Whether the group bit is set (broadcast is a group, too).
pub fn is_group(mac: MacAddr) -> bool {
    mac.0 & 1 == 1
}

/// Puts an Ethernet header before `payload`.
pub fn ethernet_frame(header: Ethernet, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; ETHERNET_HEADER + payload.len()];
    if let Some(mut packet) = MutableEthernetPacket::new(&mut bytes) {
        packet.set_destination(header.destination);
        packet.set_source(header.source);
        packet.set_ethertype(header.ethertype);
        packet.set_payload(payload);
    }
    bytes
}

/// An ARP message for IPv4 over Ethernet (RFC 826).
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Arp {
    /// 1 request, 2 reply.
    pub operation: u16,
    /// Sender hardware address.
    pub sender_mac: MacAddr,
    /// Sender protocol address.
    pub sender_ip: Ipv4Addr,
    /// Target hardware address.
    pub target_mac: MacAddr,
    /// Target protocol address.
    pub target_ip: Ipv4Addr,
}

/// What an ARP message is for (RFC 5227's words).
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum ArpForm {
    /// Asks whether an address is in use; claims nothing (sender address 0.0.0.0).
    Probe,
    /// Asks for an address.
    Request,
    /// Tells everyone, as a request whose sender and target address are the same.
    AnnouncementRequest,
    /// Tells everyone, as a reply.
    AnnouncementReply,
    /// Answers who asked.
    Reply,
}

impl ArpForm {
    /// Whether it tells everyone where an address is.
    pub fn is_announcement(self) -> bool {
        matches!(self, Self::AnnouncementRequest | Self::AnnouncementReply)
    }
}

impl Arp {
    /// What this message is for.
    pub fn form(&self) -> ArpForm {
        match (self.operation, self.sender_ip) {
            (1, Ipv4Addr::UNSPECIFIED) => ArpForm::Probe,
            (1, sender) if sender == self.target_ip => ArpForm::AnnouncementRequest,
            (1, _) => ArpForm::Request,
            (_, sender) if sender == self.target_ip => ArpForm::AnnouncementReply,
            _ => ArpForm::Reply,
        }
    }

    /// Whether it tells everyone where the sender address is.
    pub fn is_announcement(&self) -> bool {
        self.form().is_announcement()
    }
}

/// Reads an ARP frame; `None` for everything else.
pub fn arp(frame: &[u8]) -> Option<Arp> {
    let outer = EthernetPacket::new(frame)?;
    if outer.get_ethertype() != EtherTypes::Arp {
        return None;
    }
    let packet = ArpPacket::new(outer.payload())?;
    let is_ipv4_over_ethernet = packet.get_hardware_type() == ArpHardwareTypes::Ethernet
        && packet.get_protocol_type() == EtherTypes::Ipv4
        && packet.get_hw_addr_len() == 6
        && packet.get_proto_addr_len() == 4;
    is_ipv4_over_ethernet.then(|| Arp {
        operation: packet.get_operation().0,
        sender_mac: packet.get_sender_hw_addr(),
        sender_ip: packet.get_sender_proto_addr(),
        target_mac: packet.get_target_hw_addr(),
        target_ip: packet.get_target_proto_addr(),
    })
}

/// Builds an ARP frame. Nothing ties its Ethernet source to its sender: wrong frames are what a test needs.
pub fn arp_frame(destination: MacAddr, source: MacAddr, arp: Arp) -> Vec<u8> {
    let mut payload = [0; ARP_LENGTH];
    if let Some(mut packet) = MutableArpPacket::new(&mut payload) {
        packet.set_hardware_type(ArpHardwareTypes::Ethernet);
        packet.set_protocol_type(EtherTypes::Ipv4);
        packet.set_hw_addr_len(6);
        packet.set_proto_addr_len(4);
        packet.set_operation(ArpOperation(arp.operation));
        packet.set_sender_hw_addr(arp.sender_mac);
        packet.set_sender_proto_addr(arp.sender_ip);
        packet.set_target_hw_addr(arp.target_mac);
        packet.set_target_proto_addr(arp.target_ip);
    }
    ethernet_frame(Ethernet { destination, source, ethertype: EtherTypes::Arp }, &payload)
}

/// ARP request (1) and reply (2) as numbers.
pub const ARP_REQUEST: u16 = ArpOperations::Request.0;
/// See [`ARP_REQUEST`].
pub const ARP_REPLY: u16 = ArpOperations::Reply.0;

/// A UDP datagram. The payload may be cut off where the frame was recorded.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Udp<'a> {
    /// Source address and port.
    pub source: SocketAddr,
    /// Destination address and port.
    pub destination: SocketAddr,
    /// What is there of the payload.
    pub payload: &'a [u8],
}

/// The source and destination address of an IPv4 frame, and the protocol inside; `None` for everything else.
pub fn ipv4_addresses(frame: &[u8]) -> Option<(Ipv4Addr, Ipv4Addr, IpNextHeaderProtocol)> {
    let packet = ipv4_packet(frame)?;
    Some((packet.get_source(), packet.get_destination(), packet.get_next_level_protocol()))
}

/// Reads a UDP datagram over IPv4 or IPv6 (without extension headers); `None` for everything else.
pub fn udp(frame: &[u8]) -> Option<Udp<'_>> {
    let (source, destination, header) = match (ipv4_packet(frame), ipv6_packet(frame)) {
        (Some(packet), _) if packet.get_next_level_protocol() == IpNextHeaderProtocols::Udp => {
            let header = usize::from(packet.get_header_length()) * 4;
            (packet.get_source().into(), packet.get_destination().into(), header)
        }
        (_, Some(packet)) if packet.get_next_header() == IpNextHeaderProtocols::Udp => {
            (packet.get_source().into(), packet.get_destination().into(), IPV6_HEADER)
        }
        _ => return None,
    };
    let datagram = frame.get(ETHERNET_HEADER + header..)?;
    let inner = UdpPacket::new(datagram)?;
    Some(Udp {
        source: SocketAddr::new(source, inner.get_source()),
        destination: SocketAddr::new(destination, inner.get_destination()),
        payload: datagram.get(UDP_HEADER..)?,
    })
}

fn ipv6_packet(frame: &[u8]) -> Option<Ipv6Packet<'_>> {
    (ethernet(frame)?.ethertype == EtherTypes::Ipv6).then(|| Ipv6Packet::new(frame.get(ETHERNET_HEADER..)?)).flatten()
}

fn ipv4_packet(frame: &[u8]) -> Option<Ipv4Packet<'_>> {
    (ethernet(frame)?.ethertype == EtherTypes::Ipv4).then(|| Ipv4Packet::new(frame.get(ETHERNET_HEADER..)?)).flatten()
}

/// Builds an IPv4 packet (without Ethernet header) with a UDP datagram inside.
pub fn udp_packet(source: SocketAddrV4, destination: SocketAddrV4, payload: &[u8]) -> Vec<u8> {
    let mut datagram = vec![0; UDP_HEADER + payload.len()];
    if let Some(mut packet) = MutableUdpPacket::new(&mut datagram) {
        packet.set_source(source.port());
        packet.set_destination(destination.port());
        packet.set_length(u16::try_from(UDP_HEADER + payload.len()).unwrap_or(u16::MAX));
        packet.set_payload(payload);
        let checksum = udp::ipv4_checksum(&packet.to_immutable(), source.ip(), destination.ip());
        packet.set_checksum(checksum);
    }
    ip_packet(*source.ip(), *destination.ip(), IpNextHeaderProtocols::Udp, &datagram)
}

/// Builds an IPv4 packet without options and with TTL 64.
pub fn ip_packet(source: Ipv4Addr, destination: Ipv4Addr, protocol: IpNextHeaderProtocol, payload: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; IPV4_HEADER + payload.len()];
    let length = u16::try_from(bytes.len()).unwrap_or(u16::MAX);
    if let Some(mut packet) = MutableIpv4Packet::new(&mut bytes) {
        packet.set_version(4);
        packet.set_header_length(5);
        packet.set_total_length(length);
        packet.set_ttl(64);
        packet.set_next_level_protocol(protocol);
        packet.set_source(source);
        packet.set_destination(destination);
        packet.set_payload(payload);
        let checksum = ipv4::checksum(&packet.to_immutable());
        packet.set_checksum(checksum);
    }
    bytes
}
