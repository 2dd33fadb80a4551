//! What the coordinator must know of a job.

use mcl_plan::{Position, Schedule, ScheduleError};
use mcl_types::{Digest, RunId, Step};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// A job, as far as decisions depend on it.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct JobSpec {
    /// Name of the run.
    pub run_id: RunId,
    /// Digest of the resolved job file: two submissions with the same one are the same job.
    pub job_digest: Digest,
    /// Digest of what the epoch plan depends on: a run's ledger is a ledger of one plan.
    pub plan_digest: Digest,
    /// K.
    pub lanes: u32,
    /// N.
    pub images_per_lane: u32,
    /// Steps of an epoch and of the run.
    pub schedule: Schedule,
    /// Workers without which nothing starts.
    pub min_workers: u32,
    /// Most lanes that one rank may carry; none: as many as it takes.
    pub max_lanes_per_rank: Option<u32>,
    /// Silence after which a worker is lost, where the job says so.
    pub lost_after: Option<Duration>,
    /// Digest of the state that the run begins with, kept as its checkpoint of step 0; none: the seed's.
    #[serde(default)]
    pub initial: Option<Digest>,
}

/// What is on record of a run that has ended, or was never begun.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PastRun {
    /// The job as it was.
    pub spec: JobSpec,
    /// Steps that stand.
    pub committed: u64,
    /// Its newest visible checkpoint, as far as known.
    pub last_checkpoint: Option<u64>,
    /// No generation of it was ever started.
    pub fresh: bool,
}

/// A job that could never run.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum JobSpecError {
    /// No lanes, pictures or workers.
    #[error(
        "[batch] lanes is {lanes}, images_per_lane {images_per_lane}, [elastic] min_workers {min_workers}: expected all to be at least 1"
    )]
    Empty {
        /// K.
        lanes: u32,
        /// N.
        images_per_lane: u32,
        /// Workers asked for.
        min_workers: u32,
    },
    /// More workers than there are lanes for.
    #[error(
        "[elastic] min_workers is {min_workers}, but the job has {lanes} lanes: at most {lanes} workers can carry one; lower min_workers or raise [batch] lanes"
    )]
    MoreWorkersThanLanes {
        /// Workers asked for.
        min_workers: u32,
        /// K.
        lanes: u32,
    },
    /// A rank may carry nothing.
    #[error("[elastic] max_lanes_per_rank is 0: expected at least 1")]
    NoLanesPerRank,
    /// No steps.
    #[error(transparent)]
    Schedule(#[from] ScheduleError),
}

/// Why a submission is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum SubmitError {
    /// One job at a time.
    #[error(
        "this coordinator is running `{running}` and has a directory for one run: wait, start another coordinator in another run directory, or start it with --runs, which queues jobs"
    )]
    Busy {
        /// The running job.
        running: RunId,
    },
    /// The running job under the same name is another one.
    #[error("`{run_id}` is running with another job file: drain it first, then submit the changed one")]
    Changed {
        /// The running job.
        run_id: RunId,
    },
    /// The run directory belongs to another run.
    #[error(
        "this run directory holds run `{found}`, not `{asked}`: use another directory, submit as `{found}`, or start the coordinator with --runs for one run after the other"
    )]
    OtherRun {
        /// Whose directory it is.
        found: RunId,
        /// Who asked.
        asked: RunId,
    },
    /// The plan changed, so the ledger could not be continued.
    #[error(
        "run `{run_id}` has {committed} committed steps of another epoch plan: data, seed, lanes, images_per_lane and shuffle must stay as they were; restore them or use another run directory"
    )]
    OtherPlan {
        /// The run.
        run_id: RunId,
        /// What it has.
        committed: u64,
    },
    /// Model, method, augmentation, optimiser or numbers changed: the steps that stand are another job's.
    #[error(
        "run `{run_id}` has {committed} committed steps of another job: only its length, places and machines may change; restore the job file or use another run directory"
    )]
    OtherJob {
        /// The run.
        run_id: RunId,
        /// What it has.
        committed: u64,
    },
    /// It began with another state.
    #[error(
        "run `{run_id}` began with {}, not with the state that is given: submit without --from to continue it, or under another name to begin anew", .found.map_or_else(|| "the weights of its seed".to_owned(), |d| format!("the state {}", d.short()))
    )]
    OtherInitial {
        /// The run.
        run_id: RunId,
        /// What it began with.
        found: Option<Digest>,
    },
    /// It would end before where it is.
    #[error(
        "run `{run_id}` has {committed} committed steps, but the job now ends after {total}: raise [train] epochs or steps"
    )]
    BeyondEnd {
        /// The run.
        run_id: RunId,
        /// What it has.
        committed: u64,
        /// Where it would end.
        total: u64,
    },
}

impl PastRun {
    /// From what was written down: `committed` steps stand, and whether a generation was ever started.
    pub fn on_record(spec: JobSpec, committed: u64, checkpoint: Option<u64>, started: bool) -> Self {
        let fresh = !started && committed == 0 && checkpoint.is_none() && spec.initial.is_none();
        Self { spec, committed, last_checkpoint: checkpoint.filter(|c| *c <= committed), fresh }
    }

    /// Whether the run can be continued as `spec`.
    ///
    /// # Errors
    /// When what stands is of another plan, job or initial state, or the job now ends before it.
    pub fn judge(&self, spec: &JobSpec) -> Result<(), SubmitError> {
        let (run_id, committed) = (spec.run_id.clone(), self.committed);
        if committed > 0 && self.spec.plan_digest != spec.plan_digest {
            return Err(SubmitError::OtherPlan { run_id, committed });
        }
        if committed > 0 && self.spec.job_digest != spec.job_digest {
            return Err(SubmitError::OtherJob { run_id, committed });
        }
        self.spec.judge_initial(spec)?;
        if committed > spec.total_steps() {
            return Err(SubmitError::BeyondEnd { run_id, committed, total: spec.total_steps() });
        }
        Ok(())
    }
}

impl JobSpec {
    /// Whether the job could ever run.
    ///
    /// # Errors
    /// When there is nothing to do, nobody to do it, or more workers are demanded than could have a lane.
    pub const fn check(&self) -> Result<(), JobSpecError> {
        let (lanes, images_per_lane, min_workers) = (self.lanes, self.images_per_lane, self.min_workers);
        if lanes == 0 || images_per_lane == 0 || min_workers == 0 {
            return Err(JobSpecError::Empty { lanes, images_per_lane, min_workers });
        }
        if min_workers > lanes {
            return Err(JobSpecError::MoreWorkersThanLanes { min_workers, lanes });
        }
        if matches!(self.max_lanes_per_rank, Some(0)) {
            return Err(JobSpecError::NoLanesPerRank);
        }
        Ok(())
    }

    /// Whether a submission may name the state that it names: a run keeps the one that it began with.
    pub(crate) fn judge_initial(&self, asked: &Self) -> Result<(), SubmitError> {
        if asked.initial.is_some() && asked.initial != self.initial {
            return Err(SubmitError::OtherInitial { run_id: asked.run_id.clone(), found: self.initial });
        }
        Ok(())
    }

    /// Steps of the run.
    pub const fn total_steps(&self) -> u64 {
        self.schedule.total_steps()
    }

    /// Where the step after `steps` steps lies.
    pub const fn position(&self, steps: u64) -> Position {
        self.schedule.locate(Step::new(steps))
    }
}
