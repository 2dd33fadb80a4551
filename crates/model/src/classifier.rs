//! The classifier of the supervised objective: one linear map a level, from embeddings of tiles to classes.

use crate::blueprint::Blueprint;
use crate::layer::{Linear, Sides};
use crate::{ModelError, ModelSpec};

/// Standard deviation of a classifier's weights at the start, as the predictors'.
const INIT_STD: f64 = 0.01;

/// [rows, D] -> [rows, classes].
#[derive(Debug)]
pub struct Classifier(Linear);

impl Classifier {
    pub(crate) fn new(
        plan: &mut Blueprint,
        path: &str,
        spec: &ModelSpec,
        classes: i64,
    ) -> Result<Self, ModelError> {
        Ok(Self(Linear::new(plan, path, (spec.embedding, classes), INIT_STD)?))
    }

    /// By side, [rows, D] -> [rows, classes].
    ///
    /// # Errors
    /// When the engine fails.
    pub fn forward<const N: usize>(&self, rows: &Sides<N>) -> Result<Sides<N>, ModelError> {
        self.0.forward(rows)
    }
}
