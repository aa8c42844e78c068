//! The programs that the lab runs, built or found by `lab/kit/build.sh`, and the start of every program that uses the lab.

use std::env;
use std::ffi::{OsStr, OsString};
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use anyhow::{Context as _, Result, bail};

use crate::{preflight, sandbox};

/// Names the folder with the programs; also read by `build.sh`.
pub const KIT_DIR: &str = "L2LB_KIT_DIR";
const PROGRAMS: [&str; 6] = ["etcd", "kube-apiserver", "kube-controller-manager", "kube-proxy", "kubectl", "helm"];
/// Where system programs are that an ordinary user's PATH may not name.
const SYSTEM_FOLDERS: [&str; 4] = ["/usr/sbin", "/sbin", "/usr/bin", "/bin"];

/// The folder with the programs of the control plane, kubectl and helm.
#[derive(Clone, Debug)]
pub struct Kit {
    folder: PathBuf,
}

impl Kit {
    /// Uses the programs in `folder`.
    ///
    /// # Errors
    /// When one is missing.
    pub fn in_folder(folder: &Path) -> Result<Self> {
        for program in PROGRAMS {
            if !folder.join(program).is_file() {
                bail!("{} holds no program {program}: it has to hold {}", folder.display(), PROGRAMS.join(", "));
            }
        }
        Ok(Self { folder: folder.to_owned() })
    }

    /// Uses the folder that `L2LB_KIT_DIR` names, or builds what is missing from the cache (minutes the first time, with the
    /// compiler's words on stderr).
    ///
    /// # Errors
    /// When Go is missing or a build fails.
    pub fn build() -> Result<Self> {
        if let Some(folder) = env::var_os(KIT_DIR) {
            return Self::in_folder(Path::new(&folder));
        }
        let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kit/build.sh");
        let output = Command::new("bash")
            .arg(&script)
            .stdin(Stdio::null())
            .stderr(Stdio::inherit())
            .output()
            .with_context(|| format!("cannot run {}", script.display()))?;
        let stdout = String::from_utf8_lossy(&output.stdout);
        match stdout.lines().last() {
            Some(folder) if output.status.success() => Self::in_folder(Path::new(folder)),
            _ => bail!("{} failed ({}): the Kubernetes programs are not there", script.display(), output.status),
        }
    }

    /// The path of one of the programs.
    pub fn program(&self, name: &str) -> PathBuf {
        self.folder.join(name)
    }

    /// The folder.
    pub fn folder(&self) -> &Path {
        &self.folder
    }
}

/// The first call in `main` of a program that brings a cluster up, before any thread: checks that the machine has what the
/// lab needs, builds the Kubernetes programs (out here, where there is a network), and goes on inside the sandbox.
///
/// # Errors
/// When something is missing, with what to install.
pub fn enter(kit_folder: Option<&Path>) -> Result<Kit> {
    if !sandbox::is_inside() {
        let path = search_path();
        if env::var_os("PATH").as_ref() != Some(&path) {
            return Err(start_again(&[("PATH", path.as_os_str())]));
        }
        preflight::require()?;
        let kit = kit_folder.map_or_else(Kit::build, Kit::in_folder)?;
        let folder = kit.folder().canonicalize().context("the folder of the Kubernetes programs")?;
        if env::var_os(KIT_DIR).as_deref() != Some(folder.as_os_str()) {
            return Err(start_again(&[(KIT_DIR, folder.as_os_str())]));
        }
        sandbox::enter()?;
    }
    Kit::build()
}

/// Replaces this process by the same program with other variables (setting them in place is not safe). Returns only on failure.
fn start_again(variables: &[(&str, &OsStr)]) -> anyhow::Error {
    match env::current_exe() {
        Ok(program) => {
            let mut arguments = env::args_os();
            let mut command = Command::new(&program);
            if let Some(name) = arguments.next() {
                command.arg0(name);
            }
            let error = command.args(arguments).envs(variables.iter().copied()).exec();
            anyhow::Error::new(error).context(format!("cannot start {} again", program.display()))
        }
        Err(error) => anyhow::Error::new(error).context("cannot find the running program"),
    }
}

/// PATH with the folders of system programs (`ip`, `iptables`) at its end.
fn search_path() -> OsString {
    let given = env::var_os("PATH").unwrap_or_default();
    let mut folders: Vec<PathBuf> = env::split_paths(&given).collect();
    for folder in SYSTEM_FOLDERS {
        if !folders.iter().any(|given| given == Path::new(folder)) {
            folders.push(folder.into());
        }
    }
    // It can fail only for a folder with a colon in its name, and all of these came out of such a list.
    env::join_paths(folders).unwrap_or(given)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_folder_without_the_programs_is_named() {
        let error = Kit::in_folder(Path::new("/nowhere")).unwrap_err().to_string();
        assert!(error.contains("/nowhere") && error.contains("etcd"), "{error}");
    }
}
