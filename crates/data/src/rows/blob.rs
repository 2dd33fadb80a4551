//! The bytes of a parquet file, here or in an object store, as its reader wants them.

use crate::dataset::RowBytes;
use bytes::{Buf as _, Bytes};
use parquet::errors::{ParquetError, Result};
use parquet::file::reader::{ChunkReader, Length};
use std::io::{self, Read};
use std::ops::Range;

/// Bytes taken in hand at a time where headers are read: few, since most of what follows is not.
const STRIDE: u64 = 4 << 10;

/// A parquet file's bytes.
#[derive(Debug, Clone)]
pub(super) struct Blob(pub(super) RowBytes);

impl Blob {
    /// A range; an error where the file ends before.
    pub(super) fn range(&self, range: Range<u64>) -> Result<Bytes> {
        if range.start > range.end || range.end > self.len() {
            let said =
                format!("bytes {} to {} are asked for, the file has {}", range.start, range.end, self.len());
            return Err(ParquetError::EOF(said));
        }
        match &self.0 {
            RowBytes::Here(bytes) => {
                let at = |byte| usize::try_from(byte).unwrap_or(usize::MAX);
                Ok(bytes.slice(at(range.start)..at(range.end)))
            }
            RowBytes::Away(remote, object) => {
                let read = remote.read(*object, &range);
                read.map(Bytes::from).map_err(|e| ParquetError::External(Box::new(e)))
            }
        }
    }

    /// Has a range fetched in the background, as far as there is room, where it lies in an object store.
    pub(super) fn want(&self, range: &Range<u64>) {
        if let RowBytes::Away(remote, object) = &self.0 {
            remote.want(remote.blocks_of(*object, range).take(remote.window()));
        }
    }
}

impl Length for Blob {
    fn len(&self) -> u64 {
        match &self.0 {
            RowBytes::Here(bytes) => bytes.len() as u64,
            RowBytes::Away(remote, object) => remote.len(*object),
        }
    }
}

impl ChunkReader for Blob {
    type T = BlobReader;

    fn get_read(&self, start: u64) -> Result<Self::T> {
        Ok(BlobReader { blob: self.clone(), at: start, held: Bytes::new() })
    }

    fn get_bytes(&self, start: u64, length: usize) -> Result<Bytes> {
        let end = start.checked_add(length as u64);
        self.range(start..end.unwrap_or(u64::MAX))
    }
}

/// Reads on from a place.
#[derive(Debug)]
pub(super) struct BlobReader {
    blob: Blob,
    at: u64,
    held: Bytes,
}

impl Read for BlobReader {
    fn read(&mut self, out: &mut [u8]) -> io::Result<usize> {
        if self.held.is_empty() {
            let end = self.at.saturating_add(STRIDE).min(self.blob.len());
            if self.at >= end {
                return Ok(0);
            }
            self.held = self.blob.range(self.at..end).map_err(io::Error::other)?;
            self.at = end;
        }
        let count = self.held.len().min(out.len());
        self.held.copy_to_slice(&mut out[..count]);
        Ok(count)
    }
}
