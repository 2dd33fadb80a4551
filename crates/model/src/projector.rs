//! The projector (MCL_SPEC section 1): convolutions on isolated A x A patches, pooling, a perceptron.

use crate::blueprint::Blueprint;
use crate::error::check_shape;
use crate::layer::{Conv, ConvInit, Linear, Sides, both, each, relu};
use crate::norm::BatchNorm;
use crate::{ModelError, ModelSpec, Pass};
use tch::{Kind, Tensor};

/// One set of weights for all pyramid outputs.
#[derive(Debug)]
pub struct Projector {
    patch: i64,
    channels: i64,
    cls_convs: Vec<(Conv, BatchNorm)>,
    hidden: (Linear, BatchNorm),
    output: (Linear, BatchNorm),
}

impl Projector {
    #[expect(clippy::cast_precision_loss, reason = "layer sizes, far below 2^53")]
    pub(crate) fn new(plan: &mut Blueprint, path: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let width = spec.projector_width();
        let mut cls_convs = Vec::with_capacity(spec.projector_convs);
        let mut from = spec.fpn_channels;
        for index in 0..spec.projector_convs {
            let path = format!("{path}.cls_convs.{index}");
            let conv = Conv::new(plan, &format!("{path}.conv"), (from, width), 3, 1, ConvInit::FanOut)?;
            cls_convs.push((conv, BatchNorm::affine(plan, &format!("{path}.bn"), width)?));
            from = width;
        }
        let (middle, to) = (spec.projector_hidden, spec.embedding);
        let std = |fan_in: i64| (2.0 / fan_in as f64).sqrt();
        let hidden = Linear::new(plan, &format!("{path}.mlp.0"), (from, middle), std(from))?;
        let hidden = (hidden, BatchNorm::affine(plan, &format!("{path}.mlp.1"), middle)?);
        let output = Linear::new(plan, &format!("{path}.mlp.3"), (middle, to), std(middle))?;
        let output = (output, BatchNorm::plain(plan, &format!("{path}.mlp.4"), to));
        Ok(Self { patch: spec.patch_side(), channels: spec.fpn_channels, cls_convs, hidden, output })
    }

    /// By side, [n, F, r A, r A] -> [n, r r, D]: one embedding a patch, patches row-major within a picture.
    ///
    /// # Errors
    /// When the map is not a whole number of patches, or the engine or the normaliser fails.
    pub fn forward<const N: usize>(&self, map: &Sides<N>, pass: &Pass) -> Result<Sides<N>, ModelError> {
        let mut x = each(map, |map| patches(map, self.channels, self.patch))?;
        for (conv, bn) in &self.cls_convs {
            x = relu(bn.forward(conv.forward(&x)?, pass)?)?;
        }
        let pooled = each(&x, |x| Ok(x.f_mean_dim([2_i64, 3].as_slice(), false, None)?))?;
        let hidden = relu(self.hidden.1.forward(self.hidden.0.forward(&pooled)?, pass)?)?;
        let rows = self.output.1.forward(self.output.0.forward(&hidden)?, pass)?;
        both(&rows, map, |rows, map| {
            let pictures = map.size().first().copied().unwrap_or(0);
            let (count, size) = rows.size2()?;
            Ok(rows.f_reshape([pictures, count / pictures.max(1), size])?)
        })
    }
}

/// Side of a patch from which convolutions are faster with channels last. Below, most of a patch is its border, and the
/// engine's kernels for that order do not skip the padding (measured: 53 against 90 GMAC/s at 3, 87 against 83 at 7). In
/// bf16 channels last is the faster order at 3 too (448 against 341).
const CHANNELS_LAST_FROM: i64 = 7;

/// [n, C, h, w], channels last -> [n (h/A) (w/A), C, A, A] in the faster order, so that a convolution's zero padding falls on patch borders.
fn patches(map: &Tensor, channels: i64, side: i64) -> Result<Tensor, ModelError> {
    check_shape("map for the projector", &map.size(), &[-1, channels, -1, -1])?;
    let (n, c, h, w) = map.size4()?;
    if h % side != 0 || w % side != 0 {
        return Err(ModelError::Batch {
            what: "map for the projector".to_owned(),
            found: format!("{h} x {w}"),
            expected: format!("multiples of {side}"),
        });
    }
    let (rows, columns) = (h / side, w / side);
    let (tiles, count) = (map.f_reshape([n, c, rows, side, columns, side])?, n * rows * columns);
    if side < CHANNELS_LAST_FROM && map.kind() != Kind::BFloat16 {
        let tiled = tiles.f_permute([0, 2, 4, 1, 3, 5])?;
        return Ok(tiled.f_reshape([count, c, side, side])?.f_contiguous()?);
    }
    // Channels stay innermost, as they lie in memory: runs of them are copied, and a single patch is not copied at all.
    let tiled = tiles.f_permute([0, 2, 4, 3, 5, 1])?;
    Ok(tiled.f_reshape([count, side, side, c])?.f_permute([0, 3, 1, 2])?)
}
