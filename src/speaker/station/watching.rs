//! Other speakers, as a station watches them: owners that it stands by for (rule 2), and second owners (rule 9).

use std::{collections::BTreeSet, sync::Arc, time::Instant};

use super::{Effect, Station};
use crate::speaker::{
    monitor,
    peers::{Peers, Who},
    wire::{MacAddr, Message, Operation, Packet},
};

impl Station {
    /// Asks the owners of the addresses that this node stands by for, and doubts those that are silent; looks for second
    /// owners of its own.
    pub(super) fn watch_owners(&mut self, now: Instant) {
        let mut silent = Vec::new();
        for (name, nic) in &mut self.nics {
            nic.monitor.handle_tick(now);
            while let Some(output) = nic.monitor.poll_output() {
                match output {
                    monitor::Output::Ask { vip, to } => {
                        let from = nic.asks_as(vip, |address| self.slots.contains_key(address));
                        let message = Message::Request { vip, to, from };
                        self.effects.push_back(Effect::Send { nic: name.clone(), message });
                    }
                    monitor::Output::Silent { vip } => silent.push(vip),
                }
            }
            let nodes = nodes_of(&self.peers, nic.monitor.unheard());
            if nodes != nic.unheard {
                nic.unheard.clone_from(&nodes);
                self.effects.push_back(Effect::Unheard { nic: name.clone(), nodes });
            }
            nic.search.handle_tick(now);
            while let Some(ask) = nic.search.poll_output() {
                // Without a sender address: one with it says that this node stands by.
                let message = Message::Probe { vip: ask.vip, to: Some(ask.to) };
                self.effects.push_back(Effect::Send { nic: name.clone(), message });
            }
        }
        for vip in silent {
            self.with_machine(now, vip, |machine, _| machine.handle_silence(now));
        }
    }

    /// What a packet tells of the speaker that sent it, whatever it is about.
    pub(super) fn monitor_hears(&mut self, now: Instant, name: &str, packet: &Packet) {
        let Some(nic) = self.nics.get_mut(name) else { return };
        let Who::Speaker(_) = self.peers.who(packet.sender_mac) else { return };
        nic.monitor.handle_speaker_heard(packet.sender_mac);
        nic.search.handle_heard(now, packet.sender_mac);
        let watched = self.slots.get(&packet.target_ip).filter(|slot| *slot.nic == *name);
        if let Some(slot) = watched
            && !packet.broadcast
            && packet.operation == Operation::Request
            && !packet.is_probe()
        {
            nic.search.handle_watched(now, packet.sender_mac, packet.target_ip, slot.machine.fence());
        }
        let vip = packet.sender_ip;
        if let Some(slot) = self.slots.get(&vip).filter(|slot| *slot.nic == *name) {
            nic.monitor.handle_answer(now, packet.sender_mac, vip, slot.machine.interval());
            if !packet.broadcast {
                nic.search.handle_answer(now, packet.sender_mac, vip);
            }
        }
    }
}

/// The nodes whose speakers have these MAC addresses, each once, in order.
fn nodes_of(peers: &Peers, macs: impl Iterator<Item = MacAddr>) -> Vec<Arc<str>> {
    let node = |mac| match peers.who(mac) {
        Who::Speaker(node) => Some(node.clone()),
        Who::Own | Who::Foreign => None,
    };
    macs.filter_map(node).collect::<BTreeSet<_>>().into_iter().collect()
}
