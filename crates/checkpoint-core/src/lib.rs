//! Checkpoints: how a state is cut into slices, hashed, written down and made visible.
//!
//! Role: everything about checkpoints that needs no network protocol. A *state* is a name-ordered map
//! of tensors. Ranks cut it into slices ([`assign`]), write each as one safetensors file
//! ([`write_slice`]) and stage it in a [`CheckpointStore`]; a commit checks every byte and writes the
//! [`Manifest`] that makes the checkpoint visible. [`CheckpointDir`] reads them where no service runs.
//!
//! Invariants:
//! - a checkpoint is visible only after every byte it names is durable and its hash verified;
//! - reading verifies again; a damaged checkpoint is skipped, loudly, for the one before;
//! - the state digest does not depend on the slicing;
//! - no bytes from a file or a peer can cause a panic or an allocation beyond the stated limits.
//!
//! Left out: who may commit (fencing tokens are the service's business), what the tensors mean, and
//! devices.
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic))]

mod damage;
mod error;
mod folder;
mod inspect;
mod layout;
mod manifest;
mod offline;
mod open;
mod record;
mod retention;
mod slice;
mod slicing;
mod staging;
mod state_digest;
mod store;

pub use damage::Damage;
pub use error::StoreError;
pub use folder::create_folder;
pub use inspect::{Depth, Inventory, InventoryEntry, SliceReader};
pub use layout::{Layout, slice_file, step_folder};
pub use manifest::{MANIFEST_FORMAT, Manifest, ManifestError, SliceEntry};
pub use offline::{CheckpointDir, OpenError, OwnedTensor};
pub use record::{Record, RecordError};
pub use safetensors::Dtype;
pub use slice::{SliceError, SlicePlan, SliceView, TensorRef, write_slice};
pub use slicing::{TensorInfo, assign};
pub use staging::{SliceSpec, SliceUpload};
pub use state_digest::{DuplicateTensor, StateDigester, TensorDigest, digest_state, digest_tensor};
pub use store::{CheckpointStore, CommitSpec, Limits};
