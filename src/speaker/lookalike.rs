//! The node's own kernel as a second answerer. Linux answers ARP for every address that is on any of its interfaces, and does so on
//! all of them, unless `arp_ignore` says otherwise. kube-proxy in IPVS mode puts each Service's address on `kube-ipvs0` of each
//! node; without its `strictARP` every node's kernel then answers for the virtual IPs, and no speaker can stop it. Pure.

use std::{collections::BTreeMap, net::IpAddr, sync::Arc};

use super::inventory::Interface;

/// `arp_ignore` from which on the kernel answers for no local address (Linux: Documentation/networking/ip-sysctl.rst).
const NEVER: u8 = 8;
/// Where kube-proxy's IPVS mode keeps the addresses of Services.
const IPVS_INTERFACE: &str = "kube-ipvs0";

/// A sentence for each interface that holds some of `vips` so that this node's kernel answers for them on the NIC on which they
/// are announced. `arp_ignore` is the setting in force for a NIC: the greater of its own and that of `all`.
pub fn kernel_answers<'a>(
    vips: impl Iterator<Item = (IpAddr, &'a Arc<str>)>,
    interfaces: &[Interface],
    arp_ignore: impl Fn(&str) -> u8,
) -> Vec<String> {
    let holders: BTreeMap<IpAddr, &str> = interfaces
        .iter()
        .flat_map(|interface| interface.addresses().into_iter().map(|address| (address, interface.entry.name.as_str())))
        .collect();
    let mut found: BTreeMap<(&str, &str), (IpAddr, usize)> = BTreeMap::new();
    // Read once for each NIC: kube-ipvs0 holds thousands of addresses, and the caller must not wait long.
    let mut settings: BTreeMap<&str, u8> = BTreeMap::new();
    for (vip, nic) in vips {
        if let Some(holder) = holders.get(&vip)
            && answers(vip, holder, nic, *settings.entry(nic).or_insert_with(|| arp_ignore(nic)))
        {
            found.entry((holder, nic)).or_insert((vip, 0)).1 += 1;
        }
    }
    found.into_iter().map(|((holder, nic), (vip, count))| sentence(holder, nic, vip, count)).collect()
}

fn answers(vip: IpAddr, holder: &str, nic: &str, arp_ignore: u8) -> bool {
    match vip {
        // Neighbour solicitations are answered for the addresses of the interface that they came in on.
        IpAddr::V6(_) => holder == nic,
        IpAddr::V4(_) if holder == nic => arp_ignore < NEVER,
        IpAddr::V4(_) => arp_ignore == 0,
    }
}

fn sentence(holder: &str, nic: &str, vip: IpAddr, count: usize) -> String {
    let addresses = match count {
        1 => format!("{vip}, which is"),
        2 => format!("{vip} and another virtual IP, which are"),
        _ => format!("{vip} and {} other virtual IPs, which are", count - 1),
    };
    let remedy = if holder == IPVS_INTERFACE {
        "set ipvs.strictARP to true in kube-proxy's configuration".to_owned()
    } else if holder == nic {
        format!("take them off {holder}")
    } else {
        format!("take them off {holder}, or set net.ipv4.conf.{nic}.arp_ignore to 1")
    };
    format!("this node's kernel answers on {nic} for {addresses} on {holder}, whoever announces them: {remedy}")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::api::NetworkInterface;

    fn interface(name: &str, addresses: &[&str]) -> Interface {
        let addresses = addresses.iter().map(|address| (*address).to_owned()).collect();
        let entry = NetworkInterface { name: name.to_owned(), addresses, ..NetworkInterface::default() };
        Interface { entry, ..Interface::default() }
    }

    fn found(interfaces: &[Interface], arp_ignore: u8) -> Vec<String> {
        let nic: Arc<str> = Arc::from("eth0");
        let vips = ["192.0.2.64", "192.0.2.65", "192.0.2.66", "2001:db8::64"].map(|vip| vip.parse().unwrap());
        kernel_answers(vips.into_iter().map(|vip| (vip, &nic)), interfaces, |_| arp_ignore)
    }

    #[test]
    fn virtual_ips_on_kube_ipvs0_are_answered_for_unless_arp_is_strict() {
        let ipvs = interface("kube-ipvs0", &["192.0.2.64/32", "192.0.2.65/32", "192.0.2.66/32", "2001:db8::64/128"]);
        let all = [interface("eth0", &["192.0.2.11/24"]), ipvs];
        let expected = "this node's kernel answers on eth0 for 192.0.2.64 and 2 other virtual IPs, which are on kube-ipvs0, \
                        whoever announces them: set ipvs.strictARP to true in kube-proxy's configuration";
        assert_eq!(found(&all, 0), [expected]);
        assert!(found(&all, 1).is_empty());
    }

    #[test]
    fn a_setting_is_read_once_for_each_nic_whatever_the_number_of_addresses() {
        let vips: Vec<String> = (0..200).map(|host| format!("192.0.2.{host}/32")).collect();
        let ipvs = [interface("kube-ipvs0", &vips.iter().map(String::as_str).collect::<Vec<_>>())];
        let (nic, reads) = (Arc::<str>::from("eth0"), std::cell::Cell::new(0));
        let all = (0..200).map(|host| (IpAddr::from([192, 0, 2, host]), &nic));
        let told = kernel_answers(all, &ipvs, |_| {
            reads.set(reads.get() + 1);
            0
        });
        assert!(told[0].contains("199 other virtual IPs"), "{told:?}");
        assert_eq!(reads.get(), 1);
    }

    #[test]
    fn an_address_of_the_nic_itself_is_answered_for_all_the_more() {
        let own = [interface("eth0", &["192.0.2.11/24", "192.0.2.65/24", "2001:db8::64/64"])];
        for arp_ignore in [0, 1, 2] {
            let told = found(&own, arp_ignore);
            assert_eq!(told.len(), 1);
            assert!(told[0].contains("192.0.2.65 and another virtual IP, which are on eth0"), "{told:?}");
        }
        assert!(found(&own, 8)[0].contains("for 2001:db8::64, which is on eth0"));
    }

    #[test]
    fn other_interfaces_count_for_ipv4_only_and_other_addresses_not_at_all() {
        let lo = [interface("lo", &["127.0.0.1/8", "192.0.2.66/32", "2001:db8::64/128"])];
        assert_eq!(found(&lo, 0).len(), 1);
        assert!(found(&lo, 0)[0].contains("arp_ignore to 1"));
        assert!(found(&[interface("lo", &["127.0.0.1/8"])], 0).is_empty());
    }
}
