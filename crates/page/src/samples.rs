//! Rows for tests.

use mcl_history::Row;

/// A row whose numbers are functions of its step.
pub(crate) fn row(step: u64) -> Row {
    let x = step as f64;
    Row {
        step,
        epoch: step / 100,
        generation: 1 + step / 1000,
        loss: Some(10.0 / (1.0 + x)),
        loss_per_level: vec![x, -x],
        lr: 0.1,
        momentum: 0.99,
        grad_norm: (step % 7 != 3).then_some(x % 5.0),
        images_per_s: 100.0 + x % 3.0,
        workers: 2,
        data_wait_s: 0.01,
        step_s: 0.5,
        skipped: step % 7 == 3,
        time: 1000.0 + x,
    }
}
