//! `/readyz` and `/livez` say what is true: as the kubelet asks, of the real process.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use lab::process::signal;
use lab::stalls::NoExcuse;
use nix::sys::ptrace;
use nix::sys::signal::Signal;
use nix::sys::wait::{WaitPidFlag, waitpid};
use nix::unistd::Pid;

use crate::Entry;
use crate::world::{Part, VIP, World};

pub const TRIALS: [Entry; 4] = [
    ("health_says_that_the_owners_loop_is_stuck_and_nothing_is_answered_then", false, stuck_loop),
    ("health_says_that_a_receive_thread_is_stuck_until_it_is_replaced", false, stuck_thread),
    ("health_tells_what_a_restart_cures_from_what_it_does_not", false, outages),
    ("health_of_a_stopped_process_is_no_answer", false, stopped),
];

/// A thread of another process that stands still for as long as this lives, as one that hangs in the kernel does.
struct Stopped(Pid);

impl Stopped {
    /// Stops the thread of `process` with this name.
    fn new(process: u32, name: &str) -> Result<Self> {
        for entry in std::fs::read_dir(format!("/proc/{process}/task")).context("the threads")? {
            let entry = entry?;
            // A thread may end meanwhile.
            let comm = std::fs::read_to_string(entry.path().join("comm")).unwrap_or_default();
            if comm.trim() == name {
                let thread = Pid::from_raw(entry.file_name().to_string_lossy().parse()?);
                ptrace::seize(thread, ptrace::Options::empty()).context("cannot seize a thread")?;
                ptrace::interrupt(thread).context("cannot interrupt a thread")?;
                waitpid(thread, Some(WaitPidFlag::__WALL)).context("cannot wait for a thread")?;
                return Ok(Self(thread));
            }
        }
        anyhow::bail!("no thread {name}")
    }
}

impl Drop for Stopped {
    fn drop(&mut self) {
        // It may have been killed, with its process.
        let _ = ptrace::detach(self.0, None);
    }
}

fn stuck_loop(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 1, Part::Primary)?;
    let client = world.client()?;
    world.wait("it answers", |_| Ok(client.ask(VIP)?.is_some()))?;
    let begun = Instant::now();
    // The loop runs on the main thread, whose name is the program's.
    let stopped = Stopped::new(world.speaker.pid(), "l2lb")?;
    let text = world.wait_for_status("readiness fails", "/readyz", 503)?;
    // It may have run a little before it was stopped.
    ensure!(begun.elapsed() >= Duration::from_millis(1_500), "too soon: {:?}", begun.elapsed());
    ensure!(text.contains("owner's loop: it has not run for"), "{text}");
    let is_live = world.get_in_the_end("/livez")?.0 == 200;
    ensure!(is_live || begun.elapsed() > Duration::from_secs(8), "a restart would be too soon");
    // Behind the fence nothing is answered. Late answers to what was asked before wait in the first client's socket.
    let later = world.client()?;
    world.wait("a request meets the fence", |world| {
        ensure!(later.ask(VIP)?.is_none(), NoExcuse("answered behind the fence".to_owned()));
        Ok(world.metrics()?.dropped_for("fenced") >= 1.0)
    })?;
    world.wait("liveness fails", |world| Ok(world.get("/livez")?.0 == 503))?;
    ensure!(begun.elapsed() >= Duration::from_millis(9_500), "too soon: {:?}", begun.elapsed());
    drop(stopped);
    world.wait("all is well again", |world| Ok(world.get("/livez")?.0 == 200 && world.get("/readyz")?.0 == 200))?;
    world.wait("it answers again", |_| Ok(client.ask(VIP)?.is_some()))?;
    world.wait_until_it_adds_up()
}

fn stuck_thread(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 1, Part::Primary)?;
    let client = world.client()?;
    let _stopped = Stopped::new(world.speaker.pid(), "arp-eth0")?;
    let text = world.wait_for_status("readiness fails", "/readyz", 503)?;
    ensure!(text.contains("receive thread of eth0: it has not run for"), "{text}");
    ensure!(world.get_in_the_end("/livez")?.0 == 200, "a restart of the process is not needed");
    // Whoever has an address that is new here cannot say so.
    world.assign(1, Part::Primary)?;
    world.wait("it is replaced", |world| {
        let metrics = world.metrics()?;
        let is_replaced = metrics.of("receive_threads_replaced") == 1.0;
        ensure!(is_replaced || metrics.of("virtual_ips_owned") == 1.0, "claimed what it could not ask for");
        Ok(is_replaced)
    })?;
    world.wait("the new one is claimed then", |world| Ok(world.metrics()?.of("virtual_ips_owned") == 2.0))?;
    world.wait("it is ready again", |world| Ok(world.get("/readyz")?.0 == 200))?;
    world.wait("it answers again", |_| Ok(client.ask(VIP)?.is_some()))?;
    Ok(())
}

fn outages(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 1, Part::Primary)?;
    let client = world.client()?;
    world.wait("the Lease is renewed", |world| Ok(world.metrics()?.of("lease_renewed_timestamp_seconds") > 0.0))?;
    // An API server that is away is no reason to restart, or to hold back a rollout: the speaker goes on announcing.
    world.door.set_open(false);
    world.wait("a write fails", |world| Ok(world.metrics()?.of("api_write_errors") > 0.0))?;
    for path in ["/livez", "/readyz"] {
        let (status, text) = world.get_in_the_end(path)?;
        ensure!(status == 200, "{path} without an API server: {status} {text}");
    }
    world.wait("it answers without an API server", |_| Ok(client.ask(VIP)?.is_some()))?;
    // Without a link it cannot do its work, but no restart brings it back.
    world.lan.set_link(world.port, false)?;
    let text = world.wait_for_status("readiness fails", "/readyz", 503)?;
    ensure!(text.contains("nic eth0:"), "{text}");
    ensure!(world.get_in_the_end("/livez")?.0 == 200, "a restart brings no link back");
    world.lan.set_link(world.port, true)?;
    world.wait("it is ready again", |world| Ok(world.get("/readyz")?.0 == 200))?;
    world.wait("it answers again", |_| Ok(client.ask(VIP)?.is_some()))?;
    Ok(())
}

fn stopped(suffix: &str) -> Result<()> {
    let mut world = World::new(suffix, 1, Part::Primary)?;
    signal(world.speaker.pid(), Signal::SIGSTOP)?;
    world.wait("nobody answers the kubelet", |world| Ok(world.get("/livez")?.0 == 0))?;
    signal(world.speaker.pid(), Signal::SIGCONT)?;
    world.wait("all is well again", |world| Ok(world.get("/livez")?.0 == 200 && world.get("/readyz")?.0 == 200))?;
    Ok(())
}
