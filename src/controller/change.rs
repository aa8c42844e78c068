//! The writes that the controller wants done. Pure values; [`super::writer`] carries them out.

use std::net::IpAddr;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;

use crate::api::{IPPoolStatus, VirtualIPSpec};

/// The object that a change is for. There is at most one change on its way for each.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Target {
    /// A VirtualIP, by its address.
    VirtualIP(IpAddr),
    /// A Service, as `namespace/name`.
    Service(String),
    /// An event, by number.
    Event(u64),
    /// An IPPool.
    Pool(String),
    /// A Speaker.
    Speaker(String),
    /// A speaker's Lease, by the name of its node.
    Lease(String),
}

/// One write.
#[derive(Clone, Debug, PartialEq)]
pub enum Change {
    /// Make the VirtualIP, with its assignments in it.
    CreateVirtualIP {
        /// Its spec.
        spec: VirtualIPSpec,
    },
    /// Change spec and labels, if nobody else has changed the object since.
    UpdateVirtualIP {
        /// The state that the change was derived from.
        resource_version: String,
        /// Its whole new spec.
        spec: VirtualIPSpec,
        /// Labels of nodes that have no part any more.
        stale_labels: Vec<String>,
    },
    /// Remove the VirtualIP, if it is still this one.
    DeleteVirtualIP {
        /// Its address.
        address: IpAddr,
        /// Its uid.
        uid: String,
        /// The state that the change was derived from.
        resource_version: String,
    },
    /// Take away the claim of a node that has no part in the address any more, if nothing has changed since.
    RemoveClaim {
        /// The address.
        address: IpAddr,
        /// The state that the change was derived from.
        resource_version: String,
        /// The position of the claim.
        index: usize,
        /// The node whose claim stands there.
        node: String,
    },
    /// Set what a Service shows: its addresses and both conditions.
    ServiceStatus(ServiceStatus),
    /// Tell the user of a Service.
    ServiceEvent {
        /// The number of the event.
        number: u64,
        /// The event.
        event: ServiceEvent,
    },
    /// Set what a pool shows.
    PoolStatus {
        /// The pool.
        name: String,
        /// All of its status; times are set when it is written where they are `None`.
        status: IPPoolStatus,
    },
    /// Let a Speaker object go with its Node.
    SpeakerOwner {
        /// Name of both.
        node: String,
        /// The Node's uid.
        node_uid: String,
        /// The Speaker's uid.
        speaker_uid: String,
    },
    /// Let a speaker's Lease go with its Node.
    LeaseOwner {
        /// The Lease's namespace.
        namespace: String,
        /// Name of the Node.
        node: String,
        /// The Node's uid.
        node_uid: String,
        /// The Lease's uid.
        lease_uid: String,
    },
}

/// What a Service is to show. Empty: nothing of ours.
#[derive(Clone, Debug, PartialEq)]
pub struct ServiceStatus {
    /// Its namespace.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid; a later Service of the same name is not touched.
    pub uid: String,
    /// The state that the change was derived from: what was changed since, its type, say, is looked at first.
    pub resource_version: String,
    /// The addresses, in the order of its families.
    pub addresses: Vec<IpAddr>,
    /// The conditions.
    pub conditions: Vec<WantedCondition>,
    /// What its user is told once this is written.
    pub event: Option<ServiceEvent>,
}

impl ServiceStatus {
    /// Whether a reader of the Service would see no difference, times apart.
    pub fn shows_the_same(&self, other: &Self) -> bool {
        let words = |status: &Self| -> Vec<_> {
            let conditions = status.conditions.iter();
            conditions.map(|wanted| (wanted.type_, wanted.status, wanted.reason, wanted.message.clone())).collect()
        };
        self.uid == other.uid && self.addresses == other.addresses && words(self) == words(other)
    }
}

/// A condition as it is to be.
#[derive(Clone, Debug, PartialEq)]
pub struct WantedCondition {
    /// Its type.
    pub type_: &'static str,
    /// `True`?
    pub status: bool,
    /// Its reason.
    pub reason: &'static str,
    /// Its message.
    pub message: String,
    /// Since when; `None`: from the moment of the write.
    pub since: Option<Time>,
}

/// An event on a Service.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ServiceEvent {
    /// Namespace of the Service.
    pub namespace: String,
    /// Its name.
    pub name: String,
    /// Its uid.
    pub uid: String,
    /// Whether something is wrong.
    pub warning: bool,
    /// The reason of the condition.
    pub reason: &'static str,
    /// The message of the condition.
    pub message: String,
}
