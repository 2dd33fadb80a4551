//! Same weights whatever happens and however many workers there are.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{SIX_LANES_IN_F64, Sandbox, checkpoint_visible, largest_error, processes};
use nix::sys::signal::Signal;

#[test]
fn twenty_steps_straight_equal_twenty_steps_with_everything_killed_after_ten() {
    let sandbox = Sandbox::new();
    let straight = sandbox.train("straight", 2, &[]);
    assert_eq!(straight["steps"], 20);

    let mut run = sandbox.start("killed", 2, &[]);
    run.until("the checkpoint of step 10", |dir| checkpoint_visible(dir, 10));
    run.kill_everything();
    assert!(!checkpoint_visible(&sandbox.path("killed"), 20), "the run was over before it was killed");
    let resumed = sandbox.train("killed", 2, &[]);
    assert_eq!(resumed["steps"], 20);

    // Parameters, momentum encoder, optimiser, norms' buffers: every bit.
    assert_eq!(sandbox.digest("straight"), sandbox.digest("killed"));
    assert_eq!(straight["digest"], resumed["digest"]);
    for run in ["straight", "killed"] {
        let report = sandbox.exact_ledger(run);
        assert_eq!(
            (&report["steps"], &report["samples"], &report["missing"], &report["twice"]),
            (&20.into(), &320.into(), &0.into(), &0.into())
        );
    }
    // Each step stands once in the metrics, and with the same loss in both.
    let (a, b) = (sandbox.metrics("straight"), sandbox.metrics("killed"));
    assert_eq!(a.len(), 20);
    for (a, b) in a.iter().zip(&b) {
        assert_eq!((&a["step"], &a["loss"]), (&b["step"], &b["loss"]));
    }
}

#[test]
fn an_interrupt_drains_to_a_checkpoint_and_the_run_continues_in_mid_epoch() {
    let sandbox = Sandbox::new();
    let every = "checkpoint.every_steps=1000";
    sandbox.train("straight", 2, &[every]);
    let mut run = sandbox.start("drained", 2, &[every]);
    run.until("step 3", |dir| mcl_system_tests::committed(dir) >= 3);
    run.signal(Signal::SIGINT);
    let output = run.end();
    assert_eq!(output.status.code(), Some(130), "{}", mcl_system_tests::error_of(&output));
    let steps = sandbox.metrics("drained").len();
    assert!((3..20).contains(&steps), "{steps} steps");
    assert!(checkpoint_visible(&sandbox.path("drained"), steps as u64), "no checkpoint of step {steps}");
    sandbox.train("drained", 2, &[every]);
    assert_eq!(sandbox.digest("straight"), sandbox.digest("drained"));
    // Nothing was done twice: a drain loses no step.
    let report = sandbox.exact_ledger("drained");
    assert_eq!(report["rolled_back"], 0, "{report}");
}

/// DESIGN invariant 7: other numbers of workers, in f64: first 3 steps at most 1e-11, 20 steps at most 1e-9.
#[test]
fn one_two_three_and_four_workers_over_six_lanes_agree() {
    let sandbox = Sandbox::new();
    let common = [&SIX_LANES_IN_F64[..], &["checkpoint.every_steps=3", "checkpoint.keep=0"]].concat();
    for workers in 1..=4 {
        sandbox.train(&format!("w{workers}"), workers, &common);
        sandbox.exact_ledger(&format!("w{workers}"));
    }
    for workers in 2..=4 {
        let run = format!("w{workers}");
        let early = largest_error(&sandbox.tensors(&run, 3), &sandbox.tensors("w1", 3));
        let late = largest_error(&sandbox.tensors(&run, 20), &sandbox.tensors("w1", 20));
        println!("{workers} workers against 1: {early:.1e} after 3 steps, {late:.1e} after 20");
        assert!(early <= 1e-11, "{workers} workers, 3 steps: {early:e}");
        assert!(late <= 1e-9, "{workers} workers, 20 steps: {late:e}");
    }
    sandbox.train("again", 4, &common);
    assert_eq!(sandbox.digest("w4"), sandbox.digest("again"), "same layout, other bits");
}

/// As above, with batch statistics of a lane's own: a rank's lanes run one after another.
#[test]
fn with_statistics_of_a_lane_other_numbers_of_workers_agree() {
    let sandbox = Sandbox::new();
    let own = ["method.norm=lane", "train.steps=9", "checkpoint.every_steps=3", "checkpoint.keep=0"];
    let common = [&SIX_LANES_IN_F64[..], &own].concat();
    for workers in [1, 4] {
        sandbox.train(&format!("w{workers}"), workers, &common);
    }
    for step in [3, 9] {
        let error = largest_error(&sandbox.tensors("w4", step), &sandbox.tensors("w1", step));
        println!("4 workers against 1: {error:.1e} after {step} steps");
        assert!(error <= 1e-11, "{error:e} after {step} steps");
    }
    // It is another computation than that over all lanes.
    let all = [&common[..], &["method.norm=sync"]].concat();
    sandbox.train("sync", 4, &all);
    assert_ne!(sandbox.digest("sync"), sandbox.digest("w4"));
}

#[test]
fn half_precision_trains_to_the_same_bits_after_a_kill() {
    let sandbox = Sandbox::new();
    let half = ["train.precision=bf16"];
    sandbox.train("straight", 2, &half);
    let mut run = sandbox.start("killed", 2, &half);
    run.until("the checkpoint of step 10", |dir| checkpoint_visible(dir, 10));
    run.kill_everything();
    sandbox.train("killed", 2, &half);
    assert_eq!(sandbox.digest("straight"), sandbox.digest("killed"));
    let losses: Vec<f64> =
        sandbox.metrics("straight").iter().map(|step| step["loss"].as_f64().unwrap()).collect();
    assert!(losses.iter().all(|loss| loss.is_finite()), "{losses:?}");
}

#[test]
fn a_killed_worker_is_replaced_and_the_weights_are_those_of_an_undisturbed_run() {
    let sandbox = Sandbox::new();
    // Fewer workers would go on at once, with the same pictures and other roundings.
    let waits = ["elastic.min_workers=2"];
    sandbox.train("straight", 2, &waits);
    let mut run = sandbox.start("disturbed", 2, &waits);
    run.until("the checkpoint of step 10", |dir| checkpoint_visible(dir, 10));
    let rank =
        run.processes().into_iter().find(|pid| processes::command_line(*pid).contains("mcl-rank train"));
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(rank.expect("a rank process")), Signal::SIGKILL)
        .unwrap();
    let output = run.end();
    assert!(output.status.success(), "{}", mcl_system_tests::error_of(&output));
    assert_eq!(sandbox.digest("straight"), sandbox.digest("disturbed"));
    let report = sandbox.exact_ledger("disturbed");
    assert_eq!((&report["missing"], &report["twice"]), (&0.into(), &0.into()));
    assert_eq!(sandbox.metrics("disturbed").len(), 20);
}

#[test]
fn tar_shards_train_in_windows_and_a_finished_run_is_done_at_once() {
    let sandbox = Sandbox::new();
    sandbox.ok(&["data", "pack", "objects", "--out", "shards", "--samples-per-shard", "25"]);
    let shards = ["data.source=shards", "train.steps=12"];
    sandbox.train("tar", 2, &shards);
    let job = std::fs::read_to_string(sandbox.path("tar/job.toml")).unwrap();
    assert!(job.contains("shuffle = \"windowed\""), "{job}");
    let report = sandbox.exact_ledger("tar");
    // 10 steps an epoch: the second one has begun.
    assert_eq!(report["epochs"].as_array().unwrap().len(), 2, "{report}");
    let before = sandbox.digest("tar");
    sandbox.train("tar", 2, &shards);
    assert_eq!(before, sandbox.digest("tar"));
    assert_eq!(sandbox.metrics("tar").len(), 12);
}
