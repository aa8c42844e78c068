//! The speaker on bonds and VLAN devices, in a virtual machine, because few kernels of test machines have either; and a
//! virtual machine that is paused as a whole, which sees no time pass.
//!
//! This program is all sides. On the machine it boots the virtual machine once, with itself as the first process inside, and reads
//! what it prints ([`host`]). Inside it plays the trials ([`bonds`], [`vlans`]) in network namespaces with the real speaker, before a
//! small API server of the lab ([`world`]).

mod bonds;
mod host;
mod pair;
mod vlans;
mod world;

use std::{process::ExitCode, time::Instant};

use anyhow::Result;
use lab::vm;

/// What a trial does, inside.
type Check = fn() -> Result<()>;

/// Played in one virtual machine, in this order.
const ALONE: [(&str, Check); 8] = [
    ("a_bond_is_answered_with_its_own_mac", bonds::answered_with_its_own_mac),
    ("a_bond_outlives_its_active_port", bonds::outlives_its_active_port),
    ("a_bond_with_another_mac_is_announced_anew", bonds::another_mac),
    ("a_bond_that_takes_its_ports_mac_is_announced_anew", bonds::mac_of_the_active_port),
    ("bonds_of_two_nodes_fail_over", bonds::fail_over),
    ("a_vlan_on_a_nic_is_answered_inside_it_only", vlans::on_a_nic),
    ("a_vlan_on_a_bond_is_answered_inside_it_only", vlans::on_a_bond),
    ("a_vlan_that_is_removed_is_reported", vlans::removed),
];
/// Played in a virtual machine beside another one that is paused.
const BESIDE: [(&str, Check); 1] = [("a_paused_virtual_machine_yields_when_it_goes_on", pair::paused)];

fn main() -> ExitCode {
    vm::guest::boot();
    let result = if vm::guest::is_inside() { inside() } else { host::main() };
    result.unwrap_or_else(|error| {
        eprintln!("error: {error:#}");
        ExitCode::FAILURE
    })
}

/// Plays the trials, and says how each ended.
fn inside() -> Result<ExitCode> {
    let wanted = std::env::var(host::WANTED).unwrap_or_default();
    if wanted == pair::OTHER {
        return pair::other();
    }
    for (name, check) in ALONE.into_iter().chain(BESIDE) {
        if !wanted.split(',').any(|one| one == name) {
            continue;
        }
        let start = Instant::now();
        let outcome = std::panic::catch_unwind(check);
        let failure = match outcome {
            Ok(Ok(())) => None,
            Ok(Err(error)) => Some(format!("{error:#}")),
            // The panic's words are among the lines already.
            Err(_) => Some("it panicked".to_owned()),
        };
        host::Said { name, seconds: start.elapsed().as_secs_f64(), failure }.print();
    }
    Ok(ExitCode::SUCCESS)
}
