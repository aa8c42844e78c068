//! The only place where a frame comes into being.
//!
//! A child of the NIC, because only there is an [`OwnMac`]: the address that the kernel gave for the very socket that the
//! frame leaves through. It is taken once and put wherever a frame names its sender.

mod arp;
mod nd;
#[cfg(test)]
mod tests;

use std::{net::IpAddr, ops::Deref};

use pnet_packet::ethernet::{EtherType, MutableEthernetPacket};

use crate::speaker::wire::{self, MacAddr, Message};

/// Octets of the longest frame that a speaker sends.
pub(super) const LONGEST: usize =
    if wire::nd::FRAME_LENGTH > wire::arp::FRAME_LENGTH { wire::nd::FRAME_LENGTH } else { wire::arp::FRAME_LENGTH };
/// Octets of an Ethernet header.
const HEADER: usize = MutableEthernetPacket::minimum_packet_size();

/// A frame ready to be sent, made without any allocation.
#[derive(Clone, Copy, Debug)]
pub(super) struct Frame {
    octets: [u8; LONGEST],
    length: usize,
}

impl Frame {
    /// Zeros behind an Ethernet header; cut to the longest that there is.
    fn new(length: usize, to: MacAddr, own: OwnMac, ether_type: EtherType) -> Self {
        let mut frame = Self { octets: [0; LONGEST], length: length.min(LONGEST) };
        if let Some(mut ethernet) = MutableEthernetPacket::new(&mut frame.octets) {
            ethernet.set_destination(to);
            ethernet.set_source(own.0);
            ethernet.set_ethertype(ether_type);
        }
        frame
    }

    /// What follows the Ethernet header.
    fn payload(&mut self) -> &mut [u8] {
        self.octets.get_mut(HEADER..self.length).unwrap_or_default()
    }
}

impl Deref for Frame {
    type Target = [u8];

    fn deref(&self) -> &[u8] {
        self.octets.get(..self.length).unwrap_or_default()
    }
}

/// The MAC address of an open NIC. Its field is this module's, and the NIC alone makes one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct OwnMac(MacAddr);

impl OwnMac {
    /// For the NIC, with what its bound socket says.
    pub(super) fn of_bound_socket(mac: MacAddr) -> Self {
        Self(mac)
    }

    pub(super) fn get(self) -> MacAddr {
        self.0
    }
}

/// Writes `message` as the NIC with the address `own` sends it; `None` if its addresses are of two families.
pub(super) fn write(message: &Message, own: OwnMac) -> Option<Frame> {
    match message.vip() {
        IpAddr::V4(vip) => arp::write(message, vip, own),
        IpAddr::V6(vip) => nd::write(message, vip, own),
    }
}
