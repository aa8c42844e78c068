//! Addresses that somebody else on the network uses.
//!
//! Who was given such an address unasked, and does not show it yet, gets another one. The bad one keeps its VirtualIP, without
//! Services, so that its speaker goes on asking the network; when that finds nobody, it claims the address, and the quarantine ends.

use std::{net::IpAddr, time::Duration};

use super::{Index, Target};
use crate::{
    api::{self, ClaimState},
    controller::view::VirtualIPView,
};

/// So many addresses of a pool are in quarantine at most. Where more are in use, a router answers for all of them, say, and to try
/// every address of the pool would help nobody.
pub(super) const QUARANTINED_AT_MOST: usize = 16;

impl Index {
    /// Takes in what the speakers say of the network.
    pub(super) fn look_for_strangers(&mut self, name: &str, address: IpAddr, now: Duration) {
        let Some(vip) = self.vips.get(name) else { return };
        let (blocked, owned) = (is_blocked(vip), is_owned(vip));
        if self.allocator.is_quarantined(address) {
            if owned {
                self.end_quarantine(address, now);
            }
        } else if self.allocator.is_blocked(address) != blocked {
            self.allocator.set_blocked(address, blocked);
            self.dirty_services.extend(self.allocator.users(address).map(str::to_owned));
        }
    }

    /// Nothing happens to an address that is in none.
    pub(super) fn end_quarantine(&mut self, address: IpAddr, now: Duration) {
        if self.allocator.is_quarantined(address) {
            let pool = self.allocator.counted_pool(address).map(str::to_owned);
            self.allocator.end_quarantine(address, now);
            self.note_free(address, pool);
        }
    }

    /// Whether the address is another host's, and nobody has been told of it or wants it: then another one is as good.
    pub(super) fn is_replaceable(&self, address: IpAddr) -> bool {
        let is_wanted = |key: &str| {
            self.services.get(key).is_some_and(|service| {
                let asked = service.request.as_ref().is_ok_and(|request| request.addresses.contains(&address));
                asked || service.shown.contains(&address)
            })
        };
        self.allocator.is_blocked(address) && !self.allocator.users(address).any(is_wanted)
    }

    /// The quarantined addresses of a pool.
    pub(super) fn quarantined_in(&self, pool: &str) -> impl Iterator<Item = IpAddr> {
        self.allocator.quarantined().filter(move |address| self.allocator.counted_pool(*address) == Some(pool))
    }

    /// The MAC address of the host that has the address.
    pub(super) fn foreign_mac(&self, address: IpAddr) -> Option<&str> {
        let vip = self.vips.get(&api::virtual_ip_name(address))?;
        let mut claims = vip.claims.iter().filter(|claim| claim.uid == vip.uid);
        claims.find_map(|claim| claim.conflict_mac.as_deref())
    }

    /// An address can be given again: the pool says so, and who waits for one is looked at.
    pub(super) fn note_free(&mut self, address: IpAddr, pool: Option<String>) {
        self.homeless.remove(&address);
        self.dirty.insert(Target::VirtualIP(address));
        if let Some(pool) = pool {
            self.dirty.insert(Target::Pool(pool.clone()));
            self.freed.insert((pool, crate::ipam::Family::of(address)));
        }
        if self.reservations.is_on_interface(address) {
            self.stale = self.stale.max(super::pools::Stale::Reservations);
        }
    }
}

/// Whether a speaker that has a part in the address does not answer for it because of another host, and none does.
pub(super) fn is_blocked(vip: &VirtualIPView) -> bool {
    says(vip, ClaimState::Blocked) && !is_owned(vip)
}

/// Whether a speaker that has a part in the address answers for it.
pub(super) fn is_owned(vip: &VirtualIPView) -> bool {
    says(vip, ClaimState::Owner)
}

fn says(vip: &VirtualIPView, state: ClaimState) -> bool {
    let has_part = |node: &str| vip.spec.assignments.iter().any(|entry| entry.node == node);
    vip.claims.iter().any(|claim| claim.uid == vip.uid && claim.state == state && has_part(&claim.node))
}
