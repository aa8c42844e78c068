//! A thousand addresses on one node, which dies; then the node that took them over dies, too, and two others share them.

use std::collections::{BTreeMap, BTreeSet};
use std::net::Ipv4Addr;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use l2lb::api::FailoverClass;
use lab::lan::frame::ArpForm;

use crate::books::{Books, eventually, metric};
use crate::hosts::Host;
use crate::site::{Place, Site};
use crate::voices::{Word, longest_under_way, ms, turns};

const MANY: usize = 1000;
/// The announcements of one claim.
const BURST: usize = 5;
/// The promise is 1.5 s; this machine does everything else as well.
const BACK_WITHIN: Duration = Duration::from_secs(4);
/// At once, and then each millisecond (docs/architecture.md).
const PACE: (usize, usize) = (50, 5);
/// The pace is looked at in windows of this many milliseconds. The switch may see what was sent in one window in the next.
const WINDOW: usize = 100;
/// The frames of a thousand addresses are looked at this often.
const LOOK_AGAIN: Duration = Duration::from_millis(50);
/// Of a thousand questions the last is answered within this.
const ANSWERED_WITHIN: Duration = Duration::from_secs(3);
/// Of a thousand claims the last is read late by who is busy sending as many.
const CROSSING: Duration = Duration::from_secs(2);

/// One message of a node about one of the addresses.
struct Said {
    at: Instant,
    by: Place,
    vip: Ipv4Addr,
    form: ArpForm,
}

pub fn thousand(books: &Books) -> Result<()> {
    // They may be left from a round that failed.
    let many = books.virtual_ips()?.into_iter().filter_map(|object| object.spec.address.parse::<Ipv4Addr>().ok());
    books.withdraw(many.filter(|vip| vip.octets()[0] == 10).collect::<Vec<_>>())?;
    let mut site = Site::new(books, 4)?;
    let begun = Instant::now();
    let vips: Vec<Ipv4Addr> = (0..MANY).map(address).collect::<Result<_>>()?;
    let asker = site.host("asker")?;
    let places = |number: usize| if number.is_multiple_of(2) { [0, 1, 2] } else { [0, 1, 3] };
    let entry = |(number, vip): (usize, &Ipv4Addr)| site.entry(FailoverClass::Standard, *vip, &places(number));
    books.assign(&vips.iter().enumerate().map(entry).collect::<Vec<_>>())?;
    for (place, assigned) in [(0, MANY), (1, MANY), (2, MANY / 2), (3, MANY / 2)] {
        wait_for_assigned(&site, place, assigned)?;
    }
    for standby in [1, 2, 3] {
        site.wait_until_watched(None, 0, standby)?;
    }
    // All of them, unless the machine stood still so long that standbys took some.
    let first = of(owners(&site, &asker, &vips)?, 0);
    ensure!(
        first.len() == MANY || !first.is_empty() && !site.is_calm_since(begun),
        "the Primary has {} of {MANY}",
        first.len()
    );
    let owners = die(&mut site, &asker, &first, 0)?;
    // As a rule the first standby has them now, and what it has falls to the second standbys when it dies, too.
    let theirs = of(owners, 1);
    ensure!(!theirs.is_empty(), "the first standby has none of them");
    let owners = die(&mut site, &asker, &theirs, 1)?;
    for (place, vips) in owners {
        let second = |vip: &Ipv4Addr| number_of(*vip).map(|number| places(number)[2]).ok() == Some(place);
        ensure!(vips.iter().all(second), "node {} has addresses that it has no part in", place + 1);
    }
    ensure!(site.lan.take_overruns()? == 0 || !site.is_calm_since(begun), "the lab lost frames");
    books.withdraw(vips)
}

/// Switches a node off and judges what follows for the addresses that it had, of which the first are `vips`.
fn die(site: &mut Site<'_>, asker: &Host, vips: &[Ipv4Addr], dead: Place) -> Result<Vec<(Place, Vec<Ipv4Addr>)>> {
    let wanted: BTreeSet<Ipv4Addr> = vips.iter().copied().collect();
    eventually("the announcements of the claims are over", || {
        let announced =
            said(site)?.into_iter().filter(|said| said.by == dead && said.form == ArpForm::AnnouncementRequest);
        Ok((announced.filter(|said| wanted.contains(&said.vip)).count() >= vips.len() * BURST).then_some(()))
    })
    .with_context(|| site.report())?;
    site.lan.forget_frames()?;
    let cut = site.power_off(dead)?;
    let first = eventually("all are claimed by others", || {
        // Looking at all frames keeps the switch from its work.
        std::thread::sleep(LOOK_AGAIN);
        let mut first = first_claims(&said(site)?, cut, dead);
        first.retain(|vip, _| wanted.contains(vip));
        Ok((first.len() == wanted.len()).then_some(first))
    });
    let first = first.with_context(|| site.report())?;
    let (begun, over) = (first.values().min().context("none")?, first.values().max().context("none")?);
    println!(
        "{} addresses of a dead node: the first is back after {} ms, half after {} ms, the last after {} ms",
        first.len(),
        ms(cut, *begun),
        ms(cut, median(&first)),
        ms(cut, *over)
    );
    ensure!(*over < cut + BACK_WITHIN || !site.is_calm_since(cut), "the last is back after {} ms", ms(cut, *over));
    for heir in site.places().filter(|place| site.netns(*place).is_ok()) {
        keeps_the_pace(site, cut, heir)?;
        let overflows = metric(&site.metrics(heir)?, "l2lb_speaker_queue_overflows_total{queue=\"claims\"}")?;
        println!("node {}: {overflows} claims found its queue full", heir + 1);
    }

    let owners = owners(site, asker, vips)?;
    println!(
        "each was answered for by one node at the latest {} ms after the last was claimed",
        ms(*over, Instant::now())
    );
    let mut words: BTreeMap<Ipv4Addr, Vec<Word>> = BTreeMap::new();
    for Said { at, by, vip, form } in said(site)?.into_iter().filter(|said| said.form != ArpForm::Probe) {
        words.entry(vip).or_default().push(Word { at, by, form });
    }
    let crossed = words.values().map(|words| longest_under_way(words)).max().unwrap_or_default();
    for (vip, words) in &words {
        turns(words, |claimed, spoke| CROSSING + site.stalled_within(claimed, spoke))
            .with_context(|| vip.to_string())?;
    }
    println!("the last answer after another's claim came {} ms after it", crossed.as_millis());
    for (place, vips) in owners.iter().filter(|(_, vips)| !vips.is_empty()) {
        println!("node {} has {} of them", place + 1, vips.len());
    }
    Ok(owners)
}

/// Who answers for each of the addresses: one node for each. Where claims crossed on a busy machine, that takes a moment.
fn owners(site: &Site<'_>, asker: &Host, vips: &[Ipv4Addr]) -> Result<Vec<(Place, Vec<Ipv4Addr>)>> {
    let wanted: BTreeSet<Ipv4Addr> = vips.iter().copied().collect();
    let mut unsettled = BTreeMap::new();
    let settled = eventually("each is answered for by one node", || {
        let asked = Instant::now();
        asker.ask_once(vips)?;
        let mut answered: BTreeMap<Ipv4Addr, BTreeSet<Place>> = BTreeMap::new();
        // Whoever has no owner yet is asked for again.
        while answered.len() < wanted.len() && asked.elapsed() < ANSWERED_WITHIN {
            answered.clear();
            for said in said(site)?.iter().filter(|said| said.form == ArpForm::Reply && said.at > asked) {
                answered.entry(said.vip).or_default().insert(said.by);
            }
            answered.retain(|vip, _| wanted.contains(vip));
            std::thread::sleep(LOOK_AGAIN);
        }
        if answered.len() < wanted.len() {
            return Ok(None);
        }
        unsettled = answered.iter().filter(|(_, by)| by.len() > 1).map(|(vip, by)| (*vip, by.clone())).collect();
        Ok(unsettled.is_empty().then_some(answered))
    });
    let answered = settled.with_context(|| format!("{unsettled:?}\n{}", site.report()))?;
    let of = |place: Place| answered.iter().filter(|(_, by)| by.contains(&place)).map(|(vip, _)| *vip).collect();
    Ok(site.places().map(|place| (place, of(place))).collect())
}

/// Those of one node.
fn of(owners: Vec<(Place, Vec<Ipv4Addr>)>, place: Place) -> Vec<Ipv4Addr> {
    owners.into_iter().filter(|(owner, _)| *owner == place).flat_map(|(_, vips)| vips).collect()
}

fn median(first: &BTreeMap<Ipv4Addr, Instant>) -> Instant {
    let mut times: Vec<Instant> = first.values().copied().collect();
    times.sort_unstable();
    times[times.len() / 2]
}

/// Never more than the burst and the even pace, in any window.
fn keeps_the_pace(site: &Site<'_>, since: Instant, by: Place) -> Result<()> {
    // Both forms of one announcement count as one.
    let counts = |said: &&Said| matches!(said.form, ArpForm::Probe | ArpForm::AnnouncementRequest);
    let all = said(site)?;
    let times: Vec<usize> = all
        .iter()
        .filter(|said| said.by == by && said.at > since)
        .filter(counts)
        .map(|said| usize::try_from(ms(since, said.at)).unwrap_or(usize::MAX))
        .collect();
    let most =
        (0..times.len()).map(|from| times[from..].iter().take_while(|at| **at < times[from] + WINDOW).count()).max();
    let (most, allowed) = (most.unwrap_or_default(), PACE.0 + PACE.1 * 2 * WINDOW);
    println!("node {}: {} messages, at most {most} in {WINDOW} ms", by + 1, times.len());
    // A switch that stood still has seen at once what was sent one after the other.
    ensure!(
        most <= allowed || !site.is_calm_since(since),
        "node {} sent {most} in {WINDOW} ms, {allowed} are allowed",
        by + 1
    );
    Ok(())
}

/// All that nodes said about any of the addresses, and their probes to everybody.
fn said(site: &Site<'_>) -> Result<Vec<Said>> {
    site.lan.select(|frame| {
        let arp = frame.arp()?;
        let by = site.source(frame.ingress)?;
        let form = arp.form();
        let vip = if form == ArpForm::Probe { arp.target_ip } else { arp.sender_ip };
        let is_unicast_probe = form == ArpForm::Probe && frame.destination().is_none_or(|to| to.0 & 1 == 0);
        (vip.octets()[0] == 10 && !is_unicast_probe).then_some(Said { at: frame.at, by, vip, form })
    })
}

fn first_claims(all: &[Said], since: Instant, dead: Place) -> BTreeMap<Ipv4Addr, Instant> {
    let mut first = BTreeMap::new();
    let is_claim = |said: &&Said| said.form == ArpForm::AnnouncementRequest;
    for said in all.iter().filter(is_claim).filter(|said| said.at > since && said.by != dead) {
        first.entry(said.vip).or_insert(said.at);
    }
    first
}

fn wait_for_assigned(site: &Site<'_>, place: Place, wanted: usize) -> Result<()> {
    let reached = eventually(&format!("{wanted} addresses are assigned to node {}", place + 1), || {
        let assigned = metric(&site.metrics(place)?, "l2lb_speaker_virtual_ips_assigned")?;
        Ok((assigned == u64::try_from(wanted)?).then_some(()))
    });
    reached.with_context(|| site.report())
}

fn number_of(vip: Ipv4Addr) -> Result<usize> {
    Ok(usize::try_from(u32::from(vip) - u32::from(address(0)?))?)
}

fn address(number: usize) -> Result<Ipv4Addr> {
    let first = u32::from(Ipv4Addr::new(10, 20, 64, 1));
    Ok(Ipv4Addr::from(first + u32::try_from(number)?))
}
