//! Which EndpointSlices belong to which Service.

use std::collections::BTreeSet;

use super::{Delta, Index, Target};
use crate::controller::view::SliceView;

impl Index {
    pub(super) fn handle_slices(&mut self, delta: Delta<SliceView>) {
        let mut services = BTreeSet::new();
        if matches!(delta, Delta::Reset(_)) {
            services.extend(std::mem::take(&mut self.slices_of).into_keys());
            self.slices.fold(delta);
            for slice in self.slices.values() {
                self.slices_of.entry(slice.service.clone()).or_default().insert(slice.key.clone());
                services.insert(slice.service.clone());
            }
        } else {
            // A slice may come to belong to another Service: its label can be changed.
            let key = match &delta {
                Delta::Apply(slice) => slice.key.clone(),
                Delta::Delete(key, _) => key.clone(),
                Delta::Reset(_) => return,
            };
            let before = self.slices.get(&key).map(|slice| slice.service.clone());
            if self.slices.fold(delta).is_empty() {
                return;
            }
            if let Some(service) = before {
                if let Some(slices) = self.slices_of.get_mut(&service) {
                    slices.remove(&key);
                    if slices.is_empty() {
                        self.slices_of.remove(&service);
                    }
                }
                services.insert(service);
            }
            if let Some(slice) = self.slices.get(&key) {
                self.slices_of.entry(slice.service.clone()).or_default().insert(key);
                services.insert(slice.service.clone());
            }
        }
        for service in services {
            self.dirty.extend(self.holdings.get(&service).into_iter().flatten().map(|at| Target::VirtualIP(*at)));
            self.dirty.insert(Target::Service(service));
        }
    }
}
