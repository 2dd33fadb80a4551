//! Arguments of `mcl bench`.

use super::TlsArguments;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum BenchCommand {
    /// How many workers a coordinator can carry: a load generator that speaks the real protocol.
    Coordinator(BenchCoordinatorArguments),
    /// What saving costs the training process, and how fast a state is durable.
    Checkpoint(BenchCheckpointArguments),
    /// What a training step costs; `mcl bench step -- --help` lists what can be set.
    Step(BenchRankArguments),
    /// What a picture costs until its views lie in a batch; `mcl bench loader -- --help` lists what can be set.
    Loader(BenchRankArguments),
}

#[derive(Debug, Args)]
pub(crate) struct BenchRankArguments {
    /// Passed on to the measuring rank process.
    #[arg(trailing_var_arg = true, allow_hyphen_values = true)]
    pub(crate) arguments: Vec<std::ffi::OsString>,
}

#[derive(Debug, Args)]
pub(crate) struct BenchCheckpointArguments {
    /// Folder on the disk to measure; what is written there is removed again.
    #[arg(long, default_value = ".")]
    pub(crate) folder: PathBuf,
    /// Snapshots to take.
    #[arg(long, default_value_t = 30)]
    pub(crate) snapshots: u32,
    /// Uploads, each beside a plain copy.
    #[arg(long, default_value_t = 7)]
    pub(crate) uploads: u32,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct BenchCoordinatorArguments {
    /// Workers to play, default 1000; with --curve the most that are tried, default 16000.
    #[arg(long)]
    pub(crate) agents: Option<u32>,
    /// Rank processes of each.
    #[arg(long, default_value_t = 1)]
    pub(crate) ranks_per_agent: u32,
    /// Heartbeats of one worker in a second; default: what the coordinator assigns.
    #[arg(long)]
    pub(crate) hz: Option<f64>,
    /// Steps that every rank reports in a second.
    #[arg(long, default_value_t = 1.0, conflicts_with = "heartbeats_only")]
    pub(crate) steps_per_second: f64,
    /// No job: heartbeats alone.
    #[arg(long)]
    pub(crate) heartbeats_only: bool,
    /// How long is measured after everybody has joined.
    #[arg(long, default_value_t = 10.0)]
    pub(crate) seconds: f64,
    /// Double the workers until the coordinator does not hold, and say what the limit is.
    #[arg(long)]
    pub(crate) curve: bool,
    /// Workers that share a TCP connection; real ones have one each.
    #[arg(long, default_value_t = 1)]
    pub(crate) agents_per_connection: u32,
    /// A coordinator that runs on this machine; default: one of its own.
    #[arg(long)]
    pub(crate) coordinator: Option<String>,
    // With --coordinator: of a certificate that has the roles worker and operator.
    #[command(flatten)]
    pub(crate) tls: TlsArguments,
    /// Its process, to look at its CPU time and memory.
    #[arg(long, requires = "coordinator")]
    pub(crate) pid: Option<u32>,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}
