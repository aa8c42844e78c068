//! Named network namespaces, as `ip netns` makes them.

use std::ffi::OsStr;
use std::fs::{self, File};
use std::path::PathBuf;
use std::process::Command;

use anyhow::{Context, Result, bail};
use nix::sched::{CloneFlags, setns};

/// A named network namespace. It lives until [`Netns::delete`], not until the value is dropped: a value is a name.
#[derive(Clone, Debug, PartialEq, Eq, Hash)]
pub struct Netns {
    name: String,
}

impl Netns {
    /// Makes a namespace with `lo` up.
    ///
    /// # Errors
    /// When the name is taken, or outside [`crate::sandbox`].
    pub fn create(name: &str) -> Result<Self> {
        if !crate::sandbox::is_inside() {
            bail!("network namespace {name} may be made only inside the lab's sandbox, which was not entered");
        }
        run_tool(Command::new("ip").args(["netns", "add", name]))?;
        let netns = Self { name: name.to_owned() };
        netns.ip(&["link", "set", "lo", "up"])?;
        Ok(netns)
    }

    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Its handle, `/run/netns/<name>`.
    pub fn path(&self) -> PathBuf {
        PathBuf::from("/run/netns").join(&self.name)
    }

    /// Takes the name and its handle away. The namespace and its interfaces go when no process is left in it.
    pub fn delete(self) -> Result<()> {
        run_tool(Command::new("ip").args(["netns", "delete", &self.name])).map(drop)
    }

    /// Takes away a namespace of this name, if there is one.
    pub(crate) fn delete_left_over(name: &str) -> Result<()> {
        let netns = Self { name: name.to_owned() };
        if netns.path().exists() { netns.delete() } else { Ok(()) }
    }

    /// Runs `ip` on this namespace and returns what it printed.
    ///
    /// # Errors
    /// When it fails, with the arguments and what it wrote to stderr.
    pub fn ip(&self, args: &[&str]) -> Result<String> {
        run_tool(Command::new("ip").args(["-n", &self.name]).args(args))
    }

    /// A command that runs inside. Through `nsenter` and not `ip netns exec`, which would remount `/sys`.
    pub fn command(&self, program: impl AsRef<OsStr>) -> Command {
        let mut command = Command::new("nsenter");
        let mut net = std::ffi::OsString::from("--net=");
        net.push(self.path());
        command.arg(net).arg("--").arg(program);
        command
    }

    /// Runs `f` on a new thread that is inside, and returns its value. Sockets that it opens stay in this namespace
    /// wherever they are used later. A panic of `f` goes on in the caller.
    pub fn run<T: Send>(&self, f: impl FnOnce() -> T + Send) -> Result<T> {
        let path = self.path();
        let handle = File::open(&path).with_context(|| format!("cannot open network namespace {}", path.display()))?;
        std::thread::scope(|scope| {
            let thread = scope.spawn(move || {
                setns(handle, CloneFlags::CLONE_NEWNET)
                    .with_context(|| format!("cannot enter network namespace {}", path.display()))?;
                Ok(f())
            });
            thread.join().unwrap_or_else(|panic| std::panic::resume_unwind(panic))
        })
    }

    /// Sets a sysctl of this namespace, such as `net.ipv4.ip_forward`. A `/` stands for a dot inside a name.
    pub fn sysctl(&self, key: &str, value: &str) -> Result<()> {
        let swapped: String = key
            .chars()
            .map(|c| {
                if c == '.' {
                    '/'
                } else if c == '/' {
                    '.'
                } else {
                    c
                }
            })
            .collect();
        let path = PathBuf::from("/proc/sys").join(swapped);
        self.run(|| fs::write(&path, value))?
            .with_context(|| format!("cannot set {key}={value} in network namespace {}", self.name))
    }
}

/// Runs a short command to its end and returns its stdout.
fn run_tool(command: &mut Command) -> Result<String> {
    let output = command.output().with_context(|| format!("cannot run {}", command.get_program().display()))?;
    if !output.status.success() {
        let args: Vec<_> = command.get_args().map(|arg| arg.to_string_lossy()).collect();
        let program = command.get_program().display();
        let stderr = String::from_utf8_lossy(&output.stderr);
        bail!("{program} {} failed ({}): {}", args.join(" "), output.status, stderr.trim());
    }
    Ok(String::from_utf8_lossy(&output.stdout).into_owned())
}
