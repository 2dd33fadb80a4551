//! MoCo v2's head (arXiv 2003.04297, section 3): pooled features through a perceptron without norms.

use crate::blueprint::Blueprint;
use crate::layer::{Linear, Sides, each, relu};
use crate::{ModelError, ModelSpec};

/// [n, C5, h, w] -> [n, D].
#[derive(Debug)]
pub(crate) struct GlobalHead {
    hidden: Linear,
    output: Linear,
}

impl GlobalHead {
    /// Hidden width is the projector's: 2,048 as published, which is the backbone's.
    pub(crate) fn new(plan: &mut Blueprint, path: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let [_, _, _, from] = spec.backbone_channels();
        let middle = spec.projector_hidden;
        Ok(Self {
            hidden: Linear::uniform(plan, &format!("{path}.0"), (from, middle))?,
            output: Linear::uniform(plan, &format!("{path}.2"), (middle, spec.embedding))?,
        })
    }

    pub(crate) fn forward<const N: usize>(&self, top: &Sides<N>) -> Result<Sides<N>, ModelError> {
        let pooled = each(top, |x| Ok(x.f_mean_dim([2_i64, 3].as_slice(), false, None)?))?;
        self.output.forward(&relu(self.hidden.forward(&pooled)?)?)
    }
}
