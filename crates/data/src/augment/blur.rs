//! Pillow's `GaussianBlur`: three extended box passes along rows, then three along columns, rounded
//! to bytes after each pass; bit-equal.
//!
//! When only every r-th pixel of the result is kept (decimation), the column passes need only every
//! r-th column and, of the last passes, only the rows that reach a kept one: [`Blur::decimated`] skips
//! the rest and gives the same bytes.

use super::kernel::kernel;

const PASSES: usize = 3;

/// The largest standard deviation that a spec may ask for, in pixels: far past any published recipe.
pub const LARGEST_SIGMA: f64 = 10.0;

/// Taps of one pass at [`LARGEST_SIGMA`]: a whole radius of 9, the centre, two fractional edges.
const MOST_TAPS: usize = 21;

/// Whole radius and the 24-bit weights of one box pass.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct BoxPass {
    radius: usize,
    inner: u32,
    edge: u32,
}

impl BoxPass {
    /// Pillow's float arithmetic for `GaussianBlur(sigma)`, rounding where C rounds.
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "as the C source does")]
    #[expect(clippy::cast_precision_loss, reason = "small whole numbers")]
    fn for_sigma(sigma: f32) -> Self {
        let variance = sigma * sigma / PASSES as f32;
        let length = (12.0 * f64::from(variance) + 1.0).sqrt() as f32;
        let whole = ((f64::from(length) - 1.0) / 2.0).floor() as f32;
        let a = (2.0 * whole + 1.0) * (whole * (whole + 1.0) - 3.0 * variance);
        let a = a / (6.0 * (variance - (whole + 1.0) * (whole + 1.0)));
        let size = whole + a;
        let radius = size as usize;
        let inner = ((1 << 24) as f32 / (size * 2.0 + 1.0)) as u32;
        let edge = ((1 << 24) - (radius as u32 * 2 + 1) * inner) / 2;
        Self { radius, inner, edge }
    }

    /// Pixels on either side that a pass reads.
    const fn reach(self) -> usize {
        self.radius + 1
    }
}

/// Memory for blurring, kept between pictures.
#[derive(Debug, Default)]
pub(super) struct Blur {
    /// Two padded rows, read and written in turn.
    rows: [Vec<u8>; 2],
    /// Two planes, read and written in turn.
    planes: [Vec<u8>; 2],
}

/// The weighted sum, rounded; the weights sum to at most 2^24.
#[inline(always)]
fn mix(pass: BoxPass, inner: u32, edges: u32) -> u8 {
    ((inner * pass.inner + edges * pass.edge + (1 << 23)) >> 24) as u8
}

kernel! {
    /// One pass: `taps[k]` are 2 * reach + 1 equally long runs of bytes, the first and the last of
    /// them the fractional edges; their weighted sum goes to `out`.
    fn weigh<'a>(taps: &'a [&'a [u8]], pass: BoxPass, out: &'a mut [u8]) -> () {
        match taps {
            [a, b, c] => {
                for (((o, a), b), c) in out.iter_mut().zip(*a).zip(*b).zip(*c) {
                    *o = mix(pass, u32::from(*b), u32::from(*a) + u32::from(*c));
                }
            }
            [a, b, c, d, e] => {
                for (((((o, a), b), c), d), e) in out.iter_mut().zip(*a).zip(*b).zip(*c).zip(*d).zip(*e) {
                    let inner = u32::from(*b) + u32::from(*c) + u32::from(*d);
                    *o = mix(pass, inner, u32::from(*a) + u32::from(*e));
                }
            }
            _ => {
                let (Some((first, rest)), n) = (taps.split_first(), out.len()) else { return };
                let Some((last, inner)) = rest.split_last() else { return };
                for (x, o) in out.iter_mut().enumerate().take(n) {
                    let sum = inner.iter().map(|t| u32::from(t[x])).sum();
                    *o = mix(pass, sum, u32::from(first[x]) + u32::from(last[x]));
                }
            }
        }
    }
}

impl Blur {
    /// Blurs `plane` (`width` columns) in place.
    pub(super) fn whole(&mut self, plane: &mut [u8], width: usize, sigma: f32) {
        if sigma > 0.0 && width > 0 {
            let pass = BoxPass::for_sigma(sigma);
            self.along_rows(plane, width, pass, 1);
            self.along_columns(width, pass, 1, plane);
        }
    }

    /// Blurs `plane` and writes the top-left pixel of every `keep` x `keep` block to `out`.
    pub(super) fn decimated(&mut self, plane: &[u8], width: usize, sigma: f32, keep: usize, out: &mut [u8]) {
        if sigma > 0.0 && width > 0 {
            let pass = BoxPass::for_sigma(sigma);
            self.along_rows(plane, width, pass, keep);
            self.along_columns(width.div_ceil(keep), pass, keep, out);
        } else {
            decimate(plane, width, keep, out);
        }
    }

    /// The row passes; every `keep`-th column of their result goes to the first plane.
    fn along_rows(&mut self, plane: &[u8], width: usize, pass: BoxPass, keep: usize) {
        let [a, b] = &mut self.rows;
        let (reach, narrow) = (pass.reach(), width.div_ceil(keep));
        for row in [&mut *a, &mut *b] {
            row.clear();
            row.resize(width + 2 * reach, 0);
        }
        let result = &mut self.planes[0];
        result.resize(narrow * (plane.len() / width), 0);
        for (row, out) in plane.chunks_exact(width).zip(result.chunks_exact_mut(narrow)) {
            a[reach..reach + width].copy_from_slice(row);
            pad(a, reach);
            weigh_row(a, pass, &mut b[reach..reach + width]);
            pad(b, reach);
            weigh_row(b, pass, &mut a[reach..reach + width]);
            pad(a, reach);
            if keep == 1 {
                weigh_row(a, pass, out);
            } else {
                weigh_row(a, pass, &mut b[reach..reach + width]);
                every(&b[reach..reach + width], keep, out);
            }
        }
    }

    /// The column passes over the first plane; every `keep`-th row of their result goes to `out`.
    fn along_columns(&mut self, width: usize, pass: BoxPass, keep: usize, out: &mut [u8]) {
        let [a, b] = &mut self.planes;
        b.resize(a.len(), 0);
        // A row of an early pass matters when a kept row is within the reach of the passes after it.
        let matters = |y: usize, reach: usize| y % keep <= reach || keep - y % keep <= reach;
        for (y, row) in b.chunks_exact_mut(width).enumerate() {
            if matters(y, 2 * pass.reach()) {
                weigh_column(a, width, y, pass, row);
            }
        }
        for (y, row) in a.chunks_exact_mut(width).enumerate() {
            if matters(y, pass.reach()) {
                weigh_column(b, width, y, pass, row);
            }
        }
        for (y, row) in out.chunks_exact_mut(width).enumerate() {
            weigh_column(a, width, y * keep, pass, row);
        }
    }
}

/// Repeats the outermost pixels into the margins.
fn pad(row: &mut [u8], reach: usize) {
    let last = row.len() - reach - 1;
    let (left, right) = (row[reach], row[last]);
    row[..reach].fill(left);
    row[last + 1..].fill(right);
}

/// One pass over a padded row.
fn weigh_row(padded: &[u8], pass: BoxPass, out: &mut [u8]) {
    let mut taps: [&[u8]; MOST_TAPS] = [&[]; MOST_TAPS];
    let used = &mut taps[..2 * pass.reach() + 1];
    for (shift, tap) in used.iter_mut().enumerate() {
        *tap = &padded[shift..shift + out.len()];
    }
    weigh(used, pass, out);
}

/// Row `y` of one column pass.
fn weigh_column(plane: &[u8], width: usize, y: usize, pass: BoxPass, out: &mut [u8]) {
    let bottom = plane.len() / width - 1;
    let mut taps: [&[u8]; MOST_TAPS] = [&[]; MOST_TAPS];
    let used = &mut taps[..2 * pass.reach() + 1];
    for (shift, tap) in used.iter_mut().enumerate() {
        let row = (y + shift).saturating_sub(pass.reach()).min(bottom);
        *tap = &plane[row * width..(row + 1) * width];
    }
    weigh(used, pass, out);
}

/// Every `keep`-th byte.
fn every(row: &[u8], keep: usize, out: &mut [u8]) {
    for (o, v) in out.iter_mut().zip(row.iter().step_by(keep)) {
        *o = *v;
    }
}

/// The top-left pixel of every `keep` x `keep` block of `plane`.
pub(super) fn decimate(plane: &[u8], width: usize, keep: usize, out: &mut [u8]) {
    let width = width.max(1);
    let rows = plane.chunks_exact(width).step_by(keep);
    for (row, o) in rows.zip(out.chunks_exact_mut(width.div_ceil(keep))) {
        every(row, keep, o);
    }
}
