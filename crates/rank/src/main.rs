//! `mcl-rank`: everything with tensors, one process a device.
//!
//! Role: wiring only. `mcl` starts it with the library path of libtorch; a worker daemon speaks with
//! `mcl-rank train` over its standard input and output (`proto/mcl/v1/rank.proto`), and it ends when that
//! input closes.
#![forbid(unsafe_code)]
#![warn(clippy::print_stdout, clippy::print_stderr)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod checkpoint_bench;
mod control;
mod engine;
mod eval;
mod features;
mod feed;
mod frozen;
mod generation;
mod gpu_check;
mod loader_bench;
mod memory;
mod orders;
mod parts_bench;
mod pictures;
mod records;
mod saving;
mod slice_buffer;
mod snapshot;
mod staging;
mod step_bench;
mod steps;
mod train;
mod trial;
mod turns;
mod upload;
mod weights;

use clap::{Parser, Subcommand};
use std::process::ExitCode;

#[derive(Debug, Parser)]
#[command(version, about = "One device's share of a run; normally started by `mcl`")]
struct Arguments {
    /// Log lines are JSON objects.
    #[arg(long, global = true)]
    json_log: bool,
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    /// Train as told on standard input.
    Train,
    /// Evaluate frozen features.
    Eval(eval::EvalArguments),
    /// Compare whole steps with golden cases.
    Golden(gpu_check::GoldenArguments),
    /// Everything that needs a GPU.
    GpuCheck(gpu_check::GpuCheckArguments),
    /// One of those checks, in a process of its own.
    #[command(hide = true)]
    GpuCheckPart(gpu_check::PartArguments),
    /// What saving costs a training process.
    BenchCheckpoint(checkpoint_bench::BenchCheckpointArguments),
    /// What a training step costs.
    BenchStep(step_bench::StepBenchArguments),
    /// What a picture costs until its views lie in a batch.
    BenchLoader(loader_bench::LoaderBenchArguments),
    /// Print the engine's version and devices as JSON.
    Engine,
}

fn main() -> ExitCode {
    // First of all: whoever asks libtorch about CUDA before this switches it off for the whole process.
    let cuda = engine::load_cuda();
    let arguments = Arguments::parse();
    // Lines of `train` go to the worker daemon, which adds the time.
    mcl_terminal::Log { json: arguments.json_log, full_screen: false, times: false, filter: "info" }.init();
    let result = match arguments.command {
        Command::Train => return train::run(),
        Command::Eval(arguments) => eval::run(&arguments),
        Command::Golden(arguments) => gpu_check::golden(&arguments),
        Command::GpuCheck(arguments) => gpu_check::run(&arguments, &cuda),
        Command::GpuCheckPart(arguments) => gpu_check::run_part(&arguments),
        Command::BenchCheckpoint(arguments) => checkpoint_bench::run(&arguments),
        Command::BenchStep(arguments) => step_bench::run(&arguments),
        Command::BenchLoader(arguments) => loader_bench::run(&arguments),
        Command::Engine => engine::describe(&cuda),
    };
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            tracing::error!("{error:#}");
            ExitCode::FAILURE
        }
    }
}
