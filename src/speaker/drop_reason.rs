//! Why a frame was dropped: one closed set, which is also the metric's label.

use std::fmt;

macro_rules! drop_reasons {
    ($($(#[$doc:meta])* $variant:ident => $label:literal),+ $(,)?) => {
        /// Why a received frame led to nothing. Every dropped frame has exactly one reason.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum DropReason { $($(#[$doc])* $variant),+ }

        impl DropReason {
            /// Every reason, in the order of the discriminants.
            pub const ALL: &'static [DropReason] = &[$(DropReason::$variant),+];

            /// The value of the metric's `reason` label.
            pub fn as_str(self) -> &'static str {
                match self { $(DropReason::$variant => $label),+ }
            }
        }
    };
}

drop_reasons! {
    /// Shorter than an Ethernet header.
    EthernetTruncated => "ethernet_truncated",
    /// Longer than an Ethernet frame may be.
    Oversized => "oversized",
    /// The Ethernet type is not ARP.
    NotArp => "not_arp",
    /// Addressed neither to everybody nor to this NIC.
    Destination => "destination",
    /// Shorter than an ARP packet for Ethernet and IPv4.
    ArpTruncated => "arp_truncated",
    /// The ARP hardware type is not Ethernet (RFC 826: 1).
    HardwareType => "hardware_type",
    /// The ARP protocol type is not IPv4 (0x0800).
    ProtocolType => "protocol_type",
    /// The ARP hardware address length is not 6.
    HardwareLength => "hardware_length",
    /// The ARP protocol address length is not 4.
    ProtocolLength => "protocol_length",
    /// Neither a request nor a reply.
    Operation => "operation",
    /// The sender hardware address is zero, or a group address.
    SenderMac => "sender_mac",
    /// The NIC's own frame came back to it.
    OwnFrame => "own_frame",
    /// It concerns no virtual IP of this NIC.
    OtherAddress => "other_address",
    /// A request for a virtual IP that another node answers for.
    NotOwner => "not_owner",
    /// A request for a virtual IP of ours while the owner's loop is late: it has to recheck before it answers again.
    Fenced => "fenced",
    /// A request for a virtual IP of ours that another host claimed just now: the owner's loop has to decide first.
    Claimed => "claimed",
    /// The owner's loop is behind, and its queue full.
    QueueFull => "queue_full",
    /// It names the MAC address of another speaker as its sender, but came from another one.
    Forged => "forged",
    /// The answer to it could not be sent.
    NotSent => "not_sent",
}

impl fmt::Display for DropReason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn labels_are_distinct_and_indices_follow_the_list() {
        let labels: BTreeSet<&str> = DropReason::ALL.iter().map(|reason| reason.as_str()).collect();
        assert_eq!(labels.len(), DropReason::ALL.len());
        for (index, reason) in DropReason::ALL.iter().enumerate() {
            assert_eq!(*reason as usize, index);
        }
    }
}
