//! The instructions of classic BPF that this project's programs are made of: those for frames ([`super::filter`]) and the one for
//! what the kernel tells of interfaces ([`super::inventory`]).
//!
//! Words and half words are loaded in network byte order; a load beyond the end ends the program, and nothing passes.

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

// Linux: include/uapi/linux/filter.h, bpf_common.h.
pub(super) const LOAD_WORD: u16 = 0x20;
pub(super) const LOAD_HALF: u16 = 0x28;
pub(super) const LOAD_OCTET: u16 = 0x30;
pub(super) const LOAD_LENGTH: u16 = 0x80;
/// From a cell of the program's own memory, of which there are 16.
pub(super) const LOAD_CELL: u16 = 0x60;
/// Into such a cell.
pub(super) const STORE: u16 = 0x02;
pub(super) const AND: u16 = 0x54;
pub(super) const JUMP: u16 = 0x05;
pub(super) const JUMP_IF_EQUAL: u16 = 0x15;
pub(super) const JUMP_IF_NOT_LESS: u16 = 0x35;
pub(super) const RETURN: u16 = 0x06;

impl Instruction {
    /// One that goes on with the next.
    pub(super) const fn plain(code: u16, operand: u32) -> Self {
        Self { code, jump_true: 0, jump_false: 0, operand }
    }

    /// Skips so many instructions if what was loaded is `value`, or if it is not.
    pub(super) const fn skip(value: u32, if_equal: u8, if_not: u8) -> Self {
        Self { code: JUMP_IF_EQUAL, jump_true: if_equal, jump_false: if_not, operand: value }
    }
}

/// What the kernel would do: the number of octets passed, 0 for none. `beside` is what it knows beside them: the words that are
/// loaded from places where no data can be.
#[cfg(test)]
pub(super) fn run(program: &[Instruction], beside: &[(u32, u32)], data: &[u8]) -> u32 {
    let (mut at, mut accumulator, mut cells) = (0, 0, [None; 16]);
    loop {
        let step = program[at];
        at += 1;
        let offset = step.operand as usize;
        let octets = |count| data.get(offset..).and_then(|rest| rest.get(..count));
        let known = || beside.iter().find(|(place, _)| *place == step.operand).map(|(_, value)| *value);
        let load = |count| octets(count).map(|octets| octets.iter().fold(0, |sum, octet| sum << 8 | u32::from(*octet)));
        let skipped = |holds: bool| usize::from(if holds { step.jump_true } else { step.jump_false });
        let loaded = match step.code {
            LOAD_WORD => known().or_else(|| load(4)),
            LOAD_HALF => load(2),
            LOAD_OCTET => load(1),
            LOAD_LENGTH => u32::try_from(data.len()).ok(),
            // The kernel refuses a program that reads a cell before it has written it.
            LOAD_CELL => Some(cells[offset].unwrap()),
            AND => Some(accumulator & step.operand),
            _ => Some(accumulator),
        };
        let Some(loaded) = loaded else { return 0 };
        accumulator = loaded;
        match step.code {
            JUMP => at += offset,
            JUMP_IF_EQUAL => at += skipped(accumulator == step.operand),
            JUMP_IF_NOT_LESS => at += skipped(accumulator >= step.operand),
            RETURN => return step.operand,
            STORE => cells[offset] = Some(accumulator),
            LOAD_WORD | LOAD_HALF | LOAD_OCTET | LOAD_LENGTH | LOAD_CELL | AND => {}
            other => panic!("no program of ours has the instruction {other:#x}"),
        }
    }
}
