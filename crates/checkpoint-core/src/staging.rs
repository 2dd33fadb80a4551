//! A slice on its way into the store: hashed while it is written, nothing until it is finished.
//!
//! Beside each staged slice lies a ticket that says what the slice must hash to; a commit compares. The
//! ticket is written first, so a crash between the two leaves a staged slice that no commit accepts, never
//! one that passes unchecked. Invariants: at most one part (8 MiB) is in memory, or the slice itself where it is to
//! stay there, once; an upload that is dropped, cut short or wrong leaves the step as it was, and no parts of itself
//! behind. Left out: whether a request that was under way when its upload was dropped still arrives.

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
use tokio::runtime::Handle;

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
    gathered: Gathered,
    written: u64,
    hasher: blake3::Hasher,
}

/// Where the bytes of a slice are until it is finished.
#[derive(Debug)]
enum Gathered {
    /// In the store, but for the last ones.
    Parts { upload: OpenUpload, pending: Vec<Bytes>, pending_bytes: usize },
    /// Here, in one piece.
    Whole(Vec<u8>),
}

/// An upload in parts that is ended whatever becomes of its owner: S3 and Google keep the parts of one that is neither
/// completed nor aborted, and charge for them, for ever.
#[derive(Debug)]
struct OpenUpload {
    /// Nothing once it is ended.
    upload: Option<Box<dyn MultipartUpload>>,
    path: String,
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
    /// Starts to stage a slice. Await it to its end: an upload whose beginning is cut off is known to the store alone.
    ///
    /// # Errors
    /// When its number or size is out of bounds, or the store cannot take it.
    pub async fn begin_slice(&self, spec: SliceSpec) -> Result<SliceUpload, StoreError> {
        let target = self.target(spec)?;
        let upload = target.inner.objects.put_multipart(&target.path).await;
        let upload = OpenUpload {
            upload: Some(upload.map_err(|e| target.write_error(e))?),
            path: target.inner.shown(&target.path),
        };
        Ok(SliceUpload::new(target, Gathered::Parts { upload, pending: Vec::new(), pending_bytes: 0 }))
    }

    /// Starts to stage a slice that is gathered in memory and handed over in one piece. For a store in memory: it
    /// would keep the parts of an upload until it has copied them, the whole slice twice.
    ///
    /// # Errors
    /// When its number or size is out of bounds, or there is no memory for it.
    pub fn begin_whole_slice(&self, spec: SliceSpec) -> Result<SliceUpload, StoreError> {
        let target = self.target(spec)?;
        let mut bytes = Vec::new();
        // Exactly, and now: a vector that grows is there twice while it is moved.
        let size = usize::try_from(target.spec.size).unwrap_or(usize::MAX);
        bytes.try_reserve_exact(size).map_err(|e| {
            target.write_error(object_store::Error::Generic { store: "memory", source: Box::new(e) })
        })?;
        Ok(SliceUpload::new(target, Gathered::Whole(bytes)))
    }

    fn target(&self, spec: SliceSpec) -> Result<Target, StoreError> {
        check_slice_number(spec.slice, spec.slices)?;
        let place = self.place(&spec.run);
        let path = place.slice(spec.step, spec.slice, spec.slices);
        let limit = self.inner.limits.slice_bytes;
        if spec.size > limit {
            return Err(StoreError::TooLarge { path: self.inner.shown(&path), found: spec.size, limit });
        }
        Ok(Target { inner: Arc::clone(&self.inner), place, spec, path })
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
    fn new(target: Target, gathered: Gathered) -> Self {
        Self { target, gathered, written: 0, hasher: blake3::Hasher::new() }
    }

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
        self.gathered.add(chunk).await.map_err(|e| self.target.write_error(e))
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

    /// Forgets what was written. Dropping it does the same, unawaited, where there is a runtime.
    pub async fn abort(mut self) {
        if let Err(error) = self.gathered.forget().await {
            tell_left(&error, &self.target.inner.shown(&self.target.path));
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
        self.gathered.flush().await.map_err(|e| self.target.write_error(e))?;
        let lock = self.target.inner.lock(&self.target.place);
        let _guard = lock.lock().await;
        if self.target.visible_already(hash).await? || self.target.staged_already(hash).await? {
            // The bytes just written are a copy of what is there.
            return self.gathered.forget().await.map_err(|e| self.target.write_error(e));
        }
        pass(Failpoint::BeforeTicket);
        self.target.write_ticket(hash).await?;
        pass(Failpoint::AfterTicket);
        match &mut self.gathered {
            Gathered::Parts { upload, .. } => upload.complete().await.map_err(|e| self.target.write_error(e)),
            Gathered::Whole(bytes) => {
                let bytes = Bytes::from(std::mem::take(bytes));
                self.target.inner.put(&self.target.path, bytes, PutMode::Overwrite).await
            }
        }
    }

    /// What to say of an upload that ends before its last byte.
    pub fn wrong_length(&self) -> StoreError {
        let path = self.target.inner.shown(&self.target.path);
        StoreError::Length { path, found: self.written, expected: self.target.spec.size }
    }
}

impl Gathered {
    async fn add(&mut self, chunk: Bytes) -> Result<(), object_store::Error> {
        match self {
            Self::Whole(bytes) => {
                bytes.extend_from_slice(&chunk);
                return Ok(());
            }
            Self::Parts { pending, pending_bytes, .. } => {
                *pending_bytes += chunk.len();
                pending.push(chunk);
                if *pending_bytes < PART_BYTES {
                    return Ok(());
                }
            }
        }
        self.flush().await
    }

    /// Hands over what is pending.
    async fn flush(&mut self) -> Result<(), object_store::Error> {
        match self {
            Self::Parts { upload, pending, pending_bytes } if !pending.is_empty() => {
                *pending_bytes = 0;
                upload.put_part(PutPayload::from_iter(std::mem::take(pending))).await
            }
            _ => Ok(()),
        }
    }

    async fn forget(&mut self) -> Result<(), object_store::Error> {
        match self {
            Self::Parts { upload, .. } => upload.abort().await,
            Self::Whole(bytes) => {
                *bytes = Vec::new();
                Ok(())
            }
        }
    }
}

impl OpenUpload {
    fn open(&mut self) -> Result<&mut Box<dyn MultipartUpload>, object_store::Error> {
        let ended = || "this upload was ended before".into();
        self.upload.as_mut().ok_or_else(|| object_store::Error::Generic { store: "upload", source: ended() })
    }

    async fn put_part(&mut self, part: PutPayload) -> Result<(), object_store::Error> {
        self.open()?.put_part(part).await
    }

    async fn complete(&mut self) -> Result<(), object_store::Error> {
        self.open()?.complete().await?;
        self.upload = None;
        Ok(())
    }

    async fn abort(&mut self) -> Result<(), object_store::Error> {
        let Some(upload) = &mut self.upload else { return Ok(()) };
        let aborted = upload.abort().await;
        // Not taken before: one that is dropped meanwhile is to be ended still. Tried once: the store tries again
        // by itself.
        self.upload = None;
        aborted
    }
}

impl Drop for OpenUpload {
    fn drop(&mut self) {
        let Some(mut upload) = self.upload.take() else { return };
        // Without a runtime nobody can ask the store; a folder cleans up by itself.
        let Ok(runtime) = Handle::try_current() else { return };
        let path = std::mem::take(&mut self.path);
        runtime.spawn(async move {
            match upload.abort().await {
                Ok(()) => tracing::debug!(path, "dropped upload ended"),
                Err(error) => tell_left(&error, &path),
            }
        });
    }
}

/// An upload that could not be ended.
fn tell_left(error: &object_store::Error, path: &str) {
    match error {
        object_store::Error::NotFound { .. } => tracing::debug!(path, "nothing left of an upload"),
        _ => tracing::warn!(%error, path, "upload not ended: parts of it may be left in the store"),
    }
}

impl Target {
    fn write_error(&self, error: object_store::Error) -> StoreError {
        self.inner.write_error(&self.path, error)
    }

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
