//! Batch norm over all ranks of a group, as the model wants it.

use mcl_collective::{Group, batch_norm};
use mcl_model::{BatchNormalizer, LocalBatchNorm, ModelError};
use tch::{Device, Tensor};

/// Statistics of all ranks' rows; of this rank's alone where it is the only one.
pub(crate) struct SyncBatchNorm<'a> {
    pub(crate) group: Option<&'a Group>,
}

impl BatchNormalizer for SyncBatchNorm<'_> {
    fn normalize(
        &self,
        x: &Tensor,
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        running_mean: &Tensor,
        running_var: &Tensor,
        momentum: f64,
        eps: f64,
    ) -> Result<Tensor, ModelError> {
        if self.group.is_none() {
            // On a GPU alone cuDNN's is the faster one. On a CPU one rank and several compute alike.
            if x.device() != Device::Cpu {
                return LocalBatchNorm.normalize(x, weight, bias, running_mean, running_var, momentum, eps);
            }
            LocalBatchNorm::check(x)?;
        }
        batch_norm(self.group, x, weight, bias, running_mean, running_var, momentum, eps)
            .map_err(|e| ModelError::Group(Box::new(e)))
    }
}
