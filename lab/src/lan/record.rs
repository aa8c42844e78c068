//! What went over the switch: every frame with its ways in and out, and questions that a test asks about them.

use std::collections::VecDeque;
use std::net::{IpAddr, Ipv4Addr};
use std::time::Instant;

use pnet_base::MacAddr;

use super::PortId;
use super::frame::{self, Arp, ArpForm};
use super::nd::{self, Nd};

/// Bytes kept of each frame: all headers that the lab reads, not the payload of a download.
const KEPT_BYTES: usize = 128;
/// Frames kept; the oldest go first.
const KEPT_FRAMES: usize = 1 << 18;

/// Where a frame came from.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Ingress {
    /// From the host on this port.
    Port(PortId),
    /// From the gateway, which is the switch itself.
    Gateway,
}

/// One frame that crossed the switch.
#[derive(Clone, Debug)]
pub struct RecordedFrame {
    /// When the switch had it.
    pub at: Instant,
    /// Where it came in.
    pub ingress: Ingress,
    /// The ports that it left through, lost ones not among them.
    pub egress: Vec<PortId>,
    /// Whether it is a unicast frame that went to all ports because the switch did not know where its destination is.
    pub flooded: bool,
    /// Bytes on the wire, without frame check sequence.
    pub length: usize,
    /// Its first 128 bytes.
    pub bytes: Vec<u8>,
}

impl RecordedFrame {
    /// Ethernet destination.
    pub fn destination(&self) -> Option<MacAddr> {
        frame::ethernet(&self.bytes).map(|header| header.destination)
    }

    /// Ethernet source.
    pub fn source(&self) -> Option<MacAddr> {
        frame::ethernet(&self.bytes).map(|header| header.source)
    }

    /// The ARP message inside, if it is one.
    pub fn arp(&self) -> Option<Arp> {
        frame::arp(&self.bytes)
    }

    /// The neighbour solicitation or advertisement inside, if it is one.
    pub fn nd(&self) -> Option<Nd> {
        nd::nd(&self.bytes)
    }

    /// The datagram inside, if it is one.
    pub fn udp(&self) -> Option<frame::Udp<'_>> {
        frame::udp(&self.bytes)
    }
}

/// An ARP message whose sender is a certain address, or the same in neighbour discovery: who said it, from where, and in
/// which form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Said {
    /// When the switch had it.
    pub at: Instant,
    /// The port that it really came from.
    pub ingress: Ingress,
    /// The Ethernet source that it bore.
    pub ethernet_source: MacAddr,
    /// The MAC address that it told: the sender hardware address, or that of the link-layer address option (zero without).
    pub sender_mac: MacAddr,
    /// What it was for.
    pub form: ArpForm,
}

/// All that was said about `ip`: answers and announcements whose sender address it is, in order.
pub fn said_about(frames: &[RecordedFrame], ip: impl Into<IpAddr>) -> Vec<Said> {
    let ip = ip.into();
    frames.iter().filter_map(|frame| said(frame, ip)).collect()
}

/// What this frame says about `ip`, if it is an ARP message with that sender address, or speaks for it in neighbour discovery.
pub fn said(frame: &RecordedFrame, ip: impl Into<IpAddr>) -> Option<Said> {
    let (sender_mac, form) = match ip.into() {
        IpAddr::V4(ip) => frame.arp().filter(|arp| arp.sender_ip == ip).map(|arp| (arp.sender_mac, arp.form()))?,
        IpAddr::V6(ip) => {
            let nd = frame.nd().filter(|nd| nd.speaks_for() == Some(ip))?;
            (nd.link_layer.unwrap_or(MacAddr::zero()), nd.form())
        }
    };
    Some(Said { at: frame.at, ingress: frame.ingress, ethernet_source: frame.source()?, sender_mac, form })
}

/// The answers among [`said_about`] `ip`: unicast or broadcast, but not announcements.
pub fn arp_replies_for(frames: &[RecordedFrame], ip: Ipv4Addr) -> Vec<Said> {
    said_about(frames, ip).into_iter().filter(|said| said.form == ArpForm::Reply).collect()
}

/// Whether it asks for `ip` from one MAC address to another, as one who watches its owner: by unicast, whatever its own address.
pub fn is_question(frame: &RecordedFrame, ip: impl Into<IpAddr>, from: MacAddr, to: MacAddr) -> bool {
    let asks = match ip.into() {
        IpAddr::V4(ip) => {
            frame.arp().is_some_and(|arp| arp.operation == 1 && arp.target_ip == ip && arp.sender_ip != ip)
        }
        IpAddr::V6(ip) => frame.nd().is_some_and(|nd| !nd.is_advertisement && nd.target == ip),
    };
    asks && frame.source() == Some(from) && frame.destination() == Some(to)
}

/// Keeps frames up to a bound.
#[derive(Debug, Default)]
pub(super) struct Recorder {
    frames: VecDeque<RecordedFrame>,
}

impl Recorder {
    pub(super) fn record(&mut self, at: Instant, ingress: Ingress, egress: &[PortId], flooded: bool, bytes: &[u8]) {
        if self.frames.len() == KEPT_FRAMES {
            self.frames.pop_front();
        }
        self.frames.push_back(RecordedFrame {
            at,
            ingress,
            egress: egress.to_vec(),
            flooded,
            length: bytes.len(),
            bytes: bytes[..bytes.len().min(KEPT_BYTES)].to_vec(),
        });
    }

    pub(super) fn frames(&self) -> Vec<RecordedFrame> {
        self.frames.iter().cloned().collect()
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = &RecordedFrame> {
        self.frames.iter()
    }

    pub(super) fn forget(&mut self) {
        self.frames.clear();
    }
}
