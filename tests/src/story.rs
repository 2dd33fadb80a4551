//! A run whose processes die at named failpoints, one after another, and what must be true of it in the end.
//!
//! Invariants: a process that was to die at a failpoint and did not ends the test. Committed steps are watched from
//! outside all the time: one that was seen stands in the end, with the same loss.

use crate::cluster::{Cluster, Daemon, RUN, names, tail};
use crate::watch::MetricsWatch;
use crate::{PATIENCE, Sandbox, processes};
use mcl_failpoint::{Failpoint, Process};
use nix::sys::signal::Signal;
use serde_json::Value;
use std::collections::BTreeSet;
use std::os::unix::process::ExitStatusExt;
use std::path::Path;

/// A job of two lanes on two workers that always train together: every bit is that of an undisturbed run.
#[derive(Debug, Clone)]
pub struct SteadyJob {
    /// Optimiser steps.
    pub steps: u64,
    /// Checkpoints that stay.
    pub keep: u64,
    overrides: Vec<String>,
}

impl SteadyJob {
    /// One of so many steps, with a checkpoint every few.
    pub fn new(steps: u64, every_steps: u64, keep: u64) -> Self {
        let own = [
            format!("train.steps={steps}"),
            format!("checkpoint.every_steps={every_steps}"),
            format!("checkpoint.keep={keep}"),
        ];
        let fixed = ["batch.lanes=2", "batch.images_per_lane=4", "elastic.min_workers=2"];
        let fixed = fixed.iter().chain(&["elastic.lost_after=2s"]).map(|s| (*s).to_owned());
        Self { steps, keep, overrides: fixed.chain(own).collect() }
    }

    fn overrides(&self) -> Vec<&str> {
        self.overrides.iter().map(String::as_str).collect()
    }

    /// State digest and losses of a run that nothing happens to.
    pub fn undisturbed(&self, sandbox: &Sandbox) -> Truth {
        let mut story = Story::begin(sandbox, "undisturbed", self.clone());
        story.submit();
        story.start_workers();
        story.cluster.until_done();
        story.truth()
    }
}

/// What a run came to.
#[derive(Debug, PartialEq)]
pub struct Truth {
    digest: String,
    losses: Vec<Value>,
}

/// See the module.
#[derive(Debug)]
pub struct Story<'a> {
    sandbox: &'a Sandbox,
    /// The processes.
    pub cluster: Cluster,
    job: SteadyJob,
    watch: MetricsWatch,
    reached: BTreeSet<Failpoint>,
}

impl<'a> Story<'a> {
    /// Both services are up, no worker is, nothing is submitted.
    pub fn begin(sandbox: &'a Sandbox, name: &str, job: SteadyJob) -> Self {
        let mut story = Self::before(sandbox, name, job);
        story.cluster.start_services();
        story
    }

    /// Nothing is started.
    pub fn before(sandbox: &'a Sandbox, name: &str, job: SteadyJob) -> Self {
        let cluster = Cluster::new(sandbox, name);
        let watch = MetricsWatch::new(&cluster.run_dir);
        Self { sandbox, cluster, job, watch, reached: BTreeSet::new() }
    }

    /// Hands the job in.
    pub fn submit(&self) {
        self.cluster.submit(self.sandbox, &self.job.overrides());
    }

    /// Hands the job in to a coordinator that dies over it.
    pub fn submit_in_vain(&self) {
        let url = self.cluster.url();
        let mut arguments = vec!["submit", "job.toml", "--name", RUN, "--coordinator", &url];
        for o in self.job.overrides() {
            arguments.extend(["--set", o]);
        }
        self.sandbox.fails(1, &[], &arguments);
    }

    /// Says something else to a coordinator that dies over it.
    pub fn say_in_vain(&self, command: &str) {
        self.sandbox.fails(1, &[], &[command, "--coordinator", &self.cluster.url()]);
    }

    /// Says something else to the coordinator.
    pub fn say(&self, command: &str) {
        self.sandbox.ok(&[command, "--coordinator", &self.cluster.url()]);
    }

    /// Both workers.
    pub fn start_workers(&mut self) {
        for worker in names(2) {
            self.cluster.start_worker(&worker);
        }
    }

    /// SIGKILL for the rank of a worker that has one.
    pub fn kill_rank(&mut self, worker: &str) {
        self.cluster.until("a rank to kill", |c| c.rank(worker).is_some());
        if let Some(rank) = self.cluster.rank(worker) {
            processes::signal(rank, Signal::SIGKILL);
        }
    }

    /// Waits until so many more steps are committed than now.
    pub fn more_steps(&mut self, steps: u64) {
        let until = self.cluster.committed() + steps;
        self.cluster.until_committed(until);
    }

    /// A new coordinator or checkpoint service, whose `point` it is, that dies there after what leads there.
    pub fn service_dies(&mut self, point: Failpoint, lead: impl FnOnce(&mut Self)) {
        drop(self.service(point).take());
        self.cluster.failpoint = Some(point.name().to_owned());
        let log = match point.process() {
            Process::Coordinator => {
                self.cluster.start_coordinator();
                "coordinator"
            }
            _ => {
                self.cluster.start_checkpoint();
                "checkpoint"
            }
        };
        self.cluster.failpoint = None;
        lead(self);
        let mut daemon = self.service(point).take().unwrap();
        self.dead(point, daemon.wait(PATIENCE), log);
    }

    fn service(&mut self, point: Failpoint) -> &mut Option<Daemon> {
        match point.process() {
            Process::Coordinator => &mut self.cluster.coordinator,
            Process::Checkpoint => &mut self.cluster.checkpoint,
            other => panic!("{} is a point of {other:?}, not of a service", point.name()),
        }
    }

    /// A new daemon of a worker that dies at the `nth` passing of `point`.
    pub fn worker_dies(&mut self, worker: &str, point: Failpoint, nth: u64) {
        assert_eq!(point.process(), Process::Worker);
        self.start_worker_at(worker, point, nth);
        let mut daemon = self.cluster.workers.remove(worker).unwrap();
        self.dead(point, daemon.wait(PATIENCE), &format!("worker-{worker}"));
    }

    /// A new daemon of a worker whose rank dies at the `nth` passing of `point`.
    pub fn rank_dies(&mut self, worker: &str, point: Failpoint, nth: u64) {
        assert_eq!(point.process(), Process::Rank);
        let log = format!("worker-{worker}");
        let said = |c: &Cluster| c.said(&log).matches("failpoint reached").count();
        let before = said(&self.cluster);
        self.start_worker_at(worker, point, nth);
        self.cluster.until(point.name(), |c| said(c) > before);
        self.reached.insert(point);
        self.look();
        // Its next rank would die there too.
        self.cluster.kill_worker(worker);
    }

    fn start_worker_at(&mut self, worker: &str, point: Failpoint, nth: u64) {
        self.cluster.kill_worker(worker);
        self.cluster.failpoint = Some(format!("{}:{nth}", point.name()));
        self.cluster.start_worker(worker);
        self.cluster.failpoint = None;
    }

    fn dead(&mut self, point: Failpoint, status: Option<std::process::ExitStatus>, log: &str) {
        let killed = status.is_some_and(|s| s.signal() == Some(Signal::SIGKILL as i32));
        let (name, status) = (point.name(), status.map(|s| s.to_string()));
        let said = || tail(&self.cluster.log(log));
        assert!(killed, "{log} did not die at {name}, it ended with {status:?}:\n{}", said());
        println!("{name}: dead after {} steps", self.cluster.committed());
        self.reached.insert(point);
        self.look();
    }

    fn look(&mut self) {
        self.watch.look();
    }

    /// Goes on with an undisturbed coordinator to the end of the job.
    pub fn until_done(&mut self) {
        if self.cluster.coordinator.is_none() {
            self.cluster.start_coordinator();
        }
        self.cluster.until_done();
    }

    fn truth(&self) -> Truth {
        let metrics = self.sandbox.metrics(&self.cluster.run_dir.display().to_string());
        let losses = metrics.iter().map(|m| m["loss"].clone()).collect();
        Truth { digest: self.sandbox.digest(&self.cluster.checkpoints()), losses }
    }

    /// The ledger is exact and names each step once, nothing that was seen is lost or changed, every checkpoint that
    /// is there is good and the last one is that of the end, and all bits are those of the undisturbed run; the
    /// ledger's report.
    pub fn told(&mut self, truth: &Truth) -> Value {
        self.look();
        let run_dir = self.cluster.run_dir.clone();
        let path = run_dir.display().to_string();
        let report = self.sandbox.exact_ledger(&path);
        let counts = ["steps", "missing", "twice"].map(|key| report[key].as_u64());
        assert_eq!(counts, [Some(self.job.steps), Some(0), Some(0)], "{report}");
        let metrics = self.sandbox.metrics(&path);
        assert!(metrics.iter().map(|m| m["step"].as_u64().unwrap()).eq(0..self.job.steps), "rows");
        assert_eq!(
            (self.watch.missing(), self.watch.changed().len()),
            (Vec::new(), 0),
            "steps that were seen"
        );
        rolled_back_once(&run_dir);
        let listed = self.sandbox.json(&["checkpoint", "verify", &self.cluster.checkpoints(), "--json"]);
        let newest =
            listed["checkpoints"].as_array().and_then(|all| all.iter().map(|c| c["step"].as_u64()).max());
        assert_eq!(newest.flatten(), Some(self.job.steps), "{listed}");
        assert_eq!(self.truth(), *truth);
        report
    }

    /// That the points which are this story's, and no others, were reached.
    pub fn reached_all(&self, own: impl Fn(Failpoint) -> bool) {
        let expected: BTreeSet<Failpoint> = Failpoint::ALL.iter().copied().filter(|p| own(*p)).collect();
        let missing: Vec<_> = expected.difference(&self.reached).map(|p| p.name()).collect();
        let others: Vec<_> = self.reached.difference(&expected).map(|p| p.name()).collect();
        assert!(
            missing.is_empty() && others.is_empty(),
            "not reached: {missing:?}, not of this story: {others:?}"
        );
    }
}

/// A row that was taken away lies among the rolled back ones once.
fn rolled_back_once(run_dir: &Path) {
    let text = std::fs::read_to_string(run_dir.join("metrics.rolled_back.jsonl")).unwrap_or_default();
    let mut seen = BTreeSet::new();
    for line in text.lines() {
        let _: Value = serde_json::from_str(line).unwrap();
        assert!(seen.insert(line), "a row was moved twice: {line}");
    }
}
