//! What a slice takes that is to stay in memory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use mcl_checkpoint_core::{CheckpointStore, Dtype, StoreError, write_slice};
use mcl_types::{Digest, Step};
use peak_alloc::PeakAlloc;
use support::{commit_spec, run, spec};

#[global_allocator]
static ALLOCATOR: PeakAlloc = PeakAlloc;

const CHUNK: usize = 1 << 20;

#[tokio::test]
async fn a_slice_that_is_to_stay_in_memory_is_there_once() {
    let data = vec![7_u8; 48 << 20];
    let slice = write_slice(&[("w".to_owned(), Dtype::U8, vec![data.len()], data.as_slice())]).unwrap();
    let (hash, size) = (Digest::of(&slice), slice.len());
    drop(data);
    let store = CheckpointStore::in_memory();
    let before = ALLOCATOR.current_usage();
    ALLOCATOR.reset_peak_usage();
    let mut upload = store.begin_whole_slice(spec("a", 1, 0, 1, &slice)).unwrap();
    for chunk in slice.chunks(CHUNK) {
        upload.write(Bytes::copy_from_slice(chunk)).await.unwrap();
    }
    upload.finish(hash).await.unwrap();
    store.commit(&commit_spec("a", 1, 1)).await.unwrap();
    let more = ALLOCATOR.peak_usage() - before;
    assert!(more < size + 4 * CHUNK, "{more} bytes for a slice of {size}");
    assert_eq!(store.read_slice(&run("a"), Step::new(1), 0).await.unwrap(), slice);
}

#[tokio::test]
async fn a_whole_slice_that_is_wrong_leaves_nothing() {
    let store = CheckpointStore::in_memory();
    let bytes = Bytes::from(vec![1; 100]);
    let mut short = store.begin_whole_slice(spec("a", 1, 0, 1, &bytes)).unwrap();
    short.write(bytes.slice(..99)).await.unwrap();
    assert!(matches!(short.finish(Digest::of(&bytes)).await, Err(StoreError::Length { .. })));
    let mut other = store.begin_whole_slice(spec("a", 1, 0, 1, &bytes)).unwrap();
    other.write(Bytes::from(vec![2; 100])).await.unwrap();
    assert!(matches!(other.finish(Digest::of(&bytes)).await, Err(StoreError::Hash { .. })));
    let mut long = store.begin_whole_slice(spec("a", 1, 0, 1, &bytes)).unwrap();
    long.write(bytes.clone()).await.unwrap();
    assert!(matches!(long.write(bytes).await, Err(StoreError::Length { .. })));
    drop(long);
    assert_eq!(store.bytes().await.unwrap(), 0);
}
