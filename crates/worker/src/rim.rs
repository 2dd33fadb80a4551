//! The one loop: an event comes, decisions are taken, effects are performed in order.
//!
//! Invariant: nothing outlives the loop. Streams and processes are tasks of one set, which is emptied before
//! the loop returns and aborted where its future is dropped.

use crate::event::{Attempt, Effect, Ending, Event, ProcessId};
use crate::fence::Fence;
use crate::process::{self, RankHandle};
use crate::state::{Identity, State};
use crate::{Farewell, WorkerConfig, WorkerError, WorkerOutcome, link};
use mcl_failpoint::{Failpoint, pass};
use mcl_proto::v1::{Configure, Hello, RankCommand, SessionRequest, rank_command, session_request};
use mcl_transport::Dial;
use mcl_types::FencingToken;
use std::collections::{BTreeMap, BTreeSet, VecDeque};
use std::path::PathBuf;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio::time::Instant;

/// Events that may wait for the loop; whoever has more waits for it.
const EVENTS: usize = 1024;
/// How long the last words may take to reach the coordinator.
const FAREWELL: Duration = Duration::from_millis(500);

/// Runs a worker until it is dismissed, refused or told to leave.
///
/// # Errors
/// When its configuration cannot work, nobody answers at the start, the coordinator refuses it, or the
/// highest token cannot be kept.
pub async fn run(
    mut config: WorkerConfig,
    mut farewells: mpsc::Receiver<Farewell>,
) -> Result<WorkerOutcome, WorkerError> {
    config.rank_program = check(&config)?;
    let fence = Fence::new(config.state_dir.as_deref(), &config.name);
    let highest = fence.load()?;
    let dial = link::dial(&config.coordinator_url, config.identity.as_ref())?;
    let (mut state, effects) = State::new(Identity::new(&config), highest, first_process());
    let (sender, mut events) = mpsc::channel(EVENTS);
    let mut rim = Rim {
        config,
        fence,
        dial,
        events: sender,
        tasks: JoinSet::new(),
        ranks: BTreeMap::new(),
        stream: None,
    };
    let ended = rim.live(&mut state, effects, &mut events, &mut farewells).await;
    if ended.is_ok() && state.is_connected() {
        rim.farewell(&mut events).await;
    }
    rim.tasks.shutdown().await;
    rim.outcome(ended?)
}

/// Microseconds of the wall clock: above every number of an earlier life, which did not start a process each.
fn first_process() -> u64 {
    let since = SystemTime::now().duration_since(UNIX_EPOCH).unwrap_or_default();
    u64::try_from(since.as_micros()).unwrap_or_default()
}

/// What would fail later on is said at once. The rank program's full path, so that a bare name means the file
/// that was looked at and not one of the search path.
fn check(config: &WorkerConfig) -> Result<PathBuf, WorkerError> {
    if config.devices.is_empty() {
        return Err(WorkerError::NoDevice { worker: config.name.clone() });
    }
    let mut seen = BTreeSet::new();
    if let Some(device) = config.devices.iter().find(|d| !seen.insert(*d)) {
        return Err(WorkerError::SameDevice { worker: config.name.clone(), device: device.clone() });
    }
    let path = &config.rank_program;
    let reason = match std::fs::canonicalize(path) {
        Ok(full) if full.is_file() => return Ok(full),
        Ok(_) => "it is not a file".to_owned(),
        Err(error) => error.to_string(),
    };
    Err(WorkerError::RankProgram { path: path.clone(), reason })
}

/// The present stream.
struct Stream {
    attempt: Attempt,
    outgoing: mpsc::Sender<SessionRequest>,
    task: AbortHandle,
}

struct Rim {
    config: WorkerConfig,
    fence: Fence,
    dial: Dial,
    events: mpsc::Sender<Event>,
    tasks: JoinSet<()>,
    ranks: BTreeMap<ProcessId, RankHandle>,
    stream: Option<Stream>,
}

impl Rim {
    async fn live(
        &mut self,
        state: &mut State,
        effects: Vec<Effect>,
        events: &mut mpsc::Receiver<Event>,
        farewells: &mut mpsc::Receiver<Farewell>,
    ) -> Result<Ending, WorkerError> {
        let start = Instant::now();
        if let Some(ending) = self.perform(state, effects, start).await? {
            return Ok(ending);
        }
        loop {
            let deadline = state.deadline();
            let event = tokio::select! {
                // A later word may be more urgent than the first one.
                Some(farewell) = farewells.recv() => Event::Farewell(farewell),
                Some(event) = events.recv() => event,
                Some(_) = self.tasks.join_next() => continue,
                () = sleep_until(start, deadline), if deadline.is_some() => Event::Tick,
            };
            if let Event::Gone { process, .. } = &event {
                self.ranks.remove(process);
            }
            let effects = state.apply(event, start.elapsed());
            if let Some(ending) = self.perform(state, effects, start).await? {
                return Ok(ending);
            }
        }
    }

    /// Performs effects, and those of what follows from them at once.
    async fn perform(
        &mut self,
        state: &mut State,
        effects: Vec<Effect>,
        start: Instant,
    ) -> Result<Option<Ending>, WorkerError> {
        let mut effects = VecDeque::from(effects);
        while let Some(effect) = effects.pop_front() {
            let follows = match effect {
                Effect::Leave(ending) => return Ok(Some(ending)),
                Effect::Persist(token) => {
                    self.persist(token).await?;
                    None
                }
                Effect::Connect { attempt, hello, after } => {
                    self.connect(attempt, hello, after);
                    None
                }
                Effect::Send(message) => self.send(message),
                Effect::Spawn { process, configure } => Some(self.spawn(process, *configure)),
                Effect::Command { process, command } => self.command(process, command),
                Effect::Kill(process) => {
                    if let Some(rank) = self.ranks.get(&process) {
                        rank.kill();
                    }
                    None
                }
            };
            if let Some(event) = follows {
                effects.extend(state.apply(event, start.elapsed()));
            }
        }
        Ok(None)
    }

    async fn persist(&self, token: FencingToken) -> Result<(), WorkerError> {
        let fence = self.fence.clone();
        // The task ends early only where the runtime does, and then nothing is done under the token.
        tokio::task::spawn_blocking(move || fence.save(token)).await.unwrap_or(Ok(()))
    }

    fn connect(&mut self, attempt: Attempt, hello: Hello, after: Duration) {
        if let Some(old) = self.stream.take() {
            old.task.abort();
        }
        let (outgoing, queue) = mpsc::channel(link::OUTGOING);
        let events = self.events.clone();
        let task = self.tasks.spawn(link::run(self.dial.clone(), attempt, hello, after, queue, events));
        self.stream = Some(Stream { attempt, outgoing, task });
    }

    fn send(&mut self, message: SessionRequest) -> Option<Event> {
        let reports = reports(&message);
        if reports {
            pass(Failpoint::BeforeReport);
        }
        let stream = self.stream.as_ref()?;
        let sent = stream.outgoing.try_send(message);
        if reports {
            pass(Failpoint::AfterReport);
        }
        match sent {
            // Closed: its end is on its way here, and the message is kept or a mere heartbeat.
            Ok(()) | Err(mpsc::error::TrySendError::Closed(_)) => None,
            Err(mpsc::error::TrySendError::Full(_)) => {
                let reason = format!("it does not read: {} messages wait", link::OUTGOING);
                Some(Event::Down { attempt: stream.attempt, reason })
            }
        }
    }

    fn spawn(&mut self, id: ProcessId, configure: Configure) -> Event {
        let (program, env) = (&self.config.rank_program, &self.config.rank_env);
        let events = self.events.clone();
        let worker = &self.config.name;
        match process::spawn(id, worker, &configure.device, program, env, &mut self.tasks, events) {
            Ok(handle) => {
                let command = Some(rank_command::Command::Configure(configure));
                // The first command of an empty queue.
                let _ = handle.command(RankCommand { command });
                self.ranks.insert(id, handle);
                Event::Started { process: id }
            }
            Err(error) => {
                let reason = format!("{}: {error}; check that it can be executed", program.display());
                Event::NotStarted { process: id, reason }
            }
        }
    }

    fn command(&self, process: ProcessId, command: RankCommand) -> Option<Event> {
        let waiting = self.ranks.get(&process)?.command(command).err()?;
        Some(Event::RankDeaf { process, waiting })
    }

    /// Ends the stream in order, so that what was sent last still arrives.
    async fn farewell(&mut self, events: &mut mpsc::Receiver<Event>) {
        let Some(stream) = self.stream.take() else { return };
        drop(stream.outgoing);
        let ended = async {
            while let Some(event) = events.recv().await {
                if matches!(event, Event::Down { attempt, .. } if attempt == stream.attempt) {
                    return;
                }
            }
        };
        if tokio::time::timeout(FAREWELL, ended).await.is_err() {
            tracing::debug!("the coordinator did not end the stream in time");
        }
    }

    fn outcome(&self, ending: Ending) -> Result<WorkerOutcome, WorkerError> {
        let url = self.config.coordinator_url.clone();
        match ending {
            Ending::Dismissed(reason) => Ok(WorkerOutcome::Dismissed(reason)),
            Ending::Shutdown => Ok(WorkerOutcome::Shutdown),
            Ending::Refused(reason) => Err(WorkerError::Refused { url, reason }),
            Ending::Unreachable { waited, last } => Err(WorkerError::Unreachable { url, waited, last }),
        }
    }
}

/// Whether it says what ranks said, and not only that this worker is there.
fn reports(message: &SessionRequest) -> bool {
    matches!(&message.message, Some(session_request::Message::Heartbeat(beat)) if !beat.events.is_empty())
}

async fn sleep_until(start: Instant, deadline: Option<Duration>) {
    if let Some(deadline) = deadline {
        tokio::time::sleep_until(start + deadline).await;
    }
}
