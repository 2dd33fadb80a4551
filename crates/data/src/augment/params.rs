//! The random choices of one view, drawn once from its own stream.
//!
//! Drawn ahead of the work and in a fixed order, so that both view modes, and any number of threads,
//! make the same choices for the same (seed, epoch, sample, view).

use super::crop_box::CropBox;
use super::spec::AugmentSpec;
use mcl_types::SplitMix64;

/// One part of the colour jitter with its factor.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum JitterPart {
    /// Blend with black.
    Brightness(f64),
    /// Blend with the mean grey.
    Contrast(f64),
    /// Blend with each pixel's grey.
    Saturation(f64),
    /// Rotate the hue by this share of a turn.
    Hue(f64),
}

/// Which of the two pyramids a view belongs to.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Side {
    /// Views 0..L.
    Q,
    /// Views L..2L.
    K,
}

/// All choices of one view.
#[derive(Debug, Clone, PartialEq)]
pub struct ViewParams {
    /// The crop.
    pub crop: CropBox,
    /// Mirror left to right.
    pub flip: bool,
    /// Quarter turns against the clock, 0 to 3.
    pub quarter_turns: u8,
    /// The jitter's parts in the order drawn; those of strength zero are left out, and all where the
    /// jitter is off.
    pub jitter: Vec<JitterPart>,
    /// Where each channel comes from; `[0, 1, 2]` for unchanged.
    pub channels: [usize; 3],
    /// Invert the colours.
    pub invert: bool,
    /// Make it grey.
    pub grey: bool,
    /// Pillow radius of the blur, in pixels of the full-size view.
    pub blur: Option<f64>,
    /// Solarise at 128.
    pub solarize: bool,
}

impl ViewParams {
    /// Draws the choices for a `width` x `height` picture.
    pub fn draw(random: &mut SplitMix64, spec: &AugmentSpec, side: Side, width: u32, height: u32) -> Self {
        let crop = CropBox::draw(random, width, height, spec.crop_scale, spec.crop_ratio);
        let flip = random.chance(spec.flip_p);
        let jittered = random.chance(spec.jitter_p);
        let mut jitter = draw_jitter(random, spec);
        if !jittered {
            jitter.clear();
        }
        let permuted = random.chance(spec.channel_permutation_p);
        let mut channels = [0, 1, 2];
        random.shuffle(&mut channels);
        if !permuted {
            channels = [0, 1, 2];
        }
        let invert = random.chance(spec.invert_p);
        let grey = random.chance(spec.grey_p);
        let (blur_p, solarize_p) = match side {
            Side::Q => (spec.blur_p_q, spec.solarize_p_q),
            Side::K => (spec.blur_p_k, spec.solarize_p_k),
        };
        let blurred = random.chance(blur_p);
        let sigma = random.range(spec.blur_sigma.0, spec.blur_sigma.1);
        let solarize = random.chance(solarize_p);
        // Drawn last, so that a recipe without turns makes the choices that it made before there were any.
        let turned = random.chance(spec.quarter_turn_p);
        let turns = [1, 2, 3][random.below(3) as usize % 3];
        let quarter_turns = if turned { turns } else { 0 };
        let blur = blurred.then_some(sigma);
        Self { crop, flip, quarter_turns, jitter, channels, invert, grey, blur, solarize }
    }
}

/// Factors and order of the jitter; every number is drawn, used or not.
fn draw_jitter(random: &mut SplitMix64, spec: &AugmentSpec) -> Vec<JitterPart> {
    let mut factor = |strength: f64| {
        let value = random.range((1.0 - strength).max(0.0), 1.0 + strength);
        (strength > 0.0).then_some(value)
    };
    let brightness = factor(spec.jitter.brightness);
    let contrast = factor(spec.jitter.contrast);
    let saturation = factor(spec.jitter.saturation);
    let hue = random.range(-spec.jitter.hue, spec.jitter.hue);
    let hue = (spec.jitter.hue > 0.0).then_some(hue);
    let mut parts = [
        brightness.map(JitterPart::Brightness),
        contrast.map(JitterPart::Contrast),
        saturation.map(JitterPart::Saturation),
        hue.map(JitterPart::Hue),
    ];
    random.shuffle(&mut parts);
    parts.into_iter().flatten().collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_types::{Purpose, Seed};

    fn draw(spec: &AugmentSpec, side: Side, n: u64) -> Vec<ViewParams> {
        (0..n)
            .map(|i| {
                let mut random = Seed::new(1).stream(Purpose::View, &[0, i, 0]);
                ViewParams::draw(&mut random, spec, side, 500, 375)
            })
            .collect()
    }

    fn share(views: &[ViewParams], what: impl Fn(&ViewParams) -> bool) -> f64 {
        views.iter().filter(|v| what(v)).count() as f64 / views.len() as f64
    }

    #[test]
    fn stages_happen_as_often_as_the_recipe_says() {
        let spec = AugmentSpec::default();
        let q = draw(&spec, Side::Q, 4000);
        let k = draw(&spec, Side::K, 4000);
        let near = |found: f64, wanted: f64| assert!((found - wanted).abs() < 0.03, "{found} for {wanted}");
        near(share(&q, |v| v.flip), 0.5);
        near(share(&q, |v| v.jitter.len() == 4), 0.8);
        near(share(&q, |v| v.grey), 0.2);
        near(share(&q, |v| v.blur.is_some()), 1.0);
        near(share(&k, |v| v.blur.is_some()), 0.1);
        near(share(&q, |v| v.solarize), 0.0);
        near(share(&k, |v| v.solarize), 0.2);
        near(share(&q, |v| v.channels != [0, 1, 2]), 0.0);
        near(share(&q, |v| v.quarter_turns != 0), 0.0);
        for v in &q {
            assert!((0.1..2.0).contains(&v.blur.unwrap()));
            for part in &v.jitter {
                match *part {
                    JitterPart::Brightness(f) | JitterPart::Contrast(f) => assert!((0.6..=1.4).contains(&f)),
                    JitterPart::Saturation(f) => assert!((0.8..=1.2).contains(&f)),
                    JitterPart::Hue(f) => assert!((-0.1..=0.1).contains(&f)),
                }
            }
        }
    }

    #[test]
    fn all_turns_are_as_likely_and_change_no_other_choice() {
        let still = draw(&AugmentSpec::default(), Side::Q, 4000);
        let turned = draw(&AugmentSpec { quarter_turn_p: 0.75, ..AugmentSpec::default() }, Side::Q, 4000);
        for turns in 0..4 {
            let found = share(&turned, |v| v.quarter_turns == turns);
            assert!((found - 0.25).abs() < 0.03, "{found} of {turns} turns");
        }
        for (a, b) in still.iter().zip(turned) {
            assert_eq!(*a, ViewParams { quarter_turns: 0, ..b });
        }
    }

    #[test]
    fn a_strength_of_zero_leaves_its_part_out() {
        let mut spec = AugmentSpec { jitter_p: 1.0, ..AugmentSpec::default() };
        spec.jitter.hue = 0.0;
        for v in draw(&spec, Side::Q, 50) {
            assert_eq!(v.jitter.len(), 3);
            assert!(!v.jitter.iter().any(|p| matches!(p, JitterPart::Hue(_))));
        }
    }
}
