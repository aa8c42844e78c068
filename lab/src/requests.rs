//! A steady stream of requests from one host, each on a new connection, and what a break looks like in it.

use std::io;
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
use crate::traffic::REPEATED;

/// One request.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Request {
    /// When it was begun.
    pub sent: Instant,
    /// When it was answered or given up.
    pub ended: Instant,
    /// How long it took until its connection was accepted; none if it was not.
    pub connected: Option<Duration>,
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
                let mut connected = None;
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

async fn ask(to: SocketAddr, connected: &mut Option<Duration>) -> Result<String> {
    let begun = Instant::now();
    let stream = TcpStream::connect(to).await;
    // "Reset" is one that came after the SYN had been answered; one in answer to the SYN is "refused" to the kernel.
    if stream.as_ref().err().is_none_or(|error| error.kind() == io::ErrorKind::ConnectionReset) {
        *connected = Some(begun.elapsed());
    }
    let mut stream = stream?;
    stream.write_all(format!("GET / HTTP/1.1\r\nHost: {to}\r\nConnection: close\r\n\r\n").as_bytes()).await?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).await?;
    answer.lines().last().map(str::to_owned).context("an empty answer")
}

/// Those that count as lost, of a stream in which `repeated_syns` were sent a second time by the client's kernel, and during which the
/// address moved once to another node, or not.
///
/// Connections that were accepted may be cut by a move, since the new node knows nothing of them: by one move those that were open at
/// one instant. One that was accepted so late as if its first SYN had been lost is lost if any was repeated; otherwise it was this
/// machine that was slow.
pub fn lost(requests: &[Request], repeated_syns: u64, moved: bool) -> Vec<&Request> {
    let cut: Vec<&Request> =
        requests.iter().filter(|request| request.result.is_err() && request.connected.is_some()).collect();
    let last_begun = cut.iter().map(|request| request.sent).max();
    let first_ended = cut.iter().map(|request| request.ended).min();
    let by_one_move = moved && last_begun <= first_ended;
    let is_lost = |request: &&Request| match request.connected {
        None => true,
        Some(after) if after >= REPEATED && repeated_syns > 0 => true,
        Some(_) => request.result.is_err() && !by_one_move,
    };
    requests.iter().filter(is_lost).collect()
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
            Request { sent, ended: sent, connected: None, result }
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

    /// Lasting as many milliseconds as given, each accepted after the time given.
    fn request(start: Instant, sent: u64, lasted: u64, connected: Option<u64>, answered: bool) -> Request {
        let sent = start + Duration::from_millis(sent);
        let result = if answered { Ok(String::new()) } else { Err("reset".to_owned()) };
        let connected = connected.map(Duration::from_millis);
        Request { sent, ended: sent + Duration::from_millis(lasted), connected, result }
    }

    #[test]
    fn one_move_cuts_what_was_open_at_one_instant() {
        let start = Instant::now();
        let open: Vec<_> = (0..6).map(|number| request(start, 20 * number, 110, Some(1), false)).collect();
        assert_eq!((lost(&open, 0, true).len(), lost(&open, 0, false).len()), (0, 6));
        let later = [&open[..], &[request(start, 120, 5, Some(1), false)]].concat();
        assert_eq!(lost(&later, 0, true).len(), 7, "the first had ended before the last began");
        let apart = [request(start, 0, 10, Some(1), false), request(start, 20, 10, Some(1), false)];
        assert_eq!(lost(&apart, 0, true).len(), 2);
    }

    #[test]
    fn a_connection_that_was_not_accepted_is_lost_and_so_is_a_repeated_one() {
        let start = Instant::now();
        let requests = [request(start, 0, 1100, Some(1050), true), request(start, 20, 10, Some(1), true)];
        assert_eq!((lost(&requests, 0, true).len(), lost(&requests, 1, true).len()), (0, 1));
        assert_eq!(lost(&[request(start, 0, 10, None, false)], 0, true).len(), 1);
    }

    #[test]
    fn no_failure_is_no_break_and_no_answer_is_no_end() {
        let start = Instant::now();
        assert_eq!(Break::of(&stream(start, "..."), start).silence, Some(Duration::ZERO));
        assert_eq!(Break::of(&stream(start, ".xx"), start).silence, None);
        assert_eq!(Break::of(&[], start).silence, None);
    }
}
