//! The feature pyramid (arXiv 1612.03144, MCL_SPEC section 1): no activation anywhere.

use crate::blueprint::Blueprint;
use crate::layer::{Conv, ConvInit};
use crate::norm::BatchNorm;
use crate::spec::MAX_LEVELS;
use crate::{ModelError, ModelSpec, Pass};
use tch::Tensor;

/// Lateral 1x1 and output 3x3 convolutions of P2..P5.
#[derive(Debug)]
pub struct Fpn {
    lateral_convs: [(Conv, BatchNorm); MAX_LEVELS],
    fpn_convs: [(Conv, BatchNorm); MAX_LEVELS],
}

impl Fpn {
    pub(crate) fn new(plan: &mut Blueprint, path: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let channels = spec.fpn_channels;
        let mut branch = |name: String, from: i64, kernel: i64| -> Result<_, ModelError> {
            let conv =
                Conv::new(plan, &format!("{name}.conv"), (from, channels), kernel, 1, ConvInit::Xavier)?;
            Ok((conv, BatchNorm::affine(plan, &format!("{name}.bn"), channels)?))
        };
        let [c2, c3, c4, c5] = spec.backbone_channels();
        let mut lateral = |i: usize, from: i64| branch(format!("{path}.lateral_convs.{i}"), from, 1);
        let lateral_convs = [lateral(0, c2)?, lateral(1, c3)?, lateral(2, c4)?, lateral(3, c5)?];
        let mut output = |i: usize| branch(format!("{path}.fpn_convs.{i}"), channels, 3);
        let fpn_convs = [output(0)?, output(1)?, output(2)?, output(3)?];
        Ok(Self { lateral_convs, fpn_convs })
    }

    /// [n, C_i, h, w] -> [n, F, h, w], the lateral branch of C(index + 2).
    pub(crate) fn lateral(&self, index: usize, feature: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
        let (conv, bn) = &self.lateral_convs[index];
        bn.forward(&conv.forward(feature)?, pass)
    }

    /// [n, F, h, w] -> [n, F, h, w], P(index + 2) from its accumulated lateral.
    pub(crate) fn output(&self, index: usize, merged: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
        let (conv, bn) = &self.fpn_convs[index];
        bn.forward(&conv.forward(merged)?, pass)
    }

    /// C2..C5 -> P2..P5, [n, F, S/4, S/4] .. [n, F, S/32, S/32]; outputs finer than `finest`
    /// (0 for P2) are not computed, and neither are their laterals.
    ///
    /// # Errors
    /// When the engine or the normaliser fails.
    pub fn forward(
        &self,
        features: &[Tensor; 4],
        finest: usize,
        pass: &Pass,
    ) -> Result<PyramidMaps, ModelError> {
        let mut maps: PyramidMaps = [None, None, None, None];
        let mut above: Option<Tensor> = None;
        for index in (finest..MAX_LEVELS).rev() {
            let lateral = self.lateral(index, &features[index], pass)?;
            let merged = match &above {
                Some(above) => merge(&lateral, above)?,
                None => lateral,
            };
            maps[index] = Some(self.output(index, &merged, pass)?);
            above = Some(merged);
        }
        Ok(maps)
    }
}

/// (P2, P3, P4, P5); `None` where nothing reads it.
pub type PyramidMaps = [Option<Tensor>; MAX_LEVELS];

/// The lateral plus the nearest upsampling of the coarser, already merged one: [n, F, h, w].
pub(crate) fn merge(lateral: &Tensor, above: &Tensor) -> Result<Tensor, ModelError> {
    let (_, _, height, width) = lateral.size4()?;
    Ok(lateral.f_add(&above.f_upsample_nearest2d([height, width], None, None)?)?)
}
