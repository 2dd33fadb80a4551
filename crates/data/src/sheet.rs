//! A preview: the montages of every level and both sides as one PNG, tiles labelled with their picture.
//!
//! One row of montages a level and side, q above k. Every tile has a border in its picture's colour and
//! the picture's number in small digits, so that the eye can follow a picture through the levels.

use crate::generate::{GenerateError, PictureFormat, encode};
use crate::loader::LaneBatch;
use crate::montage::{MontageLayout, labels};
use crate::picture::Picture;

/// Pixels between montages.
const GAP: usize = 6;

/// Montages of one level and side that are drawn at most.
const MOST_A_ROW: usize = 8;

/// Colour between montages.
const GROUND: [u8; 3] = [32, 32, 36];

/// Three by five dots a digit, a row a number, the highest bit to the left.
const DIGITS: [[u8; 5]; 10] = [
    [7, 5, 5, 5, 7],
    [2, 6, 2, 2, 7],
    [7, 1, 7, 4, 7],
    [7, 1, 3, 1, 7],
    [5, 5, 7, 1, 1],
    [7, 4, 7, 1, 7],
    [7, 4, 7, 5, 7],
    [7, 1, 2, 2, 2],
    [7, 5, 7, 5, 7],
    [7, 5, 7, 1, 7],
];

/// A sheet that cannot be drawn.
#[derive(Debug, thiserror::Error)]
pub enum SheetError {
    /// Batch, size, layout and permutations do not belong together.
    #[error("cannot draw the sheet: {what}")]
    Mismatch {
        /// What disagrees.
        what: String,
    },
    /// The PNG encoder failed.
    #[error(transparent)]
    Encode(#[from] GenerateError),
}

fn mismatch(what: String) -> SheetError {
    SheetError::Mismatch { what }
}

/// The sheet of [`draw_sheet`] as a PNG file.
///
/// # Errors
/// When the parts do not belong together.
pub fn montage_sheet(
    batch: &LaneBatch,
    size: u32,
    layout: &MontageLayout,
    permutations: &[Vec<usize>],
) -> Result<Vec<u8>, SheetError> {
    Ok(encode(&draw_sheet(batch, size, layout, permutations)?, PictureFormat::Png)?)
}

/// Draws the montages of `batch`. `size` is S; `permutations` holds one a view, in the order of the views (q side of
/// every level, then k side).
///
/// # Errors
/// When the parts do not belong together.
pub fn draw_sheet(
    batch: &LaneBatch,
    size: u32,
    layout: &MontageLayout,
    permutations: &[Vec<usize>],
) -> Result<Picture, SheetError> {
    let levels = layout.levels();
    if batch.views.len() != 2 * levels || permutations.len() != 2 * levels {
        let (views, given) = (batch.views.len(), permutations.len());
        return Err(mismatch(format!(
            "{views} views and {given} permutations, expected {} of each",
            2 * levels
        )));
    }
    let edge = size as usize;
    let across = (0..levels).map(|l| layout.montages(l).min(MOST_A_ROW)).max().unwrap_or(1);
    let (width, height) = (GAP + across * (edge + GAP), GAP + 2 * levels * (edge + GAP));
    let side = |n: usize| u32::try_from(n).map_err(|_| mismatch(format!("{n} pixels are too many")));
    let mut sheet = Picture::black(side(width)?, side(height)?);
    sheet.pixels_mut().as_chunks_mut::<3>().0.fill(GROUND);
    for (row, view) in (0..levels).flat_map(|l| [l, levels + l]).enumerate() {
        let (level, top) = (view % levels, GAP + row * (edge + GAP));
        let ratio = layout.ratio(level).max(1);
        let tile = edge / ratio;
        let expected = 3 * tile * tile * layout.pictures();
        let (pixels, permutation) = (&batch.views[view], &permutations[view]);
        if pixels.len() != expected || permutation.len() != layout.tiles(level) {
            let (len, tiles) = (pixels.len(), layout.tiles(level));
            return Err(mismatch(format!(
                "view {view} has {len} bytes and {} tiles, expected {expected} and {tiles}",
                permutation.len()
            )));
        }
        let shown = layout.montages(level).min(MOST_A_ROW) * ratio * ratio;
        for (at, picture) in labels(permutation, layout.pictures()).into_iter().take(shown).enumerate() {
            let (montage, place) = (at / (ratio * ratio), at % (ratio * ratio));
            let left = GAP + montage * (edge + GAP) + place % ratio * tile;
            let corner = (left, top + place / ratio * tile);
            let len = 3 * tile * tile;
            draw_tile(&mut sheet, corner, tile, &pixels[picture * len..(picture + 1) * len], picture);
        }
    }
    Ok(sheet)
}

/// Copies a planar tile and puts border and number over it.
fn draw_tile(sheet: &mut Picture, (left, top): (usize, usize), edge: usize, planes: &[u8], picture: usize) {
    let area = edge * edge;
    let tint = colour_of(picture);
    let mut put = |x: usize, y: usize, rgb: [u8; 3]| {
        if let (Ok(x), Ok(y)) = (u32::try_from(left + x), u32::try_from(top + y)) {
            sheet.set_pixel(x, y, rgb);
        }
    };
    for y in 0..edge {
        for x in 0..edge {
            let border = edge > 8 && (x == 0 || y == 0 || x + 1 == edge || y + 1 == edge);
            let at = y * edge + x;
            put(x, y, if border { tint } else { [planes[at], planes[area + at], planes[2 * area + at]] });
        }
    }
    let text: Vec<u8> = picture.to_string().bytes().map(|b| b - b'0').collect();
    let scale = if edge >= 96 { 2 } else { 1 };
    let (wide, high) = ((4 * text.len() + 1) * scale, 7 * scale);
    if wide + 2 > edge || high + 2 > edge {
        return;
    }
    for y in 0..high {
        for x in 0..wide {
            let (column, line) = (x / scale, y / scale);
            let digit = text.get(column.saturating_sub(1) / 4).map_or(0, |d| usize::from(*d));
            let inside = column >= 1 && (column - 1) % 4 < 3 && (1..6).contains(&line);
            let lit = inside && DIGITS[digit % 10][line - 1] >> (2 - (column - 1) % 4) & 1 == 1;
            put(1 + x, 1 + y, if lit { [255; 3] } else { [0; 3] });
        }
    }
}

/// A bright colour for a number; neighbours differ most.
fn colour_of(picture: usize) -> [u8; 3] {
    // The golden ratio spreads any run of numbers evenly over the circle of hues.
    let hue = (picture * 158) % 256;
    let ramp = |offset: usize| {
        let at = (hue + offset) % 256;
        let distance = at.min(256 - at);
        u8::try_from(255_usize.saturating_sub(distance * 3).max(40)).unwrap_or(255)
    };
    [ramp(0), ramp(85), ramp(171)]
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::augment::Side;
    use crate::decode::{Limits, decode};
    use mcl_types::{Epoch, Lane, Seed, Step};

    fn batch(n: usize, size: usize, ratios: &[u32]) -> LaneBatch {
        let view = |ratio: &u32| {
            let edge = size / *ratio as usize;
            (0..n).flat_map(|p| vec![(p * 20) as u8; 3 * edge * edge]).collect::<Vec<u8>>()
        };
        let views = ratios.iter().chain(ratios).map(view).collect();
        LaneBatch { epoch: Epoch::new(0), step: Step::new(0), lane: Lane::new(0), fed: Vec::new(), views }
    }

    #[test]
    fn every_tile_is_where_its_permutation_says() {
        let ratios = [1, 2];
        let layout = MontageLayout::official(8, &ratios).unwrap();
        let at = (Epoch::new(0), Step::new(0), Lane::new(0));
        let permutations: Vec<Vec<usize>> = [(0, Side::Q), (1, Side::Q), (0, Side::K), (1, Side::K)]
            .map(|(level, side)| layout.permutation(Seed::new(3), at, level, side))
            .to_vec();
        let png = montage_sheet(&batch(8, 32, &ratios), 32, &layout, &permutations).unwrap();
        let sheet = decode(&png, Limits::default()).unwrap();
        assert_eq!((sheet.width(), sheet.height()), (6 + 8 * 38, 6 + 4 * 38));
        // Rows: level 0 q, level 0 k, level 1 q, level 1 k; look at the lower right of a tile, off the digits.
        for (row, view, tile) in [(0_u32, 0, 32_u32), (1, 2, 32), (2, 1, 16), (3, 3, 16)] {
            let ratio = 32 / tile;
            for (i, p) in permutations[view].iter().enumerate() {
                let (montage, place) = (i as u32 / (ratio * ratio), i as u32 % (ratio * ratio));
                let x = 6 + montage * 38 + place % ratio * tile + tile - 3;
                let y = 6 + row * 38 + place / ratio * tile + tile - 3;
                assert_eq!(sheet.pixel(x, y), [(p % 8 * 20) as u8; 3], "row {row}, tile {i}");
            }
        }
    }

    #[test]
    fn parts_that_do_not_belong_together_are_refused() {
        let layout = MontageLayout::official(8, &[1, 2]).unwrap();
        let said = montage_sheet(&batch(8, 32, &[1, 2]), 32, &layout, &[]).unwrap_err().to_string();
        assert!(said.contains("expected 4"), "{said}");
        let permutations = vec![vec![0; 8]; 4];
        assert!(montage_sheet(&batch(7, 32, &[1, 2]), 32, &layout, &permutations).is_err());
    }
}
