//! The owner's loop: the one task that feeds the [`Station`] and carries out what it wants.
//!
//! It owns the station, the open NICs with their receive threads, and nothing else writes to them. Each pass: wait for frames,
//! news or a timer; hand them in; carry out the effects; renew the heartbeat that the receive threads answer by. It never
//! waits for the API server. Dropping it closes the NICs, and nothing is answered from then on.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::{IpAddr, Ipv4Addr},
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, error, info, warn};

use super::{
    assignments::News,
    filter,
    inventory::{self, Interface},
    metrics::Metrics,
    nic::{self, Nic, SendError},
    report::{Reporter, SelfReport},
    responder::{Heard, Heartbeat, Inbox, Queues, Responder, Undecided, queues},
    station::{Change, Effect, Link, Station},
    triage::Snapshot,
    wire::Message,
};
use crate::telemetry::Health;

/// Interfaces are looked at this often, until the kernel's own events are listened to.
const INSPECT: Duration = Duration::from_secs(1);
/// Packets taken from a queue in one pass.
const BATCH: usize = 256;
/// After the last address has moved away, its claim is written within this, or not at all.
const LAST_WORDS: Duration = Duration::from_secs(2);

/// What the loop needs from outside.
pub struct Parts {
    /// All that is decided.
    pub station: Station,
    /// Where claims and the inventory go.
    pub reporter: Arc<Reporter>,
    /// Renewed in each pass.
    pub heartbeat: Arc<Heartbeat>,
    /// What is counted.
    pub metrics: Metrics,
    /// What is wrong.
    pub health: Health,
    /// What the API server says.
    pub news: mpsc::Receiver<News>,
    /// How long after the shutdown signal addresses are still answered for while they move to other nodes.
    pub drain_timeout: Duration,
}

/// The loop.
pub struct Driver {
    parts: Parts,
    queues: Queues,
    inbox: Inbox,
    nics: BTreeMap<Arc<str>, OpenNic>,
    links: BTreeMap<Arc<str>, Link>,
    interfaces: Vec<Interface>,
    /// Of the claims heard in this pass: for their addresses the receive threads are mute until it is over.
    undecided: Vec<Undecided>,
    inspect_now: bool,
    draining: bool,
    told_small_buffer: bool,
}

struct OpenNic {
    nic: Nic,
    responder: Responder,
}

enum Wake {
    Shutdown,
    Inspect,
    Claim(Heard),
    News(News),
    Request(Heard),
    Timer,
}

impl Driver {
    /// A loop that has not begun.
    pub fn new(parts: Parts) -> Self {
        let (queues, inbox) = queues();
        Self {
            parts,
            queues,
            inbox,
            nics: BTreeMap::new(),
            links: BTreeMap::new(),
            interfaces: Vec::new(),
            undecided: Vec::new(),
            inspect_now: true,
            draining: false,
            told_small_buffer: false,
        }
    }

    /// Runs until `shutdown`, and then until the addresses have moved away or the drain timeout is over.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        let mut inspect = interval(INSPECT);
        inspect.set_missed_tick_behavior(MissedTickBehavior::Delay);
        let mut leave_at = None;
        loop {
            let now = Instant::now();
            if leave_at.is_some_and(|at| now >= at) || self.draining && self.parts.station.to_hand_over() == 0 {
                break;
            }
            let look = self.inspect_now.then_some(now);
            let wake_at = self.parts.station.poll_timeout(now).into_iter().chain(leave_at).chain(look).min();
            let timer = async {
                match wake_at {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // In this order when several are ready: what cannot flood goes first, claims before requests.
            let wake = tokio::select! {
                biased;
                () = &mut shutdown, if !self.draining => Wake::Shutdown,
                _ = inspect.tick() => Wake::Inspect,
                Some(heard) = self.inbox.claims.recv() => Wake::Claim(heard),
                Some(news) = self.parts.news.recv() => Wake::News(news),
                () = timer => Wake::Timer,
                Some(heard) = self.inbox.requests.recv() => Wake::Request(heard),
            };
            let now = Instant::now();
            self.parts.station.handle_wake(now);
            match wake {
                Wake::Shutdown => leave_at = Some(self.begin_draining(now)),
                Wake::Inspect => self.inspect_now = true,
                Wake::Claim(heard) | Wake::Request(heard) => self.hear(now, heard),
                Wake::News(news) => self.handle_news(now, news),
                Wake::Timer => {}
            }
            self.hear_waiting(now);
            if std::mem::take(&mut self.inspect_now) {
                self.inspect(now);
            }
            self.parts.station.handle_timers(now);
            self.carry_out();
            self.undecided.clear();
            // Last: what a late loop silenced is published by now.
            self.parts.heartbeat.beat(now);
        }
        self.leave().await;
    }

    fn begin_draining(&mut self, now: Instant) -> Instant {
        info!(owned = self.parts.station.owned(), "shutting down: asking for the addresses to be moved");
        self.draining = true;
        self.report_itself();
        now + self.parts.drain_timeout
    }

    async fn leave(self) {
        let left = self.parts.station.owned();
        if left > 0 {
            warn!(left, "leaving while still answering: the drain timeout is over");
        }
        self.parts.reporter.flush(LAST_WORDS).await;
        info!("left");
    }

    fn hear(&mut self, now: Instant, heard: Heard) {
        self.parts.station.handle_packet(now, &heard.nic, &heard.packet);
        self.undecided.extend(heard.undecided);
    }

    fn hear_waiting(&mut self, now: Instant) {
        for _ in 0..BATCH {
            let Ok(heard) = self.inbox.claims.try_recv() else { break };
            self.hear(now, heard);
        }
        for _ in 0..BATCH {
            let Ok(heard) = self.inbox.requests.try_recv() else { break };
            self.hear(now, heard);
        }
    }

    fn handle_news(&mut self, now: Instant, news: News) {
        match news {
            News::Speakers(peers) => self.parts.station.handle_speakers(now, peers),
            News::OwnSpeakerGone => self.parts.reporter.handle_own_speaker_gone(),
            News::Change(change) => {
                self.open_new_nics(now, &change);
                let removes = !matches!(change, Change::Apply(_));
                self.parts.station.handle_change(now, change);
                if removes {
                    self.parts.reporter.keep_only(|vip| self.parts.station.has_part_in(vip));
                }
            }
        }
        self.parts.metrics.assigned.set(i64::try_from(self.parts.station.assigned()).unwrap_or(i64::MAX));
    }

    /// A NIC is open before the first address on it begins, so that this one does not begin with a link that is down.
    fn open_new_nics(&mut self, now: Instant, change: &Change) {
        let all = match change {
            Change::Reset(all) => all.as_slice(),
            Change::Apply(one) => std::slice::from_ref(one),
            Change::Remove(_) => &[],
        };
        let names: BTreeSet<&Arc<str>> = all.iter().map(|assigned| &assigned.nic).collect();
        for name in names {
            if !self.links.contains_key(name) {
                self.interfaces = inventory::list();
                self.check_nic(now, name);
            }
        }
    }

    /// Looks at the interfaces: what changed is told to the station and reported.
    fn inspect(&mut self, now: Instant) {
        self.interfaces = inventory::list();
        let names: Vec<Arc<str>> = self.parts.station.nics().cloned().collect();
        for name in names {
            self.check_nic(now, &name);
        }
        self.report_itself();
    }

    fn report_itself(&self) {
        let troubles = self
            .links
            .iter()
            .filter_map(|(name, link)| link.as_ref().err().map(|reason| format!("{name}: {reason}")))
            .collect();
        let interfaces = self.interfaces.iter().map(|interface| interface.entry.clone()).collect();
        self.parts.reporter.myself(SelfReport { interfaces, draining: self.draining, troubles });
    }

    /// Opens, reopens or gives up a NIC, as its interface is now.
    fn check_nic(&mut self, now: Instant, name: &Arc<str>) {
        let link = self.link_of(name);
        let part = format!("nic {name}");
        match &link {
            Ok(_) => self.parts.health.ready(&part),
            Err(reason) => self.parts.health.not_ready(part, reason.to_string()),
        }
        let before = self.links.insert(name.clone(), link.clone());
        if before.as_ref() != Some(&link) {
            match &link {
                Ok(mac) => info!(nic = %name, %mac, "open"),
                Err(reason) => warn!(nic = %name, %reason, "cannot announce"),
            }
            self.parts.station.handle_link(now, name, link);
        }
        let interface = self.interfaces.iter().find(|interface| *interface.entry.name == **name);
        let addresses = interface.map(Interface::addresses).unwrap_or_default();
        self.parts.station.handle_addresses(name, addresses);
    }

    fn link_of(&mut self, name: &Arc<str>) -> Link {
        let interface = self.interfaces.iter().find(|interface| *interface.entry.name == **name);
        let Some(interface) = interface else {
            self.nics.remove(name);
            return Err(Arc::from(format!("there is no interface {name} on this node")));
        };
        if !interface.entry.announces {
            // The socket stays: it works again when the link is back, unless the interface is another one then.
            return Err(Arc::from(interface.entry.reason.as_str()));
        }
        if let Some(open) = self.nics.get(name) {
            if !open.responder.is_running() {
                error!(nic = %name, "the receive thread ended; starting another");
            } else if open.nic.index() == interface.index && open.nic.is_current() {
                return Ok(open.nic.mac());
            }
            self.nics.remove(name);
            // The machines have to hear of it, also when the MAC address is the same.
            self.links.remove(name);
        }
        self.open(name).map_err(|reason| Arc::from(reason.as_str()))
    }

    fn open(&mut self, name: &Arc<str>) -> Result<super::wire::MacAddr, String> {
        // The station says what to listen for as soon as it knows of the NIC.
        let (nic, port) = nic::open(name, &filter::arp([])).map_err(|error| error.to_string())?;
        if let Ok((got, wanted)) = nic.receive_buffer()
            && got < wanted
            && !std::mem::replace(&mut self.told_small_buffer, true)
        {
            warn!(got, wanted, "the receive buffer is small: a burst of frames may be lost; raise net.core.rmem_max");
        }
        let parts = &self.parts;
        let responder = Responder::start(port, self.queues.clone(), parts.heartbeat.clone(), parts.metrics.clone())
            .map_err(|error| format!("the receive thread of {name} cannot be started: {error}"))?;
        let mac = nic.mac();
        self.nics.insert(name.clone(), OpenNic { nic, responder });
        Ok(mac)
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.parts.station.poll_effect() {
            match effect {
                Effect::Watch { nic, vips } if vips.is_empty() => self.close(&nic),
                Effect::Watch { nic, vips } => {
                    let ipv4: Vec<Ipv4Addr> = vips.iter().filter_map(ipv4).collect();
                    if let Some(open) = self.nics.get(&nic)
                        && let Err(error) = open.nic.set_filter(&filter::arp(&ipv4))
                    {
                        error!(%nic, %error, "the filter cannot be set: frames for new addresses are not seen");
                    }
                }
                Effect::Publish { nic, snapshot } => self.publish(&nic, snapshot),
                Effect::Send { nic, message } => self.send(&nic, &message),
                Effect::Report { vip, nic, mac, report } => {
                    info!(%vip, %nic, state = ?report.state, reason = report.reason, "claim");
                    self.parts.reporter.claim(vip, &nic, mac, report);
                }
            }
        }
        self.parts.metrics.owned.set(i64::try_from(self.parts.station.owned()).unwrap_or(i64::MAX));
    }

    fn close(&mut self, name: &Arc<str>) {
        self.parts.health.ready(&format!("nic {name}"));
        self.links.remove(name);
        if self.nics.remove(name).is_some() {
            info!(nic = %name, "closed: nothing to announce on it");
        }
    }

    fn publish(&self, name: &Arc<str>, snapshot: Snapshot) {
        if let Some(open) = self.nics.get(name) {
            open.responder.publish(snapshot);
        }
    }

    fn send(&mut self, name: &Arc<str>, message: &Message) {
        let Some(open) = self.nics.get(name) else { return };
        match open.nic.send(message) {
            Ok(()) => self.parts.metrics.sent(message),
            Err(error) => {
                self.parts.metrics.send_errors.inc();
                debug!(%error, ?message, "not sent");
                if matches!(error, SendError::MacChanged(_)) {
                    self.inspect_now = true;
                }
            }
        }
    }
}

fn ipv4(address: &IpAddr) -> Option<Ipv4Addr> {
    match address {
        IpAddr::V4(address) => Some(*address),
        IpAddr::V6(_) => None,
    }
}
