//! Stories of a cluster whose members come and go, told with daemons that are started by hand.
//!
//! Each asks the same at its end: the ledger is exact, and the weights are those of a run that nothing happened to.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

use mcl_system_tests::cluster::{Cluster, Daemon, free_port, status_of};
use mcl_system_tests::{Sandbox, largest_error, measure, processes};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::net::{IpAddr, Ipv4Addr};
use std::time::{Duration, Instant};

/// Silence after which a worker or a rank is lost.
const LOST_AFTER: Duration = Duration::from_secs(2);

/// A job that lasts a while: enough steps for something to happen in between.
fn lanes_of(lanes: u32, steps: u32, more: &[&str]) -> Vec<String> {
    let lanes = format!("batch.lanes={lanes}");
    let steps = format!("train.steps={steps}");
    let fixed = [&lanes, &steps, "batch.images_per_lane=4", "elastic.lost_after=2s", "checkpoint.keep=0"];
    fixed.iter().chain(more).map(|s| (*s).to_owned()).collect()
}

fn strs(list: &[String]) -> Vec<&str> {
    list.iter().map(String::as_str).collect()
}

/// The same job on a cluster that nothing happens to.
fn undisturbed(sandbox: &Sandbox, name: &str, workers: usize, job: &[String]) -> Cluster {
    let mut cluster = Cluster::start(sandbox, name, workers);
    cluster.submit(sandbox, &strs(job));
    cluster.until_done();
    cluster
}

/// Ledger exact, every step once, and nothing of it taken back; the report.
fn exact(sandbox: &Sandbox, cluster: &Cluster, steps: u64) -> Value {
    let report = sandbox.exact_ledger(&cluster.run_dir.display().to_string());
    assert_eq!(report["steps"], steps, "{report}");
    let metrics = sandbox.metrics(&cluster.run_dir.display().to_string());
    let listed: Vec<u64> = metrics.iter().map(|m| m["step"].as_u64().unwrap()).collect();
    assert_eq!(listed, (0..steps).collect::<Vec<_>>());
    report
}

fn same_bits(sandbox: &Sandbox, a: &Cluster, b: &Cluster) {
    assert_eq!(sandbox.digest(&a.checkpoints()), sandbox.digest(&b.checkpoints()));
    let losses = |c: &Cluster| -> Vec<Value> {
        sandbox.metrics(&c.run_dir.display().to_string()).iter().map(|m| m["loss"].clone()).collect()
    };
    assert_eq!(losses(a), losses(b));
}

fn generation(cluster: &Cluster) -> u64 {
    mcl_system_tests::last_metric(&cluster.run_dir).unwrap()["generation"].as_u64().unwrap()
}

/// DESIGN invariant 7: in f64, first 3 steps at most 1e-11, 20 steps at most 1e-9.
#[test]
fn six_lanes_on_one_then_three_then_two_then_four_workers_agree_with_a_steady_run() {
    let sandbox = Sandbox::new();
    let job = lanes_of(
        6,
        40,
        &[
            // At 32 pixels P5 has one cell and norms see means that are zero but for noise.
            "model.image_size=64",
            "train.precision=f64",
            "optimizer.kind=lars",
            "optimizer.lr=0.1",
            "checkpoint.every_steps=1",
        ],
    );
    let steady = undisturbed(&sandbox, "steady", 1, &job);

    let mut cluster = Cluster::start(&sandbox, "elastic", 1);
    cluster.submit(&sandbox, &strs(&job));
    cluster.until_committed(1);
    cluster.start_worker("b");
    cluster.start_worker("c");
    cluster.until_workers(3);
    let grown = cluster.committed();
    cluster.kill_worker("b");
    cluster.until_workers(2);
    let shrunk = cluster.committed();
    cluster.start_worker("b");
    cluster.start_worker("d");
    cluster.until_workers(4);
    println!("three workers by step {grown}, two by step {shrunk}, four by step {}", cluster.committed());
    cluster.until_done();
    let report = exact(&sandbox, &cluster, 40);
    assert_eq!(report["rolled_back"], 0, "{report}");

    let path = |c: &Cluster| c.run_dir.display().to_string();
    let (ours, theirs) = (sandbox.metrics(&path(&cluster)), sandbox.metrics(&path(&steady)));
    let mut worst = [0.0_f64; 2];
    for (step, (a, b)) in ours.iter().zip(&theirs).enumerate() {
        let error = relative(a["loss"].as_f64().unwrap(), b["loss"].as_f64().unwrap());
        println!("step {step:2}, {} workers: loss error {error:.1e}", a["workers"]);
        if step < 20 {
            worst[usize::from(step >= 3)] = worst[usize::from(step >= 3)].max(error);
        }
    }
    assert!(worst[0] <= 1e-11 && worst[1] <= 1e-9, "losses: {worst:?}");
    for (after, limit) in [(3, 1e-11), (10, 1e-9), (20, 1e-9), (40, 1e-6)] {
        let Some(ours) = visible(&cluster, after).then(|| sandbox.tensors(&cluster.checkpoints(), after))
        else {
            println!("no checkpoint of step {after}: a snapshot was skipped");
            continue;
        };
        let error = largest_error(&ours, &sandbox.tensors(&steady.checkpoints(), after));
        println!("after {after} steps: state error {error:.1e}");
        assert!(error <= limit, "after {after} steps: {error:e}");
    }
}

fn relative(a: f64, b: f64) -> f64 {
    (a - b).abs() / b.abs().max(1e-300)
}

fn visible(cluster: &Cluster, step: u64) -> bool {
    std::path::Path::new(&cluster.checkpoints()).join(format!("step-{step:010}/manifest.json")).is_file()
}

#[test]
fn a_worker_that_is_asked_to_leave_goes_at_a_step_boundary_and_the_others_go_on() {
    let sandbox = Sandbox::new();
    let job = lanes_of(3, 200, &["elastic.min_workers=2", "checkpoint.every_steps=1000"]);
    let mut cluster = Cluster::start(&sandbox, "run", 3);
    cluster.submit(&sandbox, &strs(&job));
    cluster.until_workers(3);
    cluster.until_committed(20);
    let before = generation(&cluster);

    let status = cluster.drain_worker("b");
    assert_eq!(status.code(), Some(0), "{}", cluster.said("worker-b"));
    cluster.until_workers(2);
    // One change of generation, made at a step boundary: no rank had to break off a step.
    assert_eq!(generation(&cluster), before + 1);
    for worker in ["a", "b", "c"] {
        let said = cluster.said(&format!("worker-{worker}"));
        assert!(!said.contains("generation over"), "worker {worker} broke a step off:\n{said}");
    }
    cluster.until_done();
    let report = exact(&sandbox, &cluster, 200);
    assert_eq!(report["rolled_back"], 0, "{report}");
}

#[test]
fn a_killed_coordinator_comes_back_to_a_generation_that_trained_on() {
    // Longer than the silence that would make a worker lost.
    let told = measure::outage(&Sandbox::new(), LOST_AFTER + Duration::from_secs(1));
    println!("{told:#}");
    assert!(told["made_meanwhile"].as_u64().unwrap() > 0, "{told}");
}

#[test]
fn a_job_whose_last_steps_fall_into_an_outage_of_the_coordinator_ends_well() {
    let sandbox = Sandbox::new();
    let job = lanes_of(2, 40, &["elastic.min_workers=2", "checkpoint.every_steps=1000"]);
    let straight = undisturbed(&sandbox, "straight", 2, &job);

    let mut cluster = Cluster::start(&sandbox, "run", 2);
    cluster.submit(&sandbox, &strs(&job));
    cluster.until_committed(20);
    let step = mcl_system_tests::last_metric(&cluster.run_dir).unwrap()["step_s"].as_f64().unwrap();
    cluster.coordinator.take().unwrap().kill();
    // Long enough for the ranks to make all steps, and to want the last checkpoint.
    std::thread::sleep(Duration::from_secs_f64(40.0 * step + 1.0));
    cluster.start_coordinator();
    cluster.until_done();
    let report = exact(&sandbox, &cluster, 40);
    assert_eq!(report["rolled_back"], 0, "{report}");
    same_bits(&sandbox, &straight, &cluster);
}

#[test]
fn a_rank_that_hangs_is_found_named_and_replaced() {
    let sandbox = Sandbox::new();
    let job = lanes_of(2, 80, &["elastic.min_workers=2", "checkpoint.every_steps=1000"]);
    let straight = undisturbed(&sandbox, "straight", 2, &job);

    let mut cluster = Cluster::start(&sandbox, "run", 2);
    cluster.submit(&sandbox, &strs(&job));
    cluster.until_workers(2);
    cluster.until_committed(20);
    let (before, rank) = (generation(&cluster), cluster.rank("b").unwrap());
    processes::signal(rank, Signal::SIGSTOP);
    let begun = Instant::now();
    cluster.until("the end of the stopped rank", |_| !processes::alive(rank));
    let found = begun.elapsed();
    cluster.until("a new generation", |c| generation(c) > before);
    println!(
        "found after {:.2} s, next step after {:.2} s",
        found.as_secs_f64(),
        begun.elapsed().as_secs_f64()
    );
    // By its silence: the group itself would wait two minutes.
    assert!(found >= LOST_AFTER / 2 && found < Duration::from_secs(30), "{found:?}");
    let said = cluster.said("worker-b") + &cluster.said("coordinator");
    assert!(said.contains("silent"), "nobody says why the rank was killed:\n{said}");
    let line = said.lines().find(|l| l.contains("silent")).unwrap();
    assert!(line.contains("step"), "in which step it hung is not said: {line}");
    println!("{line}");
    cluster.until_done();
    let report = exact(&sandbox, &cluster, 80);
    assert_eq!(report["rolled_back"], 0, "{report}");
    same_bits(&sandbox, &straight, &cluster);
}

#[test]
fn when_nobody_survives_the_run_goes_back_to_a_checkpoint_and_says_so() {
    let sandbox = Sandbox::new();
    let job = lanes_of(2, 90, &["elastic.min_workers=2", "checkpoint.every_steps=30"]);
    let straight = undisturbed(&sandbox, "straight", 2, &job);

    let mut cluster = Cluster::start(&sandbox, "run", 2);
    cluster.submit(&sandbox, &strs(&job));
    cluster.until_workers(2);
    cluster.until("the checkpoint of step 30", |c| visible(c, 30));
    cluster.until_committed(42);
    cluster.kill_all_workers();
    for worker in ["a", "b"] {
        cluster.start_worker(worker);
    }
    cluster.until_done();
    let report = exact(&sandbox, &cluster, 90);
    assert!(report["rolled_back"].as_u64().unwrap() >= 10, "{report}");
    same_bits(&sandbox, &straight, &cluster);
}

#[test]
fn when_nobody_survives_a_snapshot_in_memory_spares_the_steps_since_the_last_checkpoint() {
    let sandbox = Sandbox::new();
    let every = ["elastic.min_workers=2", "checkpoint.every_steps=30", "checkpoint.memory_every_steps=5"];
    let job = lanes_of(2, 90, &every);
    let straight = undisturbed(&sandbox, "straight", 2, &job);

    let mut cluster = Cluster::start(&sandbox, "run", 2);
    cluster.submit(&sandbox, &strs(&job));
    cluster.until_workers(2);
    cluster.until("the checkpoint of step 30", |c| visible(c, 30));
    cluster.until_committed(49);
    let kept = "checkpoint committed run=story step=45";
    cluster.until("the snapshot of step 45", |c| c.said("checkpoint").contains(kept));
    cluster.kill_all_workers();
    for worker in ["a", "b"] {
        cluster.start_worker(worker);
    }
    cluster.until_committed(62);
    let undone = std::fs::read_to_string(cluster.run_dir.join("metrics.rolled_back.jsonl")).unwrap();
    let undone = undone.lines().count() as u64;
    assert!(undone < 19, "the durable one would have cost 19 steps, this cost {undone}");

    // And where the service dies with them: what was durable.
    cluster.until("the checkpoint of step 60", |c| visible(c, 60));
    cluster.until_committed(69);
    cluster.checkpoint.take().unwrap().kill();
    cluster.kill_all_workers();
    cluster.start_checkpoint();
    for worker in ["a", "b"] {
        cluster.start_worker(worker);
    }
    cluster.until_done();
    let report = exact(&sandbox, &cluster, 90);
    assert!(report["rolled_back"].as_u64().unwrap() >= undone + 9, "{report}");
    same_bits(&sandbox, &straight, &cluster);
}

#[test]
fn a_coordinator_that_was_replaced_while_it_slept_is_refused_everywhere_and_leaves() {
    let sandbox = Sandbox::new();
    let job = lanes_of(2, 120, &["elastic.min_workers=2", "checkpoint.every_steps=20"]);
    let straight = undisturbed(&sandbox, "straight", 2, &job);

    let mut cluster = Cluster::start(&sandbox, "run", 2);
    cluster.submit(&sandbox, &strs(&job));
    cluster.until_workers(2);
    cluster.until("the checkpoint of step 20", |c| visible(c, 20));
    // The first coordinator falls asleep; somebody takes its directory, as it stands, to another machine.
    let mut old = cluster.coordinator.take().unwrap();
    old.signal(Signal::SIGSTOP);
    let copy = sandbox.path("elsewhere");
    let copied = std::process::Command::new("cp").arg("-a").args([&cluster.run_dir, &copy]).status().unwrap();
    assert!(copied.success());
    let (old_url, old_run) = (cluster.url(), cluster.run_dir.clone());
    cluster.coordinator_address = free_port(IpAddr::V4(Ipv4Addr::LOCALHOST));
    let second = cluster.coordinator_over(&copy, cluster.coordinator_address, "second-coordinator");
    (cluster.run_dir, cluster.coordinator) = (copy, Some(second));
    for worker in ["a", "b"] {
        cluster.kill_worker(worker);
        cluster.start_worker(worker);
    }
    let resumed = cluster.committed();
    cluster.until("steps under the second coordinator", |c| c.committed() > resumed);

    let stood = mcl_system_tests::committed(&old_run);
    old.signal(Signal::SIGCONT);
    // A worker that has seen the second one's term says so; and so does the checkpoint service.
    cluster.kill_worker("b");
    cluster.seat("b").coordinator = Some(old_url.clone());
    cluster.start_worker("b");
    leaves_as_outdated(&mut old, &cluster);
    assert_eq!(mcl_system_tests::committed(&old_run), stood, "the old one committed something");
    cluster.kill_worker("b");
    cluster.seat("b").coordinator = None;
    cluster.start_worker("b");
    cluster.until_done();
    exact(&sandbox, &cluster, 120);
    same_bits(&sandbox, &straight, &cluster);
}

/// It ends by itself, as a failure, and says that another one has taken over.
fn leaves_as_outdated(old: &mut Daemon, cluster: &Cluster) {
    let status = old.wait(Duration::from_secs(30));
    let said = cluster.said("coordinator");
    let status = status.unwrap_or_else(|| panic!("the replaced coordinator stays:\n{said}"));
    assert!(!status.success(), "it was replaced, and leaves with {status}");
    assert!(said.contains("term"), "it does not say why it leaves:\n{said}");
}

#[test]
fn too_few_workers_are_waited_for_by_name_of_the_reason() {
    let sandbox = Sandbox::new();
    let job = lanes_of(2, 80, &["elastic.min_workers=2", "checkpoint.every_steps=1000"]);
    let straight = undisturbed(&sandbox, "straight", 2, &job);

    let mut cluster = Cluster::start(&sandbox, "run", 1);
    cluster.submit(&sandbox, &strs(&job));
    waits_for_a_second_worker(&mut cluster);
    assert_eq!(cluster.committed(), 0);
    cluster.start_worker("b");
    cluster.until_committed(20);
    cluster.kill_worker("b");
    waits_for_a_second_worker(&mut cluster);
    let stood = cluster.committed();
    std::thread::sleep(Duration::from_millis(500));
    assert_eq!(cluster.committed(), stood, "it trained on with too few");
    cluster.start_worker("b");
    cluster.until_done();
    let report = exact(&sandbox, &cluster, 80);
    assert_eq!(report["rolled_back"], 0, "{report}");
    same_bits(&sandbox, &straight, &cluster);
}

fn waits_for_a_second_worker(cluster: &mut Cluster) {
    cluster.until("waiting for a second worker", |c| {
        let Some(status) = status_of(&c.url()) else { return false };
        let reason = status["reason"].as_str().unwrap_or_default();
        status["phase"] == "waiting" && reason.contains("1 of 2 workers")
    });
}
