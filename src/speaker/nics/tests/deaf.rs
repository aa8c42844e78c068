//! A NIC whose socket the kernel gives no memory for its filter.

use super::*;
use crate::api::ClaimState;

const LIMIT: &str = "/proc/sys/net/core/optmem_max";

#[test]
fn an_address_that_could_not_be_heard_of_is_not_claimed() {
    in_a_network_namespace(|| {
        lay_cable("eth0", "lan0", mac(1));
        ip("link set eth0 up");
        let speaker = Speaker::start();
        speaker.announce(VIP, "eth0");
        speaker.claims(VIP, ClaimState::Owner);
        let vip6 = "2001:db8:1::64".parse().unwrap();
        let before = std::fs::read_to_string(LIMIT).unwrap_or_default();
        // Older kernels have one limit for all namespaces.
        if std::fs::write(LIMIT, "700").is_err() {
            println!(
                "\nSKIPPED a test of a filter that is refused: this kernel has one limit (optmem_max) for all namespaces"
            );
            return;
        }
        speaker.announce(vip6, "eth0");
        speaker.says("nic eth0 for IPv6: its filter for IPv6 addresses cannot be set");
        speaker.claims(vip6, ClaimState::LinkDown);
        speaker.claims(VIP, ClaimState::Owner);
        std::fs::write(LIMIT, before).unwrap();
        speaker.is_ready();
        speaker.claims(vip6, ClaimState::Owner);
    });
}
