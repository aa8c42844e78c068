//! What happens to links, with the real loop, a real kernel and all that it puts on the wire, in a network namespace of its own.

mod churn;
mod deaf;
mod events;

use std::{
    net::Ipv4Addr,
    sync::{
        Mutex,
        atomic::{AtomicBool, AtomicU64, Ordering},
    },
    thread::JoinHandle,
};

use prometheus_client::registry::Registry;
use tokio::{runtime::Runtime, sync::mpsc};

use super::*;
use crate::{
    api::Role,
    speaker::{
        assignments::News,
        driver::{Driver, Parts},
        netlink,
        nic::tests::{in_a_network_namespace, ip},
        owner::{Epoch, Order, Ranked, Timing},
        peers::Peers,
        report::Reporter,
        station::{Assigned, Change, Station},
        wire::{Operation, Packet, arp},
    },
};

const VIP: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 64));
/// On the NIC that comes later.
const LATER: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 65));
const CLIENT: IpAddr = IpAddr::V4(Ipv4Addr::new(192, 0, 2, 99));
/// An address for which the kernel answers.
const KERNELS: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 12);
const PATIENCE: Duration = Duration::from_secs(30);

/// Waits for a condition. How long that took.
fn wait_until(what: &str, mut condition: impl FnMut() -> bool) -> Duration {
    let begin = Instant::now();
    while !condition() {
        assert!(begin.elapsed() < PATIENCE, "waited in vain until {what}");
        std::thread::sleep(Duration::from_millis(1));
    }
    begin.elapsed()
}

/// The speaker of one node, without an API server.
struct Speaker {
    health: Health,
    reporter: Arc<Reporter>,
    metrics: Metrics,
    news: mpsc::Sender<News>,
    links: Links,
    _runtime: Runtime,
}

impl Speaker {
    fn start() -> Self {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build().unwrap();
        let (health, metrics) = (Health::default(), Metrics::register(&mut Registry::default()));
        let reporter = Arc::new(Reporter::new(Arc::from("own")));
        let (news, inbox) = mpsc::channel(16);
        let (watching, links) = netlink::watching(health.clone(), metrics.clone());
        runtime.spawn(watching.run());
        let peers = Arc::new(Peers::new(Arc::from("own"), []));
        let driver = Driver::new(Parts {
            station: Station::new(peers, Duration::from_secs(60)),
            reporter: reporter.clone(),
            heartbeat: Arc::new(Heartbeat::new()),
            metrics: metrics.clone(),
            health: health.clone(),
            links: links.clone(),
            news: inbox,
            drain_timeout: Duration::from_secs(1),
        });
        runtime.spawn(driver.run(std::future::pending()));
        Self { health, reporter, metrics, news, links, _runtime: runtime }
    }

    /// This node is to announce the address on the NIC.
    fn announce(&self, vip: IpAddr, nic: &str) {
        let (node, nic): (Arc<str>, Arc<str>) = (Arc::from("own"), Arc::from(nic));
        let order = Order {
            epoch: Epoch { uid: Arc::from("u"), placement: 1 },
            role: Role::Primary,
            node: node.clone(),
            ranking: Arc::from([Ranked { node, nic: nic.clone() }]),
            holder: None,
            timing: Timing::default(),
        };
        self.news.blocking_send(News::Change(Change::Apply(Assigned { vip, nic, order, last_claim: None }))).unwrap();
    }

    /// What `/readyz` says, where it says that something is wrong.
    fn troubles(&self) -> String {
        let (status, text) = self.health.report("/readyz").unwrap();
        if status.is_success() { String::new() } else { text }
    }

    /// Waits until `/readyz` says this. How long that took.
    fn says(&self, trouble: &str) -> Duration {
        wait_until(&format!("'{trouble}' is said, not '{}'", self.troubles()), || self.troubles().contains(trouble))
    }

    fn is_ready(&self) -> Duration {
        wait_until("the speaker is ready", || self.troubles().is_empty())
    }

    /// Waits until this state of the address is to be reported.
    fn claims(&self, vip: IpAddr, state: crate::api::ClaimState) {
        wait_until(&format!("{vip} is reported as {state:?}"), || {
            self.reporter.unwritten_claim(vip).is_some_and(|claim| claim.state == state)
        });
    }
}

/// What was heard at the far end of the cable.
#[derive(Clone, Copy, Debug)]
struct Frame {
    source: MacAddr,
    packet: Packet,
}

/// The far end: all ARP frames about the addresses are kept, in their order.
struct Lan {
    neighbour: Nic,
    frames: Arc<Mutex<Vec<Frame>>>,
    /// How often nothing was left to hear.
    heard_all: Arc<AtomicU64>,
    stop: Arc<AtomicBool>,
    listener: Option<JoinHandle<()>>,
}

impl Lan {
    /// Listens on an interface that is up.
    fn listen(interface: &str) -> Self {
        let filter = filter::arp(&[as_v4(VIP), as_v4(LATER), KERNELS]);
        let (neighbour, mut port) = nic::open(&Arc::from(interface), Protocol::Arp, &filter).unwrap();
        let (frames, stop) = (Arc::new(Mutex::new(Vec::new())), Arc::new(AtomicBool::new(false)));
        let heard_all = Arc::<AtomicU64>::default();
        let (kept, stopped, own) = (frames.clone(), stop.clone(), neighbour.mac());
        let empty = heard_all.clone();
        let listener = std::thread::spawn(move || {
            while !stopped.load(Ordering::Acquire) {
                match port.receive() {
                    Ok(Some(frame)) => {
                        let source = MacAddr::from(*frame[6..].first_chunk::<6>().unwrap());
                        if let Ok(packet) = arp::read(frame, own) {
                            kept.lock().unwrap().push(Frame { source, packet });
                        }
                    }
                    Ok(None) => drop(empty.fetch_add(1, Ordering::Release)),
                    // The cable was pulled.
                    Err(_) => drop(port.clear_error()),
                }
            }
        });
        Self { neighbour, frames, heard_all, stop, listener: Some(listener) }
    }

    fn heard(&self) -> Vec<Frame> {
        self.frames.lock().unwrap().clone()
    }

    /// Forgets all that has been sent, and not only what has been read of it.
    fn forget(&self) {
        let before = self.heard_all.load(Ordering::Acquire);
        // The first time may have been before this.
        wait_until("all is heard", || self.heard_all.load(Ordering::Acquire) >= before + 2);
        self.forget_what_was_heard();
    }

    fn forget_what_was_heard(&self) {
        self.frames.lock().unwrap().clear();
    }

    /// As a host does; a probe would be a rival's while the speaker probes.
    fn ask(&self, address: IpAddr) {
        let asked = Message::Request { vip: address, to: MacAddr::broadcast(), from: CLIENT };
        // While the cable is pulled, nothing leaves.
        let _ = self.neighbour.send(&asked, || true);
    }

    /// Waits for an announcement. Before it, nothing but probes may have been said about the address, and nothing under another
    /// MAC address.
    fn is_announced_after_a_probe(&self, what: &str, vip: IpAddr, mac: MacAddr) {
        wait_until(&format!("{vip} is announced after {what}"), || {
            self.heard().iter().any(|frame| frame.packet.is_announcement() && frame.packet.sender_ip == vip)
        });
        let is_about = |frame: &Frame| frame.packet.sender_ip == vip || frame.packet.target_ip == vip;
        let about: Vec<Frame> = self.heard().into_iter().filter(is_about).collect();
        let first = about.iter().position(|frame| frame.packet.is_announcement()).unwrap();
        let probes = about[..first].iter().filter(|frame| frame.packet.is_probe()).count();
        assert!(probes >= 1 && probes == first, "after {what}, before the first announcement: {about:?}");
        for frame in about {
            assert_eq!((frame.source, frame.packet.sender_mac), (mac, mac), "after {what}: {frame:?}");
        }
    }

    /// Forgets what was heard until the speaker probes: what was under way when something happened, and happened unseen.
    fn forget_until_it_probes(&self, vip: IpAddr) {
        let is_probe = |frame: &Frame| frame.packet.is_probe() && frame.packet.target_ip == vip;
        wait_until("the speaker probes", || self.heard().iter().any(is_probe));
        let mut frames = self.frames.lock().unwrap();
        let first = frames.iter().position(is_probe).unwrap();
        frames.drain(..first);
    }

    /// Asks until somebody answers for the address, and says with which MAC address.
    fn answerer(&self, vip: IpAddr) -> MacAddr {
        let mut answerer = None;
        wait_until(&format!("{vip} is answered for"), || {
            self.ask(vip);
            answerer = self.answers(vip).first().map(|frame| frame.packet.sender_mac);
            answerer.is_some()
        });
        answerer.unwrap()
    }

    fn answers(&self, vip: IpAddr) -> Vec<Frame> {
        let is_answer = |frame: &Frame| frame.packet.operation == Operation::Reply && !frame.packet.broadcast;
        self.heard().into_iter().filter(|frame| is_answer(frame) && frame.packet.sender_ip == vip).collect()
    }
}

impl Drop for Lan {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        if let Some(listener) = self.listener.take() {
            let ended = listener.join();
            assert!(ended.is_ok() || std::thread::panicking());
        }
    }
}

fn as_v4(address: IpAddr) -> Ipv4Addr {
    match address {
        IpAddr::V4(address) => address,
        IpAddr::V6(address) => panic!("{address} is of the other family"),
    }
}

fn mac(last: u8) -> MacAddr {
    MacAddr(2, 0, 0, 0, 0, last)
}

/// A cable from `near`, the node's NIC, to `far`. The near end is still down.
fn lay_cable(near: &str, far: &str, mac: MacAddr) {
    ip(&format!("link add {near} address {mac} type veth peer name {far}"));
    ip(&format!("link set {far} up"));
}
