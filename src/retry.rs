//! Trying again when the API server does not answer: how long to wait, and what to say. One rule for both roles.

use std::{
    error::Error,
    time::{Duration, Instant},
};

use kube::{
    Config,
    runtime::{utils::Backoff, watcher::DefaultBackoff},
};
use tracing::{debug, info, warn};

/// Kubernetes' own clients go up to 30 s. A speaker that knows too late whom to answer for, or a Service that waits a minute for
/// its address after the API server came back, is worse than one request in this time from each node.
const LONGEST: Duration = Duration::from_secs(5);

/// Kubernetes' usual backoff, with jitter, but never longer than 5 s.
#[derive(Default)]
pub struct Patience(DefaultBackoff);

impl Iterator for Patience {
    type Item = Duration;

    fn next(&mut self) -> Option<Duration> {
        self.0.next().map(|pause| pause.min(LONGEST))
    }
}

impl Backoff for Patience {
    fn reset(&mut self) {
        self.0.reset();
    }
}

impl Patience {
    /// The next pause.
    pub fn pause(&mut self) -> Duration {
        self.next().unwrap_or(LONGEST)
    }
}

/// Makes a client that tries nothing again by itself: what is tried again, when, and whether it is still wanted is for its user
/// to say, and a failure that nobody hears of cannot be acted on. A connection on which nothing arrives for `longest_silence` while
/// something is awaited is given up.
pub fn set_rules(config: &mut Config, longest_silence: Duration) {
    config.default_retry = false;
    config.read_timeout = Some(longest_silence);
    // The time that a connection stood idle before it was used does not count.
    config.reset_reader_on_write = true;
}

/// Says once that something fails, and once that it works again; what lies between is for debugging.
#[derive(Debug)]
pub struct Trouble {
    doing: &'static str,
    failing: bool,
}

impl Trouble {
    /// About `doing`, such as "renewing the Lease". All is well so far.
    pub fn new(doing: &'static str) -> Self {
        Self { doing, failing: false }
    }

    /// It failed, and will be tried again.
    pub fn failed(&mut self, error: &dyn Error) {
        let cause = causes(error);
        if std::mem::replace(&mut self.failing, true) {
            debug!(%cause, "{} failed again", self.doing);
        } else {
            warn!(%cause, "{} failed; trying again with backoff until it works", self.doing);
        }
    }

    /// It worked.
    pub fn worked(&mut self) {
        if std::mem::take(&mut self.failing) {
            info!("{} works again", self.doing);
        }
    }
}

/// Says that something fails, but not each time: for what has no moment at which it works again.
#[derive(Debug)]
pub struct Seldom {
    every: Duration,
    last: Option<Instant>,
    left_out: u64,
}

impl Seldom {
    /// At most one line in that time.
    pub fn every(every: Duration) -> Self {
        Self { every, last: None, left_out: 0 }
    }

    /// Logs the sentence, with how many have been left out before it, or leaves it out.
    pub fn log(&mut self, sentence: &str) {
        if let Some(left_out) = self.handle(Instant::now()) {
            warn!(similar_left_out = left_out, "{sentence}");
        }
    }

    /// Whether it is time for a line, and how many were left out.
    fn handle(&mut self, now: Instant) -> Option<u64> {
        if self.last.is_some_and(|last| now.duration_since(last) < self.every) {
            self.left_out += 1;
            return None;
        }
        self.last = Some(now);
        Some(std::mem::take(&mut self.left_out))
    }
}

/// The error with all its causes, each said once: the first alone often hides that nobody listens.
pub fn causes(error: &dyn Error) -> String {
    let mut text = error.to_string();
    let mut next = error.source();
    while let Some(cause) = next {
        let cause_text = cause.to_string();
        if !text.contains(&cause_text) {
            text.push_str(": ");
            text.push_str(&cause_text);
        }
        next = cause.source();
    }
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("connecting failed")]
    struct Outer(#[source] std::io::Error);

    #[test]
    fn causes_are_named_once() {
        let error = Outer(std::io::Error::other("connection refused"));
        assert_eq!(causes(&error), "connecting failed: connection refused");
        let error = Outer(std::io::Error::other("connecting failed"));
        assert_eq!(causes(&error), "connecting failed");
    }

    #[test]
    fn what_is_said_seldom_tells_how_often_it_was_not_said() {
        let (mut seldom, begin) = (Seldom::every(Duration::from_secs(30)), Instant::now());
        let said = [0, 1, 29, 30, 31, 70].map(|second| seldom.handle(begin + Duration::from_secs(second)));
        assert_eq!(said, [Some(0), None, None, Some(2), None, Some(1)]);
    }

    #[test]
    fn patience_never_ends_and_never_grows_long() {
        let mut patience = Patience::default();
        assert!((0..100).all(|_| patience.pause() <= LONGEST));
    }
}
