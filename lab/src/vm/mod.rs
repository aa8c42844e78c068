//! A small virtual machine with a kernel of its own, for what the machine's own kernel lacks (bonds, VLANs) and for being paused as a
//! whole. QEMU without KVM: it needs no device and no right.
//!
//! The kernel is Debian's cloud kernel ([`Kernel::get`]), the disk is an initramfs ([`Initramfs`]) that holds the running program as
//! `/init`, the programs it is given, their libraries, and a few modules. [`guest`] is the inside. What the program prints inside comes
//! out line by line ([`Vm::next_line`]); the kernel's own words go to a log.
//!
//! It has no network device, or one that leads to another virtual machine and nowhere else ([`Link`]). QEMU runs inside the
//! lab's [`crate::sandbox`], and ends with it.

pub mod guest;
mod initramfs;

use std::ffi::OsString;
use std::fs;
use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::mpsc::{Receiver, RecvTimeoutError, channel};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};

pub use self::initramfs::Initramfs;
use crate::process::{tail, wait_for};

const QEMU: &str = "qemu-system-x86_64";
/// `prepare.sh` ends so when the machine cannot have a virtual machine.
const CANNOT: i32 = 3;
/// QEMU makes its monitor's socket at once.
const MONITOR_PATIENCE: Duration = Duration::from_secs(30);
const MONITOR_LOOK: Duration = Duration::from_millis(20);

/// A kernel and its modules.
#[derive(Clone, Debug)]
pub struct Kernel {
    folder: PathBuf,
}

impl Kernel {
    /// Gets QEMU and the kernel, from the cache if they are there. To be called outside of the sandbox first, where there is a
    /// network. `Err` inside: why this machine cannot have them.
    ///
    /// # Errors
    /// When they could not be fetched although the machine should be able to.
    pub fn get() -> Result<Result<Self, String>> {
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("vm/prepare.sh");
        let output = Command::new("bash").arg(&script).stdin(Stdio::null()).output();
        let output = output.with_context(|| format!("cannot run {}", script.display()))?;
        let words = String::from_utf8_lossy(&output.stderr).trim().to_owned();
        if output.status.code() == Some(CANNOT) {
            return Ok(Err(words));
        }
        ensure!(output.status.success(), "{} failed ({}): {words}", script.display(), output.status);
        let stdout = String::from_utf8_lossy(&output.stdout);
        let folder = stdout.lines().last().context("lab/vm/prepare.sh printed no folder")?;
        Ok(Ok(Self { folder: PathBuf::from(folder) }))
    }

    fn image(&self) -> PathBuf {
        self.folder.join("vmlinuz")
    }

    fn modules(&self) -> PathBuf {
        self.folder.join("modules")
    }
}

/// How a virtual machine sees time.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Clock {
    /// As everybody does.
    Real,
    /// By the instructions that it executes, and it skips what it would sleep: it does not notice how busy this machine is. Of no use
    /// together with anything outside of it.
    Instructions,
}

/// A cable to another virtual machine: a socket in the file system, of which one end listens.
#[derive(Clone, Debug)]
pub struct Link {
    /// The socket.
    pub path: PathBuf,
    /// Whether this end listens. It has to be started first.
    pub listens: bool,
    /// The MAC address of the NIC.
    pub mac: String,
}

/// What a virtual machine is made of.
#[derive(Clone, Debug)]
pub struct Machine<'a> {
    /// For files and messages.
    pub name: &'a str,
    /// The kernel.
    pub kernel: &'a Kernel,
    /// The initramfs, as [`Initramfs::write`] left it.
    pub initramfs: &'a Path,
    /// Where its files go. The caller takes it away.
    pub folder: &'a Path,
    /// What `/init` finds in its environment; no spaces.
    pub environment: &'a [(&'a str, &'a str)],
    /// Its clock.
    pub clock: Clock,
    /// Its network, if any.
    pub link: Option<Link>,
}

/// A running virtual machine. Dropping it kills it.
#[derive(Debug)]
pub struct Vm {
    name: String,
    child: Child,
    lines: Receiver<String>,
    link: Option<PathBuf>,
    monitor: PathBuf,
    log: PathBuf,
}

impl Vm {
    /// Starts it.
    ///
    /// # Errors
    /// When QEMU cannot be started. What goes wrong inside is seen in its lines.
    pub fn start(machine: &Machine<'_>) -> Result<Self> {
        let file = |suffix: &str| machine.folder.join(format!("{}.{suffix}", machine.name));
        let (monitor, log) = (file("monitor"), file("log"));
        // Standard error is where QEMU says what it dislikes.
        let errors = fs::File::create(file("qemu")).context("cannot make QEMU's log")?;
        // Emulated processors need no protection against speculation, and are several times slower with it.
        let mut words =
            "console=ttyS0 loglevel=4 panic=-1 oops=panic mitigations=off no_timer_check rcupdate.rcu_expedited=1"
                .to_owned();
        for (key, value) in machine.environment.iter().chain(&[(guest::MARK, "1")]) {
            ensure!(!value.contains(char::is_whitespace), "{key}={value} does not fit a kernel's command line");
            words.push_str(&format!(" {key}={value}"));
        }
        let mut arguments: Vec<OsString> = [
            "-machine",
            "pc,accel=tcg",
            "-cpu",
            "qemu64,+rdrand",
            "-smp",
            "1",
            "-m",
            "512",
            "-nodefaults",
            "-display",
            "none",
            "-no-reboot",
            "-chardev",
            "stdio,id=words,signal=off",
        ]
        .map(OsString::from)
        .to_vec();
        let mut add = |option: &str, value: OsString| arguments.extend([OsString::from(option), value]);
        add("-kernel", machine.kernel.image().into());
        add("-initrd", machine.initramfs.into());
        add("-append", words.into());
        add("-serial", joined("file:", &log, ""));
        add("-serial", "chardev:words".into());
        add("-monitor", joined("unix:", &monitor, ",server=on,wait=off"));
        match &machine.link {
            None => add("-nic", "none".into()),
            Some(link) => {
                let server = if link.listens { "on" } else { "off" };
                let prefix = format!("stream,id=lan,server={server},addr.type=unix,addr.path=");
                add("-netdev", joined(&prefix, &link.path, ""));
                add("-device", format!("virtio-net-pci,netdev=lan,mac={},romfile=", link.mac).into());
            }
        }
        if machine.clock == Clock::Instructions {
            // Each takes 2^2 ns.
            add("-icount", "shift=2,sleep=off".into());
            add("-rtc", "clock=vm".into());
        }
        let mut command = Command::new(QEMU);
        command.args(arguments).stdin(Stdio::null()).stdout(Stdio::piped()).stderr(errors);
        let mut child = command.spawn().with_context(|| format!("cannot start {QEMU}"))?;
        let output = child.stdout.take().context("no pipe from QEMU")?;
        let (sender, lines) = channel();
        std::thread::Builder::new()
            .name(format!("vm-{}", machine.name))
            .spawn(move || {
                for line in BufReader::new(output).split(b'\n').map_while(Result::ok) {
                    if sender.send(String::from_utf8_lossy(&line).trim_end().to_owned()).is_err() {
                        return;
                    }
                }
            })
            .context("cannot start a thread")?;
        let link = machine.link.as_ref().map(|link| link.path.clone());
        Ok(Self { name: machine.name.to_owned(), child, lines, link, monitor, log })
    }

    /// The next line that the program inside prints; `None` at its end.
    ///
    /// # Errors
    /// At the deadline, with the kernel's last words.
    pub fn next_line(&mut self, deadline: Instant) -> Result<Option<String>> {
        match self.lines.recv_timeout(deadline.saturating_duration_since(Instant::now())) {
            Ok(line) => Ok(Some(line)),
            Err(RecvTimeoutError::Disconnected) => Ok(None),
            Err(RecvTimeoutError::Timeout) => {
                bail!("virtual machine {} said nothing in time. {}", self.name, self.words())
            }
        }
    }

    /// Waits until the other end of its cable can be plugged in.
    ///
    /// # Errors
    /// When it ends, or has no cable.
    pub fn wait_until_linked(&mut self) -> Result<()> {
        let path = self.link.clone().with_context(|| format!("virtual machine {} has no network", self.name))?;
        wait_for("the cable of a virtual machine", MONITOR_PATIENCE, MONITOR_LOOK, || {
            if let Some(status) = self.child.try_wait().context("QEMU's state")? {
                bail!("QEMU ended ({status}). {}", self.words());
            }
            Ok(if path.exists() { Ok(()) } else { Err("it is not there".to_owned()) })
        })
    }

    /// What it has said and nobody has read yet, and the kernel's last words.
    pub fn said(&mut self) -> String {
        let lines: Vec<String> = self.lines.try_iter().collect();
        format!("Virtual machine {} said:\n{}\n{}", self.name, lines.join("\n"), self.words())
    }

    /// The kernel's and QEMU's last words.
    pub fn words(&self) -> String {
        let (log, qemu) = (tail(&self.log, 40), tail(&self.log.with_extension("qemu"), 10));
        format!("The end of the kernel's log:\n{log}\nQEMU: {qemu}")
    }

    /// Stops the whole machine, clocks and all.
    pub fn pause(&self) -> Result<()> {
        self.order("stop")
    }

    /// Lets it go on.
    pub fn resume(&self) -> Result<()> {
        self.order("cont")
    }

    /// Gives QEMU's monitor an order, and waits until it is carried out.
    fn order(&self, order: &str) -> Result<()> {
        let mut stream = wait_for("QEMU's monitor", MONITOR_PATIENCE, MONITOR_LOOK, || {
            Ok(UnixStream::connect(&self.monitor).map_err(|error| error.to_string()))
        })?;
        stream.set_read_timeout(Some(MONITOR_PATIENCE)).context("QEMU's monitor")?;
        prompt(&mut stream)?;
        stream.write_all(format!("{order}\n").as_bytes()).context("QEMU's monitor")?;
        prompt(&mut stream)
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        let gone = self.child.kill().and_then(|()| self.child.wait());
        if let Err(error) = gone {
            tracing::warn!(machine = self.name, %error, "a virtual machine was not killed");
        }
    }
}

/// Reads up to the monitor's prompt.
fn prompt(stream: &mut UnixStream) -> Result<()> {
    let mut seen = Vec::new();
    let mut byte = [0];
    while !seen.ends_with(b"(qemu) ") {
        ensure!(stream.read(&mut byte).context("QEMU's monitor does not answer")? == 1, "QEMU's monitor is closed");
        seen.push(byte[0]);
    }
    Ok(())
}

fn joined(before: &str, path: &Path, after: &str) -> OsString {
    let mut text = OsString::from(before);
    text.push(path);
    text.push(after);
    text
}
