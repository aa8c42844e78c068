//! The inside of a virtual machine: its first process.
//!
//! [`boot`] is called first in `main`. As process 1 it mounts what a Linux system has, loads the modules, starts the same program once
//! more, hands its output on, and ends the machine with it.

// Loading modules and ending the machine are system calls without a safe form.
#![allow(unsafe_code)]

use std::ffi::CString;
use std::fs::{self, File};
use std::io::Write as _;
use std::os::fd::AsRawFd as _;
use std::process::{Command, ExitStatus, Stdio};

use anyhow::{Context as _, Result};
use nix::mount::{MsFlags, mount};

use super::initramfs::MODULE_LIST;
use crate::process::run;

/// Set inside.
pub(super) const MARK: &str = "L2LB_VM";
/// Where lines go that are meant for the outside; the other serial line is the kernel's.
const WORDS: &str = "/dev/ttyS1";

/// Whether this program runs inside a virtual machine of the lab.
pub fn is_inside() -> bool {
    std::env::var_os(MARK).is_some() && fs::exists(format!("/{MODULE_LIST}")).unwrap_or(false)
}

/// Does the work of the first process, if this is it: then it does not return. Otherwise it does nothing.
pub fn boot() {
    if std::process::id() != 1 || std::env::var_os(MARK).is_none() {
        return;
    }
    match set_up().and_then(|()| play()) {
        Ok(status) if status.success() => {}
        Ok(status) => say(&format!("the program inside ended with {status}")),
        Err(error) => say(&format!("the virtual machine could not be set up: {error:#}")),
    }
    // SAFETY: no arguments but a number. The serial line is written through by the kernel before it ends the machine.
    unsafe { libc::reboot(libc::RB_AUTOBOOT) };
    // Not reached; and if it is, the end of process 1 is a panic, which ends the machine too.
    std::process::exit(1)
}

fn set_up() -> Result<()> {
    const NONE: Option<&str> = None;
    for (kind, at) in [("proc", "/proc"), ("sysfs", "/sys"), ("devtmpfs", "/dev"), ("tmpfs", "/run"), ("tmpfs", "/tmp")]
    {
        mount(Some(kind), at, Some(kind), MsFlags::empty(), NONE).with_context(|| format!("cannot mount {at}"))?;
    }
    let list = fs::read_to_string(format!("/{MODULE_LIST}")).context("no list of modules")?;
    for module in list.lines() {
        load(module).with_context(|| format!("cannot load the module {module}"))?;
    }
    run(Command::new("/bin/ip").args(["link", "set", "lo", "up"])).map(drop)
}

fn load(path: &str) -> Result<()> {
    // "max_bonds=0" means something to the bonding module only: without it, it makes a bond that nobody asked for.
    let parameters = if path.ends_with("/bonding.ko") { "max_bonds=0" } else { "" };
    let (file, parameters) = (File::open(path)?, CString::new(parameters)?);
    // SAFETY: the descriptor is open and the string ends in a zero; both outlive the call.
    let result = unsafe { libc::syscall(libc::SYS_finit_module, file.as_raw_fd(), parameters.as_ptr(), 0) };
    if result == 0 { Ok(()) } else { Err(std::io::Error::last_os_error().into()) }
}

fn play() -> Result<ExitStatus> {
    let words = File::options().write(true).open(WORDS).with_context(|| format!("cannot open {WORDS}"))?;
    let errors = words.try_clone().with_context(|| format!("cannot open {WORDS}"))?;
    let program = std::env::current_exe().context("cannot find the running program")?;
    let mut command = Command::new(program);
    command.env("PATH", "/bin").env("HOME", "/root").stdin(Stdio::null()).stdout(words).stderr(errors);
    // Orphans are left: the machine ends with this child.
    command.status().context("cannot start the program")
}

fn say(text: &str) {
    // Before /dev is mounted only the console is there, and if nothing can be written there is nobody to tell.
    let line = File::options().write(true).open(WORDS).or_else(|_| File::options().write(true).open("/dev/console"));
    if let Ok(mut line) = line {
        writeln!(line, "{text}").ok();
    }
}
