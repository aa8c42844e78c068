//! Real sockets on a real (virtual) cable, in a network namespace of its own.

mod halves;
mod neighbours;

use std::{
    io::Write as _,
    net::{IpAddr, Ipv4Addr},
    process::Command,
    time::{Duration, Instant},
};

use prometheus_client::registry::Registry;

use super::*;
use crate::speaker::{
    drop_reason::DropReason,
    filter::arp as program,
    metrics::Metrics,
    peers::Peers,
    responder::{Heartbeat, Inbox, Responder, queues},
    triage::{Part, Snapshot},
    wire::{AnnouncementForm, Operation, Packet, arp},
};

const VIP4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);
const OTHER4: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 65);
const VIP: IpAddr = IpAddr::V4(VIP4);
const OTHER: IpAddr = IpAddr::V4(OTHER4);
const PATIENCE: Duration = Duration::from_secs(10);
/// Names the test whose body runs in this process, in namespaces of its own.
const INSIDE: &str = "L2LB_TEST_IN_NAMESPACE";

/// Says so past the harness, which keeps the output of tests that pass to itself. Root can always make namespaces.
fn skip(reason: &str) {
    let root = std::fs::metadata("/proc/self").is_ok_and(|this| std::os::unix::fs::MetadataExt::uid(&this) == 0);
    assert!(!root, "root skips nothing: {reason}");
    writeln!(std::io::stderr(), "\nSKIPPED a test of real sockets: {reason}").unwrap();
}

/// Runs `body`, a closure of the test itself, as root of a user and network namespace of its own: in a second process that runs
/// this test alone. What it printed there.
pub(in crate::speaker) fn in_a_network_namespace<F: FnOnce()>(body: F) -> String {
    in_namespaces(&["--user", "--map-root-user", "--net"], body)
}

fn in_namespaces<F: FnOnce()>(which: &[&str], body: F) -> String {
    // `l2lb::speaker::nic::tests::name::{{closure}}`: the harness leaves out the crate. Another name would run no test, which fails.
    let path = std::any::type_name::<F>().trim_end_matches("::{{closure}}");
    let test = path.split_once("::").map_or(path, |(_, test)| test);
    if std::env::var_os(INSIDE).is_some_and(|inside| *inside == *test) {
        // Ends with the test that waits for it.
        nix::sys::prctl::set_pdeathsig(nix::sys::signal::Signal::SIGKILL).unwrap();
        body();
        return String::new();
    }
    let unshare = |arguments: &[&str]| {
        let mut command = Command::new("unshare");
        command.args(which).args(arguments).env(INSIDE, test);
        command.output()
    };
    match unshare(&["ip", "link", "show"]) {
        Ok(output) if output.status.success() => {}
        outcome => {
            skip(&format!("no namespaces of our own here (unshare {}, ip): {outcome:?}", which.join(" ")));
            return String::new();
        }
    }
    let this = std::env::current_exe().unwrap();
    let output = unshare(&[this.to_str().unwrap(), "--exact", test, "--nocapture"]).unwrap();
    let text = format!("{}{}", String::from_utf8_lossy(&output.stdout), String::from_utf8_lossy(&output.stderr));
    assert!(output.status.success() && text.contains("1 passed"), "{text}");
    text
}

#[test]
fn without_net_raw_there_is_one_sentence_that_says_so() {
    // In a user namespace of its own, but the network namespace of its parent, a process has no rights over the network.
    in_namespaces(&["--user"], || {
        let error = check_permission().unwrap_err();
        assert!(matches!(error, OpenError::NotPermitted), "{error}");
        assert!(error.to_string().contains("NET_RAW"));
    });
}

pub(in crate::speaker) fn ip(arguments: &str) -> String {
    let output = Command::new("ip").args(arguments.split_whitespace()).output().unwrap();
    assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn name(text: &str) -> Arc<str> {
    Arc::from(text)
}

/// A cable from eth0, the node's NIC, to lan0, the neighbour's.
struct Cable {
    neighbour: Nic,
    port: Port,
}

impl Cable {
    fn lay() -> Self {
        ip("link add eth0 type veth peer name lan0");
        ip("link set eth0 up");
        ip("link set lan0 up");
        let (neighbour, port) = open(&name("lan0"), Protocol::Arp, &program([&VIP4, &OTHER4])).unwrap();
        Self { neighbour, port }
    }

    /// The next packet at the neighbour's end that `wanted` accepts, with its frame's Ethernet source.
    fn wait_for(&mut self, wanted: impl Fn(&Packet) -> bool) -> Option<(MacAddr, Packet)> {
        let own = self.neighbour.mac();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            let Some(frame) = self.port.receive().unwrap() else { continue };
            let source = MacAddr::from(<[u8; 6]>::try_from(&frame[6..12]).unwrap());
            if let Ok(packet) = arp::read(frame, own)
                && wanted(&packet)
            {
                return Some((source, packet));
            }
        }
        None
    }

    /// Asks for the virtual IP until there is an answer.
    fn ask(&mut self) -> Option<(MacAddr, Packet)> {
        let own = self.neighbour.mac();
        let end = Instant::now() + PATIENCE;
        while Instant::now() < end {
            self.neighbour.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
            if let Some(frame) = self.port.receive().unwrap() {
                let source = MacAddr::from(<[u8; 6]>::try_from(&frame[6..12]).unwrap());
                if let Ok(packet) = arp::read(frame, own)
                    && packet.operation == Operation::Reply
                {
                    return Some((source, packet));
                }
            }
        }
        None
    }
}

fn respond(port: Port) -> (Responder, Inbox, Metrics) {
    let metrics = Metrics::register(&mut Registry::default());
    let (queues, inbox) = queues();
    let responder = Responder::start(port, queues, Arc::new(Heartbeat::new()), metrics.clone()).unwrap();
    responder.publish([(VIP, Part::Owned { fence: Duration::from_secs(600) })].into_iter().collect::<Snapshot>());
    (responder, inbox, metrics)
}

pub(in crate::speaker) fn wait_until(what: &str, condition: impl Fn() -> bool) {
    let end = Instant::now() + PATIENCE;
    while !condition() {
        assert!(Instant::now() < end, "waited in vain until {what}");
        std::thread::yield_now();
    }
}

#[test]
fn a_real_nic_answers_announces_and_wakes_for_nothing_else() {
    in_a_network_namespace(|| {
        let mut cable = Cable::lay();
        let (nic, port) = open(&name("eth0"), Protocol::Arp, &program([&VIP4])).unwrap();
        let (responder, mut inbox, metrics) = respond(port);

        let (source, answer) = cable.ask().expect("an answer");
        assert_eq!((source, answer.sender_mac, answer.sender_ip), (nic.mac(), nic.mac(), VIP));
        assert!(!answer.broadcast);
        // The answer leaves first.
        wait_until("the loop hears of a probe", || !inbox.strangers.is_empty());

        for form in [AnnouncementForm::Request, AnnouncementForm::Reply] {
            nic.send(&Message::Announcement { vip: VIP, form }, || true).unwrap();
            let (source, packet) = cable.wait_for(Packet::is_announcement).expect("an announcement");
            assert_eq!((source, packet.sender_mac), (nic.mac(), nic.mac()));
        }
        while let Ok(heard) = inbox.strangers.try_recv() {
            assert!(heard.packet.is_probe(), "its own frames do not come back: {heard:?}");
        }

        // Another address does not pass the filter: when a later frame has arrived, it would have.
        let received = metrics.received.get();
        cable.neighbour.send(&Message::Probe { vip: OTHER, to: None }, || true).unwrap();
        cable.neighbour.send(&Message::Announcement { vip: VIP, form: AnnouncementForm::Request }, || true).unwrap();
        wait_until("the claim is heard", || metrics.received.get() > received);
        assert_eq!(metrics.received.get(), received + 1);
        wait_until("the claim is in its queue", || !inbox.strangers.is_empty());
        // Until the filter lets it.
        nic.set_filter(&program([&VIP4, &OTHER4])).unwrap();
        cable.neighbour.send(&Message::Probe { vip: OTHER, to: None }, || true).unwrap();
        wait_until("the other address is heard", || metrics.received.get() == received + 2);

        let details = ip("-d link show eth0");
        assert!(details.contains("promiscuity 0"), "{details}");
        drop(responder);
    });
}

#[test]
fn malformed_frames_are_dropped_and_counted_by_reason_while_answers_go_on() {
    in_a_network_namespace(|| {
        let mut cable = Cable::lay();
        let (_nic, port) = open(&name("eth0"), Protocol::Arp, &program([&VIP4])).unwrap();
        let (_responder, _inbox, metrics) = respond(port);
        // A request for the virtual IP, in everything but one place as it should be.
        let mut request = vec![0xff; 6];
        request.extend(cable.neighbour.mac().octets());
        request.extend([8, 6, 0, 1, 8, 0, 6, 4, 0, 1]);
        request.extend(cable.neighbour.mac().octets());
        request.extend([192, 0, 2, 3, 0, 0, 0, 0, 0, 0]);
        request.extend(VIP4.octets());
        let but = |at: usize, octet: u8| {
            let mut frame = request.clone();
            frame[at] = octet;
            frame
        };
        for (frame, reason) in [
            (request[..30].to_vec(), DropReason::ArpTruncated),
            (but(15, 6), DropReason::HardwareType),
            (but(16, 0x86), DropReason::ProtocolType),
            (but(18, 255), DropReason::HardwareLength),
            (but(19, 16), DropReason::ProtocolLength),
            (but(21, 9), DropReason::Operation),
            (but(22, 0x01), DropReason::SenderMac),
        ] {
            assert_eq!(cable.neighbour.socket.send(&frame).unwrap(), frame.len());
            wait_until(reason.as_str(), || metrics.dropped_for(reason) == 1);
        }
        assert_eq!(metrics.answered.get(), 0);
        cable.ask().expect("an answer");
    });
}

#[test]
fn from_the_moment_a_claim_is_heard_the_address_is_not_answered_until_it_is_decided_about() {
    in_a_network_namespace(|| {
        let mut cable = Cable::lay();
        let (_nic, port) = open(&name("eth0"), Protocol::Arp, &program([&VIP4, &OTHER4])).unwrap();
        let (responder, mut inbox, metrics) = respond(port);
        let owned = Part::Owned { fence: Duration::from_secs(600) };
        let peers = Peers::new(name("own"), [(name("peer"), name("eth0"), cable.neighbour.mac())]);
        let snapshot: Snapshot = [(VIP, owned), (OTHER, owned)].into_iter().collect();

        // What a stranger claims silences nobody.
        responder.publish(snapshot.clone());
        cable.neighbour.send(&Message::Announcement { vip: VIP, form: AnnouncementForm::Request }, || true).unwrap();
        wait_until("the stranger is heard", || !inbox.strangers.is_empty());
        cable.neighbour.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
        wait_until("the address is answered for", || metrics.answered.get() == 1);
        // Nor what comes from another MAC address than the speaker's that it names.
        responder.publish(snapshot.with_peers(Arc::new(peers)));
        let message = Message::Announcement { vip: VIP, form: AnnouncementForm::Reply };
        let mut forged = frame::write(&message, cable.neighbour.own).unwrap().to_vec();
        forged[11] ^= 1;
        cable.neighbour.socket.send(&forged).unwrap();
        wait_until("the forgery is found out", || metrics.dropped_for(DropReason::Forged) == 1);
        cable.neighbour.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
        wait_until("the address is answered for", || metrics.answered.get() == 2);

        // The loop is slow: the claim lies in its queue.
        cable.neighbour.send(&Message::Announcement { vip: VIP, form: AnnouncementForm::Request }, || true).unwrap();
        cable.neighbour.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
        // A probe reaches the queue after it was answered.
        wait_until("the probe is in its queue", || inbox.requests.len() == 2);
        assert_eq!(metrics.answered.get(), 2);
        cable.neighbour.send(&Message::Probe { vip: OTHER, to: None }, || true).unwrap();
        wait_until("another address is answered for all the same", || metrics.answered.get() == 3);

        // The loop decides to keep the address.
        let heard = inbox.claims.try_recv().unwrap();
        assert!(heard.packet.is_announcement() && heard.packet.sender_ip == VIP);
        cable.neighbour.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
        wait_until("four probes are in their queue", || inbox.requests.len() == 4);
        assert_eq!(metrics.answered.get(), 3, "it is still about to");
        drop(heard);
        cable.ask().expect("an answer");
        // An answer is counted when it has left.
        wait_until("nothing is lost count of", || {
            let dropped: u64 = DropReason::ALL.iter().map(|reason| metrics.dropped_for(*reason)).sum();
            metrics.received.get() == metrics.answered.get() + metrics.handed_over.get() + dropped
        });
    });
}

#[test]
fn frames_that_find_the_buffer_full_are_counted() {
    in_a_network_namespace(|| {
        let cable = Cable::lay();
        let (_nic, port) = open(&name("eth0"), Protocol::Arp, &program([&VIP4])).unwrap();
        assert_eq!(port.take_overruns(), 0);
        // Nobody reads.
        wait_until("the buffer is full", || {
            for _ in 0..1_000 {
                cable.neighbour.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
            }
            port.take_overruns() > 0
        });
    });
}

#[test]
fn whether_it_is_in_time_is_asked_last_and_nothing_leaves_that_is_not() {
    in_a_network_namespace(|| {
        let mut cable = Cable::lay();
        let (nic, mut port) = open(&name("eth0"), Protocol::Arp, &program([&VIP4])).unwrap();
        let to = cable.neighbour.mac();
        let answer = |to_ip| Message::Answer { vip: VIP, to_mac: to, to_ip };
        let never = || -> bool { panic!("something is left to do that takes time") };

        let announcement = Message::Announcement { vip: VIP, form: AnnouncementForm::Request };
        // A link that has just come up swallows what is sent.
        let end = Instant::now() + PATIENCE;
        nic.send(&announcement, || true).unwrap();
        while cable.port.receive().unwrap().is_none() {
            assert!(Instant::now() < end, "nothing arrives");
            nic.send(&announcement, || true).unwrap();
        }

        let (sound, none) = (answer(OTHER), answer(IpAddr::V6(std::net::Ipv6Addr::LOCALHOST)));
        assert!(matches!(port.send(&none, never), Err(SendError::NoFrame(_))));
        assert!(matches!(nic.send(&none, never), Err(SendError::NoFrame(_))));
        assert!(matches!(port.send(&sound, || false), Err(SendError::TooLate(_))));
        assert!(matches!(nic.send(&sound, || false), Err(SendError::TooLate(_))));
        // What was sent before this one has arrived when it does.
        nic.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
        let (_, first) = cable.wait_for(|packet| !packet.is_announcement()).expect("a probe");
        assert!(first.is_probe(), "{first:?} left before");

        ip("link set eth0 address 02:00:00:00:00:ee");
        assert!(matches!(port.send(&sound, never), Err(SendError::MacChanged(_))));
        assert!(matches!(nic.send(&sound, never), Err(SendError::MacChanged(_))));
    });
}

#[test]
fn a_real_nic_survives_a_link_that_goes_down_and_is_mute_under_another_mac() {
    in_a_network_namespace(|| {
        let mut cable = Cable::lay();
        let (nic, port) = open(&name("eth0"), Protocol::Arp, &program([&VIP4])).unwrap();
        let (responder, _inbox, metrics) = respond(port);
        cable.ask().expect("an answer");

        ip("link set eth0 down");
        wait_until("the error is seen", || metrics.receive_errors.get() > 0);
        ip("link set eth0 up");
        cable.port.clear_error();
        cable.ask().expect("an answer after the link is back");
        assert!(responder.is_running());

        ip("link set eth0 address 02:00:00:00:00:ee");
        assert!(!nic.is_current());
        let announcement = Message::Announcement { vip: VIP, form: AnnouncementForm::Request };
        assert!(matches!(nic.send(&announcement, || true), Err(SendError::MacChanged(_))));
        let (answered, failed) = (metrics.answered.get(), metrics.send_errors.get());
        cable.neighbour.send(&Message::Probe { vip: VIP, to: None }, || true).unwrap();
        wait_until("the request is refused", || metrics.send_errors.get() > failed);
        assert_eq!(metrics.answered.get(), answered);

        ip("link delete eth0");
        assert!(!nic.is_current());
        assert!(matches!(open(&name("eth0"), Protocol::Arp, &program([&VIP4])), Err(OpenError::NoSuchInterface(_))));
        assert!(matches!(open(&name("lo"), Protocol::Arp, &program([&VIP4])), Err(OpenError::NotEthernet(_))));
    });
}
