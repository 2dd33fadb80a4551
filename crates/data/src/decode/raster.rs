//! Everything but JPEG, through the `image` crate.

use super::{DecodeError, Format, Limits, webp};
use crate::picture::Picture;
use image::{DynamicImage, ImageDecoder, ImageError, ImageFormat, ImageReader};
use std::io::Cursor;

/// Bytes that a decoder may take besides 8 a pixel: tables, profiles, text chunks.
const SPARE_BYTES: u64 = 64 << 20;

fn refused(format: Format, error: &ImageError) -> DecodeError {
    if let ImageError::IoError(e) = error
        && e.kind() == std::io::ErrorKind::UnexpectedEof
    {
        return DecodeError::Truncated { format, reason: e.to_string() };
    }
    DecodeError::Broken { format, reason: error.to_string() }
}

/// Decodes the first frame of `bytes` into `picture`.
pub(super) fn decode_into(
    bytes: &[u8],
    format: Format,
    limits: Limits,
    picture: &mut Picture,
) -> Result<(), DecodeError> {
    let kind = match format {
        Format::Png => ImageFormat::Png,
        Format::Gif => ImageFormat::Gif,
        Format::Webp => ImageFormat::WebP,
        Format::Bmp => ImageFormat::Bmp,
        Format::Tiff => ImageFormat::Tiff,
        Format::Jpeg => ImageFormat::Jpeg,
    };
    if format == Format::Webp {
        webp::check(bytes, limits)?;
    }
    let mut reader = ImageReader::with_format(Cursor::new(bytes), kind);
    let mut allowed = image::Limits::no_limits();
    allowed.max_alloc = Some(limits.max_pixels.saturating_mul(8).saturating_add(SPARE_BYTES));
    reader.limits(allowed);
    let decoder = reader.into_decoder().map_err(|e| refused(format, &e))?;
    let (width, height) = decoder.dimensions();
    limits.check(width, height)?;
    let image = DynamicImage::from_decoder(decoder).map_err(|e| refused(format, &e))?;
    picture.reset(image.width(), image.height());
    fill(&image, picture.pixels_mut());
    Ok(())
}

/// Any colour type to interleaved RGB: grey copied, alpha dropped, the high byte of 16 bits.
fn fill(image: &DynamicImage, rgb: &mut [u8]) {
    match image {
        DynamicImage::ImageRgb8(b) => rgb.copy_from_slice(b.as_raw()),
        DynamicImage::ImageLuma8(b) => pick::<1, _>(b.as_raw(), rgb, |p| [p[0]; 3]),
        DynamicImage::ImageLumaA8(b) => pick::<2, _>(b.as_raw(), rgb, |p| [p[0]; 3]),
        DynamicImage::ImageRgba8(b) => pick::<4, _>(b.as_raw(), rgb, |p| [p[0], p[1], p[2]]),
        DynamicImage::ImageLuma16(b) => pick::<1, _>(b.as_raw(), rgb, |p| [high(p[0]); 3]),
        DynamicImage::ImageLumaA16(b) => pick::<2, _>(b.as_raw(), rgb, |p| [high(p[0]); 3]),
        DynamicImage::ImageRgb16(b) => {
            pick::<3, _>(b.as_raw(), rgb, |p| [high(p[0]), high(p[1]), high(p[2])])
        }
        DynamicImage::ImageRgba16(b) => {
            pick::<4, _>(b.as_raw(), rgb, |p| [high(p[0]), high(p[1]), high(p[2])])
        }
        other => rgb.copy_from_slice(other.to_rgb8().as_raw()),
    }
}

const fn high(value: u16) -> u8 {
    (value >> 8) as u8
}

fn pick<const N: usize, T>(from: &[T], rgb: &mut [u8], pixel: impl Fn(&[T; N]) -> [u8; 3]) {
    for (p, out) in from.as_chunks::<N>().0.iter().zip(rgb.as_chunks_mut::<3>().0) {
        *out = pixel(p);
    }
}
