//! Trials of the lab's own traffic: whether it finds a break, how long it says that it was, and that it finds none where there is none.

use std::{
    net::SocketAddr,
    sync::PoisonError,
    time::{Duration, Instant},
};

use anyhow::{Context as _, Result, ensure};
use lab::stalls::play_again_after_stalls;
use lab::traffic::{Backend, Connections, Datagrams, Failure, Messages, Outcome};
use libtest_mimic::Trial;

use crate::lan::{B, Pair, switch, wait};

const PORT: u16 = 9100;
const PER_SECOND: u32 = 500;
const CUT: Duration = Duration::from_millis(400);

pub fn trials() -> Vec<Trial> {
    let trial = |name: &str, own: &'static str, test: fn(&str) -> Result<()>| {
        Trial::test(format!("traffic_{name}"), move || {
            let _beside_others = crate::MACHINE.read().unwrap_or_else(PoisonError::into_inner);
            let mut round = 0;
            let played = play_again_after_stalls(crate::TOLERATED, || {
                round += 1;
                test(&format!("{own}-{round}"))
            });
            played.map_err(crate::failed)
        })
    };
    vec![
        trial("finds_a_break_and_none_before_it", "-t1", finds_a_break),
        trial("tells_an_established_connection_from_a_new_one", "-t2", tells_established_from_new),
    ]
}

fn finds_a_break(suffix: &str) -> Result<()> {
    let mut pair = Pair::new(switch(), suffix)?;
    let backend = Backend::start(&pair.hosts[1], PORT)?;
    let to: SocketAddr = format!("{}:{PORT}", B.1).parse()?;
    let datagrams = Datagrams::start(&pair.hosts[0], to, PER_SECOND)?;
    let connections = Connections::start(&pair.hosts[0], to, PER_SECOND)?;
    let messages = Messages::start(&pair.hosts[0], to, 10, Duration::from_millis(20))?;
    let begun = Instant::now();
    wait("all three are answered", || {
        let enough = |outcome: Outcome| outcome.answered > 300;
        Ok(enough(datagrams.so_far()) && enough(connections.so_far()) && messages.so_far().answered > 100)
    })?;
    for before in [datagrams.so_far(), connections.so_far()] {
        ensure!(before.lost() == 0 && before.cut() == 0, "before the break: {}", before.told(begun));
    }
    let cut = Instant::now();
    pair.lan.set_link(pair.ports[1], false)?;
    std::thread::sleep(CUT);
    pair.lan.set_link(pair.ports[1], true)?;
    let lasted = cut.elapsed();
    let answered = datagrams.so_far().answered;
    wait("datagrams are answered again", || Ok(datagrams.so_far().answered > answered + 100))?;
    let answered = connections.so_far().answered;
    wait("connections are answered again", || Ok(connections.so_far().answered > answered + 100))?;

    let messages = messages.stop()?;
    ensure!(messages.ended.is_empty(), "TCP outlives a cable that is pulled for a moment: {messages:?}");
    ensure!(messages.slowest >= CUT / 2, "no message waited: {messages:?}");
    for outcome in [datagrams.stop()?, connections.stop()?] {
        let told = outcome.told(begun);
        let gap = outcome.gap.context("no gap")?;
        ensure!(gap.since + Duration::from_millis(100) > cut && gap.since < cut + lasted, "not then: {told}");
        // The first may just have got through; what follows the break waits for the machine.
        ensure!(gap.lasted > CUT * 3 / 4, "a shorter break: {told}");
        ensure!(outcome.lost() > 50 && outcome.begun == outcome.answered + outcome.lost() + outcome.cut(), "{told}");
        ensure!(outcome.failures.iter().all(|(at, _)| *at + Duration::from_millis(100) > cut), "before: {told}");
        ensure!(outcome.ways.len() == 1, "one host answered: {:?}", outcome.ways);
    }
    ensure!(backend.losses()?.connections == 0, "the server was too slow: {:?}", backend.losses()?);
    Ok(())
}

/// A host that has no server refuses; one whose server goes resets.
fn tells_established_from_new(suffix: &str) -> Result<()> {
    let pair = Pair::new(switch(), suffix)?;
    let to: SocketAddr = format!("{}:{PORT}", B.1).parse()?;
    let refused = Connections::start(&pair.hosts[0], to, PER_SECOND)?;
    wait("connections are refused", || Ok(refused.so_far().failed.contains_key(&Failure::Refused)))?;
    let refused = refused.stop()?;
    ensure!(refused.answered == 0 && refused.lost() == refused.begun && refused.cut() == 0, "{refused:?}");

    let backend = Backend::start(&pair.hosts[1], PORT)?;
    let messages = Messages::start(&pair.hosts[0], to, 10, Duration::from_millis(20))?;
    wait("messages are answered", || Ok(messages.so_far().opened == 10 && messages.so_far().answered > 50))?;
    drop(backend);
    wait("connections are reset", || Ok(messages.so_far().ended_by(Failure::Reset) == 10))?;
    wait("new ones are refused", || Ok(messages.so_far().ended_by(Failure::Refused) > 0))
}
