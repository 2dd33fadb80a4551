//! The windowed order: shards permuted, dealt to lanes, samples mixed inside windows of a few shards.
//!
//! The permuted shards are laid end to end. Lane l takes the l-th stretch of steps * N samples; what is
//! left at the end is left out of this epoch. A stretch is cut into windows of at most
//! [`SHARDS_AT_A_TIME`] shards, and each window is permuted by itself. So a lane finishes with a window's
//! shards before it opens the next window's. Set-up is O(shards), looking up O(log shards).

use crate::bijection::Bijection;
use crate::spec::PlanSpec;
use mcl_types::{Lane, Purpose};

/// Shards of one window: what a lane must be able to hold open or in memory at a time.
pub const SHARDS_AT_A_TIME: usize = 8;

/// A run of samples in one shard, or anywhere in the dataset.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct ShardSlice {
    /// Place of the shard in [`PlanSpec::shards`]; none with a global shuffle: the whole dataset.
    pub shard: Option<usize>,
    /// First sample, counted inside the shard (the dataset, where there is no shard).
    pub first: u64,
    /// How many samples.
    pub samples: u64,
}

/// One window of a lane, as a loader needs it.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct WindowView {
    /// Where the window begins, counted in samples of the lane's epoch (step * N + slot).
    pub first: u64,
    /// Samples of the window.
    pub samples: u64,
    /// At most [`SHARDS_AT_A_TIME`] slices.
    pub slices: Vec<ShardSlice>,
}

/// A non-empty shard's stretch of the permuted line.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Piece {
    /// Where it begins on the line.
    at: u64,
    len: u64,
    shard: usize,
    /// Index of its first sample in the dataset.
    base: u64,
}

#[derive(Debug, Clone, PartialEq, Eq)]
struct Window {
    /// Where it begins on the line.
    at: u64,
    len: u64,
    order: Bijection,
}

/// The windowed order of one epoch.
#[derive(Debug, Clone)]
pub(crate) struct Windows {
    pieces: Vec<Piece>,
    /// All lanes' windows, in line order.
    windows: Vec<Window>,
    /// Samples of one lane in the epoch.
    stretch: u64,
}

impl Windows {
    /// For a checked spec.
    pub(crate) fn new(spec: &PlanSpec, epoch: u64, steps: u64) -> Self {
        let stretch = steps * u64::from(spec.images_per_lane);
        let mut this = Self { pieces: permuted_pieces(spec, epoch), windows: Vec::new(), stretch };
        for lane in 0..spec.lanes {
            this.cut_lane(spec, epoch, lane);
        }
        this
    }

    fn cut_lane(&mut self, spec: &PlanSpec, epoch: u64, lane: u32) {
        let name = spec.dataset_digest.to_string();
        let (mut at, end) = self.lane_range(lane);
        let mut number = 0;
        while at < end {
            let first_piece = self.piece_at(at);
            let last = (first_piece + SHARDS_AT_A_TIME).min(self.pieces.len()) - 1;
            let last_piece = self.pieces[last];
            let len = (last_piece.at + last_piece.len).min(end) - at;
            let stream =
                spec.seed.named_stream(Purpose::Shuffle, &name, &[epoch, 1, u64::from(lane), number]);
            self.windows.push(Window { at, len, order: Bijection::new(len, stream) });
            at += len;
            number += 1;
        }
    }

    const fn lane_range(&self, lane: u32) -> (u64, u64) {
        let first = lane as u64 * self.stretch;
        (first, first + self.stretch)
    }

    /// The piece that holds place `at` of the line; pieces cover every planned place.
    fn piece_at(&self, at: u64) -> usize {
        self.pieces.partition_point(|p| p.at <= at).saturating_sub(1)
    }

    /// The dataset index at place `at` of the line.
    fn index_at(&self, at: u64) -> u64 {
        let piece = self.pieces[self.piece_at(at)];
        piece.base + (at - piece.at)
    }

    /// The sample at `offset` = step * N + slot of `lane`.
    pub(crate) fn sample(&self, lane: Lane, offset: u64) -> u64 {
        let at = self.lane_range(lane.get()).0 + offset;
        let window = &self.windows[self.windows.partition_point(|w| w.at <= at).saturating_sub(1)];
        self.index_at(window.at + window.order.apply(at - window.at))
    }

    /// The sample at place `at` of the line, for places that no lane takes.
    pub(crate) fn unplanned(&self, at: u64) -> u64 {
        self.index_at(at)
    }

    /// The windows of a lane, in reading order.
    pub(crate) fn of_lane(&self, lane: Lane) -> Vec<WindowView> {
        let (from, to) = self.lane_range(lane.get());
        let first = self.windows.partition_point(|w| w.at < from);
        let end = self.windows.partition_point(|w| w.at < to);
        self.windows[first..end]
            .iter()
            .map(|w| WindowView {
                first: w.at - from,
                samples: w.len,
                slices: self.slices_of(w.at, w.at + w.len),
            })
            .collect()
    }

    fn slices_of(&self, from: u64, to: u64) -> Vec<ShardSlice> {
        let first = self.piece_at(from);
        self.pieces[first..]
            .iter()
            .take_while(|p| p.at < to)
            .map(|p| {
                let begin = p.at.max(from);
                let end = (p.at + p.len).min(to);
                ShardSlice { shard: Some(p.shard), first: begin - p.at, samples: end - begin }
            })
            .collect()
    }
}

fn permuted_pieces(spec: &PlanSpec, epoch: u64) -> Vec<Piece> {
    let mut base = 0;
    let mut pieces: Vec<Piece> = Vec::with_capacity(spec.shards.len());
    for (shard, len) in spec.shards.iter().copied().enumerate() {
        if len > 0 {
            pieces.push(Piece { at: 0, len, shard, base });
        }
        base += len;
    }
    let name = spec.dataset_digest.to_string();
    spec.seed.named_stream(Purpose::Shuffle, &name, &[epoch, 0]).shuffle(&mut pieces);
    let mut at = 0;
    for piece in &mut pieces {
        piece.at = at;
        at += piece.len;
    }
    pieces
}
