//! The speakers' Leases: a sign of life each, and an object that goes with its Node.

use std::{
    collections::{BTreeMap, BTreeSet},
    time::Duration,
};

use super::{Delta, Index, Target};
use crate::{
    api,
    controller::{change::Change, view::LeaseView},
};

/// What is known of a Lease besides that it is renewed.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct LeaseObject {
    namespace: String,
    uid: String,
    owner_nodes: BTreeSet<String>,
}

impl Index {
    pub(super) fn handle_leases(&mut self, delta: Delta<LeaseView>, now: Duration) {
        match delta {
            Delta::Apply(lease) => {
                let (node, object) = object(&lease);
                self.liveness.handle_lease(lease, now);
                if self.leases.get(&node) != Some(&object) {
                    self.leases.insert(node.clone(), object);
                    self.object_changed(Target::Lease(node));
                }
            }
            Delta::Reset(leases) => {
                self.leases_synced = true;
                let objects: BTreeMap<_, _> = leases.iter().map(object).collect();
                self.liveness.handle_reset(leases, now);
                let before = std::mem::replace(&mut self.leases, objects);
                let changed = self.leases.iter().filter(|(node, object)| before.get(*node) != Some(*object));
                let changed: Vec<String> = changed.map(|(node, _)| node.clone()).collect();
                changed.into_iter().for_each(|node| self.object_changed(Target::Lease(node)));
                self.forget_speakers();
            }
            // A Lease that is gone is not renewed; that is all it says, while there is a Node.
            Delta::Delete(key, uid) => {
                let name = key.rsplit('/').next().unwrap_or_default();
                if let Some(node) = name.strip_prefix(&api::speaker_lease_name(""))
                    && self.leases.get(node).is_some_and(|known| uid.is_empty() || known.uid == uid)
                {
                    self.leases.remove(node);
                    self.forget_speakers();
                }
            }
        }
    }

    /// Of Nodes that are gone nothing is kept, as soon as their Leases are gone as well.
    pub(super) fn forget_speakers(&mut self) {
        if self.nodes.is_synced() && self.leases_synced {
            let (nodes, leases) = (&self.nodes, &self.leases);
            self.liveness.handle_gone(|node| nodes.get(node).is_none() && !leases.contains_key(node));
            self.claimed_at.retain(|node, _| nodes.get(node).is_some());
        }
    }

    /// Whether the Lease has to be tied to its Node.
    pub(super) fn derive_lease(&self, node: &str) -> Option<Change> {
        let (lease, owner) = (self.leases.get(node)?, self.nodes.get(node)?);
        (!lease.owner_nodes.contains(&owner.uid)).then(|| Change::LeaseOwner {
            namespace: lease.namespace.clone(),
            node: node.to_owned(),
            node_uid: owner.uid.clone(),
            lease_uid: lease.uid.clone(),
        })
    }
}

fn object(lease: &LeaseView) -> (String, LeaseObject) {
    let LeaseView { namespace, uid, owner_nodes, .. } = lease.clone();
    (lease.node.clone(), LeaseObject { namespace, uid, owner_nodes })
}
