//! What goes wrong for people: one clear error each, the right exit code, nothing damaged.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::{Sandbox, committed, error_of};
use std::process::Stdio;

#[test]
fn bad_configuration_names_file_key_and_line() {
    let sandbox = Sandbox::new();
    let job = std::fs::read_to_string(sandbox.path("job.toml")).unwrap();
    std::fs::write(sandbox.path("typo.toml"), job.replace("steps = 20", "stepps = 20")).unwrap();
    for verb in ["run", "validate"] {
        sandbox.fails(2, &["typo.toml:", "stepps", "train.steps"], &[verb, "typo.toml"]);
    }
    std::fs::write(sandbox.path("range.toml"), job.replace("temperature = 0.2", "temperature = -1")).unwrap();
    sandbox.fails(2, &["range.toml:", "method.temperature", "above 0"], &["run", "range.toml"]);
    sandbox.fails(2, &["nowhere.toml"], &["run", "nowhere.toml"]);
    sandbox.fails(2, &["lanes"], &["run", "job.toml", "--workers", "3"]);
    assert!(!sandbox.path("runs").exists(), "a refused job left a run directory");
}

#[test]
fn missing_and_too_small_folders_are_named() {
    let sandbox = Sandbox::new();
    sandbox.fails(2, &["no-such-folder"], &["run", "job.toml", "--set", "data.source=no-such-folder"]);
    std::fs::create_dir(sandbox.path("empty")).unwrap();
    sandbox.fails(2, &["empty"], &["run", "job.toml", "--set", "data.source=empty"]);
    let error =
        sandbox.fails(2, &["160 pictures"], &["run", "job.toml", "--set", "batch.images_per_lane=100"]);
    assert!(error.contains("lanes") && error.contains("images_per_lane"), "{error}");
}

#[test]
fn an_unreachable_coordinator_is_named() {
    let sandbox = Sandbox::new();
    let url = "http://127.0.0.1:1";
    sandbox.fails(1, &[url], &["status", "--coordinator", url]);
    sandbox.fails(1, &[url], &["worker", "--coordinator", url, "--devices", "cpu", "--connect-timeout", "1"]);
    sandbox.fails(2, &["nonsense"], &["status", "--coordinator", "nonsense://"]);
}

#[test]
fn a_port_in_use_is_named() {
    let sandbox = Sandbox::new();
    let taken = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let address = taken.local_addr().unwrap().to_string();
    sandbox.fails(1, &[&address], &["checkpoint-server", "--root", "store", "--listen", &address]);
    sandbox.fails(
        1,
        &[&address],
        &["coordinator", "--run-dir", "run", "--checkpoint", "http://127.0.0.1:1", "--listen", &address],
    );
    for daemon in [
        &["checkpoint-server", "--root", "s"][..],
        &["coordinator", "--run-dir", "r", "--checkpoint", "http://127.0.0.1:1"],
    ] {
        let mut arguments = daemon.to_vec();
        arguments.extend(["--listen", "0.0.0.0:0"]);
        sandbox.fails(2, &["--insecure", "0.0.0.0"], &arguments);
    }
}

#[test]
fn two_runs_in_one_directory_the_second_is_refused_and_the_first_unharmed() {
    let sandbox = Sandbox::new();
    let mut first = sandbox.start("run", 1, &[]);
    first.until("the first step", |dir| mcl_system_tests::committed(dir) >= 1);
    let error = sandbox.fails(1, &["run"], &["run", "job.toml", "--run-dir", "run", "--devices", "cpu"]);
    assert!(error.contains("use") || error.contains("another"), "{error}");
    let output = first.end();
    assert!(output.status.success(), "{}", error_of(&output));
    sandbox.exact_ledger("run");
}

#[test]
fn another_job_in_a_run_directory_is_refused_and_the_old_one_unharmed() {
    let sandbox = Sandbox::new();
    sandbox.train("run", 1, &[]);
    let before = sandbox.digest("run");
    let other =
        ["run", "job.toml", "--run-dir", "run", "--devices", "cpu", "--set", "method.temperature=0.5"];
    sandbox.fails(1, &["run"], &other);
    assert_eq!(before, sandbox.digest("run"));
    sandbox.exact_ledger("run");
}

/// A folder on a small file system of its own; none where the right to mount is missing.
fn tiny_disk(sandbox: &Sandbox, bytes: u64) -> Option<std::path::PathBuf> {
    let folder = sandbox.path("tiny");
    std::fs::create_dir(&folder).unwrap();
    let mounted = std::process::Command::new("mount")
        .args(["-t", "tmpfs", "-o", &format!("size={bytes}"), "tmpfs"])
        .arg(&folder)
        .stderr(Stdio::null())
        .status();
    mounted.is_ok_and(|s| s.success()).then_some(folder)
}

#[test]
fn a_full_disk_of_the_checkpoints_stops_no_step_and_costs_no_state_once_there_is_room() {
    let sandbox = Sandbox::new();
    sandbox.train("roomy", 1, &["train.steps=1"]);
    let list = sandbox.json(&["checkpoint", "list", "roomy", "--json"]);
    let one = list["checkpoints"][0]["bytes"].as_u64().unwrap();
    let Some(disk) = tiny_disk(&sandbox, 5 * one / 2 + (1 << 20)) else {
        println!("no right to mount a small file system here: covered by the rank's own tests");
        return;
    };
    let store = disk.join("store");
    let at = format!("checkpoint.store={}", store.display());
    let visible = |step: u64| {
        let path = format!("held/step-{step:010}/manifest.json");
        store.join(path).is_file()
    };
    // None is pruned, so the third or fourth checkpoint does not fit; training goes on until the end, where the
    // last one may not be missed: the rank waits with it.
    let mut running = sandbox.start("held", 1, &["checkpoint.every_steps=2", "checkpoint.keep=0", &at]);
    running.until("the last step", |run_dir| committed(run_dir) == 20);
    let (first, last) = (visible(2), visible(20));
    let room = format!("remount,size={}", 64 * one);
    let remounted = std::process::Command::new("mount").args(["-o", &room]).arg(&disk).status();
    let output = running.end();
    let error = String::from_utf8_lossy(&output.stderr).into_owned();
    let saved = visible(20);
    let _ = std::process::Command::new("umount").arg("-l").arg(&disk).status();
    assert!(remounted.unwrap().success() && output.status.success(), "{error}");
    assert!(first && !last && saved, "visible: {first} {last} {saved}\n{error}");
}

#[test]
fn pictures_that_are_all_bad_end_the_run_with_a_clear_error() {
    let sandbox = Sandbox::new();
    std::fs::create_dir(sandbox.path("bad")).unwrap();
    for n in 0..40 {
        std::fs::write(sandbox.path(&format!("bad/{n}.jpg")), format!("no picture, {n}")).unwrap();
    }
    let error =
        sandbox.fails(1, &["decode"], &["run", "job.toml", "--devices", "cpu", "--set", "data.source=bad"]);
    assert!(error.contains("rank 0") || error.contains("worker-0"), "{error}");
}
