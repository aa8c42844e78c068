//! S1: an address moves and the neighbours do not hear of it.
//!
//! A client with a warm cache that will not ask again by itself sends all the time. The virtual IP moves: the client's
//! traffic must follow the new owner's first announcement, to that node alone.

use std::net::{IpAddr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::Context;
use lab::lan::host::{neighbour, stream_udp};
use lab::lan::{RecordedFrame, said};
use pnet_base::MacAddr;

use crate::announcer::{Announcer, Failure, Kind, eventually, found};
use crate::field::{Field, UDP_PORT};

const PER_SECOND: u32 = 100;
/// Shorter than the time to the second announcement, so that it is the first that counts.
pub const AT_ONCE: Duration = Duration::from_millis(200);
const DATAGRAMS: usize = 50;

pub fn run(field: &Field<'_>, announcer: &mut dyn Announcer) -> Result<(), Failure> {
    let vip = announcer.vip();
    // The client believes an answer for ten minutes.
    let family = if vip.is_ipv6() { "ipv6" } else { "ipv4" };
    field.client.sysctl(&format!("net.{family}.neigh.eth0.base_reachable_time_ms"), "600000")?;
    let _stream = stream_udp(field.client, SocketAddr::new(vip, UDP_PORT), PER_SECOND)?;
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

fn first_announcement(field: &Field<'_>, vip: IpAddr, old: MacAddr) -> anyhow::Result<Option<(Instant, MacAddr)>> {
    let frames = field.lan.frames()?;
    Ok(frames.iter().find_map(|frame| {
        let said = said(frame, vip).filter(|said| said.form.is_announcement() && said.sender_mac != old)?;
        Some((said.at, said.sender_mac))
    }))
}

/// All ARP and ND messages about the address, with times relative to the first announcement.
fn told_since(field: &Field<'_>, vip: IpAddr, announced_at: Instant) -> anyhow::Result<String> {
    let line = |frame: RecordedFrame| {
        let (form, mac, ip) = match (frame.arp(), frame.nd()) {
            (Some(arp), _) if [arp.sender_ip, arp.target_ip].map(IpAddr::from).contains(&vip) => {
                (arp.form(), arp.sender_mac, arp.sender_ip.into())
            }
            (_, Some(nd)) if [nd.source, nd.target].map(IpAddr::from).contains(&vip) => {
                (nd.form(), nd.link_layer.unwrap_or(MacAddr::zero()), IpAddr::from(nd.source))
            }
            _ => return None,
        };
        let ms = frame.at.saturating_duration_since(announced_at).as_secs_f64() * 1e3
            - announced_at.saturating_duration_since(frame.at).as_secs_f64() * 1e3;
        Some(format!("\n  {ms:+.1} ms {form:?} from {mac} ({ip}) to {}", frame.destination()?))
    };
    Ok(field.lan.frames()?.into_iter().filter_map(line).collect())
}
