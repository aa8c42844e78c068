//! S0: a switch that forgets a MAC floods.
//!
//! The virtual IP only receives: a client that needs no ARP any more sends, nobody answers. The switch forgets what it
//! does not hear for a few seconds. It must never have to flood: the owner's NIC keeps itself known.

use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;
use lab::lan::host::{neighbour, stream_udp};
use lab::lan::{Ingress, RecordedFrame};

use crate::announcer::{Announcer, Failure, Kind, eventually, found};
use crate::field::{Field, UDP_PORT};

/// The refresh interval of what is tested must be at most half of this.
const AGEING: Duration = Duration::from_secs(3);
const PER_SECOND: u32 = 20;
/// Three ageing times of traffic.
const DATAGRAMS: usize = 180;

pub fn run(field: &Field<'_>, announcer: &mut dyn Announcer) -> Result<(), Failure> {
    let vip = announcer.vip();
    let to = SocketAddr::new(vip, UDP_PORT);
    let resolving = stream_udp(field.client, to, PER_SECOND)?;
    let resolved =
        eventually(field.patience, || Ok(neighbour(field.client, "eth0", vip)?.and_then(|neighbour| neighbour.mac)))?;
    let mac = resolved.ok_or_else(|| found(Kind::NotAnswered, format!("nobody answers for {vip}")))?;
    // From here on the client does not ask again: no answer of the owner refreshes the switch.
    field.client.ip(&[
        "neigh",
        "replace",
        &vip.to_string(),
        "lladdr",
        &mac.to_string(),
        "nud",
        "permanent",
        "dev",
        "eth0",
    ])?;
    resolving.stop();
    field.lan.set_ageing(AGEING)?;

    field.lan.forget_frames()?;
    let _stream = stream_udp(field.client, to, PER_SECOND)?;
    let deadline = AGEING * 3 + field.patience;
    eventually(deadline, || {
        if let Some(frame) = field.flooded()?.first() {
            return Err(found(Kind::Flooded, describe(field, frame)?));
        }
        Ok((field.datagrams(vip)?.len() >= DATAGRAMS).then_some(()))
    })?
    .context("the client sent too few datagrams")?;

    let owner = announcer.owner()?.with_context(|| format!("{vip} has no owner any more"))?;
    let datagrams = field.datagrams(vip)?;
    match datagrams.iter().find(|datagram| !field.is_for(datagram, owner)) {
        None => Ok(()),
        Some(stray) => {
            let details = format!("a datagram for {vip} went to {} out of {:?}", stray.mac, stray.egress);
            Err(found(Kind::NotFollowed, details))
        }
    }
}

fn describe(field: &Field<'_>, flooded: &RecordedFrame) -> anyhow::Result<String> {
    let to = flooded.destination().context("a frame without a destination")?;
    let from = match flooded.ingress {
        Ingress::Port(port) => field.lan.port_name(port),
        Ingress::Gateway => "the gateway".to_owned(),
    };
    let frames = field.lan.frames()?;
    let heard =
        frames.iter().filter(|frame| frame.source() == Some(to) && frame.at < flooded.at).map(|frame| frame.at).max();
    let heard = match heard {
        Some(at) => format!("last heard {} ms before", flooded.at.saturating_duration_since(at).as_millis()),
        None => "not heard since the ageing time was set".to_owned(),
    };
    let what = flooded.arp().map_or_else(|| "a frame".to_owned(), |arp| format!("{arp:?}"));
    Ok(format!("{what} from {from} for {to} went to {} ports: that address was {heard}", flooded.egress.len()))
}
