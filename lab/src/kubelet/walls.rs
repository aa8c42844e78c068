//! What keeps a container in: its user, capabilities and file system, as the Pod's security context asks. Pure: it writes the
//! script that is run.

use std::collections::BTreeSet;
use std::path::{Path, PathBuf};

use k8s_openapi::api::core::v1::{Container, Pod};

/// What container runtimes leave to a container that says nothing about capabilities.
const DEFAULT_CAPABILITIES: [&str; 14] = [
    "audit_write",
    "chown",
    "dac_override",
    "fowner",
    "fsetid",
    "kill",
    "mknod",
    "net_bind_service",
    "net_raw",
    "setfcap",
    "setgid",
    "setpcap",
    "setuid",
    "sys_chroot",
];
/// The user of an image that runs as nobody in particular.
const NON_ROOT: i64 = 65532;

/// Rights of a container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Rights {
    /// User id.
    pub user: i64,
    /// Group id.
    pub group: i64,
    /// Capabilities in the bounding set, lower case without `cap_`; for uid 0 these are the effective ones.
    pub capabilities: BTreeSet<String>,
    /// Whether executing a file can give more rights.
    pub no_new_privileges: bool,
    /// Whether the root file system is read-only.
    pub read_only: bool,
}

impl Rights {
    /// Reads the security contexts of the Pod and of its container; the container's comes first.
    pub fn of(pod: &Pod, container: &Container) -> Self {
        let outer = pod.spec.as_ref().and_then(|spec| spec.security_context.clone()).unwrap_or_default();
        let inner = container.security_context.clone().unwrap_or_default();
        let non_root = inner.run_as_non_root.or(outer.run_as_non_root).unwrap_or(false);
        let user = inner.run_as_user.or(outer.run_as_user).unwrap_or(if non_root { NON_ROOT } else { 0 });
        let asked = inner.capabilities.unwrap_or_default();
        let plain = |name: &String| name.to_lowercase().trim_start_matches("cap_").to_owned();
        let mut capabilities: BTreeSet<String> = DEFAULT_CAPABILITIES.map(str::to_owned).into();
        for dropped in asked.drop.iter().flatten().map(plain) {
            if dropped == "all" {
                capabilities.clear();
            }
            capabilities.remove(&dropped);
        }
        capabilities.extend(asked.add.iter().flatten().map(plain));
        Self {
            user,
            group: inner.run_as_group.or(outer.run_as_group).unwrap_or(0),
            capabilities,
            no_new_privileges: inner.allow_privilege_escalation == Some(false),
            read_only: inner.read_only_root_filesystem == Some(true),
        }
    }

    /// The same rights where no other uid can be used: root of the lab's user namespace, which has none of the capabilities
    /// that the other user would not have had.
    pub fn as_mapped_root(mut self) -> Self {
        if self.user != 0 {
            self.capabilities.clear();
        }
        self.user = 0;
        self.group = 0;
        self
    }

    /// Arguments of `setpriv`. As container runtimes do since CVE-2022-24769, nothing is inheritable: root has what the
    /// bounding set leaves, others have nothing.
    fn setpriv(&self, change_user: bool) -> Vec<String> {
        let plus: String = self.capabilities.iter().map(|name| format!(",+{name}")).collect();
        let mut arguments = vec![format!("--bounding-set=-all{plus}"), "--inh-caps=-all".to_owned()];
        if change_user {
            arguments.push(format!("--reuid={}", self.user));
            arguments.push(format!("--regid={}", self.group));
            arguments.push("--clear-groups".to_owned());
        }
        if self.no_new_privileges {
            arguments.push("--no-new-privs".to_owned());
        }
        arguments
    }
}

/// A folder or file of the lab that is seen inside the container.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Mount {
    /// Where it is outside.
    pub source: PathBuf,
    /// Where it is inside.
    pub target: String,
    /// Whether it cannot be written.
    pub read_only: bool,
}

/// All that is needed to start a container's program.
#[derive(Clone, Debug)]
pub struct Walls<'a> {
    /// An empty folder for the container's root file system.
    pub root: &'a Path,
    /// The rights.
    pub rights: &'a Rights,
    /// Whether there are other users than root (see [`crate::sandbox::has_uid_range`]).
    pub change_user: bool,
    /// The volumes.
    pub mounts: &'a [Mount],
    /// The program outside.
    pub program: &'a Path,
    /// Its name and place inside: `/<name>`.
    pub name: &'a str,
    /// Its arguments.
    pub arguments: &'a [String],
}

impl Walls<'_> {
    /// The shell script to run in a mount namespace of its own. It ends as the program.
    ///
    /// The root is a tmpfs with the machine's `/usr` and `/etc` (the program's libraries) read-only, a `/sys` of the network
    /// namespace, and the volumes; with a volume in `/etc`, only a copy of the files there that libraries read. Nothing of the machine's disk is written, and nothing else of it is seen.
    pub fn script(&self) -> String {
        let root = quote(&self.root.display().to_string());
        let mut lines = vec![
            "set -eu".to_owned(),
            format!("mount -t tmpfs -o mode=755 container {root}"),
            format!("cd {root}"),
            "mkdir usr etc proc sys dev tmp run var".to_owned(),
            "chmod 1777 tmp; ln -s ../run var/run; ln -s /proc/self/fd dev/fd".to_owned(),
            "mount --bind -o ro /usr usr".to_owned(),
            if self.mounts.iter().any(|mount| mount.target.starts_with("/etc/")) {
                // A place for a volume can be made only in a folder that can be written.
                "for f in group ld.so.cache nsswitch.conf passwd ssl; do [ ! -e /etc/$f ] || cp -rL /etc/$f etc/; done"
                    .to_owned()
            } else {
                "mount --bind -o ro /etc etc".to_owned()
            },
            "for d in bin sbin lib lib32 lib64 libx32; do".to_owned(),
            "  if [ -L /$d ]; then ln -s \"$(readlink /$d)\" $d".to_owned(),
            "  elif [ -d /$d ]; then mkdir $d; mount --bind -o ro /$d $d; fi".to_owned(),
            "done".to_owned(),
            "mount --rbind /proc proc".to_owned(),
            "mount -t sysfs -o ro sysfs sys || mount --rbind /sys sys".to_owned(),
            "for d in null zero full random urandom; do : > dev/$d; mount --bind /dev/$d dev/$d; done".to_owned(),
        ];
        let program = format!("./{}", self.name);
        lines.push(format!(
            ": > {0}; mount --bind -o ro {1} {0}",
            quote(&program),
            quote(&self.program.display().to_string())
        ));
        for mount in self.mounts {
            let target = quote(&format!("./{}", mount.target.trim_start_matches('/')));
            let source = quote(&mount.source.display().to_string());
            let options = if mount.read_only { " -o ro" } else { "" };
            lines.push(format!("mkdir -p {target}; mount --bind{options} {source} {target}"));
        }
        if self.rights.read_only {
            // The mount, not the file system: that would repeat options of it which a user namespace may not give.
            lines.push("mount -o remount,bind,ro .".to_owned());
        }
        let words: Vec<String> = self.rights.setpriv(self.change_user).into_iter().chain(["--".to_owned()]).collect();
        let command: Vec<String> =
            std::iter::once(format!("/{}", self.name)).chain(self.arguments.iter().cloned()).collect();
        let quoted = |words: &[String]| words.iter().map(|word| quote(word)).collect::<Vec<_>>().join(" ");
        lines.push(format!("exec chroot . setpriv {} {}", quoted(&words), quoted(&command)));
        lines.join("\n")
    }
}

/// A word as the shell reads it back unchanged.
fn quote(word: &str) -> String {
    format!("'{}'", word.replace('\'', r"'\''"))
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn rights(pod_context: serde_json::Value, context: serde_json::Value) -> Rights {
        let pod: Pod = serde_json::from_value(json!({
            "spec": {"securityContext": pod_context, "containers": [{"name": "c", "securityContext": context}]},
        }))
        .unwrap();
        Rights::of(&pod, &pod.spec.as_ref().unwrap().containers[0])
    }

    #[test]
    fn a_speaker_has_one_capability() {
        let rights = rights(
            json!(null),
            json!({"runAsUser": 0, "allowPrivilegeEscalation": false, "readOnlyRootFilesystem": true,
                   "capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}}),
        );
        assert_eq!(rights.capabilities, BTreeSet::from(["net_raw".to_owned()]));
        assert!(rights.read_only && rights.no_new_privileges && rights.user == 0);
        let expected = ["--bounding-set=-all,+net_raw", "--inh-caps=-all", "--no-new-privs"];
        assert_eq!(rights.setpriv(false), expected);
    }

    #[test]
    fn the_container_overrides_the_pod() {
        let pod = json!({"runAsUser": 1000, "runAsGroup": 1000, "runAsNonRoot": true});
        let both = rights(pod.clone(), json!({"runAsUser": 7}));
        assert_eq!((both.user, both.group), (7, 1000));
        assert_eq!(rights(json!({"runAsNonRoot": true}), json!(null)).user, NON_ROOT);
        assert_eq!(rights(json!(null), json!(null)).capabilities.len(), DEFAULT_CAPABILITIES.len());
    }

    #[test]
    fn mapped_root_in_place_of_another_user_has_no_capabilities() {
        let other = rights(json!({"runAsUser": 1000}), json!(null)).as_mapped_root();
        assert_eq!((other.user, other.capabilities.len()), (0, 0));
        let root = rights(json!({"runAsUser": 0}), json!({"capabilities": {"drop": ["ALL"], "add": ["NET_RAW"]}}));
        assert_eq!(root.clone().as_mapped_root().capabilities, root.capabilities);
    }

    #[test]
    fn words_are_quoted_for_the_shell() {
        assert_eq!(quote("it's $HOME"), r"'it'\''s $HOME'");
    }
}
