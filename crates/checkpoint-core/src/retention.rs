//! What goes when a new checkpoint is visible, and what a person takes away.
//!
//! Invariants: only steps before a good, visible one are touched; that one, those that the retention names and pinned
//! ones stay; a manifest goes before its slices, on the disk too, so that what is half removed is not visible, not even
//! after the machine crashed. What is staged and not committed is removed by the service that commits alone, under the
//! lock that its commits hold: no clean-up can meet a commit.

use crate::damage::Damage;
use crate::error::StoreError;
use crate::layout::{PIN_FILE, Place};
use crate::offline::CheckpointDir;
use crate::store::{CheckpointStore, Inner, blocking};
use futures::StreamExt;
use mcl_failpoint::{Failpoint, pass};
use mcl_types::{Retention, RunId, Step};
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode};

/// What is in a step's folder.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// Visible; nobody asked to keep it.
    Visible,
    /// Visible, and to stay.
    Pinned,
    /// Not to be trusted, by anybody.
    Damaged,
    /// Another run's, a newer version's, or not readable just now.
    Foreign,
    /// Staged, not visible.
    Staged,
}

/// Who cleans up.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Cleaner {
    /// The service, between two of its commits.
    Service,
    /// Somebody beside a service that may be committing.
    Beside,
}

/// Which of `older`, newest first, go; all of them are before a good, visible checkpoint.
fn doomed(older: &[(Step, Kind)], retention: Retention, cleaner: Cleaner) -> Vec<Step> {
    let mut newer = 1;
    let mut doomed = Vec::new();
    for (step, kind) in older {
        let stays = match (kind, cleaner) {
            (Kind::Pinned | Kind::Foreign, _) | (Kind::Staged | Kind::Damaged, Cleaner::Beside) => true,
            (Kind::Staged, Cleaner::Service) => false,
            // Between those that stay, a damaged one is left for its owner to look at.
            (Kind::Damaged, Cleaner::Service) => retention.keep == 0 || newer < retention.keep,
            (Kind::Visible, _) => retention.stays(*step, newer),
        };
        newer += u32::from(matches!(kind, Kind::Visible | Kind::Pinned) && stays);
        if !stays {
            doomed.push(*step);
        }
    }
    doomed
}

impl CheckpointStore {
    /// Keeps what `retention` says up to and including `committed`, which was verified just now, and removes other
    /// older ones, damaged ones older than those, and staged remains of steps before `committed`. Gives the steps that
    /// were removed.
    ///
    /// # Errors
    /// When the store fails; what was removed until then is gone, the rest is whole.
    pub async fn prune(
        &self,
        run: &RunId,
        retention: Retention,
        committed: Step,
    ) -> Result<Vec<Step>, StoreError> {
        let place = self.place(run);
        let lock = self.inner.lock(&place);
        let _guard = lock.lock().await;
        if !matches!(self.inner.manifest(&place, committed).await, Some(Ok(_))) {
            tracing::warn!(%run, step = committed.get(), "not pruned: the step is not visible");
            return Ok(Vec::new());
        }
        self.inner.prune(&place, retention, committed, Cleaner::Service, false).await
    }
}

impl CheckpointStore {
    /// Removes whatever a run has of steps up to and including `last`, visible or staged. Gives the steps.
    ///
    /// # Errors
    /// When the store fails; what was removed until then is gone, the rest is whole.
    pub async fn remove_through(&self, run: &RunId, last: Step) -> Result<Vec<Step>, StoreError> {
        let place = self.place(run);
        let lock = self.inner.lock(&place);
        let _guard = lock.lock().await;
        let mut steps = self.inner.steps(&place).await?;
        steps.retain(|step| *step <= last);
        for step in &steps {
            self.inner.remove_step(&place, *step).await?;
        }
        Ok(steps)
    }

    /// Bytes of everything that is kept.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn bytes(&self) -> Result<u64, StoreError> {
        self.inner.bytes(&Path::default()).await
    }

    /// Bytes of what is kept of one run, visible or staged.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn run_bytes(&self, run: &RunId) -> Result<u64, StoreError> {
        self.inner.bytes(&self.place(run).prefix).await
    }
}

impl CheckpointDir {
    /// Removes visible checkpoints before the newest good one that `retention` does not name; what is staged or
    /// damaged is left alone, so that a service may go on committing. Gives the steps, and with `dry_run` only that. It is
    /// about the whole run, also where one step was opened.
    ///
    /// # Errors
    /// When the store fails; what was removed until then is gone, the rest is whole.
    pub async fn prune(&self, retention: Retention, dry_run: bool) -> Result<Vec<Step>, StoreError> {
        let Some(newest) = self.store.inner.latest_good(&self.place).await? else { return Ok(Vec::new()) };
        self.store.inner.prune(&self.place, retention, newest.step, Cleaner::Beside, dry_run).await
    }

    /// Has a visible checkpoint stay whatever the retention says, or no longer.
    ///
    /// # Errors
    /// When there is none, or the store fails.
    pub async fn pin(&self, step: Step, pinned: bool) -> Result<(), StoreError> {
        let inner = &self.store.inner;
        inner.visible(&self.place, step).await?;
        let path = self.place.step(step).join(PIN_FILE);
        if pinned {
            inner.put(&path, "{}\n".into(), PutMode::Overwrite).await
        } else {
            inner.remove(&path).await
        }
    }
}

impl Inner {
    async fn bytes(&self, below: &Path) -> Result<u64, StoreError> {
        let mut listing = self.objects.list(Some(below));
        let mut bytes = 0_u64;
        while let Some(object) = listing.next().await {
            let object = object.map_err(|e| self.read_error(below, e))?;
            bytes = bytes.saturating_add(object.size);
        }
        Ok(bytes)
    }

    async fn prune(
        &self,
        place: &Place,
        retention: Retention,
        newest: Step,
        cleaner: Cleaner,
        dry_run: bool,
    ) -> Result<Vec<Step>, StoreError> {
        let mut older = Vec::new();
        for step in self.steps(place).await?.into_iter().rev().filter(|step| *step < newest) {
            older.push((step, self.kind(place, step).await?));
        }
        let doomed = doomed(&older, retention, cleaner);
        for step in doomed.iter().filter(|_| !dry_run) {
            self.remove_step(place, *step).await?;
            pass(Failpoint::PruneStepRemoved);
        }
        Ok(doomed)
    }

    async fn kind(&self, place: &Place, step: Step) -> Result<Kind, StoreError> {
        Ok(match self.manifest(place, step).await {
            None => Kind::Staged,
            Some(Ok(_)) if self.is_pinned(place, step).await? => Kind::Pinned,
            Some(Ok(_)) => Kind::Visible,
            Some(Err(damage)) if Damage::is_foreign(&damage) => Kind::Foreign,
            Some(Err(_)) => Kind::Damaged,
        })
    }

    async fn is_pinned(&self, place: &Place, step: Step) -> Result<bool, StoreError> {
        let path = place.step(step).join(PIN_FILE);
        match self.objects.head(&path).await {
            Ok(_) => Ok(true),
            Err(object_store::Error::NotFound { .. }) => Ok(false),
            Err(e) => Err(self.read_error(&path, e)),
        }
    }

    /// What was removed in a local folder stays removed, whatever happens to the machine. Object stores need no help.
    async fn sync_folder(&self, folder: &Path) -> Result<(), StoreError> {
        let Some(root) = &self.local else { return Ok(()) };
        let path = root.join(folder.as_ref());
        let synced = blocking(move || match crate::folder::sync(&path) {
            // The step went already, as a whole.
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(()),
            synced => synced.map_err(|source| StoreError::Root { path, source }),
        });
        synced.await.map_err(|e| self.write_error(folder, e))?
    }

    async fn remove_step(&self, place: &Place, step: Step) -> Result<(), StoreError> {
        let folder = place.step(step);
        self.remove(&place.manifest(step)).await?;
        self.sync_folder(&folder).await?;
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

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn kinds() -> impl Strategy<Value = Vec<(Step, Kind)>> {
        let kind = prop_oneof![
            4 => Just(Kind::Visible),
            1 => Just(Kind::Pinned),
            1 => Just(Kind::Damaged),
            1 => Just(Kind::Foreign),
            1 => Just(Kind::Staged),
        ];
        proptest::collection::vec(kind, 0..20).prop_map(|kinds| {
            let count = kinds.len() as u64;
            (0..).zip(kinds).map(|(i, kind)| (Step::new((count - i) * 10), kind)).collect()
        })
    }

    proptest! {
        #[test]
        fn what_is_asked_for_stays_and_nothing_else(
            older in kinds(), keep in 0_u32..5, keep_every in prop_oneof![Just(0_u64), Just(20), Just(50)],
        ) {
            let retention = Retention { keep, keep_every };
            let service = doomed(&older, retention, Cleaner::Service);
            let beside = doomed(&older, retention, Cleaner::Beside);
            prop_assert!(beside.iter().all(|step| service.contains(step)), "beside takes no more than the service");
            let mut newer = 1;
            for (step, kind) in &older {
                let gone = service.contains(step);
                match kind {
                    Kind::Pinned | Kind::Foreign => prop_assert!(!gone),
                    Kind::Staged => prop_assert!(gone && !beside.contains(step)),
                    Kind::Damaged => prop_assert!(!beside.contains(step)),
                    Kind::Visible => {
                        let named = keep == 0 || newer < keep || (keep_every > 0 && step.get() % keep_every == 0);
                        prop_assert_eq!((gone, beside.contains(step)), (!named, !named));
                    }
                }
                newer += u32::from(!gone && matches!(kind, Kind::Visible | Kind::Pinned));
            }
        }
    }
}
