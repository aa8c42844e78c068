//! The wiring: watches in, writes out, one task in between.
//!
//! One task owns the [`Index`], a new one after each election that is won or lost ([`Term`]). It takes in what the watches and the
//! writes say, one at a time, and starts the writes that the index wants, at most [`WRITES_AT_ONCE`] at once; watches and writes are
//! futures that this task polls, so that it has no locks and ends with them. Cancelling it at any point loses nothing: all state is in the API server.

use std::{collections::BTreeMap, future::Future, time::Duration};

use anyhow::Context as _;
use futures::{
    FutureExt as _, StreamExt as _,
    future::BoxFuture,
    stream::{BoxStream, FuturesUnordered, SelectAll},
};
use kube::Client;
use prometheus_client::registry::Registry;
use tokio::{
    sync::{oneshot, watch},
    time::{Instant, MissedTickBehavior},
};
use tracing::{debug, info, warn};

use super::{
    change::{Change, Target},
    index::{Delta, Index, Input, Outcome},
    leadership::{self, Standing},
    liveness::Liveness,
    metrics::Metrics,
    watches::{KINDS, News, WatchFault, watches},
    writer::{WriteFailure, Writer},
};
use crate::{api::Role, retry::Seldom, telemetry::Health};

/// Writes that are on their way at once: enough to be bound by the API server, few enough to leave it some air.
const WRITES_AT_ONCE: usize = 16;
/// Metrics are brought up to date this often.
const TICK: Duration = Duration::from_secs(1);
/// A watch is tried again after 5 s at most: one that has not failed for longer is in order.
const WATCH_IN_ORDER_AFTER: Duration = Duration::from_secs(12);
/// Failures that come in crowds are logged this often.
const LOG_EVERY: Duration = Duration::from_secs(5);
/// At the end, writes that are on their way get this long.
const LAST_WRITES: Duration = Duration::from_secs(2);

/// Flags of the controller.
#[derive(clap::Args, Clone, Debug)]
pub struct Args {
    /// Namespace of the speakers' Leases: the one that l2lb is installed in
    #[arg(long, env = "L2LB_NAMESPACE", default_value = "l2lb-system")]
    pub namespace: String,

    /// Name by which this controller is known to the others in the election; default: the host's name and the process id
    #[arg(long, env = "L2LB_IDENTITY", default_value_t = own_name(), hide_default_value = true, value_name = "NAME")]
    pub identity: String,

    /// Serve only Services with this spec.loadBalancerClass; without it, only Services that have none
    #[arg(long, env = "L2LB_LOAD_BALANCER_CLASS")]
    pub load_balancer_class: Option<String>,

    /// Addresses that may be moved in a minute from the node with most of them to the one with fewest, for the sake of balance
    /// alone; 0: none, ever. Each move may reset established TCP connections to that address
    #[arg(long, env = "L2LB_REBALANCE_MOVES_PER_MINUTE", default_value_t = 0, value_name = "NUMBER",
          value_parser = clap::value_parser!(u32).range(0..=60))]
    pub rebalance_moves_per_minute: u32,
}

impl Args {
    fn checked(self) -> anyhow::Result<Self> {
        anyhow::ensure!(
            !self.namespace.is_empty(),
            "--namespace is empty; give the namespace that l2lb is installed in"
        );
        // A Lease without a holder is one that was given back: two controllers without a name would both take it for their own.
        anyhow::ensure!(!self.identity.is_empty(), "--identity is empty; give each controller a name of its own");
        // The chart passes an empty value on where none was set.
        let load_balancer_class = self.load_balancer_class.filter(|class| !class.is_empty());
        Ok(Self { load_balancer_class, ..self })
    }
}

/// The controller, ready to run.
pub struct Controller {
    args: Args,
    client: Client,
    health: Health,
    metrics: Metrics,
}

impl Controller {
    /// A controller that works through this client. Nothing is done before [`Controller::run`].
    ///
    /// # Errors
    /// If the flags cannot be used.
    pub fn new(args: Args, client: Client, health: Health, registry: &mut Registry) -> anyhow::Result<Self> {
        Ok(Self { args: args.checked()?, client, health, metrics: Metrics::new(registry) })
    }

    /// Works until `shutdown`. An API server that is away or refuses is waited for, not an error. While another controller leads,
    /// this one keeps its caches warm and writes nothing.
    ///
    /// # Errors
    /// If the task that keeps the election Lease fails, which is a defect.
    pub async fn run(self, shutdown: impl Future<Output = ()> + Send) -> anyhow::Result<()> {
        let Self { args, client, health, metrics } = self;
        let start = Instant::now();
        let class = args.load_balancer_class.as_deref().unwrap_or("none");
        info!(namespace = args.namespace, load_balancer_class = class, identity = args.identity, "controller starts");
        for kind in KINDS {
            health.not_ready(watch_part(kind), "not listed yet");
        }
        let (published, mut standing) = watch::channel(Standing::Follows);
        let (ended, end) = oneshot::channel::<()>();
        let election = tokio::spawn({
            let (client, namespace, identity) = (client.clone(), args.namespace.clone(), args.identity.clone());
            async move {
                // Dropped unsent, it ends the campaign as well.
                let end = async { drop(end.await) };
                leadership::campaign(client, &namespace, identity, &published, end).await;
            }
        });

        let mut shutdown = std::pin::pin!(shutdown.fuse());
        let edge = Edge { args: &args, client: &client, health: &health, metrics: &metrics, start };
        let mut term = Term::new(edge, *standing.borrow(), Liveness::default());
        loop {
            let end = tokio::select! {
                () = &mut shutdown => break,
                end = term.run(&mut standing) => end,
            };
            match end {
                // Lost: what was decided and not yet written is void. Won: what was listed before may lack what the last leader
                // wrote. Either way the lists are read anew; only which speakers were heard is worth keeping.
                TermEnd::Voted => term = Term::new(edge, *standing.borrow(), term.index.into_liveness()),
                TermEnd::ElectionEnded => break,
            }
        }
        term.finish().await;
        drop(ended);
        election.await.context("the task that keeps the election Lease")
    }
}

/// Why a [`Term`] ended by itself.
enum TermEnd {
    /// An election was won or lost.
    Voted,
    ElectionEnded,
}

/// What all terms share.
#[derive(Clone, Copy)]
struct Edge<'a> {
    args: &'a Args,
    client: &'a Client,
    health: &'a Health,
    metrics: &'a Metrics,
    start: Instant,
}

type WriteInFlight = BoxFuture<'static, (Target, Change, Outcome, Option<WriteFailure>)>;

/// From one election to the next: watches, the index, and writes on their way. What is written in a term was listed in it.
struct Term<'a> {
    health: &'a Health,
    metrics: &'a Metrics,
    start: Instant,
    standing: Standing,
    news: SelectAll<BoxStream<'static, News>>,
    writer: Writer,
    index: Index,
    writes: FuturesUnordered<WriteInFlight>,
    watch_errors: BTreeMap<&'static str, Instant>,
    failures: Seldom,
    unreachable: Seldom,
    synced: bool,
    /// Until then the API server wants nothing written.
    held_until: Option<Instant>,
}

impl<'a> Term<'a> {
    fn new(edge: Edge<'a>, standing: Standing, liveness: Liveness) -> Self {
        let Edge { args, client, health, metrics, start } = edge;
        Self {
            health,
            metrics,
            start,
            standing,
            news: watches(client, &args.namespace),
            writer: Writer::new(client.clone()),
            index: Index::new(args.load_balancer_class.clone())
                .with_rebalance(args.rebalance_moves_per_minute)
                .with_liveness(liveness),
            writes: FuturesUnordered::new(),
            watch_errors: BTreeMap::new(),
            failures: Seldom::every(LOG_EVERY),
            unreachable: Seldom::every(LOG_EVERY),
            synced: false,
            held_until: None,
        }
    }

    async fn run(&mut self, standing: &mut watch::Receiver<Standing>) -> TermEnd {
        let mut tick = tokio::time::interval(TICK);
        tick.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            let now = *standing.borrow_and_update();
            if now.term() != self.standing.term() {
                return TermEnd::Voted;
            }
            self.renewed(now);
            self.start_writes(now);
            if !self.synced && self.index.is_synced() {
                self.synced = true;
                info!("everything is listed");
            }
            // With all places taken the next event is the end of a write; without the right to write, that of a renewal.
            let may_write = now.leadership(Instant::now()).is_some() && self.writes.len() < WRITES_AT_ONCE;
            let held = self.held_until.map(|until| until.saturating_duration_since(self.start));
            let due = held.or_else(|| self.index.poll_timeout()).filter(|_| may_write);
            let alarm = tokio::time::sleep_until(self.start + due.unwrap_or_default());
            tokio::select! {
                changed = standing.changed() => {
                    if changed.is_err() {
                        return TermEnd::ElectionEnded;
                    }
                }
                Some((target, change, outcome, failure)) = self.writes.next(), if !self.writes.is_empty() => {
                    self.written(&target, &change, outcome, failure);
                }
                Some(news) = self.news.next() => match news {
                    News::Input(kind, input) => self.take_in(kind, *input),
                    News::Broken(kind, fault) => self.watch_broke(kind, fault),
                },
                () = alarm, if due.is_some() => {}
                _ = tick.tick() => {
                    self.metrics.show(self.index.summary(), self.index.in_flight(), now.term().is_some());
                    self.look_at_watches();
                }
            }
        }
    }

    /// A right that ran out says that the API server was out of reach, which the watches may not have noticed: the silence of the
    /// speakers in that time is no evidence.
    fn renewed(&mut self, standing: Standing) {
        let before = std::mem::replace(&mut self.standing, standing);
        if before.term().is_some() && before.leadership(Instant::now()).is_none() {
            self.index.handle_lease_watch_lost(self.start.elapsed());
        }
    }

    fn start_writes(&mut self, standing: Standing) {
        self.held_until = self.held_until.filter(|until| Instant::now() < *until);
        while self.held_until.is_none()
            && self.writes.len() < WRITES_AT_ONCE
            && let Some(leadership) = standing.leadership(Instant::now())
            && let Some((target, change)) = self.index.poll_change(self.start.elapsed())
        {
            debug!(?target, ?change, "writing");
            let writer = self.writer.clone();
            self.writes.push(Box::pin(async move {
                let (outcome, failure) = writer.write(leadership, &change).await;
                (target, change, outcome, failure)
            }));
        }
    }

    fn written(&mut self, target: &Target, change: &Change, outcome: Outcome, failure: Option<WriteFailure>) {
        self.metrics.count_write(change, &outcome);
        if !matches!(outcome, Outcome::Conflict | Outcome::Failed) {
            log_done(change);
        }
        if let Some(failure) = failure {
            self.failures.log(&format!("{}; trying again", failure.sentence));
            let until = failure.retry_after.map(|pause| Instant::now() + pause);
            self.held_until = self.held_until.max(until);
        }
        self.index.handle_outcome(target, outcome, self.start.elapsed());
    }

    fn take_in(&mut self, kind: &'static str, input: Input) {
        if is_reset(&input) || self.watch_errors.contains_key(kind) {
            self.watch_errors.remove(kind);
            self.health.ready(&watch_part(kind));
        }
        self.index.handle(input, self.start.elapsed());
    }

    fn watch_broke(&mut self, kind: &'static str, fault: WatchFault) {
        if kind == "Lease" {
            self.index.handle_lease_watch_lost(self.start.elapsed());
        }
        // An API server may have this kind switched off; then there is nothing to know of it.
        if kind == "ServiceCIDR" && matches!(fault, WatchFault::Unknown(_)) {
            self.take_in(kind, Input::ServiceRange(Delta::Reset(Vec::new())));
            return;
        }
        match &fault {
            WatchFault::Behind => debug!(kind, "the watch was too far behind; listing again"),
            WatchFault::Unknown(sentence) | WatchFault::Refused(sentence) => warn!(kind, "{sentence}"),
            WatchFault::Unreachable(sentence) => self.unreachable.log(sentence),
        }
        if let WatchFault::Unknown(sentence) | WatchFault::Refused(sentence) | WatchFault::Unreachable(sentence) = fault
        {
            self.metrics.count_watch_error(kind);
            self.health.not_ready(watch_part(kind), sentence);
            self.watch_errors.insert(kind, Instant::now());
        }
    }

    /// A watch that goes on says nothing while nothing happens.
    fn look_at_watches(&mut self) {
        let synced = self.index.is_synced();
        self.watch_errors.retain(|kind, at| {
            let broken = at.elapsed() < WATCH_IN_ORDER_AFTER;
            if !broken && synced {
                self.health.ready(&watch_part(kind));
            }
            broken || !synced
        });
    }

    async fn finish(mut self) {
        info!(writes = self.writes.len(), "controller stops");
        let last = async { while self.writes.next().await.is_some() {} };
        if tokio::time::timeout(LAST_WRITES, last).await.is_err() {
            warn!("stopped before the last writes were answered; the next controller looks again");
        }
    }
}

fn own_name() -> String {
    let host = std::fs::read_to_string("/proc/sys/kernel/hostname").unwrap_or_default();
    format!("{}-{}", host.trim(), std::process::id())
}

fn is_reset(input: &Input) -> bool {
    match input {
        Input::Service(delta) => matches!(delta, Delta::Reset(_)),
        Input::Slice(delta) => matches!(delta, Delta::Reset(_)),
        Input::Node(delta) => matches!(delta, Delta::Reset(_)),
        Input::Namespace(delta) => matches!(delta, Delta::Reset(_)),
        Input::Pool(delta) => matches!(delta, Delta::Reset(_)),
        Input::VirtualIP(delta) => matches!(delta, Delta::Reset(_)),
        Input::Speaker(delta) => matches!(delta, Delta::Reset(_)),
        Input::Lease(delta) => matches!(delta, Delta::Reset(_)),
        Input::ServiceRange(delta) => matches!(delta, Delta::Reset(_)),
    }
}

/// What an operator wants to find in the log later: who got which address, who was named, who was told what.
fn log_done(change: &Change) {
    match change {
        Change::CreateVirtualIP { spec } | Change::UpdateVirtualIP { spec, .. } => {
            let primary = spec.assignments.iter().find(|entry| entry.role == Role::Primary);
            let primary = primary.map(|entry| entry.node.as_str()).unwrap_or_default();
            let (address, services, placement) = (&spec.address, spec.services.join(" "), spec.placement);
            info!(address, services, primary, placement, "virtual IP assigned");
        }
        Change::DeleteVirtualIP { address, .. } => info!(%address, "virtual IP released"),
        Change::ServiceEvent { event, .. } => {
            let service = format!("{}/{}", event.namespace, event.name);
            info!(service, reason = event.reason, message = event.message, "service told");
        }
        Change::RemoveClaim { .. }
        | Change::ServiceStatus(_)
        | Change::PoolStatus { .. }
        | Change::SpeakerOwner { .. }
        | Change::LeaseOwner { .. } => {}
    }
}

fn watch_part(kind: &str) -> String {
    format!("watch of {kind}")
}

#[cfg(test)]
mod tests {
    use clap::Parser as _;

    use super::*;

    #[derive(clap::Parser)]
    struct Flags {
        #[command(flatten)]
        args: Args,
    }

    fn checked(flags: &[&str]) -> anyhow::Result<Args> {
        Flags::parse_from(["l2lb"].iter().chain(flags)).args.checked()
    }

    #[test]
    fn nobody_stands_for_election_under_the_name_of_nobody() {
        let error = checked(&["--identity="]).err().map(|error| error.to_string()).unwrap_or_default();
        assert!(error.starts_with("--identity is empty"), "{error}");
        assert!(checked(&["--namespace="]).is_err());
        let args = checked(&["--load-balancer-class=", "--identity=one"]).unwrap();
        assert_eq!((args.load_balancer_class, args.identity.as_str()), (None, "one"));
    }
}
