//! What can be wrong with a range that somebody wrote, and why an address cannot be had. Nothing has changed after any of
//! these errors.

use std::net::IpAddr;

use thiserror::Error;

use super::Family;

/// Why the text of a range cannot be used. The fault of whoever wrote the text, which every message quotes.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum RangeError {
    /// Nothing is there.
    #[error("'' is empty; write an address (192.0.2.5), a CIDR (192.0.2.64/26) or a range (192.0.2.200-192.0.2.220)")]
    Empty,
    /// Blanks, which the API server's own check would not accept either.
    #[error("'{0}' contains white space; write it without")]
    WhiteSpace(String),
    /// A zone id (`fe80::1%eth0`): it means something on one host only.
    #[error("'{0}' has a zone id; write the address without '%' and what follows it")]
    Zone(String),
    /// `192.0.2.010`: 8 or 10, depending on who reads it.
    #[error("'{0}' has a number with a leading zero; write it without")]
    LeadingZero(String),
    /// A range or CIDR where one address is wanted.
    #[error("'{0}' is a range; write a single address")]
    NotOne(String),
    /// Some part is not an address.
    #[error("'{text}': '{part}' is not an IP address")]
    NotAnAddress {
        /// All that was written.
        text: String,
        /// The part that is no address.
        part: String,
    },
    /// An IPv4 address in IPv6 clothes (`::ffff:192.0.2.1`).
    #[error("'{text}' is an IPv4 address written as IPv6; write {v4}")]
    Mapped {
        /// What was written.
        text: String,
        /// The same address as IPv4.
        v4: std::net::Ipv4Addr,
    },
    /// The prefix length is missing, not a number or too long.
    #[error("'{text}': the prefix length '{length}' is not a number from 1 to {max}")]
    PrefixLength {
        /// All that was written.
        text: String,
        /// What stands after the slash.
        length: String,
        /// The longest prefix of that family.
        max: u8,
    },
    /// A prefix length of 0.
    #[error("'{0}' is every address there is; write only those that are yours to give")]
    Everything(String),
    /// The two ends are of different families.
    #[error("'{0}' mixes IPv4 and IPv6; both ends of a range are of one family")]
    MixedFamilies(String),
    /// The ends are swapped.
    #[error("'{text}' ends before it starts; write {last}-{first}")]
    EndsBeforeStart {
        /// What was written.
        text: String,
        /// Its first address as written: the higher one.
        first: IpAddr,
        /// Its last address as written: the lower one.
        last: IpAddr,
    },
}

/// So many of those who have an address are named.
const LISTED_USERS: usize = 8;

/// Why an address was not handed out.
#[derive(Debug, Clone, PartialEq, Eq, Error)]
pub enum AllocateError {
    /// Every address of this family in the pools that were allowed is in use.
    #[error("no free {family} address is left in {}", list_pools(.pools))]
    Exhausted {
        /// The family asked for.
        family: Family,
        /// The pools that were tried.
        pools: Vec<String>,
    },
    /// None of the pools that were allowed has addresses of this family.
    #[error("no {family} addresses are in {}", list_pools(.pools))]
    NoSuchFamily {
        /// The family asked for.
        family: Family,
        /// The pools that were tried.
        pools: Vec<String>,
    },
    /// The address asked for lies in none of the pools that were allowed.
    #[error("{address} is not in {}", list_pools(.pools))]
    NotInPool {
        /// The address asked for.
        address: IpAddr,
        /// The pools that were allowed.
        pools: Vec<String>,
    },
    /// The address asked for belongs to somebody who does not share it.
    #[error("{address} is in use by {}", list_users(.users))]
    InUse {
        /// The address asked for.
        address: IpAddr,
        /// Who has it.
        users: Vec<String>,
    },
    /// The address asked for is held by somebody without a sharing key.
    #[error("{address} is in use by {}, without a sharing key ('{key}' was asked for)", list_users(.users))]
    NotShared {
        /// The address asked for.
        address: IpAddr,
        /// The key that was offered.
        key: String,
        /// Who has it.
        users: Vec<String>,
    },
    /// The address asked for is shared under another key.
    #[error("{address} is shared by {} under another sharing key than '{key}'", list_users(.users))]
    OtherKey {
        /// The address asked for.
        address: IpAddr,
        /// The key that was offered.
        key: String,
        /// Who has it.
        users: Vec<String>,
    },
    /// As many share it as can.
    #[error("{address} is shared by {max} already, which is as many as one address takes; choose another sharing key")]
    Full {
        /// The address asked for.
        address: IpAddr,
        /// How many can share.
        max: usize,
    },
    /// The key fits, but the traffic of both has to meet different backends on one node.
    #[error(
        "{address} is shared with {user}, and with externalTrafficPolicy Local both need the same policy and selector"
    )]
    OtherBackend {
        /// The address asked for.
        address: IpAddr,
        /// Who has it.
        user: String,
    },
    /// The key fits, but one port would be served twice.
    #[error("{address} is shared with {user}, which already uses port {port}/{protocol}")]
    PortCollision {
        /// The address asked for.
        address: IpAddr,
        /// TCP, UDP or SCTP.
        protocol: String,
        /// The port.
        port: u16,
        /// Who uses it.
        user: String,
    },
}

/// The first of those who have an address: where hundreds share it, nobody reads on, and the words do not change with each of them.
fn list_users(users: &[String]) -> String {
    let names: Vec<&str> = users.iter().take(LISTED_USERS).map(String::as_str).collect();
    let (names, more) = (names.join(", "), users.len().saturating_sub(LISTED_USERS));
    if more > 0 { format!("{names} and {more} more") } else { names }
}

pub(super) fn list_pools(pools: &[String]) -> String {
    match pools {
        [] => "any pool".to_owned(),
        [one] => format!("pool {one}"),
        many => format!("pools {}", many.join(", ")),
    }
}
