//! What a Service asks for: a pool, addresses, a sharing key. Pure.
//!
//! Our annotations and MetalLB's are read alike. Asking for the same thing twice is fine; asking for two different things is
//! answered with a sentence that names both places.

use std::{
    collections::{BTreeMap, BTreeSet},
    net::IpAddr,
};

use crate::api::{ANNOTATION_ADDRESSES, ANNOTATION_POOL, ANNOTATION_SHARING_KEY, METALLB_PREFIXES};

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
    let field = load_balancer_ip.filter(|text| !text.is_empty());
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
    let mut addresses = BTreeSet::new();
    for text in value.split(',').map(str::trim) {
        let Ok(address) = text.parse::<IpAddr>() else {
            return Err(format!("{source}: '{text}' is not an IP address"));
        };
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
    let names =
        [ours.to_owned()].into_iter().chain(METALLB_PREFIXES.iter().map(|prefix| format!("{prefix}/{metallb}")));
    let found = names.filter_map(|name| Some((format!("annotation {name}"), annotations.get(&name)?.clone())));
    found.collect()
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
        ] {
            assert_eq!(read(&annotations(pairs), field).unwrap_err(), sentence);
        }
    }

    #[test]
    fn asking_for_the_same_twice_is_fine() {
        let request = read(&annotations(&[("l2lb.io/addresses", "192.0.2.70")]), Some("192.0.2.70")).unwrap();
        assert_eq!(request.addresses, ["192.0.2.70".parse::<IpAddr>().unwrap()]);
    }
}
