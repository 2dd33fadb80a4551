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
    let [losses, pos_cos, neg_cos] = &columns;
    Ok(LevelLosses {
        losses: stacked(losses, shape)?,
        pos_cos: stacked(pos_cos, shape)?,
        neg_cos: stacked(neg_cos, shape)?,
    })
}

/// Terms of [lanes] each, side by side and level by level, as one tensor of `shape`.
pub(crate) fn stacked(terms: &[Tensor], shape: [i64; 3]) -> Result<Tensor, ModelError> {
    Ok(Tensor::f_cat(terms, 0)?.f_reshape(shape)?)
}

/// Mean over each lane's rows: [lanes * n] or [lanes * n, 1] -> [lanes].
pub(crate) fn by_lane(rows: &Tensor, lanes: i64) -> Result<Tensor, ModelError> {
    Ok(rows.f_reshape([lanes, -1])?.f_mean_dim([1_i64].as_slice(), false, None)?)
}

/// One level of one side, `[lanes]` each.
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
    let cosines = cosines_of(predictions, targets, labels, lanes)?;
    let own = labels.f_unsqueeze(1)?;
    let by_lane = |rows: &Tensor| by_lane(rows, lanes);
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

/// Cosines of every row with every target, [rows, K N], once the shapes were found to fit.
pub(crate) fn cosines_of(
    predictions: &Tensor,
    targets: &Tensor,
    labels: &Tensor,
    lanes: i64,
) -> Result<Tensor, ModelError> {
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
    let predictions = widened(predictions)?;
    let targets = targets.f_to_kind(predictions.kind())?;
    Ok(l2_normalized(&predictions)?.f_matmul(&targets.f_transpose(0, 1)?)?)
}

/// Half precision as f32; anything else as it is.
pub(crate) fn widened(rows: &Tensor) -> Result<Tensor, ModelError> {
    let half = matches!(rows.kind(), Kind::Half | Kind::BFloat16);
    Ok(rows.f_to_kind(if half { Kind::Float } else { rows.kind() })?)
}

/// Rows of length 1: x / max(|x|, 1e-12), [rows, D] -> [rows, D].
///
/// # Errors
/// When the engine fails.
pub fn l2_normalized(rows: &Tensor) -> Result<Tensor, ModelError> {
    let norm = rows.f_norm_scalaropt_dim(2.0, [1], true)?.f_clamp_min(NORM_FLOOR)?;
    Ok(rows.f_div(&norm)?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Device;

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.detach().to_kind(Kind::Double).try_into().unwrap()
    }

    /// Two lanes of two rows each, three targets in the plane.
    fn example() -> (Tensor, Tensor, Tensor) {
        let rows = Tensor::from_slice(&[2.0, 0.0, 0.0, 0.5, 3.0, 3.0, -1.0, 0.0]).reshape([4, 2]);
        let targets = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0, 0.6, 0.8]).reshape([3, 2]);
        (rows, targets, Tensor::from_slice(&[0_i64, 2, 1, 0]))
    }

    #[test]
    fn a_loss_is_its_formula() {
        let (rows, targets, labels) = example();
        let (temperature, weight) = (0.5, 0.25);
        let found = level_loss(&rows, &targets, &labels, 2, temperature, weight).unwrap();
        let half = 0.5_f64.sqrt();
        let cosines = [[1.0, 0.0, 0.6], [0.0, 1.0, 0.8], [half, half, 1.4 * half], [-1.0, 0.0, -0.6]];
        let own = [0, 2, 1, 0];
        for lane in 0..2 {
            let (mut loss, mut pos, mut neg) = (0.0, 0.0, 0.0);
            for row in [2 * lane, 2 * lane + 1] {
                let sum: f64 = cosines[row].iter().map(|c: &f64| (c / temperature).exp()).sum();
                let mine = cosines[row][own[row]];
                loss += (sum.ln() - mine / temperature) / 2.0 * 2.0 * temperature * weight;
                pos += mine / 2.0;
                neg += (cosines[row].iter().sum::<f64>() - mine) / 4.0;
            }
            let near = |found: &Tensor, expected: f64| (values(found)[lane] - expected).abs() < 1e-12;
            assert!(
                near(&found.loss, loss) && near(&found.pos_cos, pos) && near(&found.neg_cos, neg),
                "{found:?}"
            );
        }
    }

    #[test]
    fn who_cannot_tell_targets_apart_is_at_chance() {
        let targets = Tensor::ones([6, 1], F64);
        let rows = Tensor::randn([4, 1], F64);
        let labels = Tensor::from_slice(&[0_i64, 1, 2, 5]);
        let found = level_loss(&rows, &targets, &labels, 1, 0.2, 0.5).unwrap();
        assert!((values(&found.loss)[0] - 0.2 * 6_f64.ln()).abs() < 1e-12);
    }

    #[test]
    fn half_precision_is_widened() {
        let (rows, targets, labels) = example();
        let found = level_loss(&rows.to_kind(Kind::BFloat16), &targets, &labels, 2, 1.0, 1.0).unwrap();
        assert_eq!(found.loss.kind(), Kind::Float);
    }

    #[test]
    fn a_row_of_zeros_stays_one() {
        assert_eq!(values(&l2_normalized(&Tensor::zeros([1, 2], F64)).unwrap().flatten(0, 1)), [0.0, 0.0]);
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (rows, targets, labels) = example();
        assert!(level_loss(&rows, &targets, &labels, 3, 1.0, 1.0).is_err());
        assert!(level_loss(&rows, &targets, &labels.narrow(0, 0, 3), 1, 1.0, 1.0).is_err());
        assert!(level_loss(&rows, &targets.narrow(1, 0, 1), &labels, 1, 1.0, 1.0).is_err());
        // A label beyond the targets is the engine's to refuse.
        assert!(level_loss(&rows, &targets.narrow(0, 0, 2), &labels, 1, 1.0, 1.0).is_err());
    }
}
