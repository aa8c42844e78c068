//! Each thing that can happen to an interface.

use super::*;
use crate::api::ClaimState;

const OWN: MacAddr = MacAddr(2, 0, 0, 0, 0, 1);

#[test]
fn after_each_thing_that_can_happen_to_a_link_a_probe_precedes_the_first_announcement() {
    let text = in_a_network_namespace(|| {
        lay_cable("eth0", "lan0", OWN);
        let lan = Lan::listen("lan0");
        let speaker = Speaker::start();
        speaker.announce(VIP, "eth0");
        speaker.announce(LATER, "eth1");
        speaker.says("nic eth0: it is down");
        speaker.says("nic eth1: there is no interface eth1 on this node");
        ip("link set eth0 up");
        lan.is_announced_after_a_probe("its first coming up", VIP, OWN);
        speaker.claims(VIP, ClaimState::Owner);
        assert_eq!(lan.answerer(VIP), OWN);

        carrier(&speaker, &lan);
        flap(&speaker, &lan);
        not_running(&speaker, &lan);
        admin_state(&speaker, &lan);
        let present = mac_address(&speaker, &lan);
        rename(&speaker, &lan, present);
        enslaved(&speaker, &lan, present);
        addresses(&speaker);
        let lan = removal(&speaker, lan);
        appears_later(&speaker);
        assert_eq!(lan.answerer(VIP), mac(9), "through all of this");
        speaker.is_ready();
    });
    text.lines().filter(|line| line.contains(" after ")).for_each(|line| println!("{line}"));
}

fn carrier(speaker: &Speaker, lan: &Lan) {
    ip("link set lan0 down");
    let known = speaker.says("nic eth0: it has no link");
    println!("a lost link was known {known:?} after the command that cut it");
    speaker.claims(VIP, ClaimState::LinkDown);
    wait_until("the Speaker object is to say so", || {
        speaker.reporter.said_of_itself().troubles
            == ["eth0: it has no link", "eth1: there is no interface eth1 on this node"]
    });
    lan.forget();
    let begin = Instant::now();
    ip("link set lan0 up");
    lan.is_announced_after_a_probe("its link was back", VIP, OWN);
    println!("it was announced again {:?} after the link was back", begin.elapsed());
    speaker.claims(VIP, ClaimState::Owner);
}

/// Over before anybody can look: the kernel may tell of it once, when all is as it was.
fn flap(speaker: &Speaker, lan: &Lan) {
    for _ in 0..3 {
        assert_eq!(lan.answerer(VIP), OWN);
        lan.forget();
        let batch = "link set lan0 down\nlink set lan0 up\n";
        ip_batch(batch);
        lan.forget_until_it_probes(VIP);
        lan.is_announced_after_a_probe("a link that was lost for a moment", VIP, OWN);
    }
    speaker.claims(VIP, ClaimState::Owner);
}

/// It has its carrier, but the kernel does not say that it runs: so it is with 802.1X until it let the node in, and with every NIC
/// until the kernel has come to opening its queues. What is sent before is swallowed, the probes with it.
fn not_running(speaker: &Speaker, lan: &Lan) {
    ip("link set eth0 mode dormant");
    ip("link set lan0 down");
    speaker.claims(VIP, ClaimState::LinkDown);
    lan.forget();
    ip("link set lan0 up");
    wait_until("eth0 has its carrier, and is dormant", || {
        let shown = ip("-oneline link show eth0");
        shown.contains("LOWER_UP") && shown.contains("state DORMANT")
    });
    // What the kernel tells next is taken in after that.
    ip("link add name other0 type veth peer name other1");
    wait_until("it is known", || speaker.links.clone().view().iter().any(|seen| seen.entry.name == "other0"));
    speaker.claims(VIP, ClaimState::LinkDown);
    assert!(lan.heard().iter().all(|frame| frame.source != OWN), "{:?}", lan.heard());
    ip("link delete other0");
    ip("link set eth0 mode default");
    ip("link set eth0 state up");
    lan.is_announced_after_a_probe("it runs", VIP, OWN);
    speaker.claims(VIP, ClaimState::Owner);
}

fn admin_state(speaker: &Speaker, lan: &Lan) {
    ip("link set eth0 down");
    let known = speaker.says("nic eth0: it is down");
    println!("that it was set down was known {known:?} after the command");
    speaker.claims(VIP, ClaimState::LinkDown);
    lan.forget();
    ip("link set eth0 up");
    lan.is_announced_after_a_probe("it was set up", VIP, OWN);
}

/// While it is asked all the time.
fn mac_address(speaker: &Speaker, lan: &Lan) -> MacAddr {
    let present = mac(7);
    assert_eq!(lan.answerer(VIP), OWN);
    lan.forget();
    let asked_for = |lan: &Lan, until: &dyn Fn(&[Frame]) -> bool| {
        wait_until("it answers under the present MAC address", || {
            lan.ask(VIP);
            until(&lan.heard())
        })
    };
    ip(&format!("link set eth0 address {present}"));
    let answers = |heard: &[Frame]| heard.iter().any(|frame| frame.source == present && frame.packet.is_announcement());
    asked_for(lan, &answers);
    let heard = lan.heard();
    // What left before the change comes first.
    let change = heard.iter().position(|frame| frame.source != OWN).unwrap();
    for frame in &heard[change..] {
        assert_eq!(
            (frame.source, frame.packet.sender_mac),
            (present, present),
            "a frame under another MAC address: {heard:?}"
        );
    }
    let first = heard[change..].iter().position(|frame| frame.packet.sender_ip == VIP).unwrap();
    let probes = heard[change..change + first].iter().filter(|frame| frame.packet.is_probe()).count();
    assert!(probes >= 1, "it speaks for the address before it has probed: {heard:?}");
    speaker.is_ready_but_for("eth1");
    assert_eq!(speaker.reporter.unwritten_claim(VIP).unwrap().mac, present.to_string());
    lan.forget();
    assert_eq!(lan.answerer(VIP), present);
    present
}

fn rename(speaker: &Speaker, lan: &Lan, present: MacAddr) {
    ip_batch("link set eth0 down\nlink set eth0 name spare\nlink set spare up\n");
    speaker.says("nic eth0: there is no interface eth0 on this node");
    speaker.claims(VIP, ClaimState::LinkDown);
    is_silent(lan, "spare");
    ip_batch("link set spare down\nlink set spare name eth0\nlink set eth0 up\n");
    lan.is_announced_after_a_probe("it had its name again", VIP, present);
    // Another interface takes the name while this one takes another: the index tells.
    lan.forget();
    lay_cable("next", "lan1", mac(8));
    ip("link set next up");
    let other = Lan::listen("lan1");
    ip_batch(
        "link set eth0 down\nlink set next down\nlink set eth0 name spare\nlink set next name eth0\nlink set spare up\nlink set eth0 up\n",
    );
    other.is_announced_after_a_probe("another interface took the name", VIP, mac(8));
    is_silent(lan, "spare");
    drop(other);
    ip_batch("link delete eth0\nlink set spare down\nlink set spare name eth0\nlink set eth0 up\n");
    lan.is_announced_after_a_probe("the first interface took the name back", VIP, present);
}

/// Whatever is asked, nothing comes from the interface but what the kernel itself says.
fn is_silent(lan: &Lan, interface: &str) {
    ip(&format!("address add {KERNELS}/24 dev {interface}"));
    let mut asked = 0;
    lan.forget();
    wait_until("the kernel answers", || {
        lan.ask(KERNELS.into());
        asked += 1;
        !lan.answers(KERNELS.into()).is_empty()
    });
    // What the speaker said before it closed the interface has been heard by now.
    lan.forget();
    wait_until("the kernel answers what was asked after that", || {
        lan.ask(VIP);
        lan.ask(KERNELS.into());
        lan.answers(KERNELS.into()).len() > asked
    });
    let about: Vec<Frame> =
        lan.heard().into_iter().filter(|frame| frame.packet.sender_ip != IpAddr::V4(KERNELS)).collect();
    assert!(about.is_empty(), "{interface} is not used any more: {about:?}");
    ip(&format!("address flush dev {interface}"));
    lan.forget();
}

fn enslaved(speaker: &Speaker, lan: &Lan, present: MacAddr) {
    lan.forget();
    assert_eq!(lan.answerer(VIP), present);
    ip("link add br0 type bridge");
    ip("link set br0 up");
    ip("link set eth0 master br0");
    speaker.says("nic eth0: it is a port of br0, which is used instead");
    speaker.claims(VIP, ClaimState::LinkDown);
    is_silent(lan, "br0");
    ip("link set br0 name lanbr");
    speaker.says("nic eth0: it is a port of lanbr, which is used instead");
    ip("link set eth0 nomaster");
    lan.is_announced_after_a_probe("it left its bridge", VIP, present);
    ip("link delete lanbr");
    speaker.is_ready_but_for("eth1");
}

fn addresses(speaker: &Speaker) {
    let listed = || -> Vec<String> {
        let itself = speaker.reporter.said_of_itself();
        let eth0 = itself.interfaces.into_iter().filter(|interface| interface.name == "eth0");
        eth0.flat_map(|eth0| eth0.addresses).filter(|address| !address.starts_with("fe80")).collect()
    };
    ip("address add 192.0.2.11/24 dev eth0");
    ip("address add 192.0.2.5/32 dev eth0");
    ip("-6 address add 2001:db8:1::11/64 dev eth0");
    wait_until("the addresses are told", || listed() == ["192.0.2.11/24", "192.0.2.5/32", "2001:db8:1::11/64"]);
    ip("route add default via 192.0.2.1 dev eth0");
    let default = || {
        let itself = speaker.reporter.said_of_itself();
        itself.interfaces.iter().any(|interface| interface.name == "eth0" && interface.default_route)
    };
    wait_until("the default route is told", default);
    ip("address del 192.0.2.11/24 dev eth0");
    ip("-6 address del 2001:db8:1::11/64 dev eth0");
    wait_until("it is told that they are gone", || listed() == ["192.0.2.5/32"]);
    // The route goes with the interface's being up, of which the kernel says nothing.
    assert!(default());
    ip("link set eth0 down");
    wait_until("it is told that the default route is gone", || !default());
    ip("link set eth0 up");
    speaker.is_ready_but_for("eth1");
}

/// The interface goes, and another one of its name comes, with the other end of the cable.
fn removal(speaker: &Speaker, lan: Lan) -> Lan {
    assert!(lan.heard().iter().all(|frame| frame.source == mac(7)));
    ip("link delete eth0");
    speaker.says("nic eth0: there is no interface eth0 on this node");
    speaker.claims(VIP, ClaimState::LinkDown);
    drop(lan);
    lay_cable("eth0", "lan0", mac(9));
    let lan = Lan::listen("lan0");
    speaker.says("nic eth0: it is down");
    ip("link set eth0 up");
    lan.is_announced_after_a_probe("it was made anew", VIP, mac(9));
    speaker.claims(VIP, ClaimState::Owner);
    lan
}

fn appears_later(speaker: &Speaker) {
    lay_cable("eth1", "lan1", mac(11));
    let lan = Lan::listen("lan1");
    ip("link set eth1 up");
    lan.is_announced_after_a_probe("it came", LATER, mac(11));
    speaker.claims(LATER, ClaimState::Owner);
}

fn ip_batch(commands: &str) {
    use std::io::Write as _;
    let mut child =
        std::process::Command::new("ip").args(["-batch", "-"]).stdin(std::process::Stdio::piped()).spawn().unwrap();
    child.stdin.take().unwrap().write_all(commands.as_bytes()).unwrap();
    assert!(child.wait().unwrap().success(), "{commands}");
}

impl Speaker {
    fn is_ready_but_for(&self, nic: &str) {
        let rest = format!("nic {nic}: there is no interface {nic} on this node\n");
        wait_until("nothing else is wrong", || self.troubles() == rest);
    }
}
