//! The step as a transaction: what is not finite changes nothing, who differs is named.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_collective::{Group, Lifeline, Membership, Store};
use mcl_model::{ComputeMode, LaneSide, Model, ModelConfig, ModelSpec};
use mcl_train::{
    Halt, LaneInput, NormScope, OptimizerSettings, Rates, Rule, StepInput, StepOutcome, TrainError, Trainer,
    TrainerSettings,
};
use mcl_types::{Digest, FencingToken, Generation, LaneLayout, Rank, Seed, SplitMix64, Step, Term};
use std::process::{Child, Command};
use std::time::Duration;
use tch::{Device, Kind, Tensor, no_grad};

const N: u32 = 4;
const STORE: &str = "MCL_TEST_STORE";
const TIMEOUT: Duration = Duration::from_secs(60);

fn trainer(lanes: u32) -> Trainer {
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
        lanes,
        images_per_lane: N,
        montages: None,
        compute: ComputeMode::Exact,
        norm: NormScope::Job,
        autocast: false,
        optimizer: OptimizerSettings { rule: Rule::Lars { momentum: 0.9, eta: 1e-3 }, weight_decay: 1e-5 },
        clip_norm: 500.0,
        seed: mcl_types::Seed::new(0),
        supervision: [1.0, 1.0],
    };
    Trainer::new(model, settings).unwrap()
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

fn lane(trainer: &Trainer, lane: u32, step: u64, value: Option<f64>) -> LaneInput {
    let seed = 1000 * u64::from(lane) + 2 * step;
    let notes = vec![i64::from(lane), i64::try_from(step).unwrap(), -1];
    LaneInput { q: side(trainer, seed, value), k: side(trainer, seed + 1, value), notes, classes: Vec::new() }
}

fn step_with(
    trainer: &mut Trainer,
    step: u64,
    value: Option<f64>,
    halt: Halt,
    saving: bool,
) -> Result<StepOutcome, TrainError> {
    let layout = trainer.layout();
    let lanes: Vec<LaneInput> = layout.lanes().map(|l| lane(trainer, l, step, value)).collect();
    let rates = Rates { lr: 0.1, momentum: 0.9 };
    trainer.step(&StepInput { step: Step::new(step), lanes: &lanes, rates, halt, saving })
}

fn step(trainer: &mut Trainer, step: u64, value: Option<f64>) -> Result<StepOutcome, TrainError> {
    step_with(trainer, step, value, Halt::No, false)
}

/// Digest of parameters, buffers and optimiser, less the trainer's own counter.
fn weights(trainer: &Trainer) -> mcl_types::Digest {
    let state = trainer.state().unwrap();
    let state = state.iter().filter(|(name, _)| !name.starts_with("trainer."));
    mcl_train::digest_of(state.map(|(n, t)| (n.as_str(), t))).unwrap()
}

#[test]
fn what_is_not_finite_is_skipped_whole_and_five_in_a_row_end_the_run_by_name() {
    let mut trainer = trainer(1);
    assert!(!step(&mut trainer, 0, None).unwrap().skipped);
    let before = weights(&trainer);
    for at in 1..=4 {
        let outcome = step(&mut trainer, at, Some(f64::NAN)).unwrap();
        assert!(outcome.skipped);
        assert_eq!(weights(&trainer), before, "step {at} left something behind");
    }
    // One good step in between and the count starts again.
    assert!(!step(&mut trainer, 5, None).unwrap().skipped);
    assert_ne!(weights(&trainer), before);
    let last = (6..=10).map(|at| step(&mut trainer, at, Some(f64::NAN))).last().unwrap();
    match last.unwrap_err() {
        TrainError::NotFinite { step: 10, tensor, in_a_row: 5 } => {
            assert!(tensor.contains("level 0"), "{tensor}")
        }
        other => panic!("{other}"),
    }
}

#[test]
fn a_resumed_run_counts_on() {
    let mut straight = trainer(1);
    for at in 0..3 {
        step(&mut straight, at, Some(f64::NAN)).unwrap();
    }
    let state = straight.state().unwrap().into_iter().map(|(n, t)| (n, t.copy())).collect();
    let mut resumed = trainer(1);
    resumed.load(state).unwrap();
    step(&mut resumed, 3, Some(f64::NAN)).unwrap();
    assert!(step(&mut resumed, 4, Some(f64::NAN)).is_err(), "the fifth in a row went through");
}

fn as_rank(rank: u32, store: &Store) {
    let membership = Membership { token: FencingToken::default(), rank: Rank::new(rank), world: 2 };
    let group = Group::form(store, membership, TIMEOUT, "127.0.0.1", None).unwrap();
    let mut trainer = trainer(2);
    trainer.join(LaneLayout::new(2, 2).unwrap(), Rank::new(rank), Some(group)).unwrap();
    // A loss that is not finite on one rank alone is skipped by both.
    let bad = (rank == 1).then_some(f64::NAN);
    let before = weights(&trainer);
    assert!(step(&mut trainer, 0, bad).unwrap().skipped);
    assert_eq!(weights(&trainer), before);
    // One wants a pause, the other a checkpoint first, and one is still saving: both hear of both, and of all lanes.
    let halt = if rank == 1 { Halt::Pause } else { Halt::Drain };
    let outcome = step_with(&mut trainer, 1, None, halt, rank == 1).unwrap();
    assert!(!outcome.skipped);
    assert_eq!((outcome.halt, outcome.saving), (Halt::Drain, true));
    assert_eq!(outcome.notes, [[0, 1, -1], [1, 1, -1]]);
    assert_eq!(outcome.lane_losses.iter().map(Vec::len).collect::<Vec<_>>(), [4, 4]);
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
    let store = Store::host("127.0.0.1", None, TIMEOUT).unwrap();
    let mut peer = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", "ranks_skip_alike_and_one_that_differs_is_named"])
        .env(STORE, format!("127.0.0.1:{}", store.port().unwrap()))
        .spawn()
        .unwrap();
    as_rank(0, &store);
    assert!(peer.wait().unwrap().success());
}

const GENERATION: &str = "MCL_TEST_GENERATION";
const STEPS: &str = "MCL_TEST_STEPS";
const BREAKS: &str = "a_step_broken_in_mid_backward_is_redone_to_the_same_bits";

/// Joins generation `number` over `store` as `rank` of two.
fn join(trainer: &mut Trainer, store: &Store, number: u64, rank: u32) -> Lifeline {
    let token = FencingToken { term: Term::new(1), generation: Generation::new(number) };
    let membership = Membership { token, rank: Rank::new(rank), world: 2 };
    let lifeline = Lifeline::new(&[]).unwrap();
    let group = lifeline.form(store, membership, TIMEOUT, "127.0.0.1", None).unwrap();
    trainer.join(LaneLayout::new(2, 2).unwrap(), Rank::new(rank), Some(group)).unwrap();
    lifeline
}

/// Rank 1 of a generation, in a process of its own.
fn peer(store: &Store, number: u64, (first, end): (u64, u64), failpoint: Option<&str>) -> Child {
    let mut command = Command::new(std::env::current_exe().unwrap());
    command
        .args(["--exact", BREAKS, "--nocapture"])
        .env(STORE, format!("127.0.0.1:{}", store.port().unwrap()))
        .env(GENERATION, number.to_string())
        .env(STEPS, format!("{first} {end}"));
    if let Some(failpoint) = failpoint {
        command.env("MCL_FAILPOINT", failpoint);
    }
    command.spawn().unwrap()
}

fn as_peer(store: &Store) {
    mcl_failpoint::arm_from_environment(mcl_failpoint::Process::Rank).unwrap();
    let number = std::env::var(GENERATION).unwrap().parse().unwrap();
    let steps: Vec<u64> = std::env::var(STEPS).unwrap().split(' ').map(|n| n.parse().unwrap()).collect();
    let mut trainer = trainer(2);
    join(&mut trainer, store, number, 1);
    let (first, source) = (Step::new(steps[0]), Rank::new(0));
    let levelled = trainer.level(first, (steps[0] == 0).then_some(first), source).unwrap();
    assert_eq!(levelled.received, steps[0] > 0);
    for at in steps[0]..steps[1] {
        step(&mut trainer, at, None).unwrap();
    }
    trainer.part();
}

/// Steps `first..end` as rank 0 of two with a fresh peer.
fn both(trainer: &mut Trainer, store: &Store, number: u64, (first, end): (u64, u64)) {
    let mut child = peer(store, number, (first, end), None);
    let lifeline = join(trainer, store, number, 0);
    let started = std::time::Instant::now();
    let levelled = trainer.level(Step::new(first), Some(Step::new(first)), Rank::new(0)).unwrap();
    assert_eq!(levelled.bytes > 0, first > 0);
    println!("levelling {} bytes: {:?}", levelled.bytes, started.elapsed());
    for at in first..end {
        step(trainer, at, None).unwrap();
    }
    trainer.part();
    lifeline.close();
    assert!(child.wait().unwrap().success());
}

/// Two steps of two ranks; then the peer is killed in the third's backward.
fn broken(store: &Store, number: u64) -> (Trainer, Digest) {
    let mut trainer = trainer(2);
    let mut child = peer(store, number, (0, 4), Some("rank/mid-backward:3"));
    let lifeline = join(&mut trainer, store, number, 0);
    trainer.level(Step::new(0), Some(Step::new(0)), Rank::new(0)).unwrap();
    for at in 0..2 {
        step(&mut trainer, at, None).unwrap();
    }
    let before = trainer.digest().unwrap();
    let error = step(&mut trainer, 2, None).unwrap_err();
    assert!(error.is_peer_loss(), "{error}");
    assert!(lifeline.is_aborted());
    lifeline.close();
    assert_eq!(trainer.digest().unwrap(), before, "the broken step left something behind");
    assert!(step(&mut trainer, 2, None).is_err(), "a step without the group");
    assert!(!child.wait().unwrap().success());
    (trainer, before)
}

#[test]
fn a_step_broken_in_mid_backward_is_redone_to_the_same_bits() {
    if let Ok(address) = std::env::var(STORE) {
        return as_peer(&Store::connect(&address, TIMEOUT).unwrap());
    }
    let store = Store::host("127.0.0.1", None, TIMEOUT).unwrap();
    let alone = LaneLayout::new(2, 1).unwrap();
    // Undisturbed: two ranks throughout, and two ranks then one.
    let mut straight = trainer(2);
    both(&mut straight, &store, 1, (0, 2));
    let after_two = straight.digest().unwrap();
    both(&mut straight, &store, 2, (2, 4));
    let mut shrunk = trainer(2);
    both(&mut shrunk, &store, 3, (0, 2));
    shrunk.join(alone, Rank::new(0), None).unwrap();
    for at in 2..4 {
        step(&mut shrunk, at, None).unwrap();
    }

    let (mut replaced, before) = broken(&store, 4);
    assert_eq!(before, after_two);
    both(&mut replaced, &store, 5, (2, 4));
    assert_eq!(replaced.digest().unwrap(), straight.digest().unwrap());

    let (mut left_alone, _) = broken(&store, 6);
    left_alone.join(alone, Rank::new(0), None).unwrap();
    assert!(left_alone.level(Step::new(3), Some(Step::new(2)), Rank::new(0)).is_err());
    for at in 2..4 {
        step(&mut left_alone, at, None).unwrap();
    }
    assert_eq!(left_alone.digest().unwrap(), shrunk.digest().unwrap());

    // And back to the seed: as a fresh one.
    let fresh = trainer(2);
    left_alone.reset(Seed::new(1)).unwrap();
    assert_eq!(left_alone.digest().unwrap(), fresh.digest().unwrap());
}
