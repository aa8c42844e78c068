//! Who waits for what: so that news of one address wakes those that it concerns, and nobody else.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
    ops::Bound,
};

use crate::ipam::Family;

/// What would change the answer that a Service got.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub(super) enum Wait {
    /// A free address of the family in this pool.
    Free(String, Family),
    /// This address: who has it, and for what.
    Address(IpAddr),
    /// Any address that is shared under this key.
    Key(String),
}

/// All Services that wait for something.
#[derive(Debug, Default)]
pub(super) struct Waiting {
    services: BTreeMap<Wait, BTreeSet<String>>,
}

impl Waiting {
    /// The Service waits for these from now on, and no more for those.
    pub(super) fn replace(&mut self, service: &str, old: &BTreeSet<Wait>, new: &BTreeSet<Wait>) {
        for wait in old.difference(new) {
            if let Some(services) = self.services.get_mut(wait) {
                services.remove(service);
                if services.is_empty() {
                    self.services.remove(wait);
                }
            }
        }
        for wait in new.difference(old) {
            self.services.entry(wait.clone()).or_default().insert(service.to_owned());
        }
    }

    /// Who waits for this.
    pub(super) fn of(&self, wait: &Wait) -> impl Iterator<Item = &String> {
        self.services.get(wait).into_iter().flatten()
    }

    /// The first one after `service` that waits for this.
    pub(super) fn next(&self, wait: &Wait, service: Option<&str>) -> Option<String> {
        let after = service.map_or(Bound::Unbounded, Bound::Excluded);
        self.services.get(wait)?.range::<str, _>((after, Bound::Unbounded)).next().cloned()
    }
}
