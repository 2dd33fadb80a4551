//! What the headers of a column's pages claim, before anything is decompressed or allocated for it.
//!
//! The reader of pages takes as much memory as a header says that its page has. So each header of a column is looked at
//! first: it is a Thrift struct in the compact encoding, of which few fields are of interest, and whose own reader the library
//! does not give away. What is not of the plain or the dictionary encoding is refused.

use std::ops::Range;

/// Bytes that a page may have after decompression, beyond those in proportion.
const SPARE: u64 = 4 << 20;
/// Bytes after decompression for each byte before: pictures are compressed already.
const GROWTH: u64 = 64;
/// Bytes of a header at most. Statistics in it may hold two values of the column.
pub(super) const LARGEST_HEADER: u64 = 16 << 20;
/// Structs within structs of a header.
const DEEPEST: u32 = 8;

/// A header that is no header, or claims too much.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PageError {
    /// It ends too early, or is not of the encoding.
    #[error("the header of a page at byte {at} cannot be read")]
    Header {
        /// Where it begins.
        at: u64,
    },
    /// The page is larger than its column, or would be far larger after decompression.
    #[error(
        "a page at byte {at} claims {claimed} bytes and {values} values, and {bytes} bytes are stored of it"
    )]
    Claim {
        /// Where its header begins.
        at: u64,
        /// Bytes after decompression.
        claimed: i64,
        /// Its values.
        values: i64,
        /// Bytes as stored.
        bytes: i64,
    },
    /// Values are written in a way that is not read.
    #[error(
        "a page at byte {at} has encoding {encoding}, expected plain or dictionary: write the file again, in Python `pyarrow.parquet.write_table(table, file)`"
    )]
    Encoding {
        /// Where its header begins.
        at: u64,
        /// Its number in the format.
        encoding: i64,
    },
}

/// Checks all pages in `chunk`; `read` gives bytes of the file, as many as there are of those asked for.
pub(super) fn check<E: From<PageError>>(
    chunk: Range<u64>,
    read: impl Fn(Range<u64>) -> Result<bytes::Bytes, E>,
) -> Result<(), E> {
    /// Bytes taken at first: most headers are shorter.
    const PEEK: u64 = 256;
    let mut at = chunk.start;
    while at < chunk.end {
        let mut header = None;
        let mut length = PEEK;
        while header.is_none() {
            let end = at.saturating_add(length).min(chunk.end);
            let bytes = read(at..end)?;
            header = Header::parse(&bytes);
            if header.is_none() && (end == chunk.end || length >= LARGEST_HEADER) {
                return Err(PageError::Header { at }.into());
            }
            length *= 8;
        }
        let Some(header) = header else { break };
        at = header.end_of(at, chunk.end)?;
    }
    Ok(())
}

/// The fields of interest.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
struct Header {
    /// Bytes of itself.
    length: u64,
    kind: i64,
    claimed: i64,
    stored: i64,
    /// The field that tells about the page.
    about: Option<i64>,
    values: i64,
    encoding: Option<i64>,
}

/// The number of a page that is an index, which nobody reads.
const INDEX_PAGE: i64 = 1;
/// That of a dictionary, which holds its values one by one and is made at once.
const DICTIONARY_PAGE: i64 = 2;
/// Numbers of the encodings plain, dictionary as written before, dictionary.
const ENCODINGS: [i64; 3] = [0, 2, 8];

impl Header {
    /// `None` where there is too little of it, or it is none.
    fn parse(bytes: &[u8]) -> Option<Self> {
        let mut thrift = Thrift { bytes, at: 0 };
        let mut header = Self::default();
        thrift.structure(DEEPEST, &mut |thrift, id, kind| {
            match (id, kind) {
                (1, INT) => header.kind = thrift.integer()?,
                (2, INT) => header.claimed = thrift.integer()?,
                (3, INT) => header.stored = thrift.integer()?,
                // Of a data page, of a dictionary, of a data page of the second version; it is the one that the kind says.
                (5 | 7 | 8, STRUCT) if header.about.is_none() => {
                    header.about = Some(id);
                    let encoding = if id == 8 { 4 } else { 2 };
                    thrift.structure(DEEPEST - 1, &mut |thrift, field, kind| {
                        match (field == 1, field == encoding, kind) {
                            (true, _, INT) => header.values = thrift.integer()?,
                            (_, true, INT) => header.encoding = Some(thrift.integer()?),
                            // The library reads these whatever type they are said to have.
                            (true, ..) | (_, true, _) => return None,
                            _ => thrift.skip(kind, DEEPEST - 2)?,
                        }
                        Some(())
                    })?;
                }
                (1..=3 | 5 | 7 | 8, _) => return None,
                _ => thrift.skip(kind, DEEPEST - 1)?,
            }
            Some(())
        })?;
        header.length = thrift.at as u64;
        let expected = match header.kind {
            0 => Some(5),
            DICTIONARY_PAGE => Some(7),
            3 => Some(8),
            _ => return Some(header),
        };
        (header.about == expected).then_some(header)
    }

    /// Where the next page begins.
    fn end_of(&self, at: u64, end: u64) -> Result<u64, PageError> {
        let Self { claimed, values, stored: bytes, .. } = *self;
        let claim = PageError::Claim { at, claimed, values, bytes };
        let (Ok(large), Ok(stored), Ok(count)) =
            (u64::try_from(claimed), u64::try_from(bytes), u64::try_from(values))
        else {
            return Err(claim);
        };
        let next =
            at.checked_add(self.length).and_then(|body| body.checked_add(stored)).filter(|next| *next <= end);
        if self.kind == INDEX_PAGE {
            return next.ok_or(claim);
        }
        if let Some(encoding) = self.encoding.filter(|encoding| !ENCODINGS.contains(encoding)) {
            return Err(PageError::Encoding { at, encoding });
        }
        let in_proportion = large <= SPARE.saturating_add(stored.saturating_mul(GROWTH));
        let is_possible = self.kind != DICTIONARY_PAGE || count.saturating_mul(4) <= large;
        next.filter(|_| in_proportion && is_possible).ok_or(claim)
    }
}

// Types of the compact encoding.
const TRUE: u8 = 1;
const FALSE: u8 = 2;
const BYTE: u8 = 3;
/// 16, 32 and 64 bits are written alike; those of interest have 32.
const INT: u8 = 5;
const DOUBLE: u8 = 7;
const BINARY: u8 = 8;
const LIST: u8 = 9;
const SET: u8 = 10;
const STRUCT: u8 = 12;

/// A reader of the compact encoding.
struct Thrift<'a> {
    bytes: &'a [u8],
    at: usize,
}

impl Thrift<'_> {
    fn byte(&mut self) -> Option<u8> {
        let byte = *self.bytes.get(self.at)?;
        self.at += 1;
        Some(byte)
    }

    fn number(&mut self) -> Option<u64> {
        let mut number = 0_u64;
        for shift in (0..64).step_by(7) {
            let byte = self.byte()?;
            number |= u64::from(byte & 0x7f) << shift;
            if byte < 0x80 {
                return Some(number);
            }
        }
        None
    }

    fn integer(&mut self) -> Option<i64> {
        let number = self.number()?;
        Some((number >> 1).cast_signed() ^ -(number & 1).cast_signed())
    }

    /// Goes through a struct; `field` hears the number and type of each field and takes its value.
    fn structure(
        &mut self,
        depth: u32,
        field: &mut dyn FnMut(&mut Self, i64, u8) -> Option<()>,
    ) -> Option<()> {
        depth.checked_sub(1)?;
        let mut id = 0_i64;
        loop {
            let head = self.byte()?;
            if head == 0 {
                return Some(());
            }
            let (more, kind) = (head >> 4, head & 0x0f);
            id = if more == 0 { self.integer()? } else { id.checked_add(i64::from(more))? };
            // Numbers of fields have 16 bits: others would be cut to those by who reads this next.
            i16::try_from(id).ok()?;
            field(self, id, kind)?;
        }
    }

    fn skip(&mut self, kind: u8, depth: u32) -> Option<()> {
        match kind {
            TRUE | FALSE => Some(()),
            BYTE => self.byte().map(drop),
            4..=6 => self.number().map(drop),
            DOUBLE => self.pass(8),
            BINARY => {
                let length = self.number()?;
                self.pass(usize::try_from(length).ok()?)
            }
            LIST | SET => {
                let head = self.byte()?;
                let count = if head >> 4 == 15 { self.number()? } else { u64::from(head >> 4) };
                for _ in 0..count {
                    // In a list a truth value takes a byte.
                    let kind = if matches!(head & 0x0f, TRUE | FALSE) { BYTE } else { head & 0x0f };
                    self.skip(kind, depth.checked_sub(1)?)?;
                }
                Some(())
            }
            STRUCT => {
                let depth = depth.checked_sub(1)?;
                self.structure(depth + 1, &mut |thrift, _, kind| thrift.skip(kind, depth))
            }
            _ => None,
        }
    }

    fn pass(&mut self, count: usize) -> Option<()> {
        self.at = self.at.checked_add(count).filter(|at| *at <= self.bytes.len())?;
        Some(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use bytes::Bytes;

    /// A field of 32 bits that follows the one before.
    fn int(more: u8, value: i64) -> Vec<u8> {
        let mut bytes = vec![more << 4 | INT];
        let mut rest = ((value << 1) ^ (value >> 63)).cast_unsigned();
        while rest >= 0x80 {
            bytes.push(rest as u8 | 0x80);
            rest >>= 7;
        }
        bytes.push(rest as u8);
        bytes
    }

    /// A data page (0) or dictionary (2) with its body.
    fn page(kind: i64, claimed: i64, values: i64, encoding: i64, body: &[u8]) -> Vec<u8> {
        let stored = body.len() as i64;
        let head = [int(1, kind), int(1, claimed), int(1, stored)].concat();
        let place = if kind == 2 { 4 << 4 } else { 2 << 4 };
        let inner = [int(1, values), int(1, encoding)].concat();
        [&head[..], &[place | STRUCT], &inner, &[0, 0], body].concat()
    }

    fn checked(bytes: &[u8]) -> Result<(), PageError> {
        let all = Bytes::copy_from_slice(bytes);
        check(0..bytes.len() as u64, |range| Ok(all.slice(range.start as usize..range.end as usize)))
    }

    #[test]
    fn sound_pages_pass_and_claims_do_not() {
        let sound = [page(2, 100, 25, 0, &[1; 100]), page(0, 5000, 7, 8, &[2; 300])].concat();
        assert_eq!(checked(&sound), Ok(()));
        let claims = |bytes: Vec<u8>| matches!(checked(&bytes), Err(PageError::Claim { .. }));
        assert!(claims(page(0, i64::from(i32::MAX), 7, 0, &[0; 100])), "a bomb");
        assert!(claims(page(2, 100, 26, 0, &[0; 100])), "more values than bytes for them");
        assert!(claims(page(0, -1, 7, 0, &[0; 100])));
        assert!(claims(page(0, 100, -7, 0, &[0; 100])));
        assert!(claims(sound[..sound.len() - 1].to_vec()), "the body is cut off");
        assert_eq!(checked(&page(0, 100, 7, 6, &[0; 100])), Err(PageError::Encoding { at: 0, encoding: 6 }));
    }

    #[test]
    fn headers_may_be_long_and_hold_what_nobody_knows() {
        let sound = page(0, 10, 1, 0, &[3; 10]);
        let text = [&[8 << 4 | BINARY][..], &[0xd0, 0x0f], &[b'x'; 2000]].concat();
        let list = [1 << 4 | LIST, 0x2c, 0x15, 2, 0, 0x11, 0].to_vec();
        let mut long = sound[..sound.len() - 11].to_vec();
        long.extend_from_slice(&[text, list, vec![0], vec![3; 10]].concat());
        assert_eq!(checked(&long), Ok(()));
        for length in 1..long.len() - 10 {
            let said = checked(&long[..length]);
            assert_eq!(said, Err(PageError::Header { at: 0 }), "{length}");
        }
    }

    #[test]
    fn what_the_library_would_read_in_another_way_is_no_header() {
        let refused = |bytes: &[u8]| assert_eq!(checked(bytes), Err(PageError::Header { at: 0 }));
        let sound = page(2, 100, 25, 0, &[1; 100]);
        assert_eq!(checked(&sound), Ok(()));
        // A count that is said to have 64 bits, and one whose number is cut to 16.
        let mut wide = sound.clone();
        let count = wide.iter().position(|b| *b == (4 << 4 | STRUCT)).unwrap() + 1;
        wide[count] = 1 << 4 | 6;
        refused(&wide);
        let far = [&[INT][..], &[0x84, 0x80, 0x08], &[50]].concat();
        refused(&[&far[..], &sound].concat());
        // The struct of another kind of page, before or instead of its own.
        let head = [int(1, 0), int(1, 100), int(1, 100)].concat();
        let inner = [int(1, 9), int(1, 0)].concat();
        let other = [&head[..], &[4 << 4 | STRUCT], &inner, &[0, 0], &[0; 100]].concat();
        refused(&other);
        let both = [&head[..], &[2 << 4 | STRUCT], &inner, &[0, 2 << 4 | STRUCT], &inner, &[0, 0], &[0; 100]]
            .concat();
        refused(&both);
    }

    #[test]
    fn structs_without_end_are_no_header() {
        assert_eq!(checked(&[0x1c; 10_000]), Err(PageError::Header { at: 0 }));
        assert_eq!(checked(&[0x19, 0xf9, 0xff, 0xff, 0xff, 0xff, 0x0f]), Err(PageError::Header { at: 0 }));
    }
}
