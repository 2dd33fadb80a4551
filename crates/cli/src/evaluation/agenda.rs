//! Which checkpoints are judged, in which order. Pure.
//!
//! Invariants: of each epoch that is to be evaluated the first checkpoint after its end is judged, once; those of a run in
//! their order; what a run waits for stays when another one begins.

use mcl_job::Evaluations;
use mcl_types::RunId;
use std::collections::{BTreeSet, VecDeque};

/// A checkpoint to be judged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Task {
    pub(super) run: RunId,
    /// State after so many steps.
    pub(super) step: u64,
}

/// The run that is run.
#[derive(Debug)]
struct Current {
    run: RunId,
    due: Evaluations,
    /// Its checkpoints, also those that are gone and were judged.
    seen: BTreeSet<u64>,
    /// Those that were judged or are on the list, or could not be.
    taken: BTreeSet<u64>,
}

/// See the module.
#[derive(Debug, Default)]
pub(super) struct Agenda {
    current: Option<Current>,
    waiting: VecDeque<Task>,
}

impl Agenda {
    /// Another run is run, or the same goes on; `judged` are the checkpoints of it that were. `due`: none, it wants none.
    pub(super) fn begin(&mut self, run: RunId, due: Option<Evaluations>, judged: BTreeSet<u64>) {
        self.waiting.retain(|task| task.run != run);
        self.current = due.map(|due| Current { run, due, seen: judged.clone(), taken: judged });
    }

    /// Checkpoints became visible, or are found, in any order.
    pub(super) fn checkpoints(&mut self, steps: impl IntoIterator<Item = u64>) {
        let Some(current) = &mut self.current else { return };
        current.seen.extend(steps);
        let mut chosen = 0;
        for step in &current.seen {
            if !current.due.follows(chosen, *step) {
                continue;
            }
            chosen = *step;
            if current.taken.insert(chosen) {
                self.waiting.push_back(Task { run: current.run.clone(), step: chosen });
            }
        }
    }

    /// Steps from `to` on no longer stand.
    pub(super) fn roll_back(&mut self, to: u64) {
        let Some(current) = &mut self.current else { return };
        current.seen.retain(|step| *step <= to);
        current.taken.retain(|step| *step <= to);
        self.waiting.retain(|task| task.run != current.run || task.step <= to);
    }

    /// Whether this is the run that is run.
    pub(super) fn is_current(&self, run: &RunId) -> bool {
        self.current.as_ref().is_some_and(|current| current.run == *run)
    }

    /// What is to be done next.
    pub(super) fn next(&mut self) -> Option<Task> {
        self.waiting.pop_front()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_config::Job;
    use mcl_plan::Schedule;

    /// Epochs of 10 steps, every second one, 45 steps in all.
    fn due() -> Option<Evaluations> {
        let text = "[data]\nsource = \"p\"\n[train]\nsteps = 45\n\
                    [evaluation]\nevery_epochs = 2\ntrain = \"a\"\ntest = \"b\"\n";
        Evaluations::of(&Job::parse(text, "job").unwrap(), Schedule::new(10, 45).unwrap())
    }

    fn run(name: &str) -> RunId {
        RunId::new(name).unwrap()
    }

    fn steps(agenda: &mut Agenda) -> Vec<u64> {
        std::iter::from_fn(|| agenda.next()).map(|task| task.step).collect()
    }

    #[test]
    fn the_first_checkpoint_after_each_chosen_epoch_and_the_last_of_all_are_judged() {
        let mut agenda = Agenda::default();
        agenda.begin(run("r"), due(), BTreeSet::new());
        for step in [5, 19, 20, 20, 25, 39, 41, 42, 45] {
            agenda.checkpoints([step]);
        }
        assert_eq!(steps(&mut agenda), [20, 41, 45]);
    }

    #[test]
    fn what_was_judged_before_is_not_judged_again() {
        let mut agenda = Agenda::default();
        agenda.begin(run("r"), due(), [20].into());
        agenda.checkpoints([20, 40]);
        // The same run goes on under its next coordinator's eyes before anything was done.
        agenda.begin(run("r"), due(), [20].into());
        agenda.checkpoints([20, 40, 45]);
        assert_eq!(steps(&mut agenda), [40, 45]);
        // Of what was judged the checkpoint may be gone, so that later ones of its epoch are seen first.
        agenda.begin(run("r"), due(), [20, 40].into());
        agenda.checkpoints([25, 44]);
        assert!(steps(&mut agenda).is_empty());
    }

    #[test]
    fn checkpoints_that_are_found_after_later_ones_were_seen_are_judged_too() {
        let mut agenda = Agenda::default();
        agenda.begin(run("r"), due(), BTreeSet::new());
        agenda.checkpoints([40]);
        agenda.checkpoints([40, 25, 20]);
        assert_eq!(steps(&mut agenda), [40, 20]);
    }

    #[test]
    fn steps_that_do_not_stand_are_judged_when_they_come_again() {
        let mut agenda = Agenda::default();
        agenda.begin(run("r"), due(), BTreeSet::new());
        agenda.checkpoints([20, 40]);
        agenda.roll_back(30);
        assert_eq!(steps(&mut agenda), [20]);
        agenda.checkpoints([40]);
        assert_eq!(steps(&mut agenda), [40]);
    }

    #[test]
    fn what_one_run_waits_for_stays_when_another_begins() {
        let mut agenda = Agenda::default();
        agenda.begin(run("r"), due(), BTreeSet::new());
        agenda.checkpoints([45]);
        agenda.begin(run("s"), None, BTreeSet::new());
        agenda.checkpoints([20]);
        agenda.roll_back(0);
        assert_eq!(agenda.next(), Some(Task { run: run("r"), step: 45 }));
        assert_eq!(agenda.next(), None);
    }
}
