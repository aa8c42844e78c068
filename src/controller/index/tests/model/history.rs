//! What may happen, and random histories of it.

use std::fmt;

use proptest::prelude::*;

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

pub(super) fn space_of(number: u8) -> u8 {
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
    let nics = prop_oneof![
        Just(Nics::One),
        Just(Nics::NoIpv6),
        Just(Nics::Two),
        Just(Nics::NoLink),
        Just(Nics::Elsewhere),
        Just(Nics::DefaultRoute)
    ];
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
        10 => (service(), prop::collection::vec(edit(), 0..3)).prop_map(|(number, edits)| Service(number, edits)),
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

/// Where only some kinds of things happen, they meet more often: each history leaves about half of the kinds out.
pub fn histories(length: usize) -> impl Strategy<Value = History> {
    (any::<u32>(), prop::collection::vec(op(), 1..2 * length)).prop_map(move |(kinds, ops)| {
        let happens = |op: &Op| op.kind().is_none_or(|kind| kinds & (1 << kind) != 0);
        History(ops.into_iter().filter(happens).take(length).collect())
    })
}

impl Op {
    /// What may be left out together.
    fn kind(&self) -> Option<u32> {
        Some(match self {
            Service(..) | Flow => return None,
            Edit(..) => 0,
            Delete(_) | Recreate(_) => 1,
            Pool(..) | Rewrite(..) => 2,
            RemovePool(_) | Rename(..) | Split(..) => 3,
            Space(..) | DeleteSpace(_) => 4,
            Node(..) => 5,
            Slice(..) | DeleteSlice(..) => 6,
            Range(..) => 7,
            EditStatus(..) | DeleteVip(_) => 8,
            Foreign(..) => 9,
            Speak | SpeakAlone(_) => 10,
            TakeOver | LoseLeases => 11,
            Deliver(..) | Relist(_) => 12,
            Poll(_) | Carry(..) | Late => 13,
            Restart => 14,
            Pass(_) => 15,
            Settle => 16,
        })
    }
}
