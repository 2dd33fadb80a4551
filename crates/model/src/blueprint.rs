//! Collects parameters and normalisation layers while a model is built.
//!
//! A layer keeps its own handle of each tensor; the blueprint keeps another under the full name, with
//! the rule that fills it. So nothing has to walk the layers later, and nothing can be left out.

use crate::ModelError;
use tch::{Device, Kind, Tensor};

/// Distribution of a parameter at the start of training (MCL_SPEC section 1).
#[derive(Debug, Clone, Copy, PartialEq)]
pub(crate) enum InitRule {
    /// N(0, std^2).
    Normal {
        /// Standard deviation.
        std: f64,
    },
    /// Uniform in [-bound, bound).
    Uniform {
        /// Largest magnitude.
        bound: f64,
    },
    /// One value everywhere.
    Constant(f64),
}

/// One parameter under its full name.
#[derive(Debug)]
pub(crate) struct Parameter {
    pub(crate) name: String,
    pub(crate) tensor: Tensor,
    pub(crate) rule: InitRule,
}

/// One batch normalisation layer: where its name starts, how many channels it has.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct NormSite {
    pub(crate) path: String,
    pub(crate) channels: i64,
}

/// The list in the making.
pub(crate) struct Blueprint {
    kind: Kind,
    device: Device,
    trainable: bool,
    pub(crate) parameters: Vec<Parameter>,
    pub(crate) norms: Vec<NormSite>,
}

impl Blueprint {
    pub(crate) const fn new(kind: Kind, device: Device) -> Self {
        Self { kind, device, trainable: true, parameters: Vec::new(), norms: Vec::new() }
    }

    /// Whether parameters made from now on require gradients.
    pub(crate) const fn set_trainable(&mut self, trainable: bool) {
        self.trainable = trainable;
    }

    /// A parameter: constant rules are filled in, others are zero until an initialisation runs.
    pub(crate) fn parameter(
        &mut self,
        name: String,
        shape: &[i64],
        rule: InitRule,
    ) -> Result<Tensor, ModelError> {
        let value = if let InitRule::Constant(value) = rule { value } else { 0.0 };
        let tensor = Tensor::f_full(shape, value, (self.kind, self.device))?;
        let tensor = tensor.f_set_requires_grad(self.trainable)?;
        self.parameters.push(Parameter { name, tensor: tensor.shallow_clone(), rule });
        Ok(tensor)
    }

    /// Books a normalisation layer; the answer is its slot in every [`crate::BufferSet`].
    pub(crate) fn norm(&mut self, path: &str, channels: i64) -> usize {
        self.norms.push(NormSite { path: path.to_owned(), channels });
        self.norms.len() - 1
    }
}
