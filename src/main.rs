//! The program: reads the command line, starts one role, and turns what stopped it into a sentence and an exit code.

use std::{future::Future, io::Write as _, net::SocketAddr, process::ExitCode, sync::Arc};

use anyhow::Context as _;
use clap::{Parser, Subcommand};
use l2lb::{
    api, controller, retry, speaker,
    telemetry::{self, Health, LogFormat},
    watching::LONGEST_SILENCE,
};
use prometheus_client::registry::Registry;
use tokio::signal::unix::{SignalKind, signal};
use tracing::info;

/// A layer-2 LoadBalancer for Kubernetes.
#[derive(Parser)]
#[command(name = "l2lb", version)]
struct Cli {
    #[command(subcommand)]
    role: Role,
}

#[derive(Subcommand)]
enum Role {
    /// Allocate addresses for Services and choose the nodes that announce them. Of several, one leads.
    Controller {
        #[command(flatten)]
        common: Common,
        /// Where /livez, /readyz and /metrics are served (address:port).
        #[arg(long, env = "L2LB_HEALTH_ADDRESS", default_value = "127.0.0.1:7472")]
        health_address: SocketAddr,
        #[command(flatten)]
        args: controller::Args,
    },
    /// Answer for this node's addresses on its network interfaces. One on each node; needs the capability NET_RAW.
    Speaker {
        #[command(flatten)]
        common: Common,
        /// Where /livez, /readyz and /metrics are served (address:port).
        #[arg(long, env = "L2LB_HEALTH_ADDRESS", default_value = "127.0.0.1:7473")]
        health_address: SocketAddr,
        #[command(flatten)]
        args: speaker::Args,
    },
    /// Print the CustomResourceDefinitions as YAML.
    Crds,
}

/// What both long-running roles take. They find the API server as kubectl does: in a Pod by its service account, elsewhere
/// by KUBECONFIG or ~/.kube/config.
#[derive(clap::Args)]
struct Common {
    /// What is logged: a level (error, warn, info, debug, trace) or target=level pairs (info,l2lb::speaker=debug).
    #[arg(long, env = "L2LB_LOG", default_value = "info")]
    log: String,
    /// How log lines are written.
    #[arg(long, env = "L2LB_LOG_FORMAT", value_enum, default_value_t)]
    log_format: LogFormat,
}

fn main() -> ExitCode {
    let result = match Cli::parse().role {
        Role::Controller { common, health_address, args } => {
            run(&common, health_address, move |client, health, registry, stop| {
                let controller = controller::Controller::new(args, client, health, registry)?;
                Ok(controller.run(stop))
            })
        }
        Role::Speaker { common, health_address, args } => {
            run(&common, health_address, move |client, health, registry, stop| {
                let agent = speaker::Agent::new(args, client, health, registry)?;
                Ok(agent.run(stop))
            })
        }
        Role::Crds => print_crds(),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("l2lb: {error:#}");
            ExitCode::FAILURE
        }
    }
}

/// Runs one role until it ends by itself or is told to by SIGTERM or SIGINT.
fn run<F, R>(common: &Common, health_address: SocketAddr, start: F) -> anyhow::Result<()>
where
    F: FnOnce(
        kube::Client,
        Health,
        &mut Registry,
        std::pin::Pin<Box<dyn Future<Output = ()> + Send>>,
    ) -> anyhow::Result<R>,
    R: Future<Output = anyhow::Result<()>>,
{
    telemetry::start_logging(common.log_format, &common.log)?;
    // Two workers are plenty for a role that waits most of its time; more would only cost memory on large machines.
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .context("starting the async runtime")?;
    runtime.block_on(async {
        let mut config = kube::Config::infer()
            .await
            .context("no API server: run in a Pod with a service account, or set KUBECONFIG")?;
        retry::set_rules(&mut config, LONGEST_SILENCE);
        let server = config.cluster_url.clone();
        let client =
            kube::Client::try_from(config).with_context(|| format!("the client for {server} cannot be made"))?;
        let health = Health::default();
        let mut registry = Registry::default();
        let role = start(client, health.clone(), &mut registry, Box::pin(told_to_stop()?))?;
        info!(version = env!("CARGO_PKG_VERSION"), %server, "started");
        // A task of its own: when the role's is stuck, this one has to say so.
        let served = tokio::spawn(telemetry::serve(health_address, health, Arc::new(registry)));
        tokio::select! {
            ended = role => ended,
            failed = served => failed.context("serving health and metrics")?,
        }
    })
}

/// Completes at the first SIGTERM or SIGINT.
fn told_to_stop() -> anyhow::Result<impl Future<Output = ()> + Send> {
    let (mut terminate, mut interrupt) = (
        signal(SignalKind::terminate()).context("listening for SIGTERM")?,
        signal(SignalKind::interrupt()).context("listening for SIGINT")?,
    );
    Ok(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        info!("told to stop");
    })
}

fn print_crds() -> anyhow::Result<()> {
    let mut out = std::io::stdout().lock();
    for definition in api::custom_resource_definitions() {
        let yaml = serde_norway::to_string(&definition).context("writing a CustomResourceDefinition as YAML")?;
        write!(out, "---\n{yaml}").context("printing")?;
    }
    Ok(())
}
