//! The three compute modes against each other, and lanes against lanes.

use super::support::{Outcome, batch, error, golden_model, gradient_error, pass, tiny_config};
use mcl_model::{ComputeMode, FrozenBatchNorm, LocalBatchNorm, Model};
use tch::{Kind, Tensor};

/// A model whose running statistics are those of a batch, so that freezing them is no special case.
fn warmed(levels: usize) -> Model {
    let mut model = golden_model(tiny_config(levels), 3, Kind::Double);
    let batch = batch(model.spec(), 4, 0..2);
    let staged = pass(&model, &batch, ComputeMode::Official, &LocalBatchNorm, None).buffers;
    model.commit_buffers(staged).unwrap();
    model
}

fn buffers_of(model: &mut Model, outcome: &Outcome) -> Vec<(String, Tensor)> {
    model.commit_buffers(outcome.buffers.fork().unwrap()).unwrap();
    let state = model.state();
    let buffers = state.iter().filter(|(n, _)| n.contains("running_") || n.ends_with("tracked"));
    buffers.map(|(n, t)| ((*n).to_owned(), t.copy())).collect()
}

#[test]
fn exact_equals_official_in_training() {
    for levels in 1..=4 {
        let mut model = golden_model(tiny_config(levels), 3, Kind::Double);
        let mut twin = golden_model(tiny_config(levels), 3, Kind::Double);
        let batch = batch(model.spec(), 4, 0..2);
        let official = pass(&model, &batch, ComputeMode::Official, &LocalBatchNorm, None);
        let exact = pass(&model, &batch, ComputeMode::Exact, &LocalBatchNorm, None);
        assert!(error(&exact.losses.losses, &official.losses.losses) < 1e-12, "{levels} levels");
        let gradients = gradient_error(&exact.gradients, &official.gradients);
        assert!(gradients < 1e-12, "{levels} levels: {gradients}");
        let buffers = buffers_of(&mut model, &exact).into_iter().zip(buffers_of(&mut twin, &official));
        for ((name, exact), (_, official)) in buffers {
            // With all levels, only what nothing reads of the momentum encoder stands still.
            let unread = name.starts_with("encoder_k.1.") || name.starts_with("encoder_k.2.");
            let fewer = levels < 4 && (name.starts_with("encoder_q.1.") || name.starts_with("encoder_q.2."));
            if !unread && !fewer {
                assert!(error(&exact, &official) < 1e-12, "{levels} levels: {name}");
            }
        }
    }
}

#[test]
fn selective_equals_official_with_frozen_statistics() {
    for levels in 1..=4 {
        let model = warmed(levels);
        let batch = batch(model.spec(), 4, 0..2);
        let official = pass(&model, &batch, ComputeMode::Official, &FrozenBatchNorm, None);
        let selective = pass(&model, &batch, ComputeMode::Selective, &FrozenBatchNorm, None);
        let losses = error(&selective.losses.losses, &official.losses.losses);
        let gradients = gradient_error(&selective.gradients, &official.gradients);
        assert!(losses < 1e-10 && gradients < 1e-10, "{levels} levels: {losses} {gradients}");
    }
}

#[test]
fn selective_trains_with_statistics_of_its_own() {
    let model = golden_model(tiny_config(4), 3, Kind::Double);
    let batch = batch(model.spec(), 4, 0..2);
    let official = pass(&model, &batch, ComputeMode::Official, &LocalBatchNorm, None);
    let selective = pass(&model, &batch, ComputeMode::Selective, &LocalBatchNorm, None);
    assert!(selective.losses.losses.isfinite().all().int64_value(&[]) == 1);
    let changed = error(&selective.losses.losses, &official.losses.losses);
    assert!((1e-4..1.0).contains(&changed), "{changed}");
}

#[test]
fn a_lane_is_the_same_whoever_carries_it() {
    let model = warmed(4);
    let together = batch(model.spec(), 4, 0..3);
    let all = pass(&model, &together, ComputeMode::Exact, &FrozenBatchNorm, None);
    for lane in 0..3 {
        let alone = batch(model.spec(), 4, lane..lane + 1);
        let one = pass(&model, &alone, ComputeMode::Exact, &FrozenBatchNorm, Some(&all.targets));
        let place = i64::from(lane);
        for (found, expected) in [
            (&one.losses.losses, &all.losses.losses),
            (&one.losses.pos_cos, &all.losses.pos_cos),
            (&one.losses.neg_cos, &all.losses.neg_cos),
        ] {
            assert!(error(found, &expected.narrow(2, place, 1)) < 1e-12, "lane {lane}");
        }
        for side in 0..2 {
            let expected = all.targets[side].narrow(0, 4 * place, 4);
            assert!(error(&one.targets[side], &expected) < 1e-12, "lane {lane}");
        }
    }
}
