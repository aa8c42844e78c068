//! What the controller counts.

use std::sync::atomic::AtomicU64;

use prometheus_client::{
    encoding::EncodeLabelSet,
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    change::Change,
    index::{Outcome, Summary},
};

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByReason {
    reason: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByPool {
    pool: String,
    family: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByWrite {
    kind: &'static str,
    result: &'static str,
}

#[derive(Clone, Debug, PartialEq, Eq, Hash, EncodeLabelSet)]
struct ByKind {
    kind: &'static str,
}

type Float = Gauge<f64, AtomicU64>;

/// The controller's metrics. Clones count into the same registry.
#[derive(Clone, Debug, Default)]
pub(super) struct Metrics {
    services: Family<ByReason, Gauge>,
    virtual_ips: Gauge,
    live_speakers: Gauge,
    leads: Gauge,
    used: Family<ByPool, Float>,
    free: Family<ByPool, Float>,
    queued: Gauge,
    in_flight: Gauge,
    writes: Family<ByWrite, Counter>,
    watch_errors: Family<ByKind, Counter>,
}

impl Metrics {
    pub(super) fn new(registry: &mut Registry) -> Self {
        let metrics = Self::default();
        let registry = registry.sub_registry_with_prefix("l2lb_controller");
        registry.register("services", "Services by the reason of their Allocated condition", metrics.services.clone());
        registry.register("virtual_ips", "VirtualIP objects", metrics.virtual_ips.clone());
        registry.register("leads", "1 while this controller is the one that decides", metrics.leads.clone());
        registry.register("live_speakers", "Speakers whose Lease is renewed", metrics.live_speakers.clone());
        registry.register("pool_used_addresses", "Addresses in use", metrics.used.clone());
        registry.register("pool_free_addresses", "Addresses that can still be given", metrics.free.clone());
        registry.register("queue_depth", "Objects that wait to be looked at", metrics.queued.clone());
        registry.register("writes_in_flight", "Writes that are on their way", metrics.in_flight.clone());
        registry.register("writes", "Writes by kind and result", metrics.writes.clone());
        registry.register("watch_errors", "Broken or refused watches by kind", metrics.watch_errors.clone());
        metrics
    }

    pub(super) fn count_write(&self, change: &Change, outcome: &Outcome) {
        let kind = match change {
            Change::CreateVirtualIP { .. } => "create_virtual_ip",
            Change::UpdateVirtualIP { .. } => "update_virtual_ip",
            Change::DeleteVirtualIP { .. } => "delete_virtual_ip",
            Change::RemoveClaim { .. } => "remove_claim",
            Change::ServiceStatus(_) => "service_status",
            Change::ServiceEvent { .. } => "event",
            Change::PoolStatus { .. } => "pool_status",
            Change::SpeakerOwner { .. } => "speaker_owner",
            Change::LeaseOwner { .. } => "lease_owner",
        };
        let result = match outcome {
            Outcome::Service(_) | Outcome::VirtualIP(_) | Outcome::Done => "done",
            Outcome::Conflict => "conflict",
            Outcome::Failed => "failed",
        };
        self.writes.get_or_create(&ByWrite { kind, result }).inc();
    }

    pub(super) fn count_watch_error(&self, kind: &'static str) {
        self.watch_errors.get_or_create(&ByKind { kind }).inc();
    }

    pub(super) fn show(&self, summary: Summary, in_flight: usize, leads: bool) {
        self.leads.set(i64::from(leads));
        for (reason, number) in summary.services {
            self.services.get_or_create(&ByReason { reason }).set(number);
        }
        self.virtual_ips.set(summary.virtual_ips);
        self.live_speakers.set(summary.live_speakers);
        self.queued.set(summary.queued);
        self.in_flight.set(i64::try_from(in_flight).unwrap_or(i64::MAX));
        self.used.clear();
        self.free.clear();
        for ((pool, family), (used, free)) in summary.pools {
            let labels = ByPool { pool, family };
            // Metrics are floating point; a huge IPv6 pool is rounded, nothing else is.
            self.used.get_or_create(&labels).set(used as f64);
            self.free.get_or_create(&labels).set(free as f64);
        }
    }
}
