//! A checkpoint's model, to look at and not to train.

use crate::weights;
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use mcl_checkpoint_core::CheckpointDir;
use mcl_config::Job;
use mcl_model::{Encoder, Model};
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Device, Kind, Tensor};

/// One of the two encoders.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub(crate) enum Which {
    /// The momentum encoder.
    Momentum,
    /// The online encoder.
    Online,
}

impl Which {
    pub(crate) const fn of(self, model: &Model) -> &Encoder {
        match self {
            Self::Momentum => model.encoder_k(),
            Self::Online => model.encoder_q(),
        }
    }

    /// What its tensors' names begin with.
    pub(crate) const fn prefix(self) -> &'static str {
        match self {
            Self::Momentum => "encoder_k.",
            Self::Online => "encoder_q.",
        }
    }

    /// What to add where norms of its pyramid never saw data.
    pub(crate) const fn whole_pyramid(self) -> &'static str {
        match self {
            Self::Momentum => "; --encoder online runs its whole pyramid",
            Self::Online => "",
        }
    }
}

/// Norms of an encoder that never saw data, so that maps behind them are not normalised; the momentum encoder trains with
/// the top of its pyramid alone.
pub(crate) fn unseen(model: &Model, which: Which) -> Result<Vec<&str>> {
    let mut unseen = Vec::new();
    for (name, tensor) in model.state() {
        if name.starts_with(which.prefix())
            && let Some(norm) = name.strip_suffix(".num_batches_tracked")
            && tensor.f_int64_value(&[])? == 0
        {
            unseen.push(norm);
        }
    }
    Ok(unseen)
}

/// Whose weights are looked at.
#[derive(Debug, Args)]
pub(crate) struct FrozenArguments {
    /// Run directory (its newest good checkpoint) or one checkpoint.
    path: PathBuf,
    /// The job file, where none lies in or above the checkpoint.
    #[arg(long)]
    job: Option<PathBuf>,
    /// Which encoder's weights.
    #[arg(long, value_enum, default_value_t = Which::Momentum)]
    pub(crate) encoder: Which,
}

/// The named job file, else the one that a run directory or checkpoint belongs to.
fn job(named: Option<&Path>, beside: &Path) -> Result<Job> {
    if let Some(path) = named {
        return Ok(Job::load(path, &[])?);
    }
    let full = std::fs::canonicalize(beside).with_context(|| beside.display().to_string())?;
    let file = full.ancestors().take(3).map(|up| up.join("job.toml")).find(|p| p.is_file());
    let file =
        file.with_context(|| format!("no job.toml in {} or the two folders above", beside.display()))?;
    Ok(Job::parse(&std::fs::read_to_string(&file)?, &file.display().to_string())?)
}

/// Classes that a state's classifiers tell apart.
fn classes_of(state: &BTreeMap<String, Tensor>) -> Option<u32> {
    let (rows, _) = state.get("head.classifier.0.weight")?.size2().ok()?;
    u32::try_from(rows).ok()
}

/// The job, and its model with the newest good checkpoint's weights, in f32 on the CPU.
pub(crate) fn load(a: &FrozenArguments) -> Result<(Job, Model)> {
    let job = job(a.job.as_deref(), &a.path)?;
    let path = &a.path;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let tensors = runtime.block_on(async {
        let dir = CheckpointDir::open(path)?;
        let step =
            dir.newest().await?.with_context(|| format!("{} holds no good checkpoint", path.display()))?;
        anyhow::Ok(dir.tensors(step).await?.1)
    })?;
    let mut state = BTreeMap::new();
    for (name, t) in &tensors {
        if ["encoder_", "head.", "queue"].iter().any(|part| name.starts_with(part)) {
            state.insert(name.clone(), weights::tensor(name, t.dtype, &t.shape, &t.bytes)?);
        }
    }
    let mut model = Model::new(weights::model_spec(&job, classes_of(&state))?, Kind::Float, Device::Cpu)?;
    model.load(&state)?;
    Ok((job, model))
}
