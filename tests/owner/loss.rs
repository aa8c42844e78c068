//! A LAN that loses and delays frames: no owner is doubted for that, and one that dies is replaced all the same.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use l2lb::api::FailoverClass;
use l2lb::speaker::owner::Timing;
use lab::lan::frame::ArpForm;

use crate::books::Books;
use crate::site::{Place, Site};
use crate::voices::{TIE, ms};

const EACH: Duration = Duration::from_millis(20);
/// At each node's port, in each direction: of thirteen exchanges between two nodes one is lost. Three in a row are a doubt, and whoever
/// gets no answer to its probes either takes over, rightly: that is rare, and seen on the wire.
const LOSS: f64 = 0.02;
const DELAY: Duration = Duration::from_millis(3);
const EXCHANGES: u32 = 3;
/// What came later than this before a claim may not have been read.
const READING: Duration = Duration::from_millis(30);
/// Two seconds of answers.
const AFTERWARDS: usize = 100;

pub fn lossy(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 3)?;
    let vips = [(FailoverClass::Standard, site.vip(0)), (FailoverClass::Fast, site.vip(1))];
    let asker = site.host("asker")?;
    site.settle(&vips, &[1, 2])?;
    let spoil = |site: &Site<'_>, places: &[Place], loss, delay| -> Result<Instant> {
        for place in places {
            site.lan.set_loss(site.port(*place)?, loss)?;
            site.lan.set_delay(site.port(*place)?, delay)?;
        }
        Ok(Instant::now())
    };
    let spoilt = spoil(&site, &[0, 1, 2], LOSS, DELAY)?;
    let _asking = asker.ask(vips.map(|(_, vip)| vip).to_vec(), None, EACH)?;
    for (class, vip) in vips {
        site.wait_for_answers(vip, spoilt, AFTERWARDS)?;
        if !was_unheard(&site, class, vip, spoilt)? {
            site.expect_only(vip, spoilt, 0)?;
        }
    }

    let cut = site.power_off(0)?;
    for (class, vip) in vips {
        let (_, at) = site.wait_for_word(vip, cut, |place| place != 0)?;
        println!("{class:?}: taken over {} ms after the power cut", ms(cut, at));
        let limit = Duration::from_secs(4);
        ensure!(at < cut + limit || !site.is_calm_since(cut), "no owner for {} ms\n{}", ms(cut, at), site.report());
    }
    // Of two that did not hear each other's claim one is left when the LAN is in order again.
    let healed = spoil(&site, &[1, 2], 0.0, Duration::ZERO)?;
    for (_, vip) in vips {
        site.wait_for_answers(vip, healed + 2 * TIE, AFTERWARDS)?;
        let speak = site.speakers_since(vip, healed + 2 * TIE)?;
        ensure!(speak.len() == 1 || !site.is_calm_since(healed), "nodes {speak:?} speak for {vip}\n{}", site.report());
    }
    Ok(())
}

/// Whether the first standby that claimed had lost all that the owner told it in the three exchanges before, and since.
fn was_unheard(site: &Site<'_>, class: FailoverClass, vip: Ipv4Addr, since: Instant) -> Result<bool> {
    let words = site.words(vip)?;
    let Some(claim) = words.iter().find(|word| word.at > since && word.by != 0) else { return Ok(false) };
    let (port, owner) = (site.port(claim.by)?, site.mac(0));
    let told = site.lan.select(|frame| {
        let arp = frame.arp().filter(|arp| arp.form() == ArpForm::Reply && arp.sender_mac == owner)?;
        let delivered = frame.egress.contains(&port) && frame.destination() == Some(site.mac(claim.by));
        let lately = frame.at + EXCHANGES * Timing::of(class).interval > claim.at && frame.at + READING < claim.at;
        (delivered && lately && arp.sender_ip == vip).then_some(())
    })?;
    if told.is_empty() {
        println!("node {} had heard nothing of the owner of {vip}, and took over rightly", claim.by + 1);
    }
    Ok(told.is_empty())
}
