//! A hostile LAN, and health that tells the truth: the real `l2lb speaker` on a LAN of network namespaces with a small API server,
//! a host that sends whatever it likes as fast as it can, and a client that behaves. What comes out is counted at the client, in the
//! speaker's metrics, in `/proc`, and at the API server. `docs/security.md` names these tests.

mod attacker;
mod client;
mod floods;
mod frames;
mod health;
mod neighbours;
mod spoofing;
mod world;

use std::process::ExitCode;
use std::sync::{PoisonError, RwLock};
use std::time::Duration;

use anyhow::Result;
use lab::stalls::play_again_after_stalls;
use libtest_mimic::{Arguments, Failed, Trial};

/// Held for reading by trials that only wait, for writing by those that load the machine.
static MACHINE: RwLock<()> = RwLock::new(());

/// A speaker that stood still for longer than its fence is mute until it has asked anew, and frames are lost meanwhile. Where the
/// machine stood still for less than this, no client notices.
const TOLERATED: Duration = Duration::from_millis(100);

/// A trial, and whether it loads the machine.
type Entry = (&'static str, bool, fn(&str) -> Result<()>);

fn main() -> Result<ExitCode> {
    let arguments = Arguments::from_args();
    if !arguments.list {
        lab::sandbox::enter()?;
    }
    let entries = health::TRIALS.into_iter().chain(frames::TRIALS).chain(floods::TRIALS).chain(spoofing::TRIALS);
    let entries = entries.chain(neighbours::TRIALS);
    let trials = entries.enumerate().map(|(number, (name, loads, test)): (usize, Entry)| {
        Trial::test(name, move || {
            let mut round = 0;
            let mut run = || {
                let played = play_again_after_stalls(TOLERATED, || {
                    round += 1;
                    // Interfaces and namespaces of trials that run beside each other have names of their own.
                    test(&format!("-h{number}-{round}"))
                });
                played.map_err(|error| Failed::from(format!("{error:#}")))
            };
            if loads {
                let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
                run()
            } else {
                let _beside_others = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
                run()
            }
        })
    });
    Ok(libtest_mimic::run(&arguments, trials.collect()).exit_code())
}
