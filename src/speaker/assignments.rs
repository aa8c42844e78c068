//! What the API server tells this node: its virtual IPs, and all speakers' MAC addresses.
//!
//! One task, [`watch`], reads both and sends [`News`]. The speakers are read first: without them a peer's answer would look like
//! a stranger's. A watch that breaks is begun again with backoff, for ever, and changes nothing until it is read anew.

use std::{
    collections::{BTreeMap, HashSet},
    net::IpAddr,
    sync::Arc,
    time::Duration,
};

use futures::{Stream, TryStreamExt as _, future::Either, stream};
use kube::{
    Api, Client, Resource, ResourceExt as _,
    runtime::watcher::{self, Event},
};
use tokio::sync::mpsc;
use tracing::{info, warn};

use super::{
    owner::{Epoch, LastClaim, Order, Ranked, Timing},
    peers::Peers,
    report::{Reporter, Seen},
    station::{Assigned, Change},
    wire::MacAddr,
};
use crate::{
    api::{Assignment, ClaimState, Role, Speaker, VirtualIP, address_of_name, node_label},
    retry::{Seldom, causes},
    telemetry::Health,
    watching::{self, Limits},
};

/// What the owner's loop has to know.
#[derive(Clone, Debug)]
pub enum News {
    /// This node's virtual IPs changed.
    Change(Change),
    /// Speakers' MAC addresses changed.
    Speakers(Arc<Peers>),
    /// Somebody deleted this node's Speaker object.
    OwnSpeakerGone,
}

/// Objects in one page of a list.
const PAGE: u32 = 100;
/// Names and rankings that are kept once, however many addresses have them.
const MAX_SHARED: usize = 4096;

/// A watch that fails is tried again about once a second.
const LOG_EVERY: Duration = Duration::from_secs(30);

/// The part of readiness that says whether the API was ever read.
pub const HEALTH_PART: &str = "api server";

/// Watches until `news` is closed. The reporter hears how this node's claims stand.
pub async fn watch(client: Client, node: Arc<str>, news: mpsc::Sender<News>, health: Health, reporter: Arc<Reporter>) {
    // Small pages: what a list takes for a moment, the process keeps.
    let all = watcher::Config::default().page_size(PAGE);
    let mine = all.clone().labels(&node_label(&node));
    let speakers = events::<Speaker>(Api::all(client.clone()), all, "Speakers");
    let virtual_ips = events::<VirtualIP>(Api::all(client), mine, "VirtualIPs");
    let (mut speakers, mut virtual_ips) = (Box::pin(speakers), Box::pin(virtual_ips));
    let mut known = SpeakerTable::new(node.clone());
    let mut assigned = AssignmentTable::new(node.clone());
    loop {
        // The virtual IPs wait until the speakers are known.
        let event = if known.synced {
            tokio::select! {
                event = speakers.try_next() => Either::Left(event),
                event = virtual_ips.try_next() => Either::Right(event),
            }
        } else {
            Either::Left(speakers.try_next().await)
        };
        let sent = match event {
            Either::Left(Ok(Some(event))) => known.handle(event),
            Either::Right(Ok(Some(event))) => {
                match &event {
                    Event::Apply(object) => show(&reporter, object, &node, false),
                    Event::InitApply(object) => show(&reporter, object, &node, true),
                    Event::Init | Event::InitDone | Event::Delete(_) => {}
                }
                let change = assigned.handle(event);
                if matches!(change, Some(Change::Reset(_))) {
                    health.ready(HEALTH_PART);
                    info!("virtual IPs read");
                }
                change.map(News::Change).into_iter().collect()
            }
            // A watcher never ends, and its errors were logged on the way here.
            Either::Left(_) | Either::Right(_) => Vec::new(),
        };
        for item in sent {
            if news.send(item).await.is_err() {
                return;
            }
        }
    }
}

/// Lets the reporter know how this node's claim stands, where it has a part.
fn show(reporter: &Reporter, object: &VirtualIP, node: &str, listed: bool) {
    let Some(vip) = address_of(object) else { return };
    if !object.spec.assignments.iter().any(|entry| entry.node == node) {
        return;
    }
    let mut claims = object.status.iter().flat_map(|status| &status.claims);
    let seen = Seen {
        vip,
        uid: object.uid().unwrap_or_default(),
        version: object.resource_version().and_then(|version| version.parse().ok()),
        claim: claims.find(|claim| claim.node == node).cloned(),
    };
    reporter.handle_seen(seen, listed);
}

/// The events of one kind, for ever. Failures are waited out, and logged now and then.
fn events<K>(
    api: Api<K>,
    config: watcher::Config,
    what: &'static str,
) -> impl Stream<Item = Result<Event<K>, std::convert::Infallible>>
where
    K: Resource + Clone + std::fmt::Debug + serde::de::DeserializeOwned + Send + 'static,
    K::DynamicType: Default,
{
    use futures::StreamExt as _;
    let mut failures = Seldom::every(LOG_EVERY);
    watching::watch(api, config, Limits::default()).flat_map(move |event| {
        let cause = match event {
            Some(Ok(event)) => return stream::iter(Some(Ok(event))),
            Some(Err(error)) => causes(&error),
            None => "the list is not answered".to_owned(),
        };
        failures.log(&format!("watching {what} failed: {cause}; trying again, and keeping what is known"));
        stream::iter(None)
    })
}

/// The names and MAC addresses of a node's interfaces.
type Nics = Vec<(Arc<str>, MacAddr)>;

/// All speakers' MAC addresses, by node.
struct SpeakerTable {
    own: Arc<str>,
    synced: bool,
    arriving: Option<BTreeMap<Arc<str>, Nics>>,
    nodes: BTreeMap<Arc<str>, Nics>,
}

impl SpeakerTable {
    fn new(own: Arc<str>) -> Self {
        Self { own, synced: false, arriving: None, nodes: BTreeMap::new() }
    }

    fn handle(&mut self, event: Event<Speaker>) -> Vec<News> {
        let before = self.nodes.clone();
        let mut own_gone = false;
        match event {
            Event::Init => self.arriving = Some(BTreeMap::new()),
            Event::InitApply(speaker) => {
                let (node, macs) = macs_of(&speaker);
                self.arriving.get_or_insert_default().insert(node, macs);
            }
            Event::InitDone => {
                let had = self.nodes.contains_key(&self.own);
                self.nodes = self.arriving.take().unwrap_or_default();
                own_gone = had && !self.nodes.contains_key(&self.own);
                if !std::mem::replace(&mut self.synced, true) {
                    return vec![self.peers()];
                }
            }
            Event::Apply(speaker) => {
                let (node, macs) = macs_of(&speaker);
                self.nodes.insert(node, macs);
            }
            Event::Delete(speaker) => {
                let name = speaker.name_any();
                own_gone = *name == *self.own;
                self.nodes.remove(name.as_str());
            }
        }
        let changed = (self.nodes != before).then(|| self.peers());
        changed.into_iter().chain(own_gone.then_some(News::OwnSpeakerGone)).collect()
    }

    fn peers(&self) -> News {
        let of = |(node, nics): (&Arc<str>, &Nics)| {
            let node = node.clone();
            nics.clone().into_iter().map(move |(nic, mac)| (node.clone(), nic, mac))
        };
        let all = self.nodes.iter().flat_map(of);
        News::Speakers(Arc::new(Peers::new(self.own.clone(), all)))
    }
}

fn macs_of(speaker: &Speaker) -> (Arc<str>, Nics) {
    let interfaces = speaker.status.iter().flat_map(|status| &status.interfaces);
    let nics = interfaces.filter_map(|nic| Some((Arc::from(nic.name.as_str()), nic.mac.parse().ok()?))).collect();
    (Arc::from(speaker.name_any()), nics)
}

/// Turns watch events of this node's VirtualIPs into changes; a relist into one reset.
struct AssignmentTable {
    node: Arc<str>,
    arriving: Vec<Assigned>,
    shared: Shared,
}

impl AssignmentTable {
    fn new(node: Arc<str>) -> Self {
        Self { node, arriving: Vec::new(), shared: Shared::default() }
    }

    fn handle(&mut self, event: Event<VirtualIP>) -> Option<Change> {
        match event {
            Event::Init => {
                self.arriving.clear();
                None
            }
            Event::InitApply(object) => {
                self.arriving.extend(assigned(&object, &self.node, &mut self.shared));
                None
            }
            Event::InitDone => Some(Change::Reset(std::mem::take(&mut self.arriving))),
            Event::Apply(object) => match assigned(&object, &self.node, &mut self.shared) {
                Some(assigned) => Some(Change::Apply(assigned)),
                None => address_of(&object).map(Change::Remove),
            },
            // Deleted, or without this node's label now.
            Event::Delete(object) => address_of(&object).map(Change::Remove),
        }
    }
}

/// The address that the object is named after.
fn address_of(object: &VirtualIP) -> Option<IpAddr> {
    address_of_name(&object.name_any())
}

/// This node's part in a virtual IP; `None` if it has none.
fn assigned(object: &VirtualIP, node: &Arc<str>, shared: &mut Shared) -> Option<Assigned> {
    let name = object.name_any();
    let Some(vip) = address_of(object) else {
        warn!(virtual_ip = name, "the object is not named after an address");
        return None;
    };
    let assignments = &object.spec.assignments;
    let own = assignments.iter().find(|assignment| *assignment.node == **node)?;
    let mut ranked: Vec<_> = assignments.iter().collect();
    ranked.sort_by_key(|assignment| match assignment.role {
        Role::Primary => 0,
        Role::Standby => 1,
        Role::Leaving => 2,
    });
    let claims = object.status.iter().flat_map(|status| &status.claims);
    let epoch = Epoch { uid: Arc::from(object.uid().unwrap_or_default()), placement: object.spec.placement };
    let last_claim = claims
        .filter(|claim| *claim.node == **node)
        // One that was only on its way has not claimed.
        .find(|claim| matches!(claim.state, ClaimState::Owner | ClaimState::Yielded | ClaimState::LinkDown))
        .map(|claim| {
            let claimed = Epoch { uid: Arc::from(claim.uid.as_str()), placement: claim.placement };
            // An older one may only not have been corrected.
            LastClaim { owned: claim.state == ClaimState::Owner && claimed == epoch, epoch: claimed }
        });
    Some(Assigned {
        vip,
        nic: shared.name(&own.interface),
        order: Order {
            epoch,
            role: own.role,
            node: node.clone(),
            holder: holder(object, node, &ranked),
            ranking: shared.ranking(&ranked),
            timing: Timing::of(object.spec.failover),
        },
        last_claim,
    })
}

/// What thousands of addresses have in common is kept once.
#[derive(Debug, Default)]
struct Shared {
    names: HashSet<Arc<str>>,
    rankings: HashSet<Arc<[Ranked]>>,
}

impl Shared {
    fn name(&mut self, name: &str) -> Arc<str> {
        if let Some(known) = self.names.get(name) {
            return known.clone();
        }
        forget_some(&mut self.names);
        let name: Arc<str> = Arc::from(name);
        self.names.insert(name.clone());
        name
    }

    fn ranking(&mut self, ranked: &[&Assignment]) -> Arc<[Ranked]> {
        let node = |entry: &&Assignment| Ranked { node: self.name(&entry.node), nic: self.name(&entry.interface) };
        let ranking: Vec<Ranked> = ranked.iter().map(node).collect();
        if let Some(known) = self.rankings.get(ranking.as_slice()) {
            return known.clone();
        }
        forget_some(&mut self.rankings);
        let ranking: Arc<[Ranked]> = Arc::from(ranking);
        self.rankings.insert(ranking.clone());
        ranking
    }
}

/// Nodes come and go. Who uses what is forgotten here keeps it.
fn forget_some<T>(shared: &mut HashSet<T>) {
    if shared.len() >= MAX_SHARED {
        shared.clear();
    }
}

/// The MAC address of the other node that says it answers for the address: of several, the one that ranks first.
fn holder(object: &VirtualIP, own: &str, ranked: &[&Assignment]) -> Option<MacAddr> {
    let uid = object.uid().unwrap_or_default();
    let claims = object.status.iter().flat_map(|status| &status.claims);
    let owners = claims.filter(|claim| claim.state == ClaimState::Owner && claim.uid == uid && claim.node != own);
    let rank = |node: &str| ranked.iter().position(|ranked| ranked.node == node).unwrap_or(ranked.len());
    owners.min_by_key(|claim| rank(&claim.node)).and_then(|claim| claim.mac.parse().ok())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{
        api::{Claim, NetworkInterface, SpeakerSpec, SpeakerStatus, VirtualIPSpec, VirtualIPStatus},
        speaker::peers::Who,
    };
    use k8s_openapi::{apimachinery::pkg::apis::meta::v1::Time, jiff::Timestamp};

    fn virtual_ip(address: &str, placement: i64, parts: &[(&str, Role)]) -> VirtualIP {
        let assignment = |(node, role): &(&str, Role)| Assignment {
            node: (*node).to_owned(),
            role: *role,
            interface: "eth0".to_owned(),
        };
        let spec = VirtualIPSpec {
            address: address.to_owned(),
            pool: "lan".to_owned(),
            services: vec![],
            failover: Default::default(),
            placement,
            assignments: parts.iter().map(assignment).collect(),
        };
        let mut object = VirtualIP::new(address, spec);
        object.metadata.uid = Some("u1".to_owned());
        object
    }

    fn with_claim(mut object: VirtualIP, node: &str, state: ClaimState, placement: i64) -> VirtualIP {
        let claim = Claim {
            node: node.to_owned(),
            interface: "eth0".to_owned(),
            mac: String::new(),
            state,
            since: Time(Timestamp::UNIX_EPOCH),
            reason: String::new(),
            conflict_mac: None,
            uid: "u1".to_owned(),
            placement,
        };
        object.status.get_or_insert_with(VirtualIPStatus::default).claims.push(claim);
        object
    }

    fn speaker(node: &str, mac: &str) -> Speaker {
        let interface = NetworkInterface {
            name: "eth0".to_owned(),
            mac: mac.to_owned(),
            addresses: vec![],
            carrier: true,
            default_route: true,
            default_route_ipv6: true,
            unheard: Vec::new(),
            announces_ipv6: true,
            reason_ipv6: String::new(),
            announces: true,
            reason: String::new(),
        };
        let mut speaker = Speaker::new(node, SpeakerSpec {});
        speaker.status = Some(SpeakerStatus { interfaces: vec![interface], ..SpeakerStatus::default() });
        speaker
    }

    #[test]
    fn the_own_part_and_the_ranking_are_read() {
        let parts = [("c", Role::Leaving), ("b", Role::Standby), ("a", Role::Primary)];
        let read = assigned(&virtual_ip("192.0.2.64", 3, &parts), &Arc::from("b"), &mut Shared::default()).unwrap();
        assert_eq!(read.order.role, Role::Standby);
        assert_eq!(read.order.ranking.iter().map(|ranked| &*ranked.node).collect::<Vec<_>>(), ["a", "b", "c"]);
        assert_eq!(read.order.epoch, Epoch { uid: Arc::from("u1"), placement: 3 });
        assert_eq!(read.last_claim, None);
    }

    #[test]
    fn only_an_own_finished_claim_is_remembered() {
        let object = virtual_ip("192.0.2.64", 3, &[("a", Role::Primary)]);
        let claimed = |object: &VirtualIP| {
            let last = assigned(object, &Arc::from("a"), &mut Shared::default()).unwrap().last_claim;
            last.map(|last| (last.epoch.placement, last.owned))
        };
        assert_eq!(claimed(&with_claim(object.clone(), "a", ClaimState::Owner, 3)), Some((3, true)));
        assert_eq!(claimed(&with_claim(object.clone(), "a", ClaimState::Owner, 2)), Some((2, false)), "not corrected");
        assert_eq!(claimed(&with_claim(object.clone(), "a", ClaimState::Yielded, 2)), Some((2, false)));
        assert_eq!(
            claimed(&with_claim(object.clone(), "a", ClaimState::Yielded, 3)),
            Some((3, false)),
            "it has left it"
        );
        assert_eq!(claimed(&with_claim(object.clone(), "a", ClaimState::Probing, 3)), None);
        assert_eq!(claimed(&with_claim(object.clone(), "a", ClaimState::Blocked, 3)), None);
        assert_eq!(claimed(&with_claim(object, "b", ClaimState::Owner, 3)), None);
    }

    #[test]
    fn another_node_that_says_it_is_the_owner_is_the_holder() {
        let parts = [("a", Role::Primary), ("b", Role::Standby), ("c", Role::Leaving)];
        let holder =
            |object: &VirtualIP| assigned(object, &Arc::from("b"), &mut Shared::default()).unwrap().order.holder;
        let mut object = virtual_ip("192.0.2.64", 3, &parts);
        assert_eq!(holder(&object), None);
        for (node, state, mac) in [
            ("b", ClaimState::Owner, "02:00:00:00:01:02"),
            ("c", ClaimState::Owner, "02:00:00:00:01:03"),
            ("a", ClaimState::Yielded, "02:00:00:00:01:01"),
        ] {
            object = with_claim(object, node, state, 3);
            let claims = &mut object.status.as_mut().unwrap().claims;
            claims.last_mut().unwrap().mac = mac.to_owned();
        }
        assert_eq!(holder(&object), Some(MacAddr(2, 0, 0, 0, 1, 3)), "not itself, and not one that yielded");
        object.status.as_mut().unwrap().claims[2].state = ClaimState::Owner;
        assert_eq!(holder(&object), Some(MacAddr(2, 0, 0, 0, 1, 1)), "the Primary before the one that leaves");
        object.metadata.uid = Some("u2".to_owned());
        assert_eq!(holder(&object), None, "they speak of an earlier object");
    }

    #[test]
    fn a_relist_is_one_reset() {
        let mut table = AssignmentTable::new(Arc::from("a"));
        let object = |address| virtual_ip(address, 1, &[("a", Role::Primary)]);
        assert_eq!(table.handle(Event::Init), None);
        assert_eq!(table.handle(Event::InitApply(object("192.0.2.64"))), None);
        assert_eq!(table.handle(Event::InitApply(object("192.0.2.65"))), None);
        let Some(Change::Reset(all)) = table.handle(Event::InitDone) else { panic!("no reset") };
        assert_eq!(all.len(), 2);
        assert!(matches!(table.handle(Event::Apply(object("192.0.2.66"))), Some(Change::Apply(_))));
    }

    #[test]
    fn an_object_without_this_node_is_removed() {
        let mut table = AssignmentTable::new(Arc::from("a"));
        let object = virtual_ip("192.0.2.64", 1, &[("b", Role::Primary)]);
        let removed = Some(Change::Remove(IpAddr::from([192, 0, 2, 64])));
        assert_eq!(table.handle(Event::Apply(object.clone())), removed);
        assert_eq!(table.handle(Event::Delete(object)), removed);
    }

    #[test]
    fn speakers_are_told_once_all_are_read_and_then_when_they_change() {
        let mut table = SpeakerTable::new(Arc::from("a"));
        assert!(table.handle(Event::Init).is_empty());
        assert!(table.handle(Event::InitApply(speaker("a", "02:00:00:00:01:01"))).is_empty());
        let news = table.handle(Event::InitDone);
        let [News::Speakers(peers)] = &news[..] else { panic!("{news:?}") };
        assert_eq!(peers.who(MacAddr(2, 0, 0, 0, 1, 1)), Who::Own);
        assert!(table.handle(Event::Apply(speaker("a", "02:00:00:00:01:01"))).is_empty(), "nothing new");
        let news = table.handle(Event::Apply(speaker("b", "02:00:00:00:01:02")));
        let [News::Speakers(peers)] = &news[..] else { panic!("{news:?}") };
        assert_eq!(peers.who(MacAddr(2, 0, 0, 0, 1, 2)), Who::Speaker(&Arc::from("b")));
        let news = table.handle(Event::Delete(speaker("a", "02:00:00:00:01:01")));
        assert!(news.iter().any(|item| matches!(item, News::OwnSpeakerGone)), "{news:?}");
    }
}
