//! `mcl checkpoint`.

use crate::arguments::CheckpointCommand;
use crate::client::runtime;
use crate::exit::{FAILED, Usage};
use crate::export;
use anyhow::{Result, bail};
use mcl_checkpoint_core::{CheckpointDir, Depth};
use mcl_types::{Retention, Step, StoreLocation};
use std::process::ExitCode;

pub(crate) fn checkpoint(command: &CheckpointCommand) -> Result<ExitCode> {
    runtime()?.block_on(async {
        match command {
            CheckpointCommand::List { path, json } => list(path, *json, Depth::Quick).await,
            CheckpointCommand::Verify { path, json } => list(path, *json, Depth::Full).await,
            CheckpointCommand::Digest { path, tensors, json } => digest(path, *tensors, *json).await,
            CheckpointCommand::Prune { path, keep, keep_every, dry_run, json } => {
                prune(path, Retention { keep: *keep, keep_every: *keep_every }, *dry_run, *json).await
            }
            CheckpointCommand::Pin { path } => pin(path, true).await,
            CheckpointCommand::Unpin { path } => pin(path, false).await,
            CheckpointCommand::Export(a) => export::export(a).await,
            CheckpointCommand::Import(a) => export::import(a),
        }
    })
}

pub(crate) async fn newest(dir: &CheckpointDir, path: &StoreLocation) -> Result<Step> {
    match dir.newest().await? {
        Some(step) => Ok(step),
        None => bail!("{path} holds no good checkpoint"),
    }
}

async fn list(path: &StoreLocation, json: bool, depth: Depth) -> Result<ExitCode> {
    let inventory = CheckpointDir::at(path).await?.list(depth).await?;
    if json {
        let visible: Vec<_> = inventory
            .visible
            .iter()
            .map(|e| {
                serde_json::json!({
                    "step": e.manifest.step.get(), "digest": e.manifest.state_digest.to_string(),
                    "slices": e.manifest.slices.len(), "bytes": e.manifest.file_bytes(), "pinned": e.pinned,
                })
            })
            .collect();
        let damaged: Vec<_> = inventory
            .damaged
            .iter()
            .map(|(step, reason)| serde_json::json!({ "step": step.get(), "reason": reason.to_string() }))
            .collect();
        println!("{}", serde_json::json!({ "checkpoints": visible, "damaged": damaged }));
    } else {
        for e in &inventory.visible {
            let m = &e.manifest;
            println!(
                "after {:>8} steps  {}  {} slices  {} bytes{}",
                m.step.get(),
                m.state_digest.short(),
                m.slices.len(),
                m.file_bytes(),
                if e.pinned { "  pinned" } else { "" }
            );
        }
        for (step, reason) in &inventory.damaged {
            println!("after {:>8} steps  DAMAGED: {reason}", step.get());
        }
        if inventory.visible.is_empty() && inventory.damaged.is_empty() {
            println!("no checkpoints in {path}");
        }
    }
    Ok(if inventory.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn prune(path: &StoreLocation, retention: Retention, dry_run: bool, json: bool) -> Result<ExitCode> {
    let gone = CheckpointDir::at(path).await?.prune(retention, dry_run).await?;
    if json {
        let steps: Vec<u64> = gone.iter().map(|step| step.get()).collect();
        println!("{}", serde_json::json!({ "removed": steps, "dry_run": dry_run }));
        return Ok(ExitCode::SUCCESS);
    }
    let what = if dry_run { "would remove" } else { "removed" };
    for step in &gone {
        println!("{what} the checkpoint after {} steps", step.get());
    }
    if gone.is_empty() {
        println!("nothing to remove in {path}");
    }
    Ok(ExitCode::SUCCESS)
}

async fn pin(path: &StoreLocation, pinned: bool) -> Result<ExitCode> {
    let dir = CheckpointDir::at(path).await?;
    let step = match (pinned, dir.only()) {
        (false, None) => bail!(Usage(format!("unpin {path}: name one checkpoint: {path}/step-..."))),
        _ => newest(&dir, path).await?,
    };
    dir.pin(step, pinned).await?;
    println!("the checkpoint after {} steps {}", step.get(), if pinned { "stays" } else { "may go" });
    Ok(ExitCode::SUCCESS)
}

async fn digest(path: &StoreLocation, tensors: bool, json: bool) -> Result<ExitCode> {
    let dir = CheckpointDir::at(path).await?;
    let step = newest(&dir, path).await?;
    let (manifest, list) = dir.verify(step).await?;
    if json {
        let each: serde_json::Map<String, serde_json::Value> = if tensors {
            list.iter().map(|t| (t.name.clone(), t.digest.to_string().into())).collect()
        } else {
            serde_json::Map::new()
        };
        println!(
            "{}",
            serde_json::json!({ "step": step.get(), "digest": manifest.state_digest.to_string(), "tensors": each })
        );
    } else {
        println!("{}", manifest.state_digest);
        if tensors {
            for t in &list {
                println!("{}  {}", t.digest, t.name);
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}
