//! The training step over a group of ranks.

use crate::activity::Doing;
use crate::agreement::{Agreed, Halt, Word};
use crate::norm::SyncBatchNorm;
use crate::optimizer::grad_norm;
use crate::{TrainError, Trainer, together};
use mcl_collective::{Membership, backward, many, waited};
use mcl_failpoint::Failpoint;
use mcl_model::{BufferSet, Contrast, LaneSide, LevelLosses, Pass, Pyramid, level_losses, on_device};
use mcl_types::{FencingToken, Rank, Step};
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
    /// Montages, targets, forward pass and agreement.
    pub forward: Duration,
    /// Backward pass and the gradients' norm, which waits for the device.
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
        let staged = self.model.stage_buffers()?;
        if let Some(reducer) = &self.reducer {
            reducer.prepare_forward()?;
        }
        let losses = self.forward(input, &staged, probe.as_deref_mut())?;
        let own = values_by_lane(&losses.losses)?;
        let agreed = self.agree(input, &own)?;
        let mut times = StepTimes { forward: started.elapsed(), ..StepTimes::default() };
        if agreed.bad {
            times.collective = waited().saturating_sub(waited_before);
            let named = first_bad_loss(&agreed.losses, self.seat.layout.levels());
            return self.skip(input, agreed, f64::NAN, times, named);
        }
        self.activity.set(Doing::Backward, Some(input.step));
        self.backward(&losses)?;
        if let Some(probe) = probe {
            self.probe_gradients(probe)?;
        }
        let trainable = self.model.trainable();
        let norm = grad_norm(&trainable, self.model.kind(), self.model.device())?.f_double_value(&[])?;
        times.backward = started.elapsed().saturating_sub(times.forward);
        times.collective = waited().saturating_sub(waited_before);
        // With NCCL a group that was aborted leaves half-reduced gradients behind and no error of its own.
        if let Some(group) = &self.group {
            group.check()?;
        }
        if !norm.is_finite() {
            let named = first_bad_gradient(&trainable)?;
            return self.skip(input, agreed, norm, times, named);
        }
        self.activity.set(Doing::Update, Some(input.step));
        mcl_failpoint::pass(Failpoint::BeforeUpdate);
        self.update(norm, input.rates, staged)
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
            self.model.targets(&q.pictures, &self.seat.layout, mode, &pass)?,
            self.model.targets(&k.pictures, &self.seat.layout, mode, &pass)?,
        ];
        let [tq, tk] = self.gather_targets(&own)?;
        let online_q = self.model.online(&q.pictures, &self.seat.layout, mode, &pass)?;
        let online_k = self.model.online(&k.pictures, &self.seat.layout, mode, &pass)?;
        let (pred_q, pred_k) = self.model.predict(&online_q, &online_k, &pass)?;
        let losses = level_losses(
            self.model.spec(),
            self.seat.layout.lane_count(),
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
            for lane in input.lanes {
                let side = pick(lane);
                let views: Result<Vec<Tensor>, _> = side.views.iter().map(|v| on_device(v, device)).collect();
                sides.push(LaneSide { views: views?, permutations: side.permutations.clone() });
            }
            let mut pyramid = Pyramid::assemble(&self.seat.layout, &sides)?;
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
        let most = i64::from(self.seat.lanes.most_lanes()) * n;
        no_grad(|| {
            let both = Tensor::f_stack(own, 0)?;
            let missing = most - both.size()[1];
            let padded = both.f_constant_pad_nd([0, 0, 0, missing])?;
            let all = group.all_gather(&padded)?;
            let mut sides = Vec::with_capacity(2);
            for side in 0..2 {
                let mut rows = Vec::new();
                for rank in 0..self.seat.lanes.world() {
                    let lanes = self.seat.lanes.lanes_of(Rank::new(rank)).len();
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

    /// What all ranks know before they go on to backward.
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
        if let Some(reducer) = &self.reducer {
            reducer.prepare_backward()?;
        }
        Ok(backward(&total, self.membership())?)
    }

    fn membership(&self) -> Membership {
        self.group.as_ref().map_or(
            Membership { token: FencingToken::default(), rank: self.seat.rank, world: 1 },
            mcl_collective::Group::membership,
        )
    }

    fn update(&mut self, norm: f64, rates: Rates, staged: BufferSet) -> Result<(), TrainError> {
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

fn first_bad_loss(by_lane: &[Vec<f64>], levels: usize) -> String {
    for (lane, losses) in by_lane.iter().enumerate() {
        if let Some(at) = losses.iter().position(|v| !v.is_finite()) {
            let side = if at < levels { "q" } else { "k" };
            return format!("the loss of lane {lane}, side {side}, level {}", at % levels.max(1));
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
