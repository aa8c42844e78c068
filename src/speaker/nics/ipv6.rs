//! The second half of a NIC: neighbour discovery, open only while there are IPv6 addresses to announce on it.
//!
//! It has a socket and a receive thread of its own, and the multicast groups in which its addresses are asked for. What
//! keeps it from being open keeps the IPv6 addresses of the NIC from being announced; those of IPv4 go on.

use std::{net::Ipv6Addr, sync::Arc};

use tracing::{error, info, warn};

use super::{Nics, OpenNic};
use crate::{
    speaker::{
        filter,
        nic::{self, Groups, Nic, Protocol},
        responder::Responder,
    },
    telemetry::Check,
};

/// Whether IPv6 can be announced on a NIC that is open.
pub type Ipv6State = Result<(), Arc<str>>;

/// What is open for IPv6.
pub(super) struct Half {
    pub(super) nic: Nic,
    pub(super) responder: Responder,
    groups: Groups,
    /// Whether all the groups are joined, or about to be.
    joined: bool,
    _check: Check,
}

impl Nics {
    /// Opens a NIC for IPv6 before the first address begins on it. What is given back is to be told to the station.
    pub fn prepare_ipv6(&mut self, name: &Arc<str>) -> Option<Ipv6State> {
        if self.open.get(name)?.ipv6.is_some() {
            return None;
        }
        self.hold_ipv6(name)
    }

    /// Listens for these IPv6 addresses; with none, the NIC is closed for IPv6. What is given back is to be told to the station.
    pub(super) fn watch_ipv6(&mut self, name: &Arc<str>, vips: Vec<Ipv6Addr>) -> Option<Ipv6State> {
        let open = self.open.get_mut(name)?;
        let mut is_deaf = false;
        if open.vips6 != vips {
            open.vips6 = vips;
            is_deaf = open.apply_ipv6(name).is_err();
        }
        if is_deaf {
            // Tried once more, with a socket of its own: what cannot be heard must not be claimed.
            open.ipv6 = None;
        }
        let state = self.check_ipv6(name);
        state.or(is_deaf.then_some(Ok(())))
    }

    /// Opens or opens anew what has to be open, and closes what has not. What is given back is to be told to the station: that
    /// IPv6 cannot be announced any more, or that it can again, or that it was opened anew.
    pub(super) fn check_ipv6(&mut self, name: &Arc<str>) -> Option<Ipv6State> {
        let open = self.open.get_mut(name)?;
        if !open.vips6.is_empty() {
            return self.hold_ipv6(name);
        }
        if open.ipv6.take().is_some() {
            info!(nic = %name, "closed for IPv6: no IPv6 address to announce on it");
        }
        self.health.ready(&part(name));
        self.troubles6.remove(name).map(|_| Ok(()))
    }

    /// Nothing is known of its IPv6 any more.
    pub(super) fn forget_ipv6(&mut self, name: &Arc<str>) {
        self.health.ready(&part(name));
        self.troubles6.remove(name);
    }

    /// Whether something is to be tried again: a group that could not be joined, a thread that ended, a socket.
    pub(super) fn ipv6_wants_a_look(&self) -> bool {
        let is_well = |open: &OpenNic| match &open.ipv6 {
            Some(half) => half.joined && half.responder.is_running(),
            None => open.vips6.is_empty(),
        };
        !self.open.values().all(is_well)
    }

    /// Whether there are groups to be joined: [`Nics::join_groups`] is due.
    pub fn is_joining(&self) -> bool {
        self.open.values().filter_map(|open| open.ipv6.as_ref()).any(|half| half.groups.is_due())
    }

    /// Joins some of the multicast groups that are to be joined; the loop goes on in between.
    pub fn join_groups(&mut self) {
        for (name, open) in &mut self.open {
            if let Some(half) = open.ipv6.as_mut().filter(|half| half.groups.is_due()) {
                half.join_groups(name);
            }
        }
    }

    fn hold_ipv6(&mut self, name: &Arc<str>) -> Option<Ipv6State> {
        let before = self.open.get(name)?.ipv6.is_some();
        let (state, opened) = match self.open_ipv6(name) {
            Ok(opened) => (Ok(()), opened),
            Err(reason) => (Err(Arc::<str>::from(reason)), false),
        };
        match &state {
            Ok(()) => {
                let was_in_trouble = self.troubles6.remove(name).is_some();
                self.health.ready(&part(name));
                (was_in_trouble || before && opened).then_some(Ok(()))
            }
            Err(reason) => {
                if let Some(open) = self.open.get_mut(name) {
                    open.ipv6 = None;
                }
                self.health.not_ready(part(name), reason.to_string());
                let is_news = self.troubles6.insert(name.clone(), reason.clone()).as_ref() != Some(reason);
                if is_news {
                    warn!(nic = %name, %reason, "cannot announce IPv6");
                }
                is_news.then_some(state)
            }
        }
    }

    /// Gives back whether it was opened just now.
    fn open_ipv6(&mut self, name: &Arc<str>) -> Result<bool, String> {
        let entry = self.view.iter().map(|interface| &interface.entry).find(|entry| *entry.name == **name);
        if let Some(entry) = entry.filter(|entry| !entry.announces_ipv6) {
            return Err(entry.reason_ipv6.clone());
        }
        let Some(open) = self.open.get_mut(name) else { return Ok(false) };
        if let Some(half) = &open.ipv6 {
            if !half.responder.is_running() {
                self.metrics.threads_replaced.inc();
                error!(nic = %name, "the receive thread for IPv6 ended, or is stuck; starting another");
            } else if half.nic.index() == open.nic.index() && half.nic.is_current() {
                // What could not be joined before is tried again.
                if !half.joined {
                    open.apply_ipv6(name)?;
                }
                return Ok(false);
            }
            open.ipv6 = None;
        }
        let (nic, port) =
            nic::open(name, Protocol::NeighbourDiscovery, &filter::nd([])).map_err(|error| error.to_string())?;
        // It was not there when the groups before were joined, if it is another one of the same name.
        let groups = Groups::new(name.clone(), nic.index());
        let (responder, check) = self.start_thread(&format!("{name} for IPv6"), port)?;
        let Some(open) = self.open.get_mut(name) else { return Ok(false) };
        open.ipv6 = Some(Half { nic, responder, groups, joined: true, _check: check });
        open.apply_ipv6(name)?;
        info!(nic = %name, "open for IPv6");
        Ok(true)
    }
}

impl OpenNic {
    /// Lets frames about the addresses in, and joins their groups. Fails where frames about new addresses are not let in.
    fn apply_ipv6(&mut self, name: &Arc<str>) -> Result<(), String> {
        let Some(half) = &mut self.ipv6 else { return Ok(()) };
        half.nic.set_filter(&filter::nd(&self.vips6)).map_err(|error| {
            format!("its filter for IPv6 addresses cannot be set, so that they would not be heard of: {error}")
        })?;
        half.groups.set(self.vips6.iter().copied());
        half.join_groups(name);
        Ok(())
    }
}

impl Half {
    /// Takes a step. One group that cannot be joined stands back for no other.
    fn join_groups(&mut self, name: &Arc<str>) {
        match self.groups.proceed() {
            Ok(done) => self.joined |= done,
            Err(error) => {
                if std::mem::replace(&mut self.joined, false) {
                    error!(nic = %name, %error, "hosts may not find some of the IPv6 addresses; it is tried again");
                }
            }
        }
    }
}

fn part(name: &str) -> String {
    format!("nic {name} for IPv6")
}
