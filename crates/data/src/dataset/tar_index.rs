//! What lies where in a tar shard: found by walking the tar, or read from the side file
//! `<shard>.tar.index.json`.
//!
//! WebDataset layout: entries whose paths agree up to the first dot of the file name are one sample;
//! its picture is the first with a picture's extension, its class the number in `.cls` or under
//! `label` in `.json`. A side file is believed only as far as it agrees with the tar: size, bounds, and
//! the tar headers of a few entries are compared on every open, the recorded hash on every read.

use super::sample_id::escape;
use super::{DatasetError, EXTENSIONS};
use mcl_types::Digest;
use serde::{Deserialize, Serialize};
use std::collections::HashMap;
use std::fs::{self, File};
use std::io::{Read, Seek};
use std::path::{Path, PathBuf};

/// What the side file's name has after that of its tar.
pub(crate) const SIDE_SUFFIX: &str = ".index.json";

/// Version of the side file.
const VERSION: u32 = 1;

/// Tar headers compared on open; enough to tell another tar, few enough for a cold disk.
const HEADERS_CHECKED: usize = 16;

/// Tar's block, and the size of its headers.
pub(crate) const BLOCK: u64 = 512;

/// Most of a `.cls` or `.json` entry that is read for a class: a longer one tells none.
const LABEL_BYTES: u64 = 16 << 20;

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
    fn is_inside(&self, tar_bytes: u64) -> bool {
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
    let file = File::open(tar).map_err(|source| io(tar, source))?;
    let map = super::mapping::map(&file).map_err(|source| io(tar, source))?;
    let mut index = TarIndex::scan(tar, &map)?;
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

/// Key and extension of an entry's path: cut at the first dot of the file name.
fn split_key(path: &[u8]) -> (&[u8], &[u8]) {
    let name = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    match path[name..].iter().position(|b| *b == b'.') {
        Some(dot) => (&path[..name + dot], &path[name + dot + 1..]),
        None => (path, &[]),
    }
}

/// Whether the last part of `extension` is that of a picture.
fn is_picture(extension: &[u8]) -> bool {
    let last = extension.rsplit(|b| *b == b'.').next().unwrap_or(extension);
    EXTENSIONS.iter().any(|e| last.eq_ignore_ascii_case(e.as_bytes()))
}

impl TarIndex {
    /// Writes the side file of `tar`, replacing it in one step.
    pub(crate) fn write(&self, tar: &Path) -> Result<(), DatasetError> {
        let path = side_file(tar);
        let text = serde_json::to_vec_pretty(self).map_err(|e| io(&path, e.into()))?;
        let mut partial = path.clone().into_os_string();
        partial.push(".partial");
        let partial = PathBuf::from(partial);
        fs::write(&partial, text).map_err(|source| io(&partial, source))?;
        fs::rename(&partial, &path).map_err(|source| io(&path, source))
    }

    /// The side file where there is one that fits, else a walk of the tar.
    pub(super) fn of(tar: &Path, map: &[u8]) -> Result<Self, DatasetError> {
        let path = side_file(tar);
        match fs::read(&path) {
            Ok(text) => Self::parse(tar, &text, map),
            Err(e) if e.kind() == std::io::ErrorKind::NotFound => Self::scan(tar, map),
            Err(source) => Err(io(&path, source)),
        }
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

    /// Walks the headers in the bytes of `tar`, seeking over the contents; no hashes.
    ///
    /// # Errors
    /// When they are no whole tar.
    pub fn scan(tar: &Path, map: &[u8]) -> Result<Self, DatasetError> {
        Self::scan_from(tar, std::io::Cursor::new(map), map.len() as u64)
    }

    /// The same for a tar of `tar_bytes` that lies anywhere.
    pub(crate) fn scan_from(
        tar: &Path,
        bytes: impl Read + Seek,
        tar_bytes: u64,
    ) -> Result<Self, DatasetError> {
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries_with_seek().map_err(|source| bad_tar(tar, source))?;
        let mut samples: Vec<IndexEntry> = Vec::new();
        let mut by_key: HashMap<Vec<u8>, usize> = HashMap::new();
        let mut labels: HashMap<Vec<u8>, u32> = HashMap::new();
        for entry in entries {
            let mut entry = entry.map_err(|source| bad_tar(tar, source))?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path_bytes().into_owned();
            let (key, extension) = split_key(path.strip_prefix(b"./").unwrap_or(&path));
            let found = IndexEntry {
                key: escape(key).into_owned(),
                extension: escape(extension).into_owned(),
                offset: entry.raw_file_position(),
                length: entry.size(),
                label: None,
                blake3: None,
            };
            if !found.is_inside(tar_bytes) {
                return Err(bad_tar(tar, std::io::Error::other(format!("`{}` is cut off", found.key))));
            }
            if is_picture(extension) {
                // A second picture of the same sample (a mask, say) is left out.
                if !by_key.contains_key(key) {
                    by_key.insert(key.to_vec(), samples.len());
                    samples.push(found);
                }
            } else if let Some(label) =
                label_in(extension, &mut entry).map_err(|source| bad_tar(tar, source))?
            {
                labels.entry(key.to_vec()).or_insert(label);
            }
        }
        for (key, label) in labels {
            if let Some(sample) = by_key.get(&key).and_then(|at| samples.get_mut(*at)) {
                sample.label = Some(label);
            }
        }
        Ok(Self { version: VERSION, tar_bytes, samples })
    }
}

/// The class in a `.cls` or `.json` entry.
fn label_in(extension: &[u8], entry: &mut impl Read) -> std::io::Result<Option<u32>> {
    if extension != b"cls" && extension != b"json" {
        return Ok(None);
    }
    let mut bytes = Vec::new();
    entry.take(LABEL_BYTES).read_to_end(&mut bytes)?;
    Ok(if extension == b"cls" {
        std::str::from_utf8(&bytes).ok().and_then(|text| text.trim().parse().ok())
    } else {
        let value: Option<serde_json::Value> = serde_json::from_slice(&bytes).ok();
        value.and_then(|v| v.get("label")?.as_u64()).and_then(|label| u32::try_from(label).ok())
    })
}

fn mismatch(tar: &Path, reason: &str) -> DatasetError {
    DatasetError::IndexMismatch { index: side_file(tar), reason: reason.to_owned() }
}

fn bad_tar(tar: &Path, source: std::io::Error) -> DatasetError {
    DatasetError::BadTar { path: tar.to_owned(), source }
}
