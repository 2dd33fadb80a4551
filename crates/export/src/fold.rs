//! A convolution and the norm after it become one convolution with a bias.
//!
//! In evaluation the norm is y = (x - mean) / sqrt(var + eps) * weight + bias, a scale and a shift of each channel.
//! Invariant: everything is computed in f64 and rounded once. Left out: training, where a norm is no scale.

use crate::Tensors;
use crate::element::{from_f64, to_f64};
use crate::error::ExportError;
use mcl_checkpoint_core::OwnedTensor;

/// Epsilon of every norm of the network.
pub(crate) const EPSILON: f64 = 1e-5;

/// The convolution `<path>.conv.weight` `[out, in, h, w]` with `<path>.bn.*` `[out]` folded in: weight of the same
/// shape, and bias `[out]`.
///
/// # Errors
/// When one of them is not there, has other sizes or is not of floating point.
pub(crate) fn folded(state: &Tensors, path: &str) -> Result<(OwnedTensor, OwnedTensor), ExportError> {
    let name = format!("{path}.conv.weight");
    let (conv, mut weight) = floats(state, &name)?;
    let channels = match conv.shape.as_slice() {
        [channels, _, _, _] if *channels > 0 => *channels,
        _ => {
            let expected = "[out, in, height, width]".to_owned();
            return Err(ExportError::Shape { name, found: conv.shape.clone(), expected });
        }
    };
    let channel = |part: &str| {
        let name = format!("{path}.bn.{part}");
        let (tensor, values) = floats(state, &name)?;
        if tensor.shape == [channels] {
            return Ok(values);
        }
        Err(ExportError::Shape { name, found: tensor.shape.clone(), expected: format!("[{channels}]") })
    };
    let (gamma, beta) = (channel("weight")?, channel("bias")?);
    let (mean, variance) = (channel("running_mean")?, channel("running_var")?);
    let scale: Vec<f64> = gamma.iter().zip(&variance).map(|(g, v)| g / (v + EPSILON).sqrt()).collect();
    let a_channel = (weight.len() / channels).max(1);
    for (filter, scale) in weight.chunks_mut(a_channel).zip(&scale) {
        filter.iter_mut().for_each(|w| *w *= scale);
    }
    let bias: Vec<f64> = beta.iter().zip(mean.iter().zip(&scale)).map(|(b, (m, s))| b - m * s).collect();
    Ok((from_f64(&weight, conv.dtype, conv.shape.clone()), from_f64(&bias, conv.dtype, vec![channels])))
}

fn floats<'a>(state: &'a Tensors, name: &str) -> Result<(&'a OwnedTensor, Vec<f64>), ExportError> {
    let tensor = state.get(name).ok_or_else(|| ExportError::Missing { name: name.to_owned() })?;
    let values = to_f64(tensor).ok_or_else(|| ExportError::Type {
        name: name.to_owned(),
        found: tensor.dtype,
        expected: "a floating point type",
    })?;
    Ok((tensor, values))
}

#[cfg(test)]
mod tests {
    use super::*;
    use mcl_checkpoint_core::Dtype;

    fn state(variance: [f64; 2]) -> Tensors {
        let tensor = |shape: Vec<usize>, values: &[f64]| from_f64(values, Dtype::F32, shape);
        [
            ("p.conv.weight", tensor(vec![2, 1, 1, 2], &[1.0, -2.0, 4.0, 8.0])),
            ("p.bn.weight", tensor(vec![2], &[3.0, 0.5])),
            ("p.bn.bias", tensor(vec![2], &[0.25, -1.0])),
            ("p.bn.running_mean", tensor(vec![2], &[2.0, 10.0])),
            ("p.bn.running_var", tensor(vec![2], &variance)),
        ]
        .map(|(name, tensor)| (name.to_owned(), tensor))
        .into()
    }

    /// By hand: variances 4 - 1e-5 and 0.25 - 1e-5 have roots 2 and 0.5 with the epsilon, so scales are 3/2 = 1.5 and
    /// 0.5/0.5 = 1. Weights: 1.5, -3 and 4, 8. Biases: 0.25 - 2 * 1.5 = -2.75 and -1 - 10 * 1 = -11.
    #[test]
    fn a_case_by_hand() {
        let (weight, bias) = folded(&state([4.0 - 1e-5, 0.25 - 1e-5]), "p").unwrap();
        assert_eq!((weight.dtype, weight.shape.as_slice()), (Dtype::F32, &[2, 1, 1, 2][..]));
        assert_eq!(bias.shape, [2]);
        let close = |found: &OwnedTensor, expected: &[f64]| {
            let found = to_f64(found).unwrap();
            assert_eq!(found.len(), expected.len());
            for (f, e) in found.iter().zip(expected) {
                assert!((f - e).abs() <= 4e-7 * e.abs(), "{f} {e}");
            }
        };
        close(&weight, &[1.5, -3.0, 4.0, 8.0]);
        close(&bias, &[-2.75, -11.0]);
    }

    /// Without the epsilon a channel that never varied would become infinite: 3 / sqrt(1e-5) = 948.683...
    #[test]
    fn a_dead_channel_stays_finite() {
        let (weight, _) = folded(&state([0.0, 1.0]), "p").unwrap();
        assert!((to_f64(&weight).unwrap()[0] - 948.683_298).abs() < 1e-3);
    }

    #[test]
    fn what_does_not_fit_is_named() {
        let mut short = state([1.0, 1.0]);
        short.insert("p.bn.bias".to_owned(), from_f64(&[0.0], Dtype::F32, vec![1]));
        assert!(
            folded(&short, "p").unwrap_err().to_string().contains("`p.bn.bias` has shape [1], expected [2]")
        );
        short.remove("p.bn.bias");
        assert!(folded(&short, "p").unwrap_err().to_string().contains("no tensor `p.bn.bias`"));
        let mut flat = state([1.0, 1.0]);
        flat.insert("p.conv.weight".to_owned(), from_f64(&[0.0; 2], Dtype::F32, vec![2]));
        assert!(matches!(folded(&flat, "p"), Err(ExportError::Shape { .. })));
    }
}
