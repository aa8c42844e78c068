//! S2: the ARP payload says one MAC and the frame comes from another.
//!
//! The gateway stores the port that an ARP frame came in on, and sends its own traffic there. It must never hold an
//! address with the MAC of one node and the port of another, and its traffic must reach the owner: at first, after a
//! consistency check, after its entry expired, and all that again after a move.

use std::net::{IpAddr, Ipv4Addr, SocketAddrV4};

use anyhow::{Result, bail};
use lab::lan::said_about;

use crate::announcer::{Announcer, Failure, Kind, eventually, found};
use crate::field::{Field, UDP_PORT};

const PER_SECOND: u32 = 50;
const DATAGRAMS: usize = 25;

pub fn run(field: &Field<'_>, announcer: &mut dyn Announcer) -> Result<(), Failure> {
    let vip = ipv4(announcer)?;
    let _stream = field.gateway()?.stream_udp(SocketAddrV4::new(vip, UDP_PORT), PER_SECOND)?;
    let old = check_expire_and_ask_again(field, announcer)?;
    announcer.move_away()?;
    let moved = eventually(field.patience, || Ok(announcer.owner()?.filter(|owner| *owner != old)))?;
    moved.ok_or_else(|| found(Kind::NotFollowed, format!("{vip} was to move and has not")))?;
    check_expire_and_ask_again(field, announcer)?;
    Ok(())
}

fn check_expire_and_ask_again(field: &Field<'_>, announcer: &dyn Announcer) -> Result<usize, Failure> {
    let (vip, gateway) = (ipv4(announcer)?, field.gateway()?);
    let reached = |failure| match no_wrong_triple(field) {
        // The cause, rather than that nothing arrived.
        Err(cause @ Failure::Finding(_)) => cause,
        _ => failure,
    };
    field.wait_for_traffic(announcer, DATAGRAMS).map_err(reached)?;
    no_wrong_triple(field)?;

    field.lan.forget_frames()?;
    gateway.ask_again(vip);
    let answered =
        eventually(field.patience, || Ok((!said_about(&field.lan.frames()?, vip).is_empty()).then_some(())))?;
    answered.ok_or_else(|| found(Kind::NotAnswered, format!("nobody answers for {vip}")))?;
    field.wait_for_traffic(announcer, DATAGRAMS).map_err(reached)?;
    no_wrong_triple(field)?;

    gateway.expire(vip);
    let owner = field.wait_for_traffic(announcer, DATAGRAMS).map_err(reached)?;
    no_wrong_triple(field)?;
    Ok(owner)
}

/// The switch's gateway knows no IPv6.
fn ipv4(announcer: &dyn Announcer) -> Result<Ipv4Addr> {
    match announcer.vip() {
        IpAddr::V4(vip) => Ok(vip),
        IpAddr::V6(vip) => bail!("{vip} is no IPv4 address"),
    }
}

fn no_wrong_triple(field: &Field<'_>) -> Result<(), Failure> {
    match field.lan.wrong_gateway_entries()?.first() {
        None => Ok(()),
        Some(fact) => {
            let (name, mac) = (field.lan.port_name(fact.port), fact.mac);
            let of = field.lan.port_of(mac).map_or_else(|| "nobody".to_owned(), |port| field.lan.port_name(port));
            let details = format!("the gateway held {} at {mac}, which is {of}, on the port of {name}", fact.ip);
            Err(found(Kind::WrongTriple, details))
        }
    }
}
