//! Losses of the supervised objective: MCL's pretext with labels. Pure functions.
//!
//! A tile meets the targets of all pictures of its class instead of its own alone (supervised contrastive, the mean
//! outside of the logarithm: L_out of arXiv 2004.11362, equation 2), and a classifier tells its class (cross entropy). Levels,
//! sides, temperature and the factor 2 T are MCL's.

use crate::error::check_shape;
use crate::loss::{Contrast, LevelLosses, by_lane, cosines_of, stacked};
use crate::{ModelError, ModelSpec};
use tch::{Kind, Tensor};

/// What one side's rows are compared with, and their classes.
#[derive(Debug, Clone, Copy)]
pub struct Taught<'a> {
    /// Predictions, the other side's targets, and which target is a row's own.
    pub contrast: Contrast<'a>,
    /// By level: [lanes * tiles, C], outputs of the classifiers.
    pub logits: &'a [Tensor],
    /// [K N], i64: the class of each target.
    pub classes: &'a Tensor,
}

/// All losses of a step on one rank that carries `lanes` lanes: a level's contrastive loss times the first of `shares` plus its
/// cross entropy times the second, times the level's weight. The cosines are those with targets of the own class and with
/// all others.
///
/// # Errors
/// When shapes do not fit, or the engine fails.
pub fn supervised_losses(
    spec: &ModelSpec,
    lanes: i64,
    shares: [f64; 2],
    q: &Taught,
    k: &Taught,
) -> Result<LevelLosses, ModelError> {
    let mut columns = [Vec::new(), Vec::new(), Vec::new()];
    let levels = i64::try_from(spec.levels).unwrap_or(i64::MAX);
    for side in [q, k] {
        let contrast = &side.contrast;
        let found = [contrast.predictions.len(), contrast.labels.len(), side.logits.len()];
        let found = found.map(|n| i64::try_from(n).unwrap_or(-1));
        check_shape("levels of predictions, labels and logits", &found, &[levels; 3])?;
        for (level, weight) in spec.level_weights.iter().enumerate() {
            let labels = &contrast.labels[level];
            let terms = contrastive(
                &contrast.predictions[level],
                contrast.targets,
                (labels, side.classes),
                lanes,
                spec.temperature,
            )?;
            let told = classification(&side.logits[level], &side.classes.f_index_select(0, labels)?, lanes)?;
            let [loss, pos, neg] = terms;
            let loss =
                loss.f_mul_scalar(shares[0] * weight)?.f_add(&told.f_mul_scalar(shares[1] * weight)?)?;
            for (column, value) in columns.iter_mut().zip([loss, pos, neg]) {
                column.push(value);
            }
        }
    }
    let shape = [2, levels, lanes];
    let [losses, pos_cos, neg_cos] = &columns;
    Ok(LevelLosses {
        losses: stacked(losses, shape)?,
        pos_cos: stacked(pos_cos, shape)?,
        neg_cos: stacked(neg_cos, shape)?,
    })
}

/// Loss and the two cosines, [lanes] each: mean over a lane's rows of 2 T times the mean over the targets of the row's class of
/// the cross entropy of cosines / T.
fn contrastive(
    predictions: &Tensor,
    targets: &Tensor,
    (labels, classes): (&Tensor, &Tensor),
    lanes: i64,
    temperature: f64,
) -> Result<[Tensor; 3], ModelError> {
    let cosines = cosines_of(predictions, targets, labels, lanes)?;
    check_shape("classes of the targets", &classes.size(), &[targets.size()[0]])?;
    let own = classes.f_index_select(0, labels)?.f_unsqueeze(1)?;
    let same = own.f_eq_tensor(&classes.f_unsqueeze(0)?)?.f_to_kind(cosines.kind())?;
    let mean_over = |values: &Tensor, mask: &Tensor| -> Result<Tensor, ModelError> {
        let count = mask.f_sum_dim_intlist([1_i64].as_slice(), false, None::<Kind>)?.f_clamp_min(1.0)?;
        Ok(values.f_mul(mask)?.f_sum_dim_intlist([1_i64].as_slice(), false, None::<Kind>)?.f_div(&count)?)
    };
    let likelihood = cosines.f_div_scalar(temperature)?.f_log_softmax(1, None)?;
    let loss = by_lane(&mean_over(&likelihood, &same)?, lanes)?.f_mul_scalar(-2.0 * temperature)?;
    tch::no_grad(|| {
        let cosines = cosines.f_detach()?;
        let pos = by_lane(&mean_over(&cosines, &same)?, lanes)?;
        let neg = by_lane(&mean_over(&cosines, &same.f_neg()?.f_add_scalar(1.0)?)?, lanes)?;
        Ok([loss, pos, neg])
    })
}

/// [lanes]: mean over a lane's rows of the cross entropy of `logits` ([rows, C]) against `classes` ([rows]).
fn classification(logits: &Tensor, classes: &Tensor, lanes: i64) -> Result<Tensor, ModelError> {
    let logits = crate::loss::widened(logits)?;
    let likelihood = logits.f_log_softmax(1, None)?.f_gather(1, &classes.f_unsqueeze(1)?, false)?;
    Ok(by_lane(&likelihood, lanes)?.f_neg()?)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::{ModelConfig, level_losses};

    fn spec(temperature: f64) -> ModelSpec {
        let weights = vec![0.5];
        let config = ModelConfig { levels: 1, level_weights: weights, temperature, ..ModelConfig::default() };
        ModelSpec::new(config).unwrap()
    }

    fn values(tensor: &Tensor) -> Vec<f64> {
        tensor.detach().flatten(0, -1).to_kind(Kind::Double).try_into().unwrap()
    }

    /// One lane of two rows, three targets in the plane, of classes 0, 1, 0.
    fn example() -> (Vec<Tensor>, Tensor, Vec<Tensor>, Vec<Tensor>, Tensor) {
        let rows = Tensor::from_slice(&[2.0, 0.0, 3.0, 3.0]).reshape([2, 2]);
        let targets = Tensor::from_slice(&[1.0, 0.0, 0.0, 1.0, 0.6, 0.8]).reshape([3, 2]);
        let logits = Tensor::from_slice(&[1.0, 0.0, 0.5, 2.0]).reshape([2, 2]);
        let classes = Tensor::from_slice(&[0_i64, 1, 0]);
        (vec![rows], targets, vec![Tensor::from_slice(&[2_i64, 1])], vec![logits], classes)
    }

    #[test]
    fn losses_are_their_formulas() {
        let (rows, targets, labels, logits, classes) = example();
        let contrast = Contrast { predictions: &rows, targets: &targets, labels: &labels };
        let side = Taught { contrast, logits: &logits, classes: &classes };
        let (t, half) = (0.5, 0.5_f64.sqrt());
        let cosines = [[1.0, 0.0, 0.6], [half, half, 1.4 * half]];
        let positives: [&[usize]; 2] = [&[0, 2], &[1]];
        let (mut contrastive, mut told) = (0.0, 0.0);
        for (row, (own, at)) in positives.iter().zip([(0, [1.0, 0.0]), (1, [0.5, 2.0])]).enumerate() {
            let sum: f64 = cosines[row].iter().map(|c: &f64| (c / t).exp()).sum();
            let mean: f64 =
                own.iter().map(|p| sum.ln() - cosines[row][*p] / t).sum::<f64>() / own.len() as f64;
            contrastive += 2.0 * t * mean / 2.0;
            let (class, logits): (usize, [f64; 2]) = at;
            told += (logits.iter().map(|l| l.exp()).sum::<f64>().ln() - logits[class]) / 2.0;
        }
        for shares in [[1.0, 0.0], [0.0, 1.0], [0.7, 1.3]] {
            let found = supervised_losses(&spec(t), 1, shares, &side, &side).unwrap();
            let expected = 0.5 * (shares[0] * contrastive + shares[1] * told);
            for loss in values(&found.losses) {
                assert!((loss - expected).abs() < 1e-12, "{shares:?}: {loss} {expected}");
            }
            let pos = f64::midpoint(0.8, half);
            let neg = f64::midpoint(0.0, f64::midpoint(half, 1.4 * half));
            assert!((values(&found.pos_cos)[0] - pos).abs() < 1e-12);
            assert!((values(&found.neg_cos)[0] - neg).abs() < 1e-12);
        }
    }

    #[test]
    fn where_every_picture_is_its_own_class_it_is_mcl() {
        let (rows, targets, labels, logits, _) = example();
        let classes = Tensor::from_slice(&[5_i64, 1, 0]);
        let logits = vec![logits[0].constant_pad_nd([0, 4])];
        let contrast = Contrast { predictions: &rows, targets: &targets, labels: &labels };
        let side = Taught { contrast, logits: &logits, classes: &classes };
        let taught = supervised_losses(&spec(0.2), 1, [1.0, 0.0], &side, &side).unwrap();
        let plain = level_losses(&spec(0.2), 1, &contrast, &contrast).unwrap();
        for (a, b) in [
            (&taught.losses, &plain.losses),
            (&taught.pos_cos, &plain.pos_cos),
            (&taught.neg_cos, &plain.neg_cos),
        ] {
            assert!((a - b).abs().max().double_value(&[]) < 1e-12);
        }
    }

    #[test]
    fn shapes_that_do_not_fit_are_refused() {
        let (rows, targets, labels, logits, classes) = example();
        let contrast = Contrast { predictions: &rows, targets: &targets, labels: &labels };
        let short = classes.narrow(0, 0, 2);
        for side in [
            Taught { contrast, logits: &[], classes: &classes },
            Taught { contrast, logits: &logits, classes: &short },
        ] {
            assert!(supervised_losses(&spec(1.0), 1, [1.0, 1.0], &side, &side).is_err());
        }
    }
}
