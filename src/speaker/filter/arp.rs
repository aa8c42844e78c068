//! ARP: frames whose target or sender address is a virtual IP.

use std::net::Ipv4Addr;

use super::{AND, Instruction, JUMP_IF_EQUAL, Jump, LOAD_HALF, LOAD_WORD, Prefixes, Program, cover};

const ETHERTYPE_ARP: u32 = 0x0806;
/// Hardware type Ethernet and protocol type IPv4, then the lengths of their addresses (RFC 826).
const TYPES: (u32, u32) = (14, 0x0001_0800);
const LENGTHS: (u32, u32) = (18, 0x0604);
const FRAME: u32 = 42;
const SENDER_IP_AT: u32 = 28;
const TARGET_IP_AT: u32 = 38;

/// The program for ARP about `vips`. What is no ARP for Ethernet and IPv4 passes as well.
pub fn program<'a>(vips: impl IntoIterator<Item = &'a Ipv4Addr>) -> Vec<Instruction> {
    let prefixes = cover(&vips.into_iter().map(|vip| u128::from(u32::from(*vip))).collect(), 32);
    let mut program = Program::received(ETHERTYPE_ARP);
    if prefixes.networks.is_empty() {
        return program.finish();
    }
    program.pass_if_shorter(FRAME);
    program.pass_unless(LOAD_WORD, TYPES.0, TYPES.1);
    program.pass_unless(LOAD_HALF, LENGTHS.0, LENGTHS.1);
    // At most 11 + 2 * (2 + MAX_PREFIXES) instructions in all, so that every jump fits.
    for field in [TARGET_IP_AT, SENDER_IP_AT] {
        pass_if_covered(&mut program, field, &prefixes);
    }
    program.finish()
}

/// All prefixes are equally long: one load and one mask serve them all.
fn pass_if_covered(program: &mut Program, field: u32, prefixes: &Prefixes) {
    program.plain(LOAD_WORD, field);
    let mask = word(prefixes.mask);
    if mask != u32::MAX {
        program.plain(AND, mask);
    }
    for network in &prefixes.networks {
        program.jump(JUMP_IF_EQUAL, word(*network), Jump::PassIfTrue);
    }
}

/// The last 32 bits, in which an IPv4 address stands.
fn word(bits: u128) -> u32 {
    let [.., a, b, c, d] = bits.to_be_bytes();
    u32::from_be_bytes([a, b, c, d])
}
