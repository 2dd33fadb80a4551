//! What a coordinator is told, and what its caller tells it of a job.

use mcl_coordinator_core::{JobSpec, Settings};
use mcl_plan::{PlanSpec, Schedule};
use mcl_proto::v1;
use mcl_transport::Gate;
use mcl_types::{Digest, Retention, RunId};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// What a coordinator needs to know.
#[derive(Debug)]
pub struct CoordinatorConfig {
    /// The directory that it alone owns: of one run, or with [`Settings::many_runs`] the folder of runs, each in a
    /// directory of its name.
    pub run_dir: PathBuf,
    /// Where ranks and coordinator reach the checkpoint service, such as `http://10.0.0.1:7071`.
    pub checkpoint_url: String,
    /// Already bound: check the address with [`mcl_transport::check_bind`] before.
    pub listener: tokio::net::TcpListener,
    /// Who is let in, and as whom the coordinator speaks to the checkpoint service.
    pub gate: Gate,
    /// How often workers speak.
    pub heartbeat_interval: Duration,
    /// How long it waits for what.
    pub settings: Settings,
    /// Who remembers how the run came to where it is.
    pub history: TellHistory,
}

impl CoordinatorConfig {
    /// With the usual patience.
    pub fn new(
        run_dir: impl Into<PathBuf>,
        checkpoint_url: impl Into<String>,
        listener: tokio::net::TcpListener,
    ) -> Self {
        Self {
            run_dir: run_dir.into(),
            checkpoint_url: checkpoint_url.into(),
            listener,
            gate: Gate::default(),
            heartbeat_interval: Duration::from_secs(1),
            settings: Settings::default(),
            history: TellHistory::default(),
        }
    }
}

/// The directory of a run: the coordinator's own, or one of its name in a folder of runs.
pub(crate) fn home(root: &Path, many_runs: bool, run_id: &RunId) -> PathBuf {
    if many_runs { root.join(run_id.as_str()) } else { root.to_owned() }
}

/// Reads a job file: what it says, and what its dataset is; or what is wrong with it, for a person. Leaves no trace.
pub type Interpret = Arc<dyn Fn(&str) -> Result<JobFacts, String> + Send + Sync>;

/// What one who looks on remembers of the run, in so many points; by itself a coordinator remembers nothing.
#[derive(Clone)]
pub struct TellHistory(Arc<dyn Fn(u32) -> v1::GetHistoryResponse + Send + Sync>);

impl TellHistory {
    /// As `tell` says; it may be called at any time, and by many.
    pub fn new(tell: impl Fn(u32) -> v1::GetHistoryResponse + Send + Sync + 'static) -> Self {
        Self(Arc::new(tell))
    }

    pub(crate) fn tell(&self, points: u32) -> v1::GetHistoryResponse {
        (self.0)(points)
    }
}

impl Default for TellHistory {
    fn default() -> Self {
        Self::new(|_| v1::GetHistoryResponse::default())
    }
}

impl std::fmt::Debug for TellHistory {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("TellHistory")
    }
}

/// A job, as its file and its dataset define it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct JobFacts {
    /// The resolved job file: what ranks read, and `job.toml` in the run directory.
    pub job_toml: String,
    /// Digest of all in it that decides the trajectory: not its length, places or machines.
    pub job_digest: Digest,
    /// What the epoch plan is a function of.
    pub plan: PlanSpec,
    /// Steps of an epoch and of the run.
    pub schedule: Schedule,
    /// Names of the plan's shards, in the same order.
    pub shard_names: Vec<String>,
    /// Which checkpoints stay.
    pub retention: Retention,
    /// Workers without which nothing starts.
    pub min_workers: u32,
    /// Most lanes that one rank may carry; none: as many as it takes.
    pub max_lanes_per_rank: Option<u32>,
    /// Silence after which a worker is lost; none: the coordinator's own.
    pub lost_after: Option<Duration>,
}

impl JobFacts {
    /// What decisions depend on; or why the job could never run.
    pub(crate) fn spec(&self, run_id: RunId, initial: Option<Digest>) -> Result<JobSpec, String> {
        let steps_per_epoch = self.plan.steps_per_epoch().map_err(|e| e.to_string())?;
        if self.schedule.steps_per_epoch() != steps_per_epoch {
            return Err(format!(
                "the schedule has {} steps an epoch, the plan has {steps_per_epoch}: they were made of different jobs",
                self.schedule.steps_per_epoch()
            ));
        }
        if self.shard_names.len() != self.plan.shards.len() {
            let (names, shards) = (self.shard_names.len(), self.plan.shards.len());
            return Err(format!("{names} shard names for {shards} shards: index the dataset again"));
        }
        let plan = serde_json::to_vec(&self.plan).map_err(|e| e.to_string())?;
        let spec = JobSpec {
            run_id,
            job_digest: self.job_digest,
            plan_digest: Digest::of(&plan),
            lanes: self.plan.lanes,
            images_per_lane: self.plan.images_per_lane,
            schedule: self.schedule,
            min_workers: self.min_workers,
            max_lanes_per_rank: self.max_lanes_per_rank,
            lost_after: self.lost_after,
            initial,
        };
        spec.check().map_err(|e| e.to_string())?;
        Ok(spec)
    }
}
