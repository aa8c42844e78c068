//! Neighbour discovery as a speaker reads it (RFC 4861): neighbour solicitations and advertisements, checked once, here, and
//! then plain values.
//!
//! A solicitation is a request, an advertisement a reply. What ARP says by its two sender addresses, an advertisement says by
//! its target: "the target is at this MAC address". One that went to everybody is a claim.

use std::net::Ipv6Addr;

use pnet_packet::{
    Packet as _,
    ethernet::{EtherTypes, EthernetPacket},
    icmpv6::{
        Icmpv6Packet, Icmpv6Types,
        ndp::{NdpOptionType, NdpOptionTypes, NeighborAdvertFlags, NeighborAdvertPacket, NeighborSolicitPacket},
    },
    ip::IpNextHeaderProtocols,
    ipv6::Ipv6Packet,
    util::ipv6_checksum,
};

use super::{LONGEST_FRAME, MacAddr, Operation, Packet};
use crate::speaker::drop_reason::DropReason;

/// Octets of the longest frame that a speaker sends: Ethernet, IPv6, and a message with one link-layer address option.
pub const FRAME_LENGTH: usize = 86;
/// All nodes on the link (RFC 4291 section 2.7.1).
pub const ALL_NODES: Ipv6Addr = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1);
/// A message that came from another link would have lost some of it (RFC 4861 section 7.1).
pub const HOP_LIMIT: u8 = 255;
/// Octets of a neighbour solicitation or advertisement before its options.
const MESSAGE: usize = 24;
/// Options are counted in units of so many octets.
const OPTION_UNIT: usize = 8;

/// The group in which whoever has `address` listens for solicitations (RFC 4291 section 2.7.1).
pub fn solicited_node(address: Ipv6Addr) -> Ipv6Addr {
    let [.., a, b, c] = address.octets();
    Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff00 | u16::from(a), u16::from_be_bytes([b, c]))
}

/// The Ethernet address of an IPv6 multicast group (RFC 2464 section 7).
pub fn ethernet_group(group: Ipv6Addr) -> MacAddr {
    let [.., a, b, c, d] = group.octets();
    MacAddr(0x33, 0x33, a, b, c, d)
}

/// Reads a frame that came in on the NIC whose MAC address is `own`. Any input is safe; padding is ignored.
///
/// # Errors
/// The one reason why the frame is of no use.
pub fn read(frame: &[u8], own: MacAddr) -> Result<Packet, DropReason> {
    let ethernet = EthernetPacket::new(frame).ok_or(DropReason::EthernetTruncated)?;
    if frame.len() > LONGEST_FRAME {
        return Err(DropReason::Oversized);
    }
    if ethernet.get_ethertype() != EtherTypes::Ipv6 {
        return Err(DropReason::NotIpv6);
    }
    let ip = Ipv6Packet::new(ethernet.payload()).ok_or(DropReason::Ipv6Truncated)?;
    let message = message_of(&ip)?;
    let destination = ip.get_destination();
    let broadcast = match ethernet.get_destination() {
        mac if mac == own => false,
        // Some switches send to everybody what they do not know the members of.
        mac if destination.is_multicast() && (mac == ethernet_group(destination) || mac.is_broadcast()) => true,
        _ => return Err(DropReason::Destination),
    };
    let (source, sender_in_ethernet) = (ip.get_source(), ethernet.get_source());
    // As Linux does, which takes an advertisement from `::`: a rival's must not go unseen.
    if source.is_multicast() || source.is_loopback() {
        return Err(DropReason::Ipv6Source);
    }
    let packet = match message {
        Message::Solicitation(solicitation) => {
            let target = target_in_order(solicitation.get_target_addr())?;
            let option = link_layer_address(solicitation.packet(), NdpOptionTypes::SourceLLAddr)?;
            if source.is_unspecified() {
                if option.is_some() {
                    return Err(DropReason::NdSourceOption);
                }
                // Only a solicited-node group is that of its own last octets.
                if destination != solicited_node(destination) {
                    return Err(DropReason::NdProbeDestination);
                }
            }
            Packet {
                operation: Operation::Request,
                broadcast,
                sender_mac: option.unwrap_or(sender_in_ethernet),
                sender_ip: source.into(),
                target_ip: target.into(),
            }
        }
        Message::Advertisement(advertisement) => {
            let target = target_in_order(advertisement.get_target_addr())?;
            let option = link_layer_address(advertisement.packet(), NdpOptionTypes::TargetLLAddr)?;
            if destination.is_multicast() && advertisement.get_flags() & NeighborAdvertFlags::Solicited != 0 {
                return Err(DropReason::NdSolicited);
            }
            // A node's kernel that has the address itself defends it against our probes before everybody. It forwards, and says
            // so by the router flag, which no speaker sets: it answers, and claims nothing that a speaker would yield to.
            let is_of_kernel = advertisement.get_flags() & NeighborAdvertFlags::Router != 0;
            let broadcast = broadcast && !is_of_kernel;
            let to_everybody = broadcast && destination == ALL_NODES;
            Packet {
                operation: Operation::Reply,
                broadcast,
                sender_mac: option.unwrap_or(sender_in_ethernet),
                sender_ip: target.into(),
                target_ip: if to_everybody { target.into() } else { destination.into() },
            }
        }
    };
    if packet.sender_mac == own {
        return Err(DropReason::OwnFrame);
    }
    if packet.sender_mac.is_zero() || packet.sender_mac.is_multicast() {
        return Err(DropReason::SenderMac);
    }
    Ok(packet)
}

enum Message<'a> {
    Solicitation(NeighborSolicitPacket<'a>),
    Advertisement(NeighborAdvertPacket<'a>),
}

/// The message in an IPv6 packet, by the rules that solicitations and advertisements share.
fn message_of<'a>(ip: &'a Ipv6Packet<'_>) -> Result<Message<'a>, DropReason> {
    if ip.get_version() != 6 {
        return Err(DropReason::Ipv6Version);
    }
    // Behind a fragment header neighbour discovery is to be ignored (RFC 6980), and nobody sends it behind any other.
    if ip.get_next_header() != IpNextHeaderProtocols::Icmpv6 {
        return Err(DropReason::NotIcmpv6);
    }
    let length = usize::from(ip.get_payload_length());
    // pnet cuts the payload where the packet ends, and where the header says so.
    let octets = match ip.packet().get(Ipv6Packet::minimum_packet_size()..) {
        Some(rest) if rest.len() >= length => rest.get(..length).unwrap_or_default(),
        _ => return Err(DropReason::Ipv6Length),
    };
    let icmp = Icmpv6Packet::new(octets).ok_or(DropReason::NdTruncated)?;
    let is_solicitation = match icmp.get_icmpv6_type() {
        Icmpv6Types::NeighborSolicit => true,
        Icmpv6Types::NeighborAdvert => false,
        _ => return Err(DropReason::Icmpv6Type),
    };
    if octets.len() < MESSAGE {
        return Err(DropReason::NdTruncated);
    }
    if ip.get_hop_limit() != HOP_LIMIT {
        return Err(DropReason::HopLimit);
    }
    if icmp.get_icmpv6_code().0 != 0 {
        return Err(DropReason::Icmpv6Code);
    }
    // Summed up with the checksum in it, so that both zeros that ones' complement has are right.
    if ipv6_checksum(octets, usize::MAX, &[], &ip.get_source(), &ip.get_destination(), IpNextHeaderProtocols::Icmpv6)
        != 0
    {
        return Err(DropReason::Checksum);
    }
    if is_solicitation {
        NeighborSolicitPacket::new(octets).map(Message::Solicitation)
    } else {
        NeighborAdvertPacket::new(octets).map(Message::Advertisement)
    }
    .ok_or(DropReason::NdTruncated)
}

fn target_in_order(target: Ipv6Addr) -> Result<Ipv6Addr, DropReason> {
    if target.is_multicast() || target.is_unspecified() { Err(DropReason::NdTarget) } else { Ok(target) }
}

/// The first link-layer address option of the kind `wanted`, if there is one. All options are walked through, so that one
/// that lies about its length spoils the message wherever it stands. pnet's own reader of options is not used: it
/// overflows where an option says that it is longer than 248 octets.
fn link_layer_address(message: &[u8], wanted: NdpOptionType) -> Result<Option<MacAddr>, DropReason> {
    let mut options = message.get(MESSAGE..).unwrap_or_default();
    let mut found = None;
    while let [kind, units, ..] = *options {
        if units == 0 {
            return Err(DropReason::NdOptionZero);
        }
        let Some((option, rest)) = options.split_at_checked(usize::from(units) * OPTION_UNIT) else {
            return Err(DropReason::NdOptionTruncated);
        };
        if kind == wanted.0 && found.is_none() {
            match *option {
                [_, _, a, b, c, d, e, f] => found = Some(MacAddr(a, b, c, d, e, f)),
                _ => return Err(DropReason::NdLinkLayerLength),
            }
        }
        options = rest;
    }
    if options.is_empty() { Ok(found) } else { Err(DropReason::NdOptionTruncated) }
}

#[cfg(test)]
#[path = "nd_tests.rs"]
mod tests;
