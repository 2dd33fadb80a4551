//! Reading: which checkpoints there are, which of them are good, and their bytes.
//!
//! Invariant: nothing is handed out that was not verified on the way. Left out: changing anything.

use crate::damage::Damage;
use crate::error::StoreError;
use crate::layout::{PIN_FILE, Place, parse_step_folder};
use crate::manifest::{Manifest, SliceEntry};
use crate::state_digest::TensorDigest;
use crate::store::{CheckpointStore, Inner, check_slice_number};
use bytes::Bytes;
use mcl_types::{Digest, RunId, Step};
use object_store::ObjectStoreExt;
use object_store::path::Path;
use std::collections::BTreeMap;
use std::sync::Arc;

/// How hard a listing looks.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Depth {
    /// Manifests and file sizes.
    Quick,
    /// Every byte, from the newest checkpoint of at most this step down to the first good one; the rest as `Quick`.
    /// What a recovery needs, whatever the number of checkpoints.
    NewestGood {
        /// Newer ones are of no use to whoever asks.
        at_most: Step,
    },
    /// Every byte of every checkpoint.
    Full,
}

/// A checkpoint that may be read.
#[derive(Debug, Clone, PartialEq)]
pub struct InventoryEntry {
    /// Its manifest.
    pub manifest: Manifest,
    /// Whether every byte was verified for this listing.
    pub verified: bool,
    /// Whether it stays whatever the retention says.
    pub pinned: bool,
}

/// What a run has, oldest first.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Inventory {
    /// Visible and, as far as was looked, good.
    pub visible: Vec<InventoryEntry>,
    /// There, and not to be trusted.
    pub damaged: Vec<(Step, Damage)>,
    /// Being staged, or abandoned on the way.
    pub staged: Vec<Step>,
}

impl Inventory {
    /// The newest checkpoint of at most this step that the store does not give just now, where none newer is good:
    /// whoever goes on from an older one leaves it behind.
    pub fn withheld(&self, at_most: Step) -> Option<(Step, &Damage)> {
        let good = self.visible.iter().map(|e| e.manifest.step).filter(|s| *s <= at_most).max();
        let withheld = self
            .damaged
            .iter()
            .rev()
            .find(|(step, damage)| damage.may_pass() && *step <= at_most && Some(*step) > good);
        withheld.map(|(step, damage)| (*step, damage))
    }
}

/// One slice, given out in chunks; the last chunk only once the hash is right.
#[derive(Debug)]
pub struct SliceReader {
    inner: Arc<Inner>,
    place: Place,
    step: Step,
    entry: SliceEntry,
    path: Path,
    chunk: u64,
    at: u64,
    hasher: blake3::Hasher,
}

impl CheckpointStore {
    /// What a run has.
    ///
    /// # Errors
    /// When the store cannot be listed.
    pub async fn list(&self, run: &RunId, depth: Depth) -> Result<Inventory, StoreError> {
        self.inner.inventory(&self.place(run), depth).await
    }

    /// A visible checkpoint's manifest, its seal checked; slices are not looked at.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub async fn manifest(&self, run: &RunId, step: Step) -> Result<Manifest, StoreError> {
        Ok(self.inner.visible(&self.place(run), step).await?.0)
    }

    /// The same as the file's text.
    ///
    /// # Errors
    /// As [`Self::manifest`].
    pub async fn manifest_text(&self, run: &RunId, step: Step) -> Result<String, StoreError> {
        let (_, bytes) = self.inner.visible(&self.place(run), step).await?;
        // A parsed manifest is UTF-8.
        Ok(String::from_utf8_lossy(&bytes).into_owned())
    }

    /// One slice of a visible checkpoint, verified.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub async fn read_slice(&self, run: &RunId, step: Step, slice: u32) -> Result<Bytes, StoreError> {
        self.inner.read_slice(&self.place(run), step, slice).await
    }

    /// One slice of a visible checkpoint in chunks of `chunk` bytes.
    ///
    /// # Errors
    /// When there is none, or the manifest is damaged.
    pub async fn slice_reader(
        &self,
        run: &RunId,
        step: Step,
        slice: u32,
        chunk: usize,
    ) -> Result<SliceReader, StoreError> {
        let place = self.place(run);
        let (manifest, _) = self.inner.visible(&place, step).await?;
        let entry = slice_entry(&manifest, slice)?.clone();
        let path = place.step(step).join(entry.file.as_str());
        let (inner, chunk) = (Arc::clone(&self.inner), chunk.max(1) as u64);
        Ok(SliceReader { inner, place, step, entry, path, chunk, at: 0, hasher: blake3::Hasher::new() })
    }

    /// The newest checkpoint whose every byte is good. Damaged ones on the way are named in the log.
    ///
    /// # Errors
    /// When the store cannot be listed, or does not give a newer one's bytes, which may be good.
    pub async fn latest_good(&self, run: &RunId) -> Result<Option<Manifest>, StoreError> {
        self.inner.latest_good(&self.place(run)).await
    }

    /// Checks every byte of a checkpoint.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub async fn verify(&self, run: &RunId, step: Step) -> Result<Manifest, StoreError> {
        Ok(self.inner.verify(&self.place(run), step).await?.0)
    }
}

fn slice_entry(manifest: &Manifest, slice: u32) -> Result<&SliceEntry, StoreError> {
    let slices = manifest.slice_count();
    check_slice_number(slice, slices)?;
    manifest.slices.get(slice as usize).ok_or(StoreError::SliceNumber { slice, slices })
}

impl SliceReader {
    /// Length of the slice in bytes.
    pub fn size(&self) -> u64 {
        self.entry.size
    }

    /// The next chunk; nothing after the last one.
    ///
    /// # Errors
    /// When the file cannot be read, or before the last chunk when the bytes are not what was written.
    pub async fn next(&mut self) -> Result<Option<Bytes>, StoreError> {
        if self.at >= self.entry.size {
            return Ok(None);
        }
        let end = (self.at + self.chunk).min(self.entry.size);
        let file = || self.entry.file.clone();
        let bytes = self.inner.objects.get_range(&self.path, self.at..end).await.map_err(|e| {
            let damage = match e {
                object_store::Error::NotFound { .. } => Damage::SliceMissing { file: file() },
                other => self.inner.slice_unreadable(file(), &other),
            };
            self.inner.damaged(&self.place, self.step, damage)
        })?;
        let found = self.at + bytes.len() as u64;
        if found != end {
            let damage = Damage::SliceSize { file: file(), found, expected: self.entry.size };
            return Err(self.inner.damaged(&self.place, self.step, damage));
        }
        self.hasher.update(&bytes);
        self.at = end;
        if end == self.entry.size {
            let (found, expected) = (Digest::from_bytes(*self.hasher.finalize().as_bytes()), self.entry.hash);
            if found != expected {
                let damage = Damage::SliceHash { file: file(), found, expected };
                return Err(self.inner.damaged(&self.place, self.step, damage));
            }
        }
        Ok(Some(bytes))
    }
}

impl Inner {
    /// The steps that have a folder, oldest first.
    pub async fn steps(&self, place: &Place) -> Result<Vec<Step>, StoreError> {
        let folders = self.folders(place).await?;
        let mut steps: Vec<Step> = folders.iter().filter_map(|name| parse_step_folder(name)).collect();
        steps.sort_unstable();
        Ok(steps)
    }

    /// Names of the folders directly inside a place.
    pub async fn folders(&self, place: &Place) -> Result<Vec<String>, StoreError> {
        let listing = self.objects.list_with_delimiter(Some(&place.prefix)).await;
        let listing = listing.map_err(|e| self.read_error(&place.prefix, e))?;
        let name = |path: &Path| path.filename().map(str::to_owned);
        Ok(listing.common_prefixes.iter().filter_map(name).collect())
    }

    pub async fn visible(&self, place: &Place, step: Step) -> Result<(Manifest, Bytes), StoreError> {
        match self.manifest(place, step).await {
            Some(manifest) => manifest.map_err(|damage| self.damaged(place, step, damage)),
            None => Err(self.no_checkpoint(place, step)),
        }
    }

    fn no_checkpoint(&self, place: &Place, step: Step) -> StoreError {
        let run = place.run.as_ref().map_or_else(|| self.shown(&place.prefix), ToString::to_string);
        StoreError::NoCheckpoint { run, step }
    }

    pub async fn read_slice(&self, place: &Place, step: Step, slice: u32) -> Result<Bytes, StoreError> {
        let (manifest, _) = self.visible(place, step).await?;
        let entry = slice_entry(&manifest, slice)?;
        let bytes = self.slice_bytes(&place.step(step), entry).await;
        bytes.map_err(|damage| self.damaged(place, step, damage))
    }

    /// The manifest and every tensor's digest, all verified.
    pub async fn verify(
        &self,
        place: &Place,
        step: Step,
    ) -> Result<(Manifest, Vec<TensorDigest>), StoreError> {
        let (manifest, _) = self.visible(place, step).await?;
        let digester = self.verify_state(place, &manifest).await;
        let digester = digester.map_err(|damage| self.damaged(place, step, damage))?;
        Ok((manifest, digester.into_list()))
    }

    pub async fn latest_good(&self, place: &Place) -> Result<Option<Manifest>, StoreError> {
        for step in self.steps(place).await?.into_iter().rev() {
            match self.checked(place, step).await {
                Some(Ok(manifest)) => return Ok(Some(manifest)),
                Some(Err(damage)) if damage.may_pass() => return Err(self.damaged(place, step, damage)),
                Some(Err(damage)) => {
                    let path = self.shown(&place.step(step));
                    tracing::warn!(step = step.get(), path, %damage, "checkpoint is damaged: using the one before");
                }
                None => {}
            }
        }
        Ok(None)
    }

    pub async fn inventory(&self, place: &Place, depth: Depth) -> Result<Inventory, StoreError> {
        let mut inventory = Inventory::default();
        let mut found_good = false;
        for step in self.steps(place).await?.into_iter().rev() {
            let manifest = self.manifest(place, step).await;
            let files = self.files(&place.step(step)).await?;
            let Some(manifest) = manifest else {
                let abandoned = files.is_empty() || files.keys().any(|name| name.ends_with(".staged.json"));
                if abandoned {
                    inventory.staged.push(step);
                } else {
                    inventory.damaged.push((step, Damage::ManifestMissing));
                }
                continue;
            };
            let verified = match depth {
                Depth::Quick => false,
                Depth::NewestGood { at_most } => !found_good && step <= at_most,
                Depth::Full => true,
            };
            let checked = match manifest {
                Err(damage) => Err(damage),
                Ok((manifest, _)) if verified => self.verify_state(place, &manifest).await.map(|_| manifest),
                Ok((manifest, _)) => sizes_fit(&files, &manifest).map(|()| manifest),
            };
            match checked {
                Ok(manifest) => {
                    found_good |= verified;
                    let pinned = files.contains_key(PIN_FILE);
                    inventory.visible.push(InventoryEntry { manifest, verified, pinned });
                }
                Err(damage) => inventory.damaged.push((step, damage)),
            }
        }
        inventory.visible.reverse();
        inventory.damaged.reverse();
        inventory.staged.reverse();
        Ok(inventory)
    }
}

/// Whether a folder holds what its manifest names.
fn sizes_fit(files: &BTreeMap<String, u64>, manifest: &Manifest) -> Result<(), Damage> {
    let fits = |entry: &SliceEntry| {
        let file = entry.file.clone();
        match files.get(&entry.file) {
            None => Err(Damage::SliceMissing { file }),
            Some(&found) if found != entry.size => {
                Err(Damage::SliceSize { file, found, expected: entry.size })
            }
            Some(_) => Ok(()),
        }
    };
    manifest.slices.iter().try_for_each(fits)
}
