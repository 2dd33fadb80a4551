//! The contrastive losses (MCL_SPEC section 3): pure functions of embeddings, targets and labels.

use crate::error::check_shape;
use crate::{ModelError, ModelSpec};
use tch::{Kind, Tensor};

/// Least norm that a row is divided by.
const NORM_FLOOR: f64 = 1e-12;

/// Losses and the two logged cosines of a rank's lanes, side q before side k, levels ascending.
#[derive(Debug)]
pub struct LevelLosses {
    /// [2, L, lanes]: each lane's weighted loss, with its graph.
    pub losses: Tensor,
    /// [2, L, lanes]: mean cosine of a row with its own target; no graph.
    pub pos_cos: Tensor,
    /// [2, L, lanes]: mean cosine with all other targets; no graph.
    pub neg_cos: Tensor,
}

impl LevelLosses {
    /// Sum over sides, levels and lanes, times `scale` (W / K when the gradient is averaged over W ranks).
    ///
    /// # Errors
    /// When the engine fails.
    pub fn total(&self, scale: f64) -> Result<Tensor, ModelError> {
        Ok(self.losses.f_sum(None)?.f_mul_scalar(scale)?)
    }
}

/// What one side's rows are compared with.
#[derive(Debug, Clone, Copy)]
pub struct Contrast<'a> {
    /// By level: [lanes * tiles, D], outputs of the predictors.
    pub predictions: &'a [Tensor],
    /// [K N, D], L2-normalised rows of the *other* side, gathered in lane order.
    pub targets: &'a Tensor,
    /// By level: [lanes * tiles], i64, row of `targets` that each prediction belongs to.
    pub labels: &'a [Tensor],
}

/// All losses of a step on one rank that carries `lanes` lanes. Rows of half precision are widened first.
///
/// # Errors
/// When shapes do not fit, or the engine fails.
pub fn level_losses(
    spec: &ModelSpec,
    lanes: i64,
    q: &Contrast,
    k: &Contrast,
) -> Result<LevelLosses, ModelError> {
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    for side in [q, k] {
        let levels = i64::try_from(spec.levels).unwrap_or(i64::MAX);
        let found = [side.predictions.len(), side.labels.len()].map(|n| i64::try_from(n).unwrap_or(-1));
        check_shape("levels of predictions and labels", &found, &[levels, levels])?;
        for ((rows, labels), weight) in side.predictions.iter().zip(side.labels).zip(&spec.level_weights) {
            let term = level_loss(rows, side.targets, labels, lanes, spec.temperature, *weight)?;
            for (column, value) in columns.iter_mut().zip([term.loss, term.pos_cos, term.neg_cos]) {
                column.push(value);
            }
        }
    }
    let shape = [2, i64::try_from(spec.levels).unwrap_or(i64::MAX), lanes];
    let stacked =
        |terms: &[Tensor]| -> Result<Tensor, ModelError> { Ok(Tensor::f_cat(terms, 0)?.f_reshape(shape)?) };
    let [losses, pos_cos, neg_cos] = &columns;
    Ok(LevelLosses { losses: stacked(losses)?, pos_cos: stacked(pos_cos)?, neg_cos: stacked(neg_cos)? })
}

/// One level of one side, [lanes] each.
#[derive(Debug)]
pub struct LevelLoss {
    /// Weighted loss.
    pub loss: Tensor,
    /// Mean cosine with the own target; no graph.
    pub pos_cos: Tensor,
    /// Mean cosine with all others; no graph.
    pub neg_cos: Tensor,
}

/// Mean over a lane's rows of the cross entropy of cosines / T, times 2 T `weight`.
///
/// # Errors
/// When shapes do not fit, or the engine fails.
pub fn level_loss(
    predictions: &Tensor,
    targets: &Tensor,
    labels: &Tensor,
    lanes: i64,
    temperature: f64,
    weight: f64,
) -> Result<LevelLoss, ModelError> {
    check_shape("predictions", &predictions.size(), &[-1, -1])?;
    let (rows, size) = predictions.size2()?;
    check_shape("targets", &targets.size(), &[-1, size])?;
    check_shape("labels", &labels.size(), &[rows])?;
    if lanes < 1 || rows % lanes != 0 {
        return Err(ModelError::Batch {
            what: "predictions".to_owned(),
            found: format!("{rows} rows"),
            expected: format!("a multiple of {lanes} lanes"),
        });
    }
    let wide =
        |t: &Tensor| if matches!(t.kind(), Kind::Half | Kind::BFloat16) { Kind::Float } else { t.kind() };
    let predictions = predictions.f_to_kind(wide(predictions))?;
    let targets = targets.f_to_kind(predictions.kind())?;
    let cosines = l2_normalized(&predictions)?.f_matmul(&targets.f_transpose(0, 1)?)?;
    let own = labels.f_unsqueeze(1)?;
    let by_lane = |rows: &Tensor| -> Result<Tensor, ModelError> {
        Ok(rows.f_reshape([lanes, -1])?.f_mean_dim([1_i64].as_slice(), false, None)?)
    };
    let likelihood = cosines.f_div_scalar(temperature)?.f_log_softmax(1, None)?.f_gather(1, &own, false)?;
    let loss = by_lane(&likelihood)?.f_mul_scalar(-2.0 * temperature * weight)?;
    let (pos_cos, neg_cos) = tch::no_grad(|| -> Result<_, ModelError> {
        let cosines = cosines.f_detach()?;
        let pos = by_lane(&cosines.f_gather(1, &own, false)?)?;
        // Mean over the other columns: (all of the row - its own) / (columns - 1).
        let all = by_lane(&cosines.f_sum_dim_intlist([1_i64].as_slice(), false, None)?)?;
        let others = (targets.size().first().copied().unwrap_or(0) - 1).max(1);
        let neg = all.f_sub(&pos)?.f_div_scalar(others)?;
        Ok((pos, neg))
    })?;
    Ok(LevelLoss { loss, pos_cos, neg_cos })
}

/// Rows of length 1: x / max(|x|, 1e-12), [rows, D] -> [rows, D].
///
/// # Errors
/// When the engine fails.
pub fn l2_normalized(rows: &Tensor) -> Result<Tensor, ModelError> {
    let norm = rows.f_norm_scalaropt_dim(2.0, [1], true)?.f_clamp_min(NORM_FLOOR)?;
    Ok(rows.f_div(&norm)?)
}
