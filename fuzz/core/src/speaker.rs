//! As `src/speaker/mod.rs`, without the edges.

#[path = "../../../src/speaker/bpf.rs"]
pub mod bpf;
#[path = "../../../src/speaker/drop_reason.rs"]
pub mod drop_reason;
#[path = "../../../src/speaker/filter/mod.rs"]
pub mod filter;
#[path = "../../../src/speaker/monitor.rs"]
pub mod monitor;
#[path = "../../../src/speaker/owner/mod.rs"]
pub mod owner;
#[path = "../../../src/speaker/peers.rs"]
pub mod peers;
#[path = "../../../src/speaker/schedule.rs"]
pub mod schedule;
#[path = "../../../src/speaker/search.rs"]
pub mod search;
#[path = "../../../src/speaker/station/mod.rs"]
pub mod station;
#[path = "../../../src/speaker/triage.rs"]
pub mod triage;
#[path = "../../../src/speaker/wire/mod.rs"]
pub mod wire;
