//! What the owner machine makes of claims, answers and strangers that it hears.

use std::{sync::Arc, time::Instant};

use super::{Cause, Output, Owner, State, owning::SecondOwner};
use crate::{
    api::Role,
    speaker::{
        peers::{Peers, Who},
        wire::{AnnouncementForm, MacAddr, Message, Packet},
    },
};

impl Owner {
    pub(super) fn hear_claim(&mut self, now: Instant, from: MacAddr, node: &Arc<str>) {
        let still_named = self.role() == Some(Role::Primary);
        let ranks = (self.rank(None), self.rank(Some(node)));
        let own_mac = self.own_mac;
        match &mut self.state {
            State::Owner(owning) => {
                if !owning.stands_against(now, still_named, ranks, own_mac, from) {
                    self.held_by = Some(from);
                    self.fall_silent(now, format!("{node} claimed the address"));
                }
            }
            State::Probing(probing) => {
                self.held_by = Some(from);
                if probing.cause != Cause::Named {
                    self.fall_silent(now, format!("{node} claimed the address"));
                }
            }
            State::Blocked { .. } | State::Silent => {
                self.held_by = Some(from);
                self.recheck_at = None;
            }
        }
    }

    pub(super) fn hear_answer(&mut self, now: Instant, packet: &Packet, peers: &Peers) {
        match &mut self.state {
            State::Probing(probing) => {
                let outcome = probing.hear(now, packet, peers);
                self.conclude(now, outcome);
            }
            State::Owner(owning) if !owning.has_just_announced(now) => {
                self.hear_second_owner(now, packet.sender_mac, peers);
            }
            _ => {}
        }
    }

    pub(super) fn hear_second_owner(&mut self, now: Instant, mac: MacAddr, peers: &Peers) {
        let Who::Speaker(node) = peers.who(mac) else { return };
        if self.role() != Some(Role::Primary) && self.rank(Some(node)) == 0 {
            self.held_by = Some(mac);
            self.fall_silent(now, format!("{node}, which the API names, answers for the address too"));
            // It announces anew (rule 4), so that all caches follow.
            self.output.push_back(Output::Send(Message::Probe { vip: self.vip, to: None }));
            return;
        }
        let State::Owner(owning) = &mut self.state else { return };
        if owning.handle_second(now, mac) == SecondOwner::Split {
            let reason = format!(
                "{node} answers too, although it was announced against: its kernel or another program there has the \
                 address (kube-proxy in IPVS mode without strictARP, another load balancer, the address on an interface)"
            );
            self.report_owner(reason);
        }
    }

    pub(super) fn hear_foreign(&mut self, now: Instant, packet: &Packet, peers: &Peers) {
        let mac = packet.sender_mac;
        match &mut self.state {
            State::Silent | State::Blocked { .. } => {}
            State::Probing(probing) => {
                let outcome = probing.hear(now, packet, peers);
                self.conclude(now, outcome);
            }
            State::Owner(owning) => {
                let (defend, new) = owning.handle_rival(now, mac);
                if defend {
                    self.announce(AnnouncementForm::Request);
                }
                if new {
                    self.report_owner("a host that is not one of ours uses the same address");
                }
            }
        }
    }
}
