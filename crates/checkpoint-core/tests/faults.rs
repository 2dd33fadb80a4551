//! Damage on the disk is found, whatever byte it hits; a failing disk hurts nothing that was there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faulty;
mod support;

use faulty::FaultyStore;
use mcl_checkpoint_core::{CheckpointStore, Damage, Depth, Layout, MANIFEST_FORMAT, Manifest, StoreError};
use mcl_types::{Retention, Step};
use object_store::local::LocalFileSystem;
use object_store::memory::InMemory;
use proptest::prelude::*;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use support::{commit_spec, run, save, slices, stage};

const FILES: [&str; 3] = ["manifest.json", "slice-000-of-002.safetensors", "slice-001-of-002.safetensors"];

struct Saved {
    folder: tempfile::TempDir,
    store: CheckpointStore,
}

impl Saved {
    /// Steps 10 and 20, two slices each.
    async fn new() -> Self {
        let folder = tempfile::tempdir().unwrap();
        let store = CheckpointStore::local(folder.path(), Layout::Flat).unwrap();
        save(&store, "a", 10, 1, 2).await.unwrap();
        save(&store, "a", 20, 2, 2).await.unwrap();
        Self { folder, store }
    }

    fn file(&self, name: &str) -> PathBuf {
        self.folder.path().join("step-0000000020").join(name)
    }

    async fn expect_step_10(&self, what: &str) {
        let error = self.store.verify(&run("a"), Step::new(20)).await.expect_err(what);
        let found = matches!(error, StoreError::Damaged { .. } | StoreError::NoCheckpoint { .. });
        assert!(found, "{what}: {error}");
        let latest = self.store.latest_good(&run("a")).await.unwrap().expect(what);
        assert_eq!(latest.step, Step::new(10), "{what}");
        let listed =
            self.store.list(&run("a"), Depth::NewestGood { at_most: Step::new(u64::MAX) }).await.unwrap();
        assert_eq!(listed.visible.len(), 1, "{what}");
        assert_eq!(listed.damaged.len(), 1, "{what}: {:?}", listed.damaged);
    }
}

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(48))]
    #[test]
    fn a_flipped_bit_anywhere_is_found(file in 0_usize..3, at in any::<prop::sample::Index>(), bit in 0_u8..8) {
        runtime().block_on(async {
            let saved = Saved::new().await;
            let path = saved.file(FILES[file]);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            bytes[at] ^= 1 << bit;
            std::fs::write(&path, bytes).unwrap();
            saved.expect_step_10(&format!("bit {bit} of byte {at} of {}", FILES[file])).await;
        });
    }

    #[test]
    fn a_file_cut_or_grown_is_found(file in 0_usize..3, at in any::<prop::sample::Index>(), grow in any::<bool>()) {
        runtime().block_on(async {
            let saved = Saved::new().await;
            let path = saved.file(FILES[file]);
            let mut bytes = std::fs::read(&path).unwrap();
            let at = at.index(bytes.len());
            if grow { bytes.extend_from_slice(&[0; 3]) } else { bytes.truncate(at) }
            std::fs::write(&path, bytes).unwrap();
            saved.expect_step_10(&format!("{} cut at {at} or grown", FILES[file])).await;
        });
    }
}

#[tokio::test]
async fn every_byte_of_a_slice_counts_when_read_in_chunks() {
    let saved = Saved::new().await;
    let path = saved.file(FILES[1]);
    let good = std::fs::read(&path).unwrap();
    for at in 0..good.len() {
        let mut bytes = good.clone();
        bytes[at] ^= 1;
        std::fs::write(&path, &bytes).unwrap();
        let mut reader = saved.store.slice_reader(&run("a"), Step::new(20), 0, 64).await.unwrap();
        let mut given = 0;
        let error = loop {
            match reader.next().await {
                Ok(Some(part)) => given += part.len(),
                Ok(None) => panic!("byte {at} was not missed"),
                Err(error) => break error,
            }
        };
        assert!(given < good.len() && matches!(error, StoreError::Damaged { .. }), "byte {at}");
    }
}

#[tokio::test]
async fn missing_and_swapped_files_are_found() {
    let saved = Saved::new().await;
    std::fs::remove_file(saved.file(FILES[2])).unwrap();
    saved.expect_step_10("missing slice").await;
    let quick = saved.store.list(&run("a"), Depth::Quick).await.unwrap();
    assert_eq!(quick.damaged, [(Step::new(20), Damage::SliceMissing { file: FILES[2].into() })]);

    let saved = Saved::new().await;
    std::fs::remove_file(saved.file(FILES[0])).unwrap();
    saved.expect_step_10("missing manifest").await;

    let saved = Saved::new().await;
    let (a, b, aside) = (saved.file(FILES[1]), saved.file(FILES[2]), saved.file("aside"));
    std::fs::rename(&a, &aside).unwrap();
    std::fs::rename(&b, &a).unwrap();
    std::fs::rename(&aside, &b).unwrap();
    saved.expect_step_10("swapped slices").await;

    let saved = Saved::new().await;
    let older = saved.folder.path().join("step-0000000010").join(FILES[1]);
    std::fs::copy(older, saved.file(FILES[1])).unwrap();
    saved.expect_step_10("slice of another step").await;

    let saved = Saved::new().await;
    let older = saved.folder.path().join("step-0000000010").join(FILES[0]);
    std::fs::copy(older, saved.file(FILES[0])).unwrap();
    saved.expect_step_10("manifest of another step").await;
}

#[tokio::test]
async fn a_damaged_step_can_be_trained_and_saved_again() {
    let saved = Saved::new().await;
    std::fs::write(saved.file(FILES[1]), b"rot").unwrap();
    let error = saved.store.commit(&commit_spec("a", 20, 2)).await.unwrap_err();
    assert!(matches!(error, StoreError::Damaged { .. }), "{error}");
    save(&saved.store, "a", 15, 5, 2).await.unwrap();
    assert_eq!(
        saved.store.prune(&run("a"), Retention::newest(1), Step::new(15)).await.unwrap(),
        [Step::new(10)]
    );
    assert_eq!(saved.store.latest_good(&run("a")).await.unwrap().unwrap().step, Step::new(15));
    let again = save(&saved.store, "a", 20, 7, 3).await.unwrap();
    assert_eq!(saved.store.latest_good(&run("a")).await.unwrap().unwrap(), again);
}

#[tokio::test]
async fn a_staged_slice_that_rots_is_not_committed() {
    let saved = Saved::new().await;
    stage(&saved.store, "a", 30, 3, 2).await.unwrap();
    let path = saved.folder.path().join("step-0000000030").join(FILES[2]);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();
    let error = saved.store.commit(&commit_spec("a", 30, 2)).await.unwrap_err();
    assert!(matches!(&error, StoreError::BadStage { .. }), "{error}");
    // Staging the same slices again heals it.
    save(&saved.store, "a", 30, 3, 2).await.unwrap();
}

#[tokio::test]
async fn a_store_that_stops_taking_bytes_loses_nothing() {
    for good_writes in 0..6 {
        let folder = tempfile::tempdir().unwrap();
        let before = CheckpointStore::local(folder.path(), Layout::Flat).unwrap();
        let first = save(&before, "a", 10, 1, 2).await.unwrap();

        let disk = Arc::new(LocalFileSystem::new_with_prefix(folder.path()).unwrap());
        let faulty = Arc::new(FaultyStore::new(disk, good_writes));
        let store = CheckpointStore::over(faulty.clone(), Layout::Flat);
        let failed = save(&store, "a", 20, 2, 2).await;
        if let Ok(saved) = &failed {
            assert_eq!(faulty.refused(), 0, "with {good_writes} good writes");
            assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), *saved);
            continue;
        }
        let message = failed.unwrap_err().to_string();
        assert!(message.contains("step-0000000020"), "names the path: {message}");
        assert!(message.contains("disk is full"), "says what to do: {message}");
        assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), first);
        faulty.heal();
        let second = save(&store, "a", 20, 2, 2).await.unwrap();
        assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), second);
    }
}

/// A role that may list and not get, a server that is away: the checkpoint may be good, and going back to the one
/// before would lose what lies between.
#[tokio::test]
async fn bytes_that_are_withheld_are_no_damage() {
    let store = Arc::new(FaultyStore::new(Arc::new(InMemory::new()), i64::MAX));
    let checkpoints = CheckpointStore::over(store.clone(), Layout::Flat);
    save(&checkpoints, "a", 10, 1, 2).await.unwrap();
    let newest = save(&checkpoints, "a", 20, 2, 2).await.unwrap();
    stage(&checkpoints, "a", 30, 3, 2).await.unwrap();
    for part in ["step-0000000020/manifest", "step-0000000020/slice-001"] {
        store.withhold(Some(part));
        let error = checkpoints.latest_good(&run("a")).await.unwrap_err();
        assert!(matches!(error, StoreError::Unreadable { .. }), "{part}: {error}");
        assert!(error.to_string().contains("403 Forbidden"), "{part}: {error}");
        let at_most = Step::new(u64::MAX);
        let listed = checkpoints.list(&run("a"), Depth::NewestGood { at_most }).await.unwrap();
        assert_eq!(listed.withheld(at_most).unwrap().0, Step::new(20), "{part}");
        assert_eq!(listed.withheld(Step::new(19)), None, "{part}: whoever does not need it is not held up");
    }
    store.withhold(Some("step-0000000030/slice-001-of-002.safetensors"));
    let error = checkpoints.commit(&commit_spec("a", 30, 2)).await.unwrap_err();
    assert!(matches!(error, StoreError::Unreadable { .. }), "not to be staged again: {error}");
    store.withhold(None);
    assert_eq!(checkpoints.latest_good(&run("a")).await.unwrap().unwrap(), newest);
    checkpoints.commit(&commit_spec("a", 30, 2)).await.unwrap();
}

/// What is verified is what can be used: a newer one may be of steps that the ledger does not cover.
#[tokio::test]
async fn the_newest_one_of_use_is_verified() {
    let saved = Saved::new().await;
    save(&saved.store, "a", 30, 3, 2).await.unwrap();
    let mut bytes = std::fs::read(saved.file(FILES[1])).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(saved.file(FILES[1]), bytes).unwrap();
    let listed = saved.store.list(&run("a"), Depth::NewestGood { at_most: Step::new(25) }).await.unwrap();
    let found: Vec<_> = listed.visible.iter().map(|e| (e.manifest.step.get(), e.verified)).collect();
    assert_eq!(found, [(10, true), (30, false)]);
    assert_eq!(listed.damaged.iter().map(|(s, _)| s.get()).collect::<Vec<_>>(), [20]);
}

/// Sealed and whole, and yet not ours to read.
#[tokio::test]
async fn a_checkpoint_of_another_version_is_named_and_passed_over() {
    let saved = Saved::new().await;
    let text = std::fs::read_to_string(saved.file(FILES[0])).unwrap();
    let body = text.split(",\n  \"manifest_hash\"").next().unwrap();
    let newer = body.replace(MANIFEST_FORMAT, "mcl-checkpoint-9");
    assert_ne!(newer, body);
    std::fs::write(saved.file(FILES[0]), Manifest::seal(&newer)).unwrap();
    let error = saved.store.verify(&run("a"), Step::new(20)).await.unwrap_err().to_string();
    assert!(error.contains("mcl-checkpoint-9") && error.contains("the version that wrote it"), "{error}");
    saved.expect_step_10("a manifest of another version").await;
}

/// Archives are often mounted so.
#[tokio::test]
async fn a_read_only_store_is_read_and_writing_says_why_not() {
    let folder = tempfile::tempdir().unwrap();
    let Some(mounted) = SmallDisk::mount(folder.path()) else {
        eprintln!("skipped: no right to mount a small tmpfs here");
        return;
    };
    let store = CheckpointStore::local(folder.path(), Layout::Flat).unwrap();
    let first = save(&store, "a", 10, 1, 2).await.unwrap();
    assert!(mounted.make_read_only());
    let store = CheckpointStore::local(folder.path(), Layout::Flat).unwrap();
    assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), first);
    assert_eq!(store.verify(&run("a"), Step::new(10)).await.unwrap(), first);
    let listed = store.list(&run("a"), Depth::Full).await.unwrap();
    assert_eq!((listed.visible.len(), listed.damaged.len()), (1, 0));
    let message = save(&store, "a", 20, 2, 2).await.unwrap_err().to_string();
    assert!(message.contains("may not be written") && message.contains("step-0000000020"), "{message}");
    let message = store.remove_through(&run("a"), Step::new(10)).await.unwrap_err().to_string();
    assert!(message.contains("step-0000000010"), "{message}");
    assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), first);
}

/// A real full disk, where this machine lets us make a small one.
#[tokio::test]
async fn a_full_disk_is_named_and_leaves_the_checkpoint_before() {
    let folder = tempfile::tempdir().unwrap();
    let Some(_mounted) = SmallDisk::mount(folder.path()) else {
        eprintln!("skipped: no right to mount a small tmpfs here");
        return;
    };
    let store = CheckpointStore::local(folder.path(), Layout::Flat).unwrap();
    let first = save(&store, "a", 10, 1, 2).await.unwrap();
    let big = vec![7_u8; 2 << 20];
    let bytes = bytes::Bytes::from(
        mcl_checkpoint_core::write_slice(&[(
            "w".into(),
            mcl_checkpoint_core::Dtype::U8,
            vec![big.len()],
            &big,
        )])
        .unwrap(),
    );
    let error = store.stage_slice(support::spec("a", 20, 0, 1, &bytes), bytes).await.unwrap_err();
    let message = error.to_string();
    assert!(message.contains("disk is full") && message.contains("step-0000000020"), "{message}");
    assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), first);
    // Nothing half-written takes the space that a smaller one needs.
    save(&store, "a", 20, 2, 2).await.unwrap();
    assert_eq!(store.read_slice(&run("a"), Step::new(20), 0).await.unwrap(), slices(2, 2)[0]);
}

struct SmallDisk(PathBuf);

impl SmallDisk {
    fn mount(path: &Path) -> Option<Self> {
        let mount =
            |command: &mut std::process::Command| command.output().ok().filter(|o| o.status.success());
        let args = ["-t", "tmpfs", "-o", "size=1m", "tmpfs"];
        mount(std::process::Command::new("mount").args(args).arg(path))?;
        Some(Self(path.to_owned()))
    }

    fn make_read_only(&self) -> bool {
        let mut command = std::process::Command::new("mount");
        command.args(["-o", "remount,ro"]).arg(&self.0).status().is_ok_and(|s| s.success())
    }
}

impl Drop for SmallDisk {
    fn drop(&mut self) {
        let _ = std::process::Command::new("umount").arg("-l").arg(&self.0).output();
    }
}
