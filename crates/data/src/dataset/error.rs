//! What can be wrong with a source, or with reading one of its samples.

use super::EXTENSIONS;
use crate::remote::RemoteError;
use std::io;
use std::path::PathBuf;

/// A source that cannot be used.
#[derive(Debug, thiserror::Error)]
pub enum DatasetError {
    /// A file or folder could not be read or written.
    #[error("{}: {source}", path.display())]
    Io {
        /// Which.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// Nothing to train on.
    #[error("no pictures in {}: expected files ending in {}, at any depth, or .tar shards", path.display(), EXTENSIONS.join(", "))]
    Empty {
        /// The source.
        path: PathBuf,
    },
    /// The source is one file, and not a tar.
    #[error("{} is neither a folder nor a .tar shard", path.display())]
    NotASource {
        /// The source.
        path: PathBuf,
    },
    /// Tar shards beside loose pictures.
    #[error("{} holds both .tar shards and loose pictures (such as {example}): expected one kind", path.display())]
    Mixed {
        /// The source.
        path: PathBuf,
        /// A loose picture's id.
        example: String,
    },
    /// Not a tar, or a damaged one.
    #[error("{} is not a readable tar: {source}", path.display())]
    BadTar {
        /// The shard.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// A bucket of loose pictures.
    #[error(
        "{address} holds loose pictures (such as {example}): expected .tar shards in an object store; pack the pictures with `mcl data pack` and upload the shards"
    )]
    Loose {
        /// The source.
        address: String,
        /// A loose picture's name.
        example: String,
    },
    /// A place in a bucket without shards.
    #[error(
        "no .tar shards directly in {address} ({found}): expected a .tar object, or a prefix that holds some; `mcl data pack` makes them"
    )]
    NoShards {
        /// The source.
        address: String,
        /// What is there.
        found: String,
    },
    /// An object store that does not give what was asked for.
    #[error(transparent)]
    Remote(#[from] RemoteError),
    /// A sample that could not be read where all of them were to be looked at.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A side index that belongs to another tar.
    #[error("{} does not fit its tar: {reason}; make it anew with `mcl data index`, or delete it", index.display())]
    IndexMismatch {
        /// The side file.
        index: PathBuf,
        /// What disagrees.
        reason: String,
    },
}

impl DatasetError {
    /// Whether starting again later may help: the storage is away, and nothing is known to be wrong with the pictures.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Remote(error) | Self::Read(ReadError::Remote { source: error, .. }) => error.may_pass(),
            _ => false,
        }
    }
}

/// A sample that could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// No such sample.
    #[error("sample {index} is outside the dataset of {len}")]
    Outside {
        /// The number asked for.
        index: u64,
        /// Samples there are.
        len: u64,
    },
    /// The file is gone, was never there (a link that leads nowhere), or may not be read: as good as a
    /// picture that cannot be decoded.
    #[error("cannot be opened: {source}")]
    Unavailable {
        /// Why.
        source: io::Error,
    },
    /// Reading failed, also when tried again.
    #[error("{id} cannot be read (tried {tries} times): {source}")]
    Io {
        /// The sample.
        id: String,
        /// Times tried.
        tries: usize,
        /// The last failure.
        source: io::Error,
    },
    /// The object store failed, also when asked again, or its object is another by now.
    #[error("{id}: {source}")]
    Remote {
        /// The sample.
        id: String,
        /// What is wrong.
        source: RemoteError,
    },
    /// The tar in the object store has another entry in this place than its index says.
    #[error(
        "{id} is not where the index of its shard says: the index is of another tar; make it anew with `mcl data index`, or delete it"
    )]
    Misplaced {
        /// The sample.
        id: String,
    },
}

impl ReadError {
    /// Whether starting again later may help: an object store that is away.
    pub fn may_pass(&self) -> bool {
        matches!(self, Self::Remote { source, .. } if source.may_pass())
    }

    /// Whether another picture may take this one's place; false for failures of the storage.
    pub const fn is_undecodable(&self) -> bool {
        matches!(self, Self::Unavailable { .. })
    }
}
