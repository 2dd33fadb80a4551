//! The whole model: online encoder, momentum encoder, predictors, and its state by name.
//!
//! Invariants: the state's names are those of the published checkpoints (less the `backbone.` aliases),
//! and every list is in code-point order of the full names, on every rank alike. Parameters are changed
//! in place only, so handles stay good; running statistics are replaced by [`Model::commit_buffers`].

use crate::blueprint::{Blueprint, Parameter};
use crate::layer::{Sides, each};
use crate::loss::{l2_normalized, widened};
use crate::norm::Pass;
use crate::pyramid::PyramidLayout;
use crate::queue::{self, KeyQueue};
use crate::{
    BufferSet, Classifier, ComputeMode, Encoder, ModelError, ModelSpec, Objective, Predictor, detrand, init,
};
use mcl_types::Seed;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

const QUERY: &str = "encoder_q";
const KEY: &str = "encoder_k";

/// Online encoder, momentum encoder, and what the objective has besides: a predictor a level, a classifier a level, a queue.
#[derive(Debug)]
pub struct Model {
    spec: ModelSpec,
    kind: Kind,
    device: Device,
    encoder_q: Encoder,
    encoder_k: Encoder,
    predictors: Vec<Predictor>,
    classifiers: Vec<Classifier>,
    queue: Option<KeyQueue>,
    /// In name order.
    parameters: Vec<Parameter>,
    buffers: BufferSet,
    /// Parameters and buffers in name order.
    index: Vec<(String, Entry)>,
}

/// Where a name of the state leads.
#[derive(Debug, Clone, Copy)]
enum Entry {
    Parameter(usize),
    Mean(usize),
    Variance(usize),
    Count(usize),
    QueueKeys,
    QueuePlace,
}

/// A parameter of the momentum encoder beside the online one that it follows.
#[derive(Debug, Clone, Copy)]
pub struct MomentumPair<'a> {
    /// Full name in the momentum encoder.
    pub name: &'a str,
    /// `encoder_k.*`.
    pub key: &'a Tensor,
    /// `encoder_q.*`.
    pub query: &'a Tensor,
}

/// Weights of the momentum encoder under golden filling.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum GoldenKeyInit {
    /// Its own, so that a mixed-up target encoder shows.
    Hash,
    /// A copy of the online encoder's.
    Copy,
}

impl Model {
    /// A model with zero weights and untouched statistics, to be initialised or loaded.
    ///
    /// # Errors
    /// When the device cannot hold it.
    pub fn new(spec: ModelSpec, kind: Kind, device: Device) -> Result<Self, ModelError> {
        let mut plan = Blueprint::new(kind, device);
        let encoder_q = Encoder::new(&mut plan, QUERY, &spec)?;
        let (predicting, classes, queue) = match spec.objective {
            Objective::Mcl => (spec.levels, None, None),
            Objective::Supervised { classes } => (spec.levels, Some(classes), None),
            Objective::Moco { queue } => (0, None, Some(KeyQueue::new(queue, spec.embedding, kind, device)?)),
        };
        let predictors = (0..predicting)
            .map(|level| Predictor::new(&mut plan, &format!("head.predictor.{level}"), &spec))
            .collect::<Result<_, _>>()?;
        let classifiers = (0..spec.levels)
            .filter_map(|level| Some((level, classes?)))
            .map(|(level, n)| Classifier::new(&mut plan, &format!("head.classifier.{level}"), &spec, n))
            .collect::<Result<_, _>>()?;
        plan.set_trainable(false);
        let encoder_k = Encoder::new(&mut plan, KEY, &spec)?;
        let Blueprint { mut parameters, norms, .. } = plan;
        parameters.sort_by(|a, b| a.name.cmp(&b.name));
        let buffers = BufferSet::new(&norms, kind, device)?;
        let mut index: Vec<(String, Entry)> = Vec::with_capacity(parameters.len() + 3 * norms.len());
        index.extend(parameters.iter().enumerate().map(|(i, p)| (p.name.clone(), Entry::Parameter(i))));
        for (slot, site) in norms.iter().enumerate() {
            index.push((format!("{}.running_mean", site.path), Entry::Mean(slot)));
            index.push((format!("{}.running_var", site.path), Entry::Variance(slot)));
            index.push((format!("{}.num_batches_tracked", site.path), Entry::Count(slot)));
        }
        if queue.is_some() {
            index.push((queue::KEYS.to_owned(), Entry::QueueKeys));
            index.push((queue::PLACE.to_owned(), Entry::QueuePlace));
        }
        index.sort_by(|a, b| a.0.cmp(&b.0));
        Ok(Self {
            spec,
            kind,
            device,
            encoder_q,
            encoder_k,
            predictors,
            classifiers,
            queue,
            parameters,
            buffers,
            index,
        })
    }

    /// What the model was built from.
    pub const fn spec(&self) -> &ModelSpec {
        &self.spec
    }
    /// Kind of its parameters.
    pub const fn kind(&self) -> Kind {
        self.kind
    }
    /// Where they lie.
    pub const fn device(&self) -> Device {
        self.device
    }
    /// The online encoder.
    pub const fn encoder_q(&self) -> &Encoder {
        &self.encoder_q
    }
    /// The momentum encoder.
    pub const fn encoder_k(&self) -> &Encoder {
        &self.encoder_k
    }
    /// One a level.
    pub fn predictors(&self) -> &[Predictor] {
        &self.predictors
    }
    /// Of moco-v2 alone.
    pub const fn queue(&self) -> Option<&KeyQueue> {
        self.queue.as_ref()
    }

    /// The official initialisation under `seed`; the momentum encoder becomes a copy of the online one.
    /// Running statistics stay as they are.
    ///
    /// # Errors
    /// When the engine fails.
    pub fn initialize(&mut self, seed: Seed) -> Result<(), ModelError> {
        for parameter in self.parameters.iter().filter(|p| !is_key(&p.name)) {
            init::fill(parameter, seed)?;
        }
        if let Some(queue) = &self.queue {
            queue.initialize(seed)?;
        }
        self.copy_query_to_key()
    }

    /// The weights of the golden files (see [`detrand`]).
    ///
    /// # Errors
    /// When the engine fails.
    pub fn initialize_golden(&mut self, seed: u64, key: GoldenKeyInit) -> Result<(), ModelError> {
        for Parameter { name, tensor, .. } in &self.parameters {
            let shape: Vec<usize> = tensor.size().iter().filter_map(|d| usize::try_from(*d).ok()).collect();
            let values = detrand::parameter(seed, name, &shape);
            init::write(tensor, values.into_iter().map(f64::from))?;
        }
        match key {
            GoldenKeyInit::Hash => Ok(()),
            GoldenKeyInit::Copy => self.copy_query_to_key(),
        }
    }

    fn copy_query_to_key(&self) -> Result<(), ModelError> {
        for pair in self.momentum_pairs() {
            tch::no_grad(|| pair.key.shallow_clone().f_copy_(pair.query))?;
        }
        Ok(())
    }

    /// Online embeddings: by side, [P, 3, S, S] -> by level, [lanes * tiles, D].
    ///
    /// # Errors
    /// When a batch is not as `layout` says, or the engine or the normaliser fails.
    pub fn online<const N: usize>(
        &self,
        pictures: &Sides<N>,
        layout: &PyramidLayout,
        mode: ComputeMode,
        pass: &Pass,
    ) -> Result<[Vec<Tensor>; N], ModelError> {
        self.check_batch(pictures, layout)?;
        let levels = self.encoder_q.online(pictures, layout, mode, pass)?;
        pass.buffers.settle()?;
        Ok(by_side(levels))
    }

    /// Targets without a graph: by side, [P, 3, S, S] -> [lanes * N, D], L2-normalised rows of P5.
    ///
    /// # Errors
    /// As [`Model::online`].
    pub fn targets<const N: usize>(
        &self,
        pictures: &Sides<N>,
        layout: &PyramidLayout,
        mode: ComputeMode,
        pass: &Pass,
    ) -> Result<Sides<N>, ModelError> {
        self.check_batch(pictures, layout)?;
        tch::no_grad(|| {
            let top = self.encoder_k.top(pictures, layout, mode, pass)?;
            pass.buffers.settle()?;
            each(&top, |top| l2_normalized(&widened(top)?))
        })
    }

    /// Predictions of both sides: by side and level, [lanes * tiles, D].
    ///
    /// # Errors
    /// When the number of levels is another, or the engine or the normaliser fails.
    pub fn predict<const N: usize>(
        &self,
        rows: &[Vec<Tensor>; N],
        pass: &Pass,
    ) -> Result<[Vec<Tensor>; N], ModelError> {
        let levels = self.predictors.len();
        if let Some(other) = rows.iter().map(Vec::len).find(|found| *found != levels) {
            return Err(ModelError::Batch {
                what: "levels of embeddings".to_owned(),
                found: other.to_string(),
                expected: levels.to_string(),
            });
        }
        let mut predictions = Vec::with_capacity(levels);
        for (level, predictor) in self.predictors.iter().enumerate() {
            predictions
                .push(predictor.forward(&rows.each_ref().map(|side| side[level].shallow_clone()), pass)?);
        }
        pass.buffers.settle()?;
        Ok(by_side(predictions))
    }

    /// Class scores of both sides: by side and level, [lanes * tiles, D] -> [lanes * tiles, C].
    ///
    /// # Errors
    /// When the objective has no classifiers, or the engine fails.
    pub fn classify<const N: usize>(&self, rows: &[Vec<Tensor>; N]) -> Result<[Vec<Tensor>; N], ModelError> {
        let levels = size(self.classifiers.len());
        let found = rows.iter().map(|side| size(side.len())).max().unwrap_or(0);
        crate::error::check_shape("levels of embeddings for classifiers", &[found], &[levels])?;
        let scores = self.classifiers.iter().enumerate().map(|(level, classifier)| {
            classifier.forward(&rows.each_ref().map(|side| side[level].shallow_clone()))
        });
        Ok(by_side(scores.collect::<Result<_, _>>()?))
    }

    /// Online embeddings of whole pictures, not normalised: [n, 3, S, S] -> [n, D].
    ///
    /// # Errors
    /// When the objective has no global head, or the engine or the normaliser fails.
    pub fn global_query(&self, pictures: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
        let [rows] = self.encoder_q.global(&[pictures.shallow_clone()], pass)?;
        pass.buffers.settle()?;
        Ok(rows)
    }

    /// Keys of whole pictures without a graph: [n, 3, S, S] -> [n, D], rows of length 1.
    ///
    /// # Errors
    /// As [`Model::global_query`].
    pub fn global_key(&self, pictures: &Tensor, pass: &Pass) -> Result<Tensor, ModelError> {
        tch::no_grad(|| {
            let [rows] = self.encoder_k.global(&[pictures.shallow_clone()], pass)?;
            pass.buffers.settle()?;
            l2_normalized(&widened(&rows)?)
        })
    }

    fn check_batch(&self, pictures: &[Tensor], layout: &PyramidLayout) -> Result<(), ModelError> {
        let side = self.spec.image_size;
        crate::error::check_shape(
            "levels of the layout",
            &[size(layout.levels())],
            &[size(self.spec.levels)],
        )?;
        pictures.iter().try_for_each(|pictures| {
            let expected = [layout.pictures(), 3, side, side];
            crate::error::check_shape("pyramid batch", &pictures.size(), &expected)
        })
    }

    /// Trainable parameters (online encoder and predictors) in name order.
    pub fn trainable(&self) -> Vec<(&str, &Tensor)> {
        let own = self.parameters.iter().filter(|p| !is_key(&p.name));
        own.map(|p| (p.name.as_str(), &p.tensor)).collect()
    }

    /// Momentum parameters with the online ones that they follow, in name order.
    pub fn momentum_pairs(&self) -> Vec<MomentumPair<'_>> {
        // Both encoders are built by the same code, so their sorted names differ in the prefix only.
        let of = |prefix: &'static str| self.parameters.iter().filter(move |p| has_prefix(&p.name, prefix));
        of(KEY)
            .zip(of(QUERY))
            .map(|(k, q)| MomentumPair { name: &k.name, key: &k.tensor, query: &q.tensor })
            .collect()
    }

    /// Everything that has a name, in name order: parameters and committed buffers.
    pub fn state(&self) -> Vec<(&str, &Tensor)> {
        self.index.iter().filter_map(|(name, entry)| Some((name.as_str(), self.tensor(*entry)?))).collect()
    }

    fn tensor(&self, entry: Entry) -> Option<&Tensor> {
        match entry {
            Entry::Parameter(at) => self.parameters.get(at).map(|p| &p.tensor),
            Entry::Mean(slot) => self.buffers.slot(slot).ok().map(|s| s.mean()),
            Entry::Variance(slot) => self.buffers.slot(slot).ok().map(|s| s.var()),
            Entry::Count(slot) => self.buffers.slot(slot).ok().map(|s| s.count()),
            Entry::QueueKeys => self.queue.as_ref().map(KeyQueue::keys),
            Entry::QueuePlace => self.queue.as_ref().map(KeyQueue::place),
        }
    }

    /// Replaces the whole state. Names and shapes must be exactly this model's; kinds are converted.
    /// Nothing is changed when anything is refused.
    ///
    /// # Errors
    /// Lists every name that is missing, unexpected or of another shape.
    pub fn load(&mut self, state: &BTreeMap<String, Tensor>) -> Result<(), ModelError> {
        let own: BTreeMap<&str, &Tensor> = self.state().into_iter().collect();
        let mut problems = Vec::new();
        for (name, tensor) in &own {
            match state.get(*name) {
                None => problems.push(format!("`{name}` is missing")),
                Some(given) if given.size() != tensor.size() => {
                    let (found, expected) = (given.size(), tensor.size());
                    problems.push(format!("`{name}` has shape {found:?}, expected {expected:?}"));
                }
                Some(_) => {}
            }
        }
        let extra = state.keys().filter(|name| !own.contains_key(name.as_str()));
        problems.extend(extra.map(|name| format!("`{name}` is unexpected")));
        if !problems.is_empty() {
            return Err(ModelError::State { problems });
        }
        for (name, tensor) in own {
            if let Some(given) = state.get(name) {
                tch::no_grad(|| tensor.shallow_clone().f_copy_(given))?;
            }
        }
        Ok(())
    }

    /// The committed running statistics: for evaluation, not for writing.
    pub const fn buffers(&self) -> &BufferSet {
        &self.buffers
    }

    /// A copy for a step to write to. Dropping it undoes everything that the step did to it.
    ///
    /// # Errors
    /// When the device is out of memory.
    pub fn stage_buffers(&self) -> Result<BufferSet, ModelError> {
        self.buffers.fork()
    }

    /// Makes a staged copy the model's own. Call [`BufferSet::seal`] before, where failing is still allowed:
    /// what is left to do here then cannot fail.
    ///
    /// # Errors
    /// When the set is another model's, or calls were left unsealed and sealing fails; nothing has changed then.
    pub fn commit_buffers(&mut self, staged: BufferSet) -> Result<(), ModelError> {
        if !self.buffers.fits(&staged) {
            return Err(ModelError::Batch {
                what: "staged buffers".to_owned(),
                found: "a set of another model, kind or device".to_owned(),
                expected: "a copy of this model's".to_owned(),
            });
        }
        staged.seal()?;
        self.buffers = staged;
        Ok(())
    }
}

fn by_side<const N: usize>(levels: Vec<Sides<N>>) -> [Vec<Tensor>; N] {
    let mut all = std::array::from_fn(|_| Vec::with_capacity(levels.len()));
    for level in levels {
        for (side, rows) in all.iter_mut().zip(level) {
            side.push(rows);
        }
    }
    all
}

fn has_prefix(name: &str, prefix: &str) -> bool {
    name.strip_prefix(prefix).is_some_and(|rest| rest.starts_with('.'))
}

fn is_key(name: &str) -> bool {
    has_prefix(name, KEY)
}

fn size(count: usize) -> i64 {
    i64::try_from(count).unwrap_or(i64::MAX)
}
