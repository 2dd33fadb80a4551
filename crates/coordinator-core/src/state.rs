//! What the coordinator knows.

use crate::commit::StepMetrics;
use crate::effect::{Effect, Persisted, ToWorker};
use crate::event::{Event, SessionId};
use crate::generation::{DrainFor, Live};
use crate::job::{JobSpec, PastRun};
use crate::reason::{EndCause, Outcome};
use crate::settings::Settings;
use crate::settling::{Line, Started};
use crate::slots::Slot;
use mcl_types::{Generation, LaneLayout, LaneLayoutError, RunId, Term, Tier, WorkerName};
use serde::{Deserialize, Serialize};
use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

/// The coordinator's whole state. Changed by [`crate::step`] only.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub struct State {
    pub(crate) settings: Settings,
    pub(crate) term: Term,
    /// The highest generation ever formed.
    pub(crate) last_generation: Generation,
    /// Connected workers, and members or recent ones that are silent.
    pub(crate) workers: BTreeMap<WorkerName, Worker>,
    /// Whose stream each is, to find a heartbeat's worker without a search.
    pub(crate) sessions: BTreeMap<SessionId, WorkerName>,
    /// Those that asked to leave: few, and looked at after every event.
    pub(crate) leavers: BTreeSet<WorkerName>,
    pub(crate) job: Option<Job>,
}

/// A worker machine.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Worker {
    /// Its stream, while there is one.
    pub(crate) session: Option<SessionId>,
    pub(crate) last_heard: Duration,
    pub(crate) advertise: String,
    pub(crate) libtorch: String,
    /// One a device, in the order in which it offers them.
    pub(crate) slots: Vec<Slot>,
    /// It was asked to leave.
    pub(crate) leaving: bool,
    /// It was told that it may.
    pub(crate) released: bool,
}

/// The job and where it is.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) struct Job {
    pub(crate) spec: JobSpec,
    /// Steps that stand; the next one to be committed.
    pub(crate) committed: u64,
    /// The most that ever stood.
    pub(crate) furthest: u64,
    /// Newest visible checkpoint.
    pub(crate) last_checkpoint: Option<u64>,
    /// The checkpoint that is being made visible.
    pub(crate) committing: Option<u64>,
    /// Where that one is kept.
    pub(crate) committing_to: Tier,
    /// Generations in a row that ended without bringing the run forward.
    pub(crate) fruitless: u32,
    /// Their causes, oldest first.
    pub(crate) causes: Vec<EndCause>,
    /// The generation before the live or next one.
    pub(crate) ended: Option<Ended>,
    /// Which states lead to what is committed.
    pub(crate) line: Line,
    /// No generation of this run was ever started: there can be no checkpoint.
    pub(crate) fresh: bool,
    /// What is known of the run's checkpoints.
    pub(crate) lookup: Lookup,
    /// The job is to stop.
    pub(crate) drain: bool,
    /// The job is held until somebody says otherwise.
    pub(crate) held: bool,
    /// It ended under an earlier coordinator and may be submitted again: workers wait for that.
    pub(crate) dormant: bool,
    pub(crate) last_step: Option<StepMetrics>,
    /// Exponential mean over about 20 steps of the share of a step that waited for pictures.
    pub(crate) data_wait_share: f64,
    pub(crate) stage: Stage,
}

/// The generation that ended last.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Ended {
    pub(crate) generation: Generation,
    /// None where it was stopped on purpose.
    pub(crate) cause: Option<EndCause>,
}

/// What the job is doing.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
pub(crate) enum Stage {
    Gathering(Gathering),
    Live(Live),
    Over(Outcome),
}

/// Waiting for what the next generation needs.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Gathering {
    pub(crate) since: Duration,
    /// A pause after failures.
    pub(crate) not_before: Duration,
    /// The first one since the job was submitted or the coordinator started.
    pub(crate) first: bool,
}

/// What is known of the run's checkpoints.
#[derive(Debug, Clone, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) enum Lookup {
    NotAsked,
    Asked,
    /// The newest usable one; the others, if any, are damaged.
    Known(Newest),
    /// There is not even a damaged one, though one was saved.
    Gone,
}

/// The newest usable checkpoints.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
pub(crate) struct Newest {
    pub(crate) durable: Option<u64>,
    pub(crate) in_memory: Option<u64>,
}

impl Newest {
    pub(crate) fn of_both(self) -> Option<u64> {
        self.durable.max(self.in_memory)
    }
}

impl Gathering {
    pub(crate) const fn new(now: Duration, not_before: Duration, first: bool) -> Self {
        Self { since: now, not_before, first }
    }
}

/// What a coordinator finds in its run directory.
#[derive(Debug, Clone, PartialEq, Default)]
pub struct Recovered {
    /// The highest generation in the journal.
    pub last_generation: Generation,
    /// The job, where there is one.
    pub job: Option<RecoveredJob>,
}

/// A job found in the run directory.
#[derive(Debug, Clone, PartialEq)]
pub struct RecoveredJob {
    /// What it is.
    pub spec: JobSpec,
    /// Steps that stand in the ledger.
    pub committed: u64,
    /// The last generation that was told to train.
    pub started: Option<Started>,
    /// It was training when the coordinator went away.
    pub live: bool,
    /// Newest checkpoint known to be visible.
    pub last_checkpoint: Option<u64>,
    /// What its ranks were asked to stop for, if they were.
    pub drain: Option<DrainFor>,
    /// It is held.
    pub held: bool,
    /// How it ended, where it did: then it waits to be submitted again.
    pub outcome: Option<Outcome>,
}

impl State {
    /// An idle coordinator in its first or later reign.
    pub const fn new(settings: Settings, term: Term) -> Self {
        Self {
            settings,
            term,
            last_generation: Generation::new(0),
            workers: BTreeMap::new(),
            sessions: BTreeMap::new(),
            leavers: BTreeSet::new(),
            job: None,
        }
    }

    /// A coordinator that goes on where its predecessor stopped, at time `now`. The members of a
    /// generation that was training have `return_grace` and `lost_after` to come back.
    ///
    /// # Errors
    /// When the recorded generation could not have existed.
    pub fn recover(
        settings: Settings,
        term: Term,
        recovered: Recovered,
        now: Duration,
    ) -> Result<Self, LaneLayoutError> {
        let mut state = Self::new(settings, term);
        state.last_generation = recovered.last_generation;
        let Some(found) = recovered.job else {
            return Ok(state);
        };
        let (checkpoint, started) = (found.last_checkpoint, found.started.is_some());
        let mut job =
            Job::continued(PastRun::on_record(found.spec, found.committed, checkpoint, started), now);
        job.drain = found.drain == Some(DrainFor::Stop);
        job.held = found.held;
        if let Some(started) = &found.started {
            job.line.extend(started.record.generation, started.first);
        }
        if let Some(outcome) = found.outcome {
            job.stage = Stage::Over(outcome);
            job.dormant = true;
        } else if let Some(started) = found.started {
            // Whoever was in it may come back with the state.
            for place in &started.record.places {
                let worker =
                    state.workers.entry(place.worker.clone()).or_insert_with(|| Worker::unheard(now));
                worker.slots.push(Slot::remembered(place));
            }
            if found.live {
                let world = u32::try_from(started.record.places.len()).unwrap_or(u32::MAX);
                let layout = LaneLayout::new(job.spec.lanes, world)?;
                let mut live = Live::adopted(&started, layout, job.furthest, now);
                live.drain = found.drain.or(found.held.then_some(DrainFor::Hold));
                job.stage = Stage::Live(live);
            }
        }
        state.job = Some(job);
        Ok(state)
    }

    /// This coordinator's reign.
    pub const fn term(&self) -> Term {
        self.term
    }

    /// The live generation's number, or the last one's.
    pub const fn generation(&self) -> Generation {
        self.last_generation
    }

    /// Silence after which a worker is lost.
    pub fn lost_after(&self) -> Duration {
        self.job.as_ref().and_then(|j| j.spec.lost_after).unwrap_or(self.settings.lost_after)
    }

    /// Whether jobs of other runs may follow one that is over.
    pub const fn many_runs(&self) -> bool {
        self.settings.many_runs
    }

    /// The run whose job is run, or was last.
    pub fn run_id(&self) -> Option<&RunId> {
        self.job.as_ref().map(|j| &j.spec.run_id)
    }

    /// Steps that stand.
    pub fn committed(&self) -> u64 {
        self.job.as_ref().map_or(0, |j| j.committed)
    }

    /// How the job ended, where it did.
    pub fn outcome(&self) -> Option<&Outcome> {
        match &self.job.as_ref()?.stage {
            Stage::Over(outcome) => Some(outcome),
            _ => None,
        }
    }

    /// Why the last generation ended that did, as far as it is known by now; none where nothing went wrong.
    pub fn last_end(&self) -> Option<&EndCause> {
        self.job.as_ref()?.ended.as_ref()?.cause.as_ref()
    }

    pub(crate) fn live(&self) -> Option<&Live> {
        match &self.job.as_ref()?.stage {
            Stage::Live(live) => Some(live),
            _ => None,
        }
    }

    pub(crate) fn live_mut(&mut self) -> Option<&mut Live> {
        match &mut self.job.as_mut()?.stage {
            Stage::Live(live) => Some(live),
            _ => None,
        }
    }

    pub(crate) fn worker_of(&self, session: SessionId) -> Option<&WorkerName> {
        let name = self.sessions.get(&session)?;
        self.workers.get(name).filter(|w| w.session == Some(session)).map(|_| name)
    }
}

impl Worker {
    pub(crate) fn unheard(now: Duration) -> Self {
        Self {
            session: None,
            last_heard: now,
            advertise: String::new(),
            libtorch: String::new(),
            slots: Vec::new(),
            leaving: false,
            released: false,
        }
    }
}

impl Job {
    /// New, or going on from where it is.
    pub(crate) fn continued(past: PastRun, now: Duration) -> Self {
        let PastRun { spec, committed, last_checkpoint, fresh } = past;
        Self {
            spec,
            committed,
            furthest: committed,
            last_checkpoint,
            committing: None,
            committing_to: Tier::default(),
            fruitless: 0,
            causes: Vec::new(),
            ended: None,
            line: Line::default(),
            fresh,
            lookup: Lookup::NotAsked,
            drain: false,
            held: false,
            dormant: false,
            last_step: None,
            data_wait_share: 0.0,
            stage: Stage::Gathering(Gathering::new(now, now, true)),
        }
    }
}

/// One event being applied.
pub(crate) struct Turn<'a> {
    pub(crate) state: &'a mut State,
    pub(crate) now: Duration,
    pub(crate) out: Vec<Effect>,
}

impl<'a> Turn<'a> {
    pub(crate) const fn new(state: &'a mut State, now: Duration) -> Self {
        Self { state, now, out: Vec::new() }
    }

    /// Applies the event, then does whatever has become due.
    pub(crate) fn take(mut self, event: Event) -> Vec<Effect> {
        match event {
            Event::Connected { session, hello } => self.connected(session, hello),
            Event::Heartbeat { session, leaving, events } => self.heartbeat(session, leaving, events),
            Event::Disconnected { session } => self.disconnected(session),
            Event::Submit { request, spec, past } => self.submit(request, spec, past.map(|p| *p)),
            Event::Drain => self.drain(),
            Event::Hold => self.hold(),
            Event::Resume => self.resume(),
            Event::Cancel => self.cancel(),
            Event::CheckpointsFound { steps, in_memory, damaged } => {
                self.checkpoints_found(&steps, &in_memory, damaged);
            }
            Event::CheckpointResult { step, result } => self.checkpoint_result(step, result),
            Event::HeldUp { by } => self.held_up(by),
            Event::Tick => self.tick(),
        }
        self.commit_steps();
        self.commit_checkpoint();
        self.finish_if_parked();
        self.consider_regroup();
        self.gather();
        self.start_if_ready();
        self.release_leaving();
        self.out
    }

    /// Sends to a worker, where it has a stream.
    pub(crate) fn send(&mut self, worker: &WorkerName, message: ToWorker) {
        if let Some(session) = self.state.workers.get(worker).and_then(|w| w.session) {
            self.out.push(Effect::Send { session, message });
        }
    }

    /// Sends to the workers of the live generation.
    pub(crate) fn broadcast(&mut self, message: &ToWorker) {
        for session in self.member_sessions() {
            self.out.push(Effect::Send { session, message: message.clone() });
        }
    }

    /// The streams of the live generation's workers, in name order.
    pub(crate) fn member_sessions(&self) -> Vec<SessionId> {
        let Some(live) = self.state.live() else { return Vec::new() };
        live.workers().into_iter().filter_map(|w| self.state.workers.get(w)?.session).collect()
    }

    /// The job is over: everybody is told.
    pub(crate) fn over(&mut self, outcome: Outcome) {
        let Some(job) = self.state.job.as_mut() else { return };
        job.stage = Stage::Over(outcome.clone());
        // Its processes are stopped by the dismissal.
        for slot in self.state.workers.values_mut().flat_map(|w| &mut w.slots) {
            slot.dismissed();
        }
        self.out.push(Effect::Persist(Persisted::Over(outcome.clone())));
        let (reason, leave) = (outcome.to_string(), self.state.settings.leave_when_done);
        for session in self.state.workers.values().filter_map(|w| w.session) {
            let message = ToWorker::Dismiss { reason: reason.clone(), leave };
            self.out.push(Effect::Send { session, message });
        }
        self.out.push(Effect::Over(outcome));
    }
}
