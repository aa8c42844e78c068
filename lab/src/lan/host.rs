//! What a host of the LAN does in a test: ask its neighbour table, send and count datagrams.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr, UdpSocket};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context, Result};
use pnet_base::MacAddr;

use crate::families::has_ipv6;
use crate::netns::Netns;

/// What a host's kernel believes about a neighbour.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Neighbour {
    /// Its MAC address, if the kernel has one.
    pub mac: Option<MacAddr>,
    /// The kernel's word for it: `REACHABLE`, `STALE`, `FAILED` …
    pub state: String,
}

/// The neighbour table's entry for `ip` on that NIC.
pub fn neighbour(ns: &Netns, ifname: &str, ip: impl Into<IpAddr>) -> Result<Option<Neighbour>> {
    let shown = ns.ip(&["neigh", "show", "to", &ip.into().to_string(), "dev", ifname])?;
    let words: Vec<_> = shown.split_whitespace().collect();
    let Some(state) = words.last() else { return Ok(None) };
    let mac = words.iter().position(|word| *word == "lladdr").and_then(|at| words.get(at + 1));
    let mac = mac.map(|mac| mac.parse()).transpose().with_context(|| format!("`ip neigh` printed {shown:?}"))?;
    Ok(Some(Neighbour { mac, state: (*state).to_owned() }))
}

/// Numbered datagrams, sent at a steady rate by a thread until it is stopped or dropped.
#[derive(Debug)]
pub struct Stream {
    stopping: Arc<AtomicBool>,
    sent: Arc<AtomicU64>,
    failed: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Stream {
    /// Calls `send` with 0, 1, 2 … at that rate.
    pub(super) fn start(per_second: u32, send: impl FnMut(u64) -> Result<()> + Send + 'static) -> Result<Self> {
        anyhow::ensure!(per_second > 0, "a stream of 0 datagrams per second");
        let (stopping, sent, failed) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default(), Arc::default());
        let pacer = Pacer { interval: Duration::from_secs(1) / per_second, send };
        let thread = std::thread::Builder::new().name("lab-stream".to_owned()).spawn({
            let (stopping, sent, failed) = (stopping.clone(), sent.clone(), Arc::clone(&failed));
            move || pacer.run(&stopping, &sent, &failed)
        });
        Ok(Self { stopping, sent, failed, thread: Some(thread.context("cannot start a sender's thread")?) })
    }

    /// Datagrams sent so far.
    pub fn sent(&self) -> u64 {
        self.sent.load(Ordering::Relaxed)
    }

    /// Datagrams that the sender's own kernel refused, as when it has no neighbour.
    pub fn failed(&self) -> u64 {
        self.failed.load(Ordering::Relaxed)
    }

    /// Ends the stream and returns how many were sent.
    pub fn stop(mut self) -> u64 {
        self.end();
        self.sent()
    }

    fn end(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by that thread.
            drop(thread.join());
        }
    }
}

impl Drop for Stream {
    fn drop(&mut self) {
        self.end();
    }
}

struct Pacer<F> {
    interval: Duration,
    send: F,
}

impl<F: FnMut(u64) -> Result<()>> Pacer<F> {
    fn run(mut self, stopping: &AtomicBool, sent: &AtomicU64, failed: &AtomicU64) {
        let mut next = Instant::now();
        for number in 0.. {
            if stopping.load(Ordering::Relaxed) {
                return;
            }
            match (self.send)(number) {
                Ok(()) => sent.fetch_add(1, Ordering::Relaxed),
                Err(_) => failed.fetch_add(1, Ordering::Relaxed),
            };
            // A sender that was held up does not send what it missed all at once.
            next = (next + self.interval).max(Instant::now());
            std::thread::sleep(next.saturating_duration_since(Instant::now()));
        }
    }
}

/// Sends numbered datagrams (8 bytes, big endian) from a host until the stream is stopped or dropped.
pub fn stream_udp(ns: &Netns, to: impl Into<SocketAddr>, per_second: u32) -> Result<Stream> {
    let to = to.into();
    let any: IpAddr = if to.is_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
    let socket =
        ns.run(|| UdpSocket::bind((any, 0)))?.with_context(|| format!("cannot open a UDP socket in {}", ns.name()))?;
    Stream::start(per_second, move |number| {
        socket.send_to(&number.to_be_bytes(), to)?;
        Ok(())
    })
}

/// Counts the datagrams that reach a UDP port of a host, and never answers.
#[derive(Debug)]
pub struct UdpSink {
    stopping: Arc<AtomicBool>,
    received: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl UdpSink {
    /// Listens on `port` of all addresses of a host, of both families where the kernel has them.
    pub fn listen(ns: &Netns, port: u16) -> Result<Self> {
        let any: IpAddr = if has_ipv6() { Ipv6Addr::UNSPECIFIED.into() } else { Ipv4Addr::UNSPECIFIED.into() };
        let socket = ns
            .run(|| UdpSocket::bind((any, port)))?
            .with_context(|| format!("cannot listen on UDP port {port} in {}", ns.name()))?;
        socket.set_read_timeout(Some(Duration::from_millis(50))).context("cannot set a timeout")?;
        let (stopping, received) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::Builder::new().name("lab-sink".to_owned()).spawn({
            let (stopping, received) = (stopping.clone(), received.clone());
            move || {
                let mut buffer = [0; 2048];
                while !stopping.load(Ordering::Relaxed) {
                    // An error is the timeout, or an ICMP message for a socket that sends nothing.
                    if socket.recv(&mut buffer).is_ok() {
                        received.fetch_add(1, Ordering::Relaxed);
                    }
                }
            }
        });
        Ok(Self { stopping, received, thread: Some(thread.context("cannot start a receiver's thread")?) })
    }

    /// Datagrams received so far.
    pub fn received(&self) -> u64 {
        self.received.load(Ordering::Relaxed)
    }
}

impl Drop for UdpSink {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by that thread.
            drop(thread.join());
        }
    }
}
