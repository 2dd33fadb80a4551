//! Training over the real loader: pictures from disk, decoded, augmented, staged and trained on.

use super::finding::Finding;
use super::scale::Scale;
use crate::feed::Feed;
use crate::memory::Peak;
use crate::{engine, train, weights};
use anyhow::{Context, Result};
use clap::Args;
use mcl_config::Job;
use mcl_data::Dataset;
use mcl_data::generate::{GenerateSpec, generate};
use mcl_model::Model;
use mcl_train::{Halt, Rates, StepInput, Trainer};
use mcl_types::{Seed, Step};
use std::path::Path;
use std::sync::Arc;
use std::time::{Duration, Instant};
use tch::Device;

#[derive(Debug, Args)]
pub(super) struct TrainingArguments {
    /// Pictures a step.
    #[arg(long)]
    images: u32,
}

fn job(scale: Scale, images: u32, source: &Path) -> String {
    let Scale { depth, image_size, loader_threads, steps, .. } = scale;
    let queue = 4;
    format!(
        "[data]\nsource = {source:?}\nviews = \"level\"\nloader_threads = {loader_threads}\nqueue = {queue}\n\
         [model]\ndepth = {depth}\nimage_size = {image_size}\n[method]\ncompute = \"selective\"\n\
         [batch]\nlanes = 1\nimages_per_lane = {images}\n[train]\nsteps = {steps}\n\
         [optimizer]\nkind = \"lars\"\nlr = 0.5\nwarmup_steps = 2\n"
    )
}

/// Where the measured steps' time went.
#[derive(Default)]
struct Times {
    all: Duration,
    data: Duration,
    losses: Vec<f64>,
    skipped: u32,
}

/// Steps of the network through generated JPEGs.
pub(super) fn part(a: &TrainingArguments, scale: Scale, device: Device) -> Result<Finding> {
    let folder = tempfile::tempdir().context("a folder for pictures")?;
    let spec =
        GenerateSpec { size: scale.picture_size, ..GenerateSpec::scenes(scale.pictures, Seed::new(3)) };
    generate(folder.path(), &spec, &mut |_, _| {})?;
    let job = Job::parse(&job(scale, a.images, folder.path()), "the check's job")?;
    let dataset = Arc::new(Dataset::open(folder.path())?);
    let plan = mcl_job::plan_spec(&job, &dataset);
    let schedule = mcl_job::schedule(&job, &plan)?;
    let mut model =
        Model::new(weights::model_spec(&job, None)?, engine::kind(job.train().precision), device)?;
    model.initialize(job.seed())?;
    let mut trainer = Trainer::new(model, train::trainer_settings(&job))?;
    let mut feed = Feed::start(&job, device, dataset, plan, schedule, 0..1, Step::new(0))?;
    let mut times = Times::default();
    let mut begun = Instant::now();
    for step in (0..scale.steps).map(Step::new) {
        if step.get() == scale.unmeasured {
            engine::settle(device);
            (begun, times.data) = (Instant::now(), Duration::ZERO);
        }
        let waiting = Instant::now();
        let fed = feed.take(step, || false)?;
        times.data += waiting.elapsed();
        let rates = Rates { lr: 0.1, momentum: 0.99 };
        let input = StepInput { step, lanes: &fed.lanes, rates, halt: Halt::No, saving: false };
        let outcome = trainer.step(&input)?;
        feed.applied();
        times.losses.push(outcome.lane_losses.iter().flatten().sum());
        times.skipped += u32::from(outcome.skipped);
    }
    engine::settle(device);
    times.all = begun.elapsed();
    told(a, scale, &times, Peak::of(device)?)
}

fn told(a: &TrainingArguments, scale: Scale, times: &Times, peak: Peak) -> Result<Finding> {
    let measured = u32::try_from(scale.steps - scale.unmeasured)?;
    let step = times.all.as_secs_f64() / f64::from(measured);
    let images = f64::from(a.images) / step;
    let waiting = times.data.as_secs_f64() / times.all.as_secs_f64();
    let finite = times.skipped == 0 && times.losses.iter().all(|l| l.is_finite());
    let loss = times.losses.last().copied().unwrap_or(f64::NAN);
    let detail = format!(
        "R{} {} px, {} pictures, selective, f32, {} loader threads: {:.1} ms a step, {images:.0} images/s, {:.1} % of it \
         waiting for pictures, most memory {:.2} GiB, loss {loss:.4}",
        scale.depth,
        scale.image_size,
        a.images,
        scale.loader_threads,
        1e3 * step,
        100.0 * waiting,
        peak.scarce() as f64 / f64::from(1 << 30),
    );
    let finding =
        Finding::of("training", finite, detail).with("step_ms", 1e3 * step).with("images_per_s", images);
    let finding = finding
        .with("data_wait_share", waiting)
        .with("loss", loss)
        .with("host_peak_bytes", peak.peak_bytes as f64);
    let gpu = |finding: Finding, name: &str, bytes: Option<i64>| match bytes {
        Some(bytes) => finding.with(name, bytes as f64),
        None => finding,
    };
    let finding = gpu(finding, "gpu_peak_bytes", peak.gpu_peak_bytes);
    Ok(gpu(finding, "gpu_reserved_bytes", peak.gpu_reserved_bytes)
        .with("loader_threads", f64::from(scale.loader_threads)))
}
