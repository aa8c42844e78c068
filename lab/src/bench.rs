//! `lab bench-failover`: what a client feels of each event, for l2lb and, on the same LAN in the same run, its peers.
//!
//! One cluster of three nodes, a [`Backend`](crate::traffic::Backend) on a machine of its own behind them, and a client that sends a thousand datagrams and begins
//! a thousand TCP connections per second all the while. For every run the owner of the address is struck, and afterwards brought back as a standby; the next
//! run begins when the first standby is known to be at work.

mod event;
mod figures;
mod keepalived;
mod metallb;
mod play;
mod product;
mod stage;

use std::fs;
use std::io::Write as _;
use std::path::PathBuf;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};

use self::event::Case;
pub use self::event::Event;
use self::figures::{Figures, Sample};
pub use self::metallb::programs as metallb_programs;
use self::stage::{Stage, Subject};
use crate::cluster::{Cluster, repository};
use crate::process::run as run_to_its_end;
use crate::screen::Screen;

/// What is to be measured.
#[derive(Clone, Debug)]
pub struct Plan {
    /// How often each event is played.
    pub runs: u32,
    /// How often those that take half a minute or more.
    pub slow_runs: u32,
    /// Which events; all if none is named.
    pub events: Vec<Event>,
    /// Leave l2lb out.
    pub without_l2lb: bool,
    /// Leave keepalived out.
    pub without_keepalived: bool,
    /// Where MetalLB is: `controller`, `speaker` and `metallb-native.yaml`.
    pub metallb: Option<PathBuf>,
}

/// Measures, prints a table, and writes every run to `target/bench-failover.csv`.
///
/// # Errors
/// When a subject does not come up or back. What was measured until then is printed all the same.
pub fn run(cluster: Cluster, plan: &Plan, screen: &Screen) -> Result<()> {
    let begun = Instant::now();
    let mut stage = Stage::new(cluster, screen.clone())?;
    let (mut samples, mut failed) = (Vec::new(), Ok(()));
    let path = repository().join("target/bench-failover.csv");
    let mut csv = fs::File::create(&path).with_context(|| format!("cannot write {}", path.display()))?;
    writeln!(csv, "{}", Sample::HEADER).context("cannot write the CSV")?;
    for mut subject in subjects(plan, screen)? {
        let result = play(&mut stage, subject.as_mut(), plan, &mut |sample: Sample| {
            writeln!(csv, "{}", sample.csv()).context("cannot write the CSV")?;
            samples.push(sample);
            Ok(())
        });
        let removed = subject.remove(&mut stage);
        if let Err(error) = result.and(removed) {
            screen.say(&format!("{}: {error:#}", subject.name()));
            failed = Err(error);
        }
    }
    let command: Vec<String> = std::env::args().skip(1).collect();
    screen.print(&figures::heading(&command.join(" "), begun.elapsed()));
    screen.print(&Figures::of(&samples).table());
    screen.print(&format!("\nEvery run: {}\n", path.display()));
    failed
}

fn subjects(plan: &Plan, screen: &Screen) -> Result<Vec<Box<dyn Subject>>> {
    let mut subjects: Vec<Box<dyn Subject>> = Vec::new();
    if !plan.without_l2lb {
        subjects.push(Box::new(product::L2lb::default()));
    }
    let has_keepalived = run_to_its_end(Command::new("keepalived").arg("--version")).is_ok();
    if !plan.without_keepalived && !has_keepalived {
        screen.say("keepalived is left out: it is not installed (Debian package keepalived)");
    }
    if !plan.without_keepalived && has_keepalived {
        subjects.push(Box::new(keepalived::Keepalived::new("keepalived (advert_int 1)", "1")));
        subjects.push(Box::new(keepalived::Keepalived::new("keepalived (advert_int 0.1)", "0.1")));
    }
    if let Some(folder) = &plan.metallb {
        subjects.push(Box::new(metallb::MetalLb::new(folder)?));
    }
    Ok(subjects)
}

fn play(
    stage: &mut Stage,
    subject: &mut dyn Subject,
    plan: &Plan,
    keep: &mut dyn FnMut(Sample) -> Result<()>,
) -> Result<()> {
    let cases: Vec<Case> = subject.cases().into_iter().filter(|case| plan.wants(case.event)).collect();
    if cases.is_empty() {
        return Ok(());
    }
    stage.screen.title(&subject.name());
    let screen = stage.screen.clone();
    screen.step(&format!("{} is installed", subject.name()), || subject.install(stage))?;
    for case in cases {
        let runs = if case.event.is_slow() { plan.slow_runs } else { plan.runs };
        if runs == 0 {
            continue;
        }
        let title = format!("{case}, {runs} times");
        screen.step(&title, || {
            subject.prepare(stage, case)?;
            let notes = screen.notes();
            for number in 1..=runs {
                let sample = play::once(stage, subject, case).with_context(|| format!("{case}, run {number}"));
                let sample = sample.inspect_err(|_| screen.print(&stage.cluster.report(crate::cluster::NAMESPACE)))?;
                if number == 1 || number == runs || sample.is_bad() {
                    notes(&format!("run {number}: {}", sample.told()));
                }
                keep(sample)?;
            }
            Ok(())
        })?;
    }
    Ok(())
}

impl Plan {
    fn wants(&self, event: Event) -> bool {
        self.events.is_empty() || self.events.contains(&event)
    }
}

/// How long anything may take that is only waited for.
const PATIENCE: Duration = Duration::from_secs(90);
