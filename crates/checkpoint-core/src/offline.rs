//! Checkpoints without a service: listing, verifying, digesting and reading, from a folder or an object store.
//!
//! Takes a run directory, its `checkpoints` folder, one step's folder, or the same in a store. Invariant: everything
//! handed out was verified. Left out: other formats, which are `mcl-export`'s.

use crate::error::StoreError;
use crate::inspect::{Depth, Inventory};
use crate::layout::{Layout, MANIFEST_FILE, Place, parse_step_folder};
use crate::manifest::Manifest;
use crate::slice::SliceView;
use crate::state_digest::TensorDigest;
use crate::store::CheckpointStore;
use mcl_types::{Step, StoreLocation};
use safetensors::Dtype;
use std::collections::BTreeMap;
use std::io;
use std::path::{Path, PathBuf};

/// Where `mcl run` puts checkpoints inside a run directory.
const CHECKPOINTS: &str = "checkpoints";

/// A tensor with its bytes.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct OwnedTensor {
    /// Element type.
    pub dtype: Dtype,
    /// Sizes, outermost first.
    pub shape: Vec<usize>,
    /// Contiguous little-endian bytes.
    pub bytes: Vec<u8>,
}

/// A folder that holds no checkpoints.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// It cannot be looked into.
    #[error("cannot read {}: {source}", path.display())]
    Unreadable {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// It is something else.
    #[error(
        "{} holds no checkpoints: expected a run directory, its `{CHECKPOINTS}` folder, a run's place in a store, or \
         one `step-...` folder{hint}",
        path.display()
    )]
    NoCheckpoints {
        /// The folder.
        path: PathBuf,
        /// Where they may be instead, ready to print.
        hint: String,
    },
    /// The store behind it does not open.
    #[error(transparent)]
    Store(#[from] StoreError),
}

/// A folder of checkpoints of one run.
#[derive(Debug, Clone)]
pub struct CheckpointDir {
    pub(crate) store: CheckpointStore,
    pub(crate) place: Place,
    only: Option<Step>,
}

impl CheckpointDir {
    /// Opens a run directory, its `checkpoints` folder or one step's folder.
    ///
    /// # Errors
    /// When it is none of them.
    pub fn open(path: impl AsRef<Path>) -> Result<Self, OpenError> {
        let path = path.as_ref();
        let unreadable = |source| OpenError::Unreadable { path: path.to_owned(), source };
        let full = std::fs::canonicalize(path).map_err(unreadable)?;
        if let Some(step) = name_of(&full).and_then(parse_step_folder) {
            let parent = full.parent().unwrap_or(&full).to_owned();
            return Self::inside(&parent.into(), Some(step));
        }
        let inside = full.join(CHECKPOINTS);
        if inside.is_dir() {
            return Self::inside(&inside.into(), None);
        }
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(&full).map_err(unreadable)? {
            folders.push(entry.map_err(unreadable)?.path());
        }
        let is_step = |folder: &PathBuf| name_of(folder).and_then(parse_step_folder).is_some();
        if folders.iter().any(is_step) || name_of(&full) == Some(CHECKPOINTS) {
            return Self::inside(&full.into(), None);
        }
        Err(OpenError::NoCheckpoints { path: path.to_owned(), hint: hint(runs_in(&folders)) })
    }

    /// Opens what [`Self::open`] takes, or one run's place or one step's in an object store.
    ///
    /// # Errors
    /// When no checkpoint is there, or the store cannot be reached.
    pub async fn at(location: &StoreLocation) -> Result<Self, OpenError> {
        let url = match location {
            StoreLocation::Folder(folder) => return Self::open(folder),
            StoreLocation::Object(url) => url,
        };
        let step = |(parent, name): (&str, &str)| Some((parent.to_owned(), parse_step_folder(name)?));
        if let Some((parent, step)) = url.rsplit_once('/').and_then(step) {
            return Self::inside(&StoreLocation::Object(parent), Some(step));
        }
        let found = Self::inside(location, None)?;
        if found.store.inner.steps(&found.place).await?.is_empty() {
            let runs = found.store.inner.folders(&found.place).await?;
            let hint = hint(runs.iter().map(String::as_str).collect());
            return Err(OpenError::NoCheckpoints { path: url.into(), hint });
        }
        Ok(found)
    }

    fn inside(root: &StoreLocation, only: Option<Step>) -> Result<Self, OpenError> {
        let store = CheckpointStore::open(root, Layout::Flat)?;
        let place = Place { prefix: object_store::path::Path::default(), run: None };
        Ok(Self { store, place, only })
    }

    /// The step whose folder was opened, where it was one step's.
    pub fn only(&self) -> Option<Step> {
        self.only
    }

    /// The folder or address that holds the run's steps, as a person finds it.
    pub fn root(&self) -> &str {
        self.store.name()
    }

    /// Bytes read from it so far, for whoever shows progress.
    pub fn bytes_read(&self) -> u64 {
        self.store.inner.read.load(std::sync::atomic::Ordering::Relaxed)
    }

    /// What is there, oldest first.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub async fn list(&self, depth: Depth) -> Result<Inventory, StoreError> {
        let mut inventory = self.store.inner.inventory(&self.place, depth).await?;
        if let Some(only) = self.only {
            inventory.visible.retain(|entry| entry.manifest.step == only);
            inventory.damaged.retain(|(step, _)| *step == only);
            inventory.staged.retain(|step| *step == only);
        }
        Ok(inventory)
    }

    /// The step that was opened, or else the newest one whose every byte is good.
    ///
    /// # Errors
    /// When the folder cannot be listed.
    pub async fn newest(&self) -> Result<Option<Step>, StoreError> {
        match self.only {
            Some(step) => Ok(Some(step)),
            None => Ok(self.store.inner.latest_good(&self.place).await?.map(|m| m.step)),
        }
    }

    /// Checks every byte of a checkpoint; gives its manifest and every tensor's digest.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub async fn verify(&self, step: Step) -> Result<(Manifest, Vec<TensorDigest>), StoreError> {
        self.store.inner.verify(&self.place, step).await
    }

    /// Every tensor of a checkpoint, in name order, verified.
    ///
    /// # Errors
    /// When there is none, or it is damaged.
    pub async fn tensors(&self, step: Step) -> Result<(Manifest, BTreeMap<String, OwnedTensor>), StoreError> {
        let (manifest, _) = self.verify(step).await?;
        let mut tensors = BTreeMap::new();
        for slice in 0..manifest.slice_count() {
            let bytes = self.store.inner.read_slice(&self.place, step, slice).await?;
            let view = SliceView::parse(&bytes).map_err(|source| {
                let file = crate::slice_file(slice, manifest.slice_count());
                let damage = crate::Damage::SliceFormat { file, source };
                self.store.inner.damaged(&self.place, step, damage)
            })?;
            for (name, tensor) in view.tensors() {
                let (dtype, shape) = (tensor.dtype, tensor.shape.clone());
                let owned = OwnedTensor { dtype, shape, bytes: tensor.bytes.to_vec() };
                tensors.insert(name.to_owned(), owned);
            }
        }
        Ok((manifest, tensors))
    }
}

fn name_of(path: &Path) -> Option<&str> {
    path.file_name()?.to_str()
}

/// The folders that hold steps: a service's root has one a run.
fn runs_in(folders: &[PathBuf]) -> Vec<&str> {
    let holds_steps = |folder: &&PathBuf| {
        let inside = |name: &str| folder.join(name).is_dir();
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        inside(CHECKPOINTS) || entries.take(1000).any(|e| e.path().join(MANIFEST_FILE).is_file())
    };
    folders.iter().filter(holds_steps).filter_map(|f| name_of(f)).collect()
}

/// Names what may have been meant.
fn hint(mut runs: Vec<&str>) -> String {
    runs.sort_unstable();
    runs.truncate(8);
    if runs.is_empty() { String::new() } else { format!("; try one of its folders: {}", runs.join(", ")) }
}
