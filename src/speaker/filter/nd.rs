//! Neighbour discovery: solicitations and advertisements whose target is a virtual IP, and solicitations from one.

use std::net::Ipv6Addr;

use super::{
    AND, Instruction, JUMP_IF_EQUAL, Jump, LOAD_CELL, LOAD_OCTET, LOAD_WORD, Prefixes, Program, RETURN, STORE,
    WHOLE_FRAME, cover,
};

const ETHERTYPE_IPV6: u32 = 0x86dd;
const VERSION_AT: u32 = 14;
const NEXT_HEADER_AT: u32 = 20;
const ICMPV6: u32 = 58;
const HOP_LIMIT: (u32, u32) = (21, 255);
const SOURCE_AT: u32 = 22;
const TYPE_AT: u32 = 54;
const CODE: (u32, u32) = (55, 0);
const TARGET_AT: u32 = 62;
const SOLICITATION: u32 = 135;
const ADVERTISEMENT: u32 = 136;
/// The shortest frame that has all of these fields.
const FRAME: u32 = 78;

/// The program for neighbour discovery about `vips`. Solicitations and advertisements that are cut short, or that have another
/// IP version, hop limit or code than they should, pass as well. Behind an extension header there is no neighbour discovery.
pub fn program<'a>(vips: impl IntoIterator<Item = &'a Ipv6Addr>) -> Vec<Instruction> {
    let prefixes = cover(&vips.into_iter().map(|vip| u128::from(*vip)).collect(), 128);
    let mut program = Program::received(ETHERTYPE_IPV6);
    if prefixes.networks.is_empty() {
        return program.finish();
    }
    program.plain(LOAD_OCTET, NEXT_HEADER_AT);
    program.jump(JUMP_IF_EQUAL, ICMPV6, Jump::DropIfFalse);
    program.plain(LOAD_OCTET, TYPE_AT);
    program.skip(SOLICITATION, 1, 0);
    program.jump(JUMP_IF_EQUAL, ADVERTISEMENT, Jump::DropIfFalse);
    program.pass_if_shorter(FRAME);
    program.pass_unless(LOAD_OCTET, HOP_LIMIT.0, HOP_LIMIT.1);
    program.pass_unless(LOAD_OCTET, CODE.0, CODE.1);
    program.plain(LOAD_OCTET, VERSION_AT);
    program.plain(AND, 0xf0);
    program.jump(JUMP_IF_EQUAL, 0x60, Jump::PassIfFalse);
    // A score of instructions: every jump fits. What follows has its own exits, one for each prefix.
    program.close_section();
    pass_if_covered(&mut program, TARGET_AT, &prefixes);
    program.plain(LOAD_OCTET, TYPE_AT);
    program.skip(SOLICITATION, 1, 0);
    program.plain(RETURN, 0);
    pass_if_covered(&mut program, SOURCE_AT, &prefixes);
    program.finish()
}

/// Takes the words of the address out of the frame once: the kernel makes fourteen instructions of its own of each such load, and
/// kernels before 6.8 take 20 KiB for a socket's filter and the one that it replaces together. Compares the last words first:
/// the first ones are often the same in all virtual IPs and in many others.
fn pass_if_covered(program: &mut Program, field: u32, prefixes: &Prefixes) {
    let masks = words(prefixes.mask);
    // The words of the mask that are not zero come first.
    let tested: Vec<u32> = (0..).zip(masks).filter(|(_, mask)| *mask != 0).map(|(word, _)| word).collect();
    for (word, mask) in tested.iter().copied().zip(masks) {
        program.plain(LOAD_WORD, field + 4 * word);
        if mask != u32::MAX {
            program.plain(AND, mask);
        }
        program.plain(STORE, word);
    }
    for network in &prefixes.networks {
        let values = words(*network);
        // Two instructions for each word that is left, and the one that passes.
        let mut to_next: u8 = tested.iter().map(|_| 2).sum::<u8>() + 1;
        for (word, value) in tested.iter().zip(values).rev() {
            to_next -= 2;
            program.plain(LOAD_CELL, *word);
            program.skip(value, 0, to_next);
        }
        program.plain(RETURN, WHOLE_FRAME);
    }
}

fn words(bits: u128) -> [u32; 4] {
    let [a, b, c, d, e, f, g, h, i, j, k, l, m, n, o, p] = bits.to_be_bytes();
    [[a, b, c, d], [e, f, g, h], [i, j, k, l], [m, n, o, p]].map(u32::from_be_bytes)
}
