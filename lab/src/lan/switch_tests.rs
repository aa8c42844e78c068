use pnet_packet::ethernet::EtherTypes;

use super::*;

const A: MacAddr = MacAddr(2, 0, 0, 0, 0, 0xa);
const B: MacAddr = MacAddr(2, 0, 0, 0, 0, 0xb);
const C: MacAddr = MacAddr(2, 0, 0, 0, 0, 0xc);
const PORTS: [PortId; 3] = [PortId(1), PortId(2), PortId(3)];

fn switch(options: SwitchOptions) -> Switch {
    let mut switch = Switch::new(options);
    for port in PORTS {
        switch.handle_new_port(port);
    }
    switch
}

fn frame_between(source: MacAddr, destination: MacAddr) -> Vec<u8> {
    frame::ethernet_frame(Ethernet { destination, source, ethertype: EtherTypes::Ipv4 }, b"payload")
}

fn delivered(switch: &mut Switch, now: Instant) -> Vec<PortId> {
    std::iter::from_fn(|| switch.poll_delivery(now)).map(|(port, _)| port).collect()
}

/// Lets every host be heard, and forgets that.
fn introduce(switch: &mut Switch, now: Instant) {
    for (port, mac) in PORTS.into_iter().zip([A, B, C]) {
        switch.handle_frame(port, &frame_between(mac, MacAddr::broadcast()), now);
    }
    delivered(switch, now);
    switch.forget_frames();
}

#[test]
fn record_tells_ways_in_and_out_and_floods() {
    let (mut switch, now) = (switch(SwitchOptions::default()), Instant::now());
    switch.handle_frame(PORTS[0], &frame_between(A, B), now);
    switch.handle_frame(PORTS[1], &frame_between(B, A), now);
    switch.handle_frame(PORTS[0], &frame_between(A, MacAddr::broadcast()), now);
    let seen: Vec<_> =
        switch.recorder().frames().into_iter().map(|frame| (frame.ingress, frame.egress, frame.flooded)).collect();
    let [one, two, three] = PORTS;
    assert_eq!(
        seen,
        [
            (Ingress::Port(one), vec![two, three], true),
            (Ingress::Port(two), vec![one], false),
            (Ingress::Port(one), vec![two, three], false),
        ]
    );
}

#[test]
fn partition_keeps_even_known_addresses_apart_until_it_heals() {
    let (mut switch, now) = (switch(SwitchOptions::default()), Instant::now());
    introduce(&mut switch, now);
    switch.handle_partition(&[vec![PORTS[0]]]);
    switch.handle_frame(PORTS[1], &frame_between(B, A), now);
    switch.handle_frame(PORTS[1], &frame_between(B, MacAddr::broadcast()), now);
    assert_eq!(delivered(&mut switch, now), [PORTS[2]]);
    switch.handle_partition(&[]);
    switch.handle_frame(PORTS[1], &frame_between(B, A), now);
    assert_eq!(delivered(&mut switch, now), [PORTS[0]]);
}

#[test]
fn gateway_hears_nothing_from_another_segment() {
    let (mut switch, now) = (switch(SwitchOptions::default()), Instant::now());
    let vip = std::net::Ipv4Addr::new(192, 0, 2, 64);
    let arp = frame::Arp { operation: 1, sender_mac: A, sender_ip: vip, target_mac: MacAddr::zero(), target_ip: vip };
    let announcement = frame::arp_frame(MacAddr::broadcast(), A, arp);
    switch.handle_partition(&[vec![PORTS[0]]]);
    switch.handle_frame(PORTS[0], &announcement, now);
    assert!(switch.gateway().history().is_empty());
    switch.handle_partition(&[]);
    switch.handle_frame(PORTS[0], &announcement, now);
    assert_eq!(switch.gateway().history().len(), 1);
}

#[test]
fn delay_holds_a_frame_back_and_keeps_the_order() {
    let (mut switch, now) = (switch(SwitchOptions::default()), Instant::now());
    introduce(&mut switch, now);
    let delay = Duration::from_millis(5);
    switch.handle_delay(PORTS[1], delay);
    switch.handle_frame(PORTS[0], &frame_between(A, B), now);
    switch.handle_frame(PORTS[0], &frame_between(A, C), now);
    assert_eq!(delivered(&mut switch, now), [PORTS[2]]);
    assert_eq!(switch.next_deadline(), Some(now + delay));
    assert_eq!(delivered(&mut switch, now + delay), [PORTS[1]]);
}

#[test]
fn loss_loses_about_its_share_and_the_record_says_so() {
    let (mut switch, now) = (switch(SwitchOptions::default()), Instant::now());
    introduce(&mut switch, now);
    switch.handle_loss(PORTS[1], 0.25);
    for _ in 0..4_000 {
        switch.handle_frame(PORTS[0], &frame_between(A, B), now);
    }
    let arrived = delivered(&mut switch, now).len();
    assert!((2_850..3_150).contains(&arrived), "{arrived} of 4000 arrived");
    let recorded = switch.recorder().frames().iter().filter(|frame| !frame.egress.is_empty()).count();
    assert_eq!(recorded, arrived);
}

#[test]
fn down_port_neither_sends_nor_receives_and_its_addresses_are_forgotten() {
    let (mut switch, now) = (switch(SwitchOptions::default()), Instant::now());
    introduce(&mut switch, now);
    switch.handle_link(PORTS[1], false);
    switch.handle_frame(PORTS[1], &frame_between(B, A), now);
    assert_eq!(switch.mac_table(now), [(A, PORTS[0]), (C, PORTS[2])]);
    switch.handle_frame(PORTS[0], &frame_between(A, B), now);
    assert_eq!(delivered(&mut switch, now), [PORTS[2]]);
    switch.handle_link(PORTS[1], true);
    switch.handle_frame(PORTS[0], &frame_between(A, B), now);
    assert_eq!(delivered(&mut switch, now), [PORTS[1], PORTS[2]]);
}

#[test]
fn a_muted_port_says_nothing_of_that_address_and_hears_everything() {
    let (mut switch, now) = (switch(SwitchOptions::default()), Instant::now());
    introduce(&mut switch, now);
    let says = |ip: [u8; 4]| {
        let ip = ip.into();
        let arp =
            frame::Arp { operation: 2, sender_mac: A, sender_ip: ip, target_mac: B, target_ip: [192, 0, 2, 3].into() };
        frame::arp_frame(B, A, arp)
    };
    switch.handle_mute(PORTS[0], [192, 0, 2, 64].into(), true);
    switch.handle_frame(PORTS[0], &says([192, 0, 2, 64]), now);
    assert_eq!(delivered(&mut switch, now), []);
    switch.handle_frame(PORTS[0], &says([192, 0, 2, 65]), now);
    switch.handle_frame(PORTS[1], &says([192, 0, 2, 64]), now);
    switch.handle_mute(PORTS[0], [192, 0, 2, 64].into(), false);
    switch.handle_frame(PORTS[0], &says([192, 0, 2, 64]), now);
    assert_eq!(delivered(&mut switch, now), [PORTS[1], PORTS[1]]);
}
