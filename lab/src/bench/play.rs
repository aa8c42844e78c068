//! One run: wait until all is well, strike under traffic, wait until it is over, and bring everything back.

use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::signal::Signal;

use super::PATIENCE;
use super::event::{Case, Event, Promise};
use super::figures::{Sample, Wire};
use super::stage::{POLL, Probes, Stage, Subject};
use crate::lan::frame::ArpForm;
use crate::lan::host::neighbour;
use crate::lan::{Ingress, PortId, RecordedFrame, said_about};
use crate::node;
use crate::process::wait_for;

const PAUSE: Duration = Duration::from_secs(12);
const PARTITION: Duration = Duration::from_secs(30);
/// What has not moved after this time does not move for this event.
const GIVE_UP: Duration = Duration::from_secs(20);
/// So long API server and controller are dead before something happens.
const HEADLESS_BEFORE: Duration = Duration::from_secs(3);
/// How long the LAN is looked at after the woken node or the healed LAN.
const AFTERWARDS: Duration = Duration::from_secs(4);

pub(super) fn once(stage: &mut Stage, subject: &mut dyn Subject, case: Case) -> Result<Sample> {
    let owner = subject.ready(stage, case).context("before the run")?;
    let before = stage.dropped()?;
    let mut probes = Probes::start(stage.cluster.client_ns(), subject.vip())?;
    if !case.local {
        // Whose address the client believes may be another one for a while after the last run: for good, where a
        // subject does not announce what it takes back.
        let begun = Instant::now();
        let client = stage.cluster.client_ns();
        wait_for("the client's traffic does not go to the owner", PATIENCE, POLL, || {
            let forwarder = probes.forwarder().map(|(_, forwarder)| forwarder);
            let right = forwarder == Some(way_of(stage, &owner));
            if !right && begun.elapsed() > Duration::from_secs(3) {
                client.ip(&["neigh", "flush", "to", &subject.vip().to_string(), "dev", "eth0"])?;
            }
            Ok(if right { Ok(()) } else { Err(format!("{owner} owns the address, {forwarder:?} forwards")) })
        })?;
    }
    if case.headless {
        stage.set_head(false)?;
        // Until everybody has noticed, and goes by what is known.
        std::thread::sleep(HEADLESS_BEFORE);
    }
    let struck = Instant::now();
    let wire = strike(stage, subject, case, &owner, &probes);
    let over = wire.and_then(|wire| {
        let stuck = !is_over(stage, subject, case, &owner, &probes, struck)?;
        Ok(Wire { stuck, ..wire })
    });
    probes.halt();
    if case.headless {
        stage.set_head(true)?;
    }
    let restored = restore(stage, subject, case, &owner).context("after the run");
    let (datagrams, connections, messages) = probes.stop()?;
    let wire = over.with_context(|| format!("datagrams: {}", datagrams.told(struck)))?;
    restored?;
    let own = stage.dropped()?.since(before);
    Ok(Sample { subject: subject.name(), case, struck, datagrams, connections, messages, own, wire })
}

fn strike(stage: &mut Stage, subject: &mut dyn Subject, case: Case, owner: &str, probes: &Probes) -> Result<Wire> {
    match case.event {
        Event::Nothing => std::thread::sleep(Duration::from_secs(3)),
        Event::PowerOff => stage.cluster.power_off(owner)?,
        Event::PortDown => stage.cluster.lan().partition(&[vec![stage.port(owner)?]])?,
        Event::CarrierLost => stage.cluster.set_link(owner, false)?,
        Event::Killed => subject.signal(stage, owner, Signal::SIGKILL)?,
        Event::Ended => subject.signal(stage, owner, Signal::SIGTERM)?,
        Event::Drained | Event::Rolled | Event::Moved => subject.order(stage, case, owner, true)?,
        Event::Paused => return pause(stage, subject, owner),
        Event::Partitioned => return partition(stage, subject, owner, probes),
    }
    Ok(Wire::default())
}

fn restore(stage: &mut Stage, subject: &mut dyn Subject, case: Case, owner: &str) -> Result<()> {
    match case.event {
        Event::PowerOff => {
            stage.cluster.power_on(owner)?;
            subject.revive(stage, owner)
        }
        Event::PortDown => stage.cluster.lan().partition(&[]),
        Event::CarrierLost => stage.cluster.set_link(owner, true),
        Event::Killed | Event::Ended => subject.revive(stage, owner),
        Event::Drained | Event::Rolled | Event::Moved => subject.order(stage, case, owner, false),
        Event::Nothing | Event::Paused | Event::Partitioned => Ok(()),
    }
}

/// Until the client's traffic goes where it will go on going. False if it does not get there.
fn is_over(
    stage: &Stage,
    subject: &dyn Subject,
    case: Case,
    owner: &str,
    probes: &Probes,
    struck: Instant,
) -> Result<bool> {
    if case.moves() {
        let way = way_of(stage, owner);
        let has_moved = || {
            Ok::<_, anyhow::Error>(if case.local {
                // The server sees the client itself.
                subject.owner(stage)?.is_some_and(|now| now != owner)
            } else {
                probes.forwarder().is_some_and(|(_, forwarder)| forwarder != way)
            })
        };
        while !has_moved()? {
            if struck.elapsed() > GIVE_UP {
                return Ok(false);
            }
            std::thread::sleep(POLL);
        }
    } else if case.event == Event::Killed {
        std::thread::sleep(subject.notices_within().saturating_sub(struck.elapsed()));
    }
    // What ends and starts with a planned move may come after it.
    probes.flow(if matches!(case.promise(), Promise::NoLoss) { 2000 } else { 300 })?;
    Ok(true)
}

/// What the server sees of a node's forwarding.
fn way_of(stage: &Stage, node: &str) -> IpAddr {
    // A node that is off has a number all the same.
    let number = node.trim_start_matches("node").parse().unwrap_or_default();
    let number = stage.cluster.node(node).map_or(number, node::Node::index);
    node::management_address(number).into()
}

fn pause(stage: &Stage, subject: &mut dyn Subject, owner: &str) -> Result<Wire> {
    let (vip, port) = (subject.vip(), stage.port(owner)?);
    subject.signal(stage, owner, Signal::SIGSTOP)?;
    std::thread::sleep(PAUSE);
    stage.cluster.lan().forget_frames()?;
    // Some of the questions wait in the sleeper's socket when it wakes.
    ask_for(stage, vip, Duration::from_millis(300));
    subject.signal(stage, owner, Signal::SIGCONT)?;
    ask_for(stage, vip, AFTERWARDS);
    let frames = stage.cluster.lan().frames()?;
    Ok(Wire { unasked: Some(unasked(&frames, vip, port)), ..Wire::default() })
}

fn partition(stage: &Stage, subject: &dyn Subject, owner: &str, probes: &Probes) -> Result<Wire> {
    let (vip, port) = (subject.vip(), stage.port(owner)?);
    let (second, second_port) = &stage.second;
    let mut others = Probes::start(second, vip)?;
    let lan = stage.cluster.lan();
    lan.partition(&[vec![port, *second_port]])?;
    std::thread::sleep(PARTITION);
    lan.forget_frames()?;
    let healed = Instant::now();
    lan.partition(&[])?;
    ask_for(stage, vip, AFTERWARDS);
    others.flow(100)?;
    probes.flow(100)?;
    let frames = lan.frames()?;
    let said = said_about(&frames, vip);
    let winner = said.last().context("nobody answers the gateway")?.ingress;
    let last_of_others = said.iter().rev().find(|said| said.ingress != winner).map(|said| said.at);
    let moved = [probes, &others].map(|probes| probes.forwarder().map(|(since, _)| since));
    let last = moved.into_iter().chain([last_of_others]).flatten().max();
    let right = caches_right(stage, vip, winner)?;
    others.halt();
    // What the second client lost while it was cut off is not what is asked.
    others.stop()?;
    Ok(Wire {
        two_owners: Some(last.map_or(Duration::ZERO, |at| at.saturating_duration_since(healed))),
        caches_right: Some(right),
        ..Wire::default()
    })
}

/// Asks each 10 ms.
fn ask_for(stage: &Stage, vip: Ipv4Addr, how_long: Duration) {
    let end = Instant::now() + how_long;
    while Instant::now() < end {
        stage.ask(vip);
        std::thread::sleep(Duration::from_millis(10));
    }
}

/// Frames that spoke for the address from that port before one that asked everybody for it.
fn unasked(frames: &[RecordedFrame], vip: Ipv4Addr, port: PortId) -> u64 {
    let mut count = 0;
    for frame in frames.iter().filter(|frame| frame.ingress == Ingress::Port(port)) {
        let Some(arp) = frame.arp() else { continue };
        let everybody = frame.destination().is_some_and(|to| to.0 & 1 == 1);
        if arp.form() == ArpForm::Probe && arp.target_ip == vip && everybody {
            break;
        }
        if arp.sender_ip == vip {
            count += 1;
        }
    }
    count
}

/// Whether both clients and the gateway hold the winner's address.
fn caches_right(stage: &Stage, vip: Ipv4Addr, winner: Ingress) -> Result<bool> {
    let Ingress::Port(winner) = winner else { return Ok(false) };
    let lan = stage.cluster.lan();
    for host in [stage.cluster.client_ns(), &stage.second.0] {
        let mac = neighbour(host, "eth0", vip)?.and_then(|entry| entry.mac);
        if mac.and_then(|mac| lan.port_of(mac)) != Some(winner) {
            return Ok(false);
        }
    }
    Ok(lan.gateway().and_then(|gateway| gateway.entry(vip)).is_some_and(|entry| entry.port == winner))
}
