//! A file of the local cache: bytes, and what proves that they are those bytes.
//!
//! Layout: the bytes, a BLAKE3 of every 64 KiB of them, their number (8 bytes), a mark (8 bytes). The hashes are keyed with
//! what the file is of (object, version, part), so that a file that was cut off, damaged, or put in another's place is not
//! believed. Reading a part checks the chunks that it touches: a few microseconds for a picture.

use std::fs::File;
use std::io;
use std::ops::Range;
use std::os::unix::fs::FileExt as _;

/// Bytes under one hash.
const CHUNK: u64 = 64 << 10;
const HASH: u64 = 32;
/// Ends every file; the digit is the layout's version.
const MARK: [u8; 8] = *b"mclseal1";
const FOOTER: u64 = 16;

/// What a sealed file is of.
pub(super) type Seal = [u8; 32];

/// Bytes of the file of `len` bytes.
pub(super) const fn sealed_len(len: u64) -> u64 {
    len + HASH * len.div_ceil(CHUNK) + FOOTER
}

/// What comes after `bytes` in their file.
pub(super) fn trailer(seal: &Seal, bytes: &[u8]) -> Vec<u8> {
    let mut out = Vec::new();
    for (number, chunk) in (0_u64..).zip(bytes.chunks(CHUNK as usize)) {
        out.extend_from_slice(&hash(seal, number, chunk));
    }
    out.extend_from_slice(&(bytes.len() as u64).to_le_bytes());
    out.extend_from_slice(&MARK);
    out
}

/// A part of the bytes; all of them where no `range` is given. `None` where the file is not what the seal says.
///
/// # Errors
/// When the disk does not give it.
pub(super) fn read(file: &File, seal: &Seal, range: Option<Range<u64>>) -> io::Result<Option<Vec<u8>>> {
    let Some(len) = len_of(file)? else { return Ok(None) };
    let range = range.unwrap_or(0..len);
    if range.start > range.end || range.end > len {
        return Ok(None);
    }
    let chunks = range.start / CHUNK..range.end.div_ceil(CHUNK);
    if chunks.is_empty() {
        return Ok(Some(Vec::new()));
    }
    let first = chunks.start * CHUNK;
    let mut bytes = vec![0; to_usize((chunks.end * CHUNK).min(len) - first)];
    file.read_exact_at(&mut bytes, first)?;
    let mut hashes = vec![0; to_usize(HASH * (chunks.end - chunks.start))];
    file.read_exact_at(&mut hashes, len + HASH * chunks.start)?;
    let parts = bytes.chunks(CHUNK as usize).zip(hashes.chunks(HASH as usize));
    let sound = chunks.zip(parts).all(|(number, (part, told))| hash(seal, number, part) == *told);
    if !sound {
        return Ok(None);
    }
    bytes.truncate(to_usize(range.end - first));
    bytes.drain(..to_usize(range.start - first));
    Ok(Some(bytes))
}

/// How many bytes are sealed, where the file is whole.
fn len_of(file: &File) -> io::Result<Option<u64>> {
    let found = file.metadata()?.len();
    let Some(at) = found.checked_sub(FOOTER) else { return Ok(None) };
    let mut footer = [0; FOOTER as usize];
    file.read_exact_at(&mut footer, at)?;
    let (len, mark) = footer.split_at(8);
    let len = len.try_into().map(u64::from_le_bytes).unwrap_or(u64::MAX);
    // A length beyond the file would overflow what follows.
    Ok((mark == MARK && len <= found && sealed_len(len) == found).then_some(len))
}

fn hash(seal: &Seal, number: u64, chunk: &[u8]) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new_keyed(seal);
    hasher.update(&number.to_le_bytes());
    hasher.update(chunk);
    *hasher.finalize().as_bytes()
}

/// Lengths here are those of parts of files that were read whole into memory before.
#[expect(clippy::cast_possible_truncation, reason = "no longer than what was in memory")]
const fn to_usize(len: u64) -> usize {
    len as usize
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::Write as _;

    fn file(bytes: &[u8], change: impl FnOnce(&mut Vec<u8>)) -> File {
        let mut whole = [bytes, &trailer(&[7; 32], bytes)].concat();
        assert_eq!(whole.len() as u64, sealed_len(bytes.len() as u64));
        change(&mut whole);
        let mut file = tempfile::tempfile().unwrap();
        file.write_all(&whole).unwrap();
        file
    }

    #[test]
    fn any_part_comes_back_and_nothing_else() {
        let bytes: Vec<u8> = (0..200_000_u32).map(|i| (i * 31 % 251) as u8).collect();
        let whole = file(&bytes, |_| ());
        for range in [0..0, 0..1, 65_535..65_537, 65_536..131_072, 100_000..200_000, 0..200_000] {
            let part = read(&whole, &[7; 32], Some(range.clone())).unwrap().unwrap();
            assert_eq!(part, bytes[to_usize(range.start)..to_usize(range.end)]);
        }
        assert_eq!(read(&whole, &[7; 32], None).unwrap().unwrap(), bytes);
        assert!(read(&whole, &[7; 32], Some(0..200_001)).unwrap().is_none());
        assert!(read(&whole, &[8; 32], Some(0..1)).unwrap().is_none(), "of another object");
        assert_eq!(read(&file(&[], |_| ()), &[7; 32], None).unwrap(), Some(Vec::new()));
    }

    #[test]
    fn what_is_cut_off_grown_or_changed_is_not_believed() {
        let bytes = vec![1; 100_000];
        let len = sealed_len(100_000) as usize;
        for left in [0, 15, 16, 50_000, len - 1, len + 1] {
            let cut = file(&bytes, |f| f.resize(left, 0));
            assert_eq!(read(&cut, &[7; 32], None).unwrap(), None, "{left} bytes of {len}");
        }
        // In the first byte, the last, a hash, the footer.
        for at in [0, 99_999, 100_000].into_iter().chain(len - 16..len) {
            let changed = file(&bytes, |f| f[at] ^= 0xff);
            assert_eq!(read(&changed, &[7; 32], None).unwrap(), None, "byte {at}");
        }
    }
}
