//! Trials of the sandbox: this program starts itself once more in a sandbox of its own (inside the one it is in) and
//! looks at it from outside.

use std::ffi::OsStr;
use std::io::{BufRead, BufReader, Read};
use std::process::{Child, Command, ExitCode, Stdio};
use std::sync::mpsc;
use std::time::Duration;

use anyhow::{Context, Result, bail, ensure};
use libtest_mimic::{Failed, Trial};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

/// Set: this process is the probe of a trial, not the test.
pub const PROBE: &str = "L2LB_SANDBOX_PROBE";
const DEADLINE: Duration = Duration::from_secs(10);
const NAMESPACES: [&str; 4] = ["user", "net", "mnt", "pid"];

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, test: fn() -> Result<()>| {
        Trial::test(format!("sandbox_{name}"), move || test().map_err(|error| Failed::from(format!("{error:#}"))))
    };
    vec![
        trial("hands_on_the_exit_code", hands_on_the_exit_code),
        trial("has_namespaces_of_its_own", has_namespaces_of_its_own),
        trial("dies_with_its_outer_process", || ends_on(Signal::SIGKILL)),
        trial("ends_when_its_outer_process_is_told_to", || ends_on(Signal::SIGTERM)),
    ]
}

/// The inside of a trial.
pub fn probe(order: &OsStr) -> ExitCode {
    if let Err(error) = lab::sandbox::enter() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    if order == "exit" {
        return ExitCode::from(7);
    }
    for namespace in NAMESPACES {
        match std::fs::read_link(format!("/proc/self/ns/{namespace}")) {
            Ok(link) => println!("{}", link.display()),
            Err(error) => println!("{error}"),
        }
    }
    let run = std::fs::read_dir("/run").into_iter().flatten().flatten().map(|entry| entry.file_name());
    println!("run: {:?}", run.collect::<Vec<_>>());
    if order == "stay" {
        loop {
            std::thread::park();
        }
    }
    ExitCode::SUCCESS
}

fn start(order: &str) -> Result<Child> {
    let mut command = Command::new(std::env::current_exe().context("cannot find this program")?);
    // Without its mark, this program believes that it is outside.
    command.env_remove("L2LB_LAB_SANDBOX").env(PROBE, order).stdin(Stdio::null()).stdout(Stdio::piped());
    command.spawn().context("cannot start the probe")
}

fn hands_on_the_exit_code() -> Result<()> {
    let status = start("exit")?.wait()?;
    ensure!(status.code() == Some(7), "{status}");
    Ok(())
}

fn has_namespaces_of_its_own() -> Result<()> {
    let output = start("look")?.wait_with_output()?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(output.status.success(), "{}", output.status);
    for (line, namespace) in text.lines().zip(NAMESPACES) {
        let here = std::fs::read_link(format!("/proc/self/ns/{namespace}"))?;
        ensure!(line.starts_with(namespace), "{line}");
        ensure!(line != here.display().to_string(), "the {namespace} namespace is the outer one");
    }
    ensure!(text.contains("run: [\"netns\"]"), "/run is not its own: {text}");
    Ok(())
}

/// The pipe ends when nobody is left who could write to it: neither the outer process, nor process 1, nor the inner.
fn ends_on(signal: Signal) -> Result<()> {
    let mut outer = start("stay")?;
    let mut output = BufReader::new(outer.stdout.take().context("no pipe")?);
    let mut line = String::new();
    while !line.starts_with("run:") {
        line.clear();
        ensure!(output.read_line(&mut line)? > 0, "the probe ended by itself");
    }
    kill(Pid::from_raw(i32::try_from(outer.id())?), signal)?;
    let status = outer.wait()?;
    let (sender, ended) = mpsc::channel();
    std::thread::spawn(move || sender.send(output.read_to_end(&mut Vec::new())));
    match ended.recv_timeout(DEADLINE) {
        Ok(read) => drop(read?),
        Err(_) => bail!("somebody inside has outlived {signal} to the outer process"),
    }
    ensure!(signal != Signal::SIGTERM || status.code() == Some(128 + 15), "{status}");
    Ok(())
}
