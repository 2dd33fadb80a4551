//! Talking to a coordinator.

use crate::arguments::{ServerArguments, SubmitArguments};
use crate::run_dir;
use anyhow::{Context, Result};
use mcl_config::Job;
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use mcl_proto::v1::{
    CancelJobRequest, DrainJobRequest, GetStatusRequest, GetStatusResponse, PauseJobRequest,
    ResumeJobRequest, SubmitJobRequest,
};
use std::process::ExitCode;
use std::time::Duration;
use tonic::transport::{Channel, Endpoint};

/// How long a coordinator may take to answer.
const ANSWER: Duration = Duration::from_secs(10);

/// A connection to a coordinator.
#[derive(Debug, Clone)]
pub(crate) struct Coordinator {
    url: String,
    inner: CoordinatorServiceClient<Channel>,
}

impl Coordinator {
    pub(crate) async fn connect(url: &str) -> Result<Self> {
        let refused = || format!("coordinator at {url}: is it running, and is this its address?");
        let endpoint = Endpoint::from_shared(url.to_owned())
            .map_err(|e| {
                crate::exit::Usage(format!("coordinator URL `{url}`: {e}; expected http://host:port"))
            })?
            .connect_timeout(ANSWER);
        let channel = endpoint.connect().await.with_context(refused)?;
        let inner =
            CoordinatorServiceClient::new(channel).max_decoding_message_size(mcl_proto::MAX_MESSAGE_BYTES);
        Ok(Self { url: url.to_owned(), inner })
    }

    fn failed(&self, what: &str, status: &tonic::Status) -> anyhow::Error {
        anyhow::anyhow!("{what} at {}: {}", self.url, status.message())
    }

    /// Hands over the job; steps that the run directory already holds.
    pub(crate) async fn submit(&mut self, run_id: &str, job: &Job) -> Result<u64> {
        let request = SubmitJobRequest { run_id: run_id.to_owned(), job_toml: job.to_toml()? };
        let answer = self
            .inner
            .submit_job(request)
            .await
            .map_err(|s| self.failed("job refused by the coordinator", &s))?;
        Ok(answer.into_inner().committed_steps)
    }

    pub(crate) async fn status(&mut self) -> Result<GetStatusResponse> {
        let answer = tokio::time::timeout(ANSWER, self.inner.get_status(GetStatusRequest {})).await;
        let answer = answer.with_context(|| format!("coordinator at {} does not answer", self.url))?;
        Ok(answer.map_err(|s| self.failed("status of the coordinator", &s))?.into_inner())
    }

    pub(crate) async fn drain(&mut self) -> Result<()> {
        self.tell(Wish::Drain).await
    }

    async fn tell(&mut self, wish: Wish) -> Result<()> {
        let inner = &mut self.inner;
        let told = match wish {
            Wish::Drain => inner.drain_job(DrainJobRequest {}).await.map(drop),
            Wish::Pause => inner.pause_job(PauseJobRequest {}).await.map(drop),
            Wish::Resume => inner.resume_job(ResumeJobRequest {}).await.map(drop),
            Wish::Cancel => inner.cancel_job(CancelJobRequest {}).await.map(drop),
        };
        told.map_err(|s| self.failed(wish.verb(), &s))
    }
}

/// What a person wants to become of the job.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum Wish {
    Drain,
    Pause,
    Resume,
    Cancel,
}

impl Wish {
    const fn verb(self) -> &'static str {
        match self {
            Self::Drain => "drain",
            Self::Pause => "pause",
            Self::Resume => "resume",
            Self::Cancel => "cancel",
        }
    }

    const fn answer(self) -> &'static str {
        match self {
            Self::Drain => "draining: the run stops after the step in flight and its checkpoint",
            Self::Pause => "pausing: the run holds after the step in flight and its checkpoint",
            Self::Resume => "the run goes on",
            Self::Cancel => "cancelled",
        }
    }
}

/// A small runtime for one conversation.
pub(crate) fn runtime() -> Result<tokio::runtime::Runtime> {
    Ok(tokio::runtime::Builder::new_multi_thread().worker_threads(2).enable_all().build()?)
}

/// The job of a file with its pictures' path absolute, so that daemons started elsewhere find them.
pub(crate) fn load_job(path: &std::path::Path, overrides: &[mcl_config::Override]) -> Result<Job> {
    let job = Job::load(path, overrides)?;
    let absolute = std::path::absolute(&job.data().source)?;
    let mut all = overrides.to_vec();
    all.push(mcl_config::Override {
        key: "data.source".to_owned(),
        value: format!("{:?}", absolute.display().to_string()),
    });
    Ok(Job::load(path, &all)?)
}

pub(crate) fn submit(a: &SubmitArguments) -> Result<ExitCode> {
    let job = load_job(&a.job, &a.overrides)?;
    let name = match &a.name {
        Some(name) => mcl_types::RunId::new(name.clone()).map_err(|e| crate::exit::Usage(e.to_string()))?,
        None => run_dir::run_id(&run_dir::default_for(&a.job))?,
    };
    runtime()?.block_on(async {
        let mut coordinator = Coordinator::connect(&a.server.coordinator).await?;
        let committed = coordinator.submit(name.as_str(), &job).await?;
        if a.server.json {
            println!("{}", serde_json::json!({ "run": name.as_str(), "committed_steps": committed }));
        } else {
            println!("submitted {name}; {committed} steps are already done");
        }
        Ok(ExitCode::SUCCESS)
    })
}

/// Tells a coordinator what is to become of its job.
pub(crate) fn tell(a: &ServerArguments, wish: Wish) -> Result<ExitCode> {
    runtime()?.block_on(async {
        Coordinator::connect(&a.coordinator).await?.tell(wish).await?;
        if a.json {
            println!("{}", serde_json::json!({ "told": wish.verb() }));
        } else {
            println!("{}", wish.answer());
        }
        Ok(ExitCode::SUCCESS)
    })
}
