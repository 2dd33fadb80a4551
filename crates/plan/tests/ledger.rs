//! Right ledgers pass; every way to be wrong fails by its name.
#![allow(clippy::unwrap_used, clippy::panic, missing_docs)]

use mcl_plan::ledger::{
    Committed, LaneRecord, Problem, Record, RolledBack, SampleHash, SampleRecord, VerifyReport, verify,
};
use mcl_plan::{EpochPlan, PlanSpec, Shuffle, substitute};
use mcl_types::{Digest, Epoch, Generation, Lane, SampleIndex, Seed, Slot, Step};

const STEPS: u64 = 17;

fn spec(shuffle: Shuffle) -> PlanSpec {
    PlanSpec {
        seed: Seed::new(4),
        dataset_digest: Digest::of(b"d"),
        dataset_len: 50,
        shards: vec![7, 13, 30],
        lanes: 3,
        images_per_lane: 2,
        shuffle,
    }
}

fn fed(index: SampleIndex) -> SampleRecord {
    let mut hash = [0; 16];
    hash.copy_from_slice(&Digest::of(&index.get().to_le_bytes()).as_bytes()[..16]);
    SampleRecord {
        index,
        id: format!("{:05}.jpg", index.get()),
        hash: SampleHash::from_bytes(hash),
        replaces: None,
        reason: None,
    }
}

fn step(spec: &PlanSpec, t: u64, generation: u64) -> Committed {
    let per_epoch = spec.steps_per_epoch().unwrap();
    let plan = EpochPlan::new(spec, Epoch::new(t / per_epoch)).unwrap();
    let lane = |l: u32| LaneRecord {
        lane: Lane::new(l),
        samples: (0..spec.images_per_lane)
            .map(|s| fed(plan.sample(t % per_epoch, Lane::new(l), Slot::new(s)).unwrap()))
            .collect(),
    };
    Committed {
        step: Step::new(t),
        epoch: plan.epoch(),
        generation: Generation::new(generation),
        lanes: (0..spec.lanes).map(lane).collect(),
        skipped: false,
    }
}

fn ledger(spec: &PlanSpec) -> Vec<Committed> {
    (0..STEPS).map(|t| step(spec, t, 1)).collect()
}

fn check(spec: &PlanSpec, steps: Vec<Committed>) -> VerifyReport {
    let records: Vec<Record> = steps.into_iter().map(Record::Committed).collect();
    verify(&records, spec).unwrap()
}

/// Breaks a right ledger and returns the report, which must not be exact.
fn broken(break_it: impl FnOnce(&PlanSpec, &mut Vec<Committed>)) -> VerifyReport {
    let spec = spec(Shuffle::Global);
    let mut steps = ledger(&spec);
    break_it(&spec, &mut steps);
    let report = check(&spec, steps);
    assert!(!report.is_exact(), "{report:?}");
    report
}

#[test]
fn a_right_ledger_is_exact() {
    for shuffle in [Shuffle::Global, Shuffle::Windowed] {
        let spec = spec(shuffle);
        let report = check(&spec, ledger(&spec));
        assert!(report.is_exact(), "{report:?}");
        assert_eq!((report.steps, report.samples), (STEPS, STEPS * 6));
        let epochs: Vec<_> =
            report.epochs.iter().map(|e| (e.steps, e.planned_steps, e.samples, e.left_out)).collect();
        assert_eq!(epochs, [(8, 8, 48, 2), (8, 8, 48, 2), (1, 8, 6, 2)]);
    }
}

#[test]
fn records_survive_json() {
    let spec = spec(Shuffle::Global);
    let mut committed = step(&spec, 3, 1);
    committed.lanes[0].samples[0].replaces = Some(SampleIndex::new(9));
    committed.lanes[0].samples[0].reason = Some("truncated".to_owned());
    let record = Record::Committed(committed);
    let line = serde_json::to_string(&record).unwrap();
    assert!(
        line.starts_with(r#"{"record":"committed","step":3,"epoch":0,"generation":1,"lanes":[{"lane":0"#),
        "{line}"
    );
    assert_eq!(serde_json::from_str::<Record>(&line).unwrap(), record);
    assert!(serde_json::from_str::<Record>(&line.replace(r#""hash":""#, r#""hash":"zz"#)).is_err());
}

#[test]
fn a_skipped_sample_is_missing() {
    let report = broken(|_, steps| drop(steps[4].lanes[1].samples.pop()));
    assert_eq!((report.missing, report.twice), (1, 0));
    assert!(matches!(report.problems[0], Problem::WrongCount { found: 1, expected: 2, .. }));
}

#[test]
fn a_skipped_lane_is_missing() {
    let report = broken(|_, steps| drop(steps[4].lanes.remove(2)));
    assert_eq!(report.missing, 2);
    assert!(matches!(report.problems[0], Problem::WrongLanes { found: 0, expected: 1, .. }));
}

#[test]
fn a_repeated_sample_is_twice_and_another_missing() {
    let report = broken(|_, steps| steps[4].lanes[0].samples[0] = steps[3].lanes[0].samples[0].clone());
    assert_eq!((report.missing, report.twice, report.foreign), (1, 1, 1));
    assert!(matches!(report.problems[0], Problem::Foreign { .. }));
}

#[test]
fn swapped_samples_are_foreign() {
    let report = broken(|_, steps| {
        let (a, b) = (steps[2].lanes[0].samples[0].clone(), steps[5].lanes[2].samples[1].clone());
        steps[2].lanes[0].samples[0] = b;
        steps[5].lanes[2].samples[1] = a;
    });
    assert_eq!((report.missing, report.twice, report.foreign), (0, 0, 2));
}

#[test]
fn lanes_that_changed_places_are_foreign() {
    let report = broken(|_, steps| {
        let taken = steps[2].lanes[0].samples.clone();
        steps[2].lanes[0].samples = steps[2].lanes[1].samples.clone();
        steps[2].lanes[1].samples = taken;
    });
    assert_eq!((report.missing, report.foreign), (0, 4));
}

#[test]
fn changed_bytes_are_found() {
    // A sample of epoch 0 comes again in epoch 1 with other bytes.
    let report = broken(|_, steps| {
        for sample in steps[9].lanes.iter_mut().flat_map(|l| &mut l.samples) {
            sample.hash = SampleHash::from_bytes([7; 16]);
        }
    });
    assert!(report.problems.iter().all(|p| matches!(p, Problem::HashChanged { .. })));
    assert!(report.problems.len() >= 5 && report.missing == 0);
}

#[test]
fn an_id_belongs_to_one_index() {
    let report = broken(|_, steps| steps[1].lanes[0].samples[0].id = steps[0].lanes[0].samples[0].id.clone());
    assert!(report.problems.iter().any(|p| matches!(p, Problem::IdMoved { .. })));
    assert!(
        report.problems.iter().any(|p| matches!(p, Problem::IdChanged { .. })),
        "its own id returns in epoch 1"
    );
}

fn replace(spec: &PlanSpec, steps: &mut [Committed], t: usize, with: impl Fn(u32) -> SampleIndex) {
    let per_epoch = spec.steps_per_epoch().unwrap();
    assert!((t as u64) < per_epoch);
    let sample = &mut steps[t].lanes[1].samples[0];
    let planned = sample.index;
    let index = (0..).map(with).find(|i| *i != planned).unwrap();
    *sample = SampleRecord { replaces: Some(planned), reason: Some("not a jpeg".to_owned()), ..fed(index) };
}

#[test]
fn a_right_substitute_passes_and_a_wrong_one_fails() {
    let spec = spec(Shuffle::Global);
    let mut steps = ledger(&spec);
    replace(&spec, &mut steps, 4, |a| substitute(&spec, Epoch::new(0), 4, Lane::new(1), Slot::new(0), 3 + a));
    let report = check(&spec, steps);
    assert!(report.is_exact(), "{report:?}");
    assert_eq!(report.replaced, 1);

    let allowed: Vec<u64> =
        (0..64).map(|a| substitute(&spec, Epoch::new(0), 4, Lane::new(1), Slot::new(0), a).get()).collect();
    let outside = (0..50).find(|i| !allowed.contains(i)).unwrap();
    let report = broken(|spec, steps| replace(spec, steps, 4, |_| SampleIndex::new(outside)));
    assert!(matches!(report.problems[0], Problem::WrongSubstitute { .. }));

    // A substitute for a picture that was not planned there is foreign, whatever it is.
    let report = broken(|spec, steps| {
        replace(spec, steps, 4, |a| substitute(spec, Epoch::new(0), 4, Lane::new(1), Slot::new(0), a));
        steps[4].lanes[1].samples[0].replaces = Some(steps[3].lanes[0].samples[0].index);
    });
    assert!(matches!(report.problems[0], Problem::Foreign { .. }));
}

#[test]
fn a_missing_step_is_named() {
    let report = broken(|_, steps| drop(steps.drain(5..7)));
    assert_eq!(report.problems, [Problem::MissingSteps { first: 5, last: 6 }]);
    assert_eq!(report.missing, 12);
}

#[test]
fn a_step_committed_twice_is_named() {
    let report = broken(|spec, steps| steps.push(step(spec, 6, 2)));
    assert!(matches!(report.problems[0], Problem::CommittedTwice { .. }));
    assert_eq!((report.twice, report.steps), (6, STEPS));
}

#[test]
fn a_wrong_epoch_is_named() {
    let report = broken(|_, steps| steps[8].epoch = Epoch::new(0));
    assert!(matches!(report.problems[..], [Problem::WrongEpoch { .. }]));
}

fn back(from: u64, to: u64, generation: u64) -> Record {
    Record::RolledBack(RolledBack {
        from: Step::new(from),
        to: Step::new(to),
        generation: Generation::new(generation),
        reason: "w2 left".to_owned(),
    })
}

/// Steps 0..10 in generation 1, back to 6, 6..9 in generation 2, back to 6 again, 6..STEPS in generation 3.
fn rolled_back(spec: &PlanSpec) -> Vec<Record> {
    let run = |range: std::ops::Range<u64>, generation| {
        range.map(move |t| Record::Committed(step(spec, t, generation)))
    };
    run(0..10, 1)
        .chain([back(10, 6, 2)])
        .chain(run(6..9, 2))
        .chain([back(9, 6, 3)])
        .chain(run(6..STEPS, 3))
        .collect()
}

#[test]
fn rolled_back_steps_do_not_count() {
    let spec = spec(Shuffle::Windowed);
    let mut records = rolled_back(&spec);
    let report = verify(&records, &spec).unwrap();
    assert!(report.is_exact(), "{report:?}");
    assert_eq!((report.steps, report.rolled_back), (STEPS, 7));

    // What an undone step used is not judged; the order of lines does not matter.
    if let Record::Committed(undone) = &mut records[7] {
        undone.lanes.clear();
    }
    records.reverse();
    assert!(verify(&records, &spec).unwrap().is_exact());
}

#[test]
fn a_roll_back_does_not_excuse_the_generation_that_made_it() {
    let spec = spec(Shuffle::Global);
    let mut records = rolled_back(&spec);
    records.push(Record::Committed(step(&spec, 7, 3)));
    assert!(matches!(verify(&records, &spec).unwrap().problems[..], [Problem::CommittedTwice { .. }]));
    let records: Vec<Record> =
        rolled_back(&spec).into_iter().filter(|r| !matches!(r, Record::RolledBack(_))).collect();
    assert!(!verify(&records, &spec).unwrap().is_exact());
}

#[test]
fn an_empty_ledger_is_exact_and_empty() {
    let report = check(&spec(Shuffle::Global), Vec::new());
    assert!(report.is_exact() && report.steps == 0);
}
