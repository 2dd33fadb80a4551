//! The bytes of one shard, and its index, made in one pass.
//!
//! WebDataset layout: `path/name.jpg` and, where there is a class, `path/name.cls`. A sample's key ends at the first dot of
//! its file name, so further dots become underscores, and a key that is taken gets a number. Owners, times and modes are
//! fixed: the same pictures give the same bytes.

use crate::dataset::{EXTENSIONS, IndexEntry, TarIndex, escape};
use crate::decode::{DecodeError, Format};
use mcl_types::Digest;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::io::{self, Write};
use std::os::unix::ffi::OsStrExt as _;

/// Bytes of a name, less those that are put after it, that are surely no more than a tar's header has room for.
const SHORT_NAME: usize = 70;
/// Tar's block.
const BLOCK: u64 = 512;

/// Where a picture goes in its shard.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Name {
    key: Vec<u8>,
    extension: Vec<u8>,
}

/// Why a picture has no place in a shard.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(super) enum NameError {
    #[error("its name leaves the folder, and would do so wherever the shard is unpacked")]
    Leaves,
    #[error("its name cannot stand in a tar: a zero byte, or a long one whose beginning is no UTF-8")]
    NoName,
    #[error("it is no picture by its name nor by its content: {0}")]
    NoPicture(#[from] DecodeError),
}

impl Name {
    /// From the path that the source has for a picture.
    pub(super) fn of(path: &[u8], content: &[u8]) -> Result<Self, NameError> {
        if path.starts_with(b"/") {
            return Err(NameError::Leaves);
        }
        if path.contains(&0) {
            return Err(NameError::NoName);
        }
        let mut clean = Vec::with_capacity(path.len());
        for part in path.split(|b| *b == b'/').filter(|part| !matches!(*part, b"" | b".")) {
            if part == b".." {
                return Err(NameError::Leaves);
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
        }
        let name = clean.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let dot = clean[name..].iter().rposition(|b| *b == b'.').map(|at| name + at);
        let told = dot.map(|dot| clean[dot + 1..].to_ascii_lowercase());
        let told = told.filter(|told| EXTENSIONS.iter().any(|known| known.as_bytes() == told.as_slice()));
        let extension = match told {
            Some(told) => {
                clean.truncate(dot.unwrap_or(clean.len()));
                told
            }
            None => extension_of(Format::of(content)?).as_bytes().to_vec(),
        };
        clean[name..].iter_mut().filter(|b| **b == b'.').for_each(|b| *b = b'_');
        // Of a long name a tar has the beginning once more, as text.
        let begins = std::str::from_utf8(&clean).map_or_else(|e| e.valid_up_to(), |text| text.len());
        if clean.len() >= SHORT_NAME && begins == 0 {
            return Err(NameError::NoName);
        }
        Ok(Self { key: clean, extension })
    }
}

const fn extension_of(format: Format) -> &'static str {
    match format {
        Format::Jpeg => "jpg",
        Format::Png => "png",
        Format::Gif => "gif",
        Format::Webp => "webp",
        Format::Bmp => "bmp",
        Format::Tiff => "tiff",
    }
}

/// Counts and hashes what passes.
struct Watched<W> {
    inner: W,
    bytes: u64,
    hash: blake3::Hasher,
}

impl<W: Write> Write for Watched<W> {
    fn write(&mut self, bytes: &[u8]) -> io::Result<usize> {
        let count = self.inner.write(bytes)?;
        self.bytes += count as u64;
        self.hash.update(&bytes[..count]);
        Ok(count)
    }

    fn flush(&mut self) -> io::Result<()> {
        self.inner.flush()
    }
}

/// A shard that is being written.
pub(super) struct Shard<W: Write> {
    tar: tar::Builder<Watched<W>>,
    keys: HashSet<Vec<u8>>,
    samples: Vec<IndexEntry>,
}

/// One that is whole.
pub(super) struct Written<W> {
    pub(super) sink: W,
    pub(super) bytes: u64,
    pub(super) hash: Digest,
    /// The text of the side index.
    pub(super) index: Vec<u8>,
}

impl<W: Write> Shard<W> {
    pub(super) fn new(sink: W) -> Self {
        let watched = Watched { inner: sink, bytes: 0, hash: blake3::Hasher::new() };
        Self { tar: tar::Builder::new(watched), keys: HashSet::new(), samples: Vec::new() }
    }

    /// Adds a picture, which is a JPEG whatever its name says where it is `shrunk`.
    pub(super) fn add(
        &mut self,
        name: Name,
        bytes: &[u8],
        shrunk: bool,
        label: Option<u32>,
    ) -> io::Result<()> {
        let key = self.unique(name.key);
        let extension = if shrunk { b"jpg".to_vec() } else { name.extension };
        self.append(&key, &extension, bytes)?;
        let length = bytes.len() as u64;
        self.samples.push(IndexEntry {
            key: escape(&key).into_owned(),
            extension: escape(&extension).into_owned(),
            offset: self.tar.get_ref().bytes - length.next_multiple_of(BLOCK),
            length,
            label,
            blake3: Some(Digest::of(bytes)),
        });
        label.map_or(Ok(()), |label| self.append(&key, b"cls", label.to_string().as_bytes()))
    }

    fn append(&mut self, key: &[u8], extension: &[u8], bytes: &[u8]) -> io::Result<()> {
        let mut header = tar::Header::new_gnu();
        header.set_size(bytes.len() as u64);
        header.set_mode(0o644);
        self.tar.append_data(&mut header, OsStr::from_bytes(&[key, b".", extension].concat()), bytes)
    }

    /// A key that nobody has in this shard.
    fn unique(&mut self, key: Vec<u8>) -> Vec<u8> {
        let mut unique = key.clone();
        let mut number = 2;
        while !self.keys.insert(unique.clone()) {
            unique = [&key, format!("_{number}").as_bytes()].concat();
            number += 1;
        }
        unique
    }

    pub(super) fn finish(self) -> io::Result<Written<W>> {
        let Watched { inner, bytes, hash } = self.tar.into_inner()?;
        let index = TarIndex::new(bytes, self.samples).to_text()?;
        Ok(Written { sink: inner, bytes, hash: Digest::from_bytes(*hash.finalize().as_bytes()), index })
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::path::Path;

    const JPEG: &[u8] = b"\xff\xd8\xff and more";

    fn shard(pictures: &[(&str, &[u8], Option<u32>)]) -> Written<Vec<u8>> {
        let mut shard = Shard::new(Vec::new());
        for (path, bytes, label) in pictures {
            shard.add(Name::of(path.as_bytes(), bytes).unwrap(), bytes, false, *label).unwrap();
        }
        shard.finish().unwrap()
    }

    #[test]
    fn the_index_is_the_one_that_a_walk_finds() {
        let long = format!("{}/x.y.png", "folder".repeat(40));
        let pictures: [(&str, &[u8], Option<u32>); 6] = [
            ("a/b.JPG", b"1", Some(7)),
            ("a/b.png", &[2; 512], None),
            (&long, &[3; 513], Some(0)),
            ("abs//./c.d.e.gif", b"", None),
            (".jpg", b"5", Some(u32::MAX)),
            ("no extension", JPEG, None),
        ];
        let written = shard(&pictures);
        assert_eq!((written.bytes, written.hash), (written.sink.len() as u64, Digest::of(&written.sink)));
        let mut walked = TarIndex::scan(Path::new("x.tar"), &written.sink).unwrap();
        for (sample, (_, bytes, _)) in walked.samples.iter_mut().zip(pictures) {
            sample.blake3 = Some(Digest::of(bytes));
        }
        assert_eq!(walked.to_text().unwrap(), written.index);
        let ids: Vec<_> = walked.samples.iter().map(|s| format!("{}.{}", s.key, s.extension)).collect();
        let long = format!("{}/x_y.png", "folder".repeat(40));
        assert_eq!(ids, ["a/b.jpg", "a/b_2.png", &long, "abs/c_d_e.gif", ".jpg", "no extension.jpg"]);
    }

    #[test]
    fn names_that_leave_and_contents_of_nothing_have_no_place() {
        for leaves in ["a/../../b.jpg", "/b.jpg"] {
            assert_eq!(Name::of(leaves.as_bytes(), JPEG), Err(NameError::Leaves));
        }
        let said = Name::of(b"notes.txt", b"hello").unwrap_err().to_string();
        assert!(said.contains("no picture by its name"), "{said}");
        assert_eq!(Name::of(b"a..b.jpg", b"").unwrap().key, b"a__b");
        assert_eq!(Name::of(b"x.\0", JPEG), Err(NameError::NoName));
        let latin = [&[0xfc][..], &[b'x'; 120], b".jpg"].concat();
        assert_eq!(Name::of(&latin, JPEG), Err(NameError::NoName));
        let later = [&[b'x'; 120][..], &[0xfc], b".jpg"].concat();
        let mut shard = Shard::new(Vec::new());
        shard.add(Name::of(&later, JPEG).unwrap(), JPEG, false, Some(1)).unwrap();
    }
}
