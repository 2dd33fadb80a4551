//! The gRPC service: everything that comes is put into the loop's inbox.

use crate::config::{Interpret, JobFacts, TellHistory};
use crate::error::CoordinatorError;
use crate::progress::Progress;
use crate::queue::{Answer, Submission, Submitted};
use crate::wire::{self, Overview};
use mcl_coordinator_core::{Event, Phase, SessionId, SubmitError};
use mcl_proto::v1::coordinator_service_server::CoordinatorService;
use mcl_proto::{PROTOCOL, v1};
use mcl_transport::{ConnectionInfo, Refusal};
use mcl_types::{Digest, RunId};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;
use tokio::sync::{mpsc, oneshot, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Messages to one worker that may wait for the network; a worker that lets more pile up is cut off and comes
/// back.
const OUTGOING: usize = 1024;
/// How long a worker may take to end a stream that the coordinator has ended: dropping its requests earlier
/// could take the last words back.
const PARTING: Duration = Duration::from_secs(1);
/// How long a new stream may take to say hello.
const HELLO: Duration = Duration::from_secs(10);

/// What workers read from.
pub(crate) type Outgoing = mpsc::Sender<Result<v1::SessionResponse, Status>>;

/// What comes to the loop.
#[derive(Debug)]
pub(crate) enum Input {
    /// For the core as it is.
    Event(Event),
    /// A stream with its hello; dropping `open` ends it.
    Connected { event: Event, session: SessionId, outgoing: Outgoing, open: oneshot::Sender<()> },
    /// For the core, of the checkpoint service: an answer for the job that was taken up as this one.
    Checkpoint { adoption: u64, event: Event },
    /// A job, read already.
    Submit { submission: Box<Submission>, answer: Answer },
    /// The job at the head of the queue was read.
    Read { run_id: RunId, facts: Result<Box<JobFacts>, String> },
    /// Stop the job that is run, or one that waits.
    Cancel { run_id: Option<RunId>, answer: oneshot::Sender<Result<(), Rejected>> },
    /// For the core; answered once it was heard.
    Tell { event: Event, answer: oneshot::Sender<()> },
    /// The event of this stream's heartbeat was put in before this.
    Acknowledge { session: SessionId, sequence: u64 },
    /// What is going on?
    GetStatus { answer: oneshot::Sender<Overview> },
    /// The coordinator cannot go on.
    Broken(CoordinatorError),
}

/// See the module.
#[derive(Clone)]
pub(crate) struct Service {
    inbox: mpsc::Sender<Input>,
    interpret: Interpret,
    history: TellHistory,
    progress: watch::Receiver<Progress>,
    sessions: Arc<AtomicU64>,
}

/// Why a job is not taken.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum Rejected {
    #[error("{0}")]
    Job(String),
    #[error(transparent)]
    Submit(#[from] SubmitError),
    #[error(
        "`{run_id}` waits in the queue with another job file or state: cancel it first, then submit this one"
    )]
    Waiting { run_id: RunId },
    #[error(
        "no job `{run_id}` is run or waits here{}; see `mcl status`",
        .phase.map_or_else(String::new, |p| format!(" (it is {p})"))
    )]
    NoSuchJob { run_id: RunId, phase: Option<Phase> },
    #[error("the coordinator is leaving: submit the job to its successor")]
    Leaving,
}

impl Service {
    pub(crate) fn new(
        inbox: mpsc::Sender<Input>,
        interpret: Interpret,
        history: TellHistory,
        progress: watch::Receiver<Progress>,
    ) -> Self {
        Self { inbox, interpret, history, progress, sessions: Arc::new(AtomicU64::new(1)) }
    }

    /// Reads the job away from the loop: opening a dataset takes its time.
    pub(crate) async fn submit(
        &self,
        run_id: RunId,
        job_toml: String,
        initial: Option<Digest>,
    ) -> Result<Submitted, Rejected> {
        let interpret = Arc::clone(&self.interpret);
        let facts = tokio::task::spawn_blocking(move || interpret(&job_toml))
            .await
            .map_err(|e| Rejected::Job(format!("reading the job broke down: {e}")))?
            .map_err(Rejected::Job)?;
        facts.spec(run_id.clone(), initial).map_err(Rejected::Job)?;
        let submission = Box::new(Submission { run_id, facts, initial });
        let answered = self.ask(|answer| Input::Submit { submission, answer }).await;
        answered.ok_or(Rejected::Leaving)?
    }

    /// Answers once the core has heard it.
    pub(crate) async fn tell(&self, event: Event) -> Result<(), Rejected> {
        self.ask(|answer| Input::Tell { event, answer }).await.ok_or(Rejected::Leaving)
    }

    pub(crate) async fn cancel(&self, run_id: Option<RunId>) -> Result<(), Rejected> {
        self.ask(|answer| Input::Cancel { run_id, answer }).await.ok_or(Rejected::Leaving)?
    }

    pub(crate) async fn status(&self) -> Result<Overview, Rejected> {
        self.ask(|answer| Input::GetStatus { answer }).await.ok_or(Rejected::Leaving)
    }

    async fn ask<T>(&self, question: impl FnOnce(oneshot::Sender<T>) -> Input) -> Option<T> {
        let (answer, answered) = oneshot::channel();
        self.inbox.send(question(answer)).await.ok()?;
        answered.await.ok()
    }
}

impl From<Rejected> for Status {
    fn from(rejected: Rejected) -> Self {
        match &rejected {
            Rejected::Job(_) => Self::invalid_argument(rejected.to_string()),
            Rejected::Submit(_) | Rejected::Waiting { .. } => Self::failed_precondition(rejected.to_string()),
            Rejected::NoSuchJob { .. } => Self::not_found(rejected.to_string()),
            Rejected::Leaving => Self::unavailable(rejected.to_string()),
        }
    }
}

#[tonic::async_trait]
impl CoordinatorService for Service {
    type SessionStream = ReceiverStream<Result<v1::SessionResponse, Status>>;

    async fn session(
        &self,
        request: Request<Streaming<v1::SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let session = SessionId(self.sessions.fetch_add(1, Ordering::Relaxed));
        let (outgoing, stream) = mpsc::channel(OUTGOING);
        let info = request.extensions().get::<ConnectionInfo>().cloned();
        tokio::spawn(pump(session, info, request.into_inner(), outgoing, self.inbox.clone()));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn submit_job(
        &self,
        request: Request<v1::SubmitJobRequest>,
    ) -> Result<Response<v1::SubmitJobResponse>, Status> {
        let request = request.into_inner();
        let run_id =
            mcl_proto::run_id(&request.run_id).map_err(|e| Status::invalid_argument(e.to_string()))?;
        let initial = request.initial_digest.as_deref().map(str::parse::<Digest>).transpose();
        let initial = initial.map_err(|e| Status::invalid_argument(format!("initial_digest: {e}")))?;
        let submitted = self.submit(run_id, request.job_toml, initial).await?;
        let (committed_steps, jobs_before) = (submitted.committed, submitted.jobs_before);
        Ok(Response::new(v1::SubmitJobResponse { committed_steps, jobs_before }))
    }

    async fn get_status(
        &self,
        _: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        Ok(Response::new(wire::status(self.status().await?)))
    }

    async fn get_history(
        &self,
        request: Request<v1::GetHistoryRequest>,
    ) -> Result<Response<v1::GetHistoryResponse>, Status> {
        Ok(Response::new(self.history.tell(request.into_inner().points)))
    }

    async fn await_end(
        &self,
        request: Request<v1::AwaitEndRequest>,
    ) -> Result<Response<v1::AwaitEndResponse>, Status> {
        let run_id = request.into_inner().run_id;
        let mut progress = self.progress.clone();
        let another = |p: &Progress| p.run_id.as_ref().is_none_or(|r| r.as_str() != run_id);
        // An error says that nothing changes any more: what was said last counts.
        let _ = progress.wait_for(|p| another(p) || p.phase.is_over()).await;
        let last = progress.borrow().clone();
        if another(&last) {
            return Err(Status::not_found(format!(
                "`{run_id}` is not the run that is run here: see `mcl status`"
            )));
        }
        if !last.phase.is_over() {
            return Err(Status::unavailable("the coordinator is leaving: ask its successor"));
        }
        Ok(Response::new(v1::AwaitEndResponse {
            phase: last.phase.to_string(),
            reason: last.reason,
            committed_steps: last.step,
            last_checkpoint: last.last_checkpoint,
        }))
    }

    async fn drain_job(
        &self,
        _: Request<v1::DrainJobRequest>,
    ) -> Result<Response<v1::DrainJobResponse>, Status> {
        self.tell(Event::Drain).await?;
        Ok(Response::new(v1::DrainJobResponse {}))
    }

    async fn pause_job(
        &self,
        _: Request<v1::PauseJobRequest>,
    ) -> Result<Response<v1::PauseJobResponse>, Status> {
        self.tell(Event::Hold).await?;
        Ok(Response::new(v1::PauseJobResponse {}))
    }

    async fn resume_job(
        &self,
        _: Request<v1::ResumeJobRequest>,
    ) -> Result<Response<v1::ResumeJobResponse>, Status> {
        self.tell(Event::Resume).await?;
        Ok(Response::new(v1::ResumeJobResponse {}))
    }

    async fn cancel_job(
        &self,
        request: Request<v1::CancelJobRequest>,
    ) -> Result<Response<v1::CancelJobResponse>, Status> {
        let run_id = request.into_inner().run_id.as_deref().map(mcl_proto::run_id).transpose();
        self.cancel(run_id.map_err(|e| Status::invalid_argument(e.to_string()))?).await?;
        Ok(Response::new(v1::CancelJobResponse {}))
    }
}

/// One stream, from its hello to its end.
async fn pump(
    session: SessionId,
    info: Option<ConnectionInfo>,
    mut requests: Streaming<v1::SessionRequest>,
    outgoing: Outgoing,
    inbox: mpsc::Sender<Input>,
) {
    let hello = match tokio::time::timeout(HELLO, first_message(info.as_ref(), &mut requests)).await {
        Ok(Ok(hello)) => hello,
        Ok(Err(refused)) => return refuse(info, requests, outgoing, refused).await,
        Err(_) => {
            let reason = format!("no hello within {} s", HELLO.as_secs());
            return refuse(info, requests, outgoing, (Refusal::NoHello, reason)).await;
        }
    };
    let worker = hello.worker.clone();
    tracing::info!(%worker, session = session.0, build = hello.build, "worker connected");
    let (open, mut closed) = oneshot::channel();
    let event = Event::Connected { session, hello };
    if inbox.send(Input::Connected { event, session, outgoing: outgoing.clone(), open }).await.is_err() {
        return;
    }
    let reason = tokio::select! {
        reason = forward(session, info.as_ref(), &mut requests, &inbox) => Some(reason),
        () = outgoing.closed() => Some("the worker hung up".to_owned()),
        _ = &mut closed => None,
    };
    drop(outgoing);
    let Some(reason) = reason else { return part(requests).await };
    tracing::info!(%worker, session = session.0, reason, "stream ended");
    let _ = inbox.send(Input::Event(Event::Disconnected { session })).await;
}

async fn first_message(
    info: Option<&ConnectionInfo>,
    requests: &mut Streaming<v1::SessionRequest>,
) -> Result<mcl_coordinator_core::Hello, Refused> {
    let message = requests.message().await.map_err(|status| unreadable(&status))?.and_then(|r| r.message);
    let Some(v1::session_request::Message::Hello(hello)) = message else {
        let reason = "the first message is no hello: the worker speaks another protocol".to_owned();
        return Err((Refusal::NoHello, reason));
    };
    let protocol = hello.protocol;
    let hello = wire::hello(hello).map_err(|e| (Refusal::NoHello, e.to_string()))?;
    if protocol != PROTOCOL {
        let reason = format!(
            "worker {} speaks protocol {protocol}, this coordinator speaks {PROTOCOL}: install the same version on both",
            hello.worker
        );
        return Err((Refusal::WrongProtocol, reason));
    }
    let named = info.map_or(Ok(()), |info| info.check_worker(hello.worker.as_str()));
    named.map_err(|reason| (Refusal::WrongName, reason))?;
    Ok(hello)
}

/// Why a stream is not taken: as it is counted, and as the worker is told.
type Refused = (Refusal, String);

/// A stream that broke, or a message that makes no sense.
fn unreadable(status: &Status) -> Refused {
    (mcl_transport::unreadable(status).unwrap_or(Refusal::NoHello), status.to_string())
}

async fn refuse(
    info: Option<ConnectionInfo>,
    requests: Streaming<v1::SessionRequest>,
    outgoing: Outgoing,
    (refusal, reason): Refused,
) {
    // Counted, and told to the log with others: whoever is refused may come again and again.
    match info {
        Some(info) => info.refused_because(refusal, &reason),
        None => tracing::warn!(reason, "stream refused"),
    }
    let message = Some(v1::session_response::Message::Refused(v1::Refused { reason }));
    let _ = outgoing.send(Ok(v1::SessionResponse { message })).await;
    drop(outgoing);
    part(requests).await;
}

/// Lets the worker end a stream that the coordinator has ended.
async fn part(mut requests: Streaming<v1::SessionRequest>) {
    let rest = async { while let Ok(Some(_)) = requests.message().await {} };
    let _ = tokio::time::timeout(PARTING, rest).await;
}

/// Passes heartbeats on until the stream ends; says why it did.
async fn forward(
    session: SessionId,
    info: Option<&ConnectionInfo>,
    requests: &mut Streaming<v1::SessionRequest>,
    inbox: &mpsc::Sender<Input>,
) -> String {
    loop {
        let heartbeat = match requests.message().await {
            Ok(Some(request)) => match request.message {
                Some(v1::session_request::Message::Heartbeat(heartbeat)) => heartbeat,
                Some(v1::session_request::Message::Hello(_)) => return "a second hello".to_owned(),
                // From a newer worker perhaps; it is alive.
                None => v1::Heartbeat::default(),
            },
            Ok(None) => return "the worker ended it".to_owned(),
            Err(status) => {
                let (refusal, reason) = unreadable(&status);
                if let Some(info) = info.filter(|_| refusal != Refusal::NoHello) {
                    info.refused_because(refusal, &reason);
                }
                return reason;
            }
        };
        let (leaving, sequence) = (heartbeat.leaving, heartbeat.sequence);
        let events: Result<Vec<_>, _> = heartbeat.events.into_iter().map(wire::rank_event).collect();
        let events = match events {
            Ok(events) => events,
            Err(error) => return error.to_string(),
        };
        let event = Event::Heartbeat { session, leaving, events };
        let mut heard = inbox.send(Input::Event(event)).await.is_ok();
        if heard && sequence > 0 {
            heard = inbox.send(Input::Acknowledge { session, sequence }).await.is_ok();
        }
        if !heard {
            return "the coordinator is leaving".to_owned();
        }
    }
}
