//! Frames in a speaker's name. Whoever can send with another host's MAC address as Ethernet source can do with that host's
//! traffic what it likes; what it can do to a virtual IP is bounded, and over when it stops.

use std::net::Ipv4Addr;
use std::time::Duration;

use anyhow::{Result, bail, ensure};

use crate::Entry;
use crate::attacker::{Flood, claim, open, reply, request};
use crate::floods::flood;
use crate::world::{ATTACKER_MAC, NODE_MAC, PEER_MAC, Part, VIP, World, vip};

pub const TRIALS: [Entry; 5] = [
    ("claims_that_only_name_a_speaker_do_nothing", true, forged_claims),
    ("claims_with_a_speakers_mac_silence_an_address_no_longer_than_they_last", true, spoofed_claims),
    ("probes_with_a_speakers_mac_make_an_owner_announce_rarely", true, spoofed_probes),
    ("answers_with_a_speakers_mac_are_announced_against_and_reported_once", true, spoofed_answers),
    ("answers_in_the_name_of_a_dead_owner_delay_a_standby_only_while_they_last", true, spoofed_monitoring),
];
const RATE: u32 = 1_000;
/// To see when answers are back.
const MOMENT: Duration = Duration::from_millis(50);
/// Who does not hear the owner for this long may take its address over.
const SILENCE: Duration = Duration::from_millis(400);

fn forged_claims(suffix: &str) -> Result<()> {
    let world = World::new(suffix, 1, Part::Primary)?;
    let outcome = flood(&world, RATE, |_| claim(ATTACKER_MAC, PEER_MAC, VIP))?;
    outcome.is_bounded("claims that only name a speaker")?;
    outcome.is_served()?;
    ensure!(outcome.after.0.dropped_for("forged") >= 0.9 * outcome.sent.frames as f64, "not counted");
    ensure!(world.claim(0).is_some_and(|claim| claim["state"] == "Owner"), "it yielded");
    Ok(())
}

fn spoofed_claims(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 1, Part::Primary)?;
    let outcome = flood(&world, RATE, |_| claim(PEER_MAC, PEER_MAC, VIP))?;
    outcome.is_bounded("claims with a speaker's MAC")?;
    ensure!(outcome.writes <= 12, "{} API writes", outcome.writes);
    let client = world.client()?;
    let back = world.wait("it answers again", |_| Ok(client.ask_for(VIP, MOMENT)?.is_some()))?;
    println!("claims with a speaker's MAC: answered again {back:?} after the last one");
    // Again and again: as often as it comes back.
    let begun = world.api.writes();
    let attack = Flood::start(&world.attacker, 1, |_| claim(PEER_MAC, PEER_MAC, VIP))?;
    std::thread::sleep(Duration::from_secs(4));
    attack.stop()?;
    ensure!(world.api.writes() - begun <= 20, "{} API writes", world.api.writes() - begun);
    world.wait("it answers again", |_| Ok(client.ask_for(VIP, MOMENT)?.is_some()))?;
    world.wait("it says so", |world| Ok(world.claim(0).is_some_and(|claim| claim["state"] == "Owner")))?;
    world.wait_until_it_adds_up()
}

fn spoofed_probes(suffix: &str) -> Result<()> {
    let world = World::new(suffix, 1, Part::Primary)?;
    let outcome = flood(&world, RATE, |_| request(PEER_MAC, Ipv4Addr::UNSPECIFIED, VIP))?;
    outcome.is_bounded("probes with a speaker's MAC")?;
    outcome.is_served()?;
    // A new burst at most once a second; two of its announcements, each in both forms, fall into a second.
    let announced = outcome.after.0.sum("announcements_sent") - outcome.before.0.sum("announcements_sent");
    let seconds = outcome.sent.time.as_secs_f64() + 1.0;
    ensure!(announced <= 10.0 + 4.0 * seconds, "{announced} announcements in {seconds:.1} s");
    Ok(())
}

fn spoofed_answers(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 20, Part::Primary)?;
    let outcome =
        flood(&world, RATE, |number| reply(PEER_MAC, vip((number % 20) as u8), (NODE_MAC, Ipv4Addr::UNSPECIFIED)))?;
    outcome.is_bounded("answers with a speaker's MAC")?;
    outcome.is_served()?;
    world.wait("it is reported", |world| {
        let reported = |index| world.claim(index).is_some_and(|claim| claim["conflictMAC"] == PEER_MAC.to_string());
        Ok((0..20).all(reported))
    })?;
    Ok(())
}

fn spoofed_monitoring(suffix: &str) -> Result<()> {
    for round in 0..3 {
        if monitoring_is_spoofed(&format!("{suffix}-{round}"))? {
            return Ok(());
        }
        println!("\nPLAYED AGAIN: the attacker itself was silent for so long that the standby took over");
    }
    bail!("the attacker did not run often enough")
}

/// Nothing was shown when the attacker itself stood still for so long that a standby takes over.
fn monitoring_is_spoofed(suffix: &str) -> Result<bool> {
    let mut world = World::new(suffix, 1, Part::Standby)?;
    // The owner claimed, and then its node died. Somebody answers in its name.
    open(&world.attacker)?.send(&claim(PEER_MAC, PEER_MAC, VIP))?;
    let attack = Flood::start(&world.attacker, 100, |_| reply(PEER_MAC, VIP, (NODE_MAC, [192, 0, 2, 11].into())))?;
    let heard = world.metrics()?.of("frames_handed_over");
    world.wait("the standby hears a second of it", |world| {
        Ok(world.metrics()?.of("frames_handed_over") > heard + 100.0)
    })?;
    let owned = world.metrics()?.of("virtual_ips_owned");
    let sent = attack.stop()?;
    if owned > 0.0 && sent.longest_pause >= SILENCE {
        return Ok(false);
    }
    ensure!(owned == 0.0, "nobody was silent for longer than {:?}", sent.longest_pause);
    let client = world.client()?;
    let taken = world.wait("the standby takes over", |_| Ok(client.ask_for(VIP, MOMENT)?.is_some()))?;
    println!("answers in the name of a dead owner: taken over {taken:?} after the last one");
    world.wait_until_it_adds_up()?;
    Ok(true)
}
