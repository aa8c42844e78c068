//! The speaker: the only part of l2lb that touches the LAN, on each node with that node's own NICs.
//!
//! ```text
//!  API server --> assignments --> driver --> report --> API server
//!                                 |  ^ |
//!                       snapshots |  | | announcements, probes
//!                                 v  | v
//!                   LAN <--> responder  nic --> LAN       (a receive thread for each NIC and protocol)
//! ```
//!
//! | pure | what it decides |
//! |---|---|
//! | [`wire`] | what a frame says |
//! | [`drop_reason`] | why a frame led to nothing |
//! | [`filter`] | which frames wake the process |
//! | [`bpf`] | the instructions that the kernel's filters are made of |
//! | [`triage`] | what the receive path does with a packet |
//! | [`peers`] | whose MAC address it is |
//! | [`owner`] | who answers for one virtual IP |
//! | [`monitor`] | whether the owners answer that this node stands by for |
//! | [`search`] | whether somebody else answers for an address that this node owns |
//! | [`schedule`] | when frames may leave |
//! | [`lookalike`] | whether the node's own kernel answers, too |
//! | [`station`] | all of a node's virtual IPs together |
//! | [`inventory`] | which interfaces can announce, and why others cannot |
//!
//! | edge | what it touches |
//! |---|---|
//! | [`nic`] | the packet socket; the only place where a frame comes into being |
//! | [`netlink`] | the kernel's news about interfaces |
//! | [`nics`] | which NICs are open |
//! | [`responder`] | the receive thread |
//! | [`assignments`], [`report`] | the API server |
//! | [`driver`] | the loop that joins them |
//! | [`metrics`] | what is counted |
//!
//! The pure part knows no address family but where frames differ: IPv4 is announced by ARP, IPv6 by neighbour discovery.

pub mod assignments;
pub mod bpf;
pub mod driver;
pub mod drop_reason;
pub mod filter;
pub mod inventory;
pub mod lookalike;
pub mod metrics;
pub mod monitor;
pub mod netlink;
pub mod nic;
pub mod nics;
pub mod owner;
pub mod peers;
pub mod report;
pub mod responder;
pub mod schedule;
pub mod search;
pub mod station;
pub mod triage;
pub mod wire;

use std::{sync::Arc, time::Duration};

use anyhow::Context as _;
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::{sync::mpsc, task::JoinSet};
use tracing::info;

use crate::telemetry::Health;
use driver::{Driver, Parts};
use metrics::Metrics;
use peers::Peers;
use report::Reporter;
use responder::Heartbeat;
use station::Station;

/// News that wait for the owner's loop; beyond that the watch waits.
const NEWS: usize = 256;

/// The speaker's settings.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Name of the Node that this speaker runs on
    #[arg(long, env = "NODE_NAME", value_name = "NAME", value_parser = clap::builder::NonEmptyStringValueParser::new())]
    pub node_name: String,

    /// Namespace of the speakers' Leases
    #[arg(long, env = "L2LB_NAMESPACE", default_value = "l2lb-system")]
    pub namespace: String,

    /// Seconds between two refresh announcements of a NIC, well below the time after which the LAN's switches forget a MAC address
    #[arg(long, env = "L2LB_REFRESH_INTERVAL", default_value_t = 60, value_name = "SECONDS",
          value_parser = clap::value_parser!(u32).range(1..))]
    pub refresh_interval: u32,

    /// Seconds that a speaker told to stop goes on answering while its addresses move to other nodes
    #[arg(long, env = "L2LB_DRAIN_TIMEOUT", default_value_t = 20, value_name = "SECONDS")]
    pub drain_timeout: u32,
}

/// One node's speaker, ready to run.
pub struct Agent {
    args: Args,
    client: Client,
    health: Health,
    metrics: Metrics,
}

impl Agent {
    /// Registers the metrics; nothing else happens yet.
    ///
    /// # Errors
    /// If this process may not open packet sockets.
    pub fn new(args: Args, client: Client, health: Health, registry: &mut Registry) -> anyhow::Result<Self> {
        nic::check_permission().context("the speaker cannot work")?;
        health.not_ready(assignments::HEALTH_PART, "the API server has not been read yet");
        health.not_ready(netlink::HEALTH_PART, "the kernel has not been asked for the interfaces yet");
        Ok(Self { args, client, health, metrics: Metrics::register(registry) })
    }

    /// Announces until `shutdown`, then until the addresses have moved away or the drain timeout is over.
    ///
    /// # Errors
    /// If one of its tasks fails, which is a defect.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let Self { args, client, health, metrics } = self;
        info!(node = args.node_name, namespace = args.namespace, "speaker");
        let node: Arc<str> = Arc::from(args.node_name);
        let reporter = Arc::new(Reporter::new(node.clone()));
        let heartbeat = Arc::new(Heartbeat::new());
        let (news_sender, news) = mpsc::channel(NEWS);

        // Dropped with this function, and the tasks with it.
        let mut tasks = JoinSet::new();
        let watching = assignments::watch(client.clone(), node.clone(), news_sender, health.clone(), reporter.clone());
        tasks.spawn(watching);
        let (watching_links, links) = netlink::watching(health.clone(), metrics.clone());
        tasks.spawn(watching_links.run());
        tasks.spawn(reporter.clone().run(client, args.namespace, heartbeat.clone(), metrics.clone()));

        let peers = Arc::new(Peers::new(node, []));
        let station = Station::new(peers, Duration::from_secs(args.refresh_interval.into()));
        let drain_timeout = Duration::from_secs(args.drain_timeout.into());
        let driver = Driver::new(Parts { station, reporter, heartbeat, metrics, health, links, news, drain_timeout });
        tokio::select! {
            () = driver.run(shutdown) => Ok(()),
            Some(ended) = tasks.join_next() => {
                ended.context("a task of the speaker failed")?;
                anyhow::bail!("a task of the speaker ended although it should run for ever")
            }
        }
    }
}
