//! Dual stack: who is given which addresses, and that a client reaches them over both families.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::{
    lan::host::{Neighbour, neighbour, stream_udp},
    stalls::play_again_after_stalls,
};
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, STOOD_STILL, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("each_family_is_given_as_the_service_asks_in_its_order", combinations),
    ("what_is_required_and_cannot_be_had_is_said", required),
    ("from_one_family_to_two_the_first_address_stays", upgrade),
    ("an_excluded_node_hands_over_without_a_lost_request_on_either_family", planned_move),
    ("a_client_that_checks_its_ipv6_neighbour_is_answered_also_after_a_move", warm_client),
    ("a_node_that_has_the_ipv6_address_itself_is_named_and_does_not_get_it", on_an_interface),
    ("where_ipv6_is_off_the_ipv4_address_alone_is_announced", ipv6_off),
];

/// Half a minute each, which is the product's; they run beside each other.
pub const SLOW: &[Test] = &[("a_host_that_answers_for_an_ipv6_address_is_named", conflict)];

/// An owner that has not announced for so long has yielded, and is not only late in saying so or about to come back.
const YIELDED: Duration = Duration::from_secs(5);
const EXCLUSION: &str = "node.kubernetes.io/exclude-from-external-load-balancers";

fn of_families(name: &str, pool: &str, policy: &str, families: &[&str]) -> Value {
    let mut service = asking(name, json!({"l2lb.io/pool": pool}));
    service["spec"]["ipFamilyPolicy"] = json!(policy);
    service["spec"]["ipFamilies"] = json!(families);
    service
}

fn combinations(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-both", &["192.0.2.180-192.0.2.189", "2001:db8:1:0:3::/80"]))?;
    for (name, policy, families, expected) in [
        ("six", "SingleStack", &["IPv6"][..], &["2001:db8:1:0:3::"][..]),
        ("four", "SingleStack", &["IPv4"], &["192.0.2.180"]),
        ("prefer", "PreferDualStack", &["IPv4", "IPv6"], &["192.0.2.181", "2001:db8:1:0:3::1"]),
        ("require", "RequireDualStack", &["IPv6", "IPv4"], &["2001:db8:1:0:3::2", "192.0.2.182"]),
    ] {
        bench.apply(&of_families(name, "lab-both", policy, families))?;
        let given = addresses_of(bench, name)?;
        ensure!(given == expected, "{name}: {given:?}");
    }
    for (name, addresses) in [
        ("six", &["2001:db8:1:0:3::"][..]),
        ("four", &["192.0.2.180"]),
        ("prefer", &["192.0.2.181", "2001:db8:1:0:3::1"]),
        ("require", &["2001:db8:1:0:3::2", "192.0.2.182"]),
    ] {
        let by_node: Vec<String> = addresses.iter().map(|address| format!("{address} by node")).collect();
        says(bench, name, "Announced", "Announced", &by_node.iter().map(String::as_str).collect::<Vec<_>>())?;
        for address in addresses {
            let answer = answers(bench, address)?;
            ensure!(answer.contains("pod=web-"), "{address}: {answer}");
            owner_is_believed(bench, address)?;
        }
    }
    // Both addresses of a Service are on one node, where that can be.
    ensure!(announcing_node(bench, "2001:db8:1:0:3::2")? == announcing_node(bench, "192.0.2.182")?);
    // The object is named after the address, and tells it as people write it.
    let virtual_ip = bench.get("virtualip", "2001-db8-1-0-3-0-0-2")?;
    ensure!(virtual_ip["spec"]["address"] == "2001:db8:1:0:3::2", "{}", virtual_ip["spec"]);
    let counts = eventually(PATIENCE, "the pool counts them", || {
        let counts = bench.get("ippool", "lab-both")?["status"]["ipv6"].clone();
        Ok((counts["used"] == "3").then_some(counts))
    })?;
    ensure!(counts["free"] == "281474976710653", "2^48 without three: {counts}");
    delete_services(bench, &["six", "four", "prefer", "require"])?;
    bench.kubectl(&["delete", "ippool", "lab-both"])?;
    Ok(())
}

fn required(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-four", &["192.0.2.180-192.0.2.189"]))?;
    bench.apply(&of_families("demanding", "lab-four", "RequireDualStack", &["IPv4", "IPv6"]))?;
    says(bench, "demanding", "Allocated", "FamilyUnavailable", &["no IPv6 addresses are in pool lab-four"])?;
    ensure!(shown(&bench.get("service", "demanding")?).is_empty());
    bench.apply(&of_families("modest", "lab-four", "PreferDualStack", &["IPv4", "IPv6"]))?;
    let given = addresses_of(bench, "modest")?;
    ensure!(given.len() == 1 && given[0].starts_with("192.0.2.18"), "{given:?}");
    announced(bench, "modest")?;
    // As soon as there are some, both have them.
    let both = json!({"spec": {"addresses": ["192.0.2.180-192.0.2.189", "2001:db8:1:0:3::5"]}});
    patch(bench, "ippool", "lab-four", both)?;
    eventually(PATIENCE, "one of them has the IPv6 address", || {
        let one = |name: &str| -> Result<bool> { Ok(shown(&bench.get("service", name)?).len() == 2) };
        Ok((one("demanding")? || one("modest")?).then_some(()))
    })?;
    delete_services(bench, &["demanding", "modest"])?;
    bench.kubectl(&["delete", "ippool", "lab-four"])?;
    Ok(())
}

fn upgrade(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-both", &["192.0.2.180-192.0.2.189", "2001:db8:1:0:4::/80"]))?;
    bench.apply(&of_families("growing", "lab-both", "SingleStack", &["IPv4"]))?;
    let address = announced(bench, "growing")?;
    bench.apply(&of_families("growing", "lab-both", "PreferDualStack", &["IPv4", "IPv6"]))?;
    eventually(PATIENCE, "it shows two addresses", || {
        let given = shown(&bench.get("service", "growing")?);
        Ok((given == [address.as_str(), "2001:db8:1:0:4::"]).then_some(()))
    })?;
    answers(bench, &address)?;
    // Back to one: the first stays, the second is free.
    bench.apply(&of_families("growing", "lab-both", "SingleStack", &["IPv4"]))?;
    eventually(PATIENCE, "it shows one address", || {
        Ok((shown(&bench.get("service", "growing")?) == [address.as_str()]).then_some(()))
    })?;
    given_back(bench, "2001:db8:1:0:4::")?;
    delete_services(bench, &["growing"])?;
    bench.kubectl(&["delete", "ippool", "lab-both"])?;
    Ok(())
}

/// The client's entry for the address is that of the node that announces it.
fn owner_is_believed(bench: &Bench, address: &str) -> Result<()> {
    let (client, parsed) = (bench.client_netns(), address.parse::<std::net::IpAddr>()?);
    let what = format!("the client believes that {address} is where it is announced");
    eventually(PATIENCE, &what, || {
        let owner = mac_of(bench, &announcing_node(bench, address)?)?;
        Ok(neighbour(&client, "eth0", parsed)?.filter(|found| found.mac == Some(owner)).map(drop))
    })
}

fn mac_of(bench: &Bench, node: &str) -> Result<pnet_base::MacAddr> {
    let speaker = bench.get("speaker", node)?;
    let interfaces = speaker["status"]["interfaces"].as_array().cloned().unwrap_or_default();
    let eth0 = interfaces.iter().find(|interface| interface["name"] == "eth0").context("no eth0")?;
    text(&eth0["mac"]).parse().context("a MAC address")
}

/// A dual-stack Service that every node forwards. Its addresses.
fn dual_stack_service(bench: &Bench, name: &str, pool: &str, changes: Value) -> Result<[String; 2]> {
    let mut service = of_families(name, pool, "RequireDualStack", &["IPv4", "IPv6"]);
    merge(&mut service, changes);
    bench.apply(&service)?;
    bench.kubectl(&["wait", "--for=condition=l2lb.io/Announced", &format!("service/{name}"), "--timeout=60s"])?;
    let [four, six] = <[String; 2]>::try_from(addresses_of(bench, name)?).ok().context("two addresses")?;
    answered_through_every_node(bench, &four)?;
    answered_through_every_node(bench, &six)?;
    Ok([four, six])
}

fn planned_move(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-move", &["192.0.2.190-192.0.2.191", "2001:db8:1:0:5::/126"]))?;
    let [four, six] = dual_stack_service(bench, "moving", "lab-move", json!({}))?;
    let owner = announcing_node(bench, &six)?;
    let streams = [bench.requests(&four)?, bench.requests(&six)?];
    bench.kubectl(&["label", "node", &owner, &format!("{EXCLUSION}=")])?;
    let moved = [&four, &six].map(|address| moved_from(bench, address, &owner));
    let next = moved.into_iter().collect::<Result<Vec<_>>>()?;
    says(bench, "moving", "Announced", "Announced", &next.iter().map(String::as_str).collect::<Vec<_>>())?;
    for stream in streams {
        stream.no_connection_failed()?;
    }
    for address in [&four, &six] {
        owner_is_believed(bench, address)?;
    }
    bench.kubectl(&["label", "node", &owner, &format!("{EXCLUSION}-")])?;
    delete_services(bench, &["moving"])?;
    bench.kubectl(&["delete", "ippool", "lab-move"])?;
    Ok(())
}

/// Datagrams confirm nothing: the client's kernel has to ask, by unicast, whether its neighbour is still there, each second or so
/// with these settings, and gives the entry up if nobody answers.
fn warm_client(bench: &Bench) -> Result<()> {
    let client = bench.client_netns();
    // Before it has the entry: that would last as long as the settings said then, up to 45 s.
    bench.client_neighbours_are_checked(1000, 1)?;
    bench.apply(&private_pool("lab-warm", &["2001:db8:1:0:6::/126"]))?;
    let mut service = of_families("warm", "lab-warm", "SingleStack", &["IPv6"]);
    service["spec"]["ports"] = json!([
        {"name": "web", "port": 80, "targetPort": 8080},
        {"name": "datagrams", "protocol": "UDP", "port": 9, "targetPort": 9},
    ]);
    bench.apply(&service)?;
    let address = announced(bench, "warm")?;
    answered_through_every_node(bench, &address)?;
    let parsed = address.parse::<std::net::IpAddr>()?;
    let stream = stream_udp(&client, std::net::SocketAddr::new(parsed, 9), 50)?;
    let owner = announcing_node(bench, &address)?;
    confirmed(bench, &address, &owner)?;
    bench.kubectl(&["label", "node", &owner, &format!("{EXCLUSION}=")])?;
    let next = moved_from(bench, &address, &owner)?;
    confirmed(bench, &address, &next)?;
    stream.stop();
    answers(bench, &address)?;
    bench.kubectl(&["label", "node", &owner, &format!("{EXCLUSION}-")])?;
    bench.client_neighbours_are_checked(30_000, 5)?;
    delete_services(bench, &["warm"])?;
    bench.kubectl(&["delete", "ippool", "lab-warm"])?;
    Ok(())
}

/// Waits until the client has checked three times that the node is there, and was answered each time.
fn confirmed(bench: &Bench, address: &str, node: &str) -> Result<()> {
    let (client, mac) = (bench.client_netns(), mac_of(bench, node)?);
    let parsed: std::net::IpAddr = address.parse()?;
    let (mut confirmed, mut before) = (0, String::new());
    eventually(PATIENCE, &format!("the client checks that {address} is at {mac}"), || {
        let Some(Neighbour { mac: Some(found), state }) = neighbour(&client, "eth0", parsed)? else {
            confirmed = 0;
            return Ok(None);
        };
        if found != mac {
            confirmed = 0;
        } else if state == "REACHABLE" && ["DELAY", "PROBE"].contains(&before.as_str()) {
            confirmed += 1;
        }
        before = state;
        Ok((confirmed >= 3).then_some(()))
    })
}

fn conflict(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-foreign", &["2001:db8:1:0:7::/127"]))?;
    let mut asks = of_families("disputed", "lab-foreign", "SingleStack", &["IPv6"]);
    merge(&mut asks, json!({"metadata": {"annotations": {"l2lb.io/addresses": "2001:db8:1:0:7::1"}}}));
    let foreign = ForeignHost::with(bench, "2001:db8:1:0:7::1")?;
    bench.apply(&asks)?;
    let words = ["2001:db8:1:0:7::1", &lab::lan::GATEWAY_MAC.to_string()];
    says(bench, "disputed", "Announced", "AddressConflict", &words)?;
    foreign.leave()?;
    ensure!(announced(bench, "disputed")? == "2001:db8:1:0:7::1");
    answers(bench, "2001:db8:1:0:7::1")?;
    delete_services(bench, &["disputed"])?;
    bench.kubectl(&["delete", "ippool", "lab-foreign"])?;
    Ok(())
}

/// The kernel of that node defends the address against each probe, before everybody: nobody yields to it.
fn on_an_interface(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-twice", &["2001:db8:1:0:9::/127"]))?;
    bench.apply(&of_families("twice", "lab-twice", "SingleStack", &["IPv6"]))?;
    let address = announced(bench, "twice")?;
    // It takes about ten seconds until that is told, and an owner that stood still meanwhile asks the LAN anew, hears the other node, and
    // rightly yields to it. That is no reason to begin all anew.
    play_again_after_stalls(STOOD_STILL, || split_claim(bench, &address))?;
    delete_services(bench, &["twice"])?;
    bench.kubectl(&["delete", "ippool", "lab-twice"])?;
    Ok(())
}

/// Another node than the owner has the address on its interface, until that is told.
fn split_claim(bench: &Bench, address: &str) -> Result<()> {
    let owner = announcing_node(bench, address)?;
    let other = ["node1", "node2"].into_iter().find(|node| *node != owner).context("another node")?;
    let cidr = format!("{address}/128");
    bench.in_node(other, &["ip", "address", "add", &cidr, "dev", "eth0", "nodad"])?;
    let (mut last, mut announced) = (Value::Null, Instant::now());
    let told = eventually(PATIENCE, &format!("it is told that {owner} and {other} answer"), || {
        last = condition(&bench.get("service", "twice")?, "l2lb.io/Announced");
        let message = text(&last["message"]);
        let is_told = last["reason"] == "SplitClaim" && message.contains(&owner) && message.contains(other);
        if announcing_now(bench, address)?.as_ref() == Some(&owner) {
            announced = Instant::now();
            return Ok(is_told.then_some(false));
        }
        Ok((announced.elapsed() >= YIELDED).then_some(true))
    });
    bench.in_node(other, &["ip", "address", "del", &cidr, "dev", "eth0"])?;
    ensure!(!told.with_context(|| format!("it says {last}"))?, "{owner} yielded");
    Ok(())
}

fn ipv6_off(bench: &Bench) -> Result<()> {
    const NODES: [&str; 3] = ["node1", "node2", "node3"];
    bench.apply(&private_pool("lab-off", &["192.0.2.192-192.0.2.193", "2001:db8:1:0:8::/126"]))?;
    let set = |node: &str, value: &str| {
        let path = "/proc/sys/net/ipv6/conf/eth0/disable_ipv6";
        bench.in_node(node, &["sh", "-c", &format!("echo {value} > {path}")]).map(drop)
    };
    for node in NODES {
        set(node, "1")?;
    }
    let off = bench.apply(&of_families("half", "lab-off", "RequireDualStack", &["IPv4", "IPv6"])).and_then(|_| {
        let reason = "eth0 cannot announce IPv6 addresses: IPv6 is turned off on it (net.ipv6.conf.*.disable_ipv6)";
        says(bench, "half", "Announced", "PartlyAnnounced", &["192.0.2.192 by node", reason])
    });
    for (node, number) in NODES.into_iter().zip(1..) {
        set(node, "0")?;
        let address = format!("{}/64", lab::node::lan_address_v6(number));
        bench.in_node(node, &["ip", "address", "replace", &address, "dev", "eth0", "nodad"])?;
        bench.in_node(node, &["ip", "-6", "route", "replace", "default", "via", "2001:db8:1::1"])?;
    }
    off?;
    says(bench, "half", "Announced", "Announced", &["192.0.2.192 by node", "2001:db8:1:0:8:: by node"])?;
    answers(bench, "2001:db8:1:0:8::")?;
    delete_services(bench, &["half"])?;
    bench.kubectl(&["delete", "ippool", "lab-off"])?;
    Ok(())
}
