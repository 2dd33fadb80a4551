//! Golden cases on any device, and everything that needs a GPU.

use crate::{engine, trial};
use anyhow::{Context, Result, bail};
use clap::Args;
use mcl_collective::{CudaError, Group, Membership, ReduceOp, Store};
use mcl_model::{ComputeMode, ModelConfig, ModelSpec};
use mcl_train::golden::{Case, find_cases};
use mcl_types::{LaneLayout, Rank};
use serde::Serialize;
use std::path::PathBuf;
use std::time::{Duration, Instant};
use tch::{Device, Kind, Tensor};

/// How long one collective of the check may take.
const TIMEOUT: Duration = Duration::from_secs(120);

#[derive(Debug, Args)]
pub(crate) struct GoldenArguments {
    /// Folders that hold cases; default: those of `MCL_GOLDENS`.
    folders: Vec<PathBuf>,
    /// cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
    /// Compute as exact mode does.
    #[arg(long)]
    exact: bool,
}

#[derive(Debug, Args)]
pub(crate) struct GpuCheckArguments {
    /// Folders that hold golden cases; default: those of `MCL_GOLDENS`.
    folders: Vec<PathBuf>,
    /// Where to write the result.
    #[arg(long, default_value = "gpu-check.json")]
    out: PathBuf,
}

/// One line of the table.
#[derive(Debug, Serialize)]
struct Check {
    name: String,
    passed: bool,
    seconds: f64,
    detail: String,
}

/// The whole result.
#[derive(Debug, Serialize)]
struct Outcome {
    skipped: Option<String>,
    devices: i64,
    libtorch: &'static str,
    checks: Vec<Check>,
}

fn roots(folders: &[PathBuf]) -> Vec<PathBuf> {
    if !folders.is_empty() {
        return folders.to_vec();
    }
    std::env::var("MCL_GOLDENS")
        .map_or_else(|_| Vec::new(), |list| list.split(':').map(PathBuf::from).collect())
}

fn check(name: &str, work: impl FnOnce() -> Result<(bool, String)>) -> Check {
    let started = Instant::now();
    let (passed, detail) = work().unwrap_or_else(|error| (false, format!("{error:#}")));
    let check = Check { name: name.to_owned(), passed, seconds: started.elapsed().as_secs_f64(), detail };
    let verdict = if check.passed { "ok" } else { "FAILED" };
    println!("{:<34} {verdict:<7} {:>7.1} s  {}", check.name, check.seconds, check.detail);
    check
}

fn golden_checks(folders: &[PathBuf], device: Device, compute: ComputeMode) -> Result<Vec<Check>> {
    let roots = roots(folders);
    let cases = find_cases(&roots);
    if cases.is_empty() {
        bail!("no golden case under {roots:?}: name folders that hold some, or set MCL_GOLDENS");
    }
    let how = if compute == ComputeMode::Official { "official" } else { "exact" };
    Ok(cases
        .iter()
        .map(|folder| {
            let name = folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            check(&format!("golden {name} {how} f64"), || {
                let report = Case::open(folder)?.run(compute, Rank::new(0), None, device)?;
                Ok((report.passes(), format!("largest error {:.1e}", report.largest())))
            })
        })
        .collect())
}

/// Compares golden cases on a device; fails when one is over the tolerance.
pub(crate) fn golden(a: &GoldenArguments) -> Result<()> {
    let compute = if a.exact { ComputeMode::Exact } else { ComputeMode::Official };
    let checks = golden_checks(&a.folders, engine::device(&a.device)?, compute)?;
    if checks.iter().all(|c| c.passed) { Ok(()) } else { bail!("a golden case is over the tolerance") }
}

/// Runs every check that needs a GPU; without one says so and succeeds.
pub(crate) fn run(a: &GpuCheckArguments, cuda: &Result<(), CudaError>) -> Result<()> {
    let devices = tch::Cuda::device_count();
    let mut outcome =
        Outcome { skipped: None, devices, libtorch: engine::libtorch_version(), checks: Vec::new() };
    if devices == 0 {
        let why = cuda.as_ref().err().map_or_else(|| "libtorch finds no GPU".to_owned(), ToString::to_string);
        println!("gpu-check skipped: {why}");
        outcome.skipped = Some(why);
    } else {
        let device = Device::Cuda(0);
        outcome.checks.push(check("CUDA loads", || Ok((true, format!("{devices} devices")))));
        outcome.checks.extend(golden_checks(&a.folders, device, ComputeMode::Official)?);
        outcome.checks.extend(golden_checks(&a.folders, device, ComputeMode::Exact)?);
        outcome.checks.push(check("NCCL, world of 1", || nccl_all_reduce(device)));
        outcome.checks.push(check("training step over NCCL", || nccl_step(device)));
    }
    let text = serde_json::to_string_pretty(&outcome)?;
    std::fs::write(&a.out, text).with_context(|| format!("writing {}", a.out.display()))?;
    let failed = outcome.checks.iter().filter(|c| !c.passed).count();
    if failed > 0 { bail!("{failed} of {} checks failed", outcome.checks.len()) } else { Ok(()) }
}

fn group_of_one() -> Result<Group> {
    let store = Store::host("127.0.0.1", None, TIMEOUT)?;
    Ok(Group::form(&store, Membership::alone(), TIMEOUT, "127.0.0.1", Some(engine::nccl()?))?)
}

fn nccl_all_reduce(device: Device) -> Result<(bool, String)> {
    let group = group_of_one()?;
    let t = Tensor::f_ones([1024], (Kind::Float, device))?;
    group.all_reduce(&t, ReduceOp::Sum)?;
    let sum = t.f_sum(Kind::Double)?.f_double_value(&[])?;
    Ok(((sum - 1024.0).abs() < 1e-9, format!("sum {sum}")))
}

/// A small model, one step in f32, with Reducer and synchronised norms over NCCL: loss finite, weights moved.
fn nccl_step(device: Device) -> Result<(bool, String)> {
    let spec = ModelSpec::new(ModelConfig {
        depth: 18,
        width: 16,
        image_size: 64,
        fpn_channels: 32,
        projector_convs: 1,
        projector_hidden: 64,
        embedding: 32,
        predictor_hidden: 64,
        ..ModelConfig::default()
    })?;
    let mut trainer = trial::trainer(spec, device, trial::settings(ComputeMode::Exact, (1, 8)))?;
    trainer.join(LaneLayout::new(1, 1)?, Rank::new(0), Some(group_of_one()?))?;
    let before = trainer.digest()?;
    let outcome = trial::step(&mut trainer, 0)?;
    let loss: f64 = outcome.lane_losses.iter().flatten().sum();
    let passed = loss.is_finite() && !outcome.skipped && trainer.digest()? != before;
    Ok((passed, format!("loss {loss:.4}, gradient norm {:.4}", outcome.grad_norm)))
}
