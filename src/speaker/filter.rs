//! The classic BPF program that keeps the ARP noise of a LAN from waking the process. Built from the set of virtual IPs
//! alone; the NIC attaches it before it binds its socket.

use std::{collections::BTreeSet, net::Ipv4Addr};

/// At most this many prefixes are tested, so that every jump fits the eight bits that a conditional jump has.
const MAX_PREFIXES: usize = 32;

/// One instruction of a classic BPF program.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Instruction {
    /// What it does.
    pub code: u16,
    /// How many instructions to skip if the condition holds.
    pub jump_true: u8,
    /// How many instructions to skip if it does not.
    pub jump_false: u8,
    /// Its operand.
    pub operand: u32,
}

/// An IPv4 prefix.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Prefix {
    network: u32,
    mask: u32,
}

// Linux: include/uapi/linux/filter.h, bpf_common.h, if_packet.h.
const LOAD_WORD: u16 = 0x20;
const LOAD_HALF: u16 = 0x28;
const LOAD_LENGTH: u16 = 0x80;
const AND: u16 = 0x54;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_NOT_LESS: u16 = 0x35;
const RETURN: u16 = 0x06;
/// Where the kernel's packet type is found: `SKF_AD_OFF + SKF_AD_PKTTYPE`.
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
const PACKET_OTHERHOST: u32 = 3;
const PACKET_OUTGOING: u32 = 4;
const ETHERTYPE_AT: u32 = 12;
const ETHERTYPE_ARP: u32 = 0x0806;
/// Hardware type Ethernet and protocol type IPv4, then the lengths of their addresses (RFC 826).
const TYPES: (u32, u32) = (14, 0x0001_0800);
const LENGTHS: (u32, u32) = (18, 0x0604);
const ARP_FRAME: u32 = 42;
const SENDER_IP_AT: u32 = 28;
const TARGET_IP_AT: u32 = 38;
const WHOLE_FRAME: u32 = 0x0004_0000;

/// The program that passes ARP frames whose target or sender address is one of `vips`, and which this host did not send and
/// was not sent to another. Exact for up to 32 addresses; beyond that it passes the smallest equal prefixes that cover them.
/// What is no ARP for Ethernet and IPv4 passes as well, to be dropped and counted: a sound LAN has none of it. Without any
/// virtual IP nothing passes.
pub fn program<'a>(vips: impl IntoIterator<Item = &'a Ipv4Addr>) -> Vec<Instruction> {
    let prefixes = cover(vips.into_iter().map(|vip| u32::from(*vip)).collect());
    let mut program = Program::default();
    program.load(LOAD_WORD, PACKET_TYPE);
    program.drop_if(PACKET_OUTGOING);
    program.drop_if(PACKET_OTHERHOST);
    program.load(LOAD_HALF, ETHERTYPE_AT);
    program.drop_unless(ETHERTYPE_ARP);
    if !prefixes.is_empty() {
        program.pass_if_malformed();
    }
    for field in [TARGET_IP_AT, SENDER_IP_AT] {
        program.pass_if_covered(field, &prefixes);
    }
    program.finish()
}

/// Equal prefixes, as long as can be, that cover all of `addresses`; at most [`MAX_PREFIXES`].
fn cover(addresses: BTreeSet<u32>) -> Vec<Prefix> {
    for length in (0..=32u32).rev() {
        let mask = u32::MAX.checked_shl(32 - length).unwrap_or(0);
        let networks: BTreeSet<u32> = addresses.iter().map(|address| address & mask).collect();
        if networks.len() <= MAX_PREFIXES {
            return networks.into_iter().map(|network| Prefix { network, mask }).collect();
        }
    }
    // A prefix of length 0 covers everything with one network, so the loop has returned.
    Vec::new()
}

/// A program under construction. Its last two instructions are "drop" and "pass"; jumps to them are resolved at the end.
#[derive(Default)]
struct Program {
    steps: Vec<(Instruction, Option<Jump>)>,
}

#[derive(Clone, Copy)]
enum Jump {
    DropIfTrue,
    DropIfFalse,
    PassIfTrue,
    PassIfFalse,
}

impl Program {
    fn load(&mut self, code: u16, at: u32) {
        self.plain(code, at);
    }

    fn plain(&mut self, code: u16, operand: u32) {
        self.steps.push((Instruction { code, jump_true: 0, jump_false: 0, operand }, None));
    }

    fn jump(&mut self, operand: u32, jump: Jump) {
        self.jump_by(JUMP_IF_EQUAL, operand, jump);
    }

    fn jump_by(&mut self, code: u16, operand: u32, jump: Jump) {
        self.steps.push((Instruction { code, jump_true: 0, jump_false: 0, operand }, Some(jump)));
    }

    fn drop_if(&mut self, value: u32) {
        self.jump(value, Jump::DropIfTrue);
    }

    fn drop_unless(&mut self, value: u32) {
        self.jump(value, Jump::DropIfFalse);
    }

    fn pass_if_malformed(&mut self) {
        self.load(LOAD_LENGTH, 0);
        self.jump_by(JUMP_IF_NOT_LESS, ARP_FRAME, Jump::PassIfFalse);
        for (code, (field, value)) in [(LOAD_WORD, TYPES), (LOAD_HALF, LENGTHS)] {
            self.load(code, field);
            self.jump(value, Jump::PassIfFalse);
        }
    }

    fn pass_if_covered(&mut self, field: u32, prefixes: &[Prefix]) {
        // All prefixes are equally long: one load and one mask serve them all.
        if let Some(first) = prefixes.first() {
            self.load(LOAD_WORD, field);
            if first.mask != u32::MAX {
                self.plain(AND, first.mask);
            }
        }
        for prefix in prefixes {
            self.jump(prefix.network, Jump::PassIfTrue);
        }
    }

    fn finish(mut self) -> Vec<Instruction> {
        let drop_at = self.steps.len();
        self.plain(RETURN, 0);
        self.plain(RETURN, WHOLE_FRAME);
        let mut program = Vec::with_capacity(self.steps.len());
        for (index, (mut instruction, jump)) in self.steps.into_iter().enumerate() {
            // At most 12 + 2 * (2 + MAX_PREFIXES) instructions lie ahead, so the distance always fits.
            let to_drop = u8::try_from(drop_at.saturating_sub(index + 1)).unwrap_or(u8::MAX);
            match jump {
                Some(Jump::DropIfTrue) => instruction.jump_true = to_drop,
                Some(Jump::DropIfFalse) => instruction.jump_false = to_drop,
                Some(Jump::PassIfTrue) => instruction.jump_true = to_drop + 1,
                Some(Jump::PassIfFalse) => instruction.jump_false = to_drop + 1,
                None => {}
            }
            program.push(instruction);
        }
        program
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// What the kernel would do: the number of octets passed, 0 for none.
    fn run(program: &[Instruction], packet_type: u32, frame: &[u8]) -> u32 {
        let (mut at, mut accumulator) = (0usize, 0u32);
        loop {
            let step = program[at];
            at += 1;
            let offset = step.operand as usize;
            match step.code {
                LOAD_LENGTH => accumulator = u32::try_from(frame.len()).unwrap(),
                JUMP_IF_NOT_LESS => {
                    at += usize::from(if accumulator >= step.operand { step.jump_true } else { step.jump_false });
                }
                LOAD_WORD if step.operand == PACKET_TYPE => accumulator = packet_type,
                LOAD_WORD => match frame.get(offset..offset + 4) {
                    Some(octets) => accumulator = u32::from_be_bytes(octets.try_into().unwrap()),
                    None => return 0,
                },
                LOAD_HALF => match frame.get(offset..offset + 2) {
                    Some(octets) => accumulator = u32::from(u16::from_be_bytes(octets.try_into().unwrap())),
                    None => return 0,
                },
                AND => accumulator &= step.operand,
                JUMP_IF_EQUAL => {
                    at += usize::from(if accumulator == step.operand { step.jump_true } else { step.jump_false });
                }
                RETURN => return step.operand,
                other => panic!("the interpreter does not know {other:#x}"),
            }
        }
    }

    fn arp(sender: Ipv4Addr, target: Ipv4Addr) -> Vec<u8> {
        let mut frame = vec![0; 42];
        frame[12..20].copy_from_slice(&[8, 6, 0, 1, 8, 0, 6, 4]);
        frame[28..32].copy_from_slice(&sender.octets());
        frame[38..42].copy_from_slice(&target.octets());
        frame
    }

    const BROADCAST: u32 = 1;
    const CLIENT: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
    const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);

    #[test]
    fn requests_for_a_vip_and_frames_that_claim_it_pass() {
        let program = program([&VIP]);
        assert_ne!(run(&program, BROADCAST, &arp(CLIENT, VIP)), 0);
        assert_ne!(run(&program, BROADCAST, &arp(VIP, CLIENT)), 0);
        assert_ne!(run(&program, 0, &arp(VIP, CLIENT)), 0);
        assert_eq!(run(&program, BROADCAST, &arp(CLIENT, Ipv4Addr::new(192, 0, 2, 65))), 0);
    }

    #[test]
    fn own_frames_other_hosts_frames_and_other_protocols_do_not_pass() {
        let program = program([&VIP]);
        assert_eq!(run(&program, PACKET_OUTGOING, &arp(CLIENT, VIP)), 0);
        assert_eq!(run(&program, PACKET_OTHERHOST, &arp(CLIENT, VIP)), 0);
        let mut ipv4 = arp(CLIENT, VIP);
        ipv4[13] = 0;
        assert_eq!(run(&program, BROADCAST, &ipv4), 0);
    }

    #[test]
    fn what_is_no_arp_for_ethernet_and_ipv4_passes_to_be_counted() {
        let program = program([&VIP]);
        let other = Ipv4Addr::new(192, 0, 2, 65);
        assert_ne!(run(&program, BROADCAST, &arp(CLIENT, other)[..41]), 0, "truncated");
        for (place, name) in
            [(15, "hardware type"), (16, "protocol type"), (18, "hardware length"), (19, "protocol length")]
        {
            let mut frame = arp(CLIENT, other);
            frame[place] = 9;
            assert_ne!(run(&program, BROADCAST, &frame), 0, "{name}");
        }
        assert_eq!(run(&program, PACKET_OTHERHOST, &arp(CLIENT, other)[..41]), 0, "another host's is its own affair");
    }

    #[test]
    fn without_vips_nothing_passes() {
        assert_eq!(run(&program([]), BROADCAST, &arp(CLIENT, VIP)), 0);
    }

    #[test]
    fn many_vips_are_covered_by_few_prefixes() {
        let vips: Vec<Ipv4Addr> = (0..200u8).map(|host| Ipv4Addr::new(192, 0, 2, host)).collect();
        let program = program(&vips);
        assert!(program.len() < 80, "{}", program.len());
        assert_ne!(run(&program, BROADCAST, &arp(CLIENT, vips[199])), 0);
        assert_eq!(run(&program, BROADCAST, &arp(Ipv4Addr::new(10, 0, 0, 1), Ipv4Addr::new(192, 0, 3, 1))), 0);
    }

    proptest! {
        #[test]
        fn every_vip_passes_and_while_few_nothing_else(
            vips in proptest::collection::btree_set(any::<u32>().prop_map(Ipv4Addr::from), 0..300),
            other in any::<u32>().prop_map(Ipv4Addr::from),
        ) {
            let program = program(&vips);
            prop_assert!(program.len() <= 14 + 2 * (2 + MAX_PREFIXES));
            for vip in &vips {
                prop_assert_ne!(run(&program, BROADCAST, &arp(CLIENT, *vip)), 0);
                prop_assert_ne!(run(&program, BROADCAST, &arp(*vip, CLIENT)), 0);
            }
            if vips.len() <= MAX_PREFIXES && !vips.contains(&other) && !vips.contains(&CLIENT) {
                prop_assert_eq!(run(&program, BROADCAST, &arp(CLIENT, other)), 0);
            }
        }
    }
}
