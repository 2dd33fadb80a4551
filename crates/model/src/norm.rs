//! Batch normalisation: one layer, and the trait by which a caller decides whose statistics it uses.
//!
//! The layer has no hidden mode: every forward pass says, through [`Pass`], how to normalise and which
//! set of running statistics to write. A normaliser that synchronises over ranks lives with the
//! collective; this crate has the two that need none.

use crate::blueprint::{Blueprint, InitRule};
use crate::layer::Sides;
use crate::{BufferSet, ModelError};
use tch::Tensor;

/// Weight of a batch in the running statistics (MCL_SPEC section 1).
pub const MOMENTUM: f64 = 0.1;
/// Added to the variance before the root.
pub const EPSILON: f64 = 1e-5;

/// How batch normalisation is carried out in one pass.
pub trait BatchNormalizer {
    /// Normalises each channel of every batch ([rows, C] or [n, C, h, w]) in its place. Batches side by side do not mix.
    /// Answers the statistics that it normalised by, [batches, 2, C]: the mean and the unbiased variance (normalisation
    /// itself uses the biased one); `None` where it used `running` ([2, C] in two halves), which then stays as it is.
    ///
    /// # Errors
    /// When there are too few values, or the engine or a peer fails.
    fn normalize(
        &self,
        batches: &mut [Tensor],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        running: [&Tensor; 2],
        eps: f64,
    ) -> Result<Option<Tensor>, ModelError>;
}

/// Training with the statistics of the batch at hand.
#[derive(Debug, Clone, Copy, Default)]
pub struct LocalBatchNorm;

impl LocalBatchNorm {
    /// Whether a batch has a variance: an operator would answer with NaN in the running one.
    ///
    /// # Errors
    /// When there are fewer than two values a channel.
    pub fn check(x: &Tensor) -> Result<(), ModelError> {
        let values = x.size().iter().enumerate().filter(|(d, _)| *d != 1).map(|(_, s)| s).product();
        if values < 2 { Err(ModelError::TooFewValues { values }) } else { Ok(()) }
    }
}

impl BatchNormalizer for LocalBatchNorm {
    fn normalize(
        &self,
        batches: &mut [Tensor],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        [mean, _]: [&Tensor; 2],
        eps: f64,
    ) -> Result<Option<Tensor>, ModelError> {
        let mut statistics = Vec::with_capacity(batches.len());
        for x in batches {
            Self::check(x)?;
            // A running average in which the new values count for all is the batch's own.
            let own = Tensor::f_zeros([2, mean.size1()?], (mean.kind(), mean.device()))?;
            let (m, v) = (own.f_select(0, 0)?, own.f_select(0, 1)?);
            *x = x.f_batch_norm(weight, bias, Some(&m), Some(&v), true, 1.0, eps, true)?;
            statistics.push(own);
        }
        Ok(Some(Tensor::f_stack(&statistics, 0)?))
    }
}

/// Evaluation: the running statistics normalise and stay as they are.
#[derive(Debug, Clone, Copy, Default)]
pub struct FrozenBatchNorm;

impl BatchNormalizer for FrozenBatchNorm {
    fn normalize(
        &self,
        batches: &mut [Tensor],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        [mean, var]: [&Tensor; 2],
        eps: f64,
    ) -> Result<Option<Tensor>, ModelError> {
        for x in batches {
            *x = x.f_batch_norm(weight, bias, Some(mean), Some(var), false, 0.0, eps, true)?;
        }
        Ok(None)
    }
}

/// What a forward pass needs besides weights and input.
#[derive(Clone, Copy)]
pub struct Pass<'a> {
    /// How to normalise.
    pub norm: &'a dyn BatchNormalizer,
    /// Running statistics to read or write.
    pub buffers: &'a BufferSet,
}

impl<'a> Pass<'a> {
    /// A pass that normalises with `norm` and keeps its statistics in `buffers`.
    pub const fn new(norm: &'a dyn BatchNormalizer, buffers: &'a BufferSet) -> Self {
        Self { norm, buffers }
    }
}

/// One layer: scale and shift where affine, and its slot in the buffer sets.
#[derive(Debug)]
pub(crate) struct BatchNorm {
    affine: Option<(Tensor, Tensor)>,
    slot: usize,
}

impl BatchNorm {
    /// Scale 1, shift 0.
    pub(crate) fn affine(plan: &mut Blueprint, path: &str, channels: i64) -> Result<Self, ModelError> {
        let weight = plan.parameter(format!("{path}.weight"), &[channels], InitRule::Constant(1.0))?;
        let bias = plan.parameter(format!("{path}.bias"), &[channels], InitRule::Constant(0.0))?;
        Ok(Self { affine: Some((weight, bias)), slot: plan.norm(path, channels) })
    }

    /// Neither scale nor shift.
    pub(crate) fn plain(plan: &mut Blueprint, path: &str, channels: i64) -> Self {
        Self { affine: None, slot: plan.norm(path, channels) }
    }

    /// Shape-preserving: [rows, C] or [n, C, h, w] a side.
    pub(crate) fn forward<const N: usize>(
        &self,
        mut x: Sides<N>,
        pass: &Pass,
    ) -> Result<Sides<N>, ModelError> {
        let slot = pass.buffers.slot(self.slot)?;
        let (weight, bias) = match &self.affine {
            Some((weight, bias)) => (Some(weight), Some(bias)),
            None => (None, None),
        };
        let running = [slot.mean(), slot.var()];
        if let Some(statistics) = pass.norm.normalize(&mut x, weight, bias, running, EPSILON)? {
            slot.record(statistics)?;
        }
        Ok(x)
    }
}
