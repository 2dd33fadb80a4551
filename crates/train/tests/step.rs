//! The step as a transaction: what is not finite changes nothing, who differs is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_collective::{Group, Membership, Store};
use mcl_model::{ComputeMode, LaneSide, Model, ModelConfig, ModelSpec};
use mcl_train::{LaneInput, OptimizerSettings, Rates, Rule, StepInput, TrainError, Trainer, TrainerSettings};
use mcl_types::{FencingToken, LaneLayout, Rank, Seed, SplitMix64, Step};
use std::process::Command;
use std::time::Duration;
use tch::{Device, Kind, Tensor, no_grad};

const N: u32 = 4;
const STORE: &str = "MCL_TEST_STORE";
const TIMEOUT: Duration = Duration::from_secs(60);

fn trainer(world: u32, rank: u32, group: Option<Group>) -> Trainer {
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
    let mut model = Model::new(spec.unwrap(), Kind::Float, Device::Cpu).unwrap();
    model.initialize(Seed::new(1)).unwrap();
    let settings = TrainerSettings {
        lanes: LaneLayout::new(world, world).unwrap(),
        rank: Rank::new(rank),
        images_per_lane: N,
        montages: None,
        compute: ComputeMode::Exact,
        optimizer: OptimizerSettings { rule: Rule::Lars { momentum: 0.9, eta: 1e-3 }, weight_decay: 1e-5 },
        clip_norm: 500.0,
    };
    Trainer::new(model, settings, group).unwrap()
}

fn side(trainer: &Trainer, seed: u64, value: Option<f64>) -> LaneSide {
    let mut random = SplitMix64::new(seed);
    tch::manual_seed(i64::try_from(seed).unwrap());
    let views = (0..2)
        .map(|level| {
            let view = Tensor::rand([i64::from(N), 3, 32 >> level, 32 >> level], (Kind::Float, Device::Cpu));
            value.map_or_else(|| view.shallow_clone(), |v| &view * v)
        })
        .collect();
    let tiles = usize::try_from(trainer.layout().tiles(1)).unwrap();
    let permutation = random.permutation(tiles).into_iter().map(|p| i64::try_from(p).unwrap()).collect();
    LaneSide { views, permutations: vec![permutation] }
}

fn input(trainer: &Trainer, step: u64, value: Option<f64>) -> StepInput {
    let lane = LaneInput { q: side(trainer, 2 * step, value), k: side(trainer, 2 * step + 1, value) };
    StepInput {
        step: Step::new(step),
        lanes: vec![lane],
        rates: Rates { lr: 0.1, momentum: 0.9 },
        wants_stop: false,
    }
}

/// Digest of parameters, buffers and optimiser, less the trainer's own counter.
fn weights(trainer: &Trainer) -> mcl_types::Digest {
    let state = trainer.state().unwrap();
    let state = state.iter().filter(|(name, _)| !name.starts_with("trainer."));
    mcl_train::digest_of(state.map(|(n, t)| (n.as_str(), t))).unwrap()
}

#[test]
fn what_is_not_finite_is_skipped_whole_and_five_in_a_row_end_the_run_by_name() {
    let mut trainer = trainer(1, 0, None);
    assert!(!trainer.step(&input(&trainer, 0, None)).unwrap().skipped);
    let before = weights(&trainer);
    for step in 1..=4 {
        let outcome = trainer.step(&input(&trainer, step, Some(f64::NAN))).unwrap();
        assert!(outcome.skipped);
        assert_eq!(weights(&trainer), before, "step {step} left something behind");
    }
    // One good step in between and the count starts again.
    assert!(!trainer.step(&input(&trainer, 5, None)).unwrap().skipped);
    assert_ne!(weights(&trainer), before);
    let last = (6..=10).map(|step| trainer.step(&input(&trainer, step, Some(f64::NAN)))).last().unwrap();
    match last.unwrap_err() {
        TrainError::NotFinite { step: 10, tensor, in_a_row: 5 } => {
            assert!(tensor.contains("level 0"), "{tensor}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_resumed_run_counts_on() {
    let mut straight = trainer(1, 0, None);
    for step in 0..3 {
        straight.step(&input(&straight, step, Some(f64::NAN))).unwrap();
    }
    let state = straight.state().unwrap().into_iter().map(|(n, t)| (n, t.copy())).collect();
    let mut resumed = trainer(1, 0, None);
    resumed.load(state).unwrap();
    resumed.step(&input(&resumed, 3, Some(f64::NAN))).unwrap();
    assert!(resumed.step(&input(&resumed, 4, Some(f64::NAN))).is_err(), "the fifth in a row went through");
}

fn as_rank(rank: u32, store: &Store) {
    let membership = Membership { token: FencingToken::default(), rank: Rank::new(rank), world: 2 };
    let group = Group::form(store, membership, TIMEOUT, "127.0.0.1", None).unwrap();
    let mut trainer = trainer(2, rank, Some(group));
    // A loss that is not finite on one rank alone is skipped by both.
    let bad = (rank == 1).then_some(f64::NAN);
    let before = weights(&trainer);
    assert!(trainer.step(&input(&trainer, 0, bad)).unwrap().skipped);
    assert_eq!(weights(&trainer), before);
    assert!(!trainer.step(&input(&trainer, 1, None)).unwrap().skipped);
    trainer.check_agreement(Step::new(2)).unwrap();
    if rank == 1 {
        let (_, first) = trainer.model().trainable()[0];
        let _ = no_grad(|| first.shallow_clone().f_add_scalar_(1e-6)).unwrap();
    }
    match trainer.check_agreement(Step::new(2)).unwrap_err() {
        TrainError::Diverged { step: 2, ranks } => assert_eq!(ranks, [1]),
        other => panic!("{other}"),
    }
}

#[test]
fn ranks_skip_alike_and_one_that_differs_is_named() {
    if let Ok(address) = std::env::var(STORE) {
        return as_rank(1, &Store::connect(&address, TIMEOUT).unwrap());
    }
    let store = Store::host(0, TIMEOUT).unwrap();
    let mut peer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ranks_skip_alike_and_one_that_differs_is_named"])
        .env(STORE, format!("127.0.0.1:{}", store.port().unwrap()))
        .spawn()
        .unwrap();
    as_rank(0, &store);
    assert!(peer.wait().unwrap().success());
}
