//! Who answers for one virtual IP: the owner protocol, for one address on one NIC of this node.
//!
//! A machine without I/O, clock or task. Inputs, each with the present time: [`Owner::handle_order`] (what the API says),
//! [`Owner::handle_packet`] (what was heard), [`Owner::handle_speakers`] (whose MAC addresses are known),
//! [`Owner::handle_link`], [`Owner::handle_late_loop`] (the fence), [`Owner::handle_unsent`], [`Owner::handle_silence`]
//! (rule 2), [`Owner::handle_refresh`] and [`Owner::handle_tick`]. After each input: drain [`Owner::poll_output`], then read
//! [`Owner::poll_timeout`], the time of the next tick, [`Owner::answers`] and [`Owner::watches`]. A tick that comes late only
//! delays what was to be sent, never drops it: that is how the caller paces.
//!
//! The promises: a message whose sender address is the virtual IP comes only from [`State::Owner`]; a claim heard from
//! another speaker ends the ownership within the same call unless this node was just named; and nothing is claimed because
//! of a restart, a broken watch or an old order.
//!
//! The rules, by the numbers that the comments use. A *claim* is an announcement to everybody, a unicast reply an *answer*.
//! 1. Claim after probing in vain, when named in a placement not claimed for yet, when the owner fell silent, or on a recheck.
//!    A foreign host that answers blocks; so does another speaker, unless this node is named: then it is handing over.
//! 2. Who stands by asks the owner ([`super::monitor`]), and probes when it falls silent. The owner is who claimed last on the
//!    wire, or answered a probe; until one was heard, who says so in the status.
//! 3. An owner that hears another speaker's claim (a) announces again if it was named just now, (b) compares ranks if both
//!    claimed by themselves, (c) yields otherwise. Against a foreign host it defends itself, rarely, and says so.
//! 4. An owner probed by another speaker announces anew: some cache may be wrong.
//! 5. The fence: nothing is answered or claimed after the loop was late, until everybody was asked anew.
//! 6. A leaving owner answers until it hears the claim, or has no part in the address any more.
//! 7. A link that is lost gives up; one that is back is rechecked, and announced with its present MAC address. Under a new
//!    one, who was asking begins again; what others said from that address before is forgotten.
//! 8. One refresh for each NIC in each interval.
//! 9. An owner looks for second owners ([`super::search`]). Against one it announces again, unless the API names that one: then
//!    it yields, and probes so that the other one announces. What goes on answering is no speaker: that is reported.
//! 10. While the API is silent, orders stay.
//! 11. A new process claims nothing before its orders and its own last claims are read; as Primary it rechecks.

mod hearing;
mod order;
mod owning;
mod probing;
#[cfg(test)]
mod tests;

use std::{
    borrow::Cow,
    collections::VecDeque,
    net::IpAddr,
    sync::Arc,
    time::{Duration, Instant},
};

pub use order::{Epoch, Order, Ranked, Timing};
pub use owning::BURST;
use owning::Owning;
use probing::{Outcome, Probing, TRY_AGAIN};

use super::{
    monitor::Target,
    peers::{Peers, Who},
    wire::{AnnouncementForm, MacAddr, Message, Packet},
};
use crate::api::{ClaimState, Role};

/// A blocked address is probed again this often.
pub const RETRY_BLOCKED: Duration = Duration::from_secs(30);
/// A silent Primary that does not know whom to watch asks everybody this often.
pub const RECHECK_SILENT: Duration = Duration::from_secs(30);

/// More nodes than can have a part in one address.
const MAX_RANK: usize = 16;

/// Why a speaker probes for an address, and claims it if nobody answers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cause {
    /// The API made this node Primary in a placement that it has not claimed for yet: it claims even if another speaker answers.
    Named,
    /// It stands by, and the owner fell silent: it leaves the address to whoever answers.
    Dead,
    /// It should be the owner already (restart, link or loop back): it leaves the address to whoever answers.
    Recheck,
}

/// What the caller has to carry out.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Output {
    /// Send this through the machine's NIC.
    Send(Message),
    /// Report this to the API; it replaces any earlier report.
    Report(Report),
}

/// What a node remembers of its last claim, over a restart by its claim in the status.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct LastClaim {
    /// The placement that it claimed for.
    pub epoch: Epoch,
    /// Whether it was still the owner, as far as it knew.
    pub owned: bool,
}

/// What a speaker says about its part in an address.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Report {
    /// What it does with the address.
    pub state: ClaimState,
    /// Why, for people.
    pub reason: Cow<'static, str>,
    /// A host that is none of ours and answers for the address.
    pub conflict_mac: Option<MacAddr>,
    /// The object and placement that this answers.
    pub epoch: Epoch,
}

/// What the machine does now.
#[derive(Clone, Debug, PartialEq, Eq)]
enum State {
    /// Does not answer.
    Silent,
    /// Asks before it claims.
    Probing(Probing),
    /// Answers.
    Owner(Owning),
    /// A foreign host answers; it is asked again at `retry_at`.
    Blocked { by: MacAddr, epoch: Epoch, retry_at: Instant },
}

/// The owner machine of one virtual IP on one NIC.
#[derive(Clone, Debug)]
pub struct Owner {
    vip: IpAddr,
    own_mac: MacAddr,
    order: Option<Order>,
    claimed: Option<Epoch>,
    /// Whether it was the owner before it restarted, or lost its link: then it rechecks, whatever its role.
    was_owner: bool,
    link: Result<(), Arc<str>>,
    state: State,
    /// Whose claim or answer was heard last; until then, who says so in the status.
    held_by: Option<MacAddr>,
    /// When a silent Primary that knows no owner asks again.
    recheck_at: Option<Instant>,
    reported: Option<Report>,
    output: VecDeque<Output>,
}

impl Owner {
    /// A silent machine. `own_mac` is the NIC's, only to compare with others'. `last_claim` is this node's, as its
    /// own claim in the status says: without it a restart would look like a new order.
    pub fn new(vip: IpAddr, own_mac: MacAddr, last_claim: Option<LastClaim>, link: Result<(), Arc<str>>) -> Self {
        let was_owner = last_claim.as_ref().is_some_and(|last| last.owned);
        let claimed = last_claim.map(|last| last.epoch);
        Self {
            was_owner,
            vip,
            own_mac,
            order: None,
            claimed,
            link,
            state: State::Silent,
            held_by: None,
            recheck_at: None,
            reported: None,
            output: VecDeque::new(),
        }
    }

    /// What the API says now. Every write to the object delivers the same order anew; only a new epoch is a new command.
    pub fn handle_order(&mut self, now: Instant, mut order: Order) {
        let first = self.order.is_none();
        let primary = order.role == Role::Primary;
        let claimed = self.claimed.as_ref().filter(|claimed| **claimed == order.epoch);
        let named = primary && claimed.is_none();
        if let Some(claimed) = claimed {
            // The same uid is kept once.
            order.epoch = claimed.clone();
        }
        let epoch = order.epoch.clone();
        self.order = Some(order);
        if let Err(reason) = self.link.clone() {
            if primary {
                self.report(ClaimState::LinkDown, reason.to_string(), None);
            }
            return;
        }
        self.learn_holder();
        match &mut self.state {
            State::Owner(_) if named => {
                self.claimed = Some(epoch);
                self.report_owner("named again while it is the owner");
            }
            State::Owner(_) => {}
            State::Probing(probing) if named => probing.cause = Cause::Named,
            // Of the other causes, only what is heard decides: whoever is named now may be dead as well.
            State::Probing(probing) if probing.cause == Cause::Named && primary => probing.cause = Cause::Recheck,
            State::Probing(probing) if probing.cause == Cause::Named => self.fall_silent(now, "another node was named"),
            State::Probing(_) => {}
            State::Silent if named => self.probe(now, Cause::Named, "named by the API"),
            State::Silent if first && (primary || self.was_owner) => self.probe(now, Cause::Recheck, "restarted"),
            State::Silent => {}
            State::Blocked { epoch: tried, .. } if *tried == epoch => {}
            State::Blocked { .. } if primary => self.probe(now, Cause::Named, "named by the API"),
            State::Blocked { .. } => self.fall_silent(now, "another node was named"),
        }
        self.plan_recheck(now);
    }

    /// A packet that concerns this virtual IP: its sender or target address.
    pub fn handle_packet(&mut self, now: Instant, packet: &Packet, peers: &Peers) {
        if packet.sender_mac == self.own_mac {
            // Whatever the API still says of whose that address is.
            return;
        }
        let who = peers.who(packet.sender_mac);
        if packet.sender_ip == self.vip {
            match who {
                Who::Own => {}
                Who::Speaker(node) if packet.is_announcement() => self.hear_claim(now, packet.sender_mac, node),
                Who::Speaker(_) if packet.broadcast => {}
                Who::Speaker(_) => self.hear_answer(now, packet, peers),
                Who::Foreign => self.hear_foreign(now, packet, peers),
            }
        } else if packet.target_ip == self.vip && packet.is_probe() {
            match (who, &mut self.state) {
                // Rule 4. The answer itself went out from the receive path.
                (Who::Speaker(_), State::Owner(owning)) if packet.broadcast => owning.handle_probe(now),
                // RFC 5227 section 2.1.1: two hosts probe for one address at the same time.
                (Who::Foreign, State::Probing(_)) if packet.broadcast => self.hear_foreign(now, packet, peers),
                _ => {}
            }
        }
    }

    /// The set of known speakers changed: who was foreign may be one of ours.
    pub fn handle_speakers(&mut self, now: Instant, peers: &Peers) {
        match &mut self.state {
            State::Probing(probing) => {
                let outcome = probing.reconsider(now, peers);
                self.conclude(now, outcome);
            }
            State::Blocked { by, .. } if matches!(peers.who(*by), Who::Speaker(_)) => {
                let cause = if self.is_named() { Cause::Named } else { Cause::Recheck };
                self.probe(now, cause, "the host that answered turned out to be a speaker");
            }
            State::Owner(owning) => {
                match owning.take_rival_unless(|mac| peers.who(mac) == Who::Foreign).map(|mac| peers.who(mac)) {
                    // It may have claimed and have taken our defence for another claim: who holds the address is not known.
                    Some(Who::Speaker(node)) => {
                        let reason = format!("the host that used the same address is the speaker of {node}");
                        self.probe(now, Cause::Recheck, reason);
                    }
                    Some(_) => self.report_owner("the host that used the same address is this node"),
                    None => {}
                }
            }
            _ => {}
        }
    }

    /// The NIC lost its link, or got it back, perhaps with another MAC address.
    pub fn handle_link(&mut self, now: Instant, link: Result<(), Arc<str>>, own_mac: MacAddr) {
        let was = std::mem::replace(&mut self.link, link);
        let moved = std::mem::replace(&mut self.own_mac, own_mac) != own_mac;
        let primary = self.role() == Some(Role::Primary);
        let concerned = primary || self.state != State::Silent;
        // A node that took the place of another one may have got its MAC address.
        let is_successor = self.held_by.take_if(|mac| *mac == own_mac).is_some();
        match &self.link {
            // Before its order a machine does nothing (rule 11), whatever it was. What was asked under the MAC address before
            // is answered to that one: who asks begins again.
            Ok(()) if self.order.is_some() && (was.is_err() || moved) && (concerned || self.was_owner) => {
                let cause = match &self.state {
                    _ if self.is_named() => Cause::Named,
                    State::Probing(probing) if probing.cause == Cause::Dead => Cause::Dead,
                    _ => Cause::Recheck,
                };
                self.probe(now, cause, "its link is back, or its MAC address is another one");
            }
            Ok(()) if is_successor && self.stands_by() => {
                self.probe(now, Cause::Dead, "the MAC address of the owner is this node's");
            }
            Ok(()) => {
                self.learn_holder();
                if self.reported.as_ref().is_some_and(|reported| reported.state == ClaimState::LinkDown) {
                    self.fall_silent(now, "its link is back");
                }
            }
            Err(reason) => {
                let reason = reason.clone();
                self.was_owner |= self.answers() || self.rechecks();
                // Behind another port others may be heard.
                self.held_by = None;
                self.state = State::Silent;
                self.recheck_at = None;
                if concerned && was != self.link {
                    self.report(ClaimState::LinkDown, reason.to_string(), None);
                }
            }
        }
    }

    /// The loop that drives this machine did not run for `gap`. When that is longer than the fence, the receive path has
    /// fallen mute, and others may have taken over: recheck before answering again (rule 5). Who was asking asks anew: the
    /// answers may not have been read yet.
    pub fn handle_late_loop(&mut self, now: Instant, gap: Duration) {
        if gap < self.fence() {
            return;
        }
        match &mut self.state {
            State::Owner(_) => self.probe(now, Cause::Recheck, "the speaker did not run for a while"),
            State::Probing(probing) => {
                probing.ask_anew(now);
            }
            State::Silent | State::Blocked { .. } => {}
        }
    }

    /// A probe of this machine did not leave, so that silence means nothing: it asks anew, a little later.
    pub fn handle_unsent(&mut self, now: Instant) {
        let State::Probing(probing) = &mut self.state else { return };
        if probing.ask_anew(now + TRY_AGAIN) && probing.cause != Cause::Dead {
            self.report(ClaimState::Probing, "its probe was not sent; trying again", None);
        }
    }

    /// The owner that [`Owner::watches`] named does not answer any more (rule 2).
    pub fn handle_silence(&mut self, now: Instant) {
        if self.stands_by() {
            self.probe(now, Cause::Dead, "the owner fell silent");
        }
    }

    /// It is this address's turn to keep the NIC's MAC in the switches' tables (rule 8).
    pub fn handle_refresh(&mut self) {
        if self.answers() {
            self.announce(AnnouncementForm::Request);
        }
    }

    /// Does what is due.
    pub fn handle_tick(&mut self, now: Instant, peers: &Peers) {
        let vip = self.vip;
        match &mut self.state {
            State::Silent => {
                if self.recheck_at.is_some_and(|at| now >= at) {
                    // The next one is planned when this one ends.
                    self.recheck_at = None;
                    // Not reported: as a rule the other one answers, and nothing is new.
                    self.state = State::Probing(Probing::new(now, Cause::Recheck, self.timing()));
                }
            }
            State::Probing(probing) => {
                let mut ask = None;
                let outcome = probing.tick(now, peers, &mut ask);
                if let Some(to) = ask {
                    self.output.push_back(Output::Send(Message::Probe { vip, to }));
                }
                self.conclude(now, outcome);
            }
            State::Owner(owning) => {
                let mut second_gone = false;
                if let Some(to) = owning.take_look(now, &mut second_gone) {
                    self.output.push_back(Output::Send(Message::Probe { vip, to: Some(to) }));
                }
                let due = owning.take_due(now);
                let rival_gone = owning.take_silent_rival(now);
                if due || rival_gone {
                    self.announce(AnnouncementForm::Request);
                    self.announce(AnnouncementForm::Reply);
                }
                if rival_gone {
                    self.report_owner("the host that used the same address is silent");
                }
                if second_gone {
                    self.report_owner("the other node does not answer for it any more");
                }
            }
            State::Blocked { by, retry_at, .. } if now >= *retry_at => {
                let by = *by;
                let cause = if self.is_named() { Cause::Named } else { Cause::Recheck };
                // Not reported: until the answer is in, the address counts as blocked.
                self.state = State::Probing(Probing::again(now, cause, self.timing(), by));
            }
            State::Blocked { .. } => {}
        }
    }

    /// The next output, oldest first.
    pub fn poll_output(&mut self) -> Option<Output> {
        let next = self.output.pop_front();
        if next.is_none() {
            // Most machines rest most of the time: they keep no room for outputs.
            self.output = VecDeque::new();
        }
        next
    }

    /// When the machine wants its next tick.
    pub fn poll_timeout(&self) -> Option<Instant> {
        match &self.state {
            State::Silent => self.recheck_at,
            State::Probing(probing) => Some(probing.next_at()),
            State::Owner(owning) => owning.poll_timeout(),
            State::Blocked { retry_at, .. } => Some(*retry_at),
        }
    }

    /// How far it is from claiming. Where not all can do at once what is due, those that are nearest go first; an owner, which
    /// only repeats itself, comes last.
    pub fn left_to_claim(&self) -> u32 {
        match &self.state {
            State::Probing(probing) => probing.left_to_ask(),
            State::Silent | State::Owner(_) | State::Blocked { .. } => u32::MAX,
        }
    }

    /// Whether requests for the virtual IP are to be answered: in `Owner` only.
    pub fn answers(&self) -> bool {
        matches!(self.state, State::Owner(_))
    }

    /// For how long after its loop last ran this machine's address may be answered for.
    pub fn fence(&self) -> Duration {
        self.timing().fence
    }

    /// Whether it asks who holds the address, neither because it was named nor because the owner is silent, and would claim it.
    pub fn rechecks(&self) -> bool {
        matches!(&self.state, State::Probing(probing) if probing.cause == Cause::Recheck)
    }

    /// Whom this node has to watch, as long as it stands by for the address (rule 2).
    pub fn watches(&self, peers: &Peers) -> Option<Target> {
        let owner = self.held_by.filter(|_| self.stands_by())?;
        let own = self.rank(None);
        let is_before = matches!(peers.who(owner), Who::Speaker(node) if self.rank(Some(node)) < own);
        let rank = own.saturating_sub(usize::from(is_before)).min(MAX_RANK);
        Some(Target { owner, interval: self.timing().interval, rank: rank as u32 })
    }

    /// How often a standby of this address asks its owner.
    pub fn interval(&self) -> Duration {
        self.timing().interval
    }

    /// The MAC address of the speaker that is known to hold the address, if another one does.
    pub fn held_by(&self) -> Option<MacAddr> {
        self.held_by
    }

    /// The last placement that it claimed for.
    pub fn claimed(&self) -> Option<&Epoch> {
        self.claimed.as_ref()
    }

    /// What is to be remembered when the address goes to another interface.
    pub fn last_claim(&self) -> Option<LastClaim> {
        let owned = self.was_owner || self.answers() || self.rechecks();
        self.claimed.clone().map(|epoch| LastClaim { epoch, owned })
    }

    /// The NICs of other nodes that may believe that they own the address as well (rule 9).
    pub fn rivals(&self, peers: &Peers) -> Vec<MacAddr> {
        let (State::Owner(owning), Some(order)) = (&self.state, &self.order) else { return Vec::new() };
        let ranked = order.ranking.iter().filter(|ranked| ranked.node != order.node);
        let mut rivals: Vec<MacAddr> = ranked.filter_map(|ranked| peers.mac_of(&ranked.node, &ranked.nic)).collect();
        rivals.extend(owning.predecessor);
        rivals.retain(|mac| *mac != self.own_mac && peers.who(*mac) != Who::Own && owning.split_with() != Some(*mac));
        rivals.sort_unstable();
        rivals.dedup();
        rivals
    }

    /// The status counts only as long as nothing was heard on the wire.
    fn learn_holder(&mut self) {
        let holder = self.order.as_ref().and_then(|order| order.holder).filter(|mac| *mac != self.own_mac);
        if self.held_by.is_none() && !self.answers() {
            self.held_by = holder;
        }
    }

    fn stands_by(&self) -> bool {
        matches!(self.state, State::Silent)
            && self.link.is_ok()
            && matches!(self.role(), Some(Role::Primary | Role::Standby))
    }

    /// Carries out what probing came to.
    fn conclude(&mut self, now: Instant, outcome: Outcome) {
        let State::Probing(probing) = &self.state else { return };
        let cause = probing.cause;
        match outcome {
            Outcome::Open => {}
            Outcome::Suspect(mac) => {
                let reason = format!("{mac} answers for the address; waiting whether it is a new speaker's");
                self.report(ClaimState::Probing, reason, Some(mac));
            }
            Outcome::Free => self.claim(now, cause),
            Outcome::HeldBySpeaker(mac) => {
                self.held_by = Some(mac);
                self.fall_silent(now, "another speaker answers for the address");
            }
            Outcome::HeldByForeign(by) => {
                let Some(order) = &self.order else { return };
                self.state = State::Blocked { by, epoch: order.epoch.clone(), retry_at: now + RETRY_BLOCKED };
                let reason = format!("{by}, which is not one of ours, answers for the address");
                self.report(ClaimState::Blocked, reason, Some(by));
            }
        }
    }

    fn probe(&mut self, now: Instant, cause: Cause, reason: impl Into<Cow<'static, str>>) {
        self.state = State::Probing(Probing::new(now, cause, self.timing()));
        // Of a doubt that may be over in a moment, a standby says nothing.
        if cause != Cause::Dead {
            self.report(ClaimState::Probing, reason, None);
        }
    }

    fn claim(&mut self, now: Instant, cause: Cause) {
        let Some(order) = &self.order else { return };
        self.claimed = Some(order.epoch.clone());
        let reason = match cause {
            Cause::Named => "named by the API",
            Cause::Dead => "the owner before fell silent",
            Cause::Recheck => "nobody else answered",
        };
        let predecessor = self.held_by.take();
        self.was_owner = false;
        self.state = State::Owner(Owning::new(now, cause, predecessor));
        self.announce(AnnouncementForm::Request);
        self.announce(AnnouncementForm::Reply);
        self.report_owner(reason);
    }

    fn fall_silent(&mut self, now: Instant, reason: impl Into<Cow<'static, str>>) {
        self.state = State::Silent;
        self.was_owner = false;
        self.recheck_at = None;
        self.plan_recheck(now);
        // A standby that never said anything else has not yielded.
        if self.reported.as_ref().is_some_and(|reported| reported.state != ClaimState::Yielded) {
            self.report(ClaimState::Yielded, reason, None);
        }
    }

    fn plan_recheck(&mut self, now: Instant) {
        if self.stands_by() && self.role() == Some(Role::Primary) && self.held_by.is_none() {
            self.recheck_at.get_or_insert(now + RECHECK_SILENT);
        } else {
            self.recheck_at = None;
        }
    }

    /// Only ever called in `Owner`: the one place where the virtual IP becomes a sender address outside the receive path.
    fn announce(&mut self, form: AnnouncementForm) {
        debug_assert!(self.answers(), "only an owner announces");
        // An unsolicited advertisement has one form.
        if self.vip.is_ipv6() && form == AnnouncementForm::Reply {
            return;
        }
        self.output.push_back(Output::Send(Message::Announcement { vip: self.vip, form }));
    }

    fn report_owner(&mut self, reason: impl Into<Cow<'static, str>>) {
        let rival = match &self.state {
            State::Owner(owning) => owning.rival().or(owning.split_with()),
            _ => None,
        };
        self.report(ClaimState::Owner, reason, rival);
    }

    /// An owner, and one that was, answers for the placement that it claimed for; one on its way for that of its order.
    fn report(&mut self, state: ClaimState, reason: impl Into<Cow<'static, str>>, conflict_mac: Option<MacAddr>) {
        let ordered = self.order.as_ref().map(|order| &order.epoch);
        let epoch = match state {
            ClaimState::Probing | ClaimState::Blocked => ordered,
            ClaimState::Owner | ClaimState::Yielded | ClaimState::LinkDown => self.claimed.as_ref().or(ordered),
        };
        let Some(epoch) = epoch.cloned() else { return };
        let report = Report { state, reason: reason.into(), conflict_mac, epoch };
        if self.reported.as_ref() != Some(&report) {
            self.reported = Some(report.clone());
            self.output.push_back(Output::Report(report));
        }
    }

    fn role(&self) -> Option<Role> {
        self.order.as_ref().map(|order| order.role)
    }

    fn is_named(&self) -> bool {
        self.order
            .as_ref()
            .is_some_and(|order| order.role == Role::Primary && self.claimed.as_ref() != Some(&order.epoch))
    }

    /// The place of a node in the assignments, lower first; `None` is this node.
    fn rank(&self, node: Option<&Arc<str>>) -> usize {
        self.order.as_ref().map_or(usize::MAX, |order| order.rank(node))
    }

    fn timing(&self) -> Timing {
        self.order.as_ref().map_or_else(Timing::default, |order| order.timing)
    }
}
