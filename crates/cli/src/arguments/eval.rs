//! Arguments of `mcl eval`.

use super::Encoder;
use clap::{Args, Subcommand};
use std::path::PathBuf;

#[derive(Debug, Subcommand)]
pub(crate) enum EvalCommand {
    /// k nearest neighbours on object crops and scene boxes, with random weights and raw pixels beside.
    Knn(KnnArguments),
    /// A linear probe (logistic regression) on the same features, with random weights and raw pixels beside.
    Linear(LinearArguments),
    /// Both, from one look at the pictures.
    Both(BothArguments),
    /// The feature maps C2..C5 and P2..P5 of one picture, as a safetensors file.
    Features(FeaturesArguments),
}

/// Whose weights are looked at.
#[derive(Debug, Args)]
pub(crate) struct FrozenArguments {
    /// Run directory (its newest good checkpoint) or one checkpoint.
    pub(crate) path: PathBuf,
    /// Which encoder.
    #[arg(long, value_enum, default_value_t = Encoder::Momentum)]
    pub(crate) encoder: Encoder,
    /// The job file, where none lies in or above the checkpoint.
    #[arg(long)]
    pub(crate) job: Option<PathBuf>,
}

/// Whose features are judged, on what.
#[derive(Debug, Args)]
pub(crate) struct JudgedArguments {
    #[command(flatten)]
    pub(crate) weights: FrozenArguments,
    /// Objects to learn from: a folder with `annotations.json` (each box is one), or folders of classes, shards or a list
    /// with labels (each picture is one) ...
    #[arg(long)]
    pub(crate) train: PathBuf,
    /// ... and those to classify.
    #[arg(long)]
    pub(crate) test: PathBuf,
    /// Folder of scenes with `annotations.json`: even pictures are learned from, odd ones classified, box by box.
    #[arg(long)]
    pub(crate) scenes: Option<PathBuf>,
    /// Scale scenes to this shorter side in pixels, as detectors do; without it they are looked at as they are.
    #[arg(long, value_name = "PIXELS", requires = "scenes", value_parser = clap::value_parser!(u32).range(32..=4096))]
    pub(crate) short_side: Option<u32>,
    /// Also each level of backbone and pyramid alone: on boxes of scenes, else on object crops.
    #[arg(long)]
    pub(crate) levels: bool,
    /// Answer as one JSON object.
    #[arg(long)]
    pub(crate) json: bool,
}

#[derive(Debug, Args)]
pub(crate) struct KnnArguments {
    #[command(flatten)]
    pub(crate) judged: JudgedArguments,
    #[command(flatten)]
    pub(crate) neighbours: NeighboursArguments,
}

#[derive(Debug, Args)]
pub(crate) struct LinearArguments {
    #[command(flatten)]
    pub(crate) judged: JudgedArguments,
    #[command(flatten)]
    pub(crate) probe: ProbeArguments,
}

#[derive(Debug, Args)]
pub(crate) struct BothArguments {
    #[command(flatten)]
    pub(crate) judged: JudgedArguments,
    #[command(flatten)]
    pub(crate) neighbours: NeighboursArguments,
    #[command(flatten)]
    pub(crate) probe: ProbeArguments,
}

#[derive(Debug, Args)]
pub(crate) struct NeighboursArguments {
    /// Neighbours.
    #[arg(long, default_value_t = 20)]
    pub(crate) k: u32,
}

#[derive(Debug, Args)]
pub(crate) struct ProbeArguments {
    /// Which fifth of the training pictures chooses the penalty.
    #[arg(long, default_value_t = 0)]
    pub(crate) seed: u64,
}

#[derive(Debug, Args)]
pub(crate) struct FeaturesArguments {
    #[command(flatten)]
    pub(crate) weights: FrozenArguments,
    /// The picture; its sides are rounded up to whole cells of the coarsest map (32 pixels).
    #[arg(long)]
    pub(crate) picture: PathBuf,
    /// The file to write: `picture` as the network saw it, `c2` .. `c5`, `p2` .. `p5`.
    #[arg(long)]
    pub(crate) out: PathBuf,
    /// Answer as one JSON object: the file, and the shape of every map in it.
    #[arg(long)]
    pub(crate) json: bool,
}
