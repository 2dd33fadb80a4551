//! The coordinator's rim: gRPC, time, journal and run directory around `mcl-coordinator-core`.
//!
//! Role: one loop takes what comes (streams, submissions, answers of the checkpoint service, time), turns it
//! into an event, lets the core decide and performs the effects in order. Invariants: what the core wants
//! durable is durable before the next effect is begun; a step is acknowledged to ranks only once metrics and
//! ledger are on the disk; nobody else writes to the run directory. Left out: every decision (the core),
//! reading jobs and datasets (the caller's [`Interpret`]), encryption, roles and limits (`mcl-transport`).
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod border;
mod checkpoints;
mod clock;
mod config;
mod coordinator;
mod error;
mod journal;
mod observing;
mod performing;
mod progress;
mod queue;
mod rim;
mod run_dir;
mod service;
mod tempo;
mod verify;
mod wire;
mod words;

pub use config::{CoordinatorConfig, Interpret, JobFacts, TellHistory};
pub use coordinator::{Coordinator, CoordinatorHandle, HandleError};
pub use error::{CoordinatorError, JobOutcome};
pub use journal::is_free;
pub use mcl_coordinator_core::{
    DrainFor, EndCause, Phase, RankStatus, Reason, Status, StepMetrics, WorkerState, WorkerStatus,
};
pub use observing::{Adopted, Observation, Observed};
pub use progress::Progress;
pub use run_dir::PLAN_FILE;
pub use verify::{LedgerError, verify_ledger};
pub use wire::Overview;
