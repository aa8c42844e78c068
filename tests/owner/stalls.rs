//! Whether the machine has time for what runs on it.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread::JoinHandle;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

const TICK: Duration = Duration::from_millis(10);

/// A thread that wants to wake up each 10 ms, and keeps how late it was at worst.
pub struct Stalls {
    stopping: Arc<AtomicBool>,
    worst: Arc<AtomicU64>,
    thread: Option<JoinHandle<()>>,
}

impl Stalls {
    pub fn watch() -> Result<Self> {
        let (stopping, worst) = (Arc::<AtomicBool>::default(), Arc::<AtomicU64>::default());
        let thread = std::thread::Builder::new().name("stalls".to_owned()).spawn({
            let (stopping, worst) = (stopping.clone(), worst.clone());
            move || {
                while !stopping.load(Ordering::Relaxed) {
                    let due = Instant::now() + TICK;
                    std::thread::sleep(TICK);
                    let late = u64::try_from(due.elapsed().as_millis()).unwrap_or(u64::MAX);
                    worst.fetch_max(late, Ordering::Relaxed);
                }
            }
        });
        Ok(Self { stopping, worst, thread: Some(thread.context("cannot start a thread")?) })
    }

    /// How late it was at worst.
    pub fn worst(&self) -> Duration {
        Duration::from_millis(self.worst.load(Ordering::Relaxed))
    }
}

impl Drop for Stalls {
    fn drop(&mut self) {
        self.stopping.store(true, Ordering::Relaxed);
        if let Some(thread) = self.thread.take() {
            // A panic there was printed by that thread.
            drop(thread.join());
        }
    }
}
