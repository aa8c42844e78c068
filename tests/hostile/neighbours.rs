//! The same by neighbour discovery: floods of solicitations and advertisements for an IPv6 address.

use std::io::Read as _;
use std::net::Ipv6Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use l2lb::speaker::wire::nd::{ALL_NODES, ethernet_group, solicited_node};
use lab::stalls::NoExcuse;
use pnet_base::MacAddr;
use socket2::Socket;

use crate::Entry;
use crate::attacker::{Flood, open, stranger};
use crate::client::listen;
use crate::floods::{ASK_AGAIN, flood_seen_by};
use crate::world::{ATTACKER_MAC, CLIENT_MAC, NODE_MAC, PEER_MAC, Part, World};

pub const TRIALS: [Entry; 2] = [
    ("floods_of_neighbour_discovery_are_filtered_answered_and_counted", true, floods),
    ("malformed_neighbour_discovery_is_dropped_for_one_reason_each", false, malformed),
];
/// The virtual IP.
pub const VIP6: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x100);
const CLIENT6: Ipv6Addr = Ipv6Addr::new(0xfe80, 0, 0, 0, 0, 0, 0, 0xcc);
const SOLICITATION: u8 = 135;
const ADVERTISEMENT: u8 = 136;

/// What a frame of neighbour discovery says.
#[derive(Clone, Copy)]
struct Nd {
    source_mac: MacAddr,
    destination_mac: MacAddr,
    source: Ipv6Addr,
    destination: Ipv6Addr,
    kind: u8,
    flags: u8,
    target: Ipv6Addr,
    /// The link-layer address in its one option.
    option_mac: MacAddr,
}

impl Nd {
    /// `from` asks everybody for `target`.
    fn solicitation(from: (MacAddr, Ipv6Addr), target: Ipv6Addr) -> Self {
        let destination = solicited_node(target);
        Self {
            source_mac: from.0,
            destination_mac: ethernet_group(destination),
            source: from.1,
            destination,
            kind: SOLICITATION,
            flags: 0,
            target,
            option_mac: from.0,
        }
    }

    /// `mac` tells everybody that it has `target`.
    fn claim(mac: MacAddr, target: Ipv6Addr) -> Self {
        Self {
            source_mac: mac,
            destination_mac: ethernet_group(ALL_NODES),
            source: target,
            destination: ALL_NODES,
            kind: ADVERTISEMENT,
            // Override.
            flags: 0x20,
            target,
            option_mac: mac,
        }
    }

    fn frame(&self) -> Vec<u8> {
        let mut frame = [self.destination_mac.octets(), self.source_mac.octets()].concat();
        frame.extend([0x86, 0xdd, 0x60, 0, 0, 0, 0, 32, 58, 255]);
        frame.extend(self.source.octets());
        frame.extend(self.destination.octets());
        frame.extend([self.kind, 0, 0, 0, self.flags, 0, 0, 0]);
        frame.extend(self.target.octets());
        frame.extend([if self.kind == SOLICITATION { 1 } else { 2 }, 1]);
        frame.extend(self.option_mac.octets());
        write_checksum(&mut frame);
        frame
    }
}

/// RFC 4443 section 2.3: over the pseudo-header and the message.
fn write_checksum(frame: &mut [u8]) {
    frame[56..58].fill(0);
    let length = frame.len() - 54;
    let words = frame[22..].chunks(2).map(|pair| u32::from(pair[0]) << 8 | u32::from(*pair.get(1).unwrap_or(&0)));
    let mut sum: u32 = words.sum::<u32>() + u32::try_from(length).unwrap_or(0) + 58;
    while sum > 0xffff {
        sum = (sum & 0xffff) + (sum >> 16);
    }
    let checksum = !u16::try_from(sum).unwrap_or(0);
    frame[56..58].copy_from_slice(&checksum.to_be_bytes());
}

/// A client that behaves asks once; the time until the answer.
fn ask(socket: &Socket, limit: Duration) -> Result<Option<Duration>> {
    let begun = Instant::now();
    socket.send(&Nd::solicitation((CLIENT_MAC, CLIENT6), VIP6).frame())?;
    let mut buffer = [0; 2048];
    loop {
        // What came in meanwhile is read although the time is over: this thread may have stood still.
        let is_over = begun.elapsed() >= limit;
        let length = match (&*socket).read(&mut buffer) {
            Ok(length) => length,
            Err(_) if is_over => return Ok(None),
            Err(_) => continue,
        };
        let frame = &buffer[..length];
        let is_answer = length >= 86
            && frame[..6] == CLIENT_MAC.octets()
            && frame[54] == ADVERTISEMENT
            && frame[62..78] == VIP6.octets();
        if is_answer {
            ensure!(frame[80..86] == NODE_MAC.octets(), NoExcuse("the answer names another node".to_owned()));
            return Ok(Some(begun.elapsed()));
        }
    }
}

fn world(suffix: &str) -> Result<World> {
    World::with_addresses(suffix, &[VIP6.into()], Part::Primary)
}

fn floods(suffix: &str) -> Result<()> {
    let mut world = world(suffix)?;
    let netns = world.client_netns().clone();
    let client = || -> Result<_> {
        let socket = listen(&netns)?;
        Ok(move || ask(&socket, ASK_AGAIN))
    };
    let address = |number: u64| Ipv6Addr::from(u128::from(CLIENT6) & !0xffff_ffff | u128::from(number as u32));

    let others = move |number: u64| {
        let target = Ipv6Addr::from(u128::from(VIP6) + 1 + u128::from(number % 50_000));
        Nd::solicitation((stranger(number), address(number)), target).frame()
    };
    let outcome = flood_seen_by(&world, client()?, 50_000, others)?;
    outcome.is_bounded("solicitations for others")?;
    outcome.is_a_storm()?;
    outcome.is_served()?;
    let asked = outcome.seen.asked() as f64;
    ensure!(outcome.more("frames_received") <= asked + 20.0, "woken {} times", outcome.more("frames_received"));

    let for_us = move |number: u64| Nd::solicitation((stranger(number), address(number)), VIP6).frame();
    let outcome = flood_seen_by(&world, client()?, 5_000, for_us)?;
    outcome.is_bounded("solicitations for the virtual IP")?;
    outcome.is_served()?;
    outcome.answers_all()?;

    let forged = |_| Nd { source_mac: ATTACKER_MAC, ..Nd::claim(PEER_MAC, VIP6) }.frame();
    let attack = Flood::start(&world.attacker, 1_000, forged)?;
    world.wait("forged advertisements are dropped", |world| Ok(world.metrics()?.dropped_for("forged") > 100.0))?;
    attack.stop()?;
    ensure!(world.metrics()?.of("virtual_ips_owned") == 1.0, "it yielded");

    let claims = |number: u64| Nd::claim(stranger(number), VIP6).frame();
    let outcome = flood_seen_by(&world, client()?, 20_000, claims)?;
    outcome.is_bounded("advertisements of strangers")?;
    outcome.is_served()?;
    ensure!(outcome.writes <= 5, "{} API writes", outcome.writes);
    let name = World::name_of(VIP6.into());
    let attack = Flood::start(&world.attacker, 100, claims)?;
    world.wait("it is reported", |world| {
        let claim = world.api.claim(&name, crate::world::NODE);
        Ok(claim.is_some_and(|claim| claim["conflictMAC"].is_string()))
    })?;
    attack.stop()?;
    Ok(())
}

fn malformed(suffix: &str) -> Result<()> {
    let mut world = world(suffix)?;
    let socket = open(&world.attacker)?;
    let good = Nd::solicitation((ATTACKER_MAC, CLIENT6), VIP6);
    let with = |changes: &[(usize, u8)]| {
        let mut frame = good.frame();
        changes.iter().for_each(|(place, octet)| frame[*place] = *octet);
        write_checksum(&mut frame);
        frame
    };
    let mut wrong_sum = good.frame();
    wrong_sum[57] ^= 1;
    let frames =
        [with(&[(21, 64)]), with(&[(55, 1)]), with(&[(79, 0)]), with(&[(79, 9)]), with(&[(78, 1), (80, 1)]), wrong_sum];
    for frame in frames {
        let before = world.metrics()?;
        socket.send(&frame)?;
        world.wait("it is counted", |world| {
            Ok(world.metrics()?.sum("frames_dropped") == before.sum("frames_dropped") + 1.0)
        })?;
        ensure!(
            world.metrics()?.of("requests_answered") == before.of("requests_answered"),
            NoExcuse(format!("answered: {frame:02x?}"))
        );
    }
    let answered = world.metrics()?.of("requests_answered");
    socket.send(&good.frame())?;
    world.wait("a sound one is answered", |world| Ok(world.metrics()?.of("requests_answered") == answered + 1.0))?;
    world.wait_until_it_adds_up()
}
