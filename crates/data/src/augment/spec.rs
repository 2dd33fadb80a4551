//! What the augmentation does, as a validated description.

use super::blur::LARGEST_SIGMA;
use serde::{Deserialize, Serialize};

/// Strengths of the colour jitter: a factor is drawn from 1 - x ..= 1 + x (not below 0), hue from
/// -x ..= x turns. Zero switches one off.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct Jitter {
    /// Brightness.
    pub brightness: f64,
    /// Contrast.
    pub contrast: f64,
    /// Saturation.
    pub saturation: f64,
    /// Hue, at most half a turn.
    pub hue: f64,
}

impl Default for Jitter {
    fn default() -> Self {
        Self { brightness: 0.4, contrast: 0.4, saturation: 0.2, hue: 0.1 }
    }
}

/// The augmentation of every view. Defaults are the official values.
///
/// Stages in their order: crop and resize, flip, quarter turns, jitter (its four parts in random order), channel
/// permutation, inversion, grey, blur, solarise; then, in exact mode, decimation.
#[derive(Debug, Clone, Copy, PartialEq, Serialize, Deserialize)]
#[serde(deny_unknown_fields, default)]
pub struct AugmentSpec {
    /// Least and largest share of the picture's area that a crop takes.
    pub crop_scale: (f64, f64),
    /// Least and largest aspect ratio (width / height) of a crop.
    pub crop_ratio: (f64, f64),
    /// Chance of a horizontal flip.
    pub flip_p: f64,
    /// Strengths of the colour jitter.
    pub jitter: Jitter,
    /// Chance of the colour jitter.
    pub jitter_p: f64,
    /// Chance of grey.
    pub grey_p: f64,
    /// Chance of blur on the q side.
    pub blur_p_q: f64,
    /// Chance of blur on the k side.
    pub blur_p_k: f64,
    /// Least and largest Pillow radius (standard deviation in pixels of the full-size view).
    pub blur_sigma: (f64, f64),
    /// Chance of solarising on the q side.
    pub solarize_p_q: f64,
    /// Chance of solarising on the k side.
    pub solarize_p_k: f64,
    /// Chance of shuffling the colour channels. Not in the official recipe.
    pub channel_permutation_p: f64,
    /// Chance of inverting the colours. Not in the official recipe.
    pub invert_p: f64,
    /// Chance of a turn by 90, 180 or 270 degrees, each as likely. Not in the official recipe.
    pub quarter_turn_p: f64,
}

impl Default for AugmentSpec {
    fn default() -> Self {
        Self {
            crop_scale: (0.2, 1.0),
            crop_ratio: (3.0 / 4.0, 4.0 / 3.0),
            flip_p: 0.5,
            jitter: Jitter::default(),
            jitter_p: 0.8,
            grey_p: 0.2,
            blur_p_q: 1.0,
            blur_p_k: 0.1,
            blur_sigma: (0.1, 2.0),
            solarize_p_q: 0.0,
            solarize_p_k: 0.2,
            channel_permutation_p: 0.0,
            invert_p: 0.0,
            quarter_turn_p: 0.0,
        }
    }
}

/// How the views of the higher levels are made.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum ViewMode {
    /// Augment at full size, then keep the top-left pixel of every block: the official computation.
    #[default]
    Exact,
    /// Crop straight to the size of the level: about twice as fast, anti-aliased. The blur radius is
    /// divided by the level's ratio, so that it covers the same part of the scene.
    Level,
}

/// An augmentation that cannot be carried out.
#[derive(Debug, Clone, PartialEq, thiserror::Error)]
pub enum AugmentError {
    /// A probability outside 0..=1.
    #[error("{key} = {found}: expected a probability from 0 to 1")]
    Probability {
        /// Field of the spec.
        key: &'static str,
        /// What it holds.
        found: f64,
    },
    /// A number or pair outside its range.
    #[error("{key} = {found}: expected {expected}")]
    Range {
        /// Field of the spec.
        key: &'static str,
        /// What it holds.
        found: String,
        /// What it may hold.
        expected: &'static str,
    },
    /// A picture size that its levels do not divide.
    #[error(
        "image size {size} with level ratio {ratio}: expected a size from 1 to 4096 that every level ratio divides"
    )]
    Size {
        /// Edge of a view in pixels.
        size: u32,
        /// The offending ratio, 0 when the list is empty.
        ratio: u32,
    },
}

impl AugmentSpec {
    /// Checks every field.
    ///
    /// # Errors
    /// Names the first field that is out of range, what it holds and what it may hold.
    pub fn validate(&self) -> Result<(), AugmentError> {
        let chances = [
            ("flip_p", self.flip_p),
            ("jitter_p", self.jitter_p),
            ("grey_p", self.grey_p),
            ("blur_p_q", self.blur_p_q),
            ("blur_p_k", self.blur_p_k),
            ("solarize_p_q", self.solarize_p_q),
            ("solarize_p_k", self.solarize_p_k),
            ("channel_permutation_p", self.channel_permutation_p),
            ("invert_p", self.invert_p),
            ("quarter_turn_p", self.quarter_turn_p),
        ];
        for (key, found) in chances {
            if !(0.0..=1.0).contains(&found) {
                return Err(AugmentError::Probability { key, found });
            }
        }
        let strengths = [
            ("jitter.brightness", self.jitter.brightness),
            ("jitter.contrast", self.jitter.contrast),
            ("jitter.saturation", self.jitter.saturation),
        ];
        for (key, found) in strengths {
            range(key, (0.0, found), (0.0, 10.0), "a strength from 0 to 10")?;
        }
        range("jitter.hue", (0.0, self.jitter.hue), (0.0, 0.5), "a share of a turn from 0 to 0.5")?;
        range(
            "crop_scale",
            self.crop_scale,
            (1e-6, 1.0),
            "least and largest area share, rising, above 0 to 1",
        )?;
        range(
            "crop_ratio",
            self.crop_ratio,
            (1e-3, 1e3),
            "least and largest width / height, rising, 0.001 to 1000",
        )?;
        range(
            "blur_sigma",
            self.blur_sigma,
            (0.0, LARGEST_SIGMA),
            "least and largest radius, rising, 0 to 10 pixels",
        )
    }
}

/// Checks `least <= pair.0 <= pair.1 <= largest`; a NaN never passes.
fn range(
    key: &'static str,
    pair: (f64, f64),
    bounds: (f64, f64),
    expected: &'static str,
) -> Result<(), AugmentError> {
    if bounds.0 <= pair.0 && pair.0 <= pair.1 && pair.1 <= bounds.1 {
        return Ok(());
    }
    Err(AugmentError::Range { key, found: format!("{pair:?}"), expected })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_official_values_are_valid() {
        AugmentSpec::default().validate().unwrap();
    }

    #[test]
    fn bad_fields_are_named() {
        let mut spec = AugmentSpec { flip_p: 1.5, ..AugmentSpec::default() };
        assert!(spec.validate().unwrap_err().to_string().contains("flip_p = 1.5"));
        spec = AugmentSpec { crop_scale: (0.9, 0.2), ..AugmentSpec::default() };
        assert!(spec.validate().unwrap_err().to_string().contains("crop_scale"));
        spec = AugmentSpec { blur_sigma: (0.1, f64::NAN), ..AugmentSpec::default() };
        assert!(spec.validate().unwrap_err().to_string().contains("blur_sigma"));
        spec = AugmentSpec::default();
        spec.jitter.hue = 0.6;
        assert!(spec.validate().unwrap_err().to_string().contains("jitter.hue"));
    }
}
