//! A ResNet-50's state, a sixteenth as wide, and lists of names as other tools have them.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_checkpoint_core::{Dtype, OwnedTensor};
use mcl_export::{Encoder, ExportRequest, ExportedFile, Format, Provenance, Tensors, export};
use std::collections::BTreeMap;

/// Name to shape.
pub type Shapes = BTreeMap<String, Vec<usize>>;

/// Channels are divided by it, in states and lists alike.
const THINNER: usize = 16;

/// A kept list, a sixteenth as wide.
pub fn list(file: &str) -> Shapes {
    let path = format!("{}/tests/data/{file}", env!("CARGO_MANIFEST_DIR"));
    let text = std::fs::read_to_string(&path).unwrap_or_else(|e| panic!("{path}: {e}"));
    let line = |line: &str| {
        let mut fields = line.split('\t');
        let (name, shape) = (fields.next().unwrap().to_owned(), fields.next().unwrap());
        let sizes = shape.trim_matches(['(', ')']).split(',').filter(|s| !s.trim().is_empty());
        (name, thin(&sizes.map(|s| s.trim().parse().unwrap()).collect::<Vec<usize>>()))
    };
    text.lines().filter(|l| !l.starts_with('#')).map(line).collect()
}

fn thin(shape: &[usize]) -> Vec<usize> {
    let channels =
        |(axis, size): (usize, &usize)| if axis < 2 && *size >= THINNER { size / THINNER } else { *size };
    shape.iter().enumerate().map(channels).collect()
}

/// A tensor whose bits depend on its name; variances are positive.
pub fn tensor(name: &str, shape: &[usize]) -> OwnedTensor {
    let count: usize = shape.iter().product();
    let mut state =
        name.bytes().fold(0xcbf2_9ce4_8422_2325_u64, |h, b| (h ^ u64::from(b)).wrapping_mul(0x100_0000_01b3));
    let mut next = || {
        state = state.wrapping_mul(6_364_136_223_846_793_005).wrapping_add(1_442_695_040_888_963_407);
        (state >> 40) as f32 / (1_u64 << 24) as f32
    };
    if name.ends_with("num_batches_tracked") {
        let bytes = i64::try_from(name.len()).unwrap().to_le_bytes().to_vec();
        return OwnedTensor { dtype: Dtype::I64, shape: vec![], bytes };
    }
    let low = if name.ends_with("running_var") { 0.1 } else { -0.5 };
    let bytes = (0..count).flat_map(|_| (next() + low).to_le_bytes()).collect();
    OwnedTensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

/// The state of a run: both encoders, predictors, an optimiser.
pub fn state() -> Tensors {
    let mut state = Tensors::new();
    for (name, shape) in list("names_r50.txt") {
        state.insert(name.clone(), tensor(&name, &shape));
        if let Some(rest) = name.strip_prefix("encoder_q.") {
            let other = format!("encoder_k.{rest}");
            state.insert(other.clone(), tensor(&other, &shape));
        }
    }
    let moment = "optimizer.momentum_buffer.encoder_q.0.conv1.weight";
    state.insert(moment.to_owned(), tensor(moment, &[4, 3, 7, 7]));
    state
}

pub fn provenance() -> Provenance {
    Provenance {
        run: "demo".to_owned(),
        steps: 500,
        state_digest: "ab".repeat(32),
        builder: "mcl 0.1.0".to_owned(),
        exporter: "mcl 0.1.0".to_owned(),
        created: 1_700_000_000,
        meta: serde_json::json!({"epoch": 3, "seed": 7, "dataset_digest": "cd".repeat(32), "from": "resnet50.safetensors"}),
        job: Some("[model]\ndepth = 50\n".to_owned()),
        last_loss: Some(1.25),
    }
}

/// The usual name of a file of a format.
pub const fn file_name(format: Format) -> &'static str {
    match format {
        Format::Safetensors => "mcl.safetensors",
        Format::Detectron2 => "mcl.pkl",
        _ => "mcl.pth",
    }
}

pub fn exported(state: &Tensors, format: Format, encoder: Encoder) -> Vec<ExportedFile> {
    let provenance = provenance();
    let request = ExportRequest { format, encoder, file_name: file_name(format), provenance: &provenance };
    export(&request, state).unwrap().files
}
