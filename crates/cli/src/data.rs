//! `mcl data`.

use crate::arguments::{DataCommand, Kind};
use crate::client::load_job;
use crate::exit::Usage;
use anyhow::{Context, Result, bail};
use indicatif::{HumanBytes, ProgressBar, ProgressStyle};
use mcl_config::Override;
use mcl_data::generate::{GenerateSpec, PictureFormat};
use mcl_data::montage::Side;
use mcl_data::pack::{Intake, PackProgress, PackSpec, Shrink};
use mcl_data::{BatchRequest, Dataset, Limits, Loader, LoaderSpec, MontageLayout, RemoteSpec};
use mcl_plan::{EpochPlan, PlanSpec, substitute};
use mcl_types::{Lane, Seed, Slot, SourceKind, Step, StoreLocation};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

pub(crate) fn data(command: &DataCommand) -> Result<ExitCode> {
    match command {
        DataCommand::Pack {
            source,
            out,
            out_flag,
            kind,
            column,
            samples_per_shard,
            threads,
            short_side,
            quality,
            json,
        } => {
            let spec = PackSpec {
                samples_per_shard: *samples_per_shard,
                shrink: short_side.map(|short_side| Shrink { short_side, quality: *quality }),
                threads: threads.map_or(PackSpec::default().threads, usize::from),
            };
            let out = out.as_ref().or(out_flag.as_ref()).context("no place to pack into")?;
            let remote = RemoteSpec::default();
            let intake = Intake::open(source, *kind, column.as_deref(), &remote)?;
            pack(&intake, out, spec, &remote, *json)
        }
        DataCommand::Index { source, kind, json } => index(source, *kind, *json),
        DataCommand::Inspect { source, kind, json } => inspect(source, *kind, *json),
        DataCommand::Preview { job, out, step, lane, overrides } => {
            preview(job, out, *step, *lane, overrides)
        }
        DataCommand::Generate { kind, out, count, size, quality, seed } => {
            let mut spec = match kind {
                Kind::Objects => GenerateSpec::objects(*count, Seed::new(*seed)),
                Kind::Scenes => GenerateSpec::scenes(*count, Seed::new(*seed)),
            };
            spec.size = size.unwrap_or(spec.size);
            spec.format = PictureFormat::Jpeg(*quality);
            generate(out, &spec)
        }
    }?;
    Ok(ExitCode::SUCCESS)
}

/// A bar that hears (done, in all).
fn bar() -> (ProgressBar, impl FnMut(u64, u64)) {
    let bar = ProgressBar::new(0);
    let own = bar.clone();
    (bar, move |done, all| {
        own.set_length(all);
        own.set_position(done);
    })
}

/// Complaints of each kind that are printed: the rest is in `--json`.
const PRINTED: usize = 100;

fn pack(intake: &Intake, out: &StoreLocation, spec: PackSpec, remote: &RemoteSpec, json: bool) -> Result<()> {
    let bar = ProgressBar::new(intake.len());
    let template = "{bar:30} {pos}/{len} pictures  {per_sec}  {msg}  ETA {eta}";
    if let Ok(style) = ProgressStyle::with_template(template) {
        bar.set_style(style);
    }
    let report = mcl_data::pack::pack_intake(intake, out, spec, remote, &|at: PackProgress| {
        bar.set_position(at.done);
        if at.done == at.kept {
            // Those of an earlier try took no time now: rate and ETA count from here.
            bar.reset_eta();
        }
        bar.set_message(HumanBytes(at.bytes).to_string());
    });
    bar.finish_and_clear();
    let report = report?;
    if json {
        println!("{}", serde_json::to_string(&report)?);
        return Ok(());
    }
    if report.kept > 0 {
        println!("{} of {} shards were there already", report.kept, report.shards.len());
    }
    if report.shrunk > 0 {
        println!("{} of {} pictures shrunk", report.shrunk, report.samples);
    }
    println!("{} pictures in {} shards, {} bytes: {out}", report.samples, report.shards.len(), report.bytes);
    for (what, count, list) in [
        ("left out", report.skipped_count, &report.skipped),
        ("packed as it is, and will be replaced in training:", report.ill_formed_count, &report.ill_formed),
    ] {
        for (id, reason) in list.iter().take(PRINTED) {
            println!("  {what} {id}: {reason}");
        }
        let more = count.saturating_sub(PRINTED as u64);
        if more > 0 {
            println!("  and {more} more");
        }
    }
    Ok(())
}

fn index(source: &StoreLocation, kind: Option<SourceKind>, json: bool) -> Result<()> {
    let written = match source {
        StoreLocation::Folder(path) => index_files(path, kind)?,
        StoreLocation::Object(address) => {
            mcl_data::dataset::index_remote(address, kind, &RemoteSpec::default())?
        }
    };
    if json {
        let shards: Vec<_> = written
            .iter()
            .map(|(shard, pictures)| serde_json::json!({ "shard": shard, "pictures": pictures }))
            .collect();
        println!("{}", serde_json::json!({ "shards": shards }));
    } else {
        written.iter().for_each(|(shard, pictures)| println!("{shard}: {pictures} pictures"));
    }
    Ok(())
}

/// Shards of this machine, and their pictures.
fn index_files(source: &Path, kind: Option<SourceKind>) -> Result<Vec<(String, u64)>> {
    let mut shards = Vec::new();
    if source.is_dir() {
        let entries = std::fs::read_dir(source).with_context(|| source.display().to_string())?;
        shards.extend(
            entries.flatten().map(|e| e.path()).filter(|p| p.extension().is_some_and(|e| e == "tar")),
        );
        shards.sort();
    } else {
        shards.push(source.to_owned());
    }
    if shards.is_empty() {
        bail!(Usage(format!("{} holds no .tar shard", source.display())));
    }
    let mut written = Vec::new();
    for shard in &shards {
        let made = mcl_data::dataset::index_as(shard, kind)?;
        written.push((shard.display().to_string(), made.samples.len() as u64));
    }
    Ok(written)
}

fn inspect(source: &StoreLocation, kind: Option<SourceKind>, json: bool) -> Result<()> {
    let bar = ProgressBar::new(0);
    let heard = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let dataset = Dataset::open_as(source, kind, &RemoteSpec::default())?;
    let summary = mcl_data::inspect::inspect(&dataset, Limits::default(), threads, &heard)?;
    bar.finish_and_clear();
    if json {
        println!("{}", serde_json::to_string(&summary)?);
        return Ok(());
    }
    println!(
        "{} pictures, {} bytes, {} shards, digest {}",
        summary.count,
        summary.bytes,
        summary.shards,
        summary.digest.short()
    );
    for (format, count) in &summary.formats {
        println!("  {format:<6} {count}");
    }
    println!(
        "  sizes  {}x{} to {}x{}",
        summary.smallest.0, summary.smallest.1, summary.largest.0, summary.largest.1
    );
    for (what, list) in [("cannot be decoded", &summary.undecodable), ("is damaged", &summary.damaged)] {
        for complaint in list {
            println!("  {what}: {}: {}", complaint.id, complaint.reason);
        }
    }
    Ok(())
}

fn generate(out: &Path, spec: &GenerateSpec) -> Result<()> {
    let (bar, mut heard) = bar();
    mcl_data::generate::generate(out, spec, &mut heard)?;
    bar.finish_and_clear();
    println!("{} pictures in {}", spec.count, out.display());
    Ok(())
}

/// The montages of one lane's step as the loader and the plan really make them.
fn preview(job: &Path, out: &Path, step: u64, lane: u32, overrides: &[Override]) -> Result<()> {
    let job = load_job(job, overrides)?;
    let dataset = Arc::new(mcl_job::open_dataset(&job)?);
    let plan = mcl_job::plan_spec(&job, &dataset);
    let schedule = mcl_job::schedule(&job, &plan)?;
    if lane >= job.batch().lanes || step >= schedule.total_steps() {
        bail!(Usage(format!(
            "step {step}, lane {lane}: expected steps below {} and lanes below {}",
            schedule.total_steps(),
            job.batch().lanes
        )));
    }
    let (step, lane) = (Step::new(step), Lane::new(lane));
    let at = schedule.locate(step);
    let samples = planned(&plan, &at, lane)?;
    let request = BatchRequest { epoch: at.epoch, step, lane, samples };
    let spec = LoaderSpec {
        augment: mcl_job::augment_spec(&job),
        image_size: job.model().image_size,
        levels: job.method().levels.clone(),
        mode: mcl_job::view_mode(&job),
        seed: job.seed(),
        ..LoaderSpec::default()
    };
    let replacements = plan;
    let mut loader = Loader::start(
        dataset,
        spec,
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
    let sheet = mcl_data::montage_sheet(&batch, job.model().image_size, &layout, &permutations)?;
    std::fs::write(out, sheet).with_context(|| format!("writing {}", out.display()))?;
    println!("{}", out.display());
    Ok(())
}

fn planned(plan: &PlanSpec, at: &mcl_plan::Position, lane: Lane) -> Result<Vec<mcl_types::SampleIndex>> {
    let epoch = EpochPlan::new(plan, at.epoch)?;
    (0..plan.images_per_lane)
        .map(|slot| {
            epoch.sample(at.step_in_epoch, lane, Slot::new(slot)).context("the plan has no such slot")
        })
        .collect()
}
