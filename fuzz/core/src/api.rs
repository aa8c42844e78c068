//! The three enums of the API that the speaker's decisions know, without what they need in Kubernetes.

#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Hash)]
pub enum FailoverClass {
    #[default]
    Standard,
    Fast,
    Relaxed,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Role {
    Primary,
    Standby,
    Leaving,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum ClaimState {
    Probing,
    Owner,
    Yielded,
    Blocked,
    LinkDown,
}
