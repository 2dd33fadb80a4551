//! What a worker is told, and how it may end well.

use mcl_transport::Identity;
use std::path::PathBuf;
use std::time::Duration;

/// What a worker needs to know.
#[derive(Debug, Clone)]
pub struct WorkerConfig {
    /// Its name, unique in its cluster.
    pub name: String,
    /// Where the coordinator is, such as `https://10.0.0.1:7070`; without a scheme, `https` is meant where there is an
    /// identity, and `http` where there is none.
    pub coordinator_url: String,
    /// As whom it speaks; none: without TLS. Ranks need theirs in `rank_env`.
    pub identity: Option<Identity>,
    /// "cpu", "cpu:N" (a further CPU slot) or "cuda:N": one rank process each, so each name once.
    pub devices: Vec<String>,
    /// The `mcl-rank` binary.
    pub rank_program: PathBuf,
    /// Added to the environment of every rank, such as its library path.
    pub rank_env: Vec<(String, String)>,
    /// Address that ranks of other machines reach this one at.
    pub advertise: String,
    /// Folder that keeps the highest token over a restart of the worker; none: it is kept in memory.
    pub state_dir: Option<PathBuf>,
    /// How long the first contact may take; later the coordinator is awaited for ever.
    pub connect_timeout: Duration,
    /// Version of this build.
    pub build: String,
    /// Version of the ranks' libtorch; empty where unknown.
    pub libtorch: String,
}

impl WorkerConfig {
    /// Patience with a coordinator that is started at the same time as its workers.
    pub const DEFAULT_CONNECT_TIMEOUT: Duration = Duration::from_secs(30);
}

/// How a worker is asked to leave.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Farewell {
    /// Where ranks train and a coordinator listens: it is told, and everything runs on until it dismisses this
    /// worker, at a step boundary. Otherwise as [`Farewell::Now`].
    Drain,
    /// Ranks are stopped, whatever they do.
    Now,
}

/// How a worker ended, where nothing went wrong.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum WorkerOutcome {
    /// The coordinator has no more work, for this reason.
    Dismissed(String),
    /// It was asked to stop.
    Shutdown,
}
