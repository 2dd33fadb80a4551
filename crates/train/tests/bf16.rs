//! `precision = "bf16"` beside the same step in full precision.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_model::{ComputeMode, LaneSide, Model, ModelConfig, ModelSpec};
use mcl_train::{
    Halt, LaneInput, NormScope, OptimizerSettings, Rates, Rule, StepInput, StepProbe, Trainer,
    TrainerSettings,
};
use mcl_types::{Seed, SplitMix64, Step};
use tch::{Device, Kind, Tensor};

const N: u32 = 16;

fn trainer(autocast: bool, compute: ComputeMode) -> Trainer {
    tch::set_num_threads(1);
    let spec = ModelSpec::new(ModelConfig {
        depth: 18,
        width: 16,
        image_size: 64,
        fpn_channels: 32,
        projector_convs: 1,
        projector_hidden: 64,
        embedding: 32,
        predictor_hidden: 64,
        levels: 3,
        level_weights: vec![0.5, 0.25, 0.25],
        ..ModelConfig::default()
    });
    let mut model = Model::new(spec.unwrap(), Kind::Float, Device::Cpu).unwrap();
    model.initialize(Seed::new(1)).unwrap();
    let settings = TrainerSettings {
        lanes: 1,
        images_per_lane: N,
        montages: None,
        compute,
        norm: NormScope::Job,
        autocast,
        optimizer: OptimizerSettings { rule: Rule::Lars { momentum: 0.9, eta: 1e-3 }, weight_decay: 1e-5 },
        clip_norm: 500.0,
        seed: mcl_types::Seed::new(0),
        supervision: [1.0, 1.0],
    };
    Trainer::new(model, settings).unwrap()
}

fn side(trainer: &Trainer, seed: u64) -> LaneSide {
    tch::manual_seed(i64::try_from(seed).unwrap());
    let views = (0..3)
        .map(|l| Tensor::randint(256, [i64::from(N), 3, 64 >> l, 64 >> l], (Kind::Uint8, Device::Cpu)))
        .collect();
    let drawn = |level: usize| {
        let tiles = usize::try_from(trainer.layout().tiles(level)).unwrap();
        let drawn = SplitMix64::new(seed).permutation(tiles).into_iter();
        drawn.map(|p| i64::try_from(p).unwrap()).collect()
    };
    LaneSide { views, permutations: vec![drawn(1), drawn(2)] }
}

/// Sum of losses, and gradients, of the first step; then the trainer goes on to `steps`.
fn train(trainer: &mut Trainer, steps: u64) -> (f64, Vec<Tensor>) {
    let mut first = None;
    for step in 0..steps {
        let lane = LaneInput {
            q: side(trainer, 2 * step),
            k: side(trainer, 2 * step + 1),
            notes: Vec::new(),
            classes: Vec::new(),
        };
        let rates = Rates { lr: 0.1, momentum: 0.9 };
        let mut probe = StepProbe::default();
        let input = StepInput { step: Step::new(step), lanes: &[lane], rates, halt: Halt::No, saving: false };
        let outcome = trainer.step_probed(&input, Some(&mut probe)).unwrap();
        assert!(!outcome.skipped);
        first.get_or_insert((outcome.lane_losses.iter().flatten().sum(), probe.grads));
    }
    first.unwrap()
}

fn cosine(a: &Tensor, b: &Tensor) -> f64 {
    let dot = (a * b).sum(Kind::Double) / (a.norm() * b.norm());
    dot.double_value(&[])
}

#[test]
fn half_precision_is_near_full_and_keeps_the_state_in_full() {
    for compute in [ComputeMode::Official, ComputeMode::Exact, ComputeMode::Selective] {
        let (mut half, mut full) = (trainer(true, compute), trainer(false, compute));
        let ((half_loss, half_grads), (full_loss, full_grads)) = (train(&mut half, 1), train(&mut full, 1));
        let flat =
            |grads: &[Tensor]| Tensor::cat(&grads.iter().map(|g| g.flatten(0, -1)).collect::<Vec<_>>(), 0);
        let alike = cosine(&flat(&half_grads), &flat(&full_grads));
        println!("{compute:?}: loss {half_loss:.5} against {full_loss:.5}, gradients' cosine {alike:.4}");
        // It did compute in half precision, and not far from full: untrained weights make pictures nearly alike, whose
        // differences the norms magnify. PyTorch's own autocast is at 0.80 on a case like this.
        assert!(half_loss != full_loss && (half_loss - full_loss).abs() < 0.01 * full_loss);
        assert!((0.85..0.999_999).contains(&alike), "{alike}");
        for (name, tensor) in half.state().unwrap() {
            assert!(matches!(tensor.kind(), Kind::Float | Kind::Int64), "{name} is {:?}", tensor.kind());
        }
    }
}

#[test]
fn the_same_steps_give_the_same_bits() {
    let digest = || {
        let mut trainer = trainer(true, ComputeMode::Selective);
        train(&mut trainer, 3);
        trainer.digest().unwrap()
    };
    assert_eq!(digest(), digest());
}
