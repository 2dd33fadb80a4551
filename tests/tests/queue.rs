//! Several jobs on one coordinator, and runs that begin with the weights of others.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::cluster::{Daemon, free_port};
use mcl_system_tests::{Sandbox, checkpoint_visible, committed, error_of};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::{Duration, Instant};

const LOOPBACK: IpAddr = IpAddr::V4(Ipv4Addr::LOCALHOST);

/// A coordinator with a folder of runs, a checkpoint service and two workers, at addresses chosen once.
struct Scene<'a> {
    sandbox: &'a Sandbox,
    checkpoint: SocketAddr,
    coordinator: SocketAddr,
    daemons: Vec<Daemon>,
}

impl<'a> Scene<'a> {
    fn start(sandbox: &'a Sandbox) -> Self {
        let (checkpoint, coordinator) = (free_port(LOOPBACK), free_port(LOOPBACK));
        let mut scene = Self { sandbox, checkpoint, coordinator, daemons: Vec::new() };
        let at = checkpoint.to_string();
        let store = ["checkpoint-server", "--root", "store", "--listen", &at, "--stop-with-stdin"];
        let store = scene.daemon(&store, "checkpoint");
        let coordinator = scene.start_coordinator();
        let url = scene.url();
        let workers = ["a", "b"].map(|name| {
            let state = format!("workers/{name}");
            let arguments = ["worker", "--coordinator", &url, "--name", name, "--devices", "cpu"];
            let more = ["--state-dir", &state, "--stop-with-stdin"];
            scene.daemon(&[arguments.as_slice(), &more].concat(), name)
        });
        scene.daemons = vec![store, coordinator];
        scene.daemons.extend(workers);
        scene
    }

    fn start_coordinator(&self) -> Daemon {
        let (at, checkpoint) = (self.coordinator.to_string(), format!("http://{}", self.checkpoint));
        let arguments = ["coordinator", "--runs", "runs", "--checkpoint", &checkpoint, "--listen", &at];
        let expected = ["--expected-workers", "2", "--stop-with-stdin"];
        self.daemon(&[arguments.as_slice(), &expected].concat(), "coordinator")
    }

    fn daemon(&self, arguments: &[&str], log: &str) -> Daemon {
        Daemon::start(self.sandbox.command(arguments), &self.sandbox.path(&format!("logs/{log}.log")))
    }

    fn url(&self) -> String {
        format!("http://{}", self.coordinator)
    }

    /// `mcl` with arguments and this coordinator's address, once it answers.
    fn ask(&self, arguments: &[&str]) -> serde_json::Value {
        let url = self.url();
        let begun = Instant::now();
        loop {
            let all = [arguments, &["--coordinator", &url, "--json"]].concat();
            let output = self.sandbox.run(&all);
            if output.status.success() {
                return serde_json::from_slice(&output.stdout).unwrap();
            }
            assert!(begun.elapsed() < Duration::from_secs(30), "mcl {all:?}: {}", error_of(&output));
            std::thread::sleep(Duration::from_millis(100));
        }
    }

    fn submit(&self, name: &str, more: &[&str]) -> (u64, u64) {
        let answer = self.ask(&[&["submit", "job.toml", "--name", name], more].concat());
        (answer["committed_steps"].as_u64().unwrap(), answer["jobs_before"].as_u64().unwrap())
    }

    fn wait(&self, what: &str, holds: impl Fn(&serde_json::Value) -> bool) -> serde_json::Value {
        let begun = Instant::now();
        loop {
            let status = self.ask(&["status"]);
            if holds(&status) {
                return status;
            }
            assert!(begun.elapsed() < Duration::from_secs(100), "{what} did not come to pass: {status}");
            std::thread::sleep(Duration::from_millis(100));
        }
    }
}

#[test]
fn jobs_are_run_one_after_the_other_by_the_same_workers() {
    let sandbox = Sandbox::new();
    let mut scene = Scene::start(&sandbox);
    assert_eq!(scene.submit("first", &[]), (0, 0));
    assert_eq!(scene.submit("second", &["--set", "train.seed=7"]), (0, 1));
    assert_eq!(scene.submit("third", &[]), (0, 2));
    assert_eq!(scene.submit("fourth", &["--set", "train.steps=5"]), (0, 3));
    scene.ask(&["cancel", "third"]);
    // The coordinator is killed in the middle of the second job.
    scene.wait("second is run", |s| s["run"] == "second" && s["committed_steps"].as_u64() > Some(3));
    scene.daemons.remove(1).kill();
    let again = scene.start_coordinator();
    scene.daemons.push(again);
    let done = scene.wait("fourth is done", |s| s["run"] == "fourth" && s["phase"] == "done");
    assert_eq!(done["queue"], serde_json::json!([]));
    let past: Vec<_> = done["past_runs"].as_array().unwrap().iter().map(|p| p["run"].as_str()).collect();
    assert_eq!(past, [Some("first"), Some("second")]);

    // An earlier run is made longer: it goes on from its checkpoint.
    assert_eq!(scene.submit("first", &["--set", "train.steps=24"]), (20, 0));
    scene.wait("first is done again", |s| s["run"] == "first" && s["phase"] == "done");
    for (run, steps) in [("first", 24), ("second", 20), ("fourth", 5)] {
        let report = sandbox.exact_ledger(&format!("runs/{run}"));
        assert_eq!(report["rolled_back"], 0, "{report}");
        assert_eq!(committed(&sandbox.path(&format!("runs/{run}"))), steps, "{run}");
    }
    assert!(!sandbox.path("runs/third").exists());

    // What a queue makes is what one command makes.
    sandbox.train("alone", 2, &["train.seed=7"]);
    assert_eq!(sandbox.digest("store/second"), sandbox.digest("alone"));
}

#[test]
fn a_run_begins_with_the_weights_of_another() {
    let sandbox = Sandbox::new();
    let keep_all = "checkpoint.keep=0";
    sandbox.train("old", 1, &["train.steps=10"]);
    let old = sandbox.tensors("old", 10);
    let train = |run_dir: &str, from: &str| {
        let arguments =
            ["run", "job.toml", "--json", "--devices", "cpu", "--run-dir", run_dir, "--from", from];
        sandbox.json(&[arguments.as_slice(), &["--set", "train.steps=3", "--set", keep_all]].concat())
    };
    train("new", "old");
    assert!(checkpoint_visible(&sandbox.path("new"), 0));
    let begun = sandbox.tensors("new", 0);
    assert!(begun.keys().all(|name| !name.starts_with("optimizer.")), "weights alone");
    assert!(begun.iter().all(|(name, tensor)| old[name] == *tensor), "bit by bit");
    assert!(begun.contains_key("encoder_k.0.conv1.weight") && begun.keys().any(|n| n.starts_with("head.")));
    sandbox.exact_ledger("new");
    let from_seed = sandbox.train("seed", 1, &["train.steps=3"]);
    assert_ne!(sandbox.digest("new"), from_seed["digest"].as_str().unwrap());

    // The same command again is no harm; another state is refused.
    train("new", "old");
    sandbox.fails(
        1,
        &["`new` began with the state"],
        &[
            "run",
            "job.toml",
            "--devices",
            "cpu",
            "--run-dir",
            "new",
            "--from",
            "seed",
            "--set",
            "train.steps=3",
        ],
    );

    // An exported encoder is where both encoders begin.
    sandbox.ok(&["checkpoint", "export", "old", "--out", "weights.safetensors"]);
    train("exported", "weights.safetensors");
    let begun = sandbox.tensors("exported", 0);
    for (name, tensor) in &begun {
        let (_, rest) = name.split_once('.').unwrap();
        assert_eq!(old[&format!("encoder_k.{rest}")], *tensor, "{name}");
    }
    sandbox.exact_ledger("exported");

    let wide = ["--set", "model.width=16"];
    let from = |path| ["run", "job.toml", "--devices", "cpu", "--run-dir", "wide", "--from", path];
    sandbox.fails(2, &["another model", "[model]"], &[from("old").as_slice(), &wide].concat());
    sandbox.fails(2, &["--from", "no checkpoints"], &from("objects"));
    sandbox.fails(2, &["expected a safetensors file"], &from("job.toml"));
    sandbox.fails(1, &["has shape"], &[from("weights.safetensors").as_slice(), &wide].concat());
}
