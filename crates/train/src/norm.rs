//! Batch norm over all ranks of a group, as the model wants it.

use mcl_collective::{Group, batch_norm};
use mcl_model::{BatchNormalizer, LocalBatchNorm, ModelError};
use tch::Tensor;

/// Who computes the norms of a training step.
pub(crate) enum TrainingNorm<'a> {
    /// The engine's operator, by this rank's rows: on a GPU cuDNN's, the faster one there.
    Engine,
    /// Ours, by all ranks' rows, both sides in one conversation; by this rank's without a group.
    Joint(Option<&'a Group>),
}

impl BatchNormalizer for TrainingNorm<'_> {
    fn normalize(
        &self,
        batches: &mut [Tensor],
        weight: Option<&Tensor>,
        bias: Option<&Tensor>,
        running: [&Tensor; 2],
        eps: f64,
    ) -> Result<Option<Tensor>, ModelError> {
        let Self::Joint(group) = self else {
            return LocalBatchNorm.normalize(batches, weight, bias, running, eps);
        };
        if group.is_none() {
            batches.iter().try_for_each(LocalBatchNorm::check)?;
        }
        let statistics = batch_norm(*group, batches, weight, bias, eps);
        statistics.map(Some).map_err(|e| ModelError::Group(Box::new(e)))
    }
}
