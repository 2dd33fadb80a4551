//! The model of MCL (arXiv 2304.02010): ResNet, feature pyramid, projector, predictors, montages, losses.
//!
//! Role: everything that the method computes on one rank, as pure functions of weights, pictures and drawn
//! permutations. Left out on purpose: the network, the clock, the optimiser, and random choices other than
//! initial weights. Batch normalisation over several ranks comes in through [`BatchNormalizer`]. "MCL_SPEC"
//! in comments is the written specification of the method that the golden files belong to.
//!
//! One step, as the trainer drives it:
//! 1. [`Model::stage_buffers`], [`Pyramid::assemble`] for q and k;
//! 2. [`Model::targets`] of both sides, gathered over ranks in lane order;
//! 3. [`Model::online`], [`Model::predict`], of both sides; [`level_losses`]; backward;
//! 4. with the optimiser's update: [`BufferSet::seal`], [`Model::commit_buffers`].
#![forbid(unsafe_code)]
#![cfg_attr(test, allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, clippy::float_cmp))]

mod arrival;
mod backbone;
mod blueprint;
mod buffers;
mod classifier;
pub mod detrand;
mod encoder;
mod error;
mod fpn;
mod global;
mod init;
mod layer;
mod loss;
mod moco;
mod model;
mod norm;
mod predictor;
mod projector;
mod pyramid;
mod queue;
mod spec;
mod supervised;

pub use arrival::{numbers_on_device, on_device};
pub use backbone::Backbone;
pub use buffers::BufferSet;
pub use classifier::Classifier;
pub use encoder::Encoder;
pub use error::ModelError;
pub use fpn::{Fpn, PyramidMaps};
pub use layer::Sides;
pub use loss::{Contrast, LevelLoss, LevelLosses, l2_normalized, level_loss, level_losses};
pub use moco::moco_losses;
pub use model::{GoldenKeyInit, Model, MomentumPair};
pub use norm::{BatchNormalizer, EPSILON, FrozenBatchNorm, LocalBatchNorm, MOMENTUM, Pass};
pub use predictor::Predictor;
pub use projector::Projector;
pub use pyramid::{
    LaneSide, Normalization, Pyramid, PyramidLayout, decimate, level_views, montages, tile_pictures,
};
pub use queue::KeyQueue;
pub use spec::{ComputeMode, Depth, MAX_LEVELS, MAX_STRIDE, ModelConfig, ModelSpec, Objective};
pub use supervised::{Taught, supervised_losses};
