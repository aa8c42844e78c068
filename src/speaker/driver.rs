//! The owner's loop: the one task that feeds the [`Station`] and carries out what it wants.
//!
//! It owns the station, the open NICs with their receive threads, and nothing else writes to them. Each pass: wait for frames,
//! news or a timer; hand them in; carry out the effects; renew the heartbeat that the receive threads answer by. It never
//! waits for the API server. Dropping it closes the NICs, and nothing is answered from then on.

use std::{
    collections::BTreeSet,
    sync::Arc,
    time::{Duration, Instant},
};

use tokio::{
    sync::mpsc,
    time::{MissedTickBehavior, interval, sleep_until},
};
use tracing::{debug, info, warn};

use super::{
    assignments::News,
    lookalike,
    metrics::Metrics,
    netlink::{self, Links},
    nic::SendError,
    nics::Nics,
    report::{Reporter, SelfReport},
    responder::{Heard, Heartbeat, Inbox, Undecided, queues},
    schedule::{Bucket, Level},
    station::{Change, Effect, Station},
    wire::Message,
};
use crate::telemetry::{Check, Health, Verdict};

/// However often interfaces change, the Speaker object is written no more often than this.
const REPORT_ITSELF: Duration = Duration::from_secs(1);
/// Receive threads are looked at this often: one that is stuck cannot say so.
const LOOK_AT_THREADS: Duration = Duration::from_secs(1);
/// Packets taken from a queue in one pass.
const BATCH: usize = 256;
/// No more is taken in a pass that lasts as long as this: the heartbeat has to be renewed.
const PASS: Duration = Duration::from_millis(20);
/// Lines about claims that are logged: enough for a node with thousands of addresses, not for who provokes them.
const LINES: Bucket = Bucket { burst: 5_000, interval: Duration::from_millis(100) };
/// A loop that did not run for this long does not do its work.
const LATE: Duration = Duration::from_secs(2);
/// A loop that did not run for this long will not run again by itself.
const STUCK: Duration = Duration::from_secs(10);
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
    /// What the kernel says of the interfaces.
    pub links: Links,
    /// What the API server says.
    pub news: mpsc::Receiver<News>,
    /// How long after the shutdown signal addresses are still answered for while they move to other nodes.
    pub drain_timeout: Duration,
}

/// The loop.
pub struct Driver {
    station: Station,
    reporter: Arc<Reporter>,
    heartbeat: Arc<Heartbeat>,
    metrics: Metrics,
    news: mpsc::Receiver<News>,
    drain_timeout: Duration,
    nics: Nics,
    inbox: Inbox,
    /// Of the claims heard in this pass: for their addresses the receive threads are mute until it is over.
    undecided: Vec<Undecided>,
    inspect_now: bool,
    reported_at: Option<Instant>,
    /// The Speaker object says less than is so; it is not time to write it yet.
    report_due: bool,
    draining: bool,
    lines: Level,
    /// Lines that were not logged.
    left_out: u64,
    health: Health,
}

enum Wake {
    Shutdown,
    Links,
    Trouble,
    Threads,
    Claim(Heard),
    News(News),
    Request(Heard),
    Stranger(Heard),
    Timer,
}

impl Driver {
    /// A loop that has not begun.
    pub fn new(parts: Parts) -> Self {
        let (queues, inbox) = queues();
        let Parts { station, reporter, heartbeat, metrics, health, links, news, drain_timeout } = parts;
        let nics = Nics::new(links, queues, heartbeat.clone(), metrics.clone(), health.clone());
        Self {
            station,
            reporter,
            heartbeat,
            metrics,
            news,
            drain_timeout,
            nics,
            inbox,
            undecided: Vec::new(),
            inspect_now: false,
            reported_at: None,
            report_due: false,
            draining: false,
            lines: Level::default(),
            left_out: 0,
            health,
        }
    }

    /// Runs until `shutdown`, and then until the addresses have moved away or the drain timeout is over.
    pub async fn run(mut self, shutdown: impl Future<Output = ()> + Send) {
        let mut shutdown = std::pin::pin!(shutdown);
        // Before the interfaces are known, no address can begin on one.
        tokio::select! {
            biased;
            () = &mut shutdown => return,
            () = self.nics.changed() => self.inspect(Instant::now()),
        }
        self.heartbeat.beat(Instant::now());
        let _check = self.check_itself();
        let mut leave_at = None;
        let mut look_at_threads = interval(LOOK_AT_THREADS);
        look_at_threads.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = Instant::now();
            if leave_at.is_some_and(|at| now >= at) || self.draining && self.station.to_hand_over() == 0 {
                break;
            }
            let look = (self.inspect_now || self.nics.is_joining()).then_some(now);
            let report = self.report_due.then(|| self.may_report_at(now));
            let wake_at = self.station.poll_timeout(now).into_iter().chain(leave_at).chain(look).chain(report).min();
            let timer = async {
                match wake_at {
                    Some(at) => sleep_until(at.into()).await,
                    None => std::future::pending().await,
                }
            };
            // In this order when several are ready: what cannot flood goes first, strangers go last. Each pass takes of all.
            let wake = tokio::select! {
                biased;
                () = &mut shutdown, if !self.draining => Wake::Shutdown,
                () = self.nics.changed() => Wake::Links,
                () = self.inbox.trouble.notified() => Wake::Trouble,
                _ = look_at_threads.tick() => Wake::Threads,
                Some(heard) = self.inbox.claims.recv() => Wake::Claim(heard),
                Some(news) = self.news.recv() => Wake::News(news),
                () = timer => Wake::Timer,
                Some(heard) = self.inbox.requests.recv() => Wake::Request(heard),
                Some(heard) = self.inbox.strangers.recv() => Wake::Stranger(heard),
            };
            let now = Instant::now();
            self.station.handle_wake(now);
            match wake {
                Wake::Shutdown => leave_at = Some(self.begin_draining(now)),
                Wake::Links => self.inspect_now = true,
                Wake::Threads => self.inspect_now |= self.nics.want_a_look(),
                Wake::Trouble => {
                    self.nics.look();
                    self.inspect_now = true;
                }
                Wake::Claim(heard) | Wake::Request(heard) | Wake::Stranger(heard) => self.hear(now, heard),
                Wake::News(news) => self.handle_news(now, news),
                Wake::Timer => {}
            }
            // Looked at first: what a thread that catches up from here on hands over may be heard in the next pass only.
            let deaf: Vec<(Arc<str>, bool)> = self.nics.deaf().collect();
            let has_heard_all = self.hear_waiting(now);
            if std::mem::take(&mut self.inspect_now) {
                self.inspect(now);
            }
            self.nics.join_groups();
            for (name, is_deaf) in deaf {
                self.station.handle_deaf(&name, is_deaf, has_heard_all);
            }
            self.station.handle_timers(now);
            self.carry_out();
            if self.report_due && self.may_report_at(now) <= now {
                self.report_itself(now);
            }
            self.undecided.clear();
            // Last: what a late loop silenced is published by now.
            self.heartbeat.beat(now);
        }
        self.leave().await;
    }

    /// From its first pass on it is looked at. Before that it waits for the kernel, which no restart makes quicker, and which says
    /// itself that it is not ready.
    fn check_itself(&self) -> Check {
        let beats = self.heartbeat.clone();
        self.health.check("owner's loop", move || match beats.since() {
            late if late >= STUCK => Verdict::Dead(format!("it has not run for {} s", late.as_secs())),
            late if late >= LATE => Verdict::NotReady(format!("it has not run for {} s", late.as_secs())),
            _ => Verdict::Well,
        })
    }

    fn begin_draining(&mut self, now: Instant) -> Instant {
        info!(owned = self.station.owned(), "shutting down: asking for the addresses to be moved");
        self.draining = true;
        self.report_itself(now);
        now + self.drain_timeout
    }

    async fn leave(self) {
        let left = self.station.owned();
        if left > 0 {
            warn!(left, "leaving while still answering: the drain timeout is over");
        }
        self.reporter.flush(LAST_WORDS).await;
        info!("left");
    }

    fn hear(&mut self, now: Instant, heard: Heard) {
        self.station.handle_packet(now, &heard.nic, &heard.packet);
        self.undecided.extend(heard.undecided);
    }

    /// Takes some of all that waits. A flood in one queue cannot keep the others, or what the API says, from being heard.
    fn hear_waiting(&mut self, now: Instant) -> bool {
        for _ in 0..BATCH {
            let claim = self.inbox.claims.try_recv().ok();
            let news = self.news.try_recv().ok();
            let request = self.inbox.requests.try_recv().ok();
            let stranger = self.inbox.strangers.try_recv().ok();
            if claim.is_none() && news.is_none() && request.is_none() && stranger.is_none() {
                break;
            }
            for heard in claim.into_iter().chain(request).chain(stranger) {
                self.hear(now, heard);
            }
            if let Some(news) = news {
                self.handle_news(now, news);
            }
            if now.elapsed() >= PASS {
                break;
            }
        }
        self.inbox.claims.is_empty()
    }

    fn handle_news(&mut self, now: Instant, news: News) {
        match news {
            News::Speakers(peers) => self.station.handle_speakers(now, peers),
            News::OwnSpeakerGone => self.reporter.handle_own_speaker_gone(),
            News::Change(change) => {
                self.open_new_nics(now, &change);
                let removes = !matches!(change, Change::Apply(_));
                self.station.handle_change(now, change);
                // An address may be one that this node's kernel answers for.
                self.report_due = true;
                if removes {
                    self.reporter.keep_only(|vip| self.station.has_part_in(vip));
                }
            }
        }
        self.metrics.assigned.set(i64::try_from(self.station.assigned()).unwrap_or(i64::MAX));
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
            if !self.nics.is_used(name) {
                self.nics.refresh();
                self.check_nic(now, name);
            }
            if all.iter().any(|assigned| assigned.nic == *name && assigned.vip.is_ipv6())
                && let Some(state) = self.nics.prepare_ipv6(name)
            {
                self.station.handle_ipv6(now, name, state);
            }
        }
    }

    /// Looks at the interfaces: what changed is told to the station and reported.
    fn inspect(&mut self, now: Instant) {
        self.nics.refresh();
        let names: Vec<Arc<str>> = self.station.nics().cloned().collect();
        for name in names {
            self.check_nic(now, &name);
        }
        self.report_due = true;
    }

    fn check_nic(&mut self, now: Instant, name: &Arc<str>) {
        let checked = self.nics.check(name);
        if let Some(link) = checked.news {
            self.station.handle_link(now, name, link);
        }
        if let Some(state) = checked.ipv6 {
            self.station.handle_ipv6(now, name, state);
        }
        self.station.handle_addresses(name, checked.addresses);
    }

    fn may_report_at(&self, now: Instant) -> Instant {
        self.reported_at.map_or(now, |at| at + REPORT_ITSELF)
    }

    fn report_itself(&mut self, now: Instant) {
        (self.reported_at, self.report_due) = (Some(now), false);
        let interfaces = self.nics.entries();
        let mut troubles = self.nics.troubles();
        let vips = self.station.vips();
        troubles.extend(lookalike::kernel_answers(vips, self.nics.interfaces(), netlink::arp_ignore));
        self.reporter.myself(SelfReport { interfaces, draining: self.draining, troubles });
    }

    fn carry_out(&mut self) {
        while let Some(effect) = self.station.poll_effect() {
            match effect {
                Effect::Watch { nic, vips } if vips.is_empty() => self.nics.close(&nic),
                Effect::Watch { nic, vips } => {
                    if let Some(state) = self.nics.watch(&nic, &vips) {
                        self.station.handle_ipv6(Instant::now(), &nic, state);
                    }
                }
                Effect::Publish { nic, snapshot } => self.nics.publish(&nic, snapshot),
                Effect::Send { nic, message } => self.send(&nic, &message),
                Effect::Unheard { nic, nodes } => {
                    self.nics.cannot_hear(&nic, nodes);
                    self.report_due = true;
                }
                Effect::Report { vip, nic, mac, report } => {
                    let now = Instant::now();
                    if self.lines.ready_at(LINES, now) <= now {
                        self.lines.spend(LINES, now);
                        let left_out = std::mem::take(&mut self.left_out);
                        if left_out > 0 {
                            warn!(left_out, "claims change so often that not all of them are logged");
                        }
                        info!(%vip, %nic, state = ?report.state, reason = &*report.reason, "claim");
                    } else {
                        self.left_out += 1;
                    }
                    self.reporter.claim(vip, &nic, mac, report);
                }
            }
        }
        self.metrics.owned.set(i64::try_from(self.station.owned()).unwrap_or(i64::MAX));
    }

    fn send(&mut self, name: &Arc<str>, message: &Message) {
        let in_time = || !self.station.is_too_late(Instant::now(), message);
        if let Err(error) = self.nics.send(name, message, in_time) {
            if matches!(error, SendError::TooLate(_)) {
                debug!(?message, "not sent: the loop was held up");
                return;
            }
            self.metrics.send_errors.inc();
            debug!(%error, ?message, "not sent");
            if let Message::Probe { vip, .. } = message {
                self.station.handle_unsent(Instant::now(), *vip);
            }
            if matches!(error, SendError::MacChanged(_)) {
                self.nics.look();
                self.inspect_now = true;
            }
        }
    }
}

#[cfg(test)]
mod tests;
