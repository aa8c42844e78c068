//! The pages say what is: every reason is explained, in the words that the program uses; links lead somewhere; the tests and metrics
//! that they name exist; YAML is YAML.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::{BTreeMap, BTreeSet},
    fs,
    net::IpAddr,
    path::{Path, PathBuf},
};

use l2lb::{
    api::{AllocatedReason, AnnouncedReason, Claim, ClaimState, IPPool},
    controller::{
        conditions::{self, AddressFacts, AddressState, Endpoints, Problem},
        eligibility::{Candidate, Candidates, Eligible, Rejected, Rejection},
        placement::Decision,
        request,
    },
    ipam::{AllocateError, Family, Overlap},
    speaker::{drop_reason::DropReason, metrics::Metrics},
};
use serde::Deserialize as _;
use serde_json::{Value, json};

fn root() -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR"))
}

fn read(path: &str) -> String {
    fs::read_to_string(root().join(path)).unwrap_or_else(|error| panic!("{path}: {error}"))
}

fn no_address() -> String {
    read("docs/no-address.md")
}

/// All pages for users, by path.
fn pages() -> BTreeMap<PathBuf, String> {
    let mut pages = BTreeMap::new();
    for folder in ["", "docs", "examples"] {
        for entry in fs::read_dir(root().join(folder)).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "md") {
                pages.insert(path.clone(), fs::read_to_string(&path).unwrap());
            }
        }
    }
    assert!(pages.len() >= 6, "{:?}", pages.keys());
    pages
}

/// What stands below a heading, down to the next one of any level.
fn section<'a>(page: &'a str, heading: &str) -> Option<&'a str> {
    let start = page.find(&format!("\n### {heading}\n"))?;
    let body = &page[start + 1..];
    let body = &body[body.find('\n')? + 1..];
    Some(body.find("\n#").map_or(body, |end| &body[..end]))
}

#[test]
fn every_reason_is_explained_with_a_message_and_a_remedy() {
    let page = no_address();
    let allocated = AllocatedReason::ALL.iter().map(|reason| reason.as_str());
    let announced = AnnouncedReason::ALL.iter().map(|reason| reason.as_str());
    // Those two are not False.
    let good = ["Allocated", "Announced"];
    for reason in allocated.chain(announced).filter(|reason| !good.contains(reason)) {
        let section = section(&page, reason).unwrap_or_else(|| panic!("docs/no-address.md does not explain {reason}"));
        assert!(section.contains("\n> "), "{reason}: no example of a message");
        assert!(section.contains("*Remedy"), "{reason}: no remedy");
    }
}

/// A message as it stands in the section of its reason.
fn quoted(page: &str, reason: &str, message: &str) {
    let section = section(page, reason).unwrap_or_else(|| panic!("no section {reason}"));
    assert!(
        section.lines().any(|line| line == format!("> {message}")),
        "{reason}: the page does not show\n> {message}"
    );
}

#[test]
fn messages_about_addresses_are_quoted_as_they_are() {
    let page = no_address();
    let address: IpAddr = "192.0.2.90".parse().unwrap();
    let (taker, dns) = ("default/taker".to_owned(), "dns".to_owned());
    let pools = |names: &[&str]| names.iter().map(|name| (*name).to_owned()).collect::<Vec<_>>();
    for error in [
        AllocateError::Exhausted { family: Family::V4, pools: pools(&["gold", "lan"]) },
        AllocateError::NoSuchFamily { family: Family::V6, pools: pools(&["lan"]) },
        AllocateError::NotInPool { address: "203.0.113.9".parse().unwrap(), pools: pools(&["lan", "metal"]) },
        AllocateError::InUse { address, users: vec![taker.clone()] },
        AllocateError::NotShared { address, key: dns.clone(), users: vec![taker.clone()] },
        AllocateError::OtherKey { address, key: dns, users: vec![taker] },
        AllocateError::Full { address, max: 256 },
        AllocateError::OtherBackend { address, user: "default/dns-tcp".to_owned() },
        AllocateError::PortCollision {
            address,
            protocol: "TCP".to_owned(),
            port: 53,
            user: "default/dns-tcp".to_owned(),
        },
    ] {
        let problem = Problem::from(error);
        quoted(&page, problem.reason.as_str(), &problem.message);
    }
    for (annotation, field) in
        [("192.0.2.x", None), ("192.0.2.70", Some("192.0.2.71")), ("192.0.2.70,192.0.2.71", None)]
    {
        let annotations = BTreeMap::from([("l2lb.io/addresses".to_owned(), annotation.to_owned())]);
        quoted(&page, "InvalidRequest", &request::read(&annotations, field).unwrap_err());
    }
}

#[test]
fn messages_about_announcing_are_quoted_as_they_are() {
    let page = no_address();
    let claim: Claim = serde_json::from_value(json!({
        "node": "node1", "interface": "eth0", "mac": "02:00:00:00:01:01", "state": "Blocked", "placement": 1, "uid": "",
        "since": "2026-01-01T00:00:00Z", "conflictMAC": "02:aa:00:00:00:99",
    }))
    .unwrap();
    assert_eq!(claim.state, ClaimState::Blocked);
    let decision = Decision {
        assignments: serde_json::from_value(json!([{"node": "node1", "role": "Primary", "interface": "eth0"}]))
            .unwrap(),
        placement: 1,
    };
    let rejected = |reason| Rejected { reason, is_excluded: false, is_alive: true };
    let nobody = Eligible {
        fit: BTreeMap::new(),
        rejected: BTreeMap::from([
            ("node1".to_owned(), rejected(Rejection::Excluded)),
            ("node2".to_owned(), rejected(Rejection::NotReady)),
            ("node3".to_owned(), rejected(Rejection::NoInterface("eth0 has no link".to_owned()))),
        ]),
    };
    let node = Candidate {
        node: "node1".to_owned(),
        interfaces: vec!["eth0".to_owned()],
        weight: 0,
        unheard: BTreeSet::new(),
        heard: true,
    };
    let somebody = Eligible { fit: BTreeMap::from([("node1".to_owned(), node)]), rejected: BTreeMap::new() };
    let (nobody, somebody) = (Candidates::new(nobody.into(), None), Candidates::new(somebody.into(), None));
    let claims = [&claim];
    let facts = |candidates, claims, endpoints| AddressFacts {
        address: "192.0.2.64".parse().unwrap(),
        decision: &decision,
        candidates,
        claims,
        endpoints,
        conflicting_node: None,
    };
    let owner = Claim { state: ClaimState::Owner, conflict_mac: Some("02:00:00:00:01:02".to_owned()), ..claim.clone() };
    let owner = [&owner];
    let split = AddressFacts { conflicting_node: Some("node2"), ..facts(&somebody, &owner, None) };
    for facts in [
        split,
        facts(&nobody, &[], None),
        facts(&somebody, &[], Some(Endpoints::Unready)),
        facts(&somebody, &[], Some(Endpoints::Nowhere)),
        facts(&somebody, &[], Some(Endpoints::None)),
        facts(&somebody, &claims, None),
        facts(&somebody, &[], None),
    ] {
        match conditions::address_state(&facts) {
            AddressState::Silent(reason, message) => quoted(&page, reason.as_str(), &message),
            AddressState::Announced(text) => panic!("{text}"),
        }
    }
}

#[test]
fn messages_of_pools_are_quoted_as_they_are() {
    let page = no_address();
    let overlap =
        Overlap { older: "lan".to_owned(), younger: "new".to_owned(), range: "192.0.2.64-192.0.2.71".parse().unwrap() };
    let backward = "10.0.0.9-10.0.0.1".parse::<l2lb::ipam::AddressRange>().unwrap_err();
    let problem = format!("spec.addresses[1]: {backward}");
    let conflict: (IpAddr, Option<&str>) = ("192.0.2.64".parse().unwrap(), Some("02:aa:00:00:00:99"));
    for (_, reason, message) in [
        conditions::pool_ready(&[], &[&overlap], &[], &[]),
        conditions::pool_ready(&[problem], &[], &[], &[]),
        conditions::pool_ready(&[], &[], &["192.0.2.11 is an address of node node1 (eth0); it is not used"], &[]),
        conditions::pool_ready(&[], &[], &[], &[conflict]),
    ] {
        quoted(&page, &format!("Pool: {reason}"), &message);
    }
}

#[test]
fn every_reason_of_a_node_stands_in_the_table() {
    let page = no_address();
    let table = section(&page, "NoEligibleNode").unwrap();
    for rejection in [
        Rejection::OutOfService,
        Rejection::NoSpeaker,
        Rejection::SpeakerDead,
        Rejection::NotReady,
        Rejection::Excluded,
        Rejection::NotSelected,
        Rejection::DrainAsked,
        Rejection::Draining,
        Rejection::NoLocalEndpoint,
        Rejection::EndpointTerminating,
    ] {
        assert!(table.contains(&format!("| `{rejection}` |")), "the table of NoEligibleNode has no row `{rejection}`");
    }
}

/// The anchors of a page: its headings as web pages of repositories make them.
fn anchors(page: &str) -> BTreeSet<String> {
    let headings = without_code(page);
    let headings = headings.lines().filter(|line| line.starts_with('#'));
    headings
        .map(|line| {
            let text = line.trim_start_matches('#').trim().to_lowercase();
            let kept = text.chars().filter(|c| c.is_alphanumeric() || matches!(c, ' ' | '-' | '_'));
            kept.map(|c| if c == ' ' { '-' } else { c }).collect()
        })
        .collect()
}

fn without_code(page: &str) -> String {
    page.split("```").step_by(2).collect()
}

#[test]
fn links_lead_somewhere() {
    let pages = pages();
    let mut count = 0;
    for (path, page) in &pages {
        for link in without_code(page).split("](").skip(1).filter_map(|rest| Some(rest.split_once(')')?.0.to_owned())) {
            if link.starts_with("https://") {
                continue;
            }
            count += 1;
            let (file, anchor) = link.split_once('#').map_or((link.as_str(), None), |(file, at)| (file, Some(at)));
            let target = if file.is_empty() { path.clone() } else { path.parent().unwrap().join(file) };
            let target = target.canonicalize().unwrap_or_else(|_| panic!("{}: {link} leads nowhere", path.display()));
            if let Some(anchor) = anchor {
                let there = anchors(&fs::read_to_string(&target).unwrap());
                assert!(there.contains(anchor), "{}: {link}: no such heading", path.display());
            }
        }
    }
    assert!(count > 30, "only {count} links were found");
}

/// The speaker's metrics, as the pages name them: with and without what all have in common.
fn metrics() -> BTreeSet<String> {
    let mut registry = prometheus_client::registry::Registry::default();
    let _metrics = Metrics::register(&mut registry);
    let mut text = String::new();
    prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
    let mut names = BTreeSet::new();
    for line in text.lines().filter_map(|line| line.strip_prefix("# TYPE ")) {
        let (name, kind) = line.split_once(' ').unwrap();
        names.insert(name.strip_prefix("l2lb_speaker_").unwrap().to_owned());
        names.insert(if kind == "counter" { format!("{name}_total") } else { name.to_owned() });
    }
    names
}

/// The sources of all tests, but this file, which names tests itself.
fn sources_of_tests(folder: &Path, text: &mut String) {
    for entry in fs::read_dir(folder).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            sources_of_tests(&path, text);
        } else if path.extension().is_some_and(|extension| extension == "rs") && !path.ends_with("tests/docs.rs") {
            text.push_str(&fs::read_to_string(&path).unwrap());
        }
    }
}

#[test]
fn tests_and_metrics_that_the_pages_name_exist() {
    let (metrics, mut sources) = (metrics(), String::new());
    for folder in ["tests", "src"] {
        sources_of_tests(&root().join(folder), &mut sources);
    }
    let is_test = |name: &str| sources.contains(&format!("fn {name}(")) || sources.contains(&format!("(\"{name}\", "));
    let (mut tests, mut known) = (0, 0);
    for (path, page) in pages() {
        for code in without_code(&page).split('`').skip(1).step_by(2) {
            let (name, labels) = code.split_once('{').map_or((code, None), |(name, labels)| (name, Some(labels)));
            let is_word = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '_';
            if !name.contains('_') || !name.chars().all(is_word) {
                continue;
            }
            let place = format!("{}: `{code}`", path.display());
            if let Some(reason) = labels.and_then(|labels| labels.strip_prefix("reason=\"")?.strip_suffix("\"}")) {
                assert!(DropReason::ALL.iter().any(|one| one.as_str() == reason), "{place}: there is no such reason");
            }
            if metrics.contains(name) {
                known += 1;
            } else if is_test(name) {
                tests += 1;
            } else {
                assert!(
                    DropReason::ALL.iter().any(|one| one.as_str() == name),
                    "{place}: neither a test, nor a metric of the speaker, nor a reason to drop a frame"
                );
            }
        }
    }
    assert!(tests > 15 && known > 8, "only {tests} tests and {known} metrics were found");
}

fn documents(text: &str, place: &str) -> Vec<Value> {
    serde_norway::Deserializer::from_str(text)
        .map(|document| Value::deserialize(document).unwrap_or_else(|error| panic!("{place}: {error}\n{text}")))
        .collect()
}

#[test]
fn yaml_on_the_pages_and_in_the_examples_can_be_read() {
    let mut pools = 0;
    let mut check = |text: &str, place: &str| {
        for document in documents(text, place) {
            assert!(document["kind"].is_string() && document["metadata"]["name"].is_string(), "{place}: {document}");
            if document["kind"] == "IPPool" {
                serde_json::from_value::<IPPool>(document).unwrap_or_else(|error| panic!("{place}: {error}"));
                pools += 1;
            }
        }
    };
    for (path, page) in pages() {
        for block in page.split("```yaml\n").skip(1) {
            check(block.split("```").next().unwrap(), &path.display().to_string());
        }
    }
    for name in examples() {
        check(&read(&format!("examples/{name}")), &name);
    }
    assert!(pools >= 8, "only {pools} pools were found");
}

fn examples() -> BTreeSet<String> {
    let entries = fs::read_dir(root().join("examples")).unwrap();
    let names = entries.map(|entry| entry.unwrap().file_name().into_string().unwrap());
    names.filter(|name| Path::new(name).extension().is_some_and(|extension| extension == "yaml")).collect()
}

#[test]
fn every_example_is_listed() {
    let list = read("examples/README.md");
    for name in examples() {
        assert!(list.contains(&format!("[{name}]({name})")), "examples/README.md does not list {name}");
    }
}

#[test]
fn the_metallb_page_names_every_annotation_that_is_read() {
    let page = read("docs/metallb.md");
    for prefix in l2lb::api::METALLB_PREFIXES {
        assert!(page.contains(&format!("`{prefix}/`")), "{prefix}");
    }
    for name in [l2lb::api::ANNOTATION_POOL, l2lb::api::ANNOTATION_ADDRESSES, l2lb::api::ANNOTATION_SHARING_KEY] {
        assert!(page.contains(&format!("| `{name}` |")), "{name}");
    }
    // Every field of a pool has its place on the page.
    let pool: IPPool = serde_json::from_value(json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": {"name": "all"}, "spec": {
            "addresses": ["192.0.2.1"], "exclude": ["192.0.2.2"], "autoAssign": true, "avoidBuggyIPs": true, "priority": 1,
            "serviceSelector": {}, "namespaces": ["a"], "namespaceSelector": {},
            "announce": {"nodeSelector": {}, "interfaces": ["eth0"], "preferredNodes": [{"weight": 1, "selector": {}}]},
        },
    }))
    .unwrap();
    let spec = serde_json::to_value(&pool.spec).unwrap();
    let announce = spec["announce"].as_object().unwrap().keys().map(|name| format!("announce.{name}"));
    let fields = spec.as_object().unwrap().keys().filter(|name| *name != "announce").cloned().chain(announce);
    let mut count = 0;
    for field in fields {
        assert!(page.contains(&format!("`{field}`")), "docs/metallb.md does not name the pool's {field}");
        count += 1;
    }
    assert!(count >= 12, "only {count} fields were found");
}
