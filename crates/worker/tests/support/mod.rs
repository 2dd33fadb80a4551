//! A scripted coordinator on port 0, and a worker against it.
#![allow(dead_code, reason = "each test file uses what it needs")]
#![allow(missing_docs, clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_proto::v1::coordinator_service_server::{CoordinatorService, CoordinatorServiceServer};
use mcl_proto::v1::*;
use mcl_worker::{Farewell, WorkerConfig, WorkerError, WorkerOutcome};
use nix::sys::signal::kill;
use nix::unistd::Pid;
use std::collections::VecDeque;
use std::net::{SocketAddr, TcpListener};
use std::time::Duration;
use tokio::runtime::Runtime;
use tokio::sync::mpsc;
use tokio::task::JoinHandle;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream};
use tonic::{Request, Response, Status, Streaming};

/// Longer than anything here takes on a busy machine.
pub const PATIENCE: Duration = Duration::from_secs(20);

type Answers = mpsc::Sender<Result<SessionResponse, Status>>;

/// Hands each stream to the test.
struct Service {
    sessions: mpsc::Sender<(Streaming<SessionRequest>, Answers)>,
}

#[tonic::async_trait]
impl CoordinatorService for Service {
    type SessionStream = ReceiverStream<Result<SessionResponse, Status>>;
    async fn session(
        &self,
        request: Request<Streaming<SessionRequest>>,
    ) -> Result<Response<Self::SessionStream>, Status> {
        let (sender, receiver) = mpsc::channel(64);
        self.sessions.send((request.into_inner(), sender)).await.map_err(|_| Status::aborted("over"))?;
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
    async fn submit_job(&self, _: Request<SubmitJobRequest>) -> Result<Response<SubmitJobResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn get_history(
        &self,
        _: Request<GetHistoryRequest>,
    ) -> Result<Response<GetHistoryResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn await_end(&self, _: Request<AwaitEndRequest>) -> Result<Response<AwaitEndResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }

    async fn get_status(&self, _: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn pause_job(&self, _: Request<PauseJobRequest>) -> Result<Response<PauseJobResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn resume_job(&self, _: Request<ResumeJobRequest>) -> Result<Response<ResumeJobResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn cancel_job(&self, _: Request<CancelJobRequest>) -> Result<Response<CancelJobResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }
    async fn drain_job(&self, _: Request<DrainJobRequest>) -> Result<Response<DrainJobResponse>, Status> {
        Err(Status::unimplemented("scripted"))
    }
}

/// A server with a runtime of its own, so that dropping it breaks every connection, as a death would.
pub struct Coordinator {
    pub address: SocketAddr,
    sessions: mpsc::Receiver<(Streaming<SessionRequest>, Answers)>,
    runtime: Option<Runtime>,
}

impl Coordinator {
    /// `listener` is a clone of one that the test keeps, so that the port stays its own over a restart.
    pub fn start(listener: TcpListener) -> Self {
        let address = listener.local_addr().unwrap();
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
        let runtime = runtime.unwrap();
        let (sender, sessions) = mpsc::channel(4);
        runtime.spawn(async move {
            listener.set_nonblocking(true).unwrap();
            let incoming = TcpListenerStream::new(tokio::net::TcpListener::from_std(listener).unwrap());
            let service = CoordinatorServiceServer::new(Service { sessions: sender });
            tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming).await
        });
        Self { address, sessions, runtime: Some(runtime) }
    }

    pub fn anywhere() -> Self {
        Self::start(TcpListener::bind("127.0.0.1:0").unwrap())
    }

    /// The next stream, with its greeting; nothing was answered yet.
    pub async fn accept(&mut self) -> Session {
        let next = tokio::time::timeout(PATIENCE, self.sessions.recv()).await;
        let (requests, answers) = next.expect("no stream in time").expect("the server is gone");
        let mut session = Session { requests, answers, hello: Hello::default(), events: VecDeque::new() };
        let Some(session_request::Message::Hello(hello)) = session.next().await else {
            panic!("expected a greeting first");
        };
        session.hello = hello;
        session
    }

    /// As `accept`, and welcome it with heartbeats far apart, so that only what is urgent comes soon.
    pub async fn welcome(&mut self, term: u64) -> Session {
        let session = self.accept().await;
        session.say(session_response::Message::Welcome(Welcome {
            term,
            heartbeat_interval_ms: 60_000,
            lost_after_ms: 120_000,
        }));
        session
    }
}

impl Drop for Coordinator {
    fn drop(&mut self) {
        if let Some(runtime) = self.runtime.take() {
            runtime.shutdown_background();
        }
    }
}

/// One stream as the coordinator sees it.
pub struct Session {
    requests: Streaming<SessionRequest>,
    answers: Answers,
    pub hello: Hello,
    events: VecDeque<RankEvent>,
}

impl Session {
    pub fn say(&self, message: session_response::Message) {
        self.answers.try_send(Ok(SessionResponse { message: Some(message) })).unwrap();
    }

    /// The next message; none where the worker ended the stream.
    pub async fn next(&mut self) -> Option<session_request::Message> {
        let next = tokio::time::timeout(PATIENCE, self.requests.message()).await;
        next.expect("nothing was said in time").ok().flatten().map(|m| m.message.expect("an empty message"))
    }

    pub async fn heartbeat(&mut self) -> Option<Heartbeat> {
        match self.next().await? {
            session_request::Message::Heartbeat(heartbeat) => Some(heartbeat),
            session_request::Message::Hello(_) => panic!("a second greeting"),
        }
    }

    /// The next rank event.
    pub async fn event(&mut self) -> RankEvent {
        loop {
            if let Some(event) = self.events.pop_front() {
                return event;
            }
            let heartbeat = self.heartbeat().await.expect("the worker is gone");
            self.events.extend(heartbeat.events);
        }
    }

    /// The next rank event, which must be readiness: the rank's process id.
    pub async fn pid(&mut self) -> i32 {
        match self.event().await.event {
            Some(rank_event::Event::Ready(ready)) => ready.store_address.parse().unwrap(),
            other => panic!("expected readiness, found {other:?}"),
        }
    }

    /// Events until so many processes are prepared, which nothing else may come between: who they are, by device.
    pub async fn prepared(&mut self, count: usize) -> Vec<Slot> {
        let mut found = Vec::new();
        while found.len() < count {
            let event = self.event().await;
            match event.event {
                Some(rank_event::Event::Spawned(_)) => {}
                Some(rank_event::Event::Prepared(_)) => found.push((event.device, event.process)),
                other => panic!("expected processes, found {other:?}"),
            }
        }
        found.sort();
        found
    }

    /// Orders `mode` and has all `count` processes join generation 1 of term 1, rank by rank in order of
    /// devices: their processes and process ids.
    pub async fn join_all(&mut self, mode: &str, count: usize) -> (Vec<Slot>, Vec<i32>) {
        self.prepare(mode);
        let slots = self.prepared(count).await;
        let posts: Vec<_> = (0..).zip(&slots).collect();
        self.assign(1, 1, &posts);
        let mut pids = vec![0; count];
        for _ in 0..count {
            let event = self.event().await;
            let Some(rank_event::Event::Ready(ready)) = event.event else { panic!("{event:?}") };
            pids[event.rank as usize] = ready.store_address.parse().unwrap();
        }
        (slots, pids)
    }

    /// Reads until the worker ends the stream.
    pub async fn drained(mut self) -> Vec<RankEvent> {
        let mut events = Vec::from(std::mem::take(&mut self.events));
        while let Some(heartbeat) = self.heartbeat().await {
            events.extend(heartbeat.events);
        }
        events
    }

    /// The standing order.
    pub fn prepare(&self, mode: &str) {
        self.order(Configure { job_toml: mode.to_owned(), ..Configure::default() });
    }

    pub fn order(&self, configure: Configure) {
        self.say(session_response::Message::Prepare(Prepare { configure: Some(configure) }));
    }

    pub fn assign(&self, term: u64, generation: u64, posts: &[(u32, &Slot)]) {
        let post = |(rank, (device, process)): &(u32, &Slot)| Post {
            device: device.clone(),
            process: *process,
            join: Some(Join { rank: *rank, world_size: 2, ..Join::default() }),
        };
        let posts = posts.iter().map(post).collect();
        self.say(session_response::Message::Assign(Assign { token: token(term, generation), posts }));
    }

    pub fn relay(&self, term: u64, generation: u64, rank: Option<u32>, command: rank_command::Command) {
        let command = Some(RankCommand { command: Some(command) });
        self.say(session_response::Message::Relay(Relay { token: token(term, generation), rank, command }));
    }

    /// Has ranks report so many steps.
    pub fn grant(&self, term: u64, generation: u64, rank: Option<u32>, steps: u64) {
        let grant = EpochGrant { steps, ..EpochGrant::default() };
        self.relay(term, generation, rank, rank_command::Command::EpochGrant(grant));
    }

    pub fn dismiss(&self, leave: bool) {
        self.say(session_response::Message::Dismiss(Dismiss { reason: "all done".into(), leave }));
    }
}

/// A device and the process on it.
pub type Slot = (String, u64);

#[allow(clippy::unnecessary_wraps, reason = "as the messages have it")]
pub fn token(term: u64, generation: u64) -> Option<FencingToken> {
    Some(FencingToken { term, generation })
}

/// A worker in a task.
pub struct Running {
    task: JoinHandle<Result<WorkerOutcome, WorkerError>>,
    stop: mpsc::Sender<Farewell>,
}

impl Running {
    pub fn start(config: WorkerConfig) -> Self {
        let (stop, farewells) = mpsc::channel(4);
        Self { task: tokio::spawn(mcl_worker::run(config, farewells)), stop }
    }

    pub fn shut_down(&self) {
        self.leave(Farewell::Now);
    }

    pub fn leave(&self, farewell: Farewell) {
        self.stop.try_send(farewell).unwrap();
    }

    pub async fn outcome(self) -> Result<WorkerOutcome, WorkerError> {
        tokio::time::timeout(PATIENCE, self.task).await.expect("the worker does not end").unwrap()
    }

    /// As if its machine were taken away.
    pub async fn abort(self) {
        self.task.abort();
        let _ = self.task.await;
    }
}

/// With a single device.
pub fn small(address: SocketAddr) -> WorkerConfig {
    WorkerConfig { devices: vec!["cpu".into()], ..config(address) }
}

pub fn config(address: SocketAddr) -> WorkerConfig {
    WorkerConfig {
        name: "w1".into(),
        coordinator_url: format!("http://{address}"),
        identity: None,
        devices: vec!["cpu".into(), "cpu:1".into()],
        rank_program: env!("CARGO_BIN_EXE_mcl-fake-rank").into(),
        rank_env: vec![("FAKE_RANK_SEES".into(), "lighthouse".into())],
        advertise: "10.1.2.3".into(),
        state_dir: None,
        connect_timeout: PATIENCE,
        build: "test".into(),
        libtorch: "2.11.0".into(),
    }
}

/// Whether a process runs; one that is dead and not yet reaped (by whoever inherited it) does not.
pub fn runs(pid: i32) -> bool {
    let stat = std::fs::read_to_string(format!("/proc/{pid}/stat")).unwrap_or_default();
    let dead = stat.rsplit(')').next().is_some_and(|rest| rest.trim_start().starts_with(['Z', 'X']));
    kill(Pid::from_raw(pid), None).is_ok() && !dead
}

/// Waits until a process that was killed without waiting is gone and reaped.
pub async fn vanishes(pid: i32) {
    let gone = async {
        while runs(pid) {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    };
    tokio::time::timeout(PATIENCE, gone).await.expect("the process still runs");
}
