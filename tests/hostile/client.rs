//! A client that behaves: it asks for a virtual IP, waits for the answer, and asks again.

use std::io::Read as _;
use std::net::Ipv4Addr;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Result, anyhow, ensure};
use lab::lan::frame::{ARP_REPLY, arp};
use lab::netns::Netns;
use lab::stalls::NoExcuse;
use socket2::{SockFilter, Socket};

use crate::attacker::{open, request};
use crate::world::{CLIENT_IP, CLIENT_MAC, NODE_MAC};

/// A host asks again after this, as Linux does.
const ASK_AGAIN: Duration = Duration::from_secs(1);
/// Between an answer and the next question.
const PAUSE: Duration = Duration::from_millis(10);
// Linux: include/uapi/linux/bpf_common.h.
const LOAD_WORD: u16 = 0x20;
const JUMP_IF_EQUAL: u16 = 0x15;
const RETURN: u16 = 0x06;

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
        Ok(Self { socket: listen(netns)? })
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
        loop {
            // What came in meanwhile is read although the time is over: this thread may have stood still.
            let is_over = begun.elapsed() >= limit;
            let length = match (&self.socket).read(&mut buffer) {
                Ok(length) => length,
                Err(_) if is_over => return Ok(None),
                Err(_) => continue,
            };
            let Some(answer) = arp(&buffer[..length]) else { continue };
            if answer.operation == ARP_REPLY && answer.sender_ip == vip && answer.target_mac == CLIENT_MAC {
                ensure!(answer.sender_mac == NODE_MAC, NoExcuse(format!("{vip} is at {}", answer.sender_mac)));
                return Ok(Some(begun.elapsed()));
            }
        }
    }
}

/// A packet socket on which a client hears what is for it alone: the copies that it gets of a flood fill no buffer of its own.
pub fn listen(netns: &Netns) -> Result<Socket> {
    let socket = open(netns)?;
    let load = |offset: u32| SockFilter::new(LOAD_WORD, 0, 0, offset);
    let [a, b, c, d, e, f] = CLIENT_MAC.octets();
    let (high, low) = (u32::from_be_bytes([a, b, c, d]), u32::from_be_bytes([c, d, e, f]));
    socket.attach_filter(&[
        load(0),
        SockFilter::new(JUMP_IF_EQUAL, 0, 2, high),
        load(2),
        SockFilter::new(JUMP_IF_EQUAL, 1, 0, low),
        SockFilter::new(RETURN, 0, 0, 0),
        SockFilter::new(RETURN, 0, 0, u32::MAX),
    ])?;
    socket.set_read_timeout(Some(Duration::from_millis(20)))?;
    Ok(socket)
}

/// A client at work.
pub struct Asking {
    stop: Arc<AtomicBool>,
    asked: Arc<AtomicUsize>,
    thread: JoinHandle<Result<Seen>>,
}

impl Asking {
    /// Asks again and again.
    pub fn start(ask: impl Fn() -> Result<Option<Duration>> + Send + 'static) -> Self {
        let (stop, asked) = (Arc::<AtomicBool>::default(), Arc::<AtomicUsize>::default());
        let (told, count) = (stop.clone(), asked.clone());
        let thread = std::thread::spawn(move || {
            let mut seen = Seen::default();
            while !told.load(Ordering::Acquire) {
                match ask()? {
                    Some(time) => seen.answers.push(time),
                    None => seen.unanswered += 1,
                }
                count.store(seen.asked(), Ordering::Release);
                std::thread::sleep(PAUSE);
            }
            Ok(seen)
        });
        Self { stop, asked, thread }
    }

    /// How many questions were answered, or given up, so far.
    pub fn asked(&self) -> usize {
        self.asked.load(Ordering::Acquire)
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

    /// How many questions there were.
    pub fn asked(&self) -> usize {
        self.answers.len() + self.unanswered
    }

    /// The time within which this part of the answers came, if there were any.
    fn quantile(&self, part: f64) -> Option<Duration> {
        let mut sorted = self.answers.clone();
        sorted.sort();
        let index = (sorted.len() as f64 * part) as usize;
        sorted.get(index.min(sorted.len().saturating_sub(1))).copied()
    }
}

impl std::fmt::Display for Seen {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} answered", self.answered())?;
        if let (Some(p50), Some(p99)) = (self.quantile(0.5), self.quantile(0.99)) {
            write!(f, " (p50 {p50:?}, p99 {p99:?})")?;
        }
        write!(f, ", {} not", self.unanswered)
    }
}
