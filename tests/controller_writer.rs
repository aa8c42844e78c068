//! The controller's writer against a mocked API server: what exactly goes over the wire, and what becomes of each answer.

#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use http::{Method, Request, Response, StatusCode};
use http_body_util::BodyExt as _;
use kube::{Client, client::Body};
use l2lb::{
    api::{Assignment, FailoverClass, Role, VirtualIPSpec},
    controller::{
        change::{Change, ServiceEvent, ServiceStatus, WantedCondition},
        index::Outcome,
        leadership::{Election, Leadership, Record},
        writer::Writer,
    },
};
use serde_json::{Value, json};

/// What was asked.
struct Asked {
    method: Method,
    path: String,
    query: String,
    content_type: String,
    body: Value,
}

/// Carries out one change against an API server that gives this answer.
async fn write(change: Change, status: StatusCode, answer: Value) -> (Asked, Outcome, Option<String>) {
    let (mock, mut handle) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    let writer = Writer::new(Client::new(mock, "default"));
    let server = async move {
        let (request, respond) = handle.next_request().await.unwrap();
        let (parts, body) = request.into_parts();
        let body = body.collect().await.unwrap().to_bytes();
        let asked = Asked {
            method: parts.method,
            path: parts.uri.path().to_owned(),
            query: parts.uri.query().unwrap_or_default().to_owned(),
            content_type: parts.headers.get("content-type").map(|v| v.to_str().unwrap().to_owned()).unwrap_or_default(),
            body: if body.is_empty() { Value::Null } else { serde_json::from_slice(&body).unwrap() },
        };
        let answer = Body::from(serde_json::to_vec(&answer).unwrap());
        respond.send_response(Response::builder().status(status).body(answer).unwrap());
        asked
    };
    let (asked, (outcome, failure)) = tokio::join!(server, writer.write(leadership(), &change));
    (asked, outcome, failure.map(|failure| failure.sentence))
}

fn refusal(code: StatusCode, reason: &str) -> Value {
    json!({ "kind": "Status", "apiVersion": "v1", "status": "Failure", "code": code.as_u16(), "reason": reason, "message": reason })
}

fn spec() -> VirtualIPSpec {
    VirtualIPSpec {
        address: "2001:db8::1".to_owned(),
        pool: "lan".to_owned(),
        services: vec!["default/web".to_owned()],
        failover: FailoverClass::Standard,
        placement: 3,
        assignments: vec![Assignment { node: "node1".to_owned(), role: Role::Primary, interface: "eth0".to_owned() }],
    }
}

fn vip(version: &str) -> Value {
    json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP",
        "metadata": { "name": "2001-db8-0-0-0-0-0-1", "uid": "u1", "resourceVersion": version },
        "spec": spec(),
    })
}

fn service_status(addresses: &[&str], conditions: Vec<WantedCondition>) -> Change {
    Change::ServiceStatus(ServiceStatus {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: "u2".to_owned(),
        resource_version: "8".to_owned(),
        addresses: addresses.iter().map(|address| address.parse().unwrap()).collect(),
        conditions,
        event: None,
    })
}

fn service() -> Value {
    json!({
        "apiVersion": "v1", "kind": "Service",
        "metadata": { "name": "web", "namespace": "default", "uid": "u2", "resourceVersion": "9" },
        "spec": { "type": "LoadBalancer" },
    })
}

#[tokio::test]
async fn a_virtual_ip_is_made_with_its_assignments_and_labels_in_one_write() {
    let (asked, outcome, _) = write(Change::CreateVirtualIP { spec: spec() }, StatusCode::CREATED, vip("7")).await;
    assert_eq!((asked.method, asked.path.as_str()), (Method::POST, "/apis/l2lb.io/v1alpha1/virtualips"));
    assert!(asked.query.contains("fieldManager=l2lb-controller"), "{}", asked.query);
    assert_eq!(asked.body["metadata"]["name"], "2001-db8-0-0-0-0-0-1");
    assert_eq!(asked.body["metadata"]["labels"], json!({ "node.l2lb.io/node1": "primary" }));
    assert_eq!(asked.body["spec"], json!(spec()));
    let Outcome::VirtualIP(view) = outcome else { panic!("{outcome:?}") };
    assert_eq!(view.resource_version, "7");
}

#[tokio::test]
async fn a_virtual_ip_is_changed_only_in_the_state_that_the_change_was_derived_from() {
    let change = || Change::UpdateVirtualIP {
        resource_version: "7".to_owned(),
        spec: spec(),
        stale_labels: vec!["node.l2lb.io/node2".to_owned()],
    };
    let (asked, outcome, _) = write(change(), StatusCode::OK, vip("8")).await;
    assert_eq!((asked.method, asked.content_type.as_str()), (Method::PATCH, "application/merge-patch+json"));
    let labels = json!({ "node.l2lb.io/node1": "primary", "node.l2lb.io/node2": null });
    assert_eq!(asked.body["metadata"], json!({ "resourceVersion": "7", "labels": labels }));
    assert_eq!(asked.body["spec"], json!(spec()));
    assert!(matches!(outcome, Outcome::VirtualIP(_)));
    let (_, outcome, failure) = write(change(), StatusCode::CONFLICT, refusal(StatusCode::CONFLICT, "Conflict")).await;
    assert_eq!((outcome, failure), (Outcome::Conflict, None));
}

#[tokio::test]
async fn a_virtual_ip_is_removed_only_if_it_is_still_this_one() {
    let change = Change::DeleteVirtualIP {
        address: "2001:db8::1".parse().unwrap(),
        uid: "u1".to_owned(),
        resource_version: "7".to_owned(),
    };
    let (asked, outcome, _) = write(change, StatusCode::OK, vip("8")).await;
    assert_eq!(asked.method, Method::DELETE);
    assert_eq!(asked.path, "/apis/l2lb.io/v1alpha1/virtualips/2001-db8-0-0-0-0-0-1");
    assert_eq!(asked.body["preconditions"], json!({ "uid": "u1", "resourceVersion": "7" }));
    assert_eq!(outcome, Outcome::Done);
}

#[tokio::test]
async fn a_claim_is_taken_away_under_tests() {
    let change = || Change::RemoveClaim {
        address: "2001:db8::1".parse().unwrap(),
        resource_version: "7".to_owned(),
        index: 1,
        node: "node2".to_owned(),
    };
    let (asked, outcome, _) = write(change(), StatusCode::OK, vip("8")).await;
    assert_eq!(asked.path, "/apis/l2lb.io/v1alpha1/virtualips/2001-db8-0-0-0-0-0-1/status");
    assert_eq!(asked.content_type, "application/json-patch+json");
    assert_eq!(
        asked.body,
        json!([
            { "op": "test", "path": "/metadata/resourceVersion", "value": "7" },
            { "op": "test", "path": "/status/claims/1/node", "value": "node2" },
            { "op": "remove", "path": "/status/claims/1" },
        ])
    );
    assert!(matches!(outcome, Outcome::VirtualIP(_)));
    let invalid = refusal(StatusCode::UNPROCESSABLE_ENTITY, "Invalid");
    let (_, outcome, failure) = write(change(), StatusCode::UNPROCESSABLE_ENTITY, invalid).await;
    assert_eq!((outcome, failure), (Outcome::Conflict, None));
}

#[tokio::test]
async fn a_speaker_and_its_lease_are_tied_to_the_node_if_they_are_still_these() {
    let owner = json!([{ "apiVersion": "v1", "kind": "Node", "name": "node1", "uid": "u-node" }]);
    let change = Change::LeaseOwner {
        namespace: "l2lb-system".to_owned(),
        node: "node1".to_owned(),
        node_uid: "u-node".to_owned(),
        lease_uid: "u-lease".to_owned(),
    };
    let lease = json!({ "metadata": { "name": "l2lb-speaker-node1", "namespace": "l2lb-system" } });
    let (asked, outcome, _) = write(change, StatusCode::OK, lease).await;
    let path = "/apis/coordination.k8s.io/v1/namespaces/l2lb-system/leases/l2lb-speaker-node1";
    assert_eq!((asked.method, asked.path.as_str()), (Method::PATCH, path));
    assert_eq!(asked.content_type, "application/merge-patch+json");
    assert_eq!(asked.body, json!({ "metadata": { "uid": "u-lease", "ownerReferences": owner } }));
    assert_eq!(outcome, Outcome::Done);
    let change = Change::SpeakerOwner {
        node: "node1".to_owned(),
        node_uid: "u-node".to_owned(),
        speaker_uid: "u-speaker".to_owned(),
    };
    let conflict = refusal(StatusCode::CONFLICT, "Conflict");
    let (asked, outcome, _) = write(change, StatusCode::CONFLICT, conflict).await;
    assert_eq!(asked.path, "/apis/l2lb.io/v1alpha1/speakers/node1");
    assert_eq!(asked.body, json!({ "metadata": { "uid": "u-speaker", "ownerReferences": owner } }));
    assert_eq!(outcome, Outcome::Conflict);
}

#[tokio::test]
async fn a_service_shows_addresses_and_both_conditions_after_one_server_side_apply() {
    let since = serde_json::from_value(json!("2026-01-01T00:00:00Z")).unwrap();
    let condition =
        |type_, since| WantedCondition { type_, status: true, reason: "Announced", message: "who".to_owned(), since };
    let conditions = vec![condition("l2lb.io/Allocated", Some(since)), condition("l2lb.io/Announced", None)];
    let (asked, outcome, _) = write(service_status(&["192.0.2.64"], conditions), StatusCode::OK, service()).await;
    assert_eq!((asked.method, asked.path.as_str()), (Method::PATCH, "/api/v1/namespaces/default/services/web/status"));
    assert_eq!(asked.content_type, "application/apply-patch+yaml");
    assert!(
        asked.query.contains("force=true") && asked.query.contains("fieldManager=l2lb-controller"),
        "{}",
        asked.query
    );
    // Neither a later Service of that name nor one that was changed meanwhile is touched.
    let metadata = json!({ "name": "web", "namespace": "default", "uid": "u2", "resourceVersion": "8" });
    assert_eq!(asked.body["metadata"], metadata);
    let ingress = json!({ "ingress": [{ "ip": "192.0.2.64", "ipMode": "VIP" }] });
    assert_eq!(asked.body["status"]["loadBalancer"], ingress);
    let conditions = &asked.body["status"]["conditions"];
    let kept = json!({
        "type": "l2lb.io/Allocated", "status": "True", "reason": "Announced", "message": "who",
        "lastTransitionTime": "2026-01-01T00:00:00Z",
    });
    assert_eq!(conditions[0], kept);
    assert_ne!(conditions[1]["lastTransitionTime"], conditions[0]["lastTransitionTime"]);
    let Outcome::Service(view) = outcome else { panic!("{outcome:?}") };
    assert_eq!(view.resource_version, "9");
}

#[tokio::test]
async fn a_service_that_is_ours_no_more_is_applied_without_a_status() {
    let (asked, ..) = write(service_status(&[], Vec::new()), StatusCode::OK, service()).await;
    assert_eq!(asked.body.get("status"), None);
}

#[tokio::test]
async fn a_service_that_has_no_address_shows_none_whoever_wrote_one_there() {
    let condition = WantedCondition {
        type_: "l2lb.io/Allocated",
        status: false,
        reason: "PoolExhausted",
        message: "why".to_owned(),
        since: None,
    };
    let (asked, ..) = write(service_status(&[], vec![condition]), StatusCode::OK, service()).await;
    assert_eq!(asked.body["status"]["loadBalancer"], json!({ "ingress": [] }));
}

#[tokio::test]
async fn a_service_that_is_gone_is_no_failure() {
    let gone = refusal(StatusCode::NOT_FOUND, "NotFound");
    let (_, outcome, failure) = write(service_status(&[], Vec::new()), StatusCode::NOT_FOUND, gone).await;
    assert_eq!((outcome, failure), (Outcome::Conflict, None));
}

#[tokio::test]
async fn an_event_fits_what_the_api_server_takes() {
    let event = ServiceEvent {
        namespace: "default".to_owned(),
        name: "web".to_owned(),
        uid: "u2".to_owned(),
        warning: true,
        reason: "NoEligibleNode",
        message: "ü".repeat(4_000),
    };
    let change = Change::ServiceEvent { number: 1, event };
    let answer =
        json!({ "metadata": { "name": "web.1", "namespace": "default" }, "eventTime": "2026-01-01T00:00:00.000000Z" });
    let (asked, outcome, failure) = write(change, StatusCode::CREATED, answer).await;
    assert_eq!(asked.path, "/apis/events.k8s.io/v1/namespaces/default/events");
    assert!(asked.body["note"].as_str().unwrap().len() <= 1_024);
    assert_eq!((asked.body["type"].as_str(), asked.body["reason"].as_str()), (Some("Warning"), Some("NoEligibleNode")));
    assert_eq!(asked.body["regarding"]["uid"], "u2");
    assert_eq!((outcome, failure), (Outcome::Done, None));
}

#[tokio::test]
async fn what_cannot_be_written_is_said_in_a_sentence_with_its_remedy() {
    for (code, reason, hint) in [
        (StatusCode::FORBIDDEN, "Forbidden", "the controller's ClusterRole does not allow it"),
        (StatusCode::NOT_FOUND, "NotFound", "the CustomResourceDefinitions are missing"),
        (StatusCode::INTERNAL_SERVER_ERROR, "InternalError", "VirtualIP 2001-db8-0-0-0-0-0-1 cannot be made: "),
    ] {
        let change = Change::CreateVirtualIP { spec: spec() };
        let (_, outcome, failure) = write(change, code, refusal(code, reason)).await;
        assert_eq!(outcome, Outcome::Failed);
        assert!(failure.as_ref().unwrap().contains(hint), "{failure:?}");
    }
}

/// The right to write, got as the program gets it: the API server took the Lease that this process wrote.
fn leadership() -> Leadership {
    let now = tokio::time::Instant::now();
    let record = Record { holder: "me".to_owned(), resource_version: "1".to_owned(), transitions: 0 };
    let mut election = Election::new("me".to_owned());
    election.handle_held(now, record);
    election.standing().leadership(now).expect("a Lease held just now")
}
