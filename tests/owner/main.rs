//! The owner protocol with real processes, kernels and frames: speakers on LANs of network namespaces, judged by what crosses the
//! switch.
//!
//! There is one API server. Each scenario has a LAN of its own with its own nodes ([`site::Site`]), and writes the
//! VirtualIPs itself ([`books::Books`]), so that it knows who is named, and most of them play at the same time. No controller
//! runs and nobody corrects the books: what the speakers do, they do by themselves. Only the last scenario has a controller. Who
//! answers, from which port and in which form is read off the recorded frames ([`voices`]), never asked from a speaker.

mod books;
mod conflict;
mod crash;
mod failover;
mod ghost;
mod hosts;
mod lease;
mod loss;
mod mass;
mod partition;
mod pause;
mod site;
mod starvation;
mod voices;

use std::sync::{Arc, Mutex, PoisonError, RwLock};
use std::time::Instant;

use anyhow::{Context as _, Result};
use lab::kit::{self, Kit};
use lab::stalls::play_again_after_stalls;
use libtest_mimic::{Arguments, Failed, Trial};

use crate::books::Books;
use crate::site::CALM;

/// Enough for all scenarios that may play beside each other: they wait, most of the time.
const SIDE_BY_SIDE: usize = 16;

/// What a trial does.
type Scenario = fn(&Books) -> Result<()>;

/// Those that load the machine, or need the API server for themselves.
const ALONE: [(&str, Scenario); 3] = [
    ("a_thousand_addresses_of_a_dead_node_are_back_at_a_measured_pace", mass::thousand),
    ("an_owner_that_is_short_of_processor_time_never_answers_beside_another", starvation::starved),
    ("when_all_that_had_a_part_are_dead_the_controller_names_another_by_its_leases", lease::all_dead),
];

const BESIDE: [(&str, Scenario); 11] = [
    ("an_address_that_a_foreign_host_uses_is_left_alone_and_claimed_when_it_is_free", conflict::before),
    ("an_owner_defends_itself_rarely_and_says_against_whom", conflict::after),
    ("after_a_partition_there_is_one_owner_and_every_cache_is_right", partition::with_api_server),
    ("after_a_partition_without_api_server_too", partition::without_api_server),
    ("an_owner_that_slept_answers_nothing_when_it_wakes", pause::slept),
    ("a_node_that_returns_takes_nothing_back", failover::returning),
    ("when_owner_and_first_standby_die_together_the_second_takes_over", failover::two_at_once),
    ("an_address_that_alone_goes_unanswered_is_taken_over_alone", ghost::single),
    ("what_a_switch_answers_for_a_dead_owner_is_not_believed", ghost::suppression),
    ("a_lan_that_loses_and_delays_frames_makes_nobody_doubt_an_owner_that_lives", loss::lossy),
    ("a_speaker_that_is_killed_costs_no_datagram_and_asks_before_it_speaks", crash::killed),
];

/// Held for reading by scenarios that may play beside each other, for writing by those that play alone.
static MACHINE: RwLock<()> = RwLock::new(());

fn main() -> Result<()> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = arguments.test_threads.or(Some(SIDE_BY_SIDE));
    let kit = if arguments.list { None } else { Some(kit::enter(None)?) };
    let shared: Arc<Mutex<Option<Arc<Books>>>> = Arc::default();
    let trial = |name: &str, scenario: Scenario, alone: bool| {
        let (shared, kit) = (shared.clone(), kit.clone());
        Trial::test(name, move || {
            let (_alone, _beside) = if alone {
                (Some(MACHINE.write().unwrap_or_else(PoisonError::into_inner)), None)
            } else {
                (None, Some(MACHINE.read().unwrap_or_else(PoisonError::into_inner)))
            };
            play(&shared, kit.as_ref(), scenario).map_err(|error| Failed::from(format!("{error:#}")))
        })
    };
    let judge = Trial::test("the_judge_finds_second_voices_and_nothing_else", || {
        voices::trial().map_err(|error| Failed::from(format!("{error:#}")))
    });
    let beside = BESIDE.into_iter().map(|(name, scenario)| trial(name, scenario, false));
    let alone = ALONE.into_iter().map(|(name, scenario)| trial(name, scenario, true));
    let conclusion = libtest_mimic::run(&arguments, [judge].into_iter().chain(beside).chain(alone).collect());
    drop(shared.lock().unwrap_or_else(PoisonError::into_inner).take());
    conclusion.exit()
}

fn play(shared: &Mutex<Option<Arc<Books>>>, kit: Option<&Kit>, scenario: Scenario) -> Result<()> {
    let books = {
        let mut books = shared.lock().unwrap_or_else(PoisonError::into_inner);
        if books.is_none() {
            *books = Some(Arc::new(Books::open(kit.context("no kit while listing")?)?));
        }
        books.clone().context("no API server")?
    };
    let start = Instant::now();
    // Second voices and frames that lie are not played again: see `lab::stalls::NoExcuse`.
    let played = play_again_after_stalls(CALM, || scenario(&books).inspect_err(|error| println!("{error:#}")));
    println!("took {:.1} s", start.elapsed().as_secs_f64());
    played
}
