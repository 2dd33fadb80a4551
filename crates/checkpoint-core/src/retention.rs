//! What goes when a new checkpoint is visible.
//!
//! Invariants: only steps before the one just committed are touched; it and the newest `keep - 1` visible
//! ones before it stay; a manifest goes before its slices, so that what is half removed is not visible.

use crate::error::StoreError;
use crate::layout::Place;
use crate::store::{CheckpointStore, Inner};
use mcl_failpoint::{Failpoint, pass};
use mcl_types::{RunId, Step};

impl CheckpointStore {
    /// Keeps `keep` visible checkpoints up to and including `committed`, which was verified just now, and
    /// removes older ones, damaged ones older than those, and staged remains of steps before `committed`.
    /// With `keep` = 0 only the staged remains go. Gives the steps that were removed.
    ///
    /// # Errors
    /// When the store fails; what was removed until then is gone, the rest is whole.
    pub async fn prune(&self, run: &RunId, keep: u32, committed: Step) -> Result<Vec<Step>, StoreError> {
        let place = self.place(run);
        let lock = self.inner.lock(&place);
        let _guard = lock.lock().await;
        if !matches!(self.inner.manifest(&place, committed).await, Some(Ok(_))) {
            tracing::warn!(%run, step = committed.get(), "not pruned: the step is not visible");
            return Ok(Vec::new());
        }
        let mut kept = 1;
        let mut removed = Vec::new();
        for step in self.inner.steps(&place).await?.into_iter().rev().filter(|step| *step < committed) {
            let stays = match self.inner.manifest(&place, step).await {
                None => false,
                Some(_) if keep == 0 => true,
                Some(Ok(_)) if kept < keep => {
                    kept += 1;
                    true
                }
                Some(Err(damage)) if damage.is_foreign() => true,
                // Between those that stay, a damaged one is left for its owner to look at.
                Some(Err(_)) => kept < keep,
                Some(Ok(_)) => false,
            };
            if !stays {
                self.inner.remove_step(&place, step).await?;
                pass(Failpoint::PruneStepRemoved);
                removed.push(step);
            }
        }
        Ok(removed)
    }
}

impl Inner {
    async fn remove_step(&self, place: &Place, step: Step) -> Result<(), StoreError> {
        let folder = place.step(step);
        self.remove(&place.manifest(step)).await?;
        pass(Failpoint::PruneManifestRemoved);
        for name in self.files(&folder).await?.into_keys() {
            self.remove(&folder.clone().join(name)).await?;
            pass(Failpoint::PruneSliceRemoved);
        }
        if let Some(root) = &self.local {
            let path = root.join(folder.as_ref());
            // Half-written files are not listed, and the folder itself goes too.
            match std::fs::remove_dir_all(&path) {
                Err(e) if e.kind() != std::io::ErrorKind::NotFound => {
                    return Err(StoreError::Root { path, source: e });
                }
                _ => {}
            }
        }
        Ok(())
    }
}
