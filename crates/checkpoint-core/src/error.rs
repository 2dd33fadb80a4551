//! What can go wrong with a store.

use crate::damage::Damage;
use crate::manifest::{MAX_SLICES, ManifestError};
use mcl_types::{Digest, RunId, Step};
use std::io;
use std::path::PathBuf;

/// A failed operation. Whatever it was, checkpoints that were visible before still are.
#[derive(Debug, thiserror::Error)]
pub enum StoreError {
    /// The root folder cannot be made or opened.
    #[error(
        "cannot open checkpoint folder {}: {source}; check that it exists and may be written, or choose another",
        path.display()
    )]
    Root {
        /// The folder.
        path: PathBuf,
        /// What the system said.
        source: io::Error,
    },
    /// The address or its settings make no store.
    #[error(
        "cannot open checkpoint store {url}: {source}; check the address and the variables AWS_*, GOOGLE_* or AZURE_*"
    )]
    Open {
        /// The address.
        url: String,
        /// What is wrong.
        source: object_store::Error,
    },
    /// The store did not take the bytes.
    #[error("writing {path} failed: {source}; {advice}; earlier checkpoints are untouched")]
    Write {
        /// Where to.
        path: String,
        /// What to do.
        advice: &'static str,
        /// What the store said.
        source: object_store::Error,
    },
    /// The store did not give the bytes.
    #[error("reading {path} failed: {source}; check the disk or the store, then try again")]
    Read {
        /// Where from.
        path: String,
        /// What the store said.
        source: object_store::Error,
    },
    /// There is no such checkpoint.
    #[error("run `{run}` has no checkpoint of {step}; `mcl checkpoint list` shows those it has")]
    NoCheckpoint {
        /// The run.
        run: String,
        /// The step asked for.
        step: Step,
    },
    /// There is one, but it is not to be trusted.
    #[error("checkpoint of {step} in {path} is damaged: {damage}; use an earlier one")]
    Damaged {
        /// Its step.
        step: Step,
        /// Its folder.
        path: String,
        /// What is wrong.
        damage: Box<Damage>,
    },
    /// There is one, and the store does not give it just now: nothing is known of its bytes.
    #[error("checkpoint of {step} in {path}: {damage}; check permissions and the store, then try again")]
    Unreadable {
        /// Its step.
        step: Step,
        /// Its folder.
        path: String,
        /// What cannot be read, and why.
        damage: Box<Damage>,
    },
    /// A slice number that does not exist.
    #[error("slice {slice} of {slices}: expected 1 to {MAX_SLICES} slices, numbered from 0")]
    SliceNumber {
        /// The number.
        slice: u32,
        /// How many there are said to be.
        slices: u32,
    },
    /// A slice beyond the store's limit.
    #[error("{path} would have {found} bytes, the limit is {limit}: use more ranks or raise the limit")]
    TooLarge {
        /// Where it would lie.
        path: String,
        /// Its announced size.
        found: u64,
        /// The store's limit.
        limit: u64,
    },
    /// More or fewer bytes than announced.
    #[error("{path}: {found} bytes came, {expected} were announced; nothing was staged, send it again")]
    Length {
        /// Where it would lie.
        path: String,
        /// Bytes that came.
        found: u64,
        /// Bytes announced.
        expected: u64,
    },
    /// Other bytes than announced.
    #[error("{path}: the bytes hash to {found}, {expected} was announced; nothing was staged, send it again")]
    Hash {
        /// Where it would lie.
        path: String,
        /// Hash of the bytes that came.
        found: Digest,
        /// Hash announced.
        expected: Digest,
    },
    /// Not all slices are there.
    #[error(
        "{step} cannot be committed: slice {slice} of {slices} is not staged; stage it, then commit again"
    )]
    NotStaged {
        /// The step.
        step: Step,
        /// First slice that is missing.
        slice: u32,
        /// How many there are to be.
        slices: u32,
    },
    /// What is staged is not what was sent, or not one state.
    #[error("{step} cannot be committed: {damage}; stage its slices again, then commit again")]
    BadStage {
        /// The step.
        step: Step,
        /// What is wrong.
        damage: Box<Damage>,
    },
    /// The step is visible with other content.
    #[error(
        "{step} of run `{run}` is visible already and differs: {reason}; a visible checkpoint never changes"
    )]
    Conflict {
        /// The run.
        run: RunId,
        /// The step.
        step: Step,
        /// In what it differs.
        reason: String,
    },
    /// The manifest would break a limit.
    #[error("{step} cannot be committed: {source}")]
    Manifest {
        /// The step.
        step: Step,
        /// Which limit.
        source: ManifestError,
    },
}

/// Whether bytes that were not given may be good all the same. A local file is gone for good where the disk says so;
/// a server that does not answer, and whoever is not let in, know nothing of them.
pub(crate) fn may_pass(error: &object_store::Error, local: bool) -> bool {
    use object_store::Error;
    if matches!(error, Error::PermissionDenied { .. } | Error::Unauthenticated { .. }) {
        return true;
    }
    match io_error(error) {
        Some(io) => !local || passing_io(io),
        None => !local,
    }
}

/// Permissions, open files and memory that ran out, and a file server that is away.
fn passing_io(error: &io::Error) -> bool {
    const ENFILE: i32 = 23;
    const EMFILE: i32 = 24;
    matches!(error.raw_os_error(), Some(ENFILE | EMFILE))
        || matches!(
            error.kind(),
            io::ErrorKind::PermissionDenied
                | io::ErrorKind::OutOfMemory
                | io::ErrorKind::TimedOut
                | io::ErrorKind::Interrupted
                | io::ErrorKind::StaleNetworkFileHandle
                | io::ErrorKind::HostUnreachable
                | io::ErrorKind::NetworkUnreachable
                | io::ErrorKind::NetworkDown
        )
}

/// What the system said, somewhere down the chain of causes.
fn io_error(error: &object_store::Error) -> Option<&io::Error> {
    let mut source: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = source {
        if let Some(io) = error.downcast_ref::<io::Error>() {
            return Some(io);
        }
        source = error.source();
    }
    None
}

/// What to do about a failed write.
pub(crate) fn advice(error: &object_store::Error) -> &'static str {
    match io_error(error).map(io::Error::kind) {
        Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded) => {
            "the disk is full: free space there, lower `[checkpoint] keep`, or choose another store"
        }
        Some(io::ErrorKind::PermissionDenied | io::ErrorKind::ReadOnlyFilesystem) => {
            "the folder may not be written: change its permissions or choose another store"
        }
        _ => "check the disk or the store, then try again",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_bad_disk_is_damage_and_a_closed_door_is_not() {
        let local =
            |source: io::Error| object_store::Error::Generic { store: "test", source: Box::new(source) };
        assert!(may_pass(&local(io::ErrorKind::PermissionDenied.into()), true));
        assert!(may_pass(&local(io::Error::from_raw_os_error(24)), true), "too many open files");
        assert!(!may_pass(&local(io::Error::from_raw_os_error(5)), true), "input/output error");
        assert!(!may_pass(&local(io::ErrorKind::IsADirectory.into()), true));
        assert!(may_pass(&local(io::ErrorKind::ConnectionReset.into()), false));
    }
}
