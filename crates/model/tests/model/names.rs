//! Names, shapes and counts of the published R50 model.

use mcl_model::{Model, ModelConfig, ModelSpec};
use std::collections::BTreeMap;
use tch::{Device, Kind};

const PUBLISHED: &str = include_str!("../names_r50.txt");

fn published() -> BTreeMap<String, (Vec<i64>, bool)> {
    let mut names = BTreeMap::new();
    for line in PUBLISHED.lines() {
        let [name, shape, role] = line.split('\t').collect::<Vec<_>>()[..] else { panic!("{line}") };
        let shape = shape.trim_matches(['(', ')']).split(',').map(str::trim).filter(|d| !d.is_empty());
        let entry = (shape.map(|d| d.parse().unwrap()).collect(), role == "param");
        if let Some(rest) = name.strip_prefix("encoder_q.") {
            names.insert(format!("encoder_k.{rest}"), entry.clone());
        }
        names.insert(name.to_owned(), entry);
    }
    names
}

#[test]
fn the_published_model_has_the_published_names() {
    let spec = ModelSpec::new(ModelConfig::default()).unwrap();
    let model = Model::new(spec, Kind::Float, Device::Cpu).unwrap();
    let state = model.state();
    let expected = published();
    // 1158 keys less the 318 aliases of the backbone.
    assert_eq!((state.len(), expected.len()), (840, 840));
    for ((name, tensor), (expected_name, (shape, _))) in state.iter().zip(&expected) {
        assert_eq!((*name, &tensor.size()), (expected_name.as_str(), shape));
        let is_count = name.ends_with("num_batches_tracked");
        assert_eq!(tensor.kind(), if is_count { Kind::Int64 } else { Kind::Float }, "{name}");
    }
    let trainable = model.trainable();
    let parameters = expected.iter().filter(|(n, (_, parameter))| *parameter && !n.starts_with("encoder_k"));
    assert_eq!(
        trainable.iter().map(|(n, _)| *n).collect::<Vec<_>>(),
        parameters.map(|(n, _)| n.as_str()).collect::<Vec<_>>()
    );
    assert!(trainable.iter().all(|(_, t)| t.requires_grad()));
    let count = |prefix: &str| -> usize {
        trainable.iter().filter(|(n, _)| n.starts_with(prefix)).map(|(_, t)| t.numel()).sum()
    };
    assert_eq!(
        ["encoder_q.0.", "encoder_q.1.", "encoder_q.2.", "encoder_q.", "head.", ""].map(count),
        [23_508_032, 3_346_432, 3_416_320, 30_270_784, 4_219_904, 34_490_688]
    );
    assert_eq!(trainable.len(), 225);
    let pairs = model.momentum_pairs();
    assert_eq!(pairs.iter().map(|p| p.key.numel()).sum::<usize>(), 30_270_784);
    assert!(pairs.iter().all(|p| !p.key.requires_grad() && p.query.requires_grad()));
    assert!(pairs.windows(2).all(|w| w[0].name < w[1].name));
}

#[test]
fn a_deeper_or_narrower_network_has_as_many_blocks_as_it_should() {
    let blocks = |depth: u32| {
        let config = ModelConfig {
            depth,
            width: 2,
            levels: 1,
            level_weights: vec![1.0],
            ..super::support::tiny_config(1)
        };
        let model = Model::new(ModelSpec::new(config).unwrap(), Kind::Float, Device::Cpu).unwrap();
        let state = model.state();
        let convs =
            state.iter().filter(|(n, _)| n.starts_with("encoder_q.0.layer") && n.ends_with("conv2.weight"));
        (convs.count(), state.iter().filter(|(n, _)| n.contains("q.0.layer1.0.downsample")).count())
    };
    // R18 and R34 keep the width in layer1, so nothing is projected there.
    assert_eq!([18, 34, 50, 101].map(blocks), [(8, 0), (16, 0), (16, 6), (33, 6)]);
}
