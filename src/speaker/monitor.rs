//! Watching the owners of the addresses that this node stands by for, on one NIC (rule 2 of the owner protocol).
//!
//! Health is the service itself: a standby asks the owner's NIC, by unicast, for one of that owner's addresses, and rotates over
//! them. There is one stream of requests for each owner and failover class, so that what a node sends grows with the nodes and
//! not with the addresses. Silence of the whole stream for [`MISSED`] intervals is told for each of its addresses; silence of one address while
//! others are answered, for that one. What is told is a doubt only: the owner machine probes before it claims.
//!
//! Inputs: [`Monitor::set`], [`Monitor::handle_speaker_heard`], [`Monitor::handle_answer`], [`Monitor::handle_link_lost`], then
//! [`Monitor::handle_tick`]. Outputs: [`Monitor::poll_output`], [`Monitor::poll_timeout`];
//! [`Monitor::unheard`] tells whom this node cannot hear.

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque},
    net::IpAddr,
    ops::Bound,
    time::{Duration, Instant},
};

use super::wire::MacAddr;

/// So many intervals without an answer are silence.
pub const MISSED: u32 = 3;
/// An owner that is asked and has not answered for this long cannot be heard: it would be doubted and followed long before.
pub const UNHEARD_AFTER: Duration = Duration::from_secs(5);
/// Who could not be heard is remembered for this long after it is not asked any more: it would only be found again.
pub const UNHEARD_FOR: Duration = Duration::from_secs(600);

/// Whom to watch for one address.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Target {
    /// The NIC that is asked.
    pub owner: MacAddr,
    /// One request in this time: [`super::owner::Timing::interval`].
    pub interval: Duration,
    /// How many nodes come before this one when the owner falls silent. Each is left half an interval.
    pub rank: u32,
}

/// What the caller has to carry out.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Output {
    /// Ask `to` for `vip`.
    Ask {
        /// The address asked for.
        vip: IpAddr,
        /// The NIC that is asked.
        to: MacAddr,
    },
    /// The owner does not answer for `vip`, and those who come before this node have had their time.
    Silent {
        /// The address that goes unanswered.
        vip: IpAddr,
    },
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Key {
    owner: MacAddr,
    interval: Duration,
}

/// The streams of one NIC.
#[derive(Clone, Debug, Default)]
pub struct Monitor {
    /// Whether another speaker was heard since the NIC came up. Without that it may sit on another segment, where everybody
    /// is silent.
    heard_speaker: bool,
    targets: BTreeMap<IpAddr, Target>,
    streams: BTreeMap<Key, Stream>,
    /// Who cannot be heard, and until when that is remembered.
    unheard: BTreeMap<MacAddr, Instant>,
    output: VecDeque<Output>,
}

#[derive(Clone, Debug)]
struct Stream {
    /// With the rank that this node has for it.
    vips: BTreeSet<(u32, IpAddr)>,
    /// When the owner last answered, or the stream began.
    heard_at: Instant,
    next_at: Instant,
    /// Whose turn it was last.
    last: Option<(u32, IpAddr)>,
    /// Asked for in the present interval, and not answered yet: at most two.
    asked: Vec<IpAddr>,
    /// One that went unanswered, since when. It is asked for in each interval, beside the one whose turn it is.
    doubted: Option<(IpAddr, Instant)>,
}

impl Monitor {
    /// Whom to watch for `vip` from now on; `None` for nobody.
    pub fn set(&mut self, now: Instant, vip: IpAddr, target: Option<Target>) {
        if self.targets.get(&vip) == target.as_ref() {
            return;
        }
        if let Some(before) = self.targets.remove(&vip) {
            self.leave(vip, before);
        }
        if let Some(target) = target {
            self.targets.insert(vip, target);
            let stream = self.streams.entry(target.key()).or_insert_with(|| Stream::new(now));
            stream.vips.insert((target.rank, vip));
        }
    }

    /// A speaker of another node was heard on this NIC.
    pub fn handle_speaker_heard(&mut self, mac: MacAddr) {
        self.heard_speaker = true;
        self.unheard.remove(&mac);
    }

    /// `owner` answered for `vip`, whose failover class has this interval.
    pub fn handle_answer(&mut self, now: Instant, owner: MacAddr, vip: IpAddr, interval: Duration) {
        if let Some(stream) = self.streams.get_mut(&Key { owner, interval }) {
            stream.heard_at = now;
            stream.asked.retain(|asked| *asked != vip);
            stream.doubted.take_if(|(doubted, _)| *doubted == vip);
        }
    }

    /// The NIC lost its link, or is being opened anew: who was heard on it may be elsewhere when it is back.
    pub fn handle_link_lost(&mut self) {
        self.heard_speaker = false;
        self.unheard.clear();
    }

    /// Does what is due. Answers that came in have to be handed in before.
    pub fn handle_tick(&mut self, now: Instant) {
        let mut silent = Vec::new();
        self.unheard.retain(|_, until| now < *until);
        for (key, stream) in &mut self.streams {
            if now >= stream.next_at {
                stream.ask(now, *key, &mut self.output);
            }
            // After that: time during which this node itself did not run does not count here either.
            if now.saturating_duration_since(stream.heard_at) >= UNHEARD_AFTER {
                self.unheard.insert(key.owner, now + UNHEARD_FOR);
            }
            if self.heard_speaker {
                silent.extend(stream.silent(now, key.interval));
            }
        }
        for vip in silent {
            // It comes back if the doubt was in vain.
            if let Some(target) = self.targets.remove(&vip) {
                self.leave(vip, target);
            }
            self.output.push_back(Output::Silent { vip });
        }
    }

    /// The next output, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        self.output.pop_front()
    }

    /// When the next tick is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        let next = |(key, stream): (&Key, &Stream)| {
            let silent = self.heard_speaker.then(|| stream.silent_at(key.interval)).flatten();
            silent.map_or(stream.next_at, |at| at.min(stream.next_at))
        };
        self.streams.iter().map(next).min()
    }

    /// The owners that do not answer on this NIC although they are asked, or were until lately. Without having heard another
    /// speaker there, this node does not follow them: it may sit on another segment.
    pub fn unheard(&self) -> impl Iterator<Item = MacAddr> {
        self.unheard.keys().copied()
    }

    /// How many streams of requests there are.
    #[cfg(test)]
    pub(super) fn streams(&self) -> usize {
        self.streams.len()
    }

    fn leave(&mut self, vip: IpAddr, target: Target) {
        let Some(stream) = self.streams.get_mut(&target.key()) else { return };
        stream.vips.remove(&(target.rank, vip));
        stream.asked.retain(|asked| *asked != vip);
        stream.doubted.take_if(|(doubted, _)| *doubted == vip);
        if stream.vips.is_empty() {
            self.streams.remove(&target.key());
        }
    }
}

impl Target {
    fn key(&self) -> Key {
        Key { owner: self.owner, interval: self.interval }
    }
}

impl Stream {
    fn new(now: Instant) -> Self {
        Self { vips: BTreeSet::new(), heard_at: now, next_at: now, last: None, asked: Vec::new(), doubted: None }
    }

    fn ask(&mut self, now: Instant, key: Key, output: &mut VecDeque<Output>) {
        // Time during which this node itself did not run does not count against the owner.
        let late = now.saturating_duration_since(self.next_at);
        self.heard_at = (self.heard_at + late).min(now);
        if let Some((_, since)) = &mut self.doubted {
            *since = (*since + late).min(now);
        }
        if self.doubted.is_none() {
            // Asked for in the tick before this one.
            let since = now.checked_sub(key.interval).unwrap_or(now);
            self.doubted = self.asked.first().map(|vip| (*vip, since));
        }
        self.next_at = now + key.interval;
        self.asked.clear();
        self.asked.extend(self.doubted.map(|(vip, _)| vip));
        if let Some(next) = self.next_in_turn()
            && !self.asked.contains(&next)
        {
            self.asked.push(next);
        }
        output.extend(self.asked.iter().map(|vip| Output::Ask { vip: *vip, to: key.owner }));
    }

    fn next_in_turn(&mut self) -> Option<IpAddr> {
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        self.last = self.vips.range((after, Bound::Unbounded)).next().or(self.vips.first()).copied();
        self.last.map(|(_, vip)| vip)
    }

    /// The addresses that nobody answers for any more, as far as this node's rank lets it say so.
    fn silent(&self, now: Instant, interval: Duration) -> Vec<IpAddr> {
        let of_all = self.vips.iter().take_while(|(rank, _)| now >= self.all_silent_at(*rank, interval));
        let one = self.one_silent_at(interval).filter(|(at, _)| now >= *at).map(|(_, vip)| vip);
        let mut silent: Vec<IpAddr> = of_all.map(|(_, vip)| *vip).collect();
        silent.extend(one.filter(|vip| !silent.contains(vip)));
        silent
    }

    fn silent_at(&self, interval: Duration) -> Option<Instant> {
        let all = self.vips.first().map(|(rank, _)| self.all_silent_at(*rank, interval));
        all.into_iter().chain(self.one_silent_at(interval).map(|(at, _)| at)).min()
    }

    fn all_silent_at(&self, rank: u32, interval: Duration) -> Instant {
        self.heard_at + interval * MISSED + interval / 2 * rank
    }

    /// The one that goes unanswered while others are answered.
    fn one_silent_at(&self, interval: Duration) -> Option<(Instant, IpAddr)> {
        let (vip, since) = self.doubted.filter(|(_, since)| self.heard_at > *since)?;
        let (rank, _) = self.vips.iter().find(|(_, known)| *known == vip)?;
        Some((since + interval * MISSED + interval / 2 * *rank, vip))
    }
}

#[cfg(test)]
#[path = "monitor_tests.rs"]
mod tests;
