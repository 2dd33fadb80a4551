//! Running statistics of every normalisation layer, as one set that can be copied, filled and swapped in.
//!
//! A training step is a transaction: it writes to a staged copy, which replaces the committed set
//! together with the optimiser's update or is dropped. All running means and variances lie in one tensor
//! and all call counters in another, so that staging, averaging over lanes and sending are one operation
//! each. Counting is done in plain numbers and reaches the tensor only in [`BufferSet::seal`]. A layer that is called more
//! than once for either of two sides averages all calls of the first before any of the second, as if they had come one
//! after another: statistics wait for [`BufferSet::settle`] until then.

use crate::ModelError;
use crate::arrival::numbers_on_device;
use crate::blueprint::NormSite;
use crate::norm::MOMENTUM;
use std::cell::{Cell, RefCell};
use tch::{Device, Kind, Tensor};

/// Running means, running variances and call counters of a whole model.
#[derive(Debug)]
pub struct BufferSet {
    /// [2 * channels of all layers]: mean then variance, layer after layer.
    running: Tensor,
    /// [layers], i64.
    counts: Tensor,
    slots: Vec<Slot>,
}

/// One layer's views into the set.
#[derive(Debug)]
pub(crate) struct Slot {
    mean: Tensor,
    var: Tensor,
    /// Mean and variance as they lie in memory: [2, C].
    both: Tensor,
    /// Of calls not yet averaged in, [sides, 2, C] each.
    waiting: RefCell<Vec<Tensor>>,
    count: Tensor,
    calls: Cell<i64>,
}

impl Slot {
    pub(crate) const fn mean(&self) -> &Tensor {
        &self.mean
    }
    pub(crate) const fn var(&self) -> &Tensor {
        &self.var
    }
    pub(crate) const fn count(&self) -> &Tensor {
        &self.count
    }

    /// Takes the statistics of one call, [sides, 2, C].
    pub(crate) fn record(&self, statistics: Tensor) -> Result<(), ModelError> {
        let sides = statistics.size3()?.0;
        self.waiting.borrow_mut().push(statistics);
        self.calls.set(self.calls.get() + sides);
        if sides == 1 { self.settle() } else { Ok(()) }
    }

    fn settle(&self) -> Result<(), ModelError> {
        let calls = self.waiting.take();
        let sides = calls.first().map_or(Ok(0), |call| call.size3().map(|s| s.0))?;
        tch::no_grad(|| {
            for side in 0..sides {
                for call in &calls {
                    let _ = self.both.shallow_clone().f_lerp_(&call.f_select(0, side)?, MOMENTUM)?;
                }
            }
            Ok(())
        })
    }
}

impl BufferSet {
    /// Means 0, variances 1, counters 0.
    pub(crate) fn new(sites: &[NormSite], kind: Kind, device: Device) -> Result<Self, ModelError> {
        let total: i64 = sites.iter().map(|s| s.channels).sum();
        let running = Tensor::f_zeros([2 * total], (kind, device))?;
        let layers = i64::try_from(sites.len()).unwrap_or(i64::MAX);
        let counts = Tensor::f_zeros([layers], (Kind::Int64, device))?;
        let channels: Vec<i64> = sites.iter().map(|s| s.channels).collect();
        let set = Self::with_views(running, counts, &channels)?;
        for slot in &set.slots {
            let _ = slot.var.shallow_clone().f_fill_(1.0)?;
        }
        Ok(set)
    }

    fn with_views(running: Tensor, counts: Tensor, channels: &[i64]) -> Result<Self, ModelError> {
        let mut slots = Vec::with_capacity(channels.len());
        let mut at = 0;
        for (index, &c) in (0_i64..).zip(channels) {
            slots.push(Slot {
                mean: running.f_narrow(0, at, c)?,
                var: running.f_narrow(0, at + c, c)?,
                both: running.f_narrow(0, at, 2 * c)?.f_view([2, c])?,
                waiting: RefCell::default(),
                count: counts.f_select(0, index)?,
                calls: Cell::new(0),
            });
            at += 2 * c;
        }
        Ok(Self { running, counts, slots })
    }

    /// A copy that shares no memory with this one; calls not yet sealed come along.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn fork(&self) -> Result<Self, ModelError> {
        self.settle()?;
        let channels: Vec<i64> = self.slots.iter().map(|s| s.mean.size().iter().product()).collect();
        let mut running = self.running.f_empty_like()?;
        running.f_copy_(&self.running)?;
        let mut counts = self.counts.f_empty_like()?;
        counts.f_copy_(&self.counts)?;
        let fork = Self::with_views(running, counts, &channels)?;
        for (new, old) in fork.slots.iter().zip(&self.slots) {
            new.calls.set(old.calls.get());
        }
        Ok(fork)
    }

    /// Every running mean and variance as one tensor [2 * channels], for a collective or an average.
    pub const fn running(&self) -> &Tensor {
        &self.running
    }

    /// Call counters as one tensor `[layers]`, i64, as of the last [`BufferSet::seal`].
    pub const fn counts(&self) -> &Tensor {
        &self.counts
    }

    /// Replaces all running statistics, by the mean over lanes for example.
    ///
    /// # Errors
    /// When `values` has another shape than [`BufferSet::running`].
    pub fn overwrite_running(&self, values: &Tensor) -> Result<(), ModelError> {
        crate::error::check_shape("running statistics", &values.size(), &self.running.size())?;
        tch::no_grad(|| self.running.shallow_clone().f_copy_(values))?;
        Ok(())
    }

    /// Averages in what a pass over several sides has left: first all of side 0, then of side 1.
    ///
    /// # Errors
    /// When the engine fails.
    pub(crate) fn settle(&self) -> Result<(), ModelError> {
        self.slots.iter().try_for_each(Slot::settle)
    }

    /// Moves the calls counted since the last time into the counters.
    ///
    /// # Errors
    /// When the engine fails; nothing has changed then.
    pub fn seal(&self) -> Result<(), ModelError> {
        self.settle()?;
        if self.slots.iter().all(|s| s.calls.get() == 0) {
            return Ok(());
        }
        let calls: Vec<i64> = self.slots.iter().map(|s| s.calls.get()).collect();
        let calls = numbers_on_device(&calls, self.counts.device())?;
        let _ = self.counts.shallow_clone().f_add_(&calls)?;
        for slot in &self.slots {
            slot.calls.set(0);
        }
        Ok(())
    }

    pub(crate) fn slot(&self, index: usize) -> Result<&Slot, ModelError> {
        self.slots.get(index).ok_or_else(|| ModelError::Batch {
            what: "buffer set of another model".to_owned(),
            found: format!("{} layers", self.slots.len()),
            expected: format!("more than {index}"),
        })
    }

    /// Whether `other` has the same layers.
    pub(crate) fn fits(&self, other: &Self) -> bool {
        self.slots.len() == other.slots.len()
            && self.slots.iter().zip(&other.slots).all(|(a, b)| a.mean.size() == b.mean.size())
            && self.running.kind() == other.running.kind()
            && self.running.device() == other.running.device()
    }
}
