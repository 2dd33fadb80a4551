//! What a person is told to have happened, from what the core wants done.
//!
//! Pure: effects in, happenings out. Left out: when it was, and who keeps it.

use mcl_coordinator_core::{
    DrainFor, Effect, GenerationRecord, Origin, Outcome, Persisted, Phase, State, Warning,
};
use mcl_history::Happening;
use mcl_types::Generation;
use std::collections::BTreeSet;

/// Names of workers that are listed; of more, how many.
const NAMED: usize = 3;

/// What is remembered from one effect to the next.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub(crate) struct Reasons {
    /// Workers of the last generation that was formed here.
    workers: Option<BTreeSet<String>>,
    held: bool,
    /// Steps that stood before the roll back that is told next.
    committed: u64,
}

impl Reasons {
    /// What these effects, decided together, mean to a person. `state` is that after the decision, `before` how many
    /// steps stood before it.
    pub(crate) fn read(&mut self, effects: &[Effect], state: &State, before: u64) -> Vec<Happening> {
        self.committed = before;
        effects.iter().filter_map(|effect| self.happening(effect, effects, state)).collect()
    }

    fn happening(&mut self, effect: &Effect, all: &[Effect], state: &State) -> Option<Happening> {
        Some(match effect {
            Effect::Persist(Persisted::Job(_)) => {
                self.workers = None;
                Happening::Submitted { step: state.committed() }
            }
            Effect::Persist(Persisted::Formed(record)) => self.formed(record, state),
            Effect::Persist(Persisted::Started(started)) => Happening::Started {
                generation: started.record.generation.get(),
                step: started.first,
                from: match started.origin {
                    Origin::Rank(rank) => rank.to_string(),
                    Origin::Checkpoint(step) => format!("the checkpoint after {step} steps"),
                    Origin::Seed => "the seed".to_owned(),
                },
            },
            Effect::Persist(Persisted::Ended(generation)) => {
                Happening::Ended { generation: generation.get(), why: cause_in(all, *generation) }
            }
            Effect::Persist(Persisted::Drain(DrainFor::Stop)) => Happening::Drained,
            Effect::Persist(Persisted::Held(true)) => {
                self.held = true;
                Happening::Held
            }
            Effect::Persist(Persisted::Held(false)) => Happening::Resumed,
            Effect::Persist(Persisted::Checkpoint(step)) => Happening::Checkpoint { step: *step },
            Effect::Persist(Persisted::Over(outcome)) => over(outcome),
            Effect::RollBack { to, .. } => Happening::RolledBack { to: *to, from: self.committed.max(*to) },
            _ => return None,
        })
    }

    fn formed(&mut self, record: &GenerationRecord, state: &State) -> Happening {
        let now: BTreeSet<String> = record.places.iter().map(|p| p.worker.as_str().to_owned()).collect();
        let cause = state.last_end().map(ToString::to_string);
        let held = std::mem::take(&mut self.held);
        let mut why = match (cause, &self.workers) {
            (Some(cause), _) => cause,
            (None, _) if held => "the job was let go on".to_owned(),
            (None, Some(_)) => "the workers changed".to_owned(),
            (None, None) if state.committed() == 0 => "the run begins".to_owned(),
            (None, None) => "the run goes on".to_owned(),
        };
        if let Some(before) = &self.workers {
            for (word, names) in [("came", now.difference(before)), ("gone", before.difference(&now))] {
                let names: Vec<&str> = names.map(String::as_str).collect();
                if !names.is_empty() {
                    why = format!("{why}; {word}: {}", list(&names));
                }
            }
        }
        let workers = now.len() as u64;
        self.workers = Some(now);
        let (generation, ranks) = (record.generation.get(), record.places.len() as u64);
        Happening::Formed { generation, workers, ranks, why }
    }
}

fn list(names: &[&str]) -> String {
    let shown = names.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    match names.len().saturating_sub(NAMED) {
        0 => shown,
        more => format!("{shown} and {more} more"),
    }
}

/// Why a generation ended, where that is said beside.
fn cause_in(effects: &[Effect], ended: Generation) -> String {
    let cause = effects.iter().find_map(|effect| match effect {
        Effect::Warn(Warning::GenerationEnded { generation, cause }) if *generation == ended => Some(cause),
        _ => None,
    });
    cause.map(ToString::to_string).unwrap_or_default()
}

fn over(outcome: &Outcome) -> Happening {
    let phase = match outcome {
        Outcome::Done { .. } => Phase::Done,
        Outcome::Interrupted { .. } => Phase::Interrupted,
        Outcome::Cancelled { .. } => Phase::Cancelled,
        Outcome::Failed(_) => Phase::Failed,
    };
    Happening::Over { phase: phase.to_string(), outcome: outcome.to_string() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_coordinator_core::{EndCause, Place, ProcessId, Recovered, Settings};
    use mcl_types::{Term, WorkerName};
    use std::time::Duration;

    fn state() -> State {
        let recovered = Recovered { last_generation: Generation::new(0), job: None };
        State::recover(Settings::default(), Term::new(1), recovered, Duration::ZERO).unwrap()
    }

    fn formed(generation: u64, workers: &[&str]) -> Effect {
        let place = |w: &&str| Place {
            worker: WorkerName::new(**w),
            device: "cpu".to_owned(),
            process: ProcessId(1),
        };
        let places = workers.iter().map(place).collect();
        Effect::Persist(Persisted::Formed(GenerationRecord { generation: Generation::new(generation), places }))
    }

    fn texts(reasons: &mut Reasons, effects: &[Effect]) -> Vec<String> {
        reasons.read(effects, &state(), 0).iter().map(ToString::to_string).collect()
    }

    #[test]
    fn a_generation_says_who_came_and_who_is_gone() {
        let mut reasons = Reasons::default();
        let first = texts(&mut reasons, &[formed(1, &["a", "b"])]);
        assert_eq!(first, ["g1 formed of 2 ranks on 2 workers: the run begins"]);
        let next = texts(&mut reasons, &[formed(2, &["b", "c", "d", "e", "f", "f"])]);
        let expected = "g2 formed of 6 ranks on 5 workers: the workers changed; came: c, d, e and 1 more; gone: a";
        assert_eq!(next, [expected]);
        texts(&mut reasons, &[Effect::Persist(Persisted::Held(true))]);
        let held = texts(&mut reasons, &[formed(3, &["b", "c", "d", "e", "f"])]);
        assert_eq!(held, ["g3 formed of 5 ranks on 5 workers: the job was let go on"]);
    }

    #[test]
    fn an_end_has_its_cause_where_there_is_one() {
        let (generation, silent) = (Generation::new(4), Duration::from_secs(10));
        let cause = EndCause::WorkerLost { worker: WorkerName::new("w2"), silent };
        let ended = Effect::Persist(Persisted::Ended(generation));
        let warned = Effect::Warn(Warning::GenerationEnded { generation, cause });
        let mut reasons = Reasons::default();
        let told = texts(&mut reasons, &[ended.clone(), warned]);
        assert_eq!(told, ["g4 ended: worker w2 was silent for 10.0 s"]);
        assert_eq!(texts(&mut reasons, &[ended]), ["g4 ended"]);
    }
}
