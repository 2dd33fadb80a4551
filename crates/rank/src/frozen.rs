//! A checkpoint's model, to look at and not to train.

use crate::{snapshot, weights};
use anyhow::{Context, Result};
use clap::{Args, ValueEnum};
use mcl_checkpoint::CheckpointClient;
use mcl_checkpoint_core::CheckpointDir;
use mcl_config::Job;
use mcl_model::{Encoder, Model};
use mcl_types::Step;
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
    #[arg(required_unless_present = "service")]
    path: Option<PathBuf>,
    #[command(flatten)]
    served: ServedArguments,
    /// The job file, where none lies in or above the checkpoint.
    #[arg(long)]
    job: Option<PathBuf>,
    /// Which encoder's weights.
    #[arg(long, value_enum, default_value_t = Which::Momentum)]
    pub(crate) encoder: Which,
}

/// A checkpoint that a service keeps.
#[derive(Debug, Args)]
struct ServedArguments {
    /// Where the checkpoint service is reached, with `--run-id`, `--step` and `--job`, instead of a path.
    #[arg(long, conflicts_with = "path", requires_all = ["run_id", "step", "job"])]
    service: Option<String>,
    /// The run there.
    #[arg(long, requires = "service")]
    run_id: Option<String>,
    /// Its state after so many steps.
    #[arg(long, requires = "service")]
    step: Option<u64>,
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
    resolved(&file)
}

/// The job file of a run.
fn resolved(file: &Path) -> Result<Job> {
    let text = std::fs::read_to_string(file).with_context(|| file.display().to_string())?;
    Ok(Job::parse(&text, &file.display().to_string())?)
}

/// Classes that a state's classifiers tell apart.
fn classes_of(state: &BTreeMap<String, Tensor>) -> Option<u32> {
    let (rows, _) = state.get("head.classifier.0.weight")?.size2().ok()?;
    u32::try_from(rows).ok()
}

/// Tensors of the newest good checkpoint of a folder.
async fn kept(path: &Path) -> Result<BTreeMap<String, Tensor>> {
    let dir = CheckpointDir::open(path)?;
    let step = dir.newest().await?.with_context(|| format!("{} holds no good checkpoint", path.display()))?;
    let tensors = dir.tensors(step).await?.1;
    tensors
        .into_iter()
        .map(|(name, t)| {
            let tensor = weights::tensor(&name, t.dtype, &t.shape, &t.bytes)?;
            Ok((name, tensor))
        })
        .collect()
}

/// Tensors of a checkpoint that a service keeps.
async fn served(url: &str, a: &ServedArguments) -> Result<BTreeMap<String, Tensor>> {
    let run = mcl_proto::run_id(a.run_id.as_deref().unwrap_or_default())?;
    let step = Step::new(a.step.unwrap_or_default());
    let identity = mcl_transport::Identity::from_environment()?;
    let client = CheckpointClient::lazy(url, identity.as_ref())?;
    snapshot::fetch(&client, &run, step)
        .await
        .with_context(|| format!("fetching the checkpoint after {} steps of `{run}` from {url}", step.get()))
}

/// The job, and its model with a checkpoint's weights, in f32 on the CPU.
pub(crate) fn load(a: &FrozenArguments) -> Result<(Job, Model)> {
    let beside = a.path.as_deref().unwrap_or(Path::new("."));
    let job = match (&a.served.service, &a.job) {
        // A run's own file is resolved: nothing overrides it.
        (Some(_), Some(file)) => resolved(file)?,
        (_, named) => job(named.as_deref(), beside)?,
    };
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let mut state = runtime.block_on(async {
        match a.served.service.as_deref() {
            Some(url) => served(url, &a.served).await,
            None => kept(beside).await,
        }
    })?;
    state.retain(|name, _| ["encoder_", "head.", "queue"].iter().any(|part| name.starts_with(part)));
    let mut model = Model::new(weights::model_spec(&job, classes_of(&state))?, Kind::Float, Device::Cpu)?;
    model.load(&state)?;
    Ok((job, model))
}
