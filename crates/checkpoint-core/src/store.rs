//! The store: what lies where, and the commit that makes a checkpoint visible.
//!
//! A slice is staged (`staging`), a commit reads all of them back, checks every byte and creates the
//! manifest, which must not exist yet. Invariants: nothing is visible before its manifest; a visible
//! checkpoint never changes; commits, finished uploads and removals of one run do not overlap within
//! this process, and the create-if-absent of the manifest settles the rest. Left out: fencing.

use crate::damage::Damage;
use crate::error::{StoreError, advice, may_pass};
use crate::folder::create_folder;
use crate::layout::{Layout, MANIFEST_FILE, PIN_FILE, Place, slice_file};
use crate::manifest::{MANIFEST_FORMAT, MAX_MANIFEST_BYTES, MAX_SLICES, Manifest, SliceEntry};
use crate::slice::SliceView;
use crate::staging::Ticket;
use crate::state_digest::StateDigester;
use bytes::Bytes;
use futures::StreamExt;
use mcl_failpoint::{Failpoint, pass};
use mcl_types::{Digest, RunId, Step};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt, PutMode, PutPayload};
use std::collections::{BTreeMap, HashMap};
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, PoisonError};

/// What one checkpoint may take.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest slice. A slice is held in memory while it is verified.
    pub slice_bytes: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { slice_bytes: 16 << 30 }
    }
}

/// What a commit is about.
#[derive(Debug, Clone, PartialEq)]
pub struct CommitSpec {
    /// Whose state it is.
    pub run: RunId,
    /// Optimiser steps applied.
    pub step: Step,
    /// How many slices were staged.
    pub slices: u32,
    /// Unix seconds; this crate has no clock.
    pub created: u64,
    /// Stored as it is.
    pub meta: serde_json::Value,
}

impl std::fmt::Debug for Inner {
    /// Without the store itself, which may show its credentials.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Inner")
            .field("name", &self.name)
            .field("layout", &self.layout)
            .finish_non_exhaustive()
    }
}

/// Checkpoints in an object store. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CheckpointStore {
    pub(crate) inner: Arc<Inner>,
}

pub(crate) struct Inner {
    pub objects: Arc<dyn ObjectStore>,
    /// The folder behind `objects`, where it is one.
    pub local: Option<PathBuf>,
    /// What a person calls the root.
    pub name: String,
    pub layout: Layout,
    pub limits: Limits,
    /// Bytes of slices read so far, for whoever shows progress.
    pub read: AtomicU64,
    locks: Mutex<HashMap<String, Arc<tokio::sync::Mutex<()>>>>,
}

/// How reading an object of known size can fail.
pub(crate) enum Fetch {
    Missing,
    Size(u64),
    Failed(object_store::Error),
}

impl CheckpointStore {
    /// A store in a local folder, which is created. Writes are flushed to the disk before they count.
    ///
    /// # Errors
    /// When the folder cannot be made.
    pub fn local(root: impl Into<PathBuf>, layout: Layout) -> Result<Self, StoreError> {
        let root = root.into();
        let failed = |source| StoreError::Root { path: root.clone(), source };
        create_folder(&root).map_err(failed)?;
        let root = std::fs::canonicalize(&root).map_err(failed)?;
        let objects = LocalFileSystem::new_with_prefix(&root)
            .map_err(|e| StoreError::Root { path: root.clone(), source: e.into() })?
            .with_fsync(true);
        let name = root.display().to_string();
        Ok(Self::build(Inner { local: Some(root), ..Inner::new(Arc::new(objects), name, layout) }))
    }

    /// A store over any object store. Its `put` must be durable when it returns and must know
    /// create-if-absent.
    pub fn over(objects: Arc<dyn ObjectStore>, layout: Layout) -> Self {
        let name = objects.to_string();
        Self::at(objects, name, layout)
    }

    /// A store in this process's memory: it goes with the last handle.
    pub fn in_memory() -> Self {
        Self::at(Arc::new(InMemory::new()), "memory".to_owned(), Layout::RunFolders)
    }

    /// The same, under the name that its owner knows it by.
    pub(crate) fn at(objects: Arc<dyn ObjectStore>, name: String, layout: Layout) -> Self {
        Self::build(Inner::new(objects, name, layout))
    }

    fn build(inner: Inner) -> Self {
        Self { inner: Arc::new(inner) }
    }

    /// The same store with other limits; locks are not shared with the old handle.
    #[must_use]
    pub fn with_limits(self, limits: Limits) -> Self {
        let Inner { objects, local, name, layout, .. } = &*self.inner;
        let fresh = Inner::new(Arc::clone(objects), name.clone(), *layout);
        Self::build(Inner { local: local.clone(), limits, ..fresh })
    }

    /// Whether it is a folder of this machine.
    pub fn is_local(&self) -> bool {
        self.inner.local.is_some()
    }

    /// What a person calls its root: a folder or an address.
    pub fn name(&self) -> &str {
        &self.inner.name
    }

    pub(crate) fn place(&self, run: &RunId) -> Place {
        Place::of(self.inner.layout, run)
    }

    /// Makes the staged slices of a step one visible checkpoint: reads each back, checks every byte,
    /// computes the state digest, creates the manifest. Repeating a commit changes nothing and gives the
    /// same manifest, also where the meta names a later term or generation.
    ///
    /// # Errors
    /// When a slice is not staged or is not what was sent, when the step is visible with other content,
    /// or when the store fails. Nothing is visible then that was not before.
    pub async fn commit(&self, spec: &CommitSpec) -> Result<Manifest, StoreError> {
        self.commit_if(spec, async { Ok(()) }).await
    }

    /// The same, where `leave` is given at the last moment: every byte is verified, and the manifest is next. Reading
    /// all of it back takes a while, in which whoever asked may have been replaced.
    ///
    /// # Errors
    /// As [`Self::commit`], and what `leave` says.
    pub async fn commit_if<E: From<StoreError>>(
        &self,
        spec: &CommitSpec,
        leave: impl Future<Output = Result<(), E>>,
    ) -> Result<Manifest, E> {
        check_slice_number(0, spec.slices)?;
        let place = self.place(&spec.run);
        let lock = self.inner.lock(&place);
        let _guard = lock.lock().await;
        if let Some(visible) = self.same_or_conflict(&place, spec).await? {
            return Ok(visible);
        }
        let manifest = self.manifest_of_staged(&place, spec).await?;
        let text = manifest.render().map_err(|source| StoreError::Manifest { step: spec.step, source })?;
        let path = place.manifest(spec.step);
        leave.await?;
        pass(Failpoint::BeforeManifest);
        match self.inner.put(&path, text.into(), PutMode::Create).await {
            Ok(()) => {}
            // Where it is not to be seen yet, an earlier attempt is still under way in the store: to be asked again.
            Err(other) => return Ok(self.same_or_conflict(&place, spec).await?.ok_or(other)?),
        }
        pass(Failpoint::AfterManifest);
        tracing::info!(run = %spec.run, step = spec.step.get(), digest = %manifest.state_digest.short(), slices = spec.slices, bytes = manifest.file_bytes(), "checkpoint committed");
        self.tidy(&place, &manifest).await;
        Ok(manifest)
    }

    /// The visible checkpoint, where it is what the commit would make; an error where it is not.
    async fn same_or_conflict(
        &self,
        place: &Place,
        spec: &CommitSpec,
    ) -> Result<Option<Manifest>, StoreError> {
        let Some(checked) = self.inner.checked(place, spec.step).await else { return Ok(None) };
        let visible = checked.map_err(|damage| self.inner.damaged(place, spec.step, damage))?;
        let reason = if about(&visible.meta) != about(&spec.meta) {
            "its meta is another".to_owned()
        } else if visible.slice_count() == spec.slices {
            return Ok(Some(visible));
        } else {
            // Cut otherwise: the same commit if the staged slices make up the same state.
            match self.manifest_of_staged(place, spec).await {
                Ok(staged) if staged.state_digest == visible.state_digest => {
                    self.tidy(place, &visible).await;
                    return Ok(Some(visible));
                }
                Ok(staged) => {
                    format!("its state is {}, this one {}", visible.state_digest, staged.state_digest)
                }
                Err(StoreError::NotStaged { .. }) => {
                    format!("it has {} slices, this commit {}", visible.slice_count(), spec.slices)
                }
                Err(other) => return Err(other),
            }
        };
        Err(StoreError::Conflict { run: spec.run.clone(), step: spec.step, reason })
    }

    async fn manifest_of_staged(&self, place: &Place, spec: &CommitSpec) -> Result<Manifest, StoreError> {
        let (step, count) = (spec.step, spec.slices);
        let mut slices = Vec::new();
        for slice in 0..count {
            let ticket = self.inner.ticket(place, step, slice, count).await?;
            let ticket = ticket.ok_or(StoreError::NotStaged { step, slice, slices: count })?;
            slices.push(SliceEntry { file: slice_file(slice, count), size: ticket.size, hash: ticket.hash });
        }
        let mut digester = StateDigester::new();
        for entry in &slices {
            digester =
                self.inner.verify_slice(&place.step(step), entry, digester).await.map_err(|damage| {
                    match damage {
                        Damage::SliceMissing { .. } => {
                            let slice = slices.iter().position(|s| s == entry).unwrap_or(0) as u32;
                            StoreError::NotStaged { step, slice, slices: count }
                        }
                        damage if damage.may_pass() => self.inner.damaged(place, step, damage),
                        damage => StoreError::BadStage { step, damage: Box::new(damage) },
                    }
                })?;
        }
        Ok(Manifest {
            format: MANIFEST_FORMAT.to_owned(),
            run_id: spec.run.clone(),
            step,
            created: spec.created,
            builder: concat!("mcl ", env!("CARGO_PKG_VERSION")).to_owned(),
            state_digest: digester.digest(),
            tensors: digester.tensors(),
            tensor_bytes: digester.bytes(),
            slices,
            meta: spec.meta.clone(),
        })
    }

    /// Removes what a committed step's folder holds besides the checkpoint. Failing is no fault: the
    /// checkpoint is there, the rest goes with it when it is pruned.
    async fn tidy(&self, place: &Place, manifest: &Manifest) {
        let keep = |name: &str| {
            [MANIFEST_FILE, PIN_FILE].contains(&name) || manifest.slices.iter().any(|s| s.file == name)
        };
        let folder = place.step(manifest.step);
        let removed = async {
            for name in self.inner.files(&folder).await?.into_keys().filter(|name| !keep(name)) {
                self.inner.remove(&folder.clone().join(name)).await?;
            }
            self.inner.remove_abandoned_writes(&folder)
        };
        if let Err(error) = removed.await {
            tracing::warn!(%error, step = manifest.step.get(), "cannot tidy a committed checkpoint's folder");
        }
    }
}

/// What a meta says of the state. Who made it visible, in which generation, is no part of that: a coordinator whose
/// predecessor died before it heard of a commit asks for it again.
fn about(meta: &serde_json::Value) -> serde_json::Value {
    let mut meta = meta.clone();
    if let Some(fields) = meta.as_object_mut() {
        fields.retain(|name, _| !["term", "generation"].contains(&name.as_str()));
    }
    meta
}

pub(crate) fn check_slice_number(slice: u32, slices: u32) -> Result<(), StoreError> {
    let fits = slices <= MAX_SLICES && slice < slices;
    if fits { Ok(()) } else { Err(StoreError::SliceNumber { slice, slices }) }
}

/// Runs work that takes a while where it holds up nobody; in place where there is no runtime.
pub(crate) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> T + Send + 'static,
) -> Result<T, object_store::Error> {
    match tokio::runtime::Handle::try_current() {
        Ok(runtime) => Ok(runtime.spawn_blocking(work).await?),
        Err(_) => Ok(work()),
    }
}

impl Inner {
    fn new(objects: Arc<dyn ObjectStore>, name: String, layout: Layout) -> Self {
        let (limits, locks) = (Limits::default(), Mutex::default());
        Self { objects, local: None, name, layout, limits, read: AtomicU64::new(0), locks }
    }

    /// Held while a run's folder changes.
    pub fn lock(&self, place: &Place) -> Arc<tokio::sync::Mutex<()>> {
        let mut locks = self.locks.lock().unwrap_or_else(PoisonError::into_inner);
        Arc::clone(locks.entry(place.prefix.to_string()).or_default())
    }

    /// A path as a person finds it.
    pub fn shown(&self, path: &Path) -> String {
        format!("{}/{path}", self.name)
    }

    pub fn write_error(&self, path: &Path, source: object_store::Error) -> StoreError {
        StoreError::Write { path: self.shown(path), advice: advice(&source), source }
    }

    pub fn read_error(&self, path: &Path, source: object_store::Error) -> StoreError {
        StoreError::Read { path: self.shown(path), source }
    }

    pub fn damaged(&self, place: &Place, step: Step, damage: Damage) -> StoreError {
        let (path, passes, damage) = (self.shown(&place.step(step)), damage.may_pass(), Box::new(damage));
        if passes {
            StoreError::Unreadable { step, path, damage }
        } else {
            StoreError::Damaged { step, path, damage }
        }
    }

    pub fn slice_unreadable(&self, file: String, error: &object_store::Error) -> Damage {
        let passing = may_pass(error, self.local.is_some());
        Damage::SliceUnreadable { file, reason: error.to_string(), passing }
    }

    pub async fn put(&self, path: &Path, bytes: Bytes, mode: PutMode) -> Result<(), StoreError> {
        let put = self.objects.put_opts(path, PutPayload::from_bytes(bytes), mode.into()).await;
        put.map(drop).map_err(|e| self.write_error(path, e))
    }

    /// Removes an object; one that is gone already is fine.
    pub async fn remove(&self, path: &Path) -> Result<(), StoreError> {
        match self.objects.delete(path).await {
            Ok(()) | Err(object_store::Error::NotFound { .. }) => Ok(()),
            Err(e) => Err(self.write_error(path, e)),
        }
    }

    /// Names and sizes directly inside a folder.
    pub async fn files(&self, folder: &Path) -> Result<BTreeMap<String, u64>, StoreError> {
        let mut files = BTreeMap::new();
        let mut listing = self.objects.list(Some(folder));
        while let Some(object) = listing.next().await {
            let object = object.map_err(|e| self.read_error(folder, e))?;
            if let Some(name) = object.location.filename() {
                files.insert(name.to_owned(), object.size);
            }
        }
        Ok(files)
    }

    /// Half-written files that a killed process left behind; only a local folder has them.
    pub fn remove_abandoned_writes(&self, folder: &Path) -> Result<(), StoreError> {
        let Some(root) = &self.local else { return Ok(()) };
        let path = root.join(folder.as_ref());
        let failed = |source| StoreError::Root { path: path.clone(), source };
        for entry in std::fs::read_dir(&path).map_err(failed)? {
            let entry = entry.map_err(failed)?;
            // The object store writes to `<name>#<number>` before it renames.
            if entry.file_name().to_string_lossy().contains('#') {
                std::fs::remove_file(entry.path()).map_err(failed)?;
            }
        }
        Ok(())
    }

    /// The whole object, which must have `expected` bytes, or at most `expected` where `exact` is false.
    pub async fn fetch(&self, path: &Path, expected: u64, exact: bool) -> Result<Bytes, Fetch> {
        let got = self.objects.get(path).await.map_err(|e| match e {
            object_store::Error::NotFound { .. } => Fetch::Missing,
            other => Fetch::Failed(other),
        })?;
        // Before the bytes are read: a file that grew must not be allocated.
        let found = got.meta.size;
        if found > expected || (exact && found != expected) {
            return Err(Fetch::Size(found));
        }
        let bytes = got.bytes().await.map_err(Fetch::Failed)?;
        let found = bytes.len() as u64;
        if exact && found != expected { Err(Fetch::Size(found)) } else { Ok(bytes) }
    }

    /// What a staged slice must be; nothing where none is staged.
    pub async fn ticket(
        &self,
        place: &Place,
        step: Step,
        slice: u32,
        slices: u32,
    ) -> Result<Option<Ticket>, StoreError> {
        let path = place.ticket(step, slice, slices);
        match self.fetch(&path, Ticket::MAX_BYTES, false).await {
            // One that does not parse was damaged: as good as none.
            Ok(bytes) => Ok(serde_json::from_slice(&bytes).ok()),
            Err(Fetch::Missing | Fetch::Size(_)) => Ok(None),
            Err(Fetch::Failed(e)) => Err(self.read_error(&path, e)),
        }
    }

    /// The manifest of a step, sealed and of the right run and step, and its text; nothing where there is
    /// none.
    pub async fn manifest(&self, place: &Place, step: Step) -> Option<Result<(Manifest, Bytes), Damage>> {
        let bytes = match self.fetch(&place.manifest(step), MAX_MANIFEST_BYTES, false).await {
            Ok(bytes) => bytes,
            Err(Fetch::Missing) => return None,
            Err(Fetch::Size(found)) => return Some(Err(crate::ManifestError::TooLong { found }.into())),
            Err(Fetch::Failed(e)) => {
                let (reason, passing) = (e.to_string(), may_pass(&e, self.local.is_some()));
                return Some(Err(Damage::ManifestUnreadable { reason, passing }));
            }
        };
        let manifest = match Manifest::parse(&bytes) {
            Ok(manifest) => manifest,
            Err(error) => return Some(Err(error.into())),
        };
        if manifest.step != step {
            return Some(Err(Damage::OtherStep { found: manifest.step, expected: step }));
        }
        match &place.run {
            Some(expected) if *expected != manifest.run_id => {
                let (found, expected) = (manifest.run_id, expected.clone());
                Some(Err(Damage::OtherRun { found, expected }))
            }
            _ => Some(Ok((manifest, bytes))),
        }
    }

    /// The manifest of a step with every byte it names verified; nothing where there is none.
    pub async fn checked(&self, place: &Place, step: Step) -> Option<Result<Manifest, Damage>> {
        let manifest = match self.manifest(place, step).await? {
            Ok((manifest, _)) => manifest,
            Err(damage) => return Some(Err(damage)),
        };
        Some(self.verify_state(place, &manifest).await.map(|_| manifest))
    }

    /// Reads every slice and checks hashes and the state digest.
    pub async fn verify_state(&self, place: &Place, manifest: &Manifest) -> Result<StateDigester, Damage> {
        let folder = place.step(manifest.step);
        let mut digester = StateDigester::new();
        for entry in &manifest.slices {
            digester = self.verify_slice(&folder, entry, digester).await?;
        }
        let (found, expected) = (digester.digest(), manifest.state_digest);
        if found == expected { Ok(digester) } else { Err(Damage::StateDigest { found, expected }) }
    }

    /// A slice's bytes, verified.
    pub async fn slice_bytes(&self, folder: &Path, entry: &SliceEntry) -> Result<Bytes, Damage> {
        let file = || entry.file.clone();
        let unreadable = |e: object_store::Error| self.slice_unreadable(file(), &e);
        let path = folder.clone().join(entry.file.as_str());
        let bytes = self.fetch(&path, entry.size, true).await.map_err(|fault| match fault {
            Fetch::Missing => Damage::SliceMissing { file: file() },
            Fetch::Size(found) => Damage::SliceSize { file: file(), found, expected: entry.size },
            Fetch::Failed(e) => unreadable(e),
        })?;
        let shared = bytes.clone();
        let found = blocking(move || Digest::of(&shared)).await.map_err(unreadable)?;
        self.read.fetch_add(bytes.len() as u64, Ordering::Relaxed);
        if found == entry.hash {
            Ok(bytes)
        } else {
            Err(Damage::SliceHash { file: file(), found, expected: entry.hash })
        }
    }

    async fn verify_slice(
        &self,
        folder: &Path,
        entry: &SliceEntry,
        mut digester: StateDigester,
    ) -> Result<StateDigester, Damage> {
        let bytes = self.slice_bytes(folder, entry).await?;
        let file = entry.file.clone();
        let digested = blocking(move || {
            let slice = SliceView::parse(&bytes).map_err(|source| Damage::SliceFormat { file, source })?;
            digester.add(&slice)?;
            Ok(digester)
        });
        digested.await.map_err(|e| self.slice_unreadable(entry.file.clone(), &e))?
    }
}
