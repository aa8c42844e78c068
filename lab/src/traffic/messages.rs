//! TCP connections that stay: what a move of the address does to them.

use std::io;
use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use socket2::SockRef;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{sleep, timeout};

use super::{ANSWER, Failure, PATIENCE, read_answer};
use crate::netns::Netns;

const ENDS: usize = 10_000;

/// Connections with a small message each `interval`. One that ends is begun anew. Dropping it ends them.
#[derive(Debug)]
pub struct Messages {
    shared: Arc<Shared>,
    thread: Option<JoinHandle<Result<()>>>,
}

#[derive(Debug)]
struct Shared {
    stopping: AtomicBool,
    outcome: Mutex<MessagesOutcome>,
}

/// What became of them.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct MessagesOutcome {
    /// Connections that were accepted.
    pub opened: u64,
    /// Messages that were answered.
    pub answered: u64,
    /// When a connection ended without being told to, and how. At most 10,000.
    pub ended: Vec<(Instant, Failure)>,
    /// The slowest answer of those that came.
    pub slowest: Duration,
}

impl MessagesOutcome {
    /// How many were cut after they had been accepted.
    pub fn cut(&self) -> usize {
        self.ended.iter().filter(|(_, how)| how.was_established()).count()
    }

    /// How many ended in this way.
    pub fn ended_by(&self, failure: Failure) -> usize {
        self.ended.iter().filter(|(_, how)| *how == failure).count()
    }
}

impl Messages {
    /// Holds so many connections from `netns` to a [`super::Backend`] at `to`.
    ///
    /// # Errors
    /// When a thread cannot be started.
    pub fn start(netns: &Netns, to: SocketAddr, connections: u32, interval: Duration) -> Result<Self> {
        let shared = Arc::new(Shared { stopping: AtomicBool::new(false), outcome: Mutex::default() });
        let thread = std::thread::Builder::new().name("lab-tcp-talk".to_owned()).spawn({
            let (shared, netns) = (shared.clone(), netns.clone());
            // One thread, so that all sockets are in this network namespace.
            move || netns.run(|| shared.talk_all(to, connections, interval))?
        });
        Ok(Self { shared, thread: Some(thread.context("cannot start a stream's thread")?) })
    }

    /// What is known so far.
    pub fn so_far(&self) -> MessagesOutcome {
        self.shared.outcome().clone()
    }

    /// Sends no more on them.
    pub fn halt(&self) {
        self.shared.stopping.store(true, Ordering::Relaxed);
    }

    /// Ends them.
    ///
    /// # Errors
    /// When they had failed as a whole.
    pub fn stop(mut self) -> Result<MessagesOutcome> {
        self.end()?;
        Ok(self.so_far())
    }

    fn end(&mut self) -> Result<()> {
        self.halt();
        let ended = self.thread.take().map(JoinHandle::join);
        ended.map_or(Ok(()), |ended| ended.map_err(|_| anyhow!("the connections' thread panicked"))?)
    }
}

impl Drop for Messages {
    fn drop(&mut self) {
        if let Err(error) = self.end() {
            tracing::warn!(error = format!("{error:#}"), "connections that stay did not end well");
        }
    }
}

impl Shared {
    fn outcome(&self) -> MutexGuard<'_, MessagesOutcome> {
        self.outcome.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn talk_all(self: &Arc<Self>, to: SocketAddr, connections: u32, interval: Duration) -> Result<()> {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().context("a runtime")?;
        runtime.block_on(async {
            let mut running = tokio::task::JoinSet::new();
            for number in 0..connections {
                let shared = self.clone();
                let offset = interval * number / connections.max(1);
                running.spawn(async move {
                    sleep(offset).await;
                    while !shared.stopping.load(Ordering::Relaxed) {
                        if let Err(failure) = shared.talk(to, interval).await {
                            let ended = &mut shared.outcome().ended;
                            if ended.len() < ENDS {
                                ended.push((Instant::now(), failure));
                            }
                        }
                    }
                });
            }
            while running.join_next().await.is_some() {}
            Ok(())
        })
    }

    /// One connection, until it ends or all do.
    async fn talk(&self, to: SocketAddr, interval: Duration) -> Result<(), Failure> {
        let connected = timeout(PATIENCE, TcpStream::connect(to)).await.map_err(|_| Failure::Unanswered)?;
        let mut stream = match connected {
            Ok(stream) => stream,
            Err(error) => {
                // At the rate at which it would talk.
                sleep(interval).await;
                let refused = error.kind() == io::ErrorKind::ConnectionRefused;
                return Err(if refused { Failure::Refused } else { Failure::Unreachable });
            }
        };
        let prepared = stream.set_nodelay(true).and_then(|()| SockRef::from(&stream).set_linger(Some(Duration::ZERO)));
        prepared.map_err(|_| Failure::Reset)?;
        self.outcome().opened += 1;
        for number in 0_u64.. {
            if self.stopping.load(Ordering::Relaxed) {
                break;
            }
            let sent = Instant::now();
            let mut answer = [0; ANSWER];
            let exchange = async {
                stream.write_all(&number.to_be_bytes()).await?;
                stream.read_exact(&mut answer).await
            };
            timeout(PATIENCE, exchange).await.map_err(|_| Failure::Silent)?.map_err(|_| Failure::Reset)?;
            if read_answer(&answer).is_none_or(|(answered, _)| answered != number) {
                return Err(Failure::Silent);
            }
            {
                let mut outcome = self.outcome();
                outcome.answered += 1;
                outcome.slowest = outcome.slowest.max(sent.elapsed());
            }
            sleep(interval).await;
        }
        Ok(())
    }
}
