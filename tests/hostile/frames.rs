//! Frames that are wrong, in each way in which a frame can be that reaches the process.

use anyhow::{Result, ensure};
use lab::stalls::NoExcuse;

use crate::Entry;
use crate::attacker::{claim, open, request};
use crate::world::{ATTACKER_MAC, NODE_MAC, PEER_MAC, Part, VIP, World};

pub const TRIALS: [Entry; 1] =
    [("malformed_frames_are_dropped_for_one_reason_each_and_answers_go_on", false, malformed)];

fn malformed(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 1, Part::Primary)?;
    // So that frames that are too long reach the speaker at all.
    world.attacker.ip(&["link", "set", "eth0", "mtu", "9000"])?;
    world.lan.set_mtu(9000)?;
    world.node.ip(&["link", "set", "eth0", "mtu", "9000"])?;
    let (socket, client) = (open(&world.attacker)?, world.client()?);
    let good = request(ATTACKER_MAC, [192, 0, 2, 9].into(), VIP);
    let with = |changes: &[(usize, u8)]| {
        let mut frame = good.clone();
        changes.iter().for_each(|(place, octet)| frame[*place] = *octet);
        frame
    };
    let long = |length: usize| [&good[..], &vec![0xaa; length - good.len()]].concat();
    let own = NODE_MAC.octets();
    let table: [(&str, Vec<u8>); 14] = [
        ("oversized", long(1519)),
        ("oversized", long(8000)),
        ("arp_truncated", good[..41].to_vec()),
        ("arp_truncated", good[..30].to_vec()),
        ("hardware_type", with(&[(15, 6)])),
        ("protocol_type", with(&[(16, 0x86), (17, 0xdd)])),
        ("hardware_length", with(&[(18, 255)])),
        ("protocol_length", with(&[(19, 0)])),
        ("operation", with(&[(21, 8)])),
        // To a group that is not everybody.
        ("destination", with(&[(0, 1), (1, 0), (2, 0x5e)])),
        ("sender_mac", with(&[(22, 1)])),
        ("sender_mac", with(&[(22, 0), (23, 0), (24, 0), (25, 0), (26, 0), (27, 0)])),
        ("own_frame", with(&[(22, own[0]), (23, own[1]), (24, own[2]), (25, own[3]), (26, own[4]), (27, own[5])])),
        ("forged", claim(ATTACKER_MAC, PEER_MAC, VIP)),
    ];
    for (reason, frame) in table {
        let before = world.metrics()?;
        socket.send(&frame)?;
        world.wait(&format!("{reason}, {} octets", frame.len()), |world| {
            Ok(world.metrics()?.dropped_for(reason) == before.dropped_for(reason) + 1.0)
        })?;
        ensure!(
            world.metrics()?.of("requests_answered") == before.of("requests_answered"),
            NoExcuse(format!("{reason}: answered"))
        );
    }
    world.wait("it answers after all that", |_| Ok(client.ask(VIP)?.is_some()))?;
    // As long as a frame without a jumbo payload can be.
    let answered = world.metrics()?.of("requests_answered");
    socket.send(&long(1514))?;
    world
        .wait("a padded request is answered", |world| Ok(world.metrics()?.of("requests_answered") == answered + 1.0))?;
    world.wait_until_it_adds_up()
}
