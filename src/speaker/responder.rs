//! The receive path of one NIC: a thread that answers requests for the virtual IPs owned on it.
//!
//! The thread owns the NIC's [`Port`]. It reads an immutable snapshot that the owner's loop publishes, and a heartbeat that the
//! loop renews; it takes no lock, and an answer allocates nothing. Claims, answers and probes of others go to the loop through
//! bounded queues; what does not fit is counted. From the moment a claim is in its queue until the loop has carried out what
//! follows from it, the thread does not answer for that address. Dropping the [`Responder`] ends the thread within a quarter
//! of a second, and no answer leaves it from that moment on.

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
use tokio::sync::mpsc;
use tracing::{debug, warn};

use super::{
    drop_reason::DropReason,
    metrics::Metrics,
    nic::Port,
    triage::{Queue, Snapshot},
    wire::{Packet, arp},
};

/// Packets that wait for the owner's loop, in each queue.
const QUEUE: usize = 1024;
/// After a receive error: the NIC is down or gone, and the loop will notice.
const ERROR_PAUSE: Duration = Duration::from_millis(100);

/// When the owner's loop last ran.
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
}

/// The receiving ends. Claims are read before requests.
#[derive(Debug)]
pub struct Inbox {
    /// Packets that name a virtual IP as their sender.
    pub claims: mpsc::Receiver<Heard>,
    /// Probes.
    pub requests: mpsc::Receiver<Heard>,
}

/// Makes the owner's queues.
pub fn queues() -> (Queues, Inbox) {
    let (claims, claims_inbox) = mpsc::channel(QUEUE);
    let (requests, requests_inbox) = mpsc::channel(QUEUE);
    (Queues { claims, requests }, Inbox { claims: claims_inbox, requests: requests_inbox })
}

impl Queues {
    fn put(&self, queue: Queue, heard: Heard) -> bool {
        let sender = match queue {
            Queue::Claims => &self.claims,
            Queue::Requests => &self.requests,
        };
        sender.try_send(heard).is_ok()
    }
}

/// A running receive thread.
#[derive(Debug)]
pub struct Responder {
    shared: Arc<Shared>,
    thread: thread::JoinHandle<()>,
}

#[derive(Debug, Default)]
struct Shared {
    snapshot: ArcSwap<Snapshot>,
    stop: AtomicBool,
}

impl Responder {
    /// Starts the thread. It answers nothing until a snapshot is published.
    ///
    /// # Errors
    /// If the operating system has no thread left.
    pub fn start(port: Port, queues: Queues, heartbeat: Arc<Heartbeat>, metrics: Metrics) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Worker { port, queues, heartbeat, metrics, shared: shared.clone(), claimed: Claimed::default() };
        // The kernel keeps 15 characters.
        let thread = thread::Builder::new().name(format!("arp-{}", worker.port.name())).spawn(|| worker.run())?;
        Ok(Self { shared, thread })
    }

    /// From now on the thread works by this snapshot.
    pub fn publish(&self, snapshot: Snapshot) {
        self.shared.snapshot.store(Arc::new(snapshot));
    }

    /// Whether the thread runs.
    pub fn is_running(&self) -> bool {
        !self.thread.is_finished()
    }
}

impl Drop for Responder {
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        self.shared.snapshot.store(Arc::default());
    }
}

struct Worker {
    port: Port,
    queues: Queues,
    heartbeat: Arc<Heartbeat>,
    metrics: Metrics,
    shared: Arc<Shared>,
    claimed: Claimed,
}

impl Worker {
    fn run(mut self) {
        let own = self.port.mac();
        while !self.shared.stop.load(Ordering::Acquire) {
            let read = match self.port.receive() {
                Ok(Some(frame)) => arp::read(frame, own),
                Ok(None) => continue,
                Err(error) => {
                    self.recover(&error);
                    continue;
                }
            };
            self.metrics.received.inc();
            match read {
                Ok(packet) => self.handle(&packet),
                Err(reason) => self.metrics.dropped(reason),
            }
        }
    }

    fn handle(&mut self, packet: &Packet) {
        self.claimed.forget_decided();
        let snapshot = self.shared.snapshot.load();
        let answer = match snapshot.answer(packet, || self.heartbeat.since()) {
            Ok(message) if self.claimed.contains(message.vip()) => Err(DropReason::Claimed),
            other => other,
        };
        if let Ok(message) = &answer {
            match self.port.send(message) {
                Ok(()) => self.metrics.sent(message),
                Err(error) => {
                    self.metrics.send_errors.inc();
                    debug!(%error, "an answer was not sent");
                }
            }
        }
        match snapshot.queue(packet) {
            Some(queue) => {
                let undecided = packet.is_announcement().then(|| self.claimed.add(packet.sender_ip));
                let heard = Heard { nic: self.port.name().clone(), packet: *packet, undecided };
                if !self.queues.put(queue, heard) {
                    self.metrics.overflowed(queue);
                    if answer.is_err() {
                        self.metrics.dropped(DropReason::QueueFull);
                    }
                }
            }
            None => {
                if let Err(reason) = answer {
                    self.metrics.dropped(reason);
                }
            }
        }
    }

    fn recover(&self, error: &io::Error) {
        self.metrics.receive_errors.inc();
        match self.port.clear_error() {
            Some(cause) => warn!(nic = %self.port.name(), %cause, "receiving was interrupted"),
            None => warn!(nic = %self.port.name(), cause = %error, "receiving was interrupted"),
        }
        thread::sleep(ERROR_PAUSE);
    }
}
