//! Hue rotation through Pillow's 8-bit HSV, bit-equal, in single precision that vectorises.
//!
//! Pillow computes in a mixture of float and double. Two facts, both checked over the whole domain by
//! the tests, make f32 enough: of the two ratios that make a hue one is always 0 or 1, so the hue is
//! `whole +- middle/range` with one rounding; and the way back is the rounding of the exact rational
//! `v * (65025 - s*g) / 65025`, which is never nearer to a half than f32 division resolves.

use super::kernel::{byte, kernel};

/// One pixel to Pillow's (H, S, V).
#[inline(always)]
fn to_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
    let (high, low) = (r.max(g).max(b), r.min(g).min(b));
    let middle = r.max(g).min(r.min(g).max(b));
    let range = f32::from(high - low);
    let range = if range > 0.0 { range } else { 1.0 };
    let ratio = f32::from(high - middle) / range;
    // Whole part and sign of the hue by which channel is high and which is low.
    let (red, green) = (r == high, g == high);
    let whole = if red {
        if b == low { 1.0 } else { -1.0 }
    } else if green {
        if b == low { 1.0 } else { 3.0 }
    } else if r == low {
        3.0
    } else {
        5.0
    };
    let rising = if red {
        b != low
    } else if green {
        b == low
    } else {
        r == low
    };
    let hue = if rising { whole + ratio } else { whole - ratio };
    let turn = hue / 6.0;
    let turn = if turn < 0.0 { turn + 1.0 } else { turn };
    let saturation = range / if high > 0 { f32::from(high) } else { 1.0 };
    let coloured = high != low;
    let h = byte(turn * 255.0);
    let s = byte(saturation * 255.0);
    (if coloured { h } else { 0 }, if coloured { s } else { 0 }, high)
}

/// Pillow's (H, S, V) to RGB.
#[inline(always)]
fn to_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
    let six = u32::from(h) * 6;
    let sector = (six * 257 + 257) >> 16; // six / 255 for six <= 1530
    let part = six - 255 * sector;
    // Odd sectors fall (q), even ones rise (t): one quotient serves both.
    let part = if sector & 1 == 1 { part } else { 255 - part };
    let (s, value) = (u32::from(s), u32::from(v));
    let low_num = value * (255 - s) * 255;
    let mid_num = value * (65_025 - s * part);
    let low = quotient(low_num);
    let mid = quotient(mid_num);
    let sector = if sector == 6 { 0 } else { sector };
    let r = if sector == 0 || sector == 5 {
        v
    } else if sector == 1 || sector == 4 {
        mid
    } else {
        low
    };
    let g = if sector == 1 || sector == 2 {
        v
    } else if sector == 0 || sector == 3 {
        mid
    } else {
        low
    };
    let b = if sector == 3 || sector == 4 {
        v
    } else if sector == 2 || sector == 5 {
        mid
    } else {
        low
    };
    (r, g, b)
}

/// `n / 65025` rounded; n is at most 255 * 65025, so n plus a half stays exact in f32.
#[inline(always)]
fn quotient(n: u32) -> u8 {
    #[expect(clippy::cast_precision_loss, clippy::cast_possible_wrap, reason = "below 2^24")]
    {
        byte((n + 32_512) as i32 as f32 / 65_025.0)
    }
}

kernel! {
    /// Rotates the hue of every pixel by `shift` 255ths of a turn (wrapping).
    pub(super) fn rotate<'a>(r: &'a mut [u8], g: &'a mut [u8], b: &'a mut [u8], shift: u8) -> () {
        for ((r, g), b) in r.iter_mut().zip(g).zip(b) {
            let (h, s, v) = to_hsv(*r, *g, *b);
            (*r, *g, *b) = to_rgb(h.wrapping_add(shift), s, v);
        }
    }
}

/// The byte that torchvision adds for a hue factor in -0.5..=0.5: truncated, then wrapped.
pub(super) fn shift_of(factor: f64) -> u8 {
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "wrapping is meant")]
    {
        (factor * 255.0) as i32 as u8
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Pillow's `rgb2hsv`, literally.
    fn pillow_hsv(r: u8, g: u8, b: u8) -> (u8, u8, u8) {
        let (max, min) = (r.max(g).max(b), r.min(g).min(b));
        if max == min {
            return (0, 0, max);
        }
        let cr = f32::from(max - min);
        let s = cr / f32::from(max);
        let [rc, gc, bc] = [r, g, b].map(|c| f32::from(max - c) / cr);
        let h = if r == max {
            bc - gc
        } else if g == max {
            (2.0 + f64::from(rc) - f64::from(bc)) as f32
        } else {
            (4.0 + f64::from(gc) - f64::from(rc)) as f32
        };
        let h = ((f64::from(h) / 6.0 + 1.0) % 1.0) as f32;
        ((f64::from(h) * 255.0) as u8, (f64::from(s) * 255.0) as u8, max)
    }

    /// Pillow's `hsv2rgb`, literally.
    fn pillow_rgb(h: u8, s: u8, v: u8) -> (u8, u8, u8) {
        if s == 0 {
            return (v, v, v);
        }
        let whole = (f64::from(h) * 6.0 / 255.0).floor();
        let f = (f64::from(h) * 6.0 / 255.0 - whole) as f32;
        let fs = (f64::from(s) / 255.0) as f32;
        let value = f64::from(v);
        let p = (value * (1.0 - f64::from(fs))).round() as u8;
        let q = (value * (1.0 - f64::from(fs * f))).round() as u8;
        let t = (value * (1.0 - f64::from(fs) * (1.0 - f64::from(f)))).round() as u8;
        match whole as u32 % 6 {
            0 => (v, t, p),
            1 => (q, v, p),
            2 => (p, v, t),
            3 => (p, q, v),
            4 => (t, p, v),
            _ => (v, p, q),
        }
    }

    #[test]
    fn hsv_is_pillows_for_every_colour() {
        for rgb in 0..1_u32 << 24 {
            let [r, g, b, _] = rgb.to_le_bytes();
            assert_eq!(to_hsv(r, g, b), pillow_hsv(r, g, b), "rgb {r} {g} {b}");
        }
    }

    #[test]
    fn rgb_is_pillows_for_every_hsv() {
        for hsv in 0..1_u32 << 24 {
            let [h, s, v, _] = hsv.to_le_bytes();
            assert_eq!(to_rgb(h, s, v), pillow_rgb(h, s, v), "hsv {h} {s} {v}");
        }
    }

    #[test]
    fn hue_factors_wrap_as_numpy_does() {
        assert_eq!(shift_of(0.1), 25);
        assert_eq!(shift_of(-0.1), 231);
        assert_eq!(shift_of(0.5), 127);
        assert_eq!(shift_of(-0.5), 129);
    }
}
