//! Which rank carries which lanes (DESIGN section 2).

use crate::{Lane, Rank};
use serde::{Deserialize, Serialize};
use std::ops::Range;

/// K lanes dealt to W ranks: rank r carries the contiguous lanes floor(rK/W)..floor((r+1)K/W).
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub struct LaneLayout {
    lanes: u32,
    world: u32,
}

/// A layout that cannot exist.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum LaneLayoutError {
    /// No ranks, no lanes, or more ranks than lanes.
    #[error(
        "{lanes} lanes cannot be dealt to {world} ranks: expected 1 <= ranks <= lanes; use fewer workers or raise [batch] lanes"
    )]
    Impossible {
        /// Lanes of the job.
        lanes: u32,
        /// Ranks of the generation.
        world: u32,
    },
}

impl LaneLayout {
    /// Deals `lanes` to `world` ranks.
    ///
    /// # Errors
    /// When a rank would carry no lane, or there is no rank or no lane.
    pub const fn new(lanes: u32, world: u32) -> Result<Self, LaneLayoutError> {
        if world == 0 || lanes == 0 || world > lanes {
            return Err(LaneLayoutError::Impossible { lanes, world });
        }
        Ok(Self { lanes, world })
    }

    /// K, the lanes of the job.
    pub const fn lanes(self) -> u32 {
        self.lanes
    }

    /// W, the ranks of the generation.
    pub const fn world(self) -> u32 {
        self.world
    }

    /// Lanes of `rank`; empty beyond the world.
    pub fn lanes_of(self, rank: Rank) -> Range<u32> {
        let (k, w, r) = (u64::from(self.lanes), u64::from(self.world), u64::from(rank.get()));
        let first = (r * k / w).min(k);
        let end = ((r + 1) * k / w).min(k);
        #[expect(clippy::cast_possible_truncation, reason = "both are at most K, a u32")]
        {
            first as u32..end as u32
        }
    }

    /// The rank that carries `lane`.
    pub fn rank_of(self, lane: Lane) -> Option<Rank> {
        (0..self.world).map(Rank::new).find(|r| self.lanes_of(*r).contains(&lane.get()))
    }

    /// Most lanes any rank carries, ceil(K/W): targets are padded to it for the gather.
    pub const fn most_lanes(self) -> u32 {
        self.lanes.div_ceil(self.world)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lane_belongs_to_exactly_one_rank() {
        for lanes in 1..=40 {
            for world in 1..=lanes {
                let layout = LaneLayout::new(lanes, world).unwrap();
                let dealt: Vec<u32> = (0..world).flat_map(|r| layout.lanes_of(Rank::new(r))).collect();
                assert_eq!(dealt, (0..lanes).collect::<Vec<_>>(), "{lanes} lanes, {world} ranks");
                for r in 0..world {
                    let held = layout.lanes_of(Rank::new(r));
                    assert!(!held.is_empty() && held.len() <= layout.most_lanes() as usize);
                }
            }
        }
    }

    #[test]
    fn six_lanes_on_four_ranks_are_1_2_1_2() {
        let layout = LaneLayout::new(6, 4).unwrap();
        let sizes: Vec<usize> = (0..4).map(|r| layout.lanes_of(Rank::new(r)).len()).collect();
        assert_eq!(sizes, [1, 2, 1, 2]);
        assert_eq!(layout.rank_of(Lane::new(5)), Some(Rank::new(3)));
        assert_eq!(layout.rank_of(Lane::new(6)), None);
    }

    #[test]
    fn more_ranks_than_lanes_is_refused() {
        assert!(LaneLayout::new(2, 3).is_err());
        assert!(LaneLayout::new(0, 0).is_err());
    }
}
