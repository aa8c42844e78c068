//! Several controllers, of which one leads until it is killed, stopped, or cut off.

use std::{
    collections::BTreeMap,
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use l2lb::controller::leadership::{FREE_AFTER, LEADS_FOR};
use lab::{process::wait_for, runtime::block_on};
use nix::sys::signal::Signal;

use crate::{
    proxy::{Network, Write},
    world::{PATIENCE, POLL, Proxied, World, none_twice},
};

/// Services of each wave: enough for a leader to be lost in the middle of them.
const WAVE: usize = 150;
/// A look at the Lease, the renewal, and everything listed anew.
const MARGIN: Duration = Duration::from_secs(6);

/// Services and their addresses.
type Shown = BTreeMap<String, String>;

/// Killed, stopped and cut off in turn, each time in the middle of a wave of Services; then it comes back.
pub fn one_leads(world: &World) -> Result<()> {
    world.clear()?;
    let one = Proxied::start(world, "one")?;
    world.wait_for_leader("one", PATIENCE)?;
    let two = Proxied::start(world, "two")?;
    let mut history: Vec<Write> = Vec::new();

    // One is killed.
    let shown = lose(world, &one, "a", || one.controller.signal(Signal::SIGKILL))?;
    let killed = Instant::now();
    world.wait_for_leader("two", FREE_AFTER + MARGIN).with_context(|| two.controller.log())?;
    println!("killed: the other leads after {:.1} s", killed.elapsed().as_secs_f64());
    nothing_moved(world, &two, &shown)?;
    history.extend(one.proxy.writes());
    one.controller.kill()?;

    // Two is stopped, and goes on when three leads.
    let three = Proxied::start(world, "three")?;
    let shown = lose(world, &two, "b", || two.controller.signal(Signal::SIGSTOP))?;
    let stopped = Instant::now();
    world.wait_for_leader("three", FREE_AFTER + MARGIN).with_context(|| three.controller.log())?;
    println!("stopped: the other leads after {:.1} s", stopped.elapsed().as_secs_f64());
    wait_for("twenty seconds", PATIENCE, POLL, || {
        Ok(if stopped.elapsed() > Duration::from_secs(20) { Ok(()) } else { Err("it is early".to_owned()) })
    })?;
    two.controller.signal(Signal::SIGCONT)?;
    let woken = Instant::now();
    nothing_moved(world, &three, &shown)?;
    follows(&two, "another controller leads")?;
    ensure!(world.leader()?.0 == "three", "who woke up took the Lease away");
    let after: Vec<Write> = writes_in(&two, woken..Instant::now());
    ensure!(after.is_empty(), "written after waking up: {after:?}");

    // Three is cut off, and hears again when two leads.
    let shown = lose(world, &three, "c", || {
        three.proxy.set_network(Network::Parted);
        Ok(())
    })?;
    let parted = Instant::now();
    world.wait_for_leader("two", FREE_AFTER + MARGIN).with_context(|| two.controller.log())?;
    println!("cut off: the other leads after {:.1} s", parted.elapsed().as_secs_f64());
    // What it had sent before arrives now, late.
    three.proxy.set_network(Network::Open);
    nothing_moved(world, &two, &shown)?;
    follows(&three, "another controller leads")?;
    ensure!(world.leader()?.0 == "two");
    let late: Vec<Write> = writes_in(&three, parted + LEADS_FOR..Instant::now());
    ensure!(late.is_empty(), "begun without the right to: {late:?}");

    world.wait_for_rest()?;
    history.extend(two.proxy.writes());
    history.extend(three.proxy.writes());
    none_twice(&history)?;
    let events = world.events()?;
    let twice: Vec<_> = events.iter().filter(|(_, told)| told.len() > 1).collect();
    ensure!(twice.is_empty(), "told twice: {twice:?}");
    let untold = 3 * WAVE - events.len();
    println!("{untold} of {} Services have no event, because their leader was lost just then", 3 * WAVE);
    // Those whose status was written and whose event was on its way.
    ensure!(untold <= 3 * 16, "{untold} Services have no event");
    two.controller.stop()?;
    // Given back, it is taken at once.
    world.wait_for_leader("three", MARGIN)?;
    three.controller.stop()
}

/// Begins a wave, and takes the leader away in the middle of it: some Services are done, some not. What has an address by
/// then keeps it.
fn lose(world: &World, leader: &Proxied, wave: &str, take_away: impl FnOnce() -> Result<()>) -> Result<Shown> {
    let before = leader.proxy.writes().len();
    world.make_services((0..WAVE).map(|number| format!("{wave}-{number}")))?;
    wait_for("the wave does not begin", PATIENCE, Duration::from_millis(5), || {
        let writes = leader.proxy.writes();
        let statuses = writes.iter().skip(before).filter(|write| write.is_done() && write.asked.is_of("services"));
        Ok(if statuses.count() > WAVE / 10 { Ok(()) } else { Err("nothing is shown yet".to_owned()) })
    })
    .with_context(|| leader.controller.log())?;
    take_away()?;
    let shown = world.addresses()?;
    let (had, wanted) = (shown.len(), block_on(world.service_names())?.len());
    ensure!(had < wanted, "the leader was done with all {wanted} Services before it was lost");
    Ok(shown)
}

fn follows(controller: &Proxied, says: &str) -> Result<()> {
    wait_for("it does not follow", PATIENCE, POLL, || {
        let log = controller.controller.log();
        Ok(if log.contains(says) { Ok(()) } else { Err(log) })
    })
}

/// Writes that a controller sent in this time, those of the election apart.
fn writes_in(controller: &Proxied, time: Range<Instant>) -> Vec<Write> {
    let writes = controller.proxy.writes();
    writes.into_iter().filter(|write| write.asked.is_write() && time.contains(&write.at)).collect()
}

/// Waits until all Services are served; those that had an address have it still.
fn nothing_moved(world: &World, leader: &Proxied, before: &Shown) -> Result<()> {
    world.wait_until_served().with_context(|| leader.controller.log())?;
    let now = world.addresses()?;
    let moved: Vec<_> = before.iter().filter(|(name, address)| now.get(*name) != Some(*address)).collect();
    ensure!(moved.is_empty(), "reallocated: {moved:?}");
    Ok(())
}
