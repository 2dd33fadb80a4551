//! A file in memory: the one `unsafe` line of this crate.
//!
//! Left out: writing, and protection against a file that shrinks while it is mapped; shards are
//! written once and renamed into place (see `pack`), never truncated.
#![allow(unsafe_code)]

use memmap2::Mmap;
use std::fs::File;
use std::io;

/// Maps `file` for reading.
pub(super) fn map(file: &File) -> io::Result<Mmap> {
    // SAFETY: the mapping is only read, and only through byte slices, for which every bit pattern is
    // valid. What the compiler may not see is another process changing the file: changed bytes reach
    // decoders that must cope with any bytes, and the recorded hash tells; a shrunk file would raise SIGBUS, which is why
    // shards are replaced by rename and never truncated.
    unsafe { Mmap::map(file) }
}
