//! The walls of the lab: a user, network, mount and pid namespace of its own.
//!
//! [`enter`] is called first in `main`. The *outer* process (the one that the user started) makes one child in new
//! namespaces, writes its id maps, hands signals on, and leaves with its exit code. That child, the *init*, is process
//! 1 inside: it mounts a fresh `/proc` and a tmpfs on `/run`, starts the program again (the *inner*), and reaps what is
//! orphaned. Two kernel rules clean up, so that no code of ours has to run for it: when the outer dies, however it
//! dies, its parent-death signal kills the init; and when process 1 of a pid namespace dies, all in it are killed.
//! Namespaces, mounts and interfaces go with the last process.
//!
//! The id maps: root outside keeps ids 0 to 65535 (so that the programs of the lab can run as other users), an
//! ordinary user is root inside and nobody else.

// Making a process in new namespaces has no safe form; everything unsafe of the lab's set-up is in this file.
#![allow(unsafe_code)]

use std::ffi::OsString;
use std::fs;
use std::io::{self, Read, Write};
use std::os::unix::net::UnixStream;

use std::os::unix::process::CommandExt;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::mount::{MsFlags, mount};
use nix::sys::signal::{SigSet, SigmaskHow, Signal, kill, sigprocmask};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{Pid, getegid, geteuid};

/// Names the user namespace that the program was started again in; a value left over from elsewhere does not match.
const MARK: &str = "L2LB_LAB_SANDBOX";
/// How long the inside may take to end by itself after a signal, before it is killed.
const GRACE: Duration = Duration::from_secs(10);
/// Ids that are mapped when the outer process is root.
const ID_RANGE: u32 = 65_536;

/// Starts the running program again inside user, network, mount and pid namespaces of its own, unless it is there
/// already: a tmpfs on `/run` (also the place for state), private mounts, a fresh `/proc`, `lo` up.
///
/// Must be the first thing in `main`, before any thread. Returns only inside. The outer process waits for the inner
/// one and exits with its code (128 + signal if it was killed); SIGTERM, SIGINT and SIGHUP are handed on, and the end
/// of the outer process, also by SIGKILL, ends everything inside. There is no way out to the real network from inside:
/// what needs it (downloads) comes before this call, as a child process.
///
/// # Errors
/// When the machine does not allow the namespaces, with what to do. Nothing has been changed then.
pub fn enter() -> Result<()> {
    if is_inside() {
        return Ok(());
    }
    let (mut init_pipe, outer_pipe) = socket_pair()?;
    let signals = handled_signals();
    let old_mask = block(&signals)?;
    match clone_into_namespaces()? {
        None => {
            drop(outer_pipe);
            let code = init(&mut init_pipe, &old_mask).unwrap_or_else(|error| {
                eprintln!("error: the lab's namespaces could not be set up: {error:#}");
                125
            });
            std::process::exit(code)
        }
        Some(pid) => {
            drop(init_pipe);
            let code = outer(pid, outer_pipe, &signals).inspect_err(|_| {
                let _ = kill(pid, Signal::SIGKILL);
            })?;
            std::process::exit(code)
        }
    }
}

/// Whether this process runs inside the lab's namespaces, or inside a virtual machine of the lab, which is walls enough.
pub fn is_inside() -> bool {
    matches!((std::env::var_os(MARK), user_namespace()), (Some(mark), Ok(here)) if mark == here)
        || crate::vm::guest::is_inside()
}

/// Whether ids other than 0 can be used inside. False for an ordinary user's lab.
pub fn has_uid_range() -> bool {
    // Lines of "inside outside count".
    fs::read_to_string("/proc/self/uid_map").is_ok_and(|map| {
        map.lines().filter_map(|line| line.split_whitespace().nth(2)?.parse::<u32>().ok()).any(|count| count > 1)
    })
}

fn user_namespace() -> io::Result<OsString> {
    fs::read_link("/proc/self/ns/user").map(|link| link.into_os_string())
}

fn socket_pair() -> Result<(UnixStream, UnixStream)> {
    UnixStream::pair().context("cannot make a socket pair")
}

fn handled_signals() -> SigSet {
    SigSet::from_iter([Signal::SIGCHLD, Signal::SIGTERM, Signal::SIGINT, Signal::SIGHUP, Signal::SIGQUIT])
}

fn block(signals: &SigSet) -> Result<SigSet> {
    let mut old = SigSet::empty();
    sigprocmask(SigmaskHow::SIG_BLOCK, Some(signals), Some(&mut old)).context("cannot block signals")?;
    Ok(old)
}

/// Forks into new namespaces. `None` in the child.
fn clone_into_namespaces() -> Result<Option<Pid>> {
    let flags = libc::CLONE_NEWUSER | libc::CLONE_NEWNET | libc::CLONE_NEWNS | libc::CLONE_NEWPID | libc::SIGCHLD;
    // SAFETY: without CLONE_VM and with no stack given this is fork(2). The caller is the start of `main` with no
    // other thread, so no lock is held by a thread that the child does not have.
    let pid = unsafe { libc::syscall(libc::SYS_clone, flags, 0, 0, 0, 0) };
    match pid {
        -1 => {
            let error = Errno::last();
            bail!(
                "this machine refused user, network, mount and pid namespaces ({error}): run as root, or allow them \
                 (sysctl kernel.unprivileged_userns_clone=1, user.max_user_namespaces above 0)"
            )
        }
        0 => Ok(None),
        pid => Ok(Some(Pid::from_raw(i32::try_from(pid).context("a process id out of range")?))),
    }
}

// ---- outside ----

fn outer(init: Pid, mut pipe: UnixStream, signals: &SigSet) -> Result<i32> {
    write_id_maps(init).context("cannot map user and group ids into the lab's namespace")?;
    pipe.write_all(b"m").context("the process inside the lab's namespaces is gone")?;
    drop(pipe);
    supervise(init, signals, |_, _| {})
}

fn write_id_maps(pid: Pid) -> Result<()> {
    let folder = Path::new("/proc").join(pid.to_string());
    let write = |file: &str, text: &str| {
        fs::write(folder.join(file), text).with_context(|| format!("cannot write {text:?} to /proc/{pid}/{file}"))
    };
    let (uid, gid) = (geteuid(), getegid());
    if uid.is_root() {
        let range = format!("0 0 {ID_RANGE}");
        // Fails where root itself has only a part of the ids, as in a container with a user namespace.
        if write("gid_map", &range).and_then(|()| write("uid_map", &range)).is_ok() {
            return Ok(());
        }
    }
    // A map can be written only once: where the first of the two stood, it stays.
    write("setgroups", "deny").ok();
    let single = |file: &str, id: u32| match fs::read_to_string(folder.join(file)) {
        Ok(text) if !text.trim().is_empty() => Ok(()),
        _ => write(file, &format!("0 {id} 1")),
    };
    single("gid_map", gid.as_raw())?;
    single("uid_map", uid.as_raw())
}

// ---- inside, process 1 ----

fn init(pipe: &mut UnixStream, old_mask: &SigSet) -> Result<i32> {
    nix::sys::prctl::set_pdeathsig(Signal::SIGKILL).context("cannot ask for a signal at the parent's death")?;
    let mut mapped = [0_u8; 1];
    // End of file: the outer process died or gave up before it could write the maps, and has said why.
    if pipe.read(&mut mapped).context("cannot hear from the outer process")? == 0 {
        return Ok(125);
    }
    mounts().map_err(|error| match error.downcast_ref::<Errno>() {
        Some(Errno::EPERM | Errno::EACCES) => error.context(
            "mounting is not permitted inside (Ubuntu: sysctl kernel.apparmor_restrict_unprivileged_userns=0, or run as root)",
        ),
        _ => error,
    })?;
    let lo = Command::new("ip").args(["link", "set", "lo", "up"]).status();
    if !lo.context("cannot run ip (Debian package iproute2)")?.success() {
        bail!("ip link set lo up failed");
    }
    let program = std::env::current_exe().context("cannot find the running program")?;
    let mut arguments = std::env::args_os();
    let mut inner = Command::new(&program);
    if let Some(name) = arguments.next() {
        inner.arg0(name);
    }
    inner.args(arguments).env(MARK, user_namespace().context("cannot read /proc/self/ns/user")?);
    let mask = *old_mask;
    // SAFETY: sigprocmask is async-signal-safe, and nothing is allocated.
    unsafe { inner.pre_exec(move || Ok(sigprocmask(SigmaskHow::SIG_SETMASK, Some(&mask), None)?)) };
    let inner = inner.spawn().with_context(|| format!("cannot start {} again", program.display()))?;
    let inner = Pid::from_raw(i32::try_from(inner.id()).context("a process id out of range")?);
    supervise(inner, &handled_signals(), |orphan, status| {
        tracing::trace!(%orphan, ?status, "reaped");
    })
}

/// Private mounts, `/proc` of the new pid namespace, and an empty `/run` with the folder of `ip netns`.
fn mounts() -> Result<()> {
    const NONE: Option<&str> = None;
    let hardened = MsFlags::MS_NOSUID | MsFlags::MS_NODEV;
    mount(NONE, "/", NONE, MsFlags::MS_REC | MsFlags::MS_PRIVATE, NONE).context("cannot make the mounts private")?;
    mount(Some("proc"), "/proc", Some("proc"), hardened | MsFlags::MS_NOEXEC, NONE).context("cannot mount /proc")?;
    mount(Some("tmpfs"), "/run", Some("tmpfs"), hardened, Some("mode=755")).context("cannot mount a tmpfs on /run")?;
    let netns = "/run/netns";
    fs::create_dir(netns).context("cannot make /run/netns")?;
    // What the first `ip netns add` would do; done here, two of them at once cannot meet.
    mount(Some(netns), netns, NONE, MsFlags::MS_BIND | MsFlags::MS_REC, NONE).context("cannot bind /run/netns")?;
    mount(NONE, netns, NONE, MsFlags::MS_SHARED | MsFlags::MS_REC, NONE).context("cannot share /run/netns")?;
    Ok(())
}

// ---- both: wait for one child, hand signals on ----

/// Waits until `child` ends and returns its exit code; reaps any other child with a call of `reaped`.
fn supervise(child: Pid, signals: &SigSet, mut reaped: impl FnMut(Pid, WaitStatus)) -> Result<i32> {
    let mut kill_at: Option<Instant> = None;
    loop {
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(Errno::ECHILD) => break,
                Ok(WaitStatus::Exited(pid, code)) if pid == child => return Ok(code),
                Ok(WaitStatus::Signaled(pid, signal, _)) if pid == child => return Ok(128 + signal as i32),
                Ok(status) => {
                    if let Some(pid) = status.pid() {
                        reaped(pid, status);
                    }
                }
                Err(Errno::EINTR) => {}
                Err(error) => return Err(error).context("cannot wait for the process inside"),
            }
        }
        let timeout = kill_at.map(|at| at.saturating_duration_since(Instant::now()));
        match wait_for_signal(signals, timeout)? {
            None => {
                kill(child, Signal::SIGKILL).context("cannot kill the process inside")?;
                kill_at = None;
            }
            Some((Signal::SIGCHLD, _)) => {}
            // A key on the terminal reaches the whole foreground group by itself: handed on, it would count twice.
            Some((_, Origin::Terminal)) => {}
            Some((signal, Origin::Process)) => {
                match kill(child, signal) {
                    Ok(()) | Err(Errno::ESRCH) => {}
                    Err(error) => return Err(error).context("cannot hand a signal on"),
                }
                kill_at = kill_at.or(Some(Instant::now() + GRACE));
            }
        }
    }
}

enum Origin {
    Terminal,
    Process,
}

/// The next blocked signal, or `None` at the timeout.
fn wait_for_signal(signals: &SigSet, timeout: Option<Duration>) -> Result<Option<(Signal, Origin)>> {
    // SAFETY: all-zero is a valid siginfo_t; it is written by the kernel.
    let mut info: libc::siginfo_t = unsafe { std::mem::zeroed() };
    let limit = timeout.unwrap_or(Duration::from_secs(3600));
    let limit = libc::timespec {
        tv_sec: limit.as_secs().try_into().unwrap_or(libc::time_t::MAX),
        tv_nsec: limit.subsec_nanos().into(),
    };
    // SAFETY: the three pointers are to live values of the right types.
    let number = unsafe { libc::sigtimedwait(signals.as_ref(), &mut info, &limit) };
    if number < 0 {
        return match Errno::last() {
            Errno::EAGAIN if timeout.is_some() => Ok(None),
            Errno::EAGAIN | Errno::EINTR => Ok(Some((Signal::SIGCHLD, Origin::Process))),
            error => Err(error).context("cannot wait for signals"),
        };
    }
    let origin = if info.si_code == libc::SI_KERNEL { Origin::Terminal } else { Origin::Process };
    Ok(Some((Signal::try_from(number).context("an unknown signal")?, origin)))
}
