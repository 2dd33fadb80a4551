//! The checkpoint service, as the coordinator uses it: one task that asks, retries and brings answers.
//!
//! Invariants: before anything else the term is announced, so that an older coordinator can no longer make
//! anything visible. A service that is away is asked again for ever, with a warning; only a refusal comes
//! back as one.

use crate::error::CoordinatorError;
use crate::service::Input;
use mcl_coordinator_core::Event;
use mcl_failpoint::{Failpoint, pass};
use mcl_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use mcl_proto::{MAX_MESSAGE_BYTES, v1};
use mcl_transport::{Dial, Identity};
use mcl_types::{FencingToken, Retention, RunId, Term, Tier};
use std::time::Duration;
use tokio::sync::mpsc;
use tonic::transport::Channel;
use tonic::{Code, Status};

/// For a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// For a call: a commit and a listing read every byte of a state.
const CALL: Duration = Duration::from_secs(600);
/// Pauses between tries double from the first to the second of these.
const PAUSES: (Duration, Duration) = (Duration::from_millis(100), Duration::from_secs(3));

/// What the loop asks for.
#[derive(Debug)]
pub(crate) enum Ask {
    Find {
        at_most: u64,
    },
    /// Does our term still reign?
    CheckReign,
    Commit {
        step: u64,
        token: FencingToken,
        slices: u32,
        meta_json: String,
        retention: Retention,
        tier: Tier,
    },
}

/// Where to ask. Dropping it ends the task.
#[derive(Debug)]
pub(crate) struct Checkpoints {
    asks: mpsc::UnboundedSender<Ask>,
    task: tokio::task::JoinHandle<()>,
}

impl Drop for Checkpoints {
    fn drop(&mut self) {
        self.task.abort();
    }
}

impl Checkpoints {
    /// Announces the term, then does what is asked, one by one.
    pub(crate) fn start(
        url: &str,
        identity: Option<Identity>,
        speaker: Speaker,
        adoption: u64,
        inbox: mpsc::Sender<Input>,
    ) -> Self {
        let (asks, asked) = mpsc::unbounded_channel();
        let caller = Caller { url: url.to_owned(), identity, speaker, adoption, channel: None };
        Self { asks, task: tokio::spawn(caller.work(asked, inbox)) }
    }

    pub(crate) fn ask(&self, ask: Ask) {
        // The task ends only with this handle or with the coordinator, which is then on its way out.
        let _ = self.asks.send(ask);
    }
}

/// Who speaks for which run.
#[derive(Debug)]
pub(crate) struct Speaker {
    pub(crate) run_id: RunId,
    pub(crate) term: Term,
    /// Tells the run from another of the same name.
    pub(crate) incarnation: u64,
}

struct Caller {
    url: String,
    identity: Option<Identity>,
    speaker: Speaker,
    /// For which of the jobs that this coordinator took up.
    adoption: u64,
    channel: Option<Channel>,
}

impl Caller {
    async fn work(mut self, mut asked: mpsc::UnboundedReceiver<Ask>, inbox: mpsc::Sender<Input>) {
        if !self.reigns(&inbox).await {
            return;
        }
        while let Some(ask) = asked.recv().await {
            let event = match ask {
                Ask::CheckReign if self.reigns(&inbox).await => continue,
                Ask::CheckReign => return,
                Ask::Find { at_most } => self.find(at_most).await,
                Ask::Commit { step, token, slices, meta_json, retention, tier } => {
                    let request = v1::CommitCheckpointRequest {
                        token: Some(token.into()),
                        run_id: self.speaker.run_id.to_string(),
                        step,
                        slices,
                        meta_json,
                        keep: retention.keep,
                        keep_every: retention.keep_every,
                        in_memory: tier == Tier::Memory,
                    };
                    let result = self.commit(request).await.map_err(|s| s.message().to_owned());
                    pass(Failpoint::CommitAnswered);
                    Event::CheckpointResult { step, result }
                }
            };
            if inbox.send(Input::Checkpoint { adoption: self.adoption, event }).await.is_err() {
                return;
            }
        }
    }

    /// Announces the term; a service that knows a later one ends the coordinator.
    async fn reigns(&mut self, inbox: &mpsc::Sender<Input>) -> bool {
        let Err(refused) = self.announce().await else {
            pass(Failpoint::TermAnnounced);
            return true;
        };
        let run_id = self.speaker.run_id.to_string();
        let reason = refused.message().to_owned();
        let _ = inbox.send(Input::Broken(CoordinatorError::Superseded { run_id, reason })).await;
        false
    }

    async fn announce(&mut self) -> Result<(), Status> {
        let Speaker { run_id, term, incarnation } = &self.speaker;
        let (term, run_id, incarnation) = (term.get(), run_id.to_string(), *incarnation);
        let request = v1::AnnounceTermRequest { term, run_id, incarnation };
        self.persist("announce the term", |mut client| {
            let request = request.clone();
            async move { client.announce_term(request).await.map(drop) }
        })
        .await
    }

    async fn commit(&mut self, request: v1::CommitCheckpointRequest) -> Result<String, Status> {
        self.persist("commit a checkpoint", |mut client| {
            let request = request.clone();
            async move { client.commit_checkpoint(request).await.map(|r| r.into_inner().digest) }
        })
        .await
    }

    /// A listing is never refused for good: without it nobody knows where to go on.
    async fn find(&mut self, at_most: u64) -> Event {
        let request =
            v1::ListCheckpointsRequest { run_id: self.speaker.run_id.to_string(), at_most: Some(at_most) };
        loop {
            let found = self
                .persist("list the checkpoints", |mut client| {
                    let request = request.clone();
                    async move { client.list_checkpoints(request).await.map(tonic::Response::into_inner) }
                })
                .await;
            match found {
                Ok(list) => {
                    for damaged in &list.damaged {
                        tracing::error!(
                            step = damaged.step,
                            reason = damaged.reason,
                            "damaged checkpoint skipped"
                        );
                    }
                    let (memory, durable): (Vec<_>, Vec<_>) =
                        list.checkpoints.iter().partition(|c| c.in_memory);
                    let steps = |found: Vec<&v1::CheckpointSummary>| found.iter().map(|c| c.step).collect();
                    return Event::CheckpointsFound {
                        steps: steps(durable),
                        in_memory: steps(memory),
                        damaged: !list.damaged.is_empty(),
                    };
                }
                Err(status) => tracing::error!(%status, "the checkpoint service refuses to list checkpoints"),
            }
            tokio::time::sleep(PAUSES.1).await;
        }
    }

    /// Calls until the service answers, well or with a refusal.
    async fn persist<T, F>(
        &mut self,
        what: &'static str,
        call: impl Fn(CheckpointServiceClient<Channel>) -> F,
    ) -> Result<T, Status>
    where
        F: Future<Output = Result<T, Status>>,
    {
        let mut pause = PAUSES.0;
        loop {
            let answer = match self.client() {
                Ok(client) => match tokio::time::timeout(CALL, call(client)).await {
                    Ok(answer) => answer,
                    Err(_) => Err(Status::deadline_exceeded(format!("no answer in {} s", CALL.as_secs()))),
                },
                Err(refused) => Err(refused),
            };
            match answer {
                Err(status) if may_pass(status.code()) => {
                    tracing::warn!(url = self.url, what, %status, ?pause, "checkpoint service away, trying again");
                    self.channel = None;
                }
                other => return other,
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }

    fn client(&mut self) -> Result<CheckpointServiceClient<Channel>, Status> {
        let channel = match &self.channel {
            Some(channel) => channel.clone(),
            None => {
                let dial = Dial::new(&self.url, self.identity.as_ref())
                    .map_err(|e| Status::unavailable(format!("`{}`: {e}", self.url)))?;
                dial.with(|e| e.connect_timeout(CONNECT).tcp_nodelay(true)).connect_lazy()
            }
        };
        self.channel = Some(channel.clone());
        Ok(CheckpointServiceClient::new(channel).max_decoding_message_size(MAX_MESSAGE_BYTES))
    }
}

/// Whether the same call may go well later: the service is away, its disk is full or ails, or it does not take our
/// certificate, which may be replaced while we run.
const fn may_pass(code: Code) -> bool {
    matches!(
        code,
        Code::Unavailable
            | Code::DeadlineExceeded
            | Code::ResourceExhausted
            | Code::Internal
            | Code::Unknown
            | Code::Cancelled
            | Code::PermissionDenied
            | Code::Unauthenticated
    )
}
