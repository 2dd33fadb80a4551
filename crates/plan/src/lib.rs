//! The epoch plan and the ledger: what should be read, and the proof of what was.
//!
//! Role: say which sample every (step, lane, slot) of an epoch gets, as a pure function of the seed, the
//! dataset and the batch shape, and compare what a run recorded with it. Invariants: nothing here knows
//! how many workers there are, so membership cannot change what is read; every sample of an epoch is
//! planned exactly once or listed as left out; looking a sample up needs no table over the dataset.
//! Left out: files, clocks, and who carries which lane (that is `mcl_types::LaneLayout`).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod bijection;
mod epoch;
pub mod ledger;
mod position;
mod spec;
mod substitute;
mod windows;

pub use epoch::{EpochPlan, LeftOut};
pub use position::{Position, Schedule, ScheduleError};
pub use spec::{PlanError, PlanSpec, Shuffle};
pub use substitute::{SUBSTITUTE_ATTEMPTS, substitute};
pub use windows::{SHARDS_AT_A_TIME, ShardSlice, WindowView};
