//! The pictures of a tar, found by walking its headers.
//!
//! As WebDataset, entries whose paths agree up to the first dot of the file name are one sample, and its picture is the first
//! one. As a plain tar, every picture is a sample. Both number the same pictures alike, as long as none is left out. Names
//! that the same tar holds twice count once. Nothing is ever unpacked to a name that a tar gives.

use super::sample_id::escape;
use super::tar_index::{VERSION, bad_tar};
use super::{DatasetError, EXTENSIONS, IndexEntry, TarIndex};
use mcl_types::SourceKind;
use std::collections::{HashMap, HashSet};
use std::io::{Read, Seek};
use std::path::Path;

/// Most of a `.cls` or `.json` entry that is read for a class: a longer one tells none.
const LABEL_BYTES: u64 = 16 << 20;

impl TarIndex {
    /// Walks the headers in the bytes of `tar`, seeking over the contents; no hashes.
    ///
    /// # Errors
    /// When they are no whole tar, or one that makes sense in two ways.
    pub fn scan(tar: &Path, map: &[u8]) -> Result<Self, DatasetError> {
        Self::scan_from(tar, std::io::Cursor::new(map), map.len() as u64, None)
    }

    /// The same as one way of reading has it.
    ///
    /// # Errors
    /// When they are no whole tar.
    pub fn scan_as(tar: &Path, map: &[u8], kind: SourceKind) -> Result<Self, DatasetError> {
        Self::scan_from(tar, std::io::Cursor::new(map), map.len() as u64, Some(kind))
    }

    /// The same for a tar of `tar_bytes` that lies anywhere.
    pub(crate) fn scan_from(
        tar: &Path,
        bytes: impl Read + Seek,
        tar_bytes: u64,
        kind: Option<SourceKind>,
    ) -> Result<Self, DatasetError> {
        let plain = kind == Some(SourceKind::Tar);
        let mut archive = tar::Archive::new(bytes);
        let entries = archive.entries_with_seek().map_err(|source| bad_tar(tar, source))?;
        let mut found = Found::default();
        for entry in entries {
            let mut entry = entry.map_err(|source| bad_tar(tar, source))?;
            if !entry.header().entry_type().is_file() {
                continue;
            }
            let path = entry.path_bytes().into_owned();
            let path = path.strip_prefix(b"./").unwrap_or(&path);
            let (key, extension) = if plain { split_last(path) } else { split_key(path) };
            let sample = IndexEntry {
                key: escape(key).into_owned(),
                extension: escape(extension).into_owned(),
                offset: entry.raw_file_position(),
                length: entry.size(),
                label: None,
                blake3: None,
            };
            if !sample.is_inside(tar_bytes) {
                return Err(bad_tar(tar, std::io::Error::other(format!("`{}` is cut off", sample.key))));
            }
            if is_picture(extension) {
                found.add(if plain { path } else { key }, key, sample);
            } else if let Some(label) =
                label_in(extension, &mut entry).map_err(|source| bad_tar(tar, source))?
            {
                found.labels.entry(key.to_vec()).or_insert(label);
            }
        }
        let left = std::mem::take(&mut found.left_out);
        let are_numbered = left.are_numbered();
        if let Some((kept, first)) = left.example {
            if kind.is_none() && are_numbered {
                return Err(DatasetError::AmbiguousTar {
                    path: tar.to_owned(),
                    kept,
                    left: first,
                    count: left.count,
                });
            }
            let (tar, left) = (tar.display(), left.count);
            tracing::warn!(%tar, left, kept, first, "pictures of the same name are one sample: the later ones are left out");
        }
        let kind = kind.filter(|_| plain);
        Ok(Self { version: VERSION, tar_bytes, kind, samples: found.labelled() })
    }
}

/// What a walk found so far.
#[derive(Default)]
struct Found {
    samples: Vec<IndexEntry>,
    /// Samples by what makes them one.
    by_name: HashMap<Vec<u8>, usize>,
    /// Samples by their keys, where those are others.
    by_key: HashMap<Vec<u8>, usize>,
    labels: HashMap<Vec<u8>, u32>,
    left_out: LeftOut,
}

/// Pictures whose sample has one already.
#[derive(Default)]
struct LeftOut {
    count: usize,
    /// How their names end after the key. Parts of samples (masks, say) end alike in each; where all end differently, it is
    /// the names that have dots in them.
    endings: HashSet<String>,
    /// The picture that was kept, and the first that was not.
    example: Option<(String, String)>,
}

impl LeftOut {
    /// Whether several names go on after the key each with a number of its own, as `a.2020.jpg` does: parts of a sample do not.
    fn are_numbered(&self) -> bool {
        let number = |ending: &String| {
            let first = ending.split('.').next().unwrap_or_default();
            !first.is_empty() && first.bytes().all(|b| b.is_ascii_digit())
        };
        self.count > 1 && self.endings.len() == self.count && self.endings.iter().all(number)
    }
}

impl Found {
    fn add(&mut self, name: &[u8], key: &[u8], sample: IndexEntry) {
        if let Some(kept) = self.by_name.get(name).and_then(|at| self.samples.get(*at)) {
            let shown = |entry: &IndexEntry| format!("{}.{}", entry.key, entry.extension);
            self.left_out.example.get_or_insert_with(|| (shown(kept), shown(&sample)));
            self.left_out.count += 1;
            self.left_out.endings.insert(sample.extension);
            return;
        }
        self.by_name.insert(name.to_vec(), self.samples.len());
        if name != key {
            self.by_key.entry(key.to_vec()).or_insert(self.samples.len());
        }
        self.samples.push(sample);
    }

    fn labelled(mut self) -> Vec<IndexEntry> {
        let by_key = if self.by_key.is_empty() { &self.by_name } else { &self.by_key };
        for (key, label) in self.labels {
            if let Some(sample) = by_key.get(&key).and_then(|at| self.samples.get_mut(*at)) {
                sample.label = Some(label);
            }
        }
        self.samples
    }
}

/// Key and extension of an entry's path: cut at the first dot of the file name.
fn split_key(path: &[u8]) -> (&[u8], &[u8]) {
    let name = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    match path[name..].iter().position(|b| *b == b'.') {
        Some(dot) => (&path[..name + dot], &path[name + dot + 1..]),
        None => (path, &[]),
    }
}

/// The same cut at the last dot.
fn split_last(path: &[u8]) -> (&[u8], &[u8]) {
    let name = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
    match path[name..].iter().rposition(|b| *b == b'.') {
        Some(dot) => (&path[..name + dot], &path[name + dot + 1..]),
        None => (path, &[]),
    }
}

/// Whether the last part of `extension` is that of a picture.
fn is_picture(extension: &[u8]) -> bool {
    let last = extension.rsplit(|b| *b == b'.').next().unwrap_or(extension);
    EXTENSIONS.iter().any(|e| last.eq_ignore_ascii_case(e.as_bytes()))
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

#[cfg(test)]
mod tests {
    use super::*;

    fn tar(names: &[&str]) -> Vec<u8> {
        let mut builder = tar::Builder::new(Vec::new());
        for name in names {
            let mut header = tar::Header::new_gnu();
            header.set_size(1);
            // As written: the library refuses names that leave the folder.
            header.as_gnu_mut().unwrap().name[..name.len()].copy_from_slice(name.as_bytes());
            header.set_cksum();
            builder.append(&header, &b"1"[..]).unwrap();
        }
        builder.into_inner().unwrap()
    }

    fn read(names: &[&str], kind: Option<SourceKind>) -> Result<Vec<(String, Option<u32>)>, String> {
        let bytes = tar(names);
        let scan =
            TarIndex::scan_from(Path::new("x.tar"), std::io::Cursor::new(&bytes), bytes.len() as u64, kind);
        let id = |s: &IndexEntry| (format!("{}.{}", s.key, s.extension), s.label);
        scan.map(|index| index.samples.iter().map(id).collect()).map_err(|e| e.to_string())
    }

    fn ids(names: &[&str], kind: Option<SourceKind>) -> Vec<String> {
        read(names, kind).unwrap().into_iter().map(|(id, _)| id).collect()
    }

    #[test]
    fn both_readings_number_the_same_pictures_alike() {
        let names = ["./b/one.jpg", "a/two.png", "/abs/three.gif", "../out/four.jpg", "notes.txt"];
        let expected = ["b/one.jpg", "a/two.png", "/abs/three.gif", "../out/four.jpg"];
        assert_eq!(ids(&names, None), expected);
        assert_eq!(ids(&names, Some(SourceKind::Tar)), expected);
    }

    #[test]
    fn masks_are_parts_of_a_sample_and_dots_in_names_have_to_be_decided() {
        let masks = ["1.jpg", "1.seg.png", "2.jpg", "2.seg.png"];
        assert_eq!(ids(&masks, None), ["1.jpg", "2.jpg"]);
        assert_eq!(ids(&masks, Some(SourceKind::Tar)), masks);
        let dots = ["a.2019.jpg", "a.2020.jpg", "a.2021.jpg"];
        let said = read(&dots, None).unwrap_err();
        for word in ["x.tar", "`a.2019.jpg`", "`a.2020.jpg`", "2 pictures", "--kind webdataset", "--kind tar"]
        {
            assert!(said.contains(word), "{word}: {said}");
        }
        assert_eq!(ids(&dots, Some(SourceKind::WebDataset)), ["a.2019.jpg"]);
        assert_eq!(ids(&dots, Some(SourceKind::Tar)), dots);
    }

    #[test]
    fn names_that_come_twice_count_once() {
        for kind in [None, Some(SourceKind::Tar)] {
            assert_eq!(ids(&["a.jpg", "b.jpg", "a.jpg", "b.jpg", "b.jpg"], kind), ["a.jpg", "b.jpg"]);
        }
    }

    #[test]
    fn a_plain_tar_may_have_labels_beside_its_pictures() {
        let found = read(&["x.1.jpg", "x.1.cls", "x.2.jpg"], Some(SourceKind::Tar)).unwrap();
        assert_eq!(found, [("x.1.jpg".to_owned(), Some(1)), ("x.2.jpg".to_owned(), None)]);
    }
}
