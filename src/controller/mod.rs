//! The controller: the only one that allocates addresses and that chooses the node for each.
//!
//! ```text
//!  watch events --> view --> index --> change --> writer --> API server
//!                  (door)      |  placement, ipam   ^
//!                              +--- outcome --------+
//! ```
//!
//! Pure: [`view`] (what is kept of an object), [`request`] (what a Service asks for), [`index`] (folds events into state and
//! yields the writes that are wanted), [`eligibility`] and [`placement`] (which node), [`liveness`] (which speakers live), [`conditions`] (the
//! words), [`change`] (the writes). Edge: `watches`, `run` (one task that owns the index), [`leadership`] (which controller decides),
//! [`writer`] (the only holder of the client that writes), `metrics`.

pub mod change;
pub mod conditions;
pub mod eligibility;
pub mod index;
pub mod leadership;
pub mod liveness;
mod metrics;
pub mod placement;
pub mod request;
mod run;
pub mod view;
mod watches;
pub mod writer;

pub use run::{Args, Controller};
