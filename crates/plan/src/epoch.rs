//! One epoch's plan: (step, lane, slot) -> sample.

use crate::bijection::Bijection;
use crate::spec::{PlanError, PlanSpec, Shuffle};
use crate::windows::{ShardSlice, WindowView, Windows};
use mcl_types::{Epoch, Lane, Purpose, SampleIndex, Slot};

#[derive(Debug, Clone)]
enum Order {
    Global(Bijection),
    Windowed(Windows),
}

/// Which sample every (step, lane, slot) of one epoch gets.
///
/// A deterministic function of the spec and the epoch; never of the number of workers. Every sample of the
/// dataset is either planned exactly once or among [`EpochPlan::left_out`].
#[derive(Debug, Clone)]
pub struct EpochPlan {
    epoch: Epoch,
    lanes: u32,
    images_per_lane: u32,
    dataset_len: u64,
    steps: u64,
    order: Order,
}

impl EpochPlan {
    /// Sets the plan up: O(1) with a global shuffle, O(shards + lanes) with a windowed one.
    ///
    /// # Errors
    /// As [`PlanSpec::check`].
    pub fn new(spec: &PlanSpec, epoch: Epoch) -> Result<Self, PlanError> {
        let steps = spec.steps_per_epoch()?;
        let order = match spec.shuffle {
            Shuffle::Global => {
                let name = spec.dataset_digest.to_string();
                let stream = spec.seed.named_stream(Purpose::Shuffle, &name, &[epoch.get()]);
                Order::Global(Bijection::new(spec.dataset_len, stream))
            }
            Shuffle::Windowed => Order::Windowed(Windows::new(spec, epoch.get(), steps)),
        };
        Ok(Self {
            epoch,
            lanes: spec.lanes,
            images_per_lane: spec.images_per_lane,
            dataset_len: spec.dataset_len,
            steps,
            order,
        })
    }

    /// The epoch this is the plan of.
    pub const fn epoch(&self) -> Epoch {
        self.epoch
    }

    /// Steps of the epoch, floor(n / (K * N)).
    pub const fn steps(&self) -> u64 {
        self.steps
    }

    /// K, the lanes of the job.
    pub const fn lanes(&self) -> u32 {
        self.lanes
    }

    /// N, the samples of one lane in one step.
    pub const fn images_per_lane(&self) -> u32 {
        self.images_per_lane
    }

    /// The sample of one slot; none outside the epoch's steps, the lanes and the slots.
    ///
    /// O(1) with a global shuffle, O(log shards) with a windowed one.
    pub fn sample(&self, step_in_epoch: u64, lane: Lane, slot: Slot) -> Option<SampleIndex> {
        if step_in_epoch >= self.steps || lane.get() >= self.lanes || slot.get() >= self.images_per_lane {
            return None;
        }
        let n = u64::from(self.images_per_lane);
        let index = match &self.order {
            Order::Global(order) => {
                let row = step_in_epoch * u64::from(self.lanes) + u64::from(lane.get());
                order.apply(row * n + u64::from(slot.get()))
            }
            Order::Windowed(windows) => windows.sample(lane, step_in_epoch * n + u64::from(slot.get())),
        };
        Some(SampleIndex::new(index))
    }

    /// The samples that this epoch does not use: fewer than K * N.
    pub fn left_out(&self) -> LeftOut<'_> {
        let used = self.steps * u64::from(self.lanes) * u64::from(self.images_per_lane);
        LeftOut { plan: self, at: used }
    }

    /// What `lane` reads, in reading order; one slice over the whole dataset with a global shuffle.
    pub fn slices(&self, lane: Lane) -> Vec<ShardSlice> {
        match &self.order {
            Order::Global(_) if lane.get() < self.lanes => {
                vec![ShardSlice { shard: None, first: 0, samples: self.dataset_len }]
            }
            _ => self.windows(lane).into_iter().flat_map(|w| w.slices).collect(),
        }
    }

    /// The windows of `lane`, in reading order; none with a global shuffle, which has no windows.
    pub fn windows(&self, lane: Lane) -> Vec<WindowView> {
        match &self.order {
            Order::Windowed(windows) if lane.get() < self.lanes => windows.of_lane(lane),
            _ => Vec::new(),
        }
    }
}

/// The samples of an epoch that it does not use.
#[derive(Debug, Clone)]
pub struct LeftOut<'a> {
    plan: &'a EpochPlan,
    at: u64,
}

impl Iterator for LeftOut<'_> {
    type Item = SampleIndex;

    fn next(&mut self) -> Option<SampleIndex> {
        if self.at >= self.plan.dataset_len {
            return None;
        }
        let at = self.at;
        self.at += 1;
        Some(SampleIndex::new(match &self.plan.order {
            Order::Global(order) => order.apply(at),
            Order::Windowed(windows) => windows.unplanned(at),
        }))
    }
}
