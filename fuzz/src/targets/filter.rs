//! The programs in the kernel and the readers behind them: what is read and concerns an address passes, and while the
//! addresses are few nothing else that is read does.

use std::{collections::BTreeSet, net::IpAddr};

use l2lb::speaker::{
    bpf::Instruction,
    filter,
    wire::{self, Operation},
};

use super::wires::{OWN, frame_of, packet_type, passes};

/// As many addresses as a program tells apart.
const FEW: usize = 32;

/// Up to 48 addresses, made of two octets each or of the frame itself, and a frame.
pub fn run(data: &[u8]) {
    let Some((count, rest)) = data.split_first() else { return };
    let count = usize::from(count % 48);
    let Some((seeds, rest)) = rest.split_at_checked(2 * count) else { return };
    let frame = frame_of(rest);
    let mut vips: BTreeSet<IpAddr> = seeds.chunks(2).flat_map(addresses_of).collect();
    let Ok(packet) = wire::read(&frame, OWN) else {
        // Whatever it is, the programs end.
        let _ = (passes(&arp_of(&vips), &frame), passes(&nd_of(&vips), &frame));
        return;
    };
    match rest.first().map_or(0, |flags| flags >> 6) {
        1 => vips.extend([packet.target_ip]),
        2 => vips.extend([packet.sender_ip]),
        _ => {}
    }
    assert_ne!(packet_type(&frame), 3, "for another host");
    let program = if packet.target_ip.is_ipv4() { arp_of(&vips) } else { nd_of(&vips) };
    // An advertisement is about its sender. To whom it goes is its own affair, also when that is a virtual IP.
    let is_advertisement = packet.target_ip.is_ipv6() && packet.operation == Operation::Reply;
    let concerns = vips.contains(&packet.sender_ip) || !is_advertisement && vips.contains(&packet.target_ip);
    let of_family = vips.iter().filter(|vip| vip.is_ipv4() == packet.target_ip.is_ipv4()).count();
    let passed = passes(&program, &frame);
    assert!(passed || !concerns, "{packet:?} concerns one of {vips:?} and does not pass");
    assert!(!passed || concerns || of_family > FEW, "{packet:?} concerns none of {vips:?} and passes");
}

fn addresses_of(seed: &[u8]) -> [IpAddr; 2] {
    let [a, b] = [seed[0], seed[1]];
    [
        IpAddr::from([192, 0, a % 4, b]),
        IpAddr::from([0x2001, 0xdb8, u16::from(a % 4), 0, 0, 0, u16::from(a), u16::from(b)]),
    ]
}

fn arp_of(vips: &BTreeSet<IpAddr>) -> Vec<Instruction> {
    let vips: Vec<_> =
        vips.iter().filter_map(|vip| if let IpAddr::V4(vip) = vip { Some(*vip) } else { None }).collect();
    filter::arp(&vips)
}

fn nd_of(vips: &BTreeSet<IpAddr>) -> Vec<Instruction> {
    let vips: Vec<_> =
        vips.iter().filter_map(|vip| if let IpAddr::V6(vip) = vip { Some(*vip) } else { None }).collect();
    filter::nd(&vips)
}
