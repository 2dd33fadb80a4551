//! A slice on its way into the store: hashed while it is written, nothing until it is finished.
//!
//! Beside each staged slice lies a ticket that says what the slice must hash to; a commit compares. The
//! ticket is written first, so a crash between the two leaves a staged slice that no commit accepts, never
//! one that passes unchecked. Invariants: at most one part (8 MiB) is in memory; an upload that is dropped,
//! cut short or wrong leaves the step as it was.

use crate::error::StoreError;
use crate::layout::Place;
use crate::manifest::SliceEntry;
use crate::store::{CheckpointStore, Inner, check_slice_number};
use bytes::Bytes;
use mcl_failpoint::{Failpoint, pass};
use mcl_types::{Digest, RunId, Step};
use object_store::path::Path;
use object_store::{MultipartUpload, ObjectStoreExt, PutMode, PutPayload};
use serde::{Deserialize, Serialize};
use std::sync::Arc;

/// Bytes handed to the store at once: remote stores take no parts below 5 MiB.
const PART_BYTES: usize = 8 << 20;

/// One slice to be staged.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SliceSpec {
    /// Whose state it is part of.
    pub run: RunId,
    /// Optimiser steps applied.
    pub step: Step,
    /// Its number, from 0.
    pub slice: u32,
    /// How many there are.
    pub slices: u32,
    /// Length in bytes.
    pub size: u64,
}

/// What a staged slice must be.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub(crate) struct Ticket {
    pub size: u64,
    pub hash: Digest,
}

impl Ticket {
    /// A few numbers.
    pub const MAX_BYTES: u64 = 1024;
}

/// A slice being written.
#[derive(Debug)]
pub struct SliceUpload {
    target: Target,
    upload: Box<dyn MultipartUpload>,
    pending: Vec<Bytes>,
    pending_bytes: usize,
    written: u64,
    hasher: blake3::Hasher,
}

/// What is written, and where to.
#[derive(Debug)]
struct Target {
    inner: Arc<Inner>,
    place: Place,
    spec: SliceSpec,
    path: Path,
}

impl CheckpointStore {
    /// Starts to stage a slice.
    ///
    /// # Errors
    /// When its number or size is out of bounds, or the store cannot take it.
    pub async fn begin_slice(&self, spec: SliceSpec) -> Result<SliceUpload, StoreError> {
        check_slice_number(spec.slice, spec.slices)?;
        let place = self.place(&spec.run);
        let path = place.slice(spec.step, spec.slice, spec.slices);
        let limit = self.inner.limits.slice_bytes;
        if spec.size > limit {
            return Err(StoreError::TooLarge { path: self.inner.shown(&path), found: spec.size, limit });
        }
        let upload = self.inner.objects.put_multipart(&path).await;
        let upload = upload.map_err(|e| self.inner.write_error(&path, e))?;
        Ok(SliceUpload {
            target: Target { inner: Arc::clone(&self.inner), place, spec, path },
            upload,
            pending: Vec::new(),
            pending_bytes: 0,
            written: 0,
            hasher: blake3::Hasher::new(),
        })
    }

    /// Stages a slice that is in memory.
    ///
    /// # Errors
    /// As [`Self::begin_slice`], [`SliceUpload::write`] and [`SliceUpload::finish`].
    pub async fn stage_slice(&self, spec: SliceSpec, bytes: Bytes) -> Result<(), StoreError> {
        let hash = Digest::of(&bytes);
        let mut upload = self.begin_slice(spec).await?;
        match upload.write(bytes).await {
            Ok(()) => upload.finish(hash).await,
            Err(error) => {
                upload.abort().await;
                Err(error)
            }
        }
    }
}

impl SliceUpload {
    /// Adds the next bytes.
    ///
    /// # Errors
    /// When more come than were announced, or the store does not take them: abort then.
    pub async fn write(&mut self, chunk: Bytes) -> Result<(), StoreError> {
        self.written = self.written.saturating_add(chunk.len() as u64);
        if self.written > self.target.spec.size {
            return Err(self.wrong_length());
        }
        self.hasher.update(&chunk);
        self.pending_bytes += chunk.len();
        self.pending.push(chunk);
        if self.pending_bytes >= PART_BYTES { self.flush().await } else { Ok(()) }
    }

    /// Checks length and hash and puts the slice in its place, durably. A different slice staged there
    /// before is replaced; an equal one stays.
    ///
    /// # Errors
    /// When the length is not what was announced or the bytes do not have this `hash`, when the step is visible
    /// with another slice, or when the store fails.
    pub async fn finish(mut self, hash: Digest) -> Result<(), StoreError> {
        let done = self.try_finish(hash).await;
        if done.is_err() {
            self.abort().await;
        }
        done
    }

    /// Forgets what was written.
    pub async fn abort(mut self) {
        if let Err(error) = self.upload.abort().await {
            tracing::debug!(%error, path = %self.target.path, "nothing left of an aborted upload");
        }
    }

    async fn try_finish(&mut self, hash: Digest) -> Result<(), StoreError> {
        if self.written != self.target.spec.size {
            return Err(self.wrong_length());
        }
        let found = Digest::from_bytes(*self.hasher.finalize().as_bytes());
        if found != hash {
            let path = self.target.inner.shown(&self.target.path);
            return Err(StoreError::Hash { path, found, expected: hash });
        }
        self.flush().await?;
        let lock = self.target.inner.lock(&self.target.place);
        let _guard = lock.lock().await;
        if self.target.visible_already(hash).await? || self.target.staged_already(hash).await? {
            // The bytes just written are a copy of what is there.
            return self
                .upload
                .abort()
                .await
                .map_err(|e| self.target.inner.write_error(&self.target.path, e));
        }
        pass(Failpoint::BeforeTicket);
        self.target.write_ticket(hash).await?;
        pass(Failpoint::AfterTicket);
        let complete = self.upload.complete().await;
        complete.map(drop).map_err(|e| self.target.inner.write_error(&self.target.path, e))
    }

    async fn flush(&mut self) -> Result<(), StoreError> {
        if self.pending.is_empty() {
            return Ok(());
        }
        self.pending_bytes = 0;
        let part = PutPayload::from_iter(std::mem::take(&mut self.pending));
        let put = self.upload.put_part(part).await;
        put.map_err(|e| self.target.inner.write_error(&self.target.path, e))
    }

    /// What to say of an upload that ends before its last byte.
    pub fn wrong_length(&self) -> StoreError {
        let path = self.target.inner.shown(&self.target.path);
        StoreError::Length { path, found: self.written, expected: self.target.spec.size }
    }
}

impl Target {
    /// Whether a good checkpoint of this step holds this slice. A damaged one makes room: its step is
    /// being trained again.
    async fn visible_already(&self, hash: Digest) -> Result<bool, StoreError> {
        let SliceSpec { run, step, slice, slices, size } = &self.spec;
        let Some(checked) = self.inner.checked(&self.place, *step).await else { return Ok(false) };
        let manifest = match checked {
            Ok(manifest) => manifest,
            Err(damage) if damage.is_foreign() => {
                return Err(self.inner.damaged(&self.place, *step, damage));
            }
            Err(damage) => {
                tracing::warn!(%run, step = step.get(), %damage, "damaged checkpoint is staged anew");
                self.inner.remove(&self.place.manifest(*step)).await?;
                return Ok(false);
            }
        };
        if manifest.slice_count() != *slices {
            // The same state cut otherwise, most likely: a generation of another size that stopped where it
            // began. It lies beside the checkpoint; a commit compares the two.
            return Ok(false);
        }
        match manifest.slices.get(*slice as usize) {
            Some(entry) if (entry.size, entry.hash) == (*size, hash) => Ok(true),
            _ => {
                let reason = format!("slice {slice} has other bytes");
                Err(StoreError::Conflict { run: run.clone(), step: *step, reason })
            }
        }
    }

    /// Whether this very slice is staged, byte for byte.
    async fn staged_already(&self, hash: Digest) -> Result<bool, StoreError> {
        let SliceSpec { step, slice, slices, size, .. } = self.spec;
        let ticket = self.inner.ticket(&self.place, step, slice, slices).await?;
        if ticket != Some(Ticket { size, hash }) {
            return Ok(false);
        }
        let entry = SliceEntry { file: crate::layout::slice_file(slice, slices), size, hash };
        Ok(self.inner.slice_bytes(&self.place.step(step), &entry).await.is_ok())
    }

    async fn write_ticket(&self, hash: Digest) -> Result<(), StoreError> {
        let SliceSpec { step, slice, slices, size, .. } = self.spec;
        let path = self.place.ticket(step, slice, slices);
        let text = format!("{{\"size\":{size},\"hash\":\"{hash}\"}}\n");
        self.inner.put(&path, text.into(), PutMode::Overwrite).await
    }
}
