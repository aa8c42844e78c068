//! Every file of `examples/` is applied as it is, and does what its comments say. YAML on the pages is taken by the API server.

use std::{
    collections::BTreeSet,
    fs,
    io::{self, Read as _, Write as _},
    net::{TcpListener, TcpStream},
    path::PathBuf,
    time::Duration,
};

use anyhow::{Context as _, Result, ensure};
use serde_json::json;

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("every_example_has_a_check", all_are_checked),
    ("yaml_on_the_pages_is_taken_by_the_api_server", pages),
    ("examples_are_taken_by_the_api_server_without_a_warning", strict),
    ("example_pool_and_web", first_steps),
    ("example_pool_by_namespace", by_namespace),
    ("example_pool_by_label", by_label),
    ("example_pool_on_request", on_request),
    ("example_pool_avoid_buggy_ips", avoid_buggy_ips),
    ("example_dual_stack", dual_stack),
    ("example_requested_address", requested_address),
    ("example_shared_address", shared_address),
    ("example_client_address", client_address),
    ("example_no_node_ports", no_node_ports),
    ("example_load_balancer_class", load_balancer_class),
    ("example_external_backend", external_backend),
    ("example_announce", announce),
];

fn folder(name: &str) -> PathBuf {
    lab::cluster::repository().join(name)
}

fn files() -> Result<BTreeSet<String>> {
    let mut files = BTreeSet::new();
    for entry in fs::read_dir(folder("examples"))? {
        let name = entry?.file_name().to_string_lossy().into_owned();
        files.extend(name.strip_suffix(".yaml").map(str::to_owned));
    }
    Ok(files)
}

/// A new example without a test of its own is found here.
fn all_are_checked(_: &Bench) -> Result<()> {
    let mut checked: BTreeSet<String> =
        TESTS.iter().filter_map(|(name, _)| Some(name.strip_prefix("example_")?.replace('_', "-"))).collect();
    ensure!(checked.remove("pool-and-web"));
    checked.extend(["pool".to_owned(), "web".to_owned()]);
    let files = files()?;
    ensure!(checked == files, "files: {files:?}, tests: {checked:?}");
    Ok(())
}

fn strict(bench: &Bench) -> Result<()> {
    for name in files()? {
        // Objects in a namespace of the same file: a dry run makes no namespace.
        let text = fs::read_to_string(folder("examples").join(format!("{name}.yaml")))?;
        let documents = text.split("\n---\n").filter(|document| !document.contains("\n  namespace: team-"));
        for document in documents {
            bench
                .apply_text(document, &["--dry-run=server", "--validate=strict", "--warnings-as-errors"])
                .or_else(|error| {
                    // Deprecated by Kubernetes and understood all the same, as the example says.
                    let text = format!("{error:#}");
                    if text.contains("spec.loadBalancerIP is deprecated") { Ok(text) } else { Err(error) }
                })
                .with_context(|| name.clone())?;
        }
    }
    Ok(())
}

fn pages(bench: &Bench) -> Result<()> {
    let mut count = 0;
    for page in ["README.md", "docs/no-address.md", "docs/metallb.md"] {
        let text = fs::read_to_string(folder(page))?;
        for block in text.split("```yaml\n").skip(1).filter_map(|rest| rest.split("```").next()) {
            for document in block.split("---\n").filter(|document| document.contains("l2lb.io/")) {
                let strictly = ["--dry-run=server", "--validate=strict"];
                bench.apply_text(document, &strictly).with_context(|| format!("{page}:\n{document}"))?;
                count += 1;
            }
        }
    }
    ensure!(count >= 2, "only {count} documents were found");
    Ok(())
}

/// An example that is applied; taken away again by [`Example::remove`].
struct Example<'a> {
    bench: &'a Bench,
    path: String,
}

impl<'a> Example<'a> {
    fn apply(bench: &'a Bench, name: &str) -> Result<Self> {
        let path = folder("examples").join(format!("{name}.yaml")).display().to_string();
        bench.kubectl(&["apply", "-f", &path])?;
        Ok(Self { bench, path })
    }

    /// All that it made, and waits until no address is in use any more.
    fn remove(self) -> Result<()> {
        self.bench.kubectl(&["delete", "-f", &self.path])?;
        eventually(PATIENCE, "all addresses are given back", || {
            Ok(self.bench.kubectl(&["get", "virtualips", "-o", "name"])?.is_empty().then_some(()))
        })
    }
}

fn is_web(answer: &str) -> Result<()> {
    ensure!(answer.contains("pod=web-"), "the answer is: {answer}");
    Ok(())
}

/// Where an address comes from, as the Service says it.
fn comes_from(bench: &Bench, namespace: &str, service: &str, pool: &str) -> Result<()> {
    let allocated = condition(&bench.get_in(namespace, "service", service)?, "l2lb.io/Allocated");
    let message = text(&allocated["message"]);
    ensure!(allocated["status"] == "True" && message.ends_with(&format!("from pool {pool}")), "{service}: {allocated}");
    Ok(())
}

/// The addresses of two Services that are announced, each answered.
fn web_answers(bench: &Bench, service: &str, pool: &str) -> Result<String> {
    let address = announced(bench, service)?;
    comes_from(bench, "default", service, pool)?;
    is_web(&answers(bench, &address)?)?;
    Ok(address)
}

fn first_steps(bench: &Bench) -> Result<()> {
    // The cluster was brought up with both; its tests go on using the pool and the Deployment.
    Example::apply(bench, "pool")?;
    let _web = Example::apply(bench, "web")?;
    let address = web_answers(bench, "web", "lan")?;
    let last: u8 = address.rsplit('.').next().and_then(|last| last.parse().ok()).context("an IPv4 address")?;
    ensure!([5..=5, 64..=95, 200..=220].iter().any(|range| range.contains(&last)) && last != 70, "{address}");
    // 32 and 21 and 1, without the one that is excluded.
    total_is(bench, "lan", "ipv4", "53")?;
    let refused = asking("excluded", json!({"l2lb.io/addresses": "192.0.2.70"}));
    bench.apply(&refused)?;
    says(bench, "excluded", "Allocated", "AddressNotInPool", &["192.0.2.70"])?;
    delete_services(bench, &["excluded"])?;
    delete_services(bench, &["web"])
}

fn by_namespace(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "pool-by-namespace")?;
    let shop = announced_in(bench, "team-a", "shop")?;
    let blog = announced_in(bench, "team-b", "blog")?;
    comes_from(bench, "team-a", "shop", "teams")?;
    comes_from(bench, "team-b", "blog", "teams")?;
    let mut given = [shop, blog];
    given.sort();
    ensure!(given == ["192.0.2.96", "192.0.2.97"], "{given:?}");
    // Of another namespace: not even if it asks.
    bench.apply(&asking("stranger", json!({"l2lb.io/pool": "teams"})))?;
    says(bench, "stranger", "Allocated", "NoMatchingPool", &["it is not for namespace default"])?;
    delete_services(bench, &["stranger"])?;
    example.remove()
}

fn by_label(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "pool-by-label")?;
    web_answers(bench, "web-gold", "gold")?;
    let silver = web_answers(bench, "web-silver", "metal")?;
    ensure!(silver == "192.0.2.106", "{silver}");
    // The first pool has two addresses; the third Service gets one of the second pool.
    for (name, pool) in [("gold-2", "gold"), ("gold-3", "metal")] {
        bench.apply(&service(name, json!({"metadata": {"labels": {"tier": "gold"}}})))?;
        announced(bench, name)?;
        comes_from(bench, "default", name, pool)?;
    }
    delete_services(bench, &["gold-2", "gold-3"])?;
    example.remove()
}

fn on_request(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "pool-on-request")?;
    let address = web_answers(bench, "web-public", "public")?;
    ensure!(address == "192.0.2.112", "{address}");
    for (name, key) in [("m-1", "metallb.io/address-pool"), ("m-2", "metallb.universe.tf/address-pool")] {
        bench.apply(&asking(name, json!({key: "public"})))?;
        web_answers(bench, name, "public")?;
    }
    // Who does not ask gets none of it, even when it is the only pool that has any.
    bench.kubectl(&["delete", "ippool", "lan"])?;
    bench.apply(&service("silent", json!({})))?;
    says(
        bench,
        "silent",
        "Allocated",
        "NoMatchingPool",
        &["public: autoAssign is false, ask for it with l2lb.io/pool"],
    )?;
    // Or for one of its addresses.
    bench.apply(&asking("by-address", json!({"l2lb.io/addresses": "192.0.2.119"})))?;
    web_answers(bench, "by-address", "public")?;
    Example::apply(bench, "pool")?;
    announced(bench, "silent")?;
    delete_services(bench, &["m-1", "m-2", "silent", "by-address"])?;
    example.remove()
}

fn avoid_buggy_ips(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "pool-avoid-buggy-ips")?;
    let address = announced(bench, "web-other-subnet")?;
    comes_from(bench, "default", "web-other-subnet", "whole-24")?;
    ensure!(address == "198.51.100.1", "{address}");
    total_is(bench, "whole-24", "ipv4", "254")?;
    for buggy in ["198.51.100.0", "198.51.100.255"] {
        bench.apply(&asking("buggy", json!({"l2lb.io/addresses": buggy})))?;
        says(bench, "buggy", "Allocated", "AddressNotInPool", &[buggy])?;
    }
    delete_services(bench, &["buggy"])?;
    // The route that the comment speaks of.
    bench.client_ip(&["route", "add", "198.51.100.0/24", "dev", "eth0"])?;
    let answer = answers(bench, &address);
    bench.client_ip(&["route", "del", "198.51.100.0/24", "dev", "eth0"])?;
    is_web(&answer?)?;
    example.remove()
}

fn dual_stack(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "dual-stack")?;
    let addresses = addresses_of(bench, "web-both")?;
    ensure!(addresses == ["192.0.2.120", "2001:db8:1::1:0"], "{addresses:?}");
    says(bench, "web-both", "Allocated", "Allocated", &["192.0.2.120 from pool both, 2001:db8:1::1:0 from pool both"])?;
    says(bench, "web-both", "Announced", "Announced", &["192.0.2.120 by node", "2001:db8:1::1:0 by node"])?;
    for address in &addresses {
        is_web(&answers(bench, address)?)?;
    }
    // 2^64 without 2^16.
    total_is(bench, "both", "ipv6", "18446744073709486080")?;
    example.remove()
}

fn requested_address(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "requested-address")?;
    for (name, wanted) in [
        ("web-by-annotation", "192.0.2.201"),
        ("web-by-metallb-annotation", "192.0.2.202"),
        ("web-by-field", "192.0.2.203"),
    ] {
        let address = web_answers(bench, name, "lan")?;
        ensure!(address == wanted, "{name}: {address}");
    }
    // What is taken is not replaced by another one.
    bench.apply(&asking("too-late", json!({"metallb.universe.tf/loadBalancerIPs": "192.0.2.203"})))?;
    says(bench, "too-late", "Allocated", "AddressInUse", &["192.0.2.203", "default/web-by-field"])?;
    ensure!(shown(&bench.get("service", "too-late")?).is_empty());
    delete_services(bench, &["too-late"])?;
    example.remove()
}

fn shared_address(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "shared-address")?;
    let (tcp, udp) = (announced(bench, "dns-tcp")?, announced(bench, "dns-udp")?);
    ensure!(tcp == udp, "{tcp} and {udp}");
    let answer = answers(bench, &format!("{tcp}:53"))?;
    ensure!(answer.contains("pod=dns-"), "{answer}");
    let to = format!("{udp}:53").parse()?;
    let answer = eventually(PATIENCE, "a datagram is answered", || Ok(bench.datagram(to).ok()))?;
    ensure!(answer.contains("pod=dns-"), "{answer}");
    let users = bench.get("virtualip", &tcp)?["spec"]["services"].clone();
    ensure!(users == json!(["default/dns-tcp", "default/dns-udp"]), "{users}");
    example.remove()
}

fn client_address(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "client-address")?;
    let address = web_answers(bench, "web-client-address", "lan")?;
    let answer = answers(bench, &address)?;
    ensure!(answer.contains("from=192.0.2.3:"), "the Pod sees another client: {answer}");
    // Where it is announced the Pod is, too.
    let node = announcing_node(bench, &address)?;
    ensure!(answer.contains(&format!("node={node} ")), "{node} announces, and the answer is from: {answer}");
    example.remove()
}

fn no_node_ports(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "no-node-ports")?;
    web_answers(bench, "web-no-node-ports", "lan")?;
    let port = bench.get("service", "web-no-node-ports")?["spec"]["ports"][0].clone();
    ensure!(port["nodePort"].is_null(), "it has a node port: {port}");
    example.remove()
}

fn load_balancer_class(bench: &Bench) -> Result<()> {
    let example = Example::apply(bench, "load-balancer-class")?;
    // Installed without a class: only the Service without one is served. By the time that it is, both were seen.
    bench.apply(&service("classless", json!({})))?;
    announced(bench, "classless")?;
    let untouched = bench.get("service", "web-class")?;
    ensure!(untouched["status"]["conditions"].is_null() && shown(&untouched).is_empty(), "{}", untouched["status"]);
    let upgrade = |class: &str| bench.upgrade(&["--reuse-values", "--set", &format!("loadBalancerClass={class}")]);
    upgrade("l2lb.io/lan")?;
    web_answers(bench, "web-class", "lan")?;
    eventually(PATIENCE, "the Service without a class is no longer served", || {
        let service = bench.get("service", "classless")?;
        Ok((shown(&service).is_empty() && condition(&service, "l2lb.io/Allocated").is_null()).then_some(()))
    })?;
    upgrade("")?;
    announced(bench, "classless")?;
    delete_services(bench, &["classless"])?;
    example.remove()
}

/// Answers one request, which is read first, so that closing the connection does not reset it.
fn print_ready(mut stream: TcpStream) -> io::Result<()> {
    stream.set_nonblocking(false)?;
    stream.set_read_timeout(Some(Duration::from_secs(1)))?;
    if stream.read(&mut [0; 1024])? == 0 {
        return Err(io::ErrorKind::UnexpectedEof.into());
    }
    stream.write_all(b"HTTP/1.0 200 OK\r\n\r\nready to print\n")
}

fn external_backend(bench: &Bench) -> Result<()> {
    let printer = ForeignHost::with(bench, "192.0.2.9")?;
    let listener = printer.netns().run(|| TcpListener::bind("192.0.2.9:8080"))??;
    listener.set_nonblocking(true)?;
    let example = Example::apply(bench, "external-backend")?;
    let address = announced(bench, "printer")?;
    comes_from(bench, "default", "printer", "lan")?;
    std::thread::scope(|scope| {
        let client = scope.spawn(|| answers(bench, &address));
        while !client.is_finished() {
            if let Ok((stream, _)) = listener.accept() {
                // A client that gave up asks again.
                print_ready(stream).unwrap_or_else(|error| println!("a request was not answered: {error}"));
            }
            std::thread::sleep(Duration::from_millis(5));
        }
        let answer = client.join().map_err(|_| anyhow::anyhow!("the client panicked"))??;
        ensure!(answer.contains("ready to print"), "{answer}");
        Ok(())
    })?;
    drop(listener);
    example.remove()
}

fn announce(bench: &Bench) -> Result<()> {
    for mark in [["node1", "lan=connected"], ["node2", "lan=connected"], ["node2", "uplink=10g"]] {
        bench.kubectl(&[&["label", "node"], &mark[..]].concat())?;
    }
    let example = Example::apply(bench, "announce")?;
    let address = web_answers(bench, "web-uplink", "uplink")?;
    let vip = bench.get("virtualip", &address)?;
    ensure!(vip["spec"]["failover"] == "Fast", "{}", vip["spec"]);
    let assigned = vip["spec"]["assignments"].as_array().cloned().unwrap_or_default();
    let nodes: BTreeSet<String> = assigned.iter().map(|entry| text(&entry["node"])).collect();
    ensure!(nodes == BTreeSet::from(["node1".to_owned(), "node2".to_owned()]), "{assigned:?}");
    ensure!(assigned.iter().all(|entry| entry["interface"] == "eth0"), "{assigned:?}");
    ensure!(announcing_node(bench, &address)? == "node2", "the preferred node does not announce");
    // Without the preferred node another one that is selected; without any of those none, and the Service says why.
    bench.kubectl(&["label", "node", "node2", "lan-"])?;
    ensure!(moved_from(bench, &address, "node2")? == "node1");
    bench.kubectl(&["label", "node", "node1", "lan-"])?;
    let words =
        ["node1: the pool's announce.nodeSelector does not select it", "node3: the pool's announce.nodeSelector"];
    says(bench, "web-uplink", "Announced", "NoEligibleNode", &words)?;
    bench.kubectl(&["label", "node", "node2", "uplink-"])?;
    example.remove()
}
