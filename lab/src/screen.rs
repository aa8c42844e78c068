//! What a person sees while the lab works: steps with their times, live on a terminal, as plain lines elsewhere.

use std::io::{IsTerminal as _, Write as _};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::Result;

use crate::kubelet::Notes;

const FRAME: Duration = Duration::from_millis(100);
/// Where lines cannot be rewritten, a long step says so often that it goes on.
const REMINDER: Duration = Duration::from_secs(10);
const WIDTH: usize = 110;

/// The screen. Clones are the same one.
#[derive(Clone, Debug)]
pub struct Screen {
    start: Instant,
    live: bool,
    step: Arc<Mutex<Step>>,
}

#[derive(Debug, Default)]
struct Step {
    running: Option<Running>,
}

#[derive(Debug)]
struct Running {
    title: String,
    detail: String,
    since: Instant,
    reminded: Instant,
}

impl Screen {
    /// Standard output; times count from now.
    pub fn new() -> Self {
        Self { start: Instant::now(), live: std::io::stdout().is_terminal(), step: Arc::default() }
    }

    /// Does one step, and shows it with its time while it runs and when it is done.
    ///
    /// # Errors
    /// What `work` returned.
    pub fn step<T>(&self, title: &str, work: impl FnOnce() -> Result<T>) -> Result<T> {
        let now = Instant::now();
        let running = Running { title: title.to_owned(), detail: String::new(), since: now, reminded: now };
        self.lock().running = Some(running);
        let ticker = self.clone();
        std::thread::scope(|scope| {
            scope.spawn(move || ticker.tick_until_done());
            let result = work();
            let mark = if result.is_ok() { "ok  " } else { "FAIL" };
            let mut step = self.lock();
            self.line(&mut step, &format!("{mark} {title}  ({:.1} s)", now.elapsed().as_secs_f64()));
            step.running = None;
            result
        })
    }

    /// One line of its own.
    pub fn say(&self, text: &str) {
        let mut step = self.lock();
        self.line(&mut step, text);
    }

    /// A heading.
    pub fn title(&self, text: &str) {
        let bold = if self.live { ("\x1b[1m", "\x1b[0m") } else { ("", "") };
        self.print(&format!("\n{}== {text} =={}\n", bold.0, bold.1));
    }

    /// A command and what it printed.
    pub fn show(&self, command: &str, output: &str) {
        let indented: String = output.trim_end().lines().map(|line| format!("    {line}\n")).collect();
        self.print(&format!("  $ {command}\n{indented}"));
    }

    /// Text as it is.
    pub fn print(&self, text: &str) {
        let _step = self.lock();
        let mut out = std::io::stdout();
        // Nobody is left to be told that standard output is closed.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    /// What a cluster says while it works: the detail of the running step, or a line.
    pub fn notes(&self) -> Notes {
        let screen = self.clone();
        Arc::new(move |text: &str| {
            let mut step = screen.lock();
            match &mut step.running {
                Some(running) if screen.live => text.clone_into(&mut running.detail),
                _ => screen.line(&mut step, &format!("     {text}")),
            }
        })
    }

    fn tick_until_done(&self) {
        loop {
            std::thread::sleep(FRAME);
            let mut step = self.lock();
            let Some(running) = &mut step.running else { return };
            let elapsed = running.since.elapsed().as_secs_f64();
            if self.live {
                let text = format!("...  {}  ({elapsed:.1} s) {}", running.title, running.detail);
                let text: String = text.chars().take(WIDTH).collect();
                self.write(&format!("\r\x1b[2K{}{text}", self.time()));
            } else if running.reminded.elapsed() >= REMINDER {
                running.reminded = Instant::now();
                let text = format!("...  {} ({elapsed:.0} s)", running.title);
                self.line(&mut step, &text);
            }
        }
    }

    fn line(&self, _step: &mut MutexGuard<'_, Step>, text: &str) {
        let clear = if self.live { "\r\x1b[2K" } else { "" };
        self.write(&format!("{clear}{}{text}\n", self.time()));
    }

    fn write(&self, text: &str) {
        let mut out = std::io::stdout();
        // As in `print`.
        let _ = out.write_all(text.as_bytes()).and_then(|()| out.flush());
    }

    fn time(&self) -> String {
        format!("[{:6.1} s] ", self.start.elapsed().as_secs_f64())
    }

    fn lock(&self) -> MutexGuard<'_, Step> {
        self.step.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Default for Screen {
    fn default() -> Self {
        Self::new()
    }
}
