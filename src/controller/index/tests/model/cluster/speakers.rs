//! The speakers: they renew their Leases and do what they are told.

use super::*;

impl Cluster {
    /// The speaker renews its Lease.
    pub fn renew(&mut self, node: &str) {
        let uid = self.truth.nodes.get(node).map_or(0, |node| node.uid);
        self.beats.entry(node.to_owned()).or_insert((0, uid)).0 = self.now.as_millis() as u64;
        self.lease_changed(node);
    }

    /// A Lease goes with its Node.
    pub fn remove_lease(&mut self, node: &str) {
        if self.beats.remove(node).is_some() {
            self.lease_changed(node);
        }
    }

    pub(super) fn lease_changed(&mut self, node: &str) {
        let input = match self.beats.contains_key(node) {
            true => Delta::Apply(self.lease_view(node)),
            false => Delta::Delete(format!("l2lb-system/l2lb-speaker-{node}"), String::new()),
        };
        let is_there = self.beats.contains_key(node);
        let name = node.to_owned();
        self.tell(Watch::Lease, Input::Lease(input), move |known, now| {
            if is_there {
                known.heard.insert(name, now);
            }
        });
    }

    pub(super) fn lease_view(&self, node: &str) -> LeaseView {
        let (beat, owner) = self.beats[node];
        let lease = json!({
            "metadata": {
                "name": format!("l2lb-speaker-{node}"), "namespace": "l2lb-system", "uid": format!("uid-lease-{node}"),
                "ownerReferences": [{ "apiVersion": "v1", "kind": "Node", "name": node, "uid": format!("uid-{node}-{owner}") }],
            },
            "spec": { "holderIdentity": node, "renewTime": format!("2026-01-01T00:00:00.{beat:09}Z") },
        });
        LeaseView::read(&read::<k8s_openapi::api::coordination::v1::Lease>(&lease)).unwrap()
    }

    // The speakers.

    /// Every living speaker does what it is told.
    pub fn speak(&mut self) {
        for node in self.alive.clone() {
            self.speak_alone(&node);
        }
    }

    /// The speaker of this node does what it is told by the VirtualIPs that bear its label.
    pub fn speak_alone(&mut self, node: &str) {
        if !self.alive.contains(node) || !self.truth.speakers.contains_key(node) {
            return;
        }
        for name in self.vips.keys().cloned().collect::<Vec<_>>() {
            let mut vip = self.vips[&name].clone();
            let address: IpAddr = vip.spec.address.parse().unwrap();
            let Some(entry) = vip.spec.assignments.iter().find(|entry| entry.node == node).cloned() else { continue };
            let (uid, placement) = (vip.metadata.uid.clone().unwrap(), vip.spec.placement);
            let claims = vip.status.clone().unwrap_or_default().claims;
            let mine = claims.iter().find(|claim| claim.node == node && claim.uid == uid).cloned();
            let primary = vip.spec.assignments.iter().find(|entry| entry.role == Role::Primary);
            let handed_over = claims.iter().any(|claim| {
                claim.node != node
                    && claim.state == ClaimState::Owner
                    && claim.uid == uid
                    && primary.is_some_and(|primary| primary.node == claim.node)
            });
            let is_foreign = self.foreign.contains(&address);
            let has_link = self.truth.speakers[node].nics != Nics::NoLink;
            let state = mine.as_ref().map(|claim| claim.state);
            let (state, placement, conflict) = match (entry.role, state) {
                (Role::Primary, _) if !has_link => (ClaimState::LinkDown, placement, false),
                (Role::Primary, Some(ClaimState::Owner)) => (ClaimState::Owner, placement, is_foreign),
                (Role::Primary, _) if is_foreign => (ClaimState::Blocked, placement, true),
                (Role::Primary, _) => (ClaimState::Owner, placement, false),
                (_, Some(ClaimState::Owner)) if handed_over => {
                    (ClaimState::Yielded, mine.as_ref().map_or(placement, |claim| claim.placement), false)
                }
                _ => continue,
            };
            let claim = Claim {
                node: node.to_owned(),
                interface: entry.interface.clone(),
                mac: "02:00:00:00:01:01".to_owned(),
                state,
                since: read(&json!("2026-01-01T00:00:00Z")),
                reason: String::new(),
                conflict_mac: conflict.then(|| "02:00:00:00:ff:ff".to_owned()),
                uid,
                placement,
            };
            if mine.as_ref() == Some(&claim) {
                continue;
            }
            let claims = &mut vip.status.get_or_insert_default().claims;
            match claims.iter_mut().find(|claim| claim.node == node) {
                Some(old) => *old = claim,
                None => claims.push(claim),
            }
            self.put_vip(vip);
        }
    }

    /// The first living standby of each address has lost sight of the owner, and claims.
    pub fn take_over(&mut self) {
        for name in self.vips.keys().cloned().collect::<Vec<_>>() {
            if let Some(vip) = taken_over(&self.vips[&name], |node| self.alive.contains(node)) {
                self.put_vip(vip);
            }
        }
    }
}
