//! Bonds as announcing NICs: ports are left alone, the bond's own MAC address is the one that is told, and it stays or changes as the
//! bond says.

use std::{net::Ipv4Addr, time::Instant};

use anyhow::{Context as _, Result, ensure};
use l2lb::api::Role;
use pnet_base::MacAddr;

use crate::world::{Node, World, all_said, honest_source};

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 80);
pub const PORTS: [MacAddr; 2] = [MacAddr(2, 0, 0, 0, 1, 0), MacAddr(2, 0, 0, 0, 1, 1)];
pub const BOND: MacAddr = MacAddr(2, 0, 0, 0, 1, 0xb0);

/// Makes a bond of eth0 and eth1 with an address. Without a MAC address it takes that of its first port.
pub fn make_bond(node: &Node, mac: Option<MacAddr>, fail_over_mac: &str, address: &str) -> Result<()> {
    let own = mac.map(|mac| format!("address {mac} ")).unwrap_or_default();
    node.ip(&format!("link add bond0 {own}type bond mode active-backup miimon 20 fail_over_mac {fail_over_mac}"))?;
    for port in ["eth0", "eth1"] {
        node.ip(&format!("link set {port} down"))?;
        node.ip(&format!("link set {port} master bond0"))?;
        node.ip(&format!("link set {port} up"))?;
    }
    node.ip(&format!("addr add {address}/24 dev bond0"))?;
    node.ip("link set bond0 up").map(drop)
}

/// A world with one node whose bond owns the address.
fn owned_on_a_bond(mac: Option<MacAddr>, fail_over_mac: &str) -> Result<(World, Node)> {
    let mut world = World::new()?;
    let mut node = world.node("a", &PORTS)?;
    make_bond(&node, mac, fail_over_mac, "192.0.2.11")?;
    world.start_speaker(&mut node)?;
    world.assign(VIP, &[("a", Role::Primary, "bond0")])?;
    let claim = world.claims(&node, VIP, "Owner")?;
    ensure!(claim["interface"] == "bond0", "{claim}");
    Ok((world, node))
}

pub fn answered_with_its_own_mac() -> Result<()> {
    let (world, node) = owned_on_a_bond(Some(BOND), "none")?;
    let answer = world.answer(VIP, None)?;
    ensure!(honest_source(&answer)? == BOND, "{answer:?}");
    all_said(&node.ports[0].tap, VIP, BOND, None)?;
    ensure!(all_said(&node.ports[1].tap, VIP, BOND, None)? == 0, "the bond's second port spoke too");

    ensure!(
        world.interface(&node, "bond0").is_some_and(|bond| bond["announces"] == true),
        "the bond does not announce"
    );
    for port in ["eth0", "eth1"] {
        let seen = world.interface(&node, port).with_context(|| format!("{port} is not listed"))?;
        let reason = seen["reason"].as_str().unwrap_or_default();
        ensure!(seen["announces"] == false && reason.contains("it is a port of bond0"), "{seen}");
    }
    let opened = node.opened()?;
    ensure!(opened.contains("bond0") && opened.len() == 1, "open are {opened:?}");

    // Told to announce on a port, it says why it does not, and leaves it closed.
    let other = Ipv4Addr::new(192, 0, 2, 81);
    world.assign(other, &[("a", Role::Primary, "eth1")])?;
    let claim = world.claims(&node, other, "LinkDown")?;
    ensure!(claim["reason"].as_str().is_some_and(|reason| reason.contains("a port of bond0")), "{claim}");
    let opened = node.opened()?;
    ensure!(opened.len() == 1, "open are {opened:?}");
    Ok(())
}

pub fn outlives_its_active_port() -> Result<()> {
    let (world, node) = owned_on_a_bond(Some(BOND), "none")?;
    world.answer(VIP, None)?;
    let [first, second] = &node.ports[..] else { anyhow::bail!("a bond of two ports") };

    let cut = Instant::now();
    world.set_link(first, false)?;
    let answer = world.answer_after(VIP, None, cut)?;
    println!("the active port lost its link: answered through the other after {} ms", (answer.at - cut).as_millis());
    ensure!(honest_source(&answer)? == BOND, "{answer:?}");
    ensure!(all_said(&second.tap, VIP, BOND, None)? > 0, "nothing came through the second port");
    let claim = world.claims(&node, VIP, "Owner")?;
    ensure!(claim["mac"] == BOND.to_string(), "{claim}");

    world.set_link(second, false)?;
    world.claims(&node, VIP, "LinkDown")?;
    world.eventually("the bond's link is reported down", || {
        let bond = world.interface(&node, "bond0");
        Ok(bond.filter(|bond| bond["announces"] == false && bond["reason"] == "it has no link"))
    })?;

    // The one that was lost first is the first to be back.
    let back = Instant::now();
    first.tap.forget();
    world.set_link(first, true)?;
    world.claims(&node, VIP, "Owner")?;
    let answer = world.answer_after(VIP, None, back)?;
    ensure!(honest_source(&answer)? == BOND, "{answer:?}");
    ensure!(all_said(&first.tap, VIP, BOND, None)? > 0, "nothing came through the first port");
    Ok(())
}

/// Waits for an announcement with this MAC address, an answer with it, and a claim with it, all after `since`.
fn told_anew(world: &World, node: &Node, mac: MacAddr, since: Instant) -> Result<()> {
    world
        .eventually(&format!("{VIP} is announced with {mac}"), || {
            let frames = world.tester.frames();
            Ok(frames.into_iter().find(|frame| {
                let announced = |arp: &lab::lan::frame::Arp| arp.is_announcement() && arp.sender_ip == VIP;
                frame.at >= since && frame.arp().is_some_and(|arp| announced(&arp) && arp.sender_mac == mac)
            }))
        })
        .with_context(|| node.log())?;
    let asked = Instant::now();
    let answer = world.answer_after(VIP, None, asked)?;
    ensure!(honest_source(&answer)? == mac, "{answer:?}");
    world.eventually("the claim names the new MAC address", || {
        let claim = world.api.claim(&VIP.to_string(), node.name);
        Ok(claim.filter(|claim| claim["state"] == "Owner" && claim["mac"] == mac.to_string()))
    })?;
    Ok(())
}

/// No frame about the address was ever sent whose Ethernet source is not its sender, nor one with another MAC than these.
fn only_from(node: &Node, macs: &[MacAddr]) -> Result<()> {
    for port in &node.ports {
        for frame in port.tap.frames().into_iter().filter(|frame| !frame.outgoing) {
            if frame.arp().is_some_and(|arp| arp.sender_ip == VIP) {
                let source = honest_source(&frame)?;
                ensure!(macs.contains(&source), "a frame about {VIP} is from {source}");
            }
        }
    }
    Ok(())
}

pub fn another_mac() -> Result<()> {
    const NEW: MacAddr = MacAddr(2, 0, 0, 0, 1, 0xb1);
    let (world, node) = owned_on_a_bond(Some(BOND), "none")?;
    world.answer(VIP, None)?;
    let changed = Instant::now();
    node.ip(&format!("link set bond0 address {NEW}"))?;
    told_anew(&world, &node, NEW, changed)?;
    only_from(&node, &[BOND, NEW])
}

pub fn mac_of_the_active_port() -> Result<()> {
    let (world, node) = owned_on_a_bond(None, "active")?;
    let answer = world.answer(VIP, None)?;
    ensure!(honest_source(&answer)? == PORTS[0], "{answer:?}");
    let cut = Instant::now();
    world.set_link(&node.ports[0], false)?;
    told_anew(&world, &node, PORTS[1], cut)?;
    only_from(&node, &PORTS)
}

pub fn fail_over() -> Result<()> {
    const OTHER: MacAddr = MacAddr(2, 0, 0, 0, 2, 0xb0);
    let mut world = World::new()?;
    let mut a = world.node("a", &PORTS)?;
    let mut b = world.node("b", &[MacAddr(2, 0, 0, 0, 2, 0), MacAddr(2, 0, 0, 0, 2, 1)])?;
    make_bond(&a, Some(BOND), "none", "192.0.2.11")?;
    make_bond(&b, Some(OTHER), "none", "192.0.2.12")?;
    world.start_speaker(&mut a)?;
    world.start_speaker(&mut b)?;
    world.assign(VIP, &[("a", Role::Primary, "bond0"), ("b", Role::Standby, "bond0")])?;
    world.claims(&a, VIP, "Owner")?;
    let answer = world.answer(VIP, None)?;
    ensure!(honest_source(&answer)? == BOND, "{answer:?}");
    // The standby asks the owner: it knows that it is not alone on this LAN.
    world
        .eventually("the standby watches the owner", || {
            let is_watch = |arp: &lab::lan::frame::Arp| arp.sender_mac == OTHER && arp.target_ip == VIP;
            Ok(a.ports[0].tap.frames().iter().any(|frame| frame.arp().is_some_and(|arp| is_watch(&arp))).then_some(()))
        })
        .with_context(|| b.log())?;

    let cut = Instant::now();
    for port in &a.ports {
        world.set_link(port, false)?;
    }
    let answer = world.answer_after(VIP, None, cut).with_context(|| b.log())?;
    println!(
        "both ports of the owner's bond lost their link: answered by the other node's after {} ms",
        (answer.at - cut).as_millis()
    );
    ensure!(honest_source(&answer)? == OTHER, "{answer:?}");
    world.claims(&b, VIP, "Owner")?;
    world.claims(&a, VIP, "LinkDown")?;

    // The node that returns sees that somebody answers.
    for port in &a.ports {
        world.set_link(port, true)?;
        port.tap.forget();
    }
    world.claims(&a, VIP, "Yielded")?;
    let back = Instant::now();
    let answer = world.answer_after(VIP, None, back)?;
    ensure!(honest_source(&answer)? == OTHER, "{answer:?}");
    for port in &a.ports {
        ensure!(all_said(&port.tap, VIP, BOND, None)? == 0, "the node that returned spoke for {VIP}");
    }
    ensure!(world.claims(&b, VIP, "Owner")?["mac"] == OTHER.to_string(), "the claim has another MAC address");
    Ok(())
}
