//! Golden cases on any device: in f64 everything, in f32 losses and gradient norm of the first step.

use super::finding::{Finding, Status};
use crate::engine;
use anyhow::{Result, bail};
use clap::{Args, ValueEnum};
use mcl_model::ComputeMode;
use mcl_terminal::say;
use mcl_train::golden::{Case, FirstStep, find_cases};
use mcl_types::Rank;
use std::collections::BTreeSet;
use std::path::PathBuf;
use std::time::Instant;
use tch::Device;

/// Largest relative error of a loss in f32: the official code's own f32 and f64 differ by up to 4e-5; the rest is for other
/// kernels.
const LOSS: f64 = 1e-3;
/// ... and of the gradients' total norm.
const NORM: f64 = 1e-2;

#[derive(Debug, Args)]
pub(crate) struct GoldenArguments {
    #[command(flatten)]
    cases: CaseArguments,
    /// cpu or cuda:N.
    #[arg(long, default_value = "cpu")]
    device: String,
}

#[derive(Debug, Args)]
pub(crate) struct CaseArguments {
    /// Folders that hold cases; default: those of `MCL_GOLDENS`.
    folders: Vec<PathBuf>,
    /// Compute as exact mode does.
    #[arg(long)]
    exact: bool,
    /// f64: everything to 1e-9. f32: losses and gradient norm of the first step.
    #[arg(long, value_enum, default_value_t = Precision::F64)]
    precision: Precision,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
enum Precision {
    F32,
    F64,
}

/// Compares golden cases on a device; fails when one is over the tolerance.
pub(crate) fn golden(a: &GoldenArguments) -> Result<()> {
    let found = part(&a.cases, engine::device(&a.device)?)?;
    for finding in &found {
        say!("{finding}")?;
    }
    if found.iter().all(|f| f.status == Status::Passed) {
        return Ok(());
    }
    bail!("a golden case is over the tolerance")
}

/// Every case, one finding each. One that lies in several folders is read from the first.
pub(super) fn part(a: &CaseArguments, device: Device) -> Result<Vec<Finding>> {
    let from_environment = || {
        let list = std::env::var("MCL_GOLDENS").unwrap_or_default();
        list.split(':').filter(|f| !f.is_empty()).map(PathBuf::from).collect()
    };
    let roots: Vec<PathBuf> = if a.folders.is_empty() { from_environment() } else { a.folders.clone() };
    let mut seen = BTreeSet::new();
    let mut cases: Vec<PathBuf> =
        roots.iter().flat_map(|root| find_cases(std::slice::from_ref(root))).collect();
    cases.retain(|folder| folder.file_name().is_some_and(|name| seen.insert(name.to_owned())));
    if cases.is_empty() {
        bail!("no golden case under {roots:?}: name folders that hold some, or set MCL_GOLDENS");
    }
    let compute = if a.exact { ComputeMode::Exact } else { ComputeMode::Official };
    Ok(cases
        .iter()
        .map(|folder| {
            let case = folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
            let how = if a.exact { "exact" } else { "official" };
            let begun = Instant::now();
            let found = match a.precision {
                Precision::F64 => whole(&format!("golden {case} {how} f64"), folder, compute, device),
                Precision::F32 => first(&format!("golden {case} {how} f32"), folder, compute, device),
            };
            let mut finding =
                found.unwrap_or_else(|e| Finding::failed(&format!("golden {case} {how}"), format!("{e:#}")));
            finding.seconds = begun.elapsed().as_secs_f64();
            finding
        })
        .collect())
}

fn whole(name: &str, folder: &std::path::Path, compute: ComputeMode, device: Device) -> Result<Finding> {
    let report = Case::open(folder)?.run(compute, Rank::new(0), None, device)?;
    let largest = report.largest();
    let finding = Finding::of(name, report.passes(), format!("largest error {largest:.1e}"));
    Ok(finding.with("largest_error", largest))
}

fn first(name: &str, folder: &std::path::Path, compute: ComputeMode, device: Device) -> Result<Finding> {
    let FirstStep { loss_error, norm_error } = Case::open(folder)?.first_step_in_f32(compute, device)?;
    let passed = loss_error <= LOSS && norm_error <= NORM;
    let detail = format!(
        "step 0: losses {loss_error:.1e} (at most {LOSS:.0e}), gradient norm {norm_error:.1e} ({NORM:.0e})"
    );
    let finding = Finding::of(name, passed, detail).with("loss_error", loss_error);
    Ok(finding.with("gradient_norm_error", norm_error))
}
