//! A virtual machine that owns an address and is paused as a whole: it sees no time pass, so that no fence can silence it. The other
//! machine takes the address over; when the first one goes on there are two owners, and soon there has to be one.
//!
//! ```text
//!  machine "other"                   machine "node"
//!    node a -- bridge -- NIC <=====> NIC -- bridge -- node b
//!                                             +------ tester
//! ```
//! The trial is played in `node`; it tells the outside when to pause and resume `other` ([`PAUSE`], [`RESUME`]).

use std::{
    net::Ipv4Addr,
    ops::RangeInclusive,
    process::ExitCode,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use l2lb::api::{FailoverClass, Role};
use lab::{
    lan::{
        frame::{Arp, ethernet},
        tap::Tap,
    },
    stalls::Stalls,
};
use pnet_base::MacAddr;
use serde_json::json;

use crate::world::{Node, World, honest_source, is_answer};

/// In the place of a trial's name: play the other machine.
pub const OTHER: &str = "other";
/// Orders to the outside.
pub const PAUSE: &str = "@pause";
/// See [`PAUSE`].
pub const RESUME: &str = "@resume";
/// MAC addresses of the machines' own NICs, which nobody speaks from.
pub const JOINTS: [&str; 2] = ["02:00:00:00:0f:01", "02:00:00:00:0f:02"];

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const MACS: [MacAddr; 2] = [MacAddr(2, 0, 0, 0, 1, 0), MacAddr(2, 0, 0, 0, 2, 0)];
const PAUSED: Duration = Duration::from_secs(12);
/// The rule says 1 s. Both machines are emulated, by a machine that does other things as well.
const SETTLED_WITHIN: Duration = Duration::from_secs(3);
/// A machine that stood still for so long, this one or the one that emulates both, is not judged by its times.
pub const STALL: Duration = Duration::from_millis(100);
/// An owner answers the tester, who asks all the time, at least so often.
const ANSWERS: Duration = Duration::from_secs(1);
/// An owner announces 0, 0.25, 1, 2, 4 and 10 s after it claimed, and then each 10 s, for those that were cut off meanwhile. When the one
/// that is paused was silent for so long, and the other one for [`SHORT_SILENCE`], neither gives itself away by chance: one has to ask.
const LONG_SILENCE: RangeInclusive<Duration> = Duration::from_millis(2200)..=Duration::from_millis(2800);
/// See [`LONG_SILENCE`].
const SHORT_SILENCE: RangeInclusive<Duration> = Duration::from_secs(1)..=Duration::from_secs(5);
/// There is one owner when only one answered for so long.
const CALM: Duration = Duration::from_secs(2);

/// A world with one of the two nodes, joined to the other machine's.
fn begin(name: &'static str, mac: MacAddr) -> Result<(World, Node, Tap)> {
    let mut world = World::new()?;
    // Its owners are patient: a machine that is slow is not dead.
    world.failover = FailoverClass::Relaxed;
    let joint = world.join()?;
    let mut node = world.node(name, &[mac])?;
    node.ip(&format!("addr add 192.0.2.1{}/24 dev eth0", mac.4))?;
    for (peer, mac) in ["a", "b"].into_iter().zip(MACS).filter(|(peer, _)| *peer != name) {
        let interfaces = json!([{"name": "eth0", "mac": mac.to_string(), "carrier": true, "announces": true}]);
        world.api.put(&json!({
            "kind": "Speaker", "metadata": {"name": peer}, "spec": {}, "status": {"interfaces": interfaces},
        }))?;
    }
    world.start_speaker(&mut node)?;
    world.assign(VIP, &[("a", Role::Primary, "eth0"), ("b", Role::Standby, "eth0")])?;
    Ok((world, node, joint))
}

/// The machine that is paused. It goes on until it is killed.
pub fn other() -> Result<ExitCode> {
    let (world, node, _joint) = begin("a", MACS[0])?;
    world.claims(&node, VIP, "Owner")?;
    loop {
        std::thread::park();
    }
}

/// The LAN is cut while it is paused, so that no question of the standby waits for it in its NIC, whose answer would give it away.
pub fn paused() -> Result<()> {
    let (world, node, joint) = begin("b", MACS[1])?;
    // The other machine may still be booting.
    let owner_is = |mac: MacAddr| {
        let since = Instant::now();
        let what = format!("{mac} answers for {VIP}");
        world
            .eventually(&what, || {
                world.ask(VIP, None)?;
                Ok(answers(&world, since)?.iter().any(|(_, from)| *from == mac).then_some(()))
            })
            .with_context(|| node.log())
    };
    owner_is(MACS[0])?;
    world.eventually("the owner answers the standby", || {
        let is_to_us = |bytes: &[u8]| ethernet(bytes).is_some_and(|frame| frame.destination == MACS[1]);
        let said = |arp: Arp| arp.sender_mac == MACS[0] && arp.sender_ip == VIP;
        let frames = node.ports[0].tap.frames();
        Ok(frames.iter().any(|frame| is_to_us(&frame.bytes) && frame.arp().is_some_and(said)).then_some(()))
    })?;

    let begin = Instant::now();
    world.eventually("the owner has announced and will not do so again soon, and it is the owner", || {
        world.ask(VIP, None)?;
        let is_owner = |(at, from): &(Instant, MacAddr)| *from == MACS[0] && at.elapsed() < ANSWERS;
        let owns = answers(&world, begin)?.last().is_some_and(is_owner);
        Ok(silent_for(&joint, MACS[0], &LONG_SILENCE)?.filter(|()| owns))
    })?;

    world.set_joined(false)?;
    println!("{PAUSE}");
    let paused = Instant::now();
    owner_is(MACS[1])?;
    println!("taken over {} ms after the owner was told to pause", paused.elapsed().as_millis());
    world.eventually("the pause is over, and the new owner will not announce again soon", || {
        let over = paused.elapsed() >= PAUSED;
        Ok(silent_for(&world.tester, MACS[1], &SHORT_SILENCE)?.filter(|()| over))
    })?;
    world.set_joined(true)?;
    joint.forget();
    println!("{RESUME}");

    // Ask on until the one that was paused has spoken, and then only one has answered for a while.
    let (resumed, stalls) = (Instant::now(), Stalls::watch()?);
    let first = world.eventually("the machine that was paused speaks for the address", || {
        world.ask(VIP, None)?;
        let says = |arp: Arp| arp.sender_ip == VIP;
        let frames = joint.frames().into_iter().filter(|frame| !frame.outgoing && frame.arp().is_some_and(says));
        let mut its = frames.filter(|frame| honest_source(frame).is_ok_and(|from| from == MACS[0]));
        Ok(its.next().map(|frame| frame.at))
    })?;
    let last_of_both = world.eventually("one owner is left", || {
        world.ask(VIP, None)?;
        let answers = answers(&world, resumed)?;
        let Some((_, now)) = answers.last() else { return Ok(None) };
        let other = answers.iter().rev().find(|(_, from)| from != now).map(|(at, _)| *at);
        Ok((other.unwrap_or(first).elapsed() >= CALM).then_some(other))
    })?;
    let two = last_of_both.map_or(Duration::ZERO, |last| last.saturating_duration_since(first));
    let told = first.saturating_duration_since(resumed);
    println!(
        "{} ms after it was told to go on it spoke; two owners for {} ms from then on",
        told.as_millis(),
        two.as_millis()
    );
    let mut within = SETTLED_WITHIN;
    let stood = stalls.worst_since(first);
    if stood > STALL {
        println!("this virtual machine stood still for {} ms meanwhile: so much more is allowed", stood.as_millis());
        within += stood;
    }
    ensure!(two <= within, "two owners for {two:?}\n{}", node.log());
    Ok(())
}

/// Whether the last announcement of this host is so long ago.
fn silent_for(tap: &Tap, mac: MacAddr, time: &RangeInclusive<Duration>) -> Result<Option<()>> {
    let is_news = |arp: Arp| arp.is_announcement() && arp.sender_mac == mac;
    let mut news = tap.frames().into_iter().filter(|frame| frame.arp().is_some_and(is_news));
    Ok(news.next_back().filter(|last| time.contains(&last.at.elapsed())).map(drop))
}

/// When the tester's questions were answered, and by whom.
fn answers(world: &World, since: Instant) -> Result<Vec<(Instant, MacAddr)>> {
    let frames = world.tester.frames().into_iter().filter(|frame| frame.at >= since);
    let answers = frames.filter(|frame| frame.arp().is_some_and(|arp| is_answer(&arp, VIP)));
    answers.map(|frame| Ok((frame.at, honest_source(&frame)?))).collect()
}
