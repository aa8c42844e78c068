//! The LAN falls into two parts for 30 s, with hosts on both sides, and heals: one owner, and every cache is right.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddrV4};
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};
use l2lb::api::FailoverClass;
use lab::lan::host::stream_udp;

use crate::books::{Books, eventually};
use crate::hosts::Host;
use crate::site::{Place, Site};
use crate::voices::{Word, ms, strays};

const PARTITION: Duration = Duration::from_secs(30);
const EACH: Duration = Duration::from_millis(25);
const DATAGRAMS: u32 = 10;
const PORT: u16 = 9000;
/// After so many answers in a row from one node, each of them to a question that reached all, there is one owner.
const IN_A_ROW: usize = 100;
/// The promise is 1.2 s.
const ONE_OWNER_WITHIN: Duration = Duration::from_secs(3);
const CACHES_RIGHT_WITHIN: Duration = Duration::from_secs(10);

pub fn with_api_server(books: &Books) -> Result<()> {
    play(books, true)
}

pub fn without_api_server(books: &Books) -> Result<()> {
    play(books, false)
}

fn play(books: &Books, api_server: bool) -> Result<()> {
    let mut site = Site::new(books, 3)?;
    let classes = [FailoverClass::Standard, FailoverClass::Standard, FailoverClass::Fast, FailoverClass::Relaxed];
    let vips: BTreeMap<Ipv4Addr, FailoverClass> =
        (0..).zip(classes).map(|(index, class)| (site.vip(index), class)).collect();
    let hosts = [site.host("near")?, site.host("far")?];
    let askers = [site.host("ask-near")?, site.host("ask-far")?];
    let mut streams = Vec::new();
    for vip in vips.keys() {
        let to = SocketAddrV4::new(*vip, PORT);
        for host in &hosts {
            streams.push(stream_udp(&host.netns, to, DATAGRAMS)?);
        }
        streams.push(site.gateway()?.stream_udp(to, DATAGRAMS)?);
    }
    let begun = site.settle(&vips.iter().map(|(vip, class)| (*class, *vip)).collect::<Vec<_>>(), &[1])?;
    if !api_server {
        site.cut_api()?;
    }
    eventually("every cache holds the owner", || {
        Ok(vips
            .keys()
            .map(|vip| cache_fault(&site, &hosts, *vip, 0))
            .collect::<Result<Vec<_>>>()?
            .iter()
            .all(Option::is_none)
            .then_some(()))
    })?;
    let all: Vec<Ipv4Addr> = vips.keys().copied().collect();
    let _asking = askers.iter().map(|asker| asker.ask(all.clone(), None, EACH)).collect::<Result<Vec<_>>>()?;

    // The owner, a host and one who asks, against all others and the gateway.
    site.lan.partition(&[vec![site.port(0)?, hosts[0].port, askers[0].port]])?;
    let cut = Instant::now();
    for (vip, class) in &vips {
        let (_, at) = site.wait_for_word(*vip, cut, |place| place != 0)?;
        println!("{class:?}: the other part has an owner after {} ms", ms(cut, at));
    }
    // The length of the partition is what is tested.
    std::thread::sleep(PARTITION.saturating_sub(cut.elapsed()));
    let over = Instant::now();
    for vip in vips.keys() {
        let mut both = BTreeSet::new();
        let spoke = eventually(&format!("each part has an owner of {vip}"), || {
            both = site.speakers_since(*vip, over)?;
            Ok((both.len() > 1 && both.contains(&0)).then_some(()))
        });
        spoke.map_err(|error| error.context(format!("{both:?}\n{}", site.report())))?;
    }
    site.lan.partition(&[])?;
    let healed = Instant::now();

    for (vip, class) in &vips {
        let settled = settled(&site, *vip, healed)?;
        println!("{class:?}: one owner of {vip} {} ms after the LAN was whole", settled.as_millis());
        ensure!(
            settled < ONE_OWNER_WITHIN || !site.is_calm_since(healed),
            "two owners of {vip} for {} ms\n{}",
            settled.as_millis(),
            site.report()
        );
        let mut fault = None;
        let right = eventually("every cache is right", || {
            // On a machine that is too busy for its class, an address may move meanwhile.
            let owner = site.words(*vip)?.last().map_or(0, |word| word.by);
            fault = cache_fault(&site, &hosts, *vip, owner)?;
            Ok(fault.is_none().then(Instant::now))
        });
        let right = right.map_err(|error| error.context(format!("{fault:?}\n{}", site.report())))?;
        ensure!(
            right < healed + CACHES_RIGHT_WITHIN || !site.is_calm_since(healed),
            "{vip}: caches were right only after {} ms",
            ms(healed, right)
        );
    }
    println!("every cache was right at the latest {} ms after the LAN was whole", ms(healed, Instant::now()));
    ensure!(site.lan.take_overruns()? == 0 || !site.is_calm_since(begun), "the lab lost frames");
    Ok(())
}

/// For how long after the LAN was whole two nodes answered.
fn settled(site: &Site<'_>, vip: Ipv4Addr, healed: Instant) -> Result<Duration> {
    let words = eventually(&format!("{vip} has one owner"), || {
        let words: Vec<Word> = site.words(vip)?.into_iter().filter(|word| word.at > healed).collect();
        let last = words.last().map(|word| word.by);
        let in_a_row = words.iter().rev().take_while(|word| Some(word.by) == last).count();
        Ok((in_a_row >= IN_A_ROW).then_some(words))
    });
    let words = words.map_err(|error| error.context(site.report()))?;
    let after = |at: Option<Instant>| at.map_or(Duration::ZERO, |at| at.saturating_duration_since(healed));
    // From the first of these on there was one voice: nobody spoke any more who had not the word by its claim, or nobody
    // spoke but the last.
    let last = words.last().map(|word| word.by);
    let second = after(strays(&words).last().map(|(word, _)| word.at));
    let another = after(words.iter().rev().find(|word| Some(word.by) != last).map(|word| word.at));
    Ok(second.min(another))
}

/// What is wrong in the caches of the hosts and of the gateway, when this node is the owner.
fn cache_fault(site: &Site<'_>, hosts: &[Host], vip: Ipv4Addr, owner: Place) -> Result<Option<String>> {
    for host in hosts {
        let believed = host.believes(vip)?;
        if believed != Some(site.mac(owner)) {
            return Ok(Some(format!("{} believes that {vip} is at {believed:?}", host.netns.name())));
        }
    }
    let entry = site.gateway()?.entry(vip);
    let right =
        entry.is_some_and(|entry| (entry.mac, entry.port) == (site.mac(owner), site.port(owner).unwrap_or(entry.port)));
    Ok((!right).then(|| format!("the gateway holds {entry:?} for {vip}")))
}
