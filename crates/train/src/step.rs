//! The training step over a group of ranks.

use crate::activity::Doing;
use crate::agreement::{Agreed, Halt, Word};
use crate::objective::Targets;
use crate::optimizer::grad_norm;
use crate::part::Part;
use crate::{TrainError, Trainer, together};
use mcl_collective::{Membership, backward, many, waited};
use mcl_failpoint::Failpoint;
use mcl_model::{BufferSet, LaneSide, LevelLosses};
use mcl_types::{FencingToken, Step};
use std::time::{Duration, Instant};
use tch::{Kind, Tensor, no_grad};

/// Steps in a row whose numbers may not be finite before the run stops.
const PATIENCE: u32 = 5;

/// One lane's pictures, both sides: u8 (normalised on the device) or already numbers.
#[derive(Debug)]
pub struct LaneInput {
    /// Views and permutations of side q.
    pub q: LaneSide,
    /// ... and of side k.
    pub k: LaneSide,
    /// What all ranks are to know of this lane before they apply the step; the same number a lane on all ranks.
    pub notes: Vec<i64>,
    /// By slot: class of each picture, where the objective has labels; else empty.
    pub classes: Vec<i64>,
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
pub struct StepInput<'a> {
    /// Which step, for messages and the regular comparison of digests.
    pub step: Step,
    /// This rank's lanes, in order.
    pub lanes: &'a [LaneInput],
    /// The schedules' values.
    pub rates: Rates,
    /// What this rank wants after this step.
    pub halt: Halt,
    /// This rank is still saving an earlier state.
    pub saving: bool,
}

/// What came out.
#[derive(Debug, Clone, PartialEq)]
pub struct StepOutcome {
    /// By lane of the job, whoever carried it: 2L weighted losses, q side by level, then k side.
    pub lane_losses: Vec<Vec<f64>>,
    /// By lane of the job: its notes.
    pub notes: Vec<Vec<i64>>,
    /// Total norm of the averaged gradients, before clipping.
    pub grad_norm: f64,
    /// Every rank skipped the update: a loss or a reduced gradient was not finite.
    pub skipped: bool,
    /// What ranks wanted after this step; all see the same.
    pub halt: Halt,
    /// Some rank was still saving an earlier state when it began this step; all see the same.
    pub saving: bool,
    /// What took how long.
    pub times: StepTimes,
}

/// Where a step's time went; what remains is the update.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Default)]
pub struct StepTimes {
    /// Montages, targets and forward pass.
    pub forward: Duration,
    /// Backward pass, the gradients' norm and the agreement, which waits for the device.
    pub backward: Duration,
    /// Of both: threads blocked in collectives of norms, targets and agreement, and what is left to wait for of the
    /// Reducer's once the last gradient is there.
    pub collective: Duration,
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

impl Trainer {
    /// One step. On an error nothing of it is left behind but gradients, which the next step clears, and the group
    /// is left; [`TrainError::Torn`] alone says that the state is lost.
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
        probe: Option<&mut StepProbe>,
    ) -> Result<StepOutcome, TrainError> {
        let outcome = self.attempt(input, probe);
        if outcome.is_err() {
            self.abandon();
        }
        outcome
    }

    fn attempt(
        &mut self,
        input: &StepInput,
        mut probe: Option<&mut StepProbe>,
    ) -> Result<StepOutcome, TrainError> {
        self.check_seat(input)?;
        let (started, waited_before) = (Instant::now(), waited());
        self.activity.set(Doing::Forward, Some(input.step));
        mcl_failpoint::pass(Failpoint::Forward);
        self.clear_grads()?;
        if let Some(reducer) = &self.reducer {
            reducer.prepare_forward()?;
        }
        let parts = self.parts(input)?;
        let mut times = StepTimes::default();
        let targets = self.objective.targets(self, &parts, input)?;
        let (last, losses) = self.forward(&parts, &targets, &mut times, probe.as_deref_mut())?;
        times.forward = started.elapsed().saturating_sub(times.backward);
        self.activity.set(Doing::Backward, Some(input.step));
        if let Some(reducer) = &self.reducer {
            reducer.prepare_backward()?;
        }
        self.backward(&last)?;
        drop(last);
        let staged = self.combine(parts)?;
        if let Some(probe) = probe {
            self.probe_gradients(probe)?;
        }
        let trainable = self.model.trainable();
        let norm = grad_norm(&trainable, self.model.kind(), self.model.device())?;
        // The one place where the host waits for a device: everything before is only queued there.
        let agreed = self.agree(input, &values_by_lane(&losses)?)?;
        let norm = norm.f_double_value(&[])?;
        times.backward = started.elapsed().saturating_sub(times.forward);
        times.collective = waited().saturating_sub(waited_before);
        // With NCCL a group that was aborted leaves half-reduced gradients behind and no error of its own.
        if let Some(group) = &self.group {
            group.check()?;
        }
        if agreed.bad || !norm.is_finite() {
            let named = match first_bad_loss(&agreed.losses, self.seat.layout.levels()) {
                Some(loss) => loss,
                None => first_bad_gradient(&trainable)?,
            };
            return self.skip(input, agreed, norm, times, named);
        }
        self.activity.set(Doing::Update, Some(input.step));
        mcl_failpoint::pass(Failpoint::BeforeUpdate);
        self.update(norm, input.rates, staged, &targets)
            .map_err(|source| TrainError::Torn { source: Box::new(source) })?;
        self.not_finite = 0;
        Ok(outcome(agreed, norm, false, times))
    }

    fn check_seat(&self, input: &StepInput) -> Result<(), TrainError> {
        let (group, seat) = (self.group.is_some(), &self.seat);
        let (found, expected) = (input.lanes.len(), seat.lanes.lanes_of(seat.rank).len());
        if seat.lanes.world() > 1 && !group {
            return Err(TrainError::State("a rank of several has left its group".to_owned()));
        }
        if found != expected {
            return Err(TrainError::State(format!("{found} lanes of input, expected {expected}")));
        }
        Ok(())
    }

    fn probe_gradients(&self, probe: &mut StepProbe) -> Result<(), TrainError> {
        for (_, param) in self.model.trainable() {
            let grad = param.grad();
            let mut copy = param.f_zeros_like()?;
            if grad.defined() {
                no_grad(|| copy.f_copy_(&grad))?;
            }
            probe.grads.push(copy);
        }
        Ok(())
    }

    /// Each part's losses. All parts but the last are followed by their own backward pass at
    /// once, whose gradients stay on this rank until the last one's join them; so one part's graph lives at a time.
    /// Answers the last part's losses with their graph, and those of all of this rank's lanes without: [2, L, lanes].
    fn forward(
        &self,
        parts: &[Part],
        targets: &Targets,
        times: &mut StepTimes,
        mut probe: Option<&mut StepProbe>,
    ) -> Result<(LevelLosses, Tensor), TrainError> {
        let mut values = Vec::new();
        let mut last = None;
        for part in parts {
            if let Some(losses) = last.take() {
                let started = Instant::now();
                self.backward(&losses)?;
                times.backward += started.elapsed();
            }
            let losses = self.objective.losses(self, part, targets, probe.as_deref_mut())?;
            values.push(losses.losses.f_detach()?);
            last = Some(losses);
        }
        let last = last.ok_or_else(|| TrainError::State("a rank without lanes takes no step".to_owned()))?;
        Ok((last, Tensor::f_cat(&values, 2)?))
    }

    /// Rows of this rank's lanes, by side [own lanes * N, D], for those of all lanes in lane order: [K N, D].
    pub(crate) fn gather_rows(&self, own: &[Tensor]) -> Result<Vec<Tensor>, TrainError> {
        if self.group.is_none() {
            return Ok(own.iter().map(Tensor::shallow_clone).collect());
        }
        let (n, size) = (i64::from(self.settings.images_per_lane), self.model.spec().embedding);
        let sides = i64::try_from(own.len()).unwrap_or(i64::MAX);
        no_grad(|| {
            let by_lane = Tensor::f_stack(own, 1)?.f_reshape([-1, n, sides, size])?;
            let all = self.gather_lanes(&by_lane)?;
            (0..sides).map(|side| Ok(all.f_select(2, side)?.f_reshape([-1, size])?)).collect()
        })
    }

    /// What all ranks know before any of them updates.
    fn agree(&self, input: &StepInput, own: &[Vec<f64>]) -> Result<Agreed, TrainError> {
        let word = Word {
            bad: own.iter().flatten().any(|v| !v.is_finite()),
            halt: input.halt,
            saving: input.saving,
            losses: own,
            notes: input.lanes.iter().map(|lane| lane.notes.as_slice()).collect(),
        };
        match &self.group {
            Some(group) => word.agree(group, self.seat.lanes, self.model.device()),
            None => Ok(word.alone()),
        }
    }

    fn backward(&self, losses: &LevelLosses) -> Result<(), TrainError> {
        let (world, lanes) = (f64::from(self.seat.lanes.world()), f64::from(self.seat.lanes.lanes()));
        let total = losses.total(world / lanes)?;
        Ok(backward(&total, self.membership())?)
    }

    fn membership(&self) -> Membership {
        self.group.as_ref().map_or(
            Membership { token: FencingToken::default(), rank: self.seat.rank, world: 1 },
            mcl_collective::Group::membership,
        )
    }

    fn update(
        &mut self,
        norm: f64,
        rates: Rates,
        staged: BufferSet,
        targets: &Targets,
    ) -> Result<(), TrainError> {
        staged.seal()?;
        if self.settings.clip_norm > 0.0 {
            let coefficient = self.settings.clip_norm / (norm + 1e-6);
            if coefficient < 1.0 {
                together::clip(&self.model.trainable(), coefficient)?;
            }
        }
        self.optimizer.step(rates.lr)?;
        mcl_failpoint::pass(Failpoint::MidUpdate);
        let (keys, queries): (Vec<_>, Vec<_>) =
            self.model.momentum_pairs().into_iter().map(|pair| (pair.key, pair.query)).unzip();
        many::lerp(&keys, &queries, 1.0 - rates.momentum)?;
        self.objective.applied(&self.model, targets)?;
        Ok(self.model.commit_buffers(staged)?)
    }

    fn skip(
        &mut self,
        input: &StepInput,
        agreed: Agreed,
        grad_norm: f64,
        times: StepTimes,
        tensor: String,
    ) -> Result<StepOutcome, TrainError> {
        self.not_finite += 1;
        let step = input.step.get();
        tracing::warn!(step, %tensor, in_a_row = self.not_finite, "update skipped: not finite");
        if self.not_finite >= PATIENCE {
            return Err(TrainError::NotFinite { step, tensor, in_a_row: self.not_finite });
        }
        Ok(outcome(agreed, grad_norm, true, times))
    }
}

fn outcome(agreed: Agreed, grad_norm: f64, skipped: bool, times: StepTimes) -> StepOutcome {
    let Agreed { losses, notes, halt, saving, .. } = agreed;
    StepOutcome { lane_losses: losses, notes, grad_norm, skipped, halt, saving, times }
}

/// [2, L, lanes] -> by lane, 2L values.
fn values_by_lane(losses: &Tensor) -> Result<Vec<Vec<f64>>, TrainError> {
    let by_lane = losses.f_detach()?.f_flatten(0, 1)?.f_transpose(0, 1)?;
    Ok(Vec::try_from(by_lane.f_to_device(tch::Device::Cpu)?.f_to_kind(Kind::Double)?)?)
}

fn first_bad_loss(by_lane: &[Vec<f64>], levels: usize) -> Option<String> {
    for (lane, losses) in by_lane.iter().enumerate() {
        if let Some(at) = losses.iter().position(|v| !v.is_finite()) {
            let side = if at < levels { "q" } else { "k" };
            return Some(format!("the loss of lane {lane}, side {side}, level {}", at % levels.max(1)));
        }
    }
    None
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
