//! Reading checkpoints from folders, without a service.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use mcl_checkpoint_core::{CheckpointDir, CheckpointStore, Depth, Layout, OpenError, StoreError};
use mcl_types::{Retention, Step};
use support::{commit_spec, run, save, stage};

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
async fn pruning_beside_a_service_takes_only_good_old_checkpoints() {
    let root = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(root.path(), Layout::Flat).unwrap();
    for step in [10, 20, 30, 40, 50, 60] {
        save(&store, "a", step, step as u8, 2).await.unwrap();
    }
    // One is being staged, far behind; one is damaged; the newest too.
    stage(&store, "a", 25, 9, 2).await.unwrap();
    let slice = |step: u64| root.path().join(format!("step-{step:010}/slice-000-of-002.safetensors"));
    std::fs::write(slice(30), b"rot").unwrap();
    std::fs::write(slice(60), b"rot").unwrap();
    let dir = CheckpointDir::open(root.path()).unwrap();
    dir.pin(Step::new(10), true).await.unwrap();
    let missing = dir.pin(Step::new(11), true).await.unwrap_err();
    assert!(matches!(missing, StoreError::NoCheckpoint { .. }), "{missing}");
    let retention = Retention::newest(1);
    let would = dir.prune(retention, true).await.unwrap();
    assert_eq!(would, [Step::new(40), Step::new(30), Step::new(20)]);
    assert!(slice(40).is_file(), "a dry run takes nothing");
    assert_eq!(dir.prune(retention, false).await.unwrap(), would);
    let left = dir.list(Depth::Quick).await.unwrap();
    let steps: Vec<_> = left.visible.iter().map(|e| (e.manifest.step.get(), e.pinned)).collect();
    assert_eq!(steps, [(10, true), (50, false)]);
    assert_eq!(left.staged, [Step::new(25)]);
    // The staged one is still whole.
    store.commit(&commit_spec("a", 25, 2)).await.unwrap();
    dir.pin(Step::new(10), false).await.unwrap();
    let gone = dir.prune(Retention { keep: 1, keep_every: 25 }, false).await.unwrap();
    assert_eq!(gone, [Step::new(10)]);
    assert_eq!(dir.newest().await.unwrap(), Some(Step::new(50)));
}

#[tokio::test]
async fn a_pinned_checkpoint_outlives_the_services_own_retention() {
    let root = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(root.path(), Layout::Flat).unwrap();
    let dir = CheckpointDir::open(root.path());
    assert!(dir.is_err(), "nothing is there yet");
    save(&store, "a", 10, 1, 2).await.unwrap();
    CheckpointDir::open(root.path()).unwrap().pin(Step::new(10), true).await.unwrap();
    // A repeated commit tidies its folder; the pin stays.
    save(&store, "a", 10, 1, 3).await.unwrap();
    for step in [20, 30] {
        save(&store, "a", step, step as u8, 2).await.unwrap();
        store.prune(&run("a"), Retention::newest(1), Step::new(step)).await.unwrap();
    }
    let steps = store.list(&run("a"), Depth::Full).await.unwrap().visible;
    assert_eq!(steps.iter().map(|e| e.manifest.step.get()).collect::<Vec<_>>(), [10, 30]);
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
