//! Golden values: one step of the published code, in f64 (MCL_SPEC section 7).

use super::support::{Batch, Outcome, error, golden_model, lane_pictures, pass, side};
use mcl_model::{ComputeMode, LocalBatchNorm, Model, ModelConfig, Pass, Pyramid, PyramidLayout, detrand};
use serde_json::Value;
use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use tch::{Kind, Tensor};

const TOLERANCE: f64 = 1e-9;

struct Golden {
    meta: Value,
    tensors: BTreeMap<String, Tensor>,
}

impl Golden {
    /// The committed part of a case.
    fn read(name: &str) -> Self {
        let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/goldens");
        let text = std::fs::read_to_string(folder.join(format!("{name}.json"))).unwrap();
        let tensors = read_tensors(&folder.join(format!("{name}.safetensors")));
        Self { meta: serde_json::from_str(&text).unwrap(), tensors }
    }

    fn get(&self, name: &str) -> &Tensor {
        self.tensors.get(&format!("step0.{name}")).unwrap_or_else(|| panic!("no {name}"))
    }

    fn number(&self, key: &str) -> i64 {
        self.meta["config"][key].as_i64().unwrap()
    }

    fn config(&self) -> ModelConfig {
        let config = &self.meta["config"];
        ModelConfig {
            depth: u32::try_from(self.number("depth")).unwrap(),
            width: 64,
            image_size: self.number("image_size"),
            fpn_channels: self.number("fpn_channels"),
            projector_convs: usize::try_from(self.number("stacked_convs")).unwrap(),
            projector_channels: None,
            projector_hidden: self.number("hid_channels"),
            embedding: self.number("out_channels"),
            predictor_hidden: self.number("pred_hid_channels"),
            levels: 4,
            temperature: config["T"].as_f64().unwrap(),
            level_weights: serde_json::from_value(config["loss_weight"].clone()).unwrap(),
            objective: mcl_model::Objective::Mcl,
        }
    }

    fn model(&self, kind: Kind) -> Model {
        golden_model(self.config(), u64::try_from(self.number("seed")).unwrap(), kind)
    }

    fn batch(&self, model: &Model, kind: Kind) -> Batch {
        let (seed, n) = (self.number("seed"), self.number("batch"));
        let size = usize::try_from(self.number("image_size")).unwrap();
        let full = lane_pictures(u64::try_from(seed).unwrap(), 0, usize::try_from(n).unwrap(), 4, size, kind);
        let layout = PyramidLayout::new(model.spec(), u32::try_from(n).unwrap(), 0..1).unwrap();
        let sizes: Vec<i64> = serde_json::from_value(self.meta["config"]["batch_sizes"].clone()).unwrap();
        assert_eq!((0..4).map(|level| layout.group(level).1).collect::<Vec<_>>(), sizes);
        let assemble = |name: &str| {
            let drawn = (1..4).map(|i| self.get(&format!("perm.{name}{i}")).try_into().unwrap()).collect();
            Pyramid::assemble(&layout, &[side(&full, 4, name == "k", drawn)]).unwrap()
        };
        Batch { q: assemble("q"), k: assemble("k"), layout }
    }
}

fn read_tensors(path: &Path) -> BTreeMap<String, Tensor> {
    Tensor::read_safetensors(path).unwrap().into_iter().collect()
}

/// The case's folder where the large files are, if this machine has them.
fn large(case: &str) -> Option<PathBuf> {
    let default = concat!(env!("CARGO_MANIFEST_DIR"), "/../../../shared/goldens").to_owned();
    let list =
        std::env::var("MCL_GOLDENS").map_or_else(|_| default.clone(), |list| format!("{list}:{default}"));
    list.split(':').map(|folder| Path::new(folder).join(case)).find(|folder| folder.is_dir())
}

/// Errors of everything between pictures and losses, by name.
fn compare(golden: &Golden, batch: &Batch, found: &Outcome) -> Vec<(String, f64)> {
    let mut errors = Vec::new();
    for (index, (name, pyramid)) in [("q", &batch.q), ("k", &batch.k)].into_iter().enumerate() {
        let row = i64::try_from(index).unwrap();
        for level in 0..4 {
            let key = |what: &str| format!("{what}.{name}{level}");
            assert_eq!(pyramid.labels[level], *golden.get(&key("label")), "{}", key("label"));
            errors.push((key("online"), error(&found.online[index][level], golden.get(&key("online")))));
            errors.push((key("pred"), error(&found.predictions[index][level], golden.get(&key("pred")))));
        }
        // Named after the pictures that they come from: the rows of q meet `target_all.k`.
        let target = golden.get(&format!("target_all.{name}"));
        errors.push((format!("target.{name}"), error(&found.targets[index], target)));
        let sides = [
            ("losses", &found.losses.losses),
            ("pos_cos", &found.losses.pos_cos),
            ("neg_cos", &found.losses.neg_cos),
        ];
        for (what, all) in sides {
            let own = all.select(0, row).squeeze_dim(1);
            errors.push((format!("{what}.{name}"), error(&own, golden.get(&format!("{what}.{name}")))));
        }
    }
    errors
}

/// Worst error of the gradient table: L2, sum, dot with the probe, largest entry.
fn gradient_errors(golden: &Golden, found: &Outcome) -> f64 {
    let names: Vec<String> = serde_json::from_value(golden.meta["trainable"].clone()).unwrap();
    assert_eq!(names.len(), found.gradients.len());
    let seed = u64::try_from(golden.number("seed")).unwrap();
    let mut worst = 0.0_f64;
    for (row, name) in (0_i64..).zip(&names) {
        let expected: Vec<f64> = golden.get("grad.stats").select(0, row).try_into().unwrap();
        let values: Vec<f64> = (&found.gradients[name].flatten(0, -1)).try_into().unwrap();
        let norm = values.iter().map(|v| v * v).sum::<f64>().sqrt();
        let probe = detrand::probe(seed, name, values.len());
        let sums = [values.iter().sum::<f64>(), values.iter().zip(&probe).map(|(v, p)| v * p).sum()];
        let largest = values.iter().fold(0.0_f64, |most, v| most.max(v.abs()));
        #[expect(clippy::cast_precision_loss, reason = "layer sizes")]
        let loose = (expected[0] * (values.len() as f64).sqrt()).max(1e-6);
        worst = worst.max((norm - expected[0]).abs() / expected[0].max(1e-6));
        worst = worst.max((sums[0] - expected[1]).abs() / loose).max((sums[1] - expected[2]).abs() / loose);
        worst = worst.max((largest - expected[3]).abs() / expected[3].max(1e-6));
    }
    worst
}

fn worst(errors: &[(String, f64)]) -> (&str, f64) {
    errors.iter().map(|(n, e)| (n.as_str(), *e)).fold(("", 0.0), |a, b| if b.1 > a.1 { b } else { a })
}

fn check(name: &str, mode: ComputeMode) -> (Golden, Model, Outcome) {
    let golden = Golden::read(name);
    let mut model = golden.model(Kind::Double);
    let batch = golden.batch(&model, Kind::Double);
    let found = pass(&model, &batch, mode, &LocalBatchNorm, None);
    let errors = compare(&golden, &batch, &found);
    let total = found.losses.losses.sum(Kind::Double).double_value(&[]);
    let expected = golden.meta["total"].as_f64().unwrap();
    let gradients = gradient_errors(&golden, &found);
    println!("golden {name} {mode:?}: worst {:?}, gradients {gradients:.1e}", worst(&errors));
    assert!(worst(&errors).1 < TOLERANCE, "{errors:?}");
    assert!((total - expected).abs() < TOLERANCE, "{total} {expected}");
    assert!(gradients < TOLERANCE, "{gradients}");
    let staged = found.buffers.fork().unwrap();
    model.commit_buffers(staged).unwrap();
    (golden, model, found)
}

/// Worst error of the running buffers over the names that `keep` lets through.
fn buffer_error(golden: &Golden, model: &Model, keep: impl Fn(&str) -> bool) -> f64 {
    let mut seen = 0;
    let mut worst = 0.0_f64;
    for (name, tensor) in model.state() {
        if let Some(expected) = golden.tensors.get(&format!("step0.post.buf.{name}")) {
            seen += 1;
            if keep(name) {
                worst = worst.max(error(tensor, expected));
            }
        }
    }
    assert!(seen > 100, "only {seen} buffers compared");
    worst
}

#[test]
fn golden_a_official() {
    let (golden, model, _) = check("a", ComputeMode::Official);
    let buffers = buffer_error(&golden, &model, |_| true);
    println!("golden a buffers: {buffers:.1e}");
    assert!(buffers < TOLERANCE);
}

#[test]
fn golden_a_exact() {
    let (golden, model, _) = check("a", ComputeMode::Exact);
    let own = |name: &str| !name.starts_with("encoder_k.1.") && !name.starts_with("encoder_k.2.");
    assert!(buffer_error(&golden, &model, own) < TOLERANCE);
}

#[test]
fn golden_b_official() {
    check("b", ComputeMode::Official);
}

#[test]
fn golden_a_in_f32_is_near() {
    let golden = Golden::read("a");
    let model = golden.model(Kind::Float);
    let batch = golden.batch(&model, Kind::Float);
    let found = pass(&model, &batch, ComputeMode::Official, &LocalBatchNorm, None);
    for (row, side) in [(0, "q"), (1, "k")] {
        let own = found.losses.losses.select(0, row).squeeze_dim(1);
        let off = error(&own, golden.get(&format!("losses.{side}")));
        assert!(off < 1e-5, "{side}: {off}");
    }
}

#[test]
fn golden_a_inside() {
    let Some(folder) = large("a_r18_w1") else {
        println!("skipped: no folder with the large golden files");
        return;
    };
    let debug = read_tensors(&folder.join("f64/debug.safetensors"));
    let golden = Golden::read("a");
    let model = golden.model(Kind::Double);
    let batch = golden.batch(&model, Kind::Double);
    let buffers = model.stage_buffers().unwrap();
    let with = Pass::new(&LocalBatchNorm, &buffers);
    let mut errors = Vec::new();
    let mut put = |name: String, found: &Tensor| {
        let expected = debug.get(&format!("step0.{name}")).unwrap_or_else(|| panic!("no {name}"));
        errors.push((name, error(found, expected)));
    };
    for (side, pyramid) in [("q", &batch.q), ("k", &batch.k)] {
        let _no_grad = tch::no_grad_guard();
        let pictures = &[pyramid.pictures.shallow_clone()];
        let features = model.encoder_q().backbone().forward(pictures, &with).unwrap();
        let maps = model.encoder_q().fpn().unwrap().forward(&features, 0, &with).unwrap();
        let online = model.encoder_q().project_all(pictures, 0, &with).unwrap();
        let momentum = model.encoder_k().project_all(pictures, 0, &with).unwrap();
        for output in 0..4 {
            put(format!("C{}.{side}", output + 2), &features[output][0]);
            for (of, found) in [("P", &maps), ("enc_q_out.P", &online), ("enc_k_out.P", &momentum)] {
                put(format!("{of}{}.{side}", output + 2), &found[output].as_ref().unwrap()[0]);
            }
        }
    }
    assert_eq!(errors.len(), debug.len());
    println!("golden a inside: worst {:?}", worst(&errors));
    assert!(worst(&errors).1 < TOLERANCE, "{errors:?}");
}
