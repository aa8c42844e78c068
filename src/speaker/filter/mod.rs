//! The classic BPF programs that keep the noise of a LAN from waking the process: one for ARP, one for neighbour discovery.
//! Built from the set of virtual IPs alone; the NIC attaches one before it binds its socket.
//!
//! Both pass frames about the virtual IPs that this host did not send and that were not sent to another. They are exact for
//! up to 32 addresses; beyond that they pass the longest equal prefixes that cover them. Malformed frames of their protocol pass
//! as well, to be dropped and counted: a sound LAN has none of them. Without any virtual IP nothing passes.

mod arp;
mod nd;
#[cfg(test)]
mod tests;

pub use arp::program as arp;
pub use nd::program as nd;

use std::collections::BTreeSet;

use super::bpf::{
    AND, Instruction, JUMP, JUMP_IF_EQUAL, JUMP_IF_NOT_LESS, LOAD_CELL, LOAD_HALF, LOAD_LENGTH, LOAD_OCTET, LOAD_WORD,
    RETURN, STORE,
};

/// At most this many prefixes are tested, so that every jump fits the eight bits that a conditional jump has.
const MAX_PREFIXES: usize = 32;

// Linux: include/uapi/linux/filter.h, if_packet.h.
/// Where the kernel's packet type is found: `SKF_AD_OFF + SKF_AD_PKTTYPE`.
const PACKET_TYPE: u32 = 0xffff_f000 + 4;
/// Where the index of the interface is found that the kernel takes the frame for: `SKF_AD_OFF + SKF_AD_IFINDEX`.
const INTERFACE: u32 = 0xffff_f000 + 8;
const PACKET_OTHERHOST: u32 = 3;
const PACKET_OUTGOING: u32 = 4;
const ETHERTYPE_AT: u32 = 12;
const WHOLE_FRAME: u32 = 0x0004_0000;

/// The same program, for frames that the kernel takes for the interface of this index. A socket on a NIC is handed the frames of the
/// VLAN devices on it as well, without their tags: they are of another LAN.
pub fn only_on(index: u32, program: &[Instruction]) -> Vec<Instruction> {
    let mut whole =
        vec![Instruction::plain(LOAD_WORD, INTERFACE), Instruction::skip(index, 1, 0), Instruction::plain(RETURN, 0)];
    whole.extend_from_slice(program);
    whole
}

/// Equal prefixes of the first `bits` bits of the words, as long as can be, that cover all of `addresses`; at most
/// [`MAX_PREFIXES`]. An address stands in the last `bits` bits.
fn cover(addresses: &BTreeSet<u128>, bits: u32) -> Prefixes {
    for length in (0..=bits).rev() {
        let mask = u128::MAX.checked_shl(bits - length).unwrap_or(0);
        let networks: BTreeSet<u128> = addresses.iter().map(|address| address & mask).collect();
        if networks.len() <= MAX_PREFIXES {
            return Prefixes { networks, mask };
        }
    }
    // A prefix of length 0 covers everything with one network, so the loop has returned.
    Prefixes { networks: BTreeSet::new(), mask: 0 }
}

/// Prefixes of one length.
struct Prefixes {
    networks: BTreeSet<u128>,
    mask: u128,
}

/// A program under construction. The last two instructions of each section are "drop" and "pass"; jumps to them are resolved
/// when it is closed. A section is short enough for every jump in it.
#[derive(Default)]
struct Program {
    closed: Vec<Instruction>,
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
    /// The beginning of both: frames of this Ethernet type that came in, and not for another host.
    fn received(ether_type: u32) -> Self {
        let mut program = Self::default();
        program.plain(LOAD_WORD, PACKET_TYPE);
        program.jump(JUMP_IF_EQUAL, PACKET_OUTGOING, Jump::DropIfTrue);
        program.jump(JUMP_IF_EQUAL, PACKET_OTHERHOST, Jump::DropIfTrue);
        program.plain(LOAD_HALF, ETHERTYPE_AT);
        program.jump(JUMP_IF_EQUAL, ether_type, Jump::DropIfFalse);
        program
    }

    fn plain(&mut self, code: u16, operand: u32) {
        self.steps.push((Instruction::plain(code, operand), None));
    }

    /// Skips so many instructions if the accumulator is `value`, or if it is not.
    fn skip(&mut self, value: u32, if_equal: u8, if_not: u8) {
        self.steps.push((Instruction::skip(value, if_equal, if_not), None));
    }

    fn jump(&mut self, code: u16, operand: u32, jump: Jump) {
        self.steps.push((Instruction::plain(code, operand), Some(jump)));
    }

    /// Tests that do not hold let the frame pass, to be counted.
    fn pass_unless(&mut self, load: u16, field: u32, value: u32) {
        self.plain(load, field);
        self.jump(JUMP_IF_EQUAL, value, Jump::PassIfFalse);
    }

    fn pass_if_shorter(&mut self, length: u32) {
        self.plain(LOAD_LENGTH, 0);
        self.jump(JUMP_IF_NOT_LESS, length, Jump::PassIfFalse);
    }

    /// Ends a section. What reaches its end goes on with the next one.
    fn close_section(&mut self) {
        self.plain(JUMP, 2);
        self.resolve();
    }

    /// Ends the program. What reaches its end is dropped.
    fn finish(mut self) -> Vec<Instruction> {
        self.resolve();
        self.closed
    }

    fn resolve(&mut self) {
        let drop_at = self.steps.len();
        self.plain(RETURN, 0);
        self.plain(RETURN, WHOLE_FRAME);
        for (index, (mut instruction, jump)) in self.steps.drain(..).enumerate() {
            // Each protocol's program says why the distance always fits.
            let to_drop = u8::try_from(drop_at.saturating_sub(index + 1)).unwrap_or(u8::MAX - 1);
            match jump {
                Some(Jump::DropIfTrue) => instruction.jump_true = to_drop,
                Some(Jump::DropIfFalse) => instruction.jump_false = to_drop,
                Some(Jump::PassIfTrue) => instruction.jump_true = to_drop + 1,
                Some(Jump::PassIfFalse) => instruction.jump_false = to_drop + 1,
                None => {}
            }
            self.closed.push(instruction);
        }
    }
}
