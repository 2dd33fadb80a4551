//! Small models, batches and one forward and backward pass over them.

use mcl_model::{
    BatchNormalizer, BufferSet, ComputeMode, Contrast, GoldenKeyInit, LaneSide, LevelLosses, Model,
    ModelConfig, ModelSpec, Pass, Pyramid, PyramidLayout, detrand, level_losses, level_views,
};
use std::collections::BTreeMap;
use std::ops::Range;
use tch::{Device, Kind, Tensor};

/// A model that is quick in f64.
pub fn tiny_config(levels: usize) -> ModelConfig {
    ModelConfig {
        depth: 18,
        width: 8,
        image_size: 64,
        fpn_channels: 8,
        projector_convs: 1,
        projector_channels: Some(12),
        projector_hidden: 16,
        embedding: 8,
        predictor_hidden: 16,
        levels,
        temperature: 0.5,
        level_weights: [0.5, 0.25, 0.125, 0.125][..levels].to_vec(),
        objective: mcl_model::Objective::Mcl,
    }
}

pub fn golden_model(config: ModelConfig, seed: u64, kind: Kind) -> Model {
    // Tests run side by side: threads that wait for each other in a loop would take the cores from the rest.
    tch::set_num_threads(1);
    let mut model = Model::new(ModelSpec::new(config).unwrap(), kind, Device::Cpu).unwrap();
    model.initialize_golden(seed, GoldenKeyInit::Hash).unwrap();
    model
}

/// Full-size pictures of one lane: [N, 2 L, 3, S, S], q views then k views.
pub fn lane_pictures(seed: u64, lane: u64, images: usize, levels: usize, side: usize, kind: Kind) -> Tensor {
    let batch = detrand::Pictures { seed, step: 0, rank: lane, images, views: 2 * levels, side };
    let shape = [images, 2 * levels, 3, side, side].map(|d| i64::try_from(d).unwrap());
    Tensor::from_slice(&batch.values()).reshape(shape).to_kind(kind)
}

/// Both sides of a rank's batch.
pub struct Batch {
    pub layout: PyramidLayout,
    pub q: Pyramid,
    pub k: Pyramid,
}

/// One side of one lane from its full-size pictures.
pub fn side(full: &Tensor, levels: usize, is_k: bool, permutations: Vec<Vec<i64>>) -> LaneSide {
    let levels = i64::try_from(levels).unwrap();
    let views = full.narrow(1, if is_k { levels } else { 0 }, levels);
    LaneSide { views: level_views(&views).unwrap(), permutations }
}

/// A drawn order for every level from 1 on.
pub fn permutations(layout: &PyramidLayout, seed: u64) -> Vec<Vec<i64>> {
    (1..layout.levels())
        .map(|level| {
            let mut stream = mcl_types::SplitMix64::new(seed * 31 + u64::try_from(level).unwrap());
            let tiles = usize::try_from(layout.tiles(level)).unwrap();
            stream.permutation(tiles).into_iter().map(|p| i64::try_from(p).unwrap()).collect()
        })
        .collect()
}

/// Batch of the lanes `lanes`, N = `images`; a lane's content does not depend on the others.
pub fn batch(spec: &ModelSpec, images: u32, lanes: Range<u32>) -> Batch {
    let layout = PyramidLayout::new(spec, images, lanes.clone()).unwrap();
    let sides = |is_k: bool| -> Vec<LaneSide> {
        lanes
            .clone()
            .map(|lane| {
                let (lane, n) = (u64::from(lane), usize::try_from(images).unwrap());
                let size = usize::try_from(spec.image_size).unwrap();
                let full = lane_pictures(5, lane, n, spec.levels, size, Kind::Double);
                side(&full, spec.levels, is_k, permutations(&layout, 2 * lane + u64::from(is_k) + 1))
            })
            .collect()
    };
    let assemble = |is_k| Pyramid::assemble(&layout, &sides(is_k)).unwrap();
    Batch { q: assemble(false), k: assemble(true), layout }
}

/// What one pass gave.
pub struct Outcome {
    pub losses: LevelLosses,
    pub online: [Vec<Tensor>; 2],
    pub predictions: [Vec<Tensor>; 2],
    pub targets: [Tensor; 2],
    pub gradients: BTreeMap<String, Tensor>,
    pub buffers: BufferSet,
}

/// Forward and backward in the official order; `targets` overrides the batch's own (q, k).
pub fn pass(
    model: &Model,
    batch: &Batch,
    mode: ComputeMode,
    norm: &dyn BatchNormalizer,
    targets: Option<&[Tensor; 2]>,
) -> Outcome {
    let buffers = model.stage_buffers().unwrap();
    let (with, layout) = (Pass::new(norm, &buffers), &batch.layout);
    let pictures = [&batch.q, &batch.k].map(|side| side.pictures.shallow_clone());
    let online = model.online(&pictures, layout, mode, &with).unwrap();
    let own = model.targets(&pictures, layout, mode, &with).unwrap();
    let all = targets.unwrap_or(&own);
    let predictions = model.predict(&online, &with).unwrap();
    let [pq, pk] = &predictions;
    let losses = level_losses(
        model.spec(),
        layout.lane_count(),
        &Contrast { predictions: pq, targets: &all[1], labels: &batch.q.labels },
        &Contrast { predictions: pk, targets: &all[0], labels: &batch.k.labels },
    )
    .unwrap();
    losses.total(1.0).unwrap().backward();
    let mut gradients = BTreeMap::new();
    for (name, tensor) in model.trainable() {
        let gradient = tensor.grad();
        if gradient.defined() {
            gradients.insert(name.to_owned(), gradient.copy());
            tensor.shallow_clone().zero_grad();
        }
    }
    Outcome { losses, online, predictions, targets: own, gradients, buffers }
}

/// max|a - b| / max(max|b|, 1e-6).
pub fn error(found: &Tensor, expected: &Tensor) -> f64 {
    assert_eq!(found.size(), expected.size());
    let (found, expected) = (found.detach().to_kind(Kind::Double), expected.detach().to_kind(Kind::Double));
    let largest = (&found - &expected).abs().max().double_value(&[]);
    largest / expected.abs().max().double_value(&[]).max(1e-6)
}

/// Largest error over two sets of gradients; a gradient that one side lacks counts as zero there.
pub fn gradient_error(found: &BTreeMap<String, Tensor>, expected: &BTreeMap<String, Tensor>) -> f64 {
    let mut worst = 0.0_f64;
    for name in found.keys().chain(expected.keys()) {
        worst = worst.max(match (found.get(name), expected.get(name)) {
            (Some(found), Some(expected)) => error(found, expected),
            (Some(one), None) | (None, Some(one)) => one.abs().max().double_value(&[]),
            (None, None) => 0.0,
        });
    }
    worst
}
