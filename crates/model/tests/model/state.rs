//! State by name: staging, committing, loading, and what is refused.

use super::support::{batch, golden_model, pass, tiny_config};
use mcl_model::{BatchNormalizer, ComputeMode, FrozenBatchNorm, LocalBatchNorm, Model, ModelError};
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

fn snapshot(model: &Model) -> BTreeMap<String, Tensor> {
    model.state().into_iter().map(|(name, tensor)| (name.to_owned(), tensor.detach().copy())).collect()
}

fn calls(model: &Model, name: &str) -> i64 {
    snapshot(model)[&format!("{name}.num_batches_tracked")].int64_value(&[])
}

#[test]
fn a_dropped_step_leaves_nothing_behind() {
    let model = golden_model(tiny_config(4), 3, Kind::Double);
    let before = snapshot(&model);
    let batch = batch(model.spec(), 4, 0..1);
    drop(pass(&model, &batch, ComputeMode::Official, &LocalBatchNorm, None));
    assert_eq!(before, snapshot(&model));
}

#[test]
fn a_committed_step_counts_its_calls() {
    let mut model = golden_model(tiny_config(4), 3, Kind::Double);
    let batch = batch(model.spec(), 4, 0..1);
    let step = |model: &mut Model, mode, norm: &dyn BatchNormalizer| {
        let staged = pass(model, &batch, mode, norm, None).buffers;
        model.commit_buffers(staged).unwrap();
    };
    let names = [
        "encoder_q.0.bn1",
        "encoder_q.2.mlp.4",
        "encoder_k.0.bn1",
        "encoder_k.2.mlp.4",
        "encoder_k.1.fpn_convs.0.bn",
        "head.predictor.3.mlp.1",
    ];
    step(&mut model, ComputeMode::Official, &LocalBatchNorm);
    assert_eq!(names.map(|n| calls(&model, n)), [2, 8, 2, 8, 2, 2]);
    step(&mut model, ComputeMode::Exact, &LocalBatchNorm);
    assert_eq!(names.map(|n| calls(&model, n)), [4, 16, 4, 10, 2, 4]);
    let before = snapshot(&model);
    step(&mut model, ComputeMode::Exact, &FrozenBatchNorm);
    assert_eq!(before, snapshot(&model));
}

#[test]
fn lanes_average_their_statistics() {
    let mut model = golden_model(tiny_config(2), 3, Kind::Double);
    let lanes: Vec<_> = (0..2)
        .map(|lane| {
            let batch = batch(model.spec(), 4, lane..lane + 1);
            let staged = pass_alone(&model, &batch);
            staged.running().copy()
        })
        .collect();
    let staged = pass_alone(&model, &batch(model.spec(), 4, 0..1));
    let mean = (&lanes[0] + &lanes[1]) / 2;
    staged.overwrite_running(&mean).unwrap();
    staged.seal().unwrap();
    model.commit_buffers(staged).unwrap();
    assert_eq!(*model.buffers().running(), mean);
    assert_eq!(calls(&model, "encoder_q.0.bn1"), 2);
    assert!(model.buffers().overwrite_running(&mean.narrow(0, 0, 3)).is_err());
}

/// One lane by itself: its labels count in the rows of all lanes' targets, so all must be given.
fn pass_alone(model: &Model, batch: &super::support::Batch) -> mcl_model::BufferSet {
    let (rows, size) = (8, model.spec().embedding);
    let targets = [0, 1].map(|_| Tensor::ones([rows, size], (Kind::Double, Device::Cpu)));
    pass(model, batch, ComputeMode::Exact, &LocalBatchNorm, Some(&targets)).buffers
}

#[test]
fn a_state_loads_into_a_twin() {
    let model = golden_model(tiny_config(4), 3, Kind::Double);
    let mut twin = golden_model(tiny_config(4), 4, Kind::Double);
    let state = snapshot(&model);
    assert_ne!(state, snapshot(&twin));
    twin.load(&state).unwrap();
    assert_eq!(state, snapshot(&twin));
    assert!(twin.trainable().iter().all(|(_, t)| t.requires_grad()));
}

#[test]
fn a_foreign_state_is_refused_whole() {
    let mut model = golden_model(tiny_config(4), 3, Kind::Double);
    let before = snapshot(&model);
    let mut state: BTreeMap<String, Tensor> = before.iter().map(|(n, t)| (n.clone(), t + 1)).collect();
    let moved = state.remove("encoder_q.0.bn1.bias").unwrap();
    state.insert("backbone.bn1.bias".to_owned(), moved);
    state.insert("encoder_q.0.bn1.weight".to_owned(), Tensor::zeros([3], (Kind::Double, Device::Cpu)));
    let Err(ModelError::State { problems }) = model.load(&state) else { panic!("accepted") };
    assert_eq!(
        problems,
        [
            "`encoder_q.0.bn1.bias` is missing",
            "`encoder_q.0.bn1.weight` has shape [3], expected [8]",
            "`backbone.bn1.bias` is unexpected"
        ]
    );
    assert_eq!(before, snapshot(&model));
}

#[test]
fn buffers_of_another_model_are_refused() {
    let mut model = golden_model(tiny_config(4), 3, Kind::Double);
    let other = golden_model(tiny_config(3), 3, Kind::Double);
    assert!(model.commit_buffers(other.stage_buffers().unwrap()).is_err());
}

#[test]
fn one_value_has_no_statistics() {
    let one = Tensor::zeros([1, 4], (Kind::Float, Device::Cpu));
    let (mean, var) = (one.zeros_like().flatten(0, 1), one.ones_like().flatten(0, 1));
    let normalize = |norm: &dyn BatchNormalizer| {
        norm.normalize(&mut [one.shallow_clone()], None, None, [&mean, &var], 1e-5)
    };
    assert!(matches!(normalize(&LocalBatchNorm), Err(ModelError::TooFewValues { values: 1 })));
    assert!(normalize(&FrozenBatchNorm).is_ok_and(|statistics| statistics.is_none()));
}
