//! Which tile shows which picture: montage counts, permutations and labels of a level.
//!
//! Pure numbers. Level i has ratio r and B montages; a permutation of 0..r*r*B says, tile by tile in
//! the order (montage, row, column), which picture is there: entry modulo N, which is also its label.

use mcl_types::{Epoch, Lane, Purpose, Seed, Step};

pub use crate::augment::Side;

/// Divisors of N that give the official montage counts of the four levels. Level i gets
/// ceil(N / divisor), so that with the official ratios every picture is on every level at least once.
const OFFICIAL_DIVISORS: [usize; 4] = [1, 4, 16, 32];

/// The levels of one lane's batch.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct MontageLayout {
    pictures: usize,
    ratios: Vec<usize>,
    montages: Vec<usize>,
}

/// A layout that leaves a picture out or shows nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum MontageError {
    /// No pictures or no levels.
    #[error("{pictures} pictures on {levels} levels: expected at least one of each")]
    Empty {
        /// N.
        pictures: usize,
        /// L.
        levels: usize,
    },
    /// The two lists differ in length.
    #[error("{montages} montage counts for {levels} levels: expected one each")]
    Length {
        /// Counts given.
        montages: usize,
        /// L.
        levels: usize,
    },
    /// A level without room for all.
    #[error(
        "level {level}: {montages} montages of {ratio}x{ratio} tiles cannot show {pictures} pictures; expected at least {least}"
    )]
    TooFew {
        /// The level.
        level: usize,
        /// Its montages.
        montages: usize,
        /// Its ratio.
        ratio: usize,
        /// N.
        pictures: usize,
        /// Montages that would do.
        least: usize,
    },
}

impl MontageLayout {
    /// The official counts for `pictures` pictures: ceil(N / [1, 4, 16, 32]), and on further or other
    /// levels ceil(N / r^2).
    ///
    /// # Errors
    /// When there are no pictures or no levels, or a ratio is 0.
    pub fn official(pictures: usize, ratios: &[u32]) -> Result<Self, MontageError> {
        let official = ratios.iter().zip([1, 2, 4, 8]).all(|(r, o)| *r == o);
        let montages = ratios.iter().enumerate().map(|(level, &ratio)| {
            let area = (ratio as usize * ratio as usize).max(1);
            let divisor = OFFICIAL_DIVISORS.get(level).filter(|_| official).copied().unwrap_or(area);
            pictures.div_ceil(divisor)
        });
        let montages: Vec<usize> = montages.collect();
        Self::with_montages(pictures, ratios, &montages)
    }

    /// As many montages a level as `montages` says.
    ///
    /// # Errors
    /// When a level cannot show every picture.
    pub fn with_montages(pictures: usize, ratios: &[u32], montages: &[usize]) -> Result<Self, MontageError> {
        if pictures == 0 || ratios.is_empty() {
            return Err(MontageError::Empty { pictures, levels: ratios.len() });
        }
        if montages.len() != ratios.len() {
            return Err(MontageError::Length { montages: montages.len(), levels: ratios.len() });
        }
        let ratios: Vec<usize> = ratios.iter().map(|r| *r as usize).collect();
        for (level, (&ratio, &count)) in ratios.iter().zip(montages).enumerate() {
            if ratio * ratio * count < pictures {
                let least = pictures.div_ceil((ratio * ratio).max(1));
                return Err(MontageError::TooFew { level, montages: count, ratio, pictures, least });
            }
        }
        Ok(Self { pictures, ratios, montages: montages.to_vec() })
    }

    /// N.
    pub const fn pictures(&self) -> usize {
        self.pictures
    }

    /// L.
    pub fn levels(&self) -> usize {
        self.ratios.len()
    }

    /// r of a level; 0 beyond the last.
    pub fn ratio(&self, level: usize) -> usize {
        self.ratios.get(level).copied().unwrap_or(0)
    }

    /// B of a level; 0 beyond the last.
    pub fn montages(&self, level: usize) -> usize {
        self.montages.get(level).copied().unwrap_or(0)
    }

    /// r * r * B of a level: its tiles, rows and labels.
    pub fn tiles(&self, level: usize) -> usize {
        self.ratio(level).pow(2) * self.montages(level)
    }

    /// Pictures of the whole pyramid batch, all levels together.
    pub fn pyramid(&self) -> usize {
        self.montages.iter().sum()
    }

    /// The permutation of a level. Level 0 of the official layout shows each picture as itself:
    /// 0, 1, 2, ..., and draws nothing.
    pub fn permutation(
        &self,
        seed: Seed,
        (epoch, step, lane): (Epoch, Step, Lane),
        level: usize,
        side: Side,
    ) -> Vec<usize> {
        if level == 0 && self.ratio(0) == 1 {
            return (0..self.tiles(0)).collect();
        }
        montage_permutation(seed, (epoch, step, lane), level, side, self.tiles(level))
    }
}

/// A permutation of 0..tiles for one level and side of one lane's step, from a stream of its own.
pub fn montage_permutation(
    seed: Seed,
    (epoch, step, lane): (Epoch, Step, Lane),
    level: usize,
    side: Side,
    tiles: usize,
) -> Vec<usize> {
    let side = match side {
        Side::Q => 0,
        Side::K => 1,
    };
    let numbers = [epoch.get(), step.get(), u64::from(lane.get()), level as u64, side];
    seed.stream(Purpose::Montage, &numbers).permutation(tiles)
}

/// The label of every tile: its picture, entry modulo `pictures`.
pub fn labels(permutation: &[usize], pictures: usize) -> Vec<usize> {
    permutation.iter().map(|p| p % pictures.max(1)).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn at() -> (Epoch, Step, Lane) {
        (Epoch::new(1), Step::new(2), Lane::new(3))
    }

    #[test]
    fn the_official_batch_of_128_makes_172_pictures() {
        let layout = MontageLayout::official(128, &[1, 2, 4, 8]).unwrap();
        let montages: Vec<usize> = (0..4).map(|l| layout.montages(l)).collect();
        assert_eq!((montages, layout.pyramid()), (vec![128, 32, 8, 4], 172));
        let tiles: Vec<usize> = (0..4).map(|l| layout.tiles(l)).collect();
        assert_eq!(tiles, [128, 128, 128, 256]);
    }

    #[test]
    fn small_batches_match_the_golden_counts() {
        let counts = |n: usize| {
            let layout = MontageLayout::official(n, &[1, 2, 4, 8]).unwrap();
            (0..4).map(|l| layout.montages(l)).collect::<Vec<_>>()
        };
        assert_eq!(counts(8), [8, 2, 1, 1]);
        assert_eq!(counts(4), [4, 1, 1, 1]);
    }

    #[test]
    fn every_picture_is_on_every_level() {
        for n in 1..=70 {
            for ratios in [&[1_u32, 2, 4, 8][..], &[1, 2], &[1, 3, 5], &[2, 4]] {
                let layout = MontageLayout::official(n, ratios).unwrap();
                for level in 0..layout.levels() {
                    let p = layout.permutation(Seed::new(1), at(), level, Side::Q);
                    let mut seen = vec![0; n];
                    labels(&p, n).into_iter().for_each(|l| seen[l] += 1);
                    assert!(seen.iter().all(|s| *s >= 1), "n {n}, level {level}");
                    assert_eq!(p.len(), layout.tiles(level));
                }
            }
        }
    }

    #[test]
    fn permutations_differ_by_level_side_and_place() {
        let p = |level, side| montage_permutation(Seed::new(1), at(), level, side, 64);
        assert_eq!(p(1, Side::Q), p(1, Side::Q));
        assert_ne!(p(1, Side::Q), p(1, Side::K));
        assert_ne!(p(1, Side::Q), p(2, Side::Q));
        let mut sorted = p(1, Side::Q);
        sorted.sort_unstable();
        assert_eq!(sorted, (0..64).collect::<Vec<_>>());
    }

    #[test]
    fn layouts_that_leave_a_picture_out_are_refused() {
        let error = MontageLayout::with_montages(128, &[1, 2], &[128, 31]).unwrap_err();
        assert!(error.to_string().contains("at least 32"), "{error}");
        assert!(MontageLayout::official(0, &[1]).is_err());
        assert!(MontageLayout::official(4, &[0]).is_err());
        assert!(MontageLayout::with_montages(4, &[1, 2], &[4]).is_err());
    }
}
