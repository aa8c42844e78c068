use super::*;
use crate::speaker::owner::Epoch;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);

fn reporter() -> Reporter {
    Reporter::new(Arc::from("node1"))
}

fn report(state: ClaimState) -> Report {
    Report { state, reason: String::new(), conflict_mac: None, epoch: Epoch { uid: Arc::from("u"), placement: 1 } }
}

#[tokio::test]
async fn probing_that_ends_soon_is_never_written() {
    let reporter = reporter();
    reporter.claim(VIP, "eth0", None, report(ClaimState::Probing));
    let (due, next) = reporter.take_due(Instant::now());
    assert!(due.is_empty() && next.is_some());
    reporter.claim(VIP, "eth0", None, report(ClaimState::Owner));
    let (due, next) = reporter.take_due(Instant::now());
    assert_eq!(due.iter().map(|(_, claim)| claim.state).collect::<Vec<_>>(), [ClaimState::Owner]);
    assert_eq!(next, None);
}

#[tokio::test]
async fn probing_that_lasts_is_written() {
    let reporter = reporter();
    reporter.claim(VIP, "eth0", None, report(ClaimState::Probing));
    let (due, _) = reporter.take_due(Instant::now() + HOLD_PROBING);
    assert_eq!(due.len(), 1);
}

#[tokio::test]
async fn the_same_state_keeps_its_since() {
    let reporter = reporter();
    reporter.claim(VIP, "eth0", None, report(ClaimState::Owner));
    let (first, _) = reporter.take_due(Instant::now());
    let later = Report { epoch: Epoch { uid: Arc::from("u"), placement: 2 }, ..report(ClaimState::Owner) };
    reporter.claim(VIP, "eth0", None, later);
    let (second, _) = reporter.take_due(Instant::now());
    assert_eq!(first[0].1.since, second[0].1.since);
    assert_eq!(second[0].1.placement, 2);
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
