//! What a speaker counts. Counters of the receive path are looked up once, at the start, so that counting is one atomic add.

use std::{net::IpAddr, sync::Arc};

use prometheus_client::{
    metrics::{counter::Counter, family::Family, gauge::Gauge},
    registry::Registry,
};

use super::{
    drop_reason::DropReason,
    triage::Queue,
    wire::{AnnouncementForm, Message},
};

type Labelled = Family<[(&'static str, &'static str); 1], Counter>;

/// A speaker's metrics. Clones count together.
#[derive(Clone, Debug)]
pub struct Metrics {
    /// Frames that passed the filter.
    pub received: Counter,
    /// ARP requests answered.
    pub answered: Counter,
    /// Neighbour solicitations answered.
    pub answered_nd: Counter,
    /// Frames that were not answered, but are for the owner's loop. Each frame received is answered, handed over, or dropped.
    pub handed_over: Counter,
    /// Frames that passed the filter and found the socket's receive buffer full: they were not received.
    pub overruns: Counter,
    /// Receive threads that ended or were stuck, and were replaced.
    pub threads_replaced: Counter,
    /// When the API server last took a renewal of this speaker's Lease, in seconds since 1970; 0 before the first.
    pub lease_renewed: Gauge,
    /// Receive errors of sockets, such as a link that went down.
    pub receive_errors: Counter,
    /// Times that the kernel told more about interfaces than could be read.
    pub link_news_lost: Counter,
    /// Frames that could not be sent.
    pub send_errors: Counter,
    /// Virtual IPs that this node answers for.
    pub owned: Gauge,
    /// Virtual IPs that this node has a part in.
    pub assigned: Gauge,
    /// Claims reported to the API server.
    pub claims_reported: Counter,
    /// Writes to the API server that failed and are tried again.
    pub api_write_errors: Counter,
    dropped: Arc<[Counter]>,
    sent_announcement_requests: Counter,
    sent_announcement_replies: Counter,
    sent_advertisements: Counter,
    sent_probes: Counter,
    sent_probes_nd: Counter,
    sent_monitoring: Counter,
    overflow_claims: Counter,
    overflow_requests: Counter,
    overflow_strangers: Counter,
}

impl Metrics {
    /// Registers everything in `registry`.
    pub fn register(registry: &mut Registry) -> Self {
        let registry = registry.sub_registry_with_prefix("l2lb_speaker");
        let mut counter = |name: &str, help: &str| {
            let counter = Counter::default();
            registry.register(name, help, counter.clone());
            counter
        };
        let received = counter("frames_received", "Frames that passed the filter of a NIC");
        let handed_over = counter("frames_handed_over", "Frames not answered, but heard by the owner's loop");
        let overruns = counter("receive_buffer_overruns", "Frames lost because a socket's receive buffer was full");
        let threads_replaced = counter("receive_threads_replaced", "Receive threads that ended or were stuck");
        let receive_errors = counter("receive_errors", "Errors while receiving, such as a link that went down");
        let link_news_lost =
            counter("link_news_lost", "Times that the kernel told more about interfaces than could be read in time");
        let send_errors = counter("send_errors", "Frames that could not be sent");
        let claims_reported = counter("claims_reported", "Claims written to the API server");
        let api_write_errors = counter("api_write_errors", "Writes to the API server that failed and are tried again");
        let sent_monitoring =
            counter("monitoring_requests_sent", "Requests sent to other speakers, to see whether they answer");
        let (owned, assigned, lease_renewed) = (Gauge::default(), Gauge::default(), Gauge::default());
        let lease_help = "When the API server last took a renewal of this speaker's Lease, in seconds since 1970";
        registry.register("lease_renewed_timestamp_seconds", lease_help, lease_renewed.clone());
        registry.register("virtual_ips_owned", "Virtual IPs that this node answers for", owned.clone());
        registry.register("virtual_ips_assigned", "Virtual IPs that this node has a part in", assigned.clone());
        let [answered, probes, dropped, announcements, overflows] = std::array::from_fn(|_| Labelled::default());
        registry.register("requests_answered", "ARP requests and neighbour solicitations answered", answered.clone());
        registry.register("probes_sent", "ARP probes, and their like in neighbour discovery, sent", probes.clone());
        registry.register("frames_dropped", "Received frames that led to nothing", dropped.clone());
        registry.register(
            "announcements_sent",
            "Gratuitous ARP frames and unsolicited neighbour advertisements sent",
            announcements.clone(),
        );
        registry.register("queue_overflows", "Packets lost because the owner's loop was behind", overflows.clone());
        let labelled = |family: &Labelled, label, value| family.get_or_create(&[(label, value)]).clone();
        Self {
            received,
            answered: labelled(&answered, "protocol", "arp"),
            answered_nd: labelled(&answered, "protocol", "nd"),
            handed_over,
            overruns,
            threads_replaced,
            lease_renewed,
            receive_errors,
            link_news_lost,
            send_errors,
            owned,
            assigned,
            claims_reported,
            api_write_errors,
            dropped: DropReason::ALL.iter().map(|reason| labelled(&dropped, "reason", reason.as_str())).collect(),
            sent_announcement_requests: labelled(&announcements, "form", "request"),
            sent_announcement_replies: labelled(&announcements, "form", "reply"),
            sent_advertisements: labelled(&announcements, "form", "advertisement"),
            sent_probes: labelled(&probes, "protocol", "arp"),
            sent_probes_nd: labelled(&probes, "protocol", "nd"),
            sent_monitoring,
            overflow_claims: labelled(&overflows, "queue", "claims"),
            overflow_requests: labelled(&overflows, "queue", "requests"),
            overflow_strangers: labelled(&overflows, "queue", "strangers"),
        }
    }

    /// How many frames were dropped for this reason.
    pub fn dropped_for(&self, reason: DropReason) -> u64 {
        self.dropped.get(reason as usize).map_or(0, Counter::get)
    }

    /// Counts a dropped frame.
    pub fn dropped(&self, reason: DropReason) {
        // The counters were made from ALL, whose order is that of the discriminants.
        if let Some(counter) = self.dropped.get(reason as usize) {
            counter.inc();
        }
    }

    /// Counts a frame that was sent.
    pub fn sent(&self, message: &Message) {
        match message {
            Message::Answer { vip: IpAddr::V6(_), .. } => &self.answered_nd,
            Message::Announcement { vip: IpAddr::V6(_), .. } => &self.sent_advertisements,
            Message::Probe { vip: IpAddr::V6(_), .. } => &self.sent_probes_nd,
            Message::Answer { .. } => &self.answered,
            Message::Announcement { form: AnnouncementForm::Request, .. } => &self.sent_announcement_requests,
            Message::Announcement { form: AnnouncementForm::Reply, .. } => &self.sent_announcement_replies,
            Message::Probe { .. } => &self.sent_probes,
            Message::Request { .. } => &self.sent_monitoring,
        }
        .inc();
    }

    /// Counts a packet that found its queue full.
    pub fn overflowed(&self, queue: Queue) {
        match queue {
            Queue::Claims => &self.overflow_claims,
            Queue::Requests => &self.overflow_requests,
            Queue::Strangers => &self.overflow_strangers,
        }
        .inc();
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_reason_has_a_series_from_the_start_and_counts_for_itself() {
        let mut registry = Registry::default();
        let metrics = Metrics::register(&mut registry);
        metrics.dropped(DropReason::NotOwner);
        let mut text = String::new();
        prometheus_client::encoding::text::encode(&mut text, &registry).unwrap();
        for reason in DropReason::ALL {
            let expected = u32::from(*reason == DropReason::NotOwner);
            let line = format!("l2lb_speaker_frames_dropped_total{{reason=\"{reason}\"}} {expected}\n");
            assert!(text.contains(&line), "{line} in {text}");
        }
    }
}
