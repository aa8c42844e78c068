//! What a scenario runs against, and what it can find.

use std::fmt;
use std::net::IpAddr;
use std::time::{Duration, Instant};

use anyhow::Result;

/// Something that makes one node answer for a virtual IP.
pub trait Announcer {
    /// The virtual IP.
    fn vip(&self) -> IpAddr;

    /// The node (its place in [`crate::field::Field::nodes`]) that the announcer's own books call the owner. Nobody, for
    /// a moment, while it moves.
    fn owner(&self) -> Result<Option<usize>>;

    /// Moves the virtual IP to another node. Returns when the move is ordered, not when it is done.
    fn move_away(&mut self) -> Result<()>;
}

/// A promise that was broken.
#[derive(Debug)]
pub struct Finding {
    pub kind: Kind,
    pub details: String,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    /// Nobody answered for the virtual IP.
    NotAnswered,
    /// Frames for one node were sent to all ports.
    Flooded,
    /// The virtual IP moved and the new owner told nobody.
    NotAnnounced,
    /// Traffic went on to a node that is not the owner.
    NotFollowed,
    /// The gateway held an address with the MAC of one node and the port of another.
    WrongTriple,
    /// A frame named another sender than the NIC that it came out of.
    Lied,
}

/// Why a scenario did not end well.
#[derive(Debug)]
pub enum Failure {
    /// The announcer is to blame.
    Finding(Finding),
    /// The lab is.
    Lab(anyhow::Error),
}

impl fmt::Display for Failure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Finding(finding) => write!(f, "{:?}: {}", finding.kind, finding.details),
            Self::Lab(error) => write!(f, "the lab failed: {error:#}"),
        }
    }
}

impl From<anyhow::Error> for Failure {
    fn from(error: anyhow::Error) -> Self {
        Self::Lab(error)
    }
}

/// A failure that the announcer is to blame for.
pub fn found(kind: Kind, details: impl Into<String>) -> Failure {
    Failure::Finding(Finding { kind, details: details.into() })
}

/// Looks until there is a value, or until the deadline: then `None`.
pub fn eventually<T>(
    deadline: Duration,
    mut look: impl FnMut() -> Result<Option<T>, Failure>,
) -> Result<Option<T>, Failure> {
    let end = Instant::now() + deadline;
    loop {
        if let Some(value) = look()? {
            return Ok(Some(value));
        }
        if Instant::now() >= end {
            return Ok(None);
        }
        std::thread::sleep(Duration::from_millis(10));
    }
}
