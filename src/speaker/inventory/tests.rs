use super::*;

fn ipv6(name: &str) -> Result<(), String> {
    if name == "eth6" { Err("IPv6 is turned off on it".to_owned()) } else { Ok(()) }
}

fn eth0() -> Facts {
    Facts {
        name: "eth0".to_owned(),
        has_mac: true,
        broadcast: true,
        arp: true,
        up: true,
        carrier: true,
        ..Facts::default()
    }
}

#[test]
fn an_ethernet_interface_with_a_link_announces() {
    assert_eq!(judge(&eth0()), Ok(()));
    assert_eq!(judge(&Facts { name: "br0".to_owned(), ..eth0() }), Ok(()));
    assert_eq!(judge(&Facts { name: "bond0.12".to_owned(), ..eth0() }), Ok(()));
}

#[test]
fn each_obstacle_is_named() {
    let table = [
        (Facts { loopback: true, ..eth0() }, "loopback"),
        (Facts { name: "veth12ab".to_owned(), ..eth0() }, "containers"),
        (Facts { name: "cni0".to_owned(), ..eth0() }, "containers"),
        (Facts { name: "flannel.1".to_owned(), ..eth0() }, "containers"),
        (Facts { master: Some("bond0".to_owned()), ..eth0() }, "bond0"),
        (Facts { has_mac: false, ..eth0() }, "MAC"),
        (Facts { broadcast: false, ..eth0() }, "point-to-point"),
        (Facts { arp: false, ..eth0() }, "ARP"),
        (Facts { up: false, carrier: false, ..eth0() }, "down"),
        (Facts { carrier: false, ..eth0() }, "no link"),
    ];
    for (facts, word) in table {
        let reason = judge(&facts).unwrap_err();
        assert!(reason.contains(word), "{facts:?}: {reason}");
    }
}

fn link(index: u32, name: &str) -> LinkState {
    LinkState {
        index,
        name: name.to_owned(),
        mac: Some(MacAddr(2, 0, 0, 0, 0, index as u8)),
        broadcast: true,
        arp: true,
        up: true,
        carrier: true,
        ..LinkState::default()
    }
}

fn made(link: LinkState) -> Event {
    Event::Link { link, is_new: true }
}

fn told(link: LinkState) -> Event {
    Event::Link { link, is_new: false }
}

fn network(text: &str) -> IpNet {
    text.parse().unwrap()
}

fn address(index: u32, text: &str) -> Event {
    Event::Address { index, network: network(text) }
}

fn folded(events: impl IntoIterator<Item = Event>) -> Inventory {
    let mut inventory = Inventory::default();
    for event in events {
        inventory.fold(&event);
    }
    inventory
}

/// Name, and why it cannot announce.
fn verdicts(inventory: &Inventory) -> Vec<(String, String)> {
    inventory.interfaces(ipv6).into_iter().map(|found| (found.entry.name, found.entry.reason)).collect()
}

fn verdict(inventory: &Inventory, name: &str) -> String {
    verdicts(inventory).into_iter().find(|(found, _)| found == name).unwrap().1
}

/// What happens to eth0 (index 2), whether that is news, and what its entry says then.
#[test]
fn each_event_changes_the_state_as_it_should() {
    let eth0 = || link(2, "eth0");
    let gone = "there is none";
    let table: [(&str, Vec<Event>, Folded, &str); 14] = [
        ("told again", vec![told(eth0())], Folded::Nothing, ""),
        ("carrier lost", vec![told(LinkState { carrier: false, ..eth0() })], Folded::Changed, "it has no link"),
        ("carrier lost and back", vec![told(LinkState { carrier_losses: 1, ..eth0() })], Folded::Changed, ""),
        ("set down", vec![told(LinkState { up: false, carrier: false, ..eth0() })], Folded::Changed, "it is down"),
        ("without ARP", vec![told(LinkState { arp: false, ..eth0() })], Folded::Changed, "ARP is turned off on it"),
        (
            "without a MAC address",
            vec![told(LinkState { mac: None, ..eth0() })],
            Folded::Changed,
            "it has no MAC address",
        ),
        (
            "enslaved",
            vec![made(link(9, "br0")), told(LinkState { master: Some(9), ..eth0() })],
            Folded::Changed,
            "it is a port of br0, which is used instead",
        ),
        (
            "enslaved to what is not known",
            vec![told(LinkState { master: Some(9), ..eth0() })],
            Folded::Changed,
            "it is a port of another interface, which is used instead",
        ),
        ("renamed", vec![told(link(2, "lan0"))], Folded::Changed, gone),
        ("renamed to a container's", vec![told(link(2, "veth0"))], Folded::Changed, gone),
        ("removed", vec![Event::LinkGone(2)], Folded::Changed, gone),
        ("removed twice", vec![Event::LinkGone(2), Event::LinkGone(2)], Folded::Nothing, gone),
        ("made anew", vec![Event::LinkGone(2), made(link(3, "eth0"))], Folded::Changed, ""),
        ("another one removed", vec![Event::LinkGone(7)], Folded::Nothing, ""),
    ];
    for (what, events, expected, reason) in table {
        let mut inventory = folded([made(eth0())]);
        let last = events.iter().map(|event| inventory.fold(event)).last();
        assert_eq!(last, Some(expected), "{what}");
        let found = inventory.interfaces(ipv6).into_iter().find(|found| found.entry.name == "eth0");
        assert_eq!(found.map_or(gone.to_owned(), |found| found.entry.reason), reason, "{what}");
    }
}

#[test]
fn a_port_that_leaves_its_bridge_announces_again_and_a_renamed_bridge_is_named_as_it_is() {
    let mut inventory = folded([made(link(9, "br0")), made(LinkState { master: Some(9), ..link(2, "eth0") })]);
    inventory.fold(&told(link(9, "br1")));
    assert_eq!(verdict(&inventory, "eth0"), "it is a port of br1, which is used instead");
    inventory.fold(&told(link(2, "eth0")));
    assert_eq!(verdict(&inventory, "eth0"), "");
}

#[test]
fn a_swap_of_names_is_seen_by_the_indices() {
    let mut inventory = folded([made(link(2, "eth0")), made(link(3, "eth1"))]);
    for event in [told(link(2, "spare")), told(link(3, "eth0")), told(link(2, "eth1"))] {
        assert_eq!(inventory.fold(&event), Folded::Changed);
    }
    let found: Vec<_> = inventory.interfaces(ipv6).into_iter().map(|found| (found.entry.name, found.index)).collect();
    assert_eq!(found, [("eth0".to_owned(), 3), ("eth1".to_owned(), 2)]);
}

#[test]
fn addresses_come_and_go_in_the_order_of_the_kernel() {
    let mut inventory = folded([made(link(2, "eth0")), address(2, "192.0.2.11/24")]);
    assert_eq!(inventory.fold(&address(2, "192.0.2.5/32")), Folded::Changed);
    assert_eq!(inventory.fold(&address(2, "2001:db8:1::11/64")), Folded::Changed);
    assert_eq!(inventory.fold(&address(2, "192.0.2.11/24")), Folded::Nothing, "its lifetime is no news");
    assert_eq!(inventory.fold(&address(8, "192.0.2.99/24")), Folded::Nothing, "of a container");
    let listed = |inventory: &Inventory| inventory.interfaces(ipv6)[0].entry.addresses.clone();
    assert_eq!(listed(&inventory), ["192.0.2.11/24", "192.0.2.5/32", "2001:db8:1::11/64"]);
    let first: Vec<IpAddr> = vec!["192.0.2.11".parse().unwrap()];
    assert_eq!(inventory.interfaces(ipv6)[0].addresses()[..1], first);
    let gone = Event::AddressGone { index: 2, network: network("192.0.2.11/24") };
    assert_eq!(inventory.fold(&gone), Folded::Changed);
    assert_eq!(inventory.fold(&gone), Folded::Nothing);
    assert_eq!(listed(&inventory), ["192.0.2.5/32", "2001:db8:1::11/64"]);
}

#[test]
fn a_thousand_interfaces_of_containers_leave_nothing() {
    let mut inventory = folded([made(link(2, "eth0"))]);
    let before = inventory.clone();
    for index in 100..1100 {
        for event in [made(link(index, &format!("veth{index}"))), address(index, "fe80::1/64"), Event::LinkGone(index)]
        {
            assert_eq!(inventory.fold(&event), Folded::Nothing);
        }
    }
    assert_eq!(inventory, before);
}

#[test]
fn an_interface_that_takes_a_name_of_interest_has_addresses_that_nobody_told_of() {
    let mut inventory = folded([made(link(5, "veth5")), address(5, "192.0.2.11/24")]);
    assert_eq!(inventory.fold(&told(link(5, "eth0"))), Folded::Unknown);
    assert_eq!(inventory.fold(&made(link(6, "eth1"))), Folded::Changed, "a new one has none");
}

#[test]
fn default_routes_are_kept_by_family_and_go_with_their_interface() {
    let route = |family, through: &[u32]| Event::DefaultRoute { family, through: through.to_vec() };
    let mut inventory = folded([made(link(2, "eth0")), made(link(3, "eth1")), route(Family::V4, &[2])]);
    assert_eq!(inventory.fold(&route(Family::V6, &[2, 3])), Folded::Changed);
    assert_eq!(inventory.fold(&route(Family::V6, &[3])), Folded::Nothing);
    let listed = |inventory: &Inventory| -> Vec<(bool, bool)> {
        inventory
            .interfaces(ipv6)
            .iter()
            .map(|found| (found.entry.default_route, found.entry.default_route_ipv6))
            .collect()
    };
    assert_eq!(listed(&inventory), [(true, true), (false, true)]);
    // Another one through the same interface may be left.
    assert_eq!(inventory.fold(&Event::DefaultRouteGone(Family::V4)), Folded::Changed);
    assert_eq!(listed(&inventory), [(true, true), (false, true)]);
    inventory.fold(&Event::LinkGone(3));
    inventory.fold(&made(link(3, "eth1")));
    assert_eq!(listed(&inventory), [(true, true), (false, false)]);
}

#[test]
fn those_that_announce_are_listed_first_and_no_more_than_the_api_takes() {
    let many = (10..700).map(|index| made(LinkState { carrier: false, ..link(index, &format!("a{index}")) }));
    let inventory = folded(many.chain([made(link(2, "z0"))]));
    let found = inventory.interfaces(ipv6);
    assert_eq!((found.len(), found[0].entry.name.as_str()), (MAX_LISTED, "z0"));
}

#[test]
fn whether_it_announces_ipv6_is_said_of_those_that_announce() {
    let inventory =
        folded([made(link(2, "eth0")), made(link(6, "eth6")), made(LinkState { up: false, ..link(7, "eth7") })]);
    let found = inventory.interfaces(ipv6);
    let said: Vec<_> =
        found.iter().map(|found| (found.entry.announces_ipv6, found.entry.reason_ipv6.as_str())).collect();
    assert_eq!(said, [(true, ""), (false, "IPv6 is turned off on it"), (false, "")]);
}

#[test]
fn an_answer_that_is_not_whole_takes_no_address_away() {
    let link = LinkState { index: 2, name: "eth0".to_owned(), carrier: true, ..LinkState::default() };
    let network = |text: &str| text.parse::<IpNet>().unwrap();
    let mut known = Inventory::default();
    known.fold(&Event::Link { link: link.clone(), is_new: true });
    known.fold(&Event::Address { index: 2, network: network("192.0.2.11/24") });
    let mut newer = Inventory::default();
    newer.fold(&Event::Link { link: LinkState { carrier: false, ..link }, is_new: true });
    newer.fold(&Event::Address { index: 2, network: network("2001:db8:1::11/64") });
    known.merge(newer);
    let entry = known.interfaces(ipv6).remove(0).entry;
    assert_eq!(entry.addresses, ["192.0.2.11/24", "2001:db8:1::11/64"]);
    assert!(!entry.carrier, "what it does say counts");
}
