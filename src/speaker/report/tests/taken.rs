//! A claim that somebody took away is reported again, and no more often than that.

use super::*;

/// What the API server shows of the object in this version, as a watch delivers it.
fn seen(version: u64, claim: Option<&serde_json::Value>) -> Seen {
    let claim = claim.map(|claim| serde_json::from_value(claim.clone()).unwrap());
    Seen { vip: VIP, uid: "u".to_owned(), version: Some(version), claim }
}

/// The next write, which the API server takes and counts as this version. The claim that was written.
async fn take(server: &mut ApiServer, version: u64) -> serde_json::Value {
    let (line, body, respond) = request(server).await;
    assert!(line.contains("/virtualips/192.0.2.64/status?"), "{line}");
    respond.send_response(answer(200, &object(version, &body)));
    body["status"]["claims"][0].clone()
}

/// The object in this version, with what was written.
fn object(version: u64, body: &serde_json::Value) -> serde_json::Value {
    json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": "192.0.2.64", "uid": "u", "resourceVersion": version.to_string()},
        "spec": {"address": "192.0.2.64", "pool": "lan"}, "status": body["status"],
    })
}

/// A reporter whose claim was written as version 10.
async fn reported() -> (Arc<Reporter>, tokio::task::JoinHandle<()>, ApiServer, serde_json::Value) {
    let (reporter, _, writer, mut server) = writing_claims();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let claim = take(&mut server, 10).await;
    all_written(&reporter).await;
    (reporter, writer, server, claim)
}

async fn all_written(reporter: &Reporter) {
    let mut unwritten = reporter.unwritten.subscribe();
    timeout(Duration::from_secs(10), unwritten.wait_for(|count| *count == 0)).await.unwrap().unwrap();
}

#[tokio::test]
async fn a_claim_that_was_taken_away_is_reported_again_at_once() {
    let (reporter, writer, mut server, claim) = reported().await;
    reporter.handle_seen(seen(11, None), false);
    assert_eq!(take(&mut server, 12).await, claim, "with the same since");
    all_written(&reporter).await;
    reporter.handle_seen(seen(12, Some(&claim)), false);
    assert_eq!(*reporter.unwritten.borrow(), 0);
    writer.abort();
}

#[tokio::test]
async fn a_claim_that_somebody_rewrote_is_reported_again() {
    let (reporter, writer, mut server, claim) = reported().await;
    let mut edited = claim.clone();
    edited["state"] = "Yielded".into();
    reporter.handle_seen(seen(11, Some(&edited)), false);
    assert_eq!(take(&mut server, 12).await, claim);
    writer.abort();
}

#[tokio::test]
async fn what_the_watch_shows_late_is_no_reason_to_report() {
    let (reporter, writer, _server, claim) = reported().await;
    // Of before the write, of the write itself with the time rounded, of another object.
    reporter.handle_seen(seen(9, None), false);
    let mut rounded = claim.clone();
    rounded["since"] = "2026-01-01T00:00:00Z".into();
    reporter.handle_seen(seen(10, Some(&rounded)), false);
    reporter.handle_seen(Seen { uid: "other".to_owned(), ..seen(11, None) }, false);
    assert_eq!(*reporter.unwritten.borrow(), 0);
    writer.abort();
}

#[tokio::test]
async fn what_a_restored_etcd_never_had_is_reported_again() {
    let (reporter, writer, mut server, claim) = reported().await;
    reporter.handle_seen(seen(3, None), true);
    assert_eq!(take(&mut server, 4).await, claim);
    all_written(&reporter).await;
    reporter.handle_seen(seen(5, Some(&claim)), false);
    assert_eq!(*reporter.unwritten.borrow(), 0);
    writer.abort();
}

#[tokio::test]
async fn a_claim_taken_away_while_its_write_was_on_the_way_is_noticed() {
    let (reporter, _, writer, mut server) = writing_claims();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let (_, body, respond) = request(&mut server).await;
    reporter.handle_seen(seen(11, None), false);
    let object = json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": "192.0.2.64", "uid": "u", "resourceVersion": "10"},
        "spec": {"address": "192.0.2.64", "pool": "lan"},
    });
    respond.send_response(answer(200, &object));
    assert_eq!(take(&mut server, 12).await, body["status"]["claims"][0]);
    writer.abort();
}

#[tokio::test(start_paused = true)]
async fn one_that_is_taken_away_again_and_again_is_reported_ever_more_rarely() {
    let reporter = reporter();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let mut pauses = Vec::new();
    for version in 1..=9 {
        let late = Instant::now() + Duration::from_secs(3600);
        let (due, _) = reporter.take_due(late);
        assert_eq!(due.len(), 1);
        assert!(reporter.put_back(late, std::iter::empty()));
        reporter.handle_written(VIP, Written::Version(Some(2 * version)));
        // The pace of writing is another matter.
        let mut claims = reporter.claims();
        claims.known.get_mut(&VIP).unwrap().pace = Level::default();
        claims.pace = Level::default();
        drop(claims);
        let begun = Instant::now();
        reporter.handle_seen(seen(2 * version + 1, None), false);
        let (_, next) = reporter.take_due(begun - Duration::from_secs(1));
        pauses.push(next.unwrap().duration_since(begun).as_secs_f64().round());
    }
    assert_eq!(pauses, [0.0, 1.0, 2.0, 4.0, 8.0, 16.0, 32.0, 60.0, 60.0]);
}

#[tokio::test]
async fn what_is_no_part_of_this_node_any_more_is_not_reported_again() {
    let (reporter, writer, _server, _) = reported().await;
    reporter.keep_only(|_| false);
    reporter.handle_seen(seen(11, None), false);
    assert_eq!(*reporter.unwritten.borrow(), 0);
    writer.abort();
}

#[tokio::test]
async fn what_is_no_part_of_this_node_any_more_is_not_tried_again() {
    let (reporter, _, writer, mut server) = writing_claims();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let (_, _, respond) = request(&mut server).await;
    reporter.keep_only(|_| false);
    respond.send_response(failure(500));
    all_written(&reporter).await;
    assert!(reporter.claims().known.is_empty());
    writer.abort();
}

#[tokio::test]
async fn what_was_said_while_an_older_claim_was_written_is_what_is_reported_again() {
    let (reporter, _, writer, mut server) = writing_claims();
    reporter.claim(VIP, &nic(), None, report(ClaimState::Owner));
    let (_, body, respond) = request(&mut server).await;
    reporter.claim(VIP, &nic(), Some(MacAddr(2, 0, 0, 0, 1, 1)), report(ClaimState::Yielded));
    respond.send_response(answer(200, &object(10, &body)));
    let newer = take(&mut server, 11).await;
    assert_eq!((&newer["state"], &newer["mac"]), (&json!("Yielded"), &json!("02:00:00:00:01:01")));
    all_written(&reporter).await;
    // What stands there is the older one: somebody put it back.
    reporter.handle_seen(seen(12, Some(&body["status"]["claims"][0])), false);
    assert_eq!(take(&mut server, 13).await, newer);
    writer.abort();
}
