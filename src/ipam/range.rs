//! Ranges of addresses: one as somebody writes it, and sets of them.

use std::{
    collections::BTreeMap,
    fmt,
    net::{IpAddr, Ipv4Addr, Ipv6Addr},
    str::FromStr,
};

use ipnet::IpNet;

use super::RangeError;

/// An address family.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub enum Family {
    /// IPv4.
    V4,
    /// IPv6.
    V6,
}

impl Family {
    /// Both.
    pub const ALL: [Self; 2] = [Self::V4, Self::V6];

    /// The family of an address.
    pub fn of(address: IpAddr) -> Self {
        if address.is_ipv4() { Self::V4 } else { Self::V6 }
    }

    fn address(self, number: u128) -> IpAddr {
        match self {
            // Numbers of IPv4 ranges come from IPv4 addresses and stay between two of them.
            Self::V4 => Ipv4Addr::from_bits(number as u32).into(),
            Self::V6 => Ipv6Addr::from_bits(number).into(),
        }
    }
}

impl fmt::Display for Family {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::V4 => "IPv4",
            Self::V6 => "IPv6",
        })
    }
}

fn number(address: IpAddr) -> u128 {
    match address {
        IpAddr::V4(v4) => v4.to_bits().into(),
        IpAddr::V6(v6) => v6.to_bits(),
    }
}

/// From one address to another of the same family, both included. Made by parsing only, so that it never ends before it
/// starts.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct AddressRange {
    family: Family,
    first: u128,
    last: u128,
}

impl AddressRange {
    /// The range that holds one address.
    pub fn single(address: IpAddr) -> Self {
        Self { family: Family::of(address), first: number(address), last: number(address) }
    }

    /// The lowest address.
    pub fn first(&self) -> IpAddr {
        self.family.address(self.first)
    }

    /// The highest address.
    pub fn last(&self) -> IpAddr {
        self.family.address(self.last)
    }

    /// The family of all its addresses.
    pub fn family(&self) -> Family {
        self.family
    }

    /// Whether the address lies within.
    pub fn contains(&self, address: IpAddr) -> bool {
        Family::of(address) == self.family && (self.first..=self.last).contains(&number(address))
    }

    /// How many addresses it holds; all of IPv6 counts as `u128::MAX`, one less than there are.
    pub fn count(&self) -> u128 {
        (self.last - self.first).saturating_add(1)
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if self.first == self.last {
            return write!(f, "{}", self.first());
        }
        write!(f, "{}-{}", self.first(), self.last())
    }
}

impl FromStr for AddressRange {
    type Err = RangeError;

    /// Reads an address, a CIDR or `start-end`. A CIDR stands for its whole network, whatever host bits are written.
    fn from_str(text: &str) -> Result<Self, RangeError> {
        if text.is_empty() {
            return Err(RangeError::Empty);
        }
        if text.contains(char::is_whitespace) {
            return Err(RangeError::WhiteSpace(text.to_owned()));
        }
        if let Some((address, length)) = text.split_once('/') {
            return network(text, address, length);
        }
        let Some((first, last)) = text.split_once('-') else {
            return Ok(Self::single(parse_address(text, text)?));
        };
        let (first, last) = (parse_address(text, first)?, parse_address(text, last)?);
        if Family::of(first) != Family::of(last) {
            return Err(RangeError::MixedFamilies(text.to_owned()));
        }
        if number(last) < number(first) {
            return Err(RangeError::EndsBeforeStart { text: text.to_owned(), first, last });
        }
        Ok(Self { family: Family::of(first), first: number(first), last: number(last) })
    }
}

fn network(text: &str, address: &str, length: &str) -> Result<AddressRange, RangeError> {
    let address = parse_address(text, address)?;
    let max = if address.is_ipv4() { 32 } else { 128 };
    let wrong = || RangeError::PrefixLength { text: text.to_owned(), length: length.to_owned(), max };
    // A sign or a leading zero would be read by the standard parser, but not by the API server.
    if !length.bytes().all(|byte| byte.is_ascii_digit()) || (length.len() > 1 && length.starts_with('0')) {
        return Err(wrong());
    }
    let bits: u8 = length.parse().map_err(|_| wrong())?;
    if bits == 0 {
        return Err(RangeError::Everything(text.to_owned()));
    }
    let net = IpNet::new(address, bits).map_err(|_| wrong())?;
    let last = match net {
        IpNet::V4(v4) => IpAddr::V4(v4.broadcast()),
        IpNet::V6(v6) => IpAddr::V6(v6.broadcast()),
    };
    Ok(AddressRange { family: Family::of(address), first: number(net.network()), last: number(last) })
}

/// Reads one address, as strictly as the API server does.
///
/// # Errors
/// If it is none, or written in a way that others would read differently.
pub fn read_address(text: &str) -> Result<IpAddr, RangeError> {
    if text.contains(char::is_whitespace) {
        return Err(RangeError::WhiteSpace(text.to_owned()));
    }
    let is_range = text.contains('/') || text.split_once('-').is_some_and(|(first, _)| first.parse::<IpAddr>().is_ok());
    if is_range {
        return Err(RangeError::NotOne(text.to_owned()));
    }
    parse_address(text, text)
}

fn parse_address(text: &str, part: &str) -> Result<IpAddr, RangeError> {
    if part.contains('%') {
        return Err(RangeError::Zone(text.to_owned()));
    }
    let Ok(address) = part.parse::<IpAddr>() else {
        let leading_zero = part.split('.').count() == 4
            && part.split('.').all(|byte| !byte.is_empty() && byte.bytes().all(|b| b.is_ascii_digit()))
            && part.split('.').any(|byte| byte.len() > 1 && byte.starts_with('0'));
        return Err(if leading_zero {
            RangeError::LeadingZero(text.to_owned())
        } else {
            RangeError::NotAnAddress { text: text.to_owned(), part: part.to_owned() }
        });
    };
    match address {
        IpAddr::V6(v6) => match v6.to_ipv4_mapped() {
            Some(v4) => Err(RangeError::Mapped { text: text.to_owned(), v4 }),
            None => Ok(address),
        },
        IpAddr::V4(_) => Ok(address),
    }
}

/// A set of addresses of both families, kept as disjoint ranges that do not touch.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct RangeSet {
    /// (family, first) to last.
    spans: BTreeMap<(Family, u128), u128>,
}

impl RangeSet {
    /// Adds all addresses of a range; those that are there already stay.
    pub fn insert(&mut self, range: AddressRange) {
        let AddressRange { family, mut first, mut last } = range;
        // Swallow every span that overlaps or touches.
        while let Some((&(_, start), &end)) =
            self.spans.range((family, 0)..=(family, last.saturating_add(1))).next_back()
            && end.saturating_add(1) >= first
        {
            self.spans.remove(&(family, start));
            first = first.min(start);
            last = last.max(end);
        }
        self.spans.insert((family, first), last);
    }

    /// Takes all addresses of a range out.
    pub fn remove(&mut self, range: AddressRange) {
        let AddressRange { family, first, last } = range;
        while let Some((&(_, start), &end)) = self.spans.range((family, 0)..=(family, last)).next_back()
            && end >= first
        {
            self.spans.remove(&(family, start));
            if start < first {
                self.spans.insert((family, start), first - 1);
            }
            if end > last {
                self.spans.insert((family, last + 1), end);
            }
        }
    }

    /// Whether the address is in the set.
    pub fn contains(&self, address: IpAddr) -> bool {
        self.span_of(Family::of(address), number(address)).is_some()
    }

    /// Its ranges, IPv4 first, ascending.
    pub fn ranges(&self) -> impl Iterator<Item = AddressRange> + '_ {
        self.spans.iter().map(|(&(family, first), &last)| AddressRange { family, first, last })
    }

    /// The parts of a range that are in the set, ascending.
    pub fn within(&self, range: AddressRange) -> Vec<AddressRange> {
        let AddressRange { family, first, last } = range;
        let before = self.spans.range((family, 0)..(family, first)).next_back();
        let inside = self.spans.range((family, first)..=(family, last));
        let parts = before.into_iter().chain(inside).filter(|(_, end)| **end >= first);
        let part = |(&(_, start), &end): (&(Family, u128), &u128)| AddressRange {
            family,
            first: start.max(first),
            last: end.min(last),
        };
        parts.map(part).collect()
    }

    /// The lowest number of this family in the set that is not below `from`.
    pub(super) fn at_or_after(&self, family: Family, from: u128) -> Option<u128> {
        if self.span_of(family, from).is_some() {
            return Some(from);
        }
        self.spans.range((family, from)..=(family, u128::MAX)).next().map(|(&(_, first), _)| first)
    }

    /// The end of the range that holds this number.
    pub(super) fn span_of(&self, family: Family, number: u128) -> Option<u128> {
        let (_, &last) = self.spans.range((family, 0)..=(family, number)).next_back()?;
        (last >= number).then_some(last)
    }
}

impl FromIterator<AddressRange> for RangeSet {
    fn from_iter<T: IntoIterator<Item = AddressRange>>(ranges: T) -> Self {
        let mut set = Self::default();
        for range in ranges {
            set.insert(range);
        }
        set
    }
}

pub(super) fn to_number(address: IpAddr) -> u128 {
    number(address)
}

pub(super) fn to_address(family: Family, number: u128) -> IpAddr {
    family.address(number)
}

impl AddressRange {
    pub(super) fn bounds(&self) -> (u128, u128) {
        (self.first, self.last)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_three_ways_of_writing_are_read() {
        for (text, shown, count) in [
            ("192.0.2.5", "192.0.2.5", 1),
            ("192.0.2.64/26", "192.0.2.64-192.0.2.127", 64),
            ("192.0.2.70/26", "192.0.2.64-192.0.2.127", 64),
            ("192.0.2.5/32", "192.0.2.5", 1),
            ("192.0.2.200-192.0.2.220", "192.0.2.200-192.0.2.220", 21),
            ("2001:db8:1::/112", "2001:db8:1::-2001:db8:1::ffff", 65_536),
            ("2001:db8::/64", "2001:db8::-2001:db8::ffff:ffff:ffff:ffff", 1 << 64),
            ("::1-::1", "::1", 1),
        ] {
            let range: AddressRange = text.parse().unwrap();
            assert_eq!((range.to_string().as_str(), range.count()), (shown, count), "{text}");
        }
    }

    #[test]
    fn a_bad_range_is_answered_with_a_sentence_that_quotes_it() {
        for (text, sentence) in [
            (
                "",
                "'' is empty; write an address (192.0.2.5), a CIDR (192.0.2.64/26) or a range (192.0.2.200-192.0.2.220)",
            ),
            ("10.0.0.9-10.0.0.1", "'10.0.0.9-10.0.0.1' ends before it starts; write 10.0.0.1-10.0.0.9"),
            ("10.0.0.1-::2", "'10.0.0.1-::2' mixes IPv4 and IPv6; both ends of a range are of one family"),
            ("10.0.0.0/33", "'10.0.0.0/33': the prefix length '33' is not a number from 1 to 32"),
            ("10.0.0.0/", "'10.0.0.0/': the prefix length '' is not a number from 1 to 32"),
            ("10.0.0.0/+8", "'10.0.0.0/+8': the prefix length '+8' is not a number from 1 to 32"),
            ("10.0.0.0/08", "'10.0.0.0/08': the prefix length '08' is not a number from 1 to 32"),
            ("2001:db8::/129", "'2001:db8::/129': the prefix length '129' is not a number from 1 to 128"),
            ("0.0.0.0/0", "'0.0.0.0/0' is every address there is; write only those that are yours to give"),
            ("10.0.0.256", "'10.0.0.256': '10.0.0.256' is not an IP address"),
            ("10.0.0.1-", "'10.0.0.1-': '' is not an IP address"),
            ("10.0.0.1-10.0.0.2-10.0.0.3", "'10.0.0.1-10.0.0.2-10.0.0.3': '10.0.0.2-10.0.0.3' is not an IP address"),
            ("10.0.0.010", "'10.0.0.010' has a number with a leading zero; write it without"),
            (" 10.0.0.1", "' 10.0.0.1' contains white space; write it without"),
            ("10.0.0.1 - 10.0.0.2", "'10.0.0.1 - 10.0.0.2' contains white space; write it without"),
            ("fe80::1%eth0", "'fe80::1%eth0' has a zone id; write the address without '%' and what follows it"),
            ("::ffff:10.0.0.1", "'::ffff:10.0.0.1' is an IPv4 address written as IPv6; write 10.0.0.1"),
        ] {
            assert_eq!(text.parse::<AddressRange>().unwrap_err().to_string(), sentence);
        }
    }

    #[test]
    fn touching_ranges_become_one_and_taking_out_splits() {
        let mut set: RangeSet =
            ["10.0.0.1-10.0.0.4", "10.0.0.5-10.0.0.9"].iter().map(|text| text.parse().unwrap()).collect();
        assert_eq!(set.ranges().count(), 1);
        set.remove("10.0.0.3-10.0.0.6".parse().unwrap());
        let shown: Vec<String> = set.ranges().map(|range| range.to_string()).collect();
        assert_eq!(shown, ["10.0.0.1-10.0.0.2", "10.0.0.7-10.0.0.9"]);
    }

    #[test]
    fn the_ends_of_the_address_space_do_not_overflow() {
        let mut set = RangeSet::default();
        set.insert("ffff::-ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
        set.insert("0.0.0.0-255.255.255.255".parse().unwrap());
        set.remove("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap());
        assert!(!set.contains("ffff:ffff:ffff:ffff:ffff:ffff:ffff:ffff".parse().unwrap()));
        assert!(set.contains("255.255.255.255".parse().unwrap()));
    }
}
