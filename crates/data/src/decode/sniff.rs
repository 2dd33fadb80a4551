//! What a file is, by its first bytes.

use super::DecodeError;
use serde::{Deserialize, Serialize};
use std::fmt;

/// The supported formats.
#[derive(Debug, Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Format {
    /// JPEG.
    Jpeg,
    /// PNG.
    Png,
    /// GIF.
    Gif,
    /// WebP.
    Webp,
    /// BMP.
    Bmp,
    /// TIFF.
    Tiff,
}

impl fmt::Display for Format {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Jpeg => "JPEG",
            Self::Png => "PNG",
            Self::Gif => "GIF",
            Self::Webp => "WebP",
            Self::Bmp => "BMP",
            Self::Tiff => "TIFF",
        })
    }
}

/// Start, what it means.
const SUPPORTED: [(&[u8], Format); 9] = [
    (b"\xff\xd8\xff", Format::Jpeg),
    (b"\x89PNG\r\n\x1a\n", Format::Png),
    (b"GIF87a", Format::Gif),
    (b"GIF89a", Format::Gif),
    (b"BM", Format::Bmp),
    (b"II*\0", Format::Tiff),
    (b"MM\0*", Format::Tiff),
    (b"II+\0", Format::Tiff),
    (b"MM\0+", Format::Tiff),
];

/// Starts of what people find under a picture's name.
const OTHERS: [(&[u8], &str); 9] = [
    (b"version https://git-lfs", "a git-lfs pointer, the picture itself was not fetched"),
    (b"%PDF", "a PDF document"),
    (b"8BPS", "a Photoshop file, unsupported format psd"),
    (b"\x00\x00\x00\x0cJXL ", "unsupported format jxl"),
    (b"\xff\x0a", "unsupported format jxl"),
    (b"\x00\x00\x00\x0cjP  ", "unsupported format jp2"),
    (b"\x00\x00\x01\x00", "unsupported format ico"),
    (b"PK\x03\x04", "a zip archive"),
    (b"\x1f\x8b", "a gzip file"),
];

impl Format {
    /// The format that the first bytes of a file tell.
    ///
    /// # Errors
    /// When they are those of no supported picture; the error says what they look like.
    pub fn of(bytes: &[u8]) -> Result<Self, DecodeError> {
        if let Some((_, format)) = SUPPORTED.iter().find(|(start, _)| bytes.starts_with(start)) {
            return Ok(*format);
        }
        if bytes.starts_with(b"RIFF") && bytes.get(8..12) == Some(b"WEBP") {
            return Ok(Self::Webp);
        }
        Err(DecodeError::NotAPicture { found: describe(bytes) })
    }
}

fn describe(bytes: &[u8]) -> &'static str {
    if bytes.is_empty() {
        return "the file is empty";
    }
    if let Some((_, what)) = OTHERS.iter().find(|(start, _)| bytes.starts_with(start)) {
        return what;
    }
    match bytes.get(4..12) {
        Some(b"ftypavif" | b"ftypavis") => return "unsupported format avif",
        Some(b"ftypheic" | b"ftypheix" | b"ftypmif1" | b"ftypmsf1") => return "unsupported format heic",
        _ => {}
    }
    let head = &bytes[..bytes.len().min(512)];
    if head.iter().all(|b| *b == 0) {
        return "the file is filled with zeros";
    }
    let text = String::from_utf8_lossy(head).trim_start().to_ascii_lowercase();
    if text.starts_with("<!doctype html") || text.starts_with("<html") {
        return "an HTML page";
    }
    if text.starts_with("<?xml") || text.starts_with("<svg") {
        return "an XML or SVG document";
    }
    if head.iter().all(|b| matches!(b, 9 | 10 | 13 | 32..=126)) {
        return "a text file";
    }
    "not a known picture format"
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn formats_are_told_by_content() {
        assert_eq!(Format::of(b"\xff\xd8\xff\xe0rest").unwrap(), Format::Jpeg);
        assert_eq!(Format::of(b"RIFF\x01\x02\x03\x04WEBPVP8 ").unwrap(), Format::Webp);
        assert_eq!(Format::of(b"MM\x00*....").unwrap(), Format::Tiff);
    }

    #[test]
    fn other_things_are_named() {
        let said = |bytes: &[u8]| Format::of(bytes).unwrap_err().to_string();
        assert!(said(b"").contains("empty"));
        assert!(said(&[0; 2048]).contains("zeros"));
        assert!(said(b"<!DOCTYPE html><html>404").contains("HTML"));
        assert!(said(b"version https://git-lfs.github.com/spec/v1").contains("git-lfs"));
        assert!(said(b"\0\0\0\x1cftypavif....").contains("avif"));
        assert!(said(b"hello\n").contains("text file"));
        assert!(said(b"RIFF\x01\x02\x03\x04WAVE").contains("not a known"));
    }
}
