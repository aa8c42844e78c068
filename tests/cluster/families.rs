//! Dual stack. IPv6 addresses are given, and not announced yet.

use anyhow::{Result, ensure};
use serde_json::{Value, json};

use crate::{
    PATIENCE,
    common::*,
    support::{Bench, Test, eventually},
};

pub const TESTS: &[Test] = &[
    ("each_family_is_given_as_the_service_asks_in_its_order", combinations),
    ("what_is_required_and_cannot_be_had_is_said", required),
    ("from_one_family_to_two_the_first_address_stays", upgrade),
];

const NOT_ANNOUNCED: &str = "speakers do not announce IPv6 addresses yet";

fn of_families(name: &str, pool: &str, policy: &str, families: &[&str]) -> Value {
    let mut service = asking(name, json!({"l2lb.io/pool": pool}));
    service["spec"]["ipFamilyPolicy"] = json!(policy);
    service["spec"]["ipFamilies"] = json!(families);
    service
}

fn combinations(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-both", &["192.0.2.180-192.0.2.189", "2001:db8:0:3::/64"]))?;
    for (name, policy, families, expected) in [
        ("six", "SingleStack", &["IPv6"][..], &["2001:db8:0:3::"][..]),
        ("four", "SingleStack", &["IPv4"], &["192.0.2.180"]),
        ("prefer", "PreferDualStack", &["IPv4", "IPv6"], &["192.0.2.181", "2001:db8:0:3::1"]),
        ("require", "RequireDualStack", &["IPv6", "IPv4"], &["2001:db8:0:3::2", "192.0.2.182"]),
    ] {
        bench.apply(&of_families(name, "lab-both", policy, families))?;
        let given = addresses_of(bench, name)?;
        ensure!(given == expected, "{name}: {given:?}");
    }
    says(bench, "six", "Announced", "NoEligibleNode", &[NOT_ANNOUNCED])?;
    says(bench, "require", "Announced", "PartlyAnnounced", &["192.0.2.182 by node", NOT_ANNOUNCED])?;
    announced(bench, "four")?;
    answers(bench, "192.0.2.182")?;
    // The object is named after the address, and tells it as people write it.
    let virtual_ip = bench.get("virtualip", "2001-db8-0-3-0-0-0-2")?;
    ensure!(virtual_ip["spec"]["address"] == "2001:db8:0:3::2", "{}", virtual_ip["spec"]);
    let counts = eventually(PATIENCE, "the pool counts them", || {
        let counts = bench.get("ippool", "lab-both")?["status"]["ipv6"].clone();
        Ok((counts["used"] == "3").then_some(counts))
    })?;
    ensure!(counts["free"] == "18446744073709551613", "2^64 without three: {counts}");
    delete_services(bench, &["six", "four", "prefer", "require"])?;
    bench.kubectl(&["delete", "ippool", "lab-both"])?;
    Ok(())
}

fn required(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-four", &["192.0.2.180-192.0.2.189"]))?;
    bench.apply(&of_families("demanding", "lab-four", "RequireDualStack", &["IPv4", "IPv6"]))?;
    says(bench, "demanding", "Allocated", "FamilyUnavailable", &["no IPv6 addresses are in pool lab-four"])?;
    ensure!(shown(&bench.get("service", "demanding")?).is_empty());
    bench.apply(&of_families("modest", "lab-four", "PreferDualStack", &["IPv4", "IPv6"]))?;
    let given = addresses_of(bench, "modest")?;
    ensure!(given.len() == 1 && given[0].starts_with("192.0.2.18"), "{given:?}");
    announced(bench, "modest")?;
    // As soon as there are some, both have them.
    let both = json!({"spec": {"addresses": ["192.0.2.180-192.0.2.189", "2001:db8:0:3::5"]}});
    patch(bench, "ippool", "lab-four", both)?;
    eventually(PATIENCE, "one of them has the IPv6 address", || {
        let one = |name: &str| -> Result<bool> { Ok(shown(&bench.get("service", name)?).len() == 2) };
        Ok((one("demanding")? || one("modest")?).then_some(()))
    })?;
    delete_services(bench, &["demanding", "modest"])?;
    bench.kubectl(&["delete", "ippool", "lab-four"])?;
    Ok(())
}

fn upgrade(bench: &Bench) -> Result<()> {
    bench.apply(&private_pool("lab-both", &["192.0.2.180-192.0.2.189", "2001:db8:0:4::/64"]))?;
    bench.apply(&of_families("growing", "lab-both", "SingleStack", &["IPv4"]))?;
    let address = announced(bench, "growing")?;
    bench.apply(&of_families("growing", "lab-both", "PreferDualStack", &["IPv4", "IPv6"]))?;
    eventually(PATIENCE, "it shows two addresses", || {
        let given = shown(&bench.get("service", "growing")?);
        Ok((given == [address.as_str(), "2001:db8:0:4::"]).then_some(()))
    })?;
    answers(bench, &address)?;
    // Back to one: the first stays, the second is free.
    bench.apply(&of_families("growing", "lab-both", "SingleStack", &["IPv4"]))?;
    eventually(PATIENCE, "it shows one address", || {
        Ok((shown(&bench.get("service", "growing")?) == [address.as_str()]).then_some(()))
    })?;
    given_back(bench, "2001:db8:0:4::")?;
    delete_services(bench, &["growing"])?;
    bench.kubectl(&["delete", "ippool", "lab-both"])?;
    Ok(())
}
