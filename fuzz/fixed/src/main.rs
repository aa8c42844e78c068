//! A look beyond the kept inputs that is the same on each machine: each target plays so many, first the kept ones, and then
//! what is made by changing those, all from one seed. The fuzzer goes further, but no two of its runs are alike, whatever its
//! seed: what it tries next follows from what the program did, down to the order in its hash maps.
//!
//! Usage: `fixed RUNS [TARGET...]`, in `fuzz/`. What breaks a promise is printed, and written to the target
//! folder, not to the kept inputs: the next run is the same again.

#[path = "../../src/targets/mod.rs"]
mod targets;

use std::{
    env, fs, io, panic,
    path::{Path, PathBuf},
    process::ExitCode,
};

const SEED: u64 = 1;
const LONGEST: usize = 2048;

/// SplitMix64 (Steele, Lea and Flood, 2014).
struct Dice(u64);

impl Dice {
    fn next(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mixed = (self.0 ^ (self.0 >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        let mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// Less than `end`, or 0.
    fn below(&mut self, end: usize) -> usize {
        (self.next() % end.max(1) as u64) as usize
    }

    /// Somewhere in `octets`, seldom long.
    fn part<'a>(&mut self, octets: &'a [u8]) -> &'a [u8] {
        let start = self.below(octets.len());
        let longest = if self.below(8) == 0 { LONGEST } else { 24 };
        let length = self.below(longest.min(octets.len() - start) + 1);
        &octets[start..start + length]
    }

    /// One input, made of the kept ones.
    fn input(&mut self, kept: &[Vec<u8>]) -> Vec<u8> {
        let mut input = kept[self.below(kept.len())].clone();
        for _ in 0..=self.below(8) {
            let at = self.below(input.len());
            match self.below(7) {
                0 => input.iter_mut().skip(at).take(1).for_each(|octet| *octet = self.next() as u8),
                1 => input.iter_mut().skip(at).take(1).for_each(|octet| *octet ^= 1 << self.below(8)),
                2 => drop(input.splice(at..at, self.next().to_be_bytes().into_iter().take(1 + self.below(8)))),
                3 => {
                    let length = self.part(&input[at..]).len();
                    input.drain(at..at + length);
                }
                4 => {
                    let part = self.part(&input).to_vec();
                    input.splice(at..at, part);
                }
                5 => {
                    let other = &kept[self.below(kept.len())];
                    let part = self.part(other);
                    input.splice(at..at, part.iter().copied());
                }
                _ => {
                    let other = &kept[self.below(kept.len())];
                    input.truncate(at);
                    input.extend(&other[self.below(other.len())..]);
                }
            }
        }
        input.truncate(LONGEST);
        input
    }
}

/// In the order of their names: that in which a folder lists them is another one on each machine.
fn kept(target: &str) -> io::Result<Vec<Vec<u8>>> {
    let mut paths = Vec::new();
    for folder in ["corpus", "regressions"] {
        let folder = Path::new(folder).join(target);
        if folder.exists() {
            for file in fs::read_dir(folder)? {
                paths.push(file?.path());
            }
        }
    }
    paths.sort();
    if paths.is_empty() {
        return Err(io::Error::other(format!("corpus/{target} is empty or not here: run this in fuzz/")));
    }
    paths.iter().map(fs::read).collect()
}

fn play(name: &str, run: fn(&[u8]), runs: usize) -> io::Result<bool> {
    let kept = kept(name)?;
    let mut dice = Dice(SEED);
    let mut octets = 0;
    for number in 0..runs {
        let input = if number < kept.len() { kept[number].clone() } else { dice.input(&kept) };
        octets += input.len();
        if panic::catch_unwind(|| run(&input)).is_err() {
            let folder =
                PathBuf::from(env::var_os("CARGO_TARGET_DIR").unwrap_or_else(|| "target".into())).join("found");
            let path = folder.join(format!("{name}-run-{number}"));
            fs::create_dir_all(&folder)?;
            fs::write(&path, &input)?;
            let hex: String = input.iter().map(|octet| format!("{octet:02x}")).collect();
            println!(
                "{name}: run {number} breaks a promise, see above. The input is {}, to be kept in fuzz/regressions/{name}: {hex}",
                path.display()
            );
            return Ok(false);
        }
    }
    println!("{name}: {runs} inputs of {octets} octets, made of {}, and none breaks a promise", kept.len());
    Ok(true)
}

fn main() -> io::Result<ExitCode> {
    let mut words = env::args().skip(1);
    let Some(runs) = words.next().and_then(|runs| runs.parse().ok()) else {
        println!("How many inputs for each target? As in: fixed 100000");
        return Ok(ExitCode::FAILURE);
    };
    let wanted: Vec<String> = words.collect();
    if let Some(unknown) = wanted.iter().find(|wanted| targets::ALL.iter().all(|(name, _)| name != wanted)) {
        println!("There is no target {unknown}.");
        return Ok(ExitCode::FAILURE);
    }
    let mut sound = true;
    for (name, run) in targets::ALL {
        if wanted.is_empty() || wanted.iter().any(|wanted| wanted == name) {
            sound &= play(name, run, runs)?;
        }
    }
    Ok(if sound { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
