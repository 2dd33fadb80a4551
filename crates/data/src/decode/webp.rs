//! Sizes that a WebP file claims inside, which its decoder believes.
//!
//! A file says its size up to three times: of the canvas, of an animation's frame, and in the frame's own bit stream. The
//! decoder takes memory by the last (found by fuzzing), so that all of them are held against the limit first.

use super::{DecodeError, Limits};

/// Name and length of a chunk.
const HEAD: usize = 8;
/// `RIFF`, a length, `WEBP`.
const FILE_HEAD: usize = 12;
/// Place, size and duration of a frame, before its own chunks.
const FRAME_HEAD: usize = 16;

/// Checks every bit stream of the file.
pub(super) fn check(bytes: &[u8], limits: Limits) -> Result<(), DecodeError> {
    for (name, body) in chunks(bytes.get(FILE_HEAD..).unwrap_or_default()) {
        check_stream(name, body, limits)?;
        if name == b"ANMF" {
            for (name, body) in chunks(body.get(FRAME_HEAD..).unwrap_or_default()) {
                check_stream(name, body, limits)?;
            }
        }
    }
    Ok(())
}

fn check_stream(name: &[u8], body: &[u8], limits: Limits) -> Result<(), DecodeError> {
    let (width, height) = match (name, body) {
        (b"VP8 ", [_, _, _, 0x9d, 0x01, 0x2a, w0, w1, h0, h1, ..]) => {
            let edge = |low: u8, high: u8| u32::from(u16::from_le_bytes([low, high]) & 0x3fff);
            (edge(*w0, *w1), edge(*h0, *h1))
        }
        (b"VP8L", [0x2f, a, b, c, d, ..]) => {
            let bits = u32::from_le_bytes([*a, *b, *c, *d]);
            ((bits & 0x3fff) + 1, (bits >> 14 & 0x3fff) + 1)
        }
        _ => return Ok(()),
    };
    limits.check(width, height)
}

/// (name, body) of each chunk; one that is cut off is given as far as it goes.
fn chunks(mut bytes: &[u8]) -> impl Iterator<Item = (&[u8], &[u8])> {
    std::iter::from_fn(move || {
        let (head, rest) = bytes.split_at_checked(HEAD)?;
        let (name, length) = head.split_at(HEAD / 2);
        let length = u32::from_le_bytes(length.try_into().ok()?) as usize;
        let body = rest.get(..length).unwrap_or(rest);
        // Chunks begin at even places.
        bytes = rest.get(length.saturating_add(length % 2)..).unwrap_or_default();
        Some((name, body))
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::decode;

    const LIMITS: Limits = Limits { max_pixels: 1 << 16 };

    fn found_by_fuzzing() -> Vec<u8> {
        let path =
            concat!(env!("CARGO_MANIFEST_DIR"), "/tests/fuzz-inputs/webp_frame_larger_than_canvas.webp");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn a_frame_that_claims_more_than_the_limit_is_refused_before_memory_is_taken() {
        // Its canvas has 60 x 40 pixels; the decoder would have taken 159 MB.
        let error = decode(&found_by_fuzzing(), LIMITS).unwrap_err();
        assert!(matches!(error, DecodeError::TooLarge { .. }), "{error}");
    }

    #[test]
    fn both_kinds_of_bit_streams_are_looked_at_wherever_they_stand() {
        let chunk = |name: &[u8; 4], body: &[u8]| {
            let mut bytes = name.to_vec();
            bytes.extend_from_slice(&u32::try_from(body.len()).unwrap().to_le_bytes());
            bytes.extend_from_slice(body);
            bytes.resize(bytes.len().next_multiple_of(2), 0);
            bytes
        };
        let lossy = |w: u16, h: u16| {
            let edges = [w.to_le_bytes(), h.to_le_bytes()].concat();
            chunk(b"VP8 ", &[&[0, 0, 0, 0x9d, 0x01, 0x2a][..], &edges, &[7]].concat())
        };
        let lossless = |w: u32, h: u32| {
            chunk(b"VP8L", &[&[0x2f][..], &((w - 1) | (h - 1) << 14).to_le_bytes()].concat())
        };
        let framed = |inner: Vec<u8>| chunk(b"ANMF", &[vec![0; FRAME_HEAD], inner].concat());
        let file = |body: Vec<u8>| [b"RIFF\0\0\0\0WEBP".to_vec(), chunk(b"EXIF", &[1, 2, 3]), body].concat();
        for (fits, body) in [
            (true, lossy(256, 256)),
            (false, lossy(256, 257)),
            (true, lossless(256, 256)),
            (false, lossless(257, 256)),
            (true, framed(lossy(256, 256))),
            (false, framed(lossless(16_384, 5))),
            (false, framed(lossy(16_383, 16_383))),
        ] {
            assert_eq!(check(&file(body), LIMITS).is_ok(), fits);
        }
        for cut in 0..found_by_fuzzing().len() {
            let _ = check(&found_by_fuzzing()[..cut], LIMITS);
        }
    }
}
