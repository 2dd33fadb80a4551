//! What the coordinator wants done, in order.

use crate::commit::StepMetrics;
use crate::event::{ProcessId, SessionId};
use crate::generation::{DrainFor, GenerationRecord};
use crate::job::{JobSpec, SubmitError};
use crate::reason::Outcome;
use crate::settling::{Origin, Started};
use mcl_plan::ledger::{Committed, Record};
use mcl_types::{Generation, Rank, Tier, WorkerName};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// One thing to do. Effects are performed in the order in which they come; one that must be durable is
/// durable before the next is begun.
#[derive(Debug, Clone, PartialEq)]
pub enum Effect {
    /// Write to the journal, durably.
    Persist(Persisted),
    /// Send to one stream; dropped where the stream is gone (the worker gets it again when it comes back).
    Send {
        /// The stream.
        session: SessionId,
        /// What to say.
        message: ToWorker,
    },
    /// As `Send`, but only once everything appended to the ledger so far is durable.
    SendOnceDurable {
        /// The stream.
        session: SessionId,
        /// What to say.
        message: ToWorker,
    },
    /// End a stream.
    Close {
        /// The stream.
        session: SessionId,
    },
    /// Append a committed step to metrics and ledger; durable within a second.
    Commit {
        /// The ledger's line.
        record: Committed,
        /// The metrics' row.
        metrics: StepMetrics,
    },
    /// Append another record to the ledger.
    AppendLedger(Record),
    /// Steps from `to` on no longer stand: append `record` to the ledger and take their metrics rows away.
    RollBack {
        /// Steps that stand.
        to: u64,
        /// The ledger's line.
        record: Record,
    },
    /// A worker has served a later coordinator: ask the checkpoint service whether this one still reigns. If it does
    /// not, the coordinator ends.
    CheckReign,
    /// Find the run's visible checkpoints; comes back as [`crate::Event::CheckpointsFound`].
    FindCheckpoints {
        /// Newer ones are of no use: the ledger does not cover them.
        at_most: u64,
    },
    /// Make the ledger durable, then make the staged checkpoint visible; comes back as
    /// [`crate::Event::CheckpointResult`].
    CommitCheckpoint {
        /// State after so many steps.
        step: u64,
        /// The generation that staged it.
        generation: Generation,
        /// Slices that make it up.
        slices: u32,
        /// Where they are kept.
        tier: Tier,
    },
    /// Answer a submission.
    SubmitAnswered {
        /// Which one.
        request: u64,
        /// Steps already committed, or why not.
        result: Result<u64, SubmitError>,
    },
    /// Say something to the log.
    Warn(Warning),
    /// The job is over.
    Over(Outcome),
}

/// What the journal must hold.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Persisted {
    /// A job was accepted: from now on it is run, also after a restart.
    Job(JobSpec),
    /// A generation, before anyone hears of it. The ledger is durable before this is: ranks forget what they
    /// recorded of steps that stand.
    Formed(GenerationRecord),
    /// All its ranks are ready and told to start: a later coordinator may take it over. The ledger is durable
    /// before this is.
    Started(Started),
    /// It is over: nobody may take it over.
    Ended(Generation),
    /// Ranks are asked to stop at the next step boundary.
    Drain(DrainFor),
    /// The job is held, or no longer.
    Held(bool),
    /// A checkpoint is visible.
    Checkpoint(u64),
    /// The job ended.
    Over(Outcome),
}

/// To a worker.
#[derive(Debug, Clone, PartialEq)]
pub enum ToWorker {
    /// It may take part.
    Welcome,
    /// Keep a process of the job ready on each device.
    Prepare,
    /// These processes become ranks.
    Assign {
        /// The generation.
        generation: Generation,
        /// W.
        world: u32,
        /// Steps that stand.
        committed: u64,
        /// This worker's ranks.
        ranks: Vec<RankPost>,
    },
    /// Meet at the store, level the state, then train.
    Start {
        /// The generation.
        generation: Generation,
        /// host:port.
        store_address: String,
        /// The next step to be applied.
        first: u64,
        /// Where the state comes from.
        origin: Origin,
    },
    /// Tell what these steps used.
    Recount {
        /// The generation.
        generation: Generation,
        /// The rank that is asked.
        rank: Rank,
        /// Steps.
        steps: Range<u64>,
    },
    /// Leave the group, keep the state, wait.
    Break {
        /// The generation.
        generation: Generation,
        /// Why.
        reason: String,
    },
    /// Finish the step in flight, leave the group, keep the state.
    Pause {
        /// The generation.
        generation: Generation,
    },
    /// Leave to run an epoch.
    Grant {
        /// The generation.
        generation: Generation,
        /// To this rank.
        rank: Rank,
        /// The epoch.
        epoch: u64,
        /// Its steps.
        steps: u64,
        /// The rank's lanes.
        lanes: Range<u32>,
    },
    /// Steps up to and including this one are durable.
    Committed {
        /// The generation.
        generation: Generation,
        /// The step.
        step: u64,
    },
    /// A checkpoint is visible.
    CheckpointCommitted {
        /// The generation.
        generation: Generation,
        /// State after so many steps.
        step: u64,
        /// Digest of the state.
        digest: String,
    },
    /// Finish the step in flight, stage a checkpoint.
    Drain {
        /// The generation.
        generation: Generation,
    },
    /// This rank's process is to end; its worker starts another one.
    Stop {
        /// The generation.
        generation: Generation,
        /// The rank.
        rank: Rank,
        /// Why.
        reason: String,
    },
    /// It may not take part.
    Refused {
        /// Why, and what to do.
        reason: String,
    },
    /// The job is over.
    Dismiss {
        /// Why.
        reason: String,
        /// Whether the daemon is to go.
        leave: bool,
    },
}

/// A rank's place on a worker.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct RankPost {
    /// The rank.
    pub rank: Rank,
    /// "cpu", "cpu:N" or "cuda:N".
    pub device: String,
    /// The process on it.
    pub process: ProcessId,
}

/// Something a person should know that stops nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Warning {
    /// The service refused to make a checkpoint visible.
    #[error(
        "checkpoint of step {step} was refused: {reason}; training goes on, the one before stays the newest"
    )]
    CheckpointRefused {
        /// Which.
        step: u64,
        /// Why.
        reason: String,
    },
    /// The store knows more than the ledger.
    #[error(
        "the checkpoint store holds step {found}, but only {committed} steps are committed: it is not used"
    )]
    CheckpointAhead {
        /// Newest one found.
        found: u64,
        /// What the ledger holds.
        committed: u64,
    },
    /// A worker was sent away.
    #[error("worker {worker} refused: {reason}")]
    WorkerRefused {
        /// Who.
        worker: WorkerName,
        /// Why.
        reason: String,
    },
    /// Processes on a device die before they are ready, again and again: it is not waited for any more.
    #[error("{failures} processes in a row died before they were ready, not waited for any more: {cause}")]
    DeviceUnfit {
        /// Where.
        worker: WorkerName,
        /// How many.
        failures: u32,
        /// The last one's end.
        cause: Box<crate::reason::EndCause>,
    },
    /// A generation ended.
    #[error("{generation} ended: {cause}")]
    GenerationEnded {
        /// Which.
        generation: Generation,
        /// Why.
        cause: crate::reason::EndCause,
    },
}
