//! The receive path of one NIC: a thread for each protocol that answers requests for the virtual IPs owned on it.
//!
//! The thread owns the NIC's [`Port`]. It reads an immutable snapshot that the owner's loop publishes, and a heartbeat that the
//! loop renews; it takes no lock, and an answer allocates nothing. Claims, answers and probes of others go to the loop through
//! bounded queues; what does not fit is counted. From the moment another speaker's claim is in its queue until the loop has
//! carried out what follows from it, the thread does not answer for that address; what a stranger claims never silences it.
//! Each frame received is answered, handed over to the loop, or dropped for one reason. The thread has a heartbeat of its own,
//! by which the loop replaces it when it is stuck. Dropping the [`Responder`] ends it within a quarter of a second, and no
//! answer leaves it from that moment on.

use std::{
    io,
    net::IpAddr,
    sync::{
        Arc,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread,
    time::{Duration, Instant},
};

use arc_swap::ArcSwap;
use tokio::sync::{Notify, mpsc};
use tracing::{debug, warn};

use super::{
    drop_reason::DropReason,
    metrics::Metrics,
    nic::Port,
    triage::{Queue, Snapshot},
    wire::{self, MacAddr, Packet},
};

/// Packets that wait for the owner's loop, in each queue.
const QUEUE: usize = 1024;
/// Those of strangers.
const STRANGERS: usize = 64;
/// After a receive error: the NIC is down or gone, and the loop will notice.
const ERROR_PAUSE: Duration = Duration::from_millis(100);
/// Receive errors are logged at most this often.
const LOG_ERRORS: Duration = Duration::from_secs(10);
/// The kernel is asked this often how many frames it lost.
const COUNT_OVERRUNS: Duration = Duration::from_secs(1);
/// A receive thread that did not look for frames for so long will not: it looks at least four times a second.
const STUCK: Duration = Duration::from_secs(5);

/// When the owner's loop, or a receive thread, last ran.
#[derive(Debug)]
pub struct Heartbeat {
    start: Instant,
    nanoseconds: AtomicU64,
}

impl Heartbeat {
    /// A heart that beats now for the first time.
    pub fn new() -> Self {
        Self { start: Instant::now(), nanoseconds: AtomicU64::new(0) }
    }

    /// The loop ran at `now`, and everything that followed from it has been published.
    pub fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.start);
        self.nanoseconds.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// How long ago the last beat was.
    pub fn since(&self) -> Duration {
        self.start.elapsed().saturating_sub(Duration::from_nanos(self.nanoseconds.load(Ordering::Acquire)))
    }
}

impl Default for Heartbeat {
    fn default() -> Self {
        Self::new()
    }
}

/// A packet for the owner's loop.
#[derive(Debug)]
pub struct Heard {
    /// Name of the interface that it came in on.
    pub nic: Arc<str>,
    /// What it says.
    pub packet: Packet,
    /// Of a claim: to be dropped when what follows from it has been published.
    pub undecided: Option<Undecided>,
}

/// As long as it lives, the receive thread that heard the claim does not answer for the address.
#[derive(Debug)]
pub struct Undecided(Arc<AtomicBool>);

impl Drop for Undecided {
    fn drop(&mut self) {
        // Release: a thread that sees it sees the snapshot that was published before, too.
        self.0.store(true, Ordering::Release);
    }
}

/// The addresses that another host claimed and about which the owner's loop has not decided yet. There are never more than
/// its queue holds.
#[derive(Debug, Default)]
struct Claimed(Vec<(IpAddr, Arc<AtomicBool>)>);

impl Claimed {
    fn add(&mut self, vip: IpAddr) -> Undecided {
        let decided = Arc::new(AtomicBool::new(false));
        self.0.push((vip, decided.clone()));
        Undecided(decided)
    }

    /// To be called before the snapshot is read: a decision that is forgotten here is in it.
    fn forget_decided(&mut self) {
        self.0.retain(|(_, decided)| !decided.load(Ordering::Acquire));
    }

    fn contains(&self, vip: IpAddr) -> bool {
        self.0.iter().any(|(claimed, _)| *claimed == vip)
    }
}

/// The sending ends of the owner's queues.
#[derive(Clone, Debug)]
pub struct Queues {
    claims: mpsc::Sender<Heard>,
    requests: mpsc::Sender<Heard>,
    strangers: mpsc::Sender<Heard>,
    trouble: Arc<Notify>,
}

/// The receiving ends, in the order in which they are read. See [`Queue`].
#[derive(Debug)]
pub struct Inbox {
    /// What other speakers claim and answer.
    pub claims: mpsc::Receiver<Heard>,
    /// What they ask.
    pub requests: mpsc::Receiver<Heard>,
    /// What all others say.
    pub strangers: mpsc::Receiver<Heard>,
    /// A receive thread met an error, or ended by itself: the NICs are to be looked at.
    pub trouble: Arc<Notify>,
}

/// Makes the owner's queues.
pub fn queues() -> (Queues, Inbox) {
    let (claims, claims_inbox) = mpsc::channel(QUEUE);
    let (requests, requests_inbox) = mpsc::channel(QUEUE);
    let (strangers, strangers_inbox) = mpsc::channel(STRANGERS);
    let trouble = Arc::new(Notify::new());
    let inbox =
        Inbox { claims: claims_inbox, requests: requests_inbox, strangers: strangers_inbox, trouble: trouble.clone() };
    (Queues { claims, requests, strangers, trouble }, inbox)
}

impl Queues {
    fn put(&self, queue: Queue, heard: Heard) -> bool {
        let sender = match queue {
            Queue::Claims => &self.claims,
            Queue::Requests => &self.requests,
            Queue::Strangers => &self.strangers,
        };
        sender.try_send(heard).is_ok()
    }
}

/// A running receive thread.
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
}

#[derive(Debug, Default)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    stop: AtomicBool,
    ended: AtomicBool,
    pulse: Arc<Heartbeat>,
}

impl Responder {
    /// Starts the thread. It answers nothing until a snapshot is published.
    ///
    /// # Errors
    /// If the operating system has no thread left.
    pub fn start(port: Port, queues: Queues, heartbeat: Arc<Heartbeat>, metrics: Metrics) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let (claimed, logged_at) = (Claimed::default(), None);
        let worker = Worker { port, queues, heartbeat, metrics, shared: shared.clone(), claimed, logged_at };
        // The kernel keeps 15 characters.
        thread::Builder::new()
            .name(format!("{}-{}", worker.port.protocol().as_str(), worker.port.name()))
            .spawn(|| worker.run())?;
        Ok(Self { shared })
    }

    /// From now on the thread works by this snapshot.
    pub fn publish(&self, snapshot: impl Into<Arc<Snapshot>>) {
        self.shared.snapshot.store(snapshot.into());
    }

    /// Whether the thread runs, and is not stuck.
    pub fn is_running(&self) -> bool {
        !self.shared.ended.load(Ordering::Acquire) && self.shared.pulse.since() < STUCK
    }

    /// When the thread last looked for frames.
    pub fn pulse(&self) -> Arc<Heartbeat> {
        self.shared.pulse.clone()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.snapshot.store(Arc::default());
    }
}

/// However the thread ends, the owner's loop looks at its NIC, unless it wanted that end.
struct TellsOfItsEnd(Arc<Shared>, Arc<Notify>);

impl Drop for TellsOfItsEnd {
    fn drop(&mut self) {
        self.0.ended.store(true, Ordering::Release);
        if !self.0.stop.load(Ordering::Acquire) {
            self.1.notify_one();
        }
    }
}

struct Worker {
    port: Port,
    queues: Queues,
    heartbeat: Arc<Heartbeat>,
    metrics: Metrics,
    shared: Arc<Shared>,
    claimed: Claimed,
    /// When a receive error was last logged.
    logged_at: Option<Instant>,
}

impl Worker {
    fn run(mut self) {
        let own = self.port.mac();
        let mut count_at = Instant::now() + COUNT_OVERRUNS;
        let _at_the_end = TellsOfItsEnd(self.shared.clone(), self.queues.trouble.clone());
        while !self.shared.stop.load(Ordering::Acquire) {
            let now = Instant::now();
            self.shared.pulse.beat(now);
            if now >= count_at {
                self.metrics.overruns.inc_by(self.port.take_overruns().into());
                count_at = now + COUNT_OVERRUNS;
            }
            let (read, source) = match self.port.receive() {
                Ok(Some(frame)) => (wire::read(frame, own), wire::ethernet_source(frame)),
                Ok(None) => continue,
                Err(error) => {
                    self.recover(&error);
                    continue;
                }
            };
            self.metrics.received.inc();
            match read {
                Ok(packet) => self.handle(&packet, source),
                Err(reason) => self.metrics.dropped(reason),
            }
        }
    }

    fn handle(&mut self, packet: &Packet, source: Option<MacAddr>) {
        self.claimed.forget_decided();
        let snapshot = self.shared.snapshot.load();
        let answer = match snapshot.answer(packet, || self.heartbeat.since()) {
            Ok(message) if self.claimed.contains(message.vip()) => Err(DropReason::Claimed),
            other => other,
        };
        let mut outcome = answer.and_then(|message| match self.port.send(&message) {
            Ok(()) => {
                self.metrics.sent(&message);
                Ok(())
            }
            Err(error) => {
                self.metrics.send_errors.inc();
                debug!(%error, "an answer was not sent");
                Err(DropReason::NotSent)
            }
        });
        let mut queue = snapshot.queue(packet);
        if queue.is_some_and(|queue| queue != Queue::Strangers) && source != Some(packet.sender_mac) {
            // A speaker names the MAC address that it sends from, always.
            queue = None;
            outcome = outcome.map_err(|_| DropReason::Forged);
        }
        if let Some(queue) = queue {
            let is_claim = queue == Queue::Claims && packet.is_announcement();
            let undecided = is_claim.then(|| self.claimed.add(packet.sender_ip));
            let heard = Heard { nic: self.port.name().clone(), packet: *packet, undecided };
            if self.queues.put(queue, heard) {
                if outcome.is_err() {
                    self.metrics.handed_over.inc();
                }
                return;
            }
            self.metrics.overflowed(queue);
            outcome = outcome.map_err(|_| DropReason::QueueFull);
        }
        if let Err(reason) = outcome {
            self.metrics.dropped(reason);
        }
    }

    fn recover(&mut self, error: &io::Error) {
        self.metrics.receive_errors.inc();
        self.queues.trouble.notify_one();
        let cause = self.port.clear_error();
        let cause = cause.as_ref().unwrap_or(error);
        let now = Instant::now();
        if self.logged_at.is_none_or(|at| now >= at + LOG_ERRORS) {
            self.logged_at = Some(now);
            warn!(nic = %self.port.name(), %cause, "receiving was interrupted");
        } else {
            debug!(nic = %self.port.name(), %cause, "receiving was interrupted again");
        }
        thread::sleep(ERROR_PAUSE);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use futures::FutureExt as _;

    #[test]
    fn a_thread_that_ends_is_noticed_however_it_ends() {
        let (shared, trouble) = (Arc::new(Shared::default()), Arc::new(Notify::new()));
        let responder = Responder { shared: shared.clone() };
        assert!(responder.is_running());
        let told = trouble.clone();
        let thread = thread::spawn(move || {
            let _at_the_end = TellsOfItsEnd(shared, told);
            panic!("the thread ends here, on purpose");
        });
        assert!(thread.join().is_err());
        assert!(!responder.is_running());
        assert!(trouble.notified().now_or_never().is_some(), "the loop is woken");
    }
}
