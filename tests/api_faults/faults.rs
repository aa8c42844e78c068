//! One controller, and requests that fail in every way that they can.

use std::{
    collections::{BTreeMap, BTreeSet},
    sync::Arc,
    time::{Duration, Instant, UNIX_EPOCH},
};

use anyhow::{Context as _, Result, ensure};
use hyper::StatusCode;
use lab::{process::wait_for, runtime::block_on, stalls::play_again_after_stalls};

use crate::{
    proxy::{Asked, Fault, Network},
    world::{PATIENCE, POLL, Proxied, World},
};

/// Services that are there before anything fails.
const BEFORE: usize = 4;
/// Services that come meanwhile.
const MEANWHILE: usize = 12;
/// Kinds that the controller watches.
const WATCHED: [&str; 8] =
    ["services", "endpointslices", "nodes", "namespaces", "ippools", "virtualips", "speakers", "leases"];

/// The same fault for the first requests of each kind.
struct First {
    times: usize,
    met: BTreeMap<String, usize>,
}

impl First {
    fn new(times: usize) -> Self {
        Self { times, met: BTreeMap::new() }
    }

    fn is(&mut self, key: String) -> bool {
        let met = self.met.entry(key).or_default();
        *met += 1;
        *met <= self.times
    }
}

fn named(prefix: &str, count: usize) -> Vec<String> {
    (0..count).map(|number| format!("{prefix}-{number}")).collect()
}

/// A controller that has served some Services, in order.
fn begin(world: &World, name: &str) -> Result<Proxied> {
    world.clear()?;
    let proxied = Proxied::start(world, name)?;
    world.wait_for_leader(name, PATIENCE)?;
    world.make_services(named("before", BEFORE))?;
    world.wait_until_served().with_context(|| proxied.controller.log())?;
    wait_for("the first Services are not told", PATIENCE, POLL, || {
        let told = world.events()?.len();
        Ok(if told == BEFORE { Ok(()) } else { Err(format!("{told} are")) })
    })?;
    Ok(proxied)
}

/// Services come and go while requests fail.
fn disturb(world: &World) -> Result<()> {
    block_on(world.delete_services(named("before", 2)))?;
    world.make_services(named("meanwhile", MEANWHILE))
}

/// Everything is as if nothing had failed: addresses, VirtualIPs, one event for each Service; then there is rest.
fn end(world: &World, mut proxied: Proxied, addresses: &BTreeMap<String, String>) -> Result<()> {
    let judged = (|| {
        world.wait_until_served()?;
        let now = world.addresses()?;
        // The write of an event that never came to an end is begun again only when the controller has lost its patience.
        wait_for("Services without an event", PATIENCE, POLL, || {
            let events = world.events()?;
            let untold: Vec<_> = now.keys().filter(|name| !events.contains_key(*name)).collect();
            Ok(if untold.is_empty() { Ok(()) } else { Err(format!("{untold:?}")) })
        })?;
        world.wait_for_rest()?;
        proxied.expect_none_twice()?;
        let moved: Vec<_> =
            addresses.iter().filter(|(name, address)| now.get(*name).is_some_and(|now| now != *address)).collect();
        ensure!(moved.is_empty(), "addresses changed: {moved:?}, now {now:?}");
        let events = world.events()?;
        for name in now.keys() {
            let told = events.get(name).map_or(&[][..], Vec::as_slice);
            ensure!(told.len() == 1 && told[0].0 == "Announced", "the events of {name} are {told:?}");
        }
        proxied.controller.expect_running()
    })();
    judged.with_context(|| format!("met {:?}\n{}", proxied.proxy.faults(), proxied.controller.log()))?;
    let Proxied { proxy, controller } = proxied;
    controller.stop()?;
    drop(proxy);
    Ok(())
}

/// A fault for requests, from the beginning to the end of a trial.
fn under(
    world: &World,
    name: &str,
    at_least: &[(&str, usize)],
    rule: impl FnMut(&Asked) -> Option<Fault> + Send + 'static,
) -> Result<()> {
    let proxied = begin(world, name)?;
    let addresses = world.addresses()?;
    proxied.proxy.obey(rule);
    disturb(world)?;
    world.wait_until_served().with_context(|| proxied.controller.log())?;
    wait_for("the fault was not met", PATIENCE, POLL, || {
        let met = proxied.proxy.faults();
        let missing = at_least.iter().find(|(fault, count)| met.get(*fault).unwrap_or(&0) < count);
        Ok(missing.map_or(Ok(()), |missing| Err(format!("{missing:?}: {met:?}"))))
    })?;
    proxied.proxy.pass();
    end(world, proxied, &addresses)
}

/// Each write is answered with 409 twice, those of events apart: there it would say that the event is written.
pub fn conflicts(world: &World) -> Result<()> {
    let mut first = First::new(2);
    under(world, "conflicts", &[("Refuse", 2 * MEANWHILE)], move |asked| {
        (asked.is_write() && !asked.is_of("events") && first.is(format!("{} {}", asked.method, asked.about)))
            .then_some(Fault::Refuse(StatusCode::CONFLICT))
    })
}

/// The API server is overloaded for three seconds from the first write on, and says when it is to be asked again.
pub fn too_many_requests(world: &World) -> Result<()> {
    // What was under way when the first write was refused is told from what came later by when the proxy reads it.
    play_again_after_stalls(Duration::from_millis(300), || overloaded(world))
}

fn overloaded(world: &World) -> Result<()> {
    const RETRY_AFTER: u32 = 2;
    let proxied = begin(world, "too-many-requests")?;
    let addresses = world.addresses()?;
    let mut busy_since = None;
    proxied.proxy.obey(move |asked| {
        let busy = asked.is_write() && busy_since.get_or_insert_with(Instant::now).elapsed() < Duration::from_secs(3);
        busy.then_some(Fault::TooMany(RETRY_AFTER))
    });
    disturb(world)?;
    world.wait_until_served().with_context(|| proxied.controller.log())?;
    // Those that were on their way when the first one was refused could not know.
    let writes = proxied.proxy.writes();
    let refused: Vec<Instant> =
        writes.iter().filter(|write| matches!(write.fault, Some(Fault::TooMany(_)))).map(|write| write.at).collect();
    let first = *refused.first().context("nothing was refused")?;
    let pause = first + Duration::from_millis(500)..first + Duration::from_secs(RETRY_AFTER.into());
    let early = writes.iter().filter(|write| write.asked.is_write() && pause.contains(&write.at)).count();
    ensure!(early == 0, "{early} writes within the {RETRY_AFTER} s that the API server asked for");
    end(world, proxied, &addresses)
}

/// Each write and each list fails in two ways before it works, and some in a third.
pub fn server_errors(world: &World) -> Result<()> {
    let (mut met, mut unavailable): (BTreeMap<String, usize>, usize) = (BTreeMap::new(), 0);
    under(world, "server-errors", &[("Refuse", 3 * MEANWHILE)], move |asked| {
        if asked.is_election() {
            return None;
        }
        let count = met.entry(format!("{} {}", asked.method, asked.about)).or_default();
        *count += 1;
        match *count {
            1 => Some(Fault::Refuse(StatusCode::INTERNAL_SERVER_ERROR)),
            2 => Some(Fault::Refuse(StatusCode::GATEWAY_TIMEOUT)),
            // It asks to be left alone, and each time it is for a second.
            3 if unavailable < 20 => {
                unavailable += 1;
                Some(Fault::Refuse(StatusCode::SERVICE_UNAVAILABLE))
            }
            _ => None,
        }
    })
}

/// Each write is carried out, and the connection ends before its answer.
pub fn lost_answers(world: &World) -> Result<()> {
    let mut first = First::new(1);
    under(world, "lost-answers", &[("LoseAnswer", 2 * MEANWHILE)], move |asked| {
        (asked.method != hyper::Method::GET && first.is(format!("{} {}", asked.method, asked.about)))
            .then_some(Fault::LoseAnswer)
    })
}

/// Of the first writes half are ignored, and half are carried out without a word; so are the lists that follow a 410, and
/// the watch of Leases goes deaf.
pub fn no_answers(world: &World) -> Result<()> {
    let mut ignored = First::new(1);
    let mut relist = First::new(1);
    let (mut writes, mut lists, mut deaf) = (0, 0, 0);
    under(world, "no-answers", &[("Ignore", 6), ("NeverAnswer", 4), ("Gone", 2)], move |asked| {
        if asked.is_watch() && (asked.is_of("endpointslices") || asked.is_of("ippools")) {
            return relist.is(asked.about.clone()).then_some(Fault::Gone);
        }
        if asked.is_list() && (asked.is_of("endpointslices") || asked.is_of("ippools")) {
            lists += 1;
            return (lists <= 2).then_some(Fault::Ignore);
        }
        if asked.is_watch() && asked.is_of("leases") {
            deaf += 1;
            return (deaf == 1).then_some(Fault::NeverAnswer);
        }
        if asked.is_write() && ignored.is(format!("{} {}", asked.method, asked.about)) {
            writes += 1;
            return match writes {
                1..=8 if writes % 2 == 0 => Some(Fault::NeverAnswer),
                1..=8 => Some(Fault::Ignore),
                _ => None,
            };
        }
        None
    })
}

/// Watches end in the middle of an event, again and again.
pub fn watches_that_break(world: &World) -> Result<()> {
    let mut first = First::new(3);
    under(world, "watches-that-break", &[("Break", 3 * WATCHED.len())], move |asked| {
        (asked.is_watch() && first.is(asked.about.clone())).then_some(Fault::Break(Duration::from_millis(300)))
    })
}

/// Watches are told that their version is gone, and that again.
pub fn watches_that_are_gone(world: &World) -> Result<()> {
    let mut first = First::new(2);
    under(world, "watches-that-are-gone", &[("Gone", 2 * WATCHED.len())], move |asked| {
        (asked.is_watch() && first.is(asked.about.clone())).then_some(Fault::Gone)
    })
}

/// Events come late, and some twice; lists come later than what was written after them. No list may be one that the API
/// server keeps in store.
pub fn late_and_old_news(world: &World) -> Result<()> {
    let stored = Arc::new(std::sync::Mutex::new(BTreeSet::new()));
    let (mut first, mut number) = (First::new(2), 0);
    let seen = stored.clone();
    let proxied = begin(world, "late-and-old-news")?;
    let addresses = world.addresses()?;
    proxied.proxy.obey(move |asked| {
        if asked.is_list() {
            if asked.path.contains("resourceVersion=") {
                seen.lock().map(|mut seen| seen.insert(asked.path.clone())).ok();
            }
            return Some(Fault::Late(Duration::from_millis(1500)));
        }
        if !asked.is_watch() || !first.is(asked.about.clone()) {
            return asked.is_watch().then_some(Fault::Late(Duration::from_millis(700)));
        }
        number += 1;
        Some(if number % 2 == 0 { Fault::Gone } else { Fault::Replay(60) })
    });
    disturb(world)?;
    world.wait_until_served().with_context(|| proxied.controller.log())?;
    // Again, with writes on their way while everything is listed.
    world.make_services(named("later", MEANWHILE))?;
    proxied.proxy.cut_watches();
    world.wait_until_served().with_context(|| proxied.controller.log())?;
    proxied.proxy.pass();
    let stored = stored.lock().map(|stored| stored.clone()).unwrap_or_default();
    ensure!(stored.is_empty(), "lists that may be as old as the API server likes: {stored:?}");
    end(world, proxied, &addresses)
}

/// Nobody listens for a while.
pub fn connection_refused(world: &World) -> Result<()> {
    let proxied = begin(world, "connection-refused")?;
    let addresses = world.addresses()?;
    proxied.proxy.set_network(Network::Refusing);
    disturb(world)?;
    proxied.controller.wait_for_readiness(Some("watch of IPPool: the API server cannot be reached"))?;
    proxied.proxy.set_network(Network::Open);
    let back = Instant::now();
    world.wait_until_served().with_context(|| proxied.controller.log())?;
    let took = back.elapsed();
    proxied.controller.wait_for_readiness(None)?;
    ensure!(took < Duration::from_secs(20), "served {took:?} after the API server was back");
    end(world, proxied, &addresses)
}

/// All of it at once, chosen by chance; `L2LB_SEED` repeats a run as far as the order of requests allows.
pub fn everything_at_random(world: &World) -> Result<()> {
    const LASTS: Duration = Duration::from_secs(12);
    let given = std::env::var("L2LB_SEED").ok().and_then(|seed| seed.parse().ok());
    let seed: u64 = given.unwrap_or_else(|| UNIX_EPOCH.elapsed().map_or(1, |now| u64::from(now.subsec_nanos())));
    println!("everything_at_random: L2LB_SEED={seed}");
    let mut chance = Chance(seed);
    let proxied = begin(world, "everything-at-random")?;
    let addresses = world.addresses()?;
    let mut of_requests = Chance(chance.next());
    proxied.proxy.obey(move |asked| {
        if of_requests.below(100) >= 30 {
            return None;
        }
        let (write, watch) = (asked.method != hyper::Method::GET, asked.is_watch());
        Some(match of_requests.below(12) {
            0 if write && !asked.is_of("events") => Fault::Refuse(StatusCode::CONFLICT),
            1 => Fault::TooMany(1),
            2 => Fault::Refuse(StatusCode::INTERNAL_SERVER_ERROR),
            3 => Fault::Refuse(StatusCode::SERVICE_UNAVAILABLE),
            4 => Fault::LoseAnswer,
            5 if write => Fault::NeverAnswer,
            6 if write => Fault::Ignore,
            7 if watch => Fault::Gone,
            8 if watch => Fault::Break(Duration::from_millis(of_requests.below(3_000))),
            9 if watch => Fault::Replay(of_requests.below(100)),
            _ => Fault::Late(Duration::from_millis(of_requests.below(2_000))),
        })
    });
    let (start, mut made, mut gone) = (Instant::now(), BTreeSet::new(), 0);
    while start.elapsed() < LASTS {
        let name = format!("random-{}", made.len() + gone);
        world.make_services([name.clone()])?;
        made.insert(name);
        if chance.below(3) == 0
            && let Some(name) = made.pop_first()
        {
            gone += 1;
            block_on(world.delete_services([name]))?;
        }
        if chance.below(8) == 0 {
            proxied.proxy.cut_watches();
        }
        if chance.below(12) == 0 {
            proxied.proxy.set_network(Network::Refusing);
        }
        std::thread::sleep(Duration::from_millis(100 + chance.below(300)));
        proxied.proxy.set_network(Network::Open);
    }
    proxied.proxy.pass();
    proxied.proxy.cut_watches();
    end(world, proxied, &addresses).with_context(|| format!("L2LB_SEED={seed}"))
}

/// SplitMix64.
struct Chance(u64);

impl Chance {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    fn below(&mut self, limit: u64) -> u64 {
        self.next() % limit.max(1)
    }
}
