//! `mcl data`.

use crate::arguments::{DataCommand, Kind};
use crate::client::load_job;
use crate::exit::Usage;
use crate::progress::Work;
use anyhow::{Context, Result, bail};
use mcl_config::Override;
use mcl_data::generate::{GenerateSpec, PictureFormat};
use mcl_data::pack::{PackProgress, PackSpec, Shrink};
use mcl_data::{Intake, Limits, RemoteSpec};
use mcl_terminal::say;
use mcl_types::{Seed, SourceKind, StoreLocation};
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
            apart(source, out)?;
            let remote = RemoteSpec::default();
            let intake = Intake::open(source, *kind, column.as_deref(), &remote)?;
            pack(&intake, out, spec, &remote, *json)
        }
        DataCommand::Index { source, kind, json } => index(source, *kind, *json),
        DataCommand::Inspect { source, kind, column, json } => {
            inspect(source, *kind, column.as_deref(), *json)
        }
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

/// Refuses to pack a folder into itself: with shards in it, it would be another source.
fn apart(source: &StoreLocation, out: &StoreLocation) -> Result<()> {
    let same = match (source, out) {
        (StoreLocation::Folder(source), StoreLocation::Folder(out)) => {
            source.canonicalize().ok().is_some_and(|source| out.canonicalize().is_ok_and(|out| out == source))
        }
        _ => source == out,
    };
    if same {
        bail!(Usage(format!("{out} is what is to be packed: give the shards another place")));
    }
    Ok(())
}

/// Complaints of each kind that are printed: the rest is in `--json`.
const PRINTED: usize = 100;

fn pack(intake: &Intake, out: &StoreLocation, spec: PackSpec, remote: &RemoteSpec, json: bool) -> Result<()> {
    let work = Work::counted("pictures");
    let report = mcl_data::pack::pack_intake(intake, out, spec, remote, &|at: PackProgress| {
        work.heard(at.done, intake.len());
        if at.done == at.kept {
            work.begins_now();
        }
        work.says_bytes(at.bytes);
    });
    drop(work);
    let report = report?;
    if json {
        say!("{}", serde_json::to_string(&report)?)?;
        return Ok(());
    }
    if report.kept > 0 {
        say!("{} of {} shards were there already", report.kept, report.shards.len())?;
    }
    if report.shrunk > 0 {
        say!("{} of {} pictures shrunk", report.shrunk, report.samples)?;
    }
    say!("{} pictures in {} shards, {} bytes: {out}", report.samples, report.shards.len(), report.bytes)?;
    for (what, count, list) in [
        ("left out", report.skipped_count, &report.skipped),
        ("packed as it is, and will be replaced in training:", report.ill_formed_count, &report.ill_formed),
    ] {
        for (id, reason) in list.iter().take(PRINTED) {
            say!("  {what} {id}: {reason}")?;
        }
        let more = count.saturating_sub(PRINTED as u64);
        if more > 0 {
            say!("  and {more} more")?;
        }
    }
    Ok(())
}

fn index(source: &StoreLocation, kind: Option<SourceKind>, json: bool) -> Result<()> {
    let work = Work::counted("shards");
    let heard = |done, all| work.heard(done, all);
    let written = mcl_data::dataset::index_source(source, kind, &RemoteSpec::default(), &heard);
    drop(work);
    let written = written?;
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

fn inspect(source: &StoreLocation, kind: Option<SourceKind>, column: Option<&str>, json: bool) -> Result<()> {
    let threads = std::thread::available_parallelism().map_or(1, std::num::NonZero::get);
    let intake = Intake::open(source, kind, column, &RemoteSpec::default())?;
    let work = Work::counted("pictures");
    let heard = |done, all| work.heard(done, all);
    let summary = mcl_data::inspect::inspect(&intake, Limits::default(), threads, &heard);
    drop(work);
    let summary = summary?;
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
    for (what, count, list) in [
        ("cannot be decoded", summary.undecodable_count, &summary.undecodable),
        ("is damaged", summary.damaged_count, &summary.damaged),
    ] {
        for complaint in list {
            say!("  {what}: {}: {}", complaint.id, complaint.reason)?;
        }
        let more = count.saturating_sub(list.len() as u64);
        if more > 0 {
            say!("  and {more} more")?;
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
