//! A row of `metrics.jsonl`: a committed step.

use serde::{Deserialize, Serialize};

/// The file's name in a run directory.
pub const METRICS: &str = "metrics.jsonl";

/// A committed step, as the coordinator wrote it down.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Row {
    /// The step, from 0.
    pub step: u64,
    /// Its epoch.
    pub epoch: u64,
    /// The generation that took it.
    pub generation: u64,
    /// None where it was not finite.
    pub loss: Option<f64>,
    /// Empty where one was not finite.
    pub loss_per_level: Vec<f64>,
    /// Learning rate.
    pub lr: f64,
    /// Momentum of the target encoder.
    pub momentum: f64,
    /// Before clipping; none where it was not finite.
    pub grad_norm: Option<f64>,
    /// Pictures over the slowest rank's time.
    pub images_per_s: f64,
    /// Worker machines.
    pub workers: u32,
    /// Longest wait for pictures, seconds.
    pub data_wait_s: f64,
    /// The slowest rank's time, seconds.
    pub step_s: f64,
    /// The update was skipped.
    pub skipped: bool,
    /// Seconds since 1970 at which it was committed.
    pub time: f64,
}
