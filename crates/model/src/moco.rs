//! MoCo v2's loss (arXiv 1911.05722, equation 1): a pure function of queries, their keys and the queue.

use crate::error::check_shape;
use crate::loss::{LevelLosses, by_lane, widened};
use crate::{ModelError, l2_normalized};
use tch::Tensor;

/// Mean over a lane's pictures of the cross entropy of (query . own key, query . every key of the queue) / T; no further factor,
/// as published. `queries`: [lanes * N, D], not normalised; `keys`: their keys, and `queue`: [Q, D], rows of length 1. Answers
/// [1, 1, lanes] each.
///
/// # Errors
/// When shapes do not fit, or the engine fails.
pub fn moco_losses(
    queries: &Tensor,
    keys: &Tensor,
    queue: &Tensor,
    lanes: i64,
    temperature: f64,
) -> Result<LevelLosses, ModelError> {
    check_shape("queries", &queries.size(), &[-1, -1])?;
    let (rows, size) = queries.size2()?;
    check_shape("keys of the queries", &keys.size(), &[rows, size])?;
    check_shape("queue", &queue.size(), &[-1, size])?;
    let queries = l2_normalized(&widened(queries)?)?;
    let (keys, queue) = (keys.f_to_kind(queries.kind())?, queue.f_to_kind(queries.kind())?);
    let own = queries.f_mul(&keys)?.f_sum_dim_intlist([1_i64].as_slice(), true, None)?;
    let others = queries.f_matmul(&queue.f_transpose(0, 1)?)?;
    let logits = Tensor::f_cat(&[&own, &others], 1)?.f_div_scalar(temperature)?;
    let likelihood = logits.f_log_softmax(1, None)?.f_narrow(1, 0, 1)?;
    let shaped = |values: &Tensor| -> Result<Tensor, ModelError> {
        Ok(by_lane(values, lanes)?.f_reshape([1, 1, lanes])?)
    };
    let losses = shaped(&likelihood)?.f_neg()?;
    tch::no_grad(|| {
        let (pos_cos, neg_cos) = (shaped(&own.f_detach()?)?, shaped(&others.f_detach()?)?);
        Ok(LevelLosses { losses, pos_cos, neg_cos })
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::Kind;

    #[test]
    fn a_loss_is_its_formula() {
        let queries = Tensor::from_slice(&[3.0, 0.0, 0.0, 0.2]).reshape([2, 2]);
        let keys = Tensor::from_slice(&[0.6, 0.8, 1.0, 0.0]).reshape([2, 2]);
        let queue = Tensor::from_slice(&[1.0, 0.0, 0.0, -1.0, -0.6, 0.8]).reshape([3, 2]);
        let t = 0.2;
        let cosines = [[0.6, 1.0, 0.0, -0.6], [0.0, 0.0, -1.0, 0.8]];
        let each = cosines.map(|c: [f64; 4]| c.iter().map(|c| (c / t).exp()).sum::<f64>().ln() - c[0] / t);
        for lanes in [1, 2] {
            let found = moco_losses(&queries, &keys, &queue, lanes, t).unwrap();
            let losses: Vec<f64> = found.losses.flatten(0, -1).to_kind(Kind::Double).try_into().unwrap();
            let expected = if lanes == 2 { each.to_vec() } else { vec![f64::midpoint(each[0], each[1])] };
            assert_eq!(losses.len(), expected.len());
            for (loss, expected) in losses.iter().zip(expected) {
                assert!((loss - expected).abs() < 1e-12, "{loss} {expected}");
            }
            let pos: Vec<f64> = found.pos_cos.flatten(0, -1).try_into().unwrap();
            let neg: Vec<f64> = found.neg_cos.flatten(0, -1).try_into().unwrap();
            if lanes == 2 {
                assert!(
                    (pos[0] - 0.6).abs() < 1e-12 && (neg[1] + 0.2 / 3.0).abs() < 1e-12,
                    "{pos:?} {neg:?}"
                );
            }
        }
        assert!(moco_losses(&queries, &keys.narrow(0, 0, 1), &queue, 1, t).is_err());
        assert!(moco_losses(&queries, &keys, &queue.narrow(1, 0, 1), 1, t).is_err());
    }
}
