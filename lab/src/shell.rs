//! `lab up`: the cluster left up with a shell in it, and the orders that the shell can give to the lab.

use std::fs;
use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};

use anyhow::{Context as _, Result, bail};

use crate::cluster::Cluster;
use crate::demo::gateway_table;

/// Names the socket on which the lab takes orders.
pub const SOCKET: &str = "L2LB_LAB_SOCKET";

/// What the shell says first.
pub const BANNER: &str = "\
You are inside the lab. Everything is gone when you leave this shell (exit).
  kubectl, helm             talk to this cluster
  client COMMAND            runs a command on the client, 192.0.2.3:   client curl http://192.0.2.5/
  on NODE COMMAND           runs a command on a node:                  on node1 tcpdump -eni eth0 arp
  logs NAME                 the end of the logs of Pods so named:      logs l2lb-speaker
  lab power-off NODE        cuts a node's power; lab power-on NODE brings it back
  lab unplug NODE           pulls a node's LAN cable; lab plug NODE puts it back
  lab gateway               the gateway's ARP table with ports
";

/// The commands of the banner, as small scripts on the PATH: so they work in any shell and in scripts.
const COMMANDS: [(&str, &str); 4] = [
    ("client", r#"exec nsenter --net=/run/netns/client -- "$@""#),
    ("on", r#"n=$1; shift; exec nsenter --net="/run/netns/$n" -- "$@""#),
    ("logs", r#"for f in "$L2LB_LAB_LOGS"/pods/*"$1"*.log; do echo "--- $f"; tail -n "${2:-20}" "$f"; done"#),
    ("lab", r#"exec "$L2LB_LAB" order "$@""#),
];

/// Runs `words`, or an interactive shell when there are none, with kubectl set up, and returns how it ended.
///
/// # Errors
/// When it cannot be started.
pub fn run(cluster: Cluster, words: &[String]) -> Result<ExitStatus> {
    let state = cluster.control_plane().state().to_owned();
    let (logs, socket, settings) = (cluster.control_plane().logs(), state.join("orders"), state.join("bashrc"));
    let environment = cluster.control_plane().environment();
    let commands = write_commands(&state.join("bin"))?;
    let own = [commands.as_path(), cluster.control_plane().kit().folder()];
    let path = std::env::var_os("PATH").unwrap_or_default();
    let path = std::env::join_paths(own.into_iter().map(Path::to_owned).chain(std::env::split_paths(&path)))
        .context("the folder of the Kubernetes programs has a colon in its name")?;
    // After the user's own settings, so that the lab's PATH and prompt win.
    let text = "[ -f ~/.bashrc ] && . ~/.bashrc\nPATH=$L2LB_LAB_PATH\nPS1='lab \\w \\$ '\n";
    fs::write(&settings, text).context("cannot write the shell's settings")?;
    let listener = UnixListener::bind(&socket).context("cannot listen for orders")?;
    let cluster = Arc::new(Mutex::new(cluster));
    let ordered = cluster.clone();
    std::thread::Builder::new().name("orders".to_owned()).spawn(move || serve(&listener, &ordered))?;
    let mut command = match words.split_first() {
        Some((program, arguments)) => {
            let mut command = Command::new(program);
            command.args(arguments);
            command
        }
        None => {
            let mut command = Command::new("bash");
            command.arg("--rcfile").arg(&settings).arg("-i");
            command
        }
    };
    let status = command
        .envs(environment)
        .env("PATH", &path)
        .env("L2LB_LAB_PATH", &path)
        .env(SOCKET, &socket)
        .env("L2LB_LAB_LOGS", logs)
        .env("L2LB_LAB", std::env::current_exe().context("cannot find the running program")?)
        .status()
        .with_context(|| format!("cannot start {}", command.get_program().display()))?;
    // The thread that takes orders keeps the cluster until this process ends; the sandbox ends with it, and all that is in it.
    Ok(status)
}

/// Gives an order to the lab that this shell is in, and prints its answer.
///
/// # Errors
/// When there is no lab, or it refused.
pub fn order(words: &[String]) -> Result<()> {
    let socket = std::env::var_os(SOCKET).context("this is not a shell of a lab: start one with `lab up`")?;
    let mut stream = UnixStream::connect(&socket).context("the lab does not answer")?;
    writeln!(stream, "{}", words.join(" ")).context("the lab does not listen")?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).context("the lab does not answer")?;
    match answer.strip_prefix("error: ") {
        Some(reason) => bail!("{}", reason.trim_end()),
        None => {
            print!("{answer}");
            Ok(())
        }
    }
}

fn serve(listener: &UnixListener, cluster: &Mutex<Cluster>) {
    for stream in listener.incoming() {
        let answered = stream.map_err(anyhow::Error::from).and_then(|mut stream| {
            let mut line = String::new();
            BufReader::new(&stream).read_line(&mut line)?;
            let words: Vec<&str> = line.split_whitespace().collect();
            let answer = obey(&mut lock(cluster), &words).unwrap_or_else(|error| format!("error: {error:#}\n"));
            Ok(stream.write_all(answer.as_bytes())?)
        });
        if let Err(error) = answered {
            tracing::warn!(%error, "an order was not answered");
        }
    }
}

fn obey(cluster: &mut Cluster, words: &[&str]) -> Result<String> {
    match words {
        ["power-off", node] => cluster.power_off(node).map(|()| format!("{node} is off\n")),
        ["power-on", node] => cluster.power_on(node).map(|()| format!("{node} is Ready\n")),
        ["unplug", node] => cluster.set_link(node, false).map(|()| format!("{node} has no LAN\n")),
        ["plug", node] => cluster.set_link(node, true).map(|()| format!("{node} is on the LAN\n")),
        ["gateway"] if cluster.lan().gateway().is_some() => Ok(gateway_table(cluster.lan())),
        ["gateway"] => bail!("a bridge has no gateway that stores ports: start with --lan switch"),
        _ => bail!("there are: power-off NODE, power-on NODE, unplug NODE, plug NODE, gateway"),
    }
}

fn lock(cluster: &Mutex<Cluster>) -> std::sync::MutexGuard<'_, Cluster> {
    cluster.lock().unwrap_or_else(PoisonError::into_inner)
}

fn write_commands(folder: &Path) -> Result<PathBuf> {
    use std::os::unix::fs::PermissionsExt as _;
    let write = || -> std::io::Result<()> {
        fs::create_dir_all(folder)?;
        for (name, text) in COMMANDS {
            fs::write(folder.join(name), format!("#!/bin/bash\n{text}\n"))?;
            fs::set_permissions(folder.join(name), fs::Permissions::from_mode(0o755))?;
        }
        Ok(())
    };
    write().with_context(|| format!("cannot write commands to {}", folder.display()))?;
    Ok(folder.to_owned())
}
