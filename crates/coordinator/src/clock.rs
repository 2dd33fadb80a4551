//! The wall clock, for records that people read; decisions are made by another.

use std::time::{Duration, SystemTime};

/// Time since 1970; nothing where the machine's clock stands before that.
pub(crate) fn since_1970() -> Duration {
    SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default()
}
