//! Plays a history and judges it: the invariants of the owner protocol, and how long nobody answered.
//!
//! (a) only an owner's frames name an address as their sender; (b) who has heard another speaker's claim does not answer on, except
//! for a moment and saying so; (c) on a connected LAN that has been quiet for one detection time exactly one speaker answers;
//! (d) after that, every cache holds the owner's MAC address and port, and until then not for long another one; and no address wanders
//! from node to node without need. (a), (b) and the fence are judged at every step ([`crate::world`]).

use l2lb::speaker::owner::Timing;

use crate::{
    history::{FAULTS_FROM, History, MS},
    hosts::{Entry, HOSTS},
    node::mac,
    world::{Violation, World},
};

/// Answers are looked for this often.
const SAMPLE: u64 = 20 * MS;
/// A history is played at least until so long after its last fault.
const REST: u64 = 13_000 * MS;

/// So many lines of a timeline are printed.
const LINES: usize = 120;

/// What is promised of a history.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// So long after the last disturbance no two answer.
    pub one_owner_after: u64,
    /// Nobody answers for so long at most, while the LAN is connected.
    pub dark: u64,
    /// While one node alone answers, on a connected LAN, a host believes in another for so long at most.
    pub stale: u64,
    /// So many times at most another node comes to answer alone for an address.
    pub changes: u32,
    /// After the last fault everything has come to rest within this.
    pub settled_after: u64,
    pub timing: Timing,
}

/// How a history went.
#[derive(Clone, Copy, Debug, Default)]
pub struct Account {
    /// The longest time in which nobody answered for an address, in microseconds.
    pub dark: u64,
    /// The longest time in which two answered while the LAN was connected.
    pub double: u64,
    /// The longest time in which a host believed in another node than the one that answered.
    pub stale: u64,
    /// How often another node came to answer alone: the most of any address.
    pub changes: u32,
}

impl Account {
    /// The worst of both.
    pub fn max(self, other: Self) -> Self {
        Self {
            dark: self.dark.max(other.dark),
            double: self.double.max(other.double),
            stale: self.stale.max(other.stale),
            changes: self.changes.max(other.changes),
        }
    }
}

/// Plays it to the end. With `log`, the world has kept a timeline.
pub fn play(history: &History, promise: &Promise, log: bool) -> (World, Result<Account, Violation>) {
    let mut world = World::new(history, promise.timing, log);
    world.run_until(FAULTS_FROM - MS);
    settled(&mut world);
    let mut account = Account::default();
    let mut dark_since = vec![None; history.vips];
    let mut double_since = vec![None; history.vips];
    let mut stale_since = vec![[None; HOSTS.len()]; history.vips];
    let mut owners: Vec<(Option<usize>, u32)> = vec![(None, 0); history.vips];
    let end = history.quiet_from() + promise.settled_after;
    let quiet = history.quiet_from() + REST;
    while world.now < end && world.violation.is_none() {
        if world.now >= quiet && world.now % (1_000 * MS) < SAMPLE && unsettled(&world).is_none() {
            break;
        }
        world.run_until(world.now + SAMPLE);
        for vip in 0..history.vips {
            let answering = world.answering(vip);
            let dark = time_since(&mut dark_since[vip], world.now, answering.is_empty());
            account.dark = account.dark.max(dark);
            if dark > promise.dark {
                world.violate(|| format!("(c) nobody answers for vip{vip} since {} ms", dark / MS));
            }
            if let [owner] = answering[..]
                && world.is_connected()
            {
                let (before, changes) = &mut owners[vip];
                *changes += u32::from(before.replace(owner).is_some_and(|before| before != owner));
                account.changes = account.changes.max(*changes);
                if *changes > promise.changes {
                    world.violate(|| format!("vip{vip} wanders: now node{owner} owns it"));
                }
            }
            for host in 0..HOSTS.len() {
                let stale =
                    time_since(&mut stale_since[vip][host], world.now, believes_another(&world, &answering, host, vip));
                account.stale = account.stale.max(stale);
                if stale > promise.stale {
                    let kind = HOSTS[host];
                    world.violate(|| {
                        format!("(d) {kind:?} believes in another than {answering:?} for {} ms", stale / MS)
                    });
                }
            }
            let double = time_since(&mut double_since[vip], world.now, answering.len() > 1 && world.is_connected());
            account.double = account.double.max(double);
            if answering.len() > 1
                && world.is_connected()
                && world.now - world.disturbed_at > promise.one_owner_after
                && double > promise.one_owner_after
            {
                world.violate(|| format!("(c) {answering:?} answer for vip{vip} since {} ms", double / MS));
            }
        }
    }
    settled(&mut world);
    let result = match &world.violation {
        Some(violation) => Err(violation.clone()),
        None => Ok(account),
    };
    (world, result)
}

/// How long it has been so.
fn time_since(since: &mut Option<u64>, now: u64, is_so: bool) -> u64 {
    if !is_so {
        *since = None;
        return 0;
    }
    now - *since.get_or_insert(now)
}

/// Whether one node alone answers, and the host, which could reach it, would send elsewhere.
fn believes_another(world: &World, answering: &[usize], host: usize, vip: usize) -> bool {
    let [owner] = answering else { return false };
    let right = Entry { mac: mac(*owner), port: world.nodes[*owner].port };
    world.is_connected() && world.hosts[host].cache.get(&vip).is_some_and(|entry| *entry != right)
}

fn settled(world: &mut World) {
    if let Some(what) = unsettled(world) {
        world.violate(|| what);
    }
}

/// At rest there is one owner, whom the API names, and all caches are right. What is not so.
fn unsettled(world: &World) -> Option<String> {
    for vip in 0..world.history.vips {
        let answering = world.answering(vip);
        let [owner] = answering[..] else {
            return Some(format!("(c) settled, and vip{vip} is answered for by {answering:?}"));
        };
        let primary = world.controller.vips[vip].primary();
        if primary != owner {
            return Some(format!("(c) settled, node{owner} owns vip{vip} and node{primary} is Primary"));
        }
        let expected = Entry { mac: mac(owner), port: world.nodes[owner].port };
        for (host, kind) in HOSTS.iter().enumerate() {
            let known = world.hosts[host].cache.get(&vip).copied();
            if known != Some(expected) {
                return Some(format!("(d) {kind:?} believes {known:?} of vip{vip}, which is at {expected:?}"));
            }
        }
    }
    None
}

/// What kind of promise was broken: a simpler history has to break the same.
fn kind(violation: &Violation) -> &str {
    violation.what.split_once(')').map_or("", |(kind, _)| kind)
}

/// The simplest history found that breaks the same promise.
fn simplest(history: &History, promise: &Promise, violation: &Violation) -> History {
    let fails =
        |simpler: &History| play(simpler, promise, false).1.err().is_some_and(|found| kind(&found) == kind(violation));
    let mut simplest = history.clone();
    // A step that was in vain once may lead on later.
    while let Some(simpler) = simplest.simpler().into_iter().find(fails) {
        simplest = simpler;
    }
    simplest
}

/// Plays a history; if it fails, looks for a simpler one that fails alike, and tells the story of that one.
pub fn must_hold(history: &History, promise: &Promise) -> Account {
    let violation = match play(history, promise, false).1 {
        Ok(account) => return account,
        Err(violation) => violation,
    };
    let simplest = simplest(history, promise, &violation);
    let (world, result) = play(&simplest, promise, true);
    let broken = result.err().unwrap_or_else(|| violation.clone());
    panic!(
        "seed {}: {} at {} ms\nthe simplest history that breaks this promise: {} at {} ms\n    {}\n{}",
        history.seed,
        violation.what,
        violation.at / MS,
        broken.what,
        broken.at / MS,
        simplest.pinned(),
        story(&world, simplest.events.first().map_or(0, |event| event.at)).join("\n"),
    );
}

/// The timeline from the first fault on: how everything came up is of no interest, as a rule, and of a long one the end is.
fn story(world: &World, from: u64) -> Vec<String> {
    let (before, after): (Vec<&String>, Vec<&String>) = world.log().iter().partition(|line| {
        let at = line.split_whitespace().next().and_then(|at| at.parse::<f64>().ok());
        at.is_some_and(|at| at * 1e3 < from as f64)
    });
    let left_out = after.len().saturating_sub(LINES);
    let mut story = vec![format!("... {} lines", before.len() + left_out)];
    story.extend(after.into_iter().skip(left_out).cloned());
    for vip in 0..world.history.vips {
        let controller = &world.controller.vips[vip];
        story.push(format!(
            "in the end: vip{vip} is answered for by {:?}; placement {} {:?}; hosts believe {:?}",
            world.answering(vip),
            controller.placement,
            controller.assignments,
            world.hosts.iter().map(|host| host.cache.get(&vip).map(|entry| entry.mac)).collect::<Vec<_>>()
        ));
    }
    story
}
