//! The index of every remote shard: its side index where there is one, else what a walk of the tar finds.
//!
//! Both are kept in the cache, so that opening the same shards again only lists them. Whether the tar really has an entry
//! where a side index says is seen when it is read, and not on opening: that would cost many small requests a shard.

use super::blocks::Remote;
use super::cache::{Cache, walked_part};
use super::client::{Client, Object};
use super::listing::{self, Below, Listed, Listing};
use super::{RemoteError, RemoteSpec};
use crate::dataset::{DatasetError, LARGEST_LIST, TarIndex, braces, escape};
use bytes::Bytes;
use mcl_types::{Digest, SourceKind};
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};
use tokio::runtime::Runtime;

/// Shards whose indexes are read at the same time.
const AT_ONCE: usize = 8;
/// Blocks that a walk asks for ahead of where it is.
const WALK_AHEAD: u64 = 4;
/// Bytes of a side index at most: that of a shard of a few million pictures.
const LARGEST_INDEX: u64 = 1 << 30;
/// Part of a side index's folder in the cache: its text.
const TEXT: &str = "text";

/// A shard that can be read.
pub(crate) struct OpenShard {
    /// Escaped file name.
    pub(crate) name: String,
    pub(crate) index: TarIndex,
}

/// What is at an address. Object `i` of the [`Remote`] is shard, picture or file `i`.
pub(crate) enum Away {
    /// Tar shards, and the names of their classes as they stand in their file.
    Shards(Remote, Vec<OpenShard>, Vec<u8>),
    /// Loose pictures: paths and bytes, in byte order.
    Loose(Remote, Vec<(String, u64)>),
    /// A list of pictures: its text, and what is in its folder, as of loose pictures.
    List(Remote, Vec<u8>, Vec<(String, u64)>),
    /// Parquet files, by their paths.
    Rows(Remote, Vec<String>),
}

/// Looks at an address, and reads the indexes of shards; loose pictures and lists only for whoever is `packing`.
pub(crate) fn look(
    address: &str,
    spec: &RemoteSpec,
    kind: Option<SourceKind>,
    packing: bool,
) -> Result<Away, DatasetError> {
    let (client, runtime, listing) = connect(address, spec, kind, packing)?;
    let cache = Cache::open(&spec.cache_dir, spec.cache_bytes);
    let remote = |client, objects| Remote::new(client, runtime, cache, spec, objects);
    let of = |below: &[Below]| below.iter().map(|(_, object)| object.clone()).collect::<Vec<_>>();
    let paths =
        |below: Vec<Below>| below.into_iter().map(|(path, object)| (path, object.size)).collect::<Vec<_>>();
    Ok(match listing {
        Listing::Shards(listed, classes) => {
            let remote = remote(client, listed.iter().map(|shard| shard.tar.clone()).collect());
            let names = small(&remote, classes.as_ref(), crate::dataset::LARGEST_CLASSES)?;
            let indexes = for_each_shard(&listed, |number, shard| index_of(&remote, number, shard, kind))?;
            let shards = listed.iter().zip(indexes).map(|(shard, index)| {
                let name = escape(shard.name.as_bytes()).into_owned();
                OpenShard { name, index }
            });
            let shards = shards.collect();
            Away::Shards(remote, shards, names)
        }
        Listing::Loose(found) => Away::Loose(remote(client, of(&found)), paths(found)),
        Listing::List(list, inside) => {
            let (path, bytes) = (client.url(&list.path).into(), list.size);
            let remote = remote(client, of(&inside));
            if bytes > LARGEST_LIST {
                return Err(DatasetError::ListTooLarge { path, bytes, most: LARGEST_LIST });
            }
            let text = small(&remote, Some(&list), LARGEST_LIST)?;
            Away::List(remote, text, paths(inside))
        }
        Listing::Rows(found) => {
            let remote = remote(client, of(&found));
            Away::Rows(remote, paths(found).into_iter().map(|(path, _)| path).collect())
        }
    })
}

/// A whole object that is no larger than `most`; nothing where there is none.
fn small(remote: &Remote, object: Option<&Object>, most: u64) -> Result<Vec<u8>, RemoteError> {
    let Some(object) = object.filter(|object| object.size <= most) else { return Ok(Vec::new()) };
    Ok(remote.client().get(object, 0..object.size)?.to_vec())
}

/// Walks every shard at an address, hashes its pictures and writes the side indexes beside them; addresses and counts.
pub(crate) fn write_indexes(
    address: &str,
    spec: &RemoteSpec,
    kind: Option<SourceKind>,
    progress: &(dyn Fn(u64, u64) + Sync),
) -> Result<Vec<(String, u64)>, DatasetError> {
    let (client, runtime, listing) = connect(address, spec, kind, false)?;
    let Listing::Shards(listed, _) = listing else {
        runtime.shutdown_background();
        return Err(DatasetError::NoShards {
            address: address.to_owned(),
            found: "other files are".to_owned(),
        });
    };
    let objects = listed.iter().map(|shard| shard.tar.clone()).collect();
    let cache = Cache::open(&spec.cache_dir, spec.cache_bytes);
    let remote = Remote::new(client, runtime, cache, spec, objects);
    let done = AtomicU64::new(0);
    let tell = |more| progress(done.fetch_add(more, Ordering::Relaxed) + more, listed.len() as u64);
    tell(0);
    for_each_shard(&listed, |number, shard| {
        let url = remote.client().url(&shard.tar.path);
        let mut index = walk(&remote, number, Path::new(&url), kind)?;
        for sample in &mut index.samples {
            let bytes = remote.read(number, &(sample.offset..sample.offset + sample.length))?;
            sample.blake3 = Some(Digest::of(&bytes));
        }
        remote.client().put(&listing::beside(&shard.tar.path), &Bytes::from(text_of(&url, &index)?))?;
        tell(1);
        Ok((url, index.samples.len() as u64))
    })
}

/// The client of an address, or of the folder of several names in braces, and what is there.
fn connect(
    address: &str,
    spec: &RemoteSpec,
    kind: Option<SourceKind>,
    packing: bool,
) -> Result<(Client, Runtime, Listing), DatasetError> {
    // What is no group of names may be part of a name, as in a folder that is called by a GUID.
    let names = match braces::below(address) {
        Err(DatasetError::Braces { source: braces::BracesError::Group { .. }, .. }) => None,
        names => names?,
    };
    let (folder, names) = names.map_or((address, None), |(folder, names)| (folder, Some(names)));
    let (client, runtime) = Client::open(folder, spec)?;
    let found = match &names {
        Some(names) => listing::named(&client, names, address),
        None => listing::list(&client, kind, packing),
    };
    match found {
        Ok(listing) => Ok((client, runtime, listing)),
        Err(error) => {
            // Not dropped: that waits, which is not allowed inside another runtime.
            runtime.shutdown_background();
            Err(error)
        }
    }
}

/// `work` on every shard, some at a time; the results in order, or the error of the first shard that has one.
fn for_each_shard<T: Send>(
    listed: &[Listed],
    work: impl Fn(usize, &Listed) -> Result<T, DatasetError> + Sync,
) -> Result<Vec<T>, DatasetError> {
    let next = AtomicUsize::new(0);
    let done: Mutex<Vec<(usize, Result<T, DatasetError>)>> = Mutex::default();
    std::thread::scope(|scope| {
        for _ in 0..AT_ONCE.min(listed.len()) {
            scope.spawn(|| {
                loop {
                    let number = next.fetch_add(1, Ordering::Relaxed);
                    let Some(shard) = listed.get(number) else { break };
                    let result = work(number, shard);
                    if result.is_err() {
                        // Nobody begins another one.
                        next.store(listed.len(), Ordering::Relaxed);
                    }
                    done.lock().unwrap_or_else(PoisonError::into_inner).push((number, result));
                }
            });
        }
    });
    let mut done = done.into_inner().unwrap_or_else(PoisonError::into_inner);
    done.sort_by_key(|(number, _)| *number);
    done.into_iter().map(|(_, result)| result).collect()
}

fn index_of(
    remote: &Remote,
    number: usize,
    shard: &Listed,
    kind: Option<SourceKind>,
) -> Result<TarIndex, DatasetError> {
    let url = remote.client().url(&shard.tar.path);
    let (tar, size) = (Path::new(&url), shard.tar.size);
    if let Some(side) = &shard.side
        && let Some(index) = side_index(remote, side, tar, size, kind)?
    {
        return Ok(index);
    }
    let place = remote.place(number, &walked_part(kind));
    let kept = remote.cache().read(&place, None).and_then(|text| TarIndex::parse_for(tar, &text, size).ok());
    if let Some(index) = kept {
        return Ok(index);
    }
    tracing::info!(
        shard = url,
        "no side index: the tar is read for one; `mcl data index` writes it beside the tar"
    );
    let index = walk(remote, number, tar, kind)?;
    remote.cache().keep(&place, &text_of(&url, &index)?);
    Ok(index)
}

/// What a side index says, where it was made for this way of reading.
fn side_index(
    remote: &Remote,
    side: &Object,
    tar: &Path,
    size: u64,
    kind: Option<SourceKind>,
) -> Result<Option<TarIndex>, DatasetError> {
    let object = side.key(&remote.client().url(&side.path));
    let place = super::cache::Place { object, part: TEXT.to_owned() };
    if let Some(text) = remote.cache().read(&place, None) {
        return Ok(Some(TarIndex::parse_for(tar, &text, size)?).filter(|index| index.is_for(kind)));
    }
    if side.size > LARGEST_INDEX {
        let reason = format!("it has {} bytes, expected at most {LARGEST_INDEX}", side.size);
        let index = remote.client().url(&side.path).into();
        return Err(DatasetError::IndexMismatch { index, reason });
    }
    let text = remote.client().get(side, 0..side.size)?;
    let index = TarIndex::parse_for(tar, &text, size)?;
    remote.cache().keep(&place, &text);
    Ok(Some(index).filter(|index| index.is_for(kind)))
}

fn text_of(url: &str, index: &TarIndex) -> Result<Vec<u8>, DatasetError> {
    index.to_text().map_err(|source| DatasetError::Io { path: Path::new(url).to_owned(), source })
}

/// Walks the headers of a tar.
fn walk(
    remote: &Remote,
    number: usize,
    tar: &Path,
    kind: Option<SourceKind>,
) -> Result<TarIndex, DatasetError> {
    let len = remote.len(number);
    let reader = Walker { remote, number, len, at: 0, held: 0..0, bytes: Vec::new() };
    TarIndex::scan_from(tar, reader, len, kind).map_err(|error| match &error {
        DatasetError::BadTar { source, .. } => storage_fault(source).map_or(error, DatasetError::Remote),
        _ => error,
    })
}

/// The failure of the store behind what the tar's reader says, where there is one.
pub(crate) fn storage_fault(error: &io::Error) -> Option<RemoteError> {
    let mut next: Option<&(dyn std::error::Error + 'static)> = Some(error);
    while let Some(error) = next {
        if let Some(found) = error.downcast_ref::<RemoteError>() {
            return Some(found.clone());
        }
        let inner = error.downcast_ref::<io::Error>().and_then(io::Error::get_ref);
        next = match inner {
            Some(inner) => Some(inner),
            None => error.source(),
        };
    }
    None
}

/// A remote tar as something to walk.
struct Walker<'a> {
    remote: &'a Remote,
    number: usize,
    len: u64,
    at: u64,
    /// Where the bytes in hand lie.
    held: std::ops::Range<u64>,
    bytes: Vec<u8>,
}

/// Bytes taken in hand at a time: a few headers of small pictures.
const STRIDE: u64 = 256 << 10;

impl Read for Walker<'_> {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.at >= self.len || out.is_empty() {
            return Ok(0);
        }
        if !self.held.contains(&self.at) {
            let range = self.at..(self.at + STRIDE).min(self.len);
            let ahead = self.remote.blocks_of(self.number, &(self.at..self.len));
            self.remote.want(ahead.skip(1).take(WALK_AHEAD as usize));
            self.bytes = self.remote.read(self.number, &range).map_err(io::Error::other)?;
            self.held = range;
        }
        let skip = usize::try_from(self.at - self.held.start).unwrap_or(usize::MAX);
        let ready = self.bytes.get(skip..).unwrap_or_default();
        let count = ready.len().min(out.len());
        out[..count].copy_from_slice(&ready[..count]);
        self.at += count as u64;
        Ok(count)
    }
}

impl Seek for Walker<'_> {
    fn seek(&mut self, to: SeekFrom) -> io::Result<u64> {
        let at = match to {
            SeekFrom::Start(at) => Some(at),
            SeekFrom::End(by) => self.len.checked_add_signed(by),
            SeekFrom::Current(by) => self.at.checked_add_signed(by),
        };
        self.at = at.ok_or_else(|| io::Error::from(io::ErrorKind::InvalidInput))?;
        Ok(self.at)
    }
}
