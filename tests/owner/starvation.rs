//! Speakers that get no processor time when they need it: by fits and starts, and because the machine is busy with others.

use std::net::Ipv4Addr;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use l2lb::api::FailoverClass;
use lab::process::{Process, run};
use nix::sys::signal::Signal;

use crate::books::{Books, metric};
use crate::site::{Place, Site};
use crate::voices::{TIE, longest_under_way, ms};

const EACH: Duration = Duration::from_millis(10);
/// How long the owner stands still, each time, in milliseconds: around the fences, and around the time of a takeover.
const STOPS: [u64; 10] = [300, 550, 120, 700, 400, 620, 480, 650, 150, 520];
const GO: Duration = Duration::from_millis(120);
const BUSY: Duration = Duration::from_secs(7);
/// Who gets no processor time may take so long from its first probe to its claim.
const ASKING: Duration = Duration::from_secs(2);
/// Programs that want all of the processor that the speakers share with them.
const HOGS: usize = 3;

pub fn starved(books: &Books) -> Result<()> {
    let mut site = Site::new(books, 3)?;
    let classes = [FailoverClass::Standard, FailoverClass::Fast, FailoverClass::Standard, FailoverClass::Fast];
    let vips: Vec<_> = (0..).zip(classes).map(|(index, class)| (class, site.vip(index))).collect();
    let addresses: Vec<Ipv4Addr> = vips.iter().map(|(_, vip)| *vip).collect();
    let asker = site.host("asker")?;
    site.settle(&vips, &[1])?;
    let _asking = asker.ask(addresses.clone(), None, EACH)?;
    let by_fits_and_starts = Instant::now();
    for stop in STOPS {
        let owner = owner(&site, addresses[0])?;
        site.signal(owner, Signal::SIGSTOP)?;
        // The stops are what is tested.
        std::thread::sleep(Duration::from_millis(stop));
        site.signal(owner, Signal::SIGCONT)?;
        std::thread::sleep(GO);
    }
    judge(&site, &addresses, by_fits_and_starts, "stopped for 120 to 700 ms, ten times")?;

    let cpu = last_cpu()?;
    let starving = Instant::now();
    {
        let _hogs = (0..HOGS).map(|number| hog(&site, &cpu, number)).collect::<Result<Vec<_>>>()?;
        // One is left alone: it takes over.
        for place in [0, 1] {
            let pid = site.pid(place)?.to_string();
            run(Command::new("taskset").args(["-a", "-c", "-p", &cpu, &pid]))?;
            // Runs only when nobody else wants to, as far as the kernel keeps to it.
            run(Command::new("chrt").args(["-a", "--idle", "-p", "0", &pid]))?;
        }
        std::thread::sleep(BUSY);
    }
    judge(&site, &addresses, starving, "without processor time for 7 s")?;
    let fenced = |place| metric(&site.metrics(place)?, "l2lb_speaker_frames_dropped_total{reason=\"fenced\"}");
    let fenced: Vec<u64> = site.places().map(fenced).collect::<Result<_>>()?;
    println!("requests that met the fence, by node: {fenced:?}");
    ensure!(fenced.iter().sum::<u64>() > 0, "no request met the fence: the owner was never late");
    Ok(())
}

/// There is one voice for each address, and there is one when it is over.
fn judge(site: &Site<'_>, vips: &[Ipv4Addr], since: Instant, what: &str) -> Result<()> {
    let over = Instant::now();
    for vip in vips {
        site.wait_for_answers(*vip, over, 20)?;
        let turns = site.turns(*vip)?;
        let (words, probes) = (site.words(*vip)?, site.probes(*vip)?);
        for turn in turns.iter().filter(|turn| turn.from > since) {
            // Of two whose claims crossed, the one that stays says so again without asking.
            let before = turn.from.checked_sub(TIE + ASKING).context("the clock has just begun")?;
            let recently = |at: Instant| at > before && at < turn.from;
            let stayed = words.iter().any(|word| word.by == turn.by && word.is_claim() && recently(word.at));
            let asked = probes.iter().filter(|(at, by)| *by == turn.by && recently(*at)).count();
            ensure!(
                stayed || asked >= 2,
                "node {} claimed {vip} and had asked {asked} times\n{}",
                turn.by + 1,
                site.report()
            );
        }
        let answers: Vec<Instant> = words.iter().map(|word| word.at).filter(|at| *at > since).collect();
        let longest = answers.windows(2).map(|pair| ms(pair[0], pair[1])).max().unwrap_or_default();
        let moved = turns.iter().filter(|turn| turn.from > since).count();
        println!(
            "{what}: {vip} moved {moved} times, longest silence {longest} ms, {} answers, at most {} ms after another's claim",
            answers.len(),
            longest_under_way(&words).as_millis()
        );
    }
    Ok(())
}

/// Who spoke last.
fn owner(site: &Site<'_>, vip: Ipv4Addr) -> Result<Place> {
    Ok(site.words(vip)?.last().context("nobody spoke")?.by)
}

fn hog(site: &Site<'_>, cpu: &str, number: usize) -> Result<Process> {
    let mut command = Command::new("taskset");
    command.args(["-c", cpu, "sh", "-c", "while :; do :; done"]);
    let log = site.books.logs().join(format!("hog-{number}.log"));
    Process::spawn("a program that wants all of the processor", &mut command, &log)
}

/// The last processor that this process may use.
fn last_cpu() -> Result<String> {
    let status = std::fs::read_to_string(Path::new("/proc/self/status"))?;
    let list =
        status.lines().find_map(|line| line.strip_prefix("Cpus_allowed_list:")).context("no list of processors")?;
    let last = list.rsplit([',', '-']).next().context("no processor")?;
    Ok(last.trim().to_owned())
}
