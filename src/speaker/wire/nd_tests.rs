use std::net::IpAddr;

use proptest::prelude::*;

use super::*;

const OWN: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const CLIENT: MacAddr = MacAddr(2, 0, 0, 0, 0xcc, 3);
const VIP: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x64);
const CLIENT_IP: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0xcc03);

/// "Who has 2001:db8:1::64? Tell fe80::ff:fe00:cc03", as a client sends it to the solicited-node group.
#[rustfmt::skip]
const SOLICITATION: [u8; 86] = [
    0x33, 0x33, 0xff, 0x00, 0x00, 0x64, 0x02, 0x00, 0x00, 0x00, 0xcc, 0x03, 0x86, 0xdd, // Ethernet
    0x60, 0x00, 0x00, 0x00, 0x00, 0x20, 0x3a, 0xff, // IPv6, 32 octets, ICMPv6, hop limit 255
    0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0x00, 0x00, 0x00, 0xff, 0xfe, 0x00, 0xcc, 0x03, // source
    0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x01, 0xff, 0x00, 0x00, 0x64, // destination
    0x87, 0x00, 0xb3, 0x94, 0x00, 0x00, 0x00, 0x00, // neighbour solicitation
    0x20, 0x01, 0x0d, 0xb8, 0x00, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x64, // target
    0x01, 0x01, 0x02, 0x00, 0x00, 0x00, 0xcc, 0x03, // source link-layer address
];

/// "2001:db8:1::64 is at 02:00:00:00:cc:03", to everybody, overriding.
#[rustfmt::skip]
const ADVERTISEMENT: [u8; 86] = [
    0x33, 0x33, 0x00, 0x00, 0x00, 0x01, 0x02, 0x00, 0x00, 0x00, 0xcc, 0x03, 0x86, 0xdd,
    0x60, 0x00, 0x00, 0x00, 0x00, 0x20, 0x3a, 0xff,
    0x20, 0x01, 0x0d, 0xb8, 0x00, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x64,
    0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x01,
    0x88, 0x00, 0x2c, 0x60, 0x20, 0x00, 0x00, 0x00,
    0x20, 0x01, 0x0d, 0xb8, 0x00, 0x01, 0, 0, 0, 0, 0, 0, 0, 0, 0x00, 0x64,
    0x02, 0x01, 0x02, 0x00, 0x00, 0x00, 0xcc, 0x03,
];

/// The checksum as RFC 4443 section 2.3 has it, written another way than the code that is tested.
fn checksum(packet: &[u8]) -> u16 {
    let payload = &packet[40..];
    let mut octets = packet[8..40].to_vec();
    octets.extend(u32::try_from(payload.len()).unwrap().to_be_bytes());
    octets.extend([0, 0, 0, 58]);
    octets.extend(payload);
    octets.resize(octets.len().next_multiple_of(2), 0);
    let sum: u64 = octets.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum();
    u16::try_from(sum % 0xffff).unwrap()
}

/// Puts the right lengths and the right checksum in.
fn sealed(mut frame: Vec<u8>) -> Vec<u8> {
    let length = u16::try_from(frame.len() - 54).unwrap();
    frame[18..20].copy_from_slice(&length.to_be_bytes());
    frame[56..58].fill(0);
    let sum = !checksum(&frame[14..]);
    frame[56..58].copy_from_slice(&sum.to_be_bytes());
    frame
}

fn changed(frame: &[u8], changes: &[(usize, u8)]) -> Vec<u8> {
    let mut frame = frame.to_vec();
    for (at, value) in changes {
        frame[*at] = *value;
    }
    frame
}

fn with_options(options: &[u8]) -> Vec<u8> {
    sealed([&SOLICITATION[..78], options].concat())
}

/// The solicitation with other octets for source and destination, without an option: a probe, if they are right.
fn probe(source: Ipv6Addr, destination: Ipv6Addr, options: &[u8]) -> Vec<u8> {
    let mut frame = [&SOLICITATION[..78], options].concat();
    frame[22..38].copy_from_slice(&source.octets());
    frame[38..54].copy_from_slice(&destination.octets());
    frame[..6].copy_from_slice(&OWN.octets());
    sealed(frame)
}

fn packet(operation: Operation, broadcast: bool, sender: Ipv6Addr, target: Ipv6Addr) -> Packet {
    Packet { operation, broadcast, sender_mac: CLIENT, sender_ip: IpAddr::V6(sender), target_ip: IpAddr::V6(target) }
}

#[test]
fn the_golden_frames_have_right_checksums() {
    assert_eq!(sealed(SOLICITATION.to_vec()), SOLICITATION);
    assert_eq!(sealed(ADVERTISEMENT.to_vec()), ADVERTISEMENT);
}

#[test]
fn a_solicitation_is_read() {
    let expected = packet(Operation::Request, true, CLIENT_IP, VIP);
    assert_eq!(read(&SOLICITATION, OWN), Ok(expected));
    let padded = [&SOLICITATION[..], &[0xa5; 18]].concat();
    assert_eq!(read(&padded, OWN), Ok(expected), "padding counts for nothing");

    let unicast = [&OWN.octets(), &SOLICITATION[6..]].concat();
    assert_eq!(read(&unicast, OWN), Ok(packet(Operation::Request, false, CLIENT_IP, VIP)));
    let flooded = [&[0xff; 6], &SOLICITATION[6..]].concat();
    assert_eq!(read(&flooded, OWN), Ok(expected), "as some switches send it");
}

#[test]
fn who_asks_is_told_by_the_option_and_else_by_the_ethernet_source() {
    let option = [1, 1, 2, 0, 0, 0, 0xdd, 4];
    for (options, mac) in [
        (option.to_vec(), MacAddr(2, 0, 0, 0, 0xdd, 4)),
        (vec![], CLIENT),
        // A nonce (RFC 7527), and the option that is of no use here.
        (vec![14, 1, 1, 2, 3, 4, 5, 6, 2, 1, 9, 9, 9, 9, 9, 9], CLIENT),
        ([&[14, 2], &[7; 14][..], &option].concat(), MacAddr(2, 0, 0, 0, 0xdd, 4)),
        // The first of two counts, as for Linux.
        ([option, [1, 1, 2, 0, 0, 0, 0xee, 5]].concat(), MacAddr(2, 0, 0, 0, 0xdd, 4)),
    ] {
        assert_eq!(read(&with_options(&options), OWN).map(|packet| packet.sender_mac), Ok(mac), "{options:02x?}");
    }
}

#[test]
fn a_probe_is_read() {
    let frame = probe(Ipv6Addr::UNSPECIFIED, solicited_node(VIP), &[14, 1, 1, 2, 3, 4, 5, 6]);
    let read = read(&frame, OWN).unwrap();
    assert!(read.is_probe());
    assert_eq!(read, packet(Operation::Request, false, Ipv6Addr::UNSPECIFIED, VIP));
}

#[test]
fn an_advertisement_to_everybody_is_a_claim_and_any_other_an_answer() {
    let claim = read(&ADVERTISEMENT, OWN).unwrap();
    assert!(claim.is_announcement());
    assert_eq!(claim, packet(Operation::Reply, true, VIP, VIP));

    // The answer to a probe goes to everybody by its IPv6 header, and to the prober alone by its Ethernet header.
    let defence = [&OWN.octets(), &ADVERTISEMENT[6..]].concat();
    let defence = read(&defence, OWN).unwrap();
    assert!(!defence.is_announcement() && !defence.broadcast);
    assert_eq!((defence.sender_ip, defence.target_ip), (VIP.into(), ALL_NODES.into()));

    let mut answer = [&OWN.octets(), &ADVERTISEMENT[6..]].concat();
    answer[38..54].copy_from_slice(&CLIENT_IP.octets());
    answer[58] = 0x60;
    let answer = read(&sealed(answer), OWN).unwrap();
    assert_eq!(answer, packet(Operation::Reply, false, VIP, CLIENT_IP));

    // As the kernel of a node that forwards says it.
    let of_kernel = sealed(changed(&ADVERTISEMENT, &[(58, 0xa0)]));
    let of_kernel = read(&of_kernel, OWN).unwrap();
    assert!(!of_kernel.is_announcement() && !of_kernel.broadcast);
    assert_eq!((of_kernel.sender_ip, of_kernel.target_ip), (VIP.into(), ALL_NODES.into()));

    // Without the option it is the Ethernet source that is believed.
    let bare = sealed(ADVERTISEMENT[..78].to_vec());
    assert_eq!(read(&bare, OWN).map(|packet| packet.sender_mac), Ok(CLIENT));
    // Linux believes one without a source address, so a conflict in one must not go unseen.
    let mut nameless = ADVERTISEMENT.to_vec();
    nameless[22..38].fill(0);
    assert_eq!(read(&sealed(nameless), OWN), Ok(claim));
}

#[test]
fn each_fault_has_its_own_reason() {
    let solicitation = |changes: &[(usize, u8)]| sealed(changed(&SOLICITATION, changes));
    let source = |octets: [u8; 16]| {
        let mut frame = SOLICITATION.to_vec();
        frame[22..38].copy_from_slice(&octets);
        sealed(frame)
    };
    let target = |octets: [u8; 16]| {
        let mut frame = SOLICITATION.to_vec();
        frame[62..78].copy_from_slice(&octets);
        sealed(frame)
    };
    let multicast = Ipv6Addr::new(0xff02, 0, 0, 0, 0, 0, 0, 1).octets();
    let to_unicast = {
        let mut frame = SOLICITATION.to_vec();
        frame[38..54].copy_from_slice(&VIP.octets());
        sealed(frame)
    };
    let unspecified = Ipv6Addr::UNSPECIFIED;
    let table: &[(Vec<u8>, DropReason)] = &[
        (vec![], DropReason::EthernetTruncated),
        (SOLICITATION[..13].to_vec(), DropReason::EthernetTruncated),
        (vec![0xff; 1519], DropReason::Oversized),
        (changed(&SOLICITATION, &[(12, 8), (13, 0)]), DropReason::NotIpv6),
        (changed(&SOLICITATION, &[(12, 0x81), (13, 0)]), DropReason::NotIpv6),
        (SOLICITATION[..53].to_vec(), DropReason::Ipv6Truncated),
        (SOLICITATION[..14].to_vec(), DropReason::Ipv6Truncated),
        (changed(&SOLICITATION, &[(14, 0x40)]), DropReason::Ipv6Version),
        (changed(&SOLICITATION, &[(20, 44)]), DropReason::NotIcmpv6),
        (changed(&SOLICITATION, &[(20, 0)]), DropReason::NotIcmpv6),
        (changed(&SOLICITATION, &[(19, 33)]), DropReason::Ipv6Length),
        (changed(&SOLICITATION, &[(18, 0xff)]), DropReason::Ipv6Length),
        (SOLICITATION[..85].to_vec(), DropReason::Ipv6Length),
        (changed(&SOLICITATION, &[(19, 0)]), DropReason::NdTruncated),
        (changed(&SOLICITATION, &[(19, 23)]), DropReason::NdTruncated),
        (solicitation(&[(54, 133)]), DropReason::Icmpv6Type),
        (solicitation(&[(54, 128)]), DropReason::Icmpv6Type),
        (solicitation(&[(55, 1)]), DropReason::Icmpv6Code),
        (solicitation(&[(21, 254)]), DropReason::HopLimit),
        (changed(&SOLICITATION, &[(57, 0x95)]), DropReason::Checksum),
        (changed(&SOLICITATION, &[(77, 0x65)]), DropReason::Checksum),
        // The payload ends earlier: what was summed up is another one.
        (changed(&SOLICITATION, &[(19, 24)]), DropReason::Checksum),
        (changed(&SOLICITATION, &[(0, 2), (1, 0), (2, 0), (3, 0), (4, 0), (5, 9)]), DropReason::Destination),
        (changed(&SOLICITATION, &[(5, 0x65)]), DropReason::Destination),
        (to_unicast, DropReason::Destination),
        (source(multicast), DropReason::Ipv6Source),
        (source(Ipv6Addr::LOCALHOST.octets()), DropReason::Ipv6Source),
        (target(multicast), DropReason::NdTarget),
        (target([0; 16]), DropReason::NdTarget),
        (with_options(&[1, 0, 2, 0, 0, 0, 0xcc, 3]), DropReason::NdOptionZero),
        (with_options(&[14, 0, 0, 0, 0, 0, 0, 0]), DropReason::NdOptionZero),
        (with_options(&[1, 2, 2, 0, 0, 0, 0xcc, 3]), DropReason::NdOptionTruncated),
        (with_options(&[14, 255, 2, 0, 0, 0, 0xcc, 3]), DropReason::NdOptionTruncated),
        (with_options(&[1]), DropReason::NdOptionTruncated),
        (with_options(&[1, 1, 2, 0, 0]), DropReason::NdOptionTruncated),
        (with_options(&[&[1, 1, 2, 0, 0, 0, 0xcc, 3][..], &[14, 0]].concat()), DropReason::NdOptionZero),
        (with_options(&[&[1, 2][..], &[0; 14]].concat()), DropReason::NdLinkLayerLength),
        (with_options(&[1, 1, 3, 0, 0, 0, 0xcc, 3]), DropReason::SenderMac),
        (with_options(&[1, 1, 0, 0, 0, 0, 0, 0]), DropReason::SenderMac),
        (with_options(&[1, 1, 2, 0, 0, 0, 1, 1]), DropReason::OwnFrame),
        (probe(unspecified, solicited_node(VIP), &[1, 1, 2, 0, 0, 0, 0xcc, 3]), DropReason::NdSourceOption),
        (probe(unspecified, VIP, &[]), DropReason::NdProbeDestination),
        (probe(unspecified, ALL_NODES, &[]), DropReason::NdProbeDestination),
        (sealed(changed(&ADVERTISEMENT, &[(58, 0x60)])), DropReason::NdSolicited),
        (sealed(changed(&ADVERTISEMENT, &[(80, 3)])), DropReason::SenderMac),
        (sealed(changed(&ADVERTISEMENT, &[(79, 0)])), DropReason::NdOptionZero),
    ];
    for (frame, reason) in table {
        assert_eq!(read(frame, OWN), Err(*reason), "{frame:02x?}");
    }
}

#[test]
fn the_ethernet_type_says_which_of_the_two_protocols_it_is() {
    use super::super::read as read_any;
    assert_eq!(read_any(&SOLICITATION, OWN), read(&SOLICITATION, OWN));
    let mut arp = changed(&SOLICITATION, &[(12, 8), (13, 6)]);
    assert_eq!(read_any(&arp, OWN), Err(DropReason::Destination));
    arp[..6].fill(0xff);
    assert_eq!(read_any(&arp, OWN), Err(DropReason::HardwareType));
    // A VLAN tag that was left in, IPv4, nothing, and too much of something else.
    for changes in [[(12, 0x81), (13, 0)], [(12, 8), (13, 0)]] {
        assert_eq!(read_any(&changed(&SOLICITATION, &changes), OWN), Err(DropReason::EthernetType));
    }
    assert_eq!(read_any(&[], OWN), Err(DropReason::EthernetTruncated));
    assert_eq!(read_any(&[0; 1519], OWN), Err(DropReason::Oversized));
}

#[test]
fn groups_are_those_of_the_standards() {
    let address = Ipv6Addr::new(0x4037, 0, 0, 0, 1, 0x800, 0x200e, 0x8c6c);
    assert_eq!(solicited_node(address), Ipv6Addr::new(0xff02, 0, 0, 0, 0, 1, 0xff0e, 0x8c6c));
    assert_eq!(ethernet_group(solicited_node(address)), MacAddr(0x33, 0x33, 0xff, 0x0e, 0x8c, 0x6c));
    assert_eq!(ethernet_group(ALL_NODES), MacAddr(0x33, 0x33, 0, 0, 0, 1));
}

proptest! {
    #[test]
    fn any_octets_are_read_or_dropped(frame in proptest::collection::vec(any::<u8>(), 0..1600)) {
        let _: Result<Packet, DropReason> = read(&frame, OWN);
    }

    /// What follows a right header gets past the first checks: whatever it is.
    #[test]
    fn any_message_is_read_or_dropped(message in proptest::collection::vec(any::<u8>(), 24..200), kind in 134u8..138) {
        let mut frame = [&SOLICITATION[..54], &message].concat();
        frame[54] = kind;
        frame[55] = 0;
        let _: Result<Packet, DropReason> = read(&sealed(frame), OWN);
    }

    #[test]
    fn what_is_accepted_is_in_order(
        advertisement: bool,
        changes in proptest::collection::vec((0usize..86, any::<u8>()), 0..4),
        options in proptest::collection::vec(any::<u8>(), 0..24),
        cut in 0usize..4,
        summed in proptest::bool::weighted(0.8),
    ) {
        let golden = if advertisement { &ADVERTISEMENT } else { &SOLICITATION };
        let mut frame = [&changed(golden, &changes), &options[..]].concat();
        if summed {
            frame = sealed(frame);
        }
        frame.truncate(frame.len() - cut);
        if let Ok(packet) = read(&frame, OWN) {
            let length = usize::from(u16::from_be_bytes([frame[18], frame[19]]));
            prop_assert!(length >= 24 && 54 + length <= frame.len());
            prop_assert_eq!(checksum(&frame[14..54 + length]), 0);
            prop_assert_eq!((frame[12], frame[13], frame[14] >> 4, frame[20], frame[21], frame[55]), (0x86, 0xdd, 6, 58, 255, 0));
            prop_assert_eq!(frame[54] == 135, packet.operation == Operation::Request);
            prop_assert!(packet.sender_mac.is_unicast() && !packet.sender_mac.is_zero() && packet.sender_mac != OWN);
            prop_assert!(packet.broadcast == (frame[..6] != OWN.octets()));
            prop_assert!(!packet.broadcast || frame[38] == 0xff, "a group of Ethernet, and one of IPv6");
            let target = if packet.operation == Operation::Request { packet.target_ip } else { packet.sender_ip };
            prop_assert!(!target.is_multicast() && !target.is_unspecified());
            prop_assert!(packet.is_announcement() == (frame[54] == 136 && packet.broadcast && frame[38..54] == ALL_NODES.octets()));
        }
    }
}
