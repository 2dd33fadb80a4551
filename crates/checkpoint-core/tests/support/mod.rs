//! Builders that the tests of the store share.
#![allow(dead_code, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use mcl_checkpoint_core::{
    CheckpointStore, CommitSpec, Dtype, Layout, Manifest, SliceSpec, StoreError, TensorInfo, assign,
    write_slice,
};
use mcl_testkit::S3Server;
use mcl_types::{RunId, Step};

pub const TENSORS: usize = 7;

pub fn run(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

/// A store at a place in an S3 server.
pub fn in_s3(server: &S3Server, prefix: &str) -> CheckpointStore {
    let settings = server.environment().into_iter().map(|(key, value)| (key.to_owned(), value));
    let location = server.url(prefix).parse().unwrap();
    CheckpointStore::open_with(&location, Layout::RunFolders, settings).unwrap()
}

/// A small state that differs with `seed`, cut into `parts` slices.
pub fn slices(seed: u8, parts: u32) -> Vec<Bytes> {
    let bytes =
        |i: usize| -> Vec<u8> { (0..(i + 1) * 16).map(|b| (b as u8) ^ seed ^ (i as u8) << 4).collect() };
    let infos: Vec<TensorInfo> = (0..TENSORS)
        .map(|i| TensorInfo {
            name: format!("layer{i}.weight"),
            dtype: Dtype::F32,
            shape: vec![i + 1, 4],
            bytes: bytes(i).len() as u64,
        })
        .collect();
    let data: Vec<Vec<u8>> = (0..TENSORS).map(bytes).collect();
    let slice = |part: Vec<usize>| {
        let tensors: Vec<_> = part
            .into_iter()
            .map(|i| (infos[i].name.clone(), infos[i].dtype, infos[i].shape.clone(), data[i].as_slice()))
            .collect();
        Bytes::from(write_slice(&tensors).unwrap())
    };
    assign(&infos, parts).into_iter().map(slice).collect()
}

pub fn spec(name: &str, step: u64, slice: u32, slices: u32, bytes: &[u8]) -> SliceSpec {
    let size = bytes.len() as u64;
    SliceSpec { run: run(name), step: Step::new(step), slice, slices, size }
}

pub fn commit_spec(name: &str, step: u64, slices: u32) -> CommitSpec {
    let meta = serde_json::json!({"cursor": {"epoch": 0, "step": step}});
    CommitSpec { run: run(name), step: Step::new(step), slices, created: 1_700_000_000, meta }
}

pub async fn stage(
    store: &CheckpointStore,
    name: &str,
    step: u64,
    seed: u8,
    parts: u32,
) -> Result<(), StoreError> {
    for (i, bytes) in slices(seed, parts).into_iter().enumerate() {
        store.stage_slice(spec(name, step, i as u32, parts, &bytes), bytes).await?;
    }
    Ok(())
}

/// Stages and commits.
pub async fn save(
    store: &CheckpointStore,
    name: &str,
    step: u64,
    seed: u8,
    parts: u32,
) -> Result<Manifest, StoreError> {
    stage(store, name, step, seed, parts).await?;
    store.commit(&commit_spec(name, step, parts)).await
}
