//! The classic BPF program of the socket on which the kernel tells of interfaces: what tells of one container's interface, or
//! of a route to one destination, does not even wake the process. On a busy node that is nearly all that is told.
//!
//! Answers to our own questions hold many messages each, of which a program sees the first only: they all pass.

use netlink_packet_core::NLM_F_MULTIPART;

use super::OF_ONE_CONTAINER;
use crate::speaker::bpf::{AND, Instruction, LOAD_HALF, LOAD_OCTET, LOAD_WORD, RETURN};

const WHOLE_MESSAGE: u32 = u32::MAX;

// Where fields lie, from the beginning of the netlink header (16 octets).
const TYPE_AT: u32 = 4;
const FLAGS_AT: u32 = 6;
const FAMILY_AT: u32 = 16;
const DESTINATION_LENGTH_AT: u32 = 17;
/// Behind the 16 octets of a link's header: the kernel begins with the name.
const FIRST_ATTRIBUTE_KIND_AT: u32 = 34;
const NAME_AT: u32 = 36;

/// Where a jump leads.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Links,
    Routes,
    Drop,
    Pass,
}

/// The program.
pub fn program() -> Vec<Instruction> {
    let mut steps = vec![
        plain(LOAD_HALF, FLAGS_AT),
        plain(AND, as_loaded(NLM_F_MULTIPART)),
        jump(0, To::Next, To::Pass),
        plain(LOAD_HALF, TYPE_AT),
        jump(as_loaded(libc::RTM_NEWLINK), To::Links, To::Next),
        jump(as_loaded(libc::RTM_DELLINK), To::Links, To::Next),
        jump(as_loaded(libc::RTM_NEWROUTE), To::Routes, To::Next),
        jump(as_loaded(libc::RTM_DELROUTE), To::Routes, To::Pass),
    ];
    let routes = steps.len();
    steps.extend([plain(LOAD_OCTET, DESTINATION_LENGTH_AT), jump(0, To::Pass, To::Drop)]);
    let links = steps.len();
    // A bridge's messages about its ports have its own family.
    steps.extend([plain(LOAD_OCTET, FAMILY_AT), jump(0, To::Next, To::Drop)]);
    steps.extend([plain(LOAD_HALF, FIRST_ATTRIBUTE_KIND_AT), jump(as_loaded(libc::IFLA_IFNAME), To::Next, To::Pass)]);
    for name in OF_ONE_CONTAINER {
        let (prefix, mask) = beginning(name);
        steps.extend([plain(LOAD_WORD, NAME_AT), plain(AND, mask), jump(prefix, To::Drop, To::Next)]);
    }
    let pass = steps.len();
    steps.push(plain(RETURN, WHOLE_MESSAGE));
    steps.push(plain(RETURN, 0));
    let place = |to: To, after: usize| match to {
        To::Next => after,
        To::Routes => routes,
        To::Links => links,
        To::Pass => pass,
        To::Drop => pass + 1,
    };
    let resolve = |(at, (mut step, when, otherwise)): (usize, (Instruction, To, To))| {
        // There are fewer than 40 instructions: every distance fits.
        let distance = |to| u8::try_from(place(to, at + 1).saturating_sub(at + 1)).unwrap_or(u8::MAX);
        (step.jump_true, step.jump_false) = (distance(when), distance(otherwise));
        step
    };
    steps.into_iter().enumerate().map(resolve).collect()
}

fn plain(code: u16, operand: u32) -> (Instruction, To, To) {
    (Instruction::plain(code, operand), To::Next, To::Next)
}

fn jump(value: u32, when: To, otherwise: To) -> (Instruction, To, To) {
    (Instruction::skip(value, 0, 0), when, otherwise)
}

/// A number of this machine's byte order, as a program sees it, which loads in network byte order.
fn as_loaded(value: u16) -> u32 {
    value.to_be().into()
}

/// The first four octets of names that begin so, and which of their bits count.
fn beginning(name: &str) -> (u32, u32) {
    let (mut prefix, mut mask) = ([0; 4], [0; 4]);
    for ((prefix, mask), octet) in prefix.iter_mut().zip(&mut mask).zip(name.bytes()) {
        (*prefix, *mask) = (octet, u8::MAX);
    }
    (u32::from_be_bytes(prefix), u32::from_be_bytes(mask))
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::speaker::bpf;

    fn passes(message: &[u8]) -> bool {
        bpf::run(&program(), &[], message) > 0
    }

    fn message(kind: u16, flags: u16, body: &[u8]) -> Vec<u8> {
        let length = u32::try_from(16 + body.len()).unwrap();
        let mut message =
            [length.to_ne_bytes().as_slice(), &kind.to_ne_bytes(), &flags.to_ne_bytes(), &[7; 8]].concat();
        message.extend(body);
        message
    }

    fn link(kind: u16, flags: u16, family: u8, name: &str) -> Vec<u8> {
        let mut body = vec![family];
        body.extend([0; 15]);
        body.extend(u16::try_from(4 + name.len() + 1).unwrap().to_ne_bytes());
        body.extend(libc::IFLA_IFNAME.to_ne_bytes());
        body.extend(name.as_bytes());
        body.extend([0; 8]);
        message(kind, flags, &body)
    }

    #[test]
    fn news_of_single_containers_and_of_ports_of_bridges_do_not_pass() {
        for name in ["veth0", "veth12345678", "cali1a2b", "lxc9", "azv1", "eni0a"] {
            assert!(!passes(&link(libc::RTM_NEWLINK, 0, 0, name)), "{name}");
            assert!(!passes(&link(libc::RTM_DELLINK, 0, 0, name)), "{name}");
            assert!(passes(&link(libc::RTM_NEWLINK, NLM_F_MULTIPART, 0, name)), "{name} in an answer");
        }
        for name in ["eth0", "vet", "ve", "l", "lx", "ens3", "enp1s0", "br0", "xveth0", "bond0.12"] {
            assert!(passes(&link(libc::RTM_NEWLINK, 0, 0, name)), "{name}");
            assert!(passes(&link(libc::RTM_DELLINK, 0, 0, name)), "{name}");
            assert!(!passes(&link(libc::RTM_DELLINK, 0, 7, name)), "{name} as a bridge's port");
        }
    }

    #[test]
    fn of_routes_only_default_ones_pass() {
        for kind in [libc::RTM_NEWROUTE, libc::RTM_DELROUTE] {
            for (length, expected) in [(0, true), (1, false), (24, false), (32, false), (128, false)] {
                let mut body = [0; 12];
                (body[0], body[1]) = (2, length);
                assert_eq!(passes(&message(kind, 0, &body)), expected, "prefix length {length}");
                assert!(passes(&message(kind, NLM_F_MULTIPART, &body)), "in an answer");
            }
        }
    }

    #[test]
    fn addresses_errors_and_ends_pass() {
        let error = u16::try_from(libc::NLMSG_ERROR).unwrap();
        for kind in [libc::RTM_NEWADDR, libc::RTM_DELADDR, error] {
            assert!(passes(&message(kind, 0, &[0; 8])));
        }
        assert!(passes(&message(u16::try_from(libc::NLMSG_DONE).unwrap(), NLM_F_MULTIPART, &[0; 4])));
    }
}
