//! What a person is told.

use crate::commit::StepMetrics;
use crate::generation::{Live, Member};
use crate::reason::{Asking, Phase, Reason};
use crate::state::{Job, Stage, State};
use mcl_types::{Generation, Rank, RunId, Term, WorkerName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// Everything that `mcl status` shows.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct Status {
    /// The run, where there is a job.
    pub run_id: Option<RunId>,
    /// What the job is doing.
    pub phase: Phase,
    /// Why.
    pub reason: Reason,
    /// The coordinator's reign.
    pub term: Term,
    /// The live generation, or the last one.
    pub generation: Generation,
    /// Steps that stand.
    pub committed_steps: u64,
    /// Steps of the run.
    pub total_steps: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Known workers, in name order.
    pub workers: Vec<WorkerStatus>,
    /// The last committed step.
    pub last_step: Option<StepMetrics>,
    /// Share of a step that waits for pictures, over about 20 steps.
    pub data_wait_share: f64,
    /// Newest visible checkpoint.
    pub last_checkpoint: Option<u64>,
    /// The coordinator's version.
    pub build: String,
    /// The ranks of the live generation, in order.
    pub ranks: Vec<RankStatus>,
}

/// One rank's pace, means over about 20 steps.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankStatus {
    /// The rank.
    pub rank: Rank,
    /// Its worker.
    pub worker: WorkerName,
    /// Its device.
    pub device: String,
    /// A step.
    pub step_seconds: f64,
    /// Of it, waiting for pictures.
    pub data_wait_seconds: f64,
    /// Of it, forward.
    pub forward_seconds: f64,
    /// Of it, backward.
    pub backward_seconds: f64,
    /// Of forward and backward, in collectives.
    pub collective_seconds: f64,
    /// The others wait for it.
    pub straggler: bool,
    /// The last step that it reported.
    pub last_step: u64,
}

/// One worker.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct WorkerStatus {
    /// Its name.
    pub worker: WorkerName,
    /// Its ranks in the live generation.
    pub ranks: Vec<Rank>,
    /// What it is doing.
    pub state: WorkerState,
    /// Since when nothing was heard.
    pub silent: Duration,
    /// Where other ranks reach it.
    pub advertise: String,
}

/// What a worker is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It has no rank.
    Connected,
    /// A rank of it loads.
    Preparing,
    /// Its ranks wait for others.
    Ready,
    /// Its ranks train.
    Training,
    /// It asked to leave.
    Leaving,
    /// It has no stream.
    Lost,
}

impl fmt::Display for WorkerState {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Connected => "connected",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Training => "training",
            Self::Leaving => "leaving",
            Self::Lost => "lost",
        })
    }
}

impl State {
    /// What is going on at time `now`.
    pub fn status(&self, now: Duration) -> Status {
        self.told(now, true)
    }

    /// As [`State::status`], without workers and ranks one by one; and how many workers are there.
    pub fn summary(&self, now: Duration) -> (Status, usize) {
        (self.told(now, false), self.workers.values().filter(|w| w.session.is_some()).count())
    }

    fn told(&self, now: Duration, detail: bool) -> Status {
        let (phase, reason) = self.phase(now);
        let job = self.job.as_ref();
        Status {
            run_id: job.map(|j| j.spec.run_id.clone()),
            phase,
            reason,
            term: self.term,
            generation: self.last_generation,
            committed_steps: self.committed(),
            total_steps: job.map_or(0, |j| j.spec.total_steps()),
            steps_per_epoch: job.map_or(0, |j| j.spec.schedule.steps_per_epoch()),
            workers: if detail { self.worker_statuses(now) } else { Vec::new() },
            last_step: job.and_then(|j| j.last_step.clone()),
            data_wait_share: job.map_or(0.0, |j| j.data_wait_share),
            last_checkpoint: job.and_then(|j| j.last_checkpoint),
            build: self.settings.build.clone(),
            ranks: if detail { self.rank_statuses() } else { Vec::new() },
        }
    }

    /// What the job is doing and why.
    pub fn phase(&self, now: Duration) -> (Phase, Reason) {
        let Some(job) = self.job.as_ref() else { return (Phase::Idle, Reason::NoJob) };
        match &job.stage {
            Stage::Gathering(gathering) => {
                // Nothing is missing only where the last checkpoint of a job without a step left is looked for.
                let asking = Reason::CheckpointService { asking: Asking::Newest };
                (Phase::Waiting, self.missing(job, gathering, now).unwrap_or(asking))
            }
            Stage::Live(live) => self.live_phase(job, live, now),
            Stage::Over(outcome) => (outcome.phase(), Reason::Over(outcome.clone())),
        }
    }

    fn live_phase(&self, job: &Job, live: &Live, now: Duration) -> (Phase, Reason) {
        let (generation, ranks) = (live.generation, live.layout.world());
        let total = job.spec.total_steps();
        let parked = live.members.iter().filter(|m| m.parked_at(total).is_some()).count();
        let parked = u32::try_from(parked).unwrap_or(u32::MAX);
        if !live.started {
            let (ready, waiting_for) = (live.ready(), live.joining());
            let forming = Reason::Forming { generation, ready, ranks, waiting_for };
            let unsettled = if ready == ranks { self.unsettled(job) } else { None };
            return (Phase::Forming, unsettled.unwrap_or(forming));
        }
        if parked == ranks && live.drain.is_none_or(crate::DrainFor::stages) {
            let step = live.members.iter().find_map(|m| m.parked_at(total)).unwrap_or(total);
            return (Phase::Draining, Reason::LastCheckpoint { step });
        }
        if let Some(why) = live.drain {
            return (Phase::Draining, Reason::Draining { parked, ranks, why });
        }
        let mut silent = self.silent(now);
        silent.retain(|(name, _)| !live.ranks_of(name).is_empty());
        (Phase::Training, Reason::Training { generation, ranks, silent })
    }

    fn worker_statuses(&self, now: Duration) -> Vec<WorkerStatus> {
        let live = self.live();
        self.workers
            .iter()
            .map(|(name, worker)| {
                let ranks = live.map(|l| l.ranks_of(name)).unwrap_or_default();
                let is = |stage: fn(&Member) -> bool| {
                    live.is_some_and(|l| {
                        ranks.iter().any(|r| l.members.get(r.get() as usize).is_some_and(stage))
                    })
                };
                let state = match () {
                    () if worker.session.is_none() => WorkerState::Lost,
                    () if worker.leaving => WorkerState::Leaving,
                    () if ranks.is_empty() && worker.slots.iter().any(|s| s.is_prepared()) => {
                        WorkerState::Ready
                    }
                    () if ranks.is_empty() && worker.slots.iter().any(|s| s.process.is_some()) => {
                        WorkerState::Preparing
                    }
                    () if ranks.is_empty() => WorkerState::Connected,
                    () if is(|m| *m == Member::Joining) => WorkerState::Preparing,
                    () if is(|m| matches!(m, Member::Ready(_))) => WorkerState::Ready,
                    () => WorkerState::Training,
                };
                let silent = now.saturating_sub(worker.last_heard);
                WorkerStatus {
                    worker: name.clone(),
                    ranks,
                    state,
                    silent,
                    advertise: worker.advertise.clone(),
                }
            })
            .collect()
    }
}
