//! Batch norm over all ranks of a group, as the model wants it.

use mcl_collective::Group;
use mcl_model::{BatchNormalizer, LocalBatchNorm, ModelError};
use tch::Tensor;

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
        match self.group {
            None => LocalBatchNorm.normalize(x, weight, bias, running_mean, running_var, momentum, eps),
            Some(group) => group
                .sync_batch_norm(x, weight, bias, running_mean, running_var, momentum, eps)
                .map_err(|e| ModelError::Group(Box::new(e))),
        }
    }
}
