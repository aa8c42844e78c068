//! What happens to a LAN: a list of faults, made from a seed, or written down because it once showed a defect.

use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

use crate::random::Random;

/// A millisecond of virtual time, which is counted in microseconds.
pub const MS: u64 = 1_000;

/// What can go wrong. Times are how long it lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fault {
    /// The process or the node is gone, and comes back knowing nothing.
    Crash { node: usize },
    /// SIGSTOP: nothing runs, the clock does.
    Stop { node: usize },
    /// The whole virtual machine: neither runs.
    Freeze { node: usize },
    /// The owner's loop gets no CPU; the receive thread does.
    Starve { node: usize },
    /// The NIC has no link, and comes back on another port.
    Link { node: usize },
    /// These nodes (a bit each), and these hosts, are cut off from the others.
    Partition { nodes: u8, hosts: u8 },
    /// The node does not reach the API server.
    ApiCut { node: usize },
    /// Nobody does.
    ApiDown,
    /// No controller leads.
    ControllerAway,
    /// The controller names another node; there is nothing that ends.
    Move { vip: usize, node: usize },
}

/// When, and how long.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Event {
    pub at: u64,
    pub lasts: u64,
    pub fault: Fault,
}

/// Of which address families the virtual IPs are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Families {
    Ipv4,
    Ipv6,
    /// Every other one of each.
    Both,
}

pub const FAMILIES: [Families; 3] = [Families::Ipv4, Families::Ipv6, Families::Both];
const FIRST_IPV4: u32 = 10 << 24;
const FIRST_IPV6: u128 = 0x2001_0db8_u128 << 96;

impl Families {
    /// The address of a virtual IP.
    pub fn vip(self, index: usize) -> IpAddr {
        match self {
            Self::Ipv6 => IpAddr::V6(Ipv6Addr::from(FIRST_IPV6 + index as u128)),
            Self::Both if index % 2 == 1 => Self::Ipv6.vip(index),
            Self::Ipv4 | Self::Both => IpAddr::V4(Ipv4Addr::from(FIRST_IPV4 + u32::try_from(index).unwrap())),
        }
    }
}

/// Which virtual IP has the address.
pub fn vip_index(address: IpAddr) -> usize {
    match address {
        IpAddr::V4(address) => (u32::from(address) - FIRST_IPV4) as usize,
        IpAddr::V6(address) => usize::try_from(u128::from(address) - FIRST_IPV6).unwrap(),
    }
}

/// All of one run.
#[derive(Clone, Debug)]
pub struct History {
    /// For delays and losses.
    pub seed: u64,
    pub nodes: usize,
    pub vips: usize,
    pub families: Families,
    /// In a hundred frames.
    pub loss: u64,
    /// The longest that a frame takes, in microseconds. Frames overtake each other.
    pub delay: u64,
    pub events: Vec<Event>,
}

/// The kinds of fault that a test draws from.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Kind {
    Crash,
    Stop,
    Freeze,
    Starve,
    Link,
    Partition,
    ApiCut,
    ApiDown,
    ControllerAway,
    Move,
}

/// All of them.
pub const ALL: [Kind; 10] = [
    Kind::Crash,
    Kind::Stop,
    Kind::Freeze,
    Kind::Starve,
    Kind::Link,
    Kind::Partition,
    Kind::ApiCut,
    Kind::ApiDown,
    Kind::ControllerAway,
    Kind::Move,
];

/// What histories a test makes.
#[derive(Clone, Copy, Debug)]
pub struct Mix {
    pub kinds: &'static [Kind],
    pub faults: usize,
    pub loss: u64,
    pub delay: u64,
    /// The API server and the controller are away so many times as long as anything else.
    pub stale: u64,
}

/// Faults begin after this, when everything has come up.
pub const FAULTS_FROM: u64 = 6_000 * MS;
/// And within this.
const FAULTS_WITHIN: u64 = 5_000;
const LASTING: [u64; 9] = [90, 120, 280, 450, 600, 1_500, 4_000, 9_000, 20_000];

impl History {
    /// The history number `seed` of a mix.
    pub fn of(mix: &Mix, seed: u64) -> Self {
        let mut random = Random(seed ^ 0x5eed);
        let nodes = random.pick(&[2, 3, 3, 3, 4]);
        let vips = random.pick(&[1, 1, 2, 3]);
        let mut events = Vec::new();
        for _ in 0..mix.faults {
            let node = random.index(nodes);
            let fault = match random.pick(mix.kinds) {
                Kind::Crash => Fault::Crash { node },
                Kind::Stop => Fault::Stop { node },
                Kind::Freeze => Fault::Freeze { node },
                Kind::Starve => Fault::Starve { node },
                Kind::Link => Fault::Link { node },
                Kind::Partition => {
                    let nodes = u8::try_from(1 + random.below((1 << nodes) - 1)).unwrap();
                    Fault::Partition { nodes, hosts: u8::try_from(random.below(8)).unwrap() }
                }
                Kind::ApiCut => Fault::ApiCut { node },
                Kind::ApiDown => Fault::ApiDown,
                Kind::ControllerAway => Fault::ControllerAway,
                Kind::Move => Fault::Move { vip: random.index(vips), node },
            };
            let at = FAULTS_FROM + random.below(FAULTS_WITHIN) * MS;
            let times = match fault {
                Fault::ApiCut { .. } | Fault::ApiDown | Fault::ControllerAway => mix.stale,
                _ => 1,
            };
            events.push(Event { at, lasts: random.pick(&LASTING) * times * MS, fault });
        }
        events.sort_by_key(|event| event.at);
        let families = FAMILIES[(seed % 3) as usize];
        Self { seed, nodes, vips, families, loss: mix.loss, delay: mix.delay, events }
    }

    /// When the last fault is over.
    pub fn quiet_from(&self) -> u64 {
        let end = |event: &Event| match event.fault {
            Fault::Move { .. } => event.at,
            _ => event.at + event.lasts,
        };
        self.events.iter().map(end).max().unwrap_or(FAULTS_FROM)
    }

    /// Simpler histories, the simplest first: with one event fewer, fewer nodes or addresses, a better LAN, shorter faults.
    pub fn simpler(&self) -> Vec<Self> {
        let mut simpler = Vec::new();
        let mut push = |change: &dyn Fn(&mut Self)| {
            let mut other = self.clone();
            change(&mut other);
            simpler.push(other);
        };
        for left_out in 0..self.events.len() {
            push(&|other| {
                other.events.remove(left_out);
            });
        }
        let used = |node| self.events.iter().any(|event| event.fault.concerns(node));
        if self.nodes > 2 && !used(self.nodes - 1) {
            push(&|other| other.nodes -= 1);
        }
        let moved =
            |vip| self.events.iter().any(|event| matches!(event.fault, Fault::Move { vip: moved, .. } if moved == vip));
        if self.vips > 1 && !moved(self.vips - 1) {
            push(&|other| other.vips -= 1);
        }
        if self.loss > 0 {
            push(&|other| other.loss = 0);
        }
        if self.delay > 2 * MS {
            push(&|other| other.delay = 2 * MS);
        }
        if self.families != Families::Ipv4 {
            push(&|other| other.families = Families::Ipv4);
        }
        for (index, event) in self.events.iter().enumerate() {
            if let Some(lasts) = LASTING.iter().rev().map(|lasts| lasts * MS).find(|lasts| *lasts < event.lasts) {
                push(&|other| other.events[index].lasts = lasts);
            }
            let round = event.at / (100 * MS) * 100 * MS;
            if round != event.at {
                push(&|other| other.events[index].at = round);
            }
        }
        simpler
    }

    /// As it is pinned in `regressions.rs`.
    pub fn pinned(&self) -> String {
        let event = |event: &Event| {
            format!("        event({}, {}, Fault::{:?}),\n", event.at / MS, event.lasts / MS, event.fault)
        };
        let events: String = self.events.iter().map(event).collect();
        let Self { seed, nodes, vips, families, loss, delay, .. } = self;
        format!(
            "holds({seed}, {nodes}, {vips}, &[\n{events}    ]) // {families:?}, {loss} % loss, {} ms delay",
            delay / MS
        )
    }
}

impl Fault {
    /// Whether it happens to this node.
    fn concerns(self, this: usize) -> bool {
        match self {
            Self::Crash { node }
            | Self::Stop { node }
            | Self::Freeze { node }
            | Self::Starve { node }
            | Self::Link { node }
            | Self::ApiCut { node }
            | Self::Move { node, .. } => node == this,
            Self::Partition { nodes, .. } => (nodes >> this) & 1 != 0,
            Self::ApiDown | Self::ControllerAway => false,
        }
    }
}
