//! The status of a Pod as the lab's kubelet reports it. Pure.

use std::net::IpAddr;

use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use serde_json::{Value, json};

/// What is known of one container.
#[derive(Clone, Debug, PartialEq)]
pub struct ContainerView {
    /// What it does.
    pub state: ContainerState,
    /// How the run before this one ended.
    pub last: Option<ContainerState>,
    /// Whether its readiness probe succeeds.
    pub ready: bool,
    /// How often it was started again.
    pub restarts: i32,
}

impl ContainerView {
    /// A container that has not been started yet.
    pub fn new(restarts: i32) -> Self {
        let state = ContainerState::Waiting { reason: "ContainerCreating", message: String::new() };
        Self { state, last: None, ready: false, restarts }
    }
}

/// What a container does.
#[derive(Clone, Debug, PartialEq)]
pub enum ContainerState {
    /// Not started: why.
    Waiting {
        /// One word.
        reason: &'static str,
        /// A sentence.
        message: String,
    },
    /// Running since.
    Running(Time),
    /// Ended.
    Ended {
        /// Exit code; 128 + signal if it was killed.
        code: i32,
        /// When it was started.
        started: Time,
        /// When it ended.
        finished: Time,
    },
}

impl ContainerState {
    fn json(&self) -> Value {
        match self {
            Self::Waiting { reason, message } => json!({"waiting": {"reason": reason, "message": message}}),
            Self::Running(since) => json!({"running": {"startedAt": since}}),
            Self::Ended { code, started, finished } => {
                let reason = if *code == 0 { "Completed" } else { "Error" };
                json!({"terminated": {"exitCode": code, "reason": reason, "startedAt": started, "finishedAt": finished}})
            }
        }
    }
}

/// The phase of a Pod with these containers; `restarts` says whether ended containers are started again.
fn phase(containers: &[ContainerView], restarts: bool) -> &'static str {
    let code = |view: &ContainerView| match view.state {
        ContainerState::Ended { code, .. } => Some(code),
        _ => None,
    };
    let ended: Vec<i32> = containers.iter().filter_map(code).collect();
    if !restarts && ended.len() == containers.len() {
        return if ended.iter().all(|code| *code == 0) { "Succeeded" } else { "Failed" };
    }
    let begun = |view: &ContainerView| view.restarts > 0 || !matches!(view.state, ContainerState::Waiting { .. });
    if containers.iter().all(begun) { "Running" } else { "Pending" }
}

/// A merge patch with the whole status. It holds the Pod's uid, so that it cannot hit a later Pod of the same name.
pub fn patch(pod: &Pod, host_ips: &[IpAddr], pod_ips: &[IpAddr], since: &Time, containers: &[ContainerView]) -> Value {
    let spec = pod.spec.clone().unwrap_or_default();
    let restarts = spec.restart_policy.as_deref().unwrap_or("Always") == "Always";
    let ready = containers.iter().all(|view| view.ready);
    let condition = |kind: &str, holds: bool| {
        let status = if holds { "True" } else { "False" };
        // The transition time is the API server's to compare; people see it only.
        let before = pod.status.iter().flat_map(|status| status.conditions.iter().flatten()).find(|c| c.type_ == kind);
        let at = before.filter(|c| c.status == status).and_then(|c| c.last_transition_time.clone());
        let at = at.unwrap_or_else(|| Time(k8s_openapi::jiff::Timestamp::now()));
        json!({"type": kind, "status": status, "lastTransitionTime": at})
    };
    let statuses: Vec<Value> = spec
        .containers
        .iter()
        .zip(containers)
        .map(|(container, view)| {
            json!({
                "name": container.name,
                "image": container.image.clone().unwrap_or_default(),
                "imageID": "",
                "ready": view.ready,
                "started": matches!(view.state, ContainerState::Running(_)),
                "restartCount": view.restarts,
                "state": view.state.json(),
                "lastState": view.last.as_ref().map_or_else(|| json!({}), ContainerState::json),
            })
        })
        .collect();
    let list = |ips: &[IpAddr]| -> Vec<Value> { ips.iter().map(|ip| json!({"ip": ip})).collect() };
    json!({
        "metadata": {"uid": pod.metadata.uid},
        "status": {
            "phase": phase(containers, restarts),
            "hostIP": host_ips.first(),
            "hostIPs": list(host_ips),
            "podIP": pod_ips.first(),
            "podIPs": list(pod_ips),
            "startTime": since,
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", true),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
            "containerStatuses": statuses,
        },
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn now() -> Time {
        Time(k8s_openapi::jiff::Timestamp::UNIX_EPOCH)
    }

    fn ended(code: i32) -> ContainerView {
        let state = ContainerState::Ended { code, started: now(), finished: now() };
        ContainerView { state, ..ContainerView::new(0) }
    }

    fn running(ready: bool) -> ContainerView {
        ContainerView { state: ContainerState::Running(now()), ready, ..ContainerView::new(0) }
    }

    #[test]
    fn phases() {
        assert_eq!(phase(&[ContainerView::new(0)], true), "Pending");
        assert_eq!(phase(&[running(false)], true), "Running");
        assert_eq!(phase(&[running(false), ContainerView::new(0)], true), "Pending");
        assert_eq!(phase(&[ContainerView::new(1)], true), "Running");
        assert_eq!(phase(&[ended(0)], false), "Succeeded");
        assert_eq!(phase(&[ended(0), ended(1)], false), "Failed");
        assert_eq!(phase(&[ended(0)], true), "Running");
    }

    #[test]
    fn a_pod_is_ready_when_all_of_its_containers_are() {
        let pod: Pod = serde_json::from_value(json!({"spec": {"containers": [{"name": "a"}, {"name": "b"}]}})).unwrap();
        let ready = |views: &[ContainerView]| {
            let patch = patch(&pod, &[[10, 0, 0, 1].into()], &[], &now(), views);
            patch["status"]["conditions"][3]["status"].as_str().unwrap().to_owned()
        };
        assert_eq!(ready(&[running(true), running(false)]), "False");
        assert_eq!(ready(&[running(true), running(true)]), "True");
    }
}
