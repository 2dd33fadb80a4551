//! Plain data that the page is given: what a cluster looks like at one moment. What happens in it is [`mcl_history`]'s.
//!
//! Nothing here knows where it comes from; times are seconds since 1970.

use serde::Serialize;

/// What the job is doing.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Phase {
    /// There is no job.
    #[default]
    Idle,
    /// Something is missing for the next generation.
    Waiting,
    /// Ranks start and load.
    Forming,
    /// Steps advance.
    Training,
    /// Ranks stop at a step boundary.
    Draining,
    /// All steps are committed.
    Done,
    /// It cannot go on.
    Failed,
    /// It was drained.
    Interrupted,
    /// It was stopped for good.
    Cancelled,
}

impl Phase {
    /// Every one.
    pub const ALL: [Self; 9] = [
        Self::Idle,
        Self::Waiting,
        Self::Forming,
        Self::Training,
        Self::Draining,
        Self::Done,
        Self::Failed,
        Self::Interrupted,
        Self::Cancelled,
    ];

    /// As it is written everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Idle => "idle",
            Self::Waiting => "waiting",
            Self::Forming => "forming",
            Self::Training => "training",
            Self::Draining => "draining",
            Self::Done => "done",
            Self::Failed => "failed",
            Self::Interrupted => "interrupted",
            Self::Cancelled => "cancelled",
        }
    }
}

/// What a worker is doing; the first ones need attention first.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum WorkerState {
    /// It has no stream.
    Lost,
    /// It asked to leave.
    Leaving,
    /// It has no rank.
    Connected,
    /// A rank of it loads.
    Preparing,
    /// Its ranks wait for others.
    Ready,
    /// Its ranks train.
    Training,
}

impl WorkerState {
    /// Every one.
    pub const ALL: [Self; 6] =
        [Self::Lost, Self::Leaving, Self::Connected, Self::Preparing, Self::Ready, Self::Training];

    /// As it is written everywhere.
    pub const fn name(self) -> &'static str {
        match self {
            Self::Lost => "lost",
            Self::Leaving => "leaving",
            Self::Connected => "connected",
            Self::Preparing => "preparing",
            Self::Ready => "ready",
            Self::Training => "training",
        }
    }
}

/// A worker machine.
#[derive(Debug, Clone, PartialEq)]
pub struct Worker {
    /// Its name.
    pub name: String,
    /// What it is doing.
    pub state: WorkerState,
    /// Since when nothing was heard, seconds.
    pub silent_s: f64,
    /// Where other ranks reach it.
    pub address: String,
    /// Its ranks in the live generation.
    pub ranks: Vec<u32>,
}

/// A rank of the live generation; times are means over about 20 steps, in seconds.
#[derive(Debug, Clone, PartialEq, Serialize)]
pub struct Rank {
    /// Its number.
    pub rank: u32,
    /// Its worker.
    pub worker: String,
    /// Its device.
    pub device: String,
    /// Its first lane.
    pub first_lane: u32,
    /// How many it carries.
    pub lanes: u32,
    /// A step.
    pub step_s: f64,
    /// Of it, waiting for pictures.
    pub data_s: f64,
    /// Of it, forward.
    pub forward_s: f64,
    /// Of it, backward.
    pub backward_s: f64,
    /// Of forward and backward, in collectives.
    pub collective_s: f64,
    /// The others wait for it.
    pub straggler: bool,
    /// The last step that it reported.
    pub last_step: u64,
}

/// A job that waits for its turn.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Queued {
    /// Its run.
    pub run: String,
    /// Since when.
    pub since: u64,
}

/// How an earlier run ended.
#[derive(Debug, Clone, PartialEq, Eq, Serialize)]
pub struct Past {
    /// The run.
    pub run: String,
    /// For a person.
    pub outcome: String,
    /// When it made room for another one.
    pub until: u64,
}

/// The cluster at one moment.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Snapshot {
    /// The run, where there is a job.
    pub run: Option<String>,
    /// What the job is doing.
    pub phase: Phase,
    /// Why, for a person.
    pub reason: String,
    /// Somebody paused it.
    pub held: bool,
    /// The coordinator's reign.
    pub term: u64,
    /// The live generation, or the last one.
    pub generation: u64,
    /// Steps that stand.
    pub committed: u64,
    /// Steps of the run.
    pub total: u64,
    /// Steps of an epoch.
    pub steps_per_epoch: u64,
    /// Share of a step that waits for pictures.
    pub data_wait_share: f64,
    /// Newest visible checkpoint.
    pub last_checkpoint: Option<u64>,
    /// Known workers.
    pub workers: Vec<Worker>,
    /// The ranks of the live generation.
    pub ranks: Vec<Rank>,
    /// Jobs that wait, in their order.
    pub queue: Vec<Queued>,
    /// Earlier runs, oldest first.
    pub past: Vec<Past>,
    /// The coordinator's version.
    pub build: String,
}

/// How it ended: the last words, once nobody can be asked for a snapshot.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Ending {
    /// What the job was doing last.
    pub phase: Phase,
    /// Why, for a person.
    pub reason: String,
    /// Steps that stand.
    pub committed: u64,
    /// Newest visible checkpoint.
    pub last_checkpoint: Option<u64>,
}

/// What a person asks for.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Action {
    /// Finish the step in flight, checkpoint, hold.
    Pause,
    /// Go on after a pause.
    Resume,
    /// Finish the step in flight, checkpoint, stop.
    Drain,
    /// Stop for good, or take a job out of the queue; none: the one that is run.
    Cancel(Option<String>),
}

impl Action {
    /// As its path has it.
    pub const fn name(&self) -> &'static str {
        match self {
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Drain => "drain",
            Self::Cancel(_) => "cancel",
        }
    }
}

/// Why an action came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum ActError {
    /// It is refused.
    #[error("{0}")]
    Refused(String),
    /// Nobody is there to act.
    #[error("the coordinator is leaving: ask its successor")]
    Gone,
}

/// What the page looks at and acts on.
pub trait Cluster: Send + Sync + 'static {
    /// How it looks now; none where it is gone.
    fn snapshot(&self) -> impl Future<Output = Option<Snapshot>> + Send;
    /// Does what a person asked for.
    fn act(&self, action: Action) -> impl Future<Output = Result<(), ActError>> + Send;
    /// Draws the montages of lane 0 in a step as a PNG file; or why not.
    fn draw(&self, step: u64) -> impl Future<Output = Result<Vec<u8>, String>> + Send;
}
