//! A cluster in memory: a coordinator with its journal and ledger, workers with ranks, a checkpoint
//! store, and a network that delays, breaks and repeats. Whatever the coordinator does is checked as it is
//! done.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod machine;
pub mod story;

pub use machine::Machine;

use mcl_coordinator_core::{
    DrainFor, Effect, Event, GenerationRecord, JobSpec, LaneReport, Origin, Outcome, Persisted, Recovered,
    RecoveredJob, SessionId, Settings, Started, State, StepReport, ToWorker, invariants, step,
};
use mcl_plan::Schedule;
use mcl_plan::ledger::{LaneRecord, SampleHash, SampleRecord};
use mcl_types::{Digest, Generation, Lane, RunId, SampleIndex, Term, Tier, WorkerName};
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::ops::Range;
use std::time::Duration;

pub const CHECKPOINT_EVERY: u64 = 5;

/// What survives a coordinator.
#[derive(Debug, Clone, Default)]
pub struct Journal {
    pub term: u64,
    pub last_generation: Generation,
    pub spec: Option<JobSpec>,
    /// Formed and not ended.
    pub formed: Option<GenerationRecord>,
    pub started: Option<Started>,
    pub live: bool,
    pub drain: Option<DrainFor>,
    pub held: bool,
    pub last_checkpoint: Option<u64>,
    pub outcome: Option<Outcome>,
}

/// What all ranks of one generation share, as a collective would.
#[derive(Debug, Clone)]
pub struct Fabric {
    pub world: u32,
    pub first: u64,
    /// Steps applied by each rank.
    pub applied: BTreeMap<u32, u64>,
    pub started: BTreeSet<u32>,
    /// The state that all begin with, once who gives it has started.
    pub state: Option<Vec<Generation>>,
    /// Ranks that hold it.
    pub levelled: BTreeSet<u32>,
    /// A rank is gone: every other one's next collective fails.
    pub broken: bool,
    /// The boundary at which all stop, and whether they stage a checkpoint there.
    pub stop_at: Option<(u64, bool)>,
}

impl Fabric {
    /// A rank is gone. That breaks the group, where there is one already.
    pub fn lose(&mut self) {
        self.broken |= !self.started.is_empty();
    }
}

#[derive(Debug)]
pub struct Cluster {
    pub now: Duration,
    pub state: State,
    pub settings: Settings,
    pub journal: Journal,
    /// (step, generation) of every step that stands.
    pub ledger: Vec<u64>,
    pub commits: usize,
    pub rolled_back: usize,
    pub visible: BTreeSet<u64>,
    /// Visible as long as the service lives.
    pub in_memory: BTreeSet<u64>,
    /// Steps between those; 0: none.
    pub memory_every: u64,
    pub damaged: BTreeSet<u64>,
    /// Slices stored: (step, generation) -> ranks.
    pub stored: BTreeMap<(u64, Generation), BTreeSet<u32>>,
    /// What is in them, and in the visible ones.
    pub staged_contents: BTreeMap<(u64, Generation), Vec<Generation>>,
    pub contents: BTreeMap<u64, Vec<Generation>>,
    /// Checkpoint work that the service has not answered.
    pub service: VecDeque<Asked>,
    pub machines: BTreeMap<WorkerName, Machine>,
    pub fabrics: BTreeMap<Generation, Fabric>,
    pub down: BTreeMap<SessionId, VecDeque<ToWorker>>,
    pub sessions: u64,
    pub spec: JobSpec,
    pub warnings: Vec<String>,
    /// How often the service was asked whether this coordinator still reigns.
    pub reign_checks: usize,
    /// Where the state of each started generation came from.
    pub origins: Vec<Origin>,
    pub over: Option<Outcome>,
    pub answers: Vec<Result<u64, String>>,
}

#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Asked {
    Find,
    Commit { step: u64, generation: Generation, tier: Tier },
}

pub fn spec(lanes: u32, total_steps: u64, steps_per_epoch: u64) -> JobSpec {
    JobSpec {
        run_id: RunId::new("run").unwrap(),
        job_digest: Digest::of(b"job"),
        plan_digest: Digest::of(b"plan"),
        lanes,
        images_per_lane: 2,
        schedule: Schedule::new(steps_per_epoch, total_steps).unwrap(),
        min_workers: 1,
        max_lanes_per_rank: None,
        lost_after: None,
        initial: None,
    }
}

pub fn patient() -> Settings {
    Settings { fruitless_limit: 100_000, ..Settings::default() }
}

impl Cluster {
    pub fn new(settings: Settings, spec: JobSpec) -> Self {
        let journal = Journal { term: 1, ..Journal::default() };
        Self {
            now: Duration::from_secs(1),
            state: State::new(settings.clone(), Term::new(1)),
            settings,
            journal,
            ledger: Vec::new(),
            commits: 0,
            rolled_back: 0,
            visible: BTreeSet::new(),
            in_memory: BTreeSet::new(),
            memory_every: 0,
            damaged: BTreeSet::new(),
            stored: BTreeMap::new(),
            staged_contents: BTreeMap::new(),
            contents: BTreeMap::new(),
            service: VecDeque::new(),
            machines: BTreeMap::new(),
            fabrics: BTreeMap::new(),
            down: BTreeMap::new(),
            sessions: 0,
            spec,
            warnings: Vec::new(),
            reign_checks: 0,
            origins: Vec::new(),
            over: None,
            answers: Vec::new(),
        }
    }

    pub fn add(&mut self, name: &str, devices: usize) {
        let name = WorkerName::new(name);
        self.machines.insert(name.clone(), Machine::new(name, devices));
    }

    pub fn submit(&mut self) {
        let spec = self.spec.clone();
        self.apply(Event::Submit { request: 1, spec, past: None });
    }

    /// One event, its effects performed and judged.
    pub fn apply(&mut self, event: Event) {
        let was_over = self.state.outcome().is_some();
        let submitting = matches!(event, Event::Submit { .. });
        let effects = step(&mut self.state, event, self.now);
        assert_eq!(invariants::check(&self.state), Ok(()));
        for effect in effects {
            if was_over && !submitting {
                let harmless = matches!(
                    effect,
                    Effect::Send { .. }
                        | Effect::Close { .. }
                        | Effect::Warn(_)
                        | Effect::Persist(Persisted::Checkpoint(_))
                );
                assert!(harmless, "after the end of the job: {effect:?}");
            }
            self.perform(effect);
        }
        assert_eq!(self.state.committed(), self.ledger.len() as u64);
    }

    fn perform(&mut self, effect: Effect) {
        match effect {
            Effect::Persist(persisted) => self.persist(persisted),
            Effect::Send { session, message } | Effect::SendOnceDurable { session, message } => {
                self.check_message(&message);
                self.down.entry(session).or_default().push_back(message);
            }
            Effect::Close { session } => self.break_session(session),
            Effect::Commit { record, metrics } => {
                assert_eq!(record.step.get(), self.ledger.len() as u64, "steps are committed in order, once");
                // Recounted steps are those of the generation that was started last.
                let started = self.journal.started.as_ref().map(|s| s.record.generation);
                assert_eq!(Some(record.generation), started);
                assert_eq!(metrics.step, record.step.get());
                assert_eq!(record.lanes.len(), self.spec.lanes as usize);
                self.ledger.push(record.generation.get());
                self.commits += 1;
            }
            Effect::AppendLedger(_) => {}
            Effect::RollBack { to, .. } => {
                assert!(to < self.ledger.len() as u64);
                self.rolled_back += self.ledger.len() - usize::try_from(to).unwrap();
                self.ledger.truncate(usize::try_from(to).unwrap());
            }
            Effect::FindCheckpoints { .. } => self.service.push_back(Asked::Find),
            Effect::CheckReign => self.reign_checks += 1,
            Effect::CommitCheckpoint { step, generation, slices, tier } => {
                assert!(
                    step <= self.ledger.len() as u64,
                    "the ledger covers a checkpoint before it is visible"
                );
                let in_flight = self.service.iter().any(|a| matches!(a, Asked::Commit { .. }));
                assert!(!in_flight, "one checkpoint at a time becomes visible");
                let stored = self.stored.get(&(step, generation)).map_or(0, BTreeSet::len);
                assert_eq!(stored, slices as usize, "all slices are durable");
                self.service.push_back(Asked::Commit { step, generation, tier });
            }
            Effect::SubmitAnswered { result, .. } => self.answers.push(result.map_err(|e| e.to_string())),
            Effect::Warn(warning) => self.warnings.push(warning.to_string()),
            Effect::Over(outcome) => {
                assert!(self.over.is_none(), "a job ends once");
                self.over = Some(outcome);
            }
        }
    }

    fn persist(&mut self, persisted: Persisted) {
        let journal = &mut self.journal;
        match persisted {
            Persisted::Job(spec) => {
                if journal.spec.as_ref().is_some_and(|s| s.run_id != spec.run_id) {
                    // Another run has a directory and checkpoints of its own; the tests that do this begin new ones.
                    (journal.started, journal.last_checkpoint) = (None, None);
                    self.ledger.clear();
                    self.visible.clear();
                    self.in_memory.clear();
                    self.contents.clear();
                    self.service.clear();
                    self.spec = spec.clone();
                }
                journal.spec = Some(spec);
                journal.outcome = None;
                journal.drain = None;
                journal.held = false;
                self.over = None;
            }
            Persisted::Formed(record) => {
                assert!(record.generation > journal.last_generation, "generations only grow");
                assert!(journal.formed.is_none(), "at most one generation is live");
                let world = u32::try_from(record.places.len()).unwrap();
                let fabric = Fabric {
                    world,
                    first: 0,
                    applied: BTreeMap::new(),
                    started: BTreeSet::new(),
                    state: None,
                    levelled: BTreeSet::new(),
                    broken: false,
                    stop_at: None,
                };
                self.fabrics.insert(record.generation, fabric);
                journal.last_generation = record.generation;
                journal.formed = Some(record);
                journal.live = false;
            }
            Persisted::Started(started) => {
                assert_eq!(journal.formed.as_ref(), Some(&started.record));
                let fabric = self.fabrics.get_mut(&started.record.generation).unwrap();
                fabric.first = started.first;
                fabric.applied = (0..fabric.world).map(|r| (r, started.first)).collect();
                let behind = started.rolled_back.as_ref().map_or(started.first, |r| r.from.get());
                assert_eq!(
                    behind,
                    self.ledger.len() as u64,
                    "it begins where the ledger ends, or rolls back"
                );
                self.origins.push(started.origin);
                journal.last_checkpoint = started.last_checkpoint;
                journal.started = Some(started);
                journal.live = true;
            }
            Persisted::Ended(generation) => {
                assert_eq!(journal.formed.take().map(|l| l.generation), Some(generation));
                journal.live = false;
                journal.drain = journal.drain.filter(|d| *d == DrainFor::Stop);
            }
            Persisted::Held(held) => journal.held = held,
            Persisted::Drain(why) => {
                journal.drain = journal.drain.filter(|d| *d == DrainFor::Stop).or(Some(why))
            }
            Persisted::Checkpoint(step) => journal.last_checkpoint = Some(step),
            Persisted::Over(outcome) => journal.outcome = Some(outcome),
        }
    }

    /// Nobody hears of a generation that is not in the journal.
    fn check_message(&self, message: &ToWorker) {
        let generation = match message {
            ToWorker::Assign { generation, .. }
            | ToWorker::Start { generation, .. }
            | ToWorker::Grant { generation, .. }
            | ToWorker::Committed { generation, .. }
            | ToWorker::CheckpointCommitted { generation, .. }
            | ToWorker::Drain { generation }
            | ToWorker::Pause { generation }
            | ToWorker::Break { generation, .. }
            | ToWorker::Recount { generation, .. }
            | ToWorker::Stop { generation, .. } => *generation,
            ToWorker::Welcome | ToWorker::Prepare | ToWorker::Refused { .. } | ToWorker::Dismiss { .. } => {
                return;
            }
        };
        assert!(generation <= self.journal.last_generation, "{message:?} is ahead of the journal");
        if let ToWorker::Committed { step, .. } = message {
            assert!(*step < self.ledger.len() as u64, "an acknowledged step is in the ledger");
        }
    }

    pub fn advance(&mut self, by: Duration) {
        self.now += by;
        self.apply(Event::Tick);
    }

    /// The service answers its oldest request, or its newest. A commit that is refused stays invisible.
    pub fn answer(&mut self, refuse: bool, newest: bool) {
        match if newest { self.service.pop_back() } else { self.service.pop_front() } {
            Some(Asked::Find) => {
                let steps = self.visible.iter().copied().collect();
                let in_memory = self.in_memory.iter().copied().collect();
                let damaged = !self.damaged.is_empty();
                self.apply(Event::CheckpointsFound { steps, in_memory, damaged });
            }
            Some(Asked::Commit { step, .. }) if refuse => {
                self.apply(Event::CheckpointResult { step, result: Err("a slice is damaged".to_owned()) });
            }
            Some(Asked::Commit { step, generation, tier }) => {
                self.make_visible(step, generation, tier);
                self.apply(Event::CheckpointResult { step, result: Ok("digest".to_owned()) });
            }
            None => {}
        }
    }

    fn make_visible(&mut self, step: u64, generation: Generation, tier: Tier) {
        match tier {
            Tier::Durable => self.in_memory.retain(|s| *s > step),
            Tier::Memory => self.in_memory.clear(),
        }
        let visible = if tier == Tier::Durable { &mut self.visible } else { &mut self.in_memory };
        visible.insert(step);
        let contents = self.staged_contents[&(step, generation)].clone();
        let told: Vec<_> = self.ledger.iter().take(contents.len()).map(|g| Generation::new(*g)).collect();
        assert_eq!(contents, told, "a checkpoint came about otherwise than the ledger says");
        self.contents.insert(step, contents);
    }

    /// The newest checkpoint turns out damaged; not the last one, which nobody would read again.
    pub fn damage(&mut self) {
        if !self.visible.contains(&self.spec.total_steps()) {
            self.damaged.extend(self.visible.pop_last());
        }
    }

    /// The checkpoint service is started again: what was in its memory is gone.
    pub fn restart_service(&mut self) {
        self.in_memory.clear();
    }

    /// What could not be read can be read again: the disk was only slow, say. One whose steps have been taken
    /// anew meanwhile has been replaced.
    pub fn mend(&mut self) {
        for step in std::mem::take(&mut self.damaged) {
            let contents = &self.contents[&step];
            if contents.iter().map(|g| g.get()).eq(self.ledger.iter().copied().take(contents.len())) {
                self.visible.insert(step);
            }
        }
    }

    pub fn break_session(&mut self, session: SessionId) {
        self.down.remove(&session);
        for machine in self.machines.values_mut() {
            if machine.session == Some(session) {
                machine.session = None;
                machine.up.clear();
            }
        }
    }

    /// The coordinator dies and another one opens the same directory. What was in flight is lost, except
    /// that the service may have done what it was asked.
    pub fn restart_coordinator(&mut self, done: bool) {
        for asked in std::mem::take(&mut self.service) {
            if let (Asked::Commit { step, generation, tier }, true) = (asked, done) {
                self.make_visible(step, generation, tier);
            }
        }
        self.down.clear();
        for machine in self.machines.values_mut() {
            machine.session = None;
            machine.up.clear();
        }
        self.journal.term += 1;
        let journal = self.journal.clone();
        let job = journal.spec.map(|spec| RecoveredJob {
            spec,
            committed: self.ledger.len() as u64,
            started: journal.started,
            live: journal.live,
            last_checkpoint: journal.last_checkpoint,
            drain: journal.drain,
            held: journal.held,
            outcome: journal.outcome,
        });
        if !self.journal.live {
            self.journal.formed = None;
        }
        let recovered = Recovered { last_generation: journal.last_generation, job };
        let term = Term::new(journal.term);
        self.state = State::recover(self.settings.clone(), term, recovered, self.now).unwrap();
        assert_eq!(invariants::check(&self.state), Ok(()));
    }

    /// State survives being written down.
    pub fn round_trip(&mut self) {
        let text = serde_json::to_string(&self.state).unwrap();
        let back: State = serde_json::from_str(&text).unwrap();
        assert_eq!(back, self.state);
        self.state = back;
    }

    /// Everything healthy, in fair turns, until the job is over or `rounds` are up.
    pub fn run(&mut self, rounds: usize) -> Option<Outcome> {
        for _ in 0..rounds {
            if let Some(over) = &self.over {
                return Some(over.clone());
            }
            self.round();
        }
        self.over.clone()
    }

    /// One fair turn for everybody.
    pub fn round(&mut self) {
        self.advance(Duration::from_millis(100));
        while !self.service.is_empty() {
            self.answer(false, false);
        }
        for name in self.machines.keys().cloned().collect::<Vec<_>>() {
            if self.machines[&name].session.is_none() {
                self.connect(&name);
            }
            self.deliver_down(&name, usize::MAX);
            self.act(&name);
            self.beat(&name);
            self.deliver_up(&name, usize::MAX);
        }
    }

    pub fn run_to(&mut self, committed: u64) {
        for _ in 0..10_000 {
            if self.ledger.len() as u64 >= committed {
                return;
            }
            self.round();
        }
        panic!("step {committed} was not reached: {:?}", self.state.phase(self.now));
    }
}

/// What a rank that carries these lanes reports of a step.
pub fn report_of(spec: &JobSpec, lanes: Range<u32>, step: u64) -> StepReport {
    let sample = |slot: u32| SampleRecord {
        index: SampleIndex::new(step * 100 + u64::from(slot)),
        id: String::new(),
        hash: SampleHash::from_bytes([0; 16]),
        replaces: None,
        reason: None,
    };
    let lane = |lane: u32| LaneReport {
        fed: LaneRecord { lane: Lane::new(lane), samples: (0..spec.images_per_lane).map(sample).collect() },
        losses: vec![f64::from(lane), 1.0],
    };
    StepReport {
        step,
        epoch: spec.position(step).epoch.get(),
        lanes: lanes.map(lane).collect(),
        learning_rate: 0.1,
        momentum: 0.99,
        grad_norm: 1.0,
        skipped: false,
        step_seconds: 0.5,
        data_wait_seconds: 0.1,
        forward_seconds: 0.15,
        backward_seconds: 0.2,
        collective_seconds: 0.05,
    }
}
