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
use crate::voices::ms;

const MANY: usize = 1000;
/// The announcements of one claim.
const BURST: usize = 5;
/// The promise is 1.5 s; this machine does everything else as well.
const BACK_WITHIN: Duration = Duration::from_secs(8);
/// At once, and then each millisecond (docs/architecture.md).
const PACE: (usize, usize) = (50, 5);
/// The pace is looked at in windows of this many milliseconds. The switch may see what was sent in one window in the next.
const WINDOW: usize = 100;
const ASK_AGAIN: Duration = Duration::from_secs(2);

/// One message of a node about one of the addresses.
struct Said {
    at: Instant,
    by: Place,
    vip: Ipv4Addr,
    form: ArpForm,
}

pub fn thousand(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 4)?;
    let vips: Vec<Ipv4Addr> = (0..MANY).map(address).collect::<Result<_>>()?;
    let asker = site.host("asker")?;
    let places = |number: usize| if number.is_multiple_of(2) { [0, 1, 2] } else { [0, 1, 3] };
    let entry = |(number, vip): (usize, &Ipv4Addr)| site.entry(FailoverClass::Standard, *vip, &places(number));
    books.assign(&vips.iter().enumerate().map(entry).collect::<Vec<_>>())?;
    for (place, name, wanted) in
        [(0, "owned", MANY), (1, "assigned", MANY), (2, "assigned", MANY / 2), (3, "assigned", MANY / 2)]
    {
        wait_for_gauge(&site, place, name, wanted)?;
    }
    for standby in [1, 2, 3] {
        site.wait_until_watched(None, 0, standby)?;
    }
    die(&mut site, &asker, &vips, 0, |_| 1)?;
    // The second standbys, of half of the addresses each.
    die(&mut site, &asker, &vips, 1, |number| places(number)[2])?;
    ensure!(site.lan.take_overruns()? == 0, "the lab lost frames");
    books.withdraw(vips)
}

/// Switches a node off that has all the addresses, and judges what follows. `heir` says who has to take which.
fn die(
    site: &mut Site<'_>,
    asker: &Host,
    vips: &[Ipv4Addr],
    owner: Place,
    heir: impl Fn(usize) -> Place,
) -> Result<()> {
    eventually("the announcements of the claims are over", || {
        let announced =
            said(site)?.iter().filter(|said| said.by == owner && said.form == ArpForm::AnnouncementRequest).count();
        Ok((announced >= MANY * BURST).then_some(()))
    })
    .with_context(|| site.report())?;
    site.lan.forget_frames()?;
    let cut = Instant::now();
    site.power_off(owner)?;
    let first = eventually("all are claimed by others", || {
        let first = first_claims(&said(site)?, cut, owner);
        Ok((first.len() == MANY).then_some(first))
    });
    let first = first.with_context(|| site.report())?;
    let (begun, over) = (first.values().map(|(at, _)| *at).min(), first.values().map(|(at, _)| *at).max());
    let (begun, over) = (begun.context("none")?, over.context("none")?);
    println!(
        "{MANY} addresses of a dead node: the first is back after {} ms, the last after {} ms",
        ms(cut, begun),
        ms(cut, over)
    );
    ensure!(over < cut + BACK_WITHIN, "the last is back after {} ms", ms(cut, over));
    for (number, vip) in vips.iter().enumerate() {
        let by = first.get(vip).map(|(_, by)| *by);
        ensure!(by == Some(heir(number)), "{vip} was claimed by node {by:?}, not {}\n{}", heir(number), site.report());
    }
    for heir in first.values().map(|(_, by)| *by).collect::<BTreeSet<_>>() {
        keeps_the_pace(&said(site)?, cut, heir)?;
    }

    // Each of them is answered for, by who claimed it and by nobody else.
    let asking = asker.ask(vips.to_vec(), None, ASK_AGAIN)?;
    let answered = eventually("all are answered for", || {
        let mut answered: BTreeMap<Ipv4Addr, BTreeSet<Place>> = BTreeMap::new();
        for said in said(site)?.iter().filter(|said| said.form == ArpForm::Reply && said.at > over) {
            answered.entry(said.vip).or_default().insert(said.by);
        }
        Ok((answered.len() == MANY).then_some(answered))
    });
    drop(asking);
    for (vip, by) in answered.with_context(|| site.report())? {
        ensure!(first.get(&vip).is_some_and(|(_, first)| by.iter().eq([first])), "{vip} is answered for by {by:?}");
    }
    Ok(())
}

/// Never more than the burst and the even pace, in any window.
fn keeps_the_pace(all: &[Said], since: Instant, by: Place) -> Result<()> {
    // Both forms of one announcement count as one.
    let counts = |said: &&Said| matches!(said.form, ArpForm::Probe | ArpForm::AnnouncementRequest);
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
    ensure!(most <= allowed, "node {} sent {most} in {WINDOW} ms, {allowed} are allowed", by + 1);
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

fn first_claims(all: &[Said], since: Instant, dead: Place) -> BTreeMap<Ipv4Addr, (Instant, Place)> {
    let mut first = BTreeMap::new();
    for said in
        all.iter().filter(|said| said.at > since && said.by != dead && said.form == ArpForm::AnnouncementRequest)
    {
        first.entry(said.vip).or_insert((said.at, said.by));
    }
    first
}

fn wait_for_gauge(site: &Site<'_>, place: Place, name: &str, wanted: usize) -> Result<()> {
    let line = format!("l2lb_speaker_virtual_ips_{name}");
    let reached = eventually(&format!("{wanted} {name}"), || {
        Ok((metric(&site.metrics(place)?, &line)? == u64::try_from(wanted)?).then_some(()))
    });
    reached.with_context(|| site.report())
}

fn address(number: usize) -> Result<Ipv4Addr> {
    let first = u32::from(Ipv4Addr::new(10, 20, 64, 1));
    Ok(Ipv4Addr::from(first + u32::try_from(number)?))
}
