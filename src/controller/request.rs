//! What a Service asks for: a pool, addresses, a sharing key. Pure.
//!
//! Our annotations and MetalLB's are read alike. Asking for the same thing twice is fine; asking for two different things is
//! answered with a sentence that names both places. Under MetalLB's names nothing is asked for by an empty value, as with MetalLB;
//! under ours it is a mistake.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::{
    api::{ANNOTATION_ADDRESSES, ANNOTATION_POOL, ANNOTATION_SHARING_KEY, METALLB_PREFIXES},
    ipam::{RangeError, read_address},
};

/// What a Service asks for.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct AddressRequest {
    /// The pool, and where that is written.
    pub pool: Option<(String, String)>,
    /// The addresses, ascending, and where they are written. Empty: any.
    pub addresses: Vec<IpAddr>,
    /// Where `addresses` are written.
    pub addresses_source: String,
}

/// Reads the request.
///
/// # Errors
/// A sentence that says what cannot be understood, and where it is written.
pub fn read(annotations: &BTreeMap<String, String>, load_balancer_ip: Option<&str>) -> Result<AddressRequest, String> {
    let mut request = AddressRequest::default();
    for (source, value) in written(annotations, ANNOTATION_POOL, "address-pool") {
        let pool = value.trim();
        if pool.is_empty() {
            return Err(format!("{source} is empty; name a pool or remove it"));
        }
        match &request.pool {
            Some((first, first_source)) if first != pool => {
                return Err(format!("{first_source} asks for pool '{first}', {source} for '{pool}'; keep one of them"));
            }
            Some(_) => {}
            None => request.pool = Some((pool.to_owned(), source)),
        }
    }
    let mut sources = written(annotations, ANNOTATION_ADDRESSES, "loadBalancerIPs");
    let field = load_balancer_ip.filter(|text| !text.trim().is_empty());
    sources.extend(field.map(|text| ("spec.loadBalancerIP".to_owned(), text.to_owned())));
    for (source, value) in sources {
        let addresses = addresses(&source, &value)?;
        if !request.addresses.is_empty() && request.addresses != addresses {
            let (first, second) = (list(&request.addresses), list(&addresses));
            let first_source = &request.addresses_source;
            return Err(format!("{first_source} asks for {first}, {source} for {second}; keep one of them"));
        }
        (request.addresses, request.addresses_source) = (addresses, source);
    }
    let mut keys = sharing_keys(annotations);
    if let Some((first_source, first)) = keys.next()
        && let Some((source, key)) = keys.find(|(_, key)| *key != first)
    {
        return Err(format!("{first_source} has sharing key '{first}', {source} has '{key}'; keep one of them"));
    }
    Ok(request)
}

/// The key under which the Service shares its address. Where two differ, [`read`] says so.
pub fn sharing_key(annotations: &BTreeMap<String, String>) -> Option<String> {
    sharing_keys(annotations).next().map(|(_, key)| key)
}

fn sharing_keys(annotations: &BTreeMap<String, String>) -> impl Iterator<Item = (String, String)> {
    let written = written(annotations, ANNOTATION_SHARING_KEY, "allow-shared-ip").into_iter();
    written.map(|(source, key)| (source, key.trim().to_owned())).filter(|(_, key)| !key.is_empty())
}

fn addresses(source: &str, value: &str) -> Result<Vec<IpAddr>, String> {
    if value.trim().is_empty() {
        return Err(format!("{source} is empty; write an address or remove it"));
    }
    let mut addresses = BTreeSet::new();
    for text in value.split(',').map(str::trim) {
        let address = read_address(text).map_err(|error| match error {
            RangeError::NotAnAddress { .. } => format!("{source}: '{text}' is not an IP address"),
            error => format!("{source}: {error}"),
        })?;
        addresses.insert(address);
    }
    for four in [true, false] {
        let family: Vec<IpAddr> = addresses.iter().copied().filter(|address| address.is_ipv4() == four).collect();
        if family.len() > 1 {
            return Err(format!("{source} asks for {}; a Service gets one address of each family", list(&family)));
        }
    }
    Ok(addresses.into_iter().collect())
}

fn list(addresses: &[IpAddr]) -> String {
    let texts: Vec<String> = addresses.iter().map(IpAddr::to_string).collect();
    texts.join(" and ")
}

/// All values under our name and MetalLB's, with a name for each place.
fn written(annotations: &BTreeMap<String, String>, ours: &str, metallb: &str) -> Vec<(String, String)> {
    let place = |name: &str| format!("annotation {name}");
    let mine = annotations.get(ours).map(|value| (place(ours), value.clone()));
    let theirs = METALLB_PREFIXES.iter().filter_map(|prefix| {
        let name = format!("{prefix}/{metallb}");
        let value = annotations.get(&name).filter(|value| !value.trim().is_empty())?;
        Some((place(&name), value.clone()))
    });
    mine.into_iter().chain(theirs).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn annotations(pairs: &[(&str, &str)]) -> BTreeMap<String, String> {
        pairs.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect()
    }

    #[test]
    fn both_vocabularies_are_read() {
        let ours =
            read(&annotations(&[("l2lb.io/pool", "lan"), ("l2lb.io/addresses", "192.0.2.70, 2001:db8::1")]), None);
        let theirs = read(
            &annotations(&[
                ("metallb.io/address-pool", "lan"),
                ("metallb.universe.tf/loadBalancerIPs", "2001:db8::1,192.0.2.70"),
            ]),
            None,
        );
        let (ours, theirs) = (ours.unwrap(), theirs.unwrap());
        assert_eq!(ours.addresses, theirs.addresses);
        assert_eq!(ours.pool.unwrap().0, theirs.pool.unwrap().0);
        assert_eq!(sharing_key(&annotations(&[("metallb.io/allow-shared-ip", "k")])), Some("k".to_owned()));
        assert_eq!(sharing_key(&annotations(&[("l2lb.io/sharing-key", " k ")])), Some("k".to_owned()));
        assert_eq!(sharing_key(&annotations(&[("l2lb.io/sharing-key", " ")])), None);
    }

    #[test]
    fn a_request_that_cannot_be_understood_is_quoted_with_its_place() {
        for (pairs, field, sentence) in [
            (
                &[("l2lb.io/addresses", "192.0.2.300")][..],
                None,
                "annotation l2lb.io/addresses: '192.0.2.300' is not an IP address",
            ),
            (&[("l2lb.io/addresses", "192.0.2.70,")], None, "annotation l2lb.io/addresses: '' is not an IP address"),
            (
                &[("l2lb.io/addresses", "192.0.2.70,192.0.2.71")],
                None,
                "annotation l2lb.io/addresses asks for 192.0.2.70 and 192.0.2.71; a Service gets one address of each family",
            ),
            (
                &[("l2lb.io/addresses", "192.0.2.70")],
                Some("192.0.2.71"),
                "annotation l2lb.io/addresses asks for 192.0.2.70, spec.loadBalancerIP for 192.0.2.71; keep one of them",
            ),
            (
                &[("l2lb.io/pool", "a"), ("metallb.io/address-pool", "b")],
                None,
                "annotation l2lb.io/pool asks for pool 'a', annotation metallb.io/address-pool for 'b'; keep one of them",
            ),
            (
                &[("l2lb.io/sharing-key", "a"), ("metallb.universe.tf/allow-shared-ip", "b")],
                None,
                "annotation l2lb.io/sharing-key has sharing key 'a', annotation metallb.universe.tf/allow-shared-ip has 'b'; keep one of them",
            ),
            (&[("l2lb.io/pool", "")], None, "annotation l2lb.io/pool is empty; name a pool or remove it"),
            (
                &[("l2lb.io/addresses", " ")],
                None,
                "annotation l2lb.io/addresses is empty; write an address or remove it",
            ),
            (
                &[("metallb.io/loadBalancerIPs", "::ffff:192.0.2.1")],
                None,
                "annotation metallb.io/loadBalancerIPs: '::ffff:192.0.2.1' is an IPv4 address written as IPv6; write 192.0.2.1",
            ),
            (
                &[("l2lb.io/addresses", "192.0.2.070")],
                None,
                "annotation l2lb.io/addresses: '192.0.2.070' has a number with a leading zero; write it without",
            ),
            (
                &[("l2lb.io/addresses", "fe80::1%eth0")],
                None,
                "annotation l2lb.io/addresses: 'fe80::1%eth0' has a zone id; write the address without '%' and what follows it",
            ),
            (
                &[("l2lb.io/addresses", "192.0.2.70 192.0.2.71")],
                None,
                "annotation l2lb.io/addresses: '192.0.2.70 192.0.2.71' contains white space; write it without",
            ),
            (
                &[("metallb.universe.tf/loadBalancerIPs", "192.0.2.70-192.0.2.80")],
                None,
                "annotation metallb.universe.tf/loadBalancerIPs: '192.0.2.70-192.0.2.80' is a range; write a single address",
            ),
            (
                &[("l2lb.io/addresses", "192.0.2.70/32")],
                None,
                "annotation l2lb.io/addresses: '192.0.2.70/32' is a range; write a single address",
            ),
            (&[], Some("web.example.com"), "spec.loadBalancerIP: 'web.example.com' is not an IP address"),
            (&[], Some("web-1"), "spec.loadBalancerIP: 'web-1' is not an IP address"),
        ] {
            assert_eq!(read(&annotations(pairs), field).unwrap_err(), sentence);
        }
    }

    #[test]
    fn an_empty_value_under_metallbs_names_asks_for_nothing() {
        for name in ["address-pool", "loadBalancerIPs", "allow-shared-ip"] {
            for prefix in METALLB_PREFIXES {
                let empty = annotations(&[(&format!("{prefix}/{name}"), " ")]);
                assert_eq!(read(&empty, Some("")), Ok(AddressRequest::default()), "{name}");
                assert_eq!(sharing_key(&empty), None);
            }
        }
    }

    #[test]
    fn asking_for_the_same_twice_is_fine() {
        let request = read(&annotations(&[("l2lb.io/addresses", "192.0.2.70")]), Some("192.0.2.70")).unwrap();
        assert_eq!(request.addresses, ["192.0.2.70".parse::<IpAddr>().unwrap()]);
    }
}
