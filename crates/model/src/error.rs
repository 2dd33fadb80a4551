//! What can go wrong while a model is described, built, loaded or run.

use tch::TchError;

/// A model that cannot be described, filled or run.
#[derive(Debug, thiserror::Error)]
pub enum ModelError {
    /// A number of the description does not fit the method.
    #[error("[model] {key} = {found} does not fit: expected {expected}")]
    Spec {
        /// The key of the job file.
        key: &'static str,
        /// What it holds.
        found: String,
        /// What would do.
        expected: String,
    },
    /// A batch that the method cannot be computed on.
    #[error("{what}: found {found}, expected {expected}")]
    Batch {
        /// The thing that was handed over.
        what: String,
        /// What it looks like.
        found: String,
        /// What it should look like.
        expected: String,
    },
    /// Batch statistics of fewer than two values do not exist.
    #[error(
        "batch normalisation over {values} value(s) a channel in training: expected at least 2; raise images_per_lane or the number of lanes"
    )]
    TooFewValues {
        /// Values a channel.
        values: i64,
    },
    /// A state that is not this model's.
    #[error("the state does not fit the model: {}", .problems.join("; "))]
    State {
        /// Every name that is missing, unexpected or of another shape.
        problems: Vec<String>,
    },
    /// A normaliser that works over several ranks failed there; the source says how, and can be downcast.
    #[error("batch normalisation over the group: {0}")]
    Group(#[source] Box<dyn std::error::Error + Send + Sync>),
    /// The engine refused.
    #[error("libtorch: {0}")]
    Torch(#[from] TchError),
}

/// Checks a tensor's shape; -1 in `expected` stands for any size.
pub(crate) fn check_shape(what: &str, found: &[i64], expected: &[i64]) -> Result<(), ModelError> {
    let fits = found.len() == expected.len() && found.iter().zip(expected).all(|(f, e)| *e == -1 || f == e);
    if fits {
        return Ok(());
    }
    Err(ModelError::Batch {
        what: what.to_owned(),
        found: format!("{found:?}"),
        expected: format!("{expected:?}"),
    })
}
