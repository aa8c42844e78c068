//! Whether the machine has time for what runs on it.
//!
//! Machines are shared: now and then one stands still for a second. What a test then measures is the machine, and a speaker that did
//! not run for so long is rightly replaced. A test that judges times, counts or who did it watches for that meanwhile. What must hold
//! on any machine fails with [`NoExcuse`], and is never played again.

use std::cell::Cell;
use std::collections::VecDeque;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::unistd::Pid;

const TICK: Duration = Duration::from_millis(10);
/// Shorter ones are nobody's trouble.
const SHORTEST: Duration = Duration::from_millis(30);
/// Stalls kept; of older ones the worst of two is kept for both.
const KEPT: usize = 1024;
/// How often a judgement is begun.
const ROUNDS: usize = 3;

thread_local! {
    /// How often what this thread plays may be begun again; none while it plays nothing.
    static LEFT: Cell<Option<usize>> = const { Cell::new(None) };
}

/// A play of this thread, or one within another: that has no more rounds than are left of the outer one's.
struct Playing {
    before: Option<usize>,
}

impl Playing {
    fn begin() -> Self {
        let before = LEFT.get();
        LEFT.set(before.or(Some(ROUNDS - 1)));
        Self { before }
    }

    /// Whether there is another round, which is then taken.
    fn take_round() -> bool {
        let left = LEFT.get().unwrap_or_default();
        LEFT.set(Some(left.saturating_sub(1)));
        left > 0
    }
}

impl Drop for Playing {
    fn drop(&mut self) {
        if self.before.is_none() {
            LEFT.set(None);
        }
    }
}

/// Threads that want to wake up each 10 ms, and keep when they could not: one for each core. Where only one core stands still, a thread
/// that may run anywhere runs on another one and sees nothing, and a speaker that was on that core does not run.
#[derive(Debug)]
pub struct Stalls {
    stopping: Arc<AtomicBool>,
    cores: Vec<Arc<Mutex<Seen>>>,
    threads: Vec<JoinHandle<()>>,
}

#[derive(Debug)]
struct Seen {
    /// When the thread is to wake up next: until it does, nobody knows how long this one lasts.
    due: Instant,
    past: VecDeque<Stall>,
}

#[derive(Clone, Copy, Debug)]
struct Stall {
    /// Not later than it began.
    begun: Instant,
    over: Instant,
    late: Duration,
}

impl Seen {
    fn handle_wake(&mut self, now: Instant) {
        let (begun, late) = (self.due, now.saturating_duration_since(self.due));
        self.due = now + TICK;
        if late < SHORTEST {
            return;
        }
        if self.past.len() == KEPT
            && let Some(first) = self.past.pop_front()
            && let Some(second) = self.past.front_mut()
        {
            (second.begun, second.late) = (first.begun, first.late.max(second.late));
        }
        // It may have begun as soon as the thread went to sleep.
        self.past.push_back(Stall { begun: begun.checked_sub(TICK).unwrap_or(begun), over: now, late });
    }

    /// The longest that was not over yet at `from`, and had begun at `to`.
    fn worst_within(&self, from: Instant, to: Instant, now: Instant) -> Duration {
        let past = self.past.iter().filter(|stall| stall.over >= from && stall.begun <= to).map(|stall| stall.late);
        let going_on = if self.due <= to + TICK { now.saturating_duration_since(self.due) } else { Duration::ZERO };
        past.chain([going_on]).max().unwrap_or_default()
    }
}

impl Stalls {
    /// Watches from now on, until it is dropped.
    pub fn watch() -> Result<Self> {
        let mut stalls = Self { stopping: Arc::default(), cores: Vec::new(), threads: Vec::new() };
        for core in cores()? {
            stalls.watch_core(core)?;
        }
        Ok(stalls)
    }

    fn watch_core(&mut self, core: CpuSet) -> Result<()> {
        let seen = Arc::new(Mutex::new(Seen { due: Instant::now() + TICK, past: VecDeque::new() }));
        self.cores.push(seen.clone());
        let stopping = self.stopping.clone();
        let thread = std::thread::Builder::new().name("stalls".to_owned()).spawn(move || {
            if let Err(error) = sched_setaffinity(Pid::from_raw(0), &core) {
                tracing::warn!(%error, "a core cannot be watched: this thread watches the one it is on");
            }
            while !stopping.load(Ordering::Relaxed) {
                std::thread::sleep(TICK);
                lock(&seen).handle_wake(Instant::now());
            }
        });
        self.threads.push(thread.context("cannot start a thread")?);
        Ok(())
    }

    /// How long a core of the machine stood still at worst, up to now.
    pub fn worst(&self) -> Duration {
        let worst = |seen: &Arc<Mutex<Seen>>| {
            let seen = lock(seen);
            let longest = seen.past.iter().map(|stall| stall.late).max().unwrap_or_default();
            longest.max(Instant::now().saturating_duration_since(seen.due))
        };
        self.cores.iter().map(worst).max().unwrap_or_default()
    }

    /// The same, of all that was not over yet at `since`.
    pub fn worst_since(&self, since: Instant) -> Duration {
        let now = Instant::now();
        self.worst_of_cores(since, now, now)
    }

    /// The same, of all that was not over yet at `from` and had begun at `to`.
    pub fn worst_within(&self, from: Instant, to: Instant) -> Duration {
        self.worst_of_cores(from, to, Instant::now())
    }

    fn worst_of_cores(&self, from: Instant, to: Instant, now: Instant) -> Duration {
        self.cores.iter().map(|seen| lock(seen).worst_within(from, to, now)).max().unwrap_or_default()
    }
}

/// Each of the cores on which this process may run.
fn cores() -> Result<Vec<CpuSet>> {
    let all = sched_getaffinity(Pid::from_raw(0)).context("cannot tell which cores there are")?;
    let mut cores = Vec::new();
    for core in 0..CpuSet::count() {
        if all.is_set(core)? {
            let mut one = CpuSet::new();
            one.set(core)?;
            cores.push(one);
        }
    }
    Ok(cores)
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        for thread in self.threads.drain(..) {
            // A panic there was printed by that thread.
            drop(thread.join());
        }
    }
}

fn lock(seen: &Mutex<Seen>) -> MutexGuard<'_, Seen> {
    seen.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A failure of what must hold although a machine stands still, with what happened: nothing that fails like this is played again.
/// It is found in an error whatever context that was given.
#[derive(Debug, thiserror::Error)]
#[error("{0}")]
pub struct NoExcuse(pub String);

impl NoExcuse {
    /// Whether this is why something failed.
    pub fn is_in(error: &anyhow::Error) -> bool {
        is_why::<Self>(error)
    }
}

/// Whether an error of this kind is in `error`, as what it was given for context or as one of its causes.
fn is_why<E: std::error::Error + Send + Sync + 'static>(error: &anyhow::Error) -> bool {
    error.is::<E>() || error.chain().any(|cause| cause.is::<E>())
}

/// A machine that did not do what a test asked of it, with what that was: nothing was shown of what the test is about. It is played
/// again whether a standstill was seen or not.
#[derive(Debug, thiserror::Error)]
#[error("nothing was shown: {0}")]
pub struct NothingShown(pub String);

impl NothingShown {
    fn is_in(error: &anyhow::Error) -> bool {
        is_why::<Self>(error)
    }
}

/// Plays what only a machine can judge that does not stand still. When it fails, and the machine stood still meanwhile for
/// `tolerated` or longer, it says so in a line that begins with `PLAYED AGAIN`, and plays it again, three times at most; the last
/// time counts; so it is where [`NothingShown`] is why. Else, on a machine that did not stand still the first failure counts, and
/// anywhere the first [`NoExcuse`]. Of a play within
/// another (on one thread) the rounds count for both: nothing is played more than three times.
///
/// # Errors
/// What `play` failed with.
pub fn play_again_after_stalls<T>(tolerated: Duration, play: impl FnMut() -> Result<T>) -> Result<T> {
    play_again_tidied(tolerated, play, |_| Ok(()))
}

/// The same for what leaves something behind when it fails: before each further time `tidy` is told the failure, and brings back what
/// `play` begins with. How the machine fares meanwhile does not count.
///
/// # Errors
/// What `play` failed with, or `tidy`.
pub fn play_again_tidied<T>(
    tolerated: Duration,
    mut play: impl FnMut() -> Result<T>,
    mut tidy: impl FnMut(&anyhow::Error) -> Result<()>,
) -> Result<T> {
    let _playing = Playing::begin();
    loop {
        let stalls = Stalls::watch()?;
        let played = play();
        let worst = stalls.worst();
        match played {
            Err(error)
                if (worst >= tolerated || NothingShown::is_in(&error))
                    && !NoExcuse::is_in(&error)
                    && Playing::take_round() =>
            {
                let whole = format!("{error:#}");
                let said = whole.lines().next().unwrap_or_default();
                // Where the context is a report, the first line says nothing.
                let cause = error.root_cause().to_string();
                let cause = cause.lines().next().filter(|cause| !said.contains(cause));
                let cause = cause.map(|cause| format!(" (...) {cause}")).unwrap_or_default();
                println!(
                    "\nPLAYED AGAIN: the machine stood still for {} ms; it had failed with: {said}{cause}",
                    worst.as_millis()
                );
                tidy(&error).with_context(|| format!("not tidied after: {said}"))?;
            }
            played => return played,
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const MS: Duration = Duration::from_millis(1);

    #[test]
    fn a_stall_counts_while_it_lasts_and_for_what_it_overlaps() {
        let begin = Instant::now();
        let mut seen = Seen { due: begin + TICK, past: VecDeque::new() };
        let since =
            |seen: &Seen, from: u32, now: u32| seen.worst_within(begin + from * MS, begin + now * MS, begin + now * MS);
        assert_eq!(since(&seen, 0, 5), Duration::ZERO);
        assert_eq!(since(&seen, 0, 510), 500 * MS, "it is not over yet");
        seen.handle_wake(begin + 710 * MS);
        seen.handle_wake(begin + 725 * MS);
        assert_eq!(since(&seen, 400, 726), 700 * MS);
        assert_eq!(since(&seen, 711, 726), Duration::ZERO, "it was over before");
    }

    #[test]
    fn only_what_overlaps_a_time_counts_in_it() {
        let begin = Instant::now();
        let mut seen = Seen { due: begin + 100 * MS, past: VecDeque::new() };
        seen.handle_wake(begin + 400 * MS);
        let within = |seen: &Seen, from: u32, to: u32, now: u32| {
            seen.worst_within(begin + from * MS, begin + to * MS, begin + now * MS)
        };
        assert_eq!(within(&seen, 0, 80, 405), Duration::ZERO, "it came later");
        assert_eq!(within(&seen, 0, 95, 405), 300 * MS, "it may have begun by then");
        assert_eq!(within(&seen, 150, 200, 405), 300 * MS);
        assert_eq!(within(&seen, 350, 600, 405), 300 * MS);
        assert_eq!(within(&seen, 401, 600, 405), Duration::ZERO, "it was over");
        assert_eq!(within(&seen, 401, 600, 910), 500 * MS, "the next goes on");
        assert_eq!(within(&seen, 401, 402, 910), 500 * MS);
        assert_eq!(within(&seen, 150, 200, 910), 300 * MS, "the next began later");
    }

    #[test]
    fn a_core_that_stands_still_alone_is_seen() -> Result<()> {
        let stalls = Stalls::watch()?;
        let allowed = cores()?.len();
        assert_eq!((stalls.cores.len(), stalls.threads.len()), (allowed, allowed));
        let last = stalls.cores.last().context("a core")?;
        let begin = Instant::now();
        lock(last).past.push_back(Stall { begun: begin, over: begin, late: Duration::from_secs(3600) });
        assert_eq!((stalls.worst(), stalls.worst_since(begin)), (Duration::from_secs(3600), Duration::from_secs(3600)));
        Ok(())
    }

    #[test]
    fn of_many_stalls_the_worst_is_kept() {
        let begin = Instant::now();
        let mut seen = Seen { due: begin, past: VecDeque::new() };
        seen.handle_wake(begin + 900 * MS);
        for _ in 0..3 * KEPT {
            let due = seen.due;
            seen.handle_wake(due + 40 * MS);
        }
        assert_eq!((seen.past.len(), seen.worst_within(begin, seen.due, seen.due)), (KEPT, 900 * MS));
    }

    #[test]
    fn a_failure_on_a_machine_that_did_not_stand_still_counts() {
        let mut rounds = 0;
        let failed: Result<()> = play_again_after_stalls(Duration::from_secs(3600), || {
            rounds += 1;
            anyhow::bail!("round {rounds}")
        });
        assert_eq!(failed.unwrap_err().to_string(), "round 1");
    }

    #[test]
    fn before_each_further_time_it_is_tidied() {
        let (begun, tidied) = (Cell::new(0), Cell::new(0));
        let play = || -> Result<()> {
            begun.set(begun.get() + 1);
            anyhow::ensure!(tidied.get() + 1 == begun.get(), "{} rounds, tidied {} times", begun.get(), tidied.get());
            anyhow::bail!("round {}", begun.get())
        };
        let failed = play_again_tidied(Duration::ZERO, play, |error| {
            tidied.set(tidied.get() + 1);
            anyhow::ensure!(error.to_string() == format!("round {}", tidied.get()), "told {error}");
            Ok(())
        });
        assert_eq!((failed.unwrap_err().to_string(), tidied.get()), (format!("round {ROUNDS}"), ROUNDS - 1));
        let failed: Result<()> =
            play_again_tidied(Duration::ZERO, || anyhow::bail!("first"), |_| anyhow::bail!("stuck"));
        assert_eq!(format!("{:#}", failed.unwrap_err()), "not tidied after: first: stuck");
    }

    #[test]
    fn a_play_within_another_has_only_the_rounds_that_are_left() {
        let (outer, inner) = (Cell::new(0), Cell::new(0));
        let nested = |fails_alone: usize| {
            outer.set(0);
            inner.set(0);
            play_again_after_stalls(Duration::ZERO, || -> Result<()> {
                outer.set(outer.get() + 1);
                anyhow::ensure!(outer.get() > fails_alone, "alone");
                play_again_after_stalls(Duration::ZERO, || {
                    inner.set(inner.get() + 1);
                    anyhow::bail!("within")
                })
            })
        };
        for (fails_alone, played) in [(0, (1, 3)), (1, (2, 2)), (2, (3, 1)), (0, (1, 3))] {
            assert_eq!(nested(fails_alone).unwrap_err().to_string(), "within");
            assert_eq!((outer.get(), inner.get()), played, "{fails_alone}");
        }
    }

    #[test]
    fn a_machine_that_did_not_do_what_was_asked_is_asked_again() {
        let mut rounds = 0;
        let played = play_again_after_stalls(Duration::from_secs(3600), || {
            rounds += 1;
            anyhow::ensure!(rounds > 1, NothingShown("half of the frames were lost".to_owned()));
            Ok(rounds)
        });
        assert_eq!(played.unwrap(), 2);
    }

    #[test]
    fn a_failure_while_it_stood_still_is_played_again_but_not_for_ever() {
        let mut rounds = 0;
        let failed: Result<()> = play_again_after_stalls(Duration::ZERO, || {
            rounds += 1;
            anyhow::bail!("round {rounds}")
        });
        assert_eq!(failed.unwrap_err().to_string(), format!("round {ROUNDS}"));
    }

    #[test]
    fn what_has_no_excuse_is_never_played_again() {
        #[derive(Debug, thiserror::Error)]
        #[error("outer")]
        struct Outer(#[source] NoExcuse);
        let failures: [fn() -> anyhow::Error; 5] = [
            || NoExcuse("first".to_owned()).into(),
            || anyhow::Error::from(NoExcuse("first".to_owned())).context("in a scenario").context("with logs"),
            || anyhow::anyhow!("first").context(NoExcuse("no excuse".to_owned())).context("with logs"),
            || Outer(NoExcuse("first".to_owned())).into(),
            || {
                let ensured = || -> Result<()> {
                    anyhow::ensure!(false, NoExcuse("first".to_owned()));
                    Ok(())
                };
                ensured().context("with logs").unwrap_err()
            },
        ];
        for (number, failure) in failures.into_iter().enumerate() {
            let (mut rounds, mut tidied) = (0, 0);
            let play = || -> Result<()> {
                rounds += 1;
                Err(failure())
            };
            let failed = play_again_tidied(Duration::ZERO, play, |_| {
                tidied += 1;
                Ok(())
            });
            assert!(failed.is_err_and(|error| NoExcuse::is_in(&error)), "{number}");
            assert_eq!((rounds, tidied), (1, 0), "{number}");
        }
        assert!(!NoExcuse::is_in(&anyhow::anyhow!("plain").context("with logs")));
    }
}
