//! A LAN that loses and delays frames: no owner is doubted for that, and one that dies is replaced all the same.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use l2lb::api::FailoverClass;

use crate::books::Books;
use crate::site::{Place, Site};
use crate::voices::{TIE, ms};

const EACH: Duration = Duration::from_millis(20);
/// At each node's port, in each direction: of thirteen exchanges between two nodes one is lost. Three in a row are a doubt.
const LOSS: f64 = 0.02;
const DELAY: Duration = Duration::from_millis(3);
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
    for (_, vip) in vips {
        site.wait_for_answers(vip, spoilt, AFTERWARDS)?;
        site.expect_only(vip, spoilt, 0)?;
    }

    let cut = Instant::now();
    site.power_off(0)?;
    for (class, vip) in vips {
        let (_, at) = site.wait_for_word(vip, cut, |place| place != 0)?;
        println!("{class:?}: taken over {} ms after the power cut", ms(cut, at));
        let limit = Duration::from_secs(4);
        ensure!(at < cut + limit || !site.is_calm(), "no owner for {} ms\n{}", ms(cut, at), site.report());
    }
    // Of two that did not hear each other's claim one is left when the LAN is in order again.
    let healed = spoil(&site, &[1, 2], 0.0, Duration::ZERO)?;
    for (_, vip) in vips {
        site.wait_for_answers(vip, healed + 2 * TIE, AFTERWARDS)?;
        let speak = site.speakers_since(vip, healed + 2 * TIE)?;
        ensure!(speak.len() == 1 || !site.is_calm(), "nodes {speak:?} speak for {vip}\n{}", site.report());
    }
    Ok(())
}
