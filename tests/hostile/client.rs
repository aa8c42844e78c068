//! A client that behaves: it asks for a virtual IP, waits for the answer, and asks again.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use lab::lan::frame::{ARP_REPLY, arp};
use lab::netns::Netns;
use socket2::Socket;

use crate::attacker::{open, request};
use crate::world::{CLIENT_IP, CLIENT_MAC, NODE_MAC};

/// A host asks again after this, as Linux does.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(10);

pub struct Client {
    socket: Socket,
}

/// What a client saw in some time.
#[derive(Clone, Debug, Default)]
pub struct Seen {
    /// How long each answer took.
    answers: Vec<Duration>,
    /// Questions that nobody answered in time.
    pub unanswered: usize,
}

impl Client {
    pub fn new(netns: &Netns) -> Result<Self> {
        let socket = open(netns)?;
        socket.set_recv_buffer_size(4 << 20)?;
        socket.set_read_timeout(Some(Duration::from_millis(20)))?;
        Ok(Self { socket })
    }

    /// Asks once; the time until the answer, which has to come from the speaker's node.
    pub fn ask(&self, vip: Ipv4Addr) -> Result<Option<Duration>> {
        self.ask_for(vip, ASK_AGAIN)
    }

    /// Asks once, and waits for so long.
    pub fn ask_for(&self, vip: Ipv4Addr, limit: Duration) -> Result<Option<Duration>> {
        let begun = Instant::now();
        self.socket.send(&request(CLIENT_MAC, CLIENT_IP, vip))?;
        let mut buffer = [0; 2048];
        while begun.elapsed() < limit {
            let Ok(length) = (&self.socket).read(&mut buffer) else { continue };
            let Some(answer) = arp(&buffer[..length]) else { continue };
            if answer.operation == ARP_REPLY && answer.sender_ip == vip && answer.target_mac == CLIENT_MAC {
                ensure!(answer.sender_mac == NODE_MAC, "{vip} is at {}", answer.sender_mac);
                return Ok(Some(begun.elapsed()));
            }
        }
        Ok(None)
    }
}

/// A client at work.
pub struct Asking {
    stop: Arc<AtomicBool>,
    thread: JoinHandle<Result<Seen>>,
}

impl Asking {
    /// Asks again and again.
    pub fn start(ask: impl Fn() -> Result<Option<Duration>> + Send + 'static) -> Self {
        let stop = Arc::new(AtomicBool::new(false));
        let told = stop.clone();
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !told.load(Ordering::Acquire) {
                match ask()? {
                    Some(time) => seen.answers.push(time),
                    None => seen.unanswered += 1,
                }
                std::thread::sleep(PAUSE);
            }
            Ok(seen)
        });
        Self { stop, thread }
    }

    pub fn stop(self) -> Result<Seen> {
        self.stop.store(true, Ordering::Release);
        self.thread.join().map_err(|_| anyhow!("the client panicked"))?
    }
}

impl Seen {
    /// How many answers there were.
    pub fn answered(&self) -> usize {
        self.answers.len()
    }

    /// The time within which this part of the answers came.
    pub fn quantile(&self, part: f64) -> Duration {
        let mut sorted = self.answers.clone();
        sorted.sort();
        let index = (sorted.len() as f64 * part) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied().unwrap_or(Duration::MAX)
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let (p50, p99) = (self.quantile(0.5), self.quantile(0.99));
        write!(f, "{} answered (p50 {p50:?}, p99 {p99:?}), {} not", self.answered(), self.unanswered)
    }
}
