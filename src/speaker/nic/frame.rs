//! The only place where a frame comes into being.
//!
//! A child of the NIC, because only there is an [`OwnMac`]: the address that the kernel gave for the very socket that the
//! frame leaves through. It is taken once and put wherever a frame names its sender.

use std::net::{IpAddr, Ipv4Addr};

use pnet_packet::{
    arp::{ArpHardwareTypes, ArpOperation, ArpOperations, MutableArpPacket},
    ethernet::{EtherTypes, MutableEthernetPacket},
};

use crate::speaker::wire::{AnnouncementForm, MacAddr, Message, arp::FRAME_LENGTH};

/// A frame ready to be sent.
pub(super) type Frame = [u8; FRAME_LENGTH];

/// The MAC address of an open NIC. Its field is this file's, and the NIC alone makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnMac(MacAddr);

impl OwnMac {
    /// For the NIC, with what its bound socket says.
    pub(super) fn of_bound_socket(mac: MacAddr) -> Self {
        Self(mac)
    }

    pub(super) fn get(self) -> MacAddr {
        self.0
    }
}

/// Writes `message` as the NIC with the address `own` sends it; `None` for an address family that has no frame.
pub(super) fn write(message: &Message, own: OwnMac) -> Option<Frame> {
    Target::of(message, own).map(|target| write_arp(&target, own))
}

fn write_arp(target: &Target, own: OwnMac) -> Frame {
    let mut frame: Frame = [0; FRAME_LENGTH];
    let (header, payload) = frame.split_at_mut(MutableEthernetPacket::minimum_packet_size());
    // Both buffers have exactly the sizes that pnet asks for, so neither branch is ever skipped: FRAME_LENGTH is their sum.
    if let Some(mut ethernet) = MutableEthernetPacket::new(header) {
        ethernet.set_destination(target.destination);
        ethernet.set_source(own.0);
        ethernet.set_ethertype(EtherTypes::Arp);
    }
    if let Some(mut arp) = MutableArpPacket::new(payload) {
        arp.set_hardware_type(ArpHardwareTypes::Ethernet);
        arp.set_protocol_type(EtherTypes::Ipv4);
        arp.set_hw_addr_len(6);
        arp.set_proto_addr_len(4);
        arp.set_operation(target.operation);
        arp.set_sender_hw_addr(own.0);
        arp.set_sender_proto_addr(target.sender_ip);
        arp.set_target_hw_addr(target.target_mac);
        arp.set_target_proto_addr(target.target_ip);
    }
    frame
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
    /// `None` if an address in the message is not of IPv4.
    fn of(message: &Message, own: OwnMac) -> Option<Self> {
        let vip = ipv4(message.vip())?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::wire::{Operation, arp};
    use proptest::prelude::*;

    const M: OwnMac = OwnMac(MacAddr(2, 0, 0, 0, 1, 1));
    const CLIENT: MacAddr = MacAddr(2, 0, 0, 0, 0xcc, 3);
    const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 64));

    #[rustfmt::skip]
    #[test]
    fn frames_are_these_octets() {
        let reply = Message::Answer { vip: VIP, to_mac: CLIENT, to_ip: Ipv4Addr::new(192, 0, 2, 3).into() };
        assert_eq!(write(&reply, M).unwrap(), [
            0x02, 0, 0, 0, 0xcc, 3, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2,
            0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64, 0x02, 0, 0, 0, 0xcc, 3, 192, 0, 2, 3,
        ]);
        let request_form = Message::Announcement { vip: VIP, form: AnnouncementForm::Request };
        assert_eq!(write(&request_form, M).unwrap(), [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1,
            0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64, 0, 0, 0, 0, 0, 0, 192, 0, 2, 64,
        ]);
        let reply_form = Message::Announcement { vip: VIP, form: AnnouncementForm::Reply };
        assert_eq!(write(&reply_form, M).unwrap(), [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2,
            0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64, 0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64,
        ]);
        assert_eq!(write(&Message::Probe { vip: VIP, to: None }, M).unwrap(), [
            0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1,
            0x02, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 64,
        ]);
        assert_eq!(write(&Message::Probe { vip: VIP, to: Some(CLIENT) }, M).unwrap()[..6], CLIENT.octets());
        assert_eq!(write(&Message::Request { vip: VIP, to: CLIENT, from: Ipv4Addr::new(192, 0, 2, 11).into() }, M).unwrap(), [
            0x02, 0, 0, 0, 0xcc, 3, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1,
            0x02, 0, 0, 0, 1, 1, 192, 0, 2, 11, 0, 0, 0, 0, 0, 0, 192, 0, 2, 64,
        ]);
    }

    fn any_mac() -> impl Strategy<Value = MacAddr> {
        any::<[u8; 6]>().prop_map(MacAddr::from)
    }

    fn any_message() -> impl Strategy<Value = Message> {
        let ip = || any::<[u8; 4]>().prop_map(IpAddr::from);
        let form = prop_oneof![Just(AnnouncementForm::Request), Just(AnnouncementForm::Reply)];
        prop_oneof![
            (ip(), any_mac(), ip()).prop_map(|(vip, to_mac, to_ip)| Message::Answer { vip, to_mac, to_ip }),
            (ip(), form).prop_map(|(vip, form)| Message::Announcement { vip, form }),
            (ip(), proptest::option::of(any_mac())).prop_map(|(vip, to)| Message::Probe { vip, to }),
            (ip(), any_mac(), ip()).prop_map(|(vip, to, from)| Message::Request { vip, to, from }),
        ]
    }

    proptest! {
        /// The promise that the project stands on: no frame names another sender than the NIC that it leaves through.
        #[test]
        fn every_frame_comes_from_the_nic_that_it_names(message in any_message(), own in any_mac()) {
            let frame = write(&message, OwnMac(own)).unwrap();
            prop_assert_eq!(&frame[6..12], &own.octets(), "Ethernet source");
            prop_assert_eq!(&frame[22..28], &own.octets(), "sender hardware address");
            if matches!(message, Message::Announcement { form: AnnouncementForm::Reply, .. }) {
                prop_assert_eq!(&frame[32..38], &own.octets(), "target hardware address");
            }
        }

        #[test]
        fn another_speaker_reads_what_was_meant(message in any_message()) {
            let own = OwnMac(MacAddr(2, 0, 0, 0, 1, 1));
            let frame = write(&message, own).unwrap();
            let receiver = MacAddr::from(<[u8; 6]>::try_from(&frame[..6]).unwrap());
            let packet = arp::read(&frame, if receiver.is_broadcast() { CLIENT } else { receiver });
            // A frame to the sender itself comes back as its own.
            prop_assume!(receiver != own.get());
            let packet = packet.unwrap();
            prop_assert_eq!(packet.sender_mac, own.get());
            match message {
                Message::Answer { vip, to_ip, .. } => {
                    prop_assert_eq!((packet.operation, packet.sender_ip, packet.target_ip), (Operation::Reply, vip, to_ip));
                }
                Message::Announcement { vip, .. } => {
                    prop_assert_eq!(packet.is_announcement(), !vip.is_unspecified());
                    prop_assert_eq!(packet.sender_ip, vip);
                }
                Message::Probe { vip, to } => {
                    prop_assert!(packet.is_probe());
                    prop_assert_eq!(packet.target_ip, vip);
                    prop_assert!(to.is_some() || packet.broadcast);
                }
                Message::Request { vip, to, from } => {
                    prop_assert_eq!((packet.operation, packet.sender_ip, packet.target_ip), (Operation::Request, from, vip));
                    prop_assert!(packet.broadcast == to.is_broadcast());
                }
            }
        }
    }
}
