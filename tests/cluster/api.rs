//! What the API server and the chart guard: schemas, rights, privileges.

use anyhow::{Context as _, Result, bail, ensure};
use k8s_openapi::api::coordination::v1::Lease;
use kube::{
    Api,
    api::{Patch, PatchParams},
};
use l2lb::api::{Speaker, VirtualIP};
use lab::runtime::block_on;
use serde_json::json;

use crate::{
    common::*,
    support::{Bench, Test},
};

pub const TESTS: &[Test] = &[
    ("a_pool_that_cannot_be_read_is_refused_with_its_field_and_value", refused_pools),
    ("explain_tells_what_a_field_means", explain),
    ("a_speaker_may_not_read_services_or_secrets", speaker_rights),
    ("a_speaker_may_not_write_for_another_node", own_node_only),
    ("each_process_has_the_privileges_of_the_chart_and_no_more", privileges),
];

fn refused_pools(bench: &Bench) -> Result<()> {
    for (item, named) in [
        ("10.0.0.0/33", "spec.addresses[1]"),
        ("10.0.0.1-2001:db8::1", "spec.addresses[1]"),
        ("10.0.0.300", "spec.addresses[1]"),
        ("", "spec.addresses[1]"),
        ("one", "spec.addresses[1]"),
    ] {
        let refusal = match bench.apply(&pool("bad", &["10.9.0.1", item])) {
            Ok(_) => bail!("a pool with '{item}' was taken"),
            Err(refusal) => format!("{refusal:#}"),
        };
        ensure!(refusal.contains(named), "'{item}': the field is not named in: {refusal}");
        ensure!(refusal.contains(&format!("'{item}' is not an address")), "'{item}' is not named in: {refusal}");
    }
    let misnamed = json!({"apiVersion": "l2lb.io/v1alpha1", "kind": "VirtualIP", "metadata": {"name": "mine"},
        "spec": {"address": "192.0.2.64", "pool": "lan"}});
    let refusal = format!("{:#}", bench.apply(&misnamed).err().context("a VirtualIP of another name was taken")?);
    ensure!(refusal.contains("named after its address"), "{refusal}");
    let refusal = format!("{:#}", bench.apply(&pool("bad", &[])).err().context("an empty pool was taken")?);
    ensure!(refusal.contains("spec.addresses"), "{refusal}");
    Ok(())
}

fn explain(bench: &Bench) -> Result<()> {
    let text = bench.kubectl(&["explain", "ippool.spec.addresses"])?;
    ensure!(text.contains("CIDRs (192.0.2.64/26)"), "{text}");
    let text = bench.kubectl(&["explain", "virtualip"])?;
    ensure!(text.contains("One address in use"), "{text}");
    let listed = bench.kubectl(&["get", "l2lb", "-o", "name"])?;
    ensure!(listed.contains("ippool") && listed.contains("speaker"), "category l2lb lists: {listed}");
    for short in ["ipp", "vip", "spk"] {
        bench.kubectl(&["get", short])?;
    }
    Ok(())
}

fn speaker_rights(bench: &Bench) -> Result<()> {
    let account = "--as=system:serviceaccount:l2lb-system:l2lb-speaker";
    let may = |verb: &str, resource: &str, more: &[&str]| -> Result<bool> {
        let arguments = [&["auth", "can-i", verb, resource, account][..], more].concat();
        // can-i exits with 1 for "no": the answer is what it prints.
        let answer = bench.kubectl(&arguments).unwrap_or_else(|error| format!("{error:#}"));
        Ok(answer.lines().any(|line| line.trim() == "yes"))
    };
    for resource in
        ["services", "secrets", "configmaps", "pods", "endpointslices.discovery.k8s.io", "nodes", "ippools.l2lb.io"]
    {
        for verb in ["get", "list", "watch", "update", "patch", "delete"] {
            for scope in [&["-A"][..], &["-n", "l2lb-system"]] {
                ensure!(!may(verb, resource, scope)?, "a speaker may {verb} {resource} {scope:?}");
            }
        }
    }
    for verb in ["create", "update", "patch", "delete"] {
        ensure!(!may(verb, "virtualips.l2lb.io", &[])?, "a speaker may {verb} virtualips");
    }
    ensure!(may("list", "virtualips.l2lb.io", &[])? && may("patch", "virtualips.l2lb.io", &["--subresource=status"])?);
    // Asked as itself, with the token that it runs with.
    let token = bench.speaker_kubeconfig("node1")?;
    let refusal =
        format!("{:#}", bench.kubectl_as(&token, &["get", "services", "-A"]).err().context("it reads Services")?);
    ensure!(refusal.contains("forbidden"), "{refusal}");
    bench.kubectl_as(&token, &["get", "virtualips"])?;
    Ok(())
}

fn own_node_only(bench: &Bench) -> Result<()> {
    let speaker = bench.speaker_client("node1")?;
    let speakers: Api<Speaker> = Api::all(speaker.clone());
    let touch = Patch::Merge(json!({"status": {"version": "touched"}}));
    let write = |name: &str| {
        let result = block_on(async { Ok(speakers.patch_status(name, &PatchParams::default(), &touch).await) })?;
        Ok::<_, anyhow::Error>(result.map(drop).map_err(|error| error.to_string()))
    };
    let refusal = write("node2")?.err().context("the speaker of node1 wrote the Speaker of node2")?;
    ensure!(refusal.contains("the speaker of node node1 may not write the Speaker of node node2"), "{refusal}");
    write("node1")?.map_err(anyhow::Error::msg)?;

    let leases: Api<Lease> = Api::namespaced(speaker, "l2lb-system");
    let touch = Patch::Merge(json!({"metadata": {"annotations": {"touched": "yes"}}}));
    let write = |name: &str| {
        let result = block_on(async { Ok(leases.patch(name, &PatchParams::default(), &touch).await) })?;
        Ok::<_, anyhow::Error>(result.map(drop).map_err(|error| error.to_string()))
    };
    let refusal = write("l2lb-speaker-node2")?.err().context("it wrote the Lease of node2")?;
    ensure!(refusal.contains("may not write the Lease l2lb-speaker-node2"), "{refusal}");
    write("l2lb-speaker-node1")?.map_err(anyhow::Error::msg)?;

    bench.apply(&service("claimed", json!({})))?;
    let address = address_of(bench, "claimed")?;
    let owner = announcing_node(bench, &address)?;
    let other = ["node1", "node2", "node3"].into_iter().find(|node| *node != owner).context("another node")?;
    let virtual_ips: Api<VirtualIP> = Api::all(bench.speaker_client(other)?);
    let theft = Patch::Merge(json!({"status": {"claims": []}}));
    let result = block_on(async { Ok(virtual_ips.patch_status(&address, &PatchParams::default(), &theft).await) })?;
    let refusal = result.err().context("it took away another's claim")?.to_string();
    ensure!(refusal.contains("may write only its own claim"), "{refusal}");
    delete_services(bench, &["claimed"])
}

fn privileges(bench: &Bench) -> Result<()> {
    for node in ["node1", "node2", "node3"] {
        let status = bench.process_status("l2lb-speaker", Some(node))?;
        ensure!(status["CapEff"] == "0000000000002000", "{node}: the speaker's capabilities are {}", status["CapEff"]);
        ensure!(status["CapBnd"] == "0000000000002000", "{node}: its bounding set is {}", status["CapBnd"]);
        ensure!(status["NoNewPrivs"] == "1");
    }
    let status = bench.process_status("l2lb-controller", None)?;
    ensure!(status["CapEff"] == "0000000000000000", "the controller's capabilities are {}", status["CapEff"]);
    Ok(())
}
