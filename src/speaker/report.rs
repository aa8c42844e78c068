//! What this node tells the API server: its claims, its Speaker object, and the Lease that says that it lives.
//!
//! The owner's loop puts things into the [`Reporter`] and never waits. Three tasks, started by [`Reporter::run`], write them by
//! server-side apply, newest state only, and try again with backoff for ever. Cancelling them at any point is safe: the
//! next process reports anew.
//!
//! What was written is compared with what the watch shows ([`Reporter::handle_seen`]): a claim that somebody took away, or that
//! a restored etcd never had, is reported again, ever more slowly if it is taken away again and again. Claims that change again and
//! again, because somebody on the LAN provokes it, are written at a bounded pace; of what is not written yet, the newest counts.

use std::{
    collections::{BTreeMap, btree_map::Entry},
    net::IpAddr,
    sync::{Arc, Mutex, PoisonError},
    time::Duration,
};

use futures::{StreamExt as _, stream};
use k8s_openapi::{
    api::coordination::v1::Lease,
    apimachinery::pkg::apis::meta::v1::{Condition, MicroTime, Time},
    jiff::Timestamp,
};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    api::{Patch, PatchParams},
    runtime::utils::Backoff as _,
};
use serde_json::json;
use tokio::{
    sync::{Notify, watch},
    time::{Instant, MissedTickBehavior, interval, sleep, sleep_until, timeout},
};
use tracing::{debug, warn};

use super::{
    metrics::Metrics,
    owner::Report,
    responder::Heartbeat,
    schedule::{Bucket, Level},
    wire::MacAddr,
};
use crate::{
    api::{
        CONDITION_READY, Claim, ClaimState, NAME_LABEL, NetworkInterface, Speaker, SpeakerStatus, VirtualIP,
        speaker_field_manager, speaker_lease_name, virtual_ip_name,
    },
    retry::{Patience, Trouble},
};

/// The Lease is renewed this often; the controller holds a speaker dead after 15 s without.
const RENEW: Duration = Duration::from_secs(5);
const LEASE_SECONDS: i32 = 15;
/// A renewal that failed is tried again after this.
const RENEW_AGAIN: Duration = Duration::from_secs(1);
/// No request takes longer.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(10);
/// A renewal that hangs, as on a connection whose other end is gone, is given up in time for a second one to be made
/// before the controller holds the speaker dead: 5 s to the first, 4 s for it, 1 s to the next, and 4 s for that.
const RENEWAL_TIMEOUT: Duration = Duration::from_secs(4);
const _: () = assert!(
    RENEW.as_secs() + 2 * RENEWAL_TIMEOUT.as_secs() + RENEW_AGAIN.as_secs() < LEASE_SECONDS as u64,
    "a second renewal comes too late"
);
/// Claims written at the same time.
const CONCURRENT: usize = 16;
/// A claim that was taken away again within [`TAKEN_AGAIN`] is reported after a pause that begins with the first of these and
/// doubles up to the second: whoever takes it away is not raced with.
const REPORT_AGAIN: (Duration, Duration) = (Duration::from_secs(1), Duration::from_secs(60));
const TAKEN_AGAIN: Duration = Duration::from_secs(120);
/// Of one address, so many claims are written as they come, and then one in this time.
const PACE_OF_ONE: Bucket = Bucket { burst: 10, interval: Duration::from_secs(2) };
/// Of all together: a node with thousands of addresses restarts within the first, and a failover or two fit beside it.
const PACE_OF_ALL: Bucket = Bucket { burst: 20_000, interval: Duration::from_millis(10) };
/// Probing is over within this, as a rule, and then need not be written at all.
const HOLD_PROBING: Duration = Duration::from_millis(500);

/// What the speaker says about itself.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct SelfReport {
    /// The node's interfaces.
    pub interfaces: Vec<NetworkInterface>,
    /// Whether it asks for its addresses to be moved.
    pub draining: bool,
    /// What keeps it from its work, one sentence each.
    pub troubles: Vec<String>,
}

/// Collects what is to be reported.
#[derive(Debug)]
pub struct Reporter {
    node: Arc<str>,
    claims: Mutex<Claims>,
    claims_changed: Notify,
    unwritten: watch::Sender<usize>,
    itself: watch::Sender<Option<SelfReport>>,
    itself_written: watch::Sender<Option<SelfReport>>,
}

#[derive(Debug, Default)]
struct Claims {
    /// What has to be written, and not before when.
    pending: BTreeMap<IpAddr, Instant>,
    /// Of each address that anything was said of. In boxes: a tree's nodes are half empty.
    known: BTreeMap<IpAddr, Box<Known>>,
    /// What was written of all addresses lately.
    pace: Level,
}

/// There may be thousands of these.
#[derive(Debug)]
struct Known {
    /// What was said last, written or not.
    said: Said,
    stage: Stage,
    /// How often the claim was found taken away, and when it was to be reported again.
    taken: Option<(u32, Instant)>,
    /// What was written lately.
    pace: Level,
}

#[derive(Debug)]
enum Stage {
    /// Nothing that stands at the API server, as far as is known.
    Unwritten,
    /// The write is not answered yet. What the watch showed last, meanwhile.
    OnItsWay(Option<Box<Seen>>),
    /// Written, and the version of the object then. If more was said since, that is pending.
    Written(Option<u64>),
}

/// A claim as it is kept: what many have in common is shared.
#[derive(Clone, Debug)]
struct Said {
    interface: Arc<str>,
    mac: Option<MacAddr>,
    since: Timestamp,
    report: Report,
}

impl Said {
    /// The claim as it is written.
    fn claim(&self, node: &str) -> Claim {
        let Self { interface, mac, since, report } = self;
        Claim {
            node: node.to_owned(),
            interface: interface.as_ref().to_owned(),
            mac: mac.map(|mac| mac.to_string()).unwrap_or_default(),
            state: report.state,
            since: Time(*since),
            reason: report.reason.as_ref().to_owned(),
            conflict_mac: report.conflict_mac.map(|mac| mac.to_string()),
            uid: report.epoch.uid.as_ref().to_owned(),
            placement: report.epoch.placement,
        }
    }

    /// Whether a claim differs in nothing but since when, which the API server rounds.
    fn stands(&self, node: &str, claim: &Claim) -> bool {
        Claim { since: claim.since.clone(), ..self.claim(node) } == *claim
    }
}

/// This node's claim as it stands at the API server.
#[derive(Clone, Debug, PartialEq)]
pub struct Seen {
    /// The address.
    pub vip: IpAddr,
    /// The uid of the VirtualIP.
    pub uid: String,
    /// Tells an older state of the object from a newer one.
    pub version: Option<u64>,
    /// The claim, if there is one.
    pub claim: Option<Claim>,
}

impl Reporter {
    /// For the speaker of `node`.
    pub fn new(node: Arc<str>) -> Self {
        Self {
            node,
            claims: Mutex::default(),
            claims_changed: Notify::new(),
            unwritten: watch::Sender::new(0),
            itself: watch::Sender::new(None),
            itself_written: watch::Sender::new(None),
        }
    }

    /// Reports a claim; it replaces one for the same address that is not written yet.
    pub fn claim(&self, vip: IpAddr, interface: &Arc<str>, mac: Option<MacAddr>, report: Report) {
        let hold = report.state == ClaimState::Probing && report.conflict_mac.is_none();
        let not_before = Instant::now() + if hold { HOLD_PROBING } else { Duration::ZERO };
        let mut claims = self.claims();
        let since = match claims.known.get(&vip) {
            Some(known) if known.said.report.state == report.state => known.said.since,
            _ => Timestamp::now(),
        };
        let said = Said { interface: interface.clone(), mac, since, report };
        match claims.known.entry(vip) {
            Entry::Occupied(known) => known.into_mut().said = said,
            Entry::Vacant(place) => {
                let known = Known { said, stage: Stage::Unwritten, taken: None, pace: Level::default() };
                place.insert(Box::new(known));
            }
        }
        if claims.pending.insert(vip, not_before).is_none() {
            self.unwritten.send_modify(|count| *count += 1);
        }
        drop(claims);
        self.claims_changed.notify_one();
    }

    /// This node has a part in no other addresses than these: of all others nothing is written any more, since the
    /// controller would only have to take it away, and their history is forgotten.
    pub fn keep_only(&self, kept: impl Fn(IpAddr) -> bool) {
        let mut claims = self.claims();
        claims.known.retain(|vip, _| kept(*vip));
        let before = claims.pending.len();
        claims.pending.retain(|vip, _| kept(*vip));
        let dropped = before - claims.pending.len();
        self.unwritten.send_modify(|count| *count -= dropped.min(*count));
    }

    /// The API server shows this. News of a watch may be older than what was written last; what was listed (`listed`) is
    /// believed whatever its version: a restored etcd counts from an earlier one.
    pub fn handle_seen(&self, seen: Seen, listed: bool) {
        let mut claims = self.claims();
        let Some(known) = claims.known.get_mut(&seen.vip) else { return };
        match &mut known.stage {
            // What is written later is newer than this.
            Stage::Unwritten => {}
            Stage::OnItsWay(meanwhile) => *meanwhile = Some(Box::new(seen)),
            Stage::Written(_) => self.report_what_was_taken(&mut claims, &seen, listed),
        }
    }

    fn report_what_was_taken(&self, claims: &mut Claims, seen: &Seen, listed: bool) {
        let Some(known) = claims.known.get_mut(&seen.vip) else { return };
        let Stage::Written(version) = known.stage else { return };
        let is_news = listed || seen.version.zip(version).is_some_and(|(seen, written)| seen > written);
        let is_there = || seen.claim.as_ref().is_some_and(|claim| known.said.stands(&self.node, claim));
        let is_same_object = *seen.uid == *known.said.report.epoch.uid;
        if !is_news || !is_same_object || claims.pending.contains_key(&seen.vip) || is_there() {
            return;
        }
        let now = Instant::now();
        let times = match known.taken {
            Some((times, at)) if now < at + TAKEN_AGAIN => times + 1,
            _ => 0,
        };
        let (first, last) = REPORT_AGAIN;
        let pause = if times == 0 { Duration::ZERO } else { first.saturating_mul(1 << (times - 1).min(16)).min(last) };
        debug!(vip = %seen.vip, ?pause, "the claim was taken away; reporting it again");
        known.taken = Some((times, now + pause));
        claims.pending.insert(seen.vip, now + pause);
        self.unwritten.send_modify(|count| *count += 1);
        self.claims_changed.notify_one();
    }

    /// Reports on the speaker itself, if anything changed.
    pub fn myself(&self, report: SelfReport) {
        self.itself.send_if_modified(|now| {
            let changed = now.as_ref() != Some(&report);
            if changed {
                *now = Some(report);
            }
            changed
        });
    }

    /// The Speaker object was deleted: it is written anew.
    pub fn handle_own_speaker_gone(&self) {
        self.itself.send_modify(|_| {});
    }

    /// What was said last about the speaker itself.
    #[cfg(test)]
    pub(super) fn said_of_itself(&self) -> SelfReport {
        self.itself.borrow().clone().unwrap_or_default()
    }

    /// The claim that waits to be written.
    #[cfg(test)]
    pub(super) fn unwritten_claim(&self, vip: IpAddr) -> Option<Claim> {
        let claims = self.claims();
        claims.pending.contains_key(&vip).then(|| claims.known[&vip].said.claim(&self.node))
    }

    /// Waits until everything is written, or `at_most`.
    pub async fn flush(&self, at_most: Duration) {
        let (mut unwritten, mut written) = (self.unwritten.subscribe(), self.itself_written.subscribe());
        let latest = self.itself.borrow().clone();
        let everything = async {
            // Neither sender can be gone: this reporter holds them.
            let _ = unwritten.wait_for(|count| *count == 0).await;
            let _ = written.wait_for(|report| *report == latest).await;
        };
        if timeout(at_most, everything).await.is_err() {
            warn!("not everything could be reported before the end");
        }
    }

    /// Writes what is reported, for ever.
    pub async fn run(self: Arc<Self>, client: Client, namespace: String, heartbeat: Arc<Heartbeat>, metrics: Metrics) {
        let claims = self.write_claims(Api::all(client.clone()), &metrics);
        let itself = self.write_speaker(Api::all(client.clone()), &metrics);
        let lease = self.renew_lease(Api::namespaced(client, &namespace), &heartbeat, &metrics);
        tokio::join!(claims, itself, lease);
    }

    async fn write_claims(&self, api: Api<VirtualIP>, metrics: &Metrics) {
        let params = PatchParams::apply(&speaker_field_manager(&self.node)).force();
        let mut backoff = Patience::default();
        let mut trouble = Trouble::new("reporting claims");
        loop {
            let (due, next) = self.take_due(Instant::now());
            if due.is_empty() {
                let pause = async {
                    match next {
                        Some(at) => sleep_until(at).await,
                        None => std::future::pending().await,
                    }
                };
                tokio::select! {
                    () = self.claims_changed.notified() => {}
                    () = pause => {}
                }
                continue;
            }
            let tried = due.len();
            let failed: Vec<_> = stream::iter(due)
                .map(|(vip, said)| {
                    let (api, params) = (&api, &params);
                    async move { (vip, write_claim(api, params, vip, &said.claim(&self.node)).await) }
                })
                .buffer_unordered(CONCURRENT)
                .filter_map(|(vip, result)| async move {
                    match result {
                        Ok(written) => {
                            self.handle_written(vip, written);
                            None
                        }
                        Err(error) => Some((vip, error)),
                    }
                })
                .collect()
                .await;
            let failures = failed.len();
            if let Some((_, error)) = failed.first() {
                metrics.api_write_errors.inc();
                trouble.failed(error);
            }
            // Those that failed wait; others, and newer ones for the same addresses, do not wait for them.
            let again_at = Instant::now() + if failures > 0 { backoff.pause() } else { Duration::ZERO };
            let nothing_left = self.put_back(again_at, failed.into_iter().map(|(vip, _)| vip));
            if nothing_left {
                trouble.worked();
                backoff.reset();
            }
            metrics.claims_reported.inc_by((tried - failures) as u64);
        }
    }

    /// What is due now, and when something is due next.
    fn take_due(&self, now: Instant) -> (Vec<(IpAddr, Said)>, Option<Instant>) {
        let mut claims = self.claims();
        let Claims { pending, known, pace: pace_of_all } = &mut *claims;
        let mut due = Vec::new();
        let clock = now.into_std();
        pending.retain(|vip, not_before| {
            // Nothing is pending of which nothing was said.
            let Some(known) = known.get_mut(vip) else { return false };
            let paced = known.pace.ready_at(PACE_OF_ONE, clock).max(pace_of_all.ready_at(PACE_OF_ALL, clock));
            *not_before = (*not_before).max(paced.into());
            if *not_before > now {
                return true;
            }
            known.pace.spend(PACE_OF_ONE, clock);
            pace_of_all.spend(PACE_OF_ALL, clock);
            known.stage = Stage::OnItsWay(None);
            due.push((*vip, known.said.clone()));
            false
        });
        (due, pending.values().min().copied())
    }

    fn handle_written(&self, vip: IpAddr, written: Written) {
        let mut claims = self.claims();
        let Some(known) = claims.known.get_mut(&vip) else { return };
        let stage = match written {
            Written::Version(version) => Stage::Written(version),
            Written::Gone => Stage::Unwritten,
        };
        if let Stage::OnItsWay(Some(seen)) = std::mem::replace(&mut known.stage, stage) {
            // It may have been taken away before we heard that it was written.
            self.report_what_was_taken(&mut claims, &seen, false);
        }
    }

    /// Claims that could not be written come again, unless a newer one came in meanwhile. Whether nothing is left to write.
    fn put_back(&self, again_at: Instant, failed: impl Iterator<Item = IpAddr>) -> bool {
        let mut claims = self.claims();
        for vip in failed {
            // This node may have no part in it any more.
            if let Some(known) = claims.known.get_mut(&vip) {
                known.stage = Stage::Unwritten;
                claims.pending.entry(vip).or_insert(again_at);
            }
        }
        self.unwritten.send_replace(claims.pending.len());
        claims.pending.is_empty()
    }

    async fn write_speaker(&self, api: Api<Speaker>, metrics: &Metrics) {
        let manager = speaker_field_manager(&self.node);
        let mut reports = self.itself.subscribe();
        let mut backoff = Patience::default();
        let mut trouble = Trouble::new("writing the Speaker object");
        let mut ready = None;
        loop {
            let latest = reports.borrow_and_update().clone();
            if let Some(report) = latest {
                let status = status_of(&report, &mut ready);
                if let Err(error) = apply_speaker(&api, &manager, &self.node, &status).await {
                    metrics.api_write_errors.inc();
                    trouble.failed(&error);
                    sleep(backoff.pause()).await;
                    continue;
                }
                trouble.worked();
                backoff.reset();
                self.itself_written.send_replace(Some(report));
            }
            if reports.changed().await.is_err() {
                return;
            }
        }
    }

    async fn renew_lease(&self, api: Api<Lease>, heartbeat: &Heartbeat, metrics: &Metrics) {
        let name = speaker_lease_name(&self.node);
        let params = PatchParams::apply(&speaker_field_manager(&self.node)).force();
        let mut trouble = Trouble::new("renewing the Lease");
        let mut ticks = interval(RENEW);
        ticks.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            ticks.tick().await;
            // The Lease speaks for the loop that answers, not for this task.
            if heartbeat.since() > RENEW {
                warn!("the owner's loop does not run; the Lease is not renewed");
                continue;
            }
            let lease = json!({
                "apiVersion": Lease::api_version(&()), "kind": Lease::kind(&()),
                "metadata": {"name": name, "labels": {NAME_LABEL: "l2lb"}},
                "spec": {
                    "holderIdentity": &*self.node,
                    "leaseDurationSeconds": LEASE_SECONDS,
                    "renewTime": MicroTime(Timestamp::now()),
                },
            });
            match within(RENEWAL_TIMEOUT, api.patch(&name, &params, &Patch::Apply(&lease))).await {
                Ok(_) => {
                    metrics.lease_renewed.set(Timestamp::now().as_second());
                    trouble.worked();
                }
                Err(error) => {
                    metrics.api_write_errors.inc();
                    trouble.failed(&error);
                    ticks.reset_after(RENEW_AGAIN);
                }
            }
        }
    }

    fn claims(&self) -> std::sync::MutexGuard<'_, Claims> {
        // A panic while it was held cannot leave a map half written.
        self.claims.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Why a write failed. The state at the API server is unknown after a timeout, unchanged otherwise.
#[derive(Debug, thiserror::Error)]
enum WriteError {
    #[error("the API server did not answer in {} s", .0.as_secs())]
    Timeout(Duration),
    #[error(transparent)]
    Api(#[from] kube::Error),
}

impl WriteError {
    fn code(&self) -> u16 {
        match self {
            Self::Api(kube::Error::Api(status)) => status.code,
            _ => 0,
        }
    }
}

async fn in_time<T>(request: impl Future<Output = kube::Result<T>>) -> Result<T, WriteError> {
    within(REQUEST_TIMEOUT, request).await
}

async fn within<T>(time: Duration, request: impl Future<Output = kube::Result<T>>) -> Result<T, WriteError> {
    Ok(timeout(time, request).await.map_err(|_| WriteError::Timeout(time))??)
}

/// What became of a claim.
enum Written {
    /// The object has this version now.
    Version(Option<u64>),
    /// There is no such object any more.
    Gone,
}

async fn write_claim(
    api: &Api<VirtualIP>,
    params: &PatchParams,
    vip: IpAddr,
    claim: &Claim,
) -> Result<Written, WriteError> {
    let name = virtual_ip_name(vip);
    let patch = json!({
        "apiVersion": VirtualIP::api_version(&()), "kind": VirtualIP::kind(&()),
        // With the uid the claim cannot land on a younger object of the same name.
        "metadata": {"name": name, "uid": claim.uid},
        "status": {"claims": [claim]},
    });
    match in_time(api.patch_status(&name, params, &Patch::Apply(&patch))).await {
        Ok(object) => Ok(Written::Version(object.resource_version().and_then(|version| version.parse().ok()))),
        Err(error) if matches!(error.code(), 404 | 409) => {
            debug!(%vip, %error, "the VirtualIP is gone, or is another one by now; nothing to report");
            Ok(Written::Gone)
        }
        Err(error) => Err(error),
    }
}

async fn apply_speaker(
    api: &Api<Speaker>,
    manager: &str,
    node: &str,
    status: &SpeakerStatus,
) -> Result<(), WriteError> {
    let params = PatchParams::apply(manager).force();
    let (api_version, kind) = (Speaker::api_version(&()), Speaker::kind(&()));
    let status_patch = json!({"apiVersion": api_version, "kind": kind, "metadata": {"name": node}, "status": status});
    let written = in_time(api.patch_status(node, &params, &Patch::Apply(&status_patch))).await;
    if !matches!(&written, Err(error) if error.code() == 404) {
        return written.map(drop);
    }
    let object = json!({
        "apiVersion": api_version, "kind": kind, "spec": {},
        "metadata": {"name": node, "labels": {NAME_LABEL: "l2lb"}},
    });
    in_time(api.patch(node, &params, &Patch::Apply(&object))).await?;
    in_time(api.patch_status(node, &params, &Patch::Apply(&status_patch))).await.map(drop)
}

/// The status to write. `ready` remembers since when the condition is as it is.
fn status_of(report: &SelfReport, ready: &mut Option<(bool, Timestamp)>) -> SpeakerStatus {
    let announcing: Vec<&str> = report
        .interfaces
        .iter()
        .filter(|interface| interface.announces)
        .map(|interface| interface.name.as_str())
        .collect();
    let (reason, message) = if !report.troubles.is_empty() {
        ("InterfaceTrouble", report.troubles.join("; "))
    } else if announcing.is_empty() {
        ("NoInterface", "no interface of this node can announce".to_owned())
    } else {
        ("Ready", format!("can announce on {}", announcing.join(", ")))
    };
    let is_ready = reason == "Ready";
    let since = match *ready {
        Some((was, since)) if was == is_ready => since,
        _ => Timestamp::now(),
    };
    *ready = Some((is_ready, since));
    let condition = Condition {
        type_: CONDITION_READY.to_owned(),
        status: if is_ready { "True" } else { "False" }.to_owned(),
        reason: reason.to_owned(),
        message,
        last_transition_time: Time(since),
        observed_generation: None,
    };
    SpeakerStatus {
        announcing: announcing.join(","),
        interfaces: report.interfaces.clone(),
        draining: report.draining,
        version: env!("CARGO_PKG_VERSION").to_owned(),
        conditions: vec![condition],
    }
}

#[cfg(test)]
mod tests;
