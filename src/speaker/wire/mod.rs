//! What goes over the wire, without a wire: the messages that a speaker means to send, and the frames that it reads.
//!
//! A [`Message`] says what is meant, and holds no MAC address of ours. It becomes a frame in one place only, inside an open
//! NIC ([`super::nic`]), which puts the one MAC address it has into the Ethernet source and the sender hardware address
//! alike. So no frame can be built that names another sender than the NIC it leaves through.
//!
//! ARP is here (RFC 826, RFC 5227); neighbour discovery for IPv6 belongs beside it, as `nd`.

pub mod arp;

use std::net::Ipv4Addr;

pub use pnet_base::MacAddr;

/// The MAC address that an Ethernet frame says it comes from; `None` if it is too short to say.
pub fn ethernet_source(frame: &[u8]) -> Option<MacAddr> {
    let octets: [u8; 6] = frame.get(6..12)?.try_into().ok()?;
    Some(octets.into())
}

/// What a speaker means to send. Every MAC address in it is somebody else's.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub enum Message {
    /// The answer to a request for `vip`.
    ArpReply {
        /// The virtual IP that was asked for.
        vip: Ipv4Addr,
        /// Who asked: the sender hardware address of the request.
        to_mac: MacAddr,
        /// Who asked: the sender protocol address of the request (0.0.0.0 for a probe).
        to_ip: Ipv4Addr,
    },
    /// A gratuitous ARP: tells everybody that this NIC answers for `vip`.
    Announcement {
        /// The virtual IP announced.
        vip: Ipv4Addr,
        /// In which of the two forms.
        form: AnnouncementForm,
    },
    /// Asks whether anyone answers for `vip`, with sender address 0.0.0.0, so that no cache changes (RFC 5227 section 2.1.1).
    Probe {
        /// The virtual IP asked for.
        vip: Ipv4Addr,
        /// Whom to ask; `None` asks everybody.
        to: Option<MacAddr>,
    },
    /// Asks one speaker whether it still answers for `vip`, as any host on the LAN would ask.
    Request {
        /// The virtual IP asked for.
        vip: Ipv4Addr,
        /// The speaker that is asked.
        to: MacAddr,
        /// The address of the NIC that asks, as the node's own configuration has it: 0.0.0.0 where it has none, and never a
        /// virtual IP.
        from: Ipv4Addr,
    },
}

/// The two forms of an announcement. Some receivers believe only one of them.
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
    pub fn vip(&self) -> Ipv4Addr {
        match *self {
            Self::ArpReply { vip, .. }
            | Self::Announcement { vip, .. }
            | Self::Probe { vip, .. }
            | Self::Request { vip, .. } => vip,
        }
    }
}
