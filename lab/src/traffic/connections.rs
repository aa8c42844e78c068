//! New TCP connections at a steady rate, each with one request. A thread begins them by absolute time, another one sees to them.
//!
//! Each is reset by the client once it has its answer, so that no port is kept for a minute afterwards.

use std::io;
use std::net::{IpAddr, SocketAddr};
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use nix::errno::Errno;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::sync::mpsc;
use tokio::time::{timeout, timeout_at};

use super::ledger::Ledger;
use super::{ANSWER, Failure, Losses, Outcome, PATIENCE, read_answer};
use crate::netns::Netns;
use crate::pace::Pace;

/// Linux repeats the first SYN after a second. A connection that took so long had its SYN lost, unless the kernel repeated none.
pub const REPEATED: Duration = Duration::from_millis(990);
/// So many wait for an answer at a time, at most: no more are begun until one of them is given up.
const OPEN: u64 = 5000;

/// A running stream of connections. Dropping it ends it.
#[derive(Debug)]
pub struct Connections {
    shared: Arc<Shared>,
    netns: Netns,
    before: Losses,
    halted: Option<Instant>,
    beginner: Option<JoinHandle<Result<()>>>,
    asker: Option<JoinHandle<()>>,
}

#[derive(Debug)]
struct Shared {
    ledger: Mutex<Ledger>,
    open: AtomicU64,
    missed: AtomicU64,
    stopping: AtomicBool,
}

/// A connection that was begun.
struct Begun {
    number: u64,
    at: Instant,
    socket: Socket,
}

impl Connections {
    /// Begins from `netns` so many a second to a [`super::Backend`] at `to`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(netns: &Netns, to: SocketAddr, per_second: u32) -> Result<Self> {
        // 1,000 a second for a minute need more ports than a host usually has.
        netns.sysctl("net.ipv4.ip_local_port_range", "2048 65000")?;
        let shared = Arc::new(Shared {
            ledger: Mutex::new(Ledger::new(PATIENCE * 2)),
            open: AtomicU64::new(0),
            missed: AtomicU64::new(0),
            stopping: AtomicBool::new(false),
        });
        let before = Losses::read(netns)?;
        // Bounded by `OPEN`.
        let (sender, receiver) = mpsc::unbounded_channel();
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        let asker = std::thread::Builder::new().name("lab-tcp-ask".to_owned()).spawn({
            let shared = shared.clone();
            move || runtime.block_on(ask_all(shared, receiver))
        });
        let asker = Some(asker.context("cannot start a stream's thread")?);
        let netns = netns.clone();
        let mut stream =
            Self { shared: shared.clone(), netns: netns.clone(), before, halted: None, beginner: None, asker };
        let beginner = std::thread::Builder::new()
            .name("lab-tcp-begin".to_owned())
            .spawn(move || netns.run(|| shared.begin_all(to, per_second, &sender))?);
        stream.beginner = Some(beginner.context("cannot start a stream's thread")?);
        Ok(stream)
    }

    /// What is known so far.
    pub fn so_far(&self) -> Outcome {
        self.shared.ledger().so_far().clone()
    }

    /// Begins no more; those under way go on.
    pub fn halt(&mut self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
        self.halted.get_or_insert_with(Instant::now);
    }

    /// Ends it, and waits for those that are under way.
    ///
    /// # Errors
    /// When it had failed, or the kernel's counters cannot be read.
    pub fn stop(mut self) -> Result<Outcome> {
        self.halt();
        let stopped = self.halted.unwrap_or_else(Instant::now);
        self.end()?;
        let ledger = std::mem::replace(&mut *self.shared.ledger(), Ledger::new(PATIENCE));
        let mut outcome = ledger.finish(stopped);
        outcome.missed = self.shared.missed.load(Ordering::Relaxed);
        outcome.losses = Losses::read(&self.netns)?.since(self.before);
        forgive(&mut outcome);
        Ok(outcome)
    }

    fn end(&mut self) -> Result<()> {
        self.shared.stopping.store(true, Ordering::Relaxed);
        let panicked = || anyhow!("a thread of the stream of connections panicked");
        if let Some(beginner) = self.beginner.take() {
            beginner.join().map_err(|_| panicked())??;
        }
        self.asker.take().map_or(Ok(()), |asker| asker.join().map_err(|_| panicked()))
    }
}

impl Drop for Connections {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(error = format!("{error:#}"), "a stream of connections did not end well");
        }
    }
}

/// Connections that were slow although the kernel repeated no SYN, or fewer: those had waited for this machine, not for the network.
fn forgive(outcome: &mut Outcome) {
    let Some(&slow) = outcome.failed.get(&Failure::Repeated) else { return };
    let repeated = slow.min(outcome.losses.repeated_syns);
    outcome.answered += slow - repeated;
    if repeated == 0 {
        outcome.failed.remove(&Failure::Repeated);
        outcome.failures.retain(|(_, failure)| *failure != Failure::Repeated);
    } else {
        outcome.failed.insert(Failure::Repeated, repeated);
    }
}

impl Shared {
    fn ledger(&self) -> MutexGuard<'_, Ledger> {
        self.ledger.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// On a thread that is inside the network namespace.
    fn begin_all(&self, to: SocketAddr, per_second: u32, begun: &mpsc::UnboundedSender<Begun>) -> Result<()> {
        let mut pace = Pace::new(per_second);
        let mut refused = 0;
        while !self.stopping.load(Ordering::Relaxed) {
            pace.wait();
            if self.open.load(Ordering::Relaxed) >= OPEN {
                refused += 1;
                continue;
            }
            let socket = Socket::new(Domain::for_address(to), Type::STREAM, Some(Protocol::TCP));
            let socket = socket.context("cannot open a socket")?;
            socket.set_nonblocking(true).context("cannot set up a socket")?;
            socket.set_linger(Some(Duration::ZERO)).context("cannot set up a socket")?;
            let at = Instant::now();
            let number = self.ledger().handle_begun(at);
            match socket.connect(&to.into()) {
                Err(error) if error.raw_os_error() != Some(Errno::EINPROGRESS as i32) => {
                    self.ledger().handle_failure(number, before_it_was_accepted(&error));
                }
                _ => {
                    self.open.fetch_add(1, Ordering::Relaxed);
                    begun.send(Begun { number, at, socket }).ok().context("nobody sees to the connections")?;
                }
            }
        }
        self.missed.store(pace.missed() + refused, Ordering::Relaxed);
        Ok(())
    }

    fn settle(&self, number: u64, at: Instant, result: Result<(IpAddr, Duration), Failure>) {
        self.open.fetch_sub(1, Ordering::Relaxed);
        match result {
            Ok((_, accepted)) if accepted >= REPEATED => self.ledger().handle_failure(number, Failure::Repeated),
            Ok((seen, _)) => self.ledger().handle_answer(number, at, seen),
            Err(failure) => self.ledger().handle_failure(number, failure),
        }
    }
}

async fn ask_all(shared: Arc<Shared>, mut begun: mpsc::UnboundedReceiver<Begun>) {
    let mut running = tokio::task::JoinSet::new();
    while let Some(Begun { number, at, socket }) = begun.recv().await {
        let shared = shared.clone();
        running.spawn(async move {
            let result = ask(number, at, socket).await;
            shared.settle(number, Instant::now(), result);
        });
        while running.try_join_next().is_some() {}
    }
    while running.join_next().await.is_some() {}
}

/// Whom the backend saw, and how long it took until the connection was accepted.
async fn ask(number: u64, begun: Instant, socket: Socket) -> Result<(IpAddr, Duration), Failure> {
    let mut stream = TcpStream::from_std(socket.into()).map_err(|error| before_it_was_accepted(&error))?;
    let accepted = timeout_at((begun + PATIENCE).into(), stream.writable()).await;
    accepted.map_err(|_| Failure::Unanswered)?.map_err(|error| before_it_was_accepted(&error))?;
    match stream.take_error() {
        Ok(None) => {}
        Ok(Some(error)) | Err(error) => return Err(before_it_was_accepted(&error)),
    }
    let accepted = begun.elapsed();
    let answer = timeout(PATIENCE, async {
        let mut answer = [0; ANSWER];
        stream.write_all(&number.to_be_bytes()).await?;
        stream.read_exact(&mut answer).await?;
        Ok::<_, io::Error>(answer)
    });
    let answer = answer.await.map_err(|_| Failure::Silent)?.map_err(|_| Failure::Reset)?;
    let (_, seen) = read_answer(&answer).ok_or(Failure::Silent)?;
    Ok((seen, accepted))
}

/// What went wrong before this thread knew that the connection was accepted. A reset in answer to the SYN is "refused" to the kernel;
/// "reset" is one that came after the SYN had been answered.
fn before_it_was_accepted(error: &io::Error) -> Failure {
    match error.kind() {
        io::ErrorKind::ConnectionRefused => Failure::Refused,
        io::ErrorKind::ConnectionReset | io::ErrorKind::BrokenPipe => Failure::Reset,
        io::ErrorKind::TimedOut => Failure::Unanswered,
        _ => Failure::Unreachable,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_slow_without_a_repeated_syn_is_not_lost() {
        let slow = |repeated_syns| {
            let mut outcome = Outcome::default();
            outcome.failed.insert(Failure::Repeated, 3);
            outcome.losses.repeated_syns = repeated_syns;
            forgive(&mut outcome);
            (outcome.lost(), outcome.answered)
        };
        assert_eq!(slow(0), (0, 3));
        assert_eq!(slow(2), (2, 1));
        assert_eq!(slow(9), (3, 0));
    }
}
