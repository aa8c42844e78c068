//! The API server and a controller that follows the rules of placement: facts on the wire are adopted, who is Primary stays
//! if it lives, else a standby follows under a new placement, and who is moved from stays as Leaving until the new one claims.

use std::{collections::BTreeMap, sync::Arc};

use l2lb::{
    api::{ClaimState, Role},
    speaker::{
        owner::{Epoch, LastClaim, Order, Ranked, Report, Timing},
        station::Assigned,
        wire::MacAddr,
    },
};

use crate::{
    history::{Families, MS},
    node::{NIC, mac, name},
};

/// A speaker that the controller has not heard for so long is dead.
pub const DEAD_AFTER: u64 = 15_000 * MS;
/// A move whose target has not claimed after this is asked for again.
const ASK_AGAIN: u64 = 1_500 * MS;
const STANDBYS: usize = 2;

/// What one speaker said last about one address.
#[derive(Clone, Copy, Debug)]
pub struct Claim {
    pub state: ClaimState,
    pub placement: i64,
    pub arrival: u64,
}

/// One VirtualIP object.
#[derive(Clone, Debug)]
pub struct VirtualIp {
    pub placement: i64,
    /// The Primary first.
    pub assignments: Vec<(usize, Role)>,
    pub claims: BTreeMap<usize, Claim>,
    named_at: u64,
    /// Asked for again so many times.
    again: u32,
}

pub struct Controller {
    pub vips: Vec<VirtualIp>,
    pub away: bool,
    timing: Timing,
    nodes: usize,
    families: Families,
    /// When a Lease was last seen renewed.
    seen: Vec<u64>,
    arrivals: u64,
}

impl Controller {
    pub fn new(nodes: usize, vips: usize, families: Families, timing: Timing) -> Self {
        let vip = |index: usize| {
            let primary = index % nodes;
            let others = (1..nodes).map(|step| (primary + step) % nodes).take(STANDBYS);
            let standbys = others.map(|node| (node, Role::Standby));
            VirtualIp {
                placement: 1,
                assignments: std::iter::once((primary, Role::Primary)).chain(standbys).collect(),
                claims: BTreeMap::new(),
                named_at: 0,
                again: 0,
            }
        };
        Self {
            vips: (0..vips).map(vip).collect(),
            away: false,
            timing,
            nodes,
            families,
            seen: vec![0; nodes],
            arrivals: 0,
        }
    }

    pub fn handle_renewal(&mut self, now: u64, node: usize) {
        self.seen[node] = now;
    }

    pub fn handle_report(&mut self, vip: usize, node: usize, report: &Report) {
        self.arrivals += 1;
        let claim = Claim { state: report.state, placement: report.epoch.placement, arrival: self.arrivals };
        self.vips[vip].claims.insert(node, claim);
    }

    /// The API server, or the controller, was away for a while: nobody is dead before a full period.
    pub fn handle_return(&mut self, now: u64) {
        self.seen.fill(now);
    }

    /// Looks at everything. Whether anything changed.
    pub fn decide(&mut self, now: u64) -> Vec<String> {
        let live: Vec<bool> = self.seen.iter().map(|seen| now - seen < DEAD_AFTER).collect();
        let mut said = Vec::new();
        for (index, vip) in self.vips.iter_mut().enumerate() {
            vip.claims.retain(|node, _| live[*node]);
            let before = (vip.placement, vip.assignments.clone());
            vip.decide(now, &live, self.nodes);
            if before != (vip.placement, vip.assignments.clone()) {
                said.push(format!("vip{index}: placement {} {:?}", vip.placement, vip.assignments));
            }
        }
        said
    }

    /// Names this node.
    pub fn place(&mut self, now: u64, vip: usize, node: usize) {
        let nodes = self.nodes;
        let live = vec![true; nodes];
        self.vips[vip].name(now, node, &live, nodes);
    }

    /// What the API server tells a node.
    pub fn assigned_to(&self, node: usize) -> Vec<Assigned> {
        let part = |(index, vip): (usize, &VirtualIp)| {
            let role = vip.role_of(node)?;
            let epoch = |placement| Epoch { uid: Arc::from("u"), placement };
            let last_claim = vip.claims.get(&node).and_then(|claim| {
                let finished = matches!(claim.state, ClaimState::Owner | ClaimState::Yielded | ClaimState::LinkDown);
                let owned = claim.state == ClaimState::Owner && claim.placement == vip.placement;
                finished.then(|| LastClaim { epoch: epoch(claim.placement), owned })
            });
            let ranked = |(node, _): &(usize, Role)| Ranked { node: name(*node), nic: Arc::from(NIC) };
            let order = Order {
                epoch: epoch(vip.placement),
                role,
                node: name(node),
                ranking: vip.assignments.iter().map(ranked).collect(),
                holder: vip.holder(node),
                timing: self.timing,
            };
            Some(Assigned { vip: self.families.vip(index), nic: Arc::from(NIC), order, last_claim })
        };
        self.vips.iter().enumerate().filter_map(part).collect()
    }
}

impl VirtualIp {
    pub fn primary(&self) -> usize {
        self.assignments[0].0
    }

    pub fn role_of(&self, node: usize) -> Option<Role> {
        self.assignments.iter().find(|(assigned, _)| *assigned == node).map(|(_, role)| *role)
    }

    fn holder(&self, own: usize) -> Option<MacAddr> {
        let owns = |node: usize| node != own && self.claims.get(&node).is_some_and(|c| c.state == ClaimState::Owner);
        self.assignments.iter().map(|(node, _)| *node).find(|node| owns(*node)).map(mac)
    }

    fn decide(&mut self, now: u64, live: &[bool], nodes: usize) {
        let primary = self.primary();
        let claims = self.claims.iter();
        let answering = claims
            .filter(|(_, claim)| claim.state == ClaimState::Owner && claim.placement >= self.placement)
            .max_by_key(|(_, claim)| claim.arrival)
            .map(|(node, _)| *node);
        if let Some(owner) = answering {
            self.assign(owner, live, nodes, None);
            self.again = 0;
        } else if live[primary] {
            self.assign(primary, live, nodes, None);
            // Bounded backoff.
            if now - self.named_at > ASK_AGAIN << self.again.min(5) {
                let again = self.again + 1;
                self.name(now, primary, live, nodes);
                self.again = again;
            }
        } else if let Some(next) = self.assignments.iter().map(|(node, _)| *node).find(|node| live[*node]) {
            self.name(now, next, live, nodes);
        } else if let Some(next) = (0..nodes).find(|node| live[*node]) {
            self.name(now, next, live, nodes);
        }
    }

    fn name(&mut self, now: u64, node: usize, live: &[bool], nodes: usize) {
        let highest = self.claims.values().map(|claim| claim.placement).max().unwrap_or(0);
        let before = self.primary();
        self.placement = self.placement.max(highest) + 1;
        self.named_at = now;
        self.again = 0;
        self.assign(node, live, nodes, Some(before));
    }

    /// `from` is the Primary before, if it is moved from.
    fn assign(&mut self, primary: usize, live: &[bool], nodes: usize, from: Option<usize>) {
        let claimed = self
            .claims
            .get(&primary)
            .is_some_and(|claim| claim.state == ClaimState::Owner && claim.placement >= self.placement);
        let answers = |node: usize| self.claims.get(&node).is_some_and(|claim| claim.state == ClaimState::Owner);
        let leaving: Vec<usize> = self
            .assignments
            .iter()
            .filter(|(node, role)| *role == Role::Leaving || from == Some(*node))
            .map(|(node, _)| *node)
            .filter(|node| *node != primary && !claimed && answers(*node))
            .collect();
        let kept = self.assignments.iter().filter(|(_, role)| *role == Role::Standby).map(|(node, _)| *node);
        let mut standbys: Vec<usize> = Vec::new();
        for node in kept.chain(0..nodes) {
            if standbys.len() < STANDBYS
                && node != primary
                && live[node]
                && !leaving.contains(&node)
                && !standbys.contains(&node)
            {
                standbys.push(node);
            }
        }
        self.assignments = std::iter::once((primary, Role::Primary))
            .chain(standbys.into_iter().map(|node| (node, Role::Standby)))
            .chain(leaving.into_iter().map(|node| (node, Role::Leaving)))
            .collect();
    }
}
