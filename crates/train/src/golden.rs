//! Golden cases: whole steps compared with the numbers that the official code gave.
//!
//! A case folder holds `f64/meta.json` and `core.safetensors` (one pair a rank where the official world was
//! larger). Weights, pictures and probe vectors are not stored; [`mcl_model::detrand`] makes them again. The
//! error of a tensor is max|a - b| / max(max|b|, 1e-6); the statistics `sum` and `dot`, which cancel, are
//! taken relative to L2 norm x sqrt(elements).

use crate::{
    Halt, LaneInput, LearningRate, Momentum, NormScope, OptimizerSettings, Rates, Rule, StepInput, StepProbe,
    TrainError, Trainer, TrainerSettings,
};
use mcl_collective::Group;
use mcl_model::{ComputeMode, GoldenKeyInit, LaneSide, Model, ModelConfig, ModelSpec, detrand, level_views};
use mcl_types::{LaneLayout, Rank, Step};
use serde::Deserialize;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// Largest error that passes.
pub const TOLERANCE: f64 = 1e-9;
/// Entries of a tensor that a case stores at most.
const SAMPLES: usize = 64;

#[derive(Debug, Clone, Deserialize)]
struct Meta {
    config: Config,
    trainable: Vec<String>,
    key_params: Vec<String>,
    steps: Vec<MetaStep>,
}

#[derive(Debug, Clone, Deserialize)]
struct Config {
    depth: u32,
    image_size: i64,
    batch: u32,
    batch_sizes: Vec<i64>,
    downsample_ratios: Vec<i64>,
    fpn_channels: i64,
    hid_channels: i64,
    out_channels: i64,
    pred_hid_channels: i64,
    stacked_convs: usize,
    loss_weight: Vec<f64>,
    #[serde(rename = "T")]
    temperature: f64,
    base_momentum: f64,
    end_momentum: f64,
    lr: f64,
    min_lr: f64,
    warmup_iters: u64,
    warmup_ratio: f64,
    max_iters: u64,
    start_iter: u64,
    steps: u64,
    weight_decay: f64,
    sgd_momentum: f64,
    max_norm: f64,
    world_size: u32,
    k_init: String,
    seed: u64,
}

#[derive(Debug, Clone, Deserialize)]
struct MetaStep {
    lr: Vec<f64>,
    ema_momentum: f64,
    total_loss_this_rank: f64,
    grad_norm_before_clip: f64,
}

/// A case on disk.
#[derive(Debug)]
pub struct Case {
    name: String,
    folder: PathBuf,
    meta: Meta,
    norm: NormScope,
}

/// What a case gave.
#[derive(Debug, Clone, Default)]
pub struct Report {
    /// Largest error by kind of tensor.
    pub errors: BTreeMap<String, f64>,
}

impl Report {
    /// The largest of all.
    pub fn largest(&self) -> f64 {
        self.errors.values().copied().fold(0.0, f64::max)
    }
    /// Whether all are within [`TOLERANCE`]; an error that is no number is not.
    pub fn passes(&self) -> bool {
        !self.errors.is_empty() && self.errors.values().all(|e| *e <= TOLERANCE)
    }
    fn note(&mut self, kind: &str, error: f64) {
        let worst = self.errors.entry(kind.to_owned()).or_insert(0.0);
        // NaN must not hide.
        if error.is_nan() || error > *worst {
            *worst = if error.is_nan() { f64::INFINITY } else { error };
        }
    }
    /// The worse of two, kind by kind.
    pub fn merge(&mut self, other: &Self) {
        for (kind, error) in &other.errors {
            self.note(kind, *error);
        }
    }
}

/// How far a first step in f32 is from the stored f64 values: largest relative errors.
#[derive(Debug, Clone, Copy, PartialEq)]
pub struct FirstStep {
    /// Of a level's loss or a lane's total.
    pub loss_error: f64,
    /// Of the gradients' total norm.
    pub norm_error: f64,
}

/// Folders under `roots` that hold a case, sorted by name.
pub fn find_cases(roots: &[PathBuf]) -> Vec<PathBuf> {
    let mut cases: Vec<PathBuf> = roots
        .iter()
        .filter_map(|root| std::fs::read_dir(root).ok())
        .flat_map(|entries| entries.flatten().map(|e| e.path()))
        .filter(|p| p.join("f64/meta.json").is_file() || p.join("f64/meta_rank0.json").is_file())
        .collect();
    cases.sort();
    cases
}

impl Case {
    /// Reads a case's description.
    ///
    /// # Errors
    /// When it is not there or does not parse.
    pub fn open(folder: &Path) -> Result<Self, TrainError> {
        let name = folder.file_name().map_or_else(String::new, |n| n.to_string_lossy().into_owned());
        let bad = |reason: String| TrainError::Golden { case: folder.display().to_string(), reason };
        let single = folder.join("f64/meta.json");
        let path = if single.is_file() { single } else { folder.join("f64/meta_rank0.json") };
        let text = std::fs::read_to_string(&path).map_err(|e| bad(format!("{}: {e}", path.display())))?;
        let meta = serde_json::from_str(&text).map_err(|e| bad(format!("{}: {e}", path.display())))?;
        Ok(Self { name, folder: folder.to_owned(), meta, norm: NormScope::Job })
    }

    /// The case trained with statistics of another scope. Where there is one lane they are all the same.
    #[must_use]
    pub fn with_norm(self, norm: NormScope) -> Self {
        Self { norm, ..self }
    }

    /// The folder's name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Official ranks: lanes here.
    pub const fn world_size(&self) -> u32 {
        self.meta.config.world_size
    }

    fn bad(&self, reason: impl Into<String>) -> TrainError {
        TrainError::Golden { case: self.name.clone(), reason: reason.into() }
    }

    fn tensors(&self, lane: u32) -> Result<(BTreeMap<String, Tensor>, Meta), TrainError> {
        let suffix = if self.world_size() > 1 { format!("_rank{lane}") } else { String::new() };
        let path = self.folder.join(format!("f64/core{suffix}.safetensors"));
        let tensors =
            Tensor::read_safetensors(&path).map_err(|e| self.bad(format!("{}: {e}", path.display())))?;
        let path = self.folder.join(format!("f64/meta{suffix}.json"));
        let text =
            std::fs::read_to_string(&path).map_err(|e| self.bad(format!("{}: {e}", path.display())))?;
        let meta = serde_json::from_str(&text).map_err(|e| self.bad(e.to_string()))?;
        Ok((tensors.into_iter().collect(), meta))
    }

    fn spec(&self) -> Result<ModelSpec, TrainError> {
        let c = &self.meta.config;
        Ok(ModelSpec::new(ModelConfig {
            depth: c.depth,
            width: 64,
            image_size: c.image_size,
            fpn_channels: c.fpn_channels,
            projector_convs: c.stacked_convs,
            projector_channels: None,
            projector_hidden: c.hid_channels,
            embedding: c.out_channels,
            predictor_hidden: c.pred_hid_channels,
            levels: c.downsample_ratios.len(),
            temperature: c.temperature,
            level_weights: c.loss_weight.clone(),
            objective: mcl_model::Objective::Mcl,
        })?)
    }

    /// Trains the case's steps as `rank` of `world` ranks and compares everything that it stores. The lanes are
    /// dealt as always, so a case of two official ranks also runs as two lanes of one rank.
    ///
    /// # Errors
    /// When the case cannot be read or a step fails; a difference is no error but a number in the report.
    pub fn run(
        &self,
        compute: ComputeMode,
        rank: Rank,
        group: Option<Group>,
        device: Device,
    ) -> Result<Report, TrainError> {
        self.run_in(Kind::Double, self.meta.config.steps, compute, (rank, group), device)
    }

    /// The first step in f32, all lanes on one rank. Only what f32 can be held to is told: ReLUs that flip make single
    /// gradients differ by a tenth of the largest, whatever the program.
    ///
    /// # Errors
    /// As [`Case::run`].
    pub fn first_step_in_f32(&self, compute: ComputeMode, device: Device) -> Result<FirstStep, TrainError> {
        let report = self.run_in(Kind::Float, 1, compute, (Rank::new(0), None), device)?;
        let error = |kind: &str| report.errors.get(kind).copied().unwrap_or(f64::INFINITY);
        Ok(FirstStep { loss_error: error("losses").max(error("total loss")), norm_error: error("grad norm") })
    }

    fn run_in(
        &self,
        kind: Kind,
        steps: u64,
        compute: ComputeMode,
        (rank, group): (Rank, Option<Group>),
        device: Device,
    ) -> Result<Report, TrainError> {
        let c = &self.meta.config;
        let world = group.as_ref().map_or(1, Group::world);
        let lanes = LaneLayout::new(self.world_size(), world).map_err(|e| self.bad(e.to_string()))?;
        let mut model = Model::new(self.spec()?, kind, device)?;
        let key = if c.k_init == "copy" { GoldenKeyInit::Copy } else { GoldenKeyInit::Hash };
        model.initialize_golden(c.seed, key)?;
        let settings = TrainerSettings {
            lanes: self.world_size(),
            images_per_lane: c.batch,
            montages: Some(c.batch_sizes.clone()),
            compute,
            norm: self.norm,
            autocast: false,
            optimizer: OptimizerSettings {
                rule: Rule::Lars { momentum: c.sgd_momentum, eta: 1e-3 },
                weight_decay: c.weight_decay,
            },
            clip_norm: c.max_norm,
            seed: mcl_types::Seed::new(0),
            supervision: [1.0, 1.0],
        };
        let mut trainer = Trainer::new(model, settings)?;
        trainer.join(lanes, rank, group)?;
        let stored: Vec<_> = lanes.lanes_of(rank).map(|lane| self.tensors(lane)).collect::<Result<_, _>>()?;
        let mut report = Report::default();
        for step in 0..steps {
            self.step(&mut trainer, &stored, step, compute, &mut report)?;
        }
        Ok(report)
    }

    fn step(
        &self,
        trainer: &mut Trainer,
        stored: &[(BTreeMap<String, Tensor>, Meta)],
        step: u64,
        compute: ComputeMode,
        report: &mut Report,
    ) -> Result<(), TrainError> {
        let c = &self.meta.config;
        let at = c.start_iter + step;
        let lr = LearningRate {
            base: c.lr,
            min: c.min_lr,
            warmup_steps: c.warmup_iters,
            warmup_ratio: c.warmup_ratio,
            total: c.max_iters,
        };
        let momentum = Momentum { base: c.base_momentum, end: c.end_momentum, total: c.max_iters };
        let rates = Rates { lr: lr.at(at), momentum: momentum.at(at) };
        let place = (trainer.model().kind(), trainer.model().device());
        let first = trainer.layout().lanes().start;
        let lanes = (first..).zip(stored);
        let lanes: Vec<LaneInput> = lanes
            .map(|(lane, (tensors, _))| self.lane_input(step, lane, tensors, place))
            .collect::<Result<_, _>>()?;
        let mut probe = StepProbe::default();
        let input = StepInput { step: Step::new(step), lanes: &lanes, rates, halt: Halt::No, saving: false };
        let outcome = trainer.step_probed(&input, Some(&mut probe))?;
        let count = stored.len();
        let all_before = usize::try_from(first).unwrap_or(usize::MAX);
        for (place, (tensors, meta)) in stored.iter().enumerate() {
            let expected = meta.steps.get(usize::try_from(step).unwrap_or(usize::MAX));
            let expected = expected.ok_or_else(|| self.bad(format!("no step {step} in its meta.json")))?;
            report.note("lr", relative(rates.lr, expected.lr.first().copied().unwrap_or(f64::NAN)));
            report.note("momentum", relative(rates.momentum, expected.ema_momentum));
            report.note("grad norm", relative(outcome.grad_norm, expected.grad_norm_before_clip));
            let losses = outcome.lane_losses.get(all_before + place).cloned().unwrap_or_default();
            report.note("total loss", relative(losses.iter().sum(), expected.total_loss_this_rank));
            let compare = Compare { case: self, tensors, step, report };
            compare.lane(&probe, &losses, place, count)?;
        }
        if let Some((tensors, _)) = stored.first() {
            let mut compare = Compare { case: self, tensors, step, report };
            compare.parameters(trainer, &probe)?;
            compare.buffers(trainer, compute)?;
        }
        Ok(())
    }

    fn lane_input(
        &self,
        step: u64,
        lane: u32,
        tensors: &BTreeMap<String, Tensor>,
        (kind, device): (Kind, Device),
    ) -> Result<LaneInput, TrainError> {
        let c = &self.meta.config;
        let levels = c.downsample_ratios.len();
        let side = usize::try_from(c.image_size).unwrap_or(0);
        let images = usize::try_from(c.batch).unwrap_or(0);
        let pictures =
            detrand::Pictures { seed: c.seed, step, rank: u64::from(lane), images, views: 2 * levels, side };
        let shape = [i64::from(c.batch), 2 * size(levels), 3, c.image_size, c.image_size];
        let all = Tensor::f_from_slice(&pictures.values())?
            .f_reshape(shape)?
            .f_to_kind(kind)?
            .f_to_device(device)?;
        let lane_side = |name: &str, first: usize| -> Result<LaneSide, TrainError> {
            let views = level_views(&all.f_narrow(1, size(first), size(levels))?)?;
            let permutations = (1..levels)
                .map(|level| {
                    let key = format!("step{step}.perm.{name}{level}");
                    let drawn = tensors.get(&key).ok_or_else(|| self.bad(format!("`{key}` is missing")))?;
                    Ok(Vec::<i64>::try_from(drawn.f_reshape([-1])?)?)
                })
                .collect::<Result<_, TrainError>>()?;
            Ok(LaneSide { views, permutations })
        };
        Ok(LaneInput {
            q: lane_side("q", 0)?,
            k: lane_side("k", levels)?,
            notes: Vec::new(),
            classes: Vec::new(),
        })
    }
}

struct Compare<'a> {
    case: &'a Case,
    tensors: &'a BTreeMap<String, Tensor>,
    step: u64,
    report: &'a mut Report,
}

impl Compare<'_> {
    fn stored(&self, key: &str) -> Result<&Tensor, TrainError> {
        let key = format!("step{}.{key}", self.step);
        self.tensors.get(&key).ok_or_else(|| self.case.bad(format!("`{key}` is missing")))
    }

    fn tensor(&mut self, kind: &str, found: &Tensor, key: &str) -> Result<(), TrainError> {
        let expected = self.stored(key)?;
        let error = error_of(found, expected)?;
        self.report.note(kind, error);
        Ok(())
    }

    /// One lane's losses, cosines, rows, predictions, targets and labels.
    fn lane(
        mut self,
        probe: &StepProbe,
        losses: &[f64],
        place: usize,
        lanes: usize,
    ) -> Result<(), TrainError> {
        let levels = losses.len() / 2;
        let lane_of = |rows: &Tensor| -> Result<Tensor, TrainError> {
            let share = rows.size()[0] / size(lanes);
            Ok(rows.f_narrow(0, size(place) * share, share)?)
        };
        for (side, name) in ["q", "k"].into_iter().enumerate() {
            let own = Tensor::f_from_slice(&losses[side * levels..(side + 1) * levels])?;
            self.tensor("losses", &own, &format!("losses.{name}"))?;
            for (what, cosines) in [("pos_cos", &probe.pos_cos), ("neg_cos", &probe.neg_cos)] {
                if let Some(cosines) = cosines {
                    let own = cosines.f_select(0, size(side))?.f_select(1, size(place))?;
                    self.tensor("cosines", &own, &format!("{what}.{name}"))?;
                }
            }
            // The targets that q rows meet are stored under k, and the other way round.
            let other = if name == "q" { "k" } else { "q" };
            self.tensor("targets", &probe.targets[side], &format!("target_all.{other}"))?;
            for level in 0..levels {
                let key = format!("{name}{level}");
                self.tensor(
                    "projector rows",
                    &lane_of(&probe.online[side][level])?,
                    &format!("online.{key}"),
                )?;
                self.tensor(
                    "predictions",
                    &lane_of(&probe.predictions[side][level])?,
                    &format!("pred.{key}"),
                )?;
                let labels = lane_of(&probe.labels[side][level])?;
                let lane = self.stored(&format!("label.{key}"))?.f_to_device(labels.device())?;
                // Stored before the lane's offset is added.
                let offset = labels.f_sub(&lane)?;
                let same = offset.f_max()?.f_eq_tensor(&offset.f_min()?)?.f_int64_value(&[])?;
                let whole = offset.f_max()?.f_int64_value(&[])? % i64::from(self.case.meta.config.batch);
                self.report.note("labels", if same == 1 && whole == 0 { 0.0 } else { f64::INFINITY });
            }
        }
        Ok(())
    }

    fn parameters(&mut self, trainer: &Trainer, probe: &StepProbe) -> Result<(), TrainError> {
        let model = trainer.model();
        let grads: BTreeMap<&str, &Tensor> =
            model.trainable().into_iter().map(|(name, _)| name).zip(&probe.grads).collect();
        let state: BTreeMap<&str, &Tensor> = model.state().into_iter().collect();
        let optimizer: BTreeMap<String, Tensor> = trainer.optimizer_state()?.into_iter().collect();
        let buffers: BTreeMap<&str, &Tensor> = optimizer
            .iter()
            .filter_map(|(name, t)| Some((name.strip_prefix("optimizer.momentum_buffer.")?, t)))
            .collect();
        let case = self.case;
        let (trainable, keys) = (&case.meta.trainable, &case.meta.key_params);
        self.table("gradients", "grad", trainable, &grads)?;
        self.table("weights after", "post.q", trainable, &state)?;
        self.table("momentum encoder after", "post.k", keys, &state)?;
        self.table("optimiser after", "post.momentum_buffer", trainable, &buffers)
    }

    /// Statistics, samples and, where stored, the full tensors of a list of names.
    fn table(
        &mut self,
        kind: &str,
        prefix: &str,
        names: &[String],
        found: &BTreeMap<&str, &Tensor>,
    ) -> Result<(), TrainError> {
        let (stats, samples) = (
            rows(self.stored(&format!("{prefix}.stats"))?)?,
            rows(self.stored(&format!("{prefix}.samples"))?)?,
        );
        let seed = self.case.meta.config.seed;
        for (row, name) in names.iter().enumerate() {
            let tensor =
                found.get(name.as_str()).ok_or_else(|| self.case.bad(format!("no `{name}` in the model")))?;
            let values: Vec<f64> = flat(tensor)?;
            let expected = stats.get(row).ok_or_else(|| self.case.bad("fewer rows than names"))?;
            let of_gradient = matches!(prefix, "grad" | "post.momentum_buffer");
            let floor = if of_gradient && is_noise(name) { 1.0 } else { 1e-6 };
            self.report.note(
                kind,
                statistics_error(&values, expected, &detrand::probe(seed, name, values.len()), floor),
            );
            let taken = sampled(&values);
            let expected = samples.get(row).cloned().unwrap_or_default();
            let largest = values.iter().fold(0.0_f64, |m, v| m.max(v.abs())).max(floor);
            let error = taken.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max) / largest;
            self.report.note(kind, error);
            let full = format!("step{}.{prefix}.full.{name}", self.step);
            if let Some(full) = self.tensors.get(&full) {
                let expected = flat(full)?;
                let error = values.iter().zip(&expected).map(|(a, b)| (a - b).abs()).fold(0.0, f64::max);
                let largest = expected.iter().fold(0.0_f64, |m, v| m.max(v.abs())).max(floor);
                self.report
                    .note(kind, if values.len() == expected.len() { error / largest } else { f64::INFINITY });
            }
        }
        Ok(())
    }

    fn buffers(&mut self, trainer: &Trainer, compute: ComputeMode) -> Result<(), TrainError> {
        let prefix = format!("step{}.post.buf.", self.step);
        let state: BTreeMap<&str, &Tensor> = trainer.model().state().into_iter().collect();
        for (key, expected) in self.tensors {
            let Some(name) = key.strip_prefix(&prefix) else { continue };
            // What exact mode leaves out are exactly these running statistics (MCL_SPEC section 8).
            let left_out = name.starts_with("encoder_k.1.") || name.starts_with("encoder_k.2.");
            if compute != ComputeMode::Official && left_out {
                continue;
            }
            let found = state.get(name).ok_or_else(|| self.case.bad(format!("no `{name}` in the model")))?;
            self.report.note("buffers", error_of(found, expected)?);
        }
        Ok(())
    }
}

/// Biases before a batch norm have no gradient but rounding noise.
fn is_noise(name: &str) -> bool {
    let projector = matches!(name, "encoder_q.2.mlp.0.bias" | "encoder_q.2.mlp.3.bias");
    projector || (name.starts_with("head.predictor.") && name.ends_with(".mlp.0.bias"))
}

fn size(n: usize) -> i64 {
    i64::try_from(n).unwrap_or(i64::MAX)
}

fn relative(found: f64, expected: f64) -> f64 {
    (found - expected).abs() / expected.abs().max(1e-6)
}

fn flat(tensor: &Tensor) -> Result<Vec<f64>, TrainError> {
    let host = tensor.f_detach()?.f_to_device(Device::Cpu)?.f_to_kind(Kind::Double)?.f_reshape([-1])?;
    Ok(Vec::try_from(host)?)
}

fn rows(tensor: &Tensor) -> Result<Vec<Vec<f64>>, TrainError> {
    Ok(Vec::try_from(tensor.f_to_kind(Kind::Double)?)?)
}

fn error_of(found: &Tensor, expected: &Tensor) -> Result<f64, TrainError> {
    let (a, b) = (flat(found)?, flat(expected)?);
    if a.len() != b.len() {
        return Ok(f64::INFINITY);
    }
    let largest = b.iter().fold(0.0_f64, |m, v| m.max(v.abs())).max(1e-6);
    let mut error = 0.0_f64;
    for (a, b) in a.iter().zip(&b) {
        let difference = (a - b).abs();
        error = if difference.is_nan() { f64::INFINITY } else { error.max(difference) };
    }
    Ok(error / largest)
}

/// Entries at flat index floor(j n / min(64, n)), padded with zeros.
fn sampled(values: &[f64]) -> Vec<f64> {
    let count = values.len().min(SAMPLES);
    let mut taken: Vec<f64> = (0..count).map(|j| values[j * values.len() / count]).collect();
    taken.resize(SAMPLES, 0.0);
    taken
}

/// (L2 norm, sum, dot with the probe, max|.|) against a stored row.
#[expect(clippy::cast_precision_loss, reason = "tensor sizes stay far below 2^53")]
fn statistics_error(values: &[f64], expected: &[f64], probe: &[f64], floor: f64) -> f64 {
    let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
    let sum: f64 = values.iter().sum();
    let dot: f64 = values.iter().zip(probe).map(|(v, p)| v * p).sum();
    let largest = values.iter().fold(0.0_f64, |m, v| m.max(v.abs()));
    let [e_norm, e_sum, e_dot, e_largest] =
        [0, 1, 2, 3].map(|i| expected.get(i).copied().unwrap_or(f64::NAN));
    let scale = (e_norm * (values.len() as f64).sqrt()).max(floor);
    [
        (norm - e_norm).abs() / e_norm.max(floor),
        (sum - e_sum).abs() / scale,
        (dot - e_dot).abs() / scale,
        (largest - e_largest).abs() / e_largest.max(floor),
    ]
    .into_iter()
    .fold(0.0, |worst, e| if e.is_nan() { f64::INFINITY } else { worst.max(e) })
}
