//! `mcl checkpoint`.

use crate::arguments::CheckpointCommand;
use crate::client::runtime;
use crate::exit::{FAILED, Usage};
use crate::export;
use crate::progress::Work;
use anyhow::{Result, bail};
use mcl_checkpoint_core::{CheckpointDir, Depth, Inventory};
use mcl_terminal::say;
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
            CheckpointCommand::Pin { path, json } => pin(path, true, *json).await,
            CheckpointCommand::Unpin { path, json } => pin(path, false, *json).await,
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
    let dir = CheckpointDir::at(path).await?;
    let inventory = match depth {
        Depth::Full => {
            let all = dir.list(Depth::Quick).await?.visible.iter().map(|e| e.manifest.file_bytes()).sum();
            Work::bytes("verified", all).during(|| dir.bytes_read(), dir.list(depth)).await?
        }
        _ => dir.list(depth).await?,
    };
    if inventory.visible.is_empty() && inventory.damaged.is_empty() {
        // What was named must be there, and nothing is not verified.
        match dir.only() {
            Some(step) => bail!(not_visible(step, &inventory, path, dir.root())),
            None if depth == Depth::Full => bail!("{path} holds no checkpoint: nothing was verified"),
            None => {}
        }
    }
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
        say!("{}", serde_json::json!({ "checkpoints": visible, "damaged": damaged }))?;
    } else {
        for e in &inventory.visible {
            let m = &e.manifest;
            say!(
                "after {:>8} steps  {}  {} slices  {} bytes{}",
                m.step.get(),
                m.state_digest.short(),
                m.slices.len(),
                m.file_bytes(),
                if e.pinned { "  pinned" } else { "" }
            )?;
        }
        for (step, reason) in &inventory.damaged {
            say!("after {:>8} steps  DAMAGED: {reason}", step.get())?;
        }
        if inventory.visible.is_empty() && inventory.damaged.is_empty() {
            say!("no checkpoints in {path}")?;
        }
    }
    Ok(if inventory.damaged.is_empty() { ExitCode::SUCCESS } else { ExitCode::from(FAILED) })
}

/// Why there is nothing to say of the one checkpoint that was named.
fn not_visible(step: Step, inventory: &Inventory, path: &StoreLocation, root: &str) -> String {
    let what = if inventory.staged.is_empty() {
        "is not there"
    } else {
        "is only staged: it was not committed, or not yet"
    };
    format!(
        "{path}: expected the checkpoint of {step}, which {what}; `mcl checkpoint list {root}` shows those that are"
    )
}

async fn prune(path: &StoreLocation, retention: Retention, dry_run: bool, json: bool) -> Result<ExitCode> {
    let dir = CheckpointDir::at(path).await?;
    if dir.only().is_some() {
        let root = dir.root();
        bail!(Usage(format!("prune {path}: that is one checkpoint; give the folder of its run, {root}")));
    }
    let gone = dir.prune(retention, dry_run).await?;
    if json {
        let steps: Vec<u64> = gone.iter().map(|step| step.get()).collect();
        say!("{}", serde_json::json!({ "removed": steps, "dry_run": dry_run }))?;
        return Ok(ExitCode::SUCCESS);
    }
    let what = if dry_run { "would remove" } else { "removed" };
    for step in &gone {
        say!("{what} the checkpoint after {} steps", step.get())?;
    }
    if gone.is_empty() {
        say!("nothing to remove in {path}")?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn pin(path: &StoreLocation, pinned: bool, json: bool) -> Result<ExitCode> {
    let dir = CheckpointDir::at(path).await?;
    let step = match (pinned, dir.only()) {
        (false, None) => {
            bail!(Usage(format!("unpin {path}: name one checkpoint: {}/step-...", dir.root())))
        }
        _ => newest(&dir, path).await?,
    };
    dir.pin(step, pinned).await?;
    if json {
        say!("{}", serde_json::json!({ "step": step.get(), "pinned": pinned }))?;
    } else {
        say!("the checkpoint after {} steps {}", step.get(), if pinned { "stays" } else { "may go" })?;
    }
    Ok(ExitCode::SUCCESS)
}

async fn digest(path: &StoreLocation, tensors: bool, json: bool) -> Result<ExitCode> {
    let dir = CheckpointDir::at(path).await?;
    let work = async {
        let step = newest(&dir, path).await?;
        Ok::<_, anyhow::Error>((step, dir.verify(step).await?))
    };
    let (step, (manifest, list)) = Work::some_bytes("read").during(|| dir.bytes_read(), work).await?;
    if json {
        let each: serde_json::Map<String, serde_json::Value> = if tensors {
            list.iter().map(|t| (t.name.clone(), t.digest.to_string().into())).collect()
        } else {
            serde_json::Map::new()
        };
        say!(
            "{}",
            serde_json::json!({ "step": step.get(), "digest": manifest.state_digest.to_string(), "tensors": each })
        )?;
    } else {
        say!("{}", manifest.state_digest)?;
        if tensors {
            for t in &list {
                say!("{}  {}", t.digest, t.name)?;
            }
        }
    }
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;
    use mcl_checkpoint_core::{
        CheckpointStore, CommitSpec, Dtype, Layout, SliceSpec, step_folder, write_slice,
    };
    use mcl_types::RunId;
    use std::path::Path;

    /// A run directory with visible checkpoints after 10 and 20 steps; that after 30 is staged alone.
    async fn run_directory() -> tempfile::TempDir {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::local(folder.path().join("checkpoints"), Layout::Flat).unwrap();
        for steps in [10, 20, 30] {
            let (run, step) = (RunId::new("demo").unwrap(), Step::new(steps));
            let tensor = ("w".to_owned(), Dtype::I64, vec![1], &steps.to_le_bytes()[..]);
            let slice = Bytes::from(write_slice(&[tensor]).unwrap());
            let size = slice.len() as u64;
            let spec = SliceSpec { run: run.clone(), step, slice: 0, slices: 1, size };
            store.stage_slice(spec, slice).await.unwrap();
            if steps < 30 {
                let meta = serde_json::Value::Null;
                store.commit(&CommitSpec { run, step, slices: 1, created: 7, meta }).await.unwrap();
            }
        }
        folder
    }

    fn step(folder: &Path, steps: u64) -> StoreLocation {
        folder.join("checkpoints").join(step_folder(Step::new(steps))).into()
    }

    /// Why a command failed, and whether its usage was at fault.
    fn refused(result: Result<ExitCode>) -> (String, bool) {
        let error = result.expect_err("a failure");
        (error.to_string(), error.is::<Usage>())
    }

    #[tokio::test]
    async fn verifying_nothing_is_a_failure() {
        let folder = run_directory().await;
        let verify = async |path: StoreLocation| list(&path, false, Depth::Full).await;
        assert_eq!(verify(step(folder.path(), 20)).await.unwrap(), ExitCode::SUCCESS);
        let (staged, usage) = refused(verify(step(folder.path(), 30)).await);
        assert!(staged.contains("step-0000000030") && staged.contains("only staged") && !usage, "{staged}");
        let (absent, usage) = refused(verify(step(folder.path(), 40)).await);
        assert!(absent.contains("step-0000000040") && !usage, "{absent}");
        let (listed, _) = refused(list(&step(folder.path(), 30), true, Depth::Quick).await);
        assert_eq!(listed, staged, "a checkpoint that was named is expected to be there");

        let empty = tempfile::tempdir().unwrap();
        std::fs::create_dir(empty.path().join("checkpoints")).unwrap();
        let (none, usage) = refused(verify(empty.path().into()).await);
        assert!(none.contains("holds no checkpoint") && !usage, "{none}");
        assert_eq!(list(&empty.path().into(), false, Depth::Quick).await.unwrap(), ExitCode::SUCCESS);
    }

    #[tokio::test]
    async fn pruning_is_about_a_run_and_the_rest_about_what_was_named() {
        let folder = run_directory().await;
        let (error, usage) =
            refused(prune(&step(folder.path(), 10), Retention::newest(1), false, false).await);
        assert!(usage && error.contains("one checkpoint") && error.contains("/checkpoints"), "{error}");
        let dir = CheckpointDir::open(folder.path()).unwrap();
        assert_eq!(dir.list(Depth::Full).await.unwrap().visible.len(), 2, "nothing went");

        for there in [step(folder.path(), 10), folder.path().into()] {
            digest(&there, true, false).await.unwrap();
        }
        let staged = step(folder.path(), 30);
        for result in [
            digest(&staged, false, true).await,
            pin(&staged, true, false).await,
            pin(&staged, false, true).await,
        ] {
            let (error, _) = refused(result);
            assert!(error.contains("no checkpoint of step 30"), "{error}");
        }
        pin(&step(folder.path(), 10), true, true).await.unwrap();
        let (error, usage) = refused(pin(&folder.path().into(), false, false).await);
        assert!(usage && error.contains("/checkpoints/step-"), "{error}");
        assert!(dir.list(Depth::Quick).await.unwrap().visible[0].pinned, "as it was");
        prune(&folder.path().into(), Retention::newest(1), false, false).await.unwrap();
        assert_eq!(dir.list(Depth::Full).await.unwrap().visible.len(), 2, "the pinned one stays");
    }
}
