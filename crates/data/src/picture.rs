//! The decoded picture: 8-bit RGB, interleaved.
//!
//! Interleaved because that is what the JPEG decoder writes and what the resizer reads fastest; the
//! views made from it are planar.

/// RGB pixels, three bytes each, rows top to bottom without padding.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Picture {
    width: u32,
    height: u32,
    pixels: Vec<u8>,
}

impl Picture {
    /// A black picture.
    pub fn black(width: u32, height: u32) -> Self {
        let mut picture = Self::default();
        picture.reset(width, height);
        picture
    }

    /// Wraps interleaved RGB bytes; `None` when their number does not fit the size.
    pub fn from_rgb(width: u32, height: u32, pixels: Vec<u8>) -> Option<Self> {
        (pixels.len() == byte_len(width, height)).then_some(Self { width, height, pixels })
    }

    /// Columns.
    pub const fn width(&self) -> u32 {
        self.width
    }

    /// Rows.
    pub const fn height(&self) -> u32 {
        self.height
    }

    /// `3 * width * height` bytes.
    pub fn pixels(&self) -> &[u8] {
        &self.pixels
    }

    /// The bytes, to be drawn on.
    pub fn pixels_mut(&mut self) -> &mut [u8] {
        &mut self.pixels
    }

    /// The pixel at column `x`, row `y`; black outside.
    pub fn pixel(&self, x: u32, y: u32) -> [u8; 3] {
        if x >= self.width || y >= self.height {
            return [0; 3];
        }
        let at = byte_len(self.width, y) + 3 * x as usize;
        self.pixels.get(at..at + 3).map_or([0; 3], |p| [p[0], p[1], p[2]])
    }

    /// Sets the pixel at column `x`, row `y`; does nothing outside.
    pub fn set_pixel(&mut self, x: u32, y: u32, rgb: [u8; 3]) {
        if x < self.width && y < self.height {
            let at = byte_len(self.width, y) + 3 * x as usize;
            if let Some(p) = self.pixels.get_mut(at..at + 3) {
                p.copy_from_slice(&rgb);
            }
        }
    }

    /// Takes a new size and keeps the memory; the contents are whatever was there.
    pub(crate) fn reset(&mut self, width: u32, height: u32) {
        self.width = width;
        self.height = height;
        self.pixels.resize(byte_len(width, height), 0);
    }
}

/// Bytes of `height` rows of `width` RGB pixels.
const fn byte_len(width: u32, height: u32) -> usize {
    width as usize * height as usize * 3
}
