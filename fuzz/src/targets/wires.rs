//! From any octets to a frame that has a chance to be read, and a small interpreter of filter programs.

use l2lb::speaker::{
    bpf::Instruction,
    wire::{MacAddr, arp, nd},
};

/// The NIC that the frames come in on.
pub const OWN: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);

/// The frame in `data`. The first octet says what is put right in it, since a fuzzer guesses no checksum.
pub fn frame_of(data: &[u8]) -> Vec<u8> {
    let Some((flags, octets)) = data.split_first() else { return Vec::new() };
    let mut frame = octets.to_vec();
    if flags & 1 != 0 {
        put(&mut frame, 0, &OWN.octets());
    }
    if flags & 2 != 0 {
        put(&mut frame, 12, &[0x08, 0x06, 0, 1, 8, 0, 6, 4]);
    }
    if flags & 4 != 0 {
        let length = u16::try_from(frame.len().saturating_sub(54)).unwrap_or(u16::MAX);
        put(&mut frame, 12, &[0x86, 0xdd, 0x60]);
        put(&mut frame, 18, &length.to_be_bytes());
        put(&mut frame, 20, &[58, nd::HOP_LIMIT]);
    }
    if flags & 8 != 0 {
        put_checksum(&mut frame);
    }
    frame
}

fn put(frame: &mut [u8], at: usize, octets: &[u8]) {
    if let Some(place) = frame.get_mut(at..at + octets.len()) {
        place.copy_from_slice(octets);
    }
}

/// As RFC 4443 section 2.3 says, written anew here: the sum of the pseudo-header and the message.
fn put_checksum(frame: &mut [u8]) {
    if frame.len() < 58 {
        return;
    }
    let end = (54 + usize::from(u16::from_be_bytes([frame[18], frame[19]]))).min(frame.len());
    if end < 58 {
        return;
    }
    put(frame, 56, &[0, 0]);
    let mut sum = u64::try_from(end - 54).unwrap() + 58;
    for pair in frame[22..54].chunks(2).chain(frame[54..end].chunks(2)) {
        sum += (u64::from(pair[0]) << 8) | u64::from(pair.get(1).copied().unwrap_or(0));
    }
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    put(frame, 56, &(!u16::try_from(sum).unwrap()).to_be_bytes());
}

/// Whether the frame is a whole one of its protocol; padding may follow.
pub fn shortest(frame: &[u8]) -> usize {
    if frame.get(12..14) == Some(&[8, 6]) { arp::FRAME_LENGTH } else { 14 + 40 + 24 }
}

/// What the kernel calls the frame: for this host, for all, for a group, for another host.
pub fn packet_type(frame: &[u8]) -> u32 {
    match frame.get(..6) {
        Some(to) if *to == OWN.octets() => 0,
        Some([0xff, 0xff, 0xff, 0xff, 0xff, 0xff]) => 1,
        Some([first, ..]) if first & 1 != 0 => 2,
        _ => 3,
    }
}

/// Whether the program passes the frame, as the kernel runs it (Linux: Documentation/networking/filter.rst).
pub fn passes(program: &[Instruction], frame: &[u8]) -> bool {
    let (mut at, mut accumulator, mut cells) = (0, 0u32, [None; 16]);
    // Jumps lead forward only, so this ends.
    loop {
        let step = program.get(at).expect("a program ends with a return");
        at += 1;
        let offset = usize::try_from(step.operand).unwrap();
        let octets = |count: usize| frame.get(offset..offset.checked_add(count)?);
        let word = match step.code {
            0x20 if step.operand == 0xffff_f004 => Some(packet_type(frame)),
            0x20 => octets(4).map(|word| u32::from_be_bytes(word.try_into().unwrap())),
            0x28 => octets(2).map(|half| u32::from(u16::from_be_bytes(half.try_into().unwrap()))),
            0x30 => octets(1).map(|octet| u32::from(octet[0])),
            0x80 => Some(u32::try_from(frame.len()).unwrap()),
            0x54 => Some(accumulator & step.operand),
            0x60 => Some(cells[offset].expect("a cell is written before it is read")),
            0x02 => {
                cells[offset] = Some(accumulator);
                Some(accumulator)
            }
            0x05 => {
                at += offset;
                Some(accumulator)
            }
            0x15 | 0x35 => {
                let holds = if step.code == 0x15 { accumulator == step.operand } else { accumulator >= step.operand };
                at += usize::from(if holds { step.jump_true } else { step.jump_false });
                Some(accumulator)
            }
            0x06 => return step.operand != 0,
            other => panic!("an instruction that the kernel may not know: {other:#x}"),
        };
        match word {
            Some(word) => accumulator = word,
            // Beyond the end of the frame.
            None => return false,
        }
    }
}
