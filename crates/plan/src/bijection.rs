//! A keyed permutation of 0..n that is computed, not stored.
//!
//! An unbalanced Feistel network over the smallest power of two that holds n, walked along its cycle until
//! it lands below n (Black and Rogaway 2002, "Ciphers with arbitrary finite domains"). Fewer than two
//! walks are expected, whatever n is. Invariant: for a fixed key it is a bijection; it is a shuffle, not a
//! cipher.

use mcl_types::SplitMix64;

/// Rounds of the network: even, and enough that neighbours share nothing at the smallest widths.
const ROUNDS: usize = 12;

/// One permutation of 0..n.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Bijection {
    n: u64,
    right_bits: u32,
    left_mask: u64,
    right_mask: u64,
    keys: [u64; ROUNDS],
}

impl Bijection {
    /// The permutation of 0..n that `stream` keys.
    pub(crate) fn new(n: u64, mut stream: SplitMix64) -> Self {
        let bits = 64 - n.saturating_sub(1).leading_zeros();
        let left_bits = bits / 2;
        let right_bits = bits - left_bits;
        let mut keys = [0; ROUNDS];
        keys.fill_with(|| stream.next_u64());
        Self { n, right_bits, left_mask: mask(left_bits), right_mask: mask(right_bits), keys }
    }

    /// The image of `x`; a number outside 0..n is its own image.
    pub(crate) fn apply(&self, x: u64) -> u64 {
        if x >= self.n {
            return x;
        }
        let mut y = self.network(x);
        while y >= self.n {
            y = self.network(y);
        }
        y
    }

    fn network(&self, x: u64) -> u64 {
        let mut left = x >> self.right_bits;
        let mut right = x & self.right_mask;
        for (round, key) in self.keys.iter().enumerate() {
            if round % 2 == 0 {
                left ^= scramble(right, *key) & self.left_mask;
            } else {
                right ^= scramble(left, *key) & self.right_mask;
            }
        }
        (left << self.right_bits) | right
    }
}

const fn mask(bits: u32) -> u64 {
    (1_u64 << bits) - 1
}

/// The first output of a SplitMix64 stream is a full avalanche of its state.
const fn scramble(half: u64, key: u64) -> u64 {
    SplitMix64::new(half ^ key).next_u64()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn image(n: u64, key: u64) -> Vec<u64> {
        let b = Bijection::new(n, SplitMix64::new(key));
        (0..n).map(|x| b.apply(x)).collect()
    }

    #[test]
    fn every_small_domain_is_permuted() {
        for n in 0..300 {
            let mut seen = image(n, n + 9);
            seen.sort_unstable();
            assert_eq!(seen, (0..n).collect::<Vec<_>>(), "n = {n}");
        }
    }

    #[test]
    fn all_orders_of_four_occur() {
        let orders: std::collections::HashSet<Vec<u64>> = (0..2000).map(|k| image(4, k)).collect();
        assert_eq!(orders.len(), 24);
    }

    #[test]
    fn it_mixes() {
        // Of a random permutation of n about one element stays in place and neighbours end far apart.
        let n = 10_000;
        let order = image(n, 3);
        let fixed = order.iter().enumerate().filter(|(i, x)| *i as u64 == **x).count();
        assert!(fixed < 10, "{fixed} fixed points");
        let gap: u64 = order.windows(2).map(|w| w[0].abs_diff(w[1])).sum::<u64>() / (n - 1);
        assert!((3_000..3_700).contains(&gap), "mean gap {gap}, expected n/3");
    }

    #[test]
    fn the_largest_domains_do_not_overflow() {
        for n in [u64::MAX, 1 << 63, (1 << 63) + 1] {
            let b = Bijection::new(n, SplitMix64::new(1));
            let images: Vec<u64> = (0..100).map(|x| b.apply(x)).collect();
            assert!(images.iter().all(|y| *y < n));
            assert!(images.iter().collect::<std::collections::HashSet<_>>().len() == 100);
        }
    }
}
