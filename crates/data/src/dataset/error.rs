//! What can be wrong with a source, or with reading one of its samples.

use super::braces::BracesError;
use super::list::ListError;
use super::sight::Choice;
use super::{EXTENSIONS, LIST_EXTENSIONS};
use crate::remote::RemoteError;
use crate::rows::RowsError;
use mcl_types::SourceKind;
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
    #[error("no pictures in {}: expected files ending in {}, at any depth, .tar shards, or a list of pictures", path.display(), EXTENSIONS.join(", "))]
    Empty {
        /// The source.
        path: PathBuf,
    },
    /// The source is one file, and of no kind that is read.
    #[error(
        "{} is neither a folder, nor a .tar shard, nor a list of pictures ({}){hint}; where its name does not tell, say it with `--kind` or `[data] kind`",
        path.display(), LIST_EXTENSIONS.join(", ")
    )]
    NotASource {
        /// The source.
        path: PathBuf,
        /// What can be done about it.
        hint: &'static str,
    },
    /// A list was asked for, and this is no file.
    #[error("{} is no file: a list of pictures is one, such as pictures.txt or pictures.csv", path.display())]
    NotAList {
        /// The source.
        path: PathBuf,
    },
    /// More than one kind of source in one place.
    #[error("{} {}: say which is meant, with `--kind` or `[data] kind`", path.display(), readings(choices))]
    Mixed {
        /// The source.
        path: PathBuf,
        /// How it can be read.
        choices: Vec<Choice>,
    },
    /// Parquet files of several splits.
    #[error("{} holds parquet files of several splits: name one of {}; or say `--kind parquet` for all of them", path.display(), choices.join(" or "))]
    Splits {
        /// The source.
        path: PathBuf,
        /// What names each.
        choices: Vec<String>,
    },
    /// Arrow files.
    #[error(
        "{} holds Arrow files (such as {example}), which are not read: save the data set as parquet, in Python `datasets.load_from_disk(FOLDER).to_parquet(\"pictures.parquet\")`, and pack that with `mcl data pack pictures.parquet --out SHARDS`",
        path.display()
    )]
    Arrow {
        /// The source.
        path: PathBuf,
        /// One of them.
        example: String,
    },
    /// A source that has to be packed before it is trained on.
    #[error(
        "{source_name} {what}: pack the pictures once, with `mcl data pack {source_name} --out SHARDS`, and name SHARDS as the source"
    )]
    PackFirst {
        /// The source.
        source_name: String,
        /// Why.
        what: String,
    },
    /// A parquet file.
    #[error(transparent)]
    Rows(#[from] RowsError),
    /// A column was named, and the source has none.
    #[error("{} has no columns: `--column {column}` is for parquet files", path.display())]
    NoColumns {
        /// The source.
        path: PathBuf,
        /// What was asked for.
        column: String,
    },
    /// A pack that did not come to its end.
    #[error(
        "{} is not packed to the end: give its `mcl data pack` again, which goes on where it stopped; or remove {}",
        path.display(), crate::pack::PROGRESS
    )]
    Unfinished {
        /// The folder or address.
        path: PathBuf,
    },
    /// A list that cannot be used.
    #[error("{}, {source}", path.display())]
    List {
        /// The list.
        path: PathBuf,
        /// What is wrong with it.
        source: ListError,
    },
    /// A list whose pictures are not there.
    #[error(
        "none of the {count} pictures that {} lists is there (such as {example}): relative paths count from the list's folder{hint}",
        path.display()
    )]
    ListOfNothing {
        /// The list.
        path: PathBuf,
        /// Paths in it.
        count: usize,
        /// The first of them.
        example: String,
        /// What may be wrong.
        hint: &'static str,
    },
    /// A list that is larger than any.
    #[error("{} has {bytes} bytes, expected a list of pictures of at most {most}", path.display())]
    ListTooLarge {
        /// The list.
        path: PathBuf,
        /// Its bytes.
        bytes: u64,
        /// Bytes it may have.
        most: u64,
    },
    /// Names in braces that stand for nothing.
    #[error("{place}: {source}")]
    Braces {
        /// The source.
        place: String,
        /// What is wrong.
        source: BracesError,
    },
    /// Names in braces that are not all there, or not of one kind.
    #[error("{place} stands for {count} names, and {wrong}")]
    Named {
        /// The source.
        place: String,
        /// Names it stands for.
        count: usize,
        /// What is wrong.
        wrong: String,
    },
    /// A tar that makes sense in two ways.
    #[error(
        "{} can be read in two ways: as WebDataset, `{kept}` and `{left}` are parts of one sample, and {count} pictures are left out; as a plain tar, every picture is one. Say `--kind webdataset` or `--kind tar`, or `[data] kind`",
        path.display()
    )]
    AmbiguousTar {
        /// The shard.
        path: PathBuf,
        /// A picture.
        kept: String,
        /// One that would be left out for it.
        left: String,
        /// Pictures that would be left out.
        count: usize,
    },
    /// Not a tar, or a damaged one.
    #[error("{} is not a readable tar: {source}", path.display())]
    BadTar {
        /// The shard.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// An index was asked for, of what has none.
    #[error("a source read as {kind} has no index: expected tar shards, read as `webdataset` or `tar`")]
    NoIndex {
        /// How it was to be read.
        kind: SourceKind,
    },
    /// A place without shards.
    #[error(
        "no .tar shards directly in {address} ({found}): expected a .tar, or a folder or prefix that holds some; `mcl data pack` makes them"
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

fn readings(choices: &[Choice]) -> String {
    let one = |c: &Choice| format!("as {} (it holds {})", c.kind, c.example);
    format!("can be read {}", choices.iter().map(one).collect::<Vec<_>>().join(", or "))
}

impl DatasetError {
    /// Whether starting again later may help: the storage is away, and nothing is known to be wrong with the pictures.
    pub fn may_pass(&self) -> bool {
        match self {
            Self::Remote(error)
            | Self::Read(ReadError::Remote { source: error, .. })
            | Self::Rows(RowsError::Remote { source: error, .. }) => error.may_pass(),
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
