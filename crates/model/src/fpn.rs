//! The feature pyramid (arXiv 1612.03144, MCL_SPEC section 1): no activation anywhere.

use crate::blueprint::Blueprint;
use crate::layer::{Conv, ConvInit, Sides, both};
use crate::norm::BatchNorm;
use crate::spec::MAX_LEVELS;
use crate::{ModelError, ModelSpec, Pass};

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
    pub(crate) fn lateral<const N: usize>(
        &self,
        index: usize,
        feature: &Sides<N>,
        pass: &Pass,
    ) -> Result<Sides<N>, ModelError> {
        let (conv, bn) = &self.lateral_convs[index];
        bn.forward(conv.forward(feature)?, pass)
    }

    /// [n, F, h, w] -> [n, F, h, w], P(index + 2) from its accumulated lateral.
    pub(crate) fn output<const N: usize>(
        &self,
        index: usize,
        merged: &Sides<N>,
        pass: &Pass,
    ) -> Result<Sides<N>, ModelError> {
        let (conv, bn) = &self.fpn_convs[index];
        bn.forward(conv.forward(merged)?, pass)
    }

    /// By side, C2..C5 -> P2..P5, [n, F, S/4, S/4] .. [n, F, S/32, S/32]; outputs finer than `finest`
    /// (0 for P2) are not computed, and neither are their laterals.
    ///
    /// # Errors
    /// When the engine or the normaliser fails.
    pub fn forward<const N: usize>(
        &self,
        features: &[Sides<N>; 4],
        finest: usize,
        pass: &Pass,
    ) -> Result<PyramidMaps<N>, ModelError> {
        let mut maps: PyramidMaps<N> = [None, None, None, None];
        let mut above: Option<Sides<N>> = None;
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

/// (P2, P3, P4, P5) of every side; `None` where nothing reads it.
pub type PyramidMaps<const N: usize> = [Option<Sides<N>>; MAX_LEVELS];

/// The lateral plus the nearest upsampling of the coarser, already merged one: [n, F, h, w].
pub(crate) fn merge<const N: usize>(lateral: &Sides<N>, above: &Sides<N>) -> Result<Sides<N>, ModelError> {
    both(lateral, above, |lateral, above| {
        let (_, _, height, width) = lateral.size4()?;
        Ok(lateral.f_add(&above.f_upsample_nearest2d([height, width], None, None)?)?)
    })
}
