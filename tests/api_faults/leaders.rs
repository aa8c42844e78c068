//! Several controllers, of which one leads until it is killed, stopped, or cut off.

use std::{
    collections::{BTreeMap, BTreeSet},
    ops::Range,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use l2lb::controller::leadership::{FREE_AFTER, LEADS_FOR};
use lab::{
    process::{signal, wait_for},
    runtime::block_on,
    stalls::Stalls,
};
use nix::sys::signal::Signal;

use crate::{
    proxy::{Asked, Network, Write},
    world::{PATIENCE, POLL, Proxied, World, none_twice},
};

/// Services of each wave: enough for a leader to be lost in the middle of them.
const WAVE: usize = 150;
/// Of a wave: the leader is lost when the status of so many is on its way.
const UNTIL_LOST: usize = 16;
/// A look at the Lease, the renewal and everything listed anew, on a machine that never stands still. How long it took is printed.
const MARGIN: Duration = Duration::from_secs(6);
/// What a controller says when it is told who leads.
const FOLLOWS: &str = "another controller leads";

/// Services and their addresses.
type Shown = BTreeMap<String, String>;

/// How a leader is lost.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Loss {
    Killed,
    Stopped,
    CutOff,
}

/// Killed, stopped and cut off in turn, each time in the middle of a wave of Services; then it comes back.
pub fn one_leads(world: &World) -> Result<()> {
    let stalls = Stalls::watch()?;
    world.clear()?;
    let one = Proxied::start(world, "one")?;
    world.wait_for_leader("one", PATIENCE)?;
    let two = Proxied::start(world, "two")?;
    let (mut history, mut unfinished) = (Vec::new(), BTreeSet::new());

    let (lost, shown) = lose(world, &one, "a", Loss::Killed)?;
    taken_over(world, &two, &stalls, lost, "killed")?;
    unfinished.extend(untold(&one, |_| true));
    nothing_moved(world, &two, &shown)?;
    history.extend(one.proxy.writes());
    one.controller.kill()?;

    // Two is stopped, and goes on when three leads.
    let three = Proxied::start(world, "three")?;
    let (lost, shown) = lose(world, &two, "b", Loss::Stopped)?;
    let said = two.controller.count_said(FOLLOWS)?;
    taken_over(world, &three, &stalls, lost, "stopped")?;
    unfinished.extend(untold(&two, |_| true));
    wait_for("twenty seconds", PATIENCE, POLL, || {
        Ok(if lost.elapsed() > Duration::from_secs(20) { Ok(()) } else { Err("it is early".to_owned()) })
    })?;
    let woken = Instant::now();
    two.controller.signal(Signal::SIGCONT)?;
    nothing_moved(world, &three, &shown)?;
    follows(&two, said)?;
    ensure!(world.leader()?.0 == "three", "who woke up took the Lease away");
    let after: Vec<Write> = writes_in(&two, woken..Instant::now());
    ensure!(after.is_empty(), "written after waking up: {after:?}");

    // Three is cut off, and hears again when two leads.
    let said = three.controller.count_said(FOLLOWS)?;
    let (lost, shown) = lose(world, &three, "c", Loss::CutOff)?;
    taken_over(world, &two, &stalls, lost, "cut off")?;
    unfinished.extend(untold(&three, |_| true));
    // What it had sent before arrives now, late.
    three.proxy.set_network(Network::Open);
    nothing_moved(world, &two, &shown)?;
    follows(&three, said)?;
    ensure!(world.leader()?.0 == "two");
    // The proxy may have been late to read what was sent in time.
    let right_ends = lost + LEADS_FOR + stalls.worst_since(lost);
    let late: Vec<Write> = writes_in(&three, right_ends..Instant::now());
    ensure!(late.is_empty(), "begun without the right to: {late:?}");

    world.wait_for_rest()?;
    history.extend(two.proxy.writes());
    history.extend(three.proxy.writes());
    none_twice(&history)?;
    let events = world.events()?;
    let twice: Vec<_> = events.iter().filter(|(_, told)| told.len() > 1).collect();
    ensure!(twice.is_empty(), "told twice: {twice:?}");
    let services: BTreeSet<String> = block_on(world.service_names())?.into_iter().collect();
    let without: Vec<&String> = services.iter().filter(|name| !events.contains_key(*name)).collect();
    println!("{} of {} Services have no event, because their leader was lost just then", without.len(), services.len());
    let why: Vec<_> = without.into_iter().filter(|name| !unfinished.contains(*name)).collect();
    ensure!(why.is_empty(), "without an event, though no leader was lost between their status and it: {why:?}");
    let given_back = Instant::now();
    two.controller.stop()?;
    // Given back, it is taken at once.
    leads_within(world, &three, MARGIN, &stalls, given_back)?;
    three.controller.stop()
}

/// A status that goes to a Service.
fn is_status(asked: &Asked) -> bool {
    asked.method == hyper::Method::PATCH && asked.is_of("services")
}

/// Begins a wave, and loses the leader in the middle of it: some Services are done, some not. When that was; what has an address
/// by then keeps it.
fn lose(world: &World, leader: &Proxied, wave: &str, how: Loss) -> Result<(Instant, Shown)> {
    // Nothing is left of the wave before: all are told of whose status this leader wrote.
    wait_for("the leader has not told all that it did", PATIENCE, POLL, || {
        let untold = untold(leader, Write::is_done);
        Ok(if untold.is_empty() { Ok(()) } else { Err(format!("{untold:?}")) })
    })
    .with_context(|| leader.controller.log())?;
    let pid = leader.controller.pid();
    // In the proxy, at a request: a test that looks now and then may come when all is done.
    let lost = leader.proxy.once(UNTIL_LOST, is_status, move |network| {
        if how == Loss::Killed {
            return signal(pid, Signal::SIGKILL);
        }
        network.send_replace(Network::Parted);
        Ok(())
    });
    world.make_services((0..WAVE).map(|number| format!("{wave}-{number}")))?;
    let lost =
        lost.recv_timeout(PATIENCE).context("the wave does not begin").with_context(|| leader.controller.log())??;
    if how == Loss::Stopped {
        // Not in the middle of a request, which it would send when it wakes up, but with requests on their way.
        leader.controller.wait_for_sleep()?;
        leader.controller.signal(Signal::SIGSTOP)?;
        leader.proxy.set_network(Network::Open);
    }
    let shown = world.addresses()?;
    let (had, wanted) = (shown.len(), block_on(world.service_names())?.len());
    ensure!(had < wanted, "the leader was done with all {wanted} Services before it was lost");
    Ok((lost, shown))
}

/// Waits until this one leads, which must not take longer than `limit` from now on, on a machine that has not stood still since `since`;
/// otherwise longer by twice the worst: it may have come over the controller, and over the API server that answers it.
fn leads_within(world: &World, by: &Proxied, limit: Duration, stalls: &Stalls, since: Instant) -> Result<()> {
    let begun = Instant::now();
    world.wait_for_leader(&by.controller.name, PATIENCE).with_context(|| by.controller.log())?;
    let (took, worst) = (begun.elapsed(), stalls.worst_since(since));
    let name = &by.controller.name;
    ensure!(
        took <= limit + 2 * worst,
        "{name} leads after {took:.1?}; the machine stood still for {worst:.1?} at most"
    );
    Ok(())
}

/// Waits until this one leads.
fn taken_over(world: &World, by: &Proxied, stalls: &Stalls, lost: Instant, how: &str) -> Result<()> {
    leads_within(world, by, FREE_AFTER + MARGIN, stalls, lost)?;
    println!("{how}: the other leads after {:.1} s", lost.elapsed().as_secs_f64());
    Ok(())
}

/// Services of whose status this controller has sent such a write, and whose event it has not brought to an end.
fn untold(controller: &Proxied, is_meant: impl Fn(&Write) -> bool) -> BTreeSet<String> {
    let writes = controller.proxy.writes();
    let last = |about: &str| about.rsplit('/').next().unwrap_or_default().to_owned();
    let told: BTreeSet<String> = writes
        .iter()
        .filter(|write| write.is_done() && write.asked.is_of("events"))
        .map(|write| last(&write.asked.about))
        .collect();
    let statuses = writes.iter().filter(|write| is_status(&write.asked) && is_meant(write));
    let named = statuses.map(|write| last(write.asked.path.split("/status").next().unwrap_or_default()));
    named.filter(|name| !told.contains(name)).collect()
}

/// Waits until it has said once more than `said` times that another one leads.
fn follows(controller: &Proxied, said: usize) -> Result<()> {
    wait_for("it does not follow", PATIENCE, POLL, || {
        let now = controller.controller.count_said(FOLLOWS)?;
        Ok(if now > said { Ok(()) } else { Err(controller.controller.log()) })
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
