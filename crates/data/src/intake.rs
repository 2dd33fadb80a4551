//! A source that is read from its beginning to its end, to pack it or to look at it: pictures that could be read in any order,
//! or rows of parquet files in theirs.

use crate::dataset::{Dataset, DatasetError, Encoded, How, ReadError, Source};
use crate::remote::RemoteSpec;
use crate::rows::{Rows, RowsError};
use mcl_types::{Digest, SampleIndex, SourceKind, StoreLocation};
use std::ops::Range;

/// Samples between two looks ahead, where they come from an object store (those fetched ahead are more), and so what whoever
/// reads with several threads best takes at once.
pub(crate) const AT_ONCE: u64 = 64;

/// Bytes of one picture at most: a larger file is none, and would have to be held in memory.
pub(crate) const LARGEST: u64 = 1 << 30;

/// A source that is read on.
#[derive(Debug)]
pub struct Intake(Kind);

#[derive(Debug)]
enum Kind {
    Samples(Dataset),
    Rows(Rows),
}

/// What became of one picture of the source.
pub(crate) enum Item<'a> {
    Picture {
        path: Vec<u8>,
        bytes: Bytes<'a>,
        label: Option<u32>,
    },
    /// It cannot be had, and why.
    Skipped(String),
}

pub(crate) enum Bytes<'a> {
    OfSample(Encoded),
    OfRow(&'a [u8]),
}

impl std::ops::Deref for Bytes<'_> {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match self {
            Self::OfSample(bytes) => bytes,
            Self::OfRow(bytes) => bytes,
        }
    }
}

/// A source that fails while it is read.
#[derive(Debug, thiserror::Error)]
pub enum IntakeError {
    /// A picture that the storage does not give.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// A parquet file that cannot be read on.
    #[error(transparent)]
    Rows(#[from] RowsError),
}

impl From<Dataset> for Intake {
    fn from(samples: Dataset) -> Self {
        Self(Kind::Samples(samples))
    }
}

impl From<IntakeError> for DatasetError {
    fn from(error: IntakeError) -> Self {
        match error {
            IntakeError::Read(error) => error.into(),
            IntakeError::Rows(error) => error.into(),
        }
    }
}

impl Intake {
    /// Opens a source of any kind; `column` is that of the pictures in parquet files, where it has to be said.
    ///
    /// # Errors
    /// When nothing usable is there; see [`DatasetError`].
    pub fn open(
        source: &StoreLocation,
        kind: Option<SourceKind>,
        column: Option<&str>,
        spec: &RemoteSpec,
    ) -> Result<Self, DatasetError> {
        let opened = match How::new(kind, true, Some(spec)).open(source)? {
            Source::Samples(samples) => Kind::Samples(Dataset::of_samples(samples, source)?),
            Source::Rows(files) => Kind::Rows(Rows::open(files, column)?),
        };
        if let (Some(column), Kind::Samples(_)) = (column, &opened) {
            let (path, column) = (source.to_string().into(), column.to_owned());
            return Err(DatasetError::NoColumns { path, column });
        }
        let opened = Self(opened);
        if opened.is_empty() {
            return Err(DatasetError::Empty { path: source.to_string().into() });
        }
        Ok(opened)
    }

    /// Pictures, or rows.
    pub const fn len(&self) -> u64 {
        match &self.0 {
            Kind::Samples(samples) => samples.len(),
            Kind::Rows(rows) => rows.len(),
        }
    }

    /// Whether there are none; such a source does not open.
    pub const fn is_empty(&self) -> bool {
        self.len() == 0
    }

    /// Number of shards, slices or files.
    pub(crate) fn shards(&self) -> u64 {
        match &self.0 {
            Kind::Samples(samples) => samples.shards().len() as u64,
            Kind::Rows(rows) => rows.files(),
        }
    }

    /// Digest of the samples' ids and lengths, or of what parquet files say of themselves.
    pub(crate) const fn digest(&self) -> Digest {
        match &self.0 {
            Kind::Samples(samples) => samples.digest(),
            Kind::Rows(rows) => rows.digest(),
        }
    }

    /// Tells this source and its state, as far as that can be told without reading every picture.
    pub(crate) fn version(&self) -> Digest {
        let mut hasher = blake3::Hasher::new_derive_key("mcl pack source 1");
        hasher.update(self.digest().as_bytes());
        match &self.0 {
            Kind::Samples(samples) => {
                samples.stamp(&mut hasher);
                for sample in (0..samples.len()).map(SampleIndex::new) {
                    hasher.update(&samples.label(sample).map_or(u64::MAX, u64::from).to_le_bytes());
                }
            }
            Kind::Rows(rows) => rows.stamp(&mut hasher),
        }
        for name in self.classes() {
            hasher.update(&(name.len() as u64).to_le_bytes());
            hasher.update(name);
        }
        Digest::from_bytes(*hasher.finalize().as_bytes())
    }

    /// Class names by label, where something tells them.
    pub(crate) fn classes(&self) -> &[Vec<u8>] {
        match &self.0 {
            Kind::Samples(samples) => samples.class_names(),
            Kind::Rows(rows) => rows.classes(),
        }
    }

    /// Reads a range in order; `take` gets each picture with its id, and may end it.
    pub(crate) fn read<E: From<IntakeError>>(
        &self,
        range: Range<u64>,
        mut take: impl FnMut(&str, Item<'_>) -> Result<(), E>,
    ) -> Result<(), E> {
        match &self.0 {
            Kind::Samples(samples) => range.map(SampleIndex::new).try_for_each(|sample| {
                if sample.get().is_multiple_of(AT_ONCE) {
                    samples.read_on_from(sample);
                }
                let id = samples.id(sample).unwrap_or_default();
                take(&id, item(samples, sample).map_err(IntakeError::Read)?)
            }),
            Kind::Rows(rows) => {
                let read = rows.read(range, |id, row| {
                    let item = row.map_or_else(Item::Skipped, |row| {
                        let bytes = Bytes::OfRow(row.bytes);
                        Item::Picture { path: row.path.into_bytes(), bytes, label: row.label }
                    });
                    take(id, item).map_err(Ended::Taken)
                });
                read.map_err(|ended| match ended {
                    Ended::Rows(error) => IntakeError::Rows(error).into(),
                    Ended::Taken(error) => error,
                })
            }
        }
    }
}

/// Why reading of rows ended early.
enum Ended<E> {
    Rows(RowsError),
    Taken(E),
}

impl<E> From<RowsError> for Ended<E> {
    fn from(error: RowsError) -> Self {
        Self::Rows(error)
    }
}

fn item(samples: &Dataset, sample: SampleIndex) -> Result<Item<'static>, ReadError> {
    let mut path = samples.path_bytes(sample).unwrap_or_default();
    if !samples.is_tar() {
        // A list may name whole paths: they are no names that leave a folder.
        let slashes = path.iter().take_while(|b| **b == b'/').count();
        path.drain(..slashes);
    }
    let length = samples.byte_len(sample).unwrap_or(0);
    if length > LARGEST {
        return Ok(Item::Skipped(format!("it has {length} bytes, expected a picture of at most {LARGEST}")));
    }
    match samples.read(sample) {
        Ok(bytes) if bytes.is_empty() => Ok(Item::Skipped("it has no bytes".to_owned())),
        Ok(bytes) => Ok(Item::Picture { path, bytes: Bytes::OfSample(bytes), label: samples.label(sample) }),
        Err(e) if e.is_undecodable() => Ok(Item::Skipped(e.to_string())),
        Err(e) => Err(e),
    }
}
