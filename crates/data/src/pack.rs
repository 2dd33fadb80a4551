//! Loose pictures into tar shards with side indexes.
//!
//! WebDataset layout: `path/name.jpg` and, where there is a class, `path/name.cls`. A sample's key ends at the first dot of
//! its file name, so further dots become underscores, and a key that is taken gets a number. The
//! same pictures give the same bytes: owners, times and modes are fixed.
//!
//! Pictures may be shrunk on the way: decoding a large picture is most of what loading costs, and crops of a training
//! view need no more than about its size. A picture that does not decode is packed as it is; the loader will say so.
//!
//! Left out: reordering.

use crate::crop::shrink_to;
use crate::dataset::{Dataset, DatasetError, ReadError, index};
use crate::decode::{Decoder, Limits};
use crate::generate::{PictureFormat, encode};
use crate::picture::Picture;
use mcl_types::SampleIndex;
use std::collections::HashSet;
use std::ffi::OsStr;
use std::fs::{self, File};
use std::io::{self, BufWriter, Write as _};
use std::os::unix::ffi::OsStrExt as _;
use std::path::{Path, PathBuf};

/// Samples between two looks ahead, where they come from an object store; those fetched ahead are more.
const READ_ON_EVERY: u64 = 64;

/// How to pack.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct PackSpec {
    /// Pictures of one shard; the last may hold fewer.
    pub samples_per_shard: u64,
    /// Store pictures smaller than they are.
    pub shrink: Option<Shrink>,
}

/// How pictures are shrunk. One whose shorter side is no longer than that already is packed as it is.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Shrink {
    /// The shorter side afterwards, in pixels; at least 1.
    pub short_side: u32,
    /// Quality of the JPEG that is stored, 1 to 100.
    pub quality: u8,
}

/// What was packed.
#[derive(Debug, Clone, PartialEq, Eq, serde::Serialize)]
pub struct PackReport {
    /// Pictures packed.
    pub samples: u64,
    /// Their bytes, as packed.
    pub bytes: u64,
    /// Pictures that were shrunk.
    pub shrunk: u64,
    /// The shards.
    pub shards: Vec<PathBuf>,
    /// Ids that could not be opened, with reasons.
    pub skipped: Vec<(String, String)>,
}

/// Packing that stopped.
#[derive(Debug, thiserror::Error)]
pub enum PackError {
    /// The source, or a shard just written.
    #[error(transparent)]
    Dataset(#[from] DatasetError),
    /// A picture that cannot be read.
    #[error(transparent)]
    Read(#[from] ReadError),
    /// The target cannot be written.
    #[error("{}: {source}", path.display())]
    Write {
        /// Which file.
        path: PathBuf,
        /// Why.
        source: io::Error,
    },
    /// The target holds shards already.
    #[error("{} holds .tar files already: expected a new or empty folder", path.display())]
    NotEmpty {
        /// The target.
        path: PathBuf,
    },
    /// A shard of nothing, or pictures of nothing.
    #[error("{what} is {found}: expected {expected}")]
    Spec {
        /// Which number.
        what: &'static str,
        /// What it is.
        found: u64,
        /// What it may be.
        expected: &'static str,
    },
}

/// Packs `source` into `out`; `progress` hears (pictures done, pictures in all).
///
/// # Errors
/// See [`PackError`]. A shard appears under its name only when it is complete.
pub fn pack(
    source: &Path,
    out: &Path,
    spec: PackSpec,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PackReport, PackError> {
    spec.validate()?;
    pack_dataset(&Dataset::open(source)?, out, spec, progress)
}

/// The same for pictures that are listed already.
///
/// # Errors
/// As [`pack`].
pub fn pack_dataset(
    dataset: &Dataset,
    out: &Path,
    spec: PackSpec,
    progress: &mut dyn FnMut(u64, u64),
) -> Result<PackReport, PackError> {
    spec.validate()?;
    prepare(out)?;
    let mut shrinker = spec.shrink.map(Shrinker::new);
    let mut report = PackReport { samples: 0, bytes: 0, shrunk: 0, shards: Vec::new(), skipped: Vec::new() };
    let mut shard: Option<Shard> = None;
    for sample in (0..dataset.len()).map(SampleIndex::new) {
        if sample.get().is_multiple_of(READ_ON_EVERY) {
            dataset.read_on_from(sample);
        }
        match dataset.read(sample) {
            Ok(bytes) => {
                let open = match shard.take() {
                    Some(open) => open,
                    None => Shard::create(out, report.shards.len())?,
                };
                let path = dataset.path_bytes(sample).unwrap_or_default();
                let small = shrinker.as_mut().and_then(|shrinker| shrinker.shrink(&bytes));
                let bytes: &[u8] = small.as_deref().unwrap_or(&bytes);
                let open = open.add(&path, bytes, small.is_some(), dataset.label(sample))?;
                report.samples += 1;
                report.shrunk += u64::from(small.is_some());
                report.bytes += bytes.len() as u64;
                if open.samples == spec.samples_per_shard {
                    report.shards.push(open.finish()?);
                } else {
                    shard = Some(open);
                }
            }
            Err(e) if e.is_undecodable() => {
                let id = dataset.id(sample).unwrap_or_default().into_owned();
                tracing::warn!(id, reason = %e, "picture left out");
                report.skipped.push((id, e.to_string()));
            }
            Err(e) => return Err(e.into()),
        }
        progress(sample.get() + 1, dataset.len());
    }
    if let Some(open) = shard {
        report.shards.push(open.finish()?);
    }
    Ok(report)
}

impl PackSpec {
    fn validate(&self) -> Result<(), PackError> {
        let side = self.shrink.map_or(1, |s| u64::from(s.short_side));
        let quality = self.shrink.map_or(1, |s| u64::from(s.quality));
        for (what, found, most, expected) in [
            ("samples per shard", self.samples_per_shard, u64::MAX, "at least 1"),
            ("the shorter side", side, u64::from(u16::MAX), "1 to 65535 pixels"),
            ("the quality", quality, 100, "1 to 100"),
        ] {
            if !(1..=most).contains(&found) {
                return Err(PackError::Spec { what, found, expected });
            }
        }
        Ok(())
    }
}

/// Decodes, shrinks and encodes; keeps its memory between pictures.
struct Shrinker {
    how: Shrink,
    decoder: Decoder,
    picture: Picture,
}

impl Shrinker {
    fn new(how: Shrink) -> Self {
        Self { how, decoder: Decoder::new(Limits::default()), picture: Picture::default() }
    }

    /// The smaller file; `None` where the picture is small enough or cannot be shrunk.
    fn shrink(&mut self, bytes: &[u8]) -> Option<Vec<u8>> {
        self.decoder.decode_into(bytes, &mut self.picture).ok()?;
        let small = shrink_to(&self.picture, self.how.short_side)?;
        encode(&small, PictureFormat::Jpeg(self.how.quality)).ok()
    }
}

fn write_error(path: &Path, source: io::Error) -> PackError {
    PackError::Write { path: path.to_owned(), source }
}

fn prepare(out: &Path) -> Result<(), PackError> {
    fs::create_dir_all(out).map_err(|e| write_error(out, e))?;
    for entry in fs::read_dir(out).map_err(|e| write_error(out, e))? {
        let path = entry.map_err(|e| write_error(out, e))?.path();
        if path.extension().is_some_and(|e| e.eq_ignore_ascii_case("tar")) {
            return Err(PackError::NotEmpty { path: out.to_owned() });
        }
    }
    Ok(())
}

/// The shard being written.
struct Shard {
    path: PathBuf,
    partial: PathBuf,
    tar: tar::Builder<BufWriter<File>>,
    keys: HashSet<Vec<u8>>,
    samples: u64,
}

impl Shard {
    fn create(out: &Path, number: usize) -> Result<Self, PackError> {
        let path = out.join(format!("shard-{number:06}.tar"));
        let partial = out.join(format!("shard-{number:06}.tar.partial"));
        let file = File::create(&partial).map_err(|e| write_error(&partial, e))?;
        let tar = tar::Builder::new(BufWriter::with_capacity(1 << 20, file));
        Ok(Self { path, partial, tar, keys: HashSet::new(), samples: 0 })
    }

    /// Adds a picture, which is a JPEG whatever its name says where it is `shrunk`.
    fn add(mut self, path: &[u8], bytes: &[u8], shrunk: bool, label: Option<u32>) -> Result<Self, PackError> {
        let (key, extension) = self.name(path);
        let extension = if shrunk { b"jpg".to_vec() } else { extension };
        let mut append = |extension: &[u8], bytes: &[u8]| {
            let mut header = tar::Header::new_gnu();
            header.set_size(bytes.len() as u64);
            header.set_mode(0o644);
            let name = [&key, &b"."[..], extension].concat();
            self.tar.append_data(&mut header, OsStr::from_bytes(&name), bytes)
        };
        let result = append(&extension, bytes)
            .and_then(|()| label.map_or(Ok(()), |label| append(b"cls", label.to_string().as_bytes())));
        result.map_err(|e| write_error(&self.partial, e))?;
        self.samples += 1;
        Ok(self)
    }

    /// A key that nobody has in this shard, and the extension.
    fn name(&mut self, path: &[u8]) -> (Vec<u8>, Vec<u8>) {
        let name = path.iter().rposition(|b| *b == b'/').map_or(0, |at| at + 1);
        let dot = path[name..].iter().rposition(|b| *b == b'.').map_or(path.len(), |at| name + at);
        let mut key = path[..dot].to_vec();
        key[name..].iter_mut().filter(|b| **b == b'.').for_each(|b| *b = b'_');
        let extension = path.get(dot + 1..).unwrap_or_default().to_ascii_lowercase();
        let mut unique = key.clone();
        let mut number = 2;
        while !self.keys.insert(unique.clone()) {
            unique = [&key, format!("_{number}").as_bytes()].concat();
            number += 1;
        }
        (unique, extension)
    }

    fn finish(self) -> Result<PathBuf, PackError> {
        let Self { path, partial, tar, .. } = self;
        let written = tar.into_inner().and_then(|mut buffer| {
            buffer.flush()?;
            buffer.get_ref().sync_all()
        });
        written.and_then(|()| fs::rename(&partial, &path)).map_err(|e| write_error(&partial, e))?;
        index(&path)?;
        Ok(path)
    }
}
