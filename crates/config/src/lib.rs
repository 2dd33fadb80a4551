//! Raw TOML, environment and flags become a validated [`Job`].
//!
//! Role: the only door for settings. Invariants: a [`Job`] exists only if every key was known and every
//! value passed [`validate`](Job::parse); its TOML form parses back to an equal job. Left out: looking
//! at the data or the machine, which belongs to whoever owns them.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod error;
mod job;
mod objective;
mod reference;
mod sections;
mod source;
mod validate;

pub use error::ConfigError;
pub use job::{ENVIRONMENT_PREFIX, Job, Override};
pub use reference::{NoTable, with_tables};
pub use sections::{
    Augment, Batch, Checkpoint, Compute, Data, Elastic, Evaluation, Jitter, JobFile, Judged, Method, Model,
    Network, Norm, Objective, Optimizer, OptimizerKind, Precision, Probes, Shuffle, Train, Views,
};
