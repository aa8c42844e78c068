//! What the lab needs of the machine, and how to get it.

use std::env;
use std::path::Path;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

/// A program and the Debian or Ubuntu package that has it.
const TOOLS: [(&str, &str); 12] = [
    ("bash", "bash"),
    ("chroot", "coreutils"),
    ("conntrack", "conntrack"),
    ("curl", "curl"),
    ("ip", "iproute2"),
    ("iptables", "iptables"),
    ("mount", "mount"),
    ("nsenter", "util-linux"),
    ("openssl", "openssl"),
    ("setpriv", "util-linux"),
    ("sysctl", "procps"),
    ("unshare", "util-linux"),
];

/// What this machine lacks.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Missing {
    /// Programs, with the package of each.
    pub tools: Vec<(&'static str, &'static str)>,
    /// Other things, as sentences.
    pub others: Vec<String>,
}

impl Missing {
    /// Whether nothing is missing.
    pub fn is_empty(&self) -> bool {
        self.tools.is_empty() && self.others.is_empty()
    }

    /// The packages to install, each once.
    pub fn packages(&self) -> Vec<&'static str> {
        let mut packages: Vec<_> = self.tools.iter().map(|(_, package)| *package).collect();
        packages.sort_unstable();
        packages.dedup();
        packages
    }
}

impl std::fmt::Display for Missing {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        for (tool, package) in &self.tools {
            writeln!(f, "  the program {tool} (Debian package {package})")?;
        }
        for other in &self.others {
            writeln!(f, "  {other}")?;
        }
        if !self.tools.is_empty() {
            writeln!(f, "install with: apt-get install {}", self.packages().join(" "))?;
        }
        Ok(())
    }
}

fn is_found(tool: &str) -> bool {
    let path = env::var_os("PATH").unwrap_or_default();
    env::split_paths(&path).chain(["/usr/sbin".into(), "/sbin".into()]).any(|folder| folder.join(tool).is_file())
}

/// Looks for everything that the lab needs.
pub fn check() -> Missing {
    let mut missing = Missing::default();
    missing.tools.extend(TOOLS.iter().filter(|(tool, _)| !is_found(tool)));
    if env::var_os(crate::kit::KIT_DIR).is_none() && !kit_is_built() && !is_found("go") {
        missing.others.push(
            "Go 1.26 or later, with which the lab builds Kubernetes once (https://go.dev/dl), or a folder with the programs \
             named in L2LB_KIT_DIR"
                .to_owned(),
        );
    }
    for file in ["/proc/self/ns/user", "/proc/self/ns/net"] {
        if !Path::new(file).exists() {
            missing.others.push(format!("a kernel with namespaces ({file} is not there)"));
        }
    }
    missing
}

/// Whether the cache already holds the programs, so that no Go is needed.
fn kit_is_built() -> bool {
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("kit/build.sh");
    let output = Command::new("bash").arg(script).arg("--path").output();
    output.is_ok_and(|output| {
        let folder = String::from_utf8_lossy(&output.stdout).trim().to_owned();
        crate::kit::Kit::in_folder(Path::new(&folder)).is_ok()
    })
}

/// Fails with a list of what is missing.
pub fn require() -> Result<()> {
    let missing = check();
    if missing.is_empty() {
        return Ok(());
    }
    bail!("the lab needs what this machine does not have:\n{missing}")
}

/// Installs the missing Debian packages, when there are any. Needs root.
pub fn install() -> Result<()> {
    let packages = check().packages();
    if packages.is_empty() {
        return Ok(());
    }
    if !nix::unistd::geteuid().is_root() {
        bail!("only root can install packages: sudo apt-get install {}", packages.join(" "));
    }
    if !is_found("apt-get") {
        bail!(
            "there is no apt-get here; install in your system's way what Debian has in these packages: {}",
            packages.join(" ")
        );
    }
    let script = Path::new(env!("CARGO_MANIFEST_DIR")).join("../scripts/install.sh");
    let status = Command::new("bash").arg(&script).args(&packages).status().context("cannot run bash")?;
    if !status.success() {
        bail!("{} failed ({status})", script.display());
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_missing_comes_with_its_package() {
        let missing = Missing {
            tools: vec![("setpriv", "util-linux"), ("ip", "iproute2"), ("unshare", "util-linux")],
            others: vec!["a kernel".to_owned()],
        };
        let text = missing.to_string();
        assert!(text.contains("setpriv (Debian package util-linux)") && text.contains("a kernel"), "{text}");
        assert!(text.contains("apt-get install iproute2 util-linux\n"), "{text}");
    }
}
