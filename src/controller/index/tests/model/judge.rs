//! Compares what the controller does with what the model allows.
//!
//! [`Judge::polled`] and [`Judge::wanted`] look on at every step, with what the controller has been told; [`Judge::rest`]
//! compares two moments at which nothing was left to do; [`settled`] knows what has to be so when time has passed.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    time::Duration,
};

use super::{cluster::Cluster, facts::*, rules::Users};
use crate::{
    api::{self, Role},
    controller::{
        change::{Change, Target},
        index::Outcome,
        liveness::DEAD_AFTER,
    },
};

/// An address that no pool holds stays this long.
const ORPHANS_STAY: Duration = Duration::from_secs(30);

#[derive(Default)]
pub struct Judge {
    /// The first thing that was wrong.
    pub fault: Option<String>,
    /// When everything was looked at last.
    looked: Option<Duration>,
    /// Who had what when nothing was left to do, by Service and uid.
    rested: BTreeMap<(String, u64), BTreeSet<IpAddr>>,
    /// Services that had a reason to lose an address since.
    excused: BTreeSet<String>,
    /// By the uid of the VirtualIP: the Primary when nothing was left to do.
    primaries: BTreeMap<(IpAddr, String), String>,
    /// Addresses that had a reason to move since.
    movable: BTreeSet<IpAddr>,
    /// Since when no pool holds the address, as far as the controller knows.
    orphans: BTreeMap<IpAddr, Duration>,
    /// Whose VirtualIP somebody has removed: it is made again.
    robbed: BTreeSet<(String, IpAddr)>,
    /// What a Service has ever shown.
    showed: BTreeSet<(String, IpAddr)>,
    /// Statuses written, and events wanted, by Service.
    told: BTreeMap<String, (usize, usize)>,
}

impl Judge {
    pub fn fault(&mut self, sentence: impl FnOnce() -> String) {
        if self.fault.is_none() {
            self.fault = Some(sentence());
        }
    }

    /// What no pool holds gets its whole time anew.
    pub fn restarted(&mut self, now: Duration) {
        self.orphans.values_mut().for_each(|since| *since = now);
    }

    /// Somebody has meddled with the VirtualIP of this address.
    pub fn meddled(&mut self, address: IpAddr, users: &BTreeSet<String>) {
        self.movable.insert(address);
        self.excused.extend(users.iter().cloned());
        self.robbed.extend(users.iter().map(|user| (user.clone(), address)));
    }

    /// Somebody has claimed what he was not told to claim.
    pub fn may_all_move(&mut self) {
        self.movable.extend(self.primaries.keys().map(|(address, _)| *address));
    }

    /// A Service shows this, whoever wrote it.
    pub fn showed(&mut self, key: &str, address: IpAddr) {
        self.showed.insert((key.to_owned(), address));
    }

    /// The index has looked at all that it knows.
    pub fn polled(cluster: &mut Cluster) {
        if !std::mem::take(&mut cluster.has_news) && cluster.judge.looked == Some(cluster.now) {
            return;
        }
        cluster.judge.looked = Some(cluster.now);
        let users = cluster.users();
        let blocked: BTreeSet<IpAddr> = users.keys().copied().filter(|at| cluster.is_blocked(*at)).collect();
        let (known, judge, now) = (&cluster.known, &mut cluster.judge, cluster.now);
        for address in users.keys() {
            let holder = known.pools.keys().find(|pool| known.holds(pool, *address));
            let home = cluster.vips.get(&api::virtual_ip_name(*address)).map(|vip| vip.spec.pool.as_str());
            let incomplete = home.is_some_and(|home| known.is_incomplete(home));
            if holder.is_some() || incomplete {
                judge.orphans.remove(address);
            } else {
                judge.orphans.entry(*address).or_insert(now);
            }
        }
        judge.orphans.retain(|address, _| users.contains_key(address));
        for ((key, uid), held) in &judge.rested {
            let same = known.services.get(key).is_some_and(|service| service.uid == *uid);
            let stays = |address: &IpAddr| {
                let Some(vip) = cluster.vips.get(&api::virtual_ip_name(*address)) else { return true };
                let passing = judge.orphans.get(address).is_none_or(|since| now < *since + ORPHANS_STAY);
                known.must_stay(key, *address, &users, &vip.spec.pool, passing)
            };
            let replaced = |address: &IpAddr| blocked.contains(address);
            if !same || !held.iter().all(stays) || held.iter().any(replaced) {
                judge.excused.insert(key.clone());
            }
        }
        for ((address, _), primary) in &judge.primaries {
            let Some(vip) = cluster.vips.get(&api::virtual_ip_name(*address)) else { continue };
            let services: BTreeSet<String> = vip.spec.services.iter().cloned().collect();
            let lives = |node: &str| known.heard.get(node).is_some_and(|heard| now < *heard + DEAD_AFTER);
            let giver = known.giver(*address, true).unwrap_or(&vip.spec.pool);
            let stays =
                |pool: &str| known.candidates(pool, address.is_ipv4(), &services, &lives).contains(primary.as_str());
            // A move that its target does not answer may go elsewhere.
            let is_moving = vip.spec.assignments.iter().any(|entry| entry.role == Role::Leaving);
            if is_moving || !stays(&vip.spec.pool) || !stays(giver) {
                judge.movable.insert(*address);
            }
        }
    }

    /// The index wants this written.
    pub fn wanted(cluster: &mut Cluster, target: &Target, change: &Change) {
        let users = cluster.users();
        let (known, judge) = (&cluster.known, &mut cluster.judge);
        match change {
            Change::CreateVirtualIP { spec } | Change::UpdateVirtualIP { spec, .. } => {
                let address: IpAddr = spec.address.parse().unwrap();
                let primaries = spec.assignments.iter().filter(|entry| entry.role == Role::Primary).count();
                if primaries > 1 {
                    judge.fault(|| format!("two primaries: {spec:?}"));
                }
                let before = users.get(&address).cloned().unwrap_or_default();
                for key in &spec.services {
                    if !known.services.get(key).is_some_and(ServiceFact::is_ours) {
                        judge.fault(|| format!("{address} for {key}, which is none of ours"));
                        continue;
                    }
                    let uid = known.services[key].uid;
                    let had = judge.rested.get(&(key.clone(), uid)).is_some_and(|held| held.contains(&address));
                    if before.contains(key) || had || judge.robbed.contains(&(key.clone(), address)) {
                        continue;
                    }
                    if let Some(sentence) = judge.grant(known, key, address, &users) {
                        judge.fault(|| sentence);
                    }
                    // Who leaves the address may stay on it until it shows another.
                    let staying =
                        |other: &String| other == key || known.may_stay(other, address, &Users::new(), &spec.pool);
                    let staying: BTreeSet<String> =
                        spec.services.iter().filter(|other| staying(other)).cloned().collect();
                    if let Some(objection) = known.objection(key, address, &[(address, staying)].into()) {
                        judge.fault(|| format!("{address} for {key} among {:?}: {objection}", spec.services));
                    }
                }
            }
            Change::ServiceEvent { event, .. } => {
                let told = judge.told.entry(format!("{}/{}", event.namespace, event.name)).or_default();
                told.1 += 1;
                if told.1 > told.0 {
                    judge.fault(|| format!("more events than changes: {target:?} {event:?}"));
                }
            }
            _ => {}
        }
    }

    /// Why the address should not be given to the Service.
    fn grant(&self, known: &Facts, key: &str, address: IpAddr, users: &Users) -> Option<String> {
        let service = &known.services[key];
        let is_four = address.is_ipv4();
        // What it shows already was given to it once, by whomever.
        let shown = self.showed.contains(&(key.to_owned(), address));
        if (!known.makes_sense(service) && !shown) || !service.families.order().contains(&is_four) {
            return Some(format!("{address} for {key}, which cannot have it: {service:?}"));
        }
        let asked = Facts::asked(service, is_four);
        if !shown && asked.is_some_and(|asked| asked != address) {
            return Some(format!("{address} for {key}, which asks for {asked:?}"));
        }
        let in_use = users.contains_key(&address) || shown;
        let Some(pool) = known.giver(address, in_use) else {
            return Some(format!("{address} for {key} is given by no pool"));
        };
        // What it shows it has until it shows another, even if it asks for another pool.
        let admitted = if shown { known.admits(pool, service) } else { known.may_use(pool, service) };
        if !admitted {
            return Some(format!("{address} for {key} from {pool}, which does not admit it"));
        }
        let automatic = known.pools[pool].auto || service.pool.is_some() || asked.is_some() || shown;
        (!automatic).then(|| format!("{address} for {key} from {pool}, unasked"))
    }

    /// A write has met its fate.
    pub fn carried(&mut self, change: &Change, _: &Outcome) {
        if let Change::ServiceStatus(status) = change {
            let key = format!("{}/{}", status.namespace, status.name);
            status.addresses.iter().for_each(|address| self.showed(&key, *address));
            self.told.entry(key).or_default().0 += 1;
        }
    }

    /// Nothing is left to do now: what was there the last time and is not any more had a reason to go.
    pub fn rest(cluster: &mut Cluster) {
        if !cluster.index.backoff.is_empty() || !cluster.writes.is_empty() {
            return;
        }
        let holdings = cluster.holdings();
        let (truth, judge) = (&cluster.truth, &mut cluster.judge);
        for ((key, uid), before) in &std::mem::take(&mut judge.rested) {
            let is_same = truth.services.get(key).is_some_and(|service| service.uid == *uid);
            let after = holdings.get(key).cloned().unwrap_or_default();
            // Amid a move it has two of a family, and one of them goes.
            let stays = |family: bool| before.intersection(&after).any(|at| at.is_ipv4() == family);
            let lost = before.difference(&after).any(|at| !stays(at.is_ipv4()));
            if is_same && !judge.excused.contains(key) && lost {
                judge.fault(|| format!("{key} had {before:?} and has {after:?}, without a reason"));
            }
        }
        for (key, addresses) in holdings {
            if let Some(service) = truth.services.get(&key) {
                judge.rested.insert((key, service.uid), addresses);
            }
        }
        judge.excused.clear();
        let primaries: BTreeMap<(IpAddr, String), String> = cluster
            .vips
            .values()
            .filter_map(|vip| {
                let primary = vip.spec.assignments.iter().find(|entry| entry.role == Role::Primary)?;
                let uid = vip.metadata.uid.clone()?;
                Some(((vip.spec.address.parse().ok()?, uid), primary.node.clone()))
            })
            .collect();
        for (id, node) in &judge.primaries {
            let moved = primaries.get(id).filter(|now| *now != node).cloned();
            if let Some(moved) = moved
                && !judge.movable.contains(&id.0)
                && judge.fault.is_none()
            {
                judge.fault = Some(format!("{} went from {node} to {moved}, without a reason", id.0));
            }
        }
        judge.primaries = primaries;
        judge.movable.clear();
    }
}

/// What has to be so when nothing has happened for a while.
pub fn settled(cluster: &Cluster) -> Vec<String> {
    let mut faults = Vec::new();
    let (truth, users, holdings) = (&cluster.truth, cluster.users(), cluster.holdings());
    let barred = cluster.quarantined();
    for (address, services) in &users {
        let vip = &cluster.vips[&api::virtual_ip_name(*address)];
        for key in services {
            if !truth.may_stay(key, *address, &users, &vip.spec.pool) {
                faults.push(format!("{address} of {} is still recorded for {key}", vip.spec.pool));
            }
        }
    }
    for address in &barred {
        let vip = &cluster.vips[&api::virtual_ip_name(*address)];
        // Who sees that the other host is gone, if nobody asks?
        let asked = !candidates(cluster, vip).is_empty();
        if asked && !cluster.foreign.contains(address) {
            faults.push(format!("{address} is in quarantine, and nobody answers for it"));
        }
        // What cannot be read of its pool may hold it.
        let may_be_held = truth.is_incomplete(&vip.spec.pool);
        if !may_be_held && !truth.pools.keys().any(|pool| truth.holds(pool, *address)) {
            faults.push(format!("{address} is in quarantine and in no pool"));
        }
    }
    for (key, service) in &truth.services {
        let held = holdings.get(key).cloned().unwrap_or_default();
        if !service.is_ours() {
            // What is on its way out is not written to any more.
            let is_going = service.kind == Kind::Terminating;
            if !is_going && cluster.condition(key, api::CONDITION_ALLOCATED).is_some() {
                faults.push(format!("{key} is none of ours and has a condition"));
            }
            continue;
        }
        faults.extend(short(cluster, key, &held, &users, &barred));
        faults.extend(told(cluster, key, &held, &users, &barred));
    }
    for vip in cluster.vips.values() {
        faults.extend(placed(cluster, vip));
    }
    for pool in truth.pools.keys() {
        faults.extend(counted(cluster, pool, &users));
    }
    faults
}

/// Whether the Service has fewer addresses than it could have.
fn short(
    cluster: &Cluster,
    key: &str,
    held: &BTreeSet<IpAddr>,
    users: &Users,
    barred: &BTreeSet<IpAddr>,
) -> Option<String> {
    let truth = &cluster.truth;
    let service = &truth.services[key];
    if !truth.makes_sense(service) {
        return None;
    }
    let has = |is_four: bool| held.iter().any(|at| at.is_ipv4() == is_four);
    let choices = |is_four: bool| truth.choices(key, is_four, users, barred);
    let lacking: Vec<bool> = truth.needs(key).into_iter().filter(|is_four| !has(*is_four)).collect();
    if !lacking.is_empty() {
        let possible = lacking.iter().all(|is_four| !choices(*is_four).is_empty());
        return possible.then(|| format!("{key} has {held:?}, and all that it lacks is free"));
    }
    for is_four in service.families.order().iter().copied() {
        let free: Vec<IpAddr> = choices(is_four).into_iter().filter(|at| !cluster.is_blocked(*at)).collect();
        if !has(is_four) && !free.is_empty() {
            return Some(format!("{key} has {held:?} and could have one of {free:?}"));
        }
        let bad = held.iter().find(|at| at.is_ipv4() == is_four && cluster.is_blocked(**at));
        let stuck = |at: IpAddr| {
            users[&at].iter().any(|user| {
                let service = &truth.services[user];
                let asked = truth.makes_sense(service) && Facts::asked(service, is_four).is_some();
                asked || cluster.shows(user).contains(&at)
            })
        };
        if let Some(bad) = bad.filter(|bad| !stuck(**bad) && free.iter().any(|at| at != *bad)) {
            return Some(format!("{key} stays on {bad}, which a foreign host has, and could have one of {free:?}"));
        }
    }
    None
}

/// Whether what the Service shows is so.
fn told(
    cluster: &Cluster,
    key: &str,
    held: &BTreeSet<IpAddr>,
    users: &Users,
    barred: &BTreeSet<IpAddr>,
) -> Vec<String> {
    let service = &cluster.truth.services[key];
    let mut faults = Vec::new();
    let Some((status, reason, message)) = cluster.condition(key, api::CONDITION_ALLOCATED) else {
        return vec![format!("{key} has no condition Allocated")];
    };
    let shown = cluster.shows(key);
    let families = service.families.order().iter();
    let ordered = families.flat_map(|is_four| held.iter().copied().filter(move |at| at.is_ipv4() == *is_four));
    let ordered: Vec<IpAddr> = ordered.collect();
    let disputed = |at: &IpAddr| cluster.foreign.contains(at) && !shown.contains(at);
    let expected: Vec<IpAddr> = ordered.iter().copied().filter(|at| !disputed(at)).collect();
    if shown != expected {
        faults.push(format!("{key} shows {shown:?} and has {expected:?}"));
    }
    let problem = cluster.truth.has_problem(key, held);
    if status == problem || status != (reason == "Allocated") {
        faults.push(format!("{key} has {held:?} and says {status} {reason}: {message}"));
    }
    if problem {
        let reasons = cluster.truth.reasons(key, held, users, barred);
        if !reasons.contains(reason.as_str()) {
            faults.push(format!("{key} says {reason} ({message}), true would be {reasons:?}: {service:?}"));
        }
    }
    if held.is_empty() {
        if let Some(announced) = cluster.condition(key, api::CONDITION_ANNOUNCED) {
            faults.push(format!("{key} has no address and says {announced:?}"));
        }
        return faults;
    }
    for address in held {
        if !message.contains(&address.to_string()) {
            faults.push(format!("{key} has {address} and says {message}"));
        }
    }
    let states: Vec<&str> = ordered.iter().map(|address| announced(cluster, key, *address)).collect();
    let all = states.iter().all(|state| *state == "Announced");
    let none = states.iter().all(|state| *state != "Announced");
    let expected = if all || none { states.first().copied().unwrap_or("nothing") } else { "PartlyAnnounced" };
    let named = |message: &str| {
        let mut silent_or_named =
            ordered.iter().zip(&states).filter(|(_, state)| **state == "Announced").map(|(at, _)| at);
        silent_or_named.all(|at| owner(cluster, *at).is_some_and(|node| message.contains(&format!("{at} by {node} "))))
    };
    match cluster.condition(key, api::CONDITION_ANNOUNCED) {
        Some((status, reason, message))
            if reason == expected && status == (reason == "Announced") && named(&message) => {}
        said => faults.push(format!("{key} says {said:?}, and true is {expected}")),
    }
    faults
}

/// What is true of one address of a Service.
fn announced(cluster: &Cluster, key: &str, address: IpAddr) -> &'static str {
    let (truth, vip) = (&cluster.truth, &cluster.vips[&api::virtual_ip_name(address)]);
    let claims = vip.status.clone().unwrap_or_default().claims;
    let assigned = |node: &str| vip.spec.assignments.iter().any(|entry| entry.node == node);
    let is_off = |node: &str| truth.nodes.get(node).is_some_and(|node| node.out_of_service);
    let lives = |node: &str| cluster.alive.contains(node) && !is_off(node);
    let mut claims = claims.iter().filter(|claim| assigned(&claim.node) && lives(&claim.node));
    let owner = claims.clone().find(|claim| claim.state == api::ClaimState::Owner);
    if claims.any(|claim| claim.conflict_mac.is_some()) {
        return "AddressConflict";
    }
    let service = &truth.services[key];
    let mut endpoints = truth.endpoints(key, address.is_ipv4());
    if service.local && truth.endpoints(key, address.is_ipv4()).next().is_none() {
        return "NoEndpoint";
    }
    if service.local && !endpoints.any(|(_, endpoint)| endpoint != Endpoint::NotReady) {
        return "NoLocalEndpoint";
    }
    if owner.is_some() {
        return "Announced";
    }
    if candidates(cluster, vip).is_empty() { "NoEligibleNode" } else { "AwaitingSpeaker" }
}

/// The node that says that it answers for the address, and lives.
fn owner(cluster: &Cluster, address: IpAddr) -> Option<String> {
    let vip = cluster.vips.get(&api::virtual_ip_name(address))?;
    let mut claims = vip.status.iter().flat_map(|status| &status.claims);
    let owner = claims.find(|claim| claim.state == api::ClaimState::Owner && cluster.alive.contains(&claim.node))?;
    Some(owner.node.clone())
}

/// The nodes that can announce the address.
fn candidates(cluster: &Cluster, vip: &api::VirtualIP) -> BTreeSet<&'static str> {
    let services: BTreeSet<String> = vip.spec.services.iter().cloned().collect();
    let is_four = !vip.spec.address.contains(':');
    cluster.truth.candidates(&vip.spec.pool, is_four, &services, &|node| cluster.alive.contains(node))
}

/// Whether the right nodes have a part in the address.
fn placed(cluster: &Cluster, vip: &api::VirtualIP) -> Vec<String> {
    let mut faults = Vec::new();
    let spec = &vip.spec;
    let address: IpAddr = spec.address.parse().unwrap();
    let candidates = candidates(cluster, vip);
    let primary = spec.assignments.iter().find(|entry| entry.role == Role::Primary);
    let fit = primary.is_some_and(|primary| candidates.contains(primary.node.as_str()));
    if !candidates.is_empty() && !fit {
        faults.push(format!("{candidates:?} can announce {address}, and this is so: {:?}", spec.assignments));
    }
    // Where a foreign host answers, the new primary does not claim, and the old one has nobody to leave the address to.
    let hindered = cluster.foreign.contains(&address);
    if fit && !hindered && spec.assignments.iter().any(|entry| entry.role == Role::Leaving) {
        faults.push(format!("{address} is still being left: {:?}", spec.assignments));
    }
    for entry in &spec.assignments {
        if cluster.truth.is_excluded(&entry.node, &spec.pool) {
            faults.push(format!("{} is excluded and has a part in {address}", entry.node));
        }
    }
    let standbys = spec.assignments.iter().filter(|entry| entry.role == Role::Standby);
    if fit && !hindered && standbys.clone().count() != (candidates.len() - 1).min(2) {
        faults.push(format!("{candidates:?} can announce {address}, and this is so: {:?}", spec.assignments));
    }
    for entry in standbys.filter(|entry| fit && !candidates.contains(entry.node.as_str())) {
        faults.push(format!("{} stands by for {address} and cannot announce it", entry.node));
    }
    let role =
        |entry: &api::Assignment| (format!("node.l2lb.io/{}", entry.node), format!("{:?}", entry.role).to_lowercase());
    let labels: BTreeMap<String, String> = spec.assignments.iter().map(role).collect();
    if vip.metadata.labels.as_ref() != Some(&labels) {
        faults.push(format!("{address} has labels {:?} and {:?}", vip.metadata.labels, spec.assignments));
    }
    let is_fast = cluster.truth.pools.get(&spec.pool).is_some_and(|pool| pool.fast);
    if (spec.failover == api::FailoverClass::Fast) != is_fast {
        faults.push(format!("{address} of {} has failover {:?}", spec.pool, spec.failover));
    }
    // When all are dead, it is the controller that does not see them.
    let living = |(node, fact): (&String, &NodeFact)| cluster.alive.contains(node) && !fact.out_of_service;
    let anybody_lives = cluster.truth.nodes.iter().any(living);
    for claim in vip.status.iter().flat_map(|status| &status.claims) {
        let is_off = cluster.truth.nodes.get(&claim.node).is_none_or(|node| node.out_of_service);
        let is_dead = !cluster.alive.contains(&claim.node) || is_off;
        let has_part = spec.assignments.iter().any(|entry| entry.node == claim.node);
        if !has_part || (is_dead && anybody_lives) {
            faults.push(format!("a claim of {}, which is dead or has no part, stays on {address}", claim.node));
        }
    }
    faults
}

/// Whether the pool says how much of it is used.
fn counted(cluster: &Cluster, pool: &str, users: &Users) -> Vec<String> {
    let truth = &cluster.truth;
    let Some(status) = cluster.pool_status.get(pool) else { return vec![format!("pool {pool} shows nothing")] };
    let mut faults = Vec::new();
    let taken: BTreeSet<IpAddr> = users.keys().copied().chain(cluster.quarantined()).collect();
    let in_use = |at: IpAddr| users.contains_key(&at);
    let is_vast = |at: &&IpAddr| at.to_string().starts_with("2001:db8:64:");
    for (field, is_four) in [("ipv4", true), ("ipv6", false)] {
        let given: Vec<IpAddr> = truth.gives(pool, in_use).into_iter().filter(|at| at.is_ipv4() == is_four).collect();
        let listed = given.iter().filter(|at| !is_vast(at)).count() as u128;
        let vast = if given.iter().any(|at| is_vast(&at)) { 1 << 64 } else { 0 };
        let of_family = || taken.iter().copied().filter(|at| at.is_ipv4() == is_four);
        let ours = of_family().filter(|at| truth.giver(*at, in_use(*at)) == Some(pool)).count() as u128;
        // What it holds and does not give, but has given.
        let beyond = |at: &IpAddr| {
            let is_home = cluster.vips[&api::virtual_ip_name(*at)].spec.pool == pool;
            truth.giver(*at, in_use(*at)).is_none() && is_home && truth.holds(pool, *at)
        };
        let beyond = of_family().filter(beyond).count() as u128;
        let (total, used) = (listed + vast + beyond, ours + beyond);
        let counts = |field: &str, name: &str| status[field][name].as_str().unwrap_or("0").to_owned();
        let shown = ["total", "used", "free"].map(|name| counts(field, name));
        let wanted = [total, used, total - used].map(|count| count.to_string());
        if shown != wanted {
            faults.push(format!("pool {pool} counts {shown:?} for {field}, right is {wanted:?}"));
        }
    }
    faults
}
