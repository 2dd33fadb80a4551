//! What failures cost on this machine, one kind at a time and nothing else running: seconds, for `make bench`.
//!
//! Left out: judging them. What must hold however long it takes is asserted here too, so that no time is told of a
//! cluster that broke its promises.

use crate::Sandbox;
use crate::cluster::{Cluster, RUN, status_of};
use crate::processes::{self, ProcessId};
use crate::watch::{MetricsWatch, Row};
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::time::{Duration, Instant};

/// How often things are looked at: the error of every time here.
const LOOK: Duration = Duration::from_millis(5);
/// Steps that pass undisturbed between two failures.
const CALM: u64 = 10;
/// More than any measurement needs: the job is drained when all is measured.
const ENDLESS: u64 = 1_000_000;
/// Longest wait for anything.
const PATIENCE: Duration = Duration::from_secs(60);
/// Workers, as a cluster names them.
const NAMES: [&str; 3] = ["a", "b", "c"];
const WORKERS: usize = NAMES.len();

/// How much is measured.
#[derive(Debug, Clone, Copy)]
pub struct Amount {
    /// Failures of each kind.
    pub times: usize,
    /// How long the coordinator stays away in one piece.
    pub outage: Duration,
}

/// A job of three lanes that goes on with two workers, or waits for the third.
fn job(min_workers: usize, steps: u64) -> Vec<String> {
    vec![
        format!("elastic.min_workers={min_workers}"),
        format!("train.steps={steps}"),
        "batch.lanes=3".to_owned(),
        "batch.images_per_lane=4".to_owned(),
        "elastic.lost_after=2s".to_owned(),
        "checkpoint.every_steps=100".to_owned(),
    ]
}

/// A cluster under way, and its steps as they are committed.
struct Bench<'a> {
    sandbox: &'a Sandbox,
    cluster: Cluster,
    watch: MetricsWatch,
}

impl<'a> Bench<'a> {
    fn start(sandbox: &'a Sandbox, name: &str, job: &[String]) -> Self {
        let cluster = Cluster::start(sandbox, name, WORKERS);
        cluster.submit(sandbox, &job.iter().map(String::as_str).collect::<Vec<_>>());
        let watch = MetricsWatch::new(&cluster.run_dir);
        Self { sandbox, cluster, watch }
    }

    /// Waits for a committed step for which this holds, among those seen from now on.
    fn next(&mut self, what: &str, holds: impl Fn(&Row) -> bool) -> Row {
        let (begun, known) = (Instant::now(), self.watch.history().len());
        loop {
            self.watch.look();
            if let Some(row) = self.watch.history().iter().skip(known).find(|r| holds(r)) {
                return row.clone();
            }
            assert!(begun.elapsed() < PATIENCE, "{what} did not come to pass");
            std::thread::sleep(LOOK);
        }
    }

    /// Some steps of all workers, in which nothing happens; how long one takes.
    fn calm(&mut self) -> (Row, Duration) {
        let first = self.next("a step of all workers", |r| r.workers == WORKERS as u64);
        let last = self.next("calm", |r| r.workers == WORKERS as u64 && r.step >= first.step + CALM);
        let rows = self.watch.history().iter().filter(|r| r.seen >= first.seen);
        let seen: Vec<Instant> = rows.map(|r| r.seen).collect();
        let gaps = seen.iter().zip(seen.iter().skip(1)).map(|(a, b)| *b - *a).collect();
        (last, median(gaps))
    }

    /// Looks on until the process of a worker is another one and takes part: when that one was seen first, the first step
    /// after `generation`, and the first of them that all workers took.
    fn replaced(&mut self, worker: &str, of: ProcessId, generation: u64) -> (Instant, Row, Row) {
        let (begun, mut started) = (Instant::now(), None);
        loop {
            self.watch.look();
            if started.is_none() && self.cluster.rank(worker).is_some_and(|pid| pid != of) {
                started = Some(Instant::now());
            }
            let mut later = self.watch.history().iter().filter(|r| r.generation > generation);
            let next = later.clone().next();
            if let (Some(started), Some(next), Some(whole)) =
                (started, next, later.find(|r| r.workers == WORKERS as u64))
            {
                return (started, next.clone(), whole.clone());
            }
            assert!(begun.elapsed() < PATIENCE, "the rank of {worker} is not replaced");
            std::thread::sleep(LOOK);
        }
    }

    /// Rank processes, by worker.
    fn ranks(&self) -> [Option<ProcessId>; WORKERS] {
        NAMES.map(|worker| self.cluster.rank(worker))
    }

    /// How long before it the step before was committed.
    fn pause_before(&self, step: u64) -> Duration {
        let seen = |step| self.watch.history().iter().rev().find(|r| r.step == step).map(|r| r.seen);
        let pair = seen(step).zip(step.checked_sub(1).and_then(seen));
        pair.map_or(Duration::ZERO, |(a, b)| a.saturating_duration_since(b))
    }

    /// Waits for the end of the job, for as long as there are steps.
    fn until_done(&mut self) {
        let mut coordinator = self.cluster.coordinator.take().unwrap();
        let (mut committed, mut seen) = (0, Instant::now());
        while coordinator.ended().is_none() {
            self.watch.look();
            if self.watch.committed() > committed {
                (committed, seen) = (self.watch.committed(), Instant::now());
            }
            assert!(seen.elapsed() < PATIENCE, "the job stands still at step {committed}");
            std::thread::sleep(LOOK);
        }
        assert_eq!(coordinator.ended().and_then(|s| s.code()), Some(0));
    }

    /// Stops the job at a boundary; nothing of it was taken back.
    fn end(mut self) {
        self.sandbox.ok(&["drain", "--coordinator", &self.cluster.url()]);
        let mut coordinator = self.cluster.coordinator.take().unwrap();
        assert!(coordinator.wait(PATIENCE).is_some(), "the coordinator does not leave");
        let report = self.sandbox.exact_ledger(&self.cluster.run_dir.display().to_string());
        assert_eq!(report["rolled_back"], 0, "{report}");
    }
}

fn median(mut times: Vec<Duration>) -> Duration {
    times.sort();
    times.get(times.len() / 2).copied().unwrap_or_default()
}

/// Count, median and largest, in seconds.
fn spread(mut times: Vec<Duration>) -> Value {
    times.sort();
    let at = |t: Option<&Duration>| t.map(|t| (t.as_secs_f64() * 1e3).round() / 1e3);
    json!({ "n": times.len(), "p50": at(times.get(times.len() / 2)), "max": at(times.last()) })
}

/// SIGKILL or SIGSTOP of one rank: how long until the next step is committed, beyond a step; and how soon its
/// replacement takes part.
fn lost_ranks(sandbox: &Sandbox, name: &str, min_workers: usize, signal: Signal, times: usize) -> Value {
    let mut bench = Bench::start(sandbox, name, &job(min_workers, ENDLESS));
    let (mut steps, mut beyond, mut joined, mut held_up) = (vec![], vec![], vec![], vec![]);
    for turn in 0..times {
        let (last, step) = bench.calm();
        let worker = NAMES[turn % WORKERS];
        let rank = bench.cluster.rank(worker).unwrap();
        // Not always at the same place in a step.
        std::thread::sleep(step * u32::try_from(turn % 7).unwrap() / 7);
        let struck = Instant::now();
        processes::signal(rank, signal);
        let (started, next, whole) = bench.replaced(worker, rank, last.generation);
        steps.push(step);
        beyond.push(next.seen.saturating_duration_since(struck).saturating_sub(step));
        joined.push(whole.seen.saturating_duration_since(started));
        held_up.push(bench.pause_before(whole.step).saturating_sub(step));
    }
    bench.end();
    json!({
        "step_s": spread(steps), "next_step_beyond_one_s": spread(beyond),
        "replacement_from_its_start_to_its_first_step_s": spread(joined),
        "others_held_up_by_it_beyond_one_step_s": spread(held_up),
    })
}

/// SIGKILL of the coordinator under load, started again at once: how soon it answers, how soon it commits.
fn killed_coordinator(sandbox: &Sandbox, times: usize) -> Value {
    let mut bench = Bench::start(sandbox, "coordinator-killed", &job(WORKERS, ENDLESS));
    let (mut answering, mut committing) = (vec![], vec![]);
    let (first, _) = bench.calm();
    let ranks = bench.ranks();
    for _ in 0..times {
        bench.calm();
        bench.cluster.coordinator.take().unwrap().kill();
        let started = Instant::now();
        bench.cluster.launch_coordinator();
        while status_of(&bench.cluster.url()).is_none_or(|s| s["run"] != RUN) {
            assert!(started.elapsed() < PATIENCE, "the coordinator does not answer");
        }
        answering.push(started.elapsed());
        committing.push(bench.next("a step", |_| true).seen.saturating_duration_since(started));
    }
    let (last, _) = bench.calm();
    assert_eq!(last.generation, first.generation, "the generation goes on");
    assert_eq!(bench.ranks(), ranks, "no rank was started again");
    bench.end();
    json!({ "start_to_answer_s": spread(answering), "start_to_next_commit_s": spread(committing) })
}

/// The coordinator stays away for long: training goes on, and the bits are those of a run that nothing happened to.
pub fn outage(sandbox: &Sandbox, length: Duration) -> Value {
    let mut bench = Bench::start(sandbox, "outage-pace", &job(WORKERS, ENDLESS));
    let (_, step) = bench.calm();
    bench.end();
    let away = (length.as_secs_f64() / step.as_secs_f64()).ceil();
    #[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a count of steps")]
    let steps = (away * 1.2) as u64 + 5 * CALM;
    let mut bench = Bench::start(sandbox, "outage", &job(WORKERS, steps));
    let (before, _) = bench.calm();
    let ranks = bench.ranks();
    let workers: Vec<ProcessId> = bench.cluster.workers.values().map(|w| w.pid()).collect();
    let memory = |pids: &[ProcessId]| -> Vec<u64> {
        pids.iter().map(|p| processes::resident_bytes(*p).unwrap_or(0) >> 10).collect()
    };
    let small = memory(&workers);
    bench.cluster.coordinator.take().unwrap().kill();
    std::thread::sleep(length);
    bench.watch.look();
    let (stood, large) = (bench.watch.committed(), memory(&workers));
    let back = Instant::now();
    bench.cluster.start_coordinator();
    let first = bench.next("a step after the outage", |_| true);
    let caught_up = bench.next("a step that was made after the outage", |r| {
        r.seen.saturating_duration_since(back) > Duration::from_secs(2)
    });
    assert_eq!(bench.ranks(), ranks, "no rank was started again");
    assert_eq!(caught_up.generation, before.generation, "the generation goes on");
    bench.until_done();
    let report = sandbox.exact_ledger(&bench.cluster.run_dir.display().to_string());
    assert_eq!((report["steps"].as_u64(), &report["rolled_back"]), (Some(steps), &json!(0)), "{report}");
    let digest = sandbox.digest(&bench.cluster.checkpoints());
    let mut reference = Bench::start(sandbox, "outage-undisturbed", &job(WORKERS, steps));
    reference.until_done();
    assert_eq!(digest, sandbox.digest(&reference.cluster.checkpoints()), "the weights are others");
    json!({
        "seconds": length.as_secs_f64(), "steps": steps, "committed_when_it_came_back": stood,
        "made_meanwhile": caught_up.step.saturating_sub(stood), "step_s": step.as_secs_f64(),
        "back_to_first_commit_s": first.seen.saturating_duration_since(back).as_secs_f64(),
        "worker_memory_kib": { "before": small, "after": large }, "digests_equal": true,
    })
}

/// All of it.
pub fn measure(amount: Amount) -> Value {
    let sandbox = Sandbox::new();
    let of = |min_workers, signal| {
        let name = format!("{}-{min_workers}", if signal == Signal::SIGKILL { "killed" } else { "stopped" });
        lost_ranks(&sandbox, &name, min_workers, signal, amount.times)
    };
    let mut told = serde_json::Map::new();
    let mut tell = |kind: &str, costs: Value| {
        eprintln!("{kind}: {costs}");
        told.insert(kind.to_owned(), costs);
    };
    if amount.times > 0 {
        tell("rank killed, the others go on", of(1, Signal::SIGKILL));
        tell("rank killed, its replacement is waited for", of(WORKERS, Signal::SIGKILL));
        tell("rank stopped, lost_after 2 s", of(WORKERS, Signal::SIGSTOP));
        tell("coordinator killed", killed_coordinator(&sandbox, amount.times));
    }
    if !amount.outage.is_zero() {
        tell("coordinator away", outage(&sandbox, amount.outage));
    }
    Value::Object(told)
}
