//! Table tests of the choice of a node.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::core::Selector;

use super::*;

fn nic(name: &str, address: &str) -> NetworkInterface {
    NetworkInterface {
        name: name.to_owned(),
        mac: "02:00:00:00:00:01".to_owned(),
        addresses: vec![address.to_owned()],
        carrier: true,
        default_route: false,
        announces: true,
        reason: String::new(),
    }
}

fn node(name: &str) -> NodeView {
    NodeView {
        name: name.to_owned(),
        uid: format!("uid-{name}"),
        labels: BTreeMap::new(),
        ready: true,
        addresses: Vec::new(),
        pod_ranges: Vec::new(),
    }
}

fn speaker(name: &str) -> SpeakerView {
    SpeakerView {
        node: name.to_owned(),
        uid: String::new(),
        interfaces: vec![nic("eth0", "192.0.2.11/24")],
        draining: false,
        owner_nodes: BTreeSet::new(),
    }
}

fn selector(key: &str, value: &str) -> Selector {
    let labels = BTreeMap::from([(key.to_owned(), value.to_owned())]);
    LabelSelector { match_labels: Some(labels), match_expressions: None }.try_into().unwrap()
}

fn address() -> IpAddr {
    "192.0.2.64".parse().unwrap()
}

struct Case {
    node: NodeView,
    speaker: Option<SpeakerView>,
    alive: bool,
    announce: AnnounceView,
    local: Option<BTreeSet<String>>,
}

fn good() -> Case {
    Case { node: node("n"), speaker: Some(speaker("n")), alive: true, announce: AnnounceView::default(), local: None }
}

#[test]
fn every_filter_says_why() {
    type Break = fn(&mut Case);
    let table: [(Break, &str); 9] = [
        (|case| case.speaker = None, "no speaker runs there"),
        (|case| case.alive = false, "its speaker has not renewed its Lease for 15 s"),
        (|case| case.node.ready = false, "the Node is not Ready"),
        (
            |case| {
                case.node.labels.insert(EXCLUDE_LABEL.to_owned(), String::new());
            },
            "it has the label node.kubernetes.io/exclude-from-external-load-balancers",
        ),
        (
            |case| case.announce.node_selector = Some(selector("rack", "1")),
            "the pool's announce.nodeSelector does not select it",
        ),
        (|case| case.speaker.as_mut().unwrap().draining = true, "its speaker is draining"),
        (|case| case.announce.interfaces = vec!["lan*".to_owned()], "no interface is named lan*"),
        (|case| case.speaker.as_mut().unwrap().interfaces[0].carrier = false, "eth0 has no link"),
        (|case| case.local = Some(BTreeSet::new()), "it has no serving endpoint (externalTrafficPolicy: Local)"),
    ];
    for (break_it, sentence) in table {
        let mut case = good();
        break_it(&mut case);
        let question = Question { address: address(), announce: &case.announce, local_nodes: case.local.as_ref() };
        let facts = NodeFacts { node: &case.node, speaker: case.speaker.as_ref(), alive: case.alive, load: 0 };
        let found = candidates(&question, [facts]);
        assert!(found.fit.is_empty(), "{sentence}");
        assert_eq!(found.rejected["n"].reason.to_string(), sentence);
    }
}

#[test]
fn an_ipv6_address_says_that_nobody_announces_it() {
    let case = good();
    let question = Question { address: "2001:db8::1".parse().unwrap(), announce: &case.announce, local_nodes: None };
    let facts = NodeFacts { node: &case.node, speaker: case.speaker.as_ref(), alive: true, load: 0 };
    let candidates = candidates(&question, [facts]);
    assert!(candidates.fit.is_empty());
    assert_eq!(candidates.rejected["n"].reason.to_string(), "speakers do not announce IPv6 addresses yet");
}

#[test]
fn a_node_that_is_dead_as_well_is_excluded_all_the_same() {
    let mut case = good();
    case.node.labels.insert(EXCLUDE_LABEL.to_owned(), String::new());
    let question = Question { address: address(), announce: &case.announce, local_nodes: None };
    let facts = NodeFacts { node: &case.node, speaker: case.speaker.as_ref(), alive: false, load: 0 };
    let rejected = &candidates(&question, [facts]).rejected["n"];
    assert_eq!((&rejected.reason, rejected.is_excluded), (&Rejection::SpeakerDead, true));
}

#[test]
fn candidates_come_by_preference_then_load_then_name() {
    let (mut preferred, plain, busy) = (node("c"), node("b"), node("a"));
    preferred.labels.insert("rack".to_owned(), "1".to_owned());
    let speakers = [speaker("a"), speaker("b"), speaker("c")];
    let announce = AnnounceView { preferred: vec![(50, selector("rack", "1"))], ..AnnounceView::default() };
    let question = Question { address: address(), announce: &announce, local_nodes: None };
    let facts = |node, speaker, load| NodeFacts { node, speaker: Some(speaker), alive: true, load };
    let found = candidates(
        &question,
        [facts(&busy, &speakers[0], 3), facts(&plain, &speakers[1], 2), facts(&preferred, &speakers[2], 9)],
    );
    let order: Vec<&str> = found.fit.iter().map(|candidate| candidate.node.as_str()).collect();
    assert_eq!(order, ["c", "b", "a"]);
}

#[test]
fn the_interface_is_named_or_holds_the_address_or_has_the_default_route() {
    let mut uplink = nic("eth1", "198.51.100.1/24");
    uplink.default_route = true;
    let lan = nic("eth0", "192.0.2.11/24");
    let all = [uplink.clone(), lan.clone()];
    let globs = |texts: &[&str]| texts.iter().map(|text| (*text).to_owned()).collect::<Vec<_>>();
    let choose =
        |texts: &[&str], interfaces: &[NetworkInterface]| eligible_interfaces(address(), &globs(texts), interfaces);
    assert_eq!(choose(&[], &all), Ok(vec!["eth0".to_owned()]));
    assert_eq!(choose(&[], std::slice::from_ref(&uplink)), Ok(vec!["eth1".to_owned()]));
    assert_eq!(choose(&["eth1", "eth*"], &all), Ok(vec!["eth1".to_owned(), "eth0".to_owned()]));
    assert_eq!(choose(&["*1"], &all), Ok(vec!["eth1".to_owned()]));
    // The interface of the right segment is down: another segment is no replacement.
    let down = NetworkInterface { carrier: false, ..lan };
    assert_eq!(choose(&[], &[uplink, down]), Err("eth0 has no link".to_owned()));
    let lone = nic("eth2", "198.51.100.1/24");
    let error = "no interface has 192.0.2.64 in its subnet, and there is no default route";
    assert_eq!(choose(&[], &[lone]), Err(error.to_owned()));
    let mute =
        NetworkInterface { announces: false, reason: "it is a bridge port".to_owned(), ..nic("eth0", "192.0.2.1/24") };
    assert_eq!(choose(&[], &[mute]), Err("eth0 cannot announce: it is a bridge port".to_owned()));
}

#[test]
fn a_star_stands_for_any_characters() {
    for (glob, name, matches) in [
        ("eth0", "eth0", true),
        ("eth0", "eth01", false),
        ("eth*", "eth", true),
        ("*", "anything", true),
        ("en*s*", "enp3s0", true),
        ("en*s*1", "enp3s0", false),
        ("*.100", "bond0.100", true),
    ] {
        assert_eq!(matches_glob(glob, name), matches, "{glob} {name}");
    }
}

fn fit(nodes: &[&str]) -> Candidates {
    let candidate = |node: &&str| Candidate { node: (*node).to_owned(), interfaces: vec!["eth0".to_owned()] };
    Candidates { fit: nodes.iter().map(candidate).collect(), rejected: BTreeMap::new() }
}

fn but(mut candidates: Candidates, node: &str, reason: Rejection) -> Candidates {
    let is_excluded = matches!(reason, Rejection::Excluded | Rejection::NotSelected | Rejection::NoNode);
    let is_alive = !matches!(reason, Rejection::NoNode | Rejection::NoSpeaker | Rejection::SpeakerDead);
    candidates.rejected.insert(node.to_owned(), Rejected { reason, is_excluded, is_alive });
    candidates
}

fn decided(placement: i64, entries: &[(&str, Role)]) -> Decision {
    let entry = |(node, role): &(&str, Role)| Assignment {
        node: (*node).to_owned(),
        role: *role,
        interface: "eth0".to_owned(),
    };
    Decision { assignments: entries.iter().map(entry).collect(), placement }
}

fn claim(node: &str, placement: i64, arrival: u64) -> OwnerClaim {
    OwnerClaim { node: node.to_owned(), placement, arrival }
}

fn alone(_: &str) -> BTreeSet<String> {
    BTreeSet::new()
}

use Role::{Leaving, Primary, Standby};

#[test]
fn the_first_choice_has_two_standbys() {
    let decision = assign(&Decision::default(), &[], &fit(&["a", "b", "c", "d"]), alone);
    assert_eq!(decision, decided(1, &[("a", Primary), ("b", Standby), ("c", Standby)]));
}

#[test]
fn the_owner_stays_while_it_can_and_a_returning_node_takes_nothing_back() {
    let current = decided(4, &[("c", Primary), ("b", Standby)]);
    let decision = assign(&current, &[claim("c", 4, 1)], &fit(&["a", "b", "c"]), alone);
    assert_eq!(decision, decided(4, &[("c", Primary), ("b", Standby), ("a", Standby)]));
}

#[test]
fn a_dead_primary_is_replaced_by_its_first_standby_at_once() {
    let current = decided(1, &[("a", Primary), ("c", Standby), ("b", Standby)]);
    let candidates = but(fit(&["b", "c"]), "a", Rejection::SpeakerDead);
    let decision = assign(&current, &[claim("a", 1, 1)], &candidates, alone);
    assert_eq!(decision, decided(2, &[("c", Primary), ("b", Standby)]));
}

#[test]
fn a_living_owner_leaves_only_after_the_new_one_has_claimed() {
    let current = decided(1, &[("a", Primary), ("b", Standby)]);
    let candidates = but(fit(&["b", "c"]), "a", Rejection::Draining);
    let claims = [claim("a", 1, 1)];
    let moving = assign(&current, &claims, &candidates, alone);
    assert_eq!(moving, decided(2, &[("b", Primary), ("c", Standby), ("a", Leaving)]));
    assert_eq!(assign(&moving, &claims, &candidates, alone), moving);
    let claims = [claim("a", 1, 1), claim("b", 2, 2)];
    let moved = assign(&moving, &claims, &candidates, alone);
    assert_eq!(moved, decided(2, &[("b", Primary), ("c", Standby)]));
}

#[test]
fn when_the_target_of_a_move_dies_another_is_named_and_the_old_owner_goes_on() {
    let moving = decided(2, &[("b", Primary), ("c", Standby), ("a", Leaving)]);
    let candidates = but(but(fit(&["c", "d"]), "a", Rejection::Draining), "b", Rejection::SpeakerDead);
    let decision = assign(&moving, &[claim("a", 1, 1)], &candidates, alone);
    assert_eq!(decision, decided(3, &[("c", Primary), ("d", Standby), ("a", Leaving)]));
}

#[test]
fn a_standby_that_took_over_becomes_primary_under_the_same_placement() {
    let current = decided(3, &[("a", Primary), ("b", Standby)]);
    let claims = [claim("a", 3, 1), claim("b", 3, 2)];
    let decision = assign(&current, &claims, &fit(&["a", "b"]), alone);
    assert_eq!(decision, decided(3, &[("b", Primary), ("a", Standby)]));
    // Its claim speaks of an earlier placement: no fact to adopt.
    let decision = assign(&current, &[claim("b", 2, 9)], &fit(&["a", "b"]), alone);
    assert_eq!(decision.primary(), Some("a"));
}

#[test]
fn of_two_claims_read_at_once_the_primarys_counts() {
    let current = decided(3, &[("b", Primary), ("a", Standby)]);
    let decision = assign(&current, &[claim("a", 3, 1), claim("b", 3, 1)], &fit(&["a", "b"]), alone);
    assert_eq!(decision.primary(), Some("b"));
}

#[test]
fn without_candidates_everything_stays_except_what_the_administrator_excluded() {
    let current = decided(5, &[("a", Primary), ("b", Standby)]);
    let dark = but(but(Candidates::default(), "a", Rejection::SpeakerDead), "b", Rejection::SpeakerDead);
    assert_eq!(assign(&current, &[], &dark, alone), current);
    let draining = but(but(Candidates::default(), "a", Rejection::Draining), "b", Rejection::NotReady);
    assert_eq!(assign(&current, &[claim("a", 5, 1)], &draining, alone), current);
    let excluded = but(but(Candidates::default(), "a", Rejection::Excluded), "b", Rejection::SpeakerDead);
    assert_eq!(assign(&current, &[claim("a", 5, 1)], &excluded, alone), decided(5, &[("b", Standby)]));
}

#[test]
fn placements_go_on_above_every_claim() {
    let current = decided(2, &[("a", Primary)]);
    let candidates = but(fit(&["b"]), "a", Rejection::SpeakerDead);
    assert_eq!(assign(&current, &[claim("a", 41, 1)], &candidates, alone).placement, 42);
}

#[test]
fn the_standbys_of_one_primary_are_few_nodes() {
    let partners = |_: &str| ["d", "e", "f"].iter().map(|node| (*node).to_owned()).collect();
    let decision = assign(&Decision::default(), &[], &fit(&["a", "b", "c", "d", "e", "f"]), partners);
    assert_eq!(decision, decided(1, &[("a", Primary), ("d", Standby), ("e", Standby)]));
    // Partners that cannot stand by use up no place.
    let decision = assign(&Decision::default(), &[], &fit(&["a", "b", "c"]), partners);
    assert_eq!(decision, decided(1, &[("a", Primary), ("b", Standby), ("c", Standby)]));
}

#[test]
fn an_interface_that_can_no_longer_announce_is_left_under_a_new_placement() {
    let current = decided(1, &[("a", Primary)]);
    let elsewhere = Candidates {
        fit: vec![Candidate { node: "a".to_owned(), interfaces: vec!["eth1".to_owned()] }],
        rejected: BTreeMap::new(),
    };
    let decision = assign(&current, &[], &elsewhere, alone);
    assert_eq!((decision.placement, decision.assignments[0].interface.as_str()), (2, "eth1"));
}
