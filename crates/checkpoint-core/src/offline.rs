//! Checkpoints without a service: listing, verifying, digesting and reading from a folder.
//!
//! Takes a run directory, its `checkpoints` folder or one step's folder. Invariant: everything handed out was
//! verified. Left out: changing a store; other formats, which are `mcl-export`'s.

use crate::error::StoreError;
use crate::inspect::{Depth, Inventory};
use crate::layout::{Layout, MANIFEST_FILE, Place, parse_step_folder};
use crate::manifest::Manifest;
use crate::slice::SliceView;
use crate::state_digest::TensorDigest;
use crate::store::CheckpointStore;
use mcl_types::Step;
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
        "{} holds no checkpoints: expected a run directory, its `{CHECKPOINTS}` folder or one `step-...` folder{hint}",
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
    store: CheckpointStore,
    place: Place,
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
            return Self::at(parent, Some(step));
        }
        let inside = full.join(CHECKPOINTS);
        if inside.is_dir() {
            return Self::at(inside, None);
        }
        let mut folders = Vec::new();
        for entry in std::fs::read_dir(&full).map_err(unreadable)? {
            folders.push(entry.map_err(unreadable)?.path());
        }
        let is_step = |folder: &PathBuf| name_of(folder).and_then(parse_step_folder).is_some();
        if folders.iter().any(is_step) || name_of(&full) == Some(CHECKPOINTS) {
            return Self::at(full, None);
        }
        Err(OpenError::NoCheckpoints { path: path.to_owned(), hint: hint(&folders) })
    }

    fn at(root: PathBuf, only: Option<Step>) -> Result<Self, OpenError> {
        let store = CheckpointStore::local(root, Layout::Flat)?;
        let place = Place { prefix: object_store::path::Path::default(), run: None };
        Ok(Self { store, place, only })
    }

    /// The step whose folder was opened, where it was one step's.
    pub fn only(&self) -> Option<Step> {
        self.only
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

/// Names the run folders inside a service's root.
fn hint(folders: &[PathBuf]) -> String {
    let holds_steps = |folder: &&PathBuf| {
        let inside = |name: &str| folder.join(name).is_dir();
        let entries = std::fs::read_dir(folder).into_iter().flatten().flatten();
        inside(CHECKPOINTS) || entries.take(1000).any(|e| e.path().join(MANIFEST_FILE).is_file())
    };
    let mut runs: Vec<&str> = folders.iter().filter(holds_steps).filter_map(|f| name_of(f)).collect();
    runs.sort_unstable();
    runs.truncate(8);
    if runs.is_empty() { String::new() } else { format!("; try one of its folders: {}", runs.join(", ")) }
}
