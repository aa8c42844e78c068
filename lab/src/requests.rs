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
    /// Whether the other side cut its connection: reset it, or closed it without an answer.
    pub cut: bool,
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
                let cut = result.as_ref().is_err_and(is_cut);
                let result = result.map_err(|error| format!("{error:#}"));
                let request = Request { sent, ended: Instant::now(), connected, cut, result };
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
    let last = answer.lines().last().map(str::to_owned);
    Ok(last.ok_or_else(|| io::Error::new(io::ErrorKind::UnexpectedEof, "an empty answer"))?)
}

/// Silence is no cut: it ends in a timeout.
fn is_cut(error: &anyhow::Error) -> bool {
    let cut = [
        io::ErrorKind::ConnectionReset,
        io::ErrorKind::ConnectionAborted,
        io::ErrorKind::BrokenPipe,
        io::ErrorKind::UnexpectedEof,
    ];
    error.downcast_ref::<io::Error>().is_some_and(|error| cut.contains(&error.kind()))
}

/// Those that count as lost, of a stream in which `repeated_syns` were sent a second time by the client's kernel. If the address moved
/// once to another node meanwhile, `moved` is how long one of these requests may take before it is answered.
///
/// Connections that were accepted may be cut by a move, since the new node knows nothing of them: by one move those that were open at
/// one instant, and so were begun within `moved`. The new node tells the client so; one on which nothing is heard any more is lost. One
/// that was accepted so late as if its first SYN had been lost is lost if any was repeated; otherwise it was this machine that was
/// slow.
pub fn lost(requests: &[Request], repeated_syns: u64, moved: Option<Duration>) -> Vec<&Request> {
    let cut = || requests.iter().filter(|request| request.cut && request.connected.is_some());
    let begun = cut().map(|request| request.sent);
    let span = begun.clone().min().zip(begun.max()).zip(cut().map(|request| request.ended).min());
    let by_one_move = span.zip(moved).is_some_and(|(((first_begun, last_begun), first_ended), longest)| {
        last_begun <= first_ended && last_begun.duration_since(first_begun) <= longest
    });
    let is_lost = |request: &&Request| match request.connected {
        None => true,
        Some(after) if after >= REPEATED && repeated_syns > 0 => true,
        Some(_) => request.result.is_err() && !(request.cut && by_one_move),
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
            Request { sent, ended: sent, connected: None, cut: false, result }
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

    /// Longer than those in the table below take.
    const MOVED: Option<Duration> = Some(Duration::from_millis(200));

    #[derive(Clone, Copy, PartialEq)]
    enum End {
        Answered,
        Cut,
        TimedOut,
    }
    use End::{Answered, Cut, TimedOut};

    /// Lasting as many milliseconds as given, each accepted after the time given.
    fn request(start: Instant, sent: u64, lasted: u64, connected: Option<u64>, end: End) -> Request {
        let sent = start + Duration::from_millis(sent);
        let result = if end == Answered { Ok(String::new()) } else { Err("no answer".to_owned()) };
        let connected = connected.map(Duration::from_millis);
        Request { sent, ended: sent + Duration::from_millis(lasted), connected, cut: end == Cut, result }
    }

    #[test]
    fn one_move_cuts_what_was_open_at_one_instant() {
        let start = Instant::now();
        let open: Vec<_> = (0..6).map(|number| request(start, 20 * number, 110, Some(1), Cut)).collect();
        assert_eq!((lost(&open, 0, MOVED).len(), lost(&open, 0, None).len()), (0, 6));
        let later = [&open[..], &[request(start, 120, 5, Some(1), Cut)]].concat();
        assert_eq!(lost(&later, 0, MOVED).len(), 7, "the first had ended before the last began");
        let apart = [request(start, 0, 10, Some(1), Cut), request(start, 20, 10, Some(1), Cut)];
        assert_eq!(lost(&apart, 0, MOVED).len(), 2);
        // All open at one instant, and cut at once after a long silence.
        let silence: Vec<_> = (0..12).map(|number| request(start, 20 * number, 260, Some(1), Cut)).collect();
        assert_eq!(lost(&silence, 0, MOVED).len(), 12, "begun in the course of 220 ms");
        assert_eq!(lost(&silence[..11], 0, MOVED).len(), 0, "begun in the course of 200 ms");
    }

    #[test]
    fn silence_on_an_accepted_connection_is_lost_also_in_a_move() {
        let start = Instant::now();
        let silent: Vec<_> = (0..500).map(|number| request(start, 20 * number, 10_000, Some(1), TimedOut)).collect();
        assert_eq!((lost(&silent, 0, MOVED).len(), lost(&silent, 0, None).len()), (500, 500));
        // Those that the move cut beside them are not.
        let both = [request(start, 0, 10_000, Some(1), TimedOut), request(start, 20, 100, Some(1), Cut)];
        assert_eq!(lost(&both, 0, MOVED), [&both[0]]);
    }

    /// Has read the request, which would otherwise be answered with a reset.
    fn heard_all(mut stream: std::net::TcpStream) -> std::net::TcpStream {
        let read = io::Read::read(&mut stream, &mut [0; 1024]);
        assert!(read.is_ok_and(|length| length > 0));
        stream
    }

    #[test]
    fn a_reset_and_an_end_without_an_answer_cut_and_silence_does_not() -> Result<()> {
        let patience = Duration::from_secs(60);
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
        let outcome = |limit: Duration, then: fn(std::net::TcpStream)| -> Result<(bool, String)> {
            let listener = std::net::TcpListener::bind("127.0.0.1:0")?;
            let to = listener.local_addr()?;
            let server = std::thread::spawn(move || listener.accept().map(|(stream, _)| then(stream)));
            let asked = runtime.block_on(async { timeout(limit, ask(to, &mut None)).await });
            let error = asked.unwrap_or_else(|_| Err(anyhow!("no answer"))).unwrap_err();
            server.join().map_err(|_| anyhow!("the server panicked"))??;
            Ok((is_cut(&error), format!("{error:#}")))
        };
        let closed = outcome(patience, |stream| drop(heard_all(stream)))?;
        assert_eq!(closed, (true, "an empty answer".to_owned()));
        let reset = outcome(patience, |stream| {
            let stream = heard_all(stream);
            assert!(socket2::SockRef::from(&stream).set_linger(Some(Duration::ZERO)).is_ok());
        })?;
        assert!(reset.0, "{}", reset.1);
        // The server holds it until the client gives it up.
        let silent = outcome(Duration::from_millis(100), |mut stream| {
            assert!(io::copy(&mut stream, &mut io::sink()).is_ok());
        })?;
        assert_eq!(silent, (false, "no answer".to_owned()));
        Ok(())
    }

    #[test]
    fn a_connection_that_was_not_accepted_is_lost_and_so_is_a_repeated_one() {
        let start = Instant::now();
        let requests = [request(start, 0, 1100, Some(1050), Answered), request(start, 20, 10, Some(1), Answered)];
        assert_eq!((lost(&requests, 0, MOVED).len(), lost(&requests, 1, MOVED).len()), (0, 1));
        assert_eq!(lost(&[request(start, 0, 10, None, TimedOut)], 0, MOVED).len(), 1);
    }

    #[test]
    fn no_failure_is_no_break_and_no_answer_is_no_end() {
        let start = Instant::now();
        assert_eq!(Break::of(&stream(start, "..."), start).silence, Some(Duration::ZERO));
        assert_eq!(Break::of(&stream(start, ".xx"), start).silence, None);
        assert_eq!(Break::of(&[], start).silence, None);
    }
}
