//! The one loop: something comes, the core decides, effects are performed in order.
//!
//! It runs on a thread of its own, so that waiting for the disk holds nobody up but itself.

use crate::border::Plans;
use crate::checkpoints::Checkpoints;
use crate::clock::since_1970;
use crate::config::{Interpret, JobFacts};
use crate::error::{CoordinatorError, JobOutcome};
use crate::journal::{Journal, RunRecord};
use crate::observing::Observers;
use crate::progress::Progress;
use crate::queue::{Answer, Queued};
use crate::run_dir::RunDir;
use crate::service::{Input, Outgoing};
use crate::wire::Overview;
use mcl_coordinator_core::{Event, Phase, Reason, SessionId, State, ToWorker, step};
use mcl_proto::v1;
use mcl_transport::Identity;
use mcl_types::RunId;
use std::collections::{BTreeMap, VecDeque};
use std::mem::{Discriminant, discriminant};
use std::path::PathBuf;
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio::time::Instant;

/// How often the core hears of time: several times within any sensible `lost_after`.
const TICK: Duration = Duration::from_millis(100);
/// How often progress is renewed between steps.
const TELL: Duration = Duration::from_millis(20);
/// How long inputs alone may be heard.
const FLOOD: Duration = Duration::from_secs(1);
/// A clock that is later than this was stopped, not flooded.
const HELD_UP: Duration = Duration::from_secs(2);
/// How long a committed step may wait for others before all of them are made durable at once.
const GROUP: Duration = Duration::from_millis(100);

/// A stream to a worker; dropping it ends the stream.
pub(crate) struct Session {
    pub(crate) outgoing: Outgoing,
    pub(crate) advertise: String,
    pub(crate) _open: oneshot::Sender<()>,
}

/// A job on its way through the core.
pub(crate) struct Offer {
    pub(crate) request: u64,
    pub(crate) run_id: RunId,
    pub(crate) facts: JobFacts,
    /// Of a run that was run here before others.
    pub(crate) run_dir: Option<RunDir>,
    /// None where it waited for its turn.
    pub(crate) answer: Option<Answer>,
}

/// The job that is run.
pub(crate) struct Running {
    pub(crate) run_id: RunId,
    pub(crate) facts: JobFacts,
    pub(crate) plans: Plans,
    pub(crate) checkpoints: Checkpoints,
}

/// See the module.
pub(crate) struct Rim {
    pub(crate) state: State,
    pub(crate) started: Instant,
    pub(crate) journal: Journal,
    /// Of the job that is run, or was last.
    pub(crate) run_dir: Option<RunDir>,
    /// The directory of the one run, or the folder of all.
    pub(crate) root: PathBuf,
    pub(crate) interpret: Interpret,
    pub(crate) queue: VecDeque<Queued>,
    /// Runs before the last one, oldest first.
    pub(crate) runs: Vec<RunRecord>,
    /// Jobs that waited and could not be run.
    pub(crate) refused: Vec<v1::PastRun>,
    /// The head of the queue is being read.
    pub(crate) reading: bool,
    pub(crate) checkpoint_url: String,
    /// As whom the checkpoint service is spoken to.
    pub(crate) identity: Option<Identity>,
    pub(crate) heartbeat_interval: Duration,
    /// How often workers are told to speak now: the interval, stretched with their number.
    pub(crate) tempo: Duration,
    pub(crate) inbox: mpsc::Receiver<Input>,
    /// For tasks that bring answers.
    pub(crate) answers: mpsc::Sender<Input>,
    pub(crate) sessions: BTreeMap<SessionId, Session>,
    pub(crate) offer: Option<Offer>,
    pub(crate) requests: u64,
    pub(crate) running: Option<Running>,
    /// Counts the jobs taken up, so that answers are not taken for those to another job's questions.
    pub(crate) adoption: u64,
    /// To be sent once everything appended is durable.
    pub(crate) once_durable: Vec<(SessionId, ToWorker)>,
    /// ... of acknowledgements only the last one of a stream.
    pub(crate) acknowledging: BTreeMap<SessionId, ToWorker>,
    pub(crate) sync_at: Option<Instant>,
    pub(crate) progress: watch::Sender<Progress>,
    pub(crate) observers: Observers,
    pub(crate) told: Option<(Phase, Discriminant<Reason>)>,
    pub(crate) tell_at: Duration,
}

impl Rim {
    /// Runs until the job is over, something breaks, or `stop` says so (or is dropped).
    pub(crate) async fn run(
        mut self,
        mut stop: watch::Receiver<bool>,
    ) -> Result<JobOutcome, CoordinatorError> {
        self.tell_adoption();
        self.tell_continuation();
        let result = self.turn(&mut stop).await;
        // Whether it leaves or breaks down, workers hear nothing of it: their ranks train on for the next one.
        if let Err(error) = &result {
            tracing::error!(%error, "coordinator stops");
        }
        result
    }

    async fn turn(&mut self, stop: &mut watch::Receiver<bool>) -> Result<JobOutcome, CoordinatorError> {
        let mut next_tick = Instant::now();
        loop {
            let sync_at = self.sync_at;
            // What came is heard before time is said to have passed, so that nobody is lost for our own delay;
            // but a flood must not stop the clock.
            let late = next_tick.elapsed();
            let flooded = late > FLOOD;
            if late > HELD_UP {
                // This process was stopped, or starved: what others said meanwhile is still unread.
                self.apply(Event::HeldUp { by: late })?;
            }
            let over = tokio::select! {
                biased;
                _ = stop.wait_for(|stop| *stop) => {
                    self.sync()?;
                    return Ok(JobOutcome::Stopped);
                }
                () = sleep_until(sync_at), if sync_at.is_some() => {
                    self.sync()?;
                    None
                }
                Some(input) = self.inbox.recv(), if !flooded => self.take(input)?,
                () = tokio::time::sleep_until(next_tick) => {
                    next_tick = Instant::now() + TICK;
                    self.keep_tempo();
                    self.apply(Event::Tick)?
                }
            };
            self.next_in_line();
            self.tell(over.is_some());
            if let Some(outcome) = over {
                self.sync()?;
                return Ok(outcome);
            }
        }
    }

    fn take(&mut self, input: Input) -> Result<Option<JobOutcome>, CoordinatorError> {
        match input {
            Input::Event(event) => {
                let event = self.judge(event);
                if let Event::Disconnected { session } = &event {
                    self.sessions.remove(session);
                }
                self.apply(event)
            }
            Input::Connected { event, session, outgoing, open } => {
                let advertise = match &event {
                    Event::Connected { hello, .. } => hello.advertise.clone(),
                    _ => String::new(),
                };
                self.sessions.insert(session, Session { outgoing, advertise, _open: open });
                self.keep_tempo();
                self.apply(event)
            }
            Input::Checkpoint { adoption, event } if adoption == self.adoption => {
                self.tell_found(&event);
                self.apply(event)
            }
            Input::Checkpoint { .. } => Ok(None),
            Input::Submit { submission, answer } => self.submit(*submission, answer),
            Input::Read { run_id, facts } => self.read(&run_id, facts),
            Input::Cancel { run_id, answer } => {
                let (told, over) = self.cancel(run_id)?;
                let _ = answer.send(told);
                Ok(over)
            }
            Input::Tell { event, answer } => {
                let over = self.apply(event)?;
                let _ = answer.send(());
                Ok(over)
            }
            Input::Acknowledge { session, sequence } => {
                self.acknowledge(session, sequence);
                Ok(None)
            }
            Input::GetStatus { answer } => {
                let overview = Overview {
                    status: self.state.status(self.started.elapsed()),
                    queue: self.waiting(),
                    past_runs: self.past_runs(),
                    checkpoint_url: self.checkpoint_url.clone(),
                };
                let _ = answer.send(overview);
                Ok(None)
            }
            Input::Broken(error) => Err(error),
        }
    }

    /// Holds reports of the live generation against the plan.
    fn judge(&mut self, event: Event) -> Event {
        let live = self.state.generation();
        match (event, &mut self.running) {
            (Event::Heartbeat { session, leaving, events }, Some(running)) => {
                let judge = |e: mcl_coordinator_core::RankEvent| {
                    if e.generation == live { running.plans.judge(e) } else { e }
                };
                Event::Heartbeat { session, leaving, events: events.into_iter().map(judge).collect() }
            }
            (event, _) => event,
        }
    }

    /// One event through the core.
    pub(crate) fn apply(&mut self, event: Event) -> Result<Option<JobOutcome>, CoordinatorError> {
        let effects = step(&mut self.state, event, self.started.elapsed());
        let mut over = None;
        for effect in effects {
            let (seen, time) = (self.foresee(&effect), since_1970().as_secs_f64());
            over = self.perform(effect, time)?.or(over);
            self.observers.tell_of(time, seen);
        }
        Ok(over)
    }

    /// Makes everything durable and sends what waited for it.
    pub(crate) fn sync(&mut self) -> Result<(), CoordinatorError> {
        if let Some(run_dir) = &mut self.run_dir {
            run_dir.sync()?;
        }
        self.sync_at = None;
        let acknowledging = std::mem::take(&mut self.acknowledging);
        for (session, message) in std::mem::take(&mut self.once_durable).into_iter().chain(acknowledging) {
            self.send(session, message);
        }
        Ok(())
    }

    /// Whether something waits to be made durable.
    pub(crate) fn is_dirty(&self) -> bool {
        self.run_dir.as_ref().is_some_and(RunDir::is_dirty)
    }

    /// Sees to it that what was appended becomes durable soon.
    pub(crate) fn sync_soon(&mut self) {
        if self.is_dirty() {
            self.sync_at.get_or_insert_with(|| Instant::now() + GROUP);
        }
    }

    /// Renews the progress, and logs the reason where it changed in kind. With many workers that is work, so
    /// it is done once a while, and when a step was committed or the job is over.
    fn tell(&mut self, over: bool) {
        let now = self.started.elapsed();
        let stepped = self.state.committed() != self.progress.borrow().step;
        if !over && !stepped && now < self.tell_at {
            return;
        }
        self.tell_at = now + TELL;
        let (phase, reason) = self.state.phase(now);
        let kind = (phase, discriminant(&reason));
        if self.told != Some(kind) {
            tracing::info!(%phase, %reason, "job");
            self.told = Some(kind);
        }
        let progress = Progress::of(&self.state, now);
        self.progress.send_if_modified(|told| {
            let changed = *told != progress;
            *told = progress;
            changed
        });
    }
}

async fn sleep_until(at: Option<Instant>) {
    if let Some(at) = at {
        tokio::time::sleep_until(at).await;
    }
}
