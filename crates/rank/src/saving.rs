//! What is saved after which step.
//!
//! Pure, and asked with nothing but what all ranks know alike: a checkpoint needs the slices of all of them, so all
//! save after the same steps. Invariant: after a multiple of `every_steps`, or a step that features are judged after, at which some rank was still uploading, a
//! durable snapshot is owed until it is taken, after the first step that finds all ranks free. Left out: the upload.

use mcl_job::Evaluations;

/// What a rank does after a step.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Save {
    /// Nothing is due.
    Nothing,
    /// A snapshot for the service's memory.
    InMemory,
    /// A durable snapshot.
    Durable,
    /// Something is due, and some rank is still uploading what was saved before.
    Skip,
}

/// See the module.
#[derive(Debug)]
pub(crate) struct Saving {
    every: u64,
    /// 0: none.
    in_memory_every: u64,
    evaluations: Option<Evaluations>,
    owed: bool,
}

impl Saving {
    /// At the start of a generation, where nothing is owed.
    pub(crate) const fn new(every: u64, in_memory_every: u64, evaluations: Option<Evaluations>) -> Self {
        Self { every, in_memory_every, evaluations, owed: false }
    }

    /// Whether a snapshot of either kind belongs after so many steps.
    pub(crate) const fn is_due(&self, done: u64) -> bool {
        self.is_durable(done) || self.is_due_in_memory(done)
    }

    /// A multiple of `every_steps`, or what features are judged after.
    const fn is_durable(&self, done: u64) -> bool {
        let judged = match self.evaluations {
            Some(evaluations) => evaluations.is_due(done),
            None => false,
        };
        judged || done.is_multiple_of(self.every)
    }

    const fn is_due_in_memory(&self, done: u64) -> bool {
        self.in_memory_every > 0 && done.is_multiple_of(self.in_memory_every)
    }

    /// After so many steps. `last`: training stops here and the state must not be lost. `uploading`: some rank was
    /// still uploading when it began the step.
    pub(crate) fn after(&mut self, done: u64, last: bool, uploading: bool) -> Save {
        self.owed |= last || self.is_durable(done);
        if uploading && !last {
            return if self.is_due(done) { Save::Skip } else { Save::Nothing };
        }
        if std::mem::take(&mut self.owed) {
            return Save::Durable;
        }
        if self.is_due_in_memory(done) { Save::InMemory } else { Save::Nothing }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use Save::{Durable, InMemory, Nothing, Skip};
    use mcl_config::Job;
    use mcl_plan::Schedule;

    fn all(saving: &mut Saving, total: u64, uploading: std::ops::RangeInclusive<u64>) -> Vec<Save> {
        (1..=total).map(|done| saving.after(done, done == total, uploading.contains(&done))).collect()
    }

    #[test]
    fn with_a_quick_service_every_multiple_is_saved_and_nothing_else() {
        let mut saving = Saving::new(4, 2, None);
        let expected = [Nothing, InMemory, Nothing, Durable, Nothing, InMemory, Nothing, Durable, Durable];
        assert_eq!(all(&mut saving, 9, 100..=100), expected);
        assert_eq!(all(&mut Saving::new(1, 0, None), 3, 100..=100), [Durable; 3]);
    }

    #[test]
    fn what_was_skipped_is_made_up_for_after_the_first_step_that_finds_all_ranks_free() {
        // Two multiples are skipped, one snapshot is owed; those in memory never are.
        let expected = [Nothing, Durable, Nothing, Skip, Nothing, Skip, Durable, Durable, Nothing, Durable];
        assert_eq!(all(&mut Saving::new(2, 0, None), 10, 3..=6), expected);
        let expected = [Nothing, InMemory, Nothing, Skip, Nothing, InMemory, Nothing, InMemory, Durable];
        assert_eq!(all(&mut Saving::new(9, 2, None), 9, 4..=5), expected);
    }

    #[test]
    fn what_features_are_judged_after_is_saved_as_what_is_a_multiple() {
        let text = "[data]\nsource = \"p\"\n[train]\nsteps = 9\n\
                    [evaluation]\nevery_epochs = 1\ntrain = \"a\"\ntest = \"b\"\n";
        let job = Job::parse(text, "job").unwrap();
        let evaluations = Evaluations::of(&job, Schedule::new(3, 9).unwrap());
        let mut saving = Saving::new(5, 0, evaluations);
        assert!(saving.is_due(3) && saving.is_due(5) && saving.is_due(9) && !saving.is_due(4));
        let expected = [Nothing, Nothing, Durable, Nothing, Durable, Skip, Durable, Nothing, Durable];
        assert_eq!(all(&mut saving, 9, 6..=6), expected);
    }

    #[test]
    fn the_last_state_is_saved_whoever_is_uploading() {
        let mut saving = Saving::new(10, 0, None);
        assert_eq!(saving.after(7, true, true), Durable);
        assert_eq!(saving.after(8, false, false), Nothing, "and nothing is owed any more");
    }
}
