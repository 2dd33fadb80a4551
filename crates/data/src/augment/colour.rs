//! Colour stages on planar bytes, each bit-equal to Pillow: blend (brightness, contrast,
//! saturation), grey, solarise; and two exact extras, inversion and channel permutation.

use super::kernel::{byte, kernel};

/// Pillow's fixed-point luma, rounded: `convert("L")`.
#[inline(always)]
pub(super) fn luma(r: u8, g: u8, b: u8) -> u8 {
    let sum = u32::from(r) * 19_595 + u32::from(g) * 38_470 + u32::from(b) * 7_471 + 0x8000;
    #[expect(clippy::cast_possible_truncation, reason = "the weights sum to 65536")]
    {
        (sum >> 16) as u8
    }
}

/// Pillow's blend of one byte from `base` towards (or past) `value`: float, clipped, truncated.
#[inline(always)]
fn blend_byte(base: f32, value: f32, factor: f32) -> u8 {
    let mixed = base + factor * (value - base);
    let mixed = if mixed > 0.0 { mixed } else { 0.0 };
    byte(if mixed < 255.0 { mixed } else { 255.0 })
}

kernel! {
    /// Blends every byte with one constant: brightness (0) and contrast (the grey mean).
    pub(super) fn blend_constant<'a>(bytes: &'a mut [u8], base: f32, factor: f32) -> () {
        for v in bytes {
            *v = blend_byte(base, f32::from(*v), factor);
        }
    }
}

kernel! {
    /// Blends every pixel with its own grey: saturation.
    pub(super) fn blend_grey<'a>(r: &'a mut [u8], g: &'a mut [u8], b: &'a mut [u8], factor: f32) -> () {
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let grey = f32::from(luma(*r, *g, *b));
            *r = blend_byte(grey, f32::from(*r), factor);
            *g = blend_byte(grey, f32::from(*g), factor);
            *b = blend_byte(grey, f32::from(*b), factor);
        }
    }
}

kernel! {
    /// Replaces every pixel by its grey.
    pub(super) fn grey<'a>(r: &'a mut [u8], g: &'a mut [u8], b: &'a mut [u8]) -> () {
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let l = luma(*r, *g, *b);
            (*r, *g, *b) = (l, l, l);
        }
    }
}

kernel! {
    /// Sum of the grey values of at most 2^24 pixels.
    fn luma_sum<'a>(r: &'a [u8], g: &'a [u8], b: &'a [u8]) -> u32 {
        let mut sum = 0_u32;
        for ((r, g), b) in r.iter().zip(g).zip(b) {
            sum += u32::from(luma(*r, *g, *b));
        }
        sum
    }
}

/// The rounded mean grey, as `ImageEnhance.Contrast` takes it.
pub(super) fn mean_grey(r: &[u8], g: &[u8], b: &[u8]) -> f32 {
    const CHUNK: usize = 1 << 20;
    let chunks = r.chunks(CHUNK).zip(g.chunks(CHUNK)).zip(b.chunks(CHUNK));
    let sum: u64 = chunks.map(|((r, g), b)| u64::from(luma_sum(r, g, b))).sum();
    let n = r.len().max(1) as u64;
    #[expect(clippy::cast_precision_loss, reason = "sums of bytes stay far below 2^53")]
    let mean = sum as f64 / n as f64;
    #[expect(clippy::cast_possible_truncation, reason = "a mean of bytes is at most 255")]
    {
        (mean + 0.5).floor() as f32
    }
}

kernel! {
    /// Values of `threshold` and more are inverted.
    pub(super) fn solarise<'a>(bytes: &'a mut [u8], threshold: u8) -> () {
        for v in bytes {
            *v = if *v < threshold { *v } else { 255 - *v };
        }
    }
}

kernel! {
    /// Inverts everything.
    pub(super) fn invert<'a>(bytes: &'a mut [u8]) -> () {
        for v in bytes {
            *v = 255 - *v;
        }
    }
}

kernel! {
    /// Interleaved RGB into three planes.
    pub(super) fn planes<'a>(rgb: &'a [u8], r: &'a mut [u8], g: &'a mut [u8], b: &'a mut [u8]) -> () {
        for (((p, r), g), b) in rgb.as_chunks::<3>().0.iter().zip(r).zip(g).zip(b) {
            (*r, *g, *b) = (p[0], p[1], p[2]);
        }
    }
}

/// Mirrors every row of a plane.
pub(super) fn mirror(plane: &mut [u8], width: usize) {
    for row in plane.chunks_exact_mut(width.max(1)) {
        row.reverse();
    }
}

/// Turns a square plane by quarters against the clock.
pub(super) fn turn(from: &[u8], edge: usize, quarters: u8, to: &mut [u8]) {
    let last = edge.saturating_sub(1);
    for (y, row) in to.chunks_exact_mut(edge.max(1)).enumerate() {
        for (x, value) in row.iter_mut().enumerate() {
            let at = match quarters % 4 {
                0 => y * edge + x,
                1 => x * edge + (last - y),
                2 => (last - y) * edge + (last - x),
                _ => (last - x) * edge + y,
            };
            *value = from[at];
        }
    }
}
