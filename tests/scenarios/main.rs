//! The field reports S0, S1 and S2 as tests on a LAN of network namespaces with the user-space switch.
//!
//! Each scenario is one function over an [`announcer::Announcer`]: something that makes a node answer for a virtual IP
//! and can move it. It runs against a correct minimal responder, against three that are wrong in one way each and must
//! be found out, and against l2lb itself on a whole cluster. `S1` and `S2` say nothing about a responder that is only
//! silent, as `S0` says nothing about a move: what each finds is the table in [`bare_trials`].

mod announcer;
mod field;
mod lan;
mod responder;
mod s0;
mod s1;
mod s2;

use std::process::ExitCode;

use libtest_mimic::{Arguments, Failed, Trial};

use crate::announcer::{Announcer, Failure, Kind};
use crate::field::Field;
use crate::responder::{Fault, Responders};

type Scenario = fn(&Field<'_>, &mut dyn Announcer) -> Result<(), Failure>;

fn main() -> ExitCode {
    if let Err(error) = lab::sandbox::enter() {
        eprintln!("error: {error:#}");
        return ExitCode::FAILURE;
    }
    let arguments = Arguments::from_args();
    let trials = lan::trials().into_iter().chain(bare_trials()).collect();
    libtest_mimic::run(&arguments, trials).exit_code()
}

/// Every scenario against every responder of this test, with what must come out.
fn bare_trials() -> Vec<Trial> {
    const PASSES: Option<Kind> = None;
    let table: [(&str, Scenario, [Option<Kind>; 4]); 3] = [
        // Scenario                                     correct  foreign sender            silent               unannounced
        ("s0_ageing_switch", s0::run, [PASSES, Some(Kind::Flooded), Some(Kind::Flooded), PASSES]),
        ("s1_warm_client", s1::run, [PASSES, Some(Kind::Flooded), PASSES, Some(Kind::NotAnnounced)]),
        ("s2_gateway_port", s2::run, [PASSES, Some(Kind::WrongTriple), PASSES, Some(Kind::NotFollowed)]),
    ];
    let faults = [
        ("correct_responder", Fault::None),
        ("foreign_sender", Fault::ForeignSender),
        ("silent", Fault::Silent),
        ("unannounced_move", Fault::UnannouncedMove),
    ];
    let mut trials = Vec::new();
    for (scenario_name, scenario, expected) in table {
        for ((fault_name, fault), expected) in faults.into_iter().zip(expected) {
            let verb = if expected.is_some() { "finds" } else { "passes" };
            let suffix = format!("-{}{}", &scenario_name[..2], trials.len());
            trials.push(Trial::test(format!("{scenario_name}_{verb}_{fault_name}"), move || {
                bare(scenario, fault, expected, &suffix)
            }));
        }
    }
    trials
}

fn bare(scenario: Scenario, fault: Fault, expected: Option<Kind>, suffix: &str) -> Result<(), Failed> {
    let field = field::Bare::new(suffix)?;
    let mut responders = Responders::start(&field.nodes, fault)?;
    let result = scenario(&field.view(), &mut responders);
    responders.stop()?;
    judge(result, expected)
}

/// Compares what a scenario found with what it must find.
fn judge(result: Result<(), Failure>, expected: Option<Kind>) -> Result<(), Failed> {
    match (result, expected) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(expected)) => Err(format!("passed, though {expected:?} was to be found").into()),
        (Err(Failure::Finding(finding)), Some(expected)) if finding.kind == expected => Ok(()),
        (Err(failure), None) => Err(failure.to_string().into()),
        (Err(failure), Some(expected)) => Err(format!("{expected:?} was to be found, but: {failure}").into()),
    }
}
