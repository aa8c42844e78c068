//! IPPools, with their ranges and selectors read.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::LabelSelector;
use kube::{ResourceExt as _, core::Selector};

use super::View;
use crate::{
    api::{self, FailoverClass, IPPool, IPPoolStatus},
    ipam::{AddressRange, Family, Pool, PoolConfig},
};

/// An IPPool, with its ranges and selectors read.
#[derive(Clone, Debug, PartialEq)]
pub struct PoolView {
    /// Its name.
    pub name: String,
    /// Its age: seconds of creation, by the API server's clock.
    pub created: i64,
    /// Its generation.
    pub generation: Option<i64>,
    /// What the allocator is to know.
    pub config: PoolConfig,
    /// What of the spec cannot be read, one sentence each.
    pub problems: Vec<String>,
    /// Which Services may use it.
    pub service_selector: Option<Selector>,
    /// Namespaces that may use it.
    pub namespaces: BTreeSet<String>,
    /// Namespaces that may use it, by labels.
    pub namespace_selector: Option<Selector>,
    /// Who announces.
    pub announce: AnnounceView,
    /// The status as it stands.
    pub status: IPPoolStatus,
}
view!(PoolView, name);

/// Who announces the addresses of a pool.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct AnnounceView {
    /// Which nodes may.
    pub node_selector: Option<Selector>,
    /// Globs of interface names, in order.
    pub interfaces: Vec<String>,
    /// Weights and nodes.
    pub preferred: Vec<(u32, Selector)>,
    /// How soon a silent owner is replaced.
    pub failover: FailoverClass,
}

impl From<&IPPool> for PoolView {
    fn from(pool: &IPPool) -> Self {
        let mut problems = Vec::new();
        let spec = &pool.spec;
        let mut ranges = |field: &str, items: &[api::AddressRangeSpec]| -> Vec<AddressRange> {
            let read = items.iter().enumerate().filter_map(|(at, item)| match item.0.parse() {
                Ok(range) => Some(range),
                Err(error) => {
                    problems.push(format!("spec.{field}[{at}]: {error}"));
                    None
                }
            });
            read.collect()
        };
        let addresses = ranges("addresses", &spec.addresses);
        let exclude = ranges("exclude", &spec.exclude);
        let incomplete = addresses.len() < spec.addresses.len();
        let mut withheld = (exclude.len() < spec.exclude.len()).then_some("what spec.exclude holds back is not known");
        if spec.addresses.is_empty() {
            problems.push("spec.addresses: is empty; write at least one address, CIDR or range".to_owned());
        }
        let mut selector = |field: &str, selector: Option<&LabelSelector>| {
            let selector = selector?;
            Selector::try_from(selector.clone())
                .inspect_err(|_| {
                    problems.push(format!("spec.{field}: {}", selector_fault(selector)));
                    withheld = Some("whom it is for is not known");
                })
                .ok()
        };
        let service_selector = selector("serviceSelector", spec.service_selector.as_ref());
        let namespace_selector = selector("namespaceSelector", spec.namespace_selector.as_ref());
        let node_selector = selector("announce.nodeSelector", spec.announce.node_selector.as_ref());
        let preferred = spec.announce.preferred_nodes.iter().enumerate().filter_map(|(at, preferred)| {
            let field = format!("announce.preferredNodes[{at}].selector");
            Some((preferred.weight, selector(&field, Some(&preferred.selector))?))
        });
        let preferred = preferred.collect();
        if let Some(reason) = withheld {
            // Handing out what may be excluded, or to whom it may not be given, would be worse than handing out nothing.
            problems.push(format!("nothing is handed out until this is corrected, because {reason}"));
        }
        let config = PoolConfig {
            name: pool.name_any(),
            addresses,
            exclude,
            auto_assign: spec.auto_assign,
            avoid_buggy_ips: spec.avoid_buggy_ips,
            priority: spec.priority,
            selective: false,
            incomplete,
            halted: withheld.is_some(),
        };
        if problems.is_empty() && !Family::ALL.into_iter().any(|family| Pool::new(config.clone()).lists_family(family))
        {
            let fault = if spec.exclude.is_empty() {
                "spec.avoidBuggyIPs leaves out"
            } else if spec.avoid_buggy_ips {
                "spec.exclude and avoidBuggyIPs leave out"
            } else {
                "spec.exclude takes out"
            };
            problems.push(format!("{fault} all of spec.addresses; leave something to give"));
        }
        let selects_all = |selector: &Option<Selector>| selector.as_ref().is_none_or(Selector::selects_all);
        let selective =
            !selects_all(&service_selector) || !selects_all(&namespace_selector) || !spec.namespaces.is_empty();
        Self {
            name: pool.name_any(),
            created: pool.metadata.creation_timestamp.as_ref().map_or(i64::MAX, |time| time.0.as_second()),
            generation: pool.metadata.generation,
            config: PoolConfig { selective, ..config },
            problems,
            service_selector,
            namespaces: spec.namespaces.iter().cloned().collect(),
            namespace_selector,
            announce: AnnounceView {
                node_selector,
                interfaces: spec.announce.interfaces.clone(),
                preferred,
                failover: spec.announce.failover,
            },
            status: pool.status.clone().unwrap_or_default(),
        }
    }
}

/// What is wrong with a selector that cannot be read.
fn selector_fault(selector: &LabelSelector) -> String {
    let unknown = selector
        .match_expressions
        .iter()
        .flatten()
        .find(|expression| !["In", "NotIn", "Exists", "DoesNotExist"].contains(&expression.operator.as_str()));
    match unknown {
        Some(expression) => {
            format!("'{}' is no operator; write In, NotIn, Exists or DoesNotExist", expression.operator)
        }
        None => "an expression with In or NotIn has no values; write at least one".to_owned(),
    }
}
