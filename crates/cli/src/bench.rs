//! `mcl bench`: measurements of our own parts on this machine.

use crate::arguments::{
    BenchCheckpointArguments, BenchCommand, BenchCoordinatorArguments, BenchRankArguments,
};
use crate::client::runtime;
use crate::exit::{FAILED, Usage};
use crate::rank_program::{RankProgram, log_arguments};
use crate::spawn::{Daemon, Show};
use anyhow::{Context, Result};
use mcl_bench::{Load, Options, Target};
use mcl_terminal::{say, tell};
use std::ffi::OsString;
use std::process::ExitCode;
use std::sync::Arc;
use std::time::Duration;

/// Workers of one point, and of a curve's last one.
const AGENTS: u32 = 1_000;
const CURVE: u32 = 16_000;

pub(crate) fn bench(command: &BenchCommand) -> Result<ExitCode> {
    match command {
        BenchCommand::Coordinator(a) => coordinator(a),
        BenchCommand::Checkpoint(a) => runtime()?.block_on(checkpoint(a)),
        BenchCommand::Step(a) => rank("bench-step", a),
        BenchCommand::Loader(a) => rank("bench-loader", a),
    }
}

/// A rank process that measures.
fn rank(command: &str, a: &BenchRankArguments) -> Result<ExitCode> {
    let program = RankProgram::find(1)?;
    let mut child = std::process::Command::new(&program.path);
    child.args(log_arguments()).arg(command).args(&a.arguments).envs(program.environment);
    let status = child.status().with_context(|| format!("starting {}", program.path.display()))?;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// A checkpoint service of its own, and a rank process that measures.
async fn checkpoint(a: &BenchCheckpointArguments) -> Result<ExitCode> {
    let program = RankProgram::find(1)?;
    let folder = tempfile::tempdir_in(&a.folder)
        .with_context(|| format!("making a folder in {}", a.folder.display()))?;
    let place = |name: &str| folder.path().join(name);
    let mut arguments: Vec<OsString> =
        ["checkpoint-server", "--stop-with-stdin", "--root"].map(OsString::from).to_vec();
    arguments.push(place("checkpoints").into());
    let show: Show = Arc::new(|line| tell!("{line}"));
    let mut service = Daemon::start("checkpoint", &arguments, &place("logs"), show)?;
    let url = service.url().await?;
    let mut child = tokio::process::Command::new(&program.path);
    child.args(log_arguments());
    child.args(["bench-checkpoint", "--service", &url, "--folder"]).arg(folder.path());
    child.args(["--snapshots", &a.snapshots.to_string(), "--uploads", &a.uploads.to_string()]);
    if a.json {
        child.arg("--json");
    }
    child.env_remove(mcl_transport::VARIABLE);
    let status = child.envs(program.environment).kill_on_drop(true).status().await;
    let status = status.with_context(|| format!("starting {}", program.path.display()))?;
    service.stop().await;
    Ok(if status.success() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn coordinator(a: &BenchCoordinatorArguments) -> Result<ExitCode> {
    let options = options(a)?;
    let report = runtime()?.block_on(mcl_bench::run(options))?;
    if a.json {
        say!("{}", serde_json::to_string(&report)?)?;
    } else {
        say!("{report}")?;
    }
    Ok(ExitCode::SUCCESS)
}

fn options(a: &BenchCoordinatorArguments) -> Result<Options> {
    let target = match &a.coordinator {
        Some(url) => Target::Running { url: url.clone(), pid: a.pid },
        None => Target::Own { program: std::env::current_exe().context("this executable's own path")? },
    };
    let load = if a.heartbeats_only {
        Load::Heartbeats
    } else {
        Load::Training { steps_per_second: a.steps_per_second }
    };
    let measure =
        Duration::try_from_secs_f64(a.seconds).map_err(|e| Usage(format!("--seconds {}: {e}", a.seconds)))?;
    Ok(Options {
        agents: a.agents.unwrap_or(if a.curve { CURVE } else { AGENTS }),
        ranks_per_agent: a.ranks_per_agent,
        heartbeats_per_second: a.hz,
        load,
        measure,
        curve: a.curve,
        agents_per_connection: a.agents_per_connection,
        target,
        tls: a.tls.folder().cloned(),
        ..Options::default()
    })
}
