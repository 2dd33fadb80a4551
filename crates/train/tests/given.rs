//! What an import accepts, a run begins with: exports of every format, and files as other tools write them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_checkpoint_core::{Dtype, OwnedTensor, write_slice};
use mcl_export::{Encoder, ExportRequest, Format, Imported, PARTS, Provenance, Tensors, export, import};
use mcl_model::{ComputeMode, Model, ModelConfig, ModelSpec};
use mcl_train::{NormScope, OptimizerSettings, Rule, Trainer, TrainerSettings};
use mcl_types::Seed;
use std::collections::{BTreeMap, BTreeSet};
use tch::{Device, Kind, Tensor};

fn trainer() -> Trainer {
    tch::set_num_threads(1);
    let spec = ModelSpec::new(ModelConfig {
        depth: 18,
        width: 4,
        image_size: 64,
        fpn_channels: 8,
        projector_convs: 1,
        projector_hidden: 16,
        embedding: 8,
        predictor_hidden: 16,
        ..ModelConfig::default()
    });
    let mut model = Model::new(spec.unwrap(), Kind::Float, Device::Cpu).unwrap();
    model.initialize(Seed::new(1)).unwrap();
    let settings = TrainerSettings {
        lanes: 1,
        images_per_lane: 4,
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

/// The model's state, each number one higher than the seed's, so that nothing given looks like what is drawn.
fn state(trainer: &Trainer) -> Tensors {
    let owned = |(name, tensor): (&str, &Tensor)| {
        let shape = tensor.size().iter().map(|n| usize::try_from(*n).unwrap()).collect();
        let other = tensor.detach() + 1;
        let (dtype, bytes) = match tensor.kind() {
            Kind::Int64 => {
                let numbers: Vec<i64> = other.reshape([-1]).try_into().unwrap();
                (Dtype::I64, numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
            }
            _ => {
                let numbers: Vec<f32> = other.reshape([-1]).try_into().unwrap();
                (Dtype::F32, numbers.iter().flat_map(|n| n.to_le_bytes()).collect())
            }
        };
        (name.to_owned(), OwnedTensor { dtype, shape, bytes })
    };
    trainer.model().state().into_iter().map(owned).collect()
}

/// As `--from` names them: an encoder is where both begin.
fn given(imported: &Imported) -> BTreeMap<String, Tensor> {
    let mut given = BTreeMap::new();
    for (name, tensor) in &imported.tensors {
        let shape: Vec<i64> = tensor.shape.iter().map(|n| i64::try_from(*n).unwrap()).collect();
        let kind = if tensor.dtype == Dtype::I64 { Kind::Int64 } else { Kind::Float };
        let tensor = Tensor::f_from_data_size(&tensor.bytes, &shape, kind).unwrap();
        let own = PARTS.iter().find_map(|(part, own)| Some(format!("{own}{}", name.strip_prefix(part)?)));
        match own {
            Some(own) => ["encoder_q", "encoder_k"].iter().for_each(|encoder| {
                given.insert(format!("{encoder}.{own}"), tensor.shallow_clone());
            }),
            None => drop(given.insert(name.clone(), tensor)),
        }
    }
    given
}

/// Begins with a file; the parts that it gave. All else is the seed's.
fn begin(trainer: &mut Trainer, file: &[u8]) -> BTreeSet<String> {
    trainer.reset(Seed::new(7)).unwrap();
    let drawn: BTreeMap<String, Tensor> =
        trainer.model().state().into_iter().map(|(n, t)| (n.to_owned(), t.detach().copy())).collect();
    let imported = import(file).unwrap();
    let given = given(&imported);
    trainer
        .reset_with(Seed::new(7), given.iter().map(|(n, t)| (n.clone(), t.shallow_clone())).collect())
        .unwrap();
    for (name, tensor) in trainer.model().state() {
        let expected = given.get(name).unwrap_or(&drawn[name]);
        assert_eq!(tensor, expected, "{name}");
    }
    const PARTS: [&str; 4] = ["0", "1", "2.cls_convs", "2.mlp"];
    let is_given = |part: &&str| given.keys().any(|name| name.starts_with(&format!("encoder_q.{part}.")));
    PARTS.iter().copied().filter(is_given).map(str::to_owned).collect()
}

fn file(tensors: &Tensors) -> Vec<u8> {
    let all: Vec<_> =
        tensors.iter().map(|(n, t)| (n.clone(), t.dtype, t.shape.clone(), t.bytes.as_slice())).collect();
    write_slice(&all).unwrap()
}

fn exported(state: &Tensors, format: Format, file_name: &str) -> Vec<u8> {
    let provenance = Provenance::default();
    let request = ExportRequest { format, encoder: Encoder::Online, file_name, provenance: &provenance };
    export(&request, state).unwrap().files.swap_remove(0).bytes
}

fn parts<const N: usize>(parts: [&str; N]) -> BTreeSet<String> {
    parts.map(str::to_owned).into()
}

#[test]
fn a_run_begins_with_what_any_format_exported() {
    let mut trainer = trainer();
    let state = state(&trainer);
    for (format, name, expected) in [
        (Format::Safetensors, "w.safetensors", parts(["0", "1", "2.cls_convs", "2.mlp"])),
        (Format::Torchvision, "w.pth", parts(["0"])),
        (Format::Timm, "w.pth", parts(["0"])),
        (Format::TorchvisionFpn, "w.pth", parts(["0"])),
        (Format::Detectron2, "w.pkl", parts(["0", "1", "2.cls_convs"])),
        (Format::Mmdet, "w.pth", parts(["0", "1", "2.cls_convs"])),
    ] {
        assert_eq!(begin(&mut trainer, &exported(&state, format, name)), expected, "{format:?}");
    }
}

#[test]
fn a_run_begins_with_files_of_other_tools() {
    let mut trainer = trainer();
    let state = state(&trainer);
    // torchvision before 0.3: norms keep no count. With a classifier.
    let mut old: Tensors = state
        .iter()
        .filter_map(|(name, t)| Some((name.strip_prefix("encoder_q.0.")?.to_owned(), t.clone())))
        .filter(|(name, _)| !name.ends_with("num_batches_tracked"))
        .collect();
    old.insert("fc.weight".to_owned(), old["bn1.weight"].clone());
    assert_eq!(begin(&mut trainer, &file(&old)), parts(["0"]));
    // A detector as MMDetection has it: the pyramid's convolutions have a bias in place of a norm.
    let bias = || state["encoder_q.0.bn1.bias"].clone();
    let mut stock: Tensors = [("roi_head.bbox_head.shared_fcs.0.weight".to_owned(), bias())].into();
    for (name, tensor) in &state {
        let Some(own) = name.strip_prefix("encoder_q.") else { continue };
        if let Some(rest) = own.strip_prefix("0.") {
            stock.insert(format!("backbone.{rest}"), tensor.clone());
        } else if let Some(conv) = own.strip_prefix("1.").and_then(|n| n.strip_suffix(".conv.weight")) {
            stock.insert(format!("neck.{conv}.conv.weight"), tensor.clone());
            stock.insert(format!("neck.{conv}.conv.bias"), bias());
        }
    }
    assert_eq!(begin(&mut trainer, &file(&stock)), parts(["0"]));
    let left_out: Vec<(&str, usize)> =
        import(&file(&stock)).unwrap().left_out.iter().map(|l| (l.why, l.names.len())).collect();
    assert_eq!(left_out.len(), 2, "{left_out:?}");
    assert!(left_out[0].0.starts_with("no part") && left_out[0].1 == 9, "{left_out:?}");
    assert!(left_out[1].0.contains("batch norm after every") && left_out[1].1 == 8, "{left_out:?}");
}
