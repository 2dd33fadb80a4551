//! What ranks report, held against the plan before anything counts it.
//!
//! Invariant 4 in production: a step whose samples are not the plan's never reaches the ledger. Such a
//! report becomes a failure of the rank that would happen again.

use mcl_coordinator_core::{FailureKind, RankEvent, RankSaid, StepReport};
use mcl_plan::ledger::SampleRecord;
use mcl_plan::{EpochPlan, PlanError, PlanSpec, Position, SUBSTITUTE_ATTEMPTS, Schedule, substitute};
use mcl_types::{Epoch, Lane, SampleIndex, Slot, Step};
use std::collections::BTreeMap;
use std::sync::Arc;

/// Plans kept: the epoch that ranks are in, the one before (late reports) and the one after (grants).
const KEPT: usize = 3;

/// A job's plans.
#[derive(Debug)]
pub(crate) struct Plans {
    spec: PlanSpec,
    schedule: Schedule,
    epochs: BTreeMap<Epoch, Arc<EpochPlan>>,
}

impl Plans {
    pub(crate) const fn new(spec: PlanSpec, schedule: Schedule) -> Self {
        Self { spec, schedule, epochs: BTreeMap::new() }
    }

    /// The plan of an epoch.
    pub(crate) fn of(&mut self, epoch: Epoch) -> Result<Arc<EpochPlan>, PlanError> {
        if let Some(plan) = self.epochs.get(&epoch) {
            return Ok(Arc::clone(plan));
        }
        let plan = Arc::new(EpochPlan::new(&self.spec, epoch)?);
        if self.epochs.len() >= KEPT {
            self.epochs.pop_first();
        }
        self.epochs.insert(epoch, Arc::clone(&plan));
        Ok(plan)
    }

    /// The event, or what takes its place where it reports samples that the plan does not give.
    pub(crate) fn judge(&mut self, event: RankEvent) -> RankEvent {
        let found = match &event.said {
            RankSaid::Step(report) => self.foreign(report).map(|message| (report.step, message)),
            RankSaid::Recounted(steps) => steps.iter().find_map(|(_, r)| Some((r.step, self.foreign(r)?))),
            _ => None,
        };
        match found {
            None => event,
            Some((step, message)) => {
                let (kind, step) = (FailureKind::Fatal, Some(step));
                RankEvent { said: RankSaid::Failed { kind, message, step }, ..event }
            }
        }
    }

    fn foreign(&mut self, report: &StepReport) -> Option<String> {
        let place = self.schedule.locate(Step::new(report.step));
        let plan = match self.of(place.epoch) {
            Ok(plan) => plan,
            Err(error) => return Some(error.to_string()),
        };
        for fed in report.lanes.iter().map(|l| &l.fed) {
            for (slot, sample) in (0..).map(Slot::new).zip(&fed.samples) {
                // Slots and lanes beyond the plan are the core's to judge.
                let planned = plan.sample(place.step_in_epoch, fed.lane, slot);
                if let Some(planned) = planned
                    && !fits(&self.spec, place, fed.lane, slot, planned, sample)
                {
                    return Some(format!(
                        "{}, {slot} was fed {} where the plan has {planned}: rank and coordinator read different datasets or are of different versions",
                        fed.lane, sample.index
                    ));
                }
            }
        }
        None
    }
}

fn fits(
    spec: &PlanSpec,
    place: Position,
    lane: Lane,
    slot: Slot,
    planned: SampleIndex,
    sample: &SampleRecord,
) -> bool {
    match sample.replaces {
        None => sample.index == planned,
        Some(replaced) => {
            let substitute =
                |attempt| substitute(spec, place.epoch, place.step_in_epoch, lane, slot, attempt);
            replaced == planned && (0..SUBSTITUTE_ATTEMPTS).map(substitute).any(|s| s == sample.index)
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_coordinator_core::{LaneReport, ProcessId};
    use mcl_plan::Shuffle;
    use mcl_plan::ledger::{LaneRecord, SampleHash};
    use mcl_types::{Digest, Generation, Rank, Seed};

    fn plans() -> Plans {
        let spec = PlanSpec {
            seed: Seed::new(1),
            dataset_digest: Digest::of(b"d"),
            dataset_len: 40,
            shards: vec![40],
            lanes: 2,
            images_per_lane: 2,
            shuffle: Shuffle::Global,
        };
        Plans::new(spec, Schedule::new(10, 50).unwrap())
    }

    fn event(plans: &mut Plans, change: impl FnOnce(&mut Vec<SampleRecord>)) -> RankEvent {
        let plan = plans.of(Epoch::new(1)).unwrap();
        let mut samples: Vec<SampleRecord> = (0..2)
            .map(|slot| SampleRecord {
                index: plan.sample(3, Lane::new(1), Slot::new(slot)).unwrap(),
                id: String::new(),
                hash: SampleHash::from_bytes([0; 16]),
                replaces: None,
                reason: None,
            })
            .collect();
        change(&mut samples);
        let report = StepReport {
            step: 13,
            epoch: 1,
            lanes: vec![LaneReport { fed: LaneRecord { lane: Lane::new(1), samples }, losses: Vec::new() }],
            learning_rate: 0.0,
            momentum: 0.0,
            grad_norm: 0.0,
            skipped: false,
            step_seconds: 0.0,
            data_wait_seconds: 0.0,
            forward_seconds: 0.0,
            backward_seconds: 0.0,
            collective_seconds: 0.0,
        };
        RankEvent {
            generation: Generation::new(1),
            rank: Rank::new(1),
            device: "cpu".to_owned(),
            process: ProcessId(1),
            said: RankSaid::Step(report),
        }
    }

    #[test]
    fn what_the_plan_says_passes() {
        let mut plans = plans();
        let right = event(&mut plans, |_| {});
        assert_eq!(plans.judge(right.clone()), right);
        let substitute = |a| substitute(&plans.spec, Epoch::new(1), 3, Lane::new(1), Slot::new(0), a);
        let other = substitute(5);
        let replaced = event(&mut plans, |s| {
            s[0].replaces = Some(s[0].index);
            s[0].index = other;
        });
        assert_eq!(plans.judge(replaced.clone()), replaced);
    }

    #[test]
    fn anything_else_is_a_failure_of_the_rank() {
        let mut plans = plans();
        let swapped = event(&mut plans, |s| s.swap(0, 1));
        let judged = plans.judge(swapped);
        let RankSaid::Failed { kind: FailureKind::Fatal, message, step: Some(13) } = judged.said else {
            panic!("{judged:?}");
        };
        assert!(message.contains("lane 1, slot 0 was fed sample"), "{message}");
        let excuse = event(&mut plans, |s| s[0].replaces = Some(s[1].index));
        assert!(matches!(plans.judge(excuse).said, RankSaid::Failed { .. }));
    }

    #[test]
    fn few_plans_are_kept() {
        let mut plans = plans();
        for epoch in 0..20 {
            assert_eq!(plans.of(Epoch::new(epoch)).unwrap().epoch(), Epoch::new(epoch));
        }
        assert!(plans.epochs.len() <= KEPT);
    }
}
