use std::net::{Ipv4Addr, Ipv6Addr};

use proptest::prelude::*;

use super::{arp as program, *};
use crate::speaker::bpf;

/// What the kernel would do: the number of octets passed, 0 for none.
fn run(program: &[Instruction], packet_type: u32, frame: &[u8]) -> u32 {
    bpf::run(program, &[(PACKET_TYPE, packet_type), (INTERFACE, OWN_INTERFACE)], frame)
}

fn packet(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
    let mut frame = vec![0; 42];
    frame[12..20].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4]);
    frame[28..32].copy_from_slice(&sender.octets());
    frame[38..42].copy_from_slice(&target.octets());
    frame
}

const OWN_INTERFACE: u32 = 7;
const BROADCAST: u32 = 1;
const MULTICAST: u32 = 2;
const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);

#[test]
fn requests_for_a_vip_and_frames_that_claim_it_pass() {
    let program = program([&VIP]);
    assert_ne!(run(&program, BROADCAST, &packet(CLIENT, VIP)), 0);
    assert_ne!(run(&program, BROADCAST, &packet(VIP, CLIENT)), 0);
    assert_ne!(run(&program, 0, &packet(VIP, CLIENT)), 0);
    assert_eq!(run(&program, BROADCAST, &packet(CLIENT, Ipv4Addr::new(192, 0, 2, 65))), 0);
}

#[test]
fn frames_of_a_vlan_on_the_nic_do_not_pass() {
    let program = program([&VIP]);
    assert_ne!(run(&only_on(OWN_INTERFACE, &program), BROADCAST, &packet(CLIENT, VIP)), 0);
    assert_eq!(run(&only_on(OWN_INTERFACE, &program), BROADCAST, &packet(CLIENT, CLIENT)), 0);
    assert_eq!(run(&only_on(OWN_INTERFACE + 1, &program), BROADCAST, &packet(CLIENT, VIP)), 0);
}

#[test]
fn own_frames_other_hosts_frames_and_other_protocols_do_not_pass() {
    let program = program([&VIP]);
    assert_eq!(run(&program, PACKET_OUTGOING, &packet(CLIENT, VIP)), 0);
    assert_eq!(run(&program, PACKET_OTHERHOST, &packet(CLIENT, VIP)), 0);
    let mut ipv4 = packet(CLIENT, VIP);
    ipv4[13] = 0;
    assert_eq!(run(&program, BROADCAST, &ipv4), 0);
}

#[test]
fn what_is_no_arp_for_ethernet_and_ipv4_passes_to_be_counted() {
    let program = program([&VIP]);
    let other = Ipv4Addr::new(192, 0, 2, 65);
    assert_ne!(run(&program, BROADCAST, &packet(CLIENT, other)[..41]), 0, "truncated");
    for (place, name) in
        [(15, "hardware type"), (16, "protocol type"), (18, "hardware length"), (19, "protocol length")]
    {
        let mut frame = packet(CLIENT, other);
        frame[place] = 9;
        assert_ne!(run(&program, BROADCAST, &frame), 0, "{name}");
    }
    assert_eq!(run(&program, PACKET_OTHERHOST, &packet(CLIENT, other)[..41]), 0, "another host's is its own affair");
}

#[test]
fn without_vips_nothing_passes() {
    assert_eq!(run(&program([]), BROADCAST, &packet(CLIENT, VIP)), 0);
}

#[test]
fn many_vips_are_covered_by_few_prefixes() {
    let vips: Vec<Ipv4Addr> = (0..200u8).map(|host| Ipv4Addr::new(192, 0, 2, host)).collect();
    let program = program(&vips);
    assert!(program.len() < 80, "{}", program.len());
    assert_ne!(run(&program, BROADCAST, &packet(CLIENT, vips[199])), 0);
    assert_eq!(run(&program, BROADCAST, &packet(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 3, 1))), 0);
}

const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 3);
const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x64);
const OTHER6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x65);

/// A neighbour solicitation (135) or advertisement (136), as far as the program looks.
fn neighbour(kind: u8, source: Ipv6Addr, target: Ipv6Addr) -> Vec<u8> {
    let mut frame = vec![0; 86];
    frame[12..15].copy_from_slice(&[0x86, 0xdd, 0x60]);
    frame[20..22].copy_from_slice(&[58, 255]);
    frame[22..38].copy_from_slice(&source.octets());
    frame[54] = kind;
    frame[62..78].copy_from_slice(&target.octets());
    frame
}

/// What the kernel asks of a program: no jump leads out of it, and its last instruction returns.
fn is_sound(program: &[Instruction]) -> bool {
    let inside = |(at, step): (usize, &Instruction)| match step.code {
        JUMP => at + 1 + (step.operand as usize) < program.len(),
        _ => at + 1 + usize::from(step.jump_true.max(step.jump_false)) < program.len() || step.code == RETURN,
    };
    program.iter().enumerate().all(inside)
        && program.last().is_some_and(|last| last.code == RETURN)
        && program.len() <= 4096
}

#[test]
fn neighbour_discovery_about_a_vip_passes() {
    let program = nd([&VIP6]);
    for kind in [135, 136] {
        assert_ne!(run(&program, MULTICAST, &neighbour(kind, CLIENT6, VIP6)), 0);
        assert_ne!(run(&program, 0, &neighbour(kind, CLIENT6, VIP6)), 0);
        assert_eq!(run(&program, MULTICAST, &neighbour(kind, CLIENT6, OTHER6)), 0);
    }
    assert_ne!(run(&program, MULTICAST, &neighbour(135, VIP6, OTHER6)), 0, "a conflict in a plain solicitation");
    assert_eq!(run(&program, MULTICAST, &neighbour(136, VIP6, OTHER6)), 0, "it tells about another address");
    for length in 78..86 {
        assert_ne!(run(&program, MULTICAST, &neighbour(135, CLIENT6, VIP6)[..length]), 0, "without an option");
    }
}

#[test]
fn own_frames_other_hosts_frames_and_other_icmp_do_not_pass() {
    let program = nd([&VIP6]);
    let frame = neighbour(135, CLIENT6, VIP6);
    assert_eq!(run(&program, PACKET_OUTGOING, &frame), 0);
    assert_eq!(run(&program, PACKET_OTHERHOST, &frame), 0);
    // ARP, a VLAN tag, TCP, a fragment, hop-by-hop options, an echo request, a router advertisement, a redirect.
    for (at, octet) in [(13, 6), (12, 0x81), (20, 6), (20, 44), (20, 0), (54, 128), (54, 134), (54, 137)] {
        let mut other = frame.clone();
        other[at] = octet;
        assert_eq!(run(&program, MULTICAST, &other), 0, "{at}: {octet}");
    }
    for length in 0..55 {
        assert_eq!(run(&program, MULTICAST, &frame[..length]), 0, "it does not say what it is");
    }
    assert_eq!(run(&nd([]), MULTICAST, &frame), 0, "without virtual IPs nothing passes");
}

#[test]
fn malformed_neighbour_discovery_passes_to_be_counted() {
    let program = nd([&VIP6]);
    let frame = neighbour(136, CLIENT6, OTHER6);
    for length in 55..78 {
        assert_ne!(run(&program, MULTICAST, &frame[..length]), 0, "truncated to {length}");
    }
    for (place, octet, name) in [(21, 64, "hop limit"), (55, 1, "code"), (14, 0x40, "version")] {
        let mut frame = frame.clone();
        frame[place] = octet;
        assert_ne!(run(&program, MULTICAST, &frame), 0, "{name}");
        assert_eq!(run(&program, PACKET_OTHERHOST, &frame), 0, "another host's is its own affair");
    }
    let mut labelled = frame;
    labelled[14..18].copy_from_slice(&[0x6f, 0xff, 0xff, 0xff]);
    assert_eq!(run(&program, MULTICAST, &labelled), 0, "traffic class and flow label are no fault");
}

#[test]
fn many_ipv6_vips_are_covered_by_few_prefixes() {
    let vips: Vec<Ipv6Addr> = (0..5_000u16).map(|host| Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, host)).collect();
    let program = nd(&vips);
    assert!(is_sound(&program) && program.len() < 700, "{}", program.len());
    for vip in &vips {
        assert_ne!(run(&program, MULTICAST, &neighbour(135, CLIENT6, *vip)), 0);
    }
    let outside = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, 0x2000);
    assert_eq!(run(&program, MULTICAST, &neighbour(135, CLIENT6, outside)), 0);
    // From everywhere, at most one prefix for each half of all addresses.
    let scattered: Vec<Ipv6Addr> = (0..100u128).map(|one| Ipv6Addr::from(one << 121)).collect();
    assert!(is_sound(&nd(&scattered)));
}

fn any_ipv6() -> impl Strategy<Value = Ipv6Addr> {
    prop_oneof![
        any::<u128>().prop_map(Ipv6Addr::from),
        any::<u16>().prop_map(|host| Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, host)),
    ]
}

proptest! {
    #[test]
    fn every_ipv6_vip_passes_and_while_few_nothing_else(
        vips in proptest::collection::btree_set(any_ipv6(), 0..100),
        other in any_ipv6(),
        kind in 135u8..=136,
    ) {
        let program = nd(&vips);
        prop_assert!(is_sound(&program) && program.len() <= 46 + 2 * 9 * MAX_PREFIXES, "{}", program.len());
        for vip in &vips {
            prop_assert_ne!(run(&program, MULTICAST, &neighbour(kind, CLIENT6, *vip)), 0);
            prop_assert_ne!(run(&program, MULTICAST, &neighbour(135, *vip, CLIENT6)), 0);
        }
        if vips.len() <= MAX_PREFIXES && !vips.contains(&other) && !vips.contains(&CLIENT6) {
            prop_assert_eq!(run(&program, MULTICAST, &neighbour(kind, CLIENT6, other)), 0);
            prop_assert_eq!(run(&program, MULTICAST, &neighbour(kind, other, CLIENT6)), 0);
        }
    }

    #[test]
    fn any_octets_are_judged(frame in proptest::collection::vec(any::<u8>(), 0..100), vips in proptest::collection::btree_set(any_ipv6(), 1..50)) {
        let mut frame = frame;
        for (at, octet) in [(12, 0x86), (13, 0xdd), (20, 58), (54, 135)] {
            if let Some(place) = frame.get_mut(at) {
                *place = octet;
            }
        }
        // Whatever it is, a jump never leaves the program.
        run(&nd(&vips), MULTICAST, &frame);
    }

    #[test]
    fn every_vip_passes_and_while_few_nothing_else(
        vips in proptest::collection::btree_set(any::<u32>().prop_map(Ipv4Addr::from), 0..300),
        other in any::<u32>().prop_map(Ipv4Addr::from),
    ) {
        let program = program(&vips);
        prop_assert!(is_sound(&program) && program.len() <= 14 + 2 * (2 + MAX_PREFIXES));
        for vip in &vips {
            prop_assert_ne!(run(&program, BROADCAST, &packet(CLIENT, *vip)), 0);
            prop_assert_ne!(run(&program, BROADCAST, &packet(*vip, CLIENT)), 0);
        }
        if vips.len() <= MAX_PREFIXES && !vips.contains(&other) && !vips.contains(&CLIENT) {
            prop_assert_eq!(run(&program, BROADCAST, &packet(CLIENT, other)), 0);
        }
    }
}
