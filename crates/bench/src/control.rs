//! What a person would ask of the coordinator: the job, and how it goes.

use crate::BenchError;
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use mcl_proto::v1::{GetStatusRequest, GetStatusResponse, SubmitJobRequest};
use mcl_transport::{Dial, Identity};
use std::time::Duration;
use tonic::transport::Channel;

/// How long an answer may take: a busy coordinator is what we are here for.
const ANSWER: Duration = Duration::from_secs(30);

/// A connection of its own, beside the agents'.
#[derive(Debug)]
pub(crate) struct Control {
    url: String,
    client: CoordinatorServiceClient<Channel>,
}

impl Control {
    pub(crate) async fn connect(url: &str, identity: Option<&Identity>) -> Result<Self, BenchError> {
        let failed = |e: &dyn std::fmt::Display| failure("no connection", url, e);
        let dial = Dial::new(url, identity).map_err(|e| failed(&e))?;
        let dial = dial.with(|endpoint| endpoint.connect_timeout(ANSWER).timeout(ANSWER));
        let channel = dial.connect().await.map_err(|e| failed(&e))?;
        let client =
            CoordinatorServiceClient::new(channel).max_decoding_message_size(mcl_proto::MAX_MESSAGE_BYTES);
        Ok(Self { url: url.to_owned(), client })
    }

    pub(crate) async fn submit(&mut self, run_id: String, job_toml: String) -> Result<(), BenchError> {
        let request = SubmitJobRequest { run_id, job_toml, initial_digest: None };
        let answer = self.client.submit_job(request).await;
        answer.map(drop).map_err(|s| failure("the job was refused", &self.url, &s.message()))
    }

    pub(crate) async fn status(&mut self) -> Result<GetStatusResponse, BenchError> {
        let answer = self.client.get_status(GetStatusRequest {}).await;
        answer.map(tonic::Response::into_inner).map_err(|s| failure("no status", &self.url, &s.message()))
    }
}

fn failure(what: &'static str, url: &str, reason: &dyn std::fmt::Display) -> BenchError {
    BenchError::Coordinator { what, url: url.to_owned(), reason: reason.to_string() }
}
