//! Who may still speak for a run: the highest token seen, on the disk.
//!
//! Each run has its own (different coordinators count their terms apart). Invariants: a higher token is
//! durable before anything is done under it; while a [`Pass`] is held no higher token is let in, so what
//! it covers is over when a newer coordinator is told that its term stands.

use mcl_failpoint::{Failpoint, pass};
use mcl_types::{FencingToken, RunId};
use std::collections::HashMap;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use tokio::sync::{OwnedRwLockReadGuard, RwLock};

/// Why a token was not let in.
#[derive(Debug, thiserror::Error)]
pub(crate) enum FenceError {
    #[error(
        "token {found} of run `{run}` is stale: the highest seen is {highest}; whoever sent it has been \
         replaced and must stop"
    )]
    Stale { run: RunId, found: FencingToken, highest: FencingToken },
    #[error(
        "cannot keep the highest token in {}: {source}; check the disk, or restore the file from the \
         coordinator's term",
        path.display()
    )]
    File { path: PathBuf, source: io::Error },
}

/// Leave to act under a token; hold it until the act is done.
#[derive(Debug)]
pub(crate) struct Pass {
    _held: OwnedRwLockReadGuard<Option<FencingToken>>,
}

/// One run's highest token; nothing before its file was read.
type Slot = Arc<RwLock<Option<FencingToken>>>;

#[derive(Debug)]
pub(crate) struct Fence {
    folder: PathBuf,
    slots: Mutex<HashMap<RunId, Slot>>,
}

impl Fence {
    /// Tokens are kept in `folder`, one small file a run.
    pub fn new(folder: PathBuf) -> Self {
        Self { folder, slots: Mutex::default() }
    }

    /// Lets a token in that is not below the highest.
    pub async fn admit(&self, run: &RunId, token: FencingToken) -> Result<Pass, FenceError> {
        let slot = {
            let mut slots = self.slots.lock().unwrap_or_else(PoisonError::into_inner);
            Arc::clone(slots.entry(run.clone()).or_default())
        };
        let held = Arc::clone(&slot).read_owned().await;
        match *held {
            Some(highest) if token == highest => return Ok(Pass { _held: held }),
            Some(highest) if token < highest => {
                return Err(FenceError::Stale { run: run.clone(), found: token, highest });
            }
            _ => drop(held),
        }
        let mut held = slot.write_owned().await;
        let path = self.folder.join(format!("fence-{run}.json"));
        let failed = |source| FenceError::File { path: path.clone(), source };
        let highest = match *held {
            Some(highest) => highest,
            None => load(&path).map_err(failed)?,
        };
        if token < highest {
            *held = Some(highest);
            return Err(FenceError::Stale { run: run.clone(), found: token, highest });
        }
        if token > highest {
            pass(Failpoint::BeforeFence);
            save(&path, token).map_err(failed)?;
            pass(Failpoint::AfterFence);
            tracing::info!(%run, term = token.term.get(), generation = token.generation.get(), "fence raised");
        }
        *held = Some(token);
        Ok(Pass { _held: held.downgrade() })
    }
}

fn load(path: &Path) -> io::Result<FencingToken> {
    match std::fs::read(path) {
        Ok(bytes) => Ok(serde_json::from_slice(&bytes)?),
        Err(e) if e.kind() == io::ErrorKind::NotFound => Ok(FencingToken::default()),
        Err(e) => Err(e),
    }
}

/// A few bytes: temporary file, flush, rename, flush of the folder.
fn save(path: &Path, token: FencingToken) -> io::Result<()> {
    let folder = path.parent().unwrap_or(Path::new("."));
    std::fs::create_dir_all(folder)?;
    let mut file = tempfile::NamedTempFile::new_in(folder)?;
    file.write_all(&serde_json::to_vec(&token)?)?;
    file.as_file().sync_all()?;
    file.persist(path).map_err(|e| e.error)?;
    std::fs::File::open(folder)?.sync_all()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_types::{Generation, Term};
    use std::time::Duration;

    fn token(term: u64, generation: u64) -> FencingToken {
        FencingToken { term: Term::new(term), generation: Generation::new(generation) }
    }

    #[tokio::test]
    async fn tokens_only_grow_also_over_a_restart() {
        let folder = tempfile::tempdir().unwrap();
        let (a, b) = (RunId::new("a").unwrap(), RunId::new("b").unwrap());
        let fence = Fence::new(folder.path().to_owned());
        for good in [token(0, 0), token(1, 3), token(1, 3), token(2, 0)] {
            fence.admit(&a, good).await.unwrap();
        }
        assert!(matches!(fence.admit(&a, token(1, 9)).await, Err(FenceError::Stale { .. })));
        fence.admit(&b, token(1, 0)).await.unwrap();
        let again = Fence::new(folder.path().to_owned());
        assert!(matches!(again.admit(&a, token(1, 9)).await, Err(FenceError::Stale { .. })));
        assert!(matches!(again.admit(&a, token(1, 9)).await, Err(FenceError::Stale { .. })));
        again.admit(&a, token(2, 0)).await.unwrap();
    }

    #[tokio::test]
    async fn a_higher_token_waits_for_what_was_begun() {
        let folder = tempfile::tempdir().unwrap();
        let run = RunId::new("a").unwrap();
        let fence = Arc::new(Fence::new(folder.path().to_owned()));
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
        let fence = Fence::new(folder.path().to_owned());
        let error = fence.admit(&run, token(9, 9)).await.unwrap_err().to_string();
        assert!(error.contains("fence-a.json"), "{error}");
    }
}
