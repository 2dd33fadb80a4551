//! The training step over a group of ranks.

use crate::digest::{digest_of, disagreement};
use crate::norm::SyncBatchNorm;
use crate::optimizer::grad_norm;
use crate::{Optimizer, OptimizerSettings, TrainError};
use mcl_collective::{Group, Membership, Reducer, backward, ready_order};
use mcl_model::{
    BufferSet, ComputeMode, Contrast, LaneSide, LevelLosses, LocalBatchNorm, Model, Normalization, Pass,
    Pyramid, PyramidLayout, level_losses,
};
use mcl_types::{Digest, FencingToken, LaneLayout, Rank, Step};
use std::collections::BTreeMap;
use tch::{Kind, Tensor, no_grad};

/// Steps in a row whose numbers may not be finite before the run stops.
const PATIENCE: u32 = 5;
/// Saved count of such steps, so that a resumed run stops where a straight one would.
const NOT_FINITE: &str = "trainer.not_finite_in_a_row";

/// What a trainer needs besides model and group.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerSettings {
    /// Lanes of the job over the ranks.
    pub lanes: LaneLayout,
    /// This rank.
    pub rank: Rank,
    /// N.
    pub images_per_lane: u32,
    /// Montages a lane, by level; the published numbers when `None`.
    pub montages: Option<Vec<i64>>,
    /// How much of the official graph is computed.
    pub compute: ComputeMode,
    /// The update rule.
    pub optimizer: OptimizerSettings,
    /// Gradients are scaled down to this total norm; 0 switches it off.
    pub clip_norm: f64,
}

/// One lane's pictures, both sides: u8 (normalised on the device) or already numbers.
#[derive(Debug)]
pub struct LaneInput {
    /// Views and permutations of side q.
    pub q: LaneSide,
    /// ... and of side k.
    pub k: LaneSide,
}

/// The schedules' values for a step.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct Rates {
    /// Learning rate.
    pub lr: f64,
    /// Momentum of the momentum encoder.
    pub momentum: f64,
}

/// What goes into a step.
#[derive(Debug)]
pub struct StepInput {
    /// Which step, for messages and the regular comparison of digests.
    pub step: Step,
    /// This rank's lanes, in order.
    pub lanes: Vec<LaneInput>,
    /// The schedules' values.
    pub rates: Rates,
    /// This rank wants training to stop after this step.
    pub wants_stop: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutcome {
    /// By lane of this rank: 2L weighted losses, q side by level, then k side.
    pub lane_losses: Vec<Vec<f64>>,
    /// Total norm of the averaged gradients, before clipping.
    pub grad_norm: f64,
    /// Every rank skipped the update: a loss or a reduced gradient was not finite.
    pub skipped: bool,
    /// Some rank wanted training to stop after this step; all ranks see the same.
    pub stop: bool,
}

/// Tensors of a step that parity checks look at.
#[derive(Debug, Default)]
pub struct StepProbe {
    /// By side (q, k) and level: projector rows.
    pub online: Vec<Vec<Tensor>>,
    /// By side (q, k) and level: predictor outputs.
    pub predictions: Vec<Vec<Tensor>>,
    /// By side (q, k): the targets that its rows meet.
    pub targets: Vec<Tensor>,
    /// By side (q, k) and level: labels.
    pub labels: Vec<Vec<Tensor>>,
    /// [2, L, lanes].
    pub pos_cos: Option<Tensor>,
    /// [2, L, lanes].
    pub neg_cos: Option<Tensor>,
    /// Averaged gradients before clipping, by trainable parameter in name order.
    pub grads: Vec<Tensor>,
}

/// A rank's model, optimiser and its part in the group.
#[derive(Debug)]
pub struct Trainer {
    model: Model,
    optimizer: Optimizer,
    settings: TrainerSettings,
    layout: PyramidLayout,
    normalization: Normalization,
    reducer: Option<Reducer>,
    group: Option<Group>,
    not_finite: u32,
}

impl Trainer {
    /// A trainer for one rank. `group` is `None` for a world of one.
    ///
    /// # Errors
    /// When settings and group do not fit each other, or a peer is lost.
    pub fn new(model: Model, settings: TrainerSettings, group: Option<Group>) -> Result<Self, TrainError> {
        let world = group.as_ref().map_or(1, Group::world);
        if world != settings.lanes.world() {
            return Err(TrainError::State(format!(
                "a group of {world} for a layout of {} ranks",
                settings.lanes.world()
            )));
        }
        let lanes = settings.lanes.lanes_of(settings.rank);
        let layout = match &settings.montages {
            None => PyramidLayout::new(model.spec(), settings.images_per_lane, lanes)?,
            Some(m) => {
                PyramidLayout::with_montages(model.spec(), settings.images_per_lane, lanes, m.clone())?
            }
        };
        let optimizer = Optimizer::new(settings.optimizer, &model.trainable())?;
        let normalization = Normalization::new(model.kind(), model.device())?;
        let mut trainer =
            Self { model, optimizer, settings, layout, normalization, reducer: None, group, not_finite: 0 };
        if let Some(group) = trainer.group.clone() {
            trainer.reducer = Some(trainer.build_reducer(&group)?);
        }
        Ok(trainer)
    }

    /// The model.
    pub const fn model(&self) -> &Model {
        &self.model
    }

    /// The model, to be initialised or loaded.
    pub const fn model_mut(&mut self) -> &mut Model {
        &mut self.model
    }

    /// How this rank's batch is laid out.
    pub const fn layout(&self) -> &PyramidLayout {
        &self.layout
    }

    /// The optimiser's tensors by name.
    ///
    /// # Errors
    /// When host memory runs out.
    pub fn optimizer_state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        self.optimizer.state()
    }

    /// A dry backward pass over a small batch of zeros tells in which order gradients come; the buckets are
    /// built from that. Weights, buffers and counters stay as they are.
    fn build_reducer(&self, group: &Group) -> Result<Reducer, TrainError> {
        let device = self.model.device();
        let spec = self.model.spec();
        let lanes = self.settings.lanes.lanes_of(self.settings.rank);
        let layout = PyramidLayout::new(spec, 2, lanes.start..lanes.start + 1)?;
        tch::manual_seed(0);
        let shape = [layout.pictures(), 3, spec.image_size, spec.image_size];
        let pictures = Tensor::f_randn(shape, (self.model.kind(), device))?;
        let buffers = self.model.stage_buffers()?;
        let pass = Pass::new(&LocalBatchNorm, &buffers);
        let online = [
            self.model.online(&pictures, &layout, self.settings.compute, &pass)?,
            self.model.online(&pictures, &layout, self.settings.compute, &pass)?,
        ];
        let (q, k) = self.model.predict(&online[0], &online[1], &pass)?;
        let mut total = Tensor::f_zeros([], (self.model.kind(), device))?;
        for rows in q.iter().chain(&k) {
            total = total.f_add(&rows.f_square()?.f_mean(self.model.kind())?)?;
        }
        let params: Vec<Tensor> =
            self.model.trainable().into_iter().map(|(_, p)| p.shallow_clone()).collect();
        let order = ready_order(&total, &params, group.membership())?;
        self.zero_grads()?;
        let ready: Vec<Tensor> =
            order.iter().filter_map(|i| params.get(*i)).map(Tensor::shallow_clone).collect();
        Ok(Reducer::new(group, &ready)?)
    }

    fn zero_grads(&self) -> Result<(), TrainError> {
        for (_, param) in self.model.trainable() {
            let mut grad = param.grad();
            if grad.defined() {
                let _ = no_grad(|| grad.f_zero_())?;
            }
        }
        Ok(())
    }

    /// One step. On an error nothing of it is left behind but gradients, which the next step clears.
    ///
    /// # Errors
    /// When a peer is lost, the device fails, or numbers were not finite too often.
    pub fn step(&mut self, input: &StepInput) -> Result<StepOutcome, TrainError> {
        self.step_probed(input, None)
    }

    /// As [`Trainer::step`], keeping the tensors that parity checks look at.
    ///
    /// # Errors
    /// As [`Trainer::step`].
    pub fn step_probed(
        &mut self,
        input: &StepInput,
        mut probe: Option<&mut StepProbe>,
    ) -> Result<StepOutcome, TrainError> {
        self.zero_grads()?;
        let staged = self.model.stage_buffers()?;
        if let Some(reducer) = &self.reducer {
            reducer.prepare_forward()?;
        }
        let losses = self.forward(input, &staged, probe.as_deref_mut())?;
        let lane_losses = values_by_lane(&losses.losses)?;
        let finite = lane_losses.iter().flatten().all(|v| v.is_finite());
        let (any_bad, stop) = self.agree(!finite, input.wants_stop)?;
        if any_bad {
            let named = if finite {
                "a loss on another rank".to_owned()
            } else {
                first_bad_loss(&lane_losses, self.layout.levels())
            };
            return self.skip(input, lane_losses, f64::NAN, stop, named);
        }
        self.backward(&losses)?;
        if let Some(probe) = probe {
            for (_, param) in self.model.trainable() {
                let grad = param.grad();
                let mut copy = param.f_zeros_like()?;
                if grad.defined() {
                    no_grad(|| copy.f_copy_(&grad))?;
                }
                probe.grads.push(copy);
            }
        }
        let trainable = self.model.trainable();
        let norm = grad_norm(&trainable, self.model.kind(), self.model.device())?.f_double_value(&[])?;
        if !norm.is_finite() {
            let named = first_bad_gradient(&trainable)?;
            return self.skip(input, lane_losses, norm, stop, named);
        }
        self.update(norm, input.rates, staged)?;
        self.not_finite = 0;
        Ok(StepOutcome { lane_losses, grad_norm: norm, skipped: false, stop })
    }

    fn forward(
        &self,
        input: &StepInput,
        staged: &BufferSet,
        probe: Option<&mut StepProbe>,
    ) -> Result<LevelLosses, TrainError> {
        let norm = SyncBatchNorm { group: self.group.as_ref() };
        let pass = Pass::new(&norm, staged);
        let mode = self.settings.compute;
        let (q, k) = self.pyramids(input)?;
        let own = [
            self.model.targets(&q.pictures, &self.layout, mode, &pass)?,
            self.model.targets(&k.pictures, &self.layout, mode, &pass)?,
        ];
        let [tq, tk] = self.gather_targets(&own)?;
        let online_q = self.model.online(&q.pictures, &self.layout, mode, &pass)?;
        let online_k = self.model.online(&k.pictures, &self.layout, mode, &pass)?;
        let (pred_q, pred_k) = self.model.predict(&online_q, &online_k, &pass)?;
        let losses = level_losses(
            self.model.spec(),
            self.layout.lane_count(),
            &Contrast { predictions: &pred_q, targets: &tk, labels: &q.labels },
            &Contrast { predictions: &pred_k, targets: &tq, labels: &k.labels },
        )?;
        if let Some(probe) = probe {
            probe.online = vec![online_q, online_k];
            probe.predictions = vec![pred_q, pred_k];
            probe.targets = vec![tk, tq];
            probe.labels = vec![q.labels, k.labels];
            probe.pos_cos = Some(losses.pos_cos.shallow_clone());
            probe.neg_cos = Some(losses.neg_cos.shallow_clone());
        }
        Ok(losses)
    }

    /// Montages are laid out as bytes and become numbers on the device, once.
    fn pyramids(&self, input: &StepInput) -> Result<(Pyramid, Pyramid), TrainError> {
        let device = self.model.device();
        let side = |pick: fn(&LaneInput) -> &LaneSide| -> Result<Pyramid, TrainError> {
            let mut sides = Vec::with_capacity(input.lanes.len());
            for lane in &input.lanes {
                let side = pick(lane);
                let views: Result<Vec<Tensor>, _> =
                    side.views.iter().map(|v| v.f_to_device(device)).collect();
                sides.push(LaneSide { views: views?, permutations: side.permutations.clone() });
            }
            let mut pyramid = Pyramid::assemble(&self.layout, &sides)?;
            if pyramid.pictures.kind() == Kind::Uint8 {
                pyramid.pictures = self.normalization.apply(&pyramid.pictures)?;
            }
            Ok(pyramid)
        };
        Ok((side(|lane| &lane.q)?, side(|lane| &lane.k)?))
    }

    /// Both sides' targets of all lanes, in lane order: 2 x [K N, D]. Ranks may carry different numbers of
    /// lanes: rows are padded to the most for the gather, then cut.
    fn gather_targets(&self, own: &[Tensor; 2]) -> Result<[Tensor; 2], TrainError> {
        let Some(group) = &self.group else {
            return Ok([own[0].shallow_clone(), own[1].shallow_clone()]);
        };
        let n = i64::from(self.settings.images_per_lane);
        let most = i64::from(self.settings.lanes.most_lanes()) * n;
        no_grad(|| {
            let both = Tensor::f_stack(own, 0)?;
            let missing = most - both.size()[1];
            let padded = both.f_constant_pad_nd([0, 0, 0, missing])?;
            let all = group.all_gather(&padded)?;
            let mut sides = Vec::with_capacity(2);
            for side in 0..2 {
                let mut rows = Vec::new();
                for rank in 0..self.settings.lanes.world() {
                    let lanes = self.settings.lanes.lanes_of(Rank::new(rank)).len();
                    let count = i64::try_from(lanes).unwrap_or(0) * n;
                    rows.push(all.f_select(0, i64::from(rank))?.f_select(0, side)?.f_narrow(0, 0, count)?);
                }
                sides.push(Tensor::f_cat(&rows, 0)?);
            }
            let second = sides.pop();
            let first = sides.pop();
            match (first, second) {
                (Some(first), Some(second)) => Ok([first, second]),
                _ => Err(TrainError::State("targets have two sides".to_owned())),
            }
        })
    }

    /// Whether any rank saw a loss that is not finite, and whether any wants to stop.
    fn agree(&self, bad: bool, stop: bool) -> Result<(bool, bool), TrainError> {
        let Some(group) = &self.group else { return Ok((bad, stop)) };
        let flags = Tensor::f_from_slice(&[f32::from(u8::from(bad)), f32::from(u8::from(stop))])?;
        let flags = flags.f_to_device(self.model.device())?;
        let all = group.all_gather(&flags)?.f_amax([0_i64].as_slice(), false)?;
        let flags: Vec<f32> = Vec::try_from(all.f_to_device(tch::Device::Cpu)?)?;
        Ok((flags.first().is_some_and(|f| *f > 0.0), flags.get(1).is_some_and(|f| *f > 0.0)))
    }

    fn backward(&self, losses: &LevelLosses) -> Result<(), TrainError> {
        let (world, lanes) = (f64::from(self.settings.lanes.world()), f64::from(self.settings.lanes.lanes()));
        let total = losses.total(world / lanes)?;
        if let Some(reducer) = &self.reducer {
            reducer.prepare_backward()?;
        }
        Ok(backward(&total, self.membership())?)
    }

    fn membership(&self) -> Membership {
        self.group.as_ref().map_or(
            Membership { token: FencingToken::default(), rank: self.settings.rank, world: 1 },
            Group::membership,
        )
    }

    fn update(&mut self, norm: f64, rates: Rates, staged: BufferSet) -> Result<(), TrainError> {
        staged.seal()?;
        if self.settings.clip_norm > 0.0 {
            let coefficient = self.settings.clip_norm / (norm + 1e-6);
            if coefficient < 1.0 {
                for (_, param) in self.model.trainable() {
                    let mut grad = param.grad();
                    if grad.defined() {
                        let _ = no_grad(|| grad.f_mul_scalar_(coefficient))?;
                    }
                }
            }
        }
        self.optimizer.step(rates.lr)?;
        no_grad(|| -> Result<(), TrainError> {
            for pair in self.model.momentum_pairs() {
                let mut key = pair.key.shallow_clone();
                let _ = key
                    .f_mul_scalar_(rates.momentum)?
                    .f_add_(&pair.query.f_mul_scalar(1.0 - rates.momentum)?)?;
            }
            Ok(())
        })?;
        Ok(self.model.commit_buffers(staged)?)
    }

    fn skip(
        &mut self,
        input: &StepInput,
        lane_losses: Vec<Vec<f64>>,
        grad_norm: f64,
        stop: bool,
        tensor: String,
    ) -> Result<StepOutcome, TrainError> {
        self.not_finite += 1;
        let step = input.step.get();
        tracing::warn!(step, %tensor, in_a_row = self.not_finite, "update skipped: not finite");
        if self.not_finite >= PATIENCE {
            return Err(TrainError::NotFinite { step, tensor, in_a_row: self.not_finite });
        }
        Ok(StepOutcome { lane_losses, grad_norm, skipped: true, stop })
    }

    /// Everything that a resumed run needs, by name: model, buffers, optimiser, counters.
    ///
    /// # Errors
    /// When host memory runs out.
    pub fn state(&self) -> Result<BTreeMap<String, Tensor>, TrainError> {
        let mut state: BTreeMap<String, Tensor> = self
            .model
            .state()
            .into_iter()
            .map(|(n, t)| (n.to_owned(), t.f_detach().unwrap_or_else(|_| t.shallow_clone())))
            .collect();
        state.extend(self.optimizer.state()?);
        state.insert(NOT_FINITE.to_owned(), Tensor::f_from_slice(&[i64::from(self.not_finite)])?);
        Ok(state)
    }

    /// Takes a saved state.
    ///
    /// # Errors
    /// Names what is missing, unexpected or of another shape.
    pub fn load(&mut self, mut state: BTreeMap<String, Tensor>) -> Result<(), TrainError> {
        let count = state
            .remove(NOT_FINITE)
            .ok_or_else(|| TrainError::State(format!("`{NOT_FINITE}` is missing")))?;
        let count = count.f_int64_value(&[0])?;
        self.optimizer.load(&mut state)?;
        self.model.load(&state)?;
        self.not_finite = u32::try_from(count).unwrap_or(0);
        Ok(())
    }

    /// Digest of the whole state: equal on all ranks after every step.
    ///
    /// # Errors
    /// When the device fails.
    pub fn digest(&self) -> Result<Digest, TrainError> {
        digest_of(self.state()?.iter().map(|(n, t)| (n.as_str(), t)))
    }

    /// Compares digests over the group.
    ///
    /// # Errors
    /// [`TrainError::Diverged`] names the ranks that differ from rank 0.
    pub fn check_agreement(&self, step: Step) -> Result<(), TrainError> {
        let Some(group) = &self.group else { return Ok(()) };
        let ranks = disagreement(group, self.digest()?, self.model.device())?;
        if ranks.is_empty() { Ok(()) } else { Err(TrainError::Diverged { step: step.get(), ranks }) }
    }
}

/// [2, L, lanes] -> by lane, 2L values.
fn values_by_lane(losses: &Tensor) -> Result<Vec<Vec<f64>>, TrainError> {
    let by_lane = losses.f_detach()?.f_flatten(0, 1)?.f_transpose(0, 1)?;
    Ok(Vec::try_from(by_lane.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)?)?)
}

fn first_bad_loss(by_lane: &[Vec<f64>], levels: usize) -> String {
    for (lane, losses) in by_lane.iter().enumerate() {
        if let Some(at) = losses.iter().position(|v| !v.is_finite()) {
            let side = if at < levels { "q" } else { "k" };
            return format!("the loss of this rank's lane {lane}, side {side}, level {}", at % levels.max(1));
        }
    }
    "no loss".to_owned()
}

fn first_bad_gradient(params: &[(&str, &Tensor)]) -> Result<String, TrainError> {
    for (name, param) in params {
        let grad = param.grad();
        if grad.defined() && !grad.f_isfinite()?.f_all()?.f_int64_value(&[]).is_ok_and(|v| v == 1) {
            return Ok(format!("the gradient of {name}"));
        }
    }
    Ok("the gradients' norm".to_owned())
}
