//! The NICs as the owner's loop holds them: open for ARP, and for neighbour discovery while there is IPv6 to announce.

use super::{
    neighbours::{Host, VIP as VIP6},
    *,
};
use crate::{
    speaker::{netlink::watching, nics::Nics, wire::nd::solicited_node},
    telemetry::Health,
};

fn threads() -> Vec<String> {
    let tasks = std::fs::read_dir("/proc/self/task").unwrap();
    // A thread may end while it is looked at.
    tasks.filter_map(|task| std::fs::read_to_string(task.ok()?.path().join("comm")).ok()).collect()
}

/// Whether there is a receive thread for IPv6, and the group of the virtual IP is joined.
fn is_open_for_ipv6() -> (bool, bool) {
    let group = solicited_node(VIP6).to_string();
    let listens = threads().iter().any(|name| name.trim() == "nd-eth0");
    (listens, ip("-6 maddr show dev eth0").contains(&group))
}

#[test]
fn a_nic_is_open_for_ipv6_while_it_has_something_to_announce_and_can() {
    in_a_network_namespace(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
        runtime.block_on(async { tokio::time::timeout(6 * PATIENCE, halves()).await }).unwrap();
    });
}

async fn halves() {
    let host = Host::new();
    let (health, metrics) = (Health::default(), Metrics::register(&mut Registry::default()));
    let (queues, _inbox) = queues();
    let (watching, links) = watching(health.clone(), metrics.clone());
    tokio::spawn(watching.run());
    let mut nics = Nics::new(links, queues, Arc::new(Heartbeat::new()), metrics.clone(), health);
    let eth0 = name("eth0");
    nics.changed().await;
    nics.refresh();
    let checked = nics.check(&eth0);
    let mac = checked.news.unwrap().unwrap();
    assert_eq!((checked.ipv6, is_open_for_ipv6()), (None, (false, false)));
    assert_eq!(nics.watch(&eth0, &[VIP]), None);
    assert_eq!(is_open_for_ipv6(), (false, false));

    // The first IPv6 address: it is open before the address begins, and listens for it when it has.
    let both = [VIP, VIP6.into()];
    assert_eq!(nics.prepare_ipv6(&eth0), None);
    assert_eq!(nics.watch(&eth0, &both), None);
    wait_until("it is open for IPv6", || is_open_for_ipv6() == (true, true));
    let owned = Part::Owned { fence: Duration::from_secs(600) };
    nics.publish(&eth0, both.into_iter().map(|vip| (vip, owned)).collect());
    host.send_to(VIP6);
    wait_until("a host resolves the address", || host.neighbour(VIP6).contains(&mac.to_string()));
    for vip in both {
        nics.send(&eth0, &Message::Announcement { vip, form: AnnouncementForm::Request }, || true).unwrap();
    }

    // IPv6 is turned off: IPv4 goes on. It is turned on again: it is told.
    let turn_off = |off: &str| std::fs::write("/proc/sys/net/ipv6/conf/eth0/disable_ipv6", off).unwrap();
    turn_off("1");
    let reason = next_ipv6(&mut nics).await.unwrap_err();
    assert!(reason.contains("IPv6"), "{reason}");
    wait_until("it is closed for IPv6", || is_open_for_ipv6() == (false, false));
    assert!(nics.want_a_look() && nics.troubles().len() == 1, "{:?}", nics.troubles());
    let sent = nics.send(&eth0, &Message::Probe { vip: VIP6.into(), to: None }, || true);
    assert!(matches!(sent, Err(SendError::Closed(_))), "a probe that does not leave is no question: {sent:?}");
    assert_eq!(nics.watch(&eth0, &both), None, "it is known already");
    turn_off("0");
    next_ipv6(&mut nics).await.unwrap();
    wait_until("it is open for IPv6 again", || is_open_for_ipv6() == (true, true));
    assert!(!nics.want_a_look() && nics.troubles().is_empty(), "{:?}", nics.troubles());

    // Another interface of the same name: the groups are joined on that one.
    ip("link delete eth0");
    host.lay_another_cable();
    loop {
        nics.changed().await;
        nics.refresh();
        if let Some(Ok(_)) = nics.check(&eth0).news {
            break;
        }
    }
    assert_eq!(nics.watch(&eth0, &both), None);
    wait_until("it is open for IPv6 again", || is_open_for_ipv6() == (true, true));

    assert_eq!(nics.watch(&eth0, &[VIP]), None);
    wait_until("it is closed for IPv6", || is_open_for_ipv6() == (false, false));
    nics.close(&eth0);
    assert!(!nics.want_a_look());
}

/// What is said of IPv6 when that changes.
async fn next_ipv6(nics: &mut Nics) -> Result<(), Arc<str>> {
    loop {
        nics.changed().await;
        nics.refresh();
        let checked = nics.check(&name("eth0"));
        assert_eq!(checked.news, None, "IPv4 goes on");
        if let Some(state) = checked.ipv6 {
            return state;
        }
    }
}
