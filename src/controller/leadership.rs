//! Which of several controllers decides: a `coordination.k8s.io` Lease, taken with a precondition, judged by this process's own clock.
//!
//! [`Election`] is pure: it is told what the Lease says and when, and says what to do. [`campaign`] carries it out and publishes the
//! [`Standing`]. All controllers keep warm caches; only the one whose [`Standing`] gives a [`Leadership`] may write. The leader may
//! write until [`LEADS_FOR`] after it sent its last successful renewal; the others wait [`FREE_AFTER`] from when they last saw a change, which is later in any
//! case. That alone cannot fence a write that is slow on its way: writes carry preconditions of their own.

use std::{future::Future, time::Duration};

use k8s_openapi::{
    api::coordination::v1::{Lease, LeaseSpec},
    apimachinery::pkg::apis::meta::v1::MicroTime,
    jiff::Timestamp,
};
use kube::{Api, Client, api::PostParams, core::ObjectMeta};
use tokio::{sync::watch, time::Instant};
use tracing::{debug, info, warn};

use crate::{api::NAME_LABEL, retry::causes};

/// Name of the Lease, in the namespace of the installation.
pub const LEASE: &str = "l2lb-controller";
/// How long a leader may write after the last renewal that it sent.
pub const LEADS_FOR: Duration = Duration::from_secs(10);
/// How long a Lease must not have changed, as seen from here, before it is free.
pub const FREE_AFTER: Duration = Duration::from_secs(15);
/// How often a leader renews, and how often the others look.
const EVERY: Duration = Duration::from_secs(2);
/// A request that takes longer counts as failed.
const REQUEST_TIMEOUT: Duration = Duration::from_secs(5);

/// The right to begin a write, as of the moment when it was asked for. Only a [`Standing`] gives it.
#[derive(Clone, Copy, Debug)]
pub struct Leadership {
    until: Instant,
}

impl Leadership {
    /// When what was begun with this right has to be given up: before that no other process can lead.
    pub fn writes_end(self) -> Instant {
        self.until + FREE_AFTER.saturating_sub(LEADS_FOR)
    }
}

/// Where this process stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Standing {
    /// Another process leads, or none does yet.
    Follows,
    /// It leads until then, if it does not renew.
    Leads {
        /// The end of its right to write.
        until: Instant,
        /// Counts the times that this process came to lead: whoever decides has to know that somebody else did in between.
        term: u64,
    },
}

impl Standing {
    /// The right to write at `now`.
    pub fn leadership(self, now: Instant) -> Option<Leadership> {
        match self {
            Self::Leads { until, .. } if now < until => Some(Leadership { until }),
            _ => None,
        }
    }

    /// The term in which it leads.
    pub fn term(self) -> Option<u64> {
        match self {
            Self::Follows => None,
            Self::Leads { term, .. } => Some(term),
        }
    }
}

/// What the Lease says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Record {
    /// Who holds it; empty when it was given back.
    pub holder: String,
    /// Changes with each write.
    pub resource_version: String,
    /// How often it changed hands.
    pub transitions: i32,
}

/// What to do about the Lease now.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Move {
    /// Nothing: another one holds it.
    Wait,
    /// Make it.
    Create,
    /// Write this process in as its holder, if it is still at this version.
    Hold {
        /// The precondition.
        resource_version: String,
        /// The number to write.
        transitions: i32,
    },
}

/// The rules. Inputs: [`Election::handle_record`], [`Election::handle_unreadable`], [`Election::handle_held`]; output:
/// [`Election::standing`].
#[derive(Debug)]
pub struct Election {
    identity: String,
    seen: Option<(Record, Instant)>,
    standing: Standing,
    terms: u64,
}

impl Election {
    /// A candidate of this name, which no other process may have.
    pub fn new(identity: String) -> Self {
        Self { identity, seen: None, standing: Standing::Follows, terms: 0 }
    }

    /// What the API server says that the Lease is; `None` if there is none.
    pub fn handle_record(&mut self, now: Instant, record: Option<Record>) -> Move {
        let ours = record.as_ref().is_some_and(|record| record.holder == self.identity);
        if !ours {
            // Even if nobody holds it now: somebody may have, while this process could not look.
            self.standing = Standing::Follows;
        }
        let Some(record) = record else {
            self.seen = None;
            return Move::Create;
        };
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != record) {
            self.seen = Some((record.clone(), now));
        }
        let since = self.seen.as_ref().map_or(now, |(_, at)| *at);
        if ours || record.holder.is_empty() || now.saturating_duration_since(since) >= FREE_AFTER {
            let transitions = record.transitions.saturating_add(i32::from(!ours));
            return Move::Hold { resource_version: record.resource_version, transitions };
        }
        Move::Wait
    }

    /// The Lease could not be read: that it did not change meanwhile is no evidence, and the wait for it begins anew.
    pub fn handle_unreadable(&mut self) {
        if self.standing == Standing::Follows {
            self.seen = None;
        }
    }

    /// The API server took what was sent at `sent`: this process holds the Lease as `record` says.
    pub fn handle_held(&mut self, sent: Instant, record: Record) {
        self.seen = Some((record, sent));
        self.terms += u64::from(self.standing == Standing::Follows);
        self.standing = Standing::Leads { until: sent + LEADS_FOR, term: self.terms };
    }

    /// Where this process stands. A leader that cannot renew keeps this standing, which ends by itself.
    pub fn standing(&self) -> Standing {
        self.standing
    }
}

/// Takes part for ever, and publishes where this process stands. When `shutdown` completes, the Lease is given back.
pub async fn campaign(
    client: Client,
    namespace: &str,
    identity: String,
    standing: &watch::Sender<Standing>,
    shutdown: impl Future<Output = ()>,
) {
    let candidate = Candidate { leases: Api::namespaced(client, namespace), identity: identity.clone() };
    let mut election = Election::new(identity);
    let mut failing = false;
    let mut shutdown = std::pin::pin!(shutdown);
    loop {
        match tokio::time::timeout(REQUEST_TIMEOUT, candidate.round(&mut election)).await {
            Ok(Ok(())) => {
                if std::mem::take(&mut failing) {
                    info!(lease = LEASE, namespace, "the election Lease can be kept again");
                }
            }
            // Somebody else wrote first: the next look says who.
            Ok(Err(kube::Error::Api(status))) if status.code == 409 => debug!("the Lease was written by another one"),
            failed => {
                let cause = match failed {
                    Ok(Err(error)) => causes(&error),
                    _ => format!("no answer within {} s", REQUEST_TIMEOUT.as_secs()),
                };
                if !std::mem::replace(&mut failing, true) {
                    warn!(lease = LEASE, namespace, %cause, "the election Lease cannot be kept; trying on");
                }
                election.handle_unreadable();
            }
        }
        let now = election.standing();
        standing.send_if_modified(|published| {
            if now.term() != published.term() {
                match now {
                    Standing::Follows => info!("another controller leads"),
                    Standing::Leads { term, .. } => info!(identity = candidate.identity, term, "this controller leads"),
                }
            }
            std::mem::replace(published, now) != now
        });
        tokio::select! {
            () = &mut shutdown => break,
            () = tokio::time::sleep(EVERY) => {}
        }
    }
    if election.standing() != Standing::Follows {
        standing.send_replace(Standing::Follows);
        match tokio::time::timeout(EVERY, candidate.give_back(&election)).await {
            Ok(Ok(())) => info!("the election Lease is given back"),
            Ok(Err(error)) => warn!(%error, "the election Lease was not given back; it is free when it has run out"),
            Err(_) => warn!("the election Lease was not given back in time; it is free when it has run out"),
        }
    }
}

struct Candidate {
    leases: Api<Lease>,
    identity: String,
}

impl Candidate {
    /// One look, and what follows from it.
    async fn round(&self, election: &mut Election) -> kube::Result<()> {
        let lease = self.leases.get_opt(LEASE).await?;
        let sent = Instant::now();
        let next = election.handle_record(sent, lease.as_ref().map(record_of));
        let params = PostParams::default();
        let written = match next {
            Move::Wait => return Ok(()),
            Move::Create => self.leases.create(&params, &self.lease(&self.identity, None, 0)).await?,
            Move::Hold { resource_version, transitions } => {
                let lease = self.lease(&self.identity, Some(resource_version), transitions);
                self.leases.replace(LEASE, &params, &lease).await?
            }
        };
        election.handle_held(sent, record_of(&written));
        Ok(())
    }

    async fn give_back(&self, election: &Election) -> kube::Result<()> {
        let Some((record, _)) = &election.seen else { return Ok(()) };
        let lease = self.lease("", Some(record.resource_version.clone()), record.transitions);
        self.leases.replace(LEASE, &PostParams::default(), &lease).await.map(drop)
    }

    fn lease(&self, holder: &str, resource_version: Option<String>, transitions: i32) -> Lease {
        let labels = [(NAME_LABEL.to_owned(), "l2lb".to_owned())];
        Lease {
            metadata: ObjectMeta {
                name: Some(LEASE.to_owned()),
                labels: Some(labels.into()),
                resource_version,
                ..ObjectMeta::default()
            },
            spec: Some(LeaseSpec {
                holder_identity: Some(holder.to_owned()),
                lease_duration_seconds: i32::try_from(FREE_AFTER.as_secs()).ok(),
                lease_transitions: Some(transitions),
                renew_time: Some(MicroTime(Timestamp::now())),
                ..LeaseSpec::default()
            }),
        }
    }
}

fn record_of(lease: &Lease) -> Record {
    let spec = lease.spec.clone().unwrap_or_default();
    Record {
        holder: spec.holder_identity.unwrap_or_default(),
        resource_version: lease.metadata.resource_version.clone().unwrap_or_default(),
        transitions: spec.lease_transitions.unwrap_or_default(),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn record(holder: &str, version: u32) -> Record {
        Record { holder: holder.to_owned(), resource_version: version.to_string(), transitions: 3 }
    }

    fn hold(version: u32, transitions: i32) -> Move {
        Move::Hold { resource_version: version.to_string(), transitions }
    }

    #[test]
    fn a_lease_that_nobody_made_is_made() {
        let mut election = Election::new("a".to_owned());
        assert_eq!(election.handle_record(Instant::now(), None), Move::Create);
        assert_eq!(election.standing(), Standing::Follows, "not before the API server took it");
    }

    #[test]
    fn another_ones_lease_is_free_only_when_it_stood_still_for_a_period_seen_from_here() {
        let mut election = Election::new("a".to_owned());
        let start = Instant::now();
        assert_eq!(election.handle_record(start, Some(record("b", 1))), Move::Wait);
        assert_eq!(election.handle_record(start + FREE_AFTER - EVERY, Some(record("b", 2))), Move::Wait, "renewed");
        assert_eq!(election.handle_record(start + FREE_AFTER + EVERY, Some(record("b", 2))), Move::Wait);
        let free = start + FREE_AFTER * 2 - EVERY;
        assert_eq!(election.handle_record(free, Some(record("b", 2))), hold(2, 4));
    }

    #[test]
    fn a_lease_given_back_is_taken_at_once() {
        let mut election = Election::new("a".to_owned());
        assert_eq!(election.handle_record(Instant::now(), Some(record("", 5))), hold(5, 4));
    }

    #[test]
    fn a_leader_that_cannot_renew_may_write_no_more_before_another_one_can_take_over() {
        let mut election = Election::new("a".to_owned());
        let start = Instant::now();
        election.handle_held(start, record("a", 1));
        assert!(election.standing().leadership(start + LEADS_FOR - EVERY).is_some());
        assert!(election.standing().leadership(start + LEADS_FOR).is_none());
        assert!(LEADS_FOR + REQUEST_TIMEOUT <= FREE_AFTER);
        // It comes back, and nobody else came: it goes on, and no hands were changed.
        assert_eq!(election.handle_record(start + FREE_AFTER * 3, Some(record("a", 1))), hold(1, 3));
    }

    #[test]
    fn whoever_leads_again_after_others_may_have_led_is_in_a_new_term() {
        let mut election = Election::new("a".to_owned());
        let start = Instant::now();
        election.handle_held(start, record("a", 1));
        let first = election.standing().term();
        // Renewed, however late: nobody else led, the term goes on.
        assert_eq!(election.handle_record(start + FREE_AFTER * 2, Some(record("a", 1))), hold(1, 3));
        election.handle_held(start + FREE_AFTER * 2, record("a", 2));
        assert_eq!(election.standing().term(), first);
        // Somebody held it and gave it back, or removed it, while this process could not look.
        for (at, found) in [(3, Some(record("", 9))), (4, None)] {
            let before = election.standing().term();
            let at = start + FREE_AFTER * at;
            assert_ne!(election.handle_record(at, found), Move::Wait);
            election.handle_held(at, record("a", 10));
            assert!(election.standing().term() > before, "{:?}", election.standing());
        }
    }

    #[test]
    fn what_could_not_be_read_is_not_taken_for_silence() {
        let mut election = Election::new("a".to_owned());
        let start = Instant::now();
        assert_eq!(election.handle_record(start, Some(record("b", 1))), Move::Wait);
        election.handle_unreadable();
        // The API server is back; the leader has had no time to renew yet.
        assert_eq!(election.handle_record(start + FREE_AFTER * 4, Some(record("b", 1))), Move::Wait);
        assert_eq!(election.handle_record(start + FREE_AFTER * 5, Some(record("b", 1))), hold(1, 4));
    }

    #[test]
    fn a_leader_that_sees_another_holder_follows() {
        let mut election = Election::new("a".to_owned());
        let start = Instant::now();
        election.handle_held(start, record("a", 1));
        assert_eq!(election.handle_record(start + EVERY, Some(record("b", 2))), Move::Wait);
        assert_eq!(election.standing(), Standing::Follows);
    }
}
