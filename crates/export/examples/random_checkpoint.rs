//! Writes a checkpoint of random weights: `random_checkpoint LIST FOLDER`.
//!
//! LIST has a tensor a line, name and shape, as `tests/data/names_r50.txt`. FOLDER becomes a folder of checkpoints with
//! one of 100 steps in three slices, as a run would have left it, without a run. For `make interop`, which needs full
//! sizes and no training. Variances are positive and counters are counts; the same list gives the same bytes.

use mcl_checkpoint_core::{
    CheckpointStore, CommitSpec, Dtype, Layout, OwnedTensor, SliceSpec, TensorInfo, assign, write_slice,
};
use mcl_types::{Digest, RunId, SplitMix64, Step};
use std::collections::BTreeMap;
use std::error::Error;

const SLICES: u32 = 3;
const STEPS: u64 = 100;

fn main() -> Result<(), Box<dyn Error>> {
    let mut arguments = std::env::args().skip(1);
    let (Some(list), Some(folder)) = (arguments.next(), arguments.next()) else {
        return Err("expected two arguments: a list of names and shapes, and a folder".into());
    };
    let state = random_state(&std::fs::read_to_string(&list)?)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    runtime.block_on(save(&state, &folder))
}

/// Both encoders and the predictors.
fn random_state(list: &str) -> Result<BTreeMap<String, OwnedTensor>, Box<dyn Error>> {
    let mut state = BTreeMap::new();
    let mut seed = 0;
    let mut add = |name: String, shape: &[usize]| {
        seed += 1;
        let tensor = random_tensor(&name, shape, &mut SplitMix64::new(seed));
        state.insert(name, tensor);
    };
    for line in list.lines().filter(|l| !l.starts_with('#')) {
        let mut fields = line.split('\t');
        let (name, shape) = fields.next().zip(fields.next()).ok_or("a line has no shape")?;
        let sizes = shape.trim_matches(['(', ')']).split(',').map(str::trim).filter(|s| !s.is_empty());
        let sizes: Vec<usize> = sizes.map(str::parse).collect::<Result<_, _>>()?;
        add(name.to_owned(), &sizes);
        if let Some(rest) = name.strip_prefix("encoder_q.") {
            add(format!("encoder_k.{rest}"), &sizes);
        }
    }
    Ok(state)
}

/// Weights of a size that keeps activations near one: uniform, of variance 2 over the inputs, and little from a
/// residual branch, so that sixteen of them do not add up.
#[expect(clippy::cast_precision_loss, clippy::cast_possible_truncation, reason = "random numbers")]
fn random_tensor(name: &str, shape: &[usize], random: &mut SplitMix64) -> OwnedTensor {
    if name.ends_with("num_batches_tracked") {
        let bytes = (STEPS as i64).to_le_bytes().to_vec();
        return OwnedTensor { dtype: Dtype::I64, shape: Vec::new(), bytes };
    }
    let count: usize = shape.iter().product();
    let inputs: usize = shape.iter().skip(1).product();
    let (low, high) = match name.rsplit('.').next() {
        _ if shape.len() > 1 => (-(6.0 / inputs as f64).sqrt(), (6.0 / inputs as f64).sqrt()),
        Some("weight") if name.contains(".bn3.") || name.contains("_convs.") => (0.0, 0.3),
        Some("running_var" | "weight") => (0.5, 1.5),
        _ => (-0.2, 0.2),
    };
    let mut number = || random.range(low, high);
    let bytes = (0..count).flat_map(|_| (number() as f32).to_le_bytes()).collect();
    OwnedTensor { dtype: Dtype::F32, shape: shape.to_vec(), bytes }
}

async fn save(state: &BTreeMap<String, OwnedTensor>, folder: &str) -> Result<(), Box<dyn Error>> {
    let all: Vec<_> = state.iter().collect();
    let info = |(name, tensor): &(&String, &OwnedTensor)| TensorInfo {
        name: (*name).clone(),
        dtype: tensor.dtype,
        shape: tensor.shape.clone(),
        bytes: tensor.bytes.len() as u64,
    };
    let infos: Vec<TensorInfo> = all.iter().map(info).collect();
    let store = CheckpointStore::local(folder, Layout::Flat)?;
    let (run, step) = (RunId::new("random")?, Step::new(STEPS));
    for (slice, part) in (0..).zip(assign(&infos, SLICES)) {
        let tensor = |at: usize| {
            (all[at].0.clone(), all[at].1.dtype, all[at].1.shape.clone(), all[at].1.bytes.as_slice())
        };
        let bytes = bytes::Bytes::from(write_slice(&part.into_iter().map(tensor).collect::<Vec<_>>())?);
        let size = bytes.len() as u64;
        let spec = SliceSpec { run: run.clone(), step, slice, slices: SLICES, size };
        store.stage_slice(spec, bytes).await?;
    }
    let meta = serde_json::json!({ "run_id": "random", "step": STEPS, "epoch": 0, "seed": 0, "dataset_digest": Digest::of(b"no pictures").to_string() });
    store.commit(&CommitSpec { run, step, slices: SLICES, created: 1_700_000_000, meta }).await?;
    println!("{folder}: {} tensors, {SLICES} slices", all.len());
    Ok(())
}
