//! `make bench-latency`: how long the answer to an ARP request takes, with one core busy: the speaker's, that of a minimal responder in
//! C on the same kind of socket, and the kernel's own. All three on one LAN in the same run, asked in turn, so that what else the
//! machine does falls on all of them alike. `-- --requests N` sets how often each is asked (20,000), `-- --idle` leaves the core
//! alone, `-- --l2lb PATH` takes another program.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::path::Path;
use std::process::{Command, ExitCode};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use l2lb::api::node_label;
use lab::fake_api::FakeApi;
use lab::lan::frame::{ARP_REPLY, ARP_REQUEST, Arp, arp, arp_frame};
use lab::lan::{Lan, LanKind};
use lab::netns::Netns;
use lab::process::{Process, run};
use nix::sched::{CpuSet, sched_setaffinity};
use nix::unistd::Pid;
use pnet_base::MacAddr;
use pnet_datalink::{Channel, Config};
use serde_json::json;
use socket2::{Domain, Socket, Type};

const CLIENT: (MacAddr, Ipv4Addr) = (MacAddr(2, 0, 0, 0, 0xcc, 3), Ipv4Addr::new(192, 0, 2, 3));
const NAMES: [&str; 3] = ["l2lb speaker", "C responder", "kernel"];
const LIMIT: Duration = Duration::from_secs(1);
/// Between an answer and the next question: everybody is asleep again by then.
const PAUSE: Duration = Duration::from_micros(300);

fn main() -> ExitCode {
    let arguments: Vec<String> = std::env::args().collect();
    let after = |name: &str| arguments.iter().skip_while(|argument| *argument != name).nth(1);
    let requests = after("--requests").and_then(|number| number.parse().ok()).unwrap_or(20_000);
    let idle = arguments.iter().any(|argument| argument == "--idle");
    let program = after("--l2lb").map_or(env!("CARGO_BIN_EXE_l2lb"), String::as_str);
    match lab::sandbox::enter().and_then(|()| bench(program, requests, idle)) {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn vip(index: usize) -> Ipv4Addr {
    Ipv4Addr::new(192, 0, 2, 100 + index as u8)
}

fn bench(program: &str, requests: usize, idle: bool) -> Result<()> {
    let mut lan = Lan::new(LanKind::Bridge)?;
    let mut nodes = Vec::new();
    for index in 0..NAMES.len() {
        let node = Netns::create(&format!("node{index}"))?;
        let address = match index {
            2 => vip(2),
            _ => Ipv4Addr::new(192, 0, 2, 11 + index as u8),
        };
        lan.attach(&node, "eth0", MacAddr(2, 0, 0, 0, 1, index as u8 + 1), Some(&format!("{address}/24")))?;
        nodes.push(node);
    }
    let client = Netns::create("client")?;
    lan.attach(&client, "eth0", CLIENT.0, None)?;
    let folder = Path::new("/run/bench");
    std::fs::create_dir_all(folder).context("a folder")?;
    let _speaker = start_speaker(program, &nodes[0], folder)?;
    let _responder = start_responder(&nodes[1], folder)?;

    let socket = open(&client)?;
    for (index, name) in NAMES.iter().enumerate() {
        let begun = Instant::now();
        while ask(&socket, index)?.is_none() {
            ensure!(begun.elapsed() < Duration::from_secs(30), "{name} does not answer");
        }
    }
    let busy = (!idle).then(Busy::start).transpose()?;
    let mut times: [Vec<Duration>; 3] = Default::default();
    let mut lost = [0; 3];
    for round in 0..requests {
        for turn in 0..NAMES.len() {
            // Each is asked after each of the others.
            let index = if round % 2 == 0 { turn } else { NAMES.len() - 1 - turn };
            match ask(&socket, index)? {
                Some(time) => times[index].push(time),
                None => {
                    lost[index] += 1;
                    times[index].push(LIMIT);
                }
            }
            std::thread::sleep(PAUSE);
        }
    }
    drop(busy);
    report(times, lost, idle);
    Ok(())
}

/// The speaker with one address, and an API server that says so.
fn start_speaker(program: &str, node: &Netns, folder: &Path) -> Result<(Process, lab::fake_api::Door)> {
    let api = FakeApi::new();
    let address = vip(0).to_string();
    api.put(&json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": address, "labels": {node_label("node0"): "primary"}},
        "spec": {"address": address, "pool": "lan", "services": [], "failover": "Standard", "placement": 1,
                 "assignments": [{"node": "node0", "role": "Primary", "interface": "eth0"}]},
    }))?;
    let door = api.door_in(node)?;
    let mut command = node.command(program);
    command.arg("speaker").env("NODE_NAME", "node0").env("KUBECONFIG", door.kubeconfig(&folder.join("kubeconfig"))?);
    Ok((Process::spawn("the speaker", &mut command, &folder.join("speaker.log"))?, door))
}

fn start_responder(node: &Netns, folder: &Path) -> Result<Process> {
    let program = folder.join("responder");
    let source = Path::new(env!("CARGO_MANIFEST_DIR")).join("benches/latency/responder.c");
    run(Command::new("cc").args(["-O2", "-Wall", "-o"]).arg(&program).arg(source))
        .context("compiling the C responder")?;
    let mut command = node.command(&program);
    command.arg("eth0").arg(vip(1).to_string());
    Process::spawn("the C responder", &mut command, &folder.join("responder.log"))
}

fn open(netns: &Netns) -> Result<Socket> {
    netns.run(|| -> Result<Socket> {
        let nic = pnet_datalink::interfaces().into_iter().find(|nic| nic.name == "eth0").context("no eth0")?;
        let socket = Socket::new(Domain::PACKET, Type::RAW, None).context("a packet socket")?;
        let descriptor = std::os::fd::IntoRawFd::into_raw_fd(socket.try_clone().context("a packet socket")?);
        let config = Config { promiscuous: false, socket_fd: Some(descriptor), ..Config::default() };
        match pnet_datalink::channel(&nic, config).context("binding a packet socket")? {
            // It closes its own descriptor; the socket stays bound.
            Channel::Ethernet(..) => {}
            _ => bail!("an unknown kind of channel"),
        }
        socket.set_read_timeout(Some(LIMIT))?;
        Ok(socket)
    })?
}

/// Asks one of them; the time until its answer.
fn ask(socket: &Socket, index: usize) -> Result<Option<Duration>> {
    let target_mac = MacAddr::zero();
    let request =
        Arp { operation: ARP_REQUEST, sender_mac: CLIENT.0, sender_ip: CLIENT.1, target_mac, target_ip: vip(index) };
    let frame = arp_frame(MacAddr::broadcast(), CLIENT.0, request);
    let mut buffer = [0; 2048];
    let begun = Instant::now();
    socket.send(&frame).context("asking")?;
    while begun.elapsed() < LIMIT {
        let Ok(length) = (&*socket).read(&mut buffer) else { continue };
        let time = begun.elapsed();
        if arp(&buffer[..length]).is_some_and(|answer| answer.operation == ARP_REPLY && answer.sender_ip == vip(index))
        {
            return Ok(Some(time));
        }
    }
    Ok(None)
}

/// A loop that keeps the first core busy.
struct Busy(Arc<AtomicBool>, Option<std::thread::JoinHandle<()>>);

impl Busy {
    fn start() -> Result<Self> {
        let mut first = CpuSet::new();
        first.set(0).context("the first core")?;
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            if let Err(error) = sched_setaffinity(Pid::from_raw(0), &first) {
                eprintln!("warning: the busy loop is not bound to the first core: {error}");
            }
            while !told.load(Ordering::Relaxed) {
                std::hint::spin_loop();
            }
        });
        Ok(Self(stop, Some(thread)))
    }
}

impl Drop for Busy {
    fn drop(&mut self) {
        self.0.store(true, Ordering::Relaxed);
        if let Some(thread) = self.1.take() {
            drop(thread.join());
        }
    }
}

fn report(mut times: [Vec<Duration>; 3], lost: [usize; 3], idle: bool) {
    let cores = std::thread::available_parallelism().map_or(0, usize::from);
    println!("ARP answers, {cores} cores, {}; microseconds", if idle { "none kept busy" } else { "one of them busy" });
    println!("{:<14} {:>8} {:>8} {:>8} {:>8} {:>8} {:>6}", "", "answers", "p50", "p90", "p99", "max", "lost");
    let mut quantiles = [[0.0; 4]; 3];
    for ((name, times), (lost, row)) in NAMES.iter().zip(&mut times).zip(lost.iter().zip(&mut quantiles)) {
        times.sort();
        let at = |part: f64| {
            let index = ((times.len() as f64 * part) as usize).min(times.len().saturating_sub(1));
            times.get(index).map_or(f64::NAN, |time| time.as_secs_f64() * 1e6)
        };
        *row = [at(0.5), at(0.9), at(0.99), at(1.0)];
        let [p50, p90, p99, max] = *row;
        println!("{name:<14} {:>8} {p50:>8.1} {p90:>8.1} {p99:>8.1} {max:>8.1} {lost:>6}", times.len());
    }
    let (p50, p99) = (quantiles[0][0] / quantiles[1][0], quantiles[0][2] / quantiles[1][2]);
    println!("l2lb : C responder  p50 {p50:.2} (at most 1.15)  p99 {p99:.2} (at most 2)");
}
