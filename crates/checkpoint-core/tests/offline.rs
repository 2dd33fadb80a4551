//! Reading checkpoints from folders, without a service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_checkpoint_core::{CheckpointDir, CheckpointStore, Depth, Layout, OpenError, StoreError};
use mcl_types::Step;
use support::save;

#[tokio::test]
async fn a_run_its_checkpoints_and_one_step_all_open() {
    let run_dir = tempfile::tempdir().unwrap();
    let root = run_dir.path().join("checkpoints");
    let store = CheckpointStore::local(&root, Layout::Flat).unwrap();
    save(&store, "a", 10, 1, 2).await.unwrap();
    let newest = save(&store, "a", 20, 2, 3).await.unwrap();

    for path in [run_dir.path(), root.as_path()] {
        let dir = CheckpointDir::open(path).unwrap();
        assert_eq!(dir.list(Depth::Full).await.unwrap().visible.len(), 2);
        assert_eq!(dir.newest().await.unwrap(), Some(Step::new(20)));
    }
    let dir = CheckpointDir::open(root.join("step-0000000010")).unwrap();
    assert_eq!(dir.list(Depth::Quick).await.unwrap().visible.len(), 1);
    assert_eq!(dir.newest().await.unwrap(), Some(Step::new(10)));
    let (manifest, digests) = dir.verify(Step::new(20)).await.unwrap();
    assert_eq!(manifest, newest);
    assert_eq!(digests.len(), support::TENSORS);
    assert!(digests.is_sorted_by(|a, b| a.name < b.name));
    assert!(matches!(dir.verify(Step::new(11)).await, Err(StoreError::NoCheckpoint { .. })));
}

#[tokio::test]
async fn other_folders_are_refused_with_a_hint() {
    let root = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(root.path(), Layout::RunFolders).unwrap();
    save(&store, "demo", 10, 1, 1).await.unwrap();
    let error = CheckpointDir::open(root.path()).unwrap_err();
    assert!(error.to_string().contains("try one of its folders: demo"), "{error}");
    assert!(CheckpointDir::open(root.path().join("demo")).is_ok());
    let empty = tempfile::tempdir().unwrap();
    assert!(matches!(CheckpointDir::open(empty.path()), Err(OpenError::NoCheckpoints { .. })));
    assert!(matches!(CheckpointDir::open(empty.path().join("x")), Err(OpenError::Unreadable { .. })));
    std::fs::create_dir(empty.path().join("checkpoints")).unwrap();
    let dir = CheckpointDir::open(empty.path()).unwrap();
    assert_eq!(dir.newest().await.unwrap(), None);
}

/// The command line may read without a runtime of its own.
#[test]
fn reading_needs_no_runtime() {
    let folder = tempfile::tempdir().unwrap();
    futures::executor::block_on(async {
        let store = CheckpointStore::local(folder.path(), Layout::Flat).unwrap();
        save(&store, "a", 10, 1, 2).await.unwrap();
        let dir = CheckpointDir::open(folder.path()).unwrap();
        assert_eq!(dir.newest().await.unwrap(), Some(Step::new(10)));
        dir.verify(Step::new(10)).await.unwrap();
    });
}
