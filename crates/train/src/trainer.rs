//! A process's model and optimiser, and its part in the group of the moment.
//!
//! Invariants: model, optimiser and counters outlive groups; an error in a group leaves them as they were before
//! the step in flight. Left out: who is in a group, and which state counts, which the coordinator decides.

use crate::activity::Activity;
use crate::digest::{digest_of, disagreement};
use crate::objective::{Objective, objective_of};
use crate::{NormScope, Optimizer, OptimizerSettings, TrainError};
use mcl_collective::{
    Autocast, Group, Membership, Reducer, autocast, drop_gradient, on_gradient, ready_order,
};
use mcl_failpoint::Failpoint;
use mcl_model::{BufferSet, ComputeMode, Model, Normalization, Pass, PyramidLayout};
use mcl_types::{Digest, LaneLayout, Rank, Seed, Step};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;
use tch::{Kind, Tensor, no_grad};

/// Saved count of such steps, so that a resumed run stops where a straight one would.
const NOT_FINITE: &str = "trainer.not_finite_in_a_row";

/// The part of the model that a tensor belongs to: an encoder's backbone, pyramid, projector's convolutions or its head
/// (detectors have the convolutions alone), or the predictors.
fn part_of(name: &str) -> &str {
    let dots = if name.starts_with("encoder_q.2.") || name.starts_with("encoder_k.2.") { 2 } else { 1 };
    let end = name.match_indices('.').nth(dots);
    end.map_or(name, |(at, _)| name.get(..at).unwrap_or(name))
}

/// What a trainer needs besides its model, in every generation.
#[derive(Debug, Clone, PartialEq)]
pub struct TrainerSettings {
    /// K, the lanes of the job.
    pub lanes: u32,
    /// N.
    pub images_per_lane: u32,
    /// Montages a lane, by level; the published numbers when `None`.
    pub montages: Option<Vec<i64>>,
    /// How much of the official graph is computed.
    pub compute: ComputeMode,
    /// Over what batch statistics are formed.
    pub norm: NormScope,
    /// Convolutions and matrix products compute in bf16; weights, statistics, losses and updates stay as they are.
    pub autocast: bool,
    /// The update rule.
    pub optimizer: OptimizerSettings,
    /// Gradients are scaled down to this total norm; 0 switches it off.
    pub clip_norm: f64,
    /// Seed of what a step draws.
    pub seed: Seed,
    /// Shares of the contrastive loss and of the cross entropy, where labels are learned from.
    pub supervision: [f64; 2],
}

/// Who a trainer is in one generation.
#[derive(Debug)]
pub(crate) struct Seat {
    pub(crate) lanes: LaneLayout,
    pub(crate) rank: Rank,
    pub(crate) layout: PyramidLayout,
    /// The layouts of the parts that share batch statistics; their lanes are this rank's, in order.
    pub(crate) parts: Vec<PyramidLayout>,
}

impl Seat {
    fn take(
        model: &Model,
        settings: &TrainerSettings,
        lanes: LaneLayout,
        rank: Rank,
    ) -> Result<Self, TrainError> {
        let own = lanes.lanes_of(rank);
        let layout = |lanes| match &settings.montages {
            None => PyramidLayout::new(model.spec(), settings.images_per_lane, lanes),
            Some(m) => PyramidLayout::with_montages(model.spec(), settings.images_per_lane, lanes, m.clone()),
        };
        let parts = settings.norm.parts(own.clone()).into_iter().map(layout).collect::<Result<_, _>>()?;
        Ok(Self { lanes, rank, layout: layout(own)?, parts })
    }
}

/// A rank's model, optimiser and its part in the group.
#[derive(Debug)]
pub struct Trainer {
    pub(crate) model: Model,
    pub(crate) optimizer: Optimizer,
    pub(crate) settings: TrainerSettings,
    pub(crate) objective: Box<dyn Objective>,
    pub(crate) seat: Seat,
    pub(crate) normalization: Normalization,
    pub(crate) activity: Activity,
    /// Running statistics before the first step.
    fresh: BufferSet,
    /// Trainable parameters in the order in which their gradients come.
    ready: Vec<usize>,
    // Declared before the group: it must die first.
    pub(crate) reducer: Option<Reducer>,
    pub(crate) group: Option<Group>,
    pub(crate) not_finite: u32,
}

impl Trainer {
    /// A trainer that is alone and carries all lanes, until it joins others. The running statistics that the
    /// model has now are those that [`Trainer::reset`] goes back to.
    ///
    /// # Errors
    /// When the settings do not fit the model.
    pub fn new(model: Model, settings: TrainerSettings) -> Result<Self, TrainError> {
        let alone = LaneLayout::new(settings.lanes, 1).map_err(|e| TrainError::State(e.to_string()))?;
        let seat = Seat::take(&model, &settings, alone, Rank::new(0))?;
        let optimizer = Optimizer::new(settings.optimizer, &model.trainable())?;
        let normalization = Normalization::new(model.kind(), model.device())?;
        let fresh = model.stage_buffers()?;
        let learned = model.spec().objective;
        let mut trainer = Self {
            model,
            optimizer,
            settings,
            objective: objective_of(learned),
            seat,
            normalization,
            activity: Activity::default(),
            fresh,
            ready: Vec::new(),
            reducer: None,
            group: None,
            not_finite: 0,
        };
        trainer.ready = trainer.record_ready_order()?;
        trainer.optimizer.expect_gradients(&trainer.ready)?;
        trainer.arm_mid_backward()?;
        Ok(trainer)
    }

    /// Where to say what it does at any moment.
    pub fn tell(&mut self, activity: Activity) {
        self.activity = activity;
    }

    /// Becomes one of several ranks, or the only one (`group` is `None` then). A group that it was in is left.
    ///
    /// # Errors
    /// When layout and group do not fit each other or the job, or a peer is lost.
    pub fn join(&mut self, lanes: LaneLayout, rank: Rank, group: Option<Group>) -> Result<(), TrainError> {
        self.leave();
        let world = group.as_ref().map_or(1, Group::world);
        if world != lanes.world() || lanes.lanes() != self.settings.lanes {
            return Err(TrainError::State(format!(
                "a group of {world} for a layout of {} lanes over {} ranks, in a job of {} lanes",
                lanes.lanes(),
                lanes.world(),
                self.settings.lanes
            )));
        }
        self.seat = Seat::take(&self.model, &self.settings, lanes, rank)?;
        self.group = group;
        if let Some(group) = &self.group {
            match Reducer::new(group, &self.ready_params()) {
                Ok(reducer) => self.reducer = Some(reducer),
                Err(error) => {
                    self.abandon();
                    return Err(error.into());
                }
            }
        }
        Ok(())
    }

    /// Leaves the group and keeps everything else.
    pub fn leave(&mut self) {
        self.reducer = None;
        self.group = None;
    }

    /// Leaves a group that is of no use any more. Peers that wait for this rank wake up.
    pub fn abandon(&mut self) {
        if let Some(group) = &self.group {
            group.abort();
        }
        self.leave();
    }

    /// Leaves at a step boundary, when all ranks do. A connection that closes early may take along what a slower
    /// peer has not read yet, so all say one last word first; that one may be lost.
    pub fn part(&mut self) {
        if let Some(group) = &self.group {
            let word = Tensor::f_zeros([1], (Kind::Int64, self.model.device()));
            let said = word.map_err(TrainError::from).and_then(|w| Ok(group.all_gather(&w)?));
            if let Err(error) = said {
                tracing::debug!(%error, "a peer parted first");
            }
        }
        self.leave();
    }

    /// Bounds the group's collectives from now on.
    ///
    /// # Errors
    /// When the engine refuses.
    pub fn set_timeout(&mut self, timeout: Duration) -> Result<(), TrainError> {
        match &mut self.group {
            Some(group) => Ok(group.set_timeout(timeout)?),
            None => Ok(()),
        }
    }

    /// The state before a run's first step.
    ///
    /// # Errors
    /// When the device fails.
    pub fn reset(&mut self, seed: Seed) -> Result<(), TrainError> {
        self.model.initialize(seed)?;
        self.model.commit_buffers(self.fresh.fork()?)?;
        self.optimizer.reset()?;
        self.not_finite = 0;
        Ok(())
    }

    /// The state before a run's first step, with weights and statistics that are given instead of drawn. A part of the
    /// model of which anything is given must be given whole.
    ///
    /// # Errors
    /// Names what is missing, unexpected or of another shape; nothing is loaded then.
    pub fn reset_with(&mut self, seed: Seed, given: BTreeMap<String, Tensor>) -> Result<(), TrainError> {
        self.reset(seed)?;
        let parts: BTreeSet<&str> = given.keys().map(|name| part_of(name)).collect();
        let own = self.model.state().into_iter().filter(|(name, _)| !parts.contains(part_of(name)));
        let own: Vec<_> = own.map(|(name, tensor)| (name.to_owned(), tensor.shallow_clone())).collect();
        let mut state = given;
        state.extend(own);
        Ok(self.model.load(&state)?)
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
        &self.seat.layout
    }

    /// The optimiser's tensors by name.
    ///
    /// # Errors
    /// When host memory runs out.
    pub fn optimizer_state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        self.optimizer.state()
    }

    /// A dry backward pass over a small batch of random numbers tells in which order gradients come; every
    /// group's buckets are built from that. Weights, buffers and counters stay as they are.
    fn record_ready_order(&self) -> Result<Vec<usize>, TrainError> {
        let device = self.model.device();
        let spec = self.model.spec();
        let layout = PyramidLayout::new(spec, 2, 0..1)?;
        tch::manual_seed(0);
        let shape = [layout.pictures(), 3, spec.image_size, spec.image_size];
        let pictures = Tensor::f_randn(shape, (self.model.kind(), device))?;
        let buffers = self.model.stage_buffers()?;
        let norm = self.rehearsed_norm();
        let pass = Pass::new(&norm, &buffers);
        let half = self.autocast()?;
        let outputs = self.objective.rehearse(self, &pictures, &layout, &pass)?;
        drop(half);
        let mut total = Tensor::f_zeros([], (self.model.kind(), device))?;
        for rows in &outputs {
            total = total.f_add(&rows.f_square()?.f_mean(self.model.kind())?)?;
        }
        let params: Vec<Tensor> =
            self.model.trainable().into_iter().map(|(_, p)| p.shallow_clone()).collect();
        let order = ready_order(&total, &params, Membership::alone())?;
        self.clear_grads()?;
        Ok(order)
    }

    /// Half precision, where the job wants it, for as long as the answer lives.
    pub(crate) fn autocast(&self) -> Result<Option<Autocast>, TrainError> {
        let device = self.model.device();
        Ok(self.settings.autocast.then(|| autocast(device)).transpose()?)
    }

    fn ready_params(&self) -> Vec<Tensor> {
        let params = self.model.trainable();
        self.ready.iter().filter_map(|i| params.get(*i)).map(|(_, p)| p.shallow_clone()).collect()
    }

    /// Where a test asks for it: a hook on the parameter whose gradient comes in the middle.
    fn arm_mid_backward(&self) -> Result<(), TrainError> {
        extern "C" fn middle() {
            mcl_failpoint::pass(Failpoint::MidBackward);
        }
        let params = self.ready_params();
        match params.get(params.len() / 2) {
            Some(param) if mcl_failpoint::is_armed(Failpoint::MidBackward) => Ok(on_gradient(param, middle)?),
            _ => Ok(()),
        }
    }

    /// Before a step: gradients of zero where a Reducer keeps them in its buckets, else none, which saves adding to
    /// zeros.
    pub(crate) fn clear_grads(&self) -> Result<(), TrainError> {
        for (_, param) in self.model.trainable() {
            if self.reducer.is_none() {
                drop_gradient(param)?;
                continue;
            }
            let mut grad = param.grad();
            if grad.defined() {
                let _ = no_grad(|| grad.f_zero_())?;
            }
        }
        Ok(())
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
