//! What the API tells one node about one virtual IP.

use std::{sync::Arc, time::Duration};

use crate::{
    api::{FailoverClass, Role},
    speaker::wire::MacAddr,
};

/// One decision to name a Primary: of which object, and the how-many-eth. Compared by equality only: after a restore the
/// numbers may go back.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Epoch {
    /// The uid of the VirtualIP object.
    pub uid: Arc<str>,
    /// Its `spec.placement`.
    pub placement: i64,
}

/// A node's part in one virtual IP.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Order {
    /// The decision that this is part of.
    pub epoch: Epoch,
    /// What this node is to do.
    pub role: Role,
    /// This node's name.
    pub node: Arc<str>,
    /// All nodes that have a part, the Primary first, then the standbys in order.
    pub ranking: Arc<[Ranked]>,
    /// The NIC of another node that answers for it, as that node's claim in the status says. It counts until something is
    /// heard on the wire.
    pub holder: Option<MacAddr>,
    /// How quick everything has to be.
    pub timing: Timing,
}

/// A node that has a part in a virtual IP.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Ranked {
    /// Its name.
    pub node: Arc<str>,
    /// The interface on which it announces.
    pub nic: Arc<str>,
}

impl Order {
    /// The place of a node in the ranking, or of this node.
    pub fn rank(&self, node: Option<&Arc<str>>) -> usize {
        let wanted = node.unwrap_or(&self.node);
        self.ranking.iter().position(|ranked| ranked.node == *wanted).unwrap_or(self.ranking.len())
    }
}

/// The times of a failover class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long an answer to a probe is waited for.
    pub probe_gap: Duration,
    /// A standby asks the owner once in this time. Three of them without an answer are silence.
    pub interval: Duration,
    /// How long after the owner's loop last ran the receive path may still answer: 2.5 monitoring intervals, so that a
    /// speaker that stands still is mute before another one takes over.
    pub fence: Duration,
}

impl Default for Timing {
    fn default() -> Self {
        Self::of(FailoverClass::Standard)
    }
}

impl Timing {
    /// The fence of the quickest class.
    pub const SHORTEST_FENCE: Duration = Duration::from_millis(125);

    /// The times that `class` asks for.
    pub fn of(class: FailoverClass) -> Self {
        let (probe_gap, interval) = match class {
            FailoverClass::Fast => (30, 50),
            FailoverClass::Standard => (75, 200),
            FailoverClass::Relaxed => (75, 1_000),
        };
        let interval = Duration::from_millis(interval);
        Self { probe_gap: Duration::from_millis(probe_gap), interval, fence: interval * 5 / 2 }
    }
}
