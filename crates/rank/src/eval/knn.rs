//! k nearest neighbours by cosine.

use super::judge::Rows;
use anyhow::Result;
use tch::{Device, Kind, Tensor};

/// Temperature of a neighbour's vote, as usual since Wu et al. 2018.
const VOTE_TEMPERATURE: f64 = 0.07;
/// Rows that are compared with all others at once: their similarities are all in memory.
const AT_ONCE: i64 = 1024;

/// Share of `test` rows whose class wins the vote of their k nearest `train` rows; both of length 1.
pub(super) fn accuracy(train: &Rows<'_>, test: &Rows<'_>, classes: i64, k: i64) -> Result<f64> {
    let k = k.clamp(1, i64::try_from(train.labels.len())?);
    let (known, asked) = (Tensor::f_from_slice(train.labels)?, Tensor::f_from_slice(test.labels)?);
    let columns = train.features.f_transpose(0, 1)?;
    let mut right = 0.0;
    for (rows, labels) in test.features.f_split(AT_ONCE, 0)?.iter().zip(asked.f_split(AT_ONCE, 0)?) {
        let (similar, index) = rows.f_matmul(&columns)?.f_topk(k, 1, true, true)?;
        let neighbours = known.f_take(&index)?;
        let votes = Tensor::f_zeros([rows.size2()?.0, classes], (Kind::Float, Device::Cpu))?;
        let weight = similar.f_div_scalar(VOTE_TEMPERATURE)?.f_exp()?;
        let winner = votes.f_scatter_add(1, &neighbours, &weight)?.f_argmax(1, false)?;
        right += winner.f_eq_tensor(&labels)?.f_sum(Kind::Double)?.f_double_value(&[])?;
    }
    #[expect(clippy::cast_precision_loss, reason = "a number of rows")]
    let all = test.labels.len() as f64;
    Ok(right / all)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn rows<'a>(values: &[f32], labels: &'a [i64]) -> Rows<'a> {
        Rows { features: Tensor::from_slice(values).view([-1, 2]), labels, pictures: &[] }
    }

    #[test]
    fn neighbours_vote_by_similarity() {
        let train = rows(&[1.0, 0.0, 0.8, 0.6, 0.0, 1.0], &[0, 1, 1]);
        let test = |labels| rows(&[1.0, 0.0, 0.0, 1.0], labels);
        assert!((accuracy(&train, &test(&[0, 1]), 2, 2).unwrap() - 1.0).abs() < 1e-9);
        assert!((accuracy(&train, &test(&[1, 1]), 2, 2).unwrap() - 0.5).abs() < 1e-9);
    }

    #[test]
    fn more_rows_than_are_compared_at_once_all_count() {
        let train = rows(&[1.0, 0.0, 0.0, 1.0], &[0, 1]);
        let test = rows(&[1.0, 0.0].repeat(2500), &[0; 2500]);
        assert!((accuracy(&train, &test, 2, 1).unwrap() - 1.0).abs() < 1e-12);
    }
}
