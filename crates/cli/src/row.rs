//! A committed step, as the coordinator tells it, as a row of `metrics.jsonl`.

use mcl_coordinator::StepMetrics;
use mcl_history::Row;

/// The row of a step that was committed at `time`.
pub(crate) fn row(m: StepMetrics, time: f64) -> Row {
    Row {
        step: m.step,
        epoch: m.epoch,
        generation: m.generation,
        loss: m.loss,
        loss_per_level: m.loss_per_level,
        lr: m.lr,
        momentum: m.momentum,
        grad_norm: m.grad_norm,
        images_per_s: m.images_per_s,
        workers: m.workers,
        data_wait_s: m.data_wait_s,
        step_s: m.step_s,
        skipped: m.skipped,
        time,
    }
}
