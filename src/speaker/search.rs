//! Looking for second owners of the addresses that this node answers for, on one NIC (rule 9 of the owner protocol).
//!
//! After a partition of the LAN, or when a virtual machine goes on that was paused as a whole, two nodes answer for one
//! address and neither knows. So an owner asks each node that has a part in its addresses, by unicast, for one of them at a time,
//! as a standby asks an owner. Who watches this node for an address knows that it is the owner of that one. When a node answers, or is heard again
//! after a silence, all the addresses shared with it are asked for, and the owner machines decide about each that is
//! answered. There is one stream for each peer, whatever the number of addresses.
//!
//! Inputs: [`Search::set`], [`Search::handle_watched`], [`Search::handle_heard`], [`Search::handle_answer`], then
//! [`Search::handle_tick`]. Outputs: [`Search::poll_output`], [`Search::poll_timeout`].

use std::{
    collections::{BTreeMap, BTreeSet, VecDeque, btree_map::Entry},
    net::IpAddr,
    ops::Bound,
    time::{Duration, Instant},
};

use super::wire::MacAddr;

/// How often a peer is asked, and until how long after the search for it began.
const PACE: [(Duration, Duration); 2] =
    [(Duration::from_millis(250), Duration::from_secs(10)), (Duration::from_secs(1), Duration::from_secs(600))];
/// How often after that, and how often one that watches this node for all that is shared.
const RARELY: Duration = Duration::from_secs(10);
/// In a sweep, so many requests leave at once, and the next ones after this.
const SWEEP: (usize, Duration) = (50, Duration::from_millis(10));
/// A sweep is made so many times, since requests and answers can be lost.
const SWEEPS: u32 = 3;

/// A peer that was not heard for so long may have been somewhere else meanwhile.
const SILENCE: Duration = Duration::from_millis(500);
/// At least this long between two sweeps because a peer was heard again.
const SWEEP_AGAIN: Duration = Duration::from_secs(5);

/// Ask `to` for `vip`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Ask {
    /// The address asked for.
    pub vip: IpAddr,
    /// The NIC that is asked.
    pub to: MacAddr,
}

/// The streams of one NIC.
#[derive(Clone, Debug, Default)]
pub struct Search {
    peers_of: BTreeMap<IpAddr, Box<[MacAddr]>>,
    streams: BTreeMap<MacAddr, Stream>,
    output: VecDeque<Ask>,
}

#[derive(Clone, Debug)]
struct Stream {
    /// With each, whether it is unwatched: the peer has not asked for it as a standby does, and may believe that it owns it.
    vips: BTreeMap<IpAddr, bool>,
    /// How many of them are unwatched.
    unwatched: usize,
    began_at: Instant,
    next_at: Instant,
    /// Until then, the peer counts as watching this node.
    watched_until: Option<Instant>,
    last: Option<IpAddr>,
    heard_at: Option<Instant>,
    swept_at: Option<Instant>,
    /// What the present sweep has not asked for yet, and how many sweeps follow it.
    sweep: Option<(BTreeSet<IpAddr>, u32)>,
}

/// Which of a stream's addresses.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Which {
    All,
    Unwatched,
}

impl Search {
    /// This node answers for `vip`, and these other NICs may believe that they do; with none, it does not answer for it.
    pub fn set(&mut self, now: Instant, vip: IpAddr, peers: &[MacAddr]) {
        let before = self.peers_of.get(&vip).map_or(&[][..], |peers| &**peers);
        if before == peers {
            return;
        }
        for peer in before {
            if !peers.contains(peer)
                && let Some(stream) = self.streams.get_mut(peer)
            {
                stream.leave(&vip);
                if stream.vips.is_empty() {
                    self.streams.remove(peer);
                }
            }
        }
        for peer in peers {
            self.streams.entry(*peer).or_insert_with(|| Stream::new(now)).join(now, vip);
        }
        if peers.is_empty() {
            self.peers_of.remove(&vip);
        } else {
            self.peers_of.insert(vip, Box::from(peers));
        }
    }

    /// `peer` asked for `vip`, which this node owns, as a standby does. It counts as watching for `time`.
    pub fn handle_watched(&mut self, now: Instant, peer: MacAddr, vip: IpAddr, time: Duration) {
        if let Some(stream) = self.streams.get_mut(&peer) {
            let until = now + time;
            if stream.vips.get_mut(&vip).is_some_and(std::mem::take) {
                stream.unwatched -= 1;
                if stream.unwatched == 0 {
                    stream.next_at = stream.next_at.max(now + RARELY);
                }
            }
            stream.watched_until = Some(stream.watched_until.map_or(until, |before| before.max(until)));
        }
    }

    /// Anything was heard of `peer`. After a silence, that is a reason to look.
    pub fn handle_heard(&mut self, now: Instant, peer: MacAddr) {
        let Some(stream) = self.streams.get_mut(&peer) else { return };
        let within = |at: Option<Instant>, time| at.is_some_and(|at| now < at + time);
        let is_new = !within(stream.heard_at, SILENCE) && !within(stream.swept_at, SWEEP_AGAIN);
        stream.heard_at = Some(now);
        if is_new && stream.unwatched > 0 {
            stream.start_sweep(now, Which::Unwatched, 1);
        }
    }

    /// `peer` answered for `vip`.
    pub fn handle_answer(&mut self, now: Instant, peer: MacAddr, vip: IpAddr) {
        if let Some(stream) = self.streams.get_mut(&peer)
            && stream.vips.contains_key(&vip)
        {
            stream.start_sweep(now, Which::All, SWEEPS);
        }
    }

    /// Does what is due.
    pub fn handle_tick(&mut self, now: Instant) {
        for (peer, stream) in &mut self.streams {
            if now >= stream.poll_timeout() {
                stream.tick(now, *peer, &mut self.output);
            }
        }
    }

    /// The next output, oldest first.
    pub fn poll_output(&mut self) -> Option<Ask> {
        self.output.pop_front()
    }

    /// When the next tick is due.
    pub fn poll_timeout(&self) -> Option<Instant> {
        self.streams.values().map(Stream::poll_timeout).min()
    }
}

impl Stream {
    fn new(now: Instant) -> Self {
        let next_at = now + PACE[0].0;
        Self {
            vips: BTreeMap::new(),
            unwatched: 0,
            began_at: now,
            next_at,
            watched_until: None,
            last: None,
            heard_at: None,
            swept_at: None,
            sweep: None,
        }
    }

    fn join(&mut self, now: Instant, vip: IpAddr) {
        if let Entry::Vacant(place) = self.vips.entry(vip) {
            place.insert(true);
            self.unwatched += 1;
            self.began_at = now;
            self.next_at = self.next_at.min(now + PACE[0].0);
        }
    }

    fn leave(&mut self, vip: &IpAddr) {
        self.unwatched -= usize::from(self.vips.remove(vip) == Some(true));
        if let Some((left, _)) = &mut self.sweep {
            left.remove(vip);
        }
    }

    fn addresses(&self, which: Which) -> BTreeSet<IpAddr> {
        let wanted = |(_, unwatched): &(&IpAddr, &bool)| which == Which::All || **unwatched;
        self.vips.iter().filter(wanted).map(|(vip, _)| *vip).collect()
    }

    fn start_sweep(&mut self, now: Instant, which: Which, times: u32) {
        match &mut self.sweep {
            // That it is followed by others is enough.
            Some((_, again)) => *again = (*again).max(times - 1),
            // Copied only here: of thousands of addresses each one that is answered leads here.
            None => {
                self.sweep = Some((self.addresses(which), times - 1));
                self.next_at = now;
            }
        }
        self.swept_at = Some(now);
    }

    fn tick(&mut self, now: Instant, peer: MacAddr, output: &mut VecDeque<Ask>) {
        if let Some((left, again)) = &mut self.sweep {
            if now < self.next_at {
                return;
            }
            output.extend(left.iter().take(SWEEP.0).map(|vip| Ask { vip: *vip, to: peer }));
            for _ in 0..SWEEP.0 {
                left.pop_first();
            }
            if !left.is_empty() {
                self.next_at = now + SWEEP.1;
                return;
            }
            let again = *again;
            self.sweep = again.checked_sub(1).map(|again| (self.addresses(Which::All), again));
            self.next_at = now + PACE[0].0;
            return;
        }
        if let Some(until) = self.watched_until.take_if(|until| now >= *until) {
            // It watched this node until just now: whatever happened to it, the search begins anew.
            self.began_at = until;
            self.next_at = now;
            self.vips.values_mut().for_each(|unwatched| *unwatched = true);
            self.unwatched = self.vips.len();
        }
        if now < self.next_at {
            return;
        }
        let all = self.unwatched == 0;
        let wanted = |(vip, unwatched): (&IpAddr, &bool)| (all || *unwatched).then_some(*vip);
        let after = self.last.map_or(Bound::Unbounded, Bound::Excluded);
        let next = self.vips.range((after, Bound::Unbounded)).find_map(wanted);
        self.last = next.or_else(|| self.vips.iter().find_map(wanted));
        output.extend(self.last.map(|vip| Ask { vip, to: peer }));
        self.next_at = now + self.pace(now);
    }

    fn poll_timeout(&self) -> Instant {
        match self.watched_until {
            // A sweep in progress goes first.
            Some(until) if self.sweep.is_none() => until.min(self.next_at),
            _ => self.next_at,
        }
    }

    fn pace(&self, now: Instant) -> Duration {
        if self.unwatched == 0 {
            return RARELY;
        }
        let elapsed = now.saturating_duration_since(self.began_at);
        PACE.iter().find(|(_, until)| elapsed < *until).map_or(RARELY, |(pace, _)| *pace)
    }
}

#[cfg(test)]
#[path = "search_tests.rs"]
mod tests;
