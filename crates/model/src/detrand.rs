//! Deterministic, language-neutral filling for golden files: weights, pictures and probe vectors are
//! regenerated from a tag instead of being stored (MCL_SPEC sections 7 and 11).
//!
//! `key(tag) = mix(fnv1a64(tag))`, `z(i) = mix(key + (i + 1) * GOLDEN)`: SplitMix64 addressed by position.
//! These are weights for tests, not the official initialisation.

const GOLDEN: u64 = 0x9E37_79B9_7F4A_7C15;

const fn mix(mut z: u64) -> u64 {
    z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
    z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
    z ^ (z >> 31)
}

/// Key of a tag.
pub fn key(tag: &str) -> u64 {
    let fold = |hash: u64, byte: u8| (hash ^ u64::from(byte)).wrapping_mul(0x0100_0000_01B3);
    mix(tag.bytes().fold(0xCBF2_9CE4_8422_2325, fold))
}

/// The first `count` numbers of a tag.
pub fn bits(tag: &str, count: usize) -> impl Iterator<Item = u64> + use<> {
    let key = key(tag);
    (1_u64..).take(count).map(move |i| mix(key.wrapping_add(i.wrapping_mul(GOLDEN))))
}

/// Uniform in [-1, 1) in steps of 2^-23: exact in f32.
pub fn u24(tag: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    bits(tag, count).map(|z| centred(z, 24))
}

/// Uniform in [-1, 1) in steps of 2^-19: sums of a few stay exact in f32.
pub fn u20(tag: &str, count: usize) -> impl Iterator<Item = f64> + use<> {
    bits(tag, count).map(|z| centred(z, 20))
}

#[expect(clippy::cast_precision_loss, reason = "at most 24 bits")]
const fn centred(z: u64, width: u32) -> f64 {
    let half = (1_u64 << (width - 1)) as f64;
    ((z >> (64 - width)) as f64 - half) / half
}

/// Values of a parameter. Two dimensions or more: u24 * sqrt(6 / fan_in); scale of a normalisation:
/// 1 + u24 / 2; any bias: u24 / 5. Computed in f64, rounded to f32.
#[expect(clippy::cast_precision_loss, reason = "layer sizes, far below 2^53")]
#[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is the definition")]
pub fn parameter(seed: u64, name: &str, shape: &[usize]) -> Vec<f32> {
    let fan_in: usize = shape.iter().skip(1).product();
    let bound = (6.0 / fan_in as f64).sqrt();
    let is_matrix = shape.len() >= 2;
    let is_scale = !is_matrix && name.ends_with("weight");
    let value = |u: f64| match (is_matrix, is_scale) {
        (true, _) => u * bound,
        (false, true) => 1.0 + 0.5 * u,
        (false, false) => 0.2 * u,
    };
    u24(&format!("{seed}/{name}"), shape.iter().product()).map(|u| value(u) as f32).collect()
}

/// Which batch of pictures.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Pictures {
    /// Seed of the golden case.
    pub seed: u64,
    /// Step within the case, from 0.
    pub step: u64,
    /// The official rank: a lane here.
    pub rank: u64,
    /// Pictures n.
    pub images: usize,
    /// Views v of each.
    pub views: usize,
    /// Side S in pixels, a multiple of 8.
    pub side: usize,
}

impl Pictures {
    /// [n, v, 3, S, S] row-major: base in 8x8 cells, plus half a view in 8x8 cells, plus a quarter of noise.
    #[expect(clippy::cast_possible_truncation, reason = "exact in f32")]
    pub fn values(&self) -> Vec<f32> {
        const CELLS: usize = 8;
        let Self { images, views, side, .. } = *self;
        let tag = format!("{}/img/{}/{}", self.seed, self.step, self.rank);
        let plane = 3 * CELLS * CELLS;
        let base: Vec<f64> = u20(&format!("{tag}/base"), images * plane).collect();
        let view: Vec<f64> = u20(&format!("{tag}/view"), images * views * plane).collect();
        let mut noise = u20(&format!("{tag}/pix"), images * views * 3 * side * side);
        let cell = (side / CELLS).max(1);
        let mut values = Vec::with_capacity(images * views * 3 * side * side);
        for picture in 0..images * views {
            for channel in 0..3 {
                for (y, x) in (0..side).flat_map(|y| (0..side).map(move |x| (y, x))) {
                    let at = (channel * CELLS + y / cell) * CELLS + x / cell;
                    let coarse = base[(picture / views) * plane + at] + 0.5 * view[picture * plane + at];
                    values.push((coarse + 0.25 * noise.next().unwrap_or(0.0)) as f32);
                }
            }
        }
        values
    }
}

/// The probe vector of a tensor, for comparing large tensors by one dot product.
pub fn probe(seed: u64, name: &str, count: usize) -> Vec<f64> {
    u24(&format!("{seed}/probe/{name}"), count).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    const TAG: &str = "11/encoder_q.0.conv1.weight";

    #[test]
    fn numbers_of_a_tag() {
        assert_eq!(key(TAG), 0xA98F_3051_8BC9_D553);
        let z: Vec<u64> = bits(TAG, 4).collect();
        assert_eq!(
            z,
            [0x73A3_B6E3_19EE_A8DD, 0xD24B_2220_6B51_A590, 0xAEBE_6660_D7F5_FF19, 0x0AB5_1CB9_53D8_FE1D]
        );
        let fine = [
            -0.096_566_438_674_926_76,
            0.642_917_871_475_219_7,
            0.365_185_499_191_284_2,
            -0.916_347_980_499_267_6,
        ];
        assert_eq!(u24(TAG, 4).collect::<Vec<_>>(), fine);
        let coarse = [
            -0.096_567_153_930_664_06,
            0.642_917_633_056_640_6,
            0.365_184_783_935_546_9,
            -0.916_349_411_010_742_2,
        ];
        assert_eq!(u20(TAG, 4).collect::<Vec<_>>(), coarse);
    }

    #[test]
    fn parameters_by_role() {
        let first = |name: &str, shape: &[usize], n: usize| -> Vec<u32> {
            parameter(11, name, shape).iter().take(n).map(|v| v.to_bits()).collect()
        };
        let weight = first("encoder_q.0.conv1.weight", &[64, 3, 7, 7], 4);
        assert_eq!(weight, [0xBC9F_D21C, 0x3E05_01A1, 0x3D97_193E, 0xBE3D_92C9]);
        assert_eq!(first("encoder_q.0.bn1.weight", &[64], 3), [0x3F8A_BCED, 0x3FAD_E3C6, 0x3F06_20FD]);
        assert_eq!(first("encoder_q.0.bn1.bias", &[64], 3), [0x3DA5_DED0, 0x3D6B_85F3, 0xBCC7_4C40]);
    }

    #[test]
    fn pictures_of_a_step() {
        let batch = Pictures { seed: 11, step: 0, rank: 0, images: 8, views: 8, side: 64 };
        let values = batch.values();
        assert_eq!(values.len(), 8 * 8 * 3 * 64 * 64);
        assert_eq!(values[..3], [-0.043_557_644, -0.098_314_76, -0.105_731_964]);
        let at = ((7 * 8 + 5) * 3 + 2) * 64 * 64 + 64 * 64 - 1;
        assert!((f64::from(values[at]) - 0.722_495_555_877_685_5).abs() < 1e-15);
        let sum: f64 = values.iter().map(|v| f64::from(*v)).sum();
        assert!((sum + 17_476.215_163_707_733).abs() < 1e-6, "{sum}");
    }
}
