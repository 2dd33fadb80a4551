//! MoCo v2 (arXiv 2003.04297): q's pictures meet k's keys and a queue of earlier ones.
//!
//! A query and its key that were normalised by the statistics of the same pictures know each other by that: keys of the queue had
//! others. So with statistics of a lane's own, keys are computed in lanes that are mixed anew each step (shuffled batch norm, arXiv
//! 1911.05722, section 3.3). Statistics over all lanes are those of the same pictures on both sides; the more pictures,
//! the less they tell. With one lane nothing can be mixed.

use super::{Objective, Targets};
use crate::part::{NormScope, Part};
use crate::step::{StepInput, StepProbe};
use crate::{TrainError, Trainer};
use mcl_model::{KeyQueue, LevelLosses, Model, Pass, PyramidLayout, moco_losses, numbers_on_device};
use mcl_types::{Purpose, Step};
use tch::Tensor;

#[derive(Debug)]
pub(crate) struct Moco;

impl Objective for Moco {
    fn rehearse(
        &self,
        trainer: &Trainer,
        pictures: &Tensor,
        _: &PyramidLayout,
        pass: &Pass,
    ) -> Result<Vec<Tensor>, TrainError> {
        Ok(vec![trainer.model.global_query(pictures, pass)?])
    }

    fn targets(&self, trainer: &Trainer, parts: &[Part], input: &StepInput) -> Result<Targets, TrainError> {
        let (lanes, images) = (trainer.settings.lanes, i64::from(trainer.settings.images_per_lane));
        let mixed = trainer.settings.norm == NormScope::Lane && lanes > 1;
        let order = mixed.then(|| order(trainer, input.step)).transpose()?;
        let keys: Vec<Tensor> = match &order {
            None => {
                parts.iter().map(|part| trainer.keys(part, &part.pictures[1])).collect::<Result<_, _>>()?
            }
            Some(order) => {
                let own: Vec<Tensor> = parts.iter().map(|part| part.pictures[1].shallow_clone()).collect();
                let all = trainer.gather_lanes(&Tensor::f_stack(&own, 0)?)?.f_flatten(0, 1)?;
                let first = i64::from(trainer.layout().lanes().start);
                let mixed = |(part, lane): (&Part, i64)| {
                    let chosen = order.f_narrow(0, lane * images, images)?;
                    trainer.keys(part, &all.f_index_select(0, &chosen)?)
                };
                parts.iter().zip(first..).map(mixed).collect::<Result<_, TrainError>>()?
            }
        };
        let mut rows = trainer.gather_rows(&[Tensor::f_cat(&keys, 0)?])?;
        if let (Some(order), Some(rows)) = (order, rows.first_mut()) {
            *rows = rows.f_index_select(0, &order.f_argsort(0, false)?)?;
        }
        Ok(Targets { rows, classes: None })
    }

    fn losses(
        &self,
        trainer: &Trainer,
        part: &Part,
        targets: &Targets,
        probe: Option<&mut StepProbe>,
    ) -> Result<LevelLosses, TrainError> {
        let norm = trainer.norm();
        let pass = Pass::new(&norm, &part.buffers);
        let half = trainer.autocast()?;
        let queries = trainer.model.global_query(&trainer.numbers(&part.pictures[0])?, &pass)?;
        drop(half);
        let (all, layout) = (targets.side(0)?, part.layout);
        let first = i64::from(layout.lanes().start) * layout.images_per_lane();
        let keys = all.f_narrow(0, first, layout.full_pictures())?;
        let temperature = trainer.model.spec().temperature;
        let queue = queue(&trainer.model)?.keys();
        let losses = moco_losses(&queries, &keys, queue, layout.lane_count(), temperature)?;
        if let Some(probe) = probe {
            let online = [vec![queries.shallow_clone()]];
            probe.add(&online, &online, &[vec![part.labels[0][0].shallow_clone()]], targets, &losses)?;
        }
        Ok(losses)
    }

    fn applied(&self, model: &Model, targets: &Targets) -> Result<(), TrainError> {
        Ok(queue(model)?.enqueue(targets.side(0)?)?)
    }
}

fn queue(model: &Model) -> Result<&KeyQueue, TrainError> {
    model.queue().ok_or_else(|| TrainError::State("a model without a queue".to_owned()))
}

/// Which picture of the job's step stands at each place where keys are computed: a permutation of 0..K N.
fn order(trainer: &Trainer, step: Step) -> Result<Tensor, TrainError> {
    let settings = &trainer.settings;
    let pictures = settings.lanes as usize * settings.images_per_lane as usize;
    let drawn = settings.seed.stream(Purpose::KeyShuffle, &[step.get()]).permutation(pictures);
    let drawn: Vec<i64> = drawn.into_iter().filter_map(|place| i64::try_from(place).ok()).collect();
    Ok(numbers_on_device(&drawn, trainer.model.device())?)
}

impl Trainer {
    /// Keys of pictures that share the part's statistics: [n, 3, S, S] -> [n, D].
    fn keys(&self, part: &Part, pictures: &Tensor) -> Result<Tensor, TrainError> {
        let norm = self.norm();
        let pass = Pass::new(&norm, &part.buffers);
        let _half = self.autocast()?;
        Ok(self.model.global_key(&self.numbers(pictures)?, &pass)?)
    }
}
