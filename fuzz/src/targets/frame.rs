//! Frames of any content: what is accepted is in order, and only an owner answers it.

use std::{net::IpAddr, sync::Arc, time::Duration};

use l2lb::speaker::{
    drop_reason::DropReason,
    peers::Peers,
    triage::{Part, Queue, Snapshot},
    wire::{self, Message, Operation, Packet, arp, nd},
};

use super::wires::{OWN, frame_of, shortest};

const FENCE: Duration = Duration::from_millis(500);

/// Reads the frame, and lets the receive path decide what to do with it.
pub fn run(data: &[u8]) {
    let frame = frame_of(data);
    let read = wire::read(&frame, OWN);
    let by_protocol = (arp::read(&frame, OWN), nd::read(&frame, OWN));
    let Ok(packet) = read else {
        assert!(
            by_protocol.0.is_err() && by_protocol.1.is_err(),
            "{by_protocol:?} is read, and not as a frame: {read:?}"
        );
        return;
    };
    assert!([by_protocol.0, by_protocol.1].contains(&Ok(packet)), "one reader takes it");
    is_in_order(&frame, &packet);
    let padded = [&frame[..], &[0; 18]].concat();
    if padded.len() <= 1_518 {
        assert_eq!(wire::read(&padded, OWN), Ok(packet), "padding changes nothing");
    }
    let cut = &frame[..shortest(&frame).saturating_sub(1).min(frame.len())];
    assert!(wire::read(cut, OWN).is_err(), "a frame that is cut off is not read");
    decide(&packet);
}

fn is_in_order(frame: &[u8], packet: &Packet) {
    let Packet { sender_mac, sender_ip, target_ip, broadcast, .. } = *packet;
    assert!(frame.len() >= shortest(frame) && frame.len() <= 1_518);
    assert!(sender_mac.is_unicast() && !sender_mac.is_zero() && sender_mac != OWN, "{packet:?}");
    assert_eq!(sender_ip.is_ipv4(), target_ip.is_ipv4(), "both of one family");
    // The router flag of an advertisement: the kernel of a node that forwards answers so, to everybody, and claims nothing.
    let is_of_kernel = sender_ip.is_ipv6() && packet.operation == Operation::Reply && frame[58] & 0x80 != 0;
    assert_eq!(broadcast, frame[..6] != OWN.octets() && !is_of_kernel, "to everybody, or to this NIC");
    assert!(frame[..6] == OWN.octets() || frame[0] & 1 != 0, "not to another host: {packet:?}");
    assert!(!(packet.is_announcement() && packet.is_probe()));
    if let IpAddr::V6(target) = target_ip {
        assert_eq!(frame[21], nd::HOP_LIMIT, "it came from this link");
        assert!(!sender_ip.is_multicast(), "{packet:?}");
        // An advertisement names its target, and one of `::1` concerns no virtual IP: it is dropped for that.
        assert!(packet.operation == Operation::Reply || !sender_ip.is_loopback(), "{packet:?}");
        assert!(packet.operation == Operation::Reply || !target.is_unspecified() && !target.is_multicast());
        assert!(packet.operation == Operation::Request || !sender_ip.is_unspecified(), "{packet:?}");
        // Who solicits its own address uses it, and says so to everybody: that is a claim in whatever form.
        assert!(!packet.is_announcement() || sender_ip == target, "{packet:?}");
    } else {
        assert_eq!(frame[22..28], sender_mac.octets());
    }
}

fn decide(packet: &Packet) {
    let snapshot = |part| -> Snapshot { [(packet.target_ip, part), (packet.sender_ip, part)].into_iter().collect() };
    let owned = snapshot(Part::Owned { fence: FENCE });
    let answer = owned.answer(packet);
    let asks = packet.operation == Operation::Request && packet.sender_ip != packet.target_ip;
    let expected = Message::Answer { vip: packet.target_ip, to_mac: packet.sender_mac, to_ip: packet.sender_ip };
    assert_eq!(answer, if asks { Ok((expected, FENCE)) } else { Err(DropReason::NotOwner) });
    assert_eq!(snapshot(Part::Watched).answer(packet), Err(DropReason::NotOwner));
    assert_eq!(Snapshot::default().answer(packet), Err(DropReason::OtherAddress));
    assert_eq!(Snapshot::default().queue(packet), None);
    // Whoever names an address as its own, the loop hears of it; and of everybody who is about to. Strangers have a queue of
    // their own, so that they cannot fill those of speakers.
    let sender = [(Arc::from("peer"), Arc::from("eth0"), packet.sender_mac)];
    let known = snapshot(Part::Owned { fence: FENCE }).with_peers(Arc::new(Peers::new(Arc::from("own"), sender)));
    let (of_speakers, of_strangers) = (known.queue(packet), owned.queue(packet));
    if !packet.is_probe() {
        assert_eq!((of_speakers, of_strangers), (Some(Queue::Claims), Some(Queue::Strangers)), "{packet:?}");
    } else {
        let expected = packet.broadcast.then_some(Queue::Strangers);
        assert_eq!((of_speakers, of_strangers), (Some(Queue::Requests), expected), "{packet:?}");
    }
}
