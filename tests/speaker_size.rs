//! What a speaker's memory comes to with 100 and with 5,000 virtual IPs, as their owner and as their standby. The real process, on a
//! LAN of network namespaces, with a small API server. The limits of an owner are promises, that of a standby is what the release
//! build takes and a little more, so that growth is noticed. Code built for debugging takes more room, which is added.

use std::io::{Read as _, Write as _};
use std::net::{Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use l2lb::api::node_label;
use lab::fake_api::FakeApi;
use lab::lan::{Lan, LanKind};
use lab::netns::Netns;
use lab::process::Process;
use libtest_mimic::{Arguments, Failed, Trial};
use pnet_base::MacAddr;
use serde_json::{Value, json};

const NODE: &str = "node1";
const NODE_MAC: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const HEALTH: &str = "127.0.0.1:7473";
const PATIENCE: Duration = Duration::from_secs(120);
/// The process is looked at once it has written nothing for this long.
const REST: Duration = Duration::from_secs(3);
/// Code, symbols and stacks of a build without optimisation.
const DEBUG_KIB: u64 = if cfg!(debug_assertions) { 24 << 10 } else { 0 };

fn main() -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    if !arguments.list {
        lab::sandbox::enter()?;
    }
    let cases = [
        ("an_owner_of_100_addresses_does_not_grow", 100, "Primary", 12 << 10),
        ("an_owner_of_5000_addresses_does_not_grow", 5000, "Primary", 20 << 10),
        ("a_standby_of_5000_addresses_does_not_grow", 5000, "Standby", 16 << 10),
    ];
    let trials = cases.into_iter().enumerate().map(|(number, (name, vips, role, limit))| {
        Trial::test(name, move || play(number, vips, role, limit).map_err(|error| Failed::from(format!("{error:#}"))))
    });
    Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
}

fn play(number: usize, vips: u32, role: &str, limit: u64) -> Result<()> {
    let suffix = format!("-z{number}");
    let mut lan = Lan::named(LanKind::Bridge, &suffix)?;
    let node = Netns::create(&format!("node{suffix}"))?;
    lan.attach(&node, "eth0", NODE_MAC, Some("192.0.2.11/24"))?;
    let api = FakeApi::new();
    // A cluster of some size: each speaker knows the interfaces of all.
    for peer in 2..=50 {
        api.put(&speaker(peer))?;
    }
    for index in 0..vips {
        api.put(&virtual_ip(index, role))?;
    }
    let door = api.door_in(&node)?;
    let folder = PathBuf::from(format!("/run/size{suffix}"));
    std::fs::create_dir_all(&folder).context("a folder for the test")?;
    let kubeconfig = door.kubeconfig(&folder.join("kubeconfig"))?;
    let mut command = node.command(env!("CARGO_BIN_EXE_l2lb"));
    command.arg("speaker").env("KUBECONFIG", kubeconfig).env("NODE_NAME", NODE).env("L2LB_DRAIN_TIMEOUT", "0");
    // As the chart sets it.
    command.env("MALLOC_ARENA_MAX", "1").env("MALLOC_TRIM_THRESHOLD_", "131072");
    let mut process = Process::spawn("the speaker", &mut command, &folder.join("speaker.log"))?;
    let settled = settle(&api, &node, &mut process, vips, role);
    let [now, peak, files] = ["VmRSS:", "VmHWM:", "RssFile:"].map(|field| memory(&process, field));
    let (now, peak, files) = (now?, peak?, files?);
    drop(process);
    node.delete()?;
    std::fs::remove_dir_all(&folder).context("the folder of the test")?;
    let took = settled?;
    println!(
        "{role} of {vips}: {:.1} MiB resident ({:.1} of it are files), {:.1} at most; at rest after {:.1} s, {} writes",
        now as f64 / 1024.0,
        files as f64 / 1024.0,
        peak as f64 / 1024.0,
        took.as_secs_f64(),
        api.writes()
    );
    ensure!(now <= limit + DEBUG_KIB, "{now} KiB resident with {vips} addresses as {role}: {limit} are allowed");
    Ok(())
}

/// Waits until the speaker has done all that it has to do. How long that took.
fn settle(api: &FakeApi, node: &Netns, process: &mut Process, vips: u32, role: &str) -> Result<Duration> {
    let begun = Instant::now();
    let (mut writes, mut since) = (0, begun);
    let mut assigned = 0;
    loop {
        process.expect_running()?;
        let now = Instant::now();
        if api.writes() != writes {
            (writes, since) = (api.writes(), now);
        }
        let owned =
            |index: &u32| api.claim(&vip(*index).to_string(), NODE).is_some_and(|claim| claim["state"] == "Owner");
        if assigned != vips {
            // Until then it is asked; what it has to do for them comes after that.
            assigned = node.run(virtual_ips_assigned)?.unwrap_or_default();
            since = Instant::now();
        }
        let said =
            role != "Primary" || now.saturating_duration_since(since) > REST && (0..vips).all(|index| owned(&index));
        // The Lease is renewed each 5 s: a rest is shorter.
        if assigned == vips && said && now.saturating_duration_since(since) > REST && now - begun > 3 * REST {
            return Ok(since - begun);
        }
        if now - begun > PATIENCE {
            let owned = (0..vips).filter(owned).count();
            bail!(
                "not at rest within {PATIENCE:?}, {assigned} assigned, {owned} owned: {}",
                lab::process::tail(process.log(), 20)
            );
        }
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// What the speaker says; nothing as long as it says nothing.
fn virtual_ips_assigned() -> Option<u32> {
    let mut stream = TcpStream::connect(HEALTH).ok()?;
    stream.set_read_timeout(Some(REST)).ok()?;
    stream.write_all(b"GET /metrics HTTP/1.0\r\nHost: localhost\r\n\r\n").ok()?;
    let mut text = String::new();
    stream.read_to_string(&mut text).ok()?;
    text.lines().find_map(|line| line.strip_prefix("l2lb_speaker_virtual_ips_assigned ")?.parse().ok())
}

/// A line of `/proc/PID/status`, in KiB.
fn memory(process: &Process, field: &str) -> Result<u64> {
    let status = std::fs::read_to_string(format!("/proc/{}/status", process.pid())).context("the speaker's status")?;
    let value = status.lines().find_map(|line| line.strip_prefix(field)?.trim().strip_suffix(" kB"));
    value.context("no such line")?.trim().parse().context("a number of KiB")
}

fn vip(index: u32) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(Ipv4Addr::new(198, 18, 0, 1)) + index)
}

fn speaker(number: u8) -> Value {
    let mac = MacAddr(2, 0, 0, 0, 1, number);
    let interface = |name: &str, announces: bool| {
        json!({
            "name": name, "mac": mac.to_string(), "addresses": [format!("192.0.2.{number}/24")],
            "carrier": true, "defaultRoute": announces, "announces": announces, "reason": "",
        })
    };
    json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "Speaker", "metadata": {"name": format!("node{number}")}, "spec": {},
        "status": {"interfaces": [interface("eth0", true)]},
    })
}

fn virtual_ip(index: u32, own: &str) -> Value {
    let name = vip(index).to_string();
    let other = if own == "Primary" { "Standby" } else { "Primary" };
    // Three different partners, as the controller would choose them.
    let partner = |number: u32| format!("node{}", 2 + number % 3);
    json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": name, "labels": {node_label(NODE): own.to_lowercase()}},
        "spec": {"address": name, "pool": "lan", "services": [format!("some-namespace/service-{index}")],
            "failover": "Standard", "placement": 1, "assignments": [
            {"node": NODE, "role": own, "interface": "eth0"},
            {"node": partner(index), "role": other, "interface": "eth0"},
            {"node": partner(index + 1), "role": "Standby", "interface": "eth0"},
        ]},
    })
}
