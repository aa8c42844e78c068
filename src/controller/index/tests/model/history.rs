//! What may happen, and what it does to the cluster.

use std::{fmt, time::Duration};

use proptest::prelude::*;

use super::super::super::*;
use super::{cluster::*, facts::*};

/// One change of a Service, in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Edit {
    Kind(Kind),
    Families(Families),
    Ask(Ask),
    Pool(Option<(Via, u8)>),
    Key(Option<u8>),
    Ports(u8),
    Local(bool),
    Selector(Option<u8>),
    Tier(Option<u8>),
}

/// One change of a pool, in place.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Rewrite {
    Addresses(Addrs),
    Exclude(Addrs),
    Bad(Option<Bad>),
    Auto(bool),
    AvoidBuggy(bool),
    Priority(Option<u8>),
    Tier(Option<u8>),
    Space(Option<u8>),
    Env(Option<u8>),
    Zone(Option<u8>),
    Interface(bool),
    Fast(bool),
}

#[derive(Clone, Copy, Debug, PartialEq)]
pub enum NodeEvent {
    Ready(bool),
    Exclude(bool),
    Zone(u8),
    Drain(bool),
    OutOfService(bool),
    Address(Option<u8>),
    Pods(Option<u8>),
    Add,
    Remove,
    SpeakerDrains(bool),
    SpeakerAddress(Option<u8>),
    Ipvs(Option<u8>),
    Nics(Nics),
    Dies,
    Lives,
}

#[derive(Clone, PartialEq)]
pub enum Op {
    Service(u8, Vec<Edit>),
    Edit(u8, Edit),
    Delete(u8),
    /// Deleted and made again under the same name.
    Recreate(u8),
    Pool(u8, Vec<Rewrite>),
    Rewrite(u8, Rewrite),
    RemovePool(u8),
    /// The same pool under another name; the new one is made before the old one is removed, or after.
    Rename(u8, u8, bool),
    /// The upper half goes to another pool; that is made first, or last.
    Split(u8, u8, bool),
    Space(u8, Option<u8>),
    DeleteSpace(u8),
    Node(u8, NodeEvent),
    Slice(u8, u8, SliceFact),
    DeleteSlice(u8, u8),
    /// A range of the cluster's own.
    Range(u8, Option<u8>),
    /// Somebody writes another address into the status.
    EditStatus(u8, u8),
    DeleteVip(u8),
    Foreign(u8, bool),
    Speak,
    SpeakAlone(u8),
    TakeOver,
    /// Everything is delivered and written.
    Flow,
    Deliver(Watch, u8),
    Relist(Watch),
    LoseLeases,
    Poll(u8),
    Carry(u8, Fate),
    /// A write of a controller that is gone arrives.
    Late,
    Restart,
    Pass(u8),
    Settle,
}
use Op::*;

/// Services by number: the first letters in one namespace, the others in the other.
pub fn key(number: u8) -> String {
    format!("{}/s{number}", SPACES[usize::from(space_of(number))])
}

fn space_of(number: u8) -> u8 {
    u8::from(number >= 4)
}

impl fmt::Debug for Op {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let pool = |number: &u8| POOLS[usize::from(*number)];
        let node = |number: &u8| NODES[usize::from(*number)];
        match self {
            Service(number, edits) => write!(f, "Service({number}, vec!{edits:?})"),
            Slice(number, part, endpoints) => write!(f, "Slice({number}, {part}, vec!{endpoints:?})"),
            Pool(number, rewrites) => write!(f, "Pool({number}, vec!{rewrites:?}) /* {} */", pool(number)),
            Edit(number, edit) => write!(f, "Edit({number}, {edit:?})"),
            Delete(number) => write!(f, "Delete({number})"),
            Recreate(number) => write!(f, "Recreate({number})"),
            Rewrite(number, rewrite) => write!(f, "Rewrite({number}, {rewrite:?}) /* {} */", pool(number)),
            RemovePool(number) => write!(f, "RemovePool({number}) /* {} */", pool(number)),
            Rename(from, to, first) => {
                write!(f, "Rename({from}, {to}, {first}) /* {} to {} */", pool(from), pool(to))
            }
            Split(from, to, first) => write!(f, "Split({from}, {to}, {first}) /* {} to {} */", pool(from), pool(to)),
            Space(number, env) => write!(f, "Space({number}, {env:?})"),
            DeleteSpace(number) => write!(f, "DeleteSpace({number})"),
            Node(number, event) => write!(f, "Node({number}, {event:?}) /* {} */", node(number)),
            DeleteSlice(number, part) => write!(f, "DeleteSlice({number}, {part})"),
            Range(number, at) => write!(f, "Range({number}, {at:?})"),
            EditStatus(number, at) => write!(f, "EditStatus({number}, {at}) /* {} */", four(*at)),
            DeleteVip(at) => write!(f, "DeleteVip({at}) /* {} */", four(*at)),
            Foreign(at, on) => write!(f, "Foreign({at}, {on}) /* {} */", four(*at)),
            Speak => write!(f, "Speak"),
            SpeakAlone(number) => write!(f, "SpeakAlone({number})"),
            TakeOver => write!(f, "TakeOver"),
            Flow => write!(f, "Flow"),
            Deliver(watch, count) => write!(f, "Deliver(Watch::{watch:?}, {count})"),
            Relist(watch) => write!(f, "Relist(Watch::{watch:?})"),
            LoseLeases => write!(f, "LoseLeases"),
            Poll(count) => write!(f, "Poll({count})"),
            Carry(count, fate) => write!(f, "Carry({count}, Fate::{fate:?})"),
            Late => write!(f, "Late"),
            Restart => write!(f, "Restart"),
            Pass(seconds) => write!(f, "Pass({seconds})"),
            Settle => write!(f, "Settle"),
        }
    }
}

/// What happened, one line each, as it can be written into a test.
#[derive(Clone, PartialEq)]
pub struct History(pub Vec<Op>);

impl fmt::Debug for History {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        writeln!(f)?;
        self.0.iter().try_for_each(|op| writeln!(f, "    {op:?},"))
    }
}

// How histories are made up.

fn rarely<T: Clone + fmt::Debug + 'static>(value: impl Strategy<Value = T> + 'static) -> BoxedStrategy<Option<T>> {
    prop_oneof![2 => Just(None), 1 => value.prop_map(Some)].boxed()
}

fn service() -> std::ops::Range<u8> {
    0..6
}

fn via() -> impl Strategy<Value = Via> {
    prop_oneof![Just(Via::Ours), Just(Via::MetalLb), Just(Via::OldMetalLb)]
}

fn addrs() -> impl Strategy<Value = Addrs> {
    let fours = prop_oneof![
        3 => (0..FOURS, 1u8..5).prop_map(|(first, count)| ((1u16 << count) - 1) << first & ((1 << FOURS) - 1)),
        1 => 0u16..(1 << FOURS),
    ];
    let sixes = prop_oneof![2 => Just(0u8), 1 => 0u8..(1 << SIXES)];
    (fours, sixes, prop::bool::weighted(0.1)).prop_map(|(fours, sixes, vast)| Addrs { fours, sixes, vast })
}

fn ask() -> impl Strategy<Value = Ask> {
    prop_oneof![
        3 => Just(Ask::Nothing),
        3 => (via(), 0..FOURS).prop_map(|(via, at)| Ask::Four(via, at)),
        1 => (via(), 0..SIXES).prop_map(|(via, at)| Ask::Six(via, at)),
        1 => (via(), 0..FOURS, 0..SIXES).prop_map(|(via, v4, v6)| Ask::Both(via, v4, v6)),
        1 => (0..FOURS).prop_map(Ask::Field),
        1 => prop_oneof![Just(Ask::Malformed), Just(Ask::Two), Just(Ask::Contradiction)],
    ]
}

fn families() -> impl Strategy<Value = Families> {
    prop_oneof![
        Just(Families::Four),
        Just(Families::Six),
        Just(Families::PreferFour),
        Just(Families::PreferFourSix),
        Just(Families::PreferSixFour),
        Just(Families::RequireFourSix),
        Just(Families::RequireSixFour),
    ]
}

fn edit() -> impl Strategy<Value = Edit> {
    prop_oneof![
        2 => prop_oneof![
            3 => Just(Kind::LoadBalancer), 2 => Just(Kind::ClusterIp), 1 => Just(Kind::Foreign), 1 => Just(Kind::Terminating),
        ].prop_map(Edit::Kind),
        2 => families().prop_map(Edit::Families),
        3 => ask().prop_map(Edit::Ask),
        2 => rarely((via(), 0u8..4)).prop_map(Edit::Pool),
        3 => prop_oneof![1 => Just(None), 3 => (0u8..2).prop_map(Some)].prop_map(Edit::Key),
        2 => (1u8..8).prop_map(Edit::Ports),
        2 => any::<bool>().prop_map(Edit::Local),
        1 => rarely(0u8..2).prop_map(Edit::Selector),
        1 => rarely(0u8..2).prop_map(Edit::Tier),
    ]
}

fn rewrite() -> impl Strategy<Value = Rewrite> {
    prop_oneof![
        4 => addrs().prop_map(Rewrite::Addresses),
        2 => addrs().prop_map(Rewrite::Exclude),
        1 => rarely(prop_oneof![Just(Bad::Address), Just(Bad::Exclude)]).prop_map(Rewrite::Bad),
        1 => any::<bool>().prop_map(Rewrite::Auto),
        1 => any::<bool>().prop_map(Rewrite::AvoidBuggy),
        1 => rarely(0u8..3).prop_map(Rewrite::Priority),
        1 => rarely(0u8..2).prop_map(Rewrite::Tier),
        1 => rarely(0u8..2).prop_map(Rewrite::Space),
        1 => rarely(0u8..2).prop_map(Rewrite::Env),
        1 => rarely(0u8..2).prop_map(Rewrite::Zone),
        1 => any::<bool>().prop_map(Rewrite::Interface),
        1 => any::<bool>().prop_map(Rewrite::Fast),
    ]
}

fn node_event() -> impl Strategy<Value = NodeEvent> {
    let nics =
        prop_oneof![Just(Nics::One), Just(Nics::Two), Just(Nics::NoLink), Just(Nics::Elsewhere), Just(Nics::DefaultRoute)];
    prop_oneof![
        any::<bool>().prop_map(NodeEvent::Ready),
        any::<bool>().prop_map(NodeEvent::Exclude),
        (0u8..2).prop_map(NodeEvent::Zone),
        any::<bool>().prop_map(NodeEvent::Drain),
        any::<bool>().prop_map(NodeEvent::OutOfService),
        rarely(0..FOURS).prop_map(NodeEvent::Address),
        rarely(0..FOURS).prop_map(NodeEvent::Pods),
        Just(NodeEvent::Add),
        Just(NodeEvent::Remove),
        any::<bool>().prop_map(NodeEvent::SpeakerDrains),
        rarely(0..FOURS).prop_map(NodeEvent::SpeakerAddress),
        rarely(0..FOURS).prop_map(NodeEvent::Ipvs),
        nics.prop_map(NodeEvent::Nics),
        Just(NodeEvent::Dies),
        Just(NodeEvent::Lives),
    ]
}

fn watch() -> impl Strategy<Value = Watch> {
    (0..WATCHES.len()).prop_map(|at| WATCHES[at])
}

fn endpoints() -> impl Strategy<Value = SliceFact> {
    let endpoint =
        prop_oneof![3 => Just(Endpoint::Ready), 1 => Just(Endpoint::NotReady), 1 => Just(Endpoint::Terminating)];
    prop::collection::vec((0u8..4, endpoint), 0..3)
}

/// What people do and machines report.
pub fn event() -> impl Strategy<Value = Op> {
    prop_oneof![
        8 => (service(), prop::collection::vec(edit(), 0..3)).prop_map(|(number, edits)| Service(number, edits)),
        8 => (service(), edit()).prop_map(|(number, edit)| Edit(number, edit)),
        3 => service().prop_map(Delete),
        1 => service().prop_map(Recreate),
        2 => (0u8..4, prop::collection::vec(rewrite(), 0..4)).prop_map(|(pool, rewrites)| Pool(pool, rewrites)),
        4 => (0u8..4, rewrite()).prop_map(|(pool, rewrite)| Rewrite(pool, rewrite)),
        2 => (0u8..4).prop_map(RemovePool),
        1 => (0u8..4, 0u8..4, any::<bool>()).prop_map(|(from, to, first)| Rename(from, to, first)),
        1 => (0u8..4, 0u8..4, any::<bool>()).prop_map(|(from, to, first)| Split(from, to, first)),
        1 => (0u8..2, rarely(0u8..2)).prop_map(|(space, env)| Space(space, env)),
        1 => (0u8..2).prop_map(DeleteSpace),
        6 => (0u8..4, node_event()).prop_map(|(node, event)| Node(node, event)),
        3 => (service(), 0u8..3, endpoints()).prop_map(|(number, part, endpoints)| Slice(number, part, endpoints)),
        1 => (service(), 0u8..3).prop_map(|(number, part)| DeleteSlice(number, part)),
        1 => (0u8..2, rarely(0..FOURS)).prop_map(|(number, at)| Range(number, at)),
        2 => (0..FOURS, any::<bool>()).prop_map(|(at, on)| Foreign(at, on)),
    ]
}

/// What nobody should do.
fn meddling() -> impl Strategy<Value = Op> {
    prop_oneof![
        2 => (service(), 0..FOURS).prop_map(|(number, at)| EditStatus(number, at)),
        1 => (0..FOURS).prop_map(DeleteVip),
    ]
}

fn op() -> impl Strategy<Value = Op> {
    let fate = prop_oneof![2 => Just(Fate::Done), 1 => Just(Fate::AnswerLost), 1 => Just(Fate::Refused)];
    prop_oneof![
        50 => event(),
        2 => meddling(),
        5 => Just(Speak),
        2 => (0u8..4).prop_map(SpeakAlone),
        1 => Just(TakeOver),
        12 => Just(Flow),
        4 => (watch(), 1u8..4).prop_map(|(watch, count)| Deliver(watch, count)),
        2 => watch().prop_map(Relist),
        1 => Just(LoseLeases),
        5 => (1u8..4).prop_map(Poll),
        4 => (1u8..4, fate).prop_map(|(count, fate)| Carry(count, fate)),
        1 => Just(Late),
        3 => Just(Restart),
        4 => (1u8..40).prop_map(Pass),
        1 => Just(Settle),
    ]
}

pub fn histories(length: usize) -> impl Strategy<Value = History> {
    prop::collection::vec(op(), 1..length).prop_map(History)
}

// What they do.

impl Cluster {
    pub fn happen(&mut self, op: &Op) {
        match op {
            Service(..) | Edit(..) | Delete(_) | Recreate(_) | EditStatus(..) => self.service_happens(op),
            Pool(..) | Rewrite(..) | RemovePool(_) | Rename(..) | Split(..) => self.pool_happens(op),
            Space(space, env) => {
                let name = SPACES[usize::from(*space)];
                self.truth.spaces.insert(name.to_owned(), *env);
                self.space_changed(name);
            }
            DeleteSpace(space) => {
                (0..6).filter(|number| space_of(*number) == *space).for_each(|number| self.happen(&Delete(number)));
                let name = SPACES[usize::from(*space)];
                if self.truth.spaces.remove(name).is_some() {
                    self.space_changed(name);
                }
            }
            Node(number, event) => self.node_happens(NODES[usize::from(*number)], *event),
            Slice(number, part, endpoints) => {
                self.truth.slices.insert((key(*number), *part), endpoints.clone());
                self.slice_changed(&key(*number), *part);
            }
            DeleteSlice(number, part) => {
                if self.truth.slices.remove(&(key(*number), *part)).is_some() {
                    self.slice_changed(&key(*number), *part);
                }
            }
            Range(number, at) => {
                let name = format!("range{number}");
                match at {
                    Some(at) => self.truth.ranges.insert(name.clone(), *at),
                    None => self.truth.ranges.remove(&name),
                };
                self.range_changed(&name);
            }
            DeleteVip(at) => {
                let name = api::virtual_ip_name(four(*at));
                if let Some(vip) = self.vips.get(&name) {
                    let users = vip.spec.services.iter().cloned().collect();
                    self.judge.meddled(four(*at), &users);
                    self.remove_vip(&name);
                }
            }
            Foreign(at, true) => drop(self.foreign.insert(four(*at))),
            Foreign(at, false) => drop(self.foreign.remove(&four(*at))),
            Speak => self.speak(),
            SpeakAlone(number) => self.speak_alone(NODES[usize::from(*number)]),
            TakeOver => {
                self.judge.may_all_move();
                self.take_over();
            }
            Flow => {
                self.flow();
                super::judge::Judge::rest(self);
            }
            Deliver(watch, count) => for _ in 0..*count { self.deliver_one(*watch); },
            Relist(watch) => self.relist(*watch),
            LoseLeases => {
                self.index.handle_lease_watch_lost(self.now);
                self.relist(Watch::Lease);
            }
            Poll(count) => for _ in 0..*count { self.poll(); },
            Carry(count, fate) => for _ in 0..*count { self.carry(*fate); },
            Late => {
                if let Some(change) = self.late.pop_front() {
                    self.write(&change);
                }
            }
            Restart => self.restart(),
            Pass(seconds) => drop(self.pass(Duration::from_secs(u64::from(*seconds)))),
            Settle => self.settle(),
        }
    }

    /// Until nothing is left to do, and everything that takes its time has had it.
    pub fn settle(&mut self) {
        for round in 0..14 {
            self.flow();
            self.speak();
            self.flow();
            self.pass(Duration::from_secs(if round < 4 { 1 } else { 8 }));
        }
        super::judge::Judge::rest(self);
        for sentence in super::judge::settled(self) {
            self.judge.fault(|| sentence);
        }
    }

    fn service_happens(&mut self, op: &Op) {
        let (number, edits): (u8, &[Edit]) = match op {
            Service(number, edits) => (*number, edits),
            Edit(number, edit) => (*number, std::slice::from_ref(edit)),
            Delete(number) | Recreate(number) | EditStatus(number, _) => (*number, &[]),
            _ => return,
        };
        let key = key(number);
        if matches!(op, Service(..)) && !self.truth.services.contains_key(&key) {
            let space = SPACES[usize::from(space_of(number))];
            if !self.truth.spaces.contains_key(space) {
                self.truth.spaces.insert(space.to_owned(), None);
                self.space_changed(space);
            }
            let service = ServiceFact {
                uid: self.next_uid(),
                space: space_of(number),
                kind: Kind::LoadBalancer,
                tier: None,
                families: Families::Four,
                pool: None,
                ask: Ask::Nothing,
                key: None,
                ports: 1,
                local: false,
                selector: Some(0),
            };
            self.truth.services.insert(key.clone(), service);
        }
        let uid = self.next_uid();
        let Some(service) = self.truth.services.get_mut(&key) else { return };
        // What is on its way out does not come back.
        let is_going = service.kind == Kind::Terminating;
        for edit in edits {
            match *edit {
                Edit::Kind(kind) if !is_going => service.kind = kind,
                Edit::Kind(_) => {}
                Edit::Families(families) => service.families = families,
                Edit::Ask(ask) => service.ask = ask,
                Edit::Pool(pool) => service.pool = pool,
                Edit::Key(key) => service.key = key,
                Edit::Ports(ports) => service.ports = ports,
                Edit::Local(local) => service.local = local,
                Edit::Selector(selector) => service.selector = selector,
                Edit::Tier(tier) => service.tier = tier,
            }
        }
        match op {
            Delete(_) => drop(self.truth.services.remove(&key)),
            Recreate(_) => {
                let mut again = service.clone();
                again.uid = uid;
                if is_going {
                    again.kind = Kind::LoadBalancer;
                }
                self.truth.services.remove(&key);
                self.service_changed(&key);
                self.truth.services.insert(key.clone(), again);
            }
            EditStatus(_, at) if service.kind != Kind::ClusterIp => self.edit_status(&key, four(*at)),
            _ => {}
        }
        self.service_changed(&key);
    }

    fn edit_status(&mut self, key: &str, address: IpAddr) {
        self.judge.showed(key, address);
        let status = &mut self.shown.get_mut(key).unwrap().status;
        status["loadBalancer"] = serde_json::json!({ "ingress": [{ "ip": address }] });
    }

    fn pool_happens(&mut self, op: &Op) {
        let name = |number: u8| POOLS[usize::from(number)];
        match op {
            Pool(number, rewrites) => {
                let created = self.next_uid();
                let known = self.truth.pools.entry(name(*number).to_owned());
                let pool = known.or_insert(PoolFact {
                    // Each in a place of its own, to begin with.
                    addresses: Addrs { fours: 0b11 << (2 * number), sixes: 1 << number, vast: false },
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
                    created,
                });
                rewrites.iter().for_each(|rewrite| pool.rewrite(*rewrite));
                self.pool_changed(name(*number));
            }
            Rewrite(number, rewrite) => {
                let Some(pool) = self.truth.pools.get_mut(name(*number)) else { return };
                pool.rewrite(*rewrite);
                self.pool_changed(name(*number));
            }
            RemovePool(number) => self.remove_pool(name(*number)),
            Rename(from, to, before) => {
                let Some(mut pool) = self.truth.pools.get(name(*from)).cloned().filter(|_| from != to) else { return };
                pool.created = self.next_uid();
                if !before {
                    self.remove_pool(name(*from));
                }
                self.remove_pool(name(*to));
                self.truth.pools.insert(name(*to).to_owned(), pool);
                self.pool_changed(name(*to));
                self.remove_pool(name(*from));
            }
            Split(from, to, before) => {
                let Some(pool) = self.truth.pools.get(name(*from)).cloned().filter(|_| from != to) else { return };
                let upper = Addrs { fours: pool.addresses.fours & !0b1_1111, ..pool.addresses };
                let lower = pool.addresses.without(upper);
                if upper == Addrs::default() || lower == Addrs::default() {
                    return;
                }
                self.remove_pool(name(*to));
                let created = self.next_uid();
                let parts = [(*from, lower, pool.created), (*to, upper, created)];
                let order = if *before { [1, 0] } else { [0, 1] };
                for part in order {
                    let (number, addresses, created) = parts[part];
                    let part = PoolFact { addresses, created, ..pool.clone() };
                    self.truth.pools.insert(name(number).to_owned(), part);
                    self.pool_changed(name(number));
                }
            }
            _ => {}
        }
    }

    fn remove_pool(&mut self, name: &str) {
        if self.truth.pools.remove(name).is_some() {
            self.pool_changed(name);
        }
    }

    fn node_happens(&mut self, name: &str, event: NodeEvent) {
        match event {
            NodeEvent::Add if !self.truth.nodes.contains_key(name) => {
                self.add_node(name, 0);
                self.node_changed(name);
                self.speaker_changed(name);
                self.renew(name);
            }
            // A Speaker goes with its Node.
            NodeEvent::Remove if self.truth.nodes.remove(name).is_some() => {
                self.truth.speakers.remove(name);
                self.alive.remove(name);
                self.remove_lease(name);
                self.node_changed(name);
                self.speaker_changed(name);
            }
            NodeEvent::Dies => drop(self.alive.remove(name)),
            NodeEvent::Lives if self.truth.speakers.contains_key(name) => {
                self.alive.insert(name.to_owned());
                self.renew(name);
            }
            NodeEvent::SpeakerDrains(_) | NodeEvent::SpeakerAddress(_) | NodeEvent::Ipvs(_) | NodeEvent::Nics(_) => {
                let Some(speaker) = self.truth.speakers.get_mut(name) else { return };
                match event {
                    NodeEvent::SpeakerDrains(on) => speaker.draining = on,
                    NodeEvent::SpeakerAddress(at) => speaker.address = at,
                    NodeEvent::Ipvs(at) => speaker.ipvs = at,
                    NodeEvent::Nics(nics) => speaker.nics = nics,
                    _ => {}
                }
                self.speaker_changed(name);
            }
            _ => {
                let Some(node) = self.truth.nodes.get_mut(name) else { return };
                match event {
                    NodeEvent::Ready(on) => node.ready = on,
                    NodeEvent::Exclude(on) => node.excluded = on,
                    NodeEvent::Zone(zone) => node.zone = zone,
                    NodeEvent::Drain(on) => node.drain = on,
                    NodeEvent::OutOfService(on) => node.out_of_service = on,
                    NodeEvent::Address(at) => node.address = at,
                    NodeEvent::Pods(at) => node.pods = at,
                    _ => {}
                }
                self.node_changed(name);
            }
        }
    }
}

impl PoolFact {
    fn rewrite(&mut self, rewrite: Rewrite) {
        match rewrite {
            Rewrite::Addresses(addresses) => self.addresses = addresses,
            Rewrite::Exclude(exclude) => self.exclude = exclude,
            Rewrite::Bad(bad) => self.bad = bad,
            Rewrite::Auto(auto) => self.auto = auto,
            Rewrite::AvoidBuggy(avoid) => self.avoid_buggy = avoid,
            Rewrite::Priority(priority) => self.priority = priority,
            Rewrite::Tier(tier) => self.tier = tier,
            Rewrite::Space(space) => self.spaces = space.into_iter().collect(),
            Rewrite::Env(env) => self.env = env,
            Rewrite::Zone(zone) => self.zone = zone,
            Rewrite::Fast(fast) => self.fast = fast,
            Rewrite::Interface(only) => self.interface = only.then_some("eth0"),
        }
    }
}
