//! Identifiers and newtypes that every crate speaks.
//!
//! Role: give the words of the design (worker, lane, generation, step, ...) a type each, so that a
//! lane can never be passed where a rank is meant. Invariant: no I/O, no clock, no randomness.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod digest;
mod ids;
mod lanes;
mod location;
mod ports;
mod retention;
mod seed;
mod source_kind;
mod tier;
mod token;

pub use digest::{Digest, ParseDigestError};
pub use ids::{Epoch, Generation, Lane, Rank, RunId, RunIdError, SampleIndex, Slot, Step, Term, WorkerName};
pub use lanes::{LaneLayout, LaneLayoutError};
pub use location::{StoreLocation, StoreLocationError};
pub use ports::{PortRange, PortRangeError};
pub use retention::Retention;
pub use seed::{Purpose, Seed, SplitMix64};
pub use source_kind::{SourceKind, SourceKindError};
pub use tier::Tier;
pub use token::FencingToken;
