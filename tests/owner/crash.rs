//! A speaker that is killed on a node that lives, and is started again as kubelet would.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use l2lb::api::FailoverClass;
use lab::lan::RecordedFrame;
use lab::lan::frame::ArpForm;
use lab::lan::host::{UdpSink, stream_udp};

use crate::books::{Books, eventually};
use crate::site::Site;
use crate::voices::ms;

const EACH: Duration = Duration::from_millis(20);
const PER_SECOND: u32 = 500;
const PORT: u16 = 9008;
const AFTERWARDS: usize = 100;
/// So often it asks before its first word.
const PROBES: usize = 2;

/// Twice: started again at once, and only when another node has taken over.
pub fn killed(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 2)?;
    let vip = site.vip(0);
    let (asker, client) = (site.host("asker")?, site.host("client")?);
    let begun = site.settle(&[(FailoverClass::Standard, vip)], &[1])?;
    let behind = UdpSink::listen(books.control_plane().netns(), PORT)?;
    let _asking = asker.ask(vec![vip], None, EACH)?;
    let stream = stream_udp(&client.netns, SocketAddrV4::new(vip, PORT), PER_SECOND)?;
    eventually("datagrams arrive", || Ok((behind.received() > 50).then_some(())))?;
    for at_once in [true, false] {
        let since = Instant::now();
        let owner = eventually("the owner is watched", || {
            let owner = site.words(vip)?.last().context("nobody spoke")?.by;
            Ok(site.is_watched(Some(vip), owner, 1 - owner, since)?.then_some(owner))
        })?;
        let killed = Instant::now();
        site.kill(owner)?;
        if !at_once {
            let (_, at) = site.wait_for_word(vip, killed, |place| place != owner)?;
            println!("taken over {} ms after the speaker was killed", ms(killed, at));
        }
        // What the old process said last has crossed the switch by now: questions did that were asked later.
        let dead = Instant::now();
        eventually("the questions go on", || Ok((questions_since(&site, vip, dead)? > 2).then_some(())))?;
        let restarted = Instant::now();
        site.restart(owner)?;
        site.wait_until_ready(owner)?;
        eventually("the new process has asked the LAN", || {
            Ok(site.probes(vip)?.iter().any(|(at, by)| *at > killed && *by == owner).then_some(()))
        })?;
        site.wait_for_answers(vip, Instant::now(), AFTERWARDS)?;
        let asked = site.probes(vip)?.into_iter().find(|(at, by)| *at > killed && *by == owner).map(|(at, _)| at);
        let words = site.words(vip)?;
        let first = words.iter().find(|word| word.at > restarted && word.by == owner);
        if let (Some(asked), Some(first)) = (asked, first) {
            println!(
                "the new process asked after {} ms, and spoke after {} ms",
                ms(killed, asked),
                ms(killed, first.at)
            );
            let probes =
                site.probes(vip)?.iter().filter(|(at, by)| *by == owner && *at > restarted && *at < first.at).count();
            ensure!(probes >= PROBES, "it spoke after {probes} probes\n{}", site.report());
            ensure!(first.is_claim(), "its first word was {:?}", first.form);
        } else {
            println!("the new process found another owner, and said nothing");
        }
        site.turns(vip)?;
    }
    let sent = stream.stop();
    let all = eventually("every datagram arrives", || Ok((behind.received() == sent).then_some(())));
    let lost = sent - behind.received();
    println!("{sent} datagrams, {lost} lost");
    // Where the machine stood still the lab's own sockets may have been full.
    if all.is_err() && !site.is_calm_since(begun) {
        Ok(())
    } else {
        all.with_context(|| format!("{lost} lost\n{}", site.report()))
    }
}

fn questions_since(site: &Site<'_>, vip: Ipv4Addr, since: Instant) -> Result<usize> {
    let question = |frame: &RecordedFrame| {
        let arp = frame.arp().filter(|arp| arp.form() == ArpForm::Request && arp.target_ip == vip)?;
        (frame.at > since && !arp.sender_ip.is_unspecified()).then_some(())
    };
    Ok(site.lan.select(question)?.len())
}
