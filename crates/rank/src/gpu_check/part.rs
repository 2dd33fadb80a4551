//! One check in a process of its own: `mcl-rank gpu-check-part`. What it found is its last line of output.

use super::finding::Finding;
use super::scale::Scale;
use super::{goldens, ranks, training};
use crate::engine;
use anyhow::{Context, Result};
use clap::{Args, Subcommand};
use mcl_terminal::say;
use tch::{Device, Kind, Tensor};

#[derive(Debug, Args)]
pub(crate) struct PartArguments {
    /// cpu or cuda:N.
    #[arg(long)]
    device: String,
    /// At the scale of a CPU.
    #[arg(long)]
    small: bool,
    #[command(subcommand)]
    part: Part,
}

#[derive(Debug, Subcommand)]
enum Part {
    /// That the device computes, and how much memory it has.
    Device,
    /// Golden cases.
    Goldens(goldens::CaseArguments),
    /// One rank of several.
    Rank(ranks::RankArguments),
    /// Training over the real loader.
    Training(training::TrainingArguments),
}

/// Runs one and prints what it found.
pub(crate) fn run(a: &PartArguments) -> Result<()> {
    engine::set_threads(1);
    let device = engine::device(&a.device)?;
    engine::tune(device);
    let scale = if a.small { Scale::small() } else { Scale::of_gpu(0.0) };
    let found = match &a.part {
        Part::Device => vec![look(device)?],
        Part::Goldens(cases) => goldens::part(cases, device)?,
        Part::Rank(rank) => vec![ranks::part(rank, device)?],
        Part::Training(training) => vec![training::part(training, scale, device)?],
    };
    say!("{}", serde_json::to_string(&found)?)?;
    Ok(())
}

fn look(device: Device) -> Result<Finding> {
    let sum = Tensor::f_ones([1024], (Kind::Float, device))?.f_sum(Kind::Double)?.f_double_value(&[])?;
    let memory = mcl_collective::device_memory(device).context("the device's memory")?;
    let bytes = memory.map_or(0, |m| m.total);
    let cudnn = tch::Cuda::cudnn_is_available();
    let detail = format!("{} GiB, cuDNN {}", bytes >> 30, if cudnn { "there" } else { "absent" });
    let finding = Finding::of("device", (sum - 1024.0).abs() < 1e-9, detail);
    Ok(finding.with("memory_bytes", bytes as f64).with("cudnn", f64::from(u8::from(cudnn))))
}
