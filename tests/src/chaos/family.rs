//! The two families of campaigns: one in which the number of workers that train never changes, and one in which it does.

use std::time::Duration;

/// Which promises are made about the weights.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Family {
    /// Training waits for the replacement of what is lost: every bit is that of an undisturbed run.
    Steady,
    /// Training goes on with those who are left: the weights are those of an undisturbed run but for rounding.
    Elastic,
}

/// Silence after which somebody is lost.
pub(super) const LOST_AFTER: Duration = Duration::from_secs(2);
/// Worker machines.
pub(super) const WORKERS: usize = 3;
/// Steps between checkpoints: also a short campaign has some.
pub(super) const EVERY_STEPS: u64 = 20;
/// Largest relative error of a tensor after an elastic run of at most 20 steps (DESIGN, invariant 7).
const STRICT: f64 = 1e-9;
/// The same after a longer one. Training magnifies differences of rounding from step to step, so no tight bound
/// holds for ever; a lost or doubled step gives errors above 1e-3.
const LOOSE: f64 = 1e-6;

impl Family {
    /// Its name.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Steady => "steady",
            Self::Elastic => "elastic",
        }
    }

    /// Share of a campaign in which steps are made, as measured; the rest is waiting for those who are away.
    pub(super) const fn productive(self) -> f64 {
        match self {
            Self::Steady => 0.5,
            Self::Elastic => 0.85,
        }
    }

    /// The job of so many steps, as overrides of the sandbox's.
    pub(super) fn job(self, steps: u64) -> Vec<String> {
        let mut job = vec![
            format!("train.steps={steps}"),
            format!("checkpoint.every_steps={}", EVERY_STEPS),
            "checkpoint.keep=3".to_owned(),
            format!("elastic.lost_after={}s", LOST_AFTER.as_secs()),
            "batch.images_per_lane=4".to_owned(),
        ];
        let own: &[&str] = match self {
            Self::Steady => &["batch.lanes=3", "elastic.min_workers=3"],
            Self::Elastic => &[
                "batch.lanes=6",
                "elastic.min_workers=1",
                "train.precision=f64",
                // At 32 pixels P5 has one cell and norms see means that are zero but for noise.
                "model.image_size=64",
                "optimizer.kind=lars",
                "optimizer.lr=0.1",
            ],
        };
        job.extend(own.iter().map(|s| (*s).to_owned()));
        job
    }

    /// How far the weights may be from those of an undisturbed run of so many steps.
    pub(super) const fn tolerance(self, steps: u64) -> f64 {
        match self {
            Self::Steady => 0.0,
            Self::Elastic if steps <= 20 => STRICT,
            Self::Elastic => LOOSE,
        }
    }
}
