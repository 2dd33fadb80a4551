//! Talking to a coordinator.

use crate::arguments::{CancelArguments, ServerArguments, SubmitArguments};
use crate::{initial, run_dir};
use anyhow::{Context, Result};
use mcl_config::Job;
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use mcl_proto::v1::{
    AwaitEndRequest, AwaitEndResponse, CancelJobRequest, DrainJobRequest, GetHistoryRequest,
    GetHistoryResponse, GetStatusRequest, GetStatusResponse, PauseJobRequest, ResumeJobRequest,
    SubmitJobRequest, SubmitJobResponse,
};
use mcl_terminal::say;
use mcl_transport::{Dial, Identity};
use mcl_types::{Digest, RunId, StoreLocation};
use std::path::Path;
use std::process::ExitCode;
use std::time::Duration;
use tonic::transport::Channel;

/// How long a coordinator may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection to a coordinator.
#[derive(Debug, Clone)]
pub(crate) struct Coordinator {
    url: String,
    identity: Option<Identity>,
    inner: CoordinatorServiceClient<Channel>,
}

impl Coordinator {
    /// As a command's arguments say.
    pub(crate) async fn of(server: &ServerArguments) -> Result<Self> {
        Self::connect(&server.coordinator, server.tls.identity()?).await
    }

    /// Over TLS where there is an identity.
    pub(crate) async fn connect(url: &str, identity: Option<Identity>) -> Result<Self> {
        let refused = || format!("coordinator at {url}: is it running, and is this its address?");
        let dial = Dial::new(url, identity.as_ref())
            .map_err(|e| crate::exit::Usage(format!("coordinator URL `{url}`: {e}")))?
            .with(|endpoint| endpoint.connect_timeout(ANSWER));
        let channel = dial.connect().await.with_context(refused)?;
        let inner =
            CoordinatorServiceClient::new(channel).max_decoding_message_size(mcl_proto::MAX_MESSAGE_BYTES);
        Ok(Self { url: url.to_owned(), identity, inner })
    }

    fn failed(&self, what: &str, status: &tonic::Status) -> anyhow::Error {
        let mut text = format!("{what} at {}: {}", self.url, status.message());
        // What a server says has no source; a broken connection has the transport's error as one.
        let mut source = std::error::Error::source(status);
        let broken = source.is_some();
        while let Some(cause) = source {
            let more = cause.to_string();
            if !text.contains(&more) {
                text = format!("{text}: {more}");
            }
            source = cause.source();
        }
        match (broken, &self.identity) {
            (true, None) => anyhow::anyhow!("{text} (if it speaks TLS, write https:// and give --tls)"),
            (true, Some(_)) => anyhow::anyhow!("{text} (does it trust the authority of this certificate?)"),
            (false, _) => anyhow::anyhow!(text),
        }
    }

    /// Hands over the job, to begin with `initial` where that is given; steps that stand already, and jobs that come
    /// before it.
    pub(crate) async fn submit(
        &mut self,
        run_id: &RunId,
        job: &Job,
        initial: Option<Digest>,
    ) -> Result<SubmitJobResponse> {
        let (run_id, job_toml) = (run_id.to_string(), job.to_toml()?);
        let initial_digest = initial.map(|d| d.to_string());
        let request = SubmitJobRequest { run_id, job_toml, initial_digest };
        let answer = self
            .inner
            .submit_job(request)
            .await
            .map_err(|s| self.failed("job refused by the coordinator", &s))?;
        Ok(answer.into_inner())
    }

    /// Stores the state that a run is to begin with, where one is given, among the coordinator's checkpoints; its
    /// digest.
    pub(crate) async fn store_initial(
        &mut self,
        from: Option<&StoreLocation>,
        run_id: &RunId,
        job: &Job,
        checkpoint: Option<&str>,
    ) -> Result<Option<Digest>> {
        let Some(from) = from else { return Ok(None) };
        let status = self.status().await?;
        let url = checkpoint.unwrap_or(&status.checkpoint_url);
        initial::store(from, run_id, job, url, self.identity.as_ref()).await.map(Some)
    }

    pub(crate) async fn status(&mut self) -> Result<GetStatusResponse> {
        let answer = tokio::time::timeout(ANSWER, self.inner.get_status(GetStatusRequest {})).await;
        let answer = answer.with_context(|| format!("coordinator at {} does not answer", self.url))?;
        Ok(cleaned(answer.map_err(|s| self.failed("status of the coordinator", &s))?.into_inner()))
    }

    /// How a run ended, once it has.
    pub(crate) async fn await_end(&mut self, run_id: String) -> Result<AwaitEndResponse> {
        let answer = self.inner.await_end(AwaitEndRequest { run_id }).await;
        Ok(answer.map_err(|s| self.failed("the end of the run", &s))?.into_inner())
    }

    /// How its run came to where it is; nothing where it is too old to tell.
    pub(crate) async fn history(&mut self, points: u32) -> Result<GetHistoryResponse> {
        let answer = tokio::time::timeout(ANSWER, self.inner.get_history(GetHistoryRequest { points })).await;
        match answer.with_context(|| format!("coordinator at {} does not answer", self.url))? {
            Ok(history) => Ok(history.into_inner()),
            Err(s) if s.code() == tonic::Code::Unimplemented => Ok(GetHistoryResponse::default()),
            Err(s) => Err(self.failed("history of the coordinator's run", &s)),
        }
    }

    pub(crate) async fn drain(&mut self) -> Result<()> {
        self.tell(Wish::Drain).await
    }

    async fn cancel(&mut self, run_id: Option<String>) -> Result<()> {
        let told = self.inner.cancel_job(CancelJobRequest { run_id }).await;
        told.map(drop).map_err(|s| self.failed("cancel", &s))
    }

    pub(crate) async fn tell(&mut self, wish: Wish) -> Result<()> {
        let inner = &mut self.inner;
        let told = match wish {
            Wish::Drain => inner.drain_job(DrainJobRequest {}).await.map(drop),
            Wish::Pause => inner.pause_job(PauseJobRequest {}).await.map(drop),
            Wish::Resume => inner.resume_job(ResumeJobRequest {}).await.map(drop),
        };
        told.map_err(|s| self.failed(wish.verb(), &s))
    }
}

/// Without what could steer a terminal: names and reasons come from peers.
fn cleaned(mut status: GetStatusResponse) -> GetStatusResponse {
    let clean = |text: &mut String| *text = mcl_watch::clean(text);
    [
        &mut status.run_id,
        &mut status.phase,
        &mut status.reason,
        &mut status.build,
        &mut status.checkpoint_url,
    ]
    .into_iter()
    .for_each(clean);
    status
        .workers
        .iter_mut()
        .for_each(|w| [&mut w.worker, &mut w.state, &mut w.advertise].into_iter().for_each(clean));
    status.ranks.iter_mut().for_each(|r| [&mut r.worker, &mut r.device].into_iter().for_each(clean));
    status.queue.iter_mut().for_each(|q| clean(&mut q.run_id));
    status.past_runs.iter_mut().for_each(|p| [&mut p.run_id, &mut p.outcome].into_iter().for_each(clean));
    status
}

/// What a person wants to become of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Drain,
    Pause,
    Resume,
}

impl Wish {
    const fn verb(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Pause => "pause",
            Self::Resume => "resume",
        }
    }

    const fn answer(self) -> &'static str {
        match self {
            Self::Drain => "draining: the run stops after the step in flight and its checkpoint",
            Self::Pause => "pausing: the run holds after the step in flight and its checkpoint",
            Self::Resume => "the run goes on",
        }
    }
}

/// A small runtime for one conversation.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// The job of a file with the paths of all its pictures and their cache absolute, so that daemons started elsewhere find them.
pub(crate) fn load_job(path: &Path, overrides: &[mcl_config::Override]) -> Result<Job> {
    let job = Job::load(path, overrides)?;
    let (data, evaluation) = (job.data(), job.evaluation());
    let places = [
        ("data.source", data.source.folder()),
        ("data.cache_dir", data.cache_dir.as_deref()),
        ("evaluation.train", evaluation.train.as_deref()),
        ("evaluation.test", evaluation.test.as_deref()),
        ("evaluation.scenes", evaluation.scenes.as_deref()),
    ];
    let mut all = overrides.to_vec();
    for (key, place) in places {
        let Some(place) = place else { continue };
        let absolute = std::path::absolute(place)?;
        let value = format!("{:?}", absolute.display().to_string());
        all.push(mcl_config::Override { key: key.to_owned(), value });
    }
    Ok(Job::load(path, &all)?)
}

pub(crate) fn submit(a: &SubmitArguments) -> Result<ExitCode> {
    let job = load_job(&a.job, &a.overrides)?;
    let name = match &a.name {
        Some(name) => RunId::new(name.clone()).map_err(|e| crate::exit::Usage(e.to_string()))?,
        None => run_dir::run_id(&run_dir::default_for(&a.job))?,
    };
    runtime()?.block_on(async {
        let mut coordinator = Coordinator::of(&a.server).await?;
        let (from, checkpoint) = (a.from.as_ref(), a.checkpoint.as_deref());
        let initial = coordinator.store_initial(from, &name, &job, checkpoint).await?;
        let taken = coordinator.submit(&name, &job, initial).await?;
        let (committed, before) = (taken.committed_steps, taken.jobs_before);
        if a.server.json {
            let initial = initial.map(|d| d.to_string());
            say!(
                "{}",
                serde_json::json!({
                    "run": name.as_str(), "committed_steps": committed, "jobs_before": before, "initial": initial,
                })
            )?;
        } else if before > 0 {
            say!("{name} waits: {before} before it; {committed} steps are already done")?;
        } else {
            say!("submitted {name}; {committed} steps are already done")?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Stops a job, or takes it out of the queue.
pub(crate) fn cancel(a: &CancelArguments) -> Result<ExitCode> {
    runtime()?.block_on(async {
        Coordinator::of(&a.server).await?.cancel(a.run.clone()).await?;
        if a.server.json {
            say!("{}", serde_json::json!({ "told": "cancel", "run": a.run }))?;
        } else {
            say!("cancelled")?;
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Tells a coordinator what is to become of its job.
pub(crate) fn tell(a: &ServerArguments, wish: Wish) -> Result<ExitCode> {
    runtime()?.block_on(async {
        Coordinator::of(a).await?.tell(wish).await?;
        if a.json {
            say!("{}", serde_json::json!({ "told": wish.verb() }))?;
        } else {
            say!("{}", wish.answer())?;
        }
        Ok(ExitCode::SUCCESS)
    })
}
