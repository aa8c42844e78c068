use super::*;

const VIP: Ipv4Addr = Ipv4Addr::new(192, 0, 2, 64);
const NODE: MacAddr = MacAddr(2, 0, 0, 0, 1, 1);
const OTHER: MacAddr = MacAddr(2, 0, 0, 0, 1, 2);
const TTL: Duration = Duration::from_secs(1200);
const ONE: PortId = PortId(1);
const TWO: PortId = PortId(2);

fn reply(sender: MacAddr, to: Ipv4Addr) -> Vec<u8> {
    let arp = Arp { operation: ARP_REPLY, sender_mac: sender, sender_ip: VIP, target_mac: GATEWAY_MAC, target_ip: to };
    frame::arp_frame(GATEWAY_MAC, sender, arp)
}

fn announcement(source: MacAddr, sender: MacAddr) -> Vec<u8> {
    let arp =
        Arp { operation: ARP_REQUEST, sender_mac: sender, sender_ip: VIP, target_mac: MacAddr::zero(), target_ip: VIP };
    frame::arp_frame(MacAddr::broadcast(), source, arp)
}

fn outputs(gateway: &mut GatewayHost) -> Vec<Output> {
    std::iter::from_fn(|| gateway.poll_output()).collect()
}

fn ping(gateway: &mut GatewayHost, now: Instant) {
    gateway.handle_packet(VIP, datagram(SocketAddrV4::new(VIP, 9), b"hello"), now);
}

#[test]
fn asks_first_and_then_sends_what_waited_to_the_told_mac_out_of_the_ingress_port() {
    let (mut gateway, now) = (GatewayHost::new(TTL), Instant::now());
    ping(&mut gateway, now);
    ping(&mut gateway, now);
    let asked = outputs(&mut gateway);
    assert_eq!(asked.len(), 1);
    assert_eq!(asked[0].port, None);
    assert_eq!(frame::arp(&asked[0].bytes).unwrap().target_ip, VIP);

    gateway.handle_frame(ONE, &reply(NODE, GATEWAY_IP), now);
    let sent = outputs(&mut gateway);
    assert_eq!(sent.len(), 2);
    for output in sent {
        assert_eq!(output.port, Some(ONE));
        assert_eq!(frame::ethernet(&output.bytes).unwrap().destination, NODE);
        assert_eq!(frame::udp(&output.bytes).unwrap().payload, b"hello");
    }
}

#[test]
fn stores_the_port_of_the_frame_beside_the_mac_of_the_payload() {
    let (mut gateway, now) = (GatewayHost::new(TTL), Instant::now());
    // The frame comes from the node on port 2 and tells the MAC of the node on port 1.
    gateway.handle_frame(TWO, &announcement(OTHER, NODE), now);
    assert_eq!(gateway.history(), [GatewayFact { at: now, ip: VIP, mac: NODE, port: TWO }]);
    ping(&mut gateway, now);
    assert_eq!(outputs(&mut gateway)[0].port, Some(TWO));
}

#[test]
fn announcement_of_a_new_owner_replaces_the_entry_and_the_history_keeps_both() {
    let (mut gateway, now) = (GatewayHost::new(TTL), Instant::now());
    gateway.handle_frame(ONE, &announcement(NODE, NODE), now);
    gateway.handle_frame(ONE, &announcement(NODE, NODE), now);
    gateway.handle_frame(TWO, &announcement(OTHER, OTHER), now);
    let held: Vec<_> = gateway.history().iter().map(|fact| (fact.mac, fact.port)).collect();
    assert_eq!(held, [(NODE, ONE), (OTHER, TWO)]);
    assert_eq!(gateway.table(now).len(), 1);
}

#[test]
fn entry_expires_after_its_ttl_and_is_asked_for_again() {
    let (mut gateway, now) = (GatewayHost::new(TTL), Instant::now());
    gateway.handle_frame(ONE, &announcement(NODE, NODE), now);
    ping(&mut gateway, now + TTL - Duration::from_secs(1));
    assert_eq!(outputs(&mut gateway)[0].port, Some(ONE));
    ping(&mut gateway, now + TTL);
    let asked = outputs(&mut gateway);
    assert_eq!(frame::arp(&asked[0].bytes).unwrap().form(), ArpForm::Request);
}

#[test]
fn gives_up_asking_after_three_times() {
    let (mut gateway, mut now) = (GatewayHost::new(TTL), Instant::now());
    ping(&mut gateway, now);
    let mut asked = outputs(&mut gateway).len();
    while let Some(deadline) = gateway.next_deadline() {
        now = deadline;
        gateway.handle_timeout(now);
        asked += outputs(&mut gateway).len();
    }
    assert_eq!(asked, 3);
}

#[test]
fn does_not_learn_from_probes_answers_to_others_or_foreign_networks() {
    let (mut gateway, now) = (GatewayHost::new(TTL), Instant::now());
    let probe = Arp {
        operation: ARP_REQUEST,
        sender_mac: NODE,
        sender_ip: Ipv4Addr::UNSPECIFIED,
        target_mac: MacAddr::zero(),
        target_ip: VIP,
    };
    gateway.handle_frame(ONE, &frame::arp_frame(MacAddr::broadcast(), NODE, probe), now);
    gateway.handle_frame(ONE, &reply(NODE, Ipv4Addr::new(192, 0, 2, 3)), now);
    let foreign = Ipv4Addr::new(198, 51, 100, 1);
    let elsewhere = Arp { sender_ip: foreign, target_ip: foreign, ..probe };
    gateway.handle_frame(ONE, &frame::arp_frame(MacAddr::broadcast(), NODE, elsewhere), now);
    assert_eq!(gateway.history(), []);
}

#[test]
fn answers_for_itself_on_the_port_that_asked() {
    let (mut gateway, now) = (GatewayHost::new(TTL), Instant::now());
    let ask = Arp {
        operation: ARP_REQUEST,
        sender_mac: NODE,
        sender_ip: Ipv4Addr::new(192, 0, 2, 11),
        target_mac: MacAddr::zero(),
        target_ip: GATEWAY_IP,
    };
    gateway.handle_frame(ONE, &frame::arp_frame(MacAddr::broadcast(), NODE, ask), now);
    let answer = outputs(&mut gateway);
    assert_eq!(answer[0].port, Some(ONE));
    assert_eq!(frame::arp(&answer[0].bytes).unwrap().sender_mac, GATEWAY_MAC);
}

#[test]
fn link_down_takes_the_entries_of_its_port() {
    let (mut gateway, now) = (GatewayHost::new(TTL), Instant::now());
    gateway.handle_frame(ONE, &announcement(NODE, NODE), now);
    gateway.handle_link_down(TWO);
    assert_eq!(gateway.table(now).len(), 1);
    gateway.handle_link_down(ONE);
    assert_eq!(gateway.table(now), []);
}
