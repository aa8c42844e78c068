//! How the kernel is followed: all there is is asked for once, then each change is folded in; and all is asked for anew where
//! something may have been missed. It holds no socket and no clock.
//!
//! Inputs: [`Follow::handle_connected`], [`Follow::handle_datagram`], [`Follow::handle_overrun`], [`Follow::handle_look`].
//! Outputs: [`Follow::poll_request`], to be sent at once, and [`Follow::poll_changed`]. Then wait for an input or
//! [`Follow::poll_timeout`].
//!
//! Answers and events come through one socket, in the order in which the kernel made them. So while it answers, events go
//! into what is known and into what is being learnt; when the answer is complete, the latter takes the place of the former.

use std::time::{Duration, Instant};

use super::{
    Event, Family, Folded, Inventory,
    message::{self, Content, Question},
};

/// All is asked for this often, whatever the events tell.
const RESYNC: Duration = Duration::from_secs(60);
/// Between two times that all is asked for, however often something goes wrong.
const GAP: Duration = Duration::from_millis(500);
/// An answer takes no longer than this. The socket is at fault then.
const PATIENCE: Duration = Duration::from_secs(5);

/// What is asked for, in this order; the default routes alone after most changes.
const EVERYTHING: [Question; 5] = [
    Question::Links,
    Question::Addresses(Family::V4),
    Question::Addresses(Family::V6),
    Question::Routes(Family::V4),
    Question::Routes(Family::V6),
];
const ROUTES: usize = 3;

/// What is to be asked for next.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
enum Wanted {
    Nothing,
    Routes,
    Everything,
}

/// An answer that is under way.
#[derive(Debug)]
struct Learning {
    so_far: Inventory,
    question: usize,
    sequence: u32,
    asked: bool,
    interrupted: bool,
    since: Instant,
}

/// What is known of this node's interfaces, and what is being asked.
#[derive(Debug)]
pub struct Follow {
    known: Option<Inventory>,
    learning: Option<Learning>,
    wanted: Wanted,
    last_begun: Option<Instant>,
    last_everything: Option<Instant>,
    sequence: u32,
    complete: bool,
    changed: bool,
}

/// The kernel does not answer: the socket has to be made anew.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the kernel did not answer within {} s", PATIENCE.as_secs())]
pub struct NoAnswer;

impl Default for Follow {
    fn default() -> Self {
        Self {
            known: None,
            learning: None,
            wanted: Wanted::Everything,
            last_begun: None,
            last_everything: None,
            sequence: 0,
            complete: false,
            changed: false,
        }
    }
}

impl Follow {
    /// The socket is a new one, which listens to the events by now.
    pub fn handle_connected(&mut self) {
        self.learning = None;
        self.wanted = Wanted::Everything;
        self.complete = false;
    }

    /// The kernel had more to say than fitted.
    pub fn handle_overrun(&mut self) {
        self.wanted = Wanted::Everything;
    }

    /// Somebody has reason to believe that something changed.
    pub fn handle_look(&mut self) {
        self.wanted = Wanted::Everything;
    }

    /// The kernel says this.
    pub fn handle_datagram(&mut self, datagram: &[u8]) {
        for heard in message::read(datagram) {
            let answer =
                self.learning.as_mut().filter(|learning| learning.asked && heard.answers == Some(learning.sequence));
            let Some(learning) = answer else {
                if let Content::Event(event) = heard.content {
                    self.handle_event(&event);
                }
                continue;
            };
            learning.interrupted |= heard.interrupted;
            match heard.content {
                Content::Event(event) => {
                    learning.so_far.fold(&event);
                }
                Content::Done => self.answered(),
                Content::Failed(_) => {
                    learning.interrupted = true;
                    self.answered();
                }
                Content::Other => {}
            }
        }
    }

    /// The next request, if it is time for one.
    ///
    /// # Errors
    /// [`NoAnswer`]: make the socket anew.
    pub fn poll_request(&mut self, now: Instant) -> Result<Option<Vec<u8>>, NoAnswer> {
        if self.learning.is_none() && self.begins_at(now) <= now {
            self.begin(now);
        }
        let Some(learning) = &mut self.learning else { return Ok(None) };
        if now >= learning.since + PATIENCE {
            return Err(NoAnswer);
        }
        if learning.asked {
            return Ok(None);
        }
        learning.asked = true;
        self.sequence = self.sequence.wrapping_add(1).max(1);
        learning.sequence = self.sequence;
        Ok(EVERYTHING.get(learning.question).map(|question| question.to_bytes(learning.sequence)))
    }

    /// When [`Follow::poll_request`] has to be called next.
    pub fn poll_timeout(&self, now: Instant) -> Instant {
        match &self.learning {
            Some(learning) if learning.asked => learning.since + PATIENCE,
            Some(_) => now,
            None => self.begins_at(now),
        }
    }

    /// What is known, if it may be something else than last time; nothing before the first answer is complete.
    pub fn poll_changed(&mut self) -> Option<&Inventory> {
        std::mem::take(&mut self.changed).then_some(self.known.as_ref()).flatten()
    }

    /// Whether everything was answered on this socket.
    pub fn is_known_since_connected(&self) -> bool {
        self.complete
    }

    fn begins_at(&self, now: Instant) -> Instant {
        let (Some(last), Some(everything)) = (self.last_begun, self.last_everything) else { return now };
        if self.wanted > Wanted::Nothing { last + GAP } else { everything + RESYNC }
    }

    fn begin(&mut self, now: Instant) {
        let everything = self.wanted != Wanted::Routes || self.last_everything.is_none_or(|at| at + RESYNC <= now);
        let (so_far, question) = match &self.known {
            Some(known) if !everything => {
                let mut so_far = known.clone();
                so_far.clear_default_routes();
                (so_far, ROUTES)
            }
            _ => (Inventory::default(), 0),
        };
        if question == 0 {
            self.last_everything = Some(now);
        }
        self.wanted = Wanted::Nothing;
        self.last_begun = Some(now);
        self.learning = Some(Learning { so_far, question, sequence: 0, asked: false, interrupted: false, since: now });
    }

    fn handle_event(&mut self, event: &Event) {
        if let Some(learning) = &mut self.learning {
            learning.so_far.fold(event);
        }
        let Some(known) = &mut self.known else { return };
        let folded = known.fold(event);
        self.wanted = self.wanted.max(match folded {
            Folded::Nothing => Wanted::Nothing,
            Folded::Changed => Wanted::Routes,
            Folded::Unknown => Wanted::Everything,
        });
        self.changed |= folded != Folded::Nothing;
    }

    /// A question is answered: on to the next, or all is known.
    fn answered(&mut self) {
        let Some(mut learning) = self.learning.take() else { return };
        learning.question += 1;
        if learning.question < EVERYTHING.len() {
            learning.asked = false;
            self.learning = Some(learning);
            return;
        }
        if learning.interrupted {
            self.wanted = Wanted::Everything;
        }
        (self.complete, self.changed) = (true, true);
        match &mut self.known {
            // What is missing in such an answer may be there all the same.
            Some(known) if learning.interrupted => known.merge(learning.so_far),
            known => *known = Some(learning.so_far),
        }
    }
}

#[cfg(test)]
mod tests;
