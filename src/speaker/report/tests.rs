mod taken;

use http::{Request, Response};
use kube::client::Body;
use prometheus_client::registry::Registry;
use tower_test::mock::{Handle, SendResponse};

use super::*;
use crate::speaker::owner::Epoch;

const VIP: IpAddr = IpAddr::V4(std::net::Ipv4Addr::new(192, 0, 2, 64));

fn reporter() -> Reporter {
    Reporter::new(Arc::from("node1"))
}

fn nic() -> Arc<str> {
    Arc::from("eth0")
}

fn report(state: ClaimState) -> Report {
    Report { state, reason: "".into(), conflict_mac: None, epoch: Epoch { uid: Arc::from("u"), placement: 1 } }
}

#[tokio::test(start_paused = true)]
async fn probing_that_ends_soon_is_never_written() {
    let reporter = reporter();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Probing));
    let (due, next) = reporter.take_due(Instant::now());
    assert!(due.is_empty() && next.is_some());
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let (due, next) = reporter.take_due(Instant::now());
    assert_eq!(due.iter().map(|(_, said)| said.report.state).collect::<Vec<_>>(), [ClaimState::Owner]);
    assert_eq!(next, None);
}

#[tokio::test(start_paused = true)]
async fn claims_that_change_all_the_time_are_written_at_a_bounded_pace_and_the_last_one_counts() {
    let reporter = reporter();
    let begun = Instant::now();
    let (mut written, mut last) = (Vec::new(), None);
    // A thousand changes each second, as whoever sends frames at that rate might provoke.
    for millisecond in 0..10_000u32 {
        let now = begun + Duration::from_millis(millisecond.into());
        let state = if millisecond % 2 == 0 { ClaimState::Yielded } else { ClaimState::Owner };
        reporter.claim(VIP, &nic(), None, report(state));
        let (due, next) = reporter.take_due(now);
        written.extend(due);
        last = next;
    }
    assert!((10..=16).contains(&written.len()), "{}", written.len());
    let next = last.expect("the newest one waits");
    assert!(next <= begun + Duration::from_secs(12), "{:?}", next - begun);
    let (due, _) = reporter.take_due(next);
    assert_eq!(due.iter().map(|(_, said)| said.report.state).collect::<Vec<_>>(), [ClaimState::Owner]);
    // Another address does not wait for that.
    reporter.claim("192.0.2.65".parse().unwrap(), &nic(), None, report(ClaimState::Owner));
    assert_eq!(reporter.take_due(next).0.len(), 1);
}

#[tokio::test]
async fn thousands_of_addresses_are_reported_at_once_and_no_more_than_a_hundred_a_second_for_ever() {
    let reporter = reporter();
    // Later than all that is reported while the test runs.
    let begun = Instant::now() + Duration::from_secs(600);
    let vip = |index: u32| IpAddr::from((0x0a00_0000 + index).to_be_bytes());
    let mut written = Vec::new();
    for second in 0..60u64 {
        for index in 0..5_000 {
            reporter.claim(vip(index), &nic(), None, report(ClaimState::Owner));
        }
        written.push(reporter.take_due(begun + Duration::from_secs(second)).0.len());
    }
    assert_eq!(written[..3], [5_000; 3]);
    assert!(written[10..].iter().all(|count| *count <= 101), "{written:?}");
    assert!(written.iter().all(|count| *count > 0), "{written:?}");
}

#[tokio::test]
async fn probing_that_lasts_is_written() {
    let reporter = reporter();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Probing));
    let (due, _) = reporter.take_due(Instant::now() + HOLD_PROBING);
    assert_eq!(due.len(), 1);
}

#[tokio::test]
async fn of_an_address_without_a_part_in_it_nothing_is_written_any_more() {
    let reporter = reporter();
    let other = IpAddr::from([192, 0, 2, 65]);
    for vip in [VIP, other] {
        reporter.claim(vip, &nic(), None, report(ClaimState::Yielded));
    }
    reporter.keep_only(|vip| vip == other);
    assert_eq!(*reporter.unwritten.borrow(), 1);
    let (due, _) = reporter.take_due(Instant::now());
    assert_eq!(due.iter().map(|(vip, _)| *vip).collect::<Vec<_>>(), [other]);
}

#[tokio::test]
async fn a_claim_that_cannot_be_written_does_not_delay_another() {
    let (reporter, _, writer, mut server) = writing_claims();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let (_, _, respond) = request(&mut server).await;
    respond.send_response(failure(500));
    reporter.claim(IpAddr::from([192, 0, 2, 65]), &nic(), None, report(ClaimState::Owner));
    let (line, _, respond) = request(&mut server).await;
    assert!(line.contains("192.0.2.65"), "{line}");
    respond.send_response(failure(404));
    // The first one is not forgotten for that.
    let (line, _, respond) = request(&mut server).await;
    assert!(line.contains("192.0.2.64"), "{line}");
    respond.send_response(failure(404));
    let mut unwritten = reporter.unwritten.subscribe();
    timeout(Duration::from_secs(10), unwritten.wait_for(|count| *count == 0)).await.unwrap().unwrap();
    writer.abort();
}

#[tokio::test(start_paused = true)]
async fn a_renewal_that_hangs_is_given_up_in_time_for_another_one() {
    let (client, mut server) = client();
    let renewal = tokio::spawn(async move {
        let (heartbeat, metrics) = (Heartbeat::new(), Metrics::register(&mut Registry::default()));
        // The loop is not what this is about.
        heartbeat.beat(std::time::Instant::now() + Duration::from_secs(3600));
        reporter().renew_lease(Api::namespaced(client, "l2lb-system"), &heartbeat, &metrics).await;
    });
    let begun = Instant::now();
    let (line, _, hanging) = request(&mut server).await;
    assert!(line.contains("/namespaces/l2lb-system/leases/l2lb-speaker-node1?"), "{line}");
    let (_, lease, _second) = request(&mut server).await;
    assert_eq!(lease["spec"]["holderIdentity"], "node1");
    let left = Duration::from_secs(LEASE_SECONDS as u64) - RENEW;
    assert!(begun.elapsed() + RENEWAL_TIMEOUT < left, "{:?}", begun.elapsed());
    drop(hanging);
    renewal.abort();
}

#[tokio::test(start_paused = true)]
async fn the_lease_of_a_speaker_whose_loop_stands_still_is_not_renewed() {
    let (client, mut server) = client();
    let heartbeat = Arc::new(Heartbeat::silent_for(2 * RENEW));
    let beats = heartbeat.clone();
    let renewal = tokio::spawn(async move {
        let metrics = Metrics::register(&mut Registry::default());
        reporter().renew_lease(Api::namespaced(client, "l2lb-system"), &beats, &metrics).await;
    });
    let lease = timeout(Duration::from_secs(60), server.next_request()).await;
    assert!(lease.is_err(), "nothing is answered for");
    heartbeat.beat(std::time::Instant::now() + Duration::from_secs(3600));
    let (line, _, _answer) = request(&mut server).await;
    assert!(line.contains("/leases/l2lb-speaker-node1?"), "{line}");
    renewal.abort();
}

#[tokio::test]
async fn the_same_state_keeps_its_since() {
    let reporter = reporter();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let (first, _) = reporter.take_due(Instant::now());
    let later = Report { epoch: Epoch { uid: Arc::from("u"), placement: 2 }, ..report(ClaimState::Owner) };
    reporter.claim(VIP, &nic(), None, later);
    let (second, _) = reporter.take_due(Instant::now());
    assert_eq!(first[0].1.since, second[0].1.since);
    assert_eq!(second[0].1.report.epoch.placement, 2);
}

#[test]
fn the_ready_condition_says_what_is_wrong_and_since_when() {
    let mut ready = None;
    let mut report = SelfReport::default();
    let none = status_of(&report, &mut ready);
    assert_eq!((none.conditions[0].status.as_str(), none.conditions[0].reason.as_str()), ("False", "NoInterface"));
    report.interfaces.push(NetworkInterface {
        name: "eth0".to_owned(),
        mac: String::new(),
        addresses: vec![],
        carrier: true,
        default_route: true,
        default_route_ipv6: true,
        unheard: Vec::new(),
        announces_ipv6: true,
        reason_ipv6: String::new(),
        announces: true,
        reason: String::new(),
    });
    let good = status_of(&report, &mut ready);
    assert_eq!((good.conditions[0].status.as_str(), good.announcing.as_str()), ("True", "eth0"));
    assert_eq!(status_of(&report, &mut ready), good, "nothing new, nothing written");
    report.troubles.push("eth1: there is no interface eth1 on this node".to_owned());
    let bad = status_of(&report, &mut ready);
    assert_eq!(bad.conditions[0].status, "False");
    assert!(bad.conditions[0].message.contains("eth1"));
}

type ApiServer = Handle<Request<Body>, Response<Body>>;

/// The next request: method, path with query, and body.
async fn request(server: &mut ApiServer) -> (String, serde_json::Value, SendResponse<Response<Body>>) {
    let next = timeout(Duration::from_secs(10), server.next_request()).await;
    let (request, respond) = next.expect("a request in time").expect("a client");
    let line = format!("{} {}", request.method(), request.uri());
    let body = request.into_body().collect_bytes().await.unwrap();
    (line, serde_json::from_slice(&body).unwrap(), respond)
}

fn answer(status: u16, body: &serde_json::Value) -> Response<Body> {
    Response::builder().status(status).body(Body::from(serde_json::to_vec(body).unwrap())).unwrap()
}

fn failure(status: u16) -> Response<Body> {
    let reason = if status == 404 { "NotFound" } else { "InternalError" };
    let body = json!({"kind": "Status", "apiVersion": "v1", "status": "Failure", "code": status, "reason": reason, "message": reason});
    answer(status, &body)
}

/// A reporter whose claims are being written, with what it counts and the API server that they go to.
fn writing_claims() -> (Arc<Reporter>, Metrics, tokio::task::JoinHandle<()>, ApiServer) {
    let (client, server) = client();
    let reporter = Arc::new(reporter());
    let metrics = Metrics::register(&mut Registry::default());
    let writer = tokio::spawn({
        let (reporter, metrics) = (reporter.clone(), metrics.clone());
        async move { reporter.write_claims(Api::all(client), &metrics).await }
    });
    (reporter, metrics, writer, server)
}

fn client() -> (Client, ApiServer) {
    let (service, server) = tower_test::mock::pair::<Request<Body>, Response<Body>>();
    (Client::new(service, "default"), server)
}

#[tokio::test]
async fn a_claim_is_applied_by_its_own_manager_to_that_object_only_until_it_is_written() {
    let (reporter, metrics, writer, mut server) = writing_claims();
    reporter.claim(VIP, &nic(), Some(MacAddr(2, 0, 0, 0, 1, 1)), report(ClaimState::Owner));

    let (line, body, respond) = request(&mut server).await;
    assert!(line.starts_with("PATCH /apis/l2lb.io/v1alpha1/virtualips/192.0.2.64/status?"), "{line}");
    assert!(line.contains("fieldManager=l2lb-speaker-node1") && line.contains("force=true"), "{line}");
    assert_eq!(body["metadata"], json!({"name": "192.0.2.64", "uid": "u"}));
    let claim = &body["status"]["claims"][0];
    assert_eq!((&claim["node"], &claim["mac"]), (&json!("node1"), &json!("02:00:00:00:01:01")));
    respond.send_response(failure(500));

    // Tried again, with what is true by then.
    reporter.claim(VIP, &nic(), None, report(ClaimState::Yielded));
    let (_, body, respond) = request(&mut server).await;
    assert_eq!(body["status"]["claims"][0]["state"], "Yielded");
    assert_eq!(body["status"]["claims"].as_array().unwrap().len(), 1);
    // The object is gone: nothing is left to say.
    respond.send_response(failure(404));
    let mut unwritten = reporter.unwritten.subscribe();
    timeout(Duration::from_secs(10), unwritten.wait_for(|count| *count == 0)).await.unwrap().unwrap();
    assert!(metrics.api_write_errors.get() == 1 && reporter.take_due(Instant::now()).0.is_empty());
    writer.abort();
}

#[tokio::test]
async fn a_speaker_object_that_is_missing_is_made() {
    let (client, mut server) = client();
    let writer = tokio::spawn(async move {
        apply_speaker(&Api::all(client), "l2lb-speaker-node1", "node1", &SpeakerStatus::default()).await
    });
    let (line, _, respond) = request(&mut server).await;
    assert!(line.starts_with("PATCH /apis/l2lb.io/v1alpha1/speakers/node1/status?"), "{line}");
    respond.send_response(failure(404));
    for path in ["/speakers/node1?", "/speakers/node1/status?"] {
        let (line, body, respond) = request(&mut server).await;
        assert!(line.contains(path), "{line}");
        let object =
            json!({"apiVersion": body["apiVersion"], "kind": "Speaker", "metadata": {"name": "node1"}, "spec": {}});
        respond.send_response(answer(200, &object));
    }
    writer.await.unwrap().unwrap();
}
