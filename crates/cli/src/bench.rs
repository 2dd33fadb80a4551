//! `mcl bench`: measurements of our own parts on this machine.

use crate::arguments::{BenchCommand, BenchCoordinatorArguments};
use crate::client::runtime;
use crate::exit::Usage;
use anyhow::{Context, Result};
use mcl_bench::{Load, Options, Target};
use std::process::ExitCode;
use std::time::Duration;

/// Workers of one point, and of a curve's last one.
const AGENTS: u32 = 1_000;
const CURVE: u32 = 16_000;

pub(crate) fn bench(command: &BenchCommand) -> Result<ExitCode> {
    let BenchCommand::Coordinator(a) = command;
    let options = options(a)?;
    let report = runtime()?.block_on(mcl_bench::run(options))?;
    if a.json {
        println!("{}", serde_json::to_string(&report)?);
    } else {
        println!("{report}");
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
        ..Options::default()
    })
}
