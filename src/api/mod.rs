//! The vocabulary that controller and speakers share: the three kinds of `l2lb.io/v1alpha1`, the condition types and
//! reasons that a user reads on a Service, and the names of labels and annotations. No I/O, no decisions.

mod conditions;
mod ip_pool;
mod names;
mod speaker;
mod virtual_ip;

pub use conditions::{
    AllocatedReason, AnnouncedReason, CONDITION_ALLOCATED, CONDITION_ANNOUNCED, CONDITION_READY, EVENT_ADDRESS_CHANGED,
};
pub use ip_pool::{
    AddressRangeSpec, Announce, FailoverClass, FamilyCount, IPPool, IPPoolSpec, IPPoolStatus, PreferredNode,
};
pub use names::{
    ANNOTATION_ADDRESSES, ANNOTATION_POOL, ANNOTATION_SHARING_KEY, DRAIN_ANNOTATION, EXCLUDE_LABEL, GROUP,
    METALLB_PREFIXES, NAME_LABEL, OUT_OF_SERVICE_TAINT, node_label, speaker_field_manager, speaker_lease_name,
};
pub use names::{CONTROLLER_FIELD_MANAGER, SPEAKER_FIELD_MANAGER_PREFIX};
pub use speaker::{NetworkInterface, Speaker, SpeakerSpec, SpeakerStatus};
pub use virtual_ip::{
    Assignment, Claim, ClaimState, Role, VirtualIP, VirtualIPSpec, VirtualIPStatus, address_of_name, virtual_ip_name,
};

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::{
    CustomResourceDefinition, JSONSchemaProps, JSONSchemaPropsOrArray,
};
use kube::CustomResourceExt as _;

/// The three CustomResourceDefinitions, in the order in which `l2lb crds` prints them.
pub fn custom_resource_definitions() -> Vec<CustomResourceDefinition> {
    let mut definitions = vec![IPPool::crd(), VirtualIP::crd(), Speaker::crd()];
    for version in definitions.iter_mut().flat_map(|definition| &mut definition.spec.versions) {
        if let Some(schema) = version.schema.as_mut().and_then(|schema| schema.open_api_v3_schema.as_mut()) {
            unwrap_descriptions(schema);
        }
    }
    definitions
}

/// Doc comments are wrapped for the source; `kubectl explain` wraps for the terminal, and keeps line breaks that it finds.
fn unwrap_descriptions(schema: &mut JSONSchemaProps) {
    if let Some(description) = &mut schema.description {
        let paragraphs: Vec<String> = description.split("\n\n").map(|paragraph| paragraph.replace('\n', " ")).collect();
        *description = paragraphs.join("\n\n");
    }
    schema.properties.iter_mut().flat_map(|properties| properties.values_mut()).for_each(unwrap_descriptions);
    if let Some(JSONSchemaPropsOrArray::Schema(items)) = &mut schema.items {
        unwrap_descriptions(items);
    }
}
