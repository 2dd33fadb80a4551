//! `mcl checkpoint`.

use crate::arguments::CheckpointCommand;
use crate::client::runtime;
use crate::exit::FAILED;
use crate::export;
use anyhow::{Result, bail};
use mcl_checkpoint_core::{CheckpointDir, Depth};
use mcl_types::Step;
use std::path::Path;
use std::process::ExitCode;

pub(crate) fn checkpoint(command: &CheckpointCommand) -> Result<ExitCode> {
    runtime()?.block_on(async {
        match command {
            CheckpointCommand::List { path, json } => list(path, *json, Depth::Quick).await,
            CheckpointCommand::Verify { path, json } => list(path, *json, Depth::Full).await,
            CheckpointCommand::Digest { path, tensors, json } => digest(path, *tensors, *json).await,
            CheckpointCommand::Export(a) => export::export(a).await,
            CheckpointCommand::Import(a) => export::import(a),
        }
    })
}

pub(crate) async fn newest(dir: &CheckpointDir, path: &Path) -> Result<Step> {
    match dir.newest().await? {
        Some(step) => Ok(step),
        None => bail!("{} holds no good checkpoint", path.display()),
    }
}

async fn list(path: &Path, json: bool, depth: Depth) -> Result<ExitCode> {
    let inventory = CheckpointDir::open(path)?.list(depth).await?;
    if json {
        let visible: Vec<_> = inventory
            .visible
            .iter()
            .map(|e| {
                serde_json::json!({
                    "step": e.manifest.step.get(), "digest": e.manifest.state_digest.to_string(),
                    "slices": e.manifest.slices.len(), "bytes": e.manifest.file_bytes(),
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
                "after {:>8} steps  {}  {} slices  {} bytes",
                m.step.get(),
                m.state_digest.short(),
                m.slices.len(),
                m.file_bytes()
            );
        }
        for (step, reason) in &inventory.damaged {
            println!("after {:>8} steps  DAMAGED: {reason}", step.get());
        }
        if inventory.visible.is_empty() && inventory.damaged.is_empty() {
            println!("no checkpoints in {}", path.display());
        }
    }
    Ok(if inventory.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

async fn digest(path: &Path, tensors: bool, json: bool) -> Result<ExitCode> {
    let dir = CheckpointDir::open(path)?;
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
