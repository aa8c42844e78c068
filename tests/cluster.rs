//! The whole product on real parts: the chart installed by helm on a real API server with three nodes, kube-proxy, and a client on
//! the LAN. One cluster for all tests, in the order in which they stand; each leaves it as it found it.

mod support;

use std::{collections::BTreeMap, time::Duration};

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use l2lb::api::{Speaker, VirtualIP};
use lab::runtime::block_on;
use libtest_mimic::Trial;
use serde_json::{Value, json};
use support::{Bench, Test, eventually};

/// Long enough for a slow day; nothing waits for it when all is well.
const PATIENCE: Duration = Duration::from_secs(60);

const TESTS: &[Test] = &[
    ("a_pool_that_cannot_be_read_is_refused_with_its_field_and_value", refused_pools),
    ("a_pool_that_the_api_server_cannot_judge_says_not_ready_and_others_go_on", backward_range),
    ("explain_tells_what_a_field_means", explain),
    ("a_speaker_may_not_read_services_or_secrets", speaker_rights),
    ("a_speaker_may_not_write_for_another_node", own_node_only),
    ("each_process_has_the_privileges_of_the_chart_and_no_more", privileges),
    ("a_service_gets_an_address_that_answers_and_says_where", service_comes_up),
    ("services_come_up_with_three_writes_and_one_event_each", few_writes),
    ("a_service_that_asks_for_what_cannot_be_had_keeps_none_and_says_why", impossible_requests),
    ("a_requested_address_is_given", requested_address),
    ("a_service_that_changes_its_type_gives_its_address_back", type_change),
    ("with_policy_local_a_node_with_an_endpoint_announces_and_the_client_is_seen", local_policy),
    ("a_service_of_another_class_is_not_touched", other_class),
    ("a_restarted_controller_changes_nothing", controller_restart),
    ("another_controller_takes_over_from_one_that_ends", controller_hand_over),
    ("an_excluded_node_hands_over_without_a_lost_request", planned_move),
    ("a_speaker_that_ends_or_crashes_costs_no_request", speaker_restarts),
    ("without_an_api_server_addresses_go_on_answering", api_outage),
    ("a_dead_node_is_replaced_and_does_not_take_its_addresses_back", dead_node),
    ("uninstall_keeps_the_pools", uninstall),
];

fn main() -> Result<()> {
    let arguments = libtest_mimic::Arguments::from_args();
    if arguments.list {
        libtest_mimic::run(&arguments, TESTS.iter().map(|(name, _)| Trial::test(*name, || Ok(()))).collect()).exit();
    }
    let bench = Bench::start(3)?;
    support::run_in_order(arguments, bench, TESTS)
}

fn pool(name: &str, addresses: &[&str]) -> Value {
    json!({"apiVersion": "l2lb.io/v1alpha1", "kind": "IPPool", "metadata": {"name": name}, "spec": {"addresses": addresses}})
}

fn service(name: &str, changes: Value) -> Value {
    let mut service = json!({
        "apiVersion": "v1", "kind": "Service", "metadata": {"name": name, "namespace": "default"},
        "spec": {"type": "LoadBalancer", "selector": {"app": "web"}, "ports": [{"port": 80, "targetPort": 8080}]},
    });
    merge(&mut service, changes);
    service
}

fn merge(into: &mut Value, from: Value) {
    match (into, from) {
        (Value::Object(into), Value::Object(from)) => {
            for (key, value) in from {
                merge(into.entry(key).or_insert(Value::Null), value);
            }
        }
        (into, from) => *into = from,
    }
}

fn refused_pools(bench: &Bench) -> Result<()> {
    for (item, named) in [
        ("10.0.0.0/33", "spec.addresses[1]"),
        ("10.0.0.1-2001:db8::1", "spec.addresses[1]"),
        ("10.0.0.300", "spec.addresses[1]"),
        ("", "spec.addresses[1]"),
        ("one", "spec.addresses[1]"),
    ] {
        let refusal = match bench.apply(&pool("bad", &["10.9.0.1", item])) {
            Ok(_) => bail!("a pool with '{item}' was taken"),
            Err(refusal) => format!("{refusal:#}"),
        };
        ensure!(refusal.contains(named), "'{item}': the field is not named in: {refusal}");
        ensure!(refusal.contains(&format!("'{item}' is not an address")), "'{item}' is not named in: {refusal}");
    }
    let misnamed = json!({"apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP", "metadata": {"name": "mine"},
        "spec": {"address": "192.0.2.64", "pool": "lan"}});
    let refusal = format!("{:#}", bench.apply(&misnamed).err().context("a VirtualIP of another name was taken")?);
    ensure!(refusal.contains("named after its address"), "{refusal}");
    let refusal = format!("{:#}", bench.apply(&pool("bad", &[])).err().context("an empty pool was taken")?);
    ensure!(refusal.contains("spec.addresses"), "{refusal}");
    Ok(())
}

fn backward_range(bench: &Bench) -> Result<()> {
    bench.apply(&pool("backward", &["10.0.0.9-10.0.0.1", "192.0.2.250"]))?;
    let message = eventually(PATIENCE, "the pool says that it is not ready", || {
        let pool = bench.get("ippool", "backward")?;
        let ready = condition(&pool, "Ready");
        Ok((ready["status"] == "False").then(|| text(&ready["message"])))
    })?;
    ensure!(message.contains("'10.0.0.9-10.0.0.1'") && message.contains("spec.addresses[0]"), "{message}");
    // The rest of that pool works, and so does the other one.
    bench.apply(&service("from-the-rest", json!({"metadata": {"annotations": {"l2lb.io/pool": "backward"}}})))?;
    ensure!(address_of(bench, "from-the-rest")? == "192.0.2.250");
    bench.apply(&service("from-the-other", json!({})))?;
    address_of(bench, "from-the-other")?;
    bench.kubectl(&["delete", "service", "from-the-rest", "from-the-other"])?;
    bench.kubectl(&["delete", "ippool", "backward"])?;
    Ok(())
}

fn explain(bench: &Bench) -> Result<()> {
    let text = bench.kubectl(&["explain", "ippool.spec.addresses"])?;
    ensure!(text.contains("CIDRs (192.0.2.64/26)"), "{text}");
    let text = bench.kubectl(&["explain", "virtualip"])?;
    ensure!(text.contains("One address in use"), "{text}");
    let listed = bench.kubectl(&["get", "l2lb", "-o", "name"])?;
    ensure!(listed.contains("ippool") && listed.contains("speaker"), "category l2lb lists: {listed}");
    for short in ["ipp", "vip", "spk"] {
        bench.kubectl(&["get", short])?;
    }
    Ok(())
}

fn speaker_rights(bench: &Bench) -> Result<()> {
    let account = "--as=system:serviceaccount:l2lb-system:l2lb-speaker";
    let may = |verb: &str, resource: &str, more: &[&str]| -> Result<bool> {
        let arguments = [&["auth", "can-i", verb, resource, account][..], more].concat();
        // can-i exits with 1 for "no": the answer is what it prints.
        let answer = bench.kubectl(&arguments).unwrap_or_else(|error| format!("{error:#}"));
        Ok(answer.lines().any(|line| line.trim() == "yes"))
    };
    for resource in
        ["services", "secrets", "configmaps", "pods", "endpointslices.discovery.k8s.io", "nodes", "ippools.l2lb.io"]
    {
        for verb in ["get", "list", "watch", "update", "patch", "delete"] {
            for scope in [&["-A"][..], &["-n", "l2lb-system"]] {
                ensure!(!may(verb, resource, scope)?, "a speaker may {verb} {resource} {scope:?}");
            }
        }
    }
    for verb in ["create", "update", "patch", "delete"] {
        ensure!(!may(verb, "virtualips.l2lb.io", &[])?, "a speaker may {verb} virtualips");
    }
    ensure!(may("list", "virtualips.l2lb.io", &[])? && may("patch", "virtualips.l2lb.io", &["--subresource=status"])?);
    // Asked as itself, with the token that it runs with.
    let token = bench.speaker_kubeconfig("node1")?;
    let refusal =
        format!("{:#}", bench.kubectl_as(&token, &["get", "services", "-A"]).err().context("it reads Services")?);
    ensure!(refusal.contains("forbidden"), "{refusal}");
    bench.kubectl_as(&token, &["get", "virtualips"])?;
    Ok(())
}

fn own_node_only(bench: &Bench) -> Result<()> {
    let speaker = bench.speaker_client("node1")?;
    let speakers: Api<Speaker> = Api::all(speaker.clone());
    let touch = Patch::Merge(json!({"status": {"version": "touched"}}));
    let write = |name: &str| {
        let result = block_on(async { Ok(speakers.patch_status(name, &PatchParams::default(), &touch).await) })?;
        Ok::<_, anyhow::Error>(result.map(drop).map_err(|error| error.to_string()))
    };
    let refusal = write("node2")?.err().context("the speaker of node1 wrote the Speaker of node2")?;
    ensure!(refusal.contains("the speaker of node node1 may not write the Speaker of node node2"), "{refusal}");
    write("node1")?.map_err(anyhow::Error::msg)?;

    let leases: Api<Lease> = Api::namespaced(speaker, "l2lb-system");
    let touch = Patch::Merge(json!({"metadata": {"annotations": {"touched": "yes"}}}));
    let write = |name: &str| {
        let result = block_on(async { Ok(leases.patch(name, &PatchParams::default(), &touch).await) })?;
        Ok::<_, anyhow::Error>(result.map(drop).map_err(|error| error.to_string()))
    };
    let refusal = write("l2lb-speaker-node2")?.err().context("it wrote the Lease of node2")?;
    ensure!(refusal.contains("may not write the Lease l2lb-speaker-node2"), "{refusal}");
    write("l2lb-speaker-node1")?.map_err(anyhow::Error::msg)?;

    bench.apply(&service("claimed", json!({})))?;
    let address = address_of(bench, "claimed")?;
    let owner = announcing_node(bench, &address)?;
    let other = ["node1", "node2", "node3"].into_iter().find(|node| *node != owner).context("another node")?;
    let virtual_ips: Api<VirtualIP> = Api::all(bench.speaker_client(other)?);
    let theft = Patch::Merge(json!({"status": {"claims": []}}));
    let result = block_on(async { Ok(virtual_ips.patch_status(&address, &PatchParams::default(), &theft).await) })?;
    let refusal = result.err().context("it took away another's claim")?.to_string();
    ensure!(refusal.contains("may write only its own claim"), "{refusal}");
    bench.kubectl(&["delete", "service", "claimed"])?;
    Ok(())
}

fn privileges(bench: &Bench) -> Result<()> {
    for node in ["node1", "node2", "node3"] {
        let status = bench.process_status("l2lb-speaker", Some(node))?;
        ensure!(status["CapEff"] == "0000000000002000", "{node}: the speaker's capabilities are {}", status["CapEff"]);
        ensure!(status["CapBnd"] == "0000000000002000", "{node}: its bounding set is {}", status["CapBnd"]);
        ensure!(status["NoNewPrivs"] == "1");
    }
    let status = bench.process_status("l2lb-controller", None)?;
    ensure!(status["CapEff"] == "0000000000000000", "the controller's capabilities are {}", status["CapEff"]);
    Ok(())
}

fn service_comes_up(bench: &Bench) -> Result<()> {
    bench.apply(&service("web-1", json!({})))?;
    let address = address_of(bench, "web-1")?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/web-1", "--timeout=60s"])?;
    let service = bench.get("service", "web-1")?;
    ensure!(service["status"]["loadBalancer"]["ingress"][0]["ipMode"] == "VIP", "{}", service["status"]);
    let node = announcing_node(bench, &address)?;
    let number = node.trim_start_matches("node").to_owned();
    let announced = condition(&service, "l2lb.io/Announced");
    let message = text(&announced["message"]);
    for word in [&node, "eth0", &format!("02:00:00:00:01:0{number}")] {
        ensure!(message.contains(word), "the message has no {word}: {message}");
    }
    ensure!(text(&condition(&service, "l2lb.io/Allocated")["message"]).contains("lan"), "the pool is named");
    answered_through_every_node(bench, &address)?;
    let columns = bench.kubectl(&["get", "virtualip", &address])?;
    for word in ["NODE", "MAC", "STATE", &node, "eth0", "Owner", "default/web-1"] {
        ensure!(columns.contains(word), "`kubectl get virtualips` shows no {word}: {columns}");
    }
    let events = bench.kubectl(&["describe", "service", "web-1"])?;
    ensure!(events.contains("Announced"), "describe shows: {events}");
    // Nothing of the address is configured on a node: the speaker answers by itself.
    for node in ["node1", "node2", "node3"] {
        ensure!(!bench.in_node(node, &["ip", "address"])?.contains(&address), "{node} has {address} on an interface");
        ensure!(
            !bench.in_node(node, &["ip", "-d", "link", "show", "eth0"])?.contains("promiscuity 1"),
            "{node} is promiscuous"
        );
    }
    bench.kubectl(&["delete", "service", "web-1"])?;
    eventually(PATIENCE, "the address is given back", || Ok(bench.get("virtualip", &address).is_err().then_some(())))?;
    eventually(PATIENCE, "nobody answers for it", || Ok(bench.curl(&address).is_err().then_some(())))
}

fn few_writes(bench: &Bench) -> Result<()> {
    const SERVICES: usize = 8;
    let before = bench.writes()?;
    let names: Vec<String> = (0..SERVICES).map(|number| format!("few-{number}")).collect();
    for name in &names {
        bench.apply(&service(name, json!({})))?;
    }
    for name in &names {
        let service = format!("service/{name}");
        bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", &service, "--timeout=60s"])?;
    }
    let after = bench.writes()?;
    let grown: BTreeMap<&str, u64> = ["virtualips", "virtualips/status", "services/status", "events"]
        .into_iter()
        .map(|resource| (resource, after.get(resource).unwrap_or(&0) - before.get(resource).unwrap_or(&0)))
        .collect();
    let expected: BTreeMap<&str, u64> = grown.keys().map(|resource| (*resource, SERVICES as u64)).collect();
    ensure!(grown == expected, "writes for {SERVICES} Services: {grown:?}");
    // Fairly spread, too.
    let mut owners: BTreeMap<String, usize> = BTreeMap::new();
    for name in &names {
        *owners.entry(announcing_node(bench, &address_of(bench, name)?)?).or_default() += 1;
    }
    ensure!(owners.values().all(|count| (2..=3).contains(count)), "8 addresses on 3 nodes: {owners:?}");
    let names: Vec<&str> = [&["delete", "service"][..], &names.iter().map(String::as_str).collect::<Vec<_>>()].concat();
    bench.kubectl(&names)?;
    Ok(())
}

fn impossible_requests(bench: &Bench) -> Result<()> {
    bench.apply(&service("taker", json!({"metadata": {"annotations": {"l2lb.io/addresses": "192.0.2.90"}}})))?;
    ensure!(address_of(bench, "taker")? == "192.0.2.90");
    let annotated = |key: &str, value: &str| json!({"metadata": {"annotations": {key: value}}});
    for (name, changes, reason, words) in [
        ("no-such-pool", annotated("l2lb.io/pool", "moon"), "NoMatchingPool", "moon"),
        ("no-such-address", annotated("l2lb.io/addresses", "203.0.113.9"), "AddressNotInPool", "203.0.113.9"),
        ("no-address", annotated("l2lb.io/addresses", "192.0.2.x"), "InvalidRequest", "192.0.2.x"),
        ("taken", annotated("metallb.io/loadBalancerIPs", "192.0.2.90"), "AddressInUse", "default/taker"),
        ("excluded", json!({"spec": {"loadBalancerIP": "192.0.2.70"}}), "AddressNotInPool", "192.0.2.70"),
    ] {
        bench.apply(&service(name, changes))?;
        let message = eventually(PATIENCE, &format!("{name} says {reason}"), || {
            let allocated = condition(&bench.get("service", name)?, "l2lb.io/Allocated");
            Ok((allocated["reason"] == reason && allocated["status"] == "False").then(|| text(&allocated["message"])))
        })?;
        ensure!(message.contains(words), "{name}: '{words}' is not in: {message}");
        ensure!(bench.get("service", name)?["status"]["loadBalancer"]["ingress"].is_null(), "{name} shows an address");
        bench.kubectl(&["delete", "service", name])?;
    }
    bench.kubectl(&["delete", "service", "taker"])?;
    Ok(())
}

fn requested_address(bench: &Bench) -> Result<()> {
    for (name, changes) in [
        ("by-annotation", json!({"metadata": {"annotations": {"l2lb.io/addresses": "192.0.2.201"}}})),
        ("by-field", json!({"spec": {"loadBalancerIP": "192.0.2.201"}})),
        ("by-metallb", json!({"metadata": {"annotations": {"metallb.universe.tf/loadBalancerIPs": "192.0.2.201"}}})),
    ] {
        bench.apply(&service(name, changes))?;
        ensure!(address_of(bench, name)? == "192.0.2.201", "{name}");
        bench.kubectl(&["delete", "service", name])?;
        eventually(PATIENCE, "it is given back", || Ok(bench.get("virtualip", "192.0.2.201").is_err().then_some(())))?;
    }
    Ok(())
}

fn type_change(bench: &Bench) -> Result<()> {
    bench.apply(&service("fickle", json!({})))?;
    let address = address_of(bench, "fickle")?;
    bench.kubectl(&["patch", "service", "fickle", "--type=merge", "-p", r#"{"spec":{"type":"ClusterIP"}}"#])?;
    eventually(PATIENCE, "the address is given back and the Service speaks no more of it", || {
        let service = bench.get("service", "fickle")?;
        let gone = bench.get("virtualip", &address).is_err();
        let ours =
            condition(&service, "l2lb.io/Allocated").is_null() && condition(&service, "l2lb.io/Announced").is_null();
        Ok((gone && ours && service["status"]["loadBalancer"]["ingress"].is_null()).then_some(()))
    })?;
    bench.kubectl(&["delete", "service", "fickle"])?;
    Ok(())
}

fn local_policy(bench: &Bench) -> Result<()> {
    bench.apply(&service("local", json!({"spec": {"externalTrafficPolicy": "Local"}})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/local", "--timeout=60s"])?;
    let address = address_of(bench, "local")?;
    let owner = announcing_node(bench, &address)?;
    let nodes = bench.kubectl(&["get", "pods", "-l", "app=web", "-o", "jsonpath={.items[*].spec.nodeName}"])?;
    ensure!(nodes.split_whitespace().any(|node| node == owner), "{owner} announces, the Pods are on {nodes}");
    answered_through_every_node(bench, &address)?;
    let answer = bench.curl(&address)?;
    ensure!(answer.contains("from=192.0.2.3:"), "the Pod sees another client: {answer}");
    // Nobody has an endpoint any more: the Service says so, and keeps its address.
    bench.kubectl(&["scale", "deployment/web", "--replicas=0"])?;
    eventually(PATIENCE, "the Service says that it has no endpoint", || {
        let announced = condition(&bench.get("service", "local")?, "l2lb.io/Announced");
        Ok((announced["status"] == "False" && text(&announced["reason"]).starts_with("No")).then_some(()))
    })?;
    ensure!(address_of(bench, "local")? == address);
    bench.kubectl(&["scale", "deployment/web", "--replicas=2"])?;
    bench.kubectl(&["rollout", "status", "deployment/web", "--timeout=60s"])?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/local", "--timeout=60s"])?;
    bench.kubectl(&["delete", "service", "local"])?;
    Ok(())
}

fn other_class(bench: &Bench) -> Result<()> {
    bench.apply(&service("foreign", json!({"spec": {"loadBalancerClass": "example.com/other"}})))?;
    // A Service of ours that comes later is served: by then the other one was seen, too.
    bench.apply(&service("ours", json!({})))?;
    address_of(bench, "ours")?;
    let foreign = bench.get("service", "foreign")?;
    ensure!(
        foreign["status"]["conditions"].is_null() && foreign["status"]["loadBalancer"]["ingress"].is_null(),
        "{foreign}"
    );
    bench.kubectl(&["delete", "service", "foreign", "ours"])?;
    Ok(())
}

fn controller_restart(bench: &Bench) -> Result<()> {
    let names = ["kept-1", "kept-2", "kept-3"];
    let mut addresses = BTreeMap::new();
    for name in names {
        bench.apply(&service(name, json!({})))?;
        bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", &format!("service/{name}"), "--timeout=60s"])?;
        addresses.insert(name, address_of(bench, name)?);
    }
    // One Service goes while nobody looks.
    bench.apply(&service("goes", json!({})))?;
    let goes = address_of(bench, "goes")?;
    bench.scale_controller(0)?;
    bench.kubectl(&["delete", "service", "goes"])?;
    let before = bench.writes()?;
    bench.scale_controller(2)?;
    eventually(PATIENCE, "the address of the deleted Service is given back", || {
        Ok(bench.get("virtualip", &goes).is_err().then_some(()))
    })?;
    for (name, address) in &addresses {
        ensure!(address_of(bench, name)? == *address, "{name} has changed its address");
        bench.curl(address)?;
    }
    let after = bench.writes()?;
    for resource in ["virtualips/status", "services/status"] {
        ensure!(before.get(resource) == after.get(resource), "the restart wrote {resource}: {before:?} {after:?}");
    }
    bench.kubectl(&["delete", "service", "kept-1", "kept-2", "kept-3"])?;
    Ok(())
}

fn controller_hand_over(bench: &Bench) -> Result<()> {
    bench.apply(&service("before", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/before", "--timeout=60s"])?;
    let address = address_of(bench, "before")?;
    let owner = announcing_node(bench, &address)?;
    let leader = || -> Result<String> {
        let holder = ["-n", "l2lb-system", "get", "lease", "l2lb-controller", "-o", "jsonpath={.spec.holderIdentity}"];
        bench.kubectl(&holder)
    };
    let first = leader()?;
    ensure!(first.starts_with("l2lb-controller-"), "the leader is named after its Pod, not '{first}'");
    bench.kubectl(&["-n", "l2lb-system", "delete", "pod", &first, "--wait=false"])?;
    bench.apply(&service("after", json!({})))?;
    ensure!(address_of(bench, "after")? != address, "an address was given twice");
    ensure!(leader()? != first, "the controller that ended still leads");
    ensure!(address_of(bench, "before")? == address && announcing_node(bench, &address)? == owner, "an address moved");
    bench.kubectl(&["-n", "l2lb-system", "rollout", "status", "deployment/l2lb-controller", "--timeout=60s"])?;
    bench.kubectl(&["delete", "service", "before", "after"])?;
    Ok(())
}

fn planned_move(bench: &Bench) -> Result<()> {
    bench.apply(&service("moved", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/moved", "--timeout=60s"])?;
    let address = address_of(bench, "moved")?;
    let owner = announcing_node(bench, &address)?;
    answered_through_every_node(bench, &address)?;
    let exclusion = "node.kubernetes.io/exclude-from-external-load-balancers";
    let stream = bench.requests(&address)?;
    bench.kubectl(&["label", "node", &owner, &format!("{exclusion}=")])?;
    let next = eventually(PATIENCE, "another node announces", || {
        let node = announcing_node(bench, &address)?;
        Ok((node != owner).then_some(node))
    })?;
    eventually(PATIENCE, "the Service names the new node", || {
        let announced = condition(&bench.get("service", "moved")?, "l2lb.io/Announced");
        Ok(text(&announced["message"]).contains(&next).then_some(()))
    })?;
    stream.none_failed()?;
    bench.kubectl(&["label", "node", &owner, &format!("{exclusion}-")])?;
    ensure!(address_of(bench, "moved")? == address);
    bench.kubectl(&["delete", "service", "moved"])?;
    Ok(())
}

fn speaker_restarts(bench: &Bench) -> Result<()> {
    bench.apply(&service("steady", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/steady", "--timeout=60s"])?;
    let address = address_of(bench, "steady")?;
    let owner = announcing_node(bench, &address)?;
    answered_through_every_node(bench, &address)?;

    // It crashes: its node forwards on. Either the new process is there before a standby doubts it, or the address moves.
    let stream = bench.requests(&address)?;
    bench.crash_speaker(&owner)?;
    stream.none_failed()?;
    eventually(PATIENCE, "somebody answers who asks anew", || {
        bench.forget_client_neighbours()?;
        Ok(bench.curl(&address).ok())
    })?;

    // All are restarted, one after the other: each drains first.
    let stream = bench.requests(&address)?;
    bench.kubectl(&["-n", "l2lb-system", "rollout", "restart", "daemonset/l2lb-speaker"])?;
    bench.kubectl(&["-n", "l2lb-system", "rollout", "status", "daemonset/l2lb-speaker", "--timeout=120s"])?;
    stream.none_failed()?;
    ensure!(address_of(bench, "steady")? == address);
    bench.kubectl(&["delete", "service", "steady"])?;
    Ok(())
}

fn api_outage(bench: &Bench) -> Result<()> {
    bench.apply(&service("lasting", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/lasting", "--timeout=60s"])?;
    let address = address_of(bench, "lasting")?;
    let owner = announcing_node(bench, &address)?;
    answered_through_every_node(bench, &address)?;
    let restarts = bench.restarts()?;
    let stream = bench.requests(&address)?;
    bench.kill_api_server()?;
    // Longer than a speaker's Lease lives: what looks dead to the controller afterwards is only the API server's silence.
    std::thread::sleep(Duration::from_secs(20));
    stream.none_failed()?;
    bench.forget_client_neighbours()?;
    bench.curl(&address).context("a client that asks anew, while the API server is away")?;
    let stream = bench.requests(&address)?;
    bench.start_api_server()?;
    eventually(PATIENCE * 3, "the controller works again", || {
        bench.apply(&service("afterwards", json!({})))?;
        Ok(bench.get("service", "afterwards")?["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(|_| ()))
    })?;
    stream.none_failed()?;
    ensure!(announcing_node(bench, &address)? == owner, "the address moved because the API server was away");
    ensure!(bench.restarts()? == restarts, "a process ended because the API server was away");
    bench.kubectl(&["delete", "service", "lasting", "afterwards"])?;
    Ok(())
}

fn dead_node(bench: &Bench) -> Result<()> {
    bench.apply(&service("orphan", json!({})))?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", "service/orphan", "--timeout=60s"])?;
    let address = address_of(bench, "orphan")?;
    let owner = announcing_node(bench, &address)?;
    bench.power_off(&owner)?;
    let next = eventually(PATIENCE, "another node announces", || {
        let node = announcing_node(bench, &address)?;
        Ok((node != owner).then_some(node))
    })?;
    eventually(PATIENCE, "the client gets an answer from it", || Ok(bench.curl(&address).ok()))?;
    ensure!(address_of(bench, "orphan")? == address, "the address changed");
    bench.power_on(&owner)?;
    eventually(PATIENCE * 2, "the node is back with its speaker", || {
        let rejected = condition(&bench.get("speaker", &owner)?, "Ready");
        let node = condition(&bench.get("node", &owner)?, "Ready");
        Ok((rejected["status"] == "True" && node["status"] == "True").then_some(()))
    })?;
    // A Service that comes now goes to the node that returned: the controller counts it in again, and yet moves nothing.
    bench.apply(&service("fresh", json!({})))?;
    eventually(PATIENCE, "the returned node announces something new", || {
        let address = address_of(bench, "fresh")?;
        if announcing_node(bench, &address)? == owner {
            return Ok(Some(()));
        }
        bench.kubectl(&["delete", "service", "fresh"])?;
        bench.apply(&service("fresh", json!({})))?;
        Ok(None)
    })?;
    ensure!(announcing_node(bench, &address)? == next, "the returning node took its address back");
    bench.kubectl(&["delete", "service", "orphan", "fresh"])?;
    Ok(())
}

fn uninstall(bench: &Bench) -> Result<()> {
    bench.helm(&["uninstall", "l2lb", "-n", "l2lb-system", "--wait"])?;
    bench.get("ippool", "lan").context("the pool is gone with the chart")?;
    Ok(())
}

/// Waits until kube-proxy forwards the address on every node, and then for an answer. kube-proxy is not l2lb's: until it is ready a
/// node loses connections whoever announces, and what it sent on untranslated it remembers for two minutes.
fn answered_through_every_node(bench: &Bench, address: &str) -> Result<()> {
    for node in ["node1", "node2", "node3"] {
        eventually(PATIENCE, &format!("kube-proxy on {node} forwards {address}"), || {
            let rules = bench.in_node(node, &["iptables", "-t", "nat", "-S"])?;
            Ok(rules.contains(&format!("{address}/32")).then_some(()))
        })?;
    }
    eventually(PATIENCE, "the client gets an answer", || Ok(bench.curl(address).ok())).map(drop)
}

/// The condition of a type, or null.
fn condition(object: &Value, kind: &str) -> Value {
    let conditions = object["status"]["conditions"].as_array();
    conditions.and_then(|all| all.iter().find(|condition| condition["type"] == kind)).cloned().unwrap_or_default()
}

fn text(value: &Value) -> String {
    value.as_str().unwrap_or_default().to_owned()
}

/// The address that a Service shows, as soon as it does.
fn address_of(bench: &Bench, name: &str) -> Result<String> {
    eventually(PATIENCE, &format!("Service {name} has an address"), || {
        let service = bench.get("service", name)?;
        Ok(service["status"]["loadBalancer"]["ingress"][0]["ip"].as_str().map(str::to_owned))
    })
}

/// The node whose speaker owns an address, as soon as one does.
fn announcing_node(bench: &Bench, address: &str) -> Result<String> {
    eventually(PATIENCE, &format!("a node announces {address}"), || {
        let virtual_ip = bench.get("virtualip", address)?;
        let claims = virtual_ip["status"]["claims"].as_array().cloned().unwrap_or_default();
        Ok(claims.iter().find(|claim| claim["state"] == "Owner").map(|claim| text(&claim["node"])))
    })
}
