//! Why a checkpoint cannot be trusted.

use crate::manifest::ManifestError;
use crate::slice::SliceError;
use crate::state_digest::DuplicateTensor;
use mcl_types::{Digest, RunId, Step};

/// What is wrong with a checkpoint that exists. It is skipped for the one before.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum Damage {
    /// Slices that were committed, without the manifest that made them visible.
    #[error("manifest.json is missing: it was being removed, or somebody removed it")]
    ManifestMissing,
    /// The manifest cannot be read.
    #[error("manifest cannot be read: {reason}")]
    ManifestUnreadable {
        /// What the store said.
        reason: String,
        /// Whether it may be good: the store is away or refuses to give it.
        passing: bool,
    },
    /// The manifest is not to be trusted.
    #[error(transparent)]
    Manifest(#[from] ManifestError),
    /// The manifest names another step than its folder.
    #[error("manifest speaks of {found}, its folder of {expected}")]
    OtherStep {
        /// What the manifest says.
        found: Step,
        /// What the folder says.
        expected: Step,
    },
    /// The manifest belongs to another run.
    #[error("manifest belongs to run `{found}`, expected run `{expected}`")]
    OtherRun {
        /// What the manifest says.
        found: RunId,
        /// Whose folder it is.
        expected: RunId,
    },
    /// A slice that the manifest names is gone.
    #[error("{file} is missing")]
    SliceMissing {
        /// The slice.
        file: String,
    },
    /// A slice that is there cannot be read.
    #[error("{file} cannot be read: {reason}")]
    SliceUnreadable {
        /// The slice.
        file: String,
        /// What the store said.
        reason: String,
        /// Whether it may be good: the store is away or refuses to give it.
        passing: bool,
    },
    /// A slice of another length.
    #[error("{file} has {found} bytes, expected {expected}")]
    SliceSize {
        /// The slice.
        file: String,
        /// Its length.
        found: u64,
        /// What was written.
        expected: u64,
    },
    /// A slice with other bytes.
    #[error("{file} hashes to {found}, expected {expected}")]
    SliceHash {
        /// The slice.
        file: String,
        /// Hash of its bytes.
        found: Digest,
        /// What was written.
        expected: Digest,
    },
    /// A slice that is what was written, which was no slice.
    #[error("{file}: {source}")]
    SliceFormat {
        /// The slice.
        file: String,
        /// What is wrong with it.
        source: SliceError,
    },
    /// Slices that do not make up one state.
    #[error(transparent)]
    Duplicate(#[from] DuplicateTensor),
    /// Good slices of another state.
    #[error("the tensors' digest is {found}, expected {expected}")]
    StateDigest {
        /// Digest of the tensors found.
        found: Digest,
        /// What the manifest says.
        expected: Digest,
    },
}

impl Damage {
    /// Whether nothing is known of the checkpoint, since the store does not give its bytes just now. Whoever goes on
    /// without it goes back for a mistyped permission.
    pub fn may_pass(&self) -> bool {
        matches!(
            self,
            Self::ManifestUnreadable { passing: true, .. } | Self::SliceUnreadable { passing: true, .. }
        )
    }

    /// Whether the checkpoint may be good in somebody else's eyes: another run's, a newer version's, or
    /// not readable just now. Such a one is neither replaced nor pruned.
    pub(crate) fn is_foreign(&self) -> bool {
        matches!(
            self,
            Self::OtherRun { .. }
                | Self::ManifestUnreadable { .. }
                | Self::SliceUnreadable { .. }
                | Self::Manifest(ManifestError::Format { .. })
        )
    }
}
