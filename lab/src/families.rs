//! IPv6 beside IPv4: every address of the management network and of a Pod has a second one that tells the same numbers,
//! 10.244.3.2 being fd00:10:244:3::2. On the LAN 192.0.2.11 has 2001:db8:1::11 beside it.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr};

/// All of these addresses of Pods, as those of IPv4 are all in [`crate::control_plane::POD_RANGE`].
pub const POD_RANGE_V6: &str = "fd00:10:244::/48";
/// The IPv6 one of [`crate::control_plane::SERVICE_RANGES`].
pub const SERVICE_RANGE_V6: &str = "fd00:10:96::/112";

/// The IPv6 address beside an IPv4 address. Its groups are written as the bytes are: 244 becomes the group `244`.
pub fn beside(address: Ipv4Addr) -> Ipv6Addr {
    let [first, second, third, last] = address.octets().map(written);
    Ipv6Addr::from([0xfd00, first, second, third, 0, 0, 0, last])
}

/// The IPv6 address on the LAN beside an IPv4 address of it.
pub fn beside_on_lan(address: Ipv4Addr) -> Ipv6Addr {
    let [.., last] = address.octets().map(written);
    Ipv6Addr::from([0x2001, 0x0db8, 1, 0, 0, 0, 0, last])
}

/// 244 as 0x244.
fn written(byte: u8) -> u16 {
    let (hundreds, tens, ones) = (byte / 100, byte / 10 % 10, byte % 10);
    u16::from(hundreds) << 8 | u16::from(tens) << 4 | u16::from(ones)
}

/// The address and the one beside it.
pub fn both(address: Ipv4Addr) -> Vec<IpAddr> {
    let second = has_ipv6().then(|| beside(address).into());
    [address.into()].into_iter().chain(second).collect()
}

/// Whether this kernel has IPv6, and has it on. Without it the lab is IPv4 only.
pub fn has_ipv6() -> bool {
    fs::read_to_string("/proc/sys/net/ipv6/conf/all/disable_ipv6").is_ok_and(|text| text.trim() == "0")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn both_families_tell_the_same_numbers() {
        assert_eq!(beside([10, 244, 3, 2].into()).to_string(), "fd00:10:244:3::2");
        assert_eq!(beside([10, 100, 0, 11].into()).to_string(), "fd00:10:100::11");
        assert_eq!(beside_on_lan([192, 0, 2, 11].into()).to_string(), "2001:db8:1::11");
    }
}
