//! `mcl data`.

use crate::arguments::{DataCommand, Kind};
use crate::client::load_job;
use crate::exit::Usage;
use crate::progress::Work;
use anyhow::{Context, Result, bail};
use indicatif::ProgressBar;
use mcl_config::Override;
use mcl_data::generate::{GenerateSpec, PictureFormat};
use mcl_data::pack::{PackSpec, Shrink};
use mcl_data::{Dataset, Limits, RemoteSpec};
use mcl_terminal::say;
use mcl_types::{Seed, StoreLocation};
use std::path::Path;
use std::process::ExitCode;
use std::sync::Arc;

pub(crate) fn data(command: &DataCommand) -> Result<ExitCode> {
    match command {
        DataCommand::Pack { source, out, samples_per_shard, short_side, quality, json } => {
            let shrink = short_side.map(|short_side| Shrink { short_side, quality: *quality });
            pack(source, out, PackSpec { samples_per_shard: *samples_per_shard, shrink }, *json)
        }
        DataCommand::Index { source, json } => index(source, *json),
        DataCommand::Inspect { source, json } => inspect(source, *json),
        DataCommand::Preview { job, out, step, lane, overrides, json } => {
            preview(job, out, (*step, *lane), overrides, *json)
        }
        DataCommand::Generate { kind, out, count, size, quality, seed, json } => {
            let mut spec = match kind {
                Kind::Objects => GenerateSpec::objects(*count, Seed::new(*seed)),
                Kind::Scenes => GenerateSpec::scenes(*count, Seed::new(*seed)),
            };
            spec.size = size.unwrap_or(spec.size);
            spec.format = PictureFormat::Jpeg(*quality);
            generate(out, &spec, *json)
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

fn pack(source: &StoreLocation, out: &Path, spec: PackSpec, json: bool) -> Result<()> {
    let (bar, mut heard) = bar();
    let dataset = Dataset::open_at(source, &RemoteSpec::default())?;
    let report = mcl_data::pack::pack_dataset(&dataset, out, spec, &mut heard)?;
    bar.finish_and_clear();
    if json {
        say!("{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    if report.shrunk > 0 {
        say!("{} of {} pictures shrunk", report.shrunk, report.samples)?;
    }
    say!(
        "{} pictures in {} shards, {} bytes: {}",
        report.samples,
        report.shards.len(),
        report.bytes,
        out.display()
    )?;
    for (id, reason) in &report.skipped {
        say!("  left out {id}: {reason}")?;
    }
    Ok(())
}

fn index(source: &StoreLocation, json: bool) -> Result<()> {
    let written = match source {
        StoreLocation::Folder(path) => index_files(path)?,
        StoreLocation::Object(address) => mcl_data::dataset::index_remote(address, &RemoteSpec::default())?,
    };
    if json {
        let shards: Vec<_> = written
            .iter()
            .map(|(shard, pictures)| serde_json::json!({ "shard": shard, "pictures": pictures }))
            .collect();
        say!("{}", serde_json::json!({ "shards": shards }))?;
    } else {
        for (shard, pictures) in &written {
            say!("{shard}: {pictures} pictures")?;
        }
    }
    Ok(())
}

/// Shards of this machine, and their pictures.
fn index_files(source: &Path) -> Result<Vec<(String, u64)>> {
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
        let made = mcl_data::dataset::index(shard)?;
        written.push((shard.display().to_string(), made.samples.len() as u64));
    }
    Ok(written)
}

fn inspect(source: &StoreLocation, json: bool) -> Result<()> {
    let bar = ProgressBar::new(0);
    let heard = |done, all| {
        bar.set_length(all);
        bar.set_position(done);
    };
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let dataset = Dataset::open_at(source, &RemoteSpec::default())?;
    let summary = mcl_data::inspect::inspect(&dataset, Limits::default(), threads, &heard)?;
    bar.finish_and_clear();
    if json {
        say!("{}", serde_json::to_string(&summary)?)?;
        return Ok(());
    }
    say!(
        "{} pictures, {} bytes, {} shards, digest {}",
        summary.count,
        summary.bytes,
        summary.shards,
        summary.digest.short()
    )?;
    for (format, count) in &summary.formats {
        say!("  {format:<6} {count}")?;
    }
    say!(
        "  sizes  {}x{} to {}x{}",
        summary.smallest.0,
        summary.smallest.1,
        summary.largest.0,
        summary.largest.1
    )?;
    for (what, list) in [("cannot be decoded", &summary.undecodable), ("is damaged", &summary.damaged)] {
        for complaint in list {
            say!("  {what}: {}: {}", complaint.id, complaint.reason)?;
        }
    }
    Ok(())
}

fn generate(out: &Path, spec: &GenerateSpec, json: bool) -> Result<()> {
    let work = Work::counted("pictures");
    mcl_data::generate::generate(out, spec, &mut |done, all| work.heard(done, all))?;
    drop(work);
    if json {
        say!("{}", serde_json::json!({ "folder": out, "pictures": spec.count }))?;
    } else {
        say!("{} pictures in {}", spec.count, out.display())?;
    }
    Ok(())
}

/// The montages of one lane's step as the loader and the plan really make them.
fn preview(
    job: &Path,
    out: &Path,
    (step, lane): (u64, u32),
    overrides: &[Override],
    json: bool,
) -> Result<()> {
    let job = load_job(job, overrides)?;
    let dataset = Arc::new(mcl_job::open_dataset(&job)?);
    let sheet = crate::montage::draw(&job, dataset, step, lane)?;
    std::fs::write(out, sheet).with_context(|| format!("writing {}", out.display()))?;
    if json {
        say!("{}", serde_json::json!({ "file": out, "step": step, "lane": lane }))?;
    } else {
        say!("{}", out.display())?;
    }
    Ok(())
}
