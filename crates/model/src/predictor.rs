//! The predictors (MCL_SPEC section 1): one perceptron a level, for both directions.

use crate::blueprint::Blueprint;
use crate::layer::{Linear, Sides, relu};
use crate::norm::BatchNorm;
use crate::{ModelError, ModelSpec, Pass};

/// Standard deviation of a predictor's weights at the start.
const INIT_STD: f64 = 0.01;

/// [rows, D] -> [rows, D].
#[derive(Debug)]
pub struct Predictor {
    hidden: Linear,
    norm: BatchNorm,
    output: Linear,
}

impl Predictor {
    pub(crate) fn new(plan: &mut Blueprint, path: &str, spec: &ModelSpec) -> Result<Self, ModelError> {
        let (size, hidden) = (spec.embedding, spec.predictor_hidden);
        Ok(Self {
            hidden: Linear::new(plan, &format!("{path}.mlp.0"), (size, hidden), INIT_STD)?,
            norm: BatchNorm::affine(plan, &format!("{path}.mlp.1"), hidden)?,
            output: Linear::new(plan, &format!("{path}.mlp.3"), (hidden, size), INIT_STD)?,
        })
    }

    /// By side, [rows, D] -> [rows, D], not normalised.
    ///
    /// # Errors
    /// When the engine or the normaliser fails.
    pub fn forward<const N: usize>(&self, rows: &Sides<N>, pass: &Pass) -> Result<Sides<N>, ModelError> {
        let hidden = relu(self.norm.forward(self.hidden.forward(rows)?, pass)?)?;
        self.output.forward(&hidden)
    }
}
