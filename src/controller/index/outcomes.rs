//! What became of the writes: done, refused, failed, or not known; and what that means for the next ones.
//!
//! An answer may be late: the object may be gone by then, or be another one. It may never come although the write was done: that
//! is seen on the object, and then its event is due. Nothing is told twice and nobody is brought back.

use std::{
    hash::{DefaultHasher, Hash as _, Hasher as _},
    time::Duration,
};

use super::{Delta, Index, Input, Outcome, Target, status};
use crate::{
    api,
    controller::change::{Change, ServiceEvent},
};

const FIRST_RETRY: Duration = Duration::from_millis(250);
const LAST_RETRY: Duration = Duration::from_secs(30);
/// Who has not undone a write for this long is taken to agree.
const FORGIVEN_AFTER: Duration = Duration::from_secs(60);
/// Events are for people: what does not fit is not worth memory.
pub(super) const EVENTS_KEPT: usize = 1_000;
/// About a minute and a half.
pub(super) const EVENT_ATTEMPTS: u32 = 10;

/// The last write for an object that was done.
#[derive(Debug)]
pub(super) struct Written {
    /// What it was: there is one for each object for ever, and all that is asked of it is whether another one is the same.
    mark: u64,
    at: Duration,
    /// How often the same was written before it, each time because somebody else had undone it.
    undone: u32,
    /// Whether somebody has changed the object since.
    pub(super) is_past: bool,
}

/// Failed writes for an object.
#[derive(Debug)]
pub(super) struct Backoff {
    attempts: u32,
    pub(super) until: Duration,
    pub(super) conflict: bool,
}

impl Index {
    /// Takes in what became of the write for `target`.
    pub fn handle_outcome(&mut self, target: &Target, outcome: Outcome, now: Duration) {
        let Some(change) = self.in_flight.remove(target) else { return };
        self.dirty.insert(target.clone());
        let is_gone = self.gone.remove(target);
        // The answer may come later than the news that the object is gone, or that there is another one of its name.
        let is_past = match &outcome {
            Outcome::Service(view) => self.services.get(&view.key).map_or(is_gone, |known| known.uid != view.uid),
            Outcome::VirtualIP(view) => self.vips.get(&view.name).map_or(is_gone, |known| known.uid != view.uid),
            _ => false,
        };
        let outcome = if is_past { Outcome::Conflict } else { outcome };
        if let Change::ServiceStatus(status) = &change
            && !matches!(outcome, Outcome::Conflict | Outcome::Failed)
        {
            self.unanswered.remove(&format!("{}/{}", status.namespace, status.name));
        }
        match outcome {
            Outcome::Conflict | Outcome::Failed => {
                if let Target::VirtualIP(address) = target {
                    self.decide_as_observed(*address);
                }
                if let (Change::ServiceStatus(status), Target::Service(key)) = (change, target) {
                    if outcome == Outcome::Failed {
                        self.unanswered.insert(key.clone(), status);
                    }
                    self.tell_if_answered(key);
                }
                self.retry_later(target, outcome == Outcome::Conflict, now);
                return;
            }
            Outcome::Service(view) => self.handle(Input::Service(Delta::Apply(view)), now),
            Outcome::VirtualIP(view) => self.handle(Input::VirtualIP(Delta::Apply(view)), now),
            Outcome::Done => {}
        }
        self.backoff.remove(target);
        match change {
            Change::ServiceStatus(mut status) => {
                if let Some(event) = status.event.take() {
                    self.queue_event(event);
                }
                if let Target::Service(key) = target {
                    self.departures.remove(key);
                }
                self.note_written(target, &Change::ServiceStatus(status), now);
            }
            Change::ServiceEvent { number, .. } => self.drop_event(number),
            change => self.note_written(target, &change, now),
        }
    }

    fn note_written(&mut self, target: &Target, change: &Change, now: Duration) {
        if !self.is_known(target) {
            return; // The news of its end was quicker; there will be no other to forget it at.
        }
        let mark = mark_of(change);
        let before = self
            .written
            .remove(target)
            .filter(|before| before.is_past && now < before.at + FORGIVEN_AFTER && before.mark == mark);
        let undone = before.map_or(0, |before| before.undone + 1);
        self.written.insert(target.clone(), Written { mark, at: now, undone, is_past: false });
    }

    fn is_known(&self, target: &Target) -> bool {
        match target {
            Target::VirtualIP(address) => self.vips.get(&api::virtual_ip_name(*address)).is_some(),
            Target::Service(key) => self.services.get(key).is_some(),
            Target::Event(number) => self.events.contains_key(number),
            Target::Pool(name) => self.pools.get(name).is_some(),
            Target::Speaker(node) => self.speakers.get(node).is_some(),
            Target::Lease(node) => self.leases.contains_key(node),
        }
    }

    /// The change, unless the same was done before and did not last.
    pub(super) fn unless_futile(&mut self, target: &Target, change: Change, now: Duration) -> Option<Change> {
        match self.written.get(target).filter(|written| written.mark == mark_of(&change)) {
            // What the API server has taken and not kept would be written for ever.
            Some(written) if !written.is_past => None,
            // Somebody wants something else, another load balancer, say: no race with it.
            Some(written) if written.undone > 0 => {
                let pause = FIRST_RETRY.saturating_mul(1 << written.undone.min(16)).min(LAST_RETRY);
                let due = written.at + pause;
                if due <= now {
                    return Some(change);
                }
                self.timers.insert((due, target.clone()));
                None
            }
            _ => Some(change),
        }
    }

    fn retry_later(&mut self, target: &Target, conflict: bool, now: Duration) {
        let attempts = self.backoff.get(target).map_or(0, |backoff| backoff.attempts);
        if let Target::Event(number) = target
            && attempts + 1 >= EVENT_ATTEMPTS
        {
            self.backoff.remove(target);
            self.drop_event(*number);
            return;
        }
        let pause = FIRST_RETRY.saturating_mul(1 << attempts.min(16)).min(LAST_RETRY);
        let backoff = Backoff { attempts: attempts + 1, until: now + pause, conflict };
        self.backoff.insert(target.clone(), backoff);
    }

    /// An object is gone: the answer of a write that is on its way may not bring it back.
    pub(super) fn gone_meanwhile(&mut self, target: Target) {
        if self.in_flight.contains_key(&target) {
            self.gone.insert(target);
        }
    }

    /// A status whose write was not answered is written if the Service shows it: then its user is told.
    pub(super) fn tell_if_answered(&mut self, key: &str) {
        let Some(sent) = self.unanswered.get(key) else { return };
        if self.in_flight.contains_key(&Target::Service(key.to_owned())) {
            return; // It is sent again; that one's answer brings us back.
        }
        let service = self.services.get(key).filter(|service| service.uid == sent.uid);
        let is_shown = service.map(|service| status::shows(service, &sent.addresses, &sent.conditions));
        if is_shown == Some(false) {
            return; // Not yet, or never.
        }
        let event = self.unanswered.remove(key).and_then(|sent| sent.event);
        if is_shown.is_some() {
            self.departures.remove(key);
            event.into_iter().for_each(|event| self.queue_event(event));
        }
    }

    fn queue_event(&mut self, event: ServiceEvent) {
        if self.events.len() >= EVENTS_KEPT
            && let Some(oldest) = self.events.keys().next().copied()
        {
            self.drop_event(oldest);
        }
        self.next_event += 1;
        self.events.insert(self.next_event, event);
        self.dirty.insert(Target::Event(self.next_event));
    }

    fn drop_event(&mut self, number: u64) {
        self.events.remove(&number);
        self.dirty.remove(&Target::Event(number));
    }
}

/// The same for two writes of which the second would change nothing that the first did not.
fn mark_of(change: &Change) -> u64 {
    let mut hasher = DefaultHasher::new();
    match change {
        // Times and versions differ each time.
        Change::ServiceStatus(status) => {
            (&status.uid, &status.addresses).hash(&mut hasher);
            for wanted in &status.conditions {
                (wanted.type_, wanted.status, wanted.reason, &wanted.message).hash(&mut hasher);
            }
        }
        change => format!("{change:?}").hash(&mut hasher),
    }
    hasher.finish()
}
