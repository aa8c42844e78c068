//! VLAN devices as announcing NICs: what is inside a VLAN stays inside.

use std::{net::Ipv4Addr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use l2lb::api::Role;
use lab::lan::tap::TappedFrame;
use pnet_base::MacAddr;

use crate::{
    bonds::{BOND, PORTS, make_bond},
    world::{Node, STRANGER, World, all_said, honest_source},
};

const VLAN: u16 = 10;
/// A VLAN of which the node has no device.
const UNKNOWN: u16 = 99;
/// The address inside the VLAN, and one on the device below it.
const INSIDE: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 90);
const BELOW: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 91);

/// Makes the VLAN device on `parent`, with a MAC address of its own if one is given, and lets the node own both addresses.
fn begin(world: &World, node: &mut Node, parent: &str, mac: Option<MacAddr>) -> Result<()> {
    add_vlan(node, parent, mac)?;
    world.start_speaker(node)?;
    world.assign(INSIDE, &[("a", Role::Primary, &format!("{parent}.{VLAN}"))])?;
    world.assign(BELOW, &[("a", Role::Primary, parent)])?;
    world.claims(node, INSIDE, "Owner")?;
    world.claims(node, BELOW, "Owner").map(drop)
}

fn add_vlan(node: &Node, parent: &str, mac: Option<MacAddr>) -> Result<()> {
    let own = mac.map(|mac| format!("address {mac} ")).unwrap_or_default();
    node.ip(&format!("link add link {parent} name {parent}.{VLAN} {own}type vlan id {VLAN}"))?;
    node.ip(&format!("addr add 192.0.2.21/24 dev {parent}.{VLAN}"))?;
    node.ip(&format!("link set {parent}.{VLAN} up")).map(drop)
}

/// Each address is answered in its own VLAN, and in no other.
fn answered_where_it_is(world: &World, node: &Node, inside: MacAddr, below: MacAddr) -> Result<()> {
    let wrong = [(INSIDE, None), (INSIDE, Some(UNKNOWN)), (BELOW, Some(VLAN)), (BELOW, Some(UNKNOWN))];
    // What is asked wrongly goes first each time: when the right question behind it is answered, it was dealt with.
    for _ in 0..3 {
        for (vip, vlan) in wrong {
            world.ask_wrongly(vip, vlan)?;
        }
        let asked = Instant::now();
        for (vip, vlan, mac) in [(INSIDE, Some(VLAN), inside), (BELOW, None, below)] {
            let answer = world.answer_after(vip, vlan, asked).with_context(|| node.log())?;
            ensure!(honest_source(&answer)? == mac, "{answer:?}");
        }
    }
    let tap = &node.ports[0].tap;
    let to_stranger = |frame: &TappedFrame| frame.arp().is_some_and(|arp| arp.target_ip == STRANGER.1);
    let answered = tap.frames().into_iter().find(|frame| !frame.outgoing && to_stranger(frame));
    ensure!(answered.is_none(), "who asked in the wrong VLAN was answered: {answered:?}");
    // Every frame that left the node about them: announcements and answers alike.
    ensure!(all_said(tap, INSIDE, inside, Some(VLAN))? > 0, "nothing left inside the VLAN");
    ensure!(all_said(tap, BELOW, below, None)? > 0, "nothing left outside of the VLAN");
    Ok(())
}

pub fn on_a_nic() -> Result<()> {
    // A device with a MAC address unlike that of the NIC below: a frame that mixed the two up would show it.
    const OWN: MacAddr = MacAddr(2, 0, 0, 0, 1, 0x10);
    let mut world = World::new()?;
    let mut node = world.node("a", &PORTS[..1])?;
    node.ip("addr add 192.0.2.11/24 dev eth0")?;
    begin(&world, &mut node, "eth0", Some(OWN))?;
    answered_where_it_is(&world, &node, OWN, PORTS[0])
}

pub fn on_a_bond() -> Result<()> {
    let mut world = World::new()?;
    let mut node = world.node("a", &PORTS)?;
    make_bond(&node, Some(BOND), "none", "192.0.2.11")?;
    begin(&world, &mut node, "bond0", None)?;
    answered_where_it_is(&world, &node, BOND, BOND)?;
    let opened: Vec<_> = node.opened()?.into_iter().collect();
    ensure!(opened == ["bond0", "bond0.10"], "open are {opened:?}");

    // The other port has to do, tag and all.
    let cut = Instant::now();
    world.set_link(&node.ports[0], false)?;
    let answer = world.answer_after(INSIDE, Some(VLAN), cut).with_context(|| node.log())?;
    ensure!(honest_source(&answer)? == BOND, "{answer:?}");
    ensure!(all_said(&node.ports[1].tap, INSIDE, BOND, Some(VLAN))? > 0, "nothing came through the second port");
    Ok(())
}

pub fn removed() -> Result<()> {
    let mut world = World::new()?;
    let mut node = world.node("a", &PORTS[..1])?;
    node.ip("addr add 192.0.2.11/24 dev eth0")?;
    begin(&world, &mut node, "eth0", None)?;
    world.answer(INSIDE, Some(VLAN))?;

    node.ip("link delete eth0.10")?;
    let claim = world.claims(&node, INSIDE, "LinkDown")?;
    let reason = claim["reason"].as_str().unwrap_or_default();
    ensure!(reason.contains("there is no interface eth0.10"), "{claim}");
    world.eventually("the interface is no longer listed", || {
        Ok(world.interface(&node, "eth0.10").is_none().then_some(()))
    })?;
    // What is below it is not disturbed.
    ensure!(world.claims(&node, BELOW, "Owner")?["mac"] == PORTS[0].to_string(), "the NIC below lost its address");

    let made = Instant::now();
    add_vlan(&node, "eth0", None)?;
    world.claims(&node, INSIDE, "Owner")?;
    let answer = world.answer_after(INSIDE, Some(VLAN), made)?;
    ensure!(honest_source(&answer)? == PORTS[0], "{answer:?}");
    all_said(&node.ports[0].tap, INSIDE, PORTS[0], Some(VLAN)).map(drop)
}
