//! One campaign: the loop that looks at the cluster, carries faults on and begins new ones.
//!
//! Invariants: a new fault never takes the last machine that holds the state, except in the one turn that kills all of
//! them. Nothing here waits without looking: steps are seen within a few milliseconds.

use super::arena::{Arena, Who};
use super::family::{EVERY_STEPS, Family, LOST_AFTER, WORKERS};
use super::ongoing::{Ongoing, Record};
use super::resources::Resources;
use super::schedule::{Fault, Pace, Schedule, Turn, Victim};
use super::verdict::{Disturbed, Summary, Undisturbed};
use super::{interrupted, recovery};
use crate::Sandbox;
use crate::cluster::{RUN, StatusWatch};
use crate::processes;
use crate::watch::MetricsWatch;
use nix::sys::signal::Signal;
use serde_json::{Value, json};
use std::collections::BTreeMap;
use std::io::Write;
use std::os::unix::process::ExitStatusExt;
use std::path::{Path, PathBuf};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// How often steps are looked for.
const LOOK: Duration = Duration::from_millis(5);
/// How often everything else is.
const GLANCE: Duration = Duration::from_secs(1);
/// Rows of steps that were applied before a fault come at most so long after it.
const STRAGGLING: Duration = Duration::from_millis(400);
/// When all faults are healed, all machines must train together again within so long.
const HEAL: Duration = Duration::from_secs(60);
/// Steps of the run that says how long a step takes.
const CALIBRATION: u64 = 30;
/// No new fault in this last share of the steps, so that the end shows that all is well.
const QUIET: f64 = 0.08;
/// All workers are killed when at least so many steps stand beyond the newest checkpoint.
const TO_LOSE: u64 = 5;
/// Pictures.
const PICTURES: u32 = 240;

/// What is asked for.
#[derive(Debug, Clone)]
pub struct Settings {
    /// Of the schedule.
    pub seed: u64,
    /// About how long faults go on.
    pub minutes: f64,
    /// Which promises about the weights.
    pub family: Family,
    /// Folder for what is left: a summary always, everything where a promise was broken.
    pub folder: PathBuf,
    /// Whether everything stays also where no promise was broken.
    pub keep: bool,
    /// Whether machines get networks and services disks of their own, where this process may make them.
    pub isolate: bool,
}

/// Runs it all: how long a step takes, the disturbed run, the undisturbed one; then compares.
pub fn run(settings: &Settings) -> Summary {
    let name = format!("{}-{}", settings.family.name(), settings.seed);
    let folder = settings.folder.join(&name);
    let _ = std::fs::remove_dir_all(&folder);
    std::fs::create_dir_all(&folder).unwrap();
    let sandbox = Sandbox::at(folder.canonicalize().unwrap(), PICTURES);
    let calibration = undisturbed(&sandbox, "calibration", settings.family, CALIBRATION);
    let step = recovery::median_step(&calibration.rows);
    let steps = steps_for(settings.minutes * settings.family.productive(), step);
    println!("{name}: a step takes {:.0} ms, so the job has {steps} of them", step * 1e3);
    let disturbed = Campaign::new(settings, &sandbox, steps).carry_out();
    let reference = (!interrupted()).then(|| undisturbed(&sandbox, "undisturbed", settings.family, steps));
    let summary = Summary::of(settings, &sandbox, steps, disturbed, reference.as_ref());
    summary.write(&settings.folder.join(format!("{name}.json")));
    if summary.broken().is_empty() && !interrupted() && !settings.keep {
        return summary;
    }
    println!("seed {}: what is left to look at: {}", settings.seed, sandbox.keep().display());
    summary
}

#[expect(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "a positive number of steps")]
fn steps_for(minutes: f64, step: f64) -> u64 {
    ((minutes * 60.0 / step) as u64).max(CALIBRATION)
}

/// The same job and the same machines, and nothing happens.
fn undisturbed(sandbox: &Sandbox, name: &str, family: Family, steps: u64) -> Undisturbed {
    let mut arena = Arena::new(sandbox, name, false);
    let mut watch = MetricsWatch::new(&arena.cluster.run_dir);
    arena.start(sandbox, family, steps);
    let mut early = Early::new(&arena, sandbox.path(&format!("{name}/early")));
    let begun = Instant::now();
    while arena.pid(Who::Coordinator).is_some() && !interrupted() {
        watch.look();
        early.save();
        for (who, status, words) in arena.ended() {
            assert!(
                status.success(),
                "{who:?} of a run that nothing happens to ended with {status}:\n{words}"
            );
        }
        assert!(begun.elapsed() < Duration::from_secs(120 + 2 * steps), "{name} does not end");
        std::thread::sleep(LOOK);
    }
    watch.look();
    Undisturbed { store: arena.cluster.store.join(RUN), rows: watch.history().to_vec(), early: early.saved }
}

/// The first checkpoint, kept aside before it is pruned.
#[derive(Debug)]
struct Early {
    from: PathBuf,
    to: PathBuf,
    saved: Option<PathBuf>,
}

impl Early {
    fn new(arena: &Arena, to: PathBuf) -> Self {
        let step = format!("step-{EVERY_STEPS:010}");
        Self { from: arena.cluster.store.join(RUN).join(step), to, saved: None }
    }

    fn save(&mut self) {
        if self.saved.is_none() && self.from.join("manifest.json").is_file() {
            std::fs::create_dir_all(&self.to).unwrap();
            let copied = std::process::Command::new("cp").arg("-a").args([&self.from, &self.to]).status();
            self.saved = copied.is_ok_and(|s| s.success()).then(|| self.to.clone());
        }
    }
}

struct Campaign<'a> {
    settings: &'a Settings,
    steps: u64,
    folder: PathBuf,
    arena: Arena,
    watch: MetricsWatch,
    early: Early,
    schedule: Schedule,
    next: Turn,
    ongoing: Vec<Ongoing>,
    records: Vec<Record>,
    /// Workers that may not hold the state, and since when nothing hurts them any more.
    hurt: BTreeMap<usize, Option<Instant>>,
    resources: Resources,
    broken: Vec<String>,
    log: std::fs::File,
    begun: Instant,
    /// When the last turn began, and when the last fault was over.
    last: (Instant, Instant),
    status: StatusWatch,
    /// The coordinator left because the job is done.
    done: bool,
    /// No more faults.
    given_up: bool,
}

impl<'a> Campaign<'a> {
    fn new(settings: &'a Settings, sandbox: &Sandbox, steps: u64) -> Self {
        let mut arena = Arena::new(sandbox, "disturbed", settings.isolate);
        let long = settings.minutes >= 1.0;
        let pace = Pace {
            workers: WORKERS,
            lost_after: LOST_AFTER,
            disks: arena.has_disks(),
            pause: Duration::from_secs(if long { 4 } else { 2 }),
            away: Duration::from_secs(if long { 10 } else { 3 }),
            everybody: long,
        };
        let mut schedule = Schedule::new(settings.seed, pace);
        let next = schedule.next();
        let folder = sandbox.path("disturbed");
        let log = std::fs::File::create(folder.join("faults.jsonl")).unwrap();
        let watch = MetricsWatch::new(&arena.cluster.run_dir);
        let early = Early::new(&arena, folder.join("early"));
        arena.start(sandbox, settings.family, steps);
        let status = StatusWatch::start(arena.cluster.url());
        let now = Instant::now();
        Self {
            settings,
            steps,
            folder,
            arena,
            watch,
            early,
            schedule,
            next,
            ongoing: Vec::new(),
            records: Vec::new(),
            hurt: BTreeMap::new(),
            resources: Resources::default(),
            broken: Vec::new(),
            log,
            begun: now,
            last: (now, now),
            status,
            done: false,
            given_up: false,
        }
    }

    /// To the end of the job, or until it is hopeless.
    fn carry_out(mut self) -> Disturbed {
        let deadline = Duration::from_secs_f64(self.settings.minutes * 180.0 + 120.0);
        let mut glanced = Instant::now();
        while !self.is_over() && !interrupted() {
            if self.begun.elapsed() > deadline {
                self.break_promise(format!("the job is not done after {:.0} s", deadline.as_secs_f64()));
                break;
            }
            self.watch.look();
            self.look_for_ends();
            self.carry_on();
            self.begin();
            if glanced.elapsed() >= GLANCE {
                glanced = Instant::now();
                self.glance();
            }
            std::thread::sleep(LOOK);
        }
        self.watch.look();
        let seconds = self.begun.elapsed().as_secs_f64();
        if !interrupted() {
            self.leave();
        }
        self.arena.save_disks(&self.folder);
        let in_folder = |path: &Path, name: &str| {
            if self.arena.has_disks() { self.folder.join(name) } else { path.to_owned() }
        };
        Disturbed {
            run_dir: in_folder(&self.arena.cluster.run_dir, "run"),
            store: in_folder(&self.arena.cluster.store, "store").join(RUN),
            network: self.arena.has_network(),
            disks: self.arena.has_disks(),
            steps_redone: self.arena.generations_broken_off(),
            records: self.records,
            early: self.early.saved,
            resources: self.resources,
            watch: self.watch,
            broken: self.broken,
            seconds,
        }
    }

    /// The coordinator leaves when its job is over. One that was killed at that moment comes back with nothing to do.
    fn is_over(&self) -> bool {
        let idle = matches!(self.status.newest()["phase"].as_str(), Some("done" | "idle"));
        let hopeless = self.ongoing.is_empty() && self.arena.pid(Who::Coordinator).is_none();
        self.done || hopeless || (self.ongoing.is_empty() && idle && self.watch.committed() == self.steps)
    }

    fn break_promise(&mut self, what: String) {
        let status = self.status.newest();
        println!("BROKEN: {what} ({})", status["reason"].as_str().unwrap_or("no status"));
        self.note(&json!({ "broken": what, "status": status }));
        self.broken.push(what);
    }

    /// A line in the log of what happened.
    fn note(&mut self, what: &Value) {
        let time = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default().as_secs_f64();
        let step = self.watch.committed();
        let _ = writeln!(self.log, "{}", json!({ "time": time, "committed": step, "what": what }));
    }

    fn look_for_ends(&mut self) {
        for (who, status, words) in self.arena.ended() {
            let name = self.arena.name(who);
            self.note(&json!({ "ended": name, "status": status.to_string() }));
            self.watch.look();
            let done = self.watch.committed() == self.steps;
            // One that has just been started may not listen to SIGTERM yet.
            let properly = status.success() || status.signal() == Some(Signal::SIGTERM as i32);
            let expected = self.arena.may_end.contains(&who) && (properly || !matches!(who, Who::Worker(_)));
            if done && status.success() {
                self.done |= who == Who::Coordinator;
                continue;
            }
            if expected {
                continue;
            }
            let last: String = words.lines().last().unwrap_or_default().chars().take(400).collect();
            self.break_promise(format!("{name} ended by itself ({status}): {last}"));
            // So that the rest of the campaign means something; a job that failed stays failed.
            if !words.contains("the run failed") {
                self.arena.start_one(who);
            }
        }
    }

    fn carry_on(&mut self) {
        let (mut broken, mut struck) = (Vec::new(), Vec::new());
        for fault in &mut self.ongoing {
            let record = &mut self.records[fault.record];
            let before = record.struck;
            fault.advance(&mut self.arena, record, &mut broken);
            if before.is_none() && record.struck.is_some() {
                struck.push(fault.record);
            }
        }
        for number in struck {
            let victim = self.ongoing.iter().find(|o| o.record == number).map(|o| o.fault.victim());
            let seen = self.watch.last().map_or(0, |r| r.generation);
            // Rows are late: a worker may have been in a later generation already.
            let generation = match victim {
                Some(Victim::Worker(worker)) => self.arena.generation_of(worker).unwrap_or(seen).max(seen),
                _ => seen,
            };
            self.records[number].generation = generation;
            let detail = self.records[number].detail.clone();
            println!("  step {}, generation {generation}: {detail}", self.watch.committed());
            self.note(&json!({ "struck": detail, "generation": generation }));
        }
        while let Some(at) = self.ongoing.iter().position(|f| self.records[f.record].over.is_some()) {
            self.finish(at);
        }
        for what in broken {
            self.break_promise(what);
        }
    }

    fn finish(&mut self, at: usize) {
        let fault = self.ongoing.remove(at);
        let now = Instant::now();
        self.last.1 = now;
        for worker in workers_of(fault.fault.victim()) {
            self.hurt.insert(worker, Some(now));
            self.arena.may_end.remove(&Who::Worker(worker));
        }
        for who in [Who::Coordinator, Who::Checkpoint] {
            self.arena.may_end.remove(&who);
        }
        let detail = self.records[fault.record].detail.clone();
        self.note(&json!({ "over": detail }));
    }

    /// All machines trained together since an instant.
    fn together_since(&self, instant: Instant) -> bool {
        self.watch.last().is_some_and(|r| r.workers == WORKERS as u64 && r.seen > instant + STRAGGLING)
    }

    fn begin(&mut self) {
        let healed = |over: &Option<Instant>| over.is_some_and(|over| self.together_since(over));
        let whole: Vec<usize> = self.hurt.iter().filter(|(_, over)| healed(over)).map(|(w, _)| *w).collect();
        self.hurt.retain(|worker, _| !whole.contains(worker));
        if self.given_up || !self.may_begin() {
            return;
        }
        let turn = std::mem::replace(&mut self.next, self.schedule.next());
        let together = turn.faults.len() > 1;
        let overlapping = together || !self.ongoing.is_empty() || !self.together_since(self.last.1);
        for fault in turn.faults {
            for worker in workers_of(fault.victim()) {
                self.hurt.insert(worker, None);
            }
            let record = Record {
                kind: fault.kind(),
                detail: format!("{}{fault:?}", if together { "(of two) " } else { "" }),
                struck: None,
                repaired: None,
                over: None,
                generation: 0,
                overlapping,
            };
            self.ongoing.push(Ongoing::new(fault, self.records.len()));
            self.records.push(record);
        }
        self.last.0 = Instant::now();
    }

    fn may_begin(&self) -> bool {
        let turn = &self.next;
        #[expect(clippy::cast_precision_loss, reason = "a number of steps")]
        let done = self.watch.committed() as f64 / self.steps as f64;
        if done > 1.0 - QUIET || self.watch.last().is_none() {
            return false;
        }
        let calm = self.ongoing.is_empty() && self.together_since(self.last.1);
        let since = if turn.overlapping { self.last.0 } else { self.last.0.max(self.last.1) };
        if since.elapsed() < turn.pause || !(calm || turn.overlapping) {
            return false;
        }
        let victims: Vec<Victim> = turn.faults.iter().map(Fault::victim).collect();
        if victims.contains(&Victim::Everybody) {
            let beyond = self.watch.committed() % EVERY_STEPS;
            return calm && self.hurt.is_empty() && self.has_checkpoint() && beyond >= TO_LOSE;
        }
        let busy = |v: &Victim| {
            self.ongoing.iter().any(|o| o.fault.victim() == *v || o.fault.victim() == Victim::Everybody)
        };
        let mut unsafe_workers: Vec<usize> = victims.iter().flat_map(|v| workers_of(*v)).collect();
        unsafe_workers.extend(self.hurt.keys());
        unsafe_workers.sort_unstable();
        unsafe_workers.dedup();
        !victims.iter().any(busy) && unsafe_workers.len() < WORKERS
    }

    fn has_checkpoint(&self) -> bool {
        let entries = std::fs::read_dir(self.arena.cluster.store.join(RUN)).into_iter().flatten().flatten();
        entries.into_iter().any(|e| e.path().join("manifest.json").is_file())
    }

    /// Once a second: status, resources, and whether things are healed that should be.
    fn glance(&mut self) {
        let status = self.status.newest();
        self.note(&json!({ "status": status }));
        self.resources.sample(&self.arena, self.watch.committed());
        self.early.save();
        let quiet_since = self.last.1.max(self.last.0);
        if self.ongoing.is_empty()
            && !self.given_up
            && quiet_since.elapsed() > HEAL
            && !self.together_since(quiet_since)
        {
            self.given_up = true;
            self.break_promise(format!(
                "not all {WORKERS} workers train {} s after all was healed",
                HEAL.as_secs()
            ));
        }
    }

    /// Everybody must leave when told to, and leave nothing running.
    fn leave(&mut self) {
        self.arena.heal();
        let begun = Instant::now();
        for who in (0..WORKERS).map(Who::Worker) {
            self.arena.signal(who, Signal::SIGTERM);
        }
        let up = |arena: &Arena| (0..WORKERS).any(|w| arena.pid(Who::Worker(w)).is_some());
        while up(&self.arena) && begun.elapsed() < Duration::from_secs(15) {
            for (who, status, words) in self.arena.ended() {
                if !status.success() {
                    self.break_promise(format!("{} left with {status}: {words}", self.arena.name(who)));
                }
            }
            std::thread::sleep(LOOK);
        }
        for who in (0..WORKERS).map(Who::Worker).chain([Who::Coordinator]) {
            if self.arena.pid(who).is_some() {
                self.break_promise(format!("{} is still there when the job is over", self.arena.name(who)));
                self.arena.kill(who);
            }
        }
        self.arena.signal(Who::Checkpoint, Signal::SIGTERM);
        while self.arena.pid(Who::Checkpoint).is_some() && begun.elapsed() < Duration::from_secs(25) {
            let _ = self.arena.ended();
            std::thread::sleep(LOOK);
        }
        // A rank whose worker was killed leaves a moment later.
        let begun = Instant::now();
        while !processes::of_folder(&self.folder).is_empty() && begun.elapsed() < Duration::from_secs(5) {
            std::thread::sleep(LOOK);
        }
        for pid in processes::of_folder(&self.folder) {
            self.break_promise(format!("left running: {pid} {}", processes::command_line(pid)));
            processes::signal(pid, Signal::SIGKILL);
        }
    }
}

fn workers_of(victim: Victim) -> Vec<usize> {
    match victim {
        Victim::Worker(worker) => vec![worker],
        Victim::Everybody => (0..WORKERS).collect(),
        Victim::Coordinator | Victim::Checkpoint => Vec::new(),
    }
}
