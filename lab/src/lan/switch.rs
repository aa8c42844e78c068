//! The user-space switch as a pure machine: ports, MAC table, faults, gateway, record.
//!
//! Frames, orders and `now` go in; deliveries come out of [`Switch::poll_delivery`] when their delay is over. The next
//! deadline is [`Switch::next_deadline`].

use std::cmp::Reverse;
use std::collections::{BTreeMap, BTreeSet, BinaryHeap};
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::time::{Duration, Instant};

use pnet_base::MacAddr;

use super::frame::{self, Ethernet, is_group};
use super::gateway::{GATEWAY_MAC, GatewayHost};
use super::record::{Ingress, Recorder};
use super::table::{SwitchTable, Way};
use super::{PortId, SwitchOptions};

/// The segment of ports that no partition names, and of the gateway.
const MAIN_SEGMENT: usize = 0;

#[derive(Debug)]
struct Port {
    up: bool,
    segment: usize,
    delay: Duration,
    loss: f64,
}

/// A frame to write to a port.
#[derive(Debug, PartialEq, Eq, PartialOrd, Ord)]
struct Delivery {
    due: Instant,
    // Keeps frames with the same due time in order.
    number: u64,
    port: PortId,
    bytes: Arc<[u8]>,
}

/// The switch and its gateway.
#[derive(Debug)]
pub(super) struct Switch {
    ports: BTreeMap<PortId, Port>,
    table: SwitchTable,
    gateway: GatewayHost,
    recorder: Recorder,
    deliveries: BinaryHeap<Reverse<Delivery>>,
    /// What these ports say of these addresses is lost.
    muted: BTreeSet<(PortId, Ipv4Addr)>,
    options: SwitchOptions,
    random: Random,
    number: u64,
}

impl Switch {
    pub(super) fn new(options: SwitchOptions) -> Self {
        Self {
            ports: BTreeMap::new(),
            table: SwitchTable::new(options.ageing),
            gateway: GatewayHost::new(options.gateway_ttl),
            recorder: Recorder::default(),
            deliveries: BinaryHeap::new(),
            muted: BTreeSet::new(),
            random: Random(options.seed | 1),
            options,
            number: 0,
        }
    }

    // ---- inputs ----

    pub(super) fn handle_new_port(&mut self, port: PortId) {
        let new = Port { up: true, segment: MAIN_SEGMENT, delay: self.options.delay, loss: self.options.loss };
        self.ports.insert(port, new);
    }

    pub(super) fn handle_port_gone(&mut self, port: PortId) {
        self.handle_link(port, false);
        self.ports.remove(&port);
    }

    pub(super) fn handle_link(&mut self, port: PortId, up: bool) {
        if let Some(state) = self.ports.get_mut(&port) {
            state.up = up;
        }
        if !up {
            self.table.forget_port(port);
            self.gateway.handle_link_down(port);
            self.deliveries.retain(|Reverse(delivery)| delivery.port != port);
        }
    }

    pub(super) fn handle_ageing(&mut self, ageing: Duration) {
        self.table.set_ageing(ageing);
    }

    /// Sets the one-way delay of a port's cable, both ways.
    pub(super) fn handle_delay(&mut self, port: PortId, delay: Duration) {
        if let Some(state) = self.ports.get_mut(&port) {
            state.delay = delay;
        }
    }

    /// Sets the probability, 0 to 1, with which a frame is lost on a port's cable, both ways.
    pub(super) fn handle_loss(&mut self, port: PortId, loss: f64) {
        if let Some(state) = self.ports.get_mut(&port) {
            state.loss = loss;
        }
    }

    /// Cuts the LAN into these groups. Ports in none of them stay together, with the gateway.
    pub(super) fn handle_partition(&mut self, groups: &[Vec<PortId>]) {
        for (port, state) in &mut self.ports {
            let group = groups.iter().position(|group| group.contains(port));
            state.segment = group.map_or(MAIN_SEGMENT, |group| group + 1);
        }
    }

    /// From now on the ARP messages that come from `port` with `ip` as their sender are lost, or not any more.
    pub(super) fn handle_mute(&mut self, port: PortId, ip: Ipv4Addr, muted: bool) {
        if muted {
            self.muted.insert((port, ip));
        } else {
            self.muted.remove(&(port, ip));
        }
    }

    /// A frame that the host on `ingress` sent.
    pub(super) fn handle_frame(&mut self, ingress: PortId, bytes: &[u8], now: Instant) {
        let Some(Ethernet { destination, source, .. }) = frame::ethernet(bytes) else { return };
        let Some(&Port { up, segment, delay, loss }) = self.ports.get(&ingress) else { return };
        if !up || self.random.happens(loss) {
            return;
        }
        if !self.muted.is_empty() && frame::arp(bytes).is_some_and(|arp| self.muted.contains(&(ingress, arp.sender_ip)))
        {
            return;
        }
        let for_gateway = destination == GATEWAY_MAC;
        let way = self.table.forward(ingress, source, destination, now);
        let (egress, flooded) = match way {
            Way::Filtered => (Vec::new(), false),
            _ if for_gateway => (Vec::new(), false),
            Way::Port(port) => (self.reachable(segment, |other| other == port), false),
            Way::Group => (self.reachable(segment, |other| other != ingress), false),
            Way::Flood => (self.reachable(segment, |other| other != ingress), true),
        };
        self.send(Ingress::Port(ingress), egress, flooded, bytes, now + delay, now);
        if segment == MAIN_SEGMENT && (for_gateway || is_group(destination)) {
            self.gateway.handle_frame(ingress, bytes, now);
            self.send_for_gateway(now);
        }
    }

    /// An order to the gateway; what it then sends goes out.
    pub(super) fn with_gateway<T>(&mut self, now: Instant, order: impl FnOnce(&mut GatewayHost) -> T) -> T {
        let result = order(&mut self.gateway);
        self.send_for_gateway(now);
        result
    }

    /// Time has passed.
    pub(super) fn handle_timeout(&mut self, now: Instant) {
        self.with_gateway(now, |gateway| gateway.handle_timeout(now));
    }

    pub(super) fn forget_frames(&mut self) {
        self.recorder.forget();
    }

    // ---- outputs ----

    /// The next frame whose time has come, and the port that it goes to.
    pub(super) fn poll_delivery(&mut self, now: Instant) -> Option<(PortId, Arc<[u8]>)> {
        if self.deliveries.peek()?.0.due > now {
            return None;
        }
        self.deliveries.pop().map(|Reverse(delivery)| (delivery.port, delivery.bytes))
    }

    /// When [`Self::poll_delivery`] or [`Self::handle_timeout`] is next wanted.
    pub(super) fn next_deadline(&self) -> Option<Instant> {
        let delivery = self.deliveries.peek().map(|Reverse(delivery)| delivery.due);
        [delivery, self.gateway.next_deadline()].into_iter().flatten().min()
    }

    pub(super) fn recorder(&self) -> &Recorder {
        &self.recorder
    }

    pub(super) fn gateway(&self) -> &GatewayHost {
        &self.gateway
    }

    pub(super) fn mac_table(&self, now: Instant) -> Vec<(MacAddr, PortId)> {
        self.table.entries(now)
    }

    fn reachable(&self, segment: usize, wanted: impl Fn(PortId) -> bool) -> Vec<PortId> {
        let reaches =
            |(port, state): (&PortId, &Port)| (state.up && state.segment == segment && wanted(*port)).then_some(*port);
        self.ports.iter().filter_map(reaches).collect()
    }

    fn send_for_gateway(&mut self, now: Instant) {
        while let Some(output) = self.gateway.poll_output() {
            let egress = self.reachable(MAIN_SEGMENT, |port| output.port.is_none_or(|only| only == port));
            self.send(Ingress::Gateway, egress, false, &output.bytes, now, now);
        }
    }

    fn send(
        &mut self,
        ingress: Ingress,
        mut egress: Vec<PortId>,
        flooded: bool,
        bytes: &[u8],
        at: Instant,
        now: Instant,
    ) {
        let shared: Arc<[u8]> = bytes.into();
        egress.retain(|port| {
            let Some(state) = self.ports.get(port) else { return false };
            if self.random.happens(state.loss) {
                return false;
            }
            self.number += 1;
            let delivery = Delivery { due: at + state.delay, number: self.number, port: *port, bytes: shared.clone() };
            self.deliveries.push(Reverse(delivery));
            true
        });
        self.recorder.record(now, ingress, &egress, flooded, bytes);
    }
}

/// xorshift64*: enough for loss that a seed repeats.
#[derive(Debug)]
struct Random(u64);

impl Random {
    fn happens(&mut self, probability: f64) -> bool {
        if probability <= 0.0 {
            return false;
        }
        self.0 ^= self.0 >> 12;
        self.0 ^= self.0 << 25;
        self.0 ^= self.0 >> 27;
        let bits = self.0.wrapping_mul(0x2545_F491_4F6C_DD1D) >> 32;
        (bits as f64) < probability * f64::from(u32::MAX)
    }
}

#[cfg(test)]
#[path = "switch_tests.rs"]
mod tests;
