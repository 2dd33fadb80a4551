//! What happens to the coordinator.
//!
//! Already parsed: tokens are present, hashes have their length, lists are lists. What a rank *says* is
//! still a claim and judged by the core.

use crate::job::{JobSpec, PastRun};
use mcl_plan::ledger::LaneRecord;
use mcl_types::{FencingToken, Generation, Rank, RunId, Tier, WorkerName};
use serde::{Deserialize, Serialize};
use std::time::Duration;

/// One stream of one worker; a worker that comes back has a new one.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct SessionId(pub u64);

/// One rank process of a worker; a number is never used twice under a worker's name.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(transparent)]
pub struct ProcessId(pub u64);

/// Something that happened.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Event {
    /// A worker opened a stream and said hello.
    Connected {
        /// The stream.
        session: SessionId,
        /// What it said.
        hello: Hello,
    },
    /// A worker is alive, with what its ranks did since.
    Heartbeat {
        /// The stream.
        session: SessionId,
        /// It was asked to leave.
        leaving: bool,
        /// Oldest first.
        events: Vec<RankEvent>,
    },
    /// A stream broke or ended.
    Disconnected {
        /// The stream.
        session: SessionId,
    },
    /// A person or a program submits a job; answered with [`crate::Effect::SubmitAnswered`].
    Submit {
        /// Names the answer.
        request: u64,
        /// The job.
        spec: JobSpec,
        /// What is on record of its run, where that is not the last one.
        past: Option<Box<PastRun>>,
    },
    /// Finish the step in flight, checkpoint, stop.
    Drain,
    /// Finish the step in flight, checkpoint, hold: processes stay until [`Event::Resume`].
    Hold,
    /// Go on after [`Event::Hold`].
    Resume,
    /// Stop for good, without a checkpoint.
    Cancel,
    /// The visible checkpoints of the run: state after so many steps.
    CheckpointsFound {
        /// Durable ones, in any order.
        steps: Vec<u64>,
        /// Those in the service's memory.
        in_memory: Vec<u64>,
        /// Whether there are others, which are not to be trusted.
        damaged: bool,
    },
    /// What became of a [`crate::Effect::CommitCheckpoint`]. Whoever performs it retries while the service is
    /// away; an error means that the service refused.
    CheckpointResult {
        /// The checkpoint.
        step: u64,
        /// Its digest, or why it was refused.
        result: Result<String, String>,
    },
    /// The coordinator itself did nothing for so long: nobody's silence counts for that time.
    HeldUp {
        /// How long.
        by: Duration,
    },
    /// Time passed. To be sent several times within `lost_after`.
    Tick,
}

/// Who a worker is.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct Hello {
    /// Its name.
    pub worker: WorkerName,
    /// Its version.
    pub build: String,
    /// Its libtorch's version; empty where unknown.
    pub libtorch: String,
    /// One a rank process that it can run.
    pub devices: Vec<String>,
    /// Where other ranks reach it.
    pub advertise: String,
    /// The highest token that it has seen.
    pub highest: FencingToken,
    /// The rank processes that it runs.
    pub processes: Vec<RankProcess>,
    /// It was asked to leave.
    pub leaving: bool,
}

/// A rank process that is alive.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct RankProcess {
    /// Where it runs.
    pub device: String,
    /// Which one it is.
    pub process: ProcessId,
    /// The run whose job it was configured with.
    pub run_id: Option<RunId>,
    /// It can join a generation.
    pub prepared: bool,
    /// The generation that it joined last, 0 for none.
    pub generation: Generation,
    /// It has trained.
    pub holds_state: bool,
}

/// A rank process's event, as its worker passed it on.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct RankEvent {
    /// The generation it joined, 0 for none. Generations are unique over all terms, so the term adds nothing here.
    pub generation: Generation,
    /// The rank in it.
    pub rank: Rank,
    /// Where the process runs.
    pub device: String,
    /// The process.
    pub process: ProcessId,
    /// What it said.
    pub said: RankSaid,
}

/// What a process holds when it joins a generation.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub struct Holding {
    /// The state after so many steps; none: no state.
    pub applied: Option<u64>,
    /// The generation that applied the last of them, or that the state was loaded in.
    pub trained_in: Generation,
    /// It can recount the steps from here to `applied`.
    pub recorded_from: u64,
}

/// What a rank says.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum RankSaid {
    /// The worker started it; it builds its model.
    Spawned,
    /// Model built, dataset open, digests equal: it can join a generation.
    Prepared,
    /// It joined the generation.
    Ready {
        /// host:port of the store; rank 0 only, empty for others.
        store_address: String,
        /// What it holds.
        holding: Holding,
    },
    /// What all lanes did in steps that it applied, with the generation that applied each.
    Recounted(Vec<(Generation, StepReport)>),
    /// It stopped at a step boundary and keeps its state.
    Paused {
        /// Steps.
        step: u64,
    },
    /// Its group is of no use any more; it keeps its state and waits.
    Broken {
        /// As a person reads it.
        message: String,
        /// The step in flight.
        step: Option<u64>,
        /// What it was doing.
        activity: String,
    },
    /// The group is formed and all hold the same state.
    Training {
        /// The next step to be applied.
        next_step: u64,
    },
    /// A step was applied.
    Step(StepReport),
    /// The slice of the state after `step` steps is stored.
    Staged {
        /// Steps.
        step: u64,
        /// Slices of the whole.
        slices: u32,
        /// Where it is kept.
        tier: Tier,
    },
    /// Training stopped after `step` steps, the checkpoint of it is staged.
    Drained {
        /// Steps.
        step: u64,
    },
    /// The last step is applied, its checkpoint staged.
    Finished,
    /// The rank cannot go on.
    Failed {
        /// Whether starting again could help.
        kind: FailureKind,
        /// As a person reads it.
        message: String,
        /// The step in flight.
        step: Option<u64>,
    },
    /// The process is gone.
    Exited {
        /// As a person reads it.
        status: String,
        /// The last lines it wrote.
        last_words: String,
    },
}

/// Whether starting again could help.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum FailureKind {
    /// A peer is gone: the cause is elsewhere.
    Collective,
    /// It would fail again.
    Fatal,
    /// It may help.
    Other,
}

/// One applied step on one rank.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct StepReport {
    /// The step, from 0 over the run.
    pub step: u64,
    /// Its epoch.
    pub epoch: u64,
    /// One entry a lane that the rank carries, in lane order.
    pub lanes: Vec<LaneReport>,
    /// Learning rate of the step.
    pub learning_rate: f64,
    /// Momentum of the target encoder.
    pub momentum: f64,
    /// Norm of the reduced gradient before clipping.
    pub grad_norm: f64,
    /// The update was skipped.
    pub skipped: bool,
    /// Wall time of the step.
    pub step_seconds: f64,
    /// Of it, time spent waiting for pictures.
    pub data_wait_seconds: f64,
    /// Of it, the forward pass.
    pub forward_seconds: f64,
    /// Of it, the backward pass.
    pub backward_seconds: f64,
    /// Of forward and backward, time in collectives.
    pub collective_seconds: f64,
}

/// What one lane did in a step.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct LaneReport {
    /// The lane and what it was fed.
    pub fed: LaneRecord,
    /// q side of levels 0..L, then k side; empty where not finite.
    pub losses: Vec<f64>,
}
