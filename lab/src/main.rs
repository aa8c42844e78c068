//! The lab as a program: `lab demo`, `lab up`, `lab check`.

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use clap::{Args, Parser, Subcommand, ValueEnum};
use lab::bench::{self, Event, Plan};
use lab::cluster::{Cluster, Options};
use lab::lan::{LanKind, SwitchOptions};
use lab::screen::Screen;
use lab::{demo, kit, preflight, shell};
use tracing_subscriber::EnvFilter;

/// A LAN, a Kubernetes cluster and l2lb in network namespaces of this machine. Nothing outside them is touched, and nothing
/// is left behind.
#[derive(Parser)]
#[command(name = "lab", version)]
struct Cli {
    #[command(subcommand)]
    command: Action,
}

#[derive(Subcommand)]
enum Action {
    /// Show it all: install, a Service with an address, the power cut of its node. Exit code 1 when something promised did not happen.
    Demo {
        #[command(flatten)]
        common: Common,
    },
    /// Bring the cluster up and stay in a shell in it, or run a command in it and end with its exit code.
    Up {
        #[command(flatten)]
        common: Common,
        /// Only Kubernetes: do not install l2lb and the examples.
        #[arg(long)]
        bare: bool,
        /// The command, after `--`.
        #[arg(last = true)]
        words: Vec<String>,
    },
    /// Measure what a client feels of failovers and moves, and print a table. Exit code 1 when something could not be measured.
    BenchFailover {
        #[command(flatten)]
        common: Common,
        /// How often each event is played.
        #[arg(long, default_value_t = 30)]
        runs: u32,
        /// How often those that take half a minute or more: paused, partitioned.
        #[arg(long, default_value_t = 3)]
        slow_runs: u32,
        /// Which events, with commas between them. Default: all.
        #[arg(long, value_enum, value_delimiter = ',')]
        events: Vec<Event>,
        /// Measure only the others.
        #[arg(long)]
        without_l2lb: bool,
        /// Do not measure keepalived.
        #[arg(long)]
        without_keepalived: bool,
        /// Measure MetalLB, too: a folder with its programs `controller` and `speaker` and its `metallb-native.yaml`.
        #[arg(long)]
        metallb_bin: Option<PathBuf>,
    },
    /// Say what this machine lacks for the lab. Exit code 1 when it lacks something.
    Check {
        /// Install the missing packages (Debian, Ubuntu; as root).
        #[arg(long)]
        install: bool,
    },
    /// Give an order to the lab, from a shell inside it.
    #[command(hide = true)]
    Order {
        /// power-off NODE, power-on NODE, unplug NODE, plug NODE, gateway
        words: Vec<String>,
    },
}

#[derive(Args)]
struct Common {
    /// How many nodes.
    #[arg(long, default_value_t = 3, value_parser = clap::value_parser!(u8).range(1..=i64::from(lab::node::MAX_NODES)))]
    nodes: u8,
    /// What the LAN is: a Linux bridge, or a user-space learning switch with a gateway that stores ports.
    #[arg(long, value_enum, default_value_t = LanChoice::Switch)]
    lan: LanChoice,
    /// The l2lb program. Default: the one beside this program.
    #[arg(long)]
    l2lb: Option<PathBuf>,
    /// A folder with etcd, kube-apiserver, kube-controller-manager, kube-proxy, kubectl and helm. Default: built once from
    /// their Go modules, or the folder in L2LB_KIT_DIR.
    #[arg(long)]
    kit_dir: Option<PathBuf>,
}

#[derive(Clone, Copy, ValueEnum)]
enum LanChoice {
    Bridge,
    Switch,
}

fn main() -> ExitCode {
    match run(Cli::parse().command) {
        Ok(code) => code,
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn run(action: Action) -> Result<ExitCode> {
    match action {
        Action::Demo { common } => {
            let screen = Screen::new();
            let begun = Instant::now();
            let mut cluster = start(&common, true, &screen)?;
            let kept = demo::run(&mut cluster, &screen)?;
            screen.print("\n");
            screen.step("everything is taken down", || {
                drop(cluster);
                Ok(())
            })?;
            screen.say(&format!("the demo took {:.0} s", begun.elapsed().as_secs_f64()));
            Ok(if kept { ExitCode::SUCCESS } else { ExitCode::FAILURE })
        }
        Action::Up { common, bare, words } => {
            let screen = Screen::new();
            let cluster = start(&common, !bare, &screen)?;
            if !bare {
                let address = demo::install(&cluster, &screen)?;
                screen.say(&format!("Service web has the address {address}"));
            }
            if words.is_empty() {
                screen.print(&format!("\n{}", shell::BANNER));
            }
            let status = shell::run(cluster, &words)?;
            Ok(ExitCode::from(status.code().and_then(|code| u8::try_from(code).ok()).unwrap_or(1)))
        }
        Action::BenchFailover { common, runs, slow_runs, events, without_l2lb, without_keepalived, metallb_bin } => {
            let screen = Screen::new();
            let others = metallb_bin.as_deref().map(bench::metallb_programs).transpose()?.unwrap_or_default();
            let cluster = start_with(&common, true, &screen, |options| {
                options.programs.extend(others);
                // Who is killed thirty times would wait half a minute each time.
                options.longest_backoff = Duration::from_secs(1);
            })?;
            let plan = Plan { runs, slow_runs, events, without_l2lb, without_keepalived, metallb: metallb_bin };
            bench::run(cluster, &plan, &screen)?;
            Ok(ExitCode::SUCCESS)
        }
        Action::Check { install } => {
            if install {
                preflight::install()?;
            }
            let missing = preflight::check();
            if missing.is_empty() {
                println!("this machine has what the lab needs");
                return Ok(ExitCode::SUCCESS);
            }
            print!("the lab needs what this machine does not have:\n{missing}");
            Ok(ExitCode::FAILURE)
        }
        Action::Order { words } => shell::order(&words).map(|()| ExitCode::SUCCESS),
    }
}

/// Enters the sandbox and brings the cluster up. No thread was started before.
fn start(common: &Common, with_l2lb: bool, screen: &Screen) -> Result<Cluster> {
    start_with(common, with_l2lb, screen, |_| {})
}

fn start_with(common: &Common, with_l2lb: bool, screen: &Screen, change: impl FnOnce(&mut Options)) -> Result<Cluster> {
    let l2lb = with_l2lb.then(|| l2lb_program(common.l2lb.as_deref())).transpose()?;
    let kit = kit::enter(common.kit_dir.as_deref())?;
    // Without the complaints of the client library about an API server that is still starting.
    let filter = EnvFilter::try_from_env("L2LB_LAB_LOG").or_else(|_| EnvFilter::try_new("off,lab=warn"))?;
    tracing_subscriber::fmt().with_env_filter(filter).with_writer(std::io::stderr).init();
    let mut options = Options::new();
    options.nodes = common.nodes;
    options.lan = match common.lan {
        LanChoice::Bridge => LanKind::Bridge,
        LanChoice::Switch => LanKind::Switch(SwitchOptions::default()),
    };
    options.notes = screen.notes();
    if let Some(program) = &l2lb {
        options = options.with_l2lb(program);
    }
    change(&mut options);
    screen.title(&format!("A LAN, a control plane and {} nodes", common.nodes));
    screen.step("the cluster is up, its nodes are Ready", || Cluster::start(&kit, options))
}

fn l2lb_program(named: Option<&Path>) -> Result<PathBuf> {
    let program = match named {
        Some(program) => program.to_owned(),
        None => std::env::current_exe().context("cannot find the running program")?.with_file_name("l2lb"),
    };
    if !program.is_file() {
        bail!("there is no program {}: build it with `cargo build`, or name it with --l2lb", program.display());
    }
    program.canonicalize().with_context(|| format!("the program {}", program.display()))
}
