//! Ten thousand injected faults: every one is detected, none is loaded, there is always a good checkpoint to fall
//! back to. A seed makes each; the kinds are counted, so that none is missed by chance.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

mod faulty;
mod support;

use faulty::FaultyStore;
use futures::StreamExt;
use mcl_checkpoint_core::{CheckpointStore, Layout, StoreError};
use mcl_types::{Retention, SplitMix64, Step};
use object_store::memory::InMemory;
use object_store::path::Path;
use object_store::{ObjectStore, ObjectStoreExt};
use std::collections::BTreeMap;
use std::sync::Arc;
use support::{commit_spec, run, save, slices, stage};

/// Damage to files of the newest checkpoint.
const DAMAGED: u64 = 8_000;
/// Stores that go away in the middle of a save or of pruning.
const BROKEN_OFF: u64 = 2_000;
const SLICES: u32 = 2;

fn runtime() -> tokio::runtime::Runtime {
    tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap()
}

/// Steps 10 and 20, by their seeds.
async fn two_checkpoints() -> (Arc<InMemory>, CheckpointStore) {
    let memory = Arc::new(InMemory::new());
    let store = CheckpointStore::over(Arc::clone(&memory) as Arc<dyn ObjectStore>, Layout::Flat);
    save(&store, "a", 10, 1, SLICES).await.unwrap();
    save(&store, "a", 20, 2, SLICES).await.unwrap();
    (memory, store)
}

/// Everything in a store, by name.
async fn contents(memory: &InMemory) -> BTreeMap<String, Vec<u8>> {
    let mut all = BTreeMap::new();
    let mut listing = memory.list(None);
    while let Some(object) = listing.next().await {
        let path = object.unwrap().location;
        let bytes = memory.get(&path).await.unwrap().bytes().await.unwrap();
        all.insert(path.to_string(), bytes.to_vec());
    }
    all
}

/// One fault; what it was.
async fn damage(
    memory: &InMemory,
    before: &BTreeMap<String, Vec<u8>>,
    random: &mut SplitMix64,
) -> &'static str {
    let newest: Vec<&String> = before.keys().filter(|k| k.starts_with("step-0000000020/")).collect();
    assert_eq!(newest.len(), 3, "{newest:?}");
    let name = newest[random.below(3) as usize];
    let path = Path::from(name.as_str());
    let mut bytes = before[name].clone();
    let at = random.below(bytes.len() as u64) as usize;
    let other = |name: &str| before[&name.replace("0000000020", "0000000010")].clone();
    let (kind, bytes) = match random.below(10) {
        0..=2 => {
            bytes[at] ^= 1 << random.below(8);
            ("flipped bit", bytes)
        }
        3 => {
            for _ in 0..=random.below(20) {
                let at = random.below(bytes.len() as u64) as usize;
                bytes[at] = bytes[at].wrapping_add(1 + random.below(255) as u8);
            }
            if bytes == before[name] {
                bytes[at] ^= 1
            }
            ("changed bytes", bytes)
        }
        4 => {
            bytes.truncate(at);
            ("cut short", bytes)
        }
        5 => {
            bytes.extend((0..=random.below(64)).map(|b| b as u8));
            ("grown", bytes)
        }
        6 => {
            memory.delete(&path).await.unwrap();
            return "missing";
        }
        7 => {
            let len = (bytes.len() - at).min(512);
            bytes[at..at + len].fill(0);
            if bytes == before[name] {
                bytes[at] ^= 1
            }
            ("zeroed sector", bytes)
        }
        8 => ("file of another step", other(name)),
        _ => {
            // The two slices change places.
            let (a, b) = (newest[1], newest[2]);
            memory.put(&Path::from(a.as_str()), before[b].clone().into()).await.unwrap();
            memory.put(&Path::from(b.as_str()), before[a].clone().into()).await.unwrap();
            return "swapped slices";
        }
    };
    memory.put(&path, bytes.into()).await.unwrap();
    kind
}

#[test]
fn whatever_happens_to_the_newest_checkpoint_the_one_before_is_used() {
    let runtime = runtime();
    let mut kinds: BTreeMap<&str, u64> = BTreeMap::new();
    runtime.block_on(async {
        let (memory, store) = two_checkpoints().await;
        let before = contents(&memory).await;
        let good = store.verify(&run("a"), Step::new(10)).await.unwrap();
        for seed in 0..DAMAGED {
            let mut random = SplitMix64::new(seed);
            let kind = damage(&memory, &before, &mut random).await;
            *kinds.entry(kind).or_default() += 1;
            let found = store.verify(&run("a"), Step::new(20)).await;
            let detected =
                matches!(&found, Err(StoreError::Damaged { .. } | StoreError::NoCheckpoint { .. }));
            assert!(detected, "seed {seed}, {kind}: {found:?}");
            assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap(), good, "seed {seed}, {kind}");
            for slice in 0..SLICES {
                // A slice that still reads is one of those that were written.
                if let Ok(bytes) = store.read_slice(&run("a"), Step::new(20), slice).await {
                    assert_eq!(bytes, slices(2, SLICES)[slice as usize], "seed {seed}, {kind}");
                }
            }
            for (name, bytes) in &before {
                memory.put(&Path::from(name.as_str()), bytes.clone().into()).await.unwrap();
            }
        }
        assert_eq!(store.latest_good(&run("a")).await.unwrap().unwrap().step, Step::new(20), "healed");
    });
    println!("{DAMAGED} faults: {kinds:?}");
    assert!(kinds.len() == 8 && kinds.values().all(|n| *n > DAMAGED / 20), "{kinds:?}");
}

#[test]
fn wherever_a_save_or_a_pruning_breaks_off_a_whole_checkpoint_stays() {
    let runtime = runtime();
    let (mut became_visible, mut stayed_before) = (0, 0);
    runtime.block_on(async {
        for seed in 0..BROKEN_OFF {
            let mut random = SplitMix64::new(seed);
            let (memory, intact) = two_checkpoints().await;
            let changes = random.below(14) as i64;
            let faulty = FaultyStore::new(Arc::clone(&memory) as Arc<dyn ObjectStore>, changes);
            let faulty = Arc::new(if random.chance(0.5) { faulty.done_untold() } else { faulty });
            let parts = 1 + random.below(3) as u32;
            let dying = CheckpointStore::over(faulty.clone(), Layout::Flat);
            let saved = save(&dying, "a", 30, 3, parts).await;
            if saved.is_ok() {
                let _ = dying.prune(&run("a"), Retention::newest(1), Step::new(30)).await;
            }
            // The process is gone; another one opens what is left.
            let found = intact.latest_good(&run("a")).await.unwrap().expect("always one");
            if saved.is_ok() {
                assert_eq!(found.step, Step::new(30), "seed {seed}: it was said to be saved");
            }
            match found.step.get() {
                20 => stayed_before += 1,
                30 => became_visible += 1,
                other => panic!("seed {seed}: fell back to {other}"),
            }
            for slice in 0..found.slice_count() {
                let expected = slices(if found.step.get() == 30 { 3 } else { 2 }, found.slice_count());
                let bytes = intact.read_slice(&run("a"), found.step, slice).await.unwrap();
                assert_eq!(bytes, expected[slice as usize], "seed {seed}");
            }
            // And goes on from there, in another number of slices.
            stage(&intact, "a", 30, 3, 2).await.unwrap();
            let again = intact.commit(&commit_spec("a", 30, 2)).await;
            let again = again.unwrap_or_else(|e| panic!("seed {seed}: {e}"));
            assert_eq!(intact.latest_good(&run("a")).await.unwrap().unwrap(), again, "seed {seed}");
            intact.prune(&run("a"), Retention::newest(1), Step::new(30)).await.unwrap();
            assert_eq!(
                contents(&memory).await.keys().filter(|k| !k.starts_with("step-0000000030/")).count(),
                0,
                "seed {seed}: nothing of what was broken off is left"
            );
        }
    });
    println!("{BROKEN_OFF} broken off: {became_visible} had become visible, {stayed_before} had not");
    assert!(became_visible > BROKEN_OFF / 20 && stayed_before > BROKEN_OFF / 20);
}
