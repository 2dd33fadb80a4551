//! `mcl`: one command for people and machines; wiring only.
//!
//! Invariant: it links no libtorch; whatever has tensors is done by `mcl-rank` beside it. Exit codes: 0 done,
//! 2 usage or bad configuration, 1 failed, 130 interrupted after a clean drain.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod address;
mod arguments;
mod bench;
mod checkpoint;
mod client;
mod daemon;
mod data;
mod doctor;
mod exit;
mod initial;
mod ledger;
mod progress;
mod rank_program;
mod run;
mod run_dir;
mod spawn;
mod status;
mod validate;

use arguments::{Arguments, Command};
use clap::Parser;
use std::process::ExitCode;

fn main() -> ExitCode {
    let arguments = Arguments::parse();
    telemetry(&arguments);
    match dispatch(arguments.command) {
        Ok(code) => code,
        Err(error) => exit::report(&error),
    }
}

fn telemetry(arguments: &Arguments) {
    let filter = tracing_subscriber::EnvFilter::try_from_default_env()
        .unwrap_or_else(|_| tracing_subscriber::EnvFilter::new("warn,mcl=info"));
    let color = std::io::IsTerminal::is_terminal(&std::io::stderr());
    let builder =
        tracing_subscriber::fmt().with_writer(std::io::stderr).with_env_filter(filter).with_ansi(color);
    if arguments.log == arguments::Log::Json {
        builder.json().init();
    } else {
        builder.init();
    }
}

fn dispatch(command: Command) -> anyhow::Result<ExitCode> {
    match command {
        Command::Run(a) => run::run(&a),
        Command::Coordinator(a) => daemon::coordinator(&a),
        Command::CheckpointServer(a) => daemon::checkpoint_server(&a),
        Command::Worker(a) => daemon::worker(&a),
        Command::Submit(a) => client::submit(&a),
        Command::Status(a) => status::status(&a),
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
    }
}
