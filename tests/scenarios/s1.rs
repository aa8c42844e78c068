//! S1: an address moves and the neighbours do not hear of it.
//!
//! A client with a warm cache that will not ask again by itself sends all the time. The virtual IP moves: the client's
//! traffic must follow the new owner's first announcement, to that node alone.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::lan::RecordedFrame;
use lab::lan::host::{neighbour, stream_udp};
use pnet_base::MacAddr;

use crate::announcer::{Announcer, Failure, Kind, eventually, found};
use crate::field::{Field, UDP_PORT};

const PER_SECOND: u32 = 100;
/// Shorter than the time to the second announcement, so that it is the first that counts.
const AT_ONCE: Duration = Duration::from_millis(200);
const DATAGRAMS: usize = 50;

pub fn run(field: &Field<'_>, announcer: &mut dyn Announcer) -> Result<(), Failure> {
    let vip = announcer.vip();
    // The client believes an answer for ten minutes.
    field.client.sysctl("net.ipv4.neigh.eth0.base_reachable_time_ms", "600000")?;
    let _stream = stream_udp(field.client, SocketAddrV4::new(vip, UDP_PORT), PER_SECOND)?;
    let old = field.wait_for_traffic(announcer, DATAGRAMS)?;
    let old_mac = field.nodes[old].mac;
    let cached = neighbour(field.client, "eth0", vip)?.and_then(|neighbour| neighbour.mac);
    if cached != Some(old_mac) {
        return Err(found(
            Kind::NotFollowed,
            format!("the client's cache holds {cached:?}, not the owner's {old_mac}"),
        ));
    }

    field.lan.forget_frames()?;
    announcer.move_away()?;
    let announced = eventually(field.patience, || Ok(first_announcement(field, vip, old_mac)?))?;
    let (announced_at, new_mac) = announced.ok_or_else(|| {
        found(Kind::NotAnnounced, format!("{vip} moved away from {old_mac}, and nobody announced it"))
    })?;
    let new = field.nodes.iter().position(|node| node.mac == new_mac);
    let new =
        new.ok_or_else(|| found(Kind::NotFollowed, format!("{vip} was announced at {new_mac}, which is no node")))?;

    let settled = announced_at + AT_ONCE;
    let after = eventually(field.patience, || {
        let datagrams = field.datagrams(vip)?;
        let after: Vec<_> = datagrams.into_iter().filter(|datagram| datagram.at > settled).collect();
        Ok((after.len() >= DATAGRAMS).then_some(after))
    })?
    .context("the client sent too few datagrams")?;
    for datagram in &after {
        if field.is_for(datagram, new) {
            continue;
        }
        let late = datagram.at.saturating_duration_since(announced_at).as_millis();
        let details = format!(
            "{late} ms after {new_mac} announced {vip} a datagram went to {} out of {:?}; what was said since the move:{}",
            datagram.mac,
            datagram.egress,
            told_since(field, vip, announced_at)?
        );
        return Err(found(if datagram.flooded { Kind::Flooded } else { Kind::NotFollowed }, details));
    }
    let owner = eventually(field.patience, || Ok((announcer.owner()? == Some(new)).then_some(())))?;
    owner.ok_or_else(|| found(Kind::NotFollowed, format!("{new_mac} announced {vip}, and another node is its owner")))
}

fn first_announcement(field: &Field<'_>, vip: Ipv4Addr, old: MacAddr) -> anyhow::Result<Option<(Instant, MacAddr)>> {
    let frames = field.lan.frames()?;
    Ok(frames.iter().find_map(|frame| {
        let arp = frame.arp()?;
        (arp.is_announcement() && arp.sender_ip == vip && arp.sender_mac != old).then_some((frame.at, arp.sender_mac))
    }))
}

/// All ARP messages about the address, with times relative to the first announcement.
fn told_since(field: &Field<'_>, vip: Ipv4Addr, announced_at: Instant) -> anyhow::Result<String> {
    let line = |frame: RecordedFrame| {
        let arp = frame.arp().filter(|arp| arp.sender_ip == vip || arp.target_ip == vip)?;
        let ms = frame.at.saturating_duration_since(announced_at).as_secs_f64() * 1e3
            - announced_at.saturating_duration_since(frame.at).as_secs_f64() * 1e3;
        let (form, to) = (arp.form(), frame.destination()?);
        Some(format!("\n  {ms:+.1} ms {form:?} from {} ({}) to {to}", arp.sender_mac, arp.sender_ip))
    };
    Ok(field.lan.frames()?.into_iter().filter_map(line).collect())
}
