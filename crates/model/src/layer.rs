//! Convolution and perceptron layers: weights and how to apply them, nothing else.

use crate::ModelError;
use crate::blueprint::{Blueprint, InitRule};
use tch::Tensor;

/// Batches that go through a layer side by side, with the statistics of each its own: the two sides of a training step, or
/// one batch alone. What their norms say to other ranks travels together.
pub type Sides<const N: usize> = [Tensor; N];

/// The same done to every side, in order.
pub(crate) fn each<const N: usize>(
    x: &Sides<N>,
    mut of: impl FnMut(&Tensor) -> Result<Tensor, ModelError>,
) -> Result<Sides<N>, ModelError> {
    let mut failed = None;
    let all = x.each_ref().map(|x| {
        let made = if failed.is_none() { of(x) } else { Ok(Tensor::new()) };
        made.unwrap_or_else(|error| {
            failed = Some(error);
            Tensor::new()
        })
    });
    failed.map_or(Ok(all), Err)
}

/// The same done to every side of two.
pub(crate) fn both<const N: usize>(
    a: &Sides<N>,
    b: &Sides<N>,
    of: impl Fn(&Tensor, &Tensor) -> Result<Tensor, ModelError>,
) -> Result<Sides<N>, ModelError> {
    let mut b = b.iter();
    each(a, |a| b.next().map_or_else(|| Ok(a.shallow_clone()), |b| of(a, b)))
}

/// The same tensors once more.
pub(crate) fn again<const N: usize>(x: &Sides<N>) -> Sides<N> {
    x.each_ref().map(Tensor::shallow_clone)
}

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
    as_product: bool,
}

/// Channels that fill the engine's vectors. Its 1x1 kernels for AVX2 (oneDNN, `jit_1x1:avx2`, channels last) write past the end
/// of a weight gradient whose channels do not: valgrind names them with 4 channels in, the allocator ends the process later.
const VECTOR: i64 = 8;

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
        let as_product = kernel == 1 && (from % VECTOR != 0 || to % VECTOR != 0);
        Ok(Self { weight, stride, padding: kernel / 2, as_product })
    }

    pub(crate) fn forward<const N: usize>(&self, x: &Sides<N>) -> Result<Sides<N>, ModelError> {
        if self.as_product {
            return each(x, |x| self.product(x));
        }
        let (stride, padding) = ([self.stride; 2], [self.padding; 2]);
        each(x, |x| Ok(x.f_conv2d(&self.weight, None::<&Tensor>, stride, padding, [1, 1], 1)?))
    }

    /// A 1x1 convolution as a matrix product over its pixels, as they lie in memory.
    fn product(&self, x: &Tensor) -> Result<Tensor, ModelError> {
        let x = x.f_slice(2, None, None, self.stride)?.f_slice(3, None, None, self.stride)?;
        let pixels = x.f_permute([0, 2, 3, 1])?.f_linear(&self.weight.f_flatten(1, 3)?, None::<&Tensor>)?;
        Ok(pixels.f_permute([0, 3, 1, 2])?)
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

    /// Weights and bias uniform within 1 / sqrt(in), as PyTorch begins where a paper says nothing.
    #[expect(clippy::cast_precision_loss, reason = "layer sizes, far below 2^53")]
    pub(crate) fn uniform(
        plan: &mut Blueprint,
        path: &str,
        (from, to): (i64, i64),
    ) -> Result<Self, ModelError> {
        let rule = InitRule::Uniform { bound: 1.0 / (from as f64).sqrt() };
        Ok(Self {
            weight: plan.parameter(format!("{path}.weight"), &[to, from], rule)?,
            bias: plan.parameter(format!("{path}.bias"), &[to], rule)?,
        })
    }

    pub(crate) fn forward<const N: usize>(&self, x: &Sides<N>) -> Result<Sides<N>, ModelError> {
        each(x, |x| Ok(x.f_linear(&self.weight, Some(&self.bias))?))
    }
}

/// max(x, 0), in the memory of `x`: nothing before it keeps its output for the backward pass.
pub(crate) fn relu<const N: usize>(x: Sides<N>) -> Result<Sides<N>, ModelError> {
    each(&x, |x| Ok(x.shallow_clone().f_relu_()?))
}

#[cfg(test)]
mod tests {
    use super::*;
    use tch::{Device, Kind};

    #[test]
    fn narrow_channels_give_what_a_convolution_gives() {
        let f64 = (Kind::Double, Device::Cpu);
        for (stride, from, to) in [(1, 4, 6), (2, 4, 8), (2, 8, 12)] {
            let mut plan = Blueprint::new(f64.0, f64.1);
            let conv = Conv::new(&mut plan, "c", (from, to), 1, stride, ConvInit::FanIn).unwrap();
            assert!(conv.as_product);
            tch::manual_seed(stride);
            let _ = tch::no_grad(|| conv.weight.shallow_clone().normal_(0.0, 1.0));
            let leaf = |t: Tensor| t.detach().copy().set_requires_grad(true);
            let x = Tensor::randn([3, from, 6, 5], f64);
            let (ours, theirs, weight) =
                (leaf(x.shallow_clone()), leaf(x), leaf(conv.weight.shallow_clone()));
            let [y] = conv.forward(&[ours.shallow_clone()]).unwrap();
            let expected = theirs.conv2d(&weight, None::<&Tensor>, [stride; 2], [0; 2], [1; 2], 1);
            let dy = Tensor::randn(y.size(), f64);
            (&y * &dy).sum(Kind::Double).backward();
            (&expected * &dy).sum(Kind::Double).backward();
            for (a, b) in
                [(&y, &expected), (&ours.grad(), &theirs.grad()), (&conv.weight.grad(), &weight.grad())]
            {
                assert!((a - b).abs().max().double_value(&[]) < 1e-12);
            }
        }
    }
}
