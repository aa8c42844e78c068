//! One address that goes unanswered, and answers in the name of a node that is gone.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use l2lb::api::{ClaimState, FailoverClass};
use lab::lan::frame::ArpForm;
use lab::lan::{Ingress, said};

use crate::books::Books;
use crate::site::Site;
use crate::voices::ms;

const EACH: Duration = Duration::from_millis(20);
const AFTERWARDS: usize = 100;
/// So often the switch may be too late.
const ROUNDS: usize = 3;

/// Of three addresses of a node that lives one is not answered for any more, and nobody hears it claimed: it alone is taken
/// over, and the node that had it yields.
pub fn single(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 3)?;
    let vips = [site.vip(0), site.vip(1), site.vip(2)];
    let asker = site.host("asker")?;
    site.settle(&vips.map(|vip| (FailoverClass::Standard, vip)), &[1])?;
    let _asking = asker.ask(vips.to_vec(), None, EACH)?;
    let [silent, others @ ..] = vips;
    site.lan.mute(site.port(0)?, silent, true)?;
    let muted = Instant::now();
    let (by, at) = site.wait_for_word(silent, muted, |place| place != 0)?;
    println!("one of three addresses: taken over {} ms after it was last answered for", ms(muted, at));
    books.wait_for_claim(silent, site.name(0), ClaimState::Yielded)?;
    // What could make it speak again is gone, and still it does not.
    site.lan.mute(site.port(0)?, silent, false)?;
    site.wait_for_answers(silent, Instant::now(), AFTERWARDS)?;
    site.expect_only(silent, muted, by)?;
    for vip in others {
        // It was answered for all the time.
        site.expect_only(vip, muted, 0)?;
    }
    Ok(())
}

/// The switch goes on answering broadcasts for the dead owner, with its MAC address. It is asked itself, does not answer, and
/// one of the two standbys claims.
pub fn suppression(books: &Books) -> Result<()> {
    for _ in 0..ROUNDS {
        if is_suppressed(books)? {
            return Ok(());
        }
        println!("\nPLAYED AGAIN: the switch was too late to answer a standby before it took over");
    }
    bail!("a standby took over {ROUNDS} times before the switch had answered it")
}

/// Whether it was shown: the switch answered a standby before that one took over.
fn is_suppressed(books: &Books) -> Result<bool> {
    let mut site = Site::new(books, 3)?;
    let vips = [(FailoverClass::Standard, site.vip(0)), (FailoverClass::Fast, site.vip(1))];
    let asker = site.host("asker")?;
    let fabrics = [site.host("fabric-a")?, site.host("fabric-b")?];
    site.settle(&vips, &[1, 2])?;
    let _asking = asker.ask(vips.map(|(_, vip)| vip).to_vec(), None, EACH)?;
    let is_dead = Arc::<AtomicBool>::default();
    let mut suppressing = Vec::new();
    for ((_, vip), fabric) in vips.iter().zip(&fabrics) {
        suppressing.push(fabric.answer_for(*vip, site.mac(0), is_dead.clone())?);
    }
    // At the very moment: what follows takes longer than a takeover.
    site.set_link(0, false)?;
    is_dead.store(true, Ordering::Relaxed);
    let cut = Instant::now();
    site.power_off(0)?;
    let mut shown = true;
    for (((class, vip), answers), fabric) in vips.iter().zip(&suppressing).zip(&fabrics) {
        let (by, at) = site.wait_for_word(*vip, cut, |place| place != 0)?;
        let believed = answers.count();
        let port = site.port(by)?;
        let told = site.lan.select(|frame| {
            let said = said(frame, *vip).filter(|said| said.ingress == Ingress::Port(fabric.port) && said.at < at)?;
            (said.form == ArpForm::Reply && frame.egress.contains(&port)).then_some(())
        })?;
        shown &= !told.is_empty();
        println!(
            "{class:?}: taken over {} ms after the power cut, in spite of {believed} answers of the switch",
            ms(cut, at)
        );
        ensure!(
            at < cut + Duration::from_secs(5) || !site.is_calm_since(cut),
            "{vip} had no owner for {} ms\n{}",
            ms(cut, at),
            site.report()
        );
        site.wait_for_answers(*vip, at, AFTERWARDS)?;
        site.expect_one(*vip, cut + Duration::from_millis(50), at, 0)?;
    }
    Ok(shown)
}
