//! What a store promises, over each implementation: a local folder in both layouts, memory, and a real S3
//! server.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod support;

use bytes::Bytes;
use mcl_checkpoint_core::{CheckpointStore, Depth, Layout, Limits, SliceView, StoreError, digest_state};
use mcl_testkit::S3Server;
use mcl_types::{Retention, Step};
use object_store::memory::InMemory;
use std::sync::Arc;
use support::{commit_spec, in_s3, run, save, slices, spec, stage};

/// What the stores below live in.
struct Homes {
    _folders: Vec<tempfile::TempDir>,
    _s3: S3Server,
}

/// Every implementation, each fresh; they live as long as the guard.
fn stores() -> (Vec<CheckpointStore>, Homes) {
    let folders: Vec<_> = (0..2).map(|_| tempfile::tempdir().unwrap()).collect();
    let s3 = S3Server::start();
    let stores = vec![
        CheckpointStore::local(folders[0].path(), Layout::RunFolders).unwrap(),
        CheckpointStore::local(folders[1].path().join("checkpoints"), Layout::Flat).unwrap(),
        CheckpointStore::over(Arc::new(InMemory::new()), Layout::RunFolders),
        in_s3(&s3, "a/prefix"),
    ];
    (stores, Homes { _folders: folders, _s3: s3 })
}

#[tokio::test]
async fn what_is_committed_is_visible_and_reads_back() {
    let (stores, _homes) = stores();
    for store in stores {
        assert!(store.latest_good(&run("a")).await.unwrap().is_none());
        stage(&store, "a", 10, 1, 2).await.unwrap();
        let inventory = store.list(&run("a"), Depth::Full).await.unwrap();
        assert_eq!((inventory.visible.len(), inventory.staged), (0, vec![Step::new(10)]));
        assert!(matches!(
            store.manifest(&run("a"), Step::new(10)).await,
            Err(StoreError::NoCheckpoint { .. })
        ));

        let manifest = store.commit(&commit_spec("a", 10, 2)).await.unwrap();
        assert_eq!(manifest.tensors, support::TENSORS as u64);
        assert_eq!(manifest.meta["cursor"]["step"], 10);
        let inventory = store.list(&run("a"), Depth::Full).await.unwrap();
        assert_eq!(inventory.visible[0].manifest, manifest);
        assert!(inventory.visible[0].verified && inventory.damaged.is_empty() && inventory.staged.is_empty());
        for (i, bytes) in slices(1, 2).into_iter().enumerate() {
            assert_eq!(store.read_slice(&run("a"), Step::new(10), i as u32).await.unwrap(), bytes);
        }
        assert_eq!(store.verify(&run("a"), Step::new(10)).await.unwrap(), manifest);
        assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), manifest);
        assert!(matches!(
            store.read_slice(&run("a"), Step::new(10), 2).await,
            Err(StoreError::SliceNumber { slice: 2, slices: 2 })
        ));
    }
}

#[tokio::test]
async fn a_slice_reads_in_chunks_of_any_size() {
    let (stores, _homes) = stores();
    for store in stores {
        save(&store, "a", 1, 1, 1).await.unwrap();
        let expected = slices(1, 1).remove(0);
        for chunk in [1, 7, expected.len() - 1, expected.len(), expected.len() + 1] {
            let mut reader = store.slice_reader(&run("a"), Step::new(1), 0, chunk).await.unwrap();
            let mut bytes = Vec::new();
            while let Some(part) = reader.next().await.unwrap() {
                bytes.extend_from_slice(&part);
            }
            assert_eq!(bytes, expected, "chunk {chunk}");
        }
    }
}

#[tokio::test]
async fn the_digest_is_that_of_the_state_whatever_the_slicing() {
    let (stores, _homes) = stores();
    for store in stores {
        let two = save(&store, "a", 10, 1, 2).await.unwrap();
        let three = save(&store, "a", 20, 1, 3).await.unwrap();
        let other = save(&store, "a", 30, 2, 3).await.unwrap();
        assert_eq!(two.state_digest, three.state_digest);
        assert_ne!(two.state_digest, other.state_digest);
        let whole = slices(1, 1);
        assert_eq!(digest_state(&[SliceView::parse(&whole[0]).unwrap()]).unwrap(), two.state_digest);
    }
}

#[tokio::test]
async fn a_commit_repeats_and_a_different_one_is_refused() {
    let (stores, _homes) = stores();
    for store in stores {
        let first = save(&store, "a", 10, 1, 2).await.unwrap();
        let later = mcl_checkpoint_core::CommitSpec { created: 1_800_000_000, ..commit_spec("a", 10, 2) };
        assert_eq!(store.commit(&later).await.unwrap(), first, "the first commit stands, its time included");
        assert_eq!(save(&store, "a", 10, 1, 2).await.unwrap(), first, "staging the same again is fine too");

        let conflict = |error: StoreError| matches!(error, StoreError::Conflict { .. });
        assert!(conflict(store.commit(&commit_spec("a", 10, 3)).await.unwrap_err()));
        let other_meta = mcl_checkpoint_core::CommitSpec { meta: 1.into(), ..commit_spec("a", 10, 2) };
        assert!(conflict(store.commit(&other_meta).await.unwrap_err()));
        assert!(conflict(stage(&store, "a", 10, 2, 2).await.unwrap_err()));
        // The same state cut otherwise is the same commit; another state is not.
        assert_eq!(save(&store, "a", 10, 1, 3).await.unwrap(), first);
        assert!(conflict(save(&store, "a", 10, 2, 3).await.unwrap_err()));
        assert_eq!(store.verify(&run("a"), Step::new(10)).await.unwrap(), first);
    }
}

#[tokio::test]
async fn a_later_coordinator_or_generation_that_repeats_a_commit_gets_the_first_one() {
    let (stores, _homes) = stores();
    for store in stores {
        let by = |term: u64, generation: u64, seed: u64| mcl_checkpoint_core::CommitSpec {
            meta: serde_json::json!({ "term": term, "generation": generation, "seed": seed }),
            ..commit_spec("a", 10, 2)
        };
        stage(&store, "a", 10, 1, 2).await.unwrap();
        let first = store.commit(&by(1, 4, 7)).await.unwrap();
        assert_eq!(first.meta["term"], 1);
        for repeated in [by(2, 4, 7), by(2, 5, 7)] {
            assert_eq!(store.commit(&repeated).await.unwrap(), first);
        }
        assert!(matches!(store.commit(&by(1, 4, 8)).await.unwrap_err(), StoreError::Conflict { .. }));
    }
}

#[tokio::test]
async fn concurrent_commits_agree() {
    let (stores, _homes) = stores();
    for store in stores {
        stage(&store, "a", 10, 1, 3).await.unwrap();
        let spec = commit_spec("a", 10, 3);
        let commits = futures::future::join_all((0..8).map(|_| store.commit(&spec))).await;
        let digests: Vec<_> = commits.into_iter().map(|m| m.unwrap().state_digest).collect();
        assert!(digests.iter().all(|d| *d == digests[0]));
    }
}

#[tokio::test]
async fn two_processes_that_commit_agree() {
    let folder = tempfile::tempdir().unwrap();
    let open = || CheckpointStore::local(folder.path(), Layout::RunFolders).unwrap();
    let (one, two) = (open(), open());
    stage(&one, "a", 10, 1, 2).await.unwrap();
    let spec = commit_spec("a", 10, 2);
    let (a, b) = tokio::join!(one.commit(&spec), two.commit(&spec));
    // Their locks are not shared: one may find the other's tickets gone and say so, never disagree.
    let digests: Vec<_> = [a, b].into_iter().flatten().map(|m| m.state_digest).collect();
    assert!(!digests.is_empty());
    assert_eq!(one.commit(&spec).await.unwrap().state_digest, digests[0]);
}

#[tokio::test]
async fn nothing_is_committed_before_every_slice_is_there() {
    let (stores, _homes) = stores();
    for store in stores {
        let parts = slices(1, 3);
        for i in [0, 2] {
            store
                .stage_slice(spec("a", 10, i, 3, &parts[i as usize]), parts[i as usize].clone())
                .await
                .unwrap();
        }
        let error = store.commit(&commit_spec("a", 10, 3)).await.unwrap_err();
        assert!(matches!(error, StoreError::NotStaged { slice: 1, slices: 3, .. }), "{error}");
        assert!(matches!(store.commit(&commit_spec("a", 10, 0)).await, Err(StoreError::SliceNumber { .. })));
        assert!(store.latest_good(&run("a")).await.unwrap().is_none());
    }
}

#[tokio::test]
async fn a_slice_staged_again_replaces_the_one_before() {
    let (stores, _homes) = stores();
    for store in stores {
        stage(&store, "a", 10, 1, 2).await.unwrap();
        save(&store, "a", 10, 2, 2).await.unwrap();
        assert_eq!(store.read_slice(&run("a"), Step::new(10), 0).await.unwrap(), slices(2, 2)[0]);
    }
}

#[tokio::test]
async fn slices_of_two_states_do_not_make_a_checkpoint() {
    let (stores, _homes) = stores();
    for store in stores {
        let whole = slices(1, 1).remove(0);
        for i in 0..2 {
            store.stage_slice(spec("a", 10, i, 2, &whole), whole.clone()).await.unwrap();
        }
        let error = store.commit(&commit_spec("a", 10, 2)).await.unwrap_err();
        assert!(matches!(error, StoreError::BadStage { .. }), "{error}");
        let noise = Bytes::from_static(b"this is no safetensors file");
        store.stage_slice(spec("a", 20, 0, 1, &noise), noise).await.unwrap();
        let error = store.commit(&commit_spec("a", 20, 1)).await.unwrap_err();
        assert!(matches!(error, StoreError::BadStage { .. }), "{error}");
        assert!(store.list(&run("a"), Depth::Full).await.unwrap().visible.is_empty());
    }
}

#[tokio::test]
async fn an_upload_that_is_wrong_or_dropped_stages_nothing() {
    let (stores, _homes) = stores();
    for store in stores {
        let bytes = slices(1, 1).remove(0);
        let spec = |size| mcl_checkpoint_core::SliceSpec { size, ..spec("a", 10, 0, 1, &bytes) };
        let len = bytes.len() as u64;
        let short = store.stage_slice(spec(len + 1), bytes.clone()).await;
        assert!(matches!(short, Err(StoreError::Length { .. })));
        let long = store.stage_slice(spec(len - 1), bytes.clone()).await;
        assert!(matches!(long, Err(StoreError::Length { .. })));
        let mut other = store.begin_slice(spec(len)).await.unwrap();
        other.write(bytes.clone()).await.unwrap();
        let other = other.finish(mcl_types::Digest::of(b"x")).await;
        assert!(matches!(other, Err(StoreError::Hash { .. })));
        let mut dropped = store.begin_slice(spec(len)).await.unwrap();
        dropped.write(bytes.slice(..10)).await.unwrap();
        drop(dropped);
        assert!(matches!(store.commit(&commit_spec("a", 10, 1)).await, Err(StoreError::NotStaged { .. })));
        let small = store.clone().with_limits(Limits { slice_bytes: 10 });
        assert!(matches!(small.stage_slice(spec(len), bytes).await, Err(StoreError::TooLarge { .. })));
    }
}

#[tokio::test]
async fn runs_do_not_meet() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(folder.path(), Layout::RunFolders).unwrap();
    save(&store, "a", 10, 1, 2).await.unwrap();
    save(&store, "b", 10, 2, 2).await.unwrap();
    save(&store, "b", 20, 2, 2).await.unwrap();
    store.prune(&run("b"), Retention::newest(1), Step::new(20)).await.unwrap();
    assert_eq!(store.list(&run("a"), Depth::Full).await.unwrap().visible.len(), 1);
    assert_eq!(store.list(&run("b"), Depth::Full).await.unwrap().visible.len(), 1);

    // A folder of one run refuses another's.
    let flat = CheckpointStore::local(folder.path().join("a"), Layout::Flat).unwrap();
    assert_eq!(flat.list(&run("a"), Depth::Full).await.unwrap().visible.len(), 1);
    let other = flat.list(&run("c"), Depth::Quick).await.unwrap();
    assert_eq!((other.visible.len(), other.damaged.len()), (0, 1));
    assert!(other.damaged[0].1.to_string().contains("belongs to run `a`"));
    assert!(matches!(save(&flat, "c", 10, 1, 2).await, Err(StoreError::Damaged { .. })));
    save(&flat, "c", 20, 1, 2).await.unwrap();
    assert!(flat.prune(&run("c"), Retention::newest(1), Step::new(20)).await.unwrap().is_empty());
    assert!(flat.verify(&run("a"), Step::new(10)).await.is_ok(), "another run's checkpoint stays");
}

#[tokio::test]
async fn pruning_keeps_the_newest_and_never_the_one_to_come() {
    let (stores, _homes) = stores();
    for store in stores {
        for step in [10, 20, 30, 40] {
            save(&store, "a", step, step as u8, 2).await.unwrap();
        }
        stage(&store, "a", 25, 9, 2).await.unwrap();
        stage(&store, "a", 50, 9, 2).await.unwrap();
        let steps = async || -> Vec<u64> {
            let all = store.list(&run("a"), Depth::Full).await.unwrap();
            all.visible.iter().map(|e| e.manifest.step.get()).collect()
        };
        assert_eq!(
            store.prune(&run("a"), Retention::newest(0), Step::new(40)).await.unwrap(),
            [Step::new(25)]
        );
        assert_eq!(steps().await, [10, 20, 30, 40]);
        let gone = store.prune(&run("a"), Retention::newest(2), Step::new(40)).await.unwrap();
        assert_eq!(gone, [Step::new(20), Step::new(10)]);
        assert_eq!(steps().await, [30, 40]);
        assert!(
            store.prune(&run("a"), Retention::newest(1), Step::new(50)).await.unwrap().is_empty(),
            "50 is not visible"
        );
        store.commit(&commit_spec("a", 50, 2)).await.unwrap();
        // A step before the newest is committed late: what is newer stays.
        assert_eq!(
            store.prune(&run("a"), Retention::newest(1), Step::new(40)).await.unwrap(),
            [Step::new(30)]
        );
        assert_eq!(steps().await, [40, 50]);
    }
}

#[tokio::test]
async fn a_committed_folder_holds_the_checkpoint_and_nothing_else() {
    let folder = tempfile::tempdir().unwrap();
    let store = CheckpointStore::local(folder.path(), Layout::Flat).unwrap();
    stage(&store, "a", 10, 1, 3).await.unwrap();
    let step = folder.path().join("step-0000000010");
    std::fs::write(step.join("slice-000-of-002.safetensors#1"), b"half").unwrap();
    save(&store, "a", 10, 1, 2).await.unwrap();
    let mut names: Vec<String> =
        std::fs::read_dir(step).unwrap().map(|e| e.unwrap().file_name().into_string().unwrap()).collect();
    names.sort();
    assert_eq!(names, ["manifest.json", "slice-000-of-002.safetensors", "slice-001-of-002.safetensors"]);
}
