//! Plays a history and judges it: the invariants of the owner protocol, and how long nobody answered.
//!
//! (a) only an owner's frames name an address as their sender; (b) who has heard another speaker's claim does not answer on, except
//! for a moment and saying so; (c) on a connected LAN that has been quiet for one detection time exactly one speaker answers;
//! (d) after that, every cache holds the owner's MAC address and port. (a), (b) and the fence are judged at every step ([`crate::world`]).

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

/// What is promised of a history.
#[derive(Clone, Copy, Debug)]
pub struct Promise {
    /// So long after the last disturbance no two answer.
    pub one_owner_after: u64,
    /// Nobody answers for so long at most, while the LAN is connected.
    pub dark: u64,
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
}

/// Plays it to the end. With `log`, the world has kept a timeline.
pub fn play(history: &History, promise: &Promise, log: bool) -> (World, Result<Account, Violation>) {
    let mut world = World::new(history, promise.timing, log);
    world.run_until(FAULTS_FROM - MS);
    settled(&mut world);
    let mut account = Account::default();
    let mut dark_since = vec![None; history.vips];
    let mut double_since = vec![None; history.vips];
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

/// Plays a history; if it fails, looks for a shorter one that fails, and tells the story of that one.
pub fn must_hold(history: &History, promise: &Promise) -> Account {
    let violation = match play(history, promise, false).1 {
        Ok(account) => return account,
        Err(violation) => violation,
    };
    let mut shortest = history.clone();
    loop {
        let found = shortest.shorter().find(|shorter| play(shorter, promise, false).1.is_err());
        let Some(shorter) = found else { break };
        shortest = shorter;
    }
    let (world, _) = play(&shortest, promise, true);
    let story = world.log();
    // How everything came up is of no interest, as a rule.
    let story = &story[story.len().saturating_sub(150)..];
    panic!(
        "seed {}: {} at {} ms\nshortest history that fails: {shortest:?}\n{}",
        history.seed,
        violation.what,
        violation.at / MS,
        story.join("\n")
    );
}
