//! A steady stream of requests from one host, each on a new connection, and what a break looks like in it.

use std::net::SocketAddr;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;
use tokio::time::{MissedTickBehavior, interval, timeout};

use crate::netns::Netns;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it was begun.
    pub sent: Instant,
    /// When it was answered or given up.
    pub ended: Instant,
    /// Whether its connection was accepted.
    pub connected: bool,
    /// The answer's last line, or what went wrong.
    pub result: Result<String, String>,
}

/// A running stream. Dropping it ends it.
#[derive(Debug)]
pub struct RequestStream {
    end: Arc<AtomicBool>,
    done: Arc<Mutex<Vec<Request>>>,
    thread: Option<JoinHandle<Result<()>>>,
}

impl RequestStream {
    /// Asks `http://<to>/` from `netns` once each `period`, and gives each request up after `limit`.
    ///
    /// # Errors
    /// When the thread cannot be started.
    pub fn start(netns: &Netns, to: SocketAddr, period: Duration, limit: Duration) -> Result<Self> {
        let (end, done) = (Arc::new(AtomicBool::new(false)), Arc::new(Mutex::new(Vec::new())));
        let (netns, seen, results) = (netns.clone(), end.clone(), done.clone());
        let thread = std::thread::Builder::new()
            .name("requests".to_owned())
            .spawn(move || netns.run(|| ask_until(&seen, to, period, limit, &results))?)
            .context("cannot start a thread")?;
        Ok(Self { end, done, thread: Some(thread) })
    }

    /// The requests that have ended so far, in the order of their ends.
    pub fn so_far(&self) -> Vec<Request> {
        self.done.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Ends the stream and returns all requests in the order in which they were begun.
    ///
    /// # Errors
    /// When it had failed.
    pub fn stop(mut self) -> Result<Vec<Request>> {
        self.end.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            thread.join().map_err(|_| anyhow!("the stream of requests panicked"))??;
        }
        let mut requests = self.so_far();
        requests.sort_by_key(|request| request.sent);
        Ok(requests)
    }
}

impl Drop for RequestStream {
    fn drop(&mut self) {
        self.end.store(true, Ordering::Relaxed);
    }
}

/// A runtime of one thread, so that all of its sockets are in this thread's network namespace.
fn ask_until(
    end: &AtomicBool,
    to: SocketAddr,
    period: Duration,
    limit: Duration,
    results: &Arc<Mutex<Vec<Request>>>,
) -> Result<()> {
    let runtime =
        tokio::runtime::Builder::new_current_thread().enable_all().build().context("cannot start a runtime")?;
    runtime.block_on(async {
        let mut ticks = interval(period);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Skip);
        let mut running = tokio::task::JoinSet::new();
        while !end.load(Ordering::Relaxed) {
            ticks.tick().await;
            while running.try_join_next().is_some() {}
            let results = results.clone();
            running.spawn(async move {
                let sent = Instant::now();
                let mut connected = false;
                let result = timeout(limit, ask(to, &mut connected)).await;
                let result = result.unwrap_or_else(|_| Err(anyhow!("no answer in {} ms", limit.as_millis())));
                let result = result.map_err(|error| format!("{error:#}"));
                let request = Request { sent, ended: Instant::now(), connected, result };
                results.lock().unwrap_or_else(PoisonError::into_inner).push(request);
            });
        }
        while running.join_next().await.is_some() {}
        Ok(())
    })
}

async fn ask(to: SocketAddr, connected: &mut bool) -> Result<String> {
    let mut stream = TcpStream::connect(to).await?;
    *connected = true;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    answer.lines().last().map(str::to_owned).context("an empty answer")
}

/// What a stream shows of a break that began at a known time.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Break {
    /// Requests begun since.
    pub sent: usize,
    /// Of these, how many failed before the first answer after the break.
    pub failed_in_silence: usize,
    /// How many failed later.
    pub failed_later: usize,
    /// How long it took until a request was begun that was answered, after one that was not; none if there is none yet.
    pub silence: Option<Duration>,
}

impl Break {
    /// Reads `requests`, in the order in which they were begun, from `since` on.
    pub fn of(requests: &[Request], since: Instant) -> Self {
        let after: Vec<&Request> = requests.iter().filter(|request| request.sent >= since).collect();
        let failed = |requests: &[&Request]| requests.iter().filter(|request| request.result.is_err()).count();
        let Some(first) = after.iter().position(|request| request.result.is_err()) else {
            let silence = (!after.is_empty()).then_some(Duration::ZERO);
            return Self { sent: after.len(), failed_in_silence: 0, failed_later: 0, silence };
        };
        let back = after[first..].iter().position(|request| request.result.is_ok()).map(|place| first + place);
        let (silent, later) = after.split_at(back.unwrap_or(after.len()));
        Self {
            sent: after.len(),
            failed_in_silence: failed(silent),
            failed_later: failed(later),
            silence: back.map(|place| after[place].sent.duration_since(since)),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn stream(start: Instant, outcomes: &str) -> Vec<Request> {
        let request = |(number, outcome)| {
            let sent = start + Duration::from_millis(50) * u32::try_from(number).unwrap();
            let result = if outcome == '.' { Ok(String::new()) } else { Err("no answer".to_owned()) };
            Request { sent, ended: sent, connected: false, result }
        };
        outcomes.chars().enumerate().map(request).collect()
    }

    #[test]
    fn a_break_lasts_until_the_first_answer() {
        let start = Instant::now();
        let found = Break::of(&stream(start, "x..xxx.x.."), start + Duration::from_millis(100));
        let silence = Some(Duration::from_millis(200));
        assert_eq!(found, Break { sent: 8, failed_in_silence: 3, failed_later: 1, silence });
    }

    #[test]
    fn no_failure_is_no_break_and_no_answer_is_no_end() {
        let start = Instant::now();
        assert_eq!(Break::of(&stream(start, "..."), start).silence, Some(Duration::ZERO));
        assert_eq!(Break::of(&stream(start, ".xx"), start).silence, None);
        assert_eq!(Break::of(&[], start).silence, None);
    }
}
