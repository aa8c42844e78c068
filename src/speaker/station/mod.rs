//! One node's speaker without its edges: the owner machines of all its virtual IPs, its NICs' pace, and what they want done.
//!
//! Inputs: [`Station::handle_wake`] at the start of each pass of the loop, before any other; then any of
//! [`Station::handle_change`], [`Station::handle_speakers`], [`Station::handle_link`], [`Station::handle_ipv6`],
//! [`Station::handle_unsent`], [`Station::handle_addresses`], [`Station::handle_deaf`], [`Station::handle_packet`]; then
//! [`Station::handle_timers`].
//! Outputs: drain [`Station::poll_effect`] and carry the effects out in their order, then wait until
//! [`Station::poll_timeout`] or an input. After the effects, and only then, the caller renews the receive path's fence.

mod effect;
mod nic;
mod watching;

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub use effect::Effect;
use nic::Nic;

use super::{
    owner::{LastClaim, Order, Output, Owner},
    peers::Peers,
    triage::{Part, Snapshot},
    wire::{MacAddr, Message, Packet},
};

/// The loop runs at least this many times in the shortest fence of the addresses that it owns.
const RUNS_IN_FENCE: u32 = 5;
/// With no probe left to send, one, two, and whoever is not about to claim.
const QUEUES: usize = ABOUT_TO_CLAIM + 1;
/// The queues of machines that are asking.
const ABOUT_TO_CLAIM: usize = 3;
/// A paced NIC is looked at again after this, to send several at a time.
const PACE: Duration = Duration::from_millis(10);

/// The state of a NIC: the MAC address it has while it is open and has a link, or why it cannot be used.
pub type Link = Result<MacAddr, Arc<str>>;

/// This node's part in one virtual IP, as the API has it.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Assigned {
    /// The virtual IP.
    pub vip: IpAddr,
    /// The interface on which this node announces it.
    pub nic: Arc<str>,
    /// What this node is to do.
    pub order: Order,
    /// This node's own last claim, as the status has it.
    pub last_claim: Option<LastClaim>,
}

/// News from the API.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// These are all: after a start, and after a lost watch.
    Reset(Vec<Assigned>),
    /// New, or changed.
    Apply(Assigned),
    /// This node has no part in it any more.
    Remove(IpAddr),
}

struct Slot {
    nic: Arc<str>,
    machine: Owner,
    /// Which of the station's queues it is in, and when it is due.
    timer: Option<(usize, Instant)>,
}

/// Room for so many effects is kept; what a pass with thousands took is given back.
const EFFECTS_KEPT: usize = 256;

/// All that one node's speaker decides.
pub struct Station {
    peers: Arc<Peers>,
    refresh_interval: Duration,
    /// In boxes: a tree's nodes are half empty.
    slots: BTreeMap<IpAddr, Box<Slot>>,
    nics: BTreeMap<Arc<str>, Nic>,
    /// What is due when. Machines that are nearer to a claim are in an earlier queue: where the pace does not allow all at once,
    /// the first addresses of a dead node are back before the last are probed for.
    timers: [BTreeSet<(Instant, IpAddr)>; QUEUES],
    woke_at: Option<Instant>,
    effects: VecDeque<Effect>,
}

impl Station {
    /// With no address and no NIC.
    pub fn new(peers: Arc<Peers>, refresh_interval: Duration) -> Self {
        Self {
            peers,
            refresh_interval,
            slots: BTreeMap::new(),
            nics: BTreeMap::new(),
            timers: Default::default(),
            woke_at: None,
            effects: VecDeque::new(),
        }
    }

    /// The loop runs. If it did not for too long, owners recheck before they answer again, and who was asking asks anew.
    pub fn handle_wake(&mut self, now: Instant) {
        let gap = self.woke_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.woke_at = Some(now);
        for vip in self.fenced_by(gap) {
            self.with_machine(now, vip, |machine, _| machine.handle_late_loop(now, gap));
        }
    }

    /// The API changed what this node is to do.
    pub fn handle_change(&mut self, now: Instant, change: Change) {
        match change {
            Change::Reset(all) => {
                let kept: BTreeSet<IpAddr> = all.iter().map(|assigned| assigned.vip).collect();
                let gone: Vec<IpAddr> = self.slots.keys().filter(|vip| !kept.contains(vip)).copied().collect();
                for vip in gone {
                    self.remove(now, vip);
                }
                for assigned in all {
                    self.apply(now, assigned);
                }
            }
            Change::Apply(assigned) => self.apply(now, assigned),
            Change::Remove(vip) => {
                self.remove(now, vip);
            }
        }
    }

    /// Other speakers' MAC addresses changed.
    pub fn handle_speakers(&mut self, now: Instant, peers: Arc<Peers>) {
        self.peers = peers;
        for vip in self.slots.keys().copied().collect::<Vec<_>>() {
            self.with_machine(now, vip, |machine, peers| machine.handle_speakers(now, peers));
        }
        for nic in self.nics.values_mut() {
            nic.parts_changed = true;
        }
    }

    /// A NIC was opened, lost its link, or got another MAC address. Told twice in succession that it is open, with the same
    /// MAC address, it was opened anew: claims may have gone unheard meanwhile.
    pub fn handle_link(&mut self, now: Instant, name: &Arc<str>, link: Link) {
        let nic = self.nics.entry(name.clone()).or_insert_with(|| Nic::new(link.clone()));
        let reopened = link.is_ok() && nic.link == link;
        nic.mac = link.as_ref().ok().copied().or(nic.mac);
        if reopened || link.is_err() {
            nic.monitor.handle_link_lost();
        }
        nic.link = link;
        nic.parts_changed = true;
        nic.watch_changed = true;
        let vips = nic.vips.clone();
        self.tell_machines(now, name, reopened, vips);
    }

    /// Whether an open NIC can announce IPv6, too; until told otherwise it can. Told twice in succession that it can, it was
    /// opened anew for IPv6: claims may have gone unheard meanwhile.
    pub fn handle_ipv6(&mut self, now: Instant, name: &Arc<str>, state: Result<(), Arc<str>>) {
        let Some(nic) = self.nics.get_mut(name) else { return };
        let reopened = state.is_ok() && nic.ipv6.is_ok();
        nic.ipv6 = state;
        nic.parts_changed = true;
        let vips = nic.vips.iter().filter(|vip| vip.is_ipv6()).copied().collect();
        self.tell_machines(now, name, reopened, vips);
    }

    /// Tells the machines of these addresses how their NIC is now.
    fn tell_machines(&mut self, now: Instant, name: &Arc<str>, reopened: bool, vips: BTreeSet<IpAddr>) {
        for vip in vips {
            let Some((state, mac)) = self.nics.get(name).map(|nic| nic.for_machine(vip)) else { return };
            self.with_machine(now, vip, |machine, _| {
                if reopened {
                    machine.handle_link(now, Err(Arc::from("it is being opened anew")), mac);
                }
                machine.handle_link(now, state, mac);
            });
        }
    }

    /// A probe did not leave, so that silence means nothing: who asked by it asks anew.
    pub fn handle_unsent(&mut self, now: Instant, vip: IpAddr) {
        self.with_machine(now, vip, |machine, _| machine.handle_unsent(now));
    }

    /// A NIC's own addresses: what this node is called when it asks another speaker.
    pub fn handle_addresses(&mut self, name: &str, addresses: Vec<IpAddr>) {
        if let Some(nic) = self.nics.get_mut(name) {
            nic.addresses = addresses;
        }
    }

    /// Whether a NIC's receive thread stands still, so that silence means nothing: nothing is claimed there until it runs, and
    /// all that it then handed over was heard.
    pub fn handle_deaf(&mut self, name: &str, is_deaf: bool, has_heard_all: bool) {
        if let Some(nic) = self.nics.get_mut(name) {
            nic.deaf = is_deaf || (nic.deaf && !has_heard_all);
        }
    }

    /// A packet came in on a NIC.
    pub fn handle_packet(&mut self, now: Instant, name: &str, packet: &Packet) {
        self.monitor_hears(now, name, packet);
        for vip in BTreeSet::from([packet.sender_ip, packet.target_ip]) {
            if self.slots.get(&vip).is_some_and(|slot| *slot.nic == *name) {
                self.with_machine(now, vip, |machine, peers| machine.handle_packet(now, packet, peers));
            }
        }
    }

    /// Does what is due, at the pace that each NIC allows: what was begun goes before what was not, and otherwise in turn.
    pub fn handle_timers(&mut self, now: Instant) {
        self.watch_owners(now);
        for queue in 0..QUEUES {
            let due: Vec<IpAddr> =
                self.timers[queue].iter().take_while(|(at, _)| *at <= now).map(|(_, vip)| *vip).collect();
            for vip in due {
                let Some(nic) = self.slots.get(&vip).and_then(|slot| self.nics.get(&slot.nic)) else { continue };
                if nic.deaf && queue == 0 {
                    // It has asked, and cannot be answered.
                } else if nic.pacer.ready_at(now) <= now {
                    self.with_machine(now, vip, |machine, peers| machine.handle_tick(now, peers));
                } else if self.nics.len() == 1 {
                    break;
                }
            }
        }
        let refreshes: Vec<IpAddr> = self
            .nics
            .values_mut()
            .flat_map(|nic| {
                let refresh = nic.rotation.take_due(now, self.refresh_interval, &nic.owned);
                refresh.into_iter().chain(nic.repetition.take_due(now))
            })
            .collect();
        for vip in refreshes {
            self.with_machine(now, vip, |machine, _| machine.handle_refresh());
        }
    }

    /// The next thing to do. A changed snapshot comes before the frames that follow from it.
    pub fn poll_effect(&mut self) -> Option<Effect> {
        for (name, nic) in &mut self.nics {
            if std::mem::take(&mut nic.watch_changed) {
                return Some(Effect::Watch { nic: name.clone(), vips: nic.vips.iter().copied().collect() });
            }
            if std::mem::take(&mut nic.parts_changed) {
                let part = |vip: &IpAddr| match self.slots.get(vip) {
                    Some(slot) if slot.machine.answers() => Part::Owned { fence: slot.machine.fence() },
                    _ => Part::Watched,
                };
                let parts: Vec<(IpAddr, Part)> = nic.vips.iter().map(|vip| (*vip, part(vip))).collect();
                let fences = parts.iter().filter_map(|(_, part)| match part {
                    Part::Owned { fence } => Some(*fence),
                    Part::Watched => None,
                });
                nic.shortest_fence = fences.min();
                let snapshot = parts.into_iter().collect::<Snapshot>().with_peers(self.peers.clone());
                return Some(Effect::Publish { nic: name.clone(), snapshot });
            }
        }
        self.nics.retain(|_, nic| !nic.vips.is_empty());
        while let Some(effect) = self.effects.pop_front() {
            if self.still_holds(&effect) {
                return Some(effect);
            }
        }
        if self.effects.capacity() > EFFECTS_KEPT {
            self.effects = VecDeque::new();
        }
        None
    }

    /// Whether what was wanted earlier in this pass is still wanted: what an owner said before it yielded must not leave any
    /// more, nor what is about an address in which this node has no part, or has it on another NIC.
    fn still_holds(&self, effect: &Effect) -> bool {
        let slot = |vip: IpAddr, nic: &Arc<str>| self.slots.get(&vip).filter(|slot| slot.nic == *nic);
        match effect {
            Effect::Send { nic, message: Message::Announcement { vip, .. } } => {
                slot(*vip, nic).is_some_and(|slot| slot.machine.answers())
            }
            Effect::Send { nic, message } => slot(message.vip(), nic).is_some(),
            Effect::Report { vip, nic, .. } => slot(*vip, nic).is_some(),
            Effect::Unheard { nic, .. } => self.nics.contains_key(nic),
            Effect::Watch { .. } | Effect::Publish { .. } => true,
        }
    }

    /// Whether a frame comes too late: the loop has been held up since its last wake, for so long that the receive path has
    /// fallen mute, and others may have taken over (rule 5). The next wake finds that out. A question is never too late.
    pub fn is_too_late(&self, now: Instant, message: &Message) -> bool {
        let Message::Announcement { vip, .. } = message else { return false };
        let held_up = self.woke_at.map_or(Duration::ZERO, |at| now.saturating_duration_since(at));
        self.slots.get(vip).is_none_or(|slot| held_up >= slot.machine.fence())
    }

    /// When the loop has to run next.
    pub fn poll_timeout(&self, now: Instant) -> Option<Instant> {
        let timer = self.timers.iter().filter_map(BTreeSet::first).min().map(|(at, vip)| {
            let paced =
                self.slots.get(vip).and_then(|slot| self.nics.get(&slot.nic)).map(|nic| nic.pacer.ready_at(now));
            // A timer that is due and still there waits for the pace.
            if *at <= now { paced.unwrap_or(now).max(now + PACE) } else { *at }
        });
        let refreshes = |nic: &Nic| nic.rotation.poll_timeout().into_iter().chain(nic.repetition.poll_timeout()).min();
        let refresh = self.nics.values().filter_map(refreshes).min();
        let streams = |nic: &Nic| nic.monitor.poll_timeout().into_iter().chain(nic.search.poll_timeout()).min();
        let monitors = self.nics.values().filter_map(streams).min();
        timer.into_iter().chain(refresh).chain(monitors).chain(self.fence_tick()).min()
    }

    /// How many addresses this node answers for.
    pub fn owned(&self) -> usize {
        self.nics.values().map(|nic| nic.owned.len()).sum()
    }

    /// How many addresses this node answers for, or would if it were not rechecking just now.
    pub fn to_hand_over(&self) -> usize {
        self.slots.values().filter(|slot| slot.machine.answers() || slot.machine.rechecks()).count()
    }

    /// How many addresses this node has a part in.
    pub fn assigned(&self) -> usize {
        self.slots.len()
    }

    /// Whether this node has a part in the address.
    pub fn has_part_in(&self, vip: IpAddr) -> bool {
        self.slots.contains_key(&vip)
    }

    /// Whether this node answers for the address.
    pub fn answers(&self, vip: IpAddr) -> bool {
        self.slots.get(&vip).is_some_and(|slot| slot.machine.answers())
    }

    /// The names of the NICs that are in use, or should be.
    pub fn nics(&self) -> impl Iterator<Item = &Arc<str>> {
        self.nics.keys()
    }

    /// The addresses that this node has a part in, with the NIC of each.
    pub fn vips(&self) -> impl Iterator<Item = (IpAddr, &Arc<str>)> {
        self.slots.iter().map(|(vip, slot)| (*vip, &slot.nic))
    }

    /// How many streams of requests watch other speakers.
    #[cfg(test)]
    pub(super) fn streams(&self) -> usize {
        self.nics.values().map(|nic| nic.monitor.streams()).sum()
    }

    fn fence_tick(&self) -> Option<Instant> {
        let fence = self.nics.values().filter_map(|nic| nic.shortest_fence).min()?;
        Some(self.woke_at? + fence / RUNS_IN_FENCE)
    }

    /// The addresses that this node owns, or is asking for, with a fence no longer than `gap`.
    fn fenced_by(&self, gap: Duration) -> Vec<IpAddr> {
        if gap < super::owner::Timing::SHORTEST_FENCE {
            return Vec::new();
        }
        let asking = self.timers[..ABOUT_TO_CLAIM].iter().flatten().map(|(_, vip)| vip);
        let concerned = self.nics.values().flat_map(|nic| &nic.owned).chain(asking);
        let is_fenced = |vip: &&IpAddr| self.slots.get(*vip).is_some_and(|slot| slot.machine.fence() <= gap);
        concerned.filter(is_fenced).copied().collect()
    }

    fn apply(&mut self, now: Instant, assigned: Assigned) {
        let Assigned { vip, nic: name, order, last_claim } = assigned;
        let remembered = match self.slots.get(&vip) {
            Some(slot) if slot.nic == name => None,
            Some(_) => Some(self.remove(now, vip)),
            None => Some(last_claim),
        };
        if let Some(last_claim) = remembered {
            let nic =
                self.nics.entry(name.clone()).or_insert_with(|| Nic::new(Err(Arc::from("it was not opened yet"))));
            let (link, mac) = nic.for_machine(vip);
            nic.vips.insert(vip);
            nic.watch_changed = true;
            nic.parts_changed = true;
            let machine = Owner::new(vip, mac, last_claim, link);
            self.slots.insert(vip, Box::new(Slot { nic: name, machine, timer: None }));
        }
        self.with_machine(now, vip, |machine, _| machine.handle_order(now, order));
    }

    /// Stops at once. What was claimed last is given back, for a machine on another NIC.
    fn remove(&mut self, now: Instant, vip: IpAddr) -> Option<LastClaim> {
        let slot = self.slots.remove(&vip)?;
        if let Some((queue, at)) = slot.timer {
            self.timers[queue].remove(&(at, vip));
        }
        if let Some(nic) = self.nics.get_mut(&slot.nic) {
            nic.vips.remove(&vip);
            nic.owned.remove(&vip);
            nic.repetition.remove(vip);
            nic.monitor.set(now, vip, None);
            nic.search.set(now, vip, &[]);
            nic.rotation.handle_owned(now, self.refresh_interval, &nic.owned);
            nic.watch_changed = true;
            nic.parts_changed = true;
        }
        slot.machine.last_claim()
    }

    /// Gives a machine an input, and takes over its outputs, its next time and whether it answers.
    fn with_machine(&mut self, now: Instant, vip: IpAddr, input: impl FnOnce(&mut Owner, &Peers)) {
        let Some(slot) = self.slots.get_mut(&vip) else { return };
        let Some(nic) = self.nics.get_mut(&slot.nic) else { return };
        let fence = slot.machine.fence();
        input(&mut slot.machine, &self.peers);
        let mut sent = false;
        while let Some(output) = slot.machine.poll_output() {
            let name = slot.nic.clone();
            self.effects.push_back(match output {
                Output::Send(message) => {
                    sent = true;
                    Effect::Send { nic: name, message }
                }
                Output::Report(report) => Effect::Report { vip, nic: name, mac: nic.mac, report },
            });
        }
        if sent {
            // Both forms of an announcement count as one.
            nic.pacer.spend(now);
        }
        let queue = slot.machine.left_to_claim().min(QUEUES as u32 - 1) as usize;
        let timer = slot.machine.poll_timeout().map(|at| (queue, at));
        if timer != slot.timer {
            if let Some((queue, at)) = slot.timer {
                self.timers[queue].remove(&(at, vip));
            }
            if let Some((queue, at)) = timer {
                self.timers[queue].insert((at, vip));
            }
            slot.timer = timer;
        }
        nic.monitor.set(now, vip, slot.machine.watches(&self.peers));
        nic.search.set(now, vip, &slot.machine.rivals(&self.peers));
        let answers = slot.machine.answers();
        let changed = if answers { nic.owned.insert(vip) } else { nic.owned.remove(&vip) };
        if changed {
            nic.rotation.handle_owned(now, self.refresh_interval, &nic.owned);
            if answers {
                nic.repetition.add(now, vip);
            } else {
                nic.repetition.remove(vip);
            }
        }
        if changed || answers && fence != slot.machine.fence() {
            nic.parts_changed = true;
        }
    }
}

#[cfg(test)]
mod tests;
