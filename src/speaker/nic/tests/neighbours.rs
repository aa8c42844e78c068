//! Neighbour discovery with a Linux host at the other end of the cable: what its kernel makes of our frames.

use std::{
    io::Read as _,
    net::{Ipv6Addr, UdpSocket},
    process::{Child, Stdio},
    thread,
};

use nix::sched::{CloneFlags, setns};

use super::*;
use crate::speaker::{filter::nd, wire};

pub(super) const VIP: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x64);
const OTHER: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 0x65);
const CLIENT: Ipv6Addr = Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 0, 3);
const STRANGER: MacAddr = MacAddr(2, 0, 0, 0, 0xee, 9);
/// Passes everything.
const ALL: [Instruction; 1] = [Instruction { code: 6, jump_true: 0, jump_false: 0, operand: 0x4_0000 }];

/// A host in a network namespace of its own, with its end of the cable, lan0. It ends with the test, however that ends: its
/// one process reads from a pipe that this one holds.
pub(super) struct Host(Child);

impl Host {
    /// Lays a cable from eth0 here to lan0 there.
    pub(super) fn new() -> Self {
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", "echo; exec cat"]).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut child = command.spawn().unwrap();
        child.stdout.as_mut().unwrap().read_exact(&mut [0]).unwrap();
        let host = Self(child);
        host.lay_another_cable();
        host.ip(&format!("addr add {CLIENT}/64 dev lan0 nodad"));
        wait_until("both ends have finished duplicate address detection", || {
            let settled = |text: &str| text.contains("fe80:") && !text.contains("tentative");
            settled(&ip("-6 addr show dev eth0")) && settled(&host.ip("-6 addr show dev lan0"))
        });
        host
    }

    /// In the place of one that is gone.
    pub(super) fn lay_another_cable(&self) {
        ip(&format!("link add eth0 type veth peer name lan0 netns {}", self.0.id()));
        self.ip("link set lan0 up");
        ip("link set eth0 up");
    }

    fn ip(&self, arguments: &str) -> String {
        let namespace = format!("--net=/proc/{}/ns/net", self.0.id());
        let output =
            Command::new("nsenter").args([&namespace, "ip"]).args(arguments.split_whitespace()).output().unwrap();
        assert!(output.status.success(), "ip {arguments}: {}", String::from_utf8_lossy(&output.stderr));
        String::from_utf8_lossy(&output.stdout).into_owned()
    }

    /// Does something on a thread in the host's namespace. Sockets that it makes stay there.
    fn run<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = std::fs::File::open(format!("/proc/{}/ns/net", self.0.id())).unwrap();
        thread::scope(|scope| {
            let enter = move || {
                setns(&namespace, CloneFlags::CLONE_NEWNET).unwrap();
                work()
            };
            scope.spawn(enter).join().unwrap()
        })
    }

    fn open(&self, filter: &[Instruction]) -> (Nic, Port) {
        self.run(|| open(&name("lan0"), Protocol::NeighbourDiscovery, filter).unwrap())
    }

    /// What the kernel of the host knows about an address.
    pub(super) fn neighbour(&self, address: Ipv6Addr) -> String {
        self.ip(&format!("-6 neigh show {address} dev lan0"))
    }

    /// Has something to send to an address.
    pub(super) fn send_to(&self, address: Ipv6Addr) {
        self.run(|| UdpSocket::bind("[::]:0").unwrap().send_to(b"!", (address, 9)).unwrap());
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        drop(self.0.stdin.take());
        self.0.wait().unwrap();
    }
}

fn open_nd(vips: &[Ipv6Addr]) -> (Nic, Port) {
    open(&name("eth0"), Protocol::NeighbourDiscovery, &nd(vips)).unwrap()
}

/// Joins all of their groups, and leaves all others.
fn keep(groups: &mut Groups, vips: impl IntoIterator<Item = Ipv6Addr>) -> Result<(), JoinError> {
    groups.set(vips);
    while !groups.proceed()? {}
    Ok(())
}

/// Answers for the virtual IP on eth0, and listens where it is asked for.
fn answer(vips: &[Ipv6Addr]) -> (Nic, Groups, Responder, Inbox, Metrics) {
    let (nic, port) = open_nd(vips);
    let mut groups = Groups::new(name("eth0"), nic.index());
    keep(&mut groups, vips.iter().copied()).unwrap();
    let (responder, inbox, metrics) = respond(port);
    let part = Part::Owned { fence: Duration::from_secs(600) };
    responder.publish(vips.iter().map(|vip| (IpAddr::V6(*vip), part)).collect::<Snapshot>());
    (nic, groups, responder, inbox, metrics)
}

/// The next frame that `wanted` accepts.
fn wait_for_frame<T>(port: &mut Port, mut wanted: impl FnMut(&[u8]) -> Option<T>) -> Option<T> {
    let end = Instant::now() + PATIENCE;
    while Instant::now() < end {
        if let Some(found) = port.receive().unwrap().and_then(&mut wanted) {
            return Some(found);
        }
    }
    None
}

fn source(frame: &[u8]) -> MacAddr {
    wire::ethernet_source(frame).unwrap()
}

#[test]
fn a_linux_host_resolves_a_virtual_ip_keeps_it_reachable_and_follows_it_to_another_nic() {
    in_a_network_namespace(|| {
        let host = Host::new();
        let (_recorder, mut record) = open_nd(&[VIP]);
        let (nic, _groups, _responder, _inbox, metrics) = answer(&[VIP]);
        let is_known = |state: &str| {
            let entry = host.neighbour(VIP);
            entry.contains(&nic.mac().to_string()) && entry.contains(state)
        };

        // A host that never heard of it.
        wait_until("the host has resolved the address", || {
            host.send_to(VIP);
            is_known("REACHABLE")
        });
        let own = nic.mac();
        let mut is_asked = |broadcast: bool| {
            wait_for_frame(&mut record, |frame| {
                let asked = wire::read(frame, own).ok()?;
                assert!(asked.operation == Operation::Request && asked.target_ip == VIP, "{asked:?}");
                (asked.broadcast == broadcast).then_some(())
            })
        };
        is_asked(true).expect("a solicitation to the group");

        // Unreachability detection: what is stale and used is asked for by unicast, and has to be answered.
        host.ip("ntable change name ndisc_cache dev lan0 delay_probe 100 retrans 100");
        host.ip(&format!("-6 neigh change {VIP} dev lan0 lladdr {own} nud stale"));
        let answered = metrics.answered_nd.get();
        wait_until("the check was answered", || {
            host.send_to(VIP);
            metrics.answered_nd.get() > answered && is_known("REACHABLE")
        });
        is_asked(false).expect("a solicitation to the node");

        // An owner that is gone: the announcement moves the entry, and the host checks it before long.
        host.ip(&format!("-6 neigh change {VIP} dev lan0 lladdr {STRANGER} nud reachable"));
        assert!(!is_known(""));
        nic.send(&Message::Announcement { vip: VIP.into(), form: AnnouncementForm::Request }, || true).unwrap();
        wait_until("the entry has moved", || is_known("STALE"));
        wait_until("the entry is checked", || {
            host.send_to(VIP);
            is_known("REACHABLE")
        });
        assert_eq!(metrics.send_errors.get(), 0);
    });
}

#[test]
fn duplicate_address_detection_of_a_linux_host_finds_the_owner() {
    in_a_network_namespace(|| {
        let host = Host::new();
        let (_nic, _groups, _responder, mut inbox, metrics) = answer(&[VIP]);
        host.ip(&format!("addr add {VIP}/64 dev lan0"));
        host.ip(&format!("addr add {OTHER}/64 dev lan0"));
        wait_until("the host gives the address up", || {
            let shown = host.ip(&format!("-6 addr show to {VIP} dev lan0"));
            // Its kernel waits for an answer for one second, however busy the machine is.
            if !shown.contains("tentative") && !shown.contains("dadfailed") {
                host.ip(&format!("addr del {VIP}/64 dev lan0"));
                host.ip(&format!("addr add {VIP}/64 dev lan0"));
            }
            shown.contains("dadfailed")
        });
        wait_until("the host has an address that nobody owns", || {
            !host.ip(&format!("-6 addr show to {OTHER} dev lan0")).contains("tentative")
        });
        // Both follow after the answer.
        wait_until("the answer is counted", || metrics.answered_nd.get() > 0);
        wait_until("the loop hears of the probe", || !inbox.strangers.is_empty());
        let heard = inbox.strangers.try_recv().unwrap();
        assert!(heard.packet.is_probe() && heard.packet.target_ip == VIP, "{heard:?}");

        // The other way round: our probe of an address that a host has finds it, to whomever it goes.
        let (nic, mut port) = open_nd(&[OTHER]);
        let host_mac = wait_for_answer_to(&nic, &mut port, None);
        assert_eq!(host_mac.0, host_mac.1, "the host names the MAC address that it sends from");
        assert_eq!(wait_for_answer_to(&nic, &mut port, Some(host_mac.0)), host_mac);
        // And so does what a speaker asks an owner that it watches, where the kernel is that owner.
        let request = Message::Request { vip: OTHER.into(), to: host_mac.0, from: link_local().into() };
        nic.send(&request, || true).unwrap();
        let own = nic.mac();
        let answer = wait_for_frame(&mut port, |frame| wire::read(frame, own).ok()).unwrap();
        assert_eq!(
            (answer.operation, answer.sender_ip, answer.target_ip),
            (Operation::Reply, OTHER.into(), link_local().into())
        );
        assert!(!answer.broadcast);
    });
}

fn wait_for_answer_to(nic: &Nic, port: &mut Port, to: Option<MacAddr>) -> (MacAddr, MacAddr) {
    nic.send(&Message::Probe { vip: OTHER.into(), to }, || true).unwrap();
    let own = nic.mac();
    wait_for_frame(port, |frame| {
        let packet = wire::read(frame, own).ok()?;
        (packet.operation == Operation::Reply && packet.sender_ip == OTHER).then(|| (source(frame), packet.sender_mac))
    })
    .unwrap()
}

fn link_local() -> Ipv6Addr {
    let text = ip("-6 addr show dev eth0 scope link");
    let address = text.split_whitespace().skip_while(|word| *word != "inet6").nth(1).unwrap();
    address.split('/').next().unwrap().parse().unwrap()
}

#[test]
fn only_neighbour_discovery_for_this_nic_arrives_and_what_is_wrong_with_it_is_counted() {
    in_a_network_namespace(|| {
        let host = Host::new();
        host.ip("link set lan0 mtu 2000");
        ip("link set eth0 mtu 2000");
        let (neighbour, mut port) = host.open(&nd(&[VIP]));
        let (nic, _groups, _responder, _inbox, metrics) = answer(&[VIP]);
        let request = |vip: Ipv6Addr, to: MacAddr| Message::Request { vip: vip.into(), to, from: CLIENT.into() };
        let write = |message: &Message| frame::write(message, neighbour.own).unwrap().to_vec();
        let good = write(&request(VIP, nic.mac()));
        let send = |frame: &[u8]| assert_eq!(neighbour.socket.send(frame).unwrap(), frame.len());

        // Of a VLAN that this NIC has no part in, for another host, and about another address: they do not wake the process.
        let tagged = [&good[..12], &[0x81, 0, 0, 5], &good[12..]].concat();
        send(&tagged);
        send(&write(&request(VIP, STRANGER)));
        send(&write(&request(OTHER, nic.mac())));
        send(&good);
        let own = neighbour.mac();
        let answer = wait_for_frame(&mut port, |frame| wire::read(frame, own).ok()).expect("an answer");
        assert_eq!((answer.operation, answer.sender_mac, answer.broadcast), (Operation::Reply, nic.mac(), false));
        assert_eq!(metrics.received.get(), 1);

        let but = |at: usize, octet: u8| {
            let mut frame = good.clone();
            frame[at] = octet;
            frame
        };
        for (frame, reason) in [
            (but(21, 64), DropReason::HopLimit),
            (but(55, 1), DropReason::Icmpv6Code),
            (but(19, 200), DropReason::Ipv6Length),
            (but(56, good[56] ^ 1), DropReason::Checksum),
            (but(14, 0x50), DropReason::Ipv6Version),
            (good[..70].to_vec(), DropReason::Ipv6Length),
            ([&good[..], &[0; 1450]].concat(), DropReason::Oversized),
        ] {
            let before = metrics.dropped_for(reason);
            send(&frame);
            wait_until(reason.as_str(), || metrics.dropped_for(reason) == before + 1);
        }
        wait_until("the answer is counted", || metrics.answered_nd.get() == 1);
        send(&good);
        wait_until("answers go on", || metrics.answered_nd.get() == 2);
    });
}

#[test]
fn asking_another_speaker_does_not_make_its_kernel_look_for_the_address() {
    in_a_network_namespace(|| {
        let host = Host::new();
        // As on each node of a cluster.
        std::fs::write("/proc/sys/net/ipv6/conf/all/forwarding", "1").unwrap();
        ip("addr add 2001:db8:1::11/64 dev eth0 nodad");
        let (neighbour, mut port) = host.open(&ALL);
        let (nic, _groups, _responder, _inbox, _metrics) = answer(&[VIP]);
        let (owner, own) = (nic.mac(), neighbour.mac());
        // What the owner's NIC sends about the address, until it answers.
        let mut asks = |frame: &[u8]| {
            neighbour.socket.send(frame).unwrap();
            let mut looked_for = false;
            let answered = wait_for_frame(&mut port, |frame| {
                let packet = wire::read(frame, own).ok();
                let about = frame.get(62..78) == Some(&VIP.octets()[..]) && source(frame) == owner;
                looked_for |= about && frame[54] == 135;
                packet.filter(|packet| packet.operation == Operation::Reply && packet.sender_ip == VIP)
            });
            (answered.is_some(), looked_for)
        };
        let request = Message::Request { vip: VIP.into(), to: owner, from: CLIENT.into() };
        let request = frame::write(&request, neighbour.own).unwrap().to_vec();
        assert_eq!(asks(&request), (true, false));
        assert_eq!(asks(&request), (true, false));
    });
}

#[test]
fn groups_are_joined_and_left_on_the_wire() {
    in_a_network_namespace(|| {
        let host = Host::new();
        let (_recorder, mut record) = host.open(&ALL);
        let (nic, _port) = open_nd(&[VIP]);
        let mut groups = Groups::new(name("eth0"), nic.index());
        let group = wire::nd::solicited_node(VIP);
        // Of another subnet, with the same last 24 bits.
        let twin = Ipv6Addr::new(0x2001, 0xdb8, 2, 0, 0, 0, 0, 0x64);
        let is_joined = || ip("-6 maddr show dev eth0").contains(&group.to_string());

        keep(&mut groups, [VIP, twin]).unwrap();
        assert_eq!(groups.joined(), 1);
        wait_for_report(&mut record, group, CHANGE_TO_EXCLUDE);
        keep(&mut groups, [twin]).unwrap();
        assert!(groups.joined() == 1 && is_joined());
        keep(&mut groups, []).unwrap();
        assert!(groups.joined() == 0 && groups.sockets() == 0 && !is_joined());
        wait_for_report(&mut record, group, CHANGE_TO_INCLUDE);
        forget(&mut record);

        // Dropping it leaves them all, and a link that was down reports them again.
        keep(&mut groups, [VIP]).unwrap();
        wait_for_report(&mut record, group, CHANGE_TO_EXCLUDE);
        ip("link set eth0 down");
        // A kernel repeats its reports.
        forget(&mut record);
        ip("link set eth0 up");
        wait_for_report(&mut record, group, CHANGE_TO_EXCLUDE);
        drop(groups);
        wait_until("the group is left", || !is_joined());
    });
}

/// Reads all that has come in.
fn forget(record: &mut Port) {
    while record.receive().unwrap().is_some() {}
}

/// Record types of a report (RFC 3810 section 5.2.12): who listens to a group excludes no sender, who does not, includes none.
const CHANGE_TO_INCLUDE: u8 = 3;
const CHANGE_TO_EXCLUDE: u8 = 4;

/// Waits until the node reports that its part in a group changed.
fn wait_for_report(record: &mut Port, group: Ipv6Addr, change: u8) {
    let found = wait_for_frame(record, |frame| {
        // An IPv6 header, hop-by-hop options with a router alert, and a report.
        if *frame.get(20)? != 0 || *frame.get(62)? != 143 {
            return None;
        }
        // No record has sources or auxiliary data here: each is of one length.
        let records = frame.get(70..)?.chunks_exact(20);
        records.filter(|record| record[0] == change).find(|record| record[4..20] == group.octets()).map(drop)
    });
    assert!(found.is_some(), "no report of {group} with record type {change}");
}

#[test]
fn thousands_of_groups_are_spread_over_sockets_and_a_nic_without_ipv6_is_named() {
    in_a_network_namespace(|| {
        let _host = Host::new();
        let (nic, _port) = open_nd(&[VIP]);
        let vips = |count: u16| (0..count).map(|host| Ipv6Addr::new(0x2001, 0xdb8, 1, 0, 0, 0, 1, host));
        let mut groups = Groups::new(name("eth0"), nic.index());
        keep(&mut groups, vips(4_500)).unwrap();
        assert!(groups.joined() == 4_500 && groups.sockets() >= 3, "{}", groups.sockets());
        // In steps: the caller's loop has more to do.
        groups.set(vips(10));
        assert!(!groups.proceed().unwrap() && groups.is_due() && groups.joined() > 4_000);
        keep(&mut groups, vips(10)).unwrap();
        assert_eq!((groups.joined(), groups.sockets()), (10, 1));
        // Where a socket has less memory, the kernel says when the next one is due. Older kernels have one limit for all namespaces.
        if std::fs::write("/proc/sys/net/core/optmem_max", "10000").is_ok() {
            keep(&mut groups, vips(1_000)).unwrap();
            assert!(groups.joined() == 1_000 && groups.sockets() > 2, "{}", groups.sockets());
        }
        drop(groups);

        std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", "1").unwrap();
        let mut groups = Groups::new(name("eth0"), nic.index());
        let error = keep(&mut groups, [VIP]).unwrap_err();
        assert!(matches!(error, JoinError::TurnedOff(_)) && error.to_string().contains("disable_ipv6"), "{error}");
        keep(&mut groups, []).unwrap();
        ip("link delete eth0");
        let error = keep(&mut groups, [VIP]).unwrap_err();
        assert!(matches!(error, JoinError::Group { .. }) && error.to_string().contains("eth0"), "{error}");
    });
}

#[test]
fn the_filter_for_as_many_addresses_as_it_tells_apart_fits_into_the_memory_that_older_kernels_give() {
    in_a_network_namespace(|| {
        let _host = Host::new();
        let (nic, _port) = open_nd(&[VIP]);
        // The default before Linux 6.8. Where it cannot be set, it is one limit for all namespaces.
        let can_be_set = std::fs::write("/proc/sys/net/core/optmem_max", "20480").is_ok();
        println!("the limit {}", if can_be_set { "is that of older kernels" } else { "is this kernel's" });
        for one in 1..=3u128 {
            // Of different networks each: no word of one is as in another.
            let address = |host: u128| Ipv6Addr::from((host << 3 | one) * 0xf_0000_0001_0000_0001_0000_0001);
            let far: Vec<Ipv6Addr> = (1..=32).map(address).collect();
            nic.set_filter(&nd(&far)).unwrap();
        }
    });
}
