//! An owner whose process stands still for 12 s: another takes over, and what wakes up is no second owner.

use std::time::{Duration, Instant};

use anyhow::Result;
use l2lb::api::{ClaimState, FailoverClass};
use nix::sys::signal::Signal;

use crate::books::{Books, eventually, metric};
use crate::site::Site;
use crate::voices::ms;

const PAUSE: Duration = Duration::from_secs(12);
const EACH: Duration = Duration::from_millis(20);
/// So many answers after it woke: three seconds of questions.
const AFTERWARDS: usize = 150;

pub fn slept(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 3)?;
    let vips = [(FailoverClass::Standard, site.vip(0)), (FailoverClass::Fast, site.vip(1))];
    let asker = site.host("asker")?;
    site.settle(&vips, &[1])?;
    // Some of the questions are for the sleeper alone: they wait in its socket, and it would find them when it wakes.
    let both = vips.map(|(_, vip)| vip).to_vec();
    let _everybody = asker.ask(both.clone(), None, EACH)?;
    let _sleeper = asker.ask(both, Some(site.mac(0)), EACH)?;
    for (_, vip) in vips {
        site.wait_for_answers(vip, Instant::now(), 20)?;
    }
    let read_before = metric(&site.metrics(0)?, "l2lb_speaker_frames_received_total")?;

    site.signal(0, Signal::SIGSTOP)?;
    let stopped = Instant::now();
    let mut taken = Vec::new();
    for (class, vip) in vips {
        let (by, at) = site.wait_for_word(vip, stopped, |place| place != 0)?;
        println!("{class:?}: taken over {} ms after the owner stood still", ms(stopped, at));
        taken.push((vip, by, at));
    }
    // The length of the pause is what is tested.
    std::thread::sleep(PAUSE.saturating_sub(stopped.elapsed()));
    let woken = Instant::now();
    site.signal(0, Signal::SIGCONT)?;
    for (vip, _, _) in &taken {
        site.wait_for_answers(*vip, woken, AFTERWARDS)?;
    }
    let read = eventually("the sleeper reads what had queued up", || {
        let read = metric(&site.metrics(0)?, "l2lb_speaker_frames_received_total")?;
        Ok((read > read_before + 100).then(|| read - read_before))
    })?;
    println!("the sleeper found {read} frames when it woke, and answered none");
    for (vip, _, at) in taken {
        // Not a word before it claimed anew, which it has no reason to do as long as the other one answers.
        site.expect_one(vip, at, at, 0)?;
        books.wait_for_claim(vip, site.name(0), ClaimState::Yielded)?;
    }
    Ok(())
}
