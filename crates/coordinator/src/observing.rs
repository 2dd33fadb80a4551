//! What happens to a run, for whoever looks on: a page, a log of events.
//!
//! Invariants: an observation is sent after what it tells of was done; nobody who looks on can hold the loop up: one
//! that is behind misses some and is told so (the channel's lag). Without anyone to look on nothing is made.

use crate::clock::since_1970;
use crate::config::JobFacts;
use crate::rim::Rim;
use mcl_coordinator_core::{DrainFor, Effect, EndCause, Event, Persisted, StepMetrics, Warning};
use mcl_types::{Generation, RunId, Term, WorkerName};
use std::collections::BTreeSet;
use std::path::PathBuf;
use tokio::sync::broadcast;

/// Observations that one who looks on may be behind: some minutes of quick steps.
const BEHIND: usize = 4096;

/// Something that happened.
#[derive(Debug, Clone)]
pub struct Observation {
    /// When, in seconds since 1970; of a committed step the time in its row.
    pub time: f64,
    /// What.
    pub what: Observed,
}

/// What happened.
#[derive(Debug, Clone)]
pub enum Observed {
    /// A job is the one that is run from now on, or goes on.
    Adopted(Box<Adopted>),
    /// A step was committed: its row is in `metrics.jsonl`.
    Committed(Box<StepMetrics>),
    /// Steps from here on no longer stand.
    RolledBack {
        /// Steps that stand.
        to: u64,
    },
    /// A generation was formed.
    Formed {
        /// Which.
        generation: Generation,
        /// Its machines.
        workers: u32,
        /// Its ranks.
        ranks: u32,
    },
    /// A generation that an earlier coordinator started goes on.
    Continued {
        /// Which.
        generation: Generation,
        /// Its machines.
        workers: u32,
        /// Its ranks.
        ranks: u32,
        /// This coordinator's reign.
        term: Term,
    },
    /// A generation is over.
    Ended {
        /// Which.
        generation: Generation,
    },
    /// ... because of this.
    Failed {
        /// Which.
        generation: Generation,
        /// Why.
        cause: EndCause,
    },
    /// Ranks are asked to stop at a step boundary.
    Draining(DrainFor),
    /// A checkpoint became visible.
    Checkpoint {
        /// State after so many steps.
        step: u64,
    },
    /// The checkpoint service was asked what there is.
    CheckpointsFound {
        /// Durable ones.
        steps: Vec<u64>,
    },
}

/// A job that is run.
#[derive(Debug, Clone)]
pub struct Adopted {
    /// Its run.
    pub run_id: RunId,
    /// Its directory.
    pub run_dir: PathBuf,
    /// What its file and its dataset say.
    pub facts: JobFacts,
    /// Steps that stand already.
    pub committed: u64,
    /// Its newest visible checkpoint.
    pub checkpoint: Option<u64>,
}

/// Who looks on.
#[derive(Debug, Clone)]
pub(crate) struct Observers(broadcast::Sender<Observation>);

impl Observers {
    pub(crate) fn new() -> Self {
        Self(broadcast::Sender::new(BEHIND))
    }

    pub(crate) fn join(&self) -> broadcast::Receiver<Observation> {
        self.0.subscribe()
    }

    pub(crate) fn tell(&self, what: Option<Observed>) {
        self.tell_of(since_1970().as_secs_f64(), what);
    }

    /// Of something that happened at this time, as the run directory may have it too.
    pub(crate) fn tell_of(&self, time: f64, what: Option<Observed>) {
        if let Some(what) = what {
            // An error says that nobody looks on any more.
            let _ = self.0.send(Observation { time, what });
        }
    }

    fn are_there(&self) -> bool {
        self.0.receiver_count() > 0
    }
}

impl Rim {
    /// What an effect will have been, once it is performed.
    pub(crate) fn foresee(&self, effect: &Effect) -> Option<Observed> {
        if self.observers.are_there() { observed(effect) } else { None }
    }

    /// The job that is run, from its beginning here.
    pub(crate) fn tell_adoption(&self) {
        let Some(running) = self.running.as_ref().filter(|_| self.observers.are_there()) else { return };
        let (status, _) = self.state.summary(self.started.elapsed());
        let adopted = Adopted {
            run_id: running.run_id.clone(),
            run_dir: self.home(&running.run_id),
            facts: running.facts.clone(),
            committed: status.committed_steps,
            checkpoint: status.last_checkpoint,
        };
        self.observers.tell(Some(Observed::Adopted(Box::new(adopted))));
    }

    /// The generation that goes on with this coordinator, where one does.
    pub(crate) fn tell_continuation(&self) {
        let status = self.state.status(self.started.elapsed());
        let workers: BTreeSet<&WorkerName> = status.ranks.iter().map(|r| &r.worker).collect();
        let (generation, term) = (status.generation, status.term);
        let (workers, ranks) = (count(workers.len()), count(status.ranks.len()));
        if ranks > 0 {
            self.observers.tell(Some(Observed::Continued { generation, workers, ranks, term }));
        }
    }

    /// What the checkpoint service said, where it says what there is.
    pub(crate) fn tell_found(&self, event: &Event) {
        if let Event::CheckpointsFound { steps, .. } = event {
            self.observers.tell(Some(Observed::CheckpointsFound { steps: steps.clone() }));
        }
    }
}

fn observed(effect: &Effect) -> Option<Observed> {
    Some(match effect {
        Effect::Commit { metrics, .. } => Observed::Committed(Box::new(metrics.clone())),
        Effect::RollBack { to, .. } => Observed::RolledBack { to: *to },
        Effect::Persist(Persisted::Formed(record)) => {
            let workers: BTreeSet<&WorkerName> = record.places.iter().map(|p| &p.worker).collect();
            Observed::Formed {
                generation: record.generation,
                workers: count(workers.len()),
                ranks: count(record.places.len()),
            }
        }
        Effect::Persist(Persisted::Ended(generation)) => Observed::Ended { generation: *generation },
        Effect::Persist(Persisted::Drain(why)) => Observed::Draining(*why),
        Effect::Persist(Persisted::Held(true)) => Observed::Draining(DrainFor::Hold),
        Effect::Persist(Persisted::Checkpoint(step)) => Observed::Checkpoint { step: *step },
        Effect::Warn(Warning::GenerationEnded { generation, cause }) => {
            Observed::Failed { generation: *generation, cause: cause.clone() }
        }
        _ => return None,
    })
}

fn count(length: usize) -> u32 {
    u32::try_from(length).unwrap_or(u32::MAX)
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_coordinator_core::{GenerationRecord, Place, ProcessId};

    fn place(worker: &str, process: u64) -> Place {
        Place { worker: WorkerName::new(worker), device: "cpu".to_owned(), process: ProcessId(process) }
    }

    #[test]
    fn machines_are_counted_apart_from_ranks() {
        let places = vec![place("a", 1), place("a", 2), place("b", 3)];
        let record = GenerationRecord { generation: Generation::new(4), places };
        let Some(Observed::Formed { generation, workers, ranks }) =
            observed(&Effect::Persist(Persisted::Formed(record)))
        else {
            panic!("not told");
        };
        assert_eq!((generation.get(), workers, ranks), (4, 2, 3));
    }

    #[tokio::test]
    async fn one_that_is_behind_misses_some_and_holds_nobody_up() {
        let observers = Observers::new();
        assert!(!observers.are_there());
        let mut slow = observers.join();
        for step in 0..2 * BEHIND as u64 {
            observers.tell(Some(Observed::Checkpoint { step }));
        }
        let lagged = broadcast::error::RecvError::Lagged(BEHIND as u64);
        assert_eq!(slow.recv().await.unwrap_err(), lagged);
        let Observed::Checkpoint { step } = slow.recv().await.unwrap().what else { panic!("another") };
        assert_eq!(step, BEHIND as u64);
    }
}
