//! A LAN with one real speaker, an attacker and a client.

use std::collections::BTreeMap;
use std::io::{Read as _, Write as _};
use std::net::{IpAddr, Ipv4Addr, TcpStream};
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use l2lb::api::{node_label, virtual_ip_name};
use lab::fake_api::{Door, FakeApi};
use lab::lan::{Lan, LanKind, PortId};
use lab::netns::Netns;
use lab::process::Process;
use pnet_base::MacAddr;
use serde_json::{Value, json};

use crate::client::Client;

/// For all that should happen soon, on a machine that is busy.
pub const PATIENCE: Duration = Duration::from_secs(30);
/// The speaker's own node, and the NIC that it announces on.
pub const NODE: &str = "node1";
pub const NODE_MAC: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
/// Another node. It has a Speaker object and a part in the addresses; nobody runs there.
pub const PEER: &str = "node2";
pub const PEER_MAC: MacAddr = MacAddr(2, 0, 0, 0, 1, 2);
pub const ATTACKER_MAC: MacAddr = MacAddr(2, 0, 0, 0, 0xbb, 1);
pub const CLIENT_MAC: MacAddr = MacAddr(2, 0, 0, 0, 0xcc, 3);
pub const CLIENT_IP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 3);
/// The first virtual IP.
pub const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 100);
const HEALTH: (Ipv4Addr, u16) = (Ipv4Addr::LOCALHOST, 7473);

pub struct World {
    pub api: FakeApi,
    pub door: Door,
    pub lan: Lan,
    pub port: PortId,
    pub node: Netns,
    pub attacker: Netns,
    client: Netns,
    pub speaker: Process,
    folder: PathBuf,
}

/// What the speaker does with its addresses.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Part {
    Primary,
    Standby,
}

impl World {
    /// With `vips` addresses from [`VIP`] on. As their Primary, the speaker answers when this returns.
    pub fn new(suffix: &str, vips: u8, part: Part) -> Result<Self> {
        let addresses: Vec<IpAddr> = (0..vips).map(|index| vip(index).into()).collect();
        Self::with_addresses(suffix, &addresses, part)
    }

    /// The same, with these addresses.
    pub fn with_addresses(suffix: &str, addresses: &[IpAddr], part: Part) -> Result<Self> {
        let mut lan = Lan::named(LanKind::Bridge, suffix)?;
        let [node, attacker, client] =
            ["node", "attacker", "client"].map(|name| Netns::create(&format!("{name}{suffix}")));
        let (node, attacker, client) = (node?, attacker?, client?);
        let port = lan.attach(&node, "eth0", NODE_MAC, Some("192.0.2.11/24"))?;
        lan.attach(&attacker, "eth0", ATTACKER_MAC, None)?;
        lan.attach(&client, "eth0", CLIENT_MAC, None)?;
        let api = FakeApi::new();
        let door = api.door_in(&node)?;
        let folder = PathBuf::from(format!("/run/hostile{suffix}"));
        std::fs::create_dir_all(&folder).context("a folder for the test")?;
        let kubeconfig = door.kubeconfig(&folder.join("kubeconfig"))?;
        api.put(&json!({
            "apiVersion": "l2lb.io/v1alpha1", "kind": "Speaker", "metadata": {"name": PEER}, "spec": {},
            "status": {"interfaces": [{
                "name": "eth0", "mac": PEER_MAC.to_string(), "addresses": ["192.0.2.12/24"],
                "carrier": true, "defaultRoute": true, "announces": true, "reason": "",
            }]},
        }))?;
        for address in addresses {
            api.put(&virtual_ip(*address, part))?;
        }
        if addresses.iter().any(IpAddr::is_ipv6) {
            // On the LAN of the lab it may be off, so that there is only what a test sends.
            node.sysctl("net.ipv6.conf.eth0.disable_ipv6", "0")?;
        }
        let count = addresses.len() as f64;
        let mut command = node.command(env!("CARGO_BIN_EXE_l2lb"));
        command.arg("speaker").env("KUBECONFIG", kubeconfig).env("NODE_NAME", NODE).env("L2LB_DRAIN_TIMEOUT", "0");
        let speaker = Process::spawn("the speaker", &mut command, &folder.join("speaker.log"))?;
        let mut world = Self { api, door, lan, port, node, attacker, client, speaker, folder };
        world.wait("the speaker is ready", |world| Ok(world.get("/readyz")?.0 == 200))?;
        if part == Part::Primary {
            world.wait("the speaker owns all", |world| Ok(world.metrics()?.of("virtual_ips_owned") == count))?;
            world.wait("it says so", |world| {
                let claim = |address: &IpAddr| world.api.claim(&Self::name_of(*address), NODE);
                Ok(addresses.iter().all(|address| claim(address).is_some_and(|claim| claim["state"] == "Owner")))
            })?;
        } else {
            world.wait("the speaker has its part", |world| Ok(world.metrics()?.of("virtual_ips_assigned") == count))?;
        }
        Ok(world)
    }

    /// The name of an address's VirtualIP.
    pub fn name_of(address: IpAddr) -> String {
        virtual_ip_name(address)
    }

    /// The namespace of the client.
    pub fn client_netns(&self) -> &Netns {
        &self.client
    }

    /// What the speaker says about an address.
    pub fn claim(&self, index: u8) -> Option<Value> {
        self.api.claim(&vip(index).to_string(), NODE)
    }

    /// One more address, for this part.
    pub fn assign(&self, index: u8, part: Part) -> Result<()> {
        self.api.put(&virtual_ip(vip(index).into(), part))
    }

    /// Waits until `look` says so.
    pub fn wait(&mut self, what: &str, mut look: impl FnMut(&mut Self) -> Result<bool>) -> Result<Duration> {
        let begun = Instant::now();
        while !look(self)? {
            self.speaker.expect_running()?;
            if begun.elapsed() > PATIENCE {
                bail!("not within {PATIENCE:?}: {what}\n{}", lab::process::tail(self.speaker.log(), 20));
            }
            std::thread::sleep(Duration::from_millis(20));
        }
        Ok(begun.elapsed())
    }

    /// Asks the speaker over HTTP, as the kubelet does: the status and the text. Status 0 stands for no answer in a second.
    pub fn get(&self, path: &str) -> Result<(u16, String)> {
        self.node.run(|| http_get(path))?
    }

    /// The same, asked again as long as there is no answer: a busy machine may take longer than a second.
    pub fn get_in_the_end(&self, path: &str) -> Result<(u16, String)> {
        let begun = Instant::now();
        loop {
            let answer = self.get(path)?;
            if answer.0 != 0 || begun.elapsed() > PATIENCE {
                return Ok(answer);
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until it says this status, and returns the text of that very answer.
    pub fn wait_for_status(&mut self, what: &str, path: &str, wanted: u16) -> Result<String> {
        let mut said = String::new();
        self.wait(what, |world| {
            let (status, text) = world.get(path)?;
            said = text;
            Ok(status == wanted)
        })?;
        Ok(said)
    }

    /// Waits until each frame received was answered, handed over, or dropped for one reason. An answer is counted only once it has left.
    pub fn wait_until_it_adds_up(&mut self) -> Result<()> {
        let mut fault = None;
        let added = self.wait("what was received adds up", |world| {
            fault = world.metrics()?.adds_up().err();
            Ok(fault.is_none())
        });
        added.map(drop).map_err(|error| fault.unwrap_or(error))
    }

    /// What the speaker counts.
    pub fn metrics(&self) -> Result<Metrics> {
        let (status, text) = self.get_in_the_end("/metrics")?;
        ensure!(status == 200, "no metrics: {status} {text}");
        Ok(Metrics::read(&text))
    }

    /// A client that behaves.
    pub fn client(&self) -> Result<Client> {
        Client::new(&self.client)
    }

    /// What the speaker has logged so far, in octets.
    pub fn logged(&self) -> Result<u64> {
        Ok(std::fs::metadata(self.speaker.log()).context("the speaker's log")?.len())
    }

    /// Resident memory in KiB, and processor time used so far.
    pub fn usage(&self) -> Result<Usage> {
        let folder = format!("/proc/{}", self.speaker.pid());
        let status = std::fs::read_to_string(format!("{folder}/status")).context("the speaker's status")?;
        let rss = status.lines().find_map(|line| line.strip_prefix("VmRSS:")?.trim().strip_suffix(" kB"));
        let rss = rss.context("no VmRSS")?.trim().parse().context("VmRSS")?;
        let stat = std::fs::read_to_string(format!("{folder}/stat")).context("the speaker's stat")?;
        // After the name in parentheses: state is field 3, utime 14, stime 15, in ticks of 10 ms.
        let fields: Vec<&str> = stat.rsplit(')').next().unwrap_or_default().split_whitespace().collect();
        let ticks = |index: usize| -> Result<u64> { Ok(fields.get(index).context("a short stat")?.parse()?) };
        Ok(Usage { rss, cpu: Duration::from_millis(10 * (ticks(11)? + ticks(12)?)) })
    }
}

impl Drop for World {
    fn drop(&mut self) {
        if std::thread::panicking() {
            eprintln!("{}", lab::process::tail(self.speaker.log(), 20));
        }
        for netns in [&self.node, &self.attacker, &self.client] {
            drop(netns.clone().delete());
        }
        drop(std::fs::remove_dir_all(&self.folder));
    }
}

/// What a process costs.
#[derive(Clone, Copy, Debug)]
pub struct Usage {
    pub rss: u64,
    pub cpu: Duration,
}

/// The address with this index.
pub fn vip(index: u8) -> Ipv4Addr {
    Ipv4Addr::from(u32::from(VIP) + u32::from(index))
}

fn virtual_ip(address: IpAddr, part: Part) -> Value {
    let name = World::name_of(address);
    let (own, other) = match part {
        Part::Primary => ("Primary", "Standby"),
        Part::Standby => ("Standby", "Primary"),
    };
    json!({
        "apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP",
        "metadata": {"name": name, "labels": {node_label(NODE): own.to_lowercase()}},
        "spec": {"address": address.to_string(), "pool": "lan", "services": [], "failover": "Standard", "placement": 1, "assignments": [
            {"node": NODE, "role": own, "interface": "eth0"}, {"node": PEER, "role": other, "interface": "eth0"},
        ]},
    })
}

fn http_get(path: &str) -> Result<(u16, String)> {
    let limit = Duration::from_secs(1);
    let Ok(mut stream) = TcpStream::connect_timeout(&HEALTH.into(), limit) else { return Ok((0, String::new())) };
    stream.set_read_timeout(Some(limit))?;
    if write!(stream, "GET {path} HTTP/1.0\r\nHost: localhost\r\n\r\n").is_err() {
        return Ok((0, String::new()));
    }
    let mut text = String::new();
    if stream.read_to_string(&mut text).is_err() || text.is_empty() {
        return Ok((0, String::new()));
    }
    let status = text.split_whitespace().nth(1).and_then(|status| status.parse().ok());
    let body = text.split_once("\r\n\r\n").map_or("", |(_, body)| body);
    Ok((status.with_context(|| format!("no HTTP answer: {text}"))?, body.to_owned()))
}

/// Metrics of the speaker, by name and labels.
#[derive(Clone, Debug)]
pub struct Metrics(BTreeMap<String, f64>);

impl Metrics {
    fn read(text: &str) -> Self {
        let lines = text.lines().filter_map(|line| line.strip_prefix("l2lb_speaker_")?.rsplit_once(' '));
        Self(lines.filter_map(|(name, value)| Some((name.to_owned(), value.parse().ok()?))).collect())
    }

    /// A metric, of all labels together if it has some; 0 if there is none.
    pub fn of(&self, name: &str) -> f64 {
        let total = format!("{name}_total");
        self.0.get(name).or_else(|| self.0.get(&total)).copied().unwrap_or_else(|| self.sum(name))
    }

    /// Frames dropped for this reason.
    pub fn dropped_for(&self, reason: &str) -> f64 {
        self.of(&format!("frames_dropped_total{{reason=\"{reason}\"}}"))
    }

    /// The sum over all labels.
    pub fn sum(&self, name: &str) -> f64 {
        let start = format!("{name}_total{{");
        self.0.iter().filter(|(known, _)| known.starts_with(&start)).map(|(_, value)| value).sum()
    }

    /// All frames that the speaker sent.
    pub fn sent(&self) -> f64 {
        ["requests_answered", "probes_sent", "monitoring_requests_sent"].iter().map(|name| self.of(name)).sum::<f64>()
            + self.sum("announcements_sent")
    }

    /// Each frame received was answered, handed over, or dropped for one reason.
    pub fn adds_up(&self) -> Result<()> {
        let (received, answered) = (self.of("frames_received"), self.of("requests_answered"));
        let (handed_over, dropped) = (self.of("frames_handed_over"), self.sum("frames_dropped"));
        ensure!(
            received == answered + handed_over + dropped,
            "{received} received, but {answered} answered, {handed_over} handed over and {dropped} dropped: {:?}",
            self.0
        );
        Ok(())
    }
}
