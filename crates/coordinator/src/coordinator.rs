//! A coordinator from its opening to its end.

use crate::config::{CoordinatorConfig, Interpret, home};
use crate::error::{CoordinatorError, JobOutcome};
use crate::journal::{Found, Journal};
use crate::observing::{Observation, Observers};
use crate::progress::Progress;
use crate::rim::Rim;
use crate::run_dir::RunDir;
use crate::service::{Rejected, Service};
use crate::wire::Overview;
use mcl_coordinator_core::{Event, Recovered, RecoveredJob, State, Status};
use mcl_proto::MAX_MESSAGE_BYTES;
use mcl_proto::v1::coordinator_service_server::CoordinatorServiceServer;
use mcl_transport::{Gate, Refusals};
use mcl_types::RunId;
use std::collections::BTreeMap;
use std::net::SocketAddr;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{Notify, broadcast, mpsc, watch};
use tokio::time::Instant;

/// Inputs that may wait for the loop; whoever has more waits for it.
const INBOX: usize = 1024;
/// How long last words may take to reach their readers.
const FAREWELL: Duration = Duration::from_secs(2);

/// An opened coordinator: it owns its run directory, and serves once [`Coordinator::serve`] is called.
pub struct Coordinator {
    rim: Rim,
    service: Service,
    listener: TcpListener,
    gate: Gate,
    progress: watch::Receiver<Progress>,
    observers: Observers,
}

/// Speaks to a coordinator of the same process, as its gRPC service does to others.
#[derive(Clone)]
pub struct CoordinatorHandle {
    service: Service,
    gate: Gate,
    progress: watch::Receiver<Progress>,
}

/// Why a request came to nothing.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum HandleError {
    /// The job is not taken, for this reason.
    #[error("{0}")]
    Rejected(String),
    /// The coordinator has ended.
    #[error("the coordinator has ended")]
    Gone,
}

impl Coordinator {
    /// Opens a run directory: takes its lock and the next term, and finds the job that was run there.
    ///
    /// # Errors
    /// When another coordinator uses the directory, or what is in it cannot be read.
    pub async fn open(config: CoordinatorConfig, interpret: Interpret) -> Result<Self, CoordinatorError> {
        let CoordinatorConfig { run_dir: root, checkpoint_url, listener, gate, .. } = config;
        let CoordinatorConfig { heartbeat_interval, settings, history, .. } = config;
        let (answers, inbox) = mpsc::channel(INBOX);
        let many_runs = settings.many_runs;
        let reader = Arc::clone(&interpret);
        let opened = blocking(move || open_directory(root, many_runs, reader)).await?;
        let Opened { root, journal, term, found, run_dir, committed, facts } = opened;
        let recovered = Recovered {
            last_generation: found.last_generation(),
            job: found.job.clone().map(|spec| RecoveredJob {
                spec,
                committed,
                started: found.started.clone(),
                live: found.live,
                last_checkpoint: found.checkpoint,
                drain: found.drain,
                held: found.held,
                outcome: found.outcome.clone(),
            }),
        };
        let state = State::recover(settings, term, recovered, Duration::ZERO)?;
        tracing::info!(term = term.get(), dir = %root.display(), committed, "run directory opened");
        let (progress, watched) = watch::channel(Progress::of(&state, Duration::ZERO));
        let service = Service::new(answers.clone(), interpret.clone(), history, watched.clone());
        let observers = Observers::new();
        let mut rim = Rim {
            state,
            started: Instant::now(),
            journal,
            run_dir,
            root,
            interpret,
            queue: found.queue.into(),
            runs: found.runs,
            refused: Vec::new(),
            reading: false,
            checkpoint_url,
            identity: gate.identity().cloned(),
            tempo: heartbeat_interval,
            heartbeat_interval,
            inbox,
            answers,
            sessions: BTreeMap::new(),
            offer: None,
            requests: 0,
            running: None,
            adoption: 0,
            once_durable: Vec::new(),
            acknowledging: BTreeMap::new(),
            sync_at: None,
            progress,
            observers: observers.clone(),
            told: None,
            tell_at: Duration::ZERO,
        };
        if let (Some(facts), Some(spec)) = (facts, found.job) {
            rim.adopt(spec.run_id, facts);
        }
        Ok(Self { rim, service, listener, gate, progress: watched, observers })
    }

    /// Where it listens.
    ///
    /// # Errors
    /// When the listener does not know.
    pub fn local_addr(&self) -> std::io::Result<SocketAddr> {
        self.listener.local_addr()
    }

    /// A way to speak to it from this process.
    pub fn handle(&self) -> CoordinatorHandle {
        CoordinatorHandle {
            service: self.service.clone(),
            gate: self.gate.clone(),
            progress: self.progress.clone(),
        }
    }

    /// Its progress, as it changes.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// What happens from its start on: first of all the job that it goes on with, where there is one.
    pub fn observe(&self) -> broadcast::Receiver<Observation> {
        self.observers.join()
    }

    /// Serves until the job is over, or until `shutdown`, which leaves the job to the next coordinator.
    ///
    /// # Errors
    /// When the run directory cannot be written, the listener breaks, or another coordinator of the run has
    /// taken over.
    pub async fn serve(
        self,
        shutdown: impl Future<Output = ()> + Send,
    ) -> Result<JobOutcome, CoordinatorError> {
        let Self { rim, service, listener, gate, .. } = self;
        let service = CoordinatorServiceServer::new(service).max_decoding_message_size(MAX_MESSAGE_BYTES);
        let (health, health_service) = tonic_health::server::health_reporter();
        health.set_serving::<CoordinatorServiceServer<Service>>().await;

        let asked = Notify::new();
        let serving = gate
            .server()
            .add_service(health_service)
            .add_service(service)
            .serve_with_incoming_shutdown(gate.admit(listener), asked.notified());
        tokio::pin!(serving, shutdown);

        // Dropped with this future, which ends the loop.
        let (stop, stopped) = watch::channel(false);
        let runtime = tokio::runtime::Handle::current();
        let mut turning = tokio::task::spawn_blocking(move || runtime.block_on(rim.run(stopped)));
        let mut leaving = false;
        let outcome = loop {
            tokio::select! {
                turned = &mut turning => break turned.map_err(|e| CoordinatorError::Loop(e.to_string()))?,
                served = &mut serving => served?,
                () = &mut shutdown, if !leaving => {
                    leaving = true;
                    stop.send_replace(true);
                }
            }
        };
        health.set_not_serving::<CoordinatorServiceServer<Service>>().await;
        asked.notify_one();
        if tokio::time::timeout(FAREWELL, serving).await.is_err() {
            tracing::debug!(seconds = FAREWELL.as_secs(), "streams left open");
        }
        outcome
    }
}

impl CoordinatorHandle {
    /// Hands it a job; answers the steps that are committed already.
    ///
    /// # Errors
    /// When the job is not taken, or the coordinator has ended.
    pub async fn submit(&self, run_id: RunId, job_toml: String) -> Result<u64, HandleError> {
        Ok(self.service.submit(run_id, job_toml, None).await?.committed)
    }

    /// Finish the step in flight, checkpoint, stop.
    ///
    /// # Errors
    /// When the coordinator has ended.
    pub async fn drain(&self) -> Result<(), HandleError> {
        Ok(self.service.tell(Event::Drain).await?)
    }

    /// Finish the step in flight, checkpoint, hold.
    ///
    /// # Errors
    /// When the coordinator has ended.
    pub async fn pause(&self) -> Result<(), HandleError> {
        Ok(self.service.tell(Event::Hold).await?)
    }

    /// Go on after a pause.
    ///
    /// # Errors
    /// When the coordinator has ended.
    pub async fn resume(&self) -> Result<(), HandleError> {
        Ok(self.service.tell(Event::Resume).await?)
    }

    /// Stop for good, or take a job that waits out of the queue; none: the one that is run.
    ///
    /// # Errors
    /// When no such job is run or waits, or the coordinator has ended.
    pub async fn cancel(&self, run_id: Option<RunId>) -> Result<(), HandleError> {
        Ok(self.service.cancel(run_id).await?)
    }

    /// What is going on, with jobs that wait and earlier runs.
    ///
    /// # Errors
    /// When the coordinator has ended.
    pub async fn overview(&self) -> Result<Overview, HandleError> {
        Ok(self.service.status().await?)
    }

    /// What is going on.
    ///
    /// # Errors
    /// When the coordinator has ended.
    pub async fn status(&self) -> Result<Status, HandleError> {
        Ok(self.service.status().await?.status)
    }

    /// Its progress, as it changes.
    pub fn subscribe(&self) -> watch::Receiver<Progress> {
        self.progress.clone()
    }

    /// Connections and calls that were refused, by kind.
    pub fn refusals(&self) -> &Refusals {
        self.gate.refusals()
    }

    /// Connections there are.
    pub fn connections(&self) -> usize {
        self.gate.connections()
    }
}

impl From<Rejected> for HandleError {
    fn from(rejected: Rejected) -> Self {
        match rejected {
            Rejected::Leaving => Self::Gone,
            other => Self::Rejected(other.to_string()),
        }
    }
}

/// What a run directory holds.
struct Opened {
    root: PathBuf,
    journal: Journal,
    term: mcl_types::Term,
    found: Found,
    run_dir: Option<RunDir>,
    committed: u64,
    /// Of a job that is to go on at once.
    facts: Option<crate::config::JobFacts>,
}

fn open_directory(root: PathBuf, many_runs: bool, interpret: Interpret) -> Result<Opened, CoordinatorError> {
    std::fs::create_dir_all(&root).map_err(CoordinatorError::file("create", &root))?;
    let (journal, term, found) = Journal::open(&root)?;
    journal.claim(&root, many_runs)?;
    let last = found.started.as_ref().zip(found.job.as_ref().map(|j| j.schedule));
    let last_home = found.job.as_ref().map(|job| home(&root, many_runs, &job.run_id));
    let home = last_home.or_else(|| (!many_runs).then(|| root.clone()));
    let opened = home.as_ref().map(|home| RunDir::open(home, last)).transpose()?;
    let (run_dir, committed) = opened.map_or((None, 0), |(dir, committed)| (Some(dir), committed));
    let running = found.job.as_ref().filter(|_| found.outcome.is_none());
    let facts = running.map(|spec| {
        let path = RunDir::job_path(home.as_ref().unwrap_or(&root));
        let text = std::fs::read_to_string(&path).map_err(CoordinatorError::file("read", &path))?;
        let job = |reason| CoordinatorError::Job { path: path.clone(), reason };
        let facts = interpret(&text).map_err(job)?;
        let now = facts.spec(spec.run_id.clone(), spec.initial).map_err(job)?;
        if now.plan_digest != spec.plan_digest {
            let reason = "the dataset is not the one that this run began with: restore it, or use another run directory";
            return Err(job(reason.to_owned()));
        }
        Ok(facts)
    });
    let facts = facts.transpose()?;
    Ok(Opened { root, journal, term, found, run_dir, committed, facts })
}

/// Runs what waits for the disk where that holds nobody up.
async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, CoordinatorError> + Send + 'static,
) -> Result<T, CoordinatorError> {
    tokio::task::spawn_blocking(work).await.map_err(|e| CoordinatorError::Loop(e.to_string()))?
}
