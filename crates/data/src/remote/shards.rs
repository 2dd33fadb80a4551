//! The index of every remote shard: its side index where there is one, else what a walk of the tar finds.
//!
//! Both are kept in the cache, so that opening the same shards again only lists them. Whether the tar really has an entry
//! where a side index says is seen when it is read, and not on opening: that would cost many small requests a shard.

use super::blocks::Remote;
use super::cache::Cache;
use super::client::{Client, Object};
use super::listing::{self, Listed};
use super::{RemoteError, RemoteSpec};
use crate::dataset::{DatasetError, TarIndex, escape};
use bytes::Bytes;
use mcl_types::Digest;
use std::io::{self, Read, Seek, SeekFrom};
use std::path::Path;
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Mutex, PoisonError};

/// Shards whose indexes are read at the same time.
const AT_ONCE: usize = 8;
/// Blocks that a walk asks for ahead of where it is.
const WALK_AHEAD: u64 = 4;
/// Bytes of a side index at most: that of a shard of a few million pictures.
const LARGEST_INDEX: u64 = 1 << 30;
/// Part of a tar's folder in the cache: what a walk found.
const WALKED: &str = "walked";
/// Part of a side index's folder in the cache: its text.
const TEXT: &str = "text";

/// A shard that can be read.
pub(crate) struct OpenShard {
    /// Escaped file name.
    pub(crate) name: String,
    pub(crate) index: TarIndex,
}

/// Lists the shards at an address and reads their indexes. Shard `i` is object `i` of the [`Remote`].
pub(crate) fn open(address: &str, spec: &RemoteSpec) -> Result<(Remote, Vec<OpenShard>), DatasetError> {
    let (remote, listed) = connect(address, spec)?;
    let indexes = for_each_shard(&listed, |number, shard| index_of(&remote, number, shard))?;
    let shards = listed.iter().zip(indexes).map(|(shard, index)| {
        let name = escape(listing::name(&shard.tar).as_bytes()).into_owned();
        OpenShard { name, index }
    });
    let shards = shards.collect();
    Ok((remote, shards))
}

/// Walks every shard at an address, hashes its pictures and writes the side indexes beside them; file names and counts.
pub(crate) fn write_indexes(address: &str, spec: &RemoteSpec) -> Result<Vec<(String, u64)>, DatasetError> {
    let (remote, listed) = connect(address, spec)?;
    for_each_shard(&listed, |number, shard| {
        let url = remote.client().url(&shard.tar.path);
        let mut index = walk(&remote, number, Path::new(&url))?;
        for sample in &mut index.samples {
            let bytes = remote.read(number, &(sample.offset..sample.offset + sample.length))?;
            sample.blake3 = Some(Digest::of(&bytes));
        }
        remote.client().put(&listing::beside(&shard.tar.path), &Bytes::from(text_of(&url, &index)?))?;
        Ok((url, index.samples.len() as u64))
    })
}

fn connect(address: &str, spec: &RemoteSpec) -> Result<(Remote, Vec<Listed>), DatasetError> {
    let (client, runtime) = Client::open(address, spec)?;
    let found = listing::list(&client).map(|listed| (Cache::open(&spec.cache_dir, spec.cache_bytes), listed));
    match found {
        Ok((cache, listed)) => {
            let objects: Vec<Object> = listed.iter().map(|shard| shard.tar.clone()).collect();
            Ok((Remote::new(client, runtime, cache, spec, objects), listed))
        }
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

fn index_of(remote: &Remote, number: usize, shard: &Listed) -> Result<TarIndex, DatasetError> {
    let url = remote.client().url(&shard.tar.path);
    let (tar, size) = (Path::new(&url), shard.tar.size);
    if let Some(side) = &shard.side {
        let object = side.key(&remote.client().url(&side.path));
        let place = super::cache::Place { object, part: TEXT.to_owned() };
        if let Some(text) = remote.cache().read(&place, None) {
            return TarIndex::parse_for(tar, &text, size);
        }
        if side.size > LARGEST_INDEX {
            let reason = format!("it has {} bytes, expected at most {LARGEST_INDEX}", side.size);
            let index = remote.client().url(&side.path).into();
            return Err(DatasetError::IndexMismatch { index, reason });
        }
        let text = remote.client().get(side, 0..side.size)?;
        let index = TarIndex::parse_for(tar, &text, size)?;
        remote.cache().keep(&place, &text);
        return Ok(index);
    }
    let place = remote.place(number, WALKED);
    let kept = remote.cache().read(&place, None).and_then(|text| TarIndex::parse_for(tar, &text, size).ok());
    if let Some(index) = kept {
        return Ok(index);
    }
    tracing::info!(
        shard = url,
        "no side index: the tar is read for one; `mcl data index` writes it beside the tar"
    );
    let index = walk(remote, number, tar)?;
    remote.cache().keep(&place, &text_of(&url, &index)?);
    Ok(index)
}

fn text_of(url: &str, index: &TarIndex) -> Result<Vec<u8>, DatasetError> {
    serde_json::to_vec_pretty(index)
        .map_err(|e| DatasetError::Io { path: Path::new(url).to_owned(), source: e.into() })
}

/// Walks the headers of a tar.
fn walk(remote: &Remote, number: usize, tar: &Path) -> Result<TarIndex, DatasetError> {
    let len = remote.len(number);
    let reader = Walker { remote, number, len, at: 0, held: 0..0, bytes: Vec::new() };
    TarIndex::scan_from(tar, reader, len).map_err(|error| match &error {
        DatasetError::BadTar { source, .. } => storage_fault(source).map_or(error, DatasetError::Remote),
        _ => error,
    })
}

/// The failure of the store behind what the tar's reader says, where there is one.
fn storage_fault(error: &io::Error) -> Option<RemoteError> {
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
