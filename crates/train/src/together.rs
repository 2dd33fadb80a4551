//! Updates of all parameters at once, for devices on which each operation costs a launch: a few operations over lists of
//! tensors, and nothing that waits for the device. Trust ratios stay on it.
//!
//! Invariant: the numbers are those of an update one by one, less rounding. Gradients are used up: LARS adds the decay to
//! them in place.

use crate::TrainError;
use mcl_collective::many;
use tch::Tensor;

/// Parameters that are treated alike, with their gradients and momentum buffers.
#[derive(Debug, Default)]
pub(crate) struct Alike<'a> {
    pub(crate) params: Vec<&'a Tensor>,
    pub(crate) grads: Vec<Tensor>,
    pub(crate) buffers: Vec<&'a Tensor>,
}

impl Alike<'_> {
    fn grads(&self) -> Vec<&Tensor> {
        self.grads.iter().collect()
    }

    /// `buf = momentum buf + (g + wd p) * (eta |p| / (|g| + wd |p|)) * lr`; where both norms are zero nothing is added.
    fn add_adapted(&self, (eta, decay, lr): (f64, f64, f64)) -> Result<(), TrainError> {
        if self.params.is_empty() {
            return Ok(());
        }
        let grads = self.grads();
        let (p_norms, g_norms) = (many::norms(&self.params)?, many::norms(&grads)?);
        let below = g_norms.f_add(&p_norms.f_mul_scalar(decay)?)?;
        let ratios = p_norms.f_mul_scalar(eta)?.f_div(&below)?.f_mul_scalar(lr)?;
        let ratios = ratios.f_where_self(&below.f_gt(0.0)?, &ratios.f_zeros_like()?)?;
        if decay != 0.0 {
            many::add(&grads, &self.params, decay)?;
        }
        Ok(many::add_scaled(&self.buffers, &grads, &ratios)?)
    }
}

/// As [`crate::Rule::Lars`] one by one. `adapted` have decay and trust ratio, `plain` neither.
pub(crate) fn lars(
    adapted: &Alike,
    plain: &Alike,
    (momentum, eta, decay, lr): (f64, f64, f64, f64),
) -> Result<(), TrainError> {
    for alike in [adapted, plain] {
        many::scale(&alike.buffers, momentum)?;
    }
    adapted.add_adapted((eta, decay, lr))?;
    many::add(&plain.buffers, &plain.grads(), lr)?;
    for alike in [adapted, plain] {
        many::add(&alike.params, &alike.buffers, -1.0)?;
    }
    Ok(())
}

/// As [`crate::Rule::Sgd`] one by one. `decayed` have weight decay, `plain` have none.
pub(crate) fn sgd(
    decayed: &Alike,
    plain: &Alike,
    (momentum, decay, lr): (f64, f64, f64),
) -> Result<(), TrainError> {
    for alike in [decayed, plain] {
        many::scale(&alike.buffers, momentum)?;
        many::add(&alike.buffers, &alike.grads(), 1.0)?;
    }
    if decay != 0.0 {
        many::add(&decayed.buffers, &decayed.params, decay)?;
    }
    for alike in [decayed, plain] {
        many::add(&alike.params, &alike.buffers, -lr)?;
    }
    Ok(())
}

/// Gradients of those of `params` that have one.
pub(crate) fn gradients(params: &[(&str, &Tensor)]) -> Vec<Tensor> {
    params.iter().map(|(_, param)| param.grad()).filter(Tensor::defined).collect()
}

/// Scales the gradients of `params` down.
pub(crate) fn clip(params: &[(&str, &Tensor)], coefficient: f64) -> Result<(), TrainError> {
    let grads = gradients(params);
    Ok(many::scale(&grads.iter().collect::<Vec<_>>(), coefficient)?)
}
