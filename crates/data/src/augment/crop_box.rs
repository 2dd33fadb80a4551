//! Where a random resized crop lies: torchvision's `RandomResizedCrop.get_params`.

use mcl_types::SplitMix64;

/// A rectangle of a picture, never empty, always inside.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct CropBox {
    /// First column.
    pub left: u32,
    /// First row.
    pub top: u32,
    /// Columns.
    pub width: u32,
    /// Rows.
    pub height: u32,
}

/// Tries before the central crop.
const TRIES: u32 = 10;

impl CropBox {
    /// Draws a crop of a `width` x `height` picture with an area share from `scale` and an aspect
    /// ratio from `ratio`. Four numbers are drawn a try, accepted or not.
    pub fn draw(
        random: &mut SplitMix64,
        width: u32,
        height: u32,
        scale: (f64, f64),
        ratio: (f64, f64),
    ) -> Self {
        let area = f64::from(width) * f64::from(height);
        let log_ratio = (libm::log(ratio.0), libm::log(ratio.1));
        for _ in 0..TRIES {
            let target = area * random.range(scale.0, scale.1);
            let aspect = libm::exp(random.range(log_ratio.0, log_ratio.1));
            let w = (target * aspect).sqrt().round_ties_even();
            let h = (target / aspect).sqrt().round_ties_even();
            let (down, across) = (random.uniform(), random.uniform());
            if (1.0..=f64::from(width)).contains(&w) && (1.0..=f64::from(height)).contains(&h) {
                let (w, h) = (whole(w), whole(h));
                let top = whole((down * f64::from(height - h + 1)).floor());
                let left = whole((across * f64::from(width - w + 1)).floor());
                return Self { left, top, width: w, height: h };
            }
        }
        Self::central(width, height, ratio)
    }

    /// The largest central crop whose aspect ratio lies in `ratio`.
    pub fn central(width: u32, height: u32, ratio: (f64, f64)) -> Self {
        let aspect = f64::from(width) / f64::from(height.max(1));
        let (w, h) = if aspect < ratio.0 {
            (width, whole((f64::from(width) / ratio.0).round_ties_even()).clamp(1, height.max(1)))
        } else if aspect > ratio.1 {
            (whole((f64::from(height) * ratio.1).round_ties_even()).clamp(1, width.max(1)), height)
        } else {
            (width, height)
        };
        Self { left: (width - w) / 2, top: (height - h) / 2, width: w, height: h }
    }
}

/// A float that is known to hold a small whole number.
#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "checked by the callers")]
const fn whole(value: f64) -> u32 {
    value as u32
}

#[cfg(test)]
mod tests {
    use super::*;

    const RATIO: (f64, f64) = (3.0 / 4.0, 4.0 / 3.0);

    #[test]
    fn crops_lie_inside_whatever_the_shape() {
        let mut random = SplitMix64::new(3);
        for (w, h) in [(1, 1), (1, 2), (2, 1), (3, 4000), (10_000, 10), (500, 375), (37, 53)] {
            for _ in 0..200 {
                let b = CropBox::draw(&mut random, w, h, (0.2, 1.0), RATIO);
                assert!(b.width >= 1 && b.height >= 1, "{b:?} of {w}x{h}");
                assert!(b.left + b.width <= w && b.top + b.height <= h, "{b:?} of {w}x{h}");
            }
        }
    }

    #[test]
    fn extreme_shapes_fall_back_to_the_centre() {
        let b = CropBox::central(10_000, 10, RATIO);
        assert_eq!((b.width, b.height, b.left, b.top), (13, 10, 4993, 0));
        let b = CropBox::central(3, 4000, RATIO);
        assert_eq!((b.width, b.height, b.left, b.top), (3, 4, 0, 1998));
        let b = CropBox::central(100, 100, RATIO);
        assert_eq!((b.width, b.height), (100, 100));
    }

    #[test]
    fn areas_and_ratios_are_spread_as_asked() {
        let mut random = SplitMix64::new(5);
        let mut area = 0.0;
        for _ in 0..4000 {
            let b = CropBox::draw(&mut random, 640, 480, (0.2, 1.0), RATIO);
            let share = f64::from(b.width * b.height) / (640.0 * 480.0);
            let ratio = f64::from(b.width) / f64::from(b.height);
            assert!((0.19..=1.0).contains(&share) && (0.74..=1.34).contains(&ratio), "{b:?}");
            area += share;
        }
        let mean = area / 4000.0;
        assert!((0.45..0.6).contains(&mean), "mean area share {mean}");
    }
}
