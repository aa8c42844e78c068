//! What goes over the wire, without a wire: the messages that a speaker means to send, and the frames that it reads.
//!
//! A [`Message`] says what is meant, and holds no MAC address of ours. It becomes a frame in one place only, inside an open
//! NIC ([`super::nic`]), which puts the one MAC address it has into the Ethernet source and the sender hardware address
//! alike. So no frame can be built that names another sender than the NIC it leaves through.
//!
//! [`arp`] (RFC 826, RFC 5227) is for IPv4, [`nd`] (RFC 4861, RFC 4862) for IPv6. Both are read into the same [`Packet`].

pub mod arp;
pub mod nd;

use std::net::IpAddr;

pub use pnet_base::MacAddr;
use pnet_packet::ethernet::{EtherTypes, EthernetPacket};

use super::drop_reason::DropReason;

/// The longest Ethernet frame without a jumbo payload: header, 1500 octets, and a VLAN tag that was left in.
const LONGEST_FRAME: usize = 1518;

/// Request or reply, as in ARP; a neighbour solicitation is a request, an advertisement a reply.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Operation {
    /// ARP operation 1, or a neighbour solicitation.
    Request,
    /// ARP operation 2, or a neighbour advertisement.
    Reply,
}

/// A received ARP or neighbour discovery packet whose fields are in order. Both of its IP addresses are of one family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub struct Packet {
    /// Request or reply.
    pub operation: Operation,
    /// Whether the frame went to everybody (by Ethernet broadcast or multicast); otherwise it went to this NIC alone.
    pub broadcast: bool,
    /// The MAC address that it names as its sender's: a unicast address, not zero, not this NIC's.
    pub sender_mac: MacAddr,
    /// The IP address that `sender_mac` belongs to; 0.0.0.0 or `::` in a probe. Of an advertisement, its target address.
    pub sender_ip: IpAddr,
    /// The IP address asked for; of a reply, to whom it was sent. Of an advertisement to everybody, `sender_ip` once more.
    pub target_ip: IpAddr,
}

impl Packet {
    /// Whether it tells everybody that its sender answers for its sender address, in whatever form.
    pub fn is_announcement(&self) -> bool {
        self.broadcast && self.sender_ip == self.target_ip && !self.sender_ip.is_unspecified()
    }

    /// Whether it asks, without a sender address, if anyone holds its target address (RFC 5227 section 1.1, RFC 4862
    /// section 5.4.2).
    pub fn is_probe(&self) -> bool {
        self.operation == Operation::Request && self.sender_ip.is_unspecified()
    }
}

/// Reads a frame of either protocol that came in on the NIC whose MAC address is `own`. Any input is safe.
///
/// # Errors
/// The one reason why the frame is of no use.
pub fn read(frame: &[u8], own: MacAddr) -> Result<Packet, DropReason> {
    let ethernet = EthernetPacket::new(frame).ok_or(DropReason::EthernetTruncated)?;
    match ethernet.get_ethertype() {
        EtherTypes::Arp => arp::read(frame, own),
        EtherTypes::Ipv6 => nd::read(frame, own),
        _ if frame.len() > LONGEST_FRAME => Err(DropReason::Oversized),
        _ => Err(DropReason::EthernetType),
    }
}

/// The MAC address that an Ethernet frame says it comes from; `None` if it is too short to say.
pub fn ethernet_source(frame: &[u8]) -> Option<MacAddr> {
    let octets: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    Some(octets.into())
}

/// What a speaker means to send. Every MAC address in it is somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// The answer to a request for `vip`.
    Answer {
        /// The virtual IP that was asked for.
        vip: IpAddr,
        /// Who asked: the sender's MAC address in the request.
        to_mac: MacAddr,
        /// Who asked: the sender's IP address in the request (0.0.0.0 or `::` for a probe).
        to_ip: IpAddr,
    },
    /// Tells everybody that this NIC answers for `vip`: a gratuitous ARP, or an unsolicited neighbour advertisement.
    Announcement {
        /// The virtual IP announced.
        vip: IpAddr,
        /// In which of the two forms. Neighbour discovery has but one, [`AnnouncementForm::Request`].
        form: AnnouncementForm,
    },
    /// Asks whether anyone answers for `vip`, with sender address 0.0.0.0 or `::`, so that no cache changes (RFC 5227 section
    /// 2.1.1, RFC 4862 section 5.4.2).
    Probe {
        /// The virtual IP asked for.
        vip: IpAddr,
        /// Whom to ask; `None` asks everybody.
        to: Option<MacAddr>,
    },
    /// Asks one speaker whether it still answers for `vip`, as any host on the LAN would ask.
    Request {
        /// The virtual IP asked for.
        vip: IpAddr,
        /// The speaker that is asked.
        to: MacAddr,
        /// The address of the NIC that asks, as the node's own configuration has it, and never a virtual IP: for IPv6 its
        /// link-local one. 0.0.0.0 or `::` where it has none.
        from: IpAddr,
    },
}

/// The two forms of an announcement by ARP. Some receivers believe only one of them.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum AnnouncementForm {
    /// A broadcast request for the address itself.
    Request,
    /// A broadcast reply whose target hardware address is the sender's: Linux holds any other for late news and drops it
    /// within `locktime`.
    Reply,
}

impl Message {
    /// The virtual IP that the message is about.
    pub fn vip(&self) -> IpAddr {
        match *self {
            Self::Answer { vip, .. }
            | Self::Announcement { vip, .. }
            | Self::Probe { vip, .. }
            | Self::Request { vip, .. } => vip,
        }
    }
}
