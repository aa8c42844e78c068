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
    /// The Ethernet type is neither ARP nor IPv6; a VLAN tag that was left in is one of those, too.
    EthernetType => "ethernet_type",
    /// The Ethernet type is not IPv6.
    NotIpv6 => "not_ipv6",
    /// Shorter than an IPv6 header.
    Ipv6Truncated => "ipv6_truncated",
    /// The version in the IPv6 header is not 6.
    Ipv6Version => "ipv6_version",
    /// The IPv6 header names a payload longer than the frame.
    Ipv6Length => "ipv6_length",
    /// The IPv6 source is a group, or the loopback address.
    Ipv6Source => "ipv6_source",
    /// The IPv6 header is followed by something other than ICMPv6: a fragment of neighbour discovery is none (RFC 6980).
    NotIcmpv6 => "not_icmpv6",
    /// Neither a neighbour solicitation nor a neighbour advertisement.
    Icmpv6Type => "icmpv6_type",
    /// Its ICMPv6 code is not 0.
    Icmpv6Code => "icmpv6_code",
    /// Neighbour discovery with a hop limit other than 255: it may come from another link.
    HopLimit => "hop_limit",
    /// The ICMPv6 checksum is wrong.
    Checksum => "checksum",
    /// Shorter than a neighbour solicitation or advertisement.
    NdTruncated => "nd_truncated",
    /// The target address is a group, or unspecified.
    NdTarget => "nd_target",
    /// A neighbour discovery option of length zero.
    NdOptionZero => "nd_option_zero",
    /// A neighbour discovery option that goes on behind the end of the message.
    NdOptionTruncated => "nd_option_truncated",
    /// A link-layer address option that does not hold an Ethernet address.
    NdLinkLayerLength => "nd_link_layer_length",
    /// A solicitation without a source address that names a link-layer address all the same.
    NdSourceOption => "nd_source_option",
    /// A solicitation without a source address that is not for a solicited-node group.
    NdProbeDestination => "nd_probe_destination",
    /// An advertisement to a group that says it was asked for.
    NdSolicited => "nd_solicited",
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
    /// A request for a virtual IP of ours while the owner's loop is late, so that it has to recheck before it answers again; one whose
    /// answer was not true any more when it was to leave; or one of more than a receive thread that is late can keep.
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
