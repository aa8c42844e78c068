//! Neighbour discovery as the lab reads it off a recorded frame (RFC 4861): who says what about an IPv6 address.

use std::net::Ipv6Addr;

use pnet_base::MacAddr;
use pnet_packet::Packet as _;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};
use pnet_packet::icmpv6::ndp::{NdpOptionType, NdpOptionTypes, NeighborAdvertPacket, NeighborSolicitPacket};
use pnet_packet::icmpv6::{Icmpv6Packet, Icmpv6Types};
use pnet_packet::ip::IpNextHeaderProtocols;
use pnet_packet::ipv6::Ipv6Packet;

use super::frame::{ArpForm, is_group};

/// Octets before the options.
const MESSAGE: usize = 24;
const SOLICITED: u8 = 0x40;
const OVERRIDE: u8 = 0x20;

/// A neighbour solicitation or advertisement.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Nd {
    /// Whether it is an advertisement.
    pub is_advertisement: bool,
    /// Ethernet destination.
    pub to_mac: MacAddr,
    /// IPv6 source.
    pub source: Ipv6Addr,
    /// IPv6 destination.
    pub destination: Ipv6Addr,
    /// Target address.
    pub target: Ipv6Addr,
    /// The link-layer address of the option that belongs in such a message: of the source in a solicitation, of the target
    /// in an advertisement.
    pub link_layer: Option<MacAddr>,
    /// Of an advertisement: the solicited bit.
    pub solicited: bool,
    /// Of an advertisement: the override bit.
    pub overrides: bool,
}

impl Nd {
    /// The address that it ties to a MAC address: the target of an advertisement, the source of a solicitation.
    pub fn speaks_for(&self) -> Option<Ipv6Addr> {
        let address = if self.is_advertisement { self.target } else { self.source };
        (!address.is_unspecified()).then_some(address)
    }

    /// What it is for, in the words for ARP.
    pub fn form(&self) -> ArpForm {
        match (self.is_advertisement, self.source.is_unspecified()) {
            (true, _) if is_group(self.to_mac) && self.destination.is_multicast() => ArpForm::AnnouncementReply,
            (true, _) => ArpForm::Reply,
            (false, true) => ArpForm::Probe,
            (false, false) => ArpForm::Request,
        }
    }
}

/// Reads such a frame; `None` for everything else.
pub fn nd(frame: &[u8]) -> Option<Nd> {
    let ethernet = EthernetPacket::new(frame)?;
    if ethernet.get_ethertype() != EtherTypes::Ipv6 {
        return None;
    }
    let ip = Ipv6Packet::new(ethernet.payload())?;
    if ip.get_next_header() != IpNextHeaderProtocols::Icmpv6 {
        return None;
    }
    let message = Icmpv6Packet::new(ip.payload())?;
    let (is_advertisement, target, link_layer, flags) = match message.get_icmpv6_type() {
        Icmpv6Types::NeighborSolicit => {
            let message = NeighborSolicitPacket::new(ip.payload())?;
            let option = link_layer(ip.payload(), NdpOptionTypes::SourceLLAddr);
            (false, message.get_target_addr(), option, 0)
        }
        Icmpv6Types::NeighborAdvert => {
            let message = NeighborAdvertPacket::new(ip.payload())?;
            let option = link_layer(ip.payload(), NdpOptionTypes::TargetLLAddr);
            (true, message.get_target_addr(), option, message.get_flags())
        }
        _ => return None,
    };
    Some(Nd {
        is_advertisement,
        to_mac: ethernet.get_destination(),
        source: ip.get_source(),
        destination: ip.get_destination(),
        target,
        link_layer,
        solicited: flags & SOLICITED != 0,
        overrides: flags & OVERRIDE != 0,
    })
}

/// The address in the first option of this kind. (pnet's own reader of options overflows where one lies about its length.)
fn link_layer(message: &[u8], wanted: NdpOptionType) -> Option<MacAddr> {
    let mut options = message.get(MESSAGE..)?;
    while let [kind, units, rest @ ..] = options {
        if *kind == wanted.0 {
            return Some(MacAddr::from(*rest.first_chunk::<6>()?));
        }
        options = options.get(usize::from(*units).max(1) * 8..)?;
    }
    None
}

#[cfg(test)]
mod tests {
    use super::*;

    /// An advertisement of 2001:db8:1::64 to ff02::1, as RFC 4861 section 4.4 draws it.
    #[rustfmt::skip]
    const ADVERTISEMENT: [u8; 86] = [
        0x33, 0x33, 0, 0, 0, 1, 0x02, 0, 0, 0, 1, 1, 0x86, 0xdd,
        0x60, 0, 0, 0, 0, 32, 58, 255,
        0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64,
        0xff, 0x02, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 1,
        136, 0, 0, 0, 0x20, 0, 0, 0,
        0x20, 0x01, 0x0d, 0xb8, 0, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0x64,
        2, 1, 0x02, 0, 0, 0, 1, 1,
    ];

    #[test]
    fn an_announcement_an_answer_and_a_probe_are_told_apart() {
        let read = nd(&ADVERTISEMENT).unwrap();
        assert_eq!(read.speaks_for(), Some("2001:db8:1::64".parse().unwrap()));
        assert_eq!(read.link_layer, Some(MacAddr(2, 0, 0, 0, 1, 1)));
        assert!(read.overrides && !read.solicited);
        assert_eq!(read.form(), ArpForm::AnnouncementReply);
        let mut to_one = ADVERTISEMENT;
        to_one[..6].copy_from_slice(&[2, 0, 0, 0, 0xcc, 3]);
        assert_eq!(nd(&to_one).unwrap().form(), ArpForm::Reply);
        let mut probe = ADVERTISEMENT;
        (probe[54], probe[58]) = (135, 0);
        probe[22..38].fill(0);
        let read = nd(&probe).unwrap();
        assert_eq!((read.form(), read.speaks_for(), read.link_layer), (ArpForm::Probe, None, None));
        let mut echo = ADVERTISEMENT;
        echo[54] = 128;
        assert_eq!(nd(&echo), None);
    }
}
