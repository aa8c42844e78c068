//! A host that is no speaker and uses the address.

use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use l2lb::api::{ClaimState, FailoverClass};
use lab::lan::frame::ArpForm;
use lab::lan::host::stream_udp;
use lab::lan::{Ingress, said};

use crate::books::{Books, eventually};
use crate::hosts::Host;
use crate::site::Site;
use crate::voices::{UNDER_WAY, ms};

const EACH: Duration = Duration::from_millis(50);
/// An address is claimed in error no more often than this.
const TRIES: u8 = 4;
/// So long after its probes a node may claim.
const PROBED: Duration = Duration::from_secs(2);
/// It does so no sooner than this after the first of so many probes.
const ASKING: (usize, Duration) = (2, Duration::from_millis(150));
/// As far as the times of two frames at the switch can be off.
const JITTER: Duration = Duration::from_millis(30);
const RIVAL_EACH: Duration = Duration::from_millis(500);
const RIVALRY: Duration = Duration::from_secs(12);
/// In that time: two defences, which are ten seconds apart, and the repetition that each new owner makes every ten seconds.
const ANNOUNCEMENTS: usize = 4;

/// It was there first.
pub fn before(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 2)?;
    let (stranger, asker) = (site.host("stranger")?, site.host("asker")?);
    // Who is not answered for 150 ms claims, rightly: a stranger, and a switch, that a busy machine lets wait for longer are too late.
    for index in 0..TRIES {
        let (vip, named) = (site.vip(index), Instant::now());
        if left_alone(books, &site, vip, &stranger, &asker)? {
            return Ok(());
        }
        println!(
            "\nPLAYED AGAIN: {vip} was claimed before the stranger's answer was there; the machine stood still for {} ms",
            site.stalled_since(named).as_millis()
        );
        books.withdraw([vip])?;
    }
    bail!("each of {TRIES} addresses was claimed before the stranger's answer was there\n{}", site.report())
}

/// Whether the stranger's answers came in time, so that the address was left alone.
fn left_alone(books: &Books, site: &Site<'_>, vip: Ipv4Addr, stranger: &Host, asker: &Host) -> Result<bool> {
    let theirs = format!("{vip}/32");
    stranger.netns.ip(&["address", "add", &theirs, "dev", "eth0"])?;
    let _asking = asker.ask(vec![vip], None, EACH)?;
    let named = Instant::now();
    books.assign(&[site.entry(FailoverClass::Standard, vip, &[0, 1])])?;
    let blocked = eventually("it is reported as blocked, or claimed", || {
        let claim = books.claim(vip, site.name(0))?.filter(|claim| claim.state == ClaimState::Blocked);
        Ok(claim.map(Some).or((!site.words(vip)?.is_empty()).then_some(None)))
    });
    let Some(blocked) = blocked.with_context(|| site.report())? else {
        knew_nothing(site, vip, stranger)?;
        return Ok(false);
    };
    println!("reported as blocked {} ms after it was named", ms(named, Instant::now()));
    ensure!(blocked.conflict_mac.as_deref() == Some(&*stranger.mac.to_string()), "{blocked:?}");
    let answered = |site: &Site<'_>, since: Instant| {
        site.lan.select(|frame| {
            said(frame, vip).filter(|said| said.at > since && said.ingress == Ingress::Port(stranger.port))
        })
    };
    let since = Instant::now();
    eventually("the stranger answers", || Ok((answered(site, since)?.len() >= 40).then_some(())))?;
    if !site.words(vip)?.is_empty() {
        knew_nothing(site, vip, stranger)?;
        return Ok(false);
    }

    stranger.netns.ip(&["address", "del", &theirs, "dev", "eth0"])?;
    let left = Instant::now();
    let claimed = books.wait_for_claim(vip, site.name(0), ClaimState::Owner).with_context(|| site.report())?;
    println!("claimed {} ms after the stranger left", ms(left, Instant::now()));
    ensure!(claimed.conflict_mac.is_none(), "{claimed:?}");
    site.wait_for_answers(vip, left, 40)?;
    site.expect_only(vip, left, 0)?;
    Ok(true)
}

/// Fails if a node spoke for an address that had not asked for it as long as it must, or after an answer of who uses it had been
/// delivered to that node.
fn knew_nothing(site: &Site<'_>, vip: Ipv4Addr, stranger: &Host) -> Result<()> {
    // Whatever was asked before these words is among the probes.
    let (words, probes) = (site.words(vip)?, site.probes(vip)?);
    for word in words {
        let asked: Vec<Instant> =
            probes.iter().filter(|(at, by)| *by == word.by && *at < word.at).map(|(at, _)| *at).collect();
        let waited = asked.first().map_or(Duration::ZERO, |first| word.at.saturating_duration_since(*first));
        // A switch that stood still has seen the first probe later than it was sent.
        let late = asked.first().map_or(Duration::ZERO, |first| JITTER + site.stalled_within(*first, word.at));
        ensure!(
            asked.len() >= ASKING.0 && waited + late >= ASKING.1,
            "node {} spoke for an address that another host uses after {} probes in {} ms\n{}",
            word.by + 1,
            asked.len(),
            waited.as_millis(),
            site.report()
        );
        let port = site.port(word.by)?;
        let told = site.lan.select(|frame| {
            let said = said(frame, vip).filter(|said| said.ingress == Ingress::Port(stranger.port))?;
            (frame.egress.contains(&port) && said.at + UNDER_WAY < word.at).then_some(())
        })?;
        ensure!(
            told.is_empty(),
            "node {} spoke for an address that another host uses, and had been told so\n{}",
            word.by + 1,
            site.report()
        );
    }
    Ok(())
}

/// It comes later.
pub fn after(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 2)?;
    let vip = site.vip(0);
    let (rival, asker, client) = (site.host("rival")?, site.host("asker")?, site.host("client")?);
    let given = site.settle(&[(FailoverClass::Standard, vip)], &[1])?;
    let announcements = |site: &Site<'_>| -> Result<Vec<Instant>> {
        // Both forms of one announcement count as one.
        let words = site.words(vip)?;
        Ok(words
            .iter()
            .filter(|word| word.at > given && word.form == ArpForm::AnnouncementRequest)
            .map(|word| word.at)
            .collect())
    };
    eventually("the announcements of the claim are over", || Ok((announcements(&site)?.len() >= 5).then_some(())))?;
    let asking = asker.ask(vec![vip], None, EACH)?;
    let _traffic = stream_udp(&client.netns, std::net::SocketAddrV4::new(vip, 9000), 50)?;
    eventually("the client knows the owner", || Ok((client.believes(vip)? == Some(site.mac(0))).then_some(())))?;

    let (begun, asked_before) = (Instant::now(), asking.count());
    let rivalry = rival.claim(vip, RIVAL_EACH)?;
    let reported = eventually("the rival is reported", || {
        let claim = books.claim(vip, site.name(0))?.context("the owner's claim is gone")?;
        Ok(claim.conflict_mac.filter(|_| claim.state == ClaimState::Owner))
    });
    let reported = reported.with_context(|| site.report())?;
    ensure!(reported == rival.mac.to_string(), "{reported} was reported, {} is the rival", rival.mac);
    // That it goes on is what is tested.
    std::thread::sleep(RIVALRY.saturating_sub(begun.elapsed()));
    let claimed = rivalry.count();
    drop(rivalry);
    let silent = Instant::now();
    // The thread that judges may wake up later than it wanted.
    let in_time = |at: &Instant| *at > begun && *at < begun + RIVALRY;
    let defended: Vec<Instant> = announcements(&site)?.into_iter().filter(in_time).collect();
    println!("the rival claimed {claimed} times in {RIVALRY:?}, the owner announced {} times", defended.len());
    let first = defended.first().context("the owner did not defend itself")?;
    ensure!(
        *first < begun + Duration::from_secs(1) || !site.is_calm_since(begun),
        "it defended itself only after {} ms",
        ms(begun, *first)
    );
    // An owner that was late asks again, and claims anew; one that another node doubts announces anew.
    let probes =
        site.probes(vip)?.into_iter().map(|(at, _)| at).filter(|at| *at + PROBED > begun && *at < begun + RIVALRY);
    let probes: Vec<Instant> = probes.collect();
    let after = |at: &Instant| ms(begun, *at).cast_signed() - ms(*at, begun).cast_signed();
    ensure!(
        defended.len() <= ANNOUNCEMENTS + 5 * probes.len(),
        "it fought: it announced after {:?} ms, asked after {:?} ms\n{}",
        defended.iter().map(after).collect::<Vec<_>>(),
        site.probes(vip)?.iter().map(|(at, _)| after(at)).collect::<Vec<_>>(),
        site.report()
    );
    let answers = site.words(vip)?.iter().filter(|word| word.at > begun).count();
    let asked = asking.count() - asked_before;
    println!("meanwhile it gave {answers} answers to {asked} questions");
    ensure!(
        answers * 2 > usize::try_from(asked)? || !site.is_calm_since(begun),
        "it did not go on answering\n{}",
        site.report()
    );

    let cleared = eventually("the report is cleared", || {
        let claim = books.claim(vip, site.name(0))?.context("the owner's claim is gone")?;
        Ok((claim.state == ClaimState::Owner && claim.conflict_mac.is_none()).then(Instant::now))
    });
    let cleared = cleared.with_context(|| site.report())?;
    println!("the report was cleared {} ms after the rival fell silent", ms(silent, cleared));
    eventually("the client knows the owner again", || Ok((client.believes(vip)? == Some(site.mac(0))).then_some(())))?;
    site.expect_only(vip, begun, 0)?;
    Ok(())
}
