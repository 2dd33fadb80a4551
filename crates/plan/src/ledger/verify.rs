//! Compares a ledger with the plan.
//!
//! Two readings: the first collects what was rolled back, the second checks every standing step. Memory is
//! two bits a sample and epoch, and one id and hash a sample. What rolled-back steps used is not
//! judged: "exactly once" speaks of the trajectory that leads to the weights.

use super::{Committed, LaneRecord, Record, RolledBack, SampleHash, SampleRecord};
use crate::{EpochPlan, PlanError, PlanSpec, Position, SUBSTITUTE_ATTEMPTS, Schedule, substitute};
use mcl_types::{Epoch, Generation, Lane, SampleIndex, Slot, Step};
use serde::Serialize;
use std::collections::btree_map::Entry;
use std::collections::{BTreeMap, HashMap};

/// Problems kept in a report; the rest is only counted.
const PROBLEMS_KEPT: usize = 200;

/// One way in which a ledger is not what the plan says.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, thiserror::Error)]
#[serde(tag = "problem", rename_all = "snake_case")]
pub enum Problem {
    /// Steps that later ones follow were never committed.
    #[error("steps {first} to {last} are missing: later steps are committed, these are not")]
    MissingSteps {
        /// First missing step.
        first: u64,
        /// Last missing step.
        last: u64,
    },
    /// One step was committed again.
    #[error("{step} is committed twice: in {first} and in {second}, with nothing rolled back between")]
    CommittedTwice {
        /// The step.
        step: Step,
        /// Where it was first.
        first: Generation,
        /// Where it was again.
        second: Generation,
    },
    /// The epoch of a step is not the one it lies in.
    #[error("{step} is recorded in {found}, but it lies in {expected}")]
    WrongEpoch {
        /// The step.
        step: Step,
        /// What the ledger says.
        found: Epoch,
        /// What the plan says.
        expected: Epoch,
    },
    /// A lane's entry is absent, repeated, or of a lane that does not exist.
    #[error("{step}: {lane} has {found} entries, expected {expected}")]
    WrongLanes {
        /// The step.
        step: Step,
        /// The lane.
        lane: Lane,
        /// Entries found.
        found: usize,
        /// Entries expected.
        expected: usize,
    },
    /// A lane was fed fewer or more samples than it has slots.
    #[error("{step}, {lane}: {found} samples are recorded, expected {expected}")]
    WrongCount {
        /// The step.
        step: Step,
        /// The lane.
        lane: Lane,
        /// Samples found.
        found: usize,
        /// N.
        expected: u32,
    },
    /// A slot was fed something else than planned.
    #[error("{step}, {lane}, {slot}: {found} was fed, the plan says {planned}")]
    Foreign {
        /// The step.
        step: Step,
        /// The lane.
        lane: Lane,
        /// The slot.
        slot: Slot,
        /// What was fed.
        found: SampleIndex,
        /// What the plan says.
        planned: SampleIndex,
    },
    /// A substitute that no attempt gives.
    #[error("{step}, {lane}, {slot}: {found} was fed for {planned}, but no attempt substitutes it there")]
    WrongSubstitute {
        /// The step.
        step: Step,
        /// The lane.
        lane: Lane,
        /// The slot.
        slot: Slot,
        /// What was fed.
        found: SampleIndex,
        /// What the plan says.
        planned: SampleIndex,
    },
    /// One sample's bytes changed between uses.
    #[error("{step}: {index} had hash {found}, before it had {before}: the dataset changed under the run")]
    HashChanged {
        /// The step that shows it.
        step: Step,
        /// The sample.
        index: SampleIndex,
        /// The hash now.
        found: String,
        /// The hash at its first use.
        before: String,
    },
    /// One index has two ids.
    #[error("{step}: {index} is `{found}`, before it was `{before}`")]
    IdChanged {
        /// The step that shows it.
        step: Step,
        /// The sample.
        index: SampleIndex,
        /// The id now.
        found: String,
        /// The id at its first use.
        before: String,
    },
    /// One id has two indices.
    #[error("{step}: `{id}` is {found}, before it was {before}")]
    IdMoved {
        /// The step that shows it.
        step: Step,
        /// The id.
        id: String,
        /// Its index now.
        found: SampleIndex,
        /// Its index at its first use.
        before: SampleIndex,
    },
}

/// What one epoch used.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct EpochReport {
    /// The epoch.
    pub epoch: Epoch,
    /// Steps that stand.
    pub steps: u64,
    /// Steps of the whole epoch.
    pub planned_steps: u64,
    /// Different planned samples that were used.
    pub samples: u64,
    /// Samples of the dataset that the epoch's plan does not use.
    pub left_out: u64,
}

/// The outcome of a verification; counts are of samples unless said otherwise.
#[derive(Debug, Clone, PartialEq, Eq, Default, Serialize)]
pub struct VerifyReport {
    /// Steps that stand.
    pub steps: u64,
    /// Samples that were fed in them.
    pub samples: u64,
    /// Planned and not fed, in the steps up to the last committed one.
    pub missing: u64,
    /// Fed again within an epoch, substitutes aside.
    pub twice: u64,
    /// Fed where the plan says something else.
    pub foreign: u64,
    /// Fed in place of a picture that could not be decoded, as the rule of substitution says.
    pub replaced: u64,
    /// Records of steps that were rolled back.
    pub rolled_back: u64,
    /// Steps whose update was skipped.
    pub skipped: u64,
    /// One entry an epoch that has a standing step.
    pub epochs: Vec<EpochReport>,
    /// The first problems, by step.
    pub problems: Vec<Problem>,
    /// All problems, kept or not.
    pub problems_found: u64,
}

impl VerifyReport {
    /// Every committed sample is what the plan says, none missing, none twice, nothing contradictory.
    pub const fn is_exact(&self) -> bool {
        self.problems_found == 0 && self.missing == 0 && self.twice == 0 && self.foreign == 0
    }
}

/// What a ledger rolled back; the first of the two readings fills it.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct RolledBacks(Vec<RolledBack>);

impl RolledBacks {
    /// Notes a record, if it is one.
    pub fn note(&mut self, record: &Record) {
        if let Record::RolledBack(rolled_back) = record {
            self.0.push(rolled_back.clone());
        }
    }

    /// Whether what `generation` committed as `step` still leads to the weights.
    pub fn stands(&self, step: Step, generation: Generation) -> bool {
        !self.0.iter().any(|r| r.to <= step && generation < r.generation)
    }
}

/// Verifies a ledger held in memory.
///
/// # Errors
/// When no plan can be made of `spec`.
pub fn verify<'a, I>(records: I, spec: &PlanSpec) -> Result<VerifyReport, PlanError>
where
    I: IntoIterator<Item = &'a Record>,
    I::IntoIter: Clone,
{
    let records = records.into_iter();
    let mut rolled_backs = RolledBacks::default();
    records.clone().for_each(|r| rolled_backs.note(r));
    let mut verifier = Verifier::new(spec, rolled_backs)?;
    for record in records {
        verifier.record(record)?;
    }
    Ok(verifier.finish())
}

/// A verification in progress, for ledgers that are read line by line.
#[derive(Debug)]
pub struct Verifier {
    spec: PlanSpec,
    schedule: Schedule,
    rolled_backs: RolledBacks,
    plan: EpochPlan,
    /// Generation of each standing step.
    steps: BTreeMap<u64, Generation>,
    tallies: BTreeMap<u64, Tally>,
    seen: HashMap<u64, (String, SampleHash)>,
    index_of: HashMap<String, u64>,
    report: VerifyReport,
}

/// What an epoch planned (in the steps that stand) and what it used.
#[derive(Debug)]
struct Tally {
    steps: u64,
    planned: Bits,
    fed: Bits,
}

impl Verifier {
    /// Begins the second reading.
    ///
    /// # Errors
    /// When no plan can be made of `spec`.
    pub fn new(spec: &PlanSpec, rolled_backs: RolledBacks) -> Result<Self, PlanError> {
        let plan = EpochPlan::new(spec, Epoch::new(0))?;
        let schedule = Schedule::new(plan.steps(), u64::MAX).map_err(|_| PlanError::EmptyBatch {
            lanes: spec.lanes,
            images_per_lane: spec.images_per_lane,
        })?;
        Ok(Self {
            spec: spec.clone(),
            schedule,
            rolled_backs,
            plan,
            steps: BTreeMap::new(),
            tallies: BTreeMap::new(),
            seen: HashMap::new(),
            index_of: HashMap::new(),
            report: VerifyReport::default(),
        })
    }

    /// Checks one record.
    ///
    /// # Errors
    /// When no plan can be made of the spec.
    pub fn record(&mut self, record: &Record) -> Result<(), PlanError> {
        let Record::Committed(committed) = record else {
            return Ok(());
        };
        if !self.rolled_backs.stands(committed.step, committed.generation) {
            self.report.rolled_back += 1;
            return Ok(());
        }
        let place = self.schedule.locate(committed.step);
        if self.plan.epoch() != place.epoch {
            self.plan = EpochPlan::new(&self.spec, place.epoch)?;
        }
        let fresh = match self.steps.entry(committed.step.get()) {
            Entry::Vacant(vacant) => {
                vacant.insert(committed.generation);
                None
            }
            Entry::Occupied(before) => Some(*before.get()),
        };
        if let Some(first) = fresh {
            let (step, second) = (committed.step, committed.generation);
            self.problem(Problem::CommittedTwice { step, first, second });
        } else {
            self.report.steps += 1;
            self.report.skipped += u64::from(committed.skipped);
        }
        if committed.epoch != place.epoch {
            let (step, found, expected) = (committed.step, committed.epoch, place.epoch);
            self.problem(Problem::WrongEpoch { step, found, expected });
        }
        self.tallies.entry(place.epoch.get()).or_insert_with(|| Tally::new(self.spec.dataset_len)).steps +=
            u64::from(fresh.is_none());
        self.lanes(committed, place);
        Ok(())
    }

    fn lanes(&mut self, committed: &Committed, place: Position) {
        let step = committed.step;
        for lane in (0..self.spec.lanes).map(Lane::new) {
            let entries: Vec<&LaneRecord> = committed.lanes.iter().filter(|l| l.lane == lane).collect();
            if entries.len() != 1 {
                self.problem(Problem::WrongLanes { step, lane, found: entries.len(), expected: 1 });
            }
            if entries.is_empty() {
                self.plan_lane(place, lane, &[]);
            }
            for entry in entries {
                self.plan_lane(place, lane, &entry.samples);
                self.lane(step, place, entry);
            }
        }
        let lanes = self.spec.lanes;
        for entry in committed.lanes.iter().filter(|l| l.lane.get() >= lanes) {
            self.problem(Problem::WrongLanes { step, lane: entry.lane, found: 1, expected: 0 });
        }
    }

    /// Marks what the plan gives to `lane`, less what was rightly replaced.
    fn plan_lane(&mut self, place: Position, lane: Lane, samples: &[SampleRecord]) {
        let Some(tally) = self.tallies.get_mut(&place.epoch.get()) else {
            return;
        };
        for slot in 0..self.spec.images_per_lane {
            let replaced = samples.get(slot as usize).and_then(|s| s.replaces);
            if let Some(planned) = self.plan.sample(place.step_in_epoch, lane, Slot::new(slot))
                && replaced != Some(planned)
            {
                tally.planned.set(planned.get());
            }
        }
    }

    fn lane(&mut self, step: Step, place: Position, entry: &LaneRecord) {
        let lane = entry.lane;
        if entry.samples.len() != self.spec.images_per_lane as usize {
            let (found, expected) = (entry.samples.len(), self.spec.images_per_lane);
            self.problem(Problem::WrongCount { step, lane, found, expected });
        }
        for (slot, sample) in (0..).map(Slot::new).zip(&entry.samples) {
            self.report.samples += 1;
            if let Some(planned) = self.plan.sample(place.step_in_epoch, lane, slot) {
                self.slot(step, place, lane, slot, sample, planned);
            } else {
                self.report.foreign += 1;
            }
            self.identity(step, sample);
        }
    }

    fn slot(
        &mut self,
        step: Step,
        place: Position,
        lane: Lane,
        slot: Slot,
        sample: &SampleRecord,
        planned: SampleIndex,
    ) {
        let found = sample.index;
        if sample.replaces == Some(planned) {
            let fits = (0..SUBSTITUTE_ATTEMPTS).any(|attempt| {
                substitute(&self.spec, place.epoch, place.step_in_epoch, lane, slot, attempt) == found
            });
            if fits {
                self.report.replaced += 1;
            } else {
                self.report.foreign += 1;
                self.problem(Problem::WrongSubstitute { step, lane, slot, found, planned });
            }
            return;
        }
        if let Some(tally) = self.tallies.get_mut(&place.epoch.get())
            && tally.fed.set(found.get())
        {
            self.report.twice += 1;
        }
        if found != planned || sample.replaces.is_some() {
            self.report.foreign += 1;
            self.problem(Problem::Foreign { step, lane, slot, found, planned });
        }
    }

    /// The same sample has the same id and bytes whenever it is used.
    fn identity(&mut self, step: Step, sample: &SampleRecord) {
        let index = sample.index;
        let (id, hash) =
            self.seen.entry(index.get()).or_insert_with(|| (sample.id.clone(), sample.hash)).clone();
        if hash != sample.hash {
            let (found, before) = (sample.hash.to_string(), hash.to_string());
            self.problem(Problem::HashChanged { step, index, found, before });
        }
        if id != sample.id {
            let found = sample.id.clone();
            self.problem(Problem::IdChanged { step, index, found, before: id });
        }
        let before = *self.index_of.entry(sample.id.clone()).or_insert(index.get());
        if before != index.get() {
            let (id, before) = (sample.id.clone(), SampleIndex::new(before));
            self.problem(Problem::IdMoved { step, id, found: index, before });
        }
    }

    /// The report.
    pub fn finish(mut self) -> VerifyReport {
        let mut due = 0;
        for step in self.steps.keys().copied().collect::<Vec<_>>() {
            if step > due {
                self.problem(Problem::MissingSteps { first: due, last: step - 1 });
                self.report.missing += (step - due).saturating_mul(self.spec.step_len());
            }
            due = step + 1;
        }
        let planned_steps = self.schedule.steps_per_epoch();
        let left_out = self.spec.dataset_len - planned_steps * self.spec.step_len();
        for (epoch, tally) in &self.tallies {
            self.report.missing += tally.planned.without(&tally.fed);
            self.report.epochs.push(EpochReport {
                epoch: Epoch::new(*epoch),
                steps: tally.steps,
                planned_steps,
                samples: tally.planned.and(&tally.fed),
                left_out,
            });
        }
        self.report
    }

    fn problem(&mut self, problem: Problem) {
        self.report.problems_found += 1;
        if self.report.problems.len() < PROBLEMS_KEPT {
            self.report.problems.push(problem);
        }
    }
}

impl Tally {
    fn new(dataset_len: u64) -> Self {
        Self { steps: 0, planned: Bits::new(dataset_len), fed: Bits::new(dataset_len) }
    }
}

/// A set of numbers below a bound.
#[derive(Debug)]
struct Bits(Vec<u64>);

impl Bits {
    fn new(n: u64) -> Self {
        Self(vec![0; usize::try_from(n.div_ceil(64)).unwrap_or(0)])
    }

    /// Puts `x` in; true where it was in before. Numbers beyond the bound are dropped.
    fn set(&mut self, x: u64) -> bool {
        let Some(word) = usize::try_from(x / 64).ok().and_then(|w| self.0.get_mut(w)) else {
            return false;
        };
        let bit = 1 << (x % 64);
        let before = *word & bit != 0;
        *word |= bit;
        before
    }

    fn and(&self, other: &Self) -> u64 {
        self.0.iter().zip(&other.0).map(|(a, b)| u64::from((a & b).count_ones())).sum()
    }

    fn without(&self, other: &Self) -> u64 {
        self.0.iter().zip(&other.0).map(|(a, b)| u64::from((a & !b).count_ones())).sum()
    }
}
