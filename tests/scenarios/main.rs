//! The field reports S0, S1 and S2, and the rule that follows from them ([`identity`]), as tests on a LAN of network namespaces with
//! the user-space switch.
//!
//! Each scenario is one function over an [`announcer::Announcer`]: something that makes a node answer for a virtual IP
//! and can move it. It runs against a correct minimal responder, against three that are wrong in one way each and must
//! be found out, and against l2lb itself on a whole cluster. No scenario finds everything (a host's cache does not mind a
//! responder that is silent, an ageing switch does not mind a move): what each finds is the table in [`bare_trials`].

mod announcer;
mod failover;
mod field;
mod identity;
mod lan;
mod product;
mod responder;
mod s0;
mod s1;
mod s2;
mod sandbox;
mod traffic;

use std::net::IpAddr;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Duration;

use anyhow::{Context as _, Result, anyhow, bail};
use lab::kit::Kit;
use lab::stalls::{NoExcuse, play_again_after_stalls};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::announcer::{Announcer, Failure, Kind};
use crate::field::Field;
use crate::product::Product;
use crate::responder::{Fault, Responders};

type Scenario = fn(&Field<'_>, &mut dyn Announcer) -> Result<(), Failure>;

const SCENARIOS: [(&str, Scenario); 4] = [
    ("s0_ageing_switch", s0::run),
    ("s1_warm_client", s1::run),
    ("s2_gateway_port", s2::run),
    ("id_frame_source", identity::run),
];

/// Held for reading by trials that may run beside each other, for writing by those that load the machine.
static MACHINE: RwLock<()> = RwLock::new(());
/// A machine that stood still for less has changed no outcome: the shortest time that is judged is [`s1::AT_ONCE`].
const TOLERATED: Duration = Duration::from_millis(100);

fn main() -> ExitCode {
    if let Some(order) = std::env::var_os(sandbox::PROBE) {
        return sandbox::probe(&order);
    }
    let arguments = Arguments::from_args();
    match trials(&arguments) {
        Ok(trials) => libtest_mimic::run(&arguments, trials).exit_code(),
        Err(error) => {
            eprintln!("error: {error:#}");
            ExitCode::FAILURE
        }
    }
}

fn trials(arguments: &Arguments) -> Result<Vec<Trial>> {
    // Listing needs no sandbox.
    let kit = if arguments.list { None } else { Some(lab::kit::enter(None)?) };
    let trials = sandbox::trials()
        .into_iter()
        .chain(lan::trials())
        .chain(traffic::trials())
        .chain(bare_trials())
        .chain(product_trials(kit));
    Ok(trials.collect())
}

/// What a trial does with the cluster.
type Play = Box<dyn Fn(&mut Product) -> Result<()> + Send>;

/// Every scenario against l2lb. They share a cluster, which starts with the first, and anew after one that failed.
fn product_trials(kit: Option<Kit>) -> Vec<Trial> {
    let (kit, product) = (Arc::new(kit), Arc::new(Mutex::new(None)));
    let trial = |name: String, play: Play| {
        let (kit, product) = (kit.clone(), product.clone());
        Trial::test(name, move || {
            let _alone = MACHINE.write().unwrap_or_else(PoisonError::into_inner);
            let mut product = product.lock().unwrap_or_else(PoisonError::into_inner);
            let in_order = |product: Option<Product>| match product {
                Some(running) => Ok(running),
                None => Product::start(kit.as_ref().as_ref().context("no cluster while listing")?),
            };
            // Before the stalls count.
            let mut next = Some(in_order(product.take()).map_err(failed)?);
            let played = play_again_after_stalls(TOLERATED, || {
                let mut running = in_order(next.take())?;
                // A cluster that a trial left in its midst is nothing to go on with.
                play(&mut running).map_err(|error| running.explain(&error))?;
                Ok(running)
            });
            *product = Some(played.map_err(failed)?);
            Ok(())
        })
    };
    let scenario = |((name, scenario), number): ((&str, Scenario), u8), is_ipv6: bool| {
        let vip = if is_ipv6 {
            IpAddr::from([0x2001, 0xdb8, 1, 0, 0, 0, 2, u16::from(number)])
        } else {
            IpAddr::from([192, 0, 2, number])
        };
        let family = if is_ipv6 { "_ipv6" } else { "" };
        let service = format!("{name}{family}").replace('_', "-");
        let play = move |product: &mut Product| judge(product.play(&service, vip, scenario), None);
        trial(format!("{name}_passes_l2lb{family}"), Box::new(play))
    };
    let failover = |(class, vip, at_most): (&'static str, IpAddr, Duration)| {
        let play = move |product: &mut Product| failover::run(product, class, vip, at_most);
        let family = if vip.is_ipv6() { "_ipv6" } else { "" };
        trial(format!("failover_{}_without_api_server{family}", class.to_lowercase()), Box::new(play))
    };
    let ipv4 = SCENARIOS.into_iter().zip(80..).map(|numbered| scenario(numbered, false));
    // The switch's gateway knows no IPv6.
    let ipv6 = SCENARIOS.into_iter().zip(80..).filter(|((name, _), _)| *name != "s2_gateway_port");
    let ipv6: Vec<Trial> = ipv6.map(|numbered| scenario(numbered, true)).collect();
    ipv4.chain(ipv6).chain(failover::CLASSES.into_iter().map(failover)).collect()
}

/// Every scenario against every responder of this test, with what must come out.
fn bare_trials() -> Vec<Trial> {
    const PASSES: Option<Kind> = None;
    let expected: [[Option<Kind>; 4]; 4] = [
        // correct, foreign sender, silent, unannounced move
        [PASSES, Some(Kind::Flooded), Some(Kind::Flooded), PASSES],
        [PASSES, Some(Kind::Flooded), PASSES, Some(Kind::NotAnnounced)],
        [PASSES, Some(Kind::WrongTriple), PASSES, Some(Kind::NotFollowed)],
        [PASSES, Some(Kind::Lied), PASSES, PASSES],
    ];
    let faults = [
        ("correct_responder", Fault::None),
        ("foreign_sender", Fault::ForeignSender),
        ("silent", Fault::Silent),
        ("unannounced_move", Fault::UnannouncedMove),
    ];
    let mut trials = Vec::new();
    for ((scenario_name, scenario), expected) in SCENARIOS.into_iter().zip(expected) {
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
    let _beside_others = MACHINE.read().unwrap_or_else(PoisonError::into_inner);
    let mut round = 0;
    let played = play_again_after_stalls(TOLERATED, || {
        round += 1;
        let field = field::Bare::new(&format!("{suffix}-{round}"))?;
        let mut responders = Responders::start(&field.nodes, fault)?;
        let result = scenario(&field.view(), &mut responders);
        responders.stop()?;
        judge(result, expected)
    });
    played.map_err(failed)
}

fn failed(error: anyhow::Error) -> Failed {
    format!("{error:#}").into()
}

/// Compares what a scenario found with what it must find.
fn judge(result: Result<(), Failure>, expected: Option<Kind>) -> Result<()> {
    match (result, expected) {
        (Ok(()), None) => Ok(()),
        (Ok(()), Some(expected)) => bail!("passed, though {expected:?} was to be found"),
        (Err(Failure::Finding(finding)), Some(expected)) if finding.kind == expected => Ok(()),
        (Err(Failure::Finding(finding)), None) if finding.kind == Kind::Lied => {
            Err(NoExcuse(Failure::Finding(finding).to_string()).into())
        }
        (Err(failure), None) => Err(anyhow!("{failure}")),
        (Err(failure), Some(expected)) => bail!("{expected:?} was to be found, but: {failure}"),
    }
}
