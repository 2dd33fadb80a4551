//! `mcl validate`: everything that can be known before a run starts.

use crate::arguments::ValidateArguments;
use crate::client::load_job;
use anyhow::Result;
use mcl_terminal::say;
use std::process::ExitCode;

pub(crate) fn validate(a: &ValidateArguments) -> Result<ExitCode> {
    let job = load_job(&a.job, &a.overrides)?;
    let dataset = mcl_job::open_dataset(&job)?;
    let plan = mcl_job::plan_spec(&job, &dataset);
    let schedule = mcl_job::schedule(&job, &plan)?;
    mcl_job::classes(&job, &dataset)?;
    mcl_job::check_evaluation(&job)?;
    mcl_job::augment_spec(&job).validate().map_err(|e| crate::exit::Usage(e.to_string()))?;
    let (steps, per_epoch) = (schedule.total_steps(), schedule.steps_per_epoch());
    let left_out = dataset.len() - per_epoch * job.global_batch();
    if a.json {
        say!(
            "{}",
            serde_json::json!({
                "pictures": dataset.len(), "dataset_digest": dataset.digest().to_string(),
                "job_digest": job.digest()?.to_string(), "steps": steps, "steps_per_epoch": per_epoch,
                "global_batch": job.global_batch(), "left_out_per_epoch": left_out,
            })
        )?;
    } else {
        say!(
            "{}: good. {} pictures, {steps} steps of {} pictures, {per_epoch} steps an epoch ({left_out} pictures left out of each)",
            a.job.display(),
            dataset.len(),
            job.global_batch()
        )?;
    }
    Ok(ExitCode::SUCCESS)
}
