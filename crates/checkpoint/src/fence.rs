//! Who may still speak for a run: the highest token seen, kept beside its checkpoints.
//!
//! Each run has its own (different coordinators count their terms apart). Invariants: a higher token is
//! durable before anything is done under it; while a [`Pass`] is held no higher token is let in, so what
//! it covers is over when a newer coordinator is told that its term stands. That holds within one service. A second
//! service over the same store is noticed where it raised a token first: the file is read again before a slice counts
//! as staged, and between the last verified byte of a checkpoint and its manifest. A folder has one service: it is
//! locked.

use mcl_checkpoint_core::{CheckpointStore, Record, RecordError, StoreError};
use mcl_failpoint::{Failpoint, pass};
use mcl_types::{FencingToken, Generation, RunId, Term};
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::num::NonZeroU64;
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

/// Tries to raise a token that another service raises too.
const TRIES: u32 = 5;

/// Why a token was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FenceError {
    #[error(
        "token {found} of run `{run}` is stale: the highest seen is {highest}; whoever sent it has been \
         replaced and must stop"
    )]
    Stale { run: RunId, found: FencingToken, highest: FencingToken },
    #[error(
        "{place} holds another run named `{run}`, of another run directory: choose another name (`run_name`, or the \
         job file's), or another store; to go on from its checkpoints, use `--from`; once nobody needs that run, \
         remove its checkpoints and {file}"
    )]
    NameTaken { run: RunId, place: String, file: String },
    #[error("cannot keep the highest token of run `{run}`: {source}")]
    Store { run: RunId, source: StoreError },
    #[error(
        "cannot keep the highest token of run `{run}`: another service raised it at the same time, {TRIES} times; stop \
         other checkpoint services over the same store"
    )]
    Contended { run: RunId },
    #[error(
        "the highest token of run `{run}` in {place}/{file} does not parse: {reason}; restore the file from the \
         coordinator's term"
    )]
    Parse { run: RunId, place: String, file: String, reason: String },
}

/// Leave to act under a token; hold it until the act is done.
#[derive(Debug)]
pub(crate) struct Pass {
    _held: OwnedRwLockReadGuard<Option<Mark>>,
}

/// Who speaks for a run, as it is kept.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
pub(crate) struct Mark {
    #[serde(flatten)]
    token: FencingToken,
    /// What tells the run from another of the same name, where somebody told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    incarnation: Option<NonZeroU64>,
}

/// One run's mark; nothing before its file was read.
type Slot = Arc<RwLock<Option<Mark>>>;

#[derive(Debug)]
pub(crate) struct Fence {
    store: CheckpointStore,
    slots: Mutex<HashMap<RunId, Slot>>,
}

impl Fence {
    /// Tokens are kept at the root of `store`, one small file a run.
    pub fn new(store: CheckpointStore) -> Self {
        Self { store, slots: Mutex::default() }
    }

    fn slot(&self, run: &RunId) -> Slot {
        let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(slots.entry(run.clone()).or_default())
    }

    /// A coordinator's first word: terms below are refused from now on, and so is another run of the name.
    pub async fn announce(
        &self,
        run: &RunId,
        term: Term,
        incarnation: Option<NonZeroU64>,
    ) -> Result<(), FenceError> {
        let token = FencingToken { term, generation: Generation::default() };
        let mut held = self.slot(run).write_owned().await;
        let mark = self.raise(run, Mark { token, incarnation }).await?;
        *held = Some(mark);
        if incarnation.is_some() && mark.incarnation != incarnation {
            let place = self.store.name().to_owned();
            return Err(FenceError::NameTaken { run: run.clone(), place, file: file(run) });
        }
        // The same term again, after generations were formed in it, is the same coordinator asking twice.
        if term < mark.token.term { Err(stale(run, token, mark.token)) } else { Ok(()) }
    }

    /// Lets a token in that is not below the highest.
    pub async fn admit(&self, run: &RunId, token: FencingToken) -> Result<Pass, FenceError> {
        let slot = self.slot(run);
        let held = Arc::clone(&slot).read_owned().await;
        match *held {
            Some(mark) if token == mark.token => return Ok(Pass { _held: held }),
            Some(mark) if token < mark.token => return Err(stale(run, token, mark.token)),
            _ => drop(held),
        }
        let mut held = slot.write_owned().await;
        // Somebody else may have raised it meanwhile.
        let mark = match *held {
            Some(mark) if token <= mark.token => mark,
            _ => self.raise(run, Mark { token, incarnation: None }).await?,
        };
        *held = Some(mark);
        if token < mark.token {
            Err(stale(run, token, mark.token))
        } else {
            Ok(Pass { _held: held.downgrade() })
        }
    }

    /// Refuses a token that another service over the same store has let a higher one pass.
    pub async fn confirm(&self, run: &RunId, token: FencingToken) -> Result<(), FenceError> {
        let (mark, _) = self.load(run).await?;
        if token < mark.token { Err(stale(run, token, mark.token)) } else { Ok(()) }
    }

    /// Makes the token the highest, and the run's incarnation known where it was not, durably; what stands then. A
    /// higher token, or another incarnation, is left as it is.
    async fn raise(&self, run: &RunId, wanted: Mark) -> Result<Mark, FenceError> {
        for _ in 0..TRIES {
            let (stands, before) = self.load(run).await?;
            let other = wanted.incarnation.is_some()
                && stands.incarnation.is_some_and(|i| Some(i) != wanted.incarnation);
            let incarnation = stands.incarnation.or(wanted.incarnation);
            let raised = Mark { token: stands.token.max(wanted.token), incarnation };
            if other || raised == stands {
                return Ok(stands);
            }
            pass(Failpoint::BeforeFence);
            match self.save(run, raised, before.as_ref()).await {
                Ok(()) => {}
                Err(RecordError::Changed { .. }) => continue,
                Err(RecordError::Store(source)) => {
                    return Err(FenceError::Store { run: run.clone(), source });
                }
            }
            pass(Failpoint::AfterFence);
            let FencingToken { term, generation } = raised.token;
            tracing::info!(%run, term = term.get(), generation = generation.get(), "fence raised");
            return Ok(raised);
        }
        Err(FenceError::Contended { run: run.clone() })
    }

    async fn load(&self, run: &RunId) -> Result<(Mark, Option<Record>), FenceError> {
        let file = file(run);
        let record = self.store.read_record(&file).await;
        let record = record.map_err(|source| FenceError::Store { run: run.clone(), source })?;
        let Some(record) = record else { return Ok((Mark::default(), None)) };
        let mark = serde_json::from_slice(&record.bytes).map_err(|e| FenceError::Parse {
            run: run.clone(),
            place: self.store.name().to_owned(),
            file,
            reason: e.to_string(),
        })?;
        Ok((mark, Some(record)))
    }

    async fn save(&self, run: &RunId, mark: Mark, before: Option<&Record>) -> Result<(), RecordError> {
        let mut text = serde_json::json!(mark).to_string();
        text.push('\n');
        self.store.write_record(&file(run), text.into(), before).await
    }
}

fn stale(run: &RunId, found: FencingToken, highest: FencingToken) -> FenceError {
    FenceError::Stale { run: run.clone(), found, highest }
}

/// Beside the runs' folders.
fn file(run: &RunId) -> String {
    format!("fence-{run}.json")
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_checkpoint_core::Layout;
    use std::path::Path;
    use std::time::Duration;

    fn in_folder(folder: &Path) -> Fence {
        Fence::new(CheckpointStore::local(folder, Layout::Flat).unwrap())
    }

    fn token(term: u64, generation: u64) -> FencingToken {
        FencingToken { term: Term::new(term), generation: Generation::new(generation) }
    }

    #[tokio::test]
    async fn tokens_only_grow_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (RunId::new("a").unwrap(), RunId::new("b").unwrap());
        let fence = in_folder(folder.path());
        for good in [token(0, 0), token(1, 3), token(1, 3), token(2, 0)] {
            fence.admit(&a, good).await.unwrap();
        }
        assert!(matches!(fence.admit(&a, token(1, 9)).await, Err(FenceError::Stale { .. })));
        fence.admit(&b, token(1, 0)).await.unwrap();
        let again = in_folder(folder.path());
        assert!(matches!(again.admit(&a, token(1, 9)).await, Err(FenceError::Stale { .. })));
        assert!(matches!(again.admit(&a, token(1, 9)).await, Err(FenceError::Stale { .. })));
        again.admit(&a, token(2, 0)).await.unwrap();
    }

    #[tokio::test]
    async fn a_higher_token_waits_for_what_was_begun() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunId::new("a").unwrap();
        let fence = Arc::new(in_folder(folder.path()));
        let pass = fence.admit(&run, token(1, 1)).await.unwrap();
        let beside = fence.admit(&run, token(1, 1)).await.unwrap();
        drop(beside);
        let higher = fence.admit(&run, token(2, 0));
        assert!(tokio::time::timeout(Duration::from_millis(50), higher).await.is_err());
        drop(pass);
        fence.admit(&run, token(2, 0)).await.unwrap();
    }

    #[tokio::test]
    async fn a_file_that_does_not_parse_lets_nobody_in() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunId::new("a").unwrap();
        std::fs::write(folder.path().join("fence-a.json"), b"{").unwrap();
        let fence = in_folder(folder.path());
        let error = fence.admit(&run, token(9, 9)).await.unwrap_err().to_string();
        assert!(error.contains("fence-a.json"), "{error}");
    }
}
