//! Five thousand Services.

use std::{
    collections::BTreeMap,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::{process::wait_for, stalls::Stalls};

use crate::world::{Controller, PATIENCE, POLL, World};

const SERVICES: usize = 5_000;
/// The most memory that a controller may take, in KiB: 60 MiB. Built for debugging, the program's own code takes 25 MiB and more, many
/// times what it takes built for release: for that, 20 MiB are allowed on top.
const MEMORY: u64 = if cfg!(debug_assertions) { 80 * 1024 } else { 60 * 1024 };

/// An address that no speaker has claimed in time is shown without, and once more when one has: the speakers of this test are late when
/// the machine stands still for so long, of the controller's two seconds.
const MAKES_SPEAKERS_LATE: Duration = Duration::from_millis(1500);
const STATUSES: &str = "APPLY services/status 200";

fn names() -> impl Iterator<Item = String> {
    (0..SERVICES).map(|number| format!("service-{number:04}"))
}

/// They come while the controller runs: three writes and one event each, and nothing else but the counts of the pool.
pub fn five_thousand_services(world: &World) -> Result<()> {
    world.clear()?;
    let controller = Controller::start(world, "scale", &world.kubeconfig())?;
    world.wait_for_leader("scale", PATIENCE)?;
    let start = Instant::now();
    world.make_slices(names())?;
    let stalls = Stalls::watch()?;
    let (sliced, before) = (start.elapsed(), world.requests()?);
    let start = Instant::now();
    world.make_services(names())?;
    let made = start.elapsed();
    // The event is the last that is written for each.
    wait_for("the Services are not all served", 3 * PATIENCE, POLL, || {
        let told = world.count_events()?;
        Ok(if told >= SERVICES { Ok(()) } else { Err(format!("{told} are told of")) })
    })
    .with_context(|| controller.log())?;
    let served = start.elapsed();
    world.wait_until_served()?;
    world.wait_for_rest()?;
    let mut grown = world.requests()?.since(&before);
    let counts = grown.remove("APPLY ippools/status 200").unwrap_or(0);
    // The API server tells of its own repairs, too; of ours there is one for each Service.
    grown.retain(|what, _| !what.contains(" events ") && !what.contains(" endpointslices "));
    // Now and then an API server has too much to do, or knows better by then: that write comes again.
    let (mut grown, refused): (BTreeMap<_, _>, BTreeMap<_, _>) =
        grown.into_iter().partition(|(what, _)| what.rsplit(' ').next().is_some_and(|code| code.starts_with('2')));
    if !refused.is_empty() {
        println!("the API server refused {refused:?}");
    }
    ensure!(refused.values().sum::<u64>() <= SERVICES as u64 / 20, "the API server refused {refused:?}");
    let events = world.events()?;
    let once = events.iter().filter(|(name, told)| name.starts_with("service-") && told.len() == 1).count();
    ensure!(once == SERVICES, "{once} of {} Services are told of once", events.len());
    let all = SERVICES as u64;
    let wanted = [
        ("POST services 201", all),
        ("POST virtualips 201", all),
        ("APPLY virtualips/status 200", all),
        (STATUSES, all),
    ];
    let wanted: BTreeMap<String, u64> = wanted.into_iter().map(|(what, count)| (what.to_owned(), count)).collect();
    let (statuses, worst) = (grown.get(STATUSES).copied().unwrap_or(0), stalls.worst());
    if (all + 1..=2 * all).contains(&statuses) && worst >= MAKES_SPEAKERS_LATE {
        println!("{statuses} statuses were written: the machine stood still for {} ms", worst.as_millis());
        grown.insert(STATUSES.to_owned(), all);
    }
    let (peak, spent) = (controller.peak_memory()?, controller.processor_time()?);
    println!(
        "{SERVICES} Services: slices made in {:.1} s; Services made in {:.1} s, all served and told {:.1} s after the first was made; \
         {counts} writes of the pool's counts; controller: {:.1} MiB at most, {:.1} MiB without the program now, {:.1} s of processor",
        sliced.as_secs_f64(),
        made.as_secs_f64(),
        served.as_secs_f64(),
        peak as f64 / 1024.0,
        controller.own_memory()? as f64 / 1024.0,
        spent.as_secs_f64(),
    );
    ensure!(grown == wanted, "the API server counted {grown:?}");
    ensure!(counts <= served.as_secs() + 5, "{counts} writes of the pool's counts in {served:?}");
    ensure!(peak <= MEMORY, "the controller took {peak} KiB");
    controller.stop()
}

/// They are there when the controller starts.
pub fn restart(world: &World) -> Result<()> {
    let there = lab::runtime::block_on(world.service_names())?.len();
    ensure!(there == SERVICES, "{there} Services are left of the trial before this, which has to run first");
    let before = world.requests()?;
    let start = Instant::now();
    let controller = Controller::start(world, "restarted", &world.kubeconfig())?;
    world.wait_for_leader("restarted", PATIENCE)?;
    wait_for("it does not list everything", PATIENCE, POLL, || {
        let log = controller.log();
        Ok(if log.contains("everything is listed") { Ok(()) } else { Err(log) })
    })?;
    let listed = start.elapsed();
    world.wait_for_rest()?;
    let grown = world.requests()?.since(&before);
    let (peak, spent) = (controller.peak_memory()?, controller.processor_time()?);
    println!(
        "restart with {SERVICES} Services: listed in {:.1} s; controller: {:.1} MiB at most, {:.1} MiB without the program now, {:.1} s of processor",
        listed.as_secs_f64(),
        peak as f64 / 1024.0,
        controller.own_memory()? as f64 / 1024.0,
        spent.as_secs_f64(),
    );
    ensure!(grown.is_empty(), "the restart wrote {grown:?}");
    ensure!(peak <= MEMORY, "the controller took {peak} KiB");
    controller.stop()
}
