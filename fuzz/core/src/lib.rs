//! The pure part of the speaker without the rest of the crate, so that a fuzzer is built in seconds: the same source files,
//! under the same name. `tests/fuzzing.rs` plays the same inputs against the whole crate.
#![allow(missing_docs)]

pub mod api;
pub mod speaker;
