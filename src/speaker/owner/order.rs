//! What the API tells one node about one virtual IP.

use std::{sync::Arc, time::Duration};

use crate::api::{FailoverClass, Role};

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
    pub ranking: Arc<[Arc<str>]>,
    /// How quick everything has to be.
    pub timing: Timing,
}

impl Order {
    /// The place of a node in the ranking, or of this node.
    pub fn rank(&self, node: Option<&Arc<str>>) -> usize {
        let wanted = node.unwrap_or(&self.node);
        self.ranking.iter().position(|ranked| ranked == wanted).unwrap_or(self.ranking.len())
    }
}

/// The times of a failover class.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// How long an answer to a probe is waited for.
    pub probe_gap: Duration,
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
        let (probe_gap, fence) = match class {
            FailoverClass::Fast => (30, Self::SHORTEST_FENCE),
            FailoverClass::Standard => (75, Duration::from_millis(500)),
            FailoverClass::Relaxed => (75, Duration::from_millis(2_500)),
        };
        Self { probe_gap: Duration::from_millis(probe_gap), fence }
    }
}
