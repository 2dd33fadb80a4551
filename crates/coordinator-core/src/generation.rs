//! One membership: who carries which lanes, and how far each rank is.

use crate::effect::{Effect, Persisted, RankPost, ToWorker, Warning};
use crate::event::StepReport;
use crate::reason::EndCause;
use crate::state::{Ended, Gathering, Stage, Turn};
use mcl_plan::ledger::{Record, Resumed, RolledBack};
use mcl_types::{Generation, LaneLayout, Rank, Step, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// What the journal holds of a generation.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct GenerationRecord {
    /// Its number.
    pub generation: Generation,
    /// Checkpoint that it begins with; none: from the seed.
    pub resume: Option<u64>,
    /// Its first step.
    pub first: u64,
    /// Where its ranks are, in rank order.
    pub places: Vec<Place>,
    /// What it rolled back, so that the ledger can be completed after a crash between the two writes.
    pub rolled_back: Option<RolledBack>,
}

/// Where a rank runs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Place {
    /// The worker.
    pub worker: WorkerName,
    /// Its device.
    pub device: String,
}

/// How far a rank is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Member {
    /// It builds its model.
    Preparing,
    /// It waits for the others.
    Ready,
    /// It trains, or meets the others.
    Training,
    /// It was drained after so many steps.
    Drained(u64),
    /// It applied the last step.
    Finished,
}

impl Member {
    /// Where it stands still, if it does.
    pub(crate) const fn parked_at(&self, total: u64) -> Option<u64> {
        match self {
            Self::Drained(step) => Some(*step),
            Self::Finished => Some(total),
            _ => None,
        }
    }
}

/// Why a live generation is being stopped.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum DrainFor {
    /// The job ends.
    Stop,
    /// Spare devices are to be taken in.
    Growth,
}

/// The live generation.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Live {
    pub(crate) generation: Generation,
    pub(crate) layout: LaneLayout,
    pub(crate) resume: Option<u64>,
    pub(crate) first: u64,
    /// The furthest step ever committed when it was formed.
    pub(crate) furthest_before: u64,
    pub(crate) formed_at: Duration,
    pub(crate) places: Vec<Place>,
    /// In rank order.
    pub(crate) members: Vec<Member>,
    pub(crate) started: bool,
    /// Of rank 0, once it is ready.
    pub(crate) store_address: Option<String>,
    /// Reports of steps that are not committed yet.
    pub(crate) pending: BTreeMap<u64, BTreeMap<Rank, StepReport>>,
    /// Epochs below this one are granted.
    pub(crate) granted: u64,
    /// Checkpoints of which some slices are staged.
    pub(crate) staged: BTreeMap<u64, Staging>,
    pub(crate) drain: Option<DrainFor>,
    /// Checkpoints that the service will not make visible.
    pub(crate) refused: BTreeMap<u64, String>,
    /// Since when there is a device to take in.
    pub(crate) spare_since: Option<Duration>,
}

/// A checkpoint on its way.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Staging {
    pub(crate) slices: u32,
    pub(crate) ranks: BTreeSet<Rank>,
}

impl Live {
    /// As recorded, with every rank at the same stage.
    pub(crate) fn new(
        record: &GenerationRecord,
        layout: LaneLayout,
        furthest: u64,
        now: Duration,
        member: &Member,
    ) -> Self {
        Self {
            generation: record.generation,
            layout,
            resume: record.resume,
            first: record.first,
            furthest_before: furthest,
            formed_at: now,
            places: record.places.clone(),
            members: vec![member.clone(); record.places.len()],
            started: *member == Member::Training,
            store_address: None,
            pending: BTreeMap::new(),
            granted: 0,
            staged: BTreeMap::new(),
            drain: None,
            refused: BTreeMap::new(),
            spare_since: None,
        }
    }

    /// All ranks.
    pub(crate) fn ranks(&self) -> impl Iterator<Item = Rank> + use<> {
        (0..self.layout.world()).map(Rank::new)
    }

    /// The ranks of one worker.
    pub(crate) fn ranks_of(&self, worker: &WorkerName) -> Vec<Rank> {
        self.ranks().filter(|r| self.place(*r).is_some_and(|p| p.worker == *worker)).collect()
    }

    /// Where a rank runs.
    pub(crate) fn place(&self, rank: Rank) -> Option<&Place> {
        self.places.get(rank.get() as usize)
    }

    /// How far a rank is.
    pub(crate) fn member(&mut self, rank: Rank) -> Option<&mut Member> {
        self.members.get_mut(rank.get() as usize)
    }

    /// The workers of this generation, in name order.
    pub(crate) fn workers(&self) -> BTreeSet<&WorkerName> {
        self.places.iter().map(|p| &p.worker).collect()
    }

    /// Ranks at `stage`.
    pub(crate) fn count(&self, stage: &Member) -> u32 {
        let n = self.members.iter().filter(|m| *m == stage).count();
        u32::try_from(n).unwrap_or(u32::MAX)
    }

    /// Ranks that wait to become ready, with their workers.
    pub(crate) fn preparing(&self) -> Vec<(Rank, WorkerName)> {
        self.ranks()
            .zip(&self.members)
            .filter(|(_, m)| **m == Member::Preparing)
            .filter_map(|(r, _)| Some((r, self.place(r)?.worker.clone())))
            .collect()
    }
}

impl Turn<'_> {
    /// Makes `record` the live generation: persisted first, then the roll back, then the assignments.
    pub(crate) fn form(&mut self, record: GenerationRecord, layout: LaneLayout) {
        let now = self.now;
        let Some(job) = self.state.job.as_mut() else { return };
        let live = Live::new(&record, layout, job.furthest, now, &Member::Preparing);
        job.committed = record.first;
        job.last_checkpoint = record.resume;
        self.state.last_generation = record.generation;
        self.out.push(Effect::Persist(Persisted::Formed(record.clone())));
        if let Some(rolled_back) = record.rolled_back {
            let to = rolled_back.to.get();
            self.out.push(Effect::RollBack { to, record: Record::RolledBack(rolled_back) });
        }
        job.stage = Stage::Live(live);
        self.assign(None);
    }

    /// Sends the live generation's assignments, to one worker or to all of them.
    pub(crate) fn assign(&mut self, only: Option<&WorkerName>) {
        let Some(live) = self.state.live() else { return };
        let mut messages = Vec::new();
        for worker in live.workers() {
            if only.is_some_and(|o| o != worker) {
                continue;
            }
            let ranks = live
                .ranks_of(worker)
                .into_iter()
                .filter_map(|rank| Some(RankPost { rank, device: live.place(rank)?.device.clone() }))
                .collect();
            let assign = ToWorker::Assign {
                generation: live.generation,
                world: live.layout.world(),
                resume: live.resume,
                ranks,
            };
            messages.push((worker.clone(), assign));
        }
        for (worker, message) in messages {
            self.send(&worker, message);
        }
    }

    /// Once every rank is ready: persist that, give the store's address out and the first epochs.
    pub(crate) fn start_if_ready(&mut self) {
        let Some(live) = self.state.live_mut() else { return };
        let Some(store_address) = live.store_address.clone() else { return };
        if live.started || live.count(&Member::Ready) != live.layout.world() {
            return;
        }
        live.started = true;
        live.members.fill(Member::Training);
        let (generation, ranks, first) = (live.generation, live.layout.world(), live.first);
        let store = store_address.clone();
        self.out.push(Effect::Persist(Persisted::Started { generation, store_address: store }));
        let resumed = Resumed { generation, step: Step::new(first), ranks };
        self.out.push(Effect::AppendLedger(Record::Resumed(resumed)));
        self.broadcast(&ToWorker::Start { generation, store_address });
        self.grant_ahead();
    }

    /// Grants the epoch that the next step lies in and the one after it.
    pub(crate) fn grant_ahead(&mut self) {
        let Some(job) = self.state.job.as_mut() else { return };
        let schedule = job.spec.schedule;
        let current = job.spec.position(job.committed).epoch.get();
        let Stage::Live(live) = &mut job.stage else { return };
        if !live.started {
            return;
        }
        let until = (current + 2).min(schedule.epochs());
        let from = live.granted.max(current);
        live.granted = live.granted.max(until);
        self.send_grants(from..until, None);
    }

    /// Sends grants to the ranks of one worker, or to all.
    pub(crate) fn send_grants(&mut self, epochs: std::ops::Range<u64>, only: Option<&WorkerName>) {
        let Some(job) = self.state.job.as_ref() else { return };
        let Stage::Live(live) = &job.stage else { return };
        let mut messages = Vec::new();
        for epoch in epochs {
            let steps = job.spec.schedule.steps_in(mcl_types::Epoch::new(epoch));
            for (rank, place) in live.ranks().zip(&live.places) {
                if only.is_none_or(|o| *o == place.worker) {
                    let lanes = live.layout.lanes_of(rank);
                    let grant = ToWorker::Grant { generation: live.generation, rank, epoch, steps, lanes };
                    messages.push((place.worker.clone(), grant));
                }
            }
        }
        for (worker, message) in messages {
            self.send(&worker, message);
        }
    }

    /// Ends the live generation because of `cause`, and decides what comes next. The one place that says
    /// what becomes of survivors: they stop, and everybody begins at the newest checkpoint.
    pub(crate) fn end_generation(&mut self, cause: EndCause) {
        let Some(generation) = self.close_generation(&cause.to_string()) else { return };
        self.out.push(Effect::Warn(Warning::GenerationEnded { generation, cause: cause.clone() }));
        let now = self.now;
        let limit = self.state.settings.fruitless_limit.max(1);
        let Some(job) = self.state.job.as_mut() else { return };
        job.ended = Some(Ended { generation, cause: Some(cause.clone()) });
        job.causes.push(cause.clone());
        let keep = limit as usize;
        job.causes.drain(..job.causes.len().saturating_sub(keep));
        let not_before = now + pause(job.fruitless);
        job.stage = Stage::Gathering(Gathering::new(now, not_before, false));
        if cause.is_fatal() {
            self.over(crate::reason::Outcome::Failed(crate::reason::Failure::Fatal(cause)));
        } else if job.fruitless >= limit {
            let causes = job.causes.clone();
            let generations = job.fruitless;
            let failure = crate::reason::Failure::NoProgress { generations, causes };
            self.over(crate::reason::Outcome::Failed(failure));
        }
    }

    /// Stops the live generation's ranks and counts whether it brought the run forward.
    pub(crate) fn close_generation(&mut self, reason: &str) -> Option<Generation> {
        let generation = self.state.live()?.generation;
        self.out.push(Effect::Persist(Persisted::Ended(generation)));
        self.broadcast(&ToWorker::Stop { generation, reason: reason.to_owned() });
        let job = self.state.job.as_mut()?;
        let Stage::Live(live) = &job.stage else { return None };
        if job.furthest > live.furthest_before {
            job.fruitless = 0;
            job.causes.clear();
        } else {
            job.fruitless += 1;
        }
        Some(generation)
    }
}

/// None after the first failure, then a second more each time: enough for a port or a file system to
/// come back, short against a restart of ranks.
fn pause(fruitless: u32) -> Duration {
    Duration::from_secs(u64::from(fruitless.saturating_sub(1)))
}
