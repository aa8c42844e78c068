//! The outside: boots the virtual machines, and turns what they say into the results of trials.

use std::{
    collections::BTreeMap,
    env,
    path::{Path, PathBuf},
    process::ExitCode,
    sync::{Arc, Mutex, PoisonError},
    time::{Duration, Instant},
};

use anyhow::{Context as _, Error, Result, anyhow};
use lab::{
    sandbox,
    stalls::play_again_after_stalls,
    vm::{Clock, Initramfs, Kernel, Link, Machine, Vm},
};
use libtest_mimic::{Arguments, Failed, Trial};

use crate::{ALONE, BESIDE, Check, pair};

/// Names the trials that are played inside, separated by commas.
pub const WANTED: &str = "L2LB_TRIALS";
/// Where the speaker is inside.
pub const SPEAKER: &str = "/bin/l2lb";
/// Of one virtual machine: its trials take some 25 s of a processor's time, which a busy machine may not have at once.
const DEADLINE: Duration = Duration::from_secs(300);
/// What the virtual machine's kernel needs for the trials; the last two are for its own NIC.
const MODULES: [&str; 6] = ["veth", "bridge", "bonding", "8021q", "virtio_pci", "virtio_net"];
/// A line that begins so is the result of a trial; failures follow, one line each, and end with the last of these.
const RESULT: &str = "@result ";
const MORE: &str = "@| ";

/// How a trial ended.
pub struct Said<'a> {
    /// Its name.
    pub name: &'a str,
    /// How long it took, by the virtual machine's clock.
    pub seconds: f64,
    /// What went wrong.
    pub failure: Option<String>,
}

impl Said<'_> {
    /// Says it to the outside.
    pub fn print(&self) {
        for line in self.failure.iter().flat_map(|failure| failure.lines()) {
            println!("{MORE}{line}");
        }
        let word = if self.failure.is_some() { "failed" } else { "ok" };
        println!("{RESULT}{word} {} {:.1}", self.name, self.seconds);
    }
}

/// What is known of each trial: how it ended, and what it printed.
type Results = BTreeMap<String, (Result<(), String>, String)>;
/// Of the trials that are played together: nothing is known before the first of them asks.
type Shared = Arc<Mutex<Option<Result<Results, String>>>>;
/// Plays the named ones.
type Play = fn(&Kernel, &str) -> Result<Results>;

/// Runs the trials, as libtest does.
pub fn main() -> Result<ExitCode> {
    let mut arguments = Arguments::from_args();
    arguments.test_threads = Some(1);
    let mut kernel = None;
    if !arguments.list {
        match Kernel::get()? {
            Ok(found) => kernel = Some(found),
            Err(reason) => {
                println!("SKIPPED bonds and VLANs: no virtual machine here: {}", reason.replace('\n', "; "));
                return Ok(ExitCode::SUCCESS);
            }
        }
        sandbox::enter()?;
    }
    let mut trials = Vec::new();
    let plays: [(&[(&'static str, Check)], Play); 2] = [(&ALONE, play_alone), (&BESIDE, play_beside)];
    for (group, play) in plays {
        let filtered_out = |name: &str| arguments.is_filtered_out(&Trial::test(name, || Ok(())));
        let wanted = group.iter().map(|(name, _)| *name).filter(|name| !filtered_out(name));
        let wanted = wanted.collect::<Vec<_>>().join(",");
        let shared: Shared = Arc::default();
        for (name, _) in group {
            let (shared, kernel, wanted) = (shared.clone(), kernel.clone(), wanted.clone());
            trials.push(Trial::test(*name, move || {
                let mut known = shared.lock().unwrap_or_else(PoisonError::into_inner);
                let known = known.get_or_insert_with(|| {
                    let kernel = kernel.ok_or_else(|| "no virtual machine while listing".to_owned())?;
                    play(&kernel, &wanted).map_err(|error| format!("{error:#}"))
                });
                result_of(name, known)
            }));
        }
    }
    Ok(libtest_mimic::run(&arguments, trials).exit_code())
}

fn result_of(name: &str, known: &Result<Results, String>) -> Result<(), Failed> {
    let (result, printed) = known.as_ref()?.get(name).ok_or("the virtual machine ended before this was played")?;
    print!("{printed}");
    Ok(result.clone()?)
}

/// All in one virtual machine without a network, which does not notice how busy this machine is.
fn play_alone(kernel: &Kernel, wanted: &str) -> Result<Results> {
    let folder = folder()?;
    let initramfs = initramfs(kernel, &folder)?;
    let machine = Machine {
        name: "alone",
        kernel,
        initramfs: &initramfs,
        folder: &folder,
        environment: &[(WANTED, wanted)],
        clock: Clock::Instructions,
        link: None,
    };
    read(Vm::start(&machine)?, wanted, |order| Err(anyhow!("the virtual machine said {order:?}")))
}

/// In one of two virtual machines, which live in real time: again, when this machine stood still.
fn play_beside(kernel: &Kernel, wanted: &str) -> Result<Results> {
    let mut ended = None;
    let played = play_again_after_stalls(pair::STALL, || {
        ended = None;
        let results = ended.insert(play_pair(kernel, wanted)?);
        results.values().try_for_each(|(result, _)| result.clone().map_err(Error::msg))
    });
    // What failed inside is told with what it printed.
    ended.map_or_else(|| played.map(|()| Results::new()), Ok)
}

/// In one of two virtual machines that share a LAN, with the other one as an ear and a mouth.
fn play_pair(kernel: &Kernel, wanted: &str) -> Result<Results> {
    let folder = folder()?;
    // Left by the pair before, if any: this one's says that it can be plugged in.
    if let Err(error) = std::fs::remove_file(folder.join("lan"))
        && error.kind() != std::io::ErrorKind::NotFound
    {
        return Err(error).context("the cable of the pair before");
    }
    let initramfs = initramfs(kernel, &folder)?;
    let machine = |name, wanted, listens, mac: &str| {
        let link = Link { path: folder.join("lan"), listens, mac: mac.to_owned() };
        Vm::start(&Machine {
            name,
            kernel,
            initramfs: &initramfs,
            folder: &folder,
            environment: &[(WANTED, wanted)],
            clock: Clock::Real,
            link: Some(link),
        })
    };
    let mut other = machine("other", pair::OTHER, true, pair::JOINTS[0])?;
    other.wait_until_linked()?;
    let node = machine("node", wanted, false, pair::JOINTS[1])?;
    let results = read(node, wanted, |order| match order {
        pair::PAUSE => other.pause(),
        pair::RESUME => other.resume(),
        _ => Err(anyhow!("the virtual machine said {order:?}")),
    });
    results.map_err(|error| error.context(other.said()))
}

/// Reads what a virtual machine says, to its end.
fn read(mut vm: Vm, wanted: &str, mut obey: impl FnMut(&str) -> Result<()>) -> Result<Results> {
    let start = Instant::now();
    let (mut results, mut printed, mut failure) = (Results::new(), String::new(), String::new());
    while let Some(line) = vm.next_line(start + DEADLINE).with_context(|| format!("{printed}{failure}"))? {
        if let Some(more) = line.strip_prefix(MORE) {
            failure.push_str(&format!("{more}\n"));
        } else if let Some(words) = line.strip_prefix(RESULT) {
            let [outcome, name, seconds] = *words.split(' ').collect::<Vec<_>>() else {
                return Err(anyhow!("the virtual machine said {line:?}"));
            };
            printed.push_str(&format!("took {seconds} s of the virtual machine's time\n"));
            let failure = std::mem::take(&mut failure);
            let result = if outcome == "ok" { Ok(()) } else { Err(failure) };
            results.insert(name.to_owned(), (result, std::mem::take(&mut printed)));
        } else if line.starts_with('@') {
            obey(&line)?;
        } else {
            printed.push_str(&format!("{line}\n"));
        }
    }
    println!("the virtual machine ran for {:.1} s", start.elapsed().as_secs_f64());
    if wanted.split(',').any(|name| !results.contains_key(name)) {
        return Err(anyhow!("the virtual machine ended early. {printed}{failure}\n{}", vm.words()));
    }
    Ok(results)
}

/// A folder that is gone with the sandbox.
fn folder() -> Result<PathBuf> {
    let folder = PathBuf::from("/run/machine");
    std::fs::create_dir_all(&folder).context("a folder for the virtual machine")?;
    Ok(folder)
}

fn initramfs(kernel: &Kernel, folder: &Path) -> Result<PathBuf> {
    let path = folder.join("initramfs");
    let mut initramfs = Initramfs::new(kernel)
        .program("init", &env::current_exe().context("this program")?)?
        .program(SPEAKER.trim_start_matches('/'), Path::new(env!("CARGO_BIN_EXE_l2lb")))?
        .tool("ip")?
        .tool("nsenter")?;
    for module in MODULES {
        initramfs = initramfs.module(module)?;
    }
    initramfs.write(&path)?;
    Ok(path)
}
