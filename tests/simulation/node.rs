//! One node: the real [`Station`] and receive-path decisions, with a clock of its own and everything that can happen to it.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use l2lb::speaker::{
    owner::Report,
    peers::Peers,
    station::Station,
    triage::Snapshot,
    wire::{MacAddr, Packet},
};

pub const NIC: &str = "eth0";
/// A receive buffer, or the ring of a NIC.
pub const BACKLOG: usize = 4_000;

pub fn mac(node: usize) -> MacAddr {
    MacAddr(2, 0, 0, 0, 1, u8::try_from(node).unwrap())
}

pub fn name(node: usize) -> Arc<str> {
    Arc::from(format!("node{node}"))
}

/// The addresses of a node's NIC.
pub fn node_addresses(node: usize) -> Vec<IpAddr> {
    let host = 11 + u8::try_from(node).unwrap();
    vec![IpAddr::from([192, 0, 2, host]), IpAddr::from([0xfe80, 0, 0, 0, 0, 0, 0, u16::from(host)])]
}

/// The sender address of a probe for `vip`.
pub fn unspecified(vip: IpAddr) -> IpAddr {
    match vip {
        IpAddr::V4(_) => Ipv4Addr::UNSPECIFIED.into(),
        IpAddr::V6(_) => std::net::Ipv6Addr::UNSPECIFIED.into(),
    }
}

/// How a node's process is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Process {
    Runs,
    Dead,
    /// SIGSTOP.
    Stopped,
    /// The whole virtual machine is paused; since when.
    Frozen(u64),
    /// Only the loop stands still.
    Starved,
}

/// A report that has to be written, and not before when (global time).
pub struct Pending {
    pub not_before: u64,
    pub report: Report,
}

pub struct Node {
    pub index: usize,
    /// Events of an earlier life are void.
    pub life: u32,
    pub process: Process,
    pub link: bool,
    /// Where its NIC is plugged in.
    pub port: u64,
    pub api: bool,
    pub station: Station,
    pub snapshot: Snapshot,
    /// When the loop last ran, by the node's clock.
    pub beat: u64,
    /// When the loop wants to run next, in global time: other timers are void.
    pub timer_at: Option<u64>,
    pub deliver_pending: bool,
    pub backlog: Vec<Packet>,
    /// Claims that the receive thread handed to a loop that has not run since.
    pub undecided: BTreeSet<IpAddr>,
    pub pending: BTreeMap<IpAddr, Pending>,
    /// Addresses for which it must not answer before it has probed: it was mute for too long.
    pub must_probe: BTreeSet<IpAddr>,
    /// When it last announced an address (global time).
    pub announced_at: BTreeMap<IpAddr, u64>,
    start: Instant,
    /// Parts per million that its clock is fast.
    drift: i64,
    /// For so long it saw no time pass.
    frozen_for: u64,
}

impl Node {
    pub fn new(index: usize, nodes: usize, drift: i64, start: Instant) -> Self {
        let all = (0..nodes).map(|node| (name(node), Arc::from(NIC), mac(node)));
        let peers = Peers::new(name(index), all);
        Self {
            index,
            life: 0,
            process: Process::Runs,
            link: true,
            port: index as u64,
            api: true,
            station: Station::new(Arc::new(peers), Duration::from_secs(60)),
            snapshot: Snapshot::default(),
            beat: 0,
            timer_at: None,
            deliver_pending: false,
            backlog: Vec::new(),
            undecided: BTreeSet::new(),
            pending: BTreeMap::new(),
            must_probe: BTreeSet::new(),
            announced_at: BTreeMap::new(),
            start,
            drift,
            frozen_for: 0,
        }
    }

    /// A new process on the same machine.
    pub fn reborn(&self, nodes: usize) -> Self {
        let fresh = Self::new(self.index, nodes, self.drift, self.start);
        Self {
            life: self.life + 1,
            link: self.link,
            port: self.port,
            api: self.api,
            frozen_for: self.frozen_for,
            ..fresh
        }
    }

    /// Its own clock, in microseconds.
    pub fn clock(&self, now: u64) -> u64 {
        let now = match self.process {
            Process::Frozen(since) => since,
            _ => now,
        };
        let seen = i128::from(now - self.frozen_for);
        u64::try_from(seen + seen * i128::from(self.drift) / 1_000_000).unwrap()
    }

    pub fn instant(&self, now: u64) -> Instant {
        self.start + Duration::from_micros(self.clock(now))
    }

    /// When its clock shows `at`, never earlier.
    pub fn global(&self, at: Instant) -> u64 {
        let clock = i128::try_from(at.saturating_duration_since(self.start).as_nanos().div_ceil(1_000)).unwrap();
        let seen = clock * 1_000_000 / (1_000_000 + i128::from(self.drift));
        u64::try_from(seen).unwrap() + 2 + self.frozen_for
    }

    pub fn thaw(&mut self, now: u64) {
        if let Process::Frozen(since) = self.process {
            self.frozen_for += now - since;
            self.process = Process::Runs;
        }
    }

    /// Whether its loop runs.
    pub fn runs(&self) -> bool {
        self.process == Process::Runs
    }

    /// Whether its receive thread does.
    pub fn receives(&self) -> bool {
        matches!(self.process, Process::Runs | Process::Starved)
    }

    /// What its receive thread says to a packet.
    pub fn answer(&self, now: u64, packet: &Packet) -> Option<l2lb::speaker::wire::Message> {
        if self.undecided.contains(&packet.target_ip) {
            return None;
        }
        let since = Duration::from_micros(self.clock(now) - self.beat);
        self.snapshot.answer(packet).ok().filter(|(_, fence)| since < *fence).map(|(message, _)| message)
    }
}
