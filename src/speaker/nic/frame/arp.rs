//! ARP packets (RFC 826), in the forms that RFC 5227 gives them.

use std::net::{IpAddr, Ipv4Addr};

use pnet_packet::{
    arp::{ArpHardwareTypes, ArpOperation, ArpOperations, MutableArpPacket},
    ethernet::EtherTypes,
};

use super::{Frame, OwnMac};
use crate::speaker::wire::{AnnouncementForm, MacAddr, Message, arp::FRAME_LENGTH};

/// Writes `message`, which is about `vip`; `None` if another address in it is not of IPv4.
pub(super) fn write(message: &Message, vip: Ipv4Addr, own: OwnMac) -> Option<Frame> {
    let target = Target::of(message, vip, own)?;
    let mut frame = Frame::new(FRAME_LENGTH, target.destination, own, EtherTypes::Arp);
    // The payload has exactly the size that pnet asks for.
    let mut arp = MutableArpPacket::new(frame.payload())?;
    arp.set_hardware_type(ArpHardwareTypes::Ethernet);
    arp.set_protocol_type(EtherTypes::Ipv4);
    arp.set_hw_addr_len(6);
    arp.set_proto_addr_len(4);
    arp.set_operation(target.operation);
    arp.set_sender_hw_addr(own.0);
    arp.set_sender_proto_addr(target.sender_ip);
    arp.set_target_hw_addr(target.target_mac);
    arp.set_target_proto_addr(target.target_ip);
    Some(frame)
}

/// All that differs between the messages: to whom, and about what. Never from whom.
struct Target {
    destination: MacAddr,
    operation: ArpOperation,
    sender_ip: Ipv4Addr,
    target_mac: MacAddr,
    target_ip: Ipv4Addr,
}

impl Target {
    fn of(message: &Message, vip: Ipv4Addr, own: OwnMac) -> Option<Self> {
        Some(match *message {
            Message::Answer { to_mac, to_ip, .. } => Self {
                destination: to_mac,
                operation: ArpOperations::Reply,
                sender_ip: vip,
                target_mac: to_mac,
                target_ip: ipv4(to_ip)?,
            },
            Message::Announcement { form, .. } => Self {
                destination: MacAddr::broadcast(),
                operation: match form {
                    AnnouncementForm::Request => ArpOperations::Request,
                    AnnouncementForm::Reply => ArpOperations::Reply,
                },
                sender_ip: vip,
                target_mac: match form {
                    AnnouncementForm::Request => MacAddr::zero(),
                    AnnouncementForm::Reply => own.0,
                },
                target_ip: vip,
            },
            Message::Probe { to, .. } => Self {
                destination: to.unwrap_or(MacAddr::broadcast()),
                operation: ArpOperations::Request,
                sender_ip: Ipv4Addr::UNSPECIFIED,
                target_mac: MacAddr::zero(),
                target_ip: vip,
            },
            Message::Request { to, from, .. } => Self {
                destination: to,
                operation: ArpOperations::Request,
                sender_ip: ipv4(from)?,
                target_mac: MacAddr::zero(),
                target_ip: vip,
            },
        })
    }
}

fn ipv4(address: IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(address),
        IpAddr::V6(_) => None,
    }
}
