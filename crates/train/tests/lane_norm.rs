//! `norm = "lane"` against the same step written out plainly.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_model::{
    ComputeMode, Contrast, LaneSide, LocalBatchNorm, Model, ModelConfig, ModelSpec, Pass, Pyramid,
    PyramidLayout, level_losses,
};
use mcl_train::{
    Halt, LaneInput, NormScope, OptimizerSettings, Rates, Rule, StepInput, StepProbe, Trainer,
    TrainerSettings,
};
use mcl_types::{Seed, SplitMix64, Step};
use tch::{Device, Kind, Tensor, no_grad};

const F64: (Kind, Device) = (Kind::Double, Device::Cpu);
const N: u32 = 4;

fn model() -> Model {
    tch::set_num_threads(1);
    let spec = ModelSpec::new(ModelConfig {
        depth: 18,
        width: 4,
        image_size: 32,
        fpn_channels: 8,
        projector_convs: 1,
        projector_hidden: 16,
        embedding: 8,
        predictor_hidden: 16,
        levels: 2,
        level_weights: vec![0.5, 0.5],
        ..ModelConfig::default()
    });
    let mut model = Model::new(spec.unwrap(), Kind::Double, Device::Cpu).unwrap();
    model.initialize(Seed::new(3)).unwrap();
    model
}

fn trainer(lanes: u32, compute: ComputeMode) -> Trainer {
    let settings = TrainerSettings {
        lanes,
        images_per_lane: N,
        montages: None,
        compute,
        norm: NormScope::Lane,
        autocast: false,
        optimizer: OptimizerSettings { rule: Rule::Lars { momentum: 0.9, eta: 1e-3 }, weight_decay: 1e-5 },
        clip_norm: 0.0,
        seed: mcl_types::Seed::new(0),
        supervision: [1.0, 1.0],
    };
    Trainer::new(model(), settings).unwrap()
}

fn side(layout: &PyramidLayout, seed: u64) -> LaneSide {
    tch::manual_seed(i64::try_from(seed).unwrap());
    // Lanes of unlike brightness: their statistics differ.
    let bright = 1.0 + 0.5 * f64::from(u32::try_from(seed).unwrap());
    let views = (0..2).map(|l| Tensor::rand([i64::from(N), 3, 32 >> l, 32 >> l], F64) * bright).collect();
    let tiles = usize::try_from(layout.tiles(1)).unwrap();
    let drawn = SplitMix64::new(seed).permutation(tiles).into_iter();
    LaneSide { views, permutations: vec![drawn.map(|p| i64::try_from(p).unwrap()).collect()] }
}

fn sides(layout: &PyramidLayout, lane: u32) -> [LaneSide; 2] {
    [0, 1].map(|s| side(layout, 2 * u64::from(lane) + s))
}

/// Gradients by trainable parameter, the running statistics' mean, and each lane's summed loss.
fn plainly(lanes: u32, compute: ComputeMode) -> (Vec<Tensor>, Tensor, Vec<f64>) {
    let model = model();
    let layouts: Vec<_> =
        (0..lanes).map(|lane| PyramidLayout::new(model.spec(), N, lane..lane + 1).unwrap()).collect();
    let buffers: Vec<_> = (0..lanes).map(|_| model.stage_buffers().unwrap()).collect();
    let mut pyramids = Vec::new();
    let mut targets = [Vec::new(), Vec::new()];
    for (lane, (layout, buffers)) in (0..).zip(layouts.iter().zip(&buffers)) {
        let pass = Pass::new(&LocalBatchNorm, buffers);
        let both = sides(layout, lane).map(|s| Pyramid::assemble(layout, &[s]).unwrap());
        for (kept, pyramid) in targets.iter_mut().zip(&both) {
            kept.extend(model.targets(&[pyramid.pictures.shallow_clone()], layout, compute, &pass).unwrap());
        }
        pyramids.push(both);
    }
    let targets = targets.map(|rows| Tensor::cat(&rows, 0));
    let mut total = Tensor::zeros([], F64);
    let mut values = Vec::new();
    for ((layout, buffers), [q, k]) in layouts.iter().zip(&buffers).zip(&pyramids) {
        let pass = Pass::new(&LocalBatchNorm, buffers);
        let online = [q, k].map(|p| {
            let [rows] = model.online(&[p.pictures.shallow_clone()], layout, compute, &pass).unwrap();
            rows
        });
        let [pred_q, pred_k] = model.predict(&online, &pass).unwrap();
        let losses = level_losses(
            model.spec(),
            1,
            &Contrast { predictions: &pred_q, targets: &targets[1], labels: &q.labels },
            &Contrast { predictions: &pred_k, targets: &targets[0], labels: &k.labels },
        )
        .unwrap();
        let sum = losses.losses.sum(Kind::Double);
        values.push(sum.double_value(&[]));
        total += sum / f64::from(lanes);
    }
    total.backward();
    let grad = |p: &Tensor| if p.grad().defined() { p.grad().copy() } else { no_grad(|| p.zeros_like()) };
    let grads = model.trainable().into_iter().map(|(_, p)| grad(p)).collect();
    let running: Vec<_> = buffers.iter().map(|b| b.running().shallow_clone()).collect();
    (grads, no_grad(|| Tensor::stack(&running, 0).mean_dim(0, false, Kind::Double)), values)
}

/// Relative to the largest entry; of a gradient that is zero in exact arithmetic (a bias before a norm), absolute.
fn error(found: &Tensor, expected: &Tensor) -> f64 {
    let largest = expected.abs().max().double_value(&[]).max(1e-3);
    (found - expected).abs().max().double_value(&[]) / largest
}

#[test]
fn lanes_one_after_another_are_the_step_written_out() {
    for compute in [ComputeMode::Official, ComputeMode::Exact, ComputeMode::Selective] {
        let lanes = 3;
        let mut trainer = trainer(lanes, compute);
        let (grads, running, values) = plainly(lanes, compute);
        let input: Vec<LaneInput> = (0..lanes)
            .map(|lane| {
                let layout = PyramidLayout::new(trainer.model().spec(), N, lane..lane + 1).unwrap();
                let [q, k] = sides(&layout, lane);
                LaneInput { q, k, notes: Vec::new(), classes: Vec::new() }
            })
            .collect();
        let rates = Rates { lr: 0.1, momentum: 0.9 };
        let mut probe = StepProbe::default();
        let input = StepInput { step: Step::new(0), lanes: &input, rates, halt: Halt::No, saving: false };
        let outcome = trainer.step_probed(&input, Some(&mut probe)).unwrap();
        let largest = probe.grads.iter().zip(&grads).map(|(a, b)| error(a, b)).fold(0.0, f64::max);
        let statistics = error(trainer.model().buffers().running(), &running);
        println!("{compute:?}: gradients off by {largest:.1e}, statistics by {statistics:.1e}");
        assert!(largest < 1e-9 && statistics < 1e-12);
        for (found, expected) in outcome.lane_losses.iter().zip(&values) {
            assert!((found.iter().sum::<f64>() - expected).abs() < 1e-12);
        }
        // A call is counted once, not once a lane: the online backbone's norms see q and k.
        assert_eq!(trainer.model().buffers().counts().max().int64_value(&[]), calls(&model(), compute));
    }
}

/// Calls of the norm that is called most in one step of one lane.
fn calls(model: &Model, compute: ComputeMode) -> i64 {
    let layout = PyramidLayout::new(model.spec(), N, 0..1).unwrap();
    let buffers = model.stage_buffers().unwrap();
    let pass = Pass::new(&LocalBatchNorm, &buffers);
    let pictures = [Tensor::rand([layout.pictures(), 3, 32, 32], F64)];
    for _ in 0..2 {
        let _ = model.online(&pictures, &layout, compute, &pass).unwrap();
        let _ = model.targets(&pictures, &layout, compute, &pass).unwrap();
    }
    buffers.seal().unwrap();
    buffers.counts().max().int64_value(&[])
}
