//! The kernel's messages about interfaces (rtnetlink, RFC 3549), and the requests for them.
//!
//! Of each message only the attributes that are needed are read, so that a kernel that says more than this program knows of,
//! or says it otherwise, hides no interface. A thousand interfaces of containers cost a look at their names.

use ipnet::IpNet;
use netlink_packet_core::{
    Emitable, NLM_F_DUMP, NLM_F_DUMP_INTR, NLM_F_MULTIPART, NLM_F_REQUEST, NetlinkBuffer, NetlinkHeader, NlaBuffer,
    NlasIterator, parse_ip, parse_string, parse_u32,
};
use netlink_packet_route::{
    AddressFamily,
    address::{AddressHeader, AddressHeaderFlags, AddressMessage},
    link::{LinkAttribute, LinkExtentMask, LinkFlags, LinkHeader, LinkLayerType, LinkMessage},
    route::{RouteHeader, RouteMessage, RouteType},
};
use pnet_base::MacAddr;

use super::{Event, Family, LinkState};

const HEADER_LENGTH: usize = 16;
const LINK_HEADER_LENGTH: usize = 16;
const ADDRESS_HEADER_LENGTH: usize = 8;
const ROUTE_HEADER_LENGTH: usize = 12;
/// Length of `struct rtnexthop`, which comes before the attributes of a next hop; its length is the first two octets, the
/// interface the last four.
const NEXT_HOP_HEADER_LENGTH: usize = 8;
const VRF: &str = "vrf";

/// One message of a datagram.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Heard {
    /// The sequence number of the request that it answers, if it answers one. (News bear that of whoever caused the change.)
    pub answers: Option<u32>,
    /// Whether interfaces came and went while the kernel answered, so that the answer may lack some.
    pub interrupted: bool,
    /// What it says.
    pub content: Content,
}

/// What a message says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Content {
    /// This is so, or has become so.
    Event(Event),
    /// All that was asked for has been said.
    Done,
    /// What was asked for cannot be answered: an error number, negative.
    Failed(i32),
    /// Something that does not matter here.
    Other,
}

/// What can be asked for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Question {
    /// All interfaces.
    Links,
    /// All addresses of a family.
    Addresses(Family),
    /// All routes of a family's main table.
    Routes(Family),
}

/// The messages of a datagram, in their order. It ends early where a message cannot be read.
pub fn read(datagram: &[u8]) -> impl Iterator<Item = Heard> {
    let mut rest = datagram;
    std::iter::from_fn(move || {
        let message = NetlinkBuffer::new_checked(rest).ok()?;
        let content = content(message.message_type(), message.payload());
        let answers = message.flags() & NLM_F_MULTIPART != 0 || matches!(content, Content::Done | Content::Failed(_));
        let heard = Heard {
            answers: answers.then_some(message.sequence_number()),
            interrupted: message.flags() & NLM_F_DUMP_INTR != 0,
            content,
        };
        let length = usize::try_from(message.length()).ok()?.next_multiple_of(4);
        rest = rest.get(length..).unwrap_or_default();
        Some(heard)
    })
}

fn content(kind: u16, payload: &[u8]) -> Content {
    // What cannot be read says nothing: the next look at everything will tell.
    let event = match kind {
        libc::RTM_NEWLINK => link(payload, |link, is_new| Event::Link { link, is_new }),
        libc::RTM_DELLINK => link(payload, |link, _| Event::LinkGone(link.index)),
        libc::RTM_NEWADDR => address(payload, true),
        libc::RTM_DELADDR => address(payload, false),
        libc::RTM_NEWROUTE => default_route(payload).map(|(family, through)| Event::DefaultRoute { family, through }),
        libc::RTM_DELROUTE => default_route(payload).map(|(family, _)| Event::DefaultRouteGone(family)),
        _ => return control(kind, payload),
    };
    event.map_or(Content::Other, Content::Event)
}

fn control(kind: u16, payload: &[u8]) -> Content {
    let code = || payload.first_chunk().map_or(0, |octets| i32::from_ne_bytes(*octets));
    match i32::from(kind) {
        libc::NLMSG_DONE if code() == 0 => Content::Done,
        libc::NLMSG_DONE | libc::NLMSG_ERROR => Content::Failed(code()),
        _ => Content::Other,
    }
}

fn link(payload: &[u8], event: impl FnOnce(LinkState, bool) -> Event) -> Option<Event> {
    let header = LinkHeader::parse(payload).ok()?;
    // A bridge tells of its ports in messages of the same kind, and of a port that left it as if the port were gone.
    if header.interface_family != AddressFamily::Unspec {
        return None;
    }
    let is = |flag| header.flags.contains(flag);
    let mut link = LinkState {
        index: header.index,
        loopback: is(LinkFlags::Loopback),
        broadcast: is(LinkFlags::Broadcast) && !is(LinkFlags::Pointopoint),
        arp: !is(LinkFlags::Noarp),
        up: is(LinkFlags::Up),
        // Until the kernel says "running" as well, it swallows what is sent: it opens the queues of a NIC that has got its
        // link (again) when it comes to it, which takes a second and more where many interfaces come and go.
        carrier: is(LinkFlags::LowerUp) && is(LinkFlags::Running),
        ..LinkState::default()
    };
    let (mut master, mut in_vrf) = (None, false);
    for attribute in attributes(payload, LINK_HEADER_LENGTH) {
        let value = attribute.value();
        match attribute.kind() {
            libc::IFLA_IFNAME => link.name = parse_string(value).ok()?,
            libc::IFLA_ADDRESS => link.mac = mac(header.link_layer_type, value),
            libc::IFLA_MASTER => master = parse_u32(value).ok().filter(|index| *index != 0),
            libc::IFLA_LINKINFO => in_vrf = port_kind(value).is_some_and(|kind| kind == VRF),
            libc::IFLA_CARRIER_DOWN_COUNT => link.carrier_losses = parse_u32(value).unwrap_or_default(),
            _ => {}
        }
    }
    if link.name.is_empty() {
        return None;
    }
    link.master = master.filter(|_| !in_vrf);
    let is_new = header.change_mask.bits() == u32::MAX;
    Some(event(link, is_new))
}

fn mac(kind: LinkLayerType, value: &[u8]) -> Option<MacAddr> {
    let octets: [u8; 6] = value.try_into().ok().filter(|_| kind == LinkLayerType::Ether)?;
    Some(MacAddr::from(octets)).filter(|mac| !mac.is_zero())
}

/// Of what kind the master of a port is.
fn port_kind(link_info: &[u8]) -> Option<String> {
    let kind = attributes(link_info, 0).find(|attribute| attribute.kind() == libc::IFLA_INFO_SLAVE_KIND)?;
    parse_string(kind.value()).ok()
}

fn address(payload: &[u8], is_there: bool) -> Option<Event> {
    let header = AddressHeader::parse(payload).ok()?;
    let (mut own, mut other) = (None, None);
    for attribute in attributes(payload, ADDRESS_HEADER_LENGTH) {
        match attribute.kind() {
            // Of a point-to-point link it is the other end's.
            libc::IFA_ADDRESS => other = parse_ip(attribute.value()).ok(),
            libc::IFA_LOCAL => own = parse_ip(attribute.value()).ok(),
            _ => {}
        }
    }
    let network = IpNet::new(own.or(other)?, header.prefix_len).ok()?;
    let index = header.index;
    // Not in use yet: the kernel looks whether another host has it. It tells when it is in use.
    if header.flags.contains(AddressHeaderFlags::Tentative) && is_there {
        return Some(Event::AddressGone { index, network });
    }
    Some(if is_there { Event::Address { index, network } } else { Event::AddressGone { index, network } })
}

/// The interfaces that a default route of the main table leaves through.
fn default_route(payload: &[u8]) -> Option<(Family, Vec<u32>)> {
    let header = RouteHeader::parse(payload).ok()?;
    let family = match header.address_family {
        AddressFamily::Inet => Family::V4,
        AddressFamily::Inet6 => Family::V6,
        _ => return None,
    };
    let is_default = header.destination_prefix_length == 0 && header.table == RouteHeader::RT_TABLE_MAIN;
    if !is_default || header.kind != RouteType::Unicast {
        return None;
    }
    let mut through = Vec::new();
    for attribute in attributes(payload, ROUTE_HEADER_LENGTH) {
        match attribute.kind() {
            libc::RTA_OIF => through.extend(parse_u32(attribute.value())),
            libc::RTA_MULTIPATH => through.extend(next_hops(attribute.value())),
            _ => {}
        }
    }
    Some((family, through))
}

/// The interfaces of a route over several next hops.
fn next_hops(mut hops: &[u8]) -> Vec<u32> {
    let mut through = Vec::new();
    while let Some([low, high, _, _, index @ ..]) = hops.first_chunk::<NEXT_HOP_HEADER_LENGTH>() {
        through.push(u32::from_ne_bytes(*index));
        let length = usize::from(u16::from_ne_bytes([*low, *high])).max(NEXT_HOP_HEADER_LENGTH);
        hops = hops.get(length.next_multiple_of(4)..).unwrap_or_default();
    }
    through
}

fn attributes(payload: &[u8], after: usize) -> impl Iterator<Item = NlaBuffer<&[u8]>> {
    NlasIterator::new(payload.get(after..).unwrap_or_default()).map_while(Result::ok)
}

impl Question {
    /// The request, as it goes to the kernel.
    pub fn to_bytes(self, sequence: u32) -> Vec<u8> {
        let (kind, body) = match self {
            Self::Links => {
                let mut message = LinkMessage::default();
                // Counters of traffic, for which the kernel may have to ask each NIC.
                message.attributes.push(LinkAttribute::ExtMask(vec![LinkExtentMask::SkipStats]));
                (libc::RTM_GETLINK, emitted(&message))
            }
            Self::Addresses(family) => {
                let mut message = AddressMessage::default();
                message.header.family = family.into();
                (libc::RTM_GETADDR, emitted(&message))
            }
            Self::Routes(family) => {
                let mut message = RouteMessage::default();
                message.header.address_family = family.into();
                message.header.table = RouteHeader::RT_TABLE_MAIN;
                (libc::RTM_GETROUTE, emitted(&message))
            }
        };
        let mut header = NetlinkHeader::default();
        header.length = u32::try_from(HEADER_LENGTH + body.len()).unwrap_or(u32::MAX);
        header.message_type = kind;
        header.flags = NLM_F_REQUEST | NLM_F_DUMP;
        header.sequence_number = sequence;
        let mut bytes = emitted(&header);
        bytes.extend(body);
        bytes
    }
}

fn emitted(part: &impl Emitable) -> Vec<u8> {
    let mut bytes = vec![0; part.buffer_len()];
    part.emit(&mut bytes);
    bytes
}

impl From<Family> for AddressFamily {
    fn from(family: Family) -> Self {
        match family {
            Family::V4 => Self::Inet,
            Family::V6 => Self::Inet6,
        }
    }
}

#[cfg(test)]
mod tests;
