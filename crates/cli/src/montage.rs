//! The montages of one lane's step, as loader and plan really make them.

use anyhow::{Context, Result, bail};
use mcl_config::Job;
use mcl_data::generate::{PictureFormat, encode};
use mcl_data::montage::Side;
use mcl_data::{BatchRequest, Dataset, Loader, MontageLayout, Picture};
use mcl_plan::{EpochPlan, PlanSpec, substitute};
use mcl_types::{Lane, SampleIndex, Slot, Step};
use std::sync::Arc;

/// The sheet of `lane` in `step` as a PNG file.
pub(crate) fn draw(job: &Job, dataset: Arc<Dataset>, step: u64, lane: u32) -> Result<Vec<u8>> {
    Ok(encode(&paint(job, dataset, step, lane)?, PictureFormat::Png)?)
}

/// The sheet of `lane` in `step`.
pub(crate) fn paint(job: &Job, dataset: Arc<Dataset>, step: u64, lane: u32) -> Result<Picture> {
    let plan = mcl_job::plan_spec(job, &dataset);
    let schedule = mcl_job::schedule(job, &plan)?;
    if lane >= job.batch().lanes || step >= schedule.total_steps() {
        bail!(crate::exit::Usage(format!(
            "step {step}, lane {lane}: expected steps below {} and lanes below {}",
            schedule.total_steps(),
            job.batch().lanes
        )));
    }
    let (step, lane) = (Step::new(step), Lane::new(lane));
    let at = schedule.locate(step);
    let samples = planned(&plan, &at, lane)?;
    let request = BatchRequest { epoch: at.epoch, step, lane, samples };
    let replacements = plan;
    let mut loader = Loader::start(
        dataset,
        mcl_job::loader_spec(job),
        vec![request],
        Arc::new(move |epoch, step, lane, slot, attempt| {
            substitute(&replacements, epoch, schedule.locate(step).step_in_epoch, lane, slot, attempt)
        }),
    )?;
    let batch = loader.next()?.context("the loader gave no batch")?;
    let layout =
        MontageLayout::official(usize::try_from(job.batch().images_per_lane)?, &job.method().levels)?;
    let drawn = |side: Side| (0..layout.levels()).map(move |level| (level, side)).collect::<Vec<_>>();
    let permutations: Vec<Vec<usize>> = drawn(Side::Q)
        .into_iter()
        .chain(drawn(Side::K))
        .map(|(level, side)| layout.permutation(job.seed(), (at.epoch, step, lane), level, side))
        .collect();
    Ok(mcl_data::draw_sheet(&batch, job.model().image_size, &layout, &permutations)?)
}

fn planned(plan: &PlanSpec, at: &mcl_plan::Position, lane: Lane) -> Result<Vec<SampleIndex>> {
    let epoch = EpochPlan::new(plan, at.epoch)?;
    (0..plan.images_per_lane)
        .map(|slot| {
            epoch.sample(at.step_in_epoch, lane, Slot::new(slot)).context("the plan has no such slot")
        })
        .collect()
}
