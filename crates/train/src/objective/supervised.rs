//! MCL's pretext with labels: tiles meet the targets of their class, and classifiers tell it.

use super::mcl::{both_sides, rehearsed};
use super::{Objective, Targets};
use crate::part::Part;
use crate::step::{LaneInput, StepInput, StepProbe};
use crate::{TrainError, Trainer};
use mcl_model::{Contrast, LevelLosses, Pass, PyramidLayout, Taught, numbers_on_device, supervised_losses};
use tch::Tensor;

#[derive(Debug)]
pub(crate) struct Supervised;

impl Objective for Supervised {
    fn rehearse(
        &self,
        trainer: &Trainer,
        pictures: &Tensor,
        layout: &PyramidLayout,
        pass: &Pass,
    ) -> Result<Vec<Tensor>, TrainError> {
        let online = rehearsed(trainer, pictures, layout, pass)?;
        let predictions = trainer.model.predict(&online, pass)?;
        let logits = trainer.model.classify(&online)?;
        Ok(predictions.into_iter().chain(logits).flatten().collect())
    }

    fn targets(&self, trainer: &Trainer, parts: &[Part], input: &StepInput) -> Result<Targets, TrainError> {
        let rows = both_sides(trainer, parts)?;
        Ok(Targets { rows, classes: Some(classes(trainer, input.lanes)?) })
    }

    fn losses(
        &self,
        trainer: &Trainer,
        part: &Part,
        targets: &Targets,
        probe: Option<&mut StepProbe>,
    ) -> Result<LevelLosses, TrainError> {
        let [online, predictions] = trainer.predictions(part)?;
        let half = trainer.autocast()?;
        let logits = trainer.model.classify(&online)?;
        drop(half);
        let classes = targets.classes.as_ref();
        let classes = classes.ok_or_else(|| TrainError::State("targets without classes".to_owned()))?;
        let side = |side: usize, other: usize| -> Result<Taught<'_>, TrainError> {
            let (predictions, labels) = (&predictions[side], &part.labels[side]);
            let contrast = Contrast { predictions, targets: targets.side(other)?, labels };
            Ok(Taught { contrast, logits: &logits[side], classes })
        };
        let (spec, lanes) = (trainer.model.spec(), part.layout.lane_count());
        let losses =
            supervised_losses(spec, lanes, trainer.settings.supervision, &side(0, 1)?, &side(1, 0)?)?;
        if let Some(probe) = probe {
            probe.add(&online, &predictions, &part.labels, targets, &losses)?;
        }
        Ok(losses)
    }
}

/// The class of every picture of the job's step, in lane order: [K N].
fn classes(trainer: &Trainer, lanes: &[LaneInput]) -> Result<Tensor, TrainError> {
    let images = i64::from(trainer.settings.images_per_lane);
    let mut own = Vec::new();
    for lane in lanes {
        if i64::try_from(lane.classes.len()).ok() != Some(images) {
            return Err(TrainError::State(format!(
                "{} classes of a lane's pictures, expected {images}: every picture needs a label",
                lane.classes.len()
            )));
        }
        own.extend_from_slice(&lane.classes);
    }
    let own = numbers_on_device(&own, trainer.model.device())?.f_reshape([-1, images])?;
    Ok(trainer.gather_lanes(&own)?.f_reshape([-1])?)
}
