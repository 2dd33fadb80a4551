//! What a progress bar shows.

use mcl_coordinator_core::{Phase, State, Status};
use mcl_types::RunId;
use std::time::Duration;

/// A glance at the coordinator, renewed after every event.
#[derive(Debug, Clone, PartialEq)]
pub struct Progress {
    /// The run, once there is one.
    pub run_id: Option<RunId>,
    /// What the job is doing.
    pub phase: Phase,
    /// Why, as a person reads it.
    pub reason: String,
    /// Steps that stand.
    pub step: u64,
    /// Steps of the run; 0 while there is no job.
    pub total: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Loss of the last step, where finite.
    pub loss: Option<f64>,
    /// Speed of the last step.
    pub images_per_s: f64,
    /// Share of a step that waits for pictures, over about 20 steps.
    pub data_wait_share: f64,
    /// The live generation, or the last one.
    pub generation: u64,
    /// Connected workers.
    pub workers: u32,
    /// Newest visible checkpoint.
    pub last_checkpoint: Option<u64>,
}

impl Progress {
    pub(crate) fn of(state: &State, now: Duration) -> Self {
        let (status, workers) = state.summary(now);
        let workers = u32::try_from(workers).unwrap_or(u32::MAX);
        let Status { phase, reason, last_step, .. } = status;
        Self {
            run_id: status.run_id,
            phase,
            reason: reason.to_string(),
            step: status.committed_steps,
            total: status.total_steps,
            steps_per_epoch: status.steps_per_epoch,
            loss: last_step.as_ref().and_then(|s| s.loss),
            images_per_s: last_step.as_ref().map_or(0.0, |s| s.images_per_s),
            data_wait_share: status.data_wait_share,
            generation: status.generation.get(),
            workers,
            last_checkpoint: status.last_checkpoint,
        }
    }
}
