//! TensorBoard's files of real runs hold what the runs' metrics hold.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{Sandbox, checkpoint_visible, committed};
use mcl_tensorboard::{Records, ValueKind, event_files};
use std::collections::BTreeMap;
use std::path::Path;

/// By tag the values that stand, as TensorBoard counts.
type Scalars = BTreeMap<String, BTreeMap<u64, f32>>;

fn shown(run_dir: &Path) -> (Scalars, BTreeMap<u64, Vec<u8>>) {
    let (mut scalars, mut sheets) = (Scalars::new(), BTreeMap::new());
    for (_, path) in event_files(&run_dir.join("events")).unwrap() {
        for event in Records::open(&path).unwrap() {
            // A writer that was killed may have left a torn end.
            let Ok(event) = event else { break };
            let step = u64::try_from(event.step).unwrap();
            if let Some(start) = event.started_at() {
                scalars.values_mut().for_each(|values| values.retain(|s, _| *s < start));
                sheets.retain(|s, _| *s < start);
            }
            for value in event.values() {
                let twice = match value.kind.clone().unwrap() {
                    ValueKind::Scalar(v) => {
                        scalars.entry(value.tag.clone()).or_default().insert(step, v).is_some()
                    }
                    ValueKind::Image(image) => sheets.insert(step, image.encoded).is_some(),
                };
                assert!(!twice, "{} of step {step} stands twice", value.tag);
            }
        }
    }
    (scalars, sheets)
}

#[test]
fn tensorboard_is_told_every_committed_step_once_over_a_kill_and_a_roll_back() {
    let sandbox = Sandbox::new();
    let mut run = sandbox.start("first", 2, &["train.steps=30"]);
    run.until("the first checkpoint and three steps", |d| checkpoint_visible(d, 10) && committed(d) >= 13);
    run.kill_everything();
    sandbox.train("first", 2, &["train.steps=30"]);
    let report = sandbox.exact_ledger("first");
    assert!(report["rolled_back"].as_u64().unwrap() > 0, "{report}");
    let rows = sandbox.metrics("first");
    let (scalars, sheets) = shown(&sandbox.path("first"));
    for (tag, name) in [("loss", "loss"), ("lr", "lr"), ("grad_norm", "grad_norm"), ("workers", "workers")] {
        let expected: BTreeMap<u64, f32> =
            rows.iter().map(|r| (r["step"].as_u64().unwrap(), r[name].as_f64().unwrap() as f32)).collect();
        assert_eq!(scalars[tag], expected, "{tag}");
        assert_eq!(expected.len(), 30);
    }
    let levels: Vec<f32> = rows.iter().map(|r| r["loss_per_level"][2].as_f64().unwrap() as f32).collect();
    assert_eq!(scalars["loss/level_2"].values().copied().collect::<Vec<_>>(), levels);
    assert_eq!(scalars.len(), 11, "{:?}", scalars.keys());
    // The last sheet may still have been drawn when the run ended.
    assert!(sheets.contains_key(&0), "{:?}", sheets.keys());
    for (step, file) in &sheets {
        let picture = mcl_data::decode(file, mcl_data::Limits::default()).unwrap();
        // Three levels, two sides, 8 montages of 32 pixels across.
        assert_eq!((picture.width(), picture.height()), (6 + 8 * 38, 6 + 6 * 38), "step {step}");
    }
    // Gone: made again.
    std::fs::remove_dir_all(sandbox.path("first/events")).unwrap();
    sandbox.train("first", 1, &["train.steps=31"]);
    assert_eq!(shown(&sandbox.path("first")).0["loss"].len(), 31);
}
