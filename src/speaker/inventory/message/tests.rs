use netlink_packet_core::{NLM_F_MULTIPART, NlaBuffer};
use proptest::prelude::*;

use super::*;

fn attribute(kind: u16, value: &[u8]) -> Vec<u8> {
    let mut bytes = vec![0; (4 + value.len()).next_multiple_of(4)];
    let mut nla = NlaBuffer::new(bytes.as_mut_slice());
    nla.set_kind(kind);
    nla.set_length(u16::try_from(4 + value.len()).unwrap());
    nla.value_mut()[..value.len()].copy_from_slice(value);
    bytes
}

fn message(kind: u16, flags: u16, sequence: u32, body: &[u8]) -> Vec<u8> {
    let mut header = NetlinkHeader::default();
    header.length = u32::try_from(HEADER_LENGTH + body.len()).unwrap();
    (header.message_type, header.flags, header.sequence_number) = (kind, flags, sequence);
    let mut bytes = emitted(&header);
    bytes.extend(body);
    bytes.resize(bytes.len().next_multiple_of(4), 0);
    bytes
}

fn heard(datagram: &[u8]) -> Vec<Content> {
    read(datagram).map(|heard| heard.content).collect()
}

const UP_WITH_CARRIER: u32 = 0x1_1043;
const ETHER: u16 = 1;

/// A link of index 7, with attributes in this order.
fn link_body(family: u8, kind: u16, flags: u32, change: u32, attributes: &[Vec<u8>]) -> Vec<u8> {
    let mut body = vec![family, 0];
    body.extend(kind.to_ne_bytes());
    body.extend(7u32.to_ne_bytes());
    body.extend(flags.to_ne_bytes());
    body.extend(change.to_ne_bytes());
    body.extend(attributes.concat());
    body
}

fn name() -> Vec<u8> {
    attribute(libc::IFLA_IFNAME, b"eth0\0")
}

fn mac_attribute() -> Vec<u8> {
    attribute(libc::IFLA_ADDRESS, &[2, 0, 0, 0, 0, 7])
}

fn eth0() -> LinkState {
    LinkState {
        index: 7,
        name: "eth0".to_owned(),
        mac: Some(MacAddr(2, 0, 0, 0, 0, 7)),
        broadcast: true,
        arp: true,
        up: true,
        carrier: true,
        ..LinkState::default()
    }
}

fn port_of(kind: &[u8]) -> Vec<u8> {
    let info = [attribute(libc::IFLA_INFO_KIND, b"veth\0"), attribute(libc::IFLA_INFO_SLAVE_KIND, kind)].concat();
    attribute(libc::IFLA_LINKINFO | 0x8000, &info)
}

/// What is said: of which kind, with which flags and attributes, and what it means.
type Case = (&'static str, u16, u32, Vec<Vec<u8>>, LinkState);

#[test]
fn a_link_says_what_decides() {
    let master = attribute(libc::IFLA_MASTER, &9u32.to_ne_bytes());
    let losses = attribute(libc::IFLA_CARRIER_DOWN_COUNT, &3u32.to_ne_bytes());
    let infiniband = attribute(libc::IFLA_ADDRESS, &[2; 20]);
    // Kernels of the future, and drivers that say too little.
    let strange = [attribute(0x3fff, b"?"), attribute(libc::IFLA_AF_SPEC, &[1, 2, 3])].concat();
    let plain = [name(), mac_attribute()];
    let table: [Case; 12] = [
        ("plain", ETHER, UP_WITH_CARRIER, plain.to_vec(), eth0()),
        ("no carrier", ETHER, 0x1003, plain.to_vec(), LinkState { carrier: false, ..eth0() }),
        ("down", ETHER, 0x1002, plain.to_vec(), LinkState { up: false, carrier: false, ..eth0() }),
        ("no ARP", ETHER, UP_WITH_CARRIER | 0x80, plain.to_vec(), LinkState { arp: false, ..eth0() }),
        ("point to point", ETHER, UP_WITH_CARRIER | 0x10, plain.to_vec(), LinkState { broadcast: false, ..eth0() }),
        ("loopback", 772, UP_WITH_CARRIER | 8, plain.to_vec(), LinkState { loopback: true, mac: None, ..eth0() }),
        ("InfiniBand", 32, UP_WITH_CARRIER, vec![name(), infiniband], LinkState { mac: None, ..eth0() }),
        (
            "port of a bridge",
            ETHER,
            UP_WITH_CARRIER,
            vec![name(), mac_attribute(), master.clone(), port_of(b"bridge\0")],
            LinkState { master: Some(9), ..eth0() },
        ),
        (
            "port of a VRF",
            ETHER,
            UP_WITH_CARRIER,
            vec![name(), mac_attribute(), port_of(b"vrf\0"), master.clone()],
            eth0(),
        ),
        (
            "port of what says nothing",
            ETHER,
            UP_WITH_CARRIER,
            vec![name(), mac_attribute(), master],
            LinkState { master: Some(9), ..eth0() },
        ),
        (
            "lost its link before",
            ETHER,
            UP_WITH_CARRIER,
            vec![losses, name(), mac_attribute()],
            LinkState { carrier_losses: 3, ..eth0() },
        ),
        ("strange attributes", ETHER, UP_WITH_CARRIER, vec![strange, name(), mac_attribute()], eth0()),
    ];
    for (what, kind, flags, attributes, link) in table {
        let new = message(libc::RTM_NEWLINK, 0, 5, &link_body(0, kind, flags, 0, &attributes));
        assert_eq!(heard(&new), [Content::Event(Event::Link { link, is_new: false })], "{what}");
        let gone = message(libc::RTM_DELLINK, 0, 5, &link_body(0, kind, flags, u32::MAX, &attributes));
        assert_eq!(heard(&gone), [Content::Event(Event::LinkGone(7))], "{what}");
        // A bridge says of a port that left: "deleted".
        let of_bridge = message(libc::RTM_DELLINK, 0, 5, &link_body(7, kind, flags, 0, &attributes));
        assert_eq!(heard(&of_bridge), [Content::Other], "{what}");
    }
    let made = message(libc::RTM_NEWLINK, 0, 5, &link_body(0, ETHER, UP_WITH_CARRIER, u32::MAX, &plain));
    assert_eq!(heard(&made), [Content::Event(Event::Link { link: eth0(), is_new: true })]);
    let nameless = message(libc::RTM_NEWLINK, 0, 5, &link_body(0, ETHER, UP_WITH_CARRIER, 0, &[mac_attribute()]));
    assert_eq!(heard(&nameless), [Content::Other]);
}

#[test]
fn addresses_are_the_own_ones_and_count_when_they_are_in_use() {
    let body = |family: u8, length: u8, flags: u8, attributes: &[Vec<u8>]| {
        let mut body = vec![family, length, flags, 0];
        body.extend(7u32.to_ne_bytes());
        body.extend(attributes.concat());
        body
    };
    let v4 = |kind, last| attribute(kind, &[192, 0, 2, last]);
    let v6 = attribute(libc::IFA_ADDRESS, &"2001:db8::5".parse::<std::net::Ipv6Addr>().unwrap().octets());
    let there = |network: &str| Content::Event(Event::Address { index: 7, network: network.parse().unwrap() });
    let gone = |network: &str| Content::Event(Event::AddressGone { index: 7, network: network.parse().unwrap() });
    for (what, attributes, family, length, flags, expected) in [
        ("IPv4", vec![v4(libc::IFA_ADDRESS, 5), v4(libc::IFA_LOCAL, 5)], 2, 24, 0x80, there("192.0.2.5/24")),
        ("with a peer", vec![v4(libc::IFA_ADDRESS, 9), v4(libc::IFA_LOCAL, 5)], 2, 32, 0x80, there("192.0.2.5/32")),
        ("IPv6", vec![v6.clone()], 10, 64, 0x80, there("2001:db8::5/64")),
        ("tentative", vec![v6.clone()], 10, 64, 0xc0, gone("2001:db8::5/64")),
        ("nothing", vec![], 2, 24, 0, Content::Other),
        ("a prefix that cannot be", vec![v4(libc::IFA_LOCAL, 5)], 2, 33, 0, Content::Other),
    ] {
        assert_eq!(
            heard(&message(libc::RTM_NEWADDR, 0, 0, &body(family, length, flags, &attributes))),
            [expected],
            "{what}"
        );
    }
    let removed = message(libc::RTM_DELADDR, 0, 0, &body(10, 64, 0xc0, &[v6]));
    assert_eq!(heard(&removed), [gone("2001:db8::5/64")]);
}

#[test]
fn default_routes_of_the_main_table_name_their_interfaces() {
    let body = |family: u8, length: u8, table: u8, kind: u8, attributes: &[Vec<u8>]| {
        let mut body = vec![family, length, 0, 0, table, 3, 0, kind, 0, 0, 0, 0];
        body.extend(attributes.concat());
        body
    };
    let through = |index: u32| attribute(libc::RTA_OIF, &index.to_ne_bytes());
    let hop = |index: u32| {
        let mut hop = [16u16.to_ne_bytes().as_slice(), &[0, 0], &index.to_ne_bytes()].concat();
        hop.extend(attribute(libc::RTA_GATEWAY, &[192, 0, 2, 1]));
        hop
    };
    let several = attribute(libc::RTA_MULTIPATH, &[hop(3), hop(4)].concat());
    let v4 = |through: &[u32]| Content::Event(Event::DefaultRoute { family: Family::V4, through: through.to_vec() });
    for (what, bytes, expected) in [
        ("one", body(2, 0, 254, 1, &[through(3)]), v4(&[3])),
        ("several", body(2, 0, 254, 1, &[several]), v4(&[3, 4])),
        ("another table", body(2, 0, 100, 1, &[through(3)]), Content::Other),
        ("not to everywhere", body(2, 24, 254, 1, &[through(3)]), Content::Other),
        ("unreachable", body(10, 0, 254, 7, &[through(1)]), Content::Other),
        ("of labels", body(28, 0, 254, 1, &[through(1)]), Content::Other),
    ] {
        assert_eq!(heard(&message(libc::RTM_NEWROUTE, 0, 0, &bytes)), [expected], "{what}");
    }
    let gone = message(libc::RTM_DELROUTE, 0, 0, &body(10, 0, 254, 1, &[through(3)]));
    assert_eq!(heard(&gone), [Content::Event(Event::DefaultRouteGone(Family::V6))]);
}

#[test]
fn answers_are_told_from_news_and_their_end_from_a_refusal() {
    let link = link_body(0, ETHER, UP_WITH_CARRIER, 0, &[name(), mac_attribute()]);
    let done = u16::try_from(libc::NLMSG_DONE).unwrap();
    let error = u16::try_from(libc::NLMSG_ERROR).unwrap();
    let datagram = [
        // News that somebody else's request with the same number brought about.
        message(libc::RTM_NEWLINK, 0, 4, &link),
        message(libc::RTM_NEWLINK, NLM_F_MULTIPART, 4, &link),
        message(libc::RTM_NEWLINK, NLM_F_MULTIPART | NLM_F_DUMP_INTR, 4, &link),
        message(done, NLM_F_MULTIPART, 4, &0i32.to_ne_bytes()),
        message(done, NLM_F_MULTIPART, 4, &(-105i32).to_ne_bytes()),
        message(error, 0, 5, &(-16i32).to_ne_bytes()),
    ]
    .concat();
    let found: Vec<_> = read(&datagram).map(|heard| (heard.answers, heard.interrupted)).collect();
    let expected = [None, Some(4), Some(4), Some(4), Some(4), Some(5)].map(|answers| (answers, false));
    assert_eq!(found[2], (Some(4), true));
    assert_eq!(found.iter().map(|found| found.0).collect::<Vec<_>>(), expected.map(|expected| expected.0));
    assert_eq!(heard(&datagram)[3..], [Content::Done, Content::Failed(-105), Content::Failed(-16)]);
}

#[test]
fn questions_are_what_the_kernel_takes() {
    // struct nlmsghdr, ifinfomsg, and IFLA_EXT_MASK with RTEXT_FILTER_SKIP_STATS.
    let mut links = [40u32.to_ne_bytes().as_slice(), &18u16.to_ne_bytes(), &0x301u16.to_ne_bytes()].concat();
    links.extend([9u32.to_ne_bytes(), [0; 4]].concat());
    links.extend([0; 16]);
    links.extend([8u16.to_ne_bytes().as_slice(), &29u16.to_ne_bytes(), &8u32.to_ne_bytes()].concat());
    assert_eq!(Question::Links.to_bytes(9), links);
    let addresses = Question::Addresses(Family::V6).to_bytes(9);
    assert_eq!((addresses.len(), addresses[4], addresses[16]), (24, 22, 10));
    let routes = Question::Routes(Family::V4).to_bytes(9);
    assert_eq!((routes.len(), routes[4], routes[16], routes[20]), (28, 26, 2, 254));
}

proptest! {
    #[test]
    fn no_octets_of_any_kind_bring_it_down(octets in prop::collection::vec(any::<u8>(), 0..200), kind in 0u16..32, cut in 0usize..80) {
        read(&octets).for_each(drop);
        read(&message(kind, 2, 1, &octets)).for_each(drop);
        let link = message(libc::RTM_NEWLINK, 0, 5, &link_body(0, ETHER, UP_WITH_CARRIER, 0, &[name(), port_of(b"vrf\0")]));
        read(&link[..cut.min(link.len())]).for_each(drop);
    }
}
