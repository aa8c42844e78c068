//! Carries out one [`Change`] and says what became of it. The only holder of the client that writes.
//!
//! There is one attempt for each change: what comes next is for the index to say, which knows whether the change is still
//! wanted. Every write says what it was derived from (a uid, a resourceVersion, a JSON patch `test`), so that a late one does
//! no harm; writing the same thing twice changes nothing.

use std::time::Duration;

use k8s_openapi::{
    api::{
        coordination::v1::Lease,
        core::v1::{ObjectReference, Service},
        events::v1::Event,
    },
    apimachinery::pkg::apis::meta::v1::{MicroTime, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client,
    api::{DeleteParams, Patch, PatchParams, PostParams, Preconditions},
    core::ObjectMeta,
};
use serde_json::{Value, json};
use tracing::debug;

use super::{
    change::{Change, ServiceEvent, ServiceStatus, WantedCondition},
    index::{Outcome, virtual_ip_labels},
    leadership::Leadership,
    view::{ServiceView, VirtualIPView},
};
use crate::api::{self, CONTROLLER_FIELD_MANAGER, IPPool, IPPoolStatus, Speaker, VirtualIP, VirtualIPSpec};

/// A write that takes longer is taken for failed; it may still be done.
const WRITE_TIMEOUT: Duration = Duration::from_secs(15);

/// See the module.
#[derive(Clone)]
pub struct Writer {
    client: Client,
}

/// A write that was not done, as a sentence.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WriteFailure {
    /// What and why.
    pub sentence: String,
}

impl Writer {
    /// A writer to the API server of this client.
    pub fn new(client: Client) -> Self {
        Self { client }
    }

    /// Carries out the change, which only a leader may. With [`Outcome::Failed`] comes the reason.
    pub async fn write(&self, _: Leadership, change: &Change) -> (Outcome, Option<WriteFailure>) {
        let error = match tokio::time::timeout(WRITE_TIMEOUT, self.attempt(change)).await {
            Ok(Ok(outcome)) => return (outcome, None),
            Ok(Err(error)) => error,
            Err(_) => {
                let seconds = WRITE_TIMEOUT.as_secs();
                let sentence = format!("{}: no answer within {seconds} s", what(change));
                return (Outcome::Failed, Some(WriteFailure { sentence }));
            }
        };
        let code = if let kube::Error::Api(status) = &error { status.code } else { 0 };
        // A JSON patch whose test does not hold is answered with 422. What has gone needs no write any more.
        let stale = code == 409
            || (code == 422 && matches!(change, Change::RemoveClaim { .. }))
            || (code == 404 && !matches!(change, Change::CreateVirtualIP { .. }));
        if stale {
            debug!(change = what(change), %error, "the object has changed since; looking again");
            return (Outcome::Conflict, None);
        }
        let hint = match code {
            403 => "; the controller's ClusterRole does not allow it",
            404 => "; the CustomResourceDefinitions are missing (l2lb crds | kubectl apply -f -)",
            _ => "",
        };
        let sentence = format!("{}: {error}{hint}", what(change));
        (Outcome::Failed, Some(WriteFailure { sentence }))
    }

    async fn attempt(&self, change: &Change) -> kube::Result<Outcome> {
        match change {
            Change::CreateVirtualIP { spec } => {
                let name = name_of(spec);
                let mut vip = VirtualIP::new(&name, spec.clone());
                vip.metadata.labels = Some(virtual_ip_labels(spec));
                let params = PostParams { field_manager: Some(CONTROLLER_FIELD_MANAGER.to_owned()), dry_run: false };
                Ok(seen(&self.virtual_ips().create(&params, &vip).await?))
            }
            Change::UpdateVirtualIP { resource_version, spec, stale_labels } => {
                let mut labels = json!(virtual_ip_labels(spec));
                for label in stale_labels {
                    labels[label] = Value::Null;
                }
                let patch = json!({
                    "metadata": { "resourceVersion": resource_version, "labels": labels },
                    "spec": spec,
                });
                let written = self.virtual_ips().patch(&name_of(spec), &ours(), &Patch::Merge(patch)).await?;
                Ok(seen(&written))
            }
            Change::DeleteVirtualIP { address, uid, resource_version } => {
                let preconditions =
                    Preconditions { uid: Some(uid.clone()), resource_version: Some(resource_version.clone()) };
                let params = DeleteParams { preconditions: Some(preconditions), ..DeleteParams::default() };
                self.virtual_ips().delete(&api::virtual_ip_name(*address), &params).await?;
                Ok(Outcome::Done)
            }
            Change::RemoveClaim { address, resource_version, index, node } => {
                let at = format!("/status/claims/{index}");
                let patch = json!([
                    { "op": "test", "path": "/metadata/resourceVersion", "value": resource_version },
                    { "op": "test", "path": format!("{at}/node"), "value": node },
                    { "op": "remove", "path": at },
                ]);
                let patch = serde_json::from_value(patch).map_err(kube::Error::SerdeError)?;
                let name = api::virtual_ip_name(*address);
                Ok(seen(&self.virtual_ips().patch_status(&name, &ours(), &Patch::<()>::Json(patch)).await?))
            }
            Change::ServiceStatus(status) => {
                let services: Api<Service> = Api::namespaced(self.client.clone(), &status.namespace);
                let applied = Patch::Apply(service_status(status, Timestamp::now()));
                let written = services.patch_status(&status.name, &ours().force(), &applied).await?;
                Ok(Outcome::Service(ServiceView::from(&written)))
            }
            Change::ServiceEvent { event, .. } => {
                let events: Api<Event> = Api::namespaced(self.client.clone(), &event.namespace);
                events.create(&PostParams::default(), &to_event(event, Timestamp::now())).await?;
                Ok(Outcome::Done)
            }
            Change::PoolStatus { name, status } => {
                let pools: Api<IPPool> = Api::all(self.client.clone());
                let applied = json!({
                    "apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": { "name": name },
                    "status": stamped(status, Timestamp::now()),
                });
                pools.patch_status(name, &ours().force(), &Patch::Apply(applied)).await?;
                Ok(Outcome::Done)
            }
            Change::SpeakerOwner { node, node_uid, speaker_uid } => {
                let speakers: Api<Speaker> = Api::all(self.client.clone());
                let owner = json!({ "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid });
                let patch = json!({ "metadata": { "uid": speaker_uid, "ownerReferences": [owner] } });
                speakers.patch(node, &ours(), &Patch::Merge(patch)).await?;
                Ok(Outcome::Done)
            }
            Change::LeaseOwner { namespace, node, node_uid, lease_uid } => {
                let leases: Api<Lease> = Api::namespaced(self.client.clone(), namespace);
                let owner = json!({ "apiVersion": "v1", "kind": "Node", "name": node, "uid": node_uid });
                let patch = json!({ "metadata": { "uid": lease_uid, "ownerReferences": [owner] } });
                leases.patch(&api::speaker_lease_name(node), &ours(), &Patch::Merge(patch)).await?;
                Ok(Outcome::Done)
            }
        }
    }

    fn virtual_ips(&self) -> Api<VirtualIP> {
        Api::all(self.client.clone())
    }
}

fn ours() -> PatchParams {
    PatchParams { field_manager: Some(CONTROLLER_FIELD_MANAGER.to_owned()), ..PatchParams::default() }
}

fn name_of(spec: &VirtualIPSpec) -> String {
    spec.address.parse().map_or_else(|_| spec.address.clone(), api::virtual_ip_name)
}

fn seen(vip: &VirtualIP) -> Outcome {
    VirtualIPView::read(vip).map_or(Outcome::Done, Outcome::VirtualIP)
}

/// All of the status that is ours. What is left out of it is taken away where it was ours before.
fn service_status(status: &ServiceStatus, now: Timestamp) -> Value {
    let ingress: Vec<Value> =
        status.addresses.iter().map(|address| json!({ "ip": address, "ipMode": "VIP" })).collect();
    let condition = |wanted: &WantedCondition| {
        json!({
            "type": wanted.type_,
            "status": if wanted.status { "True" } else { "False" },
            "reason": wanted.reason,
            "message": wanted.message,
            "lastTransitionTime": wanted.since.clone().unwrap_or(Time(now)),
        })
    };
    let mut shown = json!({});
    if !status.conditions.is_empty() {
        // An empty list too: what another load balancer left there is nobody's any more.
        shown["loadBalancer"] = json!({ "ingress": ingress });
        shown["conditions"] = status.conditions.iter().map(condition).collect();
    }
    let mut applied = json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": {
            "name": status.name, "namespace": status.namespace,
            "uid": status.uid, "resourceVersion": status.resource_version,
        },
    });
    // Without the field altogether the API server forgets that we ever wrote there.
    if shown != json!({}) {
        applied["status"] = shown;
    }
    applied
}

fn stamped(status: &IPPoolStatus, now: Timestamp) -> IPPoolStatus {
    let mut status = status.clone();
    for condition in &mut status.conditions {
        if condition.last_transition_time.0 == Timestamp::UNIX_EPOCH {
            condition.last_transition_time = Time(now);
        }
    }
    status
}

fn to_event(event: &ServiceEvent, now: Timestamp) -> Event {
    let name = &event.name;
    // A note longer than 1024 bytes is refused.
    let note: String = event
        .message
        .chars()
        .scan(0, |bytes, letter| {
            *bytes += letter.len_utf8();
            (*bytes <= 1_000).then_some(letter)
        })
        .collect();
    Event {
        metadata: ObjectMeta {
            namespace: Some(event.namespace.clone()),
            // The name has to be a new one each time; names of Services are short enough.
            name: Some(format!("{name}.{:x}", now.as_nanosecond())),
            ..ObjectMeta::default()
        },
        action: Some("Announce".to_owned()),
        reason: Some(event.reason.to_owned()),
        note: Some(note),
        type_: Some(if event.warning { "Warning" } else { "Normal" }.to_owned()),
        event_time: Some(MicroTime(now)),
        reporting_controller: Some(format!("{}/controller", api::GROUP)),
        reporting_instance: Some(CONTROLLER_FIELD_MANAGER.to_owned()),
        regarding: Some(ObjectReference {
            api_version: Some("v1".to_owned()),
            kind: Some("Service".to_owned()),
            namespace: Some(event.namespace.clone()),
            name: Some(name.clone()),
            uid: Some(event.uid.clone()),
            ..ObjectReference::default()
        }),
        ..Event::default()
    }
}

fn what(change: &Change) -> String {
    match change {
        Change::CreateVirtualIP { spec } => format!("VirtualIP {} cannot be made", name_of(spec)),
        Change::UpdateVirtualIP { spec, .. } => format!("VirtualIP {} cannot be changed", name_of(spec)),
        Change::DeleteVirtualIP { address, .. } => format!("VirtualIP {address} cannot be removed"),
        Change::RemoveClaim { address, node, .. } => format!("the claim of {node} to {address} cannot be removed"),
        Change::ServiceStatus(status) => {
            format!("the status of Service {}/{} cannot be written", status.namespace, status.name)
        }
        Change::ServiceEvent { event, .. } => {
            format!("an event for Service {}/{} cannot be written", event.namespace, event.name)
        }
        Change::PoolStatus { name, .. } => format!("the status of IPPool {name} cannot be written"),
        Change::SpeakerOwner { node, .. } => format!("Speaker {node} cannot be tied to its Node"),
        Change::LeaseOwner { node, .. } => format!("the Lease of the speaker of {node} cannot be tied to its Node"),
    }
}
