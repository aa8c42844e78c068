//! An API server whose watches lag behind, speakers, and a controller that may die at any moment.
//!
//! What changes is queued for the watch of its kind and reaches the index when it is delivered: the kinds in any order, the
//! news of one kind in theirs. `truth` is what is so, `known` is what the index has been told.

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::super::*;
use super::super::world::read;
use super::{facts::*, judge::Judge};
use crate::{
    api::{Claim, IPPool, Speaker, VirtualIP},
    controller::{change::ServiceStatus, index::virtual_ip_labels},
};

/// The kinds that are watched.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub enum Watch {
    Service,
    Slice,
    Node,
    Namespace,
    Pool,
    VirtualIP,
    Speaker,
    ServiceRange,
    Lease,
}

pub const WATCHES: [Watch; 9] = [
    Watch::Service,
    Watch::Slice,
    Watch::Node,
    Watch::Namespace,
    Watch::Pool,
    Watch::VirtualIP,
    Watch::Speaker,
    Watch::ServiceRange,
    Watch::Lease,
];

type Learn = Box<dyn FnOnce(&mut Facts, Duration)>;

/// What a watch has to tell, and what is known once it has.
struct News {
    input: Input,
    learn: Learn,
}

/// What becomes of a write.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    Done,
    /// It is done, and the answer is lost.
    AnswerLost,
    /// It is not done.
    Refused,
}

#[derive(Default)]
pub struct Shown {
    pub version: u64,
    pub managed: bool,
    pub status: Value,
}

pub struct Cluster {
    pub index: Index,
    pub now: Duration,
    pub truth: Facts,
    pub known: Facts,
    pub shown: BTreeMap<String, Shown>,
    pub pool_status: BTreeMap<String, Value>,
    pub vips: BTreeMap<String, VirtualIP>,
    /// Whose Lease is renewed.
    pub alive: BTreeSet<String>,
    /// Addresses for which a host answers that is none of ours.
    pub foreign: BTreeSet<IpAddr>,
    pub judge: Judge,
    /// Whether something was told or written since [`Judge::polled`] looked.
    pub has_news: bool,
    /// The Leases: last renewal, and the uid of the Node that owns each.
    beats: BTreeMap<String, (u64, u64)>,
    queues: BTreeMap<Watch, VecDeque<News>>,
    /// Writes that the index wants and nobody has carried out yet.
    pub writes: VecDeque<(Target, Change)>,
    /// Writes of controllers that are gone.
    pub late: VecDeque<Change>,
    last_version: u64,
}

impl Cluster {
    /// Three nodes, two namespaces, one pool, and a controller that has listed everything.
    pub fn new() -> Self {
        let mut cluster = Self {
            index: Index::new(None),
            now: Duration::from_secs(100),
            truth: Facts::default(),
            known: Facts::default(),
            shown: BTreeMap::new(),
            pool_status: BTreeMap::new(),
            vips: BTreeMap::new(),
            alive: BTreeSet::new(),
            foreign: BTreeSet::new(),
            judge: Judge::default(),
            has_news: true,
            beats: BTreeMap::new(),
            queues: BTreeMap::new(),
            writes: VecDeque::new(),
            late: VecDeque::new(),
            last_version: 1,
        };
        for (number, space) in SPACES.iter().enumerate() {
            cluster.truth.spaces.insert((*space).to_owned(), (number == 1).then_some(1));
        }
        for (number, name) in NODES.iter().enumerate().take(3) {
            cluster.add_node(name, number as u8 % 2);
        }
        let pool = PoolFact {
            addresses: Addrs { fours: 0b111, ..Addrs::default() },
            exclude: Addrs::default(),
            bad: None,
            auto: true,
            avoid_buggy: false,
            priority: None,
            tier: None,
            spaces: vec![],
            env: None,
            zone: None,
            interface: None,
            fast: false,
            created: 0,
        };
        cluster.truth.pools.insert("lan".to_owned(), pool);
        cluster.restart();
        cluster
    }

    pub fn add_node(&mut self, name: &str, zone: u8) {
        let uid = self.next_version();
        let node = NodeFact {
            uid,
            ready: true,
            excluded: false,
            zone,
            drain: false,
            out_of_service: false,
            address: None,
            pods: None,
        };
        self.truth.nodes.insert(name.to_owned(), node);
        let speaker = SpeakerFact { draining: false, nics: Nics::One, address: None, ipvs: None };
        self.truth.speakers.insert(name.to_owned(), speaker);
        self.alive.insert(name.to_owned());
        self.beats.insert(name.to_owned(), (0, uid));
    }

    // What changes, and who is told.

    pub fn service_changed(&mut self, key: &str) {
        let fact = self.truth.services.get(key).cloned();
        let version = self.next_version();
        let shown = self.shown.entry(key.to_owned()).or_default();
        if shown.status.is_null() {
            shown.status = json!({});
        }
        shown.version = version;
        if fact.as_ref().is_none_or(|fact| fact.kind == Kind::ClusterIp)
            && let Some(status) = shown.status.as_object_mut()
        {
            status.remove("loadBalancer"); // The API server does this by itself.
        }
        let input = match &fact {
            Some(_) => Delta::Apply(self.service_view(key)),
            None => {
                let _ = self.shown.remove(key);
                Delta::Delete(key.to_owned(), String::new())
            }
        };
        let key = key.to_owned();
        self.tell(Watch::Service, Input::Service(input), move |known, _| {
            match fact {
                Some(fact) => known.services.insert(key, fact),
                None => known.services.remove(&key),
            };
        });
    }

    fn service_view(&self, key: &str) -> ServiceView {
        let shown = &self.shown[key];
        let (_, name) = key.split_once('/').unwrap();
        let object = self.truth.services[key].object(name, shown.version, shown.managed, &shown.status);
        ServiceView::from(&read::<k8s_openapi::api::core::v1::Service>(&object))
    }

    pub fn pool_changed(&mut self, name: &str) {
        let fact = self.truth.pools.get(name).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.pool_view(name)),
            None => {
                self.pool_status.remove(name);
                Delta::Delete(name.to_owned(), String::new())
            }
        };
        let name = name.to_owned();
        self.tell(Watch::Pool, Input::Pool(input), move |known, _| {
            match fact {
                Some(fact) => known.pools.insert(name, fact),
                None => known.pools.remove(&name),
            };
        });
    }

    fn pool_view(&self, name: &str) -> PoolView {
        let status = self.pool_status.get(name).cloned().unwrap_or(Value::Null);
        PoolView::from(&read::<IPPool>(&self.truth.pools[name].object(name, &status)))
    }

    pub fn space_changed(&mut self, name: &str) {
        let fact = self.truth.spaces.get(name).copied();
        let input = match fact {
            Some(_) => Delta::Apply(self.space_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::Namespace, Input::Namespace(input), move |known, _| {
            match fact {
                Some(fact) => known.spaces.insert(name, fact),
                None => known.spaces.remove(&name),
            };
        });
    }

    fn space_view(&self, name: &str) -> NamespaceView {
        NamespaceView { name: name.to_owned(), labels: read(&labels("env", self.truth.spaces[name])) }
    }

    pub fn node_changed(&mut self, name: &str) {
        let fact = self.truth.nodes.get(name).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.node_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::Node, Input::Node(input), move |known, _| {
            match fact {
                Some(fact) => known.nodes.insert(name, fact),
                None => known.nodes.remove(&name),
            };
        });
    }

    fn node_view(&self, name: &str) -> NodeView {
        NodeView::from(&read::<k8s_openapi::api::core::v1::Node>(&self.truth.nodes[name].object(name)))
    }

    pub fn speaker_changed(&mut self, name: &str) {
        let fact = self.truth.speakers.get(name).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.speaker_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::Speaker, Input::Speaker(input), move |known, _| {
            match fact {
                Some(fact) => known.speakers.insert(name, fact),
                None => known.speakers.remove(&name),
            };
        });
    }

    fn speaker_view(&self, name: &str) -> SpeakerView {
        let object = self.truth.speakers[name].object(name, self.truth.nodes.get(name));
        SpeakerView::from(&read::<Speaker>(&object))
    }

    pub fn range_changed(&mut self, name: &str) {
        let fact = self.truth.ranges.get(name).copied();
        let input = match fact {
            Some(_) => Delta::Apply(self.range_view(name)),
            None => Delta::Delete(name.to_owned(), String::new()),
        };
        let name = name.to_owned();
        self.tell(Watch::ServiceRange, Input::ServiceRange(input), move |known, _| {
            match fact {
                Some(fact) => known.ranges.insert(name, fact),
                None => known.ranges.remove(&name),
            };
        });
    }

    fn range_view(&self, name: &str) -> ServiceRangeView {
        let cidrs = [pair(self.truth.ranges[name]), "10.96.0.0/16".to_owned()];
        let object = json!({ "metadata": { "name": name }, "spec": { "cidrs": cidrs } });
        ServiceRangeView::from(&read::<k8s_openapi::api::networking::v1::ServiceCIDR>(&object))
    }

    pub fn slice_changed(&mut self, service: &str, part: u8) {
        let id = (service.to_owned(), part);
        let fact = self.truth.slices.get(&id).cloned();
        let input = match &fact {
            Some(_) => Delta::Apply(self.slice_view(service, part)),
            None => Delta::Delete(format!("{service}-{part}"), String::new()),
        };
        self.tell(Watch::Slice, Input::Slice(input), move |known, _| {
            match fact {
                Some(fact) => known.slices.insert(id, fact),
                None => known.slices.remove(&id),
            };
        });
    }

    fn slice_view(&self, service: &str, part: u8) -> SliceView {
        let object = slice_object(service, part, &self.truth.slices[&(service.to_owned(), part)]);
        SliceView::read(&read::<k8s_openapi::api::discovery::v1::EndpointSlice>(&object)).unwrap()
    }

    /// Stores the object and tells of it.
    pub fn put_vip(&mut self, mut vip: VirtualIP) -> VirtualIPView {
        vip.metadata.resource_version = Some(self.next_version().to_string());
        let view = VirtualIPView::read(&vip).unwrap();
        self.vips.insert(view.name.clone(), vip);
        self.tell(Watch::VirtualIP, Input::VirtualIP(Delta::Apply(view.clone())), |_, _| {});
        view
    }

    pub fn remove_vip(&mut self, name: &str) {
        let uid = self.vips.remove(name).and_then(|vip| vip.metadata.uid).unwrap_or_default();
        self.tell(Watch::VirtualIP, Input::VirtualIP(Delta::Delete(name.to_owned(), uid)), |_, _| {});
    }

    fn tell(&mut self, watch: Watch, input: Input, learn: impl FnOnce(&mut Facts, Duration) + 'static) {
        self.has_news = true;
        self.queues.entry(watch).or_default().push_back(News { input, learn: Box::new(learn) });
    }

    fn next_version(&mut self) -> u64 {
        self.last_version += 1;
        self.last_version
    }

    /// A number that nothing else has.
    pub fn next_uid(&mut self) -> u64 {
        self.next_version()
    }

    // The watches.

    /// The next news of this kind, if there is any.
    pub fn deliver_one(&mut self, watch: Watch) -> bool {
        let Some(news) = self.queues.get_mut(&watch).and_then(VecDeque::pop_front) else { return false };
        self.index.handle(news.input, self.now);
        (news.learn)(&mut self.known, self.now);
        self.has_news = true;
        true
    }

    pub fn deliver(&mut self, watch: Watch) {
        while self.deliver_one(watch) {}
    }

    pub fn deliver_all(&mut self) {
        WATCHES.iter().for_each(|watch| self.deliver(*watch));
    }

    /// The watch breaks and lists everything anew; what it had still to tell is lost. The list arrives when it is delivered.
    pub fn relist(&mut self, watch: Watch) {
        self.queues.remove(&watch);
        let truth = &self.truth;
        let (snapshot, kind) = (truth.clone(), watch);
        let nodes: Vec<String> = self.beats.keys().cloned().collect();
        let learn = move |known: &mut Facts, now| match kind {
            Watch::Service => known.services = snapshot.services,
            Watch::Slice => known.slices = snapshot.slices,
            Watch::Node => known.nodes = snapshot.nodes,
            Watch::Namespace => known.spaces = snapshot.spaces,
            Watch::Pool => known.pools = snapshot.pools,
            Watch::Speaker => known.speakers = snapshot.speakers,
            Watch::ServiceRange => known.ranges = snapshot.ranges,
            Watch::VirtualIP => {}
            // Who was not heard gets a full period.
            Watch::Lease => known.heard.extend(nodes.into_iter().map(|node| (node, now))),
        };
        let input = match watch {
            Watch::Service => {
                Input::Service(Delta::Reset(truth.services.keys().map(|key| self.service_view(key)).collect()))
            }
            Watch::Slice => {
                let views = truth.slices.keys().map(|(service, part)| self.slice_view(service, *part));
                Input::Slice(Delta::Reset(views.collect()))
            }
            Watch::Node => Input::Node(Delta::Reset(truth.nodes.keys().map(|name| self.node_view(name)).collect())),
            Watch::Namespace => {
                Input::Namespace(Delta::Reset(truth.spaces.keys().map(|name| self.space_view(name)).collect()))
            }
            Watch::Pool => Input::Pool(Delta::Reset(truth.pools.keys().map(|name| self.pool_view(name)).collect())),
            Watch::VirtualIP => {
                Input::VirtualIP(Delta::Reset(self.vips.values().filter_map(VirtualIPView::read).collect()))
            }
            Watch::Speaker => {
                Input::Speaker(Delta::Reset(truth.speakers.keys().map(|name| self.speaker_view(name)).collect()))
            }
            Watch::ServiceRange => {
                Input::ServiceRange(Delta::Reset(truth.ranges.keys().map(|name| self.range_view(name)).collect()))
            }
            Watch::Lease => Input::Lease(Delta::Reset(self.beats.keys().map(|node| self.lease_view(node)).collect())),
        };
        self.tell(watch, input, learn);
    }

    // The controller.

    /// The controller is replaced by one that knows nothing. What the last one had on its way may still be done.
    pub fn restart(&mut self) {
        self.late.extend(self.writes.drain(..).map(|(_, change)| change));
        self.index = Index::new(None);
        self.queues.clear();
        WATCHES.iter().for_each(|watch| self.relist(*watch));
        self.deliver_all();
        self.judge.restarted(self.now);
    }

    /// Asks the index for its next write.
    pub fn poll(&mut self) -> bool {
        let polled = self.index.poll_change(self.now);
        Judge::polled(self);
        let Some((target, change)) = polled else { return false };
        Judge::wanted(self, &target, &change);
        self.writes.push_back((target, change));
        true
    }

    /// The oldest write that waits meets its fate.
    pub fn carry(&mut self, fate: Fate) -> bool {
        let Some((target, change)) = self.writes.pop_front() else { return false };
        let outcome = match fate {
            Fate::Refused => Outcome::Failed,
            Fate::Done => self.write(&change),
            Fate::AnswerLost => {
                self.write(&change);
                Outcome::Failed
            }
        };
        self.judge.carried(&change, &outcome);
        self.index.handle_outcome(&target, outcome, self.now);
        true
    }

    /// Delivers and writes until nothing more happens.
    pub fn flow(&mut self) -> Vec<Change> {
        let mut changes = Vec::new();
        loop {
            self.deliver_all();
            while self.poll() {
                changes.push(self.writes.back().unwrap().1.clone());
                assert!(changes.len() < 1_000, "no end of writes: {:?}", &changes[990..]);
            }
            let mut progress = false;
            while self.carry(Fate::Done) {
                progress = true;
            }
            if !progress {
                return changes;
            }
        }
    }

    /// Lets time pass; living speakers renew their Leases each 5 seconds. The index is asked when it wants to be.
    pub fn pass(&mut self, time: Duration) -> Vec<Change> {
        let mut changes = Vec::new();
        let end = self.now + time;
        while self.now < end {
            let beat = Duration::from_secs((self.now.as_secs() / 5 + 1) * 5);
            let due = self.index.poll_timeout().unwrap_or(end).max(self.now + Duration::from_millis(1));
            self.now = beat.min(due).min(end);
            if self.now == beat {
                self.alive.clone().iter().for_each(|node| self.renew(node));
            }
            changes.extend(self.flow());
        }
        changes
    }

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

    fn lease_changed(&mut self, node: &str) {
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

    fn lease_view(&self, node: &str) -> LeaseView {
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

    // The API server.

    pub fn write(&mut self, change: &Change) -> Outcome {
        match change {
            Change::CreateVirtualIP { spec } => {
                let name = api::virtual_ip_name(spec.address.parse().unwrap());
                if self.vips.contains_key(&name) {
                    return Outcome::Conflict;
                }
                let mut vip = VirtualIP::new(&name, spec.clone());
                vip.metadata.uid = Some(format!("uid-vip-{}", self.next_version()));
                vip.metadata.labels = Some(virtual_ip_labels(spec));
                Outcome::VirtualIP(self.put_vip(vip))
            }
            Change::UpdateVirtualIP { resource_version, spec, .. } => {
                let name = api::virtual_ip_name(spec.address.parse().unwrap());
                let Some(mut vip) = self.same_vip(&name, resource_version) else { return Outcome::Conflict };
                vip.spec = spec.clone();
                vip.metadata.labels = Some(virtual_ip_labels(spec));
                Outcome::VirtualIP(self.put_vip(vip))
            }
            Change::RemoveClaim { address, resource_version, index, node } => {
                let name = api::virtual_ip_name(*address);
                let Some(mut vip) = self.same_vip(&name, resource_version) else { return Outcome::Conflict };
                let gone = vip.status.as_mut().unwrap().claims.remove(*index);
                assert_eq!(gone.node, *node);
                Outcome::VirtualIP(self.put_vip(vip))
            }
            Change::DeleteVirtualIP { address, resource_version, .. } => {
                let name = api::virtual_ip_name(*address);
                if self.same_vip(&name, resource_version).is_none() {
                    return Outcome::Conflict;
                }
                self.remove_vip(&name);
                Outcome::Done
            }
            Change::ServiceStatus(status) => self.write_status(status),
            Change::PoolStatus { name, status } => {
                if !self.truth.pools.contains_key(name) {
                    return Outcome::Conflict;
                }
                self.pool_status.insert(name.clone(), json!(status));
                self.pool_changed(name);
                Outcome::Done
            }
            Change::SpeakerOwner { .. } | Change::LeaseOwner { .. } | Change::ServiceEvent { .. } => Outcome::Done,
        }
    }

    fn write_status(&mut self, status: &ServiceStatus) -> Outcome {
        let key = format!("{}/{}", status.namespace, status.name);
        let Some(shown) = self.shown.get_mut(&key) else { return Outcome::Conflict };
        if shown.version.to_string() != status.resource_version {
            return Outcome::Conflict;
        }
        let ingress: Vec<Value> =
            status.addresses.iter().map(|address| json!({ "ip": address, "ipMode": "VIP" })).collect();
        let conditions: Vec<Value> = status
            .conditions
            .iter()
            .map(|wanted| {
                json!({
                    "type": wanted.type_, "status": if wanted.status { "True" } else { "False" },
                    "reason": wanted.reason, "message": wanted.message, "lastTransitionTime": "2026-01-01T00:00:00Z",
                })
            })
            .collect();
        shown.managed = !conditions.is_empty();
        shown.status = json!({ "loadBalancer": { "ingress": ingress }, "conditions": conditions });
        self.service_changed(&key);
        Outcome::Service(self.service_view(&key))
    }

    fn same_vip(&self, name: &str, version: &str) -> Option<VirtualIP> {
        self.vips.get(name).filter(|vip| vip.metadata.resource_version.as_deref() == Some(version)).cloned()
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
            let mut vip = self.vips[&name].clone();
            let mut standbys = vip.spec.assignments.iter().filter(|entry| entry.role == Role::Standby);
            let Some(standby) = standbys.find(|entry| self.alive.contains(&entry.node)).cloned() else { continue };
            let claims = &mut vip.status.get_or_insert_default().claims;
            let Some(owner) = claims.iter().find(|claim| claim.state == ClaimState::Owner).cloned() else { continue };
            claims.retain(|claim| claim.node != standby.node);
            let placement = vip.spec.placement;
            claims.push(Claim { node: standby.node, interface: standby.interface, placement, ..owner });
            self.put_vip(vip);
        }
    }

    // What there is to see.

    /// Addresses that nobody has because a foreign host does.
    pub fn quarantined(&self) -> BTreeSet<IpAddr> {
        let empty = self.vips.values().filter(|vip| vip.spec.services.is_empty());
        empty.map(|vip| vip.spec.address.parse().unwrap()).collect()
    }

    /// Whether a speaker that has a part says that a foreign host has the address, and none has it.
    pub fn is_blocked(&self, address: IpAddr) -> bool {
        let Some(vip) = self.vips.get(&api::virtual_ip_name(address)) else { return false };
        let has_part = |claim: &&Claim| vip.spec.assignments.iter().any(|entry| entry.node == claim.node);
        let states = || vip.status.iter().flat_map(|status| &status.claims).filter(has_part).map(|claim| claim.state);
        states().any(|state| state == ClaimState::Blocked) && states().all(|state| state != ClaimState::Owner)
    }

    /// Who has which address, by the VirtualIPs.
    pub fn users(&self) -> BTreeMap<IpAddr, BTreeSet<String>> {
        let users = self.vips.values().map(|vip| {
            (vip.spec.address.parse().unwrap(), vip.spec.services.iter().cloned().collect::<BTreeSet<String>>())
        });
        users.filter(|(_, users)| !users.is_empty()).collect()
    }

    /// The addresses of each Service, by the VirtualIPs.
    pub fn holdings(&self) -> BTreeMap<String, BTreeSet<IpAddr>> {
        let mut holdings: BTreeMap<String, BTreeSet<IpAddr>> = BTreeMap::new();
        for (address, users) in self.users() {
            for user in users {
                holdings.entry(user).or_default().insert(address);
            }
        }
        holdings
    }

    /// The addresses that the Service shows, in order.
    pub fn shows(&self, key: &str) -> Vec<IpAddr> {
        let ingress = self.shown.get(key).map(|shown| shown.status["loadBalancer"]["ingress"].clone());
        let entries = ingress.and_then(|ingress| ingress.as_array().cloned()).unwrap_or_default();
        entries.iter().map(|entry| entry["ip"].as_str().unwrap().parse().unwrap()).collect()
    }

    /// Status, reason and message of the condition.
    pub fn condition(&self, key: &str, type_: &str) -> Option<(bool, String, String)> {
        let conditions = self.shown.get(key)?.status["conditions"].as_array()?.clone();
        let condition = conditions.into_iter().find(|condition| condition["type"] == type_)?;
        let text = |field: &str| condition[field].as_str().unwrap().to_owned();
        Some((text("status") == "True", text("reason"), text("message")))
    }
}
