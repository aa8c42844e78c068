//! The controller as a process against a real API server: when requests fail in every way that they can, with several
//! controllers of which one dies, stops or is cut off, and with five thousand Services.
//!
//! The trials share one API server and run in their order; each begins with no Service. Only the nodes are not there: their
//! speakers are [`speakers`] of this test. Faults are made by a [`proxy`] before the API server.

mod faults;
mod leaders;
mod proxy;
mod scale;
mod speakers;
mod world;

use std::{
    sync::{Arc, Mutex, PoisonError},
    time::Instant,
};

use anyhow::{Context as _, Result};
use lab::kit::{self, Kit};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::world::{Shared, World};

/// What a trial does.
type Check = fn(&World) -> Result<()>;

const TRIALS: [(&str, Check); 13] = [
    ("conflicts", faults::conflicts),
    ("too_many_requests", faults::too_many_requests),
    ("server_errors", faults::server_errors),
    ("lost_answers", faults::lost_answers),
    ("no_answers", faults::no_answers),
    ("watches_that_break", faults::watches_that_break),
    ("watches_that_are_gone", faults::watches_that_are_gone),
    ("late_and_old_news", faults::late_and_old_news),
    ("connection_refused", faults::connection_refused),
    ("everything_at_random", faults::everything_at_random),
    ("of_two_controllers_one_leads", leaders::one_leads),
    ("five_thousand_services", scale::five_thousand_services),
    ("a_restart_with_five_thousand_services_writes_nothing", scale::restart),
];

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let kit = if arguments.list { None } else { Some(kit::enter(None)?) };
    let shared: Shared = Arc::new(Mutex::new(None));
    let trials = TRIALS.into_iter().map(|(name, check)| {
        let (shared, kit) = (shared.clone(), kit.clone());
        Trial::test(name, move || run(&shared, kit.as_ref(), check).map_err(|error| Failed::from(format!("{error:#}"))))
    });
    let conclusion = libtest_mimic::run(&arguments, trials.collect());
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit()
}

fn run(shared: &Shared, kit: Option<&Kit>, check: Check) -> Result<()> {
    let mut world = shared.lock().unwrap_or_else(PoisonError::into_inner);
    if world.is_none() {
        *world = Some(World::start(kit.context("no kit")?)?);
    }
    let start = Instant::now();
    let checked = check(world.as_ref().context("no API server")?);
    println!("took {:.1} s", start.elapsed().as_secs_f64());
    checked
}
