//! Where the pictures are: an image folder, a tar shard, a folder of tar shards, or such shards in an object store.
//!
//! Role: one numbered list of samples with stable ids, cut into shards, and their encoded bytes.
//! Invariants: the list is in byte order of the paths (of a tar: in its order), so the same data gives
//! the same numbers everywhere, in a folder as in a bucket; ids are lossless; the digest covers ids and lengths in order.
//! Left out: decoding, order of use, how remote bytes come and are kept (`remote`).

mod error;
mod folder;
mod mapping;
mod sample_id;
mod tar_index;

pub use error::{DatasetError, ReadError};
pub use folder::EXTENSIONS;
pub(crate) use folder::has_extension;
pub use sample_id::{escape, unescape};
pub(crate) use tar_index::SIDE_SUFFIX;
pub use tar_index::{IndexEntry, TarIndex, index, side_file};

use crate::remote::{self, BlockId, OpenShard, Remote, RemoteSpec, Traffic};
use folder::FolderList;
use mcl_types::{Digest, SampleIndex, StoreLocation};
use memmap2::Mmap;
use std::borrow::Cow;
use std::fs::{self, File};
use std::io;
use std::ops::{Deref, Range};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

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

#[derive(Debug)]
enum Kind {
    Folder(FolderList),
    Tar(Vec<TarShard>),
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
    /// Lists `source`: a folder of pictures, a `.tar`, or a folder with `.tar` shards directly in it.
    ///
    /// # Errors
    /// When nothing usable is there; see [`DatasetError`].
    pub fn open(source: &Path) -> Result<Self, DatasetError> {
        let io = |source_error| DatasetError::Io { path: source.to_owned(), source: source_error };
        let about = fs::metadata(source).map_err(io)?;
        let kind = if about.is_file() {
            if !has_extension(source, &["tar"]) {
                return Err(DatasetError::NotASource { path: source.to_owned() });
            }
            Kind::Tar(open_shards(&[source.to_owned()])?)
        } else {
            let tars = tars_in(source).map_err(io)?;
            let folder = FolderList::walk(source)?;
            match (tars.is_empty(), folder.entries.first()) {
                (true, _) => Kind::Folder(folder),
                (false, None) => Kind::Tar(open_shards(&tars)?),
                (false, Some(loose)) => {
                    let example = escape(loose.path.as_encoded_bytes()).into_owned();
                    return Err(DatasetError::Mixed { path: source.to_owned(), example });
                }
            }
        };
        Self::of(kind).ok_or_else(|| DatasetError::Empty { path: source.to_owned() })
    }

    /// The same for any place. In an object store shards are expected, and read as `spec` says.
    ///
    /// # Errors
    /// As [`Dataset::open`].
    pub fn open_at(source: &StoreLocation, spec: &RemoteSpec) -> Result<Self, DatasetError> {
        let address = match source {
            StoreLocation::Folder(path) => return Self::open(path),
            StoreLocation::Object(address) => address,
        };
        let (remote, opened) = remote::open(address, spec)?;
        let remote = Arc::new(remote);
        let mut first = 0;
        let shards = opened.into_iter().enumerate().map(|(number, OpenShard { name, index })| {
            let home = Home::Away(Arc::clone(&remote), number);
            let shard = TarShard { name, first, home, entries: index.samples };
            first += shard.entries.len() as u64;
            shard
        });
        let kind = Kind::Tar(shards.collect());
        Self::of(kind).ok_or_else(|| DatasetError::Empty { path: PathBuf::from(address) })
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
            Kind::Tar(shards) => {
                let (shard, entry) = locate(shards, sample)?;
                Some(Cow::Owned(format!("{}/{}.{}", shard.name, entry.key, entry.extension)))
            }
        }
    }

    /// The sample's class: its top folder's place among the folders, or what the shard says.
    pub fn label(&self, sample: SampleIndex) -> Option<u32> {
        match &self.kind {
            Kind::Folder(list) => list.entries.get(usize::try_from(sample.get()).ok()?)?.label,
            Kind::Tar(shards) => locate(shards, sample)?.1.label,
        }
    }

    /// Class names by label, where the folders tell them.
    pub fn classes(&self) -> Vec<String> {
        match &self.kind {
            Kind::Folder(list) => {
                list.classes.iter().map(|c| escape(c.as_encoded_bytes()).into_owned()).collect()
            }
            Kind::Tar(_) => Vec::new(),
        }
    }

    /// Length of the sample's encoded bytes as listed.
    pub fn byte_len(&self, sample: SampleIndex) -> Option<u64> {
        match &self.kind {
            Kind::Folder(list) => list.entries.get(usize::try_from(sample.get()).ok()?).map(|e| e.length),
            Kind::Tar(shards) => locate(shards, sample).map(|(_, e)| e.length),
        }
    }

    /// The hash that the shard's side file recorded for the sample, where there is one.
    pub fn recorded_hash(&self, sample: SampleIndex) -> Option<Digest> {
        match &self.kind {
            Kind::Folder(_) => None,
            Kind::Tar(shards) => locate(shards, sample)?.1.blake3,
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
                read_file(&list.root.join(&entry.path)).map(|bytes| Encoded(Bytes::Owned(bytes)))
            }
            Kind::Tar(shards) => {
                let (shard, entry) = locate(shards, sample).ok_or_else(outside)?;
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
            Kind::Tar(shards) => shards.iter().find_map(|shard| match &shard.home {
                Home::Away(remote, _) => Some(remote),
                Home::Mapped(_) => None,
            }),
            Kind::Folder(_) => None,
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
            Kind::Tar(shards) => locate(shards, sample),
            Kind::Folder(_) => None,
        };
        let found = found.and_then(|(shard, entry)| match &shard.home {
            Home::Away(remote, number) => Some(remote.blocks_of(*number, &with_header(entry))),
            Home::Mapped(_) => None,
        });
        found.into_iter().flatten()
    }

    fn id_or_number(&self, sample: SampleIndex) -> String {
        self.id(sample).map_or_else(|| format!("sample {}", sample.get()), Cow::into_owned)
    }

    /// The sample's path below the source (in its shard), as raw bytes.
    pub(crate) fn path_bytes(&self, sample: SampleIndex) -> Option<Vec<u8>> {
        match &self.kind {
            Kind::Folder(list) => {
                let entry = list.entries.get(usize::try_from(sample.get()).ok()?)?;
                Some(entry.path.as_encoded_bytes().to_vec())
            }
            Kind::Tar(shards) => {
                let (_, entry) = locate(shards, sample)?;
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
            Kind::Tar(shards) => shards
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

/// The tars directly in `folder`, in byte order of their names.
fn tars_in(folder: &Path) -> io::Result<Vec<PathBuf>> {
    let mut tars = Vec::new();
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if has_extension(&path, &["tar"]) && path.is_file() {
            tars.push(path);
        }
    }
    tars.sort_unstable_by(|a, b| a.as_os_str().as_encoded_bytes().cmp(b.as_os_str().as_encoded_bytes()));
    Ok(tars)
}

/// Writes the side index of every shard at an address of an object store; addresses of the shards, and their pictures.
///
/// # Errors
/// When a shard cannot be read, or the store does not take the index.
pub fn index_remote(address: &str, spec: &RemoteSpec) -> Result<Vec<(String, u64)>, DatasetError> {
    remote::write_indexes(address, spec)
}

fn open_shards(tars: &[PathBuf]) -> Result<Vec<TarShard>, DatasetError> {
    let mut first = 0;
    let mut shards = Vec::with_capacity(tars.len());
    for path in tars {
        let io = |source| DatasetError::Io { path: path.clone(), source };
        let map = mapping::map(&File::open(path).map_err(io)?).map_err(io)?;
        let entries = TarIndex::of(path, &map)?.samples;
        let name = path.file_name().unwrap_or(path.as_os_str());
        let name = escape(name.as_encoded_bytes()).into_owned();
        let len = entries.len() as u64;
        shards.push(TarShard { name, first, home: Home::Mapped(Arc::new(map)), entries });
        first += len;
    }
    Ok(shards)
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

fn read_file(path: &Path) -> Result<Vec<u8>, ReadError> {
    let mut waits = RETRY_WAITS.iter();
    loop {
        let source = match fs::read(path) {
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
