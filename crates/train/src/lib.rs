//! Schedules, optimisers and the training step.
//!
//! Role: one optimiser step over all lanes as a transaction: buffers, gradients and counters are staged and
//! swapped in together with the optimiser's update and the momentum encoder's; a failed collective or a
//! number that is not finite leaves nothing behind. Invariants: parameters and optimiser state are walked in
//! name order; after each step all ranks hold equal bits. Left out: pictures, checkpoints, membership and
//! the clock, which the rank process brings.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::float_cmp))]

mod activity;
mod agreement;
mod digest;
mod error;
pub mod golden;
mod norm;
mod objective;
mod optimizer;
mod part;
mod schedule;
mod step;
mod together;
mod trainer;
mod transfer;

pub use activity::{Activity, Doing, Now};
pub use agreement::Halt;
pub use digest::{bytes_of, digest_of, disagreement};
pub use error::TrainError;
pub use optimizer::{Optimizer, OptimizerSettings, Rule, Walk, decays, lars_excluded};
pub use part::NormScope;
pub use schedule::{LearningRate, Momentum};
pub use step::{LaneInput, Rates, StepInput, StepOutcome, StepProbe, StepTimes};
pub use trainer::{Trainer, TrainerSettings};
pub use transfer::Levelled;
