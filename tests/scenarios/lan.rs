//! Trials of the lab's own LAN: what the scenarios stand on.

use std::net::{Ipv4Addr, SocketAddrV4};
use std::sync::PoisonError;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use lab::lan::frame::ArpForm;
use lab::lan::host::{UdpSink, neighbour, stream_udp};
use lab::lan::{GATEWAY_IP, GATEWAY_MAC, Ingress, Lan, LanKind, PortId, SwitchOptions, said_about};
use lab::netns::Netns;
use libtest_mimic::{Failed, Trial};
use pnet_base::MacAddr;

use crate::announcer::{Failure, eventually};

const PATIENCE: Duration = Duration::from_secs(10);
const A: (MacAddr, &str) = (MacAddr(2, 0, 0, 0, 0, 0xa), "192.0.2.10");
pub const B: (MacAddr, &str) = (MacAddr(2, 0, 0, 0, 0, 0xb), "192.0.2.11");

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(format!("lan_{name}"), move || {
            let _beside_others = crate::MACHINE.read().unwrap_or_else(PoisonError::into_inner);
            test().map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    vec![
        trial("switch_carries_a_download", || carries_a_download(switch(), "-d1")),
        trial("bridge_carries_a_download", || carries_a_download(LanKind::Bridge, "-d2")),
        trial("switch_carries_and_records_ipv6", carries_ipv6),
        trial("switch_pulls_and_plugs_a_cable", || pulls_and_plugs_a_cable(switch(), "-c1")),
        trial("bridge_pulls_and_plugs_a_cable", || pulls_and_plugs_a_cable(LanKind::Bridge, "-c2")),
        trial("switch_loses_a_host_whose_namespace_went", || loses_a_dead_host(switch(), "-l1")),
        trial("bridge_loses_a_host_whose_namespace_went", || loses_a_dead_host(LanKind::Bridge, "-l2")),
        trial("switch_notices_that_a_host_went", notices_a_dead_host),
        trial("gateway_is_a_host_for_hosts", gateway_is_a_host),
        trial("two_kinds_have_the_same_gateway", || pings_gateway(LanKind::Bridge, "-g2")),
    ]
}

pub fn switch() -> LanKind {
    LanKind::Switch(SwitchOptions::default())
}

/// Two hosts on a LAN, gone with the value.
pub struct Pair {
    pub lan: Lan,
    pub hosts: [Netns; 2],
    pub ports: [PortId; 2],
}

impl Pair {
    pub fn new(kind: LanKind, suffix: &str) -> Result<Self> {
        let mut lan = Lan::named(kind, suffix)?;
        let hosts = [Netns::create(&format!("a{suffix}"))?, Netns::create(&format!("b{suffix}"))?];
        let mut attach =
            |host: &Netns, (mac, ip): (MacAddr, &str)| lan.attach(host, "eth0", mac, Some(&format!("{ip}/24")));
        let ports = [attach(&hosts[0], A)?, attach(&hosts[1], B)?];
        Ok(Self { lan, hosts, ports })
    }
}

impl Drop for Pair {
    fn drop(&mut self) {
        for host in &self.hosts {
            // One of them may be what the test deleted.
            drop(host.clone().delete());
        }
    }
}

pub fn wait(what: &str, mut look: impl FnMut() -> Result<bool>) -> Result<()> {
    let seen = eventually(PATIENCE, || Ok(look()?.then_some(())));
    match seen {
        Ok(Some(())) => Ok(()),
        Ok(None) => anyhow::bail!("not within {PATIENCE:?}: {what}"),
        Err(Failure::Lab(error)) => Err(error),
        Err(failure) => anyhow::bail!("{failure}"),
    }
}

/// TCP with full-sized segments, both checksummed and in order.
fn carries_a_download(kind: LanKind, suffix: &str) -> Result<()> {
    const SIZE: usize = 10_000_000;
    let pair = Pair::new(kind, suffix)?;
    let server = pair.hosts[1].run(|| std::net::TcpListener::bind((Ipv4Addr::UNSPECIFIED, 80)))??;
    let serving = std::thread::spawn(move || -> std::io::Result<()> {
        use std::io::{Read, Write};
        let (mut stream, _) = server.accept()?;
        let mut request = [0; 1024];
        let _ = stream.read(&mut request)?;
        write!(stream, "HTTP/1.1 200 OK\r\nContent-Length: {SIZE}\r\nConnection: close\r\n\r\n")?;
        stream.write_all(&vec![b'x'; SIZE])
    });
    let url = format!("http://{}/", B.1);
    let output = pair.hosts[0]
        .command("curl")
        .args(["-sS", "--max-time", "30", "-o", "/dev/null"])
        .args(["-w", "%{size_download}", &url])
        .output()?;
    let printed = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && printed == SIZE.to_string(),
        "curl: {printed} {}",
        String::from_utf8_lossy(&output.stderr)
    );
    serving.join().map_err(|_| anyhow::anyhow!("the server panicked"))??;
    Ok(())
}

/// Two Linux hosts find each other by neighbour discovery, and the record tells who said what.
fn carries_ipv6() -> Result<()> {
    if !lab::families::has_ipv6() {
        eprintln!("\nSKIPPED IPv6 on the lab's switch: this kernel has no IPv6");
        return Ok(());
    }
    let pair = Pair::new(switch(), "-v6")?;
    let addresses: [std::net::Ipv6Addr; 2] = ["2001:db8:1::a".parse()?, "2001:db8:1::b".parse()?];
    for (host, address) in pair.hosts.iter().zip(addresses) {
        lab::lan::turn_ipv6_on(host, "eth0", &format!("{address}/64"))?;
    }
    let sink = UdpSink::listen(&pair.hosts[1], 9)?;
    let _stream = stream_udp(&pair.hosts[0], std::net::SocketAddr::from((addresses[1], 9)), 100)?;
    wait("datagrams arrive", || Ok(sink.received() > 5))?;
    let known = neighbour(&pair.hosts[0], "eth0", addresses[1])?.and_then(|found| found.mac);
    ensure!(known == Some(B.0), "{known:?}");
    let answers = said_about(&pair.lan.frames()?, addresses[1]);
    let answer = answers.first().context("nobody answered")?;
    let told = (answer.ingress, answer.ethernet_source, answer.sender_mac, answer.form);
    ensure!(told == (Ingress::Port(pair.ports[1]), B.0, B.0, ArpForm::Reply), "{answers:?}");
    let datagrams = pair.lan.frames()?.iter().filter_map(|frame| frame.udp().map(|udp| udp.destination.ip())).count();
    ensure!(datagrams > 5, "{datagrams} datagrams are recorded");
    Ok(())
}

fn pulls_and_plugs_a_cable(kind: LanKind, suffix: &str) -> Result<()> {
    let mut pair = Pair::new(kind, suffix)?;
    let sink = UdpSink::listen(&pair.hosts[1], 9)?;
    let _stream = stream_udp(&pair.hosts[0], SocketAddrV4::new(B.1.parse()?, 9), 100)?;
    wait("the first datagrams arrive", || Ok(sink.received() > 5))?;
    pair.lan.set_link(pair.ports[1], false)?;
    let host = pair.hosts[1].clone();
    wait("the NIC loses its carrier", || Ok(host.ip(&["link", "show", "dev", "eth0"])?.contains("NO-CARRIER")))?;
    pair.lan.set_link(pair.ports[1], true)?;
    let before = sink.received();
    wait("datagrams arrive again", || Ok(sink.received() > before + 5))
}

fn loses_a_dead_host(kind: LanKind, suffix: &str) -> Result<()> {
    let mut pair = Pair::new(kind, suffix)?;
    let [a, b] = pair.hosts.clone();
    b.delete()?;
    pair.lan.detach(pair.ports[1])?;
    // The same host comes back on another port.
    let b = Netns::create(&format!("b{suffix}"))?;
    pair.lan.attach(&b, "eth0", B.0, Some(&format!("{}/24", B.1)))?;
    let sink = UdpSink::listen(&b, 9)?;
    let _stream = stream_udp(&a, SocketAddrV4::new(B.1.parse()?, 9), 100)?;
    wait("datagrams reach the host that came back", || Ok(sink.received() > 5))
}

/// As when a node loses its power: its port is down, and its addresses are forgotten.
fn notices_a_dead_host() -> Result<()> {
    let pair = Pair::new(switch(), "-n1")?;
    let [a, b] = pair.hosts.clone();
    let stream = stream_udp(&b, SocketAddrV4::new(A.1.parse()?, 9), 100)?;
    let knows = || Ok::<_, anyhow::Error>(pair.lan.mac_table()?.contains(&(B.0, pair.ports[1])));
    wait("the switch knows the host", knows)?;
    // A socket would keep the namespace alive.
    stream.stop();
    b.delete()?;
    wait("the switch forgets the host", || Ok(!knows()?))?;
    ensure!(a.ip(&["link", "show", "dev", "eth0"])?.contains("LOWER_UP"), "the other host lost its carrier");
    Ok(())
}

fn pings_gateway(kind: LanKind, suffix: &str) -> Result<()> {
    let pair = Pair::new(kind, suffix)?;
    // No ping program is needed to see that the gateway answers ARP.
    let _stream = stream_udp(&pair.hosts[0], SocketAddrV4::new(GATEWAY_IP, 9), 20)?;
    wait("the gateway's MAC is known", || {
        Ok(neighbour(&pair.hosts[0], "eth0", GATEWAY_IP)?.and_then(|found| found.mac) == Some(GATEWAY_MAC))
    })
}

fn gateway_is_a_host() -> Result<()> {
    pings_gateway(switch(), "-g0")?;
    let pair = Pair::new(switch(), "-g1")?;
    let gateway = pair.lan.gateway().context("no gateway")?;
    let sink = UdpSink::listen(&pair.hosts[1], 9)?;
    let (ip, to): (Ipv4Addr, _) = (B.1.parse()?, SocketAddrV4::new(B.1.parse()?, 9));
    // For a host that it does not know yet it keeps few datagrams.
    wait("the gateway knows the host", || {
        let known = gateway.entry(ip).is_some();
        if !known {
            gateway.ask_again(ip);
        }
        Ok(known)
    })?;
    let stream = gateway.stream_udp(to, 100)?;
    wait("the gateway's datagrams arrive", || Ok(sink.received() > 20))?;
    let sent = stream.stop();
    wait("all of them arrive", || Ok(sink.received() == sent))?;
    let entry = gateway.entry(ip).context("no entry")?;
    ensure!((entry.mac, entry.port) == (B.0, pair.ports[1]), "wrong entry {entry:?}");
    ensure!(pair.lan.wrong_gateway_entries()?.is_empty());
    Ok(())
}
