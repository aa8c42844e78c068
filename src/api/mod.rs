//! The vocabulary that controller and speakers share: the three kinds of `l2lb.io/v1alpha1`, the condition types and
//! reasons that a user reads on a Service, and the names of labels and annotations. No I/O, no decisions.

mod conditions;
mod ip_pool;
mod names;
mod speaker;
mod virtual_ip;

pub use conditions::{AllocatedReason, AnnouncedReason, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, CONDITION_READY};
pub use ip_pool::{
    AddressRangeSpec, Announce, FailoverClass, FamilyCount, IPPool, IPPoolSpec, IPPoolStatus, PreferredNode,
};
pub use names::{
    ANNOTATION_ADDRESSES, ANNOTATION_POOL, ANNOTATION_SHARING_KEY, EXCLUDE_LABEL, GROUP, METALLB_PREFIXES, NAME_LABEL,
    node_label, speaker_field_manager, speaker_lease_name,
};
pub use names::{CONTROLLER_FIELD_MANAGER, SPEAKER_FIELD_MANAGER_PREFIX};
pub use speaker::{NetworkInterface, Speaker, SpeakerSpec, SpeakerStatus};
pub use virtual_ip::{
    Assignment, Claim, ClaimState, Role, VirtualIP, VirtualIPSpec, VirtualIPStatus, address_of_name, virtual_ip_name,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;

/// The three CustomResourceDefinitions, in the order in which `l2lb crds` prints them.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    vec![IPPool::crd(), VirtualIP::crd(), Speaker::crd()]
}
