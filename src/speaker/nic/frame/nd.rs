//! Neighbour solicitations and advertisements (RFC 4861 sections 4.3 and 4.4), as Linux receivers want them.
//!
//! An advertisement without the override flag, or with the *source* link-layer address option, changes nothing at a receiver
//! that has an entry already.

use std::net::{IpAddr, Ipv6Addr};

use pnet_packet::{
    ethernet::EtherTypes,
    icmpv6::{
        Icmpv6Type, Icmpv6Types, MutableIcmpv6Packet,
        ndp::{
            MutableNeighborAdvertPacket, MutableNeighborSolicitPacket, NdpOptionType, NdpOptionTypes,
            NeighborAdvertFlags,
        },
    },
    ip::IpNextHeaderProtocols,
    ipv6::MutableIpv6Packet,
    util::ipv6_checksum,
};

use super::{Frame, HEADER, OwnMac};
use crate::speaker::wire::{
    MacAddr, Message,
    nd::{ALL_NODES, HOP_LIMIT, ethernet_group, solicited_node},
};

const IPV6_HEADER: usize = MutableIpv6Packet::minimum_packet_size();
/// Octets of a solicitation or an advertisement before its option.
const MESSAGE: usize = MutableNeighborSolicitPacket::minimum_packet_size();
/// Octets of a link-layer address option with an Ethernet address.
const OPTION: usize = 8;

/// Writes `message`, which is about `vip`; `None` if another address in it is not of IPv6.
pub(super) fn write(message: &Message, vip: Ipv6Addr, own: OwnMac) -> Option<Frame> {
    let target = Target::of(message, vip)?;
    let option = if target.option.is_some() { OPTION } else { 0 };
    let mut frame = Frame::new(HEADER + IPV6_HEADER + MESSAGE + option, target.to_mac, own, EtherTypes::Ipv6);
    // The payload is as long as its parts together, so none of the branches below is ever skipped.
    let (header, icmp) = frame.payload().split_at_mut_checked(IPV6_HEADER)?;
    let mut ip = MutableIpv6Packet::new(header)?;
    ip.set_version(6);
    ip.set_payload_length(u16::try_from(icmp.len()).ok()?);
    ip.set_next_header(IpNextHeaderProtocols::Icmpv6);
    ip.set_hop_limit(HOP_LIMIT);
    ip.set_source(target.source);
    ip.set_destination(target.destination);
    match target.kind {
        Kind::Solicitation => MutableNeighborSolicitPacket::new(icmp)?.set_target_addr(vip),
        Kind::Advertisement { flags } => {
            let mut advertisement = MutableNeighborAdvertPacket::new(icmp)?;
            advertisement.set_flags(flags);
            advertisement.set_target_addr(vip);
        }
    }
    if let Some(kind) = target.option {
        let (_, option) = icmp.split_at_mut_checked(MESSAGE)?;
        let MacAddr(a, b, c, d, e, f) = own.0;
        // Its length is counted in units of eight octets.
        option.copy_from_slice(&[kind.0, 1, a, b, c, d, e, f]);
    }
    MutableIcmpv6Packet::new(icmp)?.set_icmpv6_type(target.kind.icmpv6_type());
    let checksum =
        ipv6_checksum(icmp, usize::MAX, &[], &target.source, &target.destination, IpNextHeaderProtocols::Icmpv6);
    MutableIcmpv6Packet::new(icmp)?.set_checksum(checksum);
    Some(frame)
}

#[derive(Clone, Copy)]
enum Kind {
    Solicitation,
    Advertisement { flags: u8 },
}

impl Kind {
    fn icmpv6_type(self) -> Icmpv6Type {
        match self {
            Self::Solicitation => Icmpv6Types::NeighborSolicit,
            Self::Advertisement { .. } => Icmpv6Types::NeighborAdvert,
        }
    }
}

/// All that differs between the messages: to whom, and about what. Never from whom.
struct Target {
    to_mac: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: Kind,
    /// In which option the MAC address of the NIC stands.
    option: Option<NdpOptionType>,
}

impl Target {
    fn of(message: &Message, vip: Ipv6Addr) -> Option<Self> {
        let group = solicited_node(vip);
        Some(match *message {
            // Who probes has no address to answer to but that of all nodes (RFC 4861 section 7.2.4). The frame goes to the prober
            // alone: what everybody hears is a claim, and two owners that defend against one probe make each other yield.
            Message::Answer { to_mac, to_ip, .. } if to_ip.is_unspecified() => {
                ipv6(to_ip)?;
                Self::advertisement(vip, to_mac, ALL_NODES, 0)
            }
            Message::Answer { to_mac, to_ip, .. } => {
                Self::advertisement(vip, to_mac, ipv6(to_ip)?, NeighborAdvertFlags::Solicited)
            }
            Message::Announcement { .. } => Self::advertisement(vip, ethernet_group(ALL_NODES), ALL_NODES, 0),
            Message::Probe { to, .. } => {
                Self::solicitation(to.unwrap_or(ethernet_group(group)), Ipv6Addr::UNSPECIFIED, group)
            }
            // To the group, although the frame goes to one NIC: the kernel of a node that forwards takes a packet for the virtual IP
            // itself, which it does not have, for one to be forwarded, and asks the LAN for it.
            Message::Request { to, from, .. } => Self::solicitation(to, ipv6(from)?, group),
        })
    }

    fn advertisement(vip: Ipv6Addr, to_mac: MacAddr, destination: Ipv6Addr, flags: u8) -> Self {
        let kind = Kind::Advertisement { flags: flags | NeighborAdvertFlags::Override };
        Self { to_mac, source: vip, destination, kind, option: Some(NdpOptionTypes::TargetLLAddr) }
    }

    fn solicitation(to_mac: MacAddr, source: Ipv6Addr, destination: Ipv6Addr) -> Self {
        // Without a source address there is nothing that a link-layer address could belong to (RFC 4861 section 4.3).
        let option = (!source.is_unspecified()).then_some(NdpOptionTypes::SourceLLAddr);
        Self { to_mac, source, destination, kind: Kind::Solicitation, option }
    }
}

fn ipv6(address: IpAddr) -> Option<Ipv6Addr> {
    match address {
        IpAddr::V6(address) => Some(address),
        IpAddr::V4(_) => None,
    }
}
