//! The NICs that this speaker announces on: which are open, and with what they are opened, closed and opened anew.
//!
//! A NIC is open as long as an interface of its name can announce, and it is still the one that was opened: the same index,
//! the same MAC address, its link never lost since, its receive thread running. Otherwise it is closed, and nothing leaves
//! through it from then on. While it has IPv6 addresses to announce it is open a second time, for neighbour discovery. It is used by the owner's loop alone.

mod ipv6;

use std::{
    collections::BTreeMap,
    net::{IpAddr, Ipv6Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use tracing::{error, info, warn};

use super::{
    filter,
    inventory::Interface,
    metrics::Metrics,
    netlink::{Links, View},
    nic::{self, Nic, Port, Protocol},
    responder::{Heartbeat, Queues, Responder},
    station::Link,
    triage::Snapshot,
    wire::{MacAddr, Message},
};
pub use ipv6::Ipv6State;

use crate::{
    api::NetworkInterface,
    telemetry::{Check, Health, Verdict},
};

/// A receive thread that did not run for this long does not do its work.
const LATE: Duration = Duration::from_secs(2);
/// Receive threads that could not be started for this long will not start.
const STUCK: Duration = Duration::from_secs(10);
/// The Speaker object names no more nodes that an interface cannot hear.
const MAX_UNHEARD: usize = 64;
/// The part of health that says whether receive threads can be started.
const THREADS: &str = "receive threads";

/// The NICs in use, and those that should be.
pub struct Nics {
    links: Links,
    view: View,
    queues: Queues,
    heartbeat: Arc<Heartbeat>,
    metrics: Metrics,
    health: Health,
    open: BTreeMap<Arc<str>, OpenNic>,
    states: BTreeMap<Arc<str>, Link>,
    /// What keeps IPv6 from being announced on NICs that are open.
    troubles6: BTreeMap<Arc<str>, Arc<str>>,
    /// Nodes that should answer on a NIC, and do not.
    unheard: BTreeMap<Arc<str>, Vec<Arc<str>>>,
    told_small_buffer: bool,
    /// Since when no receive thread could be started.
    threadless_since: Option<Instant>,
}

struct OpenNic {
    nic: Nic,
    responder: Responder,
    carrier_losses: u32,
    /// The IPv6 addresses that it listens for.
    vips6: Vec<Ipv6Addr>,
    ipv6: Option<ipv6::Half>,
    _check: Check,
}

/// What is so of a NIC.
pub struct Checked {
    /// To be told to the station: the state changed, or the NIC was opened anew.
    pub news: Option<Link>,
    /// Likewise, after that: whether it can announce IPv6, as far as that changed.
    pub ipv6: Option<Ipv6State>,
    /// The interface's own addresses.
    pub addresses: Vec<IpAddr>,
}

impl Nics {
    /// None in use so far.
    pub fn new(links: Links, queues: Queues, heartbeat: Arc<Heartbeat>, metrics: Metrics, health: Health) -> Self {
        Self {
            links,
            view: View::default(),
            queues,
            heartbeat,
            metrics,
            health,
            open: BTreeMap::new(),
            states: BTreeMap::new(),
            troubles6: BTreeMap::new(),
            unheard: BTreeMap::new(),
            told_small_buffer: false,
            threadless_since: None,
        }
    }

    /// Waits for news of interfaces. Then [`Nics::refresh`].
    pub async fn changed(&mut self) {
        self.links.changed().await;
    }

    /// Takes over the newest view.
    pub fn refresh(&mut self) {
        self.view = self.links.view();
    }

    /// Asks the kernel for all there is: it may not have told of something yet.
    pub fn look(&self) {
        self.links.look();
    }

    /// The node's interfaces.
    pub fn interfaces(&self) -> &[Interface] {
        &self.view
    }

    /// What the Speaker object says about the node's interfaces.
    pub fn entries(&self) -> Vec<NetworkInterface> {
        let entry = |interface: &Interface| {
            let unheard = self.unheard.get(interface.entry.name.as_str()).into_iter().flatten();
            NetworkInterface {
                unheard: unheard.take(MAX_UNHEARD).map(ToString::to_string).collect(),
                ..interface.entry.clone()
            }
        };
        self.view.iter().map(entry).collect()
    }

    /// These nodes' speakers do not answer on this NIC, although they should.
    pub fn cannot_hear(&mut self, name: &Arc<str>, nodes: Vec<Arc<str>>) {
        if nodes.is_empty() {
            info!(nic = %name, "all owners that this node stands by for are heard");
            self.unheard.remove(name);
        } else {
            warn!(nic = %name, ?nodes, "owners that this node stands by for do not answer here: does the interface lead to the same LAN?");
            self.unheard.insert(name.clone(), nodes);
        }
    }

    /// What keeps NICs from announcing, one sentence each.
    pub fn troubles(&self) -> Vec<String> {
        let trouble = |(name, link): (&Arc<str>, &Link)| link.as_ref().err().map(|reason| format!("{name}: {reason}"));
        let ipv6 = self.troubles6.iter().map(|(name, reason)| format!("{name}: {reason}"));
        self.states.iter().filter_map(trouble).chain(ipv6).collect()
    }

    /// Whether the NIC is in use, or should be.
    pub fn is_used(&self, name: &Arc<str>) -> bool {
        self.states.contains_key(name)
    }

    /// Opens, opens anew or closes a NIC that is in use, as its interface is now.
    pub fn check(&mut self, name: &Arc<str>) -> Checked {
        let interface = self.view.iter().find(|interface| *interface.entry.name == **name).cloned();
        let addresses = interface.as_ref().map(Interface::addresses).unwrap_or_default();
        let (link, opened) = match interface {
            Some(interface) if interface.entry.announces => self.hold_open(name, &interface),
            Some(interface) => (Err(Arc::from(interface.entry.reason)), false),
            None => (Err(Arc::from(format!("there is no interface {name} on this node"))), false),
        };
        if link.is_err() {
            self.open.remove(name);
        }
        let ipv6 = if link.is_ok() && !opened { self.check_ipv6(name) } else { None };
        let part = part(name);
        match &link {
            Ok(_) => self.health.ready(&part),
            Err(reason) => self.health.not_ready(part, reason.to_string()),
        }
        let before = self.states.insert(name.clone(), link.clone());
        let is_news = opened || before.as_ref() != Some(&link);
        if is_news {
            match &link {
                Ok(mac) => info!(nic = %name, %mac, "open"),
                Err(reason) => warn!(nic = %name, %reason, "cannot announce"),
            }
        }
        Checked { news: is_news.then_some(link), ipv6, addresses }
    }

    /// Whether a receive thread has ended or is stuck, or a NIC is not open although its interface can announce.
    pub fn want_a_look(&self) -> bool {
        let is_closed = |name: &Arc<str>, link: &Link| {
            let can_announce = |interface: &Interface| *interface.entry.name == **name && interface.entry.announces;
            link.is_err() && self.view.iter().any(can_announce)
        };
        self.open.values().any(|open| !open.responder.is_running())
            || self.ipv6_wants_a_look()
            || self.states.iter().any(|(name, link)| is_closed(name, link))
    }

    /// Each open NIC, and whether a receive thread of it stands still.
    pub fn deaf(&self) -> impl Iterator<Item = (Arc<str>, bool)> {
        let is_deaf = |open: &OpenNic| {
            let ipv6 = open.ipv6.as_ref().map(|half| &half.responder);
            [Some(&open.responder), ipv6].into_iter().flatten().any(Responder::is_late)
        };
        self.open.iter().map(move |(name, open)| (name.clone(), is_deaf(open)))
    }

    /// Nothing is to be announced on it any more.
    pub fn close(&mut self, name: &Arc<str>) {
        self.health.ready(&part(name));
        self.states.remove(name);
        self.forget_ipv6(name);
        self.unheard.remove(name);
        if self.open.remove(name).is_some() {
            info!(nic = %name, "closed: nothing to announce on it");
        }
    }

    /// Listens for these addresses. What is given back is to be told to the station: whether it can announce IPv6, as far as
    /// that changed.
    pub fn watch(&mut self, name: &Arc<str>, vips: &[IpAddr]) -> Option<Ipv6State> {
        let open = self.open.get(name)?;
        let (mut ipv4, mut ipv6) = (Vec::new(), Vec::new());
        for vip in vips {
            match vip {
                IpAddr::V4(vip) => ipv4.push(*vip),
                IpAddr::V6(vip) => ipv6.push(*vip),
            }
        }
        if let Err(error) = open.nic.set_filter(&filter::arp(&ipv4)) {
            error!(nic = %name, %error, "the filter cannot be set: frames for new addresses are not seen");
        }
        self.watch_ipv6(name, ipv6)
    }

    /// The receive threads work by this from now on.
    pub fn publish(&self, name: &Arc<str>, snapshot: Snapshot) {
        let Some(open) = self.open.get(name) else { return };
        let snapshot = Arc::new(snapshot);
        if let Some(ipv6) = &open.ipv6 {
            ipv6.responder.publish(snapshot.clone());
        }
        open.responder.publish(snapshot);
    }

    /// Sends, if it is `in_time`: that is asked directly before.
    ///
    /// # Errors
    /// See [`nic::SendError`]: also when the NIC is not open, so that a probe which did not leave never counts as asked.
    pub fn send(
        &self,
        name: &Arc<str>,
        message: &Message,
        in_time: impl FnOnce() -> bool,
    ) -> Result<(), nic::SendError> {
        let nic = self.open.get(name).and_then(|open| match message.vip() {
            IpAddr::V4(_) => Some(&open.nic),
            IpAddr::V6(_) => open.ipv6.as_ref().map(|half| &half.nic),
        });
        nic.ok_or_else(|| nic::SendError::Closed(name.clone()))?.send(message, in_time)?;
        self.metrics.sent(message);
        Ok(())
    }

    /// Whether it was opened just now is the second.
    fn hold_open(&mut self, name: &Arc<str>, interface: &Interface) -> (Link, bool) {
        if let Some(open) = self.open.get(name) {
            if !open.responder.is_running() {
                self.metrics.threads_replaced.inc();
                error!(nic = %name, "the receive thread ended, or is stuck; starting another");
            } else if open.is_still(interface) {
                return (Ok(open.nic.mac()), false);
            }
            self.open.remove(name);
        }
        match self.open_now(name, interface) {
            Ok(mac) => (Ok(mac), true),
            Err(reason) => (Err(Arc::from(reason.as_str())), false),
        }
    }

    fn open_now(&mut self, name: &Arc<str>, interface: &Interface) -> Result<MacAddr, String> {
        // The station says what to listen for as soon as it knows of the NIC.
        let (nic, port) = nic::open(name, Protocol::Arp, &filter::arp([])).map_err(|error| error.to_string())?;
        if let Ok((got, wanted)) = nic.receive_buffer()
            && got < wanted
            && !std::mem::replace(&mut self.told_small_buffer, true)
        {
            warn!(got, wanted, "the receive buffer is small: a burst of frames may be lost; raise net.core.rmem_max");
        }
        let (responder, check) = self.start_thread(name, port)?;
        let mac = nic.mac();
        let carrier_losses = interface.carrier_losses;
        self.open.insert(
            name.clone(),
            OpenNic { nic, responder, carrier_losses, vips6: Vec::new(), ipv6: None, _check: check },
        );
        Ok(mac)
    }

    fn start_thread(&mut self, name: &str, port: Port) -> Result<(Responder, Check), String> {
        let started = Responder::start(port, self.queues.clone(), self.heartbeat.clone(), self.metrics.clone());
        let started = started.map_err(|error| format!("the receive thread of {name} cannot be started: {error}"));
        let threadless_since = self.threadless_since.take();
        let responder = started.inspect_err(|reason| {
            let since = *self.threadless_since.insert(threadless_since.unwrap_or_else(Instant::now));
            if since.elapsed() >= STUCK {
                self.health.dead(THREADS, reason);
            }
        })?;
        self.health.alive(THREADS);
        let pulse = responder.pulse();
        let check = self.health.check(format!("receive thread of {name}"), move || match pulse.since() {
            // The loop replaces it.
            late if late >= LATE => Verdict::NotReady(format!("it has not run for {} s", late.as_secs())),
            _ => Verdict::Well,
        });
        Ok((responder, check))
    }
}

impl OpenNic {
    /// Whether it is the interface that was opened, and claims cannot have gone unheard since.
    fn is_still(&self, interface: &Interface) -> bool {
        self.nic.index() == interface.index && self.carrier_losses == interface.carrier_losses && self.nic.is_current()
    }
}

fn part(name: &str) -> String {
    format!("nic {name}")
}

#[cfg(test)]
mod tests;
