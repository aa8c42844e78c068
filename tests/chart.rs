//! The chart by itself: it lints, its schema refuses mistakes, and it gives the program exactly the flags that the program has.
//! That the API server takes its objects and that their rights suffice is shown by `tests/cluster/`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use std::{
    collections::BTreeSet,
    path::{Path, PathBuf},
    process::{Command, Output},
};

use serde::Deserialize as _;
use serde_json::Value;

fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

fn helm() -> PathBuf {
    let output = Command::new(repository().join("lab/kit/build.sh")).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    Path::new(String::from_utf8(output.stdout).unwrap().trim()).join("helm")
}

fn template(set: &[&str]) -> Output {
    let mut command = Command::new(helm());
    command.args(["template", "l2lb", "charts/l2lb", "-n", "l2lb-system", "--kube-version", "1.36.0"]);
    set.iter().for_each(|value| {
        command.args(["--set", value]);
    });
    command.current_dir(repository()).output().unwrap()
}

fn rendered(set: &[&str]) -> Vec<Value> {
    let output = template(set);
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stderr));
    serde_norway::Deserializer::from_slice(&output.stdout)
        .map(|document| Value::deserialize(document).unwrap())
        .filter(|object| !object.is_null())
        .collect()
}

fn of_kind<'a>(objects: &'a [Value], kind: &str) -> &'a Value {
    objects.iter().find(|object| object["kind"] == kind).unwrap_or_else(|| panic!("the chart has a {kind}"))
}

fn container(objects: &[Value], kind: &str) -> Value {
    of_kind(objects, kind)["spec"]["template"]["spec"]["containers"][0].clone()
}

#[test]
fn it_lints() {
    let output =
        Command::new(helm()).args(["lint", "--strict", "charts/l2lb"]).current_dir(repository()).output().unwrap();
    assert!(output.status.success(), "{}", String::from_utf8_lossy(&output.stdout));
}

#[test]
fn a_kubernetes_older_than_the_supported_ones_is_refused() {
    let render = |version: &str| {
        let arguments = ["template", "l2lb", "charts/l2lb", "--kube-version", version];
        Command::new(helm()).args(arguments).current_dir(repository()).output().unwrap()
    };
    assert!(render("1.33.0").status.success());
    let refused = render("1.32.9");
    assert!(!refused.status.success() && String::from_utf8_lossy(&refused.stderr).contains("kubeVersion"));
}

#[test]
fn the_schema_refuses_mistakes() {
    for (mistake, named) in [
        ("speaker.refreshInterval=60", "refreshInterval"),
        ("speaker.refreshIntervalSeconds=0", "refreshIntervalSeconds"),
        ("controller.healthPort=70000", "healthPort"),
        ("controller.rebalanceMovesPerMinute=-1", "rebalanceMovesPerMinute"),
        ("log.format=xml", "format"),
    ] {
        let output = template(&[mistake]);
        assert!(!output.status.success(), "{mistake} is taken");
        let message = String::from_utf8_lossy(&output.stderr).into_owned();
        assert!(message.contains(named), "{mistake}: {message}");
    }
}

/// The environment variables that `l2lb <role> --help` names.
fn variables_of(role: &str) -> BTreeSet<String> {
    let output = Command::new(env!("CARGO_BIN_EXE_l2lb")).args([role, "--help"]).output().unwrap();
    let help = String::from_utf8(output.stdout).unwrap();
    help.split("[env: ").skip(1).map(|rest| rest[..rest.find('=').unwrap()].to_owned()).collect()
}

#[test]
fn the_chart_sets_every_flag_that_the_program_has_and_no_other() {
    let objects = rendered(&["loadBalancerClass=example.com/l2"]);
    for (kind, role) in [("Deployment", "controller"), ("DaemonSet", "speaker")] {
        let container = container(&objects, kind);
        assert_eq!(container["args"], serde_json::json!([role]));
        let set: BTreeSet<String> = container["env"]
            .as_array()
            .unwrap()
            .iter()
            .map(|entry| entry["name"].as_str().unwrap().to_owned())
            // The C library's, not the program's.
            .filter(|name| !name.starts_with("MALLOC_"))
            .collect();
        assert_eq!(set, variables_of(role), "{role}");
    }
}

#[test]
fn a_speaker_is_given_a_minute_and_time_to_answer_before_it_is_restarted() {
    let probe = container(&rendered(&[]), "DaemonSet")["livenessProbe"].clone();
    let number = |field: &str| probe[field].as_u64().unwrap();
    assert!(number("periodSeconds") * number("failureThreshold") >= 60, "{probe}");
    assert!(number("timeoutSeconds") >= 5, "{probe}");
}

#[test]
fn privileges_are_as_promised() {
    let objects = rendered(&[]);
    let speaker = container(&objects, "DaemonSet");
    assert_eq!(speaker["securityContext"]["capabilities"], serde_json::json!({"drop": ["ALL"], "add": ["NET_RAW"]}));
    let controller = container(&objects, "Deployment");
    assert_eq!(controller["securityContext"]["capabilities"], serde_json::json!({"drop": ["ALL"]}));
    for container in [&speaker, &controller] {
        assert_eq!(container["securityContext"]["readOnlyRootFilesystem"], true);
        assert_eq!(container["securityContext"]["allowPrivilegeEscalation"], false);
    }
    assert_eq!(of_kind(&objects, "Deployment")["spec"]["template"]["spec"]["securityContext"]["runAsNonRoot"], true);
}

/// Server-side apply and merge patches are `patch`; only the election Lease and nothing else is replaced (`update`).
#[test]
fn nobody_may_write_more_than_the_program_writes() {
    let objects = rendered(&[]);
    let mut writes: Vec<String> = Vec::new();
    for object in objects.iter().filter(|object| object["kind"] == "ClusterRole" || object["kind"] == "Role") {
        let (kind, name) = (object["kind"].as_str().unwrap(), object["metadata"]["name"].as_str().unwrap());
        for rule in object["rules"].as_array().unwrap() {
            let words = |field: &str| -> Vec<String> {
                rule[field].as_array().unwrap().iter().map(|word| word.as_str().unwrap().to_owned()).collect()
            };
            let verbs = words("verbs");
            let verbs: Vec<&str> =
                verbs.iter().map(String::as_str).filter(|verb| !["get", "list", "watch"].contains(verb)).collect();
            if !verbs.is_empty() {
                writes.push(format!("{kind} {name}: {} {}", words("resources").join(","), verbs.join(",")));
            }
        }
    }
    writes.sort();
    assert_eq!(
        writes,
        [
            "ClusterRole l2lb-controller: events create",
            "ClusterRole l2lb-controller: ippools/status patch",
            "ClusterRole l2lb-controller: services/status patch",
            "ClusterRole l2lb-controller: speakers patch",
            "ClusterRole l2lb-controller: virtualips create,patch,delete",
            "ClusterRole l2lb-controller: virtualips/status patch",
            "ClusterRole l2lb-speaker: speakers create,patch",
            "ClusterRole l2lb-speaker: speakers/status patch",
            "ClusterRole l2lb-speaker: virtualips/status patch",
            "Role l2lb-controller: leases create,update,patch",
            "Role l2lb-speaker: leases create,patch",
        ]
    );
}

#[test]
fn the_controller_may_watch_all_that_it_watches() {
    let objects = rendered(&[]);
    let mut watched: Vec<String> = Vec::new();
    for object in objects.iter().filter(|object| object["metadata"]["name"] == "l2lb-controller") {
        for rule in object["rules"].as_array().into_iter().flatten() {
            let has = |verb: &str| rule["verbs"].as_array().unwrap().iter().any(|known| known == verb);
            if ["list", "watch"].iter().all(|verb| has(verb)) {
                let group = rule["apiGroups"][0].as_str().unwrap();
                let resources = rule["resources"].as_array().unwrap().iter();
                watched.extend(resources.map(|resource| format!("{}.{group}", resource.as_str().unwrap())));
            }
        }
    }
    watched.sort();
    assert_eq!(
        watched,
        [
            "endpointslices.discovery.k8s.io",
            "ippools.l2lb.io",
            "leases.coordination.k8s.io",
            "namespaces.",
            "nodes.",
            "servicecidrs.networking.k8s.io",
            "services.",
            "speakers.l2lb.io",
            "virtualips.l2lb.io",
        ]
    );
}

#[test]
fn the_crds_are_kept_on_uninstall_and_can_be_left_out() {
    let definitions = |objects: &[Value]| -> Vec<Value> {
        objects.iter().filter(|object| object["kind"] == "CustomResourceDefinition").cloned().collect()
    };
    let installed = definitions(&rendered(&[]));
    assert_eq!(installed.len(), 3);
    for definition in installed {
        assert_eq!(definition["metadata"]["annotations"]["helm.sh/resource-policy"], "keep");
    }
    assert!(definitions(&rendered(&["crds.install=false"])).is_empty());
}

#[test]
fn a_health_address_of_all_interfaces_leaves_the_probe_to_the_node_address() {
    let probe = |address: &str| {
        let objects = rendered(&[&format!("speaker.healthAddress={address}")]);
        let container = container(&objects, "DaemonSet");
        let bound =
            container["env"].as_array().unwrap().iter().find(|entry| entry["name"] == "L2LB_HEALTH_ADDRESS").unwrap();
        (bound["value"].clone(), container["readinessProbe"]["httpGet"]["host"].clone())
    };
    assert_eq!(probe("127.0.0.1"), ("127.0.0.1:7473".into(), "127.0.0.1".into()));
    assert_eq!(probe("0.0.0.0"), ("0.0.0.0:7473".into(), Value::Null));
    assert_eq!(probe("::1"), ("[::1]:7473".into(), "::1".into()));
}
