//! Where step t of the run lies: which epoch, which step in it.

use mcl_types::{Epoch, Step};
use serde::{Deserialize, Serialize};

/// A step's place: all that is needed to continue from it.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
pub struct Position {
    /// The epoch.
    pub epoch: Epoch,
    /// The step in it, from 0.
    pub step_in_epoch: u64,
}

/// Steps of an epoch and of the run.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct Schedule {
    steps_per_epoch: u64,
    total_steps: u64,
}

/// A run without steps.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error(
    "a run of {total_steps} steps with {steps_per_epoch} steps an epoch: expected at least one of each; raise [train] epochs or steps"
)]
pub struct ScheduleError {
    steps_per_epoch: u64,
    total_steps: u64,
}

impl Schedule {
    /// A run of `total_steps` with `steps_per_epoch`.
    ///
    /// # Errors
    /// When either is 0.
    pub const fn new(steps_per_epoch: u64, total_steps: u64) -> Result<Self, ScheduleError> {
        if steps_per_epoch == 0 || total_steps == 0 {
            return Err(ScheduleError { steps_per_epoch, total_steps });
        }
        Ok(Self { steps_per_epoch, total_steps })
    }

    /// A run of whole epochs.
    ///
    /// # Errors
    /// When there would be no step, or more than a u64 counts.
    pub const fn of_epochs(steps_per_epoch: u64, epochs: u64) -> Result<Self, ScheduleError> {
        match steps_per_epoch.checked_mul(epochs) {
            Some(total_steps) => Self::new(steps_per_epoch, total_steps),
            None => Err(ScheduleError { steps_per_epoch, total_steps: u64::MAX }),
        }
    }

    /// Steps of one whole epoch.
    pub const fn steps_per_epoch(self) -> u64 {
        self.steps_per_epoch
    }

    /// Steps of the run.
    pub const fn total_steps(self) -> u64 {
        self.total_steps
    }

    /// Epochs of the run, the last one perhaps cut short.
    pub const fn epochs(self) -> u64 {
        self.total_steps.div_ceil(self.steps_per_epoch)
    }

    /// Steps that the run takes in `epoch`; 0 beyond its end.
    pub const fn steps_in(self, epoch: Epoch) -> u64 {
        let before = epoch.get().saturating_mul(self.steps_per_epoch);
        let rest = self.total_steps.saturating_sub(before);
        if rest < self.steps_per_epoch { rest } else { self.steps_per_epoch }
    }

    /// Where `step` lies. Steps beyond the run's end have a place too.
    pub const fn locate(self, step: Step) -> Position {
        Position {
            epoch: Epoch::new(step.get() / self.steps_per_epoch),
            step_in_epoch: step.get() % self.steps_per_epoch,
        }
    }

    /// The step at `position`.
    pub const fn step_at(self, position: Position) -> Step {
        Step::new(position.epoch.get() * self.steps_per_epoch + position.step_in_epoch)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn positions_and_steps_are_inverse() {
        let schedule = Schedule::new(7, 30).unwrap();
        for t in 0..40 {
            let step = Step::new(t);
            assert_eq!(schedule.step_at(schedule.locate(step)), step);
        }
        assert_eq!(schedule.locate(Step::new(13)), Position { epoch: Epoch::new(1), step_in_epoch: 6 });
    }

    #[test]
    fn the_last_epoch_may_be_short() {
        let schedule = Schedule::new(7, 30).unwrap();
        assert_eq!(schedule.epochs(), 5);
        let steps: Vec<u64> = (0..7).map(|e| schedule.steps_in(Epoch::new(e))).collect();
        assert_eq!(steps, [7, 7, 7, 7, 2, 0, 0]);
        assert_eq!(Schedule::of_epochs(7, 2).unwrap().total_steps(), 14);
        assert!(Schedule::of_epochs(7, 0).is_err());
        assert!(Schedule::new(0, 3).is_err());
        assert!(Schedule::of_epochs(u64::MAX, 2).is_err());
    }
}
