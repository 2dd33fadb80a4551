//! The official initialisation: distributions, independence of order, the momentum copy.

use super::support::tiny_config;
use mcl_model::{Model, ModelConfig, ModelSpec};
use mcl_types::Seed;
use std::collections::BTreeMap;
use tch::{Device, Kind, Tensor};

fn initialised(levels: usize, seed: u64) -> Model {
    let config = ModelConfig {
        depth: 50,
        width: 16,
        fpn_channels: 64,
        projector_channels: Some(48),
        projector_hidden: 256,
        embedding: 64,
        predictor_hidden: 256,
        ..tiny_config(levels)
    };
    let mut model = Model::new(ModelSpec::new(config).unwrap(), Kind::Float, Device::Cpu).unwrap();
    model.initialize(Seed::new(seed)).unwrap();
    model
}

fn parameters(model: &Model) -> BTreeMap<String, Tensor> {
    model.state().into_iter().map(|(name, tensor)| (name.to_owned(), tensor.copy())).collect()
}

/// (mean, standard deviation, largest magnitude).
fn moments(tensor: &Tensor) -> (f64, f64, f64) {
    let values = tensor.to_kind(Kind::Double);
    let value = |t: Tensor| t.double_value(&[]);
    (value(values.mean(None)), value(values.std(true)), value(values.abs().max()))
}

#[test]
fn every_family_has_its_distribution() {
    let model = initialised(4, 1);
    let state = parameters(&model);
    let near = |name: &str, std: f64| {
        let (mean, found, largest) = moments(&state[name]);
        assert!((found / std - 1.0).abs() < 0.05, "{name}: {found}, expected {std}");
        assert!(mean.abs() < 0.05 * std, "{name}: mean {mean}");
        largest
    };
    let normal = |name: &str, std: f64| assert!(near(name, std) > 3.0 * std, "{name} has no tails");
    normal("encoder_q.0.layer4.0.conv2.weight", (2.0 / (128.0 * 9.0_f64)).sqrt());
    normal("encoder_q.0.layer4.0.downsample.0.weight", (2.0 / 256.0_f64).sqrt());
    normal("encoder_q.2.cls_convs.0.conv.weight", (2.0 / (48.0 * 9.0_f64)).sqrt());
    normal("encoder_q.2.mlp.0.weight", (2.0 / 48.0_f64).sqrt());
    normal("encoder_q.2.mlp.3.weight", (2.0 / 256.0_f64).sqrt());
    normal("head.predictor.3.mlp.0.weight", 0.01);
    let bound = (6.0 / (2.0 * 64.0 * 9.0_f64)).sqrt();
    let largest = near("encoder_q.1.fpn_convs.2.conv.weight", bound / 3.0_f64.sqrt());
    assert!((0.99 * bound..=bound * (1.0 + 1e-6)).contains(&largest), "{largest} {bound}");
    for (name, tensor) in &state {
        let constant = match name.rsplit('.').next().unwrap() {
            "bias" | "running_mean" | "num_batches_tracked" => 0.0,
            "running_var" => 1.0,
            _ if tensor.dim() == 1 => 1.0,
            _ => continue,
        };
        assert!(bool::try_from(tensor.eq(constant).all()).unwrap(), "{name} is not {constant}");
    }
}

#[test]
fn the_momentum_encoder_starts_as_a_copy() {
    let model = initialised(2, 1);
    for pair in model.momentum_pairs() {
        assert_eq!(pair.key, pair.query, "{}", pair.name);
        assert_ne!(pair.key.data_ptr(), pair.query.data_ptr());
    }
}

#[test]
fn weights_depend_on_seed_and_name_alone() {
    let (four, two, other) = (initialised(4, 1), initialised(2, 1), initialised(2, 2));
    let (four, two, other) = (parameters(&four), parameters(&two), parameters(&other));
    for (name, tensor) in &two {
        assert_eq!(*tensor, four[name], "{name}");
        if tensor.dim() > 1 {
            assert_ne!(*tensor, other[name], "{name}");
        }
    }
    assert_ne!(two["head.predictor.0.mlp.0.weight"], two["head.predictor.1.mlp.0.weight"]);
}
