//! What an epoch plan depends on, and what is refused.

use mcl_types::{Digest, Seed};
use serde::{Deserialize, Serialize};

/// How an epoch's samples are mixed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Shuffle {
    /// Over the whole dataset: for folders and local disks.
    Global,
    /// Shards permuted and dealt to lanes, samples mixed within a few shards: for tar files read in order.
    Windowed,
}

/// Everything that the plan is a function of.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub struct PlanSpec {
    /// Seed of the run.
    pub seed: Seed,
    /// Digest of the dataset's index.
    pub dataset_digest: Digest,
    /// Samples in the dataset.
    pub dataset_len: u64,
    /// Samples of each shard, in the order of the dataset's index.
    pub shards: Vec<u64>,
    /// K: lanes of the job.
    pub lanes: u32,
    /// N: samples of one lane in one step.
    pub images_per_lane: u32,
    /// How samples are mixed.
    pub shuffle: Shuffle,
}

/// A plan that cannot be made.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum PlanError {
    /// One step needs more samples than there are.
    #[error(
        "the dataset holds {found} pictures, but one step takes [batch] lanes {lanes} x images_per_lane {images_per_lane} = {needed}: {fits}"
    )]
    TooFew {
        /// Samples in the dataset.
        found: u64,
        /// Samples of one step.
        needed: u64,
        /// Lanes asked for.
        lanes: u32,
        /// Samples a lane asked for.
        images_per_lane: u32,
        /// Values that would fit, as advice.
        fits: String,
    },
    /// Nothing would be read.
    #[error(
        "[batch] lanes is {lanes} and images_per_lane is {images_per_lane}: expected both to be at least 1"
    )]
    EmptyBatch {
        /// Lanes asked for.
        lanes: u32,
        /// Samples a lane asked for.
        images_per_lane: u32,
    },
    /// Shards and dataset disagree.
    #[error(
        "the {shards} shards hold {sum} pictures together, but the dataset's index says {len}: index the dataset again"
    )]
    ShardSum {
        /// How many shards.
        shards: usize,
        /// What they hold together.
        sum: u128,
        /// What the index says.
        len: u64,
    },
}

impl PlanSpec {
    /// K * N: samples of one step.
    pub fn step_len(&self) -> u64 {
        u64::from(self.lanes) * u64::from(self.images_per_lane)
    }

    /// Steps of one epoch, floor(n / (K * N)).
    ///
    /// # Errors
    /// As [`PlanSpec::check`].
    pub fn steps_per_epoch(&self) -> Result<u64, PlanError> {
        self.check()?;
        Ok(self.dataset_len / self.step_len())
    }

    /// Whether a plan can be made of it.
    ///
    /// # Errors
    /// When the batch is empty, larger than the dataset, or the shards do not add up. Shards may be left
    /// out with a global shuffle, which does not look at them.
    pub fn check(&self) -> Result<(), PlanError> {
        let (lanes, images_per_lane) = (self.lanes, self.images_per_lane);
        if lanes == 0 || images_per_lane == 0 {
            return Err(PlanError::EmptyBatch { lanes, images_per_lane });
        }
        let sum: u128 = self.shards.iter().copied().map(u128::from).sum();
        let shards_matter = self.shuffle == Shuffle::Windowed || !self.shards.is_empty();
        if shards_matter && sum != u128::from(self.dataset_len) {
            return Err(PlanError::ShardSum { shards: self.shards.len(), sum, len: self.dataset_len });
        }
        if self.dataset_len < self.step_len() {
            return Err(PlanError::TooFew {
                found: self.dataset_len,
                needed: self.step_len(),
                lanes,
                images_per_lane,
                fits: fitting(self.dataset_len, lanes, images_per_lane),
            });
        }
        Ok(())
    }
}

fn fitting(n: u64, lanes: u32, images_per_lane: u32) -> String {
    let mut options = Vec::new();
    let fewer_images = n / u64::from(lanes);
    if fewer_images >= 1 {
        options.push(format!("images_per_lane = {fewer_images}"));
    }
    let fewer_lanes = n / u64::from(images_per_lane);
    if fewer_lanes >= 1 {
        options.push(format!("lanes = {fewer_lanes}"));
    }
    if n == 0 {
        return "check [data] source, it names no picture".to_owned();
    }
    if options.is_empty() {
        options.push(format!("lanes = 1 with images_per_lane = {n}"));
    }
    format!("set {}, or add pictures", options.join(" or "))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn spec(n: u64, lanes: u32, images: u32) -> PlanSpec {
        PlanSpec {
            seed: Seed::new(1),
            dataset_digest: Digest::of(b"d"),
            dataset_len: n,
            shards: vec![n],
            lanes,
            images_per_lane: images,
            shuffle: Shuffle::Global,
        }
    }

    #[test]
    fn too_few_pictures_names_values_that_fit() {
        let text = spec(10, 4, 8).check().unwrap_err().to_string();
        assert!(text.contains("images_per_lane = 2 or lanes = 1"), "{text}");
        let text = spec(3, 4, 8).check().unwrap_err().to_string();
        assert!(text.contains("lanes = 1 with images_per_lane = 3"), "{text}");
        assert!(spec(0, 1, 1).check().unwrap_err().to_string().contains("names no picture"));
        // The advice is good advice.
        assert_eq!(spec(10, 4, 2).steps_per_epoch(), Ok(1));
        assert_eq!(spec(10, 1, 8).steps_per_epoch(), Ok(1));
    }

    #[test]
    fn shards_must_add_up() {
        let mut wrong = spec(10, 1, 1);
        wrong.shards = vec![4, 4];
        assert!(matches!(wrong.check(), Err(PlanError::ShardSum { sum: 8, len: 10, .. })));
        wrong.shards.clear();
        assert!(wrong.check().is_ok(), "a global shuffle does not need shards");
        wrong.shuffle = Shuffle::Windowed;
        assert!(wrong.check().is_err());
        assert!(matches!(spec(10, 0, 1).check(), Err(PlanError::EmptyBatch { .. })));
    }
}
