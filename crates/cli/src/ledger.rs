//! `mcl ledger verify`: what a run really used, against its plan.

use crate::arguments::LedgerCommand;
use crate::exit::{FAILED, Usage};
use crate::progress::Work;
use crate::run_dir;
use anyhow::{Context, Result};
use mcl_coordinator::PLAN_FILE as PLAN;
use mcl_plan::PlanSpec;
use mcl_plan::ledger::VerifyReport;
use mcl_terminal::say;
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn ledger(command: &LedgerCommand) -> Result<ExitCode> {
    let LedgerCommand::Verify { run_dir, json } = command;
    let plan = plan_of(run_dir)?;
    let same_ids = check_source(run_dir, &plan)?;
    let work = Work::bytes("read", 0);
    let report = mcl_coordinator::verify_ledger(run_dir, &plan, &mut |done, all| work.heard(done, all))?;
    drop(work);
    if *json {
        let mut value = serde_json::to_value(&report)?;
        if let Some(object) = value.as_object_mut() {
            object.insert("exact".to_owned(), report.is_exact().into());
            object.insert("dataset_checked".to_owned(), same_ids.into());
        }
        say!("{value}")?;
    } else {
        report_to_people(&report, same_ids)?;
    }
    Ok(if report.is_exact() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

fn plan_of(run_dir: &Path) -> Result<PlanSpec> {
    let path = run_dir.join(PLAN);
    let text = std::fs::read(&path).map_err(|e| {
        Usage(format!("{}: {e}; expected a run directory, which holds {PLAN}", path.display()))
    })?;
    serde_json::from_slice(&text).with_context(|| path.display().to_string())
}

/// The plan is recomputed from the pictures themselves where they can still be read.
fn check_source(run_dir: &Path, plan: &PlanSpec) -> Result<bool> {
    let job = run_dir::job_of(run_dir)?;
    match mcl_job::open_dataset(&job) {
        Ok(dataset) if mcl_job::plan_spec(&job, &dataset) == *plan => Ok(true),
        Ok(_) => anyhow::bail!(
            "{} is no longer what the run was planned over: its digest differs from {PLAN}",
            job.data().source
        ),
        Err(error) => {
            tracing::warn!(%error, "the pictures cannot be read: verified against {PLAN} alone");
            Ok(false)
        }
    }
}

fn report_to_people(report: &VerifyReport, same_ids: bool) -> std::io::Result<()> {
    say!(
        "{} steps, {} samples: {} missing, {} twice, {} foreign, {} replaced, {} steps rolled back, {} updates skipped",
        report.steps,
        report.samples,
        report.missing,
        report.twice,
        report.foreign,
        report.replaced,
        report.rolled_back,
        report.skipped
    )?;
    for epoch in &report.epochs {
        say!(
            "  {}: {} of {} steps, {} samples, {} left out",
            epoch.epoch,
            epoch.steps,
            epoch.planned_steps,
            epoch.samples,
            epoch.left_out
        )?;
    }
    for problem in &report.problems {
        say!("  PROBLEM: {problem}")?;
    }
    let against = if same_ids {
        "the plan recomputed from the pictures"
    } else {
        "the recorded plan (pictures not read)"
    };
    say!("{}: compared with {against}", if report.is_exact() { "exact" } else { "NOT EXACT" })
}
