//! Encoded bytes into a [`Picture`], as Pillow's `Image.open(...).convert("RGB")` would.
//!
//! JPEG goes through libjpeg-turbo with Pillow's settings and is bit-equal to it; PNG, GIF, WebP, BMP
//! and TIFF go through the `image` crate. What a file is, is read from its first bytes, never from its
//! name. Animations give their first frame, alpha is dropped, 16-bit samples keep their high byte,
//! EXIF orientation is ignored; all but one as Pillow does (which saturates 16-bit grey).
//!
//! Invariants: the pixel limit is checked against the header, before memory is taken; no content makes
//! this panic or abort (a panic inside a decoder becomes an error).

mod jpeg;
mod raster;
mod sniff;
mod webp;

pub use sniff::Format;

use crate::picture::Picture;
use std::panic::{AssertUnwindSafe, catch_unwind};

/// Pillow's own limit for refusing a "decompression bomb", twice its warning limit of 1 GiB / 4 / 3.
pub const DEFAULT_MAX_PIXELS: u64 = 178_956_970;

/// What a decoder may take on.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Limits {
    /// Largest width x height.
    pub max_pixels: u64,
}

impl Default for Limits {
    fn default() -> Self {
        Self { max_pixels: DEFAULT_MAX_PIXELS }
    }
}

impl Limits {
    fn check(self, width: u32, height: u32) -> Result<(), DecodeError> {
        if width == 0 || height == 0 {
            return Err(DecodeError::NoPixels { width, height });
        }
        if u64::from(width) * u64::from(height) > self.max_pixels {
            return Err(DecodeError::TooLarge { width, height, limit: self.max_pixels });
        }
        Ok(())
    }
}

/// Why bytes did not become a picture.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DecodeError {
    /// The first bytes are those of no supported format.
    #[error("{found}; expected a JPEG, PNG, GIF, WebP, BMP or TIFF picture")]
    NotAPicture {
        /// What the bytes look like.
        found: &'static str,
    },
    /// The header says zero columns or rows.
    #[error("the header says {width}x{height} pixels")]
    NoPixels {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
    },
    /// More pixels than allowed; refused from the header.
    #[error("{width}x{height} pixels are over the limit of {limit}")]
    TooLarge {
        /// Columns.
        width: u32,
        /// Rows.
        height: u32,
        /// Most pixels allowed.
        limit: u64,
    },
    /// The file ends before the picture does.
    #[error("{format} file is truncated: {reason}")]
    Truncated {
        /// Format by its first bytes.
        format: Format,
        /// The decoder's words.
        reason: String,
    },
    /// The decoder gave up.
    #[error("broken {format} file: {reason}")]
    Broken {
        /// Format by its first bytes.
        format: Format,
        /// The decoder's words.
        reason: String,
    },
    /// The decoder panicked; caught.
    #[error("the {format} decoder failed on this file: {reason}")]
    Panicked {
        /// Format by its first bytes.
        format: Format,
        /// The panic's message.
        reason: String,
    },
}

/// How well a picture decoded.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Soundness {
    /// Without complaint.
    Sound,
    /// With a warning that Pillow does not act on: some pixels may be wrong.
    Damaged(String),
}

/// A decoder with its memory; one a thread.
#[derive(Debug, Default)]
pub struct Decoder {
    limits: Limits,
    jpeg: jpeg::JpegDecoder,
}

impl Decoder {
    /// A decoder under `limits`.
    pub fn new(limits: Limits) -> Self {
        Self { limits, jpeg: jpeg::JpegDecoder::default() }
    }

    /// Decodes `bytes` into `picture`, whose memory is reused. After an error its contents are
    /// unspecified.
    ///
    /// # Errors
    /// See [`DecodeError`].
    pub fn decode_into(&mut self, bytes: &[u8], picture: &mut Picture) -> Result<Soundness, DecodeError> {
        let format = Format::of(bytes)?;
        let limits = self.limits;
        let jpeg = &mut self.jpeg;
        let work = AssertUnwindSafe(|| match format {
            Format::Jpeg => jpeg.decode_into(bytes, limits, picture),
            other => raster::decode_into(bytes, other, limits, picture).map(|()| Soundness::Sound),
        });
        catch_unwind(work).unwrap_or_else(|panic| {
            self.jpeg = jpeg::JpegDecoder::default();
            Err(DecodeError::Panicked { format, reason: panic_message(&*panic) })
        })
    }
}

/// Decodes one picture.
///
/// # Errors
/// See [`DecodeError`].
pub fn decode(bytes: &[u8], limits: Limits) -> Result<Picture, DecodeError> {
    let mut picture = Picture::default();
    Decoder::new(limits).decode_into(bytes, &mut picture)?;
    Ok(picture)
}

/// What a panic said.
pub(crate) fn panic_message(panic: &(dyn std::any::Any + Send)) -> String {
    panic
        .downcast_ref::<&str>()
        .map(|s| (*s).to_owned())
        .or_else(|| panic.downcast_ref::<String>().cloned())
        .unwrap_or_else(|| "panic without a message".to_owned())
}
