//! Why things are as they are: typed, and readable.

use crate::event::FailureKind;
use crate::generation::DrainFor;
use mcl_types::{Generation, Rank, WorkerName};
use serde::{Deserialize, Serialize};
use std::fmt;
use std::time::Duration;

/// What the job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// There is no job.
    Idle,
    /// Something is missing for the next generation.
    Waiting,
    /// Ranks start and load.
    Forming,
    /// Steps advance.
    Training,
    /// Ranks finish their step and stage a checkpoint.
    Draining,
    /// All steps are committed and the last checkpoint is visible.
    Done,
    /// It cannot go on.
    Failed,
    /// It was drained, and can be continued.
    Interrupted,
    /// It was stopped for good.
    Cancelled,
}

impl Phase {
    /// Whether the job is over.
    pub const fn is_over(self) -> bool {
        matches!(self, Self::Done | Self::Failed | Self::Interrupted | Self::Cancelled)
    }
}

impl fmt::Display for Phase {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Forming => "forming",
            Self::Training => "training",
            Self::Draining => "draining",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
        })
    }
}

/// Why a generation ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum EndCause {
    /// A worker was silent too long.
    #[error("worker {worker} was silent for {:.1} s", .silent.as_secs_f64())]
    WorkerLost {
        /// Who.
        worker: WorkerName,
        /// How long.
        silent: Duration,
    },
    /// A worker came back and its ranks did not.
    #[error("worker {worker} came back without its ranks")]
    RanksGone {
        /// Who.
        worker: WorkerName,
    },
    /// A rank's process is gone.
    #[error("{rank} on {worker} ended with {status}{}", said(.last_words))]
    RankExited {
        /// Which.
        rank: Rank,
        /// Where.
        worker: WorkerName,
        /// How.
        status: String,
        /// Its last lines.
        last_words: String,
    },
    /// A rank reported that it cannot go on.
    #[error("{rank} on {worker} failed{}: {message}", in_step(*.step))]
    RankFailed {
        /// Which.
        rank: Rank,
        /// Where.
        worker: WorkerName,
        /// Whether starting again could help.
        kind: FailureKind,
        /// What it said.
        message: String,
        /// The step in flight.
        step: Option<u64>,
    },
    /// A rank said something that cannot be.
    #[error("{rank} on {worker} is out of line: {what}")]
    OutOfLine {
        /// Which.
        rank: Rank,
        /// Where.
        worker: WorkerName,
        /// What it said and what was expected.
        what: String,
    },
    /// A rank's group is of no use any more; the rank itself lives.
    #[error("{rank} on {worker} lost its group{}{}: {message}", in_step(*.step), doing(.activity))]
    GroupBroken {
        /// Which.
        rank: Rank,
        /// Where.
        worker: WorkerName,
        /// What it said.
        message: String,
        /// The step in flight.
        step: Option<u64>,
        /// What it was doing.
        activity: String,
    },
    /// A process is gone that was no rank yet.
    #[error("the process on {device} of {worker} ended with {status}{}", said(.last_words))]
    ProcessExited {
        /// Where.
        worker: WorkerName,
        /// On which device.
        device: String,
        /// How.
        status: String,
        /// Its last lines.
        last_words: String,
    },
    /// A process could not become ready.
    #[error("the process on {device} of {worker} failed: {message}")]
    ProcessFailed {
        /// Where.
        worker: WorkerName,
        /// On which device.
        device: String,
        /// Whether starting again could help.
        kind: FailureKind,
        /// What it said.
        message: String,
    },
    /// Ranks did not become ready.
    #[error("not ready after {:.0} s: {}", .after.as_secs_f64(), list(.waiting_for))]
    NotReady {
        /// The patience.
        after: Duration,
        /// Who.
        waiting_for: Vec<(Rank, WorkerName)>,
    },
    /// The checkpoint that everybody waited for cannot be made visible.
    #[error("the checkpoint of step {step} was refused: {reason}")]
    CheckpointRefused {
        /// Which.
        step: u64,
        /// Why.
        reason: String,
    },
}

impl EndCause {
    /// Whether this only says that the cause is with another rank.
    pub const fn is_echo(&self) -> bool {
        matches!(self, Self::GroupBroken { .. } | Self::RankFailed { kind: FailureKind::Collective, .. })
    }

    /// Ranks whose processes cannot be worked with any more.
    pub(crate) fn to_be_replaced(&self) -> Vec<Rank> {
        match self {
            Self::NotReady { waiting_for, .. } => waiting_for.iter().map(|(rank, _)| *rank).collect(),
            Self::OutOfLine { rank, .. } => vec![*rank],
            _ => Vec::new(),
        }
    }

    /// Whether starting again would fail again.
    pub const fn is_fatal(&self) -> bool {
        matches!(
            self,
            Self::RankFailed { kind: FailureKind::Fatal, .. }
                | Self::ProcessFailed { kind: FailureKind::Fatal, .. }
        )
    }
}

fn said(last_words: &str) -> String {
    let last = last_words.trim().lines().last().unwrap_or_default();
    if last.is_empty() { String::new() } else { format!(": {last}") }
}

fn in_step(step: Option<u64>) -> String {
    step.map(|s| format!(" in step {s}")).unwrap_or_default()
}

fn doing(activity: &str) -> String {
    if activity.is_empty() { String::new() } else { format!(" ({activity})") }
}

fn list(ranks: &[(Rank, WorkerName)]) -> String {
    ranks.iter().map(|(rank, worker)| format!("{rank} on {worker}")).collect::<Vec<_>>().join(", ")
}

/// How a job ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub enum Outcome {
    /// All steps are committed, the last checkpoint is visible.
    Done {
        /// Steps of the run.
        steps: u64,
    },
    /// Drained; continues at this step.
    Interrupted {
        /// The newest visible checkpoint, 0 for none.
        step: u64,
    },
    /// Somebody stopped it for good.
    Cancelled {
        /// The newest visible checkpoint, 0 for none.
        step: u64,
    },
    /// It cannot go on.
    Failed(Failure),
}

impl Outcome {
    /// The phase of a job that ended so.
    pub const fn phase(&self) -> Phase {
        match self {
            Self::Done { .. } => Phase::Done,
            Self::Interrupted { .. } => Phase::Interrupted,
            Self::Cancelled { .. } => Phase::Cancelled,
            Self::Failed(_) => Phase::Failed,
        }
    }
}

impl fmt::Display for Outcome {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Done { steps } => write!(f, "all {steps} steps are committed"),
            Self::Interrupted { step } => write!(f, "drained; continues after step {step}"),
            Self::Cancelled { step } => write!(f, "cancelled; the newest checkpoint is that of step {step}"),
            Self::Failed(failure) => failure.fmt(f),
        }
    }
}

/// Why a job failed.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize, thiserror::Error)]
pub enum Failure {
    /// A rank says that it would fail again.
    #[error("{0}")]
    Fatal(EndCause),
    /// No process became ready on any device.
    #[error("{times} processes in a row died on every device before they were ready: {}", all(.causes))]
    NoStart {
        /// How many.
        times: u32,
        /// The last causes, oldest first.
        causes: Vec<EndCause>,
    },
    /// The run has no state to begin with.
    #[error(
        "the state that the run was to begin with is not in the checkpoint service, or is damaged: submit it again with --from, under another name"
    )]
    NoInitial,
    /// What was saved is not to be found.
    #[error(
        "the checkpoint of step {step} was saved, and the checkpoint service shows no good one: start it over the store that holds them (its --root and --flat), then run again; to begin anew, use another run directory"
    )]
    CheckpointsLost {
        /// The newest one that was saved.
        step: u64,
    },
    /// Starting again did not help.
    #[error("{generations} generations in a row ended without a new step: {}", all(.causes))]
    NoProgress {
        /// How many.
        generations: u32,
        /// The last causes, oldest first.
        causes: Vec<EndCause>,
    },
}

/// Each cause once, in the order in which they came, with how often.
fn all(causes: &[EndCause]) -> String {
    let mut distinct: Vec<(String, u32)> = Vec::new();
    for cause in causes.iter().map(ToString::to_string) {
        match distinct.iter_mut().find(|(known, _)| *known == cause) {
            Some((_, times)) => *times += 1,
            None => distinct.push((cause, 1)),
        }
    }
    let told = distinct.into_iter().map(|(cause, times)| match times {
        1 => cause,
        _ => format!("{cause} ({times} times)"),
    });
    told.collect::<Vec<_>>().join("; ")
}

/// What is asked of the checkpoint service.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub enum Asking {
    /// Which checkpoints there are.
    Newest,
    /// To make one visible.
    Commit,
}

impl fmt::Display for Asking {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Newest => "for the newest checkpoint",
            Self::Commit => "to make a checkpoint visible",
        })
    }
}

/// Why the job is in its phase.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub enum Reason {
    /// Nothing was submitted.
    NoJob,
    /// It is held until somebody lets it go on.
    Held,
    /// Too few workers with a process that is ready.
    TooFewWorkers {
        /// Connected ones.
        connected: u32,
        /// Those with a ready process.
        ready: u32,
        /// Needed ones.
        needed: u32,
        /// Devices whose process is on its way.
        preparing: Vec<(WorkerName, String)>,
        /// Those that were here and are silent.
        silent: Vec<(WorkerName, Duration)>,
        /// Why the last generation ended.
        after: Option<EndCause>,
    },
    /// Nobody holds a state, so nobody is left behind.
    Preparing {
        /// Devices whose process is on its way.
        preparing: Vec<(WorkerName, String)>,
    },
    /// A worker that may hold the state is away and not lost yet.
    HolderAway {
        /// Who.
        worker: WorkerName,
        /// Why the last generation ended.
        after: Option<EndCause>,
    },
    /// A rank tells what the steps used that the ledger does not have yet.
    Recounting {
        /// Which.
        rank: Rank,
        /// The first step.
        first: u64,
        /// Beyond the last one.
        end: u64,
    },
    /// Enough workers, but more are on their way.
    ExpectedWorkers {
        /// Connected ones.
        connected: u32,
        /// Expected ones.
        expected: u32,
        /// How long it still waits for them.
        left: Duration,
    },
    /// A rank would carry too many lanes.
    TooFewDevices {
        /// Devices of connected workers.
        devices: u32,
        /// How many are needed.
        needed: u32,
        /// K.
        lanes: u32,
        /// The limit.
        max_lanes_per_rank: u32,
    },
    /// A pause after failures.
    Pausing {
        /// How long.
        left: Duration,
        /// Why the last generation ended.
        after: Option<EndCause>,
    },
    /// The checkpoint service has not answered.
    CheckpointService {
        /// What is asked of it.
        asking: Asking,
    },
    /// Ranks load.
    Forming {
        /// The generation.
        generation: Generation,
        /// Ready ranks.
        ready: u32,
        /// W.
        ranks: u32,
        /// The first ones that are not.
        waiting_for: Vec<(Rank, WorkerName)>,
    },
    /// Steps advance.
    Training {
        /// The generation.
        generation: Generation,
        /// W.
        ranks: u32,
        /// Members that are silent.
        silent: Vec<(WorkerName, Duration)>,
    },
    /// Everybody is to stop at a step boundary.
    Draining {
        /// Ranks that did.
        parked: u32,
        /// W.
        ranks: u32,
        /// Why.
        why: DrainFor,
    },
    /// All ranks are through, the last checkpoint is not visible yet.
    LastCheckpoint {
        /// Which.
        step: u64,
    },
    /// It is over.
    Over(Outcome),
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::NoJob => f.write_str("no job submitted"),
            Self::Held => f.write_str("held: `mcl resume` lets it go on"),
            Self::TooFewWorkers { connected, ready, needed, preparing, silent, after } => {
                write!(f, "{ready} of {needed} workers ready")?;
                if connected != ready {
                    write!(f, ", {connected} connected")?;
                }
                write!(f, "{}{}{}", on_their_way(preparing), silence(silent), since(after.as_ref()))
            }
            Self::Preparing { preparing } => write!(f, "processes start{}", on_their_way(preparing)),
            Self::HolderAway { worker, after } => {
                write!(f, "worker {worker} is away and may hold the newest state{}", since(after.as_ref()))
            }
            Self::Recounting { rank, first, end } => {
                write!(f, "{rank} is asked what steps {first} to {} used", end.saturating_sub(1))
            }
            Self::ExpectedWorkers { connected, expected, left } => {
                write!(
                    f,
                    "{connected} of {expected} expected workers, {:.0} s left",
                    left.as_secs_f64().ceil()
                )
            }
            Self::TooFewDevices { devices, needed, lanes, max_lanes_per_rank } => write!(
                f,
                "{devices} devices cannot carry {lanes} lanes with max_lanes_per_rank {max_lanes_per_rank}: {needed} are needed"
            ),
            Self::Pausing { left, after } => {
                write!(f, "next try in {:.1} s{}", left.as_secs_f64(), since(after.as_ref()))
            }
            Self::CheckpointService { asking } => write!(f, "the checkpoint service is asked {asking}"),
            Self::Forming { generation, ready, ranks, waiting_for } => {
                write!(f, "{generation}: {ready} of {ranks} ranks ready")?;
                if waiting_for.is_empty() { Ok(()) } else { write!(f, ", waiting for {}", list(waiting_for)) }
            }
            Self::Training { generation, ranks, silent } => {
                write!(f, "{generation}: {ranks} ranks{}", silence(silent))
            }
            Self::Draining { parked, ranks, why } => {
                let why = match why {
                    DrainFor::Stop => "",
                    DrainFor::Hold => " to be held",
                    DrainFor::Departure => " because the last worker leaves",
                    DrainFor::Regroup => " to go on with other workers",
                };
                write!(f, "{parked} of {ranks} ranks stopped at a step boundary{why}")
            }
            Self::LastCheckpoint { step } => write!(f, "the checkpoint of step {step} is not visible yet"),
            Self::Over(outcome) => outcome.fmt(f),
        }
    }
}

fn on_their_way(preparing: &[(WorkerName, String)]) -> String {
    preparing.iter().map(|(worker, device)| format!(", {device} of {worker} on its way")).collect()
}

fn silence(silent: &[(WorkerName, Duration)]) -> String {
    silent.iter().map(|(worker, d)| format!(", {worker} silent for {:.1} s", d.as_secs_f64())).collect()
}

fn since(cause: Option<&EndCause>) -> String {
    cause.map(|c| format!(" (after: {c})")).unwrap_or_default()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_cause_that_came_again_is_told_once() {
        let gone = |name: &str| EndCause::RanksGone { worker: WorkerName::new(name) };
        let failure = Failure::NoStart { times: 5, causes: vec![gone("b"), gone("a"), gone("b"), gone("b")] };
        let text = failure.to_string();
        assert_eq!(
            text,
            "5 processes in a row died on every device before they were ready: worker b came back without its ranks (3 \
             times); worker a came back without its ranks"
        );
    }
}
