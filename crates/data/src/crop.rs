//! Crops and plain resizes: the augmentation's first stage, and the thumbnails that evaluation uses.

use crate::augment::CropBox;
use crate::picture::Picture;
use fast_image_resize::images::{TypedCroppedImage, TypedImage, TypedImageRef};
use fast_image_resize::pixels::U8x3;
use fast_image_resize::{FilterType, ResizeAlg, ResizeOptions, Resizer};

/// A resize that cannot be done.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("cannot resize {crop:?} of a {width}x{height} picture to {wanted:?}: {reason}")]
pub struct ResizeError {
    crop: CropBox,
    width: u32,
    height: u32,
    wanted: (u32, u32),
    reason: String,
}

/// Resizes `crop` of `picture` to `wanted` (width, height) as Pillow's bilinear filter does (widened,
/// hence anti-aliased, when it shrinks), within one level. `out` becomes interleaved RGB.
pub(crate) fn resize_into(
    resizer: &mut Resizer,
    picture: &Picture,
    crop: CropBox,
    wanted: (u32, u32),
    out: &mut Vec<u8>,
) -> Result<(), ResizeError> {
    let refused = |reason: String| ResizeError {
        crop,
        width: picture.width(),
        height: picture.height(),
        wanted,
        reason,
    };
    if crop.width == 0 || crop.height == 0 || wanted.0 == 0 || wanted.1 == 0 {
        return Err(refused("nothing to read or nothing to write".to_owned()));
    }
    out.resize(wanted.0 as usize * wanted.1 as usize * 3, 0);
    // The typed entry: the untyped one compiles the kernels of every pixel format.
    let source = TypedImageRef::<U8x3>::from_buffer(picture.width(), picture.height(), picture.pixels())
        .map_err(|e| refused(e.to_string()))?;
    let source = TypedCroppedImage::from_ref(&source, crop.left, crop.top, crop.width, crop.height)
        .map_err(|e| refused(e.to_string()))?;
    let mut target =
        TypedImage::<U8x3>::from_buffer(wanted.0, wanted.1, out).map_err(|e| refused(e.to_string()))?;
    let options =
        ResizeOptions::new().resize_alg(ResizeAlg::Convolution(FilterType::Bilinear)).use_alpha(false);
    resizer.resize_typed(&source, &mut target, &options).map_err(|e| refused(e.to_string()))
}

/// The part of `picture` under a box (left, top, width, height) in pixels, cut to the picture's
/// borders and at least one pixel large. `None` when the box lies outside or the picture is empty.
pub fn crop(picture: &Picture, bbox: [f32; 4]) -> Option<Picture> {
    let [left, top, width, height] = bbox.map(f64::from);
    let (w, h) = (f64::from(picture.width()), f64::from(picture.height()));
    if ![left, top, width, height].iter().all(|v| v.is_finite()) {
        return None;
    }
    let (x0, y0) = (left.floor().max(0.0), top.floor().max(0.0));
    if x0 >= w || y0 >= h || left + width < 0.0 || top + height < 0.0 {
        return None;
    }
    let x1 = (left + width).ceil().clamp(x0 + 1.0, w);
    let y1 = (top + height).ceil().clamp(y0 + 1.0, h);
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "clamped to the picture")]
    let [x0, y0, x1, y1] = [x0, y0, x1, y1].map(|v| v as u32);
    let mut out = Picture::black(x1 - x0, y1 - y0);
    let (from, to) = (picture.width() as usize * 3, out.width() as usize * 3);
    let rows = picture.pixels().chunks_exact(from).skip(y0 as usize);
    for (row, target) in rows.zip(out.pixels_mut().chunks_exact_mut(to)) {
        let start = x0 as usize * 3;
        target.copy_from_slice(&row[start..start + to]);
    }
    Some(out)
}

/// `picture` resized to `width` x `height`, planar `[3, height, width]`.
///
/// # Errors
/// When either has no pixels.
pub fn resize_rgb(picture: &Picture, width: u32, height: u32) -> Result<Vec<u8>, ResizeError> {
    let whole = CropBox { left: 0, top: 0, width: picture.width(), height: picture.height() };
    let mut rgb = Vec::new();
    resize_into(&mut Resizer::new(), picture, whole, (width, height), &mut rgb)?;
    let pixels = rgb.as_chunks::<3>().0;
    Ok((0..3).flat_map(|c| pixels.iter().map(move |p| p[c])).collect())
}

/// Width and height of a picture whose shorter side becomes `short_side` pixels, its proportions kept to within half a
/// pixel; what leaves the range of `u32` becomes its largest.
pub fn with_short_side(width: u32, height: u32, short_side: u32) -> (u32, u32) {
    let shorter = u64::from(width.min(height).max(1));
    let scaled = |edge: u32| {
        let rounded = (u64::from(edge) * u64::from(short_side) * 2 / shorter).div_ceil(2);
        u32::try_from(rounded).unwrap_or(u32::MAX)
    };
    (scaled(width), scaled(height))
}

/// `picture` with its shorter side shrunk to `short_side` pixels, its proportions kept to within half a pixel; `None` where
/// it is no longer than that, or has no pixels.
pub(crate) fn shrink_to(picture: &Picture, short_side: u32) -> Option<Picture> {
    let (width, height) = (picture.width(), picture.height());
    if width.min(height) <= short_side || short_side == 0 {
        return None;
    }
    let (to_width, to_height) = with_short_side(width, height, short_side);
    let whole = CropBox { left: 0, top: 0, width, height };
    let mut rgb = Vec::new();
    resize_into(&mut Resizer::new(), picture, whole, (to_width, to_height), &mut rgb).ok()?;
    let mut small = Picture::black(to_width, to_height);
    small.pixels_mut().copy_from_slice(&rgb);
    Some(small)
}

/// The grey thumbnail that the raw-pixel baseline of the evaluation compares: `edge` x `edge` values,
/// shifted to mean 0 and scaled to length 1 (all zero for a flat picture).
///
/// # Errors
/// When the picture has no pixels.
pub fn grey_thumbnail(picture: &Picture, edge: u32) -> Result<Vec<f32>, ResizeError> {
    let planes = resize_rgb(picture, edge, edge)?;
    let area = planes.len() / 3;
    let mut grey: Vec<f32> = (0..area)
        .map(|i| {
            let [r, g, b] = [0, 1, 2].map(|c| f32::from(planes[c * area + i]));
            0.299 * r + 0.587 * g + 0.114 * b
        })
        .collect();
    #[expect(clippy::cast_precision_loss, reason = "a thumbnail's area is small")]
    let mean = grey.iter().sum::<f32>() / area.max(1) as f32;
    grey.iter_mut().for_each(|v| *v -= mean);
    let length = grey.iter().map(|v| v * v).sum::<f32>().sqrt();
    if length > 1e-3 {
        grey.iter_mut().for_each(|v| *v /= length);
    } else {
        grey.fill(0.0);
    }
    Ok(grey)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn gradient() -> Picture {
        let mut p = Picture::black(8, 6);
        for y in 0..6 {
            for x in 0..8 {
                p.set_pixel(x, y, [x as u8 * 10, y as u8 * 10, 7]);
            }
        }
        p
    }

    #[test]
    fn crops_are_cut_to_the_picture() {
        let p = gradient();
        let c = crop(&p, [2.0, 1.0, 3.0, 2.0]).unwrap();
        assert_eq!((c.width(), c.height(), c.pixel(0, 0), c.pixel(2, 1)), (3, 2, [20, 10, 7], [40, 20, 7]));
        let c = crop(&p, [-5.0, -5.0, 100.0, 100.0]).unwrap();
        assert_eq!(c, p);
        let c = crop(&p, [7.9, 5.9, 0.0, 0.0]).unwrap();
        assert_eq!((c.width(), c.height()), (1, 1));
        assert!(crop(&p, [8.0, 0.0, 2.0, 2.0]).is_none());
        assert!(crop(&p, [f32::NAN, 0.0, 2.0, 2.0]).is_none());
        assert!(crop(&Picture::black(0, 0), [0.0, 0.0, 1.0, 1.0]).is_none());
    }

    #[test]
    fn resized_pictures_are_planar() {
        let p = gradient();
        let same = resize_rgb(&p, 8, 6).unwrap();
        assert_eq!(same.len(), 3 * 48);
        assert_eq!((same[1], same[48 + 8], same[96]), (10, 10, 7));
        assert!(resize_rgb(&Picture::black(0, 3), 2, 2).is_err());
    }

    #[test]
    fn pictures_shrink_to_their_shorter_side_and_never_grow() {
        let p = gradient();
        let small = shrink_to(&p, 3).unwrap();
        assert_eq!((small.width(), small.height()), (4, 3));
        // The mean of the picture is kept: the filter is widened.
        assert!(small.pixel(0, 0)[0] < 15 && small.pixel(3, 2)[1] > 40, "{:?}", small.pixel(3, 2));
        assert!(shrink_to(&p, 6).is_none() && shrink_to(&p, 0).is_none());
        assert!(shrink_to(&Picture::black(0, 0), 4).is_none());
    }

    #[test]
    fn thumbnails_have_mean_zero_and_length_one() {
        let t = grey_thumbnail(&gradient(), 4).unwrap();
        assert!(t.iter().sum::<f32>().abs() < 1e-4);
        assert!((t.iter().map(|v| v * v).sum::<f32>() - 1.0).abs() < 1e-4);
        assert!(grey_thumbnail(&Picture::black(5, 5), 4).unwrap().iter().all(|v| *v == 0.0));
    }
}
