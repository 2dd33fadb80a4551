//! What is learned, as a step sees it.
//!
//! Role: the step's frame (staging, agreement, update, skip) is one for all objectives; an objective says what the momentum
//! encoder makes for all lanes, what a part's losses are, and what an applied step leaves behind besides weights and norms.
//! Invariant: what it answers depends on the job's lanes, never on which rank carries them.

mod mcl;
mod moco;
mod supervised;

use crate::part::Part;
use crate::step::{StepInput, StepProbe};
use crate::{TrainError, Trainer};
use mcl_model::{LevelLosses, Model, Objective as Learned, Pass, PyramidLayout};
use tch::Tensor;

/// What a step's losses are made against, of all lanes of the job in lane order.
#[derive(Debug)]
pub(crate) struct Targets {
    /// By side that has any: [K N, D], rows of length 1; no graph.
    pub(crate) rows: Vec<Tensor>,
    /// [K N], i64; of pictures with labels.
    pub(crate) classes: Option<Tensor>,
}

impl Targets {
    /// One side's rows.
    pub(crate) fn side(&self, side: usize) -> Result<&Tensor, TrainError> {
        self.rows.get(side).ok_or_else(|| TrainError::State(format!("no targets of side {side}")))
    }
}

/// One of the objectives.
pub(crate) trait Objective: std::fmt::Debug + Send {
    /// What losses are made of, of a small batch ([n, 3, S, S] on both sides): gradients come in the order of its graph.
    fn rehearse(
        &self,
        trainer: &Trainer,
        pictures: &Tensor,
        layout: &PyramidLayout,
        pass: &Pass,
    ) -> Result<Vec<Tensor>, TrainError>;

    /// The momentum encoder's rows for this rank's parts, gathered over all ranks.
    fn targets(&self, trainer: &Trainer, parts: &[Part], input: &StepInput) -> Result<Targets, TrainError>;

    /// A part's losses, with their graph.
    fn losses(
        &self,
        trainer: &Trainer,
        part: &Part,
        targets: &Targets,
        probe: Option<&mut StepProbe>,
    ) -> Result<LevelLosses, TrainError>;

    /// The step is applied: what it leaves behind besides weights and norms.
    fn applied(&self, _model: &Model, _targets: &Targets) -> Result<(), TrainError> {
        Ok(())
    }
}

/// The objective of a model.
pub(crate) fn objective_of(learned: Learned) -> Box<dyn Objective> {
    match learned {
        Learned::Mcl => Box::new(mcl::Mcl),
        Learned::Supervised { .. } => Box::new(supervised::Supervised),
        Learned::Moco { .. } => Box::new(moco::Moco),
    }
}
