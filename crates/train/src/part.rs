//! The parts of a rank's batch that share batch statistics.
//!
//! Role: with statistics over all lanes (the paper) a rank's lanes are one part, and its norms speak with the other
//! ranks'. With statistics of a lane's own each lane is a part, computed after another in the memory of one.
//! Invariants: targets, labels and losses of a lane are the same whichever part it is in; each part starts from the
//! step's running statistics, and what is committed is their mean over all lanes of the job; a call counter counts a
//! step's calls, not its lanes.

use crate::norm::TrainingNorm;
use crate::objective::Targets;
use crate::step::{LaneInput, StepInput, StepProbe};
use crate::{TrainError, Trainer};
use mcl_collective::ReduceOp;
use mcl_model::{BufferSet, LaneSide, LevelLosses, Pass, Pyramid, PyramidLayout, on_device};
use mcl_types::Rank;
use std::ops::Range;
use tch::{Device, Kind, Tensor, no_grad};

/// Over what batch statistics are formed.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub enum NormScope {
    /// All lanes of the job (MCL_SPEC section 3, the paper).
    #[default]
    Job,
    /// Each lane for itself: norms do not talk to other ranks (running statistics are averaged once a step), and a rank's
    /// lanes need the memory of one.
    Lane,
}

impl NormScope {
    /// The parts of a rank that carries `lanes`.
    pub(crate) fn parts(self, lanes: Range<u32>) -> Vec<Range<u32>> {
        match self {
            Self::Job => vec![lanes],
            Self::Lane => lanes.map(|lane| lane..lane + 1).collect(),
        }
    }
}

/// Some lanes of one step on one rank.
pub(crate) struct Part<'a> {
    pub(crate) layout: &'a PyramidLayout,
    /// By side: [P, 3, S, S], bytes or numbers.
    pub(crate) pictures: [Tensor; 2],
    /// By side and level.
    pub(crate) labels: [Vec<Tensor>; 2],
    /// Running statistics that this part writes to.
    pub(crate) buffers: BufferSet,
}

impl Trainer {
    /// This rank's batch, laid out. Montages are laid out as bytes; they become numbers where they are used.
    pub(crate) fn parts<'a>(&'a self, input: &StepInput) -> Result<Vec<Part<'a>>, TrainError> {
        let mut rest = input.lanes;
        let mut parts = Vec::with_capacity(self.seat.parts.len());
        for layout in &self.seat.parts {
            let lanes = usize::try_from(layout.lane_count()).unwrap_or(usize::MAX).min(rest.len());
            let (own, others) = rest.split_at(lanes);
            rest = others;
            let q = self.pyramid(layout, own, |lane| &lane.q)?;
            let k = self.pyramid(layout, own, |lane| &lane.k)?;
            parts.push(Part {
                layout,
                pictures: [q.pictures, k.pictures],
                labels: [q.labels, k.labels],
                buffers: self.model.stage_buffers()?,
            });
        }
        Ok(parts)
    }

    fn pyramid(
        &self,
        layout: &PyramidLayout,
        lanes: &[LaneInput],
        side: fn(&LaneInput) -> &LaneSide,
    ) -> Result<Pyramid, TrainError> {
        let device = self.model.device();
        let mut sides = Vec::with_capacity(lanes.len());
        for lane in lanes {
            let side = side(lane);
            let views: Result<Vec<Tensor>, _> = side.views.iter().map(|v| on_device(v, device)).collect();
            sides.push(LaneSide { views: views?, permutations: side.permutations.clone() });
        }
        Ok(Pyramid::assemble(layout, &sides)?)
    }

    /// One side's pictures as the model takes them.
    pub(crate) fn numbers(&self, side: &Tensor) -> Result<Tensor, TrainError> {
        match side.kind() {
            Kind::Uint8 => Ok(self.normalization.apply(side)?),
            _ => Ok(side.shallow_clone()),
        }
    }

    fn both(&self, part: &Part) -> Result<[Tensor; 2], TrainError> {
        let [q, k] = &part.pictures;
        Ok([self.numbers(q)?, self.numbers(k)?])
    }

    /// Which ranks a part's norms speak with. On a CPU one rank and several compute alike.
    pub(crate) fn norm(&self) -> TrainingNorm<'_> {
        match (self.settings.norm, &self.group) {
            (NormScope::Job, Some(group)) => TrainingNorm::Joint(Some(group)),
            _ if self.model.device() == Device::Cpu => TrainingNorm::Joint(None),
            _ => TrainingNorm::Engine,
        }
    }

    /// What [`Trainer::norm`] is where there are other ranks, without them: gradients come in the order of its graph.
    pub(crate) fn rehearsed_norm(&self) -> TrainingNorm<'_> {
        match self.settings.norm {
            NormScope::Job => TrainingNorm::Joint(None),
            NormScope::Lane => self.norm(),
        }
    }

    /// The momentum encoder's P5 rows of a part, side q before k: [lanes * N, D] each.
    pub(crate) fn top_rows(&self, part: &Part) -> Result<[Tensor; 2], TrainError> {
        let norm = self.norm();
        let pass = Pass::new(&norm, &part.buffers);
        let _half = self.autocast()?;
        Ok(self.model.targets(&self.both(part)?, part.layout, self.settings.compute, &pass)?)
    }

    /// A part's online embeddings and the predictions made of them, by side and level.
    pub(crate) fn predictions(&self, part: &Part) -> Result<[[Vec<Tensor>; 2]; 2], TrainError> {
        let norm = self.norm();
        let pass = Pass::new(&norm, &part.buffers);
        let _half = self.autocast()?;
        let online = self.model.online(&self.both(part)?, part.layout, self.settings.compute, &pass)?;
        let predictions = self.model.predict(&online, &pass)?;
        Ok([online, predictions])
    }

    /// The step's running statistics: those of the only part, or the mean over all lanes of the job.
    pub(crate) fn combine(&self, parts: Vec<Part>) -> Result<BufferSet, TrainError> {
        let mut sets = parts.into_iter().map(|part| part.buffers);
        let first = sets.next().ok_or_else(|| TrainError::State("a step without parts".to_owned()))?;
        if self.settings.norm == NormScope::Job {
            return Ok(first);
        }
        no_grad(|| -> Result<(), TrainError> {
            let mut sum = first.running().f_empty_like()?;
            sum.f_copy_(first.running())?;
            for set in sets {
                let _ = sum.f_add_(set.running())?;
            }
            if let Some(group) = &self.group {
                group.all_reduce(&sum, ReduceOp::Sum)?;
            }
            let _ = sum.f_div_scalar_(f64::from(self.seat.lanes.lanes()))?;
            Ok(first.overwrite_running(&sum)?)
        })?;
        Ok(first)
    }

    /// [own lanes, ..] of every rank -> [all lanes, ..] in lane order. Ranks may carry different numbers of lanes: they
    /// are padded to the most for the gather, then cut.
    pub(crate) fn gather_lanes(&self, own: &Tensor) -> Result<Tensor, TrainError> {
        let Some(group) = &self.group else { return Ok(own.shallow_clone()) };
        let missing = i64::from(self.seat.lanes.most_lanes()) - own.size().first().copied().unwrap_or(0);
        let mut padding = vec![0; 2 * own.dim()];
        if let Some(end) = padding.last_mut() {
            *end = missing;
        }
        let all = group.all_gather(&own.f_constant_pad_nd(padding)?)?;
        let mut lanes = Vec::new();
        for rank in 0..group.world() {
            let count = i64::try_from(self.seat.lanes.lanes_of(Rank::new(rank)).len()).unwrap_or(0);
            lanes.push(all.f_select(0, i64::from(rank))?.f_narrow(0, 0, count)?);
        }
        Ok(Tensor::f_cat(&lanes, 0)?)
    }
}

impl StepProbe {
    pub(crate) fn add(
        &mut self,
        online: &[Vec<Tensor>],
        predictions: &[Vec<Tensor>],
        labels: &[Vec<Tensor>],
        targets: &Targets,
        losses: &LevelLosses,
    ) -> Result<(), TrainError> {
        for (kept, new) in
            [(&mut self.online, online), (&mut self.predictions, predictions), (&mut self.labels, labels)]
        {
            if kept.is_empty() {
                kept.extend(new.iter().map(|side| side.iter().map(Tensor::shallow_clone).collect()));
                continue;
            }
            for (kept, new) in kept.iter_mut().flatten().zip(new.iter().flatten()) {
                *kept = Tensor::f_cat(&[&*kept, new], 0)?;
            }
        }
        // Side q meets k's.
        self.targets = targets.rows.iter().rev().map(Tensor::shallow_clone).collect();
        for (kept, new) in [(&mut self.pos_cos, &losses.pos_cos), (&mut self.neg_cos, &losses.neg_cos)] {
            *kept = Some(match kept.take() {
                None => new.shallow_clone(),
                Some(before) => Tensor::f_cat(&[&before, new], 2)?,
            });
        }
        Ok(())
    }
}
