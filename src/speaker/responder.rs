//! The receive path of one NIC: a thread for each protocol that answers requests for the virtual IPs owned on it.
//!
//! The thread owns the NIC's [`Port`]. It reads an immutable snapshot that the owner's loop publishes, and a heartbeat that the
//! loop renews; it takes no lock, and an answer allocates nothing. Claims, answers and probes of others go to the loop through
//! bounded queues; what does not fit is counted. From the moment another speaker's claim is in its queue until the loop has
//! carried out what follows from it, the thread does not answer for that address; what a stranger claims never silences it.
//! Each frame received is answered, handed over to the loop, or dropped for one reason. The thread has a heartbeat of its own,
//! by which the loop replaces it when it is stuck. Dropping the [`Responder`] ends it within a tenth of a second, and it
//! answers nothing that it reads from that moment on.
//!
//! Whether an answer is still true is asked directly before it is sent: whether the loop ran, whether this thread was not held up
//! since it read the request, and what the snapshot says by then. No process can close the gap of about a microsecond that remains
//! before the system call.
//!
//! A thread that was not run for a while, although the owner's loop was, finds requests that may be older than a claim which
//! waits behind them. It first reads all that waits, and then answers: for what was claimed meanwhile, it does not.

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
    nic::{Port, RECEIVE_TIMEOUT, SendError},
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
/// A receive thread that did not look for frames for so long will not: it looks at least ten times a second.
const STUCK: Duration = Duration::from_secs(5);

/// A thread that did not run for so long reads all that waits before it answers: a claim among it is no older.
const LATE: Duration = Duration::from_millis(100);
const _: () = assert!(RECEIVE_TIMEOUT.as_millis() < LATE.as_millis(), "a thread that has nothing to do is not late");
/// It has read all that waited after so many frames, whatever else comes in: the receive buffer holds fewer.
const BACKLOG: usize = 16_384;
/// Of these, so many requests are kept to be answered.
const HELD: usize = 256;

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

    /// One that has not beaten for `time`.
    #[cfg(test)]
    pub(super) fn silent_for(time: Duration) -> Self {
        Self { start: Instant::now().checked_sub(time).expect("the machine runs for longer"), ..Self::new() }
    }

    /// The loop ran at `now`, and everything that followed from it has been published.
    pub fn beat(&self, now: Instant) {
        let since = now.saturating_duration_since(self.start);
        self.nanoseconds.store(u64::try_from(since.as_nanos()).unwrap_or(u64::MAX), Ordering::Release);
    }

    /// How long ago the last beat was.
    pub fn since(&self) -> Duration {
        self.since_at(Instant::now())
    }

    fn since_at(&self, now: Instant) -> Duration {
        let beat = Duration::from_nanos(self.nanoseconds.load(Ordering::Acquire));
        now.saturating_duration_since(self.start).saturating_sub(beat)
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
    /// When all that waited had been read.
    caught_up: Heartbeat,
}

impl Responder {
    /// Starts the thread. It answers nothing until a snapshot is published.
    ///
    /// # Errors
    /// If the operating system has no thread left.
    pub fn start(port: Port, queues: Queues, heartbeat: Arc<Heartbeat>, metrics: Metrics) -> io::Result<Self> {
        let shared = Arc::new(Shared::default());
        let worker = Worker::new(port, queues, heartbeat, metrics, shared.clone());
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

    /// Whether the thread has not read all that waits for so long that answers to this node's questions may be among it.
    pub fn is_late(&self) -> bool {
        self.shared.caught_up.since() >= LATE
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

/// What waited while the thread did not run.
struct Backlog {
    ran_at: Instant,
    /// How many more frames may be of that time; with none, the thread is not late.
    unread: usize,
    /// Requests that can be answered when all is read.
    held: Vec<(Packet, Option<MacAddr>)>,
}

impl Backlog {
    fn new(now: Instant) -> Self {
        Self { ran_at: now, unread: 0, held: Vec::new() }
    }

    fn is_late(&self) -> bool {
        self.unread > 0
    }

    /// The thread runs, and has just read a frame or found none. Whether what it held can be answered now.
    fn handle_run(&mut self, now: Instant, found: bool) -> bool {
        let stood_still = !self.runs_at(now);
        self.ran_at = now;
        let was_late = self.is_late();
        self.unread = match (stood_still, found) {
            (true, _) => BACKLOG,
            (false, true) => self.unread.saturating_sub(1),
            (false, false) => 0,
        };
        was_late && !self.is_late()
    }

    /// Whether the thread has not stood still since it read what it answers.
    fn runs_at(&self, now: Instant) -> bool {
        now.saturating_duration_since(self.ran_at) < LATE
    }

    /// Keeps a request until all is read, if there is room.
    fn hold(&mut self, packet: &Packet, source: Option<MacAddr>) -> bool {
        let has_room = self.held.len() < HELD;
        if has_room {
            self.held.push((*packet, source));
        }
        has_room
    }
}

struct Worker {
    port: Port,
    queues: Queues,
    heartbeat: Arc<Heartbeat>,
    metrics: Metrics,
    shared: Arc<Shared>,
    claimed: Claimed,
    backlog: Backlog,
    count_at: Instant,
    /// When a receive error was last logged.
    logged_at: Option<Instant>,
}

impl Worker {
    fn new(port: Port, queues: Queues, heartbeat: Arc<Heartbeat>, metrics: Metrics, shared: Arc<Shared>) -> Self {
        let (now, claimed) = (Instant::now(), Claimed::default());
        let (backlog, count_at) = (Backlog::new(now), now + COUNT_OVERRUNS);
        Self { port, queues, heartbeat, metrics, shared, claimed, backlog, count_at, logged_at: None }
    }

    fn run(mut self) {
        let _at_the_end = TellsOfItsEnd(self.shared.clone(), self.queues.trouble.clone());
        while !self.shared.stop.load(Ordering::Acquire) {
            self.step();
        }
    }

    /// Waits for a frame, unless the thread is late, or was held up: then it only takes one that waits.
    fn step(&mut self) {
        let own = self.port.mac();
        let wait = !self.backlog.is_late() && self.backlog.held.is_empty();
        let received = if wait { self.port.receive() } else { self.port.receive_waiting() };
        let frame = received.map(|frame| frame.map(|frame| (wire::read(frame, own), wire::ethernet_source(frame))));
        // After the wait: a thread that was not run then is late for what it has just read.
        let now = Instant::now();
        self.shared.pulse.beat(now);
        if now >= self.count_at {
            self.metrics.overruns.inc_by(self.port.take_overruns().into());
            self.count_at = now + COUNT_OVERRUNS;
        }
        let frame = match frame {
            Ok(frame) => frame,
            Err(error) => return self.recover(&error),
        };
        let has_caught_up = self.backlog.handle_run(now, frame.is_some());
        if let Some((read, source)) = frame {
            self.metrics.received.inc();
            match read {
                Ok(packet) => self.handle(&packet, source),
                Err(reason) => self.metrics.dropped(reason),
            }
        }
        // The loop believes in silence again when it has been handed all that waited.
        if !self.backlog.is_late() {
            self.shared.caught_up.beat(now);
        }
        if has_caught_up {
            for (packet, source) in std::mem::take(&mut self.backlog.held) {
                self.handle(&packet, source);
            }
        }
    }

    fn handle(&mut self, packet: &Packet, source: Option<MacAddr>) {
        self.claimed.forget_decided();
        let snapshot = self.shared.snapshot.load();
        let answer = match snapshot.answer(packet) {
            Ok((message, _)) if self.claimed.contains(message.vip()) => Err(DropReason::Claimed),
            Ok(_) if self.backlog.is_late() => {
                if self.backlog.hold(packet, source) {
                    return;
                }
                Err(DropReason::Fenced)
            }
            other => other,
        };
        let mut outcome = match answer.map(|answer| self.answer(packet, answer)) {
            // What it was held up with is answered when all is read that waits behind it.
            Ok(Err(SendError::TooLate(_))) if !self.backlog.runs_at(Instant::now()) => {
                if self.backlog.hold(packet, source) {
                    return;
                }
                Err(DropReason::Fenced)
            }
            Ok(Err(SendError::TooLate(_))) => Err(DropReason::Fenced),
            Ok(Err(error)) => {
                self.metrics.send_errors.inc();
                debug!(%error, "an answer was not sent");
                Err(DropReason::NotSent)
            }
            Ok(Ok(())) => Ok(()),
            Err(reason) => Err(reason),
        };
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

    fn answer(&mut self, packet: &Packet, (message, fence): (wire::Message, Duration)) -> Result<(), SendError> {
        let Self { port, shared, heartbeat, backlog, .. } = self;
        port.send(&message, || {
            // One clock for both.
            let now = Instant::now();
            let in_time = heartbeat.since_at(now) < fence && backlog.runs_at(now);
            in_time && shared.snapshot.load().answer(packet) == Ok((message, fence))
        })?;
        self.metrics.sent(&message);
        Ok(())
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
mod tests;
