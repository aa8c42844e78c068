//! ARP packets as a speaker reads them (RFC 826): checked once, here, and then plain values.

use pnet_packet::{
    Packet as _,
    arp::{ArpHardwareTypes, ArpOperations, ArpPacket},
    ethernet::{EtherTypes, EthernetPacket},
};

use super::{LONGEST_FRAME, MacAddr, Operation, Packet};
use crate::speaker::drop_reason::DropReason;

/// Octets of a frame with an ARP packet for IPv4, without padding.
pub const FRAME_LENGTH: usize = 42;

/// Reads a frame that came in on the NIC whose MAC address is `own`. Any input is safe; padding is ignored.
///
/// # Errors
/// The one reason why the frame is of no use.
pub fn read(frame: &[u8], own: MacAddr) -> Result<Packet, DropReason> {
    let ethernet = EthernetPacket::new(frame).ok_or(DropReason::EthernetTruncated)?;
    if frame.len() > LONGEST_FRAME {
        return Err(DropReason::Oversized);
    }
    if ethernet.get_ethertype() != EtherTypes::Arp {
        return Err(DropReason::NotArp);
    }
    let destination = ethernet.get_destination();
    let broadcast = destination.is_broadcast();
    if !broadcast && destination != own {
        return Err(DropReason::Destination);
    }
    let arp = ArpPacket::new(ethernet.payload()).ok_or(DropReason::ArpTruncated)?;
    if arp.get_hardware_type() != ArpHardwareTypes::Ethernet {
        return Err(DropReason::HardwareType);
    }
    if arp.get_protocol_type() != EtherTypes::Ipv4 {
        return Err(DropReason::ProtocolType);
    }
    if arp.get_hw_addr_len() != 6 {
        return Err(DropReason::HardwareLength);
    }
    if arp.get_proto_addr_len() != 4 {
        return Err(DropReason::ProtocolLength);
    }
    let operation = match arp.get_operation() {
        ArpOperations::Request => Operation::Request,
        ArpOperations::Reply => Operation::Reply,
        _ => return Err(DropReason::Operation),
    };
    let sender_mac = arp.get_sender_hw_addr();
    if sender_mac == own {
        return Err(DropReason::OwnFrame);
    }
    if sender_mac.is_zero() || sender_mac.is_multicast() {
        return Err(DropReason::SenderMac);
    }
    Ok(Packet {
        operation,
        broadcast,
        sender_mac,
        sender_ip: arp.get_sender_proto_addr().into(),
        target_ip: arp.get_target_proto_addr().into(),
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::net::Ipv4Addr;

    const OWN: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);

    /// "Who has 192.0.2.64? Tell 192.0.2.3", as a client sends it to everybody.
    const REQUEST: [u8; 42] = [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0x00, 0x00, 0x00, 0xcc, 0x03, 0x08, 0x06, // Ethernet
        0x00, 0x01, 0x08, 0x00, 0x06, 0x04, 0x00, 0x01, // Ethernet, IPv4, 6, 4, request
        0x02, 0x00, 0x00, 0x00, 0xcc, 0x03, 0xc0, 0x00, 0x02, 0x03, // sender
        0x00, 0x00, 0x00, 0x00, 0x00, 0x00, 0xc0, 0x00, 0x02, 0x40, // target
    ];

    fn with(changes: &[(usize, u8)]) -> Vec<u8> {
        let mut frame = REQUEST.to_vec();
        for (at, value) in changes {
            frame[*at] = *value;
        }
        frame
    }

    #[test]
    fn a_request_is_read() {
        let expected = Packet {
            operation: Operation::Request,
            broadcast: true,
            sender_mac: MacAddr(2, 0, 0, 0, 0xcc, 3),
            sender_ip: Ipv4Addr::new(192, 0, 2, 3).into(),
            target_ip: Ipv4Addr::new(192, 0, 2, 64).into(),
        };
        assert_eq!(read(&REQUEST, OWN), Ok(expected));
        let padded = [&REQUEST[..], &[0; 18]].concat();
        assert_eq!(read(&padded, OWN), Ok(expected));
    }

    #[test]
    fn each_fault_has_its_own_reason() {
        let table: &[(Vec<u8>, DropReason)] = &[
            (REQUEST[..13].to_vec(), DropReason::EthernetTruncated),
            (vec![], DropReason::EthernetTruncated),
            (vec![0xff; 1519], DropReason::Oversized),
            (with(&[(13, 0x00)]), DropReason::NotArp),
            (with(&[(0, 0x02), (5, 0x09)]), DropReason::Destination),
            (REQUEST[..41].to_vec(), DropReason::ArpTruncated),
            (REQUEST[..14].to_vec(), DropReason::ArpTruncated),
            (with(&[(15, 6)]), DropReason::HardwareType),
            (with(&[(17, 6)]), DropReason::ProtocolType),
            (with(&[(18, 8)]), DropReason::HardwareLength),
            (with(&[(19, 16)]), DropReason::ProtocolLength),
            (with(&[(21, 3)]), DropReason::Operation),
            (with(&[(22, 0x03)]), DropReason::SenderMac),
            (with(&[(22, 0), (26, 0), (27, 0)]), DropReason::SenderMac),
            (with(&[(26, 1), (27, 1)]), DropReason::OwnFrame),
        ];
        for (frame, reason) in table {
            assert_eq!(read(frame, OWN), Err(*reason), "{frame:02x?}");
        }
    }

    #[test]
    fn announcements_and_probes_are_told_apart() {
        let packet = |operation, broadcast, sender_ip: [u8; 4], target_ip: [u8; 4]| Packet {
            operation,
            broadcast,
            sender_mac: MacAddr(2, 0, 0, 0, 0, 9),
            sender_ip: sender_ip.into(),
            target_ip: target_ip.into(),
        };
        let vip = [192, 0, 2, 64];
        assert!(packet(Operation::Request, true, vip, vip).is_announcement());
        assert!(packet(Operation::Reply, true, vip, vip).is_announcement());
        assert!(!packet(Operation::Reply, false, vip, vip).is_announcement(), "an answer is no claim");
        assert!(!packet(Operation::Request, true, vip, [192, 0, 2, 1]).is_announcement());
        assert!(!packet(Operation::Request, true, [0; 4], [0; 4]).is_announcement());
        assert!(packet(Operation::Request, true, [0; 4], vip).is_probe());
        assert!(!packet(Operation::Reply, true, [0; 4], vip).is_probe());
    }

    proptest! {
        #[test]
        fn any_octets_are_read_or_dropped(frame in proptest::collection::vec(any::<u8>(), 0..1600)) {
            let _: Result<Packet, DropReason> = read(&frame, OWN);
        }

        #[test]
        fn what_is_accepted_is_in_order(
            changes in proptest::collection::vec((0usize..42, any::<u8>()), 0..6),
            length in 0usize..=42,
        ) {
            let frame = with(&changes);
            if let Ok(packet) = read(&frame[..length], OWN) {
                prop_assert_eq!(length, FRAME_LENGTH);
                prop_assert!(packet.sender_mac.is_unicast() && !packet.sender_mac.is_zero() && packet.sender_mac != OWN);
                prop_assert!(packet.broadcast || frame[..6] == OWN.octets());
                prop_assert_eq!(&frame[12..20], &[8, 6, 0, 1, 8, 0, 6, 4]);
            }
        }
    }
}
