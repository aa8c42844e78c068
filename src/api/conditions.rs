//! The conditions that a user reads on a Service and an administrator on a pool, with the closed sets of their reasons.

use std::fmt;

/// Service condition: does the Service hold its address or addresses?
pub const CONDITION_ALLOCATED: &str = "l2lb.io/Allocated";
/// Service condition: does a node answer for every address of the Service?
pub const CONDITION_ANNOUNCED: &str = "l2lb.io/Announced";
/// Pool and Speaker condition: is everything that it says used as it is written?
pub const CONDITION_READY: &str = "Ready";

/// Reason of the event that tells of a Service's new address, and why it does not have the old one any more.
pub const EVENT_ADDRESS_CHANGED: &str = "AddressChanged";

macro_rules! reasons {
    ($(#[$doc:meta])* $name:ident { $($(#[$vdoc:meta])* $variant:ident),+ $(,)? }) => {
        $(#[$doc])*
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum $name { $($(#[$vdoc])* $variant),+ }

        impl $name {
            /// Every reason, for documentation and metrics.
            pub const ALL: &'static [$name] = &[$($name::$variant),+];

            /// The word as it stands in the condition.
            pub fn as_str(self) -> &'static str {
                match self { $($name::$variant => stringify!($variant)),+ }
            }
        }

        impl fmt::Display for $name {
            fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str(self.as_str())
            }
        }
    };
}

reasons! {
    /// Reasons of [`CONDITION_ALLOCATED`]. All but the first mean `False`.
    AllocatedReason {
        /// The Service holds its address.
        Allocated,
        /// No pool admits this Service.
        NoMatchingPool,
        /// The pools that admit this Service have no free address.
        PoolExhausted,
        /// The address asked for is in no pool that admits this Service.
        AddressNotInPool,
        /// The address asked for belongs to another Service, or a foreign host answers for it.
        AddressInUse,
        /// The address is held by Services with another sharing key, or with none.
        SharingMismatch,
        /// The address is shared, and a Service there already uses one of the ports.
        PortCollision,
        /// No pool has addresses of the family that the Service needs.
        FamilyUnavailable,
        /// The request itself cannot be understood.
        InvalidRequest,
    }
}

reasons! {
    /// Reasons of [`CONDITION_ANNOUNCED`]. All but the first mean `False`.
    AnnouncedReason {
        /// A node answers for every address.
        Announced,
        /// No node may announce the address; the message says why for each.
        NoEligibleNode,
        /// `externalTrafficPolicy: Local`, and no node has a serving endpoint.
        NoLocalEndpoint,
        /// The Service has no endpoint at all.
        NoEndpoint,
        /// A host that is not one of ours answers for the address.
        AddressConflict,
        /// The node was chosen; its speaker has not claimed the address yet.
        AwaitingSpeaker,
        /// Two nodes answer for the address, and the one that is not to does not yield.
        SplitClaim,
        /// One of the Service's addresses is announced, another is not.
        PartlyAnnounced,
    }
}
