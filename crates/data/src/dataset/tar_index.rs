//! What lies where in a tar shard: found by walking the tar, or read from the side file
//! `<shard>.tar.index.json`.
//!
//! WebDataset layout: entries whose paths agree up to the first dot of the file name are one sample;
//! its picture is the first with a picture's extension, its class the number in `.cls` or under
//! `label` in `.json`. In a plain tar every picture is a sample, by its path. A side file is believed only as far as it agrees
//! with the tar: size, bounds, and the tar headers of a few entries are compared on every open, the recorded hash on every read.

use super::DatasetError;
use mcl_types::{Digest, SourceKind};
use serde::{Deserialize, Serialize};
use std::fs::{self, File};
use std::path::{Path, PathBuf};

/// What the side file's name has after that of its tar.
pub(crate) const SIDE_SUFFIX: &str = ".index.json";

/// Version of the side file.
pub(super) const VERSION: u32 = 1;

/// Tar headers compared on open; enough to tell another tar, few enough for a cold disk.
const HEADERS_CHECKED: usize = 16;

/// Tar's block, and the size of its headers.
pub(crate) const BLOCK: u64 = 512;

/// One picture of a shard.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct IndexEntry {
    /// Sample key, escaped: the path up to the first dot of the file name.
    pub key: String,
    /// The rest of the name, without the dot.
    pub extension: String,
    /// First byte of the picture in the tar.
    pub offset: u64,
    /// Bytes of the picture.
    pub length: u64,
    /// Class, where told.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub label: Option<u32>,
    /// BLAKE3 of the picture's bytes; absent where the index was made in memory.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub blake3: Option<Digest>,
}

impl IndexEntry {
    /// Whether a tar of so many bytes can hold it.
    pub(super) fn is_inside(&self, tar_bytes: u64) -> bool {
        self.offset.checked_add(self.length).is_some_and(|end| end <= tar_bytes)
    }

    /// Whether `header`, which lies before its bytes, is of an entry of its length.
    pub(crate) fn follows(&self, header: &[u8]) -> bool {
        header.len() as u64 == BLOCK
            && header.get(257..262) == Some(b"ustar")
            && tar::Header::from_byte_slice(header).entry_size().is_ok_and(|size| size == self.length)
    }
}

/// All pictures of a shard, in the order of the tar.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct TarIndex {
    /// Version of this layout.
    pub version: u32,
    /// Size of the tar in bytes.
    pub tar_bytes: u64,
    /// How the tar was read, where that is not as WebDataset.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub kind: Option<SourceKind>,
    /// The pictures.
    pub samples: Vec<IndexEntry>,
}

/// Where the side file of `tar` lies.
pub fn side_file(tar: &Path) -> PathBuf {
    let mut name = tar.as_os_str().to_owned();
    name.push(SIDE_SUFFIX);
    PathBuf::from(name)
}

/// Walks `tar` and writes its side file, hashes included; gives the index.
///
/// # Errors
/// When the tar cannot be read, is not a tar, or the side file cannot be written.
pub fn index(tar: &Path) -> Result<TarIndex, DatasetError> {
    index_as(tar, None)
}

/// The same for a tar that is read as `kind`.
///
/// # Errors
/// As [`index`].
pub fn index_as(tar: &Path, kind: Option<SourceKind>) -> Result<TarIndex, DatasetError> {
    let file = File::open(tar).map_err(|source| io(tar, source))?;
    let map = super::mapping::map(&file).map_err(|source| io(tar, source))?;
    let mut index = TarIndex::scan_from(tar, std::io::Cursor::new(&map[..]), map.len() as u64, kind)?;
    for sample in &mut index.samples {
        sample.blake3 = slice(&map, sample).map(Digest::of);
    }
    index.write(tar)?;
    Ok(index)
}

fn io(path: &Path, source: std::io::Error) -> DatasetError {
    DatasetError::Io { path: path.to_owned(), source }
}

fn slice<'a>(map: &'a [u8], entry: &IndexEntry) -> Option<&'a [u8]> {
    let start = usize::try_from(entry.offset).ok()?;
    let end = start.checked_add(usize::try_from(entry.length).ok()?)?;
    map.get(start..end)
}

impl TarIndex {
    /// An index of a tar that was read as WebDataset.
    pub(crate) const fn new(tar_bytes: u64, samples: Vec<IndexEntry>) -> Self {
        Self { version: VERSION, tar_bytes, kind: None, samples }
    }

    /// As it stands in a side file.
    pub(crate) fn to_text(&self) -> std::io::Result<Vec<u8>> {
        Ok(serde_json::to_vec_pretty(self)?)
    }

    /// Writes the side file of `tar`, replacing it in one step.
    pub(crate) fn write(&self, tar: &Path) -> Result<(), DatasetError> {
        let path = side_file(tar);
        let text = self.to_text().map_err(|e| io(&path, e))?;
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        fs::write(&partial, text).map_err(|source| io(&partial, source))?;
        fs::rename(&partial, &path).map_err(|source| io(&path, source))
    }

    /// What the side file says, where there is one and it is of this way of reading.
    pub(super) fn beside(
        tar: &Path,
        map: &[u8],
        kind: Option<SourceKind>,
    ) -> Result<Option<Self>, DatasetError> {
        let path = side_file(tar);
        match fs::read(&path) {
            Ok(text) => Ok(Some(Self::parse(tar, &text, map)?).filter(|index| index.is_for(kind))),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Ok(None),
            Err(source) => Err(io(&path, source)),
        }
    }

    /// Whether it was made by reading as `kind`; where none is asked for, any will do.
    pub(crate) fn is_for(&self, kind: Option<SourceKind>) -> bool {
        let made_as = self.kind.unwrap_or(SourceKind::WebDataset);
        kind.is_none_or(|kind| kind == made_as)
    }

    /// A side file's text, believed as far as it agrees with the bytes of `tar`.
    ///
    /// # Errors
    /// When it does not parse or fit.
    pub fn parse(tar: &Path, text: &[u8], map: &[u8]) -> Result<Self, DatasetError> {
        let index = Self::parse_for(tar, text, map.len() as u64)?;
        index.verify_headers(tar, map)?;
        Ok(index)
    }

    /// A side file's text, believed as far as it agrees with a tar of `tar_bytes`.
    pub(crate) fn parse_for(tar: &Path, text: &[u8], tar_bytes: u64) -> Result<Self, DatasetError> {
        let index: Self =
            serde_json::from_slice(text).map_err(|e| mismatch(tar, &format!("it cannot be read: {e}")))?;
        index.verify_bounds(tar, tar_bytes)?;
        Ok(index)
    }

    fn verify_bounds(&self, tar: &Path, tar_bytes: u64) -> Result<(), DatasetError> {
        if self.version != VERSION {
            return Err(mismatch(tar, &format!("it has version {}, expected {VERSION}", self.version)));
        }
        if self.tar_bytes != tar_bytes {
            let (said, found) = (self.tar_bytes, tar_bytes);
            return Err(mismatch(tar, &format!("it was made for {said} bytes, the tar has {found}")));
        }
        if let Some(outside) = self.samples.iter().find(|s| !s.is_inside(tar_bytes) || s.offset < BLOCK) {
            return Err(mismatch(tar, &format!("its entry `{}` lies outside the tar", outside.key)));
        }
        Ok(())
    }

    fn verify_headers(&self, tar: &Path, map: &[u8]) -> Result<(), DatasetError> {
        let step = self.samples.len().div_ceil(HEADERS_CHECKED).max(1);
        let last = self.samples.last();
        for sample in self.samples.iter().step_by(step).chain(last) {
            let at = sample.offset.checked_sub(BLOCK).and_then(|at| usize::try_from(at).ok());
            let header = at.and_then(|at| map.get(at..at + BLOCK as usize));
            if !header.is_some_and(|header| sample.follows(header)) {
                return Err(mismatch(
                    tar,
                    &format!("the tar has another entry where `{}` should be", sample.key),
                ));
            }
        }
        Ok(())
    }
}

fn mismatch(tar: &Path, reason: &str) -> DatasetError {
    DatasetError::IndexMismatch { index: side_file(tar), reason: reason.to_owned() }
}

pub(super) fn bad_tar(tar: &Path, source: std::io::Error) -> DatasetError {
    DatasetError::BadTar { path: tar.to_owned(), source }
}
