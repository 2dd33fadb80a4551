//! Multi-level contrastive learning (MCL_SPEC section 3): both sides meet the other's targets on every level.

use super::{Objective, Targets};
use crate::part::Part;
use crate::step::{StepInput, StepProbe};
use crate::{TrainError, Trainer};
use mcl_model::{Contrast, LevelLosses, Pass, PyramidLayout, level_losses};
use tch::Tensor;

#[derive(Debug)]
pub(crate) struct Mcl;

impl Objective for Mcl {
    fn rehearse(
        &self,
        trainer: &Trainer,
        pictures: &Tensor,
        layout: &PyramidLayout,
        pass: &Pass,
    ) -> Result<Vec<Tensor>, TrainError> {
        let [q, k] = trainer.model.predict(&rehearsed(trainer, pictures, layout, pass)?, pass)?;
        Ok(q.into_iter().chain(k).collect())
    }

    fn targets(&self, trainer: &Trainer, parts: &[Part], _: &StepInput) -> Result<Targets, TrainError> {
        Ok(Targets { rows: both_sides(trainer, parts)?, classes: None })
    }

    fn losses(
        &self,
        trainer: &Trainer,
        part: &Part,
        targets: &Targets,
        probe: Option<&mut StepProbe>,
    ) -> Result<LevelLosses, TrainError> {
        let [online, predictions] = trainer.predictions(part)?;
        let ([q, k], [labels_q, labels_k]) = (&predictions, &part.labels);
        let losses = level_losses(
            trainer.model.spec(),
            part.layout.lane_count(),
            &Contrast { predictions: q, targets: targets.side(1)?, labels: labels_q },
            &Contrast { predictions: k, targets: targets.side(0)?, labels: labels_k },
        )?;
        if let Some(probe) = probe {
            probe.add(&online, &predictions, &part.labels, targets, &losses)?;
        }
        Ok(losses)
    }
}

/// Online embeddings of a small batch that stands on both sides.
pub(super) fn rehearsed(
    trainer: &Trainer,
    pictures: &Tensor,
    layout: &PyramidLayout,
    pass: &Pass,
) -> Result<[Vec<Tensor>; 2], TrainError> {
    let both = [pictures.shallow_clone(), pictures.shallow_clone()];
    Ok(trainer.model.online(&both, layout, trainer.settings.compute, pass)?)
}

/// P5 rows of the momentum encoder, side q before k: 2 x [K N, D].
pub(super) fn both_sides(trainer: &Trainer, parts: &[Part]) -> Result<Vec<Tensor>, TrainError> {
    let own: Vec<[Tensor; 2]> = parts.iter().map(|part| trainer.top_rows(part)).collect::<Result<_, _>>()?;
    let side = |side: usize| Tensor::f_cat(&own.iter().map(|both| &both[side]).collect::<Vec<_>>(), 0);
    trainer.gather_rows(&[side(0)?, side(1)?])
}
