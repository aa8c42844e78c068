//! Where the endpoints of Services are.

use std::collections::BTreeSet;

use super::{Delta, Index, Target};
use crate::{
    controller::{conditions::Endpoints, eligibility::LocalEndpoints, view::SliceView},
    ipam::Family,
};

impl Index {
    pub(super) fn handle_slices(&mut self, delta: Delta<SliceView>) {
        // A slice can be given to another Service.
        let before_of = |key: &str| self.slices.get(key).map(|slice| slice.service.clone());
        let before = match &delta {
            Delta::Apply(slice) => before_of(&slice.key),
            Delta::Delete(key, _) => before_of(key),
            Delta::Reset(_) => None,
        };
        let mut services = BTreeSet::new();
        if matches!(delta, Delta::Reset(_)) {
            services.extend(std::mem::take(&mut self.slices_of).into_keys());
            self.slices.fold(delta);
            for slice in self.slices.values() {
                self.slices_of.entry(slice.service.clone()).or_default().insert(slice.key.clone());
                services.insert(slice.service.clone());
            }
        } else {
            for key in self.slices.fold(delta) {
                if let Some(service) = &before {
                    if let Some(slices) = self.slices_of.get_mut(service) {
                        slices.remove(&key);
                    }
                    services.insert(service.clone());
                }
                if let Some(slice) = self.slices.get(&key) {
                    self.slices_of.entry(slice.service.clone()).or_default().insert(key);
                    services.insert(slice.service.clone());
                }
            }
            for service in &services {
                if self.slices_of.get(service).is_some_and(BTreeSet::is_empty) {
                    self.slices_of.remove(service);
                }
            }
        }
        for service in services {
            self.dirty.extend(self.holdings.get(&service).into_iter().flatten().map(|at| Target::VirtualIP(*at)));
            self.dirty.insert(Target::Service(service));
        }
    }

    /// The nodes with endpoints of this family: kube-proxy sends nothing from one family to the other.
    pub(super) fn endpoints(&self, service: &str, family: Family) -> LocalEndpoints {
        let mut found = LocalEndpoints::default();
        for slice in self.slices_of_family(service, family) {
            found.ready.extend(slice.ready.iter().cloned());
            found.terminating.extend(slice.terminating.iter().cloned());
        }
        found.terminating.retain(|node| !found.ready.contains(node));
        found
    }

    /// What a Service of `externalTrafficPolicy: Local` has to serve an address of this family with.
    pub(super) fn endpoint_state(&self, service: &str, family: Family) -> Endpoints {
        let found = self.endpoints(service, family);
        let mut slices = self.slices_of_family(service, family).filter(|slice| slice.has_endpoints).peekable();
        if !found.ready.is_empty() || !found.terminating.is_empty() {
            Endpoints::Serve
        } else if slices.peek().is_none() {
            Endpoints::None
        } else if slices.any(|slice| slice.names_nodes) {
            Endpoints::Unready
        } else {
            Endpoints::Nowhere
        }
    }

    fn slices_of_family(&self, service: &str, family: Family) -> impl Iterator<Item = &SliceView> {
        let slices = self.slices_of.get(service).into_iter().flatten().filter_map(|key| self.slices.get(key));
        slices.filter(move |slice| slice.family == Some(family))
    }
}
