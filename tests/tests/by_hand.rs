//! Daemons started by hand, as README shows.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::Sandbox;
use std::io::{BufRead, BufReader};
use std::process::{Child, Stdio};
use std::time::{Duration, Instant};

/// A daemon that is killed when the test ends, whatever its outcome.
struct Daemon(Child);

impl Drop for Daemon {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

fn listening(sandbox: &Sandbox, arguments: &[&str]) -> (Daemon, String) {
    let mut child = sandbox.command(arguments).stdout(Stdio::piped()).spawn().unwrap();
    let mut line = String::new();
    BufReader::new(child.stdout.take().unwrap()).read_line(&mut line).unwrap();
    let url = line.trim().strip_prefix("listening ").unwrap_or_else(|| panic!("`{line}`")).to_owned();
    (Daemon(child), url)
}

#[test]
fn coordinator_checkpoint_service_and_workers_started_by_hand_train_a_submitted_job() {
    let sandbox = Sandbox::new();
    let (_store, checkpoint) = listening(&sandbox, &["checkpoint-server", "--root", "store"]);
    let (_coordinator, url) = listening(
        &sandbox,
        &["coordinator", "--run-dir", "cluster", "--checkpoint", &checkpoint, "--expected-workers", "2"],
    );
    let idle = sandbox.json(&["status", "--coordinator", &url, "--json"]);
    assert_eq!(idle["phase"], "idle");
    sandbox.ok(&["submit", "job.toml", "--coordinator", &url, "--name", "mine"]);
    let waiting = sandbox.json(&["status", "--coordinator", &url, "--json"]);
    assert_eq!((&waiting["run"], &waiting["phase"]), (&"mine".into(), &"waiting".into()), "{waiting}");
    assert!(waiting["reason"].as_str().unwrap().contains("workers"), "{waiting}");
    let _workers: Vec<Daemon> = ["a", "b"]
        .iter()
        .map(|name| {
            let arguments = ["worker", "--coordinator", &url, "--name", name, "--devices", "cpu"];
            Daemon(sandbox.command(&arguments).stdout(Stdio::null()).stderr(Stdio::null()).spawn().unwrap())
        })
        .collect();
    let started = Instant::now();
    while mcl_system_tests::committed(&sandbox.path("cluster")) < 20
        || sandbox.json(&["checkpoint", "list", "store/mine", "--json"])["checkpoints"]
            .as_array()
            .unwrap()
            .len()
            < 2
    {
        assert!(started.elapsed() < Duration::from_secs(100), "the job did not finish");
        std::thread::sleep(Duration::from_millis(100));
    }
    sandbox.exact_ledger("cluster");
    // The same job in one command gives the same weights.
    sandbox.train("local", 2, &[]);
    assert_eq!(sandbox.digest("store/mine"), sandbox.digest("local"));
}
