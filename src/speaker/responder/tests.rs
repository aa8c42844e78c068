use super::*;
use std::net::Ipv4Addr;

use futures::FutureExt as _;
use prometheus_client::registry::Registry;

use crate::speaker::{
    filter,
    nic::{
        self, Nic, Protocol,
        tests::{in_a_network_namespace, ip, wait_until},
    },
    peers::Peers,
    triage::Part,
    wire::{AnnouncementForm, Message},
};

const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);
const FENCE: Duration = Duration::from_secs(600);
const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 65);

#[test]
fn a_thread_that_ends_is_noticed_however_it_ends() {
    let (shared, trouble) = (Arc::new(Shared::default()), Arc::new(Notify::new()));
    let responder = Responder { shared: shared.clone() };
    assert!(responder.is_running());
    let told = trouble.clone();
    let thread = thread::spawn(move || {
        let _at_the_end = TellsOfItsEnd(shared, told);
        panic!("the thread ends here, on purpose");
    });
    assert!(thread.join().is_err());
    assert!(!responder.is_running());
    assert!(trouble.notified().now_or_never().is_some(), "the loop is woken");
}

#[test]
fn a_thread_that_was_not_run_has_caught_up_when_nothing_waits_or_a_whole_buffer_was_read() {
    let start = Instant::now();
    let mut backlog = Backlog::new(start);
    assert!(!backlog.handle_run(start + LATE - Duration::from_millis(1), true));
    assert!(!backlog.is_late());
    let woke = start + 2 * LATE;
    assert!(!backlog.handle_run(woke, true));
    assert!(backlog.is_late());
    assert!(!backlog.handle_run(woke, true));
    assert!(backlog.is_late());
    assert!(!backlog.handle_run(woke + LATE, false), "more may have come in while it stood still again");
    assert!(backlog.is_late());
    assert!(backlog.handle_run(woke + LATE, false));
    assert!(!backlog.is_late());
    // A flood does not keep it mute.
    assert!(!backlog.handle_run(woke + 2 * LATE, true));
    let frames = (0..BACKLOG + 1).take_while(|_| !backlog.handle_run(woke + 2 * LATE, true)).count();
    assert_eq!(frames, BACKLOG - 1);
    assert!(!backlog.is_late());
    let any = IpAddr::from(VIP4);
    let request = Packet {
        operation: wire::Operation::Request,
        broadcast: true,
        sender_mac: MacAddr(2, 0, 0, 0, 0, 1),
        sender_ip: any,
        target_ip: any,
    };
    assert_eq!((0..2 * HELD).filter(|_| backlog.hold(&request, None)).count(), HELD);
}

#[test]
fn a_thread_that_was_not_run_reads_the_claims_that_wait_before_it_answers() {
    in_a_network_namespace(|| {
        let (vip, other) = (IpAddr::from(VIP4), IpAddr::from(OTHER4));
        let ask = |vip| Message::Probe { vip, to: None };
        let mut late = Late::new();
        // One address was taken over while requests for both waited.
        late.wake_with(&[ask(vip), ask(other), Message::Announcement { vip, form: AnnouncementForm::Request }]);
        assert_eq!(late.metrics.dropped_for(DropReason::Claimed), 0, "a probe of a speaker is for the loop, too");
        assert_eq!(late.metrics.answered.get(), 1, "the other one is answered for");
        let claim = late.inbox.claims.try_recv().unwrap();
        assert_eq!(claim.packet.sender_ip, vip);
        wait_until("both probes are handed over", || late.inbox.requests.len() == 2);
        drop(claim);
        // Who kept the address answers again, late or not.
        late.wake_with(&[ask(vip)]);
        assert_eq!(late.metrics.answered.get(), 2);
        // At once, when it is not late.
        late.send(&ask(vip));
        late.worker.backlog.ran_at = Instant::now() + Duration::from_secs(60);
        late.worker.step();
        assert_eq!(late.metrics.answered.get(), 3);
    });
}

#[test]
fn behind_the_fence_nothing_is_answered() {
    in_a_network_namespace(|| {
        let mut late = Late::new();
        late.worker.backlog.ran_at = Instant::now() + Duration::from_secs(60);
        late.worker.heartbeat = Arc::new(Heartbeat::silent_for(FENCE));
        late.hear_request_of_a_client();
        assert_eq!((late.metrics.answered.get(), late.fenced()), (0, 1));
        late.worker.heartbeat.beat(Instant::now());
        late.hear_request_of_a_client();
        assert_eq!((late.metrics.answered.get(), late.fenced()), (1, 1));
    });
}

#[test]
fn a_thread_that_was_held_up_after_it_had_read_a_request_reads_all_that_waits_before_it_answers() {
    in_a_network_namespace(|| {
        let mut late = Late::new();
        let held_up = Instant::now().checked_sub(LATE).unwrap();
        late.worker.backlog.ran_at = held_up;
        late.hear_request_of_a_client();
        assert_eq!((late.metrics.answered.get(), late.worker.backlog.held.len()), (0, 1));
        let end = Instant::now() + Duration::from_secs(10);
        while late.metrics.answered.get() == 0 {
            assert!(Instant::now() < end, "it is never answered");
            late.worker.step();
        }
        assert_eq!((late.metrics.answered.get(), late.fenced()), (1, 0));
        // Of those there is no room for, one is left out.
        late.worker.backlog.ran_at = held_up;
        for _ in 0..=HELD {
            late.hear_request_of_a_client();
        }
        assert_eq!((late.metrics.answered.get(), late.fenced()), (1, 1));
    });
}

#[test]
fn what_was_published_on_the_way_to_an_answer_counts() {
    in_a_network_namespace(|| {
        let mut late = Late::new();
        late.worker.backlog.ran_at = Instant::now() + Duration::from_secs(60);
        let request = request_of_a_client();
        let snapshot = late.worker.shared.snapshot.load_full();
        let answer = snapshot.answer(&request).unwrap();
        late.worker.answer(&request, answer).unwrap();
        // The loop wakes up, takes the address away, and then says that it runs.
        late.worker.shared.snapshot.store(Arc::default());
        late.worker.heartbeat.beat(Instant::now());
        assert!(matches!(late.worker.answer(&request, answer), Err(SendError::TooLate(_))));
        // What was published for another address is no reason.
        let peers = Arc::new(Peers::new(Arc::from("own"), []));
        late.worker.shared.snapshot.store(Arc::new(Snapshot::clone(&snapshot).with_peers(peers)));
        late.worker.answer(&request, answer).unwrap();
        assert_eq!(late.metrics.answered.get(), 2);
    });
}

fn request_of_a_client() -> Packet {
    Packet {
        operation: wire::Operation::Request,
        broadcast: true,
        sender_mac: MacAddr(2, 0, 0, 0, 0, 1),
        sender_ip: Ipv4Addr::new(192, 0, 2, 3).into(),
        target_ip: VIP4.into(),
    }
}

/// A receive thread that runs only as far as it is told, and what is at the far end of its cable.
struct Late {
    worker: Worker,
    inbox: Inbox,
    metrics: Metrics,
    peer: Nic,
    /// A socket that hears what the thread's hears, and after it.
    witness: Port,
}

impl Late {
    fn new() -> Self {
        ip("link add eth0 type veth peer name lan0");
        ip("link set eth0 up");
        ip("link set lan0 up");
        let (eth0, lan0): (Arc<str>, Arc<str>) = (Arc::from("eth0"), Arc::from("lan0"));
        let (peer, _) = nic::open(&lan0, Protocol::Arp, &filter::arp([])).unwrap();
        // The kernel hands a frame to the oldest socket last.
        let (_, mut witness) = nic::open(&eth0, Protocol::Arp, &filter::arp([&VIP4, &OTHER4])).unwrap();
        // A link that has just come up swallows what is sent.
        let end = Instant::now() + Duration::from_secs(10);
        loop {
            assert!(Instant::now() < end, "nothing arrives");
            peer.send(&Message::Probe { vip: VIP4.into(), to: None }, || true).unwrap();
            if witness.receive().unwrap().is_some() {
                break;
            }
        }
        while witness.receive().unwrap().is_some() {}
        let (_, port) = nic::open(&eth0, Protocol::Arp, &filter::arp([&VIP4, &OTHER4])).unwrap();
        let (queues, inbox) = queues();
        let metrics = Metrics::register(&mut Registry::default());
        let peers = Peers::new(Arc::from("own"), [(Arc::from("peer"), eth0, peer.mac())]);
        let owned = Part::Owned { fence: FENCE };
        let snapshot: Snapshot = [(VIP4.into(), owned), (OTHER4.into(), owned)].into_iter().collect();
        let shared = Arc::new(Shared::default());
        shared.snapshot.store(Arc::new(snapshot.with_peers(Arc::new(peers))));
        let worker = Worker::new(port, queues, Arc::new(Heartbeat::new()), metrics.clone(), shared);
        Self { worker, inbox, metrics, peer, witness }
    }

    fn fenced(&self) -> u64 {
        self.metrics.dropped_for(DropReason::Fenced)
    }

    /// As if it had just been read. The loop hears nothing of it.
    fn hear_request_of_a_client(&mut self) {
        let request = request_of_a_client();
        self.worker.handle(&request, Some(request.sender_mac));
    }

    fn send(&self, message: &Message) {
        self.peer.send(message, || true).unwrap();
    }

    /// Says these while the thread is not run. Then it is, until it has read and decided about all of them.
    fn wake_with(&mut self, messages: &[Message]) {
        let end = Instant::now() + Duration::from_secs(10);
        for message in messages {
            self.send(message);
            while self.witness.receive().unwrap().is_none() {
                assert!(Instant::now() < end, "the frame does not arrive");
            }
        }
        let received = self.metrics.received.get() + messages.len() as u64;
        self.worker.backlog.ran_at = Instant::now().checked_sub(2 * LATE).unwrap();
        let caught_up = |worker: &Worker| worker.shared.caught_up.nanoseconds.load(Ordering::Acquire);
        let before = caught_up(&self.worker);
        self.worker.step();
        assert!(
            self.worker.backlog.is_late() && caught_up(&self.worker) == before,
            "the loop must not believe in silence"
        );
        while self.metrics.received.get() < received || self.worker.backlog.is_late() {
            assert!(Instant::now() < end, "{} of {received} frames read", self.metrics.received.get());
            self.worker.step();
        }
        assert!(caught_up(&self.worker) > before);
    }
}
