//! Numbered datagrams at a steady rate. One thread sends, one receives, on the same socket.

use std::io::{self, IoSliceMut};
use std::net::{SocketAddr, UdpSocket};
use std::os::fd::AsRawFd as _;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant, SystemTime};

use anyhow::{Context as _, Result, bail};
use nix::errno::Errno;
use nix::sys::socket::{ControlMessageOwned, MsgFlags, recvmsg, setsockopt, sockopt};
use socket2::SockRef;

use super::ledger::Ledger;
use super::{ANSWER, Failure, Losses, Outcome, PATIENCE, any_of, read_answer};
use crate::netns::Netns;
use crate::pace::Pace;

const RECEIVE_BUFFER: usize = 4 << 20;
const LOOK: Duration = Duration::from_millis(50);

/// A running stream of datagrams, one flow. Dropping it ends it.
#[derive(Debug)]
pub struct Datagrams {
    shared: Arc<Shared>,
    netns: Netns,
    before: Losses,
    halted: Option<Instant>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    socket: UdpSocket,
    ledger: Mutex<Ledger>,
    missed: AtomicU64,
    sending: AtomicBool,
    receiving: AtomicBool,
}

impl Datagrams {
    /// Sends from `netns` so many a second to a [`super::Backend`] at `to`.
    ///
    /// # Errors
    /// When there is no route.
    pub fn start(netns: &Netns, to: SocketAddr, per_second: u32) -> Result<Self> {
        let open = || {
            let socket = UdpSocket::bind(any_of(to))?;
            SockRef::from(&socket).set_recv_buffer_size(RECEIVE_BUFFER)?;
            socket.set_read_timeout(Some(LOOK))?;
            setsockopt(&socket, sockopt::ReceiveTimestampns, &true)?;
            socket.connect(to)?;
            Ok::<_, io::Error>(socket)
        };
        let context = || format!("cannot open a socket to {to} in {}", netns.name());
        let shared = Arc::new(Shared {
            socket: netns.run(open)?.with_context(context)?,
            ledger: Mutex::new(Ledger::new(PATIENCE)),
            missed: AtomicU64::new(0),
            sending: AtomicBool::new(true),
            receiving: AtomicBool::new(true),
        });
        let (before, halted, threads) = (Losses::read(netns)?, None, Vec::new());
        let mut stream = Self { shared: shared.clone(), netns: netns.clone(), before, halted, threads };
        stream.spawn("lab-udp-in", {
            let shared = shared.clone();
            move || shared.receive()
        })?;
        stream.spawn("lab-udp-out", move || shared.send(per_second))?;
        Ok(stream)
    }

    /// What is known so far.
    pub fn so_far(&self) -> Outcome {
        self.shared.ledger().so_far().clone()
    }

    /// Sends no more; answers are still counted.
    pub fn halt(&mut self) {
        self.shared.sending.store(false, Ordering::Relaxed);
        self.halted.get_or_insert_with(Instant::now);
    }

    /// Ends it, and waits for answers that are under way.
    ///
    /// # Errors
    /// When it had failed, or the kernel's counters cannot be read.
    pub fn stop(mut self) -> Result<Outcome> {
        self.halt();
        let stopped = self.halted.unwrap_or_else(Instant::now);
        while !self.shared.ledger().is_settled() && stopped.elapsed() < PATIENCE {
            std::thread::sleep(Duration::from_millis(5));
        }
        if self.end().iter().any(Result::is_err) {
            bail!("a thread of the stream of datagrams panicked");
        }
        let ledger = std::mem::replace(&mut *self.shared.ledger(), Ledger::new(PATIENCE));
        let mut outcome = ledger.finish(stopped);
        outcome.missed = self.shared.missed.load(Ordering::Relaxed);
        outcome.losses = Losses::read(&self.netns)?.since(self.before);
        Ok(outcome)
    }

    fn end(&mut self) -> Vec<std::thread::Result<()>> {
        self.shared.sending.store(false, Ordering::Relaxed);
        self.shared.receiving.store(false, Ordering::Relaxed);
        self.threads.drain(..).map(JoinHandle::join).collect()
    }

    fn spawn(&mut self, name: &str, run: impl FnOnce() + Send + 'static) -> Result<()> {
        let thread = std::thread::Builder::new().name(name.to_owned()).spawn(run);
        self.threads.push(thread.context("cannot start a stream's thread")?);
        Ok(())
    }
}

impl Drop for Datagrams {
    fn drop(&mut self) {
        // A panic there was printed by that thread.
        drop(self.end());
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, per_second: u32) {
        let mut pace = Pace::new(per_second);
        while self.sending.load(Ordering::Relaxed) {
            pace.wait();
            let number = self.ledger().handle_begun(Instant::now());
            let request = number.to_be_bytes();
            // An ICMP error about an earlier datagram is told instead of sending this one.
            if self.socket.send(&request).is_err() && self.socket.send(&request).is_err() {
                self.ledger().handle_failure(number, Failure::Unreachable);
            }
        }
        self.missed.store(pace.missed(), Ordering::Relaxed);
    }

    fn receive(&self) {
        let mut space = nix::cmsg_space!(nix::sys::time::TimeSpec);
        let mut wait = false;
        while self.receiving.load(Ordering::Relaxed) {
            let before = Instant::now();
            let flags = if wait { MsgFlags::empty() } else { MsgFlags::MSG_DONTWAIT };
            let received = self.receive_one(&mut space, flags);
            // Only when nothing was left to read, and then at once, is it known what has no answer.
            let nothing_left = !wait && received == Err(Errno::EAGAIN);
            wait = nothing_left;
            match received {
                Ok(Some((number, seen, at))) => self.ledger().handle_answer(number, at, seen),
                Err(Errno::EAGAIN) if nothing_left => self.ledger().handle_silence(before),
                Ok(None) | Err(Errno::EAGAIN | Errno::EINTR) => {}
                // An ICMP error; should it be another one, every datagram shows as lost.
                Err(error) => tracing::debug!(%error, "a datagram was not received"),
            }
        }
    }

    /// The next answer, and when it reached this host: not when this thread was woken.
    fn receive_one(&self, space: &mut [u8], flags: MsgFlags) -> nix::Result<Option<(u64, std::net::IpAddr, Instant)>> {
        let mut buffer = [0; ANSWER + 1];
        let mut slices = [IoSliceMut::new(&mut buffer)];
        let descriptor = self.socket.as_raw_fd();
        let message = recvmsg::<()>(descriptor, &mut slices, Some(space), flags)?;
        let (now, clock, length) = (Instant::now(), SystemTime::now(), message.bytes);
        let stamp = message.cmsgs()?.find_map(|message| match message {
            ControlMessageOwned::ScmTimestampns(stamp) => Some(Duration::from(stamp)),
            _ => None,
        });
        let age = stamp.and_then(|stamp| clock.duration_since(SystemTime::UNIX_EPOCH).ok()?.checked_sub(stamp));
        let at = now.checked_sub(age.unwrap_or_default()).unwrap_or(now);
        Ok(read_answer(&buffer[..length]).map(|(number, seen)| (number, seen, at)))
    }
}
