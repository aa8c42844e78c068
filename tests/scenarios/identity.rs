//! The heart of S2 on the wire: in every frame that speaks for the virtual IP, the Ethernet source, the sender hardware address
//! (ARP) or link-layer address option (ND) and the NIC that it came out of are one.
//!
//! The address is asked for, moves, and is asked for again; all that is said about it meanwhile is judged. No host and no
//! gateway has to be misled by a lie for it to be found.

use std::net::SocketAddr;
use std::time::Instant;

use lab::lan::host::stream_udp;
use lab::lan::{Ingress, said_about};

use crate::announcer::{Announcer, Failure, Kind, eventually, found};
use crate::field::{Field, UDP_PORT};

const PER_SECOND: u32 = 50;

pub fn run(field: &Field<'_>, announcer: &mut dyn Announcer) -> Result<(), Failure> {
    let vip = announcer.vip();
    field.lan.forget_frames()?;
    let _stream = stream_udp(field.client, SocketAddr::new(vip, UDP_PORT), PER_SECOND)?;
    let first = spoken_for(field, announcer, None)?;
    announcer.move_away()?;
    spoken_for(field, announcer, Some(first))?;

    for said in said_about(&field.lan.frames()?, vip) {
        let nic = field.nodes.iter().find(|node| said.ingress == Ingress::Port(node.port));
        let honest = nic.is_some_and(|nic| nic.mac == said.ethernet_source && nic.mac == said.sender_mac);
        if !honest {
            let nic = nic.map_or_else(|| "no node's NIC".to_owned(), |nic| format!("the NIC {}", nic.mac));
            let details = format!(
                "a frame for {vip} came out of {nic} with the source {} and the sender {} ({:?})",
                said.ethernet_source, said.sender_mac, said.form
            );
            return Err(found(Kind::Lied, details));
        }
    }
    Ok(())
}

/// Waits until the address has an owner, which must not be `not`, and somebody has spoken for it since. It is asked for all the while.
fn spoken_for(field: &Field<'_>, announcer: &dyn Announcer, not: Option<usize>) -> Result<usize, Failure> {
    let vip = announcer.vip();
    let mut owned = None;
    let heard = eventually(field.patience, || {
        field.client.ip(&["neigh", "flush", "dev", "eth0"])?;
        let Some(owner) = announcer.owner()?.filter(|owner| Some(*owner) != not) else { return Ok(None) };
        let since = *owned.get_or_insert_with(Instant::now);
        Ok(said_about(&field.lan.frames()?, vip).iter().any(|said| said.at > since).then_some(owner))
    })?;
    heard.ok_or_else(|| found(Kind::NotAnswered, format!("nobody spoke for {vip}")))
}
