//! x
use crate::support::Test;
pub const TESTS: &[Test] = &[];
