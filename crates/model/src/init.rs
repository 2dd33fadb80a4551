//! Initial weights (MCL_SPEC section 1): each parameter from its own stream, whatever the order.

use crate::ModelError;
use crate::blueprint::{InitRule, Parameter};
use mcl_types::{Purpose, Seed};
use tch::Tensor;

/// Fills `parameter` from the stream that its name has under `seed`.
pub(crate) fn fill(parameter: &Parameter, seed: Seed) -> Result<(), ModelError> {
    let mut stream = seed.named_stream(Purpose::Init, &parameter.name, &[]);
    let count = parameter.tensor.numel();
    match parameter.rule {
        InitRule::Normal { std } => write(&parameter.tensor, (0..count).map(|_| std * stream.normal())),
        InitRule::Uniform { bound } => {
            write(&parameter.tensor, (0..count).map(|_| stream.range(-bound, bound)))
        }
        InitRule::Constant(value) => {
            let _ = tch::no_grad(|| parameter.tensor.shallow_clone().f_fill_(value))?;
            Ok(())
        }
    }
}

/// Writes `values` in row-major order, rounded to f32 so that an f64 model starts at the same point.
pub(crate) fn write(into: &Tensor, values: impl Iterator<Item = f64>) -> Result<(), ModelError> {
    #[expect(clippy::cast_possible_truncation, reason = "rounding to f32 is meant")]
    let values: Vec<f32> = values.map(|v| v as f32).collect();
    let source = Tensor::f_from_slice(&values)?.f_reshape(into.size())?;
    tch::no_grad(|| into.shallow_clone().f_copy_(&source))?;
    Ok(())
}
