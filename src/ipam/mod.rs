//! Which address: ranges as an administrator writes them, pools, and the allocator that hands addresses out.
//!
//! Pure: no clock, no I/O, nothing of the rest of the crate. Time is a [`Duration`](std::time::Duration) since any fixed
//! moment, passed in by the caller. Nothing here enumerates addresses, so that an IPv6 /64 costs what an IPv4 /24 costs.

mod allocator;
mod error;
mod pool;
mod range;

#[cfg(test)]
mod model_tests;

pub use allocator::{Allocated, Allocator, FamilyUsage, MAX_SHARERS, REST_AFTER_RELEASE, Usage, Use};
pub use error::{AllocateError, RangeError};
pub use pool::{Overlap, Pool, PoolConfig, withhold_overlaps};
pub use range::{AddressRange, Family, RangeSet, read_address};
