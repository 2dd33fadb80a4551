//! MoCo's queue of keys (arXiv 1911.05722, section 3.1): the negatives of the steps to come.
//!
//! Invariants: rows have length 1; keys enter in lane order and replace the oldest, so the queue is a function of the run
//! and not of how many ranks there were; a step writes nothing until it is applied.

use crate::error::check_shape;
use crate::{ModelError, init, l2_normalized};
use mcl_types::{Purpose, Seed};
use tch::{Device, Kind, Tensor, no_grad};

/// Name of the keys in a state, as in the published checkpoints; here a row is a key.
pub(crate) const KEYS: &str = "queue";
/// Name of the place that is written next.
pub(crate) const PLACE: &str = "queue_ptr";

/// [Q, D] keys and the row that is replaced next.
#[derive(Debug)]
pub struct KeyQueue {
    keys: Tensor,
    place: Tensor,
}

impl KeyQueue {
    pub(crate) fn new(length: i64, size: i64, kind: Kind, device: Device) -> Result<Self, ModelError> {
        Ok(Self {
            keys: Tensor::f_zeros([length, size], (kind, device))?,
            place: Tensor::f_zeros([1], (Kind::Int64, Device::Cpu))?,
        })
    }

    /// Random directions, as published; the first row is replaced first.
    pub(crate) fn initialize(&self, seed: Seed) -> Result<(), ModelError> {
        let mut stream = seed.named_stream(Purpose::Init, KEYS, &[]);
        init::write(&self.keys, (0..self.keys.numel()).map(|_| stream.normal()))?;
        no_grad(|| self.keys.shallow_clone().f_copy_(&l2_normalized(&self.keys)?).map_err(ModelError::from))?;
        let _ = self.place.shallow_clone().f_zero_()?;
        Ok(())
    }

    /// [Q, D], rows of length 1; no graph.
    pub const fn keys(&self) -> &Tensor {
        &self.keys
    }

    pub(crate) const fn place(&self) -> &Tensor {
        &self.place
    }

    /// Replaces the oldest rows by `keys`, [n, D] of length 1, n at most Q; past the end it goes on at the beginning.
    ///
    /// # Errors
    /// When they do not fit, or the engine fails.
    pub fn enqueue(&self, keys: &Tensor) -> Result<(), ModelError> {
        let (length, size) = self.keys.size2()?;
        check_shape("keys for the queue", &keys.size(), &[-1, size])?;
        let count = keys.size().first().copied().unwrap_or(0);
        if count > length {
            return Err(ModelError::Batch {
                what: "keys for the queue".to_owned(),
                found: count.to_string(),
                expected: format!("at most its length, {length}"),
            });
        }
        let place = self.place.f_int64_value(&[0])?.clamp(0, length - 1);
        let before_end = count.min(length - place);
        no_grad(|| -> Result<(), ModelError> {
            self.keys.f_narrow(0, place, before_end)?.f_copy_(&keys.f_narrow(0, 0, before_end)?)?;
            let rest = count - before_end;
            self.keys.f_narrow(0, 0, rest)?.f_copy_(&keys.f_narrow(0, before_end, rest)?)?;
            let _ = self.place.shallow_clone().f_fill_((place + count) % length)?;
            Ok(())
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn column(queue: &KeyQueue) -> Vec<f64> {
        Vec::try_from(queue.keys().select(1, 0).contiguous()).unwrap()
    }

    #[test]
    fn the_oldest_keys_are_replaced_and_the_end_is_the_beginning() {
        let queue = KeyQueue::new(5, 2, Kind::Double, Device::Cpu).unwrap();
        let keys =
            |first: f64| Tensor::from_slice(&[first, 0.0, first + 1.0, 0.0, first + 2.0, 0.0]).view([3, 2]);
        queue.enqueue(&keys(1.0)).unwrap();
        assert_eq!(column(&queue), [1.0, 2.0, 3.0, 0.0, 0.0]);
        queue.enqueue(&keys(11.0)).unwrap();
        assert_eq!((column(&queue), queue.place().int64_value(&[0])), (vec![13.0, 2.0, 3.0, 11.0, 12.0], 1));
        assert!(queue.enqueue(&Tensor::zeros([6, 2], (Kind::Double, Device::Cpu))).is_err());
        assert!(queue.enqueue(&Tensor::zeros([1, 3], (Kind::Double, Device::Cpu))).is_err());
    }

    #[test]
    fn it_begins_with_directions_that_the_seed_draws() {
        let queue = |seed| {
            let queue = KeyQueue::new(7, 3, Kind::Double, Device::Cpu).unwrap();
            queue.initialize(Seed::new(seed)).unwrap();
            queue
        };
        let (one, same, other) = (queue(1), queue(1), queue(2));
        assert!(one.keys().equal(same.keys()) && !one.keys().equal(other.keys()));
        let lengths: Vec<f64> = Vec::try_from(one.keys().norm_scalaropt_dim(2.0, [1], false)).unwrap();
        assert!(lengths.iter().all(|length| (length - 1.0).abs() < 1e-9), "{lengths:?}");
    }
}
