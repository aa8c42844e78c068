use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::*;
use crate::speaker::wire::{
    AnnouncementForm, Operation,
    nd::{ALL_NODES, ethernet_group, solicited_node},
};

const M: OwnMac = OwnMac(MacAddr(2, 0, 0, 0, 1, 1));
const CLIENT: MacAddr = MacAddr(2, 0, 0, 0, 0xcc, 3);
const VIP4: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 64));
const VIP6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x64));
const NIC6: IpAddr = IpAddr::V6(Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0xff, 0xfe00, 0x101));
const CLIENT6: IpAddr = IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 3));
const ANY6: IpAddr = IpAddr::V6(Ipv6Addr::UNSPECIFIED);

fn octets(message: &Message, own: OwnMac) -> Vec<u8> {
    write(message, own).unwrap().to_vec()
}

#[rustfmt::skip]
#[test]
fn arp_frames_are_these_octets() {
    let reply = Message::Answer { vip: VIP4, to_mac: CLIENT, to_ip: Ipv4Addr::new(192, 0, 2, 3).into() };
    assert_eq!(*octets(&reply, M), [
        0x02, 0, 0, 0, 0xcc, 3, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2,
        0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64, 0x02, 0, 0, 0, 0xcc, 3, 192, 0, 2, 3,
    ]);
    let request_form = Message::Announcement { vip: VIP4, form: AnnouncementForm::Request };
    assert_eq!(*octets(&request_form, M), [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1,
        0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64, 0, 0, 0, 0, 0, 0, 192, 0, 2, 64,
    ]);
    let reply_form = Message::Announcement { vip: VIP4, form: AnnouncementForm::Reply };
    assert_eq!(*octets(&reply_form, M), [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 2,
        0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64, 0x02, 0, 0, 0, 1, 1, 192, 0, 2, 64,
    ]);
    assert_eq!(*octets(&Message::Probe { vip: VIP4, to: None }, M), [
        0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1,
        0x02, 0, 0, 0, 1, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 192, 0, 2, 64,
    ]);
    assert_eq!(write(&Message::Probe { vip: VIP4, to: Some(CLIENT) }, M).unwrap()[..6], CLIENT.octets());
    assert_eq!(*octets(&Message::Request { vip: VIP4, to: CLIENT, from: Ipv4Addr::new(192, 0, 2, 11).into() }, M), [
        0x02, 0, 0, 0, 0xcc, 3, 0x02, 0, 0, 0, 1, 1, 0x08, 0x06, 0, 1, 8, 0, 6, 4, 0, 1,
        0x02, 0, 0, 0, 1, 1, 192, 0, 2, 11, 0, 0, 0, 0, 0, 0, 192, 0, 2, 64,
    ]);
}

#[rustfmt::skip]
#[test]
fn neighbour_discovery_frames_are_these_octets() {
    const TARGET: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64];
    const CLIENT_IP: [u8; 16] = [0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 3];
    const NIC_IP: [u8; 16] = [0xfe, 0x80, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0xff, 0xfe, 0, 1, 1];
    const EVERYBODY: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1];
    const GROUP: [u8; 16] = [0xff, 2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1, 0xff, 0, 0, 0x64];
    const CLIENT_MAC: [u8; 6] = [2, 0, 0, 0, 0xcc, 3];
    const TARGET_OPTION: &[u8] = &[2, 1, 2, 0, 0, 0, 1, 1];
    const SOURCE_OPTION: &[u8] = &[1, 1, 2, 0, 0, 0, 1, 1];
    let frame = |to: [u8; 6], source: [u8; 16], destination: [u8; 16], icmp: [u8; 8], option: &[u8]| {
        let length = u8::try_from(24 + option.len()).unwrap();
        let header = [2, 0, 0, 0, 1, 1, 0x86, 0xdd, 0x60, 0, 0, 0, 0, length, 58, 255];
        [&to[..], &header, &source, &destination, &icmp, &TARGET, option].concat()
    };
    let nothing = [0; 16];
    for (message, expected) in [
        (Message::Answer { vip: VIP6, to_mac: CLIENT, to_ip: CLIENT6 },
         frame(CLIENT_MAC, TARGET, CLIENT_IP, [136, 0, 0x88, 0xa9, 0x60, 0, 0, 0], TARGET_OPTION)),
        (Message::Answer { vip: VIP6, to_mac: CLIENT, to_ip: ANY6 },
         frame(CLIENT_MAC, TARGET, EVERYBODY, [136, 0, 0xf7, 0x62, 0x20, 0, 0, 0], TARGET_OPTION)),
        (Message::Announcement { vip: VIP6, form: AnnouncementForm::Request },
         frame([0x33, 0x33, 0, 0, 0, 1], TARGET, EVERYBODY, [136, 0, 0xf7, 0x62, 0x20, 0, 0, 0], TARGET_OPTION)),
        (Message::Probe { vip: VIP6, to: None },
         frame([0x33, 0x33, 0xff, 0, 0, 0x64], nothing, GROUP, [135, 0, 0x4c, 0x26, 0, 0, 0, 0], &[])),
        (Message::Probe { vip: VIP6, to: Some(CLIENT) },
         frame(CLIENT_MAC, nothing, GROUP, [135, 0, 0x4c, 0x26, 0, 0, 0, 0], &[])),
        (Message::Request { vip: VIP6, to: CLIENT, from: NIC6 },
         frame(CLIENT_MAC, NIC_IP, GROUP, [135, 0, 0x49, 0x9a, 0, 0, 0, 0], SOURCE_OPTION)),
        (Message::Request { vip: VIP6, to: CLIENT, from: ANY6 },
         frame(CLIENT_MAC, nothing, GROUP, [135, 0, 0x4c, 0x26, 0, 0, 0, 0], &[])),
    ] {
        assert_eq!(octets(&message, M), expected, "{message:?}");
    }
}

#[test]
fn addresses_of_two_families_make_no_frame() {
    for (one, other) in [(VIP4, VIP6), (VIP6, VIP4)] {
        assert!(write(&Message::Answer { vip: one, to_mac: CLIENT, to_ip: other }, M).is_none());
        assert!(write(&Message::Request { vip: one, to: CLIENT, from: other }, M).is_none());
    }
    let probe = Message::Answer { vip: VIP6, to_mac: CLIENT, to_ip: Ipv4Addr::UNSPECIFIED.into() };
    assert!(write(&probe, M).is_none());
}

fn any_mac() -> impl Strategy<Value = MacAddr> {
    any::<[u8; 6]>().prop_map(MacAddr::from)
}

fn any_ip(ipv6: bool) -> BoxedStrategy<IpAddr> {
    let ipv6_host =
        |octets: &[u8; 16]| !Ipv6Addr::from(*octets).is_multicast() && *octets != Ipv6Addr::LOCALHOST.octets();
    if ipv6 {
        let octets = any::<[u8; 16]>().prop_filter("nobody's address", ipv6_host);
        prop_oneof![9 => octets.prop_map(IpAddr::from), 1 => Just(ANY6)].boxed()
    } else {
        any::<[u8; 4]>().prop_map(IpAddr::from).boxed()
    }
}

fn any_message() -> impl Strategy<Value = Message> {
    any::<bool>().prop_flat_map(|ipv6| {
        let ip = || any_ip(ipv6);
        let vip = || ip().prop_filter("a virtual IP", |vip| !vip.is_unspecified());
        let form = prop_oneof![Just(AnnouncementForm::Request), Just(AnnouncementForm::Reply)];
        prop_oneof![
            (vip(), any_mac(), ip()).prop_map(|(vip, to_mac, to_ip)| Message::Answer { vip, to_mac, to_ip }),
            (vip(), form).prop_map(|(vip, form)| Message::Announcement { vip, form }),
            (vip(), proptest::option::of(any_mac())).prop_map(|(vip, to)| Message::Probe { vip, to }),
            (vip(), any_mac(), ip()).prop_map(|(vip, to, from)| Message::Request { vip, to, from }),
        ]
    })
}

/// The ones' complement sum of what RFC 4443 section 2.3 says, written another way than the code that is tested.
fn checksum_is_right(frame: &[u8]) -> bool {
    let octets = [&frame[22..54], &[frame[18], frame[19], 0, 58], &frame[54..]].concat();
    let sum: u64 = octets.chunks(2).map(|pair| u64::from(pair[0]) << 8 | u64::from(pair[1])).sum();
    sum.is_multiple_of(0xffff)
}

proptest! {
    /// The promise that the project stands on: no frame names another sender than the NIC that it leaves through.
    #[test]
    fn every_frame_comes_from_the_nic_that_it_names(message in any_message(), own in any_mac()) {
        let frame = octets(&message, OwnMac(own));
        prop_assert_eq!(&frame[6..12], &own.octets(), "Ethernet source");
        if message.vip().is_ipv6() {
            prop_assert!(checksum_is_right(&frame));
            match frame.get(78..) {
                Some([kind, 1, mac @ ..]) => {
                    prop_assert_eq!(mac, &own.octets(), "link-layer address option");
                    prop_assert_eq!(*kind, if frame[54] == 136 { 2 } else { 1 });
                }
                rest => {
                    prop_assert_eq!(rest, Some(&[][..]));
                    prop_assert_eq!((frame[54], &frame[22..38]), (135, &[0; 16][..]), "only a probe names nobody");
                }
            }
            return Ok(());
        }
        prop_assert_eq!(&frame[22..28], &own.octets(), "sender hardware address");
        if matches!(message, Message::Announcement { form: AnnouncementForm::Reply, .. }) {
            prop_assert_eq!(&frame[32..38], &own.octets(), "target hardware address");
        }
    }

    /// Only an answer and an announcement name the virtual IP as their sender's.
    #[test]
    fn who_asks_does_not_speak_as_the_virtual_ip(message in any_message()) {
        let frame = octets(&message, M);
        let (sender, vip) = match message.vip() {
            IpAddr::V4(vip) => (frame[28..32].to_vec(), vip.octets().to_vec()),
            IpAddr::V6(vip) => (frame[22..38].to_vec(), vip.octets().to_vec()),
        };
        let speaks = matches!(message, Message::Answer { .. } | Message::Announcement { .. });
        let by_chance = matches!(message, Message::Request { vip, from, .. } if vip == from);
        prop_assert!(by_chance || speaks == (sender == vip));
    }

    #[test]
    fn another_speaker_reads_what_was_meant(message in any_message()) {
        let frame = octets(&message, M);
        let receiver = MacAddr::from(<[u8; 6]>::try_from(&frame[..6]).unwrap());
        let groups = match message.vip() {
            IpAddr::V4(_) => vec![MacAddr::broadcast()],
            IpAddr::V6(vip) => vec![MacAddr::broadcast(), ethernet_group(ALL_NODES), ethernet_group(solicited_node(vip))],
        };
        let to_everybody = groups.contains(&receiver);
        // A frame to the sender itself comes back as its own; one to a group that is not its own reaches nobody.
        prop_assume!(receiver != M.get());
        let packet = wire::read(&frame, if to_everybody { CLIENT } else { receiver }).unwrap();
        prop_assert_eq!(packet.sender_mac, M.get());
        prop_assert_eq!(packet.broadcast, to_everybody);
        match message {
            Message::Answer { vip, to_ip, .. } => {
                prop_assert_eq!((packet.operation, packet.sender_ip), (Operation::Reply, vip));
                let answered = if to_ip == ANY6 { ALL_NODES.into() } else { to_ip };
                prop_assert_eq!(packet.target_ip, answered);
            }
            Message::Announcement { vip, .. } => {
                prop_assert!(packet.is_announcement());
                prop_assert_eq!(packet.sender_ip, vip);
            }
            Message::Probe { vip, to } => {
                prop_assert!(packet.is_probe());
                prop_assert_eq!(packet.target_ip, vip);
                prop_assert!(to.is_some() || packet.broadcast);
            }
            Message::Request { vip, from, .. } => {
                prop_assert_eq!((packet.operation, packet.sender_ip, packet.target_ip), (Operation::Request, from, vip));
            }
        }
    }
}
