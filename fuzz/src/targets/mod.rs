//! The fuzzed functions. Each takes any octets, and panics if what is promised does not hold.
//!
//! The fuzzer runs them (`make fuzz`), and `tests/fuzzing.rs` plays the committed inputs again without it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

pub mod filter;
pub mod frame;
pub mod owner;
pub mod station;
mod wires;

use std::fmt::Debug;

/// A target's name, and its function.
pub type Target = (&'static str, fn(&[u8]));

/// All of them.
pub const ALL: [Target; 4] =
    [("filter", filter::run), ("frame", frame::run), ("owner", owner::run), ("station", station::run)];

/// What an input told. If a promise breaks it is printed (not by the fuzzer, which ends at once): the octets say little.
struct History<Step: Debug>(Vec<Step>);

impl<Step: Debug> Drop for History<Step> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            for step in &self.0 {
                eprintln!("{step:?}");
            }
        }
    }
}
