//! Seeds as pure functions of what they are for.
//!
//! Every random choice of a run is drawn from a stream that is named by (run seed, purpose, numbers):
//! never by who draws it or when. That is what makes a run the same on any number of workers.

use serde::{Deserialize, Serialize};

/// What a stream of random numbers is for; part of its name, so that no two purposes share a stream.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Purpose {
    /// Initial weights; numbered by nothing, named by the parameter.
    Init,
    /// Order of an epoch's samples: (epoch).
    Shuffle,
    /// Augmentation of one view: (epoch, sample, view).
    View,
    /// Montage permutation: (epoch, step, lane, level, side).
    Montage,
    /// Replacement of a picture that cannot be decoded: (epoch, step, lane, slot, attempt).
    Substitute,
    /// Generated pictures: (index).
    Generate,
    /// Evaluation's random choices.
    Evaluate,
    /// Which lane computes which key, for norms of a lane's own (moco-v2): (step).
    KeyShuffle,
}

impl Purpose {
    const fn tag(self) -> &'static str {
        match self {
            Self::Init => "init",
            Self::Shuffle => "shuffle",
            Self::View => "view",
            Self::Montage => "montage",
            Self::Substitute => "substitute",
            Self::Generate => "generate",
            Self::Evaluate => "evaluate",
            Self::KeyShuffle => "key-shuffle",
        }
    }
}

/// The run's seed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default, Serialize, Deserialize)]
#[serde(transparent)]
pub struct Seed(u64);

impl Seed {
    /// Wraps a bare seed.
    pub const fn new(seed: u64) -> Self {
        Self(seed)
    }
    /// The bare seed.
    pub const fn get(self) -> u64 {
        self.0
    }
    /// The stream for `purpose` and `numbers`.
    pub fn stream(self, purpose: Purpose, numbers: &[u64]) -> SplitMix64 {
        self.named_stream(purpose, "", numbers)
    }
    /// As [`Seed::stream`], with a name besides (a parameter's, say).
    pub fn named_stream(self, purpose: Purpose, name: &str, numbers: &[u64]) -> SplitMix64 {
        let mut hash = blake3::Hasher::new();
        hash.update(b"mcl-seed-1\0");
        hash.update(&self.0.to_le_bytes());
        hash.update(purpose.tag().as_bytes());
        hash.update(&[0]);
        hash.update(name.as_bytes());
        hash.update(&[0]);
        for n in numbers {
            hash.update(&n.to_le_bytes());
        }
        let mut first = [0_u8; 8];
        hash.finalize_xof().fill(&mut first);
        SplitMix64::new(u64::from_le_bytes(first))
    }
}

/// SplitMix64 (Steele, Lea, Flood 2014): tiny, seekable, good enough for shuffles and augmentation.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct SplitMix64 {
    state: u64,
}

impl SplitMix64 {
    /// Starts the stream at `state`.
    pub const fn new(state: u64) -> Self {
        Self { state }
    }

    /// The next 64 bits.
    pub const fn next_u64(&mut self) -> u64 {
        self.state = self.state.wrapping_add(0x9E37_79B9_7F4A_7C15);
        let mut z = self.state;
        z = (z ^ (z >> 30)).wrapping_mul(0xBF58_476D_1CE4_E5B9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94D0_49BB_1331_11EB);
        z ^ (z >> 31)
    }

    /// Uniform in [0, 1), 53 bits.
    #[expect(clippy::cast_precision_loss, reason = "53 bits fit an f64 exactly")]
    pub const fn uniform(&mut self) -> f64 {
        (self.next_u64() >> 11) as f64 / (1_u64 << 53) as f64
    }

    /// Uniform in [low, high).
    pub const fn range(&mut self, low: f64, high: f64) -> f64 {
        low + (high - low) * self.uniform()
    }

    /// True with probability `p`. Draws one number whatever `p` is, so that streams stay aligned.
    pub const fn chance(&mut self, p: f64) -> bool {
        self.uniform() < p
    }

    /// Uniform in 0..n without modulo bias (Lemire's rejection); 0 for n = 0.
    #[expect(clippy::cast_possible_truncation, reason = "the halves of a u128 product")]
    pub const fn below(&mut self, n: u64) -> u64 {
        if n == 0 {
            return 0;
        }
        loop {
            let wide = self.next_u64() as u128 * n as u128;
            let low = wide as u64;
            if low >= n.wrapping_neg() % n {
                return (wide >> 64) as u64;
            }
        }
    }

    /// One standard normal number (Box-Muller, the cosine half).
    pub fn normal(&mut self) -> f64 {
        let radius = (-2.0 * (1.0 - self.uniform()).ln()).sqrt();
        radius * (std::f64::consts::TAU * self.uniform()).cos()
    }

    /// Fisher-Yates over 0..n.
    pub fn permutation(&mut self, n: usize) -> Vec<usize> {
        let mut order: Vec<usize> = (0..n).collect();
        self.shuffle(&mut order);
        order
    }

    /// Fisher-Yates in place.
    pub fn shuffle<T>(&mut self, items: &mut [T]) {
        for i in (1..items.len()).rev() {
            #[expect(clippy::cast_possible_truncation, reason = "below(i+1) fits a usize")]
            let j = self.below(i as u64 + 1) as usize;
            items.swap(i, j);
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn splitmix_matches_its_published_vector() {
        let mut s = SplitMix64::new(1_234_567);
        assert_eq!(s.next_u64(), 6_457_827_717_110_365_317);
        assert_eq!(s.next_u64(), 3_203_168_211_198_807_973);
    }

    #[test]
    fn streams_differ_by_purpose_name_and_number() {
        let seed = Seed::new(7);
        let first = |mut s: SplitMix64| s.next_u64();
        let base = first(seed.stream(Purpose::View, &[1, 2, 3]));
        assert_eq!(base, first(seed.stream(Purpose::View, &[1, 2, 3])));
        assert_ne!(base, first(seed.stream(Purpose::View, &[1, 2, 4])));
        assert_ne!(base, first(seed.stream(Purpose::Montage, &[1, 2, 3])));
        assert_ne!(base, first(seed.named_stream(Purpose::View, "x", &[1, 2, 3])));
        assert_ne!(base, first(Seed::new(8).stream(Purpose::View, &[1, 2, 3])));
    }

    #[test]
    fn below_stays_below_and_reaches_everything() {
        let mut s = SplitMix64::new(1);
        let mut seen = [0; 7];
        for _ in 0..7000 {
            seen[s.below(7) as usize] += 1;
        }
        assert!(seen.iter().all(|n| (800..1200).contains(n)), "{seen:?}");
        assert_eq!(s.below(0), 0);
    }
}
