//! `mcl`: one command for people and machines; wiring only.
//!
//! Invariant: it links no libtorch; whatever has tensors is done by `mcl-rank` beside it. Exit codes: 0 done,
//! 2 usage or bad configuration, 1 failed, 130 interrupted after a clean drain.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod address;
mod arguments;
mod bench;
mod board;
mod certs;
mod checkpoint;
mod chronicle;
mod client;
mod daemon;
mod data;
mod doctor;
mod evaluation;
mod exit;
mod export;
mod initial;
mod ledger;
mod manual;
mod montage;
mod page;
mod private;
mod progress;
mod rank_program;
mod row;
mod run;
mod run_dir;
mod spawn;
mod status;
mod validate;
mod watch;
mod whereabouts;

/// Daemons run for months and move large slices: glibc keeps what many threads freed, this one gives it back.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

use arguments::{Arguments, Command};
use clap::Parser;
use mcl_failpoint::Process;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry(&arguments);
    match arm(&arguments.command).and_then(|()| dispatch(arguments.command)) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}

fn telemetry(arguments: &Arguments) {
    let full_screen = watch::is_full_screen(&arguments.command);
    let json = arguments.log == arguments::Log::Json;
    // Warnings of others, and what we and our ranks say.
    mcl_terminal::Log { json, full_screen, times: true, filter: "warn,mcl=info,rank=info" }.init();
}

/// A daemon dies where the environment says that it is to: for tests. The others' children may.
fn arm(command: &Command) -> anyhow::Result<()> {
    let armed = match command {
        Command::Coordinator(_) => mcl_failpoint::arm_from_environment(Process::Coordinator),
        Command::CheckpointServer(_) => mcl_failpoint::arm_from_environment(Process::Checkpoint),
        Command::Worker(_) => mcl_failpoint::arm_from_environment(Process::Worker),
        _ => mcl_failpoint::check_environment(),
    };
    armed.map_err(|error| exit::Usage(error.to_string()).into())
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(a) => run::run(&a),
        Command::Coordinator(a) => daemon::coordinator(&a),
        Command::CheckpointServer(a) => daemon::checkpoint_server(&a),
        Command::Worker(a) => daemon::worker(&a),
        Command::Submit(a) => client::submit(&a),
        Command::Status(a) => status::status(&a),
        Command::Watch(a) => watch::watch(&a),
        Command::Drain(a) => client::tell(&a, client::Wish::Drain),
        Command::Pause(a) => client::tell(&a, client::Wish::Pause),
        Command::Resume(a) => client::tell(&a, client::Wish::Resume),
        Command::Cancel(a) => client::cancel(&a),
        Command::Doctor(a) => doctor::doctor(&a),
        Command::Validate(a) => validate::validate(&a),
        Command::Data(a) => data::data(&a),
        Command::Checkpoint(a) => checkpoint::checkpoint(&a),
        Command::Ledger(a) => ledger::ledger(&a),
        Command::Eval(a) => rank_program::eval(&a),
        Command::Bench(a) => bench::bench(&a),
        Command::Certs(a) => certs::certs(&a),
        Command::Completions { shell } => manual::completions(shell),
        Command::Man(a) => manual::man(&a),
    }
}
