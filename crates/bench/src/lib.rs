//! Load generator and measurements: as many workers as a machine can hold, all speaking the real protocol.
//!
//! Role: find out what a coordinator can carry ([`run`]). Agents are worker daemons without a model: they open
//! real streams, get real generations and report real plans, so that nothing in the coordinator can tell. The
//! coordinator runs in a process of its own; the generator is one thread, so that the rest of the machine is
//! the coordinator's.
//!
//! Invariants: an agent's decisions are pure (`agent.rs`); load is offered by the clock, never by how fast
//! answers come, so a slow coordinator cannot hide behind a generator that waits for it; nothing leaves the
//! loopback interface; every phase has an end in time; nothing that was started outlives the call.
//!
//! Left out: weights (agents stage no checkpoints, so a job of theirs cannot be drained to one), collectives,
//! encryption.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod agent;
mod bench;
mod control;
mod daemons;
mod error;
mod job;
mod machine;
mod options;
mod point;
mod report;
mod session;
mod stream;
mod tally;
mod workload;

pub use bench::run;
pub use error::BenchError;
pub use options::{Load, Options, Target};
pub use report::{Errors, Latency, Limit, Memory, Point, Report};
