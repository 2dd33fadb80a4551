//! The loader as training uses it.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]
#![cfg(unix)]

use mcl_data::pack::{PackSpec, pack};
use mcl_data::{AugmentSpec, BatchRequest, Dataset, LaneBatch, Loader, LoaderError, LoaderSpec, ViewMode};
use mcl_types::{Epoch, Lane, Purpose, SampleIndex, Seed, Step};
use std::fs;
use std::os::unix::fs::symlink;
use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::{AtomicUsize, Ordering};

fn odd(name: &str) -> PathBuf {
    PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("tests/odd-inputs").join(name)
}

/// `good` pictures and some bad ones, sorted so that bad ones lie in between.
fn folder(good: usize) -> tempfile::TempDir {
    let dir = tempfile::tempdir().unwrap();
    let names = ["ok_baseline.jpg", "ok_odd_size.jpg", "rgba.png", "gray.jpg", "1x1.png", "webp_named.jpg"];
    for i in 0..good {
        fs::copy(odd(names[i % names.len()]), dir.path().join(format!("{i:03}.jpg"))).unwrap();
    }
    fs::copy(odd("truncated_half.jpg"), dir.path().join("001-bad.jpg")).unwrap();
    fs::copy(odd("html_error.jpg"), dir.path().join("004-bad.jpg")).unwrap();
    symlink("nowhere", dir.path().join("005-bad.jpg")).unwrap();
    dir
}

fn spec(threads: usize) -> LoaderSpec {
    LoaderSpec {
        image_size: 32,
        levels: vec![1, 2, 4],
        threads,
        queue: 3,
        seed: Seed::new(7),
        ..LoaderSpec::default()
    }
}

fn requests(dataset: &Dataset, steps: u64, lanes: u32, n: u64) -> Vec<BatchRequest> {
    let len = dataset.len();
    let mut out = Vec::new();
    for step in 0..steps {
        for lane in 0..lanes {
            let samples =
                (0..n).map(|s| SampleIndex::new((step * 11 + u64::from(lane) * 5 + s) % len)).collect();
            out.push(BatchRequest {
                epoch: Epoch::new(step / 3),
                step: Step::new(step),
                lane: Lane::new(lane),
                samples,
            });
        }
    }
    out
}

fn substitute(len: u64) -> mcl_data::loader::Substitute {
    Arc::new(move |epoch, step, lane, slot, attempt| {
        let numbers =
            [epoch.get(), step.get(), u64::from(lane.get()), u64::from(slot.get()), u64::from(attempt)];
        SampleIndex::new(Seed::new(7).stream(Purpose::Substitute, &numbers).below(len))
    })
}

fn all(dataset: &Arc<Dataset>, spec: LoaderSpec) -> Vec<LaneBatch> {
    let requests = requests(dataset, 8, 2, 4);
    let mut loader = Loader::start(Arc::clone(dataset), spec, requests, substitute(dataset.len())).unwrap();
    let mut out = Vec::new();
    while let Some(batch) = loader.next().unwrap() {
        out.push(batch);
    }
    assert!(loader.next().unwrap().is_none());
    out
}

#[test]
fn memory_that_is_given_back_is_written_over() {
    let folder = folder(9);
    let dataset = Arc::new(Dataset::open(folder.path()).unwrap());
    let expected = all(&dataset, spec(2));
    // Batches of fewer pictures follow on batches of more.
    let mut requests = requests(&dataset, 8, 2, 4);
    requests.insert(1, BatchRequest { samples: vec![SampleIndex::new(0); 7], ..requests[0].clone() });
    let mut loader =
        Loader::start(Arc::clone(&dataset), spec(2), requests, substitute(dataset.len())).unwrap();
    let mut found = Vec::new();
    let mut places = std::collections::BTreeSet::new();
    while let Some(batch) = loader.next().unwrap() {
        places.insert(batch.views[0].as_ptr() as usize);
        found.push(batch.clone());
        loader.recycle(batch.views);
    }
    found.remove(1);
    assert_eq!(found, expected);
    assert!(places.len() <= 6, "{} places of memory for 17 batches, three at a time", places.len());
}

#[test]
fn batches_do_not_depend_on_the_number_of_threads() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let one = all(&dataset, spec(1));
    assert_eq!(one.len(), 16);
    for threads in [2, 5] {
        assert_eq!(all(&dataset, spec(threads)), one, "{threads} threads");
    }
    let order: Vec<(u64, u32)> = one.iter().map(|b| (b.step.get(), b.lane.get())).collect();
    let wanted: Vec<(u64, u32)> = (0..8).flat_map(|s| [(s, 0), (s, 1)]).collect();
    assert_eq!(order, wanted);
    for b in &one {
        assert_eq!(b.fed.len(), 4);
        let lengths: Vec<usize> = b.views.iter().map(Vec::len).collect();
        let level = |edge: usize| 4 * 3 * edge * edge;
        assert_eq!(lengths, [level(32), level(16), level(8), level(32), level(16), level(8)]);
    }
}

#[test]
fn a_shard_feeds_the_same_pixels_as_the_folder_it_was_packed_from() {
    let dir = tempfile::tempdir().unwrap();
    for name in ["ok_baseline.jpg", "ok_444.jpg", "rgba.png", "gray.jpg"] {
        fs::copy(odd(name), dir.path().join(name)).unwrap();
    }
    let out = tempfile::tempdir().unwrap();
    pack(dir.path(), out.path(), PackSpec { samples_per_shard: 3, ..PackSpec::default() }).unwrap();
    let loose = Arc::new(Dataset::open(dir.path()).unwrap());
    let packed = Arc::new(Dataset::open(out.path()).unwrap());
    for mode in [ViewMode::Exact, ViewMode::Level] {
        let a = all(&loose, LoaderSpec { mode, ..spec(2) });
        let b = all(&packed, LoaderSpec { mode, ..spec(2) });
        for (a, b) in a.iter().zip(&b) {
            assert_eq!(a.views, b.views);
            let hashes = |x: &LaneBatch| x.fed.iter().map(|f| f.hash).collect::<Vec<_>>();
            assert_eq!(hashes(a), hashes(b));
        }
    }
}

#[test]
fn bad_pictures_are_replaced_recorded_and_counted() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let len = dataset.len();
    let mut loader =
        Loader::start(Arc::clone(&dataset), spec(2), requests(&dataset, 8, 2, 4), substitute(len)).unwrap();
    let mut replaced = 0;
    while let Some(batch) = loader.next().unwrap() {
        for (slot, fed) in batch.fed.iter().enumerate() {
            let planned = (batch.step.get() * 11 + u64::from(batch.lane.get()) * 5 + slot as u64) % len;
            assert_eq!(dataset.id(fed.index).unwrap(), fed.id);
            assert!(!fed.id.contains("bad"), "{fed:?}");
            let bytes = dataset.read(fed.index).unwrap();
            assert_eq!(fed.hash, blake3_16(&bytes));
            match &fed.replaced {
                None => assert_eq!(fed.index.get(), planned),
                Some(r) => {
                    replaced += 1;
                    assert_eq!(r.wanted.get(), planned);
                    assert!(dataset.id(r.wanted).unwrap().contains("bad") && r.reason.len() > 10, "{r:?}");
                }
            }
        }
    }
    let stats = loader.stats();
    assert_eq!((stats.pictures, stats.replaced, stats.undecodable), (64, replaced, 3));
    assert!(replaced > 3);
}

fn blake3_16(bytes: &[u8]) -> [u8; 16] {
    mcl_types::Digest::of(bytes).as_bytes()[..16].try_into().unwrap()
}

#[test]
fn a_run_of_only_bad_pictures_ends_with_a_clear_error() {
    let dir = tempfile::tempdir().unwrap();
    for i in 0..5 {
        fs::copy(odd("text.jpg"), dir.path().join(format!("{i}.jpg"))).unwrap();
    }
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let spec = LoaderSpec { max_substitutes: 9, ..spec(3) };
    let mut loader =
        Loader::start(Arc::clone(&dataset), spec, requests(&dataset, 4, 1, 4), substitute(5)).unwrap();
    let error = loader.next().unwrap_err();
    let said = error.to_string();
    assert!(matches!(error, LoaderError::TooManyBad { tried: 9, .. }), "{said}");
    assert!(said.contains("0.jpg") && said.contains("text file") && said.contains("slot 0"), "{said}");
    assert!(matches!(loader.next(), Err(LoaderError::Stopped)));
}

#[test]
fn batches_before_a_failure_are_given_and_the_failure_is_the_same_on_any_number_of_threads() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    for threads in [1, 4] {
        let mut list = requests(&dataset, 4, 1, 4);
        list[2].samples[1] = SampleIndex::new(9000);
        list[2].samples[3] = SampleIndex::new(9001);
        let mut loader =
            Loader::start(Arc::clone(&dataset), spec(threads), list, substitute(dataset.len())).unwrap();
        assert!(loader.next().unwrap().is_some());
        assert!(loader.next().unwrap().is_some());
        let said = loader.next().unwrap_err().to_string();
        assert!(said.contains("sample 9000 is outside"), "{said}");
    }
}

#[test]
fn a_loader_that_is_told_to_stop_ends_the_wait_for_its_next_batch() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let (ask, requests) = std::sync::mpsc::channel();
    let mut loader =
        Loader::start(Arc::clone(&dataset), spec(1), requests, substitute(dataset.len())).unwrap();
    let stopper = loader.stopper();
    // Nothing is ever asked for, so that only the stop can end the wait.
    let waiting = std::thread::spawn(move || loader.next());
    stopper.stop();
    assert!(matches!(waiting.join().unwrap(), Err(LoaderError::Stopped)));
    drop::<std::sync::mpsc::Sender<mcl_data::BatchRequest>>(ask);
}

#[test]
fn a_changed_shard_is_an_error_and_not_a_replacement() {
    let dir = tempfile::tempdir().unwrap();
    fs::copy(odd("ok_baseline.jpg"), dir.path().join("a.jpg")).unwrap();
    let out = tempfile::tempdir().unwrap();
    pack(dir.path(), out.path(), PackSpec { samples_per_shard: 3, ..PackSpec::default() }).unwrap();
    let tar = out.path().join("shard-000000.tar");
    let mut bytes = fs::read(&tar).unwrap();
    bytes[512 + 1500] ^= 1;
    fs::write(&tar, bytes).unwrap();
    let dataset = Arc::new(Dataset::open(out.path()).unwrap());
    let mut loader =
        Loader::start(Arc::clone(&dataset), spec(1), requests(&dataset, 1, 1, 2), substitute(1)).unwrap();
    let error = loader.next().unwrap_err();
    assert!(matches!(error, LoaderError::Damaged { .. }), "{error}");
}

/// A process's own memory reads as an I/O error at address 0: a failing disk without one.
#[test]
fn a_failing_storage_is_tried_again_and_then_an_error() {
    let source = std::path::Path::new("/proc/self/mem");
    let fails = fs::read(source).is_err_and(|e| e.raw_os_error() == Some(5));
    if !fails || !fs::metadata(source).is_ok_and(|m| m.is_file()) {
        println!("skipped: this system has no file that fails to read");
        return;
    }
    let dir = folder(12);
    symlink(source, dir.path().join("000-disk.jpg")).unwrap();
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let mut loader =
        Loader::start(Arc::clone(&dataset), spec(2), requests(&dataset, 1, 1, 4), substitute(12)).unwrap();
    let error = loader.next().unwrap_err();
    assert!(matches!(error, LoaderError::Read { .. }), "{error}");
    let said = format!("{error}");
    assert!(said.contains("000-disk.jpg") && said.contains("tried 4 times"), "{said}");
}

#[test]
fn panics_of_the_plan_become_errors() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let list = requests(&dataset, 2, 1, 4);
    let broken = list.clone().into_iter().chain(std::iter::from_fn(|| panic!("no more plan")));
    let mut loader = Loader::start(Arc::clone(&dataset), spec(2), broken, substitute(15)).unwrap();
    assert!(loader.next().unwrap().is_some() && loader.next().unwrap().is_some());
    assert!(loader.next().unwrap_err().to_string().contains("no more plan"));

    let substitute: mcl_data::loader::Substitute = Arc::new(|_, _, _, _, _| panic!("no substitute"));
    let mut loader =
        Loader::start(Arc::clone(&dataset), spec(2), requests(&dataset, 8, 1, 8), substitute).unwrap();
    let error = std::iter::from_fn(|| Some(loader.next())).find_map(Result::err).unwrap();
    assert!(error.to_string().contains("no substitute"), "{error}");
}

#[test]
fn memory_is_bounded_and_dropping_stops_everything() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let drawn = Arc::new(AtomicUsize::new(0));
    let counter = Arc::clone(&drawn);
    let mut step = 0;
    let endless = std::iter::from_fn(move || {
        step += 1;
        counter.fetch_add(1, Ordering::SeqCst);
        let samples = vec![SampleIndex::new(0); 2];
        Some(BatchRequest { epoch: Epoch::new(0), step: Step::new(step), lane: Lane::new(0), samples })
    });
    let mut loader = Loader::start(Arc::clone(&dataset), spec(2), endless, substitute(15)).unwrap();
    for taken in 1..=5 {
        assert!(loader.next().unwrap().is_some());
        // Taken, waiting (3), and the one that the plan's thread holds.
        assert!(drawn.load(Ordering::SeqCst) <= taken + 4);
    }
    drop(loader);
    // Both workers are gone: only this test and the plan's thread, which is about to end, hold the data.
    assert!(Arc::strong_count(&dataset) <= 2);
}

#[test]
fn a_plan_that_waits_does_not_hold_up_dropping() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let (send, receive) = std::sync::mpsc::channel();
    let mut loader = Loader::start(Arc::clone(&dataset), spec(2), receive, substitute(15)).unwrap();
    for request in requests(&dataset, 1, 1, 3) {
        send.send(request).unwrap();
    }
    assert!(loader.next().unwrap().is_some());
    drop(loader);
    drop(send);
}

#[test]
fn impossible_specs_are_refused_at_the_start() {
    let dir = folder(12);
    let dataset = Arc::new(Dataset::open(dir.path()).unwrap());
    let augment = AugmentSpec { flip_p: 2.0, ..AugmentSpec::default() };
    let bad = LoaderSpec { augment, ..spec(1) };
    assert!(Loader::start(Arc::clone(&dataset), bad, Vec::new(), substitute(15)).is_err());
    let bad = LoaderSpec { image_size: 33, ..spec(1) };
    assert!(Loader::start(dataset, bad, Vec::new(), substitute(15)).is_err());
}
