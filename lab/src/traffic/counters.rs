//! What the kernel counts in a network namespace: drops for which a program of the lab is to blame, and repeated SYNs.

use std::collections::BTreeMap;
use std::fs;

use anyhow::{Context as _, Result};

use crate::netns::Netns;

/// Packets that reached a host and were dropped there, because the lab's program did not read them in time.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Losses {
    /// Datagrams for which a socket had no room.
    pub datagrams: u64,
    /// Connections for which a listener had no room.
    pub connections: u64,
    /// SYNs that the host sent again, having had no answer for a second.
    pub repeated_syns: u64,
    /// Packets for which a CPU of the machine had no room, of whatever namespace.
    pub backlog: u64,
}

impl Losses {
    /// What was counted since `before`.
    #[must_use]
    pub fn since(self, before: Self) -> Self {
        Self {
            datagrams: self.datagrams.saturating_sub(before.datagrams),
            connections: self.connections.saturating_sub(before.connections),
            repeated_syns: self.repeated_syns.saturating_sub(before.repeated_syns),
            backlog: self.backlog.saturating_sub(before.backlog),
        }
    }

    /// Reads the counters of a namespace.
    ///
    /// # Errors
    /// When `/proc` cannot be read.
    pub fn read(netns: &Netns) -> Result<Self> {
        netns.run(|| {
            let read = |file: &str| {
                let path = format!("/proc/thread-self/net/{file}");
                fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))
            };
            let mut counted = counters(&read("snmp")?);
            counted.extend(counters(&read("netstat")?));
            // Not there without IPv6.
            let second = read("snmp6").map(|text| pairs(&text)).unwrap_or_default();
            let of = |name: &str| counted.get(name).copied().unwrap_or_default();
            let of_second = |name: &str| second.get(name).copied().unwrap_or_default();
            Ok(Self {
                datagrams: of("Udp.RcvbufErrors") + of_second("Udp6RcvbufErrors"),
                connections: of("TcpExt.ListenDrops"),
                repeated_syns: of("TcpExt.TCPSynRetrans"),
                backlog: backlog(&read("softnet_stat")?),
            })
        })?
    }
}

/// `/proc/net/snmp` and `netstat`: a line of names, then a line of values, both after `Group:`.
fn counters(text: &str) -> BTreeMap<String, u64> {
    let lines: Vec<&str> = text.lines().collect();
    let mut counted = BTreeMap::new();
    for pair in lines.chunks_exact(2) {
        let [Some((group, names)), Some((_, values))] = [pair[0].split_once(':'), pair[1].split_once(':')] else {
            continue;
        };
        for (name, value) in names.split_whitespace().zip(values.split_whitespace()) {
            // Some values are negative: none of those that are asked for.
            if let Ok(value) = value.parse() {
                counted.insert(format!("{group}.{name}"), value);
            }
        }
    }
    counted
}

/// `/proc/net/snmp6`: a name and a value in each line.
fn pairs(text: &str) -> BTreeMap<String, u64> {
    let pair = |line: &str| {
        let mut words = line.split_whitespace();
        Some((words.next()?.to_owned(), words.next()?.parse().ok()?))
    };
    text.lines().filter_map(pair).collect()
}

/// `/proc/net/softnet_stat`: a line for each CPU, whose second word counts what did not fit.
fn backlog(text: &str) -> u64 {
    let dropped = |line: &str| u64::from_str_radix(line.split_whitespace().nth(1)?, 16).ok();
    text.lines().filter_map(dropped).sum()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_kernels_words() {
        let text = "Tcp: RtoMin MaxConn\nTcp: 200 -1\nUdp: InDatagrams RcvbufErrors\nUdp: 9 4\n";
        let counted = counters(text);
        assert_eq!((counted["Udp.RcvbufErrors"], counted["Tcp.RtoMin"]), (4, 200));
        assert_eq!(pairs("Udp6InDatagrams\t3\nUdp6RcvbufErrors  12\n")["Udp6RcvbufErrors"], 12);
        assert_eq!(backlog("00000001 00000010 00000000\n00000002 00000001 00000000\n"), 17);
    }
}
