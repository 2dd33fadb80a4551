//! The residual network (arXiv 1512.03385, MCL_SPEC section 1), stride in the 3x3 convolution of a bottleneck.

use crate::blueprint::Blueprint;
use crate::layer::{Conv, ConvInit, Sides, again, both, each, relu};
use crate::norm::BatchNorm;
use crate::pyramid::channels_last;
use crate::{Depth, ModelError, ModelSpec, Pass};

/// Stem, then layer1..layer4: [n, 3, S, S] -> C2..C5.
#[derive(Debug)]
pub struct Backbone {
    conv1: Conv,
    bn1: BatchNorm,
    layers: [Vec<Block>; 4],
}

impl Backbone {
    pub(crate) fn new(plan: &mut Blueprint, path: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let conv1 = Conv::new(plan, &format!("{path}.conv1"), (3, spec.width), 7, 2, ConvInit::FanIn)?;
        let bn1 = BatchNorm::affine(plan, &format!("{path}.bn1"), spec.width)?;
        let mut layers = [Vec::new(), Vec::new(), Vec::new(), Vec::new()];
        let mut from = spec.width;
        for (index, (layer, blocks)) in layers.iter_mut().zip(spec.resnet().blocks()).enumerate() {
            let width = spec.width << index;
            for block in 0..blocks {
                let path = format!("{path}.layer{}.{block}", index + 1);
                let stride = if index > 0 && block == 0 { 2 } else { 1 };
                layer.push(Block::new(plan, &path, spec.resnet(), (from, width), stride)?);
                from = width * spec.resnet().expansion();
            }
        }
        Ok(Self { conv1, bn1, layers })
    }

    /// By side, [n, 3, S, S] -> (C2, C3, C4, C5) = [n, C_i, S/4, S/4] .. [n, 8 C, S/32, S/32], C as in
    /// [`ModelSpec::backbone_channels`].
    ///
    /// # Errors
    /// When the engine or the normaliser fails.
    pub fn forward<const N: usize>(
        &self,
        pictures: &Sides<N>,
        pass: &Pass,
    ) -> Result<[Sides<N>; 4], ModelError> {
        let x = each(pictures, channels_last)?;
        let x = relu(self.bn1.forward(self.conv1.forward(&x)?, pass)?)?;
        let x = each(&x, |x| Ok(x.f_max_pool2d([3, 3], [2, 2], [1, 1], [1, 1], false)?))?;
        let [layer1, layer2, layer3, layer4] = &self.layers;
        let c2 = run(layer1, x, pass)?;
        let c3 = run(layer2, again(&c2), pass)?;
        let c4 = run(layer3, again(&c3), pass)?;
        let c5 = run(layer4, again(&c4), pass)?;
        Ok([c2, c3, c4, c5])
    }
}

fn run<const N: usize>(layer: &[Block], x: Sides<N>, pass: &Pass) -> Result<Sides<N>, ModelError> {
    layer.iter().try_fold(x, |x, block| block.forward(&x, pass))
}

/// A residual block: 3x3, 3x3 (basic) or 1x1, 3x3, 1x1 (bottleneck), each with its normalisation.
#[derive(Debug)]
struct Block {
    convs: Vec<(Conv, BatchNorm)>,
    downsample: Option<(Conv, BatchNorm)>,
}

impl Block {
    /// `from` -> `width` * expansion channels.
    fn new(
        plan: &mut Blueprint,
        path: &str,
        depth: Depth,
        (from, width): (i64, i64),
        stride: i64,
    ) -> Result<Self, ModelError> {
        let to = width * depth.expansion();
        let shapes = if depth.expansion() == 1 {
            vec![((from, width), 3, stride), ((width, width), 3, 1)]
        } else {
            vec![((from, width), 1, 1), ((width, width), 3, stride), ((width, to), 1, 1)]
        };
        let mut convs = Vec::with_capacity(shapes.len());
        for (number, (channels, kernel, stride)) in (1..).zip(shapes) {
            let conv =
                Conv::new(plan, &format!("{path}.conv{number}"), channels, kernel, stride, ConvInit::FanIn)?;
            convs.push((conv, BatchNorm::affine(plan, &format!("{path}.bn{number}"), channels.1)?));
        }
        let downsample = if stride != 1 || from != to {
            let conv =
                Conv::new(plan, &format!("{path}.downsample.0"), (from, to), 1, stride, ConvInit::FanIn)?;
            Some((conv, BatchNorm::affine(plan, &format!("{path}.downsample.1"), to)?))
        } else {
            None
        };
        Ok(Self { convs, downsample })
    }

    /// [n, from, h, w] -> [n, to, h / stride, w / stride].
    fn forward<const N: usize>(&self, x: &Sides<N>, pass: &Pass) -> Result<Sides<N>, ModelError> {
        let mut y = again(x);
        for (place, (conv, bn)) in self.convs.iter().enumerate() {
            y = bn.forward(conv.forward(&y)?, pass)?;
            if place + 1 < self.convs.len() {
                y = relu(y)?;
            }
        }
        let identity = match &self.downsample {
            Some((conv, bn)) => bn.forward(conv.forward(x)?, pass)?,
            None => again(x),
        };
        // In the memory of `y`: a normalisation does not keep its output for the backward pass.
        relu(both(&y, &identity, |y, x| Ok(y.shallow_clone().f_add_(x)?))?)
    }
}
