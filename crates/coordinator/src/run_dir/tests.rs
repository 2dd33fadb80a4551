use super::*;
use mcl_coordinator_core::{GenerationRecord, Origin};
use mcl_plan::ledger::RolledBack;
use mcl_types::{Epoch, Generation, Step};
use std::fs;

const PER_EPOCH: u64 = 4;

fn schedule() -> Schedule {
    Schedule::new(PER_EPOCH, 100).unwrap()
}

fn generation(number: u64, first: u64, from: Option<u64>) -> Started {
    Started {
        record: GenerationRecord { generation: Generation::new(number), places: Vec::new() },
        store_address: "h:1".to_owned(),
        first,
        origin: Origin::Checkpoint(first),
        last_checkpoint: Some(first),
        rolled_back: from.map(|from| RolledBack {
            from: Step::new(from),
            to: Step::new(first),
            generation: Generation::new(number),
            reason: "w2 left".to_owned(),
        }),
    }
}

fn commit(dir: &mut RunDir, steps: std::ops::Range<u64>, number: u64) {
    for step in steps {
        let epoch = step / PER_EPOCH;
        let record = Committed {
            step: Step::new(step),
            epoch: Epoch::new(epoch),
            generation: Generation::new(number),
            lanes: Vec::new(),
            skipped: false,
        };
        let metrics = StepMetrics {
            step,
            epoch,
            generation: number,
            loss: Some(1.5),
            loss_per_level: vec![1.0, 0.5],
            lr: 0.1,
            momentum: 0.99,
            grad_norm: None,
            images_per_s: 100.0,
            workers: 2,
            data_wait_s: 0.0,
            step_s: 0.5,
            skipped: false,
        };
        dir.commit(record, &metrics, 7.5, schedule()).unwrap();
    }
}

fn rows(root: &Path, file: &str) -> Vec<(u64, u64)> {
    let text = fs::read_to_string(root.join(file)).unwrap_or_default();
    text.lines()
        .map(|l| {
            let row: serde_json::Value = serde_json::from_str(l).unwrap();
            (row["step"].as_u64().unwrap(), row["generation"].as_u64().unwrap())
        })
        .collect()
}

fn open(root: &Path, last: &Started) -> (RunDir, u64) {
    RunDir::open(root, Some((last, schedule()))).unwrap()
}

#[test]
fn steps_land_in_their_epochs_files_and_are_counted_again() {
    let root = tempfile::tempdir().unwrap();
    let (mut dir, none) = RunDir::open(root.path(), None).unwrap();
    commit(&mut dir, 0..10, 1);
    dir.sync().unwrap();
    assert_eq!(none, 0);
    let lines = |e: u64| {
        fs::read_to_string(root.path().join(format!("ledger/epoch-{e:06}.jsonl"))).unwrap().lines().count()
    };
    assert_eq!((lines(0), lines(1), lines(2)), (4, 4, 2));
    assert_eq!(open(root.path(), &generation(1, 0, None)).1, 10);
    assert_eq!(rows(root.path(), "metrics.jsonl").len(), 10);
    let text = fs::read_to_string(root.path().join("metrics.jsonl")).unwrap();
    let row: serde_json::Value = serde_json::from_str(text.lines().next().unwrap()).unwrap();
    let mut keys: Vec<&String> = row.as_object().unwrap().keys().collect();
    keys.sort();
    let expected = "data_wait_s epoch generation grad_norm images_per_s loss loss_per_level lr momentum skipped step step_s time workers";
    assert_eq!(keys, expected.split(' ').collect::<Vec<_>>());
}

#[test]
fn a_line_that_a_crash_tore_is_cut_with_its_row() {
    let root = tempfile::tempdir().unwrap();
    let (mut dir, _) = RunDir::open(root.path(), None).unwrap();
    commit(&mut dir, 0..7, 1);
    drop(dir);
    let path = root.path().join("ledger/epoch-000001.jsonl");
    let whole = fs::read(&path).unwrap();
    for tail in
        [&whole[..whole.len() - 1], &whole[..whole.len() - 30], &[&whole[..], &[0_u8; 9][..]].concat()[..]]
    {
        fs::write(&path, tail).unwrap();
        let expected = if tail.len() > whole.len() { 7 } else { 6 };
        let (mut dir, committed) = open(root.path(), &generation(1, 0, None));
        assert_eq!(committed, expected);
        let steps: Vec<u64> = rows(root.path(), "metrics.jsonl").iter().map(|r| r.0).collect();
        assert_eq!(steps, (0..expected).collect::<Vec<_>>());
        commit(&mut dir, expected..7, 1);
        drop(dir);
        assert_eq!(open(root.path(), &generation(1, 0, None)).1, 7);
    }
}

#[test]
fn a_line_broken_in_the_middle_is_an_error_that_names_it() {
    let root = tempfile::tempdir().unwrap();
    let (mut dir, _) = RunDir::open(root.path(), None).unwrap();
    commit(&mut dir, 0..4, 1);
    drop(dir);
    let path = root.path().join("ledger/epoch-000000.jsonl");
    let text = fs::read_to_string(&path).unwrap().replacen("\"step\":2", "\"step\":x", 1);
    fs::write(&path, text).unwrap();
    let error =
        RunDir::open(root.path(), Some((&generation(1, 0, None), schedule()))).unwrap_err().to_string();
    assert!(error.contains("epoch-000000.jsonl line 3"), "{error}");
    let text = fs::read_to_string(&path).unwrap().replacen("\"step\":x", "\"step\":7", 1);
    fs::write(&path, text).unwrap();
    assert!(RunDir::open(root.path(), Some((&generation(1, 0, None), schedule()))).is_err());
}

#[test]
fn rolled_back_rows_move_to_their_own_file() {
    let root = tempfile::tempdir().unwrap();
    let (mut dir, _) = RunDir::open(root.path(), None).unwrap();
    commit(&mut dir, 0..7, 1);
    let second = generation(2, 5, Some(7));
    let record = Record::RolledBack(second.rolled_back.clone().unwrap());
    dir.roll_back(5, &record, schedule()).unwrap();
    commit(&mut dir, 5..9, 2);
    drop(dir);
    let expected: Vec<(u64, u64)> = (0..5).map(|s| (s, 1)).chain((5..9).map(|s| (s, 2))).collect();
    assert_eq!(rows(root.path(), "metrics.jsonl"), expected);
    assert_eq!(rows(root.path(), "metrics.rolled_back.jsonl"), [(5, 1), (6, 1)]);
    assert_eq!(open(root.path(), &second).1, 9);
}

#[test]
fn rows_that_a_crash_left_in_both_files_are_moved_once() {
    let root = tempfile::tempdir().unwrap();
    let (mut dir, _) = RunDir::open(root.path(), None).unwrap();
    commit(&mut dir, 0..7, 1);
    let path = root.path().join("metrics.jsonl");
    let before = fs::read(&path).unwrap();
    let second = generation(2, 5, Some(7));
    let record = Record::RolledBack(second.rolled_back.clone().unwrap());
    dir.roll_back(5, &record, schedule()).unwrap();
    drop(dir);
    // As it is where the crash came after the one and before the other.
    fs::write(&path, &before).unwrap();
    assert_eq!(open(root.path(), &second).1, 5);
    assert_eq!(rows(root.path(), "metrics.jsonl").len(), 5);
    assert_eq!(rows(root.path(), "metrics.rolled_back.jsonl"), [(5, 1), (6, 1)]);
    // ... or in the middle of the one.
    let moved = root.path().join("metrics.rolled_back.jsonl");
    let text = fs::read(&moved).unwrap();
    for torn in 0..text.len() {
        fs::write(&path, &before).unwrap();
        fs::write(&moved, text.get(..torn).unwrap()).unwrap();
        assert_eq!(open(root.path(), &second).1, 5);
        assert_eq!(fs::read(&moved).unwrap(), text, "torn at {torn}");
    }
}

#[test]
fn a_crash_between_journal_and_ledger_is_mended() {
    let root = tempfile::tempdir().unwrap();
    let (mut dir, _) = RunDir::open(root.path(), None).unwrap();
    commit(&mut dir, 0..7, 1);
    drop(dir);
    // Generation 2 is in the journal, its roll back is not in the ledger.
    let second = generation(2, 3, Some(7));
    for _ in 0..2 {
        let (_, committed) = open(root.path(), &second);
        assert_eq!(committed, 3);
        assert_eq!(rows(root.path(), "metrics.jsonl").len(), 3);
        let text = fs::read_to_string(root.path().join("ledger/epoch-000000.jsonl")).unwrap();
        assert_eq!(text.matches("rolled_back").count(), 1, "written once");
    }
}

#[test]
fn a_full_disk_is_one_clear_error() {
    let root = tempfile::tempdir().unwrap();
    let (mut dir, _) = RunDir::open(root.path(), None).unwrap();
    commit(&mut dir, 0..3, 1);
    dir.sync().unwrap();
    // /dev/full takes nothing.
    let path = root.path().join("ledger/epoch-000001.jsonl");
    std::os::unix::fs::symlink("/dev/full", &path).unwrap();
    let record = Committed {
        step: Step::new(4),
        epoch: Epoch::new(1),
        generation: Generation::new(1),
        lanes: Vec::new(),
        skipped: false,
    };
    let error = dir.append(&Record::Committed(record), schedule()).unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("epoch-000001.jsonl"), "{error}");
    assert!(error.contains("what was written before stands"), "{error}");
    fs::remove_file(&path).unwrap();
    assert_eq!(open(root.path(), &generation(1, 0, None)).1, 3);
}

#[test]
fn the_job_file_is_replaced_whole() {
    let root = tempfile::tempdir().unwrap();
    let (dir, _) = RunDir::open(root.path(), None).unwrap();
    let plan = PlanSpec {
        seed: mcl_types::Seed::new(3),
        dataset_digest: mcl_types::Digest::of(b"pictures"),
        dataset_len: 8,
        shards: vec![8],
        lanes: 1,
        images_per_lane: 2,
        shuffle: mcl_plan::Shuffle::Global,
    };
    for text in ["a = 1\n", "b = 2\n"] {
        dir.write_job(text, &plan).unwrap();
        assert!(root.path().join(PLAN_FILE).is_file());
        assert_eq!(fs::read_to_string(RunDir::job_path(root.path())).unwrap(), text);
    }
    assert_eq!(
        fs::read_dir(root.path())
            .unwrap()
            .filter(|e| e.as_ref().unwrap().path().extension().is_some_and(|x| x == "new"))
            .count(),
        0
    );
}
