//! Asking before claiming (RFC 5227 section 2.1, with shorter times), and what the answers mean.
//!
//! An answer to a broadcast counts only when the same host also answers a unicast request: switch fabrics that suppress
//! ARP answer broadcasts for hosts that are long gone.

use std::time::{Duration, Instant};

use super::{Cause, Timing};
use crate::speaker::{
    peers::{Peers, Who},
    wire::{MacAddr, Packet},
};

/// Broadcast probes before a claim, and unicast requests to a host that answered one.
const PROBES: u32 = 2;
/// So long an unknown MAC address may still turn out to be a speaker's: the news may be under way in the API.
const UNKNOWN_FOR: Duration = Duration::from_secs(5);
/// A probe that was not sent is sent again after this.
pub(super) const TRY_AGAIN: Duration = Duration::from_millis(50);
/// So many hosts that answer broadcasts only are told from others; with more of them, everybody is not asked again.
const MAX_DISCOUNTED: usize = 4;

/// Where probing stands.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Probing {
    pub(super) cause: Cause,
    timing: Timing,
    phase: Phase,
    sent: u32,
    next_at: Instant,
    /// Hosts that answered broadcasts only.
    discounted: Vec<MacAddr>,
    /// The host that held the address when it was last probed.
    blocked_by: Option<MacAddr>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Phase {
    /// Everybody is asked.
    Asking,
    /// One host answered; it alone is asked.
    Verifying { mac: MacAddr, asked: u32 },
    /// A host that is no known speaker's holds the address.
    Suspecting { mac: MacAddr },
}

/// What an input to probing led to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outcome {
    /// Nothing yet.
    Open,
    /// An unknown host holds the address; it has some time left to become known.
    Suspect(MacAddr),
    /// Claim the address.
    Free,
    /// Another speaker is the owner.
    HeldBySpeaker(MacAddr),
    /// A foreign host holds the address.
    HeldByForeign(MacAddr),
}

impl Probing {
    pub(super) fn new(now: Instant, cause: Cause, timing: Timing) -> Self {
        Self { cause, timing, phase: Phase::Asking, sent: 0, next_at: now, discounted: Vec::new(), blocked_by: None }
    }

    /// Probing anew after `by` was found to hold the address: when it still answers, nothing is waited for.
    pub(super) fn again(now: Instant, cause: Cause, timing: Timing, by: MacAddr) -> Self {
        Self { blocked_by: Some(by), ..Self::new(now, cause, timing) }
    }

    pub(super) fn next_at(&self) -> Instant {
        self.next_at
    }

    /// What was asked so far says nothing: it was not sent, or the answers may be unread. Asks anew, from `at` on. A suspect
    /// has answered; it stays one. Whether anything is asked anew.
    pub(super) fn ask_anew(&mut self, at: Instant) -> bool {
        let is_asking = !matches!(self.phase, Phase::Suspecting { .. });
        if is_asking {
            *self = Self { blocked_by: self.blocked_by, ..Self::new(at, self.cause, self.timing) };
        }
        is_asking
    }

    /// How many probes are still to be sent before the address can be claimed.
    pub(super) fn left_to_ask(&self) -> u32 {
        match self.phase {
            Phase::Asking => PROBES.saturating_sub(self.sent),
            Phase::Verifying { .. } | Phase::Suspecting { .. } => 0,
        }
    }

    /// Does what is due. `ask` is set when a probe has to be sent: to everybody, or to one host.
    pub(super) fn tick(&mut self, now: Instant, peers: &Peers, ask: &mut Option<Option<MacAddr>>) -> Outcome {
        if now < self.next_at {
            return Outcome::Open;
        }
        match &mut self.phase {
            Phase::Asking if self.sent < PROBES => {
                self.sent += 1;
                self.next_at = now + self.timing.probe_gap;
                *ask = Some(None);
                Outcome::Open
            }
            Phase::Asking => Outcome::Free,
            Phase::Verifying { mac, asked } if *asked < PROBES => {
                *asked += 1;
                self.next_at = now + self.timing.probe_gap;
                *ask = Some(Some(*mac));
                Outcome::Open
            }
            Phase::Verifying { mac, .. } => {
                // Others, who may hold the address, were not listened to meanwhile.
                if self.discounted.len() < MAX_DISCOUNTED {
                    self.discounted.push(*mac);
                    self.sent = self.sent.min(PROBES - 1);
                }
                self.phase = Phase::Asking;
                self.next_at = now;
                Outcome::Open
            }
            Phase::Suspecting { mac } => match peers.who(*mac) {
                Who::Foreign => Outcome::HeldByForeign(*mac),
                Who::Speaker(_) | Who::Own => self.reconsider(now, peers),
            },
        }
    }

    /// A packet from another host about the address: one that names it as its own, or a rival's probe.
    pub(super) fn hear(&mut self, now: Instant, packet: &Packet, peers: &Peers) -> Outcome {
        let mac = packet.sender_mac;
        let foreign = match peers.who(mac) {
            Who::Own => return Outcome::Open,
            // The hand-over: the old owner answers, as it should.
            Who::Speaker(_) if self.cause == Cause::Named => return Outcome::Open,
            Who::Speaker(_) => false,
            Who::Foreign => true,
        };
        match self.phase {
            Phase::Suspecting { .. } => Outcome::Open,
            // What a host sends to everybody of its own accord, no switch answers for it.
            _ if packet.broadcast && foreign => self.suspect(now, mac),
            Phase::Asking if self.discounted.contains(&mac) => Outcome::Open,
            Phase::Asking => {
                self.phase = Phase::Verifying { mac, asked: 0 };
                self.next_at = now;
                Outcome::Open
            }
            Phase::Verifying { mac: asked_mac, asked } if asked_mac == mac && asked > 0 => {
                if foreign {
                    self.suspect(now, mac)
                } else {
                    Outcome::HeldBySpeaker(mac)
                }
            }
            Phase::Verifying { .. } => Outcome::Open,
        }
    }

    /// More speakers may be known now: a suspect among them is none.
    pub(super) fn reconsider(&mut self, now: Instant, peers: &Peers) -> Outcome {
        let Phase::Suspecting { mac } = self.phase else { return Outcome::Open };
        match peers.who(mac) {
            Who::Foreign => Outcome::Open,
            Who::Speaker(_) if self.cause != Cause::Named => Outcome::HeldBySpeaker(mac),
            Who::Speaker(_) | Who::Own => {
                *self = Self::new(now, self.cause, self.timing);
                Outcome::Open
            }
        }
    }

    fn suspect(&mut self, now: Instant, mac: MacAddr) -> Outcome {
        if self.blocked_by == Some(mac) {
            return Outcome::HeldByForeign(mac);
        }
        self.phase = Phase::Suspecting { mac };
        self.next_at = now + UNKNOWN_FOR;
        Outcome::Suspect(mac)
    }
}
