//! Features that are judged while a run goes on: after the epochs that were asked for, as by hand, over whatever happens to
//! the run; and shown to those who look on.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::browser::Browser;
use mcl_system_tests::cluster::{Cluster, free_port};
use mcl_system_tests::processes;
use mcl_system_tests::{Sandbox, checkpoint_visible, error_of};
use nix::sys::signal::Signal;
use serde_json::{Value, json};

/// Ten steps an epoch; checkpoints that go by others' steps.
const JUDGED: [&str; 9] = [
    "train.steps=25",
    "checkpoint.every_steps=7",
    "checkpoint.keep=0",
    "evaluation.every_epochs=1",
    "evaluation.train=objects",
    "evaluation.test=others",
    "evaluation.scenes=scenes",
    "evaluation.probes=both",
    "evaluation.encoder=online",
];

fn sandbox() -> Sandbox {
    let sandbox = Sandbox::new();
    sandbox.ok(&["data", "generate", "objects", "--out", "others", "--count", "60", "--seed", "6"]);
    sandbox.ok(&["data", "generate", "scenes", "--out", "scenes", "--count", "12", "--seed", "7"]);
    sandbox
}

/// Rows of `evaluations.jsonl`: steps and what was found.
fn found(sandbox: &Sandbox, run_dir: &str) -> Vec<(u64, Value)> {
    let text = std::fs::read_to_string(sandbox.path(run_dir).join("evaluations.jsonl")).unwrap_or_default();
    let rows = text.lines().map(|l| serde_json::from_str::<Value>(l).unwrap());
    rows.map(|row| {
        assert_eq!(row["encoder"], "online");
        assert!(row["seconds"].as_f64().unwrap() > 0.0 && row["time"].as_f64().unwrap() > 1.7e9, "{row}");
        (row["step"].as_u64().unwrap(), row["accuracies"].clone())
    })
    .collect()
}

/// The same as `mcl eval` finds it.
fn by_hand(sandbox: &Sandbox, run_dir: &str, step: u64) -> Value {
    let checkpoint = format!("{run_dir}/checkpoints/step-{step:010}");
    let on =
        ["--train", "objects", "--test", "others", "--scenes", "scenes", "--encoder", "online", "--json"];
    let told: Value = sandbox.json(&[&["eval", "both", &checkpoint], &on[..]].concat());
    let mut rows = Vec::new();
    for probe in ["knn", "linear"] {
        for on in ["objects", "scenes"] {
            let mut row = told[probe][on].clone();
            (row["probe"], row["on"]) = (json!(probe), json!(on));
            rows.push(row);
        }
    }
    rows.into()
}

#[test]
fn chosen_epochs_are_judged_as_by_hand_once_each_over_a_kill_and_a_drain() {
    let sandbox = sandbox();
    // Certificates as well: weights are not for everybody.
    let steady = sandbox.start_with("steady", 1, &JUDGED, &["--private"]).end();
    assert!(steady.status.success(), "{}", error_of(&steady));
    let rows = found(&sandbox, "steady");
    assert_eq!(rows.iter().map(|(step, _)| *step).collect::<Vec<_>>(), [10, 20, 25]);
    for (step, accuracies) in &rows {
        assert_eq!(*accuracies, by_hand(&sandbox, "steady", *step), "after {step} steps");
    }
    assert_ne!(rows[0].1, rows[2].1, "all weights are judged alike");

    let mut run = sandbox.start("eventful", 1, &JUDGED);
    run.until("the first chosen checkpoint", |dir| checkpoint_visible(dir, 10));
    run.kill_everything();
    let mut run = sandbox.start("eventful", 1, &JUDGED);
    run.until("the second", |dir| checkpoint_visible(dir, 20));
    run.signal(Signal::SIGINT);
    run.end();
    sandbox.train("eventful", 1, &JUDGED);
    assert_eq!(found(&sandbox, "eventful"), rows);
    // What evaluates is not what decides a trajectory.
    assert_eq!(sandbox.digest("eventful"), sandbox.digest("steady"));
}

/// Ranks go on while their coordinator is dead, and load nothing when its successor comes: what was not judged yet is.
#[test]
fn what_a_dead_coordinator_was_judging_its_successor_judges() {
    let sandbox = sandbox();
    let mut cluster = Cluster::start(&sandbox, "successor", 1);
    // Not so many that the run is over before the coordinator dies.
    cluster.submit(&sandbox, &[&["train.steps=400"], &JUDGED[1..]].concat());
    let judging = |c: &Cluster| {
        let coordinator = c.coordinator.as_ref().unwrap().pid();
        let family = processes::family(coordinator).into_iter();
        family.filter(|p| processes::command_line(*p).contains("mcl-rank")).collect::<Vec<_>>()
    };
    cluster.until("the first evaluation's process", |c| !judging(c).is_empty());
    let processes = judging(&cluster);
    let rows = |c: &Cluster| found(&sandbox, &c.run_dir.display().to_string());
    cluster.coordinator.take().unwrap().kill();
    assert!(rows(&cluster).is_empty());
    cluster.until("its end", |_| processes.iter().all(|p| !processes::alive(*p)));
    cluster.start_coordinator();
    cluster.until("the first evaluation", |c| rows(c).iter().any(|(step, _)| *step == 10));
    cluster.until("the next one", |c| rows(c).len() >= 2);
    assert_eq!(rows(&cluster)[1].0 % 10, 0);
}

#[tokio::test]
async fn who_looks_on_sees_what_was_found() {
    let sandbox = sandbox();
    let address = free_port([127, 0, 0, 1].into()).to_string();
    let more = ["--page", &address, "--set", "train.steps=1000000"];
    let mut run = sandbox.start_with("run", 1, &JUDGED[1..], &more);
    run.until("an evaluation", |dir| dir.join("evaluations.jsonl").is_file());
    let browser = Browser::start().await;
    browser.open(&format!("http://{address}")).await;
    browser.click("#tab-evaluations").await;
    let table = "return [...document.querySelectorAll('#evaluations tr')].map((r) => [...r.children].map((c) => c.textContent))";
    let shown =
        browser.until("evaluations", table, |rows| rows.as_array().is_some_and(|r| r.len() >= 4)).await;
    let (step, accuracies) = found(&sandbox, "run").swap_remove(0);
    let oldest = shown.as_array().unwrap().iter().rev().take(4).rev();
    for (row, accuracy) in oldest.zip(accuracies.as_array().unwrap()) {
        let share = 100.0 * accuracy["trained"].as_f64().unwrap();
        let percent = if share < 9.95 { format!("{share:.1} %") } else { format!("{share:.0} %") };
        let expected = [
            json!(format!("step {step}")),
            accuracy["probe"].clone(),
            accuracy["on"].clone(),
            json!(percent),
        ];
        assert_eq!(row.as_array().unwrap()[..4], expected, "{accuracy}");
    }
    browser.open(&format!("http://{address}/metrics")).await;
    let text = browser.script("return document.body.textContent").await;
    let text = text.as_str().unwrap();
    for name in [
        "mcl_evaluation_step ",
        "mcl_evaluation_accuracy_ratio{probe=\"linear\",on=\"scenes\",features=\"random\"} ",
    ] {
        assert!(text.contains(name), "{name} is not in\n{text}");
    }
    browser.end().await;
    run.kill_everything();
}

#[test]
fn what_cannot_be_judged_on_is_said_before_anything_is_trained() {
    let sandbox = sandbox();
    for (set, words) in [
        (vec!["evaluation.every_epochs=1"], vec!["evaluation.train", "not set"]),
        (
            vec!["evaluation.every_epochs=1", "evaluation.train=objects", "evaluation.test=nowhere"],
            vec!["evaluation.test", "nowhere", "not there"],
        ),
        (vec!["evaluation.short_side=256"], vec!["evaluation.short_side", "evaluation.scenes"]),
    ] {
        let mut arguments = vec!["run", "job.toml", "--run-dir", "run", "--devices", "cpu"];
        arguments.extend(set.iter().flat_map(|set| ["--set", set]));
        let output = sandbox.run(&arguments);
        let said = error_of(&output);
        assert!(!output.status.success() && words.iter().all(|word| said.contains(word)), "{said}");
        assert!(!sandbox.path("run").exists());
    }
}
