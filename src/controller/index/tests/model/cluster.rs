//! An API server whose watches lag behind, speakers, and a controller that may die at any moment.
//!
//! What changes is queued for the watch of its kind and reaches the index when it is delivered: the kinds in any order, the
//! news of one kind in theirs. `truth` is what is so, `known` is what the index has been told.

mod api_server;
mod objects;
mod speakers;

use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::net::IpAddr;

use serde_json::{Value, json};

use super::super::super::*;
use super::super::world::{applied, read, taken_over};
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
        let pool = PoolFact::plain(Addrs { fours: 0b111, ..Addrs::default() }, 0);
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
