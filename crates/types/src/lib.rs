//! Identifiers and newtypes that every crate speaks.
//!
//! Role: give the words of the design (worker, lane, generation, step, ...) a type each, so that a
//! lane can never be passed where a rank is meant. Invariant: no I/O, no clock, no randomness.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod digest;
mod ids;
mod lanes;
mod ports;
mod seed;
mod token;

pub use digest::{Digest, ParseDigestError};
pub use ids::{Epoch, Generation, Lane, Rank, RunId, RunIdError, SampleIndex, Slot, Step, Term, WorkerName};
pub use lanes::{LaneLayout, LaneLayoutError};
pub use ports::{PortRange, PortRangeError};
pub use seed::{Purpose, Seed, SplitMix64};
pub use token::FencingToken;
