//! Failover between speakers, without API server and controller: the owner's port goes down, and traffic has to follow to
//! another node. The gap is measured on the wire: from the cut to the first datagram that leaves for another node's NIC and port.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, ensure};
use l2lb::api::Role;
use lab::lan::host::stream_udp;
use lab::lan::{is_question, said_about};

use crate::announcer::{Failure, Kind, eventually, found};
use crate::field::{Field, UDP_PORT};
use crate::product::Product;

const PER_SECOND: u32 = 200;
/// A failover class, the address that is used for it, and how long the gap may be: generously, on a machine that does a whole
/// cluster's work at the same time.
pub const CLASSES: [(&str, IpAddr, Duration); 3] = [
    ("Standard", IpAddr::V4(Ipv4Addr::new(192, 0, 2, 90)), Duration::from_secs(3)),
    ("Fast", IpAddr::V4(Ipv4Addr::new(192, 0, 2, 91)), Duration::from_secs(2)),
    ("Standard", IpAddr::V6(Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 2, 0x90)), Duration::from_secs(3)),
];

/// Plays it with a Service of its own, and leaves the cluster as it was.
pub fn run(product: &mut Product, class: &str, vip: IpAddr, at_most: Duration) -> Result<()> {
    let gap = play(product, class, vip).map_err(|failure| anyhow!("{failure}"))?;
    println!("{class}: the LAN's traffic followed to another node after {} ms", gap.as_millis());
    ensure!(gap <= at_most, "{class}: {vip} went unanswered for {gap:?}");
    Ok(())
}

fn play(product: &mut Product, class: &str, vip: IpAddr) -> Result<Duration, Failure> {
    product.set_failover(class)?;
    let family = if vip.is_ipv6() { "ipv6" } else { "ipv4" };
    let service = format!("failover-{}-{family}", class.to_lowercase());
    let owner = product.create(&service, vip)?;
    let gap = {
        let field = product.field();
        let _stream = stream_udp(field.client, SocketAddr::new(vip, UDP_PORT), PER_SECOND)?;
        watched(product, class, &service, vip, owner)?;
        let gap = fail_over(product, vip, owner)?;
        product.set_api_server(true)?;
        adopted(product, &service, vip)?;
        gap
    };
    product.remove(&service, vip)?;
    product.set_failover("Standard")?;
    Ok(gap)
}

/// Waits until a standby does its part. After a restart of the API server its speaker may hear of an address seconds later than the
/// owner's does; one that has never heard of it takes nothing over.
fn watched(product: &Product, class: &str, service: &str, vip: IpAddr, owner: usize) -> Result<(), Failure> {
    let field = product.field();
    field.lan.forget_frames()?;
    let watched = eventually(field.patience, || {
        // The API server may have come back only just now, here and below.
        let Ok(Some(standby)) = product.first_of(Role::Standby, service, vip) else { return Ok(None) };
        let (from, to) = (field.nodes[standby].mac, field.nodes[owner].mac);
        // The second question comes after an answer.
        let questions = field.lan.frames()?.iter().filter(|frame| is_question(frame, vip, from, to)).count();
        let failover = product.failover_of(service, vip).unwrap_or(None);
        let told = failover.is_some_and(|failover| format!("{failover:?}") == class);
        Ok((told && questions > 1).then_some(()))
    })?;
    Ok(watched.with_context(|| format!("no standby watches the owner of {vip}"))?)
}

/// The owner's port goes down, while no API server is there, and up again.
fn fail_over(product: &mut Product, vip: IpAddr, owner: usize) -> Result<Duration, Failure> {
    product.field().lan.forget_frames()?;
    reaches(&product.field(), vip, "its owner", |node| node == owner)?;
    product.set_api_server(false)?;
    product.field().lan.forget_frames()?;
    let cut = Instant::now();
    product.set_link(owner, false)?;
    let (_, at) = reaches(&product.field(), vip, "another node", |node| node != owner)?;
    product.set_link(owner, true)?;
    Ok(at.saturating_duration_since(cut))
}

/// Waits until the controller's books say what is so on the wire: it adopts the facts.
fn adopted(product: &Product, service: &str, vip: IpAddr) -> Result<(), Failure> {
    let field = product.field();
    field.lan.forget_frames()?;
    let agreed = eventually(field.patience, || {
        let Ok(Some(claimed)) = product.owner_of(service, vip) else { return Ok(None) };
        let datagrams = field.datagrams(vip)?;
        let reached = datagrams.last().is_some_and(|last| field.is_for(last, claimed));
        let primary = product.first_of(Role::Primary, service, vip).unwrap_or(None);
        Ok((reached && primary == Some(claimed)).then_some(()))
    })?;
    agreed.ok_or_else(|| found(Kind::NotFollowed, "the controller did not adopt who answers"))
}

/// Waits for a datagram that reaches such a node, and no other. Which node, and when.
fn reaches(
    field: &Field<'_>,
    vip: IpAddr,
    whom: &str,
    is_wanted: impl Fn(usize) -> bool,
) -> Result<(usize, Instant), Failure> {
    let seen = eventually(field.patience, || {
        let datagrams = field.datagrams(vip)?;
        let reached = |datagram| (0..field.nodes.len()).find(|node| is_wanted(*node) && field.is_for(datagram, *node));
        Ok(datagrams.iter().find_map(|datagram| Some((reached(datagram)?, datagram.at))))
    })?;
    if let Some(seen) = seen {
        return Ok(seen);
    }
    let datagrams = field.datagrams(vip)?;
    let last = datagrams.last().map(|last| format!("the last went to {} out of {:?}", last.mac, last.egress));
    let last = last.unwrap_or_else(|| "there was none".to_owned());
    let said: Vec<_> =
        said_about(&field.lan.frames()?, vip).iter().rev().take(5).map(|said| format!("{said:?}")).collect();
    Err(found(
        Kind::NotFollowed,
        format!("no datagram for {vip} reached {whom}: {last}; last said about it: {said:#?}"),
    ))
}
