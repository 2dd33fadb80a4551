//! `mcl bench step --parts`: what one step says to other ranks, and what saying it costs here, for a model of step times.

use anyhow::Result;
use mcl_collective::{Group, ReduceOp};
use mcl_model::Model;
use mcl_train::Trainer;
use serde::Serialize;
use std::time::Instant;
use tch::{Kind, Tensor};

/// Times that each collective is tried; the median counts.
const TRIES: usize = 21;
/// Numbers of a small collective: about a norm of 256 channels.
const SMALL: i64 = 513;

/// Collectives of one step of one rank, with norms over all lanes.
#[derive(Debug, Serialize)]
pub(crate) struct Parts {
    /// Gathers of statistics in forward passes.
    norms_forward: i64,
    /// ... and in the backward pass: the momentum encoder has none.
    norms_backward: i64,
    /// Bytes of gradients, all-reduced in buckets.
    gradient_bytes: i64,
    /// Bytes of all running statistics: with `norm = "lane"` all-reduced once a step.
    running_bytes: i64,
    /// Bytes of a lane's targets, both sides, gathered once a step.
    target_bytes: i64,
    /// Ranks.
    ranks: u32,
    /// Seconds of a gather of about a norm's statistics; none where one rank is alone.
    small_gather_s: Option<f64>,
    /// Seconds of an all-reduce of all gradients; likewise.
    gradient_reduce_s: Option<f64>,
}

impl Parts {
    /// After `steps` steps of a fresh trainer. All ranks of the group call it together.
    pub(crate) fn measure(trainer: &Trainer, steps: u64, group: Option<&Group>) -> Result<Self> {
        let (mut online, mut momentum) = (0, 0);
        let model: &Model = trainer.model();
        for (name, tensor) in model.state() {
            if name.ends_with("num_batches_tracked") {
                let calls = tensor.f_int64_value(&[])? / i64::try_from(steps.max(1))?;
                *(if name.starts_with("encoder_k") { &mut momentum } else { &mut online }) += calls;
            }
        }
        let numbers: usize = model.trainable().iter().map(|(_, p)| p.numel()).sum();
        let numbers = i64::try_from(numbers)?;
        let options = (Kind::Float, model.device());
        let median = |size: i64, work: &dyn Fn(&Group, &Tensor) -> Result<()>| -> Result<Option<f64>> {
            let Some(group) = group else { return Ok(None) };
            let tensor = Tensor::f_ones([size], options)?;
            let mut times = Vec::with_capacity(TRIES);
            for _ in 0..TRIES {
                let started = Instant::now();
                work(group, &tensor)?;
                // On a GPU a collective is over when its result can be read.
                let _ = tensor.f_double_value(&[0])?;
                times.push(started.elapsed().as_secs_f64());
            }
            times.sort_by(f64::total_cmp);
            Ok(times.get(TRIES / 2).copied())
        };
        Ok(Self {
            norms_forward: online + momentum,
            norms_backward: online,
            gradient_bytes: 4 * numbers,
            running_bytes: 4 * i64::try_from(model.buffers().running().numel())?,
            target_bytes: 8 * trainer.layout().images_per_lane() * model.spec().embedding,
            ranks: group.map_or(1, Group::world),
            small_gather_s: median(SMALL, &|group, t| {
                let _ = group.all_gather(t)?;
                Ok(())
            })?,
            gradient_reduce_s: median(numbers, &|group, t| Ok(group.all_reduce(t, ReduceOp::Max)?))?,
        })
    }
}
