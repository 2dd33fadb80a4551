//! Convolution and perceptron layers: weights and how to apply them, nothing else.

use crate::ModelError;
use crate::blueprint::{Blueprint, InitRule};
use tch::Tensor;

/// Where a convolution stands decides how it is initialised (MCL_SPEC section 1).
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum ConvInit {
    /// Backbone: N(0, 2 / fan_in).
    FanIn,
    /// Projector: N(0, 2 / fan_out).
    FanOut,
    /// Feature pyramid: Xavier uniform.
    Xavier,
}

impl ConvInit {
    #[expect(clippy::cast_precision_loss, reason = "products of layer sizes, far below 2^53")]
    fn rule(self, fan_in: i64, fan_out: i64) -> InitRule {
        match self {
            Self::FanIn => InitRule::Normal { std: (2.0 / fan_in as f64).sqrt() },
            Self::FanOut => InitRule::Normal { std: (2.0 / fan_out as f64).sqrt() },
            Self::Xavier => InitRule::Uniform { bound: (6.0 / (fan_in + fan_out) as f64).sqrt() },
        }
    }
}

/// A square convolution without bias: [n, in, h, w] -> [n, out, h / stride, w / stride].
#[derive(Debug)]
pub(crate) struct Conv {
    weight: Tensor,
    stride: i64,
    padding: i64,
}

impl Conv {
    /// `kernel` odd; padding keeps the size at stride 1.
    pub(crate) fn new(
        plan: &mut Blueprint,
        path: &str,
        (from, to): (i64, i64),
        kernel: i64,
        stride: i64,
        init: ConvInit,
    ) -> Result<Self, ModelError> {
        let area = kernel * kernel;
        let rule = init.rule(from * area, to * area);
        let weight = plan.parameter(format!("{path}.weight"), &[to, from, kernel, kernel], rule)?;
        Ok(Self { weight, stride, padding: kernel / 2 })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.f_conv2d(
            &self.weight,
            None::<&Tensor>,
            [self.stride, self.stride],
            [self.padding, self.padding],
            [1, 1],
            1,
        )?)
    }
}

/// An affine map with bias: [rows, in] -> [rows, out].
#[derive(Debug)]
pub(crate) struct Linear {
    weight: Tensor,
    bias: Tensor,
}

impl Linear {
    /// Weights N(0, std^2), bias 0.
    pub(crate) fn new(
        plan: &mut Blueprint,
        path: &str,
        (from, to): (i64, i64),
        std: f64,
    ) -> Result<Self, ModelError> {
        Ok(Self {
            weight: plan.parameter(format!("{path}.weight"), &[to, from], InitRule::Normal { std })?,
            bias: plan.parameter(format!("{path}.bias"), &[to], InitRule::Constant(0.0))?,
        })
    }

    pub(crate) fn forward(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        Ok(x.f_linear(&self.weight, Some(&self.bias))?)
    }
}

/// max(x, 0), in the memory of `x`: nothing before it keeps its output for the backward pass.
pub(crate) fn relu(mut x: Tensor) -> Result<Tensor, ModelError> {
    Ok(x.f_relu_()?)
}
