//! LARS, SGD and AdamW with their state by parameter name (MCL_SPEC section 4).

use crate::TrainError;
use crate::together::{self, Alike};
use mcl_collective::many;
use regex::Regex;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor, no_grad};

/// Prefix of the optimiser's tensors in a saved state.
const PREFIX: &str = "optimizer.";
/// The count of applied updates.
const UPDATES: &str = "optimizer.updates";

/// The update rule.
#[derive(Debug, Clone, Copy, PartialEq)]
pub enum Rule {
    /// The paper's (You et al. 2017, as the official code has it: lr inside the momentum buffer).
    Lars {
        /// Decay of the buffer.
        momentum: f64,
        /// Trust coefficient.
        eta: f64,
    },
    /// Momentum SGD as PyTorch's: lr outside the buffer.
    Sgd {
        /// Decay of the buffer.
        momentum: f64,
    },
    /// Loshchilov and Hutter 2019.
    AdamW {
        /// Decay of the first and second moment.
        betas: [f64; 2],
        /// Added to the root of the second moment.
        eps: f64,
    },
}

/// What an optimiser needs to know.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct OptimizerSettings {
    /// The rule.
    pub rule: Rule,
    /// Weight decay of the parameters that have any.
    pub weight_decay: f64,
}

/// How an update goes through the parameters; the numbers are the same but for rounding.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Walk {
    /// One after the other, each while it lies in the CPU's cache.
    OneByOne,
    /// All at once, a few launches in all: LARS and SGD; AdamW goes one by one.
    Together,
}

impl Walk {
    /// The one that suits a device.
    pub const fn on(device: Device) -> Self {
        match device {
            Device::Cpu => Self::OneByOne,
            _ => Self::Together,
        }
    }
}

/// One trainable parameter's place in the optimiser.
#[derive(Debug)]
struct Entry {
    name: String,
    param: Tensor,
    decay: f64,
    adapt: bool,
    /// What the rule remembers. None where no gradient ever comes.
    moments: Option<Moments>,
}

#[derive(Debug)]
struct Moments {
    /// LARS and SGD: momentum buffer. AdamW: first moment.
    first: Tensor,
    /// AdamW: second moment.
    second: Option<Tensor>,
}

impl Moments {
    fn zeros(rule: Rule, param: &Tensor) -> Result<Self, TrainError> {
        let zeros = || param.f_zeros_like()?.f_detach();
        let second = match rule {
            Rule::AdamW { .. } => Some(zeros()?),
            Rule::Lars { .. } | Rule::Sgd { .. } => None,
        };
        Ok(Self { first: zeros()?, second })
    }
}

/// An update rule and its state.
#[derive(Debug)]
pub struct Optimizer {
    settings: OptimizerSettings,
    walk: Walk,
    entries: Vec<Entry>,
    updates: i64,
}

/// Whether LARS leaves a parameter alone (no decay, no trust ratio): the official pattern, searched in the
/// name. It misses `downsample.1` and `mlp.1` scales; so do we.
///
/// # Errors
/// Never: the pattern is constant.
pub fn lars_excluded(name: &str) -> Result<bool, regex::Error> {
    Ok(Regex::new(r"(bn|gn)([0-9]+)?.(weight|bias)")?.is_match(name) || name.contains("bias"))
}

/// Whether SGD and AdamW decay a parameter: matrices and kernels yes, scales and shifts no.
pub fn decays(param: &Tensor) -> bool {
    param.dim() > 1
}

impl Optimizer {
    /// State for `params`, which stand in name order.
    ///
    /// # Errors
    /// Never in practice.
    pub fn new(settings: OptimizerSettings, params: &[(&str, &Tensor)]) -> Result<Self, TrainError> {
        let mut entries = Vec::with_capacity(params.len());
        for (name, param) in params {
            let excluded = match settings.rule {
                Rule::Lars { .. } => lars_excluded(name).map_err(|e| TrainError::State(e.to_string()))?,
                Rule::Sgd { .. } | Rule::AdamW { .. } => !decays(param),
            };
            entries.push(Entry {
                name: (*name).to_owned(),
                param: param.shallow_clone(),
                decay: if excluded { 0.0 } else { settings.weight_decay },
                adapt: !excluded,
                moments: None,
            });
        }
        let walk = Walk::on(params.first().map_or(Device::Cpu, |(_, param)| param.device()));
        Ok(Self { settings, walk, entries, updates: 0 })
    }

    /// Goes through the parameters in another way than suits their device: for comparisons.
    #[must_use]
    pub const fn walking(mut self, walk: Walk) -> Self {
        self.walk = walk;
        self
    }

    /// One update with the gradients that the parameters hold; those without one stay as they are.
    ///
    /// # Errors
    /// When the device fails.
    pub fn step(&mut self, lr: f64) -> Result<(), TrainError> {
        self.updates += 1;
        let (rule, updates) = (self.settings.rule, self.updates);
        if self.walk == Walk::Together && !matches!(rule, Rule::AdamW { .. }) {
            return no_grad(|| self.step_together(lr));
        }
        no_grad(|| {
            for entry in &mut self.entries {
                let grad = entry.param.grad();
                if grad.defined() {
                    entry.update(rule, lr, updates, &grad)?;
                }
            }
            Ok(())
        })
    }

    fn step_together(&mut self, lr: f64) -> Result<(), TrainError> {
        let OptimizerSettings { rule, weight_decay } = self.settings;
        let (mut adapted, mut plain) = (Alike::default(), Alike::default());
        for Entry { param, adapt, moments, .. } in &mut self.entries {
            let grad = param.grad();
            if !grad.defined() {
                continue;
            }
            if moments.is_none() {
                *moments = Some(Moments::zeros(rule, param)?);
            }
            let alike = if *adapt { &mut adapted } else { &mut plain };
            alike.params.push(param);
            alike.grads.push(grad);
            alike.buffers.extend(moments.as_ref().map(|m| &m.first));
        }
        match rule {
            Rule::Lars { momentum, eta } => {
                together::lars(&adapted, &plain, (momentum, eta, weight_decay, lr))
            }
            Rule::Sgd { momentum } => together::sgd(&adapted, &plain, (momentum, weight_decay, lr)),
            Rule::AdamW { .. } => Err(TrainError::State("AdamW goes one by one".to_owned())),
        }
    }

    /// The parameters of these indices get gradients: they have moments from now on, zeros before the first update,
    /// so that every rank's state has the same tensors whatever it has done.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn expect_gradients(&mut self, indices: &[usize]) -> Result<(), TrainError> {
        for index in indices {
            if let Some(entry) = self.entries.get_mut(*index) {
                entry.moments = Some(Moments::zeros(self.settings.rule, &entry.param)?);
            }
        }
        Ok(())
    }

    /// As before the first update.
    ///
    /// # Errors
    /// When the device fails.
    pub fn reset(&mut self) -> Result<(), TrainError> {
        for entry in &mut self.entries {
            if entry.moments.is_some() {
                entry.moments = Some(Moments::zeros(self.settings.rule, &entry.param)?);
            }
        }
        self.updates = 0;
        Ok(())
    }

    /// The state's tensors by name, in name order.
    ///
    /// # Errors
    /// When host memory runs out.
    pub fn state(&self) -> Result<Vec<(String, Tensor)>, TrainError> {
        let (first, second) = self.settings.rule.state_names();
        let mut state = vec![(UPDATES.to_owned(), Tensor::f_from_slice(&[self.updates])?)];
        for entry in &self.entries {
            let Some(moments) = &entry.moments else { continue };
            state.push((format!("{PREFIX}{first}.{}", entry.name), moments.first.shallow_clone()));
            if let Some(tensor) = &moments.second {
                state.push((format!("{PREFIX}{second}.{}", entry.name), tensor.shallow_clone()));
            }
        }
        state.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(state)
    }

    /// Takes the optimiser's tensors (`optimizer.*`) out of a saved state; one that is missing was never updated.
    ///
    /// # Errors
    /// Names what is unexpected or has another shape; nothing is changed then.
    pub fn load(&mut self, state: &mut BTreeMap<String, Tensor>) -> Result<(), TrainError> {
        let own: Vec<String> = state.keys().filter(|k| k.starts_with(PREFIX)).cloned().collect();
        let mut taken: BTreeMap<String, Tensor> =
            own.into_iter().filter_map(|k| state.remove(&k).map(|t| (k, t))).collect();
        let updates = taken
            .remove(UPDATES)
            .ok_or_else(|| TrainError::State(format!("`{UPDATES}` is missing")))?
            .f_int64_value(&[0])?;
        let (first, second) = self.settings.rule.state_names();
        let mut loaded = Vec::with_capacity(self.entries.len());
        for entry in &self.entries {
            let mut fill = |kind: &str, own: &mut Tensor| -> Result<bool, TrainError> {
                let name = format!("{PREFIX}{kind}.{}", entry.name);
                let Some(tensor) = taken.remove(&name) else { return Ok(false) };
                if tensor.size() != own.size() {
                    let (found, expected) = (tensor.size(), own.size());
                    return Err(TrainError::State(format!(
                        "`{name}` has shape {found:?}, expected {expected:?}"
                    )));
                }
                no_grad(|| own.f_copy_(&tensor))?;
                Ok(true)
            };
            let mut moments = Moments::zeros(self.settings.rule, &entry.param)?;
            let mut found = fill(first, &mut moments.first)?;
            if let Some(own) = &mut moments.second {
                found |= fill(second, own)?;
            }
            loaded.push((found || entry.moments.is_some()).then_some(moments));
        }
        if let Some(name) = taken.keys().next() {
            return Err(TrainError::State(format!(
                "`{name}` is unexpected: saved by another optimiser or model"
            )));
        }
        for (entry, moments) in self.entries.iter_mut().zip(loaded) {
            entry.moments = moments;
        }
        self.updates = updates;
        Ok(())
    }
}

impl Rule {
    const fn state_names(self) -> (&'static str, &'static str) {
        match self {
            Self::Lars { .. } | Self::Sgd { .. } => ("momentum_buffer", ""),
            Self::AdamW { .. } => ("exp_avg", "exp_avg_sq"),
        }
    }
}

impl Entry {
    fn update(&mut self, rule: Rule, lr: f64, updates: i64, grad: &Tensor) -> Result<(), TrainError> {
        if self.moments.is_none() {
            self.moments = Some(Moments::zeros(rule, &self.param)?);
        }
        match rule {
            Rule::Lars { momentum, eta } => self.lars(momentum, eta, lr, grad),
            Rule::Sgd { momentum } => {
                let whole = grad.f_new_ones([], (grad.kind(), grad.device()))?;
                let buffer = self.blend(momentum, grad, &whole)?;
                let _ = self.param.f_sub_(&buffer.f_mul_scalar(lr)?)?;
                Ok(())
            }
            Rule::AdamW { betas, eps } => self.adamw(betas, eps, lr, updates, grad),
        }
    }

    /// `d = (g + wd p) * (eta |p| / (|g| + wd |p|)) * lr; buf = momentum buf + d; p -= buf`. Where both
    /// norms are zero the original divides by zero; here nothing moves.
    fn lars(&mut self, momentum: f64, eta: f64, lr: f64, grad: &Tensor) -> Result<(), TrainError> {
        let ratio = if self.adapt {
            let p_norm = self.param.f_norm()?;
            let below = grad.f_norm()?.f_add(&p_norm.f_mul_scalar(self.decay)?)?;
            let ratio = p_norm.f_mul_scalar(eta)?.f_div(&below)?.f_mul_scalar(lr)?;
            ratio.f_where_self(&below.f_gt(0.0)?, &ratio.f_zeros_like()?)?
        } else {
            grad.f_new_full([], lr, (grad.kind(), grad.device()))?
        };
        let buffer = self.blend(momentum, grad, &ratio)?;
        let _ = self.param.f_sub_(&buffer)?;
        Ok(())
    }

    /// `buf = momentum buf + (g + wd p) ratio`, in the buffer's own memory: what an update costs on a CPU is how often it
    /// goes through memory. `ratio` is one number on the device.
    fn blend(&mut self, momentum: f64, grad: &Tensor, ratio: &Tensor) -> Result<Tensor, TrainError> {
        let Some(Moments { first, .. }) = &mut self.moments else {
            return Err(TrainError::State("momentum without its buffer".to_owned()));
        };
        let _ = first.f_mul_scalar_(momentum)?.f_addcmul_(grad, ratio)?;
        if self.decay != 0.0 {
            let _ = first.f_addcmul_(&self.param, &ratio.f_mul_scalar(self.decay)?)?;
        }
        Ok(first.shallow_clone())
    }

    fn adamw(
        &mut self,
        betas: [f64; 2],
        eps: f64,
        lr: f64,
        updates: i64,
        grad: &Tensor,
    ) -> Result<(), TrainError> {
        let Some(Moments { first, second: Some(second) }) = &mut self.moments else {
            return Err(TrainError::State("AdamW without its moments".to_owned()));
        };
        let _ = self.param.f_mul_scalar_(1.0 - lr * self.decay)?;
        let _ = first.f_mul_scalar_(betas[0])?.f_add_(&grad.f_mul_scalar(1.0 - betas[0])?)?;
        let _ = second.f_mul_scalar_(betas[1])?.f_addcmul_(&grad.f_mul_scalar(1.0 - betas[1])?, grad)?;
        #[expect(clippy::cast_precision_loss, reason = "updates stay far below 2^53")]
        let corrections = betas.map(|beta| 1.0 - beta.powf(updates as f64));
        let root = second.f_div_scalar(corrections[1])?.f_sqrt()?.f_add_scalar(eps)?;
        let _ = self.param.f_sub_(&first.f_div(&root)?.f_mul_scalar(lr / corrections[0])?)?;
        Ok(())
    }
}

/// Total L2 norm of the gradients of `params`, summed in the order given; 0 where there are none.
pub(crate) fn grad_norm(
    params: &[(&str, &Tensor)],
    kind: Kind,
    device: Device,
) -> Result<Tensor, TrainError> {
    let grads = together::gradients(params);
    if grads.is_empty() {
        return Ok(Tensor::f_zeros([], (kind, device))?);
    }
    let norms = many::norms(&grads.iter().collect::<Vec<_>>())?;
    no_grad(|| Ok(norms.f_norm()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const F64: (Kind, Device) = (Kind::Double, Device::Cpu);

    fn param(values: &[f64]) -> Tensor {
        Tensor::from_slice(values).set_requires_grad(true)
    }

    fn with_grad(p: &Tensor, grad: &[f64]) {
        let mut old = p.grad();
        if old.defined() {
            let _ = old.zero_();
        }
        (p * Tensor::from_slice(grad).view_as(p)).sum(Kind::Double).backward();
    }

    fn values(t: &Tensor) -> Vec<f64> {
        Vec::try_from(t.reshape([-1])).unwrap()
    }

    fn near(a: &[f64], b: &[f64]) {
        assert!(a.iter().zip(b).all(|(a, b)| (a - b).abs() < 1e-12), "{a:?} {b:?}");
    }

    #[test]
    fn official_exclusion_misses_downsample_and_mlp_scales() {
        for name in [
            "encoder_q.0.bn1.weight",
            "encoder_q.0.layer1.0.bn2.bias",
            "encoder_q.1.lateral_convs.0.bn.weight",
            "head.predictor.0.mlp.3.bias",
            "encoder_q.0.layer2.0.downsample.1.bias",
        ] {
            assert!(lars_excluded(name).unwrap(), "{name}");
        }
        for name in [
            "encoder_q.0.conv1.weight",
            "encoder_q.0.layer2.0.downsample.1.weight",
            "encoder_q.2.mlp.1.weight",
            "head.predictor.3.mlp.1.weight",
        ] {
            assert!(!lars_excluded(name).unwrap(), "{name}");
        }
    }

    #[test]
    fn lars_keeps_lr_inside_the_buffer_and_survives_zero_norms() {
        let rule = Rule::Lars { momentum: 0.9, eta: 1e-3 };
        let (p, zero) = (param(&[3.0, 4.0]), param(&[0.0, 0.0]));
        let params = [("a.conv.weight", &p), ("b.conv.weight", &zero)];
        let mut lars = Optimizer::new(OptimizerSettings { rule, weight_decay: 0.1 }, &params).unwrap();
        with_grad(&p, &[0.6, 0.8]);
        with_grad(&zero, &[0.0, 0.0]);
        lars.step(2.0).unwrap();
        // |p| = 5, |g| = 1: ratio = 1e-3 * 5 / (1 + 0.5) * 2; g + wd p = [0.9, 1.2].
        let ratio = 1e-3 * 5.0 / 1.5 * 2.0;
        near(&values(&p), &[3.0 - 0.9 * ratio, 4.0 - 1.2 * ratio]);
        near(&values(&zero), &[0.0, 0.0]);
        let before = values(&p);
        with_grad(&p, &[0.0, 0.0]);
        lars.step(0.0).unwrap();
        // A learning rate of zero still moves by what the buffer holds.
        near(&values(&p), &[before[0] - 0.9 * 0.9 * ratio, before[1] - 0.9 * 1.2 * ratio]);
    }

    /// Odd shapes, a parameter without a gradient, one whose norms are zero; kernels channels last as the model's.
    fn some_params(kind: Kind) -> Vec<(&'static str, Tensor)> {
        tch::manual_seed(5);
        let random = |shape: &[i64]| Tensor::randn(shape, (kind, Device::Cpu));
        let kernel = random(&[8, 3, 3, 4]).permute([0, 3, 1, 2]);
        let named = vec![
            ("encoder_q.0.bn1.bias", random(&[16])),
            ("encoder_q.0.conv1.weight", kernel),
            ("encoder_q.2.mlp.0.weight", random(&[7, 5])),
            ("encoder_q.2.mlp.1.weight", Tensor::zeros([9], (kind, Device::Cpu))),
            ("head.predictor.0.mlp.3.bias", random(&[3])),
            ("never.weight", random(&[2, 2])),
        ];
        named.into_iter().map(|(n, t)| (n, t.set_requires_grad(true))).collect()
    }

    #[test]
    fn all_at_once_gives_the_numbers_of_one_by_one() {
        let lars = Rule::Lars { momentum: 0.9, eta: 1e-3 };
        for (rule, decay) in [(lars, 1e-2), (lars, 0.0), (Rule::Sgd { momentum: 0.8 }, 1e-2)] {
            let settings = OptimizerSettings { rule, weight_decay: decay };
            let run = |walk: Walk| {
                let own = some_params(Kind::Double);
                let params: Vec<(&str, &Tensor)> = own.iter().map(|(n, t)| (*n, t)).collect();
                let mut optimizer = Optimizer::new(settings, &params).unwrap().walking(walk);
                for update in 0..4 {
                    tch::manual_seed(100 + update);
                    for (name, param) in &own[..5] {
                        let mut old = param.grad();
                        if old.defined() {
                            let _ = old.zero_();
                        }
                        let pull = if *name == "encoder_q.2.mlp.1.weight" { 0.0 } else { 1.0 };
                        (param * Tensor::randn_like(param) * pull).sum(Kind::Double).backward();
                    }
                    optimizer.step(2.0 - 0.1 * update as f64).unwrap();
                }
                let state = optimizer.state().unwrap();
                let params = own.iter().map(|(n, t)| ((*n).to_owned(), t.detach()));
                params.chain(state).collect::<Vec<_>>()
            };
            let (apart, together) = (run(Walk::OneByOne), run(Walk::Together));
            assert_eq!(apart.len(), together.len(), "the same tensors in the state");
            for ((name, a), (other, b)) in apart.iter().zip(&together) {
                let error = (a - b).abs().max().double_value(&[]);
                assert!(name == other && error < 1e-12, "{rule:?} {name}: {error:e}");
            }
        }
    }

    #[test]
    fn adamw_first_step_is_sign_of_gradient() {
        let rule = Rule::AdamW { betas: [0.9, 0.999], eps: 0.0 };
        let p = Tensor::from_slice(&[1.0, -2.0]).view([1, 2]).set_requires_grad(true);
        let mut adamw = Optimizer::new(OptimizerSettings { rule, weight_decay: 0.5 }, &[("w", &p)]).unwrap();
        with_grad(&p, &[10.0, -0.1]);
        adamw.step(0.1).unwrap();
        near(&values(&p), &[1.0 * 0.95 - 0.1, -2.0 * 0.95 + 0.1]);
    }

    #[test]
    fn saved_state_continues_exactly_and_foreign_state_is_refused() {
        for rule in [
            Rule::Lars { momentum: 0.9, eta: 1e-3 },
            Rule::Sgd { momentum: 0.9 },
            Rule::AdamW { betas: [0.9, 0.99], eps: 1e-8 },
        ] {
            let settings = OptimizerSettings { rule, weight_decay: 0.01 };
            let (straight, resumed) = (param(&[1.0, 2.0]), param(&[1.0, 2.0]));
            let mut one = Optimizer::new(settings, &[("w", &straight)]).unwrap();
            let mut two = Optimizer::new(settings, &[("w", &resumed)]).unwrap();
            for (step, grad) in [[0.3, -0.2], [0.1, 0.4], [-0.5, 0.2]].iter().enumerate() {
                with_grad(&straight, grad);
                one.step(0.1).unwrap();
                with_grad(&resumed, grad);
                two.step(0.1).unwrap();
                let mut state: BTreeMap<String, Tensor> =
                    two.state().unwrap().into_iter().map(|(n, t)| (n, t.copy())).collect();
                two = Optimizer::new(settings, &[("w", &resumed)]).unwrap();
                two.load(&mut state).unwrap();
                assert_eq!(values(&straight), values(&resumed), "step {step} of {rule:?}");
            }
            let mut foreign: BTreeMap<String, Tensor> = two.state().unwrap().into_iter().collect();
            foreign.insert("optimizer.momentum_buffer.x".into(), Tensor::zeros([2], F64));
            assert!(two.load(&mut foreign).is_err());
        }
    }
}
