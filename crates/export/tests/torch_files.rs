//! Files that torch and numpy wrote themselves (`tests/interop/fixtures.py`), read without them.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_checkpoint_core::{Dtype, OwnedTensor};
use mcl_export::{Imported, Naming, import};

fn file(name: &str) -> Vec<u8> {
    std::fs::read(format!("{}/tests/data/torch/{name}", env!("CARGO_MANIFEST_DIR"))).unwrap()
}

fn read(name: &str) -> Imported {
    import(&file(name)).unwrap_or_else(|e| panic!("{name}: {e}"))
}

/// A tensor's numbers; 64-bit integers too.
fn numbers(tensor: &OwnedTensor) -> Vec<f64> {
    let bytes = &tensor.bytes;
    match tensor.dtype {
        Dtype::F32 => bytes.chunks(4).map(|w| f64::from(f32::from_le_bytes(w.try_into().unwrap()))).collect(),
        Dtype::F64 => bytes.chunks(8).map(|w| f64::from_le_bytes(w.try_into().unwrap())).collect(),
        Dtype::I64 => bytes.chunks(8).map(|w| i64::from_le_bytes(w.try_into().unwrap()) as f64).collect(),
        other => panic!("{other}"),
    }
}

/// The range as floats.
fn range(numbers: impl Iterator<Item = u32>) -> Vec<f64> {
    numbers.map(f64::from).collect()
}

#[test]
fn views_are_read_from_both_formats_of_torch() {
    for name in ["views.pth", "views_legacy.pth"] {
        let read = read(name);
        assert_eq!(read.naming, Naming::Torchvision);
        let get = |name: &str| &read.tensors[&format!("backbone.{name}")];
        assert_eq!(get("conv1.weight").shape, [2, 3, 2, 2]);
        assert_eq!(numbers(get("conv1.weight")), range(0..24), "{name}");
        assert_eq!(numbers(get("bn1.weight")), [5.0, 6.0, 7.0]);
        assert_eq!(numbers(get("bn1.bias")), range((0..48).step_by(7)));
        assert_eq!(get("layer1.0.conv1.weight").shape, [8, 6]);
        assert_eq!(
            numbers(get("layer1.0.conv1.weight")),
            range((0..8).flat_map(|c| (0..6).map(move |r| r * 8 + c)))
        );
        assert_eq!(get("layer1.0.conv2.weight"), get("conv1.weight"), "channels last becomes contiguous");
        let count = get("layer1.0.bn1.num_batches_tracked");
        assert_eq!((count.dtype, count.shape.as_slice(), numbers(count)), (Dtype::I64, &[][..], vec![7.0]));
        assert_eq!(get("layer1.0.bn1.weight").shape, [0]);
        assert_eq!(numbers(get("layer1.0.bn2.weight")), [0.5, 1.5], "a Parameter");
        let half = get("layer2.0.bn1.weight");
        // 6e-8 is the smallest half: 2^-24.
        assert_eq!((half.dtype, numbers(half)), (Dtype::F32, vec![1.5, -2.0, 2_f64.powi(-24)]));
        let half = get("layer2.0.bn2.weight");
        assert_eq!((half.dtype, numbers(half)), (Dtype::F32, vec![1.5, -2.0]), "of Google's kind");
        assert_eq!(numbers(get("layer2.0.bn3.weight")), [0.1]);
        assert_eq!(read.widened, 2);
        assert_eq!(read.left_out.len(), 1);
        assert_eq!(read.left_out[0].names, ["fc.weight"]);
        assert!(read.left_out[0].why.contains("classifier"));
    }
}

#[test]
fn a_checkpoint_of_the_official_code_keeps_both_encoders_and_predictors() {
    let read = read("official.pth");
    assert_eq!(read.naming, Naming::Official);
    let parts = |prefix: &str| read.tensors.keys().filter(|name| name.starts_with(prefix)).count();
    assert_eq!(
        ["encoder_q.0.", "encoder_k.0.", "encoder_q.1.", "head.predictor.0.mlp."].map(parts),
        [1, 1, 48, 9]
    );
    assert_eq!((read.tensors.len(), read.counters), (59, 0));
    assert_eq!(numbers(&read.tensors["encoder_q.1.lateral_convs.0.bn.num_batches_tracked"]), [3.0]);
    assert_eq!(numbers(&read.tensors["head.predictor.0.mlp.0.bias"]), [0.25]);
    let online = numbers(&read.tensors["encoder_q.0.conv1.weight"]);
    let twice: Vec<f64> = online.iter().map(|v| v * 2.0).collect();
    assert_eq!(numbers(&read.tensors["encoder_k.0.conv1.weight"]), twice);
    assert_eq!(read.left_out.len(), 1);
    assert_eq!(read.left_out[0].names, ["backbone.conv1.weight"]);
    let written = read.to_safetensors().unwrap();
    assert_eq!(import(&written).unwrap().tensors, read.tensors);
}

#[test]
fn pickles_of_numpy_are_read_in_every_default_protocol() {
    for name in ["detectron2_2.pkl", "detectron2_3.pkl", "detectron2_4.pkl", "detectron2_5.pkl"] {
        let read = read(name);
        assert_eq!(read.naming, Naming::Detectron2);
        assert_eq!(numbers(&read.tensors["backbone.conv1.weight"]), range(0..6), "{name}");
        assert_eq!(read.tensors["backbone.conv1.weight"].shape, [2, 3, 1, 1]);
        assert_eq!(numbers(&read.tensors["backbone.layer1.0.conv1.weight"]), range(0..6), "Fortran's order");
        assert_eq!(numbers(&read.tensors["backbone.bn1.num_batches_tracked"]), [5.0]);
        assert_eq!(read.left_out[0].names, ["junk.mlp.weight"]);
    }
}

/// torch keeps a parameter's own attributes; a tensor that is expanded is not damaged, and is said to be what it is.
#[test]
fn parameters_with_attributes_are_read_and_expanded_tensors_named() {
    let tagged = read("tagged.pth");
    assert_eq!(numbers(&tagged.tensors["backbone.bn1.weight"]), [0.5, 1.5]);
    let error = import(&file("expanded.pth")).unwrap_err().to_string();
    assert!(error.contains("`conv1.weight`") && error.contains("expanded"), "{error}");
}

#[test]
fn code_in_a_file_is_named_and_not_run() {
    let error = import(&file("harm.pth")).unwrap_err().to_string();
    assert!(error.contains("__builtin__.print") || error.contains("builtins.print"), "{error}");
    assert!(error.contains("no code is run"), "{error}");
}
