//! Table tests of who can announce an address.

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
        default_route_ipv6: false,
        unheard: Vec::new(),
        announces: true,
        reason: String::new(),
        announces_ipv6: true,
        reason_ipv6: String::new(),
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
        out_of_service: false,
        drain_asked: false,
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
}

fn good() -> Case {
    Case { node: node("n"), speaker: Some(speaker("n")), alive: true, announce: AnnounceView::default() }
}

fn found(case: &Case, address: IpAddr) -> Eligible {
    let facts = NodeFacts { node: &case.node, speaker: case.speaker.as_ref(), alive: case.alive, heard: true };
    eligible(&Question { address, announce: &case.announce }, [facts])
}

#[test]
fn every_filter_says_why() {
    type Break = fn(&mut Case);
    let table: [(Break, &str); 10] = [
        (|case| case.node.out_of_service = true, "it has the taint node.kubernetes.io/out-of-service"),
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
        (|case| case.node.drain_asked = true, "it has the annotation l2lb.io/drain"),
        (|case| case.speaker.as_mut().unwrap().draining = true, "its speaker is draining"),
        (|case| case.announce.interfaces = vec!["lan*".to_owned()], "no interface is named lan*"),
        (|case| case.speaker.as_mut().unwrap().interfaces[0].carrier = false, "eth0 has no link"),
    ];
    assert!(!Candidates::new(Arc::new(found(&good(), address())), None).is_empty());
    for (break_it, sentence) in table {
        let mut case = good();
        break_it(&mut case);
        let found = found(&case, address());
        assert!(found.fit.is_empty(), "{sentence}");
        assert_eq!(found.rejected["n"].reason.to_string(), sentence);
    }
}

#[test]
fn a_node_out_of_service_is_dead_whatever_its_speaker_says() {
    let mut case = good();
    case.node.out_of_service = true;
    assert!(!found(&case, address()).rejected["n"].is_alive);
    case.node.out_of_service = false;
    case.node.drain_asked = true;
    assert!(found(&case, address()).rejected["n"].is_alive);
}

#[test]
fn a_node_that_is_dead_as_well_is_excluded_all_the_same() {
    let mut case = good();
    case.node.labels.insert(EXCLUDE_LABEL.to_owned(), String::new());
    case.alive = false;
    let rejected = &found(&case, address()).rejected["n"];
    assert_eq!((&rejected.reason, rejected.is_excluded), (&Rejection::SpeakerDead, true));
}

#[test]
fn weights_of_all_preferences_that_select_a_node_add_up() {
    let mut case = good();
    case.node.labels.insert("rack".to_owned(), "1".to_owned());
    case.announce.preferred = vec![(50, selector("rack", "1")), (7, selector("rack", "1")), (9, selector("rack", "2"))];
    assert_eq!(found(&case, address()).fit["n"].weight, 57);
}

fn names(nodes: &[&str]) -> BTreeSet<String> {
    nodes.iter().map(|node| (*node).to_owned()).collect()
}

/// The nodes of these names are eligible.
fn fit(nodes: &[&str]) -> Arc<Eligible> {
    let candidate = |node: &&str| ((*node).to_owned(), Candidate::plain(node));
    Arc::new(Eligible { fit: nodes.iter().map(candidate).collect(), rejected: BTreeMap::new() })
}

fn local(ready: &[&str], terminating: &[&str]) -> Option<LocalEndpoints> {
    Some(LocalEndpoints { ready: names(ready), terminating: names(terminating) })
}

#[test]
fn with_policy_local_nodes_with_a_ready_endpoint_go_before_those_whose_last_one_terminates() {
    let candidates = Candidates::new(fit(&["a", "b", "c"]), local(&["b"], &["a"]));
    assert_eq!(candidates.fit().map(|node| node.node.as_str()).collect::<Vec<_>>(), ["b"]);
    let reasons: Vec<String> = candidates.rejections().map(|(node, why)| format!("{node}: {why}")).collect();
    assert_eq!(
        reasons,
        [
            "a: its last serving endpoint is terminating (externalTrafficPolicy: Local)",
            "c: it has no serving endpoint (externalTrafficPolicy: Local)",
        ]
    );
    // Nobody has a ready one that could announce: kube-proxy still serves where one terminates.
    let candidates = Candidates::new(fit(&["a", "c"]), local(&["b"], &["a"]));
    assert_eq!(candidates.fit().map(|node| node.node.as_str()).collect::<Vec<_>>(), ["a"]);
    assert!(Candidates::new(fit(&["a", "b"]), local(&[], &[])).is_empty());
}

#[test]
fn services_that_share_an_address_share_the_nodes_that_serve_both() {
    let one = local(&["a", "b"], &["c", "d"]).unwrap();
    let other = local(&["a", "c"], &["b"]).unwrap();
    assert_eq!(Some(one.and(&other)), local(&["a"], &["b", "c"]));
    assert_eq!(one.and(&other), other.and(&one));
}

#[test]
fn of_a_node_that_nobody_knows_nothing_is_wanted() {
    let candidates = Candidates::new(fit(&["a"]), None);
    assert!(candidates.is_excluded("gone") && !candidates.may_answer("gone"));
    assert_eq!(candidates.rejection("gone"), None);
    assert!(!candidates.is_excluded("a") && candidates.may_answer("a"));
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
    let error = "no interface has the address in its subnet, and there is no default route";
    assert_eq!(choose(&[], &[lone]), Err(error.to_owned()));
    let mute =
        NetworkInterface { announces: false, reason: "it is a bridge port".to_owned(), ..nic("eth0", "192.0.2.1/24") };
    assert_eq!(choose(&[], &[mute]), Err("eth0 cannot announce: it is a bridge port".to_owned()));
}

#[test]
fn for_an_ipv6_address_its_own_subnets_and_default_route_count() {
    let address: IpAddr = "2001:db8:1::64".parse().unwrap();
    let choose = |interfaces: &[NetworkInterface]| eligible_interfaces(address, &[], interfaces);
    let with = |name: &str, addresses: &[&str]| {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        NetworkInterface { addresses, ..nic(name, "") }
    };
    let lan = with("eth0", &["192.0.2.11/24", "2001:db8:1::11/64", "fe80::11/64"]);
    // By DHCPv6 an address comes without its subnet, which routers announce.
    let mut uplink = with("eth1", &["198.51.100.1/24", "2001:db8:2::1/128", "fe80::1/64"]);
    uplink.default_route = true;
    let nowhere = "no interface has the address in its subnet, and there is no IPv6 default route";
    assert_eq!(choose(&[uplink.clone(), lan.clone()]), Ok(vec!["eth0".to_owned()]));
    assert_eq!(choose(std::slice::from_ref(&uplink)), Err(nowhere.to_owned()), "that is the default route of IPv4");
    uplink.default_route_ipv6 = true;
    assert_eq!(choose(std::slice::from_ref(&uplink)), Ok(vec!["eth1".to_owned()]));
    let link_local = "fe80::64".parse().unwrap();
    assert_eq!(eligible_interfaces(link_local, &[], &[lan.clone(), uplink.clone()]), Ok(vec!["eth1".to_owned()]));
    let mut off = lan;
    (off.announces_ipv6, off.reason_ipv6) = (false, "IPv6 is turned off on it".to_owned());
    let because = "eth0 cannot announce IPv6 addresses: IPv6 is turned off on it";
    assert_eq!(choose(&[off.clone(), uplink]), Err(because.to_owned()), "another segment is no replacement");
    // As Linux does it: without IPv6, without its addresses.
    off.addresses.truncate(1);
    assert_eq!(choose(std::slice::from_ref(&off)), Err(format!("{nowhere}; {because}")));
    assert_eq!(eligible_interfaces("192.0.2.64".parse().unwrap(), &[], &[off]), Ok(vec!["eth0".to_owned()]));
}

#[test]
fn an_interface_that_has_the_address_alone_is_no_segment() {
    // As kube-proxy's IPVS mode does it, and as some clouds give a node its address.
    let mut ipvs = nic("kube-ipvs0", "192.0.2.64/32");
    (ipvs.announces, ipvs.reason) = (false, "it belongs to a program".to_owned());
    let lan = nic("eth0", "192.0.2.11/24");
    assert_eq!(eligible_interfaces(address(), &[], &[ipvs.clone(), lan]), Ok(vec!["eth0".to_owned()]));
    let mut uplink = nic("eth1", "198.51.100.1/24");
    uplink.default_route = true;
    assert_eq!(eligible_interfaces(address(), &[], &[ipvs, uplink]), Ok(vec!["eth1".to_owned()]));
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
        ("a*a", "a", false),
        ("*ab*b", "aab", false),
        ("ü*", "über", true),
    ] {
        assert_eq!(matches_glob(glob, name), matches, "{glob} {name}");
    }
}

#[test]
fn many_stars_are_no_trouble() {
    assert!(!matches_glob(&format!("{}b", "*".repeat(64)), &"a".repeat(64)));
    assert!(!matches_glob(&format!("{}b", "*a".repeat(20)), &"a".repeat(64)));
}

#[test]
fn whom_the_interface_does_not_hear_counts_and_not_whom_another_does_not() {
    let mut case = good();
    let interface =
        |name: &str, unheard: &str| NetworkInterface { unheard: vec![unheard.to_owned()], ..nic(name, "192.0.2.1/24") };
    let interfaces = vec![interface("eth0", "n2"), interface("eth1", "n3")];
    case.speaker = case.speaker.map(|speaker| SpeakerView { interfaces, ..speaker });
    assert_eq!(found(&case, address()).fit["n"].unheard, names(&["n2"]));
}
