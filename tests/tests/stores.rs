//! Checkpoints in a real S3 server: training there, resuming with another number of workers, reading and exporting,
//! and what is said when it is not there.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{SIX_LANES_IN_F64, Sandbox, error_of};
use mcl_testkit::{Fault, S3Server};
use std::time::Duration;

fn on_s3(server: &S3Server) -> (Sandbox, String) {
    let sandbox = Sandbox::new().with_environment(server.environment());
    (sandbox, format!("checkpoint.store={}", server.url("team/runs")))
}

#[test]
fn a_run_resumed_from_s3_with_other_workers_has_the_bits_of_one_that_kept_its_checkpoints_at_home() {
    let server = S3Server::start();
    let (sandbox, store) = on_s3(&server);
    let common = [&SIX_LANES_IN_F64[..], &["checkpoint.keep=0"]].concat();
    let with = |steps, more: &'static str| -> Vec<&str> { [&common[..], &[steps, more]].concat() };
    let (half, whole) = ("train.steps=5", "train.steps=10");
    let store: &'static str = store.leak();
    // 2 workers for 5 steps, then 3; and the same without S3.
    for (run, place) in [("away", store), ("home", "checkpoint.every_steps=500")] {
        sandbox.train(run, 2, &with(half, place));
        sandbox.train(run, 3, &with(whole, place));
        sandbox.exact_ledger(run);
    }
    let digest = |place: &str| sandbox.ok(&["checkpoint", "digest", place]).trim().to_owned();
    let away = server.url("team/runs/away");
    assert_eq!(digest(&away), digest("home"), "same layout, other bits");
    let exported = |place: &str, out: &str| {
        sandbox.ok(&["checkpoint", "export", place, "--out", out]);
        std::fs::read(sandbox.path(out)).unwrap()
    };
    assert_eq!(exported(&away, "away.safetensors"), exported("home", "home.safetensors"));
}

#[test]
fn the_same_workers_resumed_from_s3_end_with_the_bits_of_an_undisturbed_run() {
    let server = S3Server::start();
    let (sandbox, store) = on_s3(&server);
    let mut run = sandbox.start("away", 2, &[&store]);
    let kept = server.file("team/runs/away/step-0000000010/manifest.json");
    run.until("the checkpoint of step 10", |_| kept.is_file());
    run.kill_everything();
    // The store ails while the run goes on: slow, refusing, losing answers.
    let slow = Fault::Slow(Duration::from_millis(200));
    server.meet([
        slow,
        Fault::Refuse,
        Fault::DropAnswer,
        Fault::None,
        Fault::DropRequest,
        slow,
        Fault::Refuse,
    ]);
    sandbox.train("away", 2, &[&store]);
    assert_eq!(server.met(), 6, "all of it was met");
    let straight = sandbox.train("straight", 2, &[]);
    let listed = sandbox.json(&["checkpoint", "verify", &server.url("team/runs/away"), "--json"]);
    let last = listed["checkpoints"].as_array().unwrap().last().unwrap();
    assert_eq!((&last["step"], &last["digest"]), (&20.into(), &straight["digest"]));
    // A new run from it, without a path of this machine.
    let from = server.url("team/runs/away/step-0000000020");
    let begun = sandbox.run(&[
        "run",
        "job.toml",
        "--run-dir",
        "next",
        "--from",
        &from,
        "--set",
        "train.steps=2",
        "--json",
    ]);
    assert!(begun.status.success(), "{}", error_of(&begun));
}

#[test]
fn what_is_no_store_and_a_store_without_the_run_are_said() {
    let server = S3Server::start();
    let (sandbox, store) = on_s3(&server);
    sandbox.fails(2, &["ftp://", "s3"], &["checkpoint", "list", "ftp://somewhere/a"]);
    sandbox.train("away", 1, &[&store, "train.steps=2"]);
    let root = server.url("team/runs");
    sandbox.fails(1, &["holds no checkpoints", "away"], &["checkpoint", "list", &root]);
    let absent = server.url("team/runs/away/step-0000000500");
    sandbox.fails(
        1,
        &["expected the checkpoint of step 500", "not there"],
        &["checkpoint", "verify", &absent],
    );
    let wrong = vec![("AWS_SECRET_ACCESS_KEY", "not-the-secret".to_owned())];
    let mut environment = server.environment();
    environment.retain(|(key, _)| *key != "AWS_SECRET_ACCESS_KEY");
    environment.extend(wrong);
    let sandbox = sandbox.with_environment(environment);
    let said = sandbox.fails(1, &[root.as_str()], &["checkpoint", "list", &server.url("team/runs/away")]);
    assert!(!said.contains("not-the-secret"), "{said}");
}
