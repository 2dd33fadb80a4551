//! JPEG through libjpeg-turbo, bit-equal to Pillow: accurate integer IDCT, smooth chroma upsampling
//! (both the library's defaults), grey copied into three channels, CMYK as Pillow reads it.
//!
//! libjpeg-turbo's interface reports warnings as errors, with every pixel written. Pillow ignores
//! warnings, but refuses a file whose data runs out. So a warning is an error exactly when no end
//! marker is there; else the picture is kept and called damaged. A warning in the header keeps the
//! interface from decoding at all: then the header is rebuilt from the segments that matter.
//!
//! The library's vector code (built where nasm is found) gives the bits of its plain code for every
//! sound picture; damaged ones, with coefficients out of range, may differ between the two.

use super::{DecodeError, Format, Limits, Soundness};
use crate::picture::Picture;
use turbojpeg::{Colorspace, Decompressor, Image, PixelFormat};

/// Scans of a progressive picture after which it is taken for an attack; real ones have about 10.
const MOST_SCANS: u32 = 500;

/// What libjpeg's warnings start with (its `jerror.h`); anything else is fatal.
const WARNINGS: [&str; 7] = [
    "Corrupt JPEG data",
    "Inconsistent progression sequence",
    "Invalid SOS parameters for sequential JPEG",
    "Premature end of JPEG file",
    "Unknown Adobe color transform code",
    "Warning: unknown JFIF revision",
    "Application transferred too many scanlines",
];

/// The memory for four-channel pictures.
///
/// The decompressor itself is made anew for every picture, which takes microseconds: the library keeps
/// tables, and after an error half-read headers, so that a file without tables of its own would decode
/// by what happened to be decoded before it.
#[derive(Debug, Default)]
pub(super) struct JpegDecoder {
    cmyk: Vec<u8>,
}

fn broken(error: &turbojpeg::Error) -> DecodeError {
    let reason = match error {
        // The library found tables only, and so no size.
        turbojpeg::Error::IntegerOverflow(_) => "no frame header before the end".to_owned(),
        turbojpeg::Error::TurboJpegError(said) => said.clone(),
        other => other.to_string(),
    };
    DecodeError::Broken { format: Format::Jpeg, reason }
}

fn warning(error: &turbojpeg::Error) -> Option<&str> {
    match error {
        turbojpeg::Error::TurboJpegError(text) => {
            // Depending on its age the library puts the name of its function before the message.
            let said = text.rsplit_once("(): ").map_or(text.as_str(), |(_, said)| said);
            WARNINGS.iter().any(|w| said.starts_with(w)).then_some(said)
        }
        _ => None,
    }
}

impl JpegDecoder {
    pub(super) fn decode_into(
        &mut self,
        bytes: &[u8],
        limits: Limits,
        picture: &mut Picture,
    ) -> Result<Soundness, DecodeError> {
        let mut inner = fresh().map_err(|e| broken(&e))?;
        let refused = match inner.read_header(bytes) {
            Ok(header) => return self.pixels(&mut inner, header, bytes, limits, picture),
            Err(e) => e,
        };
        let Some(said) = warning(&refused) else { return Err(broken(&refused)) };
        let clean = rebuild_header(bytes);
        let mut inner = fresh().map_err(|e| broken(&e))?;
        let header = inner.read_header(&clean).map_err(|_| broken(&refused))?;
        self.pixels(&mut inner, header, &clean, limits, picture)?;
        Ok(Soundness::Damaged(said.to_owned()))
    }

    fn pixels(
        &mut self,
        inner: &mut Decompressor,
        header: turbojpeg::DecompressHeader,
        bytes: &[u8],
        limits: Limits,
        picture: &mut Picture,
    ) -> Result<Soundness, DecodeError> {
        let (width, height) = (header.width, header.height);
        let size = |n: usize| u32::try_from(n).unwrap_or(u32::MAX);
        limits.check(size(width), size(height))?;
        picture.reset(size(width), size(height));
        let four = matches!(header.colorspace, Colorspace::CMYK | Colorspace::YCCK);
        let (pixels, format) = if four {
            self.cmyk.resize(width * height * 4, 0);
            (self.cmyk.as_mut_slice(), PixelFormat::CMYK)
        } else {
            (picture.pixels_mut(), PixelFormat::RGB)
        };
        let pitch = width * format.size();
        let soundness = match inner.decompress(bytes, Image { pixels, width, pitch, height, format }) {
            Ok(()) => Soundness::Sound,
            Err(e) => match warning(&e) {
                None => return Err(broken(&e)),
                Some(said) if !has_end(bytes) => {
                    return Err(DecodeError::Truncated { format: Format::Jpeg, reason: said.to_owned() });
                }
                Some(said) => Soundness::Damaged(said.to_owned()),
            },
        };
        if four {
            inverted_cmyk_to_rgb(&self.cmyk, picture.pixels_mut());
        }
        Ok(soundness)
    }
}

fn fresh() -> turbojpeg::Result<Decompressor> {
    let mut inner = Decompressor::new()?;
    inner.set_scan_limit(MOST_SCANS)?;
    Ok(inner)
}

/// Pillow takes every four-channel JPEG for Adobe's inverted CMYK; then its `convert("RGB")`.
fn inverted_cmyk_to_rgb(cmyk: &[u8], rgb: &mut [u8]) {
    for (from, to) in cmyk.as_chunks::<4>().0.iter().zip(rgb.as_chunks_mut::<3>().0) {
        let white = u32::from(from[3]);
        for (out, ink) in to.iter_mut().zip(from) {
            let product = u32::from(255 - ink) * white + 128;
            let taken = ((product >> 8) + product) >> 8;
            #[expect(clippy::cast_possible_truncation, reason = "a share of a byte")]
            {
                *out = white.saturating_sub(taken) as u8;
            }
        }
    }
}

/// A marker segment of the file.
struct Segment<'a> {
    code: u8,
    /// Marker, length and payload.
    bytes: &'a [u8],
    /// Where the next segment is looked for.
    next: usize,
}

/// The segment that starts at or after `at`, garbage and fill bytes skipped.
fn segment(bytes: &[u8], mut at: usize) -> Option<Segment<'_>> {
    loop {
        let code = *bytes.get(at + 1)?;
        if bytes[at] != 0xff || code == 0 || code == 0xff {
            at += 1;
            continue;
        }
        let bare = matches!(code, 0x01 | 0xd0..=0xd9);
        let length = match bytes.get(at + 2..at + 4) {
            _ if bare => 0,
            Some(&[high, low]) => usize::from(u16::from_be_bytes([high, low])),
            _ => return None,
        };
        let next = at + 2 + length;
        return Some(Segment { code, bytes: bytes.get(at..next.min(bytes.len()))?, next });
    }
}

/// Whether an end-of-image marker closes the picture's own scans (a thumbnail's does not count).
fn has_end(bytes: &[u8]) -> bool {
    let mut at = 2;
    while let Some(found) = segment(bytes, at) {
        match found.code {
            0xd9 => return true,
            // Entropy-coded data holds no marker but restarts: the search runs over both.
            _ => at = found.next,
        }
    }
    false
}

/// The file with a header of only what decoding needs: tables, frame, and the two segments that tell
/// the colour space, in a form that raises no warning.
fn rebuild_header(bytes: &[u8]) -> Vec<u8> {
    const JFIF: &[u8] = b"\xff\xe0\x00\x10JFIF\x00\x01\x01\x00\x00\x01\x00\x01\x00\x00";
    let mut clean = vec![0xff, 0xd8];
    let (mut at, mut components) = (2, 0);
    let mut adobe: Option<Vec<u8>> = None;
    let mut body = Vec::new();
    while let Some(found) = segment(bytes, at) {
        match found.code {
            0xda => {
                let start = found.next - found.bytes.len();
                body.extend_from_slice(&bytes[start.min(bytes.len())..]);
                break;
            }
            0xe0 if found.bytes.get(4..8) == Some(b"JFIF") => clean.extend_from_slice(JFIF),
            0xee if found.bytes.get(4..9) == Some(b"Adobe") => adobe = Some(found.bytes.to_vec()),
            0xc0..=0xcf | 0xdb | 0xdd => {
                if !matches!(found.code, 0xc4 | 0xc8 | 0xcc) {
                    components = found.bytes.get(9).copied().unwrap_or(0);
                }
                body.extend_from_slice(found.bytes);
            }
            _ => {}
        }
        at = found.next;
    }
    if let Some(mut adobe) = adobe {
        // libjpeg takes an unknown transform for YCbCr or YCCK; say so.
        if let Some(transform) = adobe.get_mut(15).filter(|t| **t > 2) {
            *transform = if components == 4 { 2 } else { 1 };
        }
        clean.extend_from_slice(&adobe);
    }
    clean.extend_from_slice(&body);
    clean
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::decode::{Decoder, decode};

    fn sample() -> Vec<u8> {
        let path = concat!(env!("CARGO_MANIFEST_DIR"), "/tests/odd-inputs/ok_baseline.jpg");
        std::fs::read(path).unwrap()
    }

    #[test]
    fn the_end_marker_is_found_in_the_scan_only() {
        let whole = sample();
        assert!(has_end(&whole));
        assert!(!has_end(&whole[..whole.len() - 2]));
        assert!(!has_end(&[]));
        assert!(!has_end(b"\xff\xd8\xff"));
    }

    #[test]
    fn header_warnings_do_not_lose_the_picture() {
        let whole = sample();
        let sound = decode(&whole, Limits::default()).unwrap();
        // An unknown JFIF revision, and garbage between two segments.
        let mut revision = whole.clone();
        assert_eq!(&revision[6..10], b"JFIF");
        revision[11] = 9;
        let mut garbage = whole[..20].to_vec();
        garbage.extend_from_slice(b"garbage");
        garbage.extend_from_slice(&whole[20..]);
        for bytes in [revision, garbage] {
            let mut picture = Picture::default();
            let said = Decoder::default().decode_into(&bytes, &mut picture).unwrap();
            assert!(matches!(said, Soundness::Damaged(_)), "{said:?}");
            assert_eq!(picture, sound);
        }
    }

    #[test]
    fn every_cut_of_a_file_is_an_error_and_never_a_panic() {
        let whole = sample();
        let mut decoder = Decoder::default();
        let mut picture = Picture::default();
        for end in 0..whole.len() - 2 {
            assert!(decoder.decode_into(&whole[..end], &mut picture).is_err(), "cut at {end}");
        }
        assert_eq!(decoder.decode_into(&whole, &mut picture).unwrap(), Soundness::Sound);
    }

    #[test]
    fn a_picture_does_not_depend_on_the_one_before() {
        let whole = sample();
        // The same file without its quantisation tables.
        let (mut bare, mut at) = (whole[..2].to_vec(), 2);
        while let Some(found) = segment(&whole, at) {
            let start = found.next - found.bytes.len();
            match found.code {
                0xda => {
                    bare.extend_from_slice(&whole[start..]);
                    break;
                }
                0xdb => {}
                _ => bare.extend_from_slice(found.bytes),
            }
            at = found.next;
        }
        let alone = decode(&bare, Limits::default()).unwrap_err();
        let (mut decoder, mut picture) = (Decoder::default(), Picture::default());
        for _ in 0..2 {
            decoder.decode_into(&whole, &mut picture).unwrap();
            assert_eq!(decoder.decode_into(&bare, &mut picture).unwrap_err(), alone);
            assert_eq!(
                decoder.decode_into(&whole[..20], &mut picture).unwrap_err(),
                decode(&whole[..20], Limits::default()).unwrap_err()
            );
        }
    }

    #[test]
    fn flipped_bytes_never_panic() {
        let whole = sample();
        let mut random = mcl_types::SplitMix64::new(1);
        let (mut decoder, mut picture) = (Decoder::new(Limits { max_pixels: 1 << 20 }), Picture::default());
        for _ in 0..2000 {
            let mut bytes = whole.clone();
            for _ in 0..=random.below(4) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = random.next_u64() as u8;
            }
            let _ = decoder.decode_into(&bytes, &mut picture);
        }
    }
}
