//! Faults: what each does to the world, and what its end does.

use std::{sync::Arc, time::Duration};

use l2lb::speaker::owner::Timing;

use super::{Event, World};
use crate::{
    history::{Fault, MS},
    node::{NIC, Process, mac},
};

impl World {
    /// What a fault has hold of: of two that want the same, only the first happens.
    pub(super) fn held_by(&mut self, fault: Fault) -> Option<&mut Option<usize>> {
        let nodes = self.nodes.len();
        let place = match fault {
            Fault::Crash { node }
            | Fault::Stop { node }
            | Fault::Freeze { node }
            | Fault::Starve { node }
            | Fault::Link { node } => node,
            Fault::ApiCut { node } => nodes + node,
            Fault::Partition { .. } => 2 * nodes,
            Fault::ApiDown => 2 * nodes + 1,
            Fault::ControllerAway => 2 * nodes + 2,
            Fault::Move { .. } => return None,
        };
        Some(&mut self.held[place])
    }

    pub(super) fn begin(&mut self, number: usize) {
        let event = self.history.events[number];
        if let Some(held) = self.held_by(event.fault) {
            if held.is_some() {
                return;
            }
            *held = Some(number);
            self.at(self.now + event.lasts, Event::End(number));
        }
        self.disturbed_at = self.now;
        self.say(|| format!("--- {:?} for {} ms", event.fault, event.lasts / MS));
        match event.fault {
            Fault::Crash { node } => {
                self.nodes[node].process = Process::Dead;
                self.nodes[node].life += 1;
            }
            Fault::Stop { node } => self.nodes[node].process = Process::Stopped,
            Fault::Freeze { node } => self.nodes[node].process = Process::Frozen(self.now),
            Fault::Starve { node } => self.nodes[node].process = Process::Starved,
            Fault::Link { node } => self.set_link(node, false),
            Fault::Partition { nodes, hosts } => {
                for (node, part) in self.parts.0.iter_mut().enumerate() {
                    *part = (nodes >> node) & 1;
                }
                for (host, part) in self.parts.1.iter_mut().enumerate() {
                    *part = (hosts >> host) & 1;
                }
            }
            Fault::ApiCut { node } => self.nodes[node].api = false,
            Fault::ApiDown => self.api_down = true,
            Fault::ControllerAway => self.controller.away = true,
            Fault::Move { vip, node } => {
                if !self.controller.away && !self.api_down {
                    self.controller.place(self.now, vip, node);
                    let vip_now = self.controller.vips[vip].clone();
                    self.say(|| {
                        format!("controller: vip{vip}: placement {} {:?}", vip_now.placement, vip_now.assignments)
                    });
                    self.deliver_all();
                }
            }
        }
    }

    pub(super) fn end(&mut self, number: usize) {
        let fault = self.history.events[number].fault;
        if let Some(held) = self.held_by(fault) {
            *held = None;
        }
        self.disturbed_at = self.now;
        self.say(|| format!("--- {fault:?} is over"));
        match fault {
            Fault::Crash { node } => self.restart(node),
            Fault::Stop { node } => {
                self.nodes[node].process = Process::Runs;
                self.must_probe(node);
                // The receive thread wakes as well, before the loop has run.
                for packet in std::mem::take(&mut self.nodes[node].backlog) {
                    self.receive(node, packet);
                }
                self.wakes(node);
            }
            Fault::Freeze { node } => {
                self.nodes[node].thaw(self.now);
                // The ring of a paused machine's NIC is small, and often nothing is kept at all.
                let mut kept = std::mem::take(&mut self.nodes[node].backlog);
                kept.truncate(if self.random.percent(50) { 0 } else { 64 });
                for packet in kept {
                    self.receive(node, packet);
                }
                self.wakes(node);
            }
            Fault::Starve { node } => {
                self.must_probe(node);
                self.nodes[node].process = Process::Runs;
                self.wakes(node);
            }
            Fault::Link { node } => self.set_link(node, true),
            Fault::Partition { .. } => {
                self.parts.0.fill(0);
                self.parts.1.fill(0);
            }
            Fault::ApiCut { node } => {
                self.nodes[node].api = true;
                self.api_is_back(node);
            }
            Fault::ApiDown => {
                self.api_down = false;
                self.controller.handle_return(self.now);
                for node in 0..self.nodes.len() {
                    self.api_is_back(node);
                }
            }
            Fault::ControllerAway => {
                self.controller.away = false;
                self.controller.handle_return(self.now);
            }
            Fault::Move { .. } => {}
        }
    }

    /// A new process on the same node.
    pub fn restart(&mut self, node: usize) {
        self.nodes[node] = self.nodes[node].reborn(self.history.nodes);
        self.deliver(node);
    }

    /// A cable is pulled, or plugged in on another port.
    pub fn set_link(&mut self, node: usize, up: bool) {
        self.nodes[node].link = up;
        if up {
            self.next_port += 1;
            self.nodes[node].port = self.next_port;
        }
        let link = if up { Ok(mac(node)) } else { Err(Arc::from("it has no link")) };
        self.pass(node, |station, now| {
            if station.nics().next().is_some() {
                station.handle_link(now, &Arc::from(NIC), link);
            }
        });
    }

    /// How often a node announced anything.
    pub fn announcements(&self, node: usize) -> usize {
        let of_node = format!("node{node} announces");
        self.log().iter().filter(|line| line.contains(&of_node)).count()
    }

    pub(super) fn wakes(&mut self, node: usize) {
        self.pass(node, |_, _| {});
        self.api_is_back(node);
    }

    pub(super) fn api_is_back(&mut self, node: usize) {
        let life = self.nodes[node].life;
        self.nodes[node].deliver_pending = false;
        self.deliver(node);
        let delay = (1 + self.random.below(60)) * MS;
        self.at(self.now + delay, Event::Write { node, life });
    }

    /// What it owned it was mute for, if it stood still for longer than the fence.
    pub(super) fn must_probe(&mut self, node: usize) {
        let it = &self.nodes[node];
        let fence = Timing::default().fence;
        if Duration::from_micros(it.clock(self.now) - it.beat) >= fence {
            let all = (0..self.history.vips).map(|vip| self.history.families.vip(vip));
            self.nodes[node].must_probe = all.collect();
        }
    }
}
