//! Where the pictures are: an image folder, a list of pictures, a tar shard, a folder of tar shards, or such shards in an
//! object store.
//!
//! Role: one numbered list of samples with stable ids, cut into shards, and their encoded bytes.
//! Invariants: the list is in byte order of the paths (of a tar or a list: in its order), so the same data gives
//! the same numbers everywhere, in a folder as in a bucket; ids are lossless; the digest covers ids and lengths in order.
//! Left out: decoding, order of use, how remote bytes come and are kept (`remote`).

pub(crate) mod braces;
pub(crate) mod classes;
mod error;
mod folder;
mod indexing;
mod list;
mod mapping;
mod open;
mod sample_id;
mod sight;
mod tar_index;
mod tar_walk;

pub(crate) use classes::{FILE as CLASSES_FILE, LARGEST as LARGEST_CLASSES};
pub use error::{DatasetError, ReadError};
pub use folder::EXTENSIONS;
pub(crate) use folder::has_extension;
pub use indexing::index_source;
pub(crate) use list::LARGEST as LARGEST_LIST;
pub use list::{ListError, ListFormat, Listed, PictureList};
pub(crate) use open::{How, RowBytes, RowFile, Source, tars_in};
pub use sample_id::{escape, unescape};
pub use sight::Choice;
pub(crate) use sight::{Reading, Sight, one_split};
pub(crate) use tar_index::SIDE_SUFFIX;
pub use tar_index::{IndexEntry, TarIndex, index, index_as, side_file};

use crate::remote::{BlockId, Remote, RemoteSpec, Traffic};
use folder::{FolderList, Root};
use mcl_types::{Digest, SampleIndex, SourceKind, StoreLocation};
use memmap2::Mmap;
use std::borrow::Cow;
use std::fs;
use std::io::{self, Read as _};
use std::ops::{Deref, Range};
use std::os::unix::fs::FileTypeExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

/// Extensions of files that list pictures.
pub const LIST_EXTENSIONS: [&str; 5] = ["txt", "tsv", "csv", "lst", "list"];

/// Pictures of one slice of a folder's list.
const SLICE: usize = 1024;

/// Samples that are fetched ahead for those who read all in order.
const READ_ON: u64 = 512;

/// Waits between tries of a read that failed: a busy or reconnecting file server.
const RETRY_WAITS: [Duration; 3] =
    [Duration::from_millis(20), Duration::from_millis(100), Duration::from_millis(500)];

/// Samples that lie together: a tar, or a slice of a folder's list.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct ShardInfo {
    /// File name of the tar, or the slice's number.
    pub name: String,
    /// First sample.
    pub first: u64,
    /// Number of samples.
    pub len: u64,
}

/// The encoded bytes of one sample.
#[derive(Debug, Clone)]
pub struct Encoded(Bytes);

#[derive(Debug, Clone)]
enum Bytes {
    Owned(Vec<u8>),
    Mapped(Arc<Mmap>, Range<usize>),
}

impl Deref for Encoded {
    type Target = [u8];
    fn deref(&self) -> &[u8] {
        match &self.0 {
            Bytes::Owned(bytes) => bytes,
            Bytes::Mapped(map, range) => map.get(range.clone()).unwrap_or_default(),
        }
    }
}

/// One shard.
#[derive(Debug)]
struct TarShard {
    name: String,
    first: u64,
    home: Home,
    /// When it was last written, in nanoseconds of Unix time; 0 in an object store.
    modified: i64,
    entries: Vec<IndexEntry>,
}

/// Where a shard's bytes are.
#[derive(Debug)]
enum Home {
    /// In a file of this machine.
    Mapped(Arc<Mmap>),
    /// The object of this number.
    Away(Arc<Remote>, usize),
}

/// Tar shards.
#[derive(Debug)]
pub(crate) struct Tars {
    shards: Vec<TarShard>,
    /// Class names by label, where something tells them.
    classes: Vec<Vec<u8>>,
}

#[derive(Debug)]
pub(crate) enum Kind {
    Folder(FolderList),
    Tar(Tars),
}

/// A numbered list of pictures.
#[derive(Debug)]
pub struct Dataset {
    kind: Kind,
    len: u64,
    shards: Vec<ShardInfo>,
    digest: Digest,
}

impl Dataset {
    /// Opens a source of this machine that can be read in any order: a folder of pictures, a `.tar`, a folder with `.tar`
    /// shards directly in it, names of such in braces, or a list of pictures.
    ///
    /// # Errors
    /// When nothing usable is there; see [`DatasetError`].
    pub fn open(source: &Path) -> Result<Self, DatasetError> {
        Self::open_how(&source.into(), &How::new(None, false, None))
    }

    /// The same for any place. In an object store shards are expected, and read as `spec` says.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_at(source: &StoreLocation, spec: &RemoteSpec) -> Result<Self, DatasetError> {
        Self::open_as(source, None, spec)
    }

    /// The same where it is said how the source is to be read.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_as(
        source: &StoreLocation,
        kind: Option<SourceKind>,
        spec: &RemoteSpec,
    ) -> Result<Self, DatasetError> {
        Self::open_how(source, &How::new(kind, false, Some(spec)))
    }

    fn open_how(source: &StoreLocation, how: &How<'_>) -> Result<Self, DatasetError> {
        match how.open(source)? {
            Source::Samples(kind) => Self::of_samples(kind, source),
            Source::Rows(_) => {
                let what = "is a parquet data set, whose pictures are not read one by one".to_owned();
                Err(DatasetError::PackFirst { source_name: source.to_string(), what })
            }
        }
    }

    pub(crate) fn of_samples(kind: Kind, source: &StoreLocation) -> Result<Self, DatasetError> {
        Self::of(kind).ok_or_else(|| DatasetError::Empty { path: PathBuf::from(source.to_string()) })
    }

    /// Numbers what was listed; `None` where that is nothing.
    fn of(kind: Kind) -> Option<Self> {
        let mut dataset = Self { len: 0, shards: Vec::new(), digest: Digest::from_bytes([0; 32]), kind };
        dataset.shards = dataset.cut();
        dataset.len = dataset.shards.iter().map(|s| s.len).sum();
        if dataset.len == 0 {
            return None;
        }
        dataset.digest = dataset.hash();
        Some(dataset)
    }

    /// Whether the pictures are in tars.
    pub(crate) const fn is_tar(&self) -> bool {
        matches!(self.kind, Kind::Tar(_))
    }

    /// Number of samples; never 0.
    pub const fn len(&self) -> u64 {
        self.len
    }

    /// Always false: an empty source does not open.
    pub const fn is_empty(&self) -> bool {
        self.len == 0
    }

    /// Digest of all ids and lengths in order.
    pub const fn digest(&self) -> Digest {
        self.digest
    }

    /// The shards, in order and without gaps.
    pub fn shards(&self) -> &[ShardInfo] {
        &self.shards
    }

    /// The sample's printable, lossless name: its path below the folder, or `shard.tar/path`. `None`
    /// outside the dataset.
    pub fn id(&self, sample: SampleIndex) -> Option<Cow<'_, str>> {
        match &self.kind {
            Kind::Folder(list) => {
                let entry = list.entries.get(usize::try_from(sample.get()).ok()?)?;
                Some(escape(entry.path.as_encoded_bytes()))
            }
            Kind::Tar(tars) => {
                let (shard, entry) = locate(&tars.shards, sample)?;
                Some(Cow::Owned(format!("{}/{}.{}", shard.name, entry.key, entry.extension)))
            }
        }
    }

    /// The sample's class: its top folder's place among the folders, or what the shard says.
    pub fn label(&self, sample: SampleIndex) -> Option<u32> {
        match &self.kind {
            Kind::Folder(list) => list.entries.get(usize::try_from(sample.get()).ok()?)?.label,
            Kind::Tar(tars) => locate(&tars.shards, sample)?.1.label,
        }
    }

    /// Class names by label, where something tells them.
    pub fn classes(&self) -> Vec<String> {
        self.class_names().iter().map(|name| escape(name).into_owned()).collect()
    }

    /// The same as raw bytes.
    pub(crate) fn class_names(&self) -> &[Vec<u8>] {
        match &self.kind {
            Kind::Folder(list) => &list.classes,
            Kind::Tar(tars) => &tars.classes,
        }
    }

    /// Length of the sample's encoded bytes as listed.
    pub fn byte_len(&self, sample: SampleIndex) -> Option<u64> {
        match &self.kind {
            Kind::Folder(list) => list.entries.get(usize::try_from(sample.get()).ok()?).map(|e| e.length),
            Kind::Tar(tars) => locate(&tars.shards, sample).map(|(_, e)| e.length),
        }
    }

    /// The hash that the shard's side file recorded for the sample, where there is one.
    pub fn recorded_hash(&self, sample: SampleIndex) -> Option<Digest> {
        match &self.kind {
            Kind::Folder(_) => None,
            Kind::Tar(tars) => locate(&tars.shards, sample)?.1.blake3,
        }
    }

    /// The sample's encoded bytes. A failing read is tried again a few times.
    ///
    /// # Errors
    /// See [`ReadError`].
    pub fn read(&self, sample: SampleIndex) -> Result<Encoded, ReadError> {
        let outside = || ReadError::Outside { index: sample.get(), len: self.len };
        match &self.kind {
            Kind::Folder(list) => {
                let at = usize::try_from(sample.get()).map_err(|_| outside())?;
                let entry = list.entries.get(at).ok_or_else(outside)?;
                let bytes = match &list.root {
                    Root::Here(root) => read_file(&root.join(&entry.path))?,
                    Root::Away(remote, objects) => {
                        let object = object_of(objects.as_deref(), at).ok_or_else(not_there)?;
                        let read = remote.read(object, &(0..entry.length));
                        read.map_err(|source| ReadError::Remote { id: self.id_or_number(sample), source })?
                    }
                };
                Ok(Encoded(Bytes::Owned(bytes)))
            }
            Kind::Tar(tars) => {
                let (shard, entry) = locate(&tars.shards, sample).ok_or_else(outside)?;
                let map = match &shard.home {
                    Home::Mapped(map) => map,
                    Home::Away(remote, number) => {
                        return read_remote(remote, *number, entry, || self.id_or_number(sample));
                    }
                };
                // Bounds were checked against the mapping when the shard was opened.
                #[expect(clippy::cast_possible_truncation, reason = "inside a mapping")]
                let range = entry.offset as usize..(entry.offset + entry.length) as usize;
                Ok(Encoded(Bytes::Mapped(Arc::clone(map), range)))
            }
        }
    }

    /// What reading from the object store came to, where the source is in one.
    pub fn traffic(&self) -> Option<Traffic> {
        self.remote().map(|remote| remote.traffic())
    }

    /// The object store behind the dataset, where there is one.
    pub(crate) fn remote(&self) -> Option<&Arc<Remote>> {
        match &self.kind {
            Kind::Tar(tars) => tars.shards.iter().find_map(|shard| match &shard.home {
                Home::Away(remote, _) => Some(remote),
                Home::Mapped(_) => None,
            }),
            Kind::Folder(list) => match &list.root {
                Root::Away(remote, _) => Some(remote),
                Root::Here(_) => None,
            },
        }
    }

    /// Has what reading on from `sample` will need fetched in the background, where it lies in an object store; for those
    /// who read all in order.
    pub(crate) fn read_on_from(&self, sample: SampleIndex) {
        let Some(remote) = self.remote() else { return };
        let coming = sample.get()..sample.get().saturating_add(READ_ON).min(self.len);
        remote.want(coming.flat_map(|sample| self.blocks(SampleIndex::new(sample))));
    }

    /// The remote blocks that a sample lies in.
    pub(crate) fn blocks(&self, sample: SampleIndex) -> impl Iterator<Item = BlockId> + use<> {
        let found = match &self.kind {
            Kind::Tar(tars) => locate(&tars.shards, sample).and_then(|(shard, entry)| match &shard.home {
                Home::Away(remote, number) => Some(remote.blocks_of(*number, &with_header(entry))),
                Home::Mapped(_) => None,
            }),
            Kind::Folder(list) => usize::try_from(sample.get()).ok().and_then(|at| match &list.root {
                Root::Away(remote, objects) => {
                    let object = object_of(objects.as_deref(), at)?;
                    Some(remote.blocks_of(object, &(0..list.entries.get(at)?.length)))
                }
                Root::Here(_) => None,
            }),
        };
        found.into_iter().flatten()
    }

    fn id_or_number(&self, sample: SampleIndex) -> String {
        self.id(sample).map_or_else(|| format!("sample {}", sample.get()), Cow::into_owned)
    }

    /// Tells the state of the files behind the samples: times of writing, or what an object store calls a version.
    pub(crate) fn stamp(&self, hasher: &mut blake3::Hasher) {
        let mut tell = |modified: i64, version: Option<String>| {
            hasher.update(&modified.to_le_bytes());
            hasher.update(version.unwrap_or_default().as_bytes());
        };
        match &self.kind {
            Kind::Folder(list) => {
                for (at, entry) in list.entries.iter().enumerate() {
                    let version = match &list.root {
                        Root::Away(remote, objects) => {
                            object_of(objects.as_deref(), at).map(|object| remote.version(object))
                        }
                        Root::Here(_) => None,
                    };
                    tell(entry.modified, version);
                }
            }
            Kind::Tar(tars) => {
                for shard in &tars.shards {
                    let version = match &shard.home {
                        Home::Away(remote, number) => Some(remote.version(*number)),
                        Home::Mapped(_) => None,
                    };
                    tell(shard.modified, version);
                }
            }
        }
    }

    /// The sample's path below the source (in its shard), as raw bytes.
    pub(crate) fn path_bytes(&self, sample: SampleIndex) -> Option<Vec<u8>> {
        match &self.kind {
            Kind::Folder(list) => {
                let entry = list.entries.get(usize::try_from(sample.get()).ok()?)?;
                Some(entry.path.as_encoded_bytes().to_vec())
            }
            Kind::Tar(tars) => {
                let (_, entry) = locate(&tars.shards, sample)?;
                Some(unescape(&format!("{}.{}", entry.key, entry.extension)))
            }
        }
    }

    fn cut(&self) -> Vec<ShardInfo> {
        match &self.kind {
            Kind::Folder(list) => (0_u64..)
                .zip(list.entries.chunks(SLICE))
                .map(|(i, slice)| ShardInfo {
                    name: format!("slice {i}"),
                    first: i * SLICE as u64,
                    len: slice.len() as u64,
                })
                .collect(),
            Kind::Tar(tars) => tars
                .shards
                .iter()
                .map(|s| ShardInfo { name: s.name.clone(), first: s.first, len: s.entries.len() as u64 })
                .collect(),
        }
    }

    fn hash(&self) -> Digest {
        let mut hash = blake3::Hasher::new();
        hash.update(b"mcl-dataset-1\0");
        for sample in (0..self.len).map(SampleIndex::new) {
            let id = self.id(sample).unwrap_or_default();
            hash.update(&(id.len() as u64).to_le_bytes());
            hash.update(id.as_bytes());
            hash.update(&self.byte_len(sample).unwrap_or(0).to_le_bytes());
        }
        Digest::from_bytes(*hash.finalize().as_bytes())
    }
}

/// The object of an entry; `None` where there is none.
fn object_of(objects: Option<&[Option<usize>]>, at: usize) -> Option<usize> {
    objects.map_or(Some(at), |objects| objects.get(at).copied().flatten())
}

fn not_there() -> ReadError {
    ReadError::Unavailable { source: io::Error::new(io::ErrorKind::NotFound, "no such object") }
}

fn locate(shards: &[TarShard], sample: SampleIndex) -> Option<(&TarShard, &IndexEntry)> {
    let after = shards.partition_point(|s| s.first <= sample.get());
    let shard = shards.get(after.checked_sub(1)?)?;
    let entry = shard.entries.get(usize::try_from(sample.get() - shard.first).ok()?)?;
    Some((shard, entry))
}

/// Where an entry and the header before it lie.
const fn with_header(entry: &IndexEntry) -> Range<u64> {
    entry.offset.saturating_sub(tar_index::BLOCK)..entry.offset + entry.length
}

/// An entry of a remote shard, which its header must agree to: what was compared on opening a local one.
fn read_remote(
    remote: &Remote,
    number: usize,
    entry: &IndexEntry,
    id: impl Fn() -> String,
) -> Result<Encoded, ReadError> {
    let range = with_header(entry);
    let read = |range| remote.read(number, &range).map_err(|source| ReadError::Remote { id: id(), source });
    // The header first: before it agrees, the index may claim that a picture is as long as its shard.
    if !entry.follows(&read(range.start..entry.offset)?) {
        return Err(ReadError::Misplaced { id: id() });
    }
    Ok(Encoded(Bytes::Owned(read(entry.offset..range.end)?)))
}

/// Whether the file itself is at fault, and not the storage.
fn is_unavailable(error: &io::Error) -> bool {
    /// A link that leads to itself (ELOOP), which has no stable kind.
    const LINK_LOOP: i32 = if cfg!(target_os = "linux") { 40 } else { 62 };
    matches!(
        error.kind(),
        io::ErrorKind::NotFound
            | io::ErrorKind::PermissionDenied
            | io::ErrorKind::IsADirectory
            | io::ErrorKind::NotADirectory
    ) || error.raw_os_error() == Some(LINK_LOOP)
}

/// A file, of at most [`LARGEST`](crate::intake::LARGEST) bytes: a list may name a device, which never ends.
fn read_picture(path: &Path) -> io::Result<Vec<u8>> {
    let about = fs::metadata(path)?;
    let kind = about.file_type();
    if kind.is_char_device() || kind.is_block_device() {
        return Err(io::Error::new(io::ErrorKind::IsADirectory, "a device, expected a file with a picture"));
    }
    let length = about.len().min(crate::intake::LARGEST);
    let mut bytes = Vec::with_capacity(usize::try_from(length).unwrap_or(0));
    fs::File::open(path)?.take(crate::intake::LARGEST).read_to_end(&mut bytes)?;
    Ok(bytes)
}

fn read_file(path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut waits = RETRY_WAITS.iter();
    loop {
        let source = match read_picture(path) {
            Ok(bytes) => return Ok(bytes),
            Err(e) => e,
        };
        if is_unavailable(&source) {
            return Err(ReadError::Unavailable { source });
        }
        match waits.next() {
            Some(wait) => std::thread::sleep(*wait),
            None => {
                let id = escape(path.as_os_str().as_encoded_bytes()).into_owned();
                return Err(ReadError::Io { id, tries: RETRY_WAITS.len() + 1, source });
            }
        }
    }
}
