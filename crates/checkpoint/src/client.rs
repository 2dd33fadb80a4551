//! The client: every call with a deadline, retried where trying again can help.
//!
//! All calls of the service may be repeated without harm, so a call whose connection breaks is made again
//! until the patience for it is spent. Invariant: a slice handed out has the size and the hash its
//! manifest names. Left out: what slices contain.

use crate::client_error::{ClientError, describe, is_transport};
use bytes::{Bytes, BytesMut};
use mcl_checkpoint_core::{Manifest, SliceEntry};
use mcl_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use mcl_proto::{CHUNK_BYTES, MAX_MESSAGE_BYTES, v1};
use mcl_transport::{Dial, Identity};
use mcl_types::{Digest, FencingToken, Retention, RunId, Step, Term, Tier};
use std::future::Future;
use std::time::{Duration, Instant};
use tonic::transport::Channel;
use tonic::{Code, Status};

/// One attempt to open a connection.
const CONNECT: Duration = Duration::from_secs(5);
/// Pauses between tries double from the first to the second of these.
const PAUSES: (Duration, Duration) = (Duration::from_millis(50), Duration::from_secs(2));
/// The slowest network that a transfer still has time on, in bytes a second.
const SLOWEST: u64 = 1 << 20;

/// How long calls may take, tries and pauses together.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Patience {
    /// A call that moves no slice.
    pub call: Duration,
    /// A commit: the service reads every byte of the state.
    pub commit: Duration,
    /// A slice, besides a second for each MiB.
    pub transfer: Duration,
}

impl Default for Patience {
    fn default() -> Self {
        Self {
            call: Duration::from_secs(30),
            commit: Duration::from_secs(600),
            transfer: Duration::from_secs(60),
        }
    }
}

/// A visible checkpoint.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct CheckpointSummary {
    /// Optimiser steps applied.
    pub step: Step,
    /// Digest of the whole state.
    pub digest: Digest,
    /// Bytes of all slices.
    pub bytes: u64,
    /// How many slices it has.
    pub slices: u32,
    /// Where it is kept.
    pub tier: Tier,
}

/// A checkpoint being written.
#[derive(Debug, Clone, Copy)]
pub struct Draft<'a> {
    /// Under whose token.
    pub token: FencingToken,
    /// Whose state it is.
    pub run: &'a RunId,
    /// Optimiser steps applied.
    pub step: Step,
    /// How many slices it has.
    pub slices: u32,
    /// Where it is to be kept.
    pub tier: Tier,
}

/// A checkpoint not to be trusted.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct DamagedCheckpoint {
    /// Its step.
    pub step: Step,
    /// What is wrong with it.
    pub reason: String,
}

/// What a run has, oldest first.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct CheckpointList {
    /// May be read; of the newest every byte was verified for this answer.
    pub visible: Vec<CheckpointSummary>,
    /// There, and not to be trusted.
    pub damaged: Vec<DamagedCheckpoint>,
}

impl CheckpointList {
    /// The one to go on from.
    pub fn newest(&self) -> Option<&CheckpointSummary> {
        self.visible.last()
    }
}

/// A client of one checkpoint service. Cheap to clone.
#[derive(Debug, Clone)]
pub struct CheckpointClient {
    url: String,
    inner: CheckpointServiceClient<Channel>,
    patience: Patience,
}

impl CheckpointClient {
    /// A client that connects with its first call, and again whenever it has to; over TLS where it has an identity.
    ///
    /// # Errors
    /// When the address does not parse, or does not go with the identity.
    pub fn lazy(url: &str, identity: Option<&Identity>) -> Result<Self, ClientError> {
        let dial = dial(url, identity)?.with(|endpoint| {
            endpoint
                .connect_timeout(CONNECT)
                .tcp_nodelay(true)
                .initial_stream_window_size(4 << 20)
                .initial_connection_window_size(4 << 20)
                // A service whose machine vanished is noticed while a call waits for it.
                .http2_keep_alive_interval(Duration::from_secs(10))
                .keep_alive_timeout(Duration::from_secs(10))
        });
        let inner = CheckpointServiceClient::new(dial.connect_lazy())
            .max_decoding_message_size(MAX_MESSAGE_BYTES)
            .max_encoding_message_size(MAX_MESSAGE_BYTES);
        Ok(Self { url: url.to_owned(), inner, patience: Patience::default() })
    }

    /// A client that has reached the service, trying for `wait`.
    ///
    /// # Errors
    /// When the address does not parse or nobody answers there in time.
    pub async fn connect(
        url: &str,
        identity: Option<&Identity>,
        wait: Duration,
    ) -> Result<Self, ClientError> {
        let client = Self::lazy(url, identity)?;
        let dial = dial(url, identity)?.with(|endpoint| endpoint.connect_timeout(CONNECT));
        let health = tonic_health::pb::health_client::HealthClient::new(dial.connect_lazy());
        let service = tonic_health::pb::HealthCheckRequest { service: String::new() };
        let check = || {
            let (mut health, service) = (health.clone(), service.clone());
            async move { health.check(service).await }
        };
        client.persist("Connect", wait, check).await?;
        Ok(client)
    }

    /// The same client with other patience.
    #[must_use]
    pub fn with_patience(self, patience: Patience) -> Self {
        Self { patience, ..self }
    }

    /// The service's address.
    pub fn url(&self) -> &str {
        &self.url
    }

    /// A coordinator's first word for a run: terms below are refused from now on, and so is whoever says another
    /// `incarnation`: another run of the same name. 0: it is not told.
    ///
    /// # Errors
    /// [`ClientError::Fenced`] when a higher term is known there, or the name is another run's.
    pub async fn announce_term(&self, run: &RunId, term: Term, incarnation: u64) -> Result<(), ClientError> {
        let request = v1::AnnounceTermRequest { run_id: run.to_string(), term: term.get(), incarnation };
        let call = || {
            let (mut inner, request) = (self.inner.clone(), request.clone());
            async move { inner.announce_term(request).await }
        };
        self.persist("AnnounceTerm", self.patience.call, call).await.map(drop)
    }

    /// Stages one slice of a state; it is stored, durably unless the tier is memory, and not yet visible when this
    /// returns.
    ///
    /// # Errors
    /// [`ClientError::Fenced`] for a stale token, [`ClientError::Full`] for a full disk, and the rest.
    pub async fn put_slice(&self, draft: Draft<'_>, slice: u32, bytes: Bytes) -> Result<(), ClientError> {
        let header = v1::SliceHeader {
            token: Some(draft.token.into()),
            run_id: draft.run.to_string(),
            step: draft.step.get(),
            slice,
            slices: draft.slices,
            size: bytes.len() as u64,
            in_memory: draft.tier == Tier::Memory,
        };
        let call = || {
            let mut inner = self.inner.clone();
            let upload = tokio_stream::iter(parts(header.clone(), bytes.clone()));
            async move { inner.put_slice(upload).await }
        };
        self.persist("PutSlice", self.transfer_time(bytes.len() as u64), call).await.map(drop)
    }

    /// Makes the staged slices of a step one visible checkpoint; gives the state's digest. Older
    /// checkpoints stay or go by `retention`.
    ///
    /// # Errors
    /// [`ClientError::NotStaged`] when a slice is missing, [`ClientError::Conflict`] when the step is
    /// visible with other content, [`ClientError::Fenced`] for a stale token, and the rest.
    pub async fn commit(
        &self,
        draft: Draft<'_>,
        meta_json: &str,
        retention: Retention,
    ) -> Result<Digest, ClientError> {
        const CALL: &str = "CommitCheckpoint";
        let request = v1::CommitCheckpointRequest {
            token: Some(draft.token.into()),
            run_id: draft.run.to_string(),
            step: draft.step.get(),
            slices: draft.slices,
            meta_json: meta_json.to_owned(),
            keep: retention.keep,
            keep_every: retention.keep_every,
            in_memory: draft.tier == Tier::Memory,
        };
        let call = || {
            let (mut inner, request) = (self.inner.clone(), request.clone());
            async move { inner.commit_checkpoint(request).await }
        };
        let answer = self.persist(CALL, self.patience.commit, call).await?;
        mcl_proto::digest("digest", &answer.digest).map_err(|e| self.nonsense(CALL, e.to_string()))
    }

    /// What a run has.
    ///
    /// # Errors
    /// When the service cannot be reached or cannot list.
    pub async fn list(&self, run: &RunId) -> Result<CheckpointList, ClientError> {
        const CALL: &str = "ListCheckpoints";
        let request = v1::ListCheckpointsRequest { run_id: run.to_string(), at_most: None };
        let call = || {
            let (mut inner, request) = (self.inner.clone(), request.clone());
            async move { inner.list_checkpoints(request).await }
        };
        // The service verifies the newest: as long as a commit.
        let answer = self.persist(CALL, self.patience.commit, call).await?;
        let mut list = CheckpointList::default();
        for found in answer.checkpoints {
            let digest = mcl_proto::digest("digest", &found.digest);
            let digest = digest.map_err(|e| self.nonsense(CALL, e.to_string()))?;
            let (step, bytes, slices) = (Step::new(found.step), found.bytes, found.slices);
            let tier = mcl_proto::tier(found.in_memory);
            list.visible.push(CheckpointSummary { step, digest, bytes, slices, tier });
        }
        let damaged =
            |d: v1::DamagedCheckpoint| DamagedCheckpoint { step: Step::new(d.step), reason: d.reason };
        list.damaged = answer.damaged.into_iter().map(damaged).collect();
        Ok(list)
    }

    /// A visible checkpoint's manifest, its seal checked here too.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] when there is none, [`ClientError::Damaged`] when it is not to be trusted.
    pub async fn manifest(&self, run: &RunId, step: Step) -> Result<Manifest, ClientError> {
        const CALL: &str = "GetManifest";
        let request = v1::GetManifestRequest { run_id: run.to_string(), step: step.get() };
        let call = || {
            let (mut inner, request) = (self.inner.clone(), request.clone());
            async move { inner.get_manifest(request).await }
        };
        let answer = self.persist(CALL, self.patience.call, call).await?;
        let manifest = Manifest::parse(answer.manifest_json.as_bytes());
        let manifest = manifest.map_err(|e| self.nonsense(CALL, e.to_string()))?;
        if (&manifest.run_id, manifest.step) != (run, step) {
            let reason =
                format!("asked for {step} of `{run}`, got {} of `{}`", manifest.step, manifest.run_id);
            return Err(self.nonsense(CALL, reason));
        }
        Ok(manifest)
    }

    /// One slice of a visible checkpoint, checked against `entry` of its manifest.
    ///
    /// # Errors
    /// [`ClientError::NotFound`] when it is not there, [`ClientError::Damaged`] when its bytes are not what
    /// the manifest names.
    pub async fn get_slice(
        &self,
        run: &RunId,
        step: Step,
        slice: u32,
        entry: &SliceEntry,
    ) -> Result<Bytes, ClientError> {
        const CALL: &str = "GetSlice";
        let request = v1::GetSliceRequest { run_id: run.to_string(), step: step.get(), slice };
        let call = || {
            let (inner, request, entry) = (self.inner.clone(), request.clone(), entry.clone());
            download(inner, request, entry)
        };
        self.persist(CALL, self.transfer_time(entry.size), call).await
    }

    fn transfer_time(&self, bytes: u64) -> Duration {
        self.patience.transfer.saturating_add(Duration::from_secs(bytes / SLOWEST))
    }

    fn nonsense(&self, call: &'static str, reason: String) -> ClientError {
        ClientError::Answer { url: self.url.clone(), call, reason }
    }

    /// Calls until there is an answer that is final or the time is up.
    async fn persist<T, F>(
        &self,
        call: &'static str,
        patience: Duration,
        mut attempt: impl FnMut() -> F,
    ) -> Result<T, ClientError>
    where
        F: Future<Output = Result<tonic::Response<T>, Status>>,
    {
        let started = Instant::now();
        let mut pause = PAUSES.0;
        let mut last = None;
        loop {
            let left = patience.saturating_sub(started.elapsed());
            let unreachable = |reason: Option<String>| ClientError::Unreachable {
                url: self.url.clone(),
                call,
                waited: started.elapsed(),
                reason: reason.unwrap_or_else(|| "no answer".to_owned()),
            };
            match tokio::time::timeout(left, attempt()).await {
                Ok(Ok(response)) => return Ok(response.into_inner()),
                Err(_) => return Err(unreachable(last)),
                // The service gave up on a stalled upload: as good as a broken connection.
                Ok(Err(status)) if is_transport(&status) || status.code() == Code::DeadlineExceeded => {
                    tracing::debug!(url = self.url, call, error = describe(&status), "trying again");
                    last = Some(describe(&status));
                }
                Ok(Err(status)) => return Err(ClientError::from_status(&self.url, call, &status)),
            }
            if started.elapsed() + pause >= patience {
                return Err(unreachable(last));
            }
            tokio::time::sleep(pause).await;
            pause = (pause * 2).min(PAUSES.1);
        }
    }
}

/// The way to a service's address, which has to be written out.
fn dial(url: &str, identity: Option<&Identity>) -> Result<Dial, ClientError> {
    let bad = |reason: String| ClientError::Url { url: url.to_owned(), reason };
    if !url.contains("://") {
        return Err(bad("it does not begin with http:// or https://".to_owned()));
    }
    let dial = Dial::new(url, identity).map_err(|e| bad(e.to_string()))?;
    if dial.uri().port_u16().is_none() {
        return Err(bad("it names no port".to_owned()));
    }
    Ok(dial)
}

/// One try at a slice.
async fn download(
    mut inner: CheckpointServiceClient<Channel>,
    request: v1::GetSliceRequest,
    entry: SliceEntry,
) -> Result<tonic::Response<Bytes>, Status> {
    let mut stream = inner.get_slice(request).await?.into_inner();
    // Grows with what really comes, never beyond what was announced.
    let mut bytes = BytesMut::new();
    while let Some(message) = stream.message().await? {
        if (bytes.len() + message.chunk.len()) as u64 > entry.size {
            return Err(Status::data_loss(format!("more than {} bytes came", entry.size)));
        }
        bytes.extend_from_slice(&message.chunk);
    }
    let bytes = bytes.freeze();
    let found = Digest::of(&bytes);
    if found == entry.hash {
        return Ok(tonic::Response::new(bytes));
    }
    let SliceEntry { size, hash, .. } = entry;
    Err(Status::data_loss(format!(
        "{} bytes came that hash to {found}, expected {size} and {hash}",
        bytes.len()
    )))
}

/// A slice as the messages of one upload, hashed as it goes.
fn parts(header: v1::SliceHeader, mut bytes: Bytes) -> impl Iterator<Item = v1::PutSliceRequest> {
    use v1::put_slice_request::Part;
    let mut hasher = Some(blake3::Hasher::new());
    let rest = std::iter::from_fn(move || {
        let next = bytes.len().min(CHUNK_BYTES);
        if next == 0 {
            let hash = hasher.take()?.finalize().to_hex().to_string();
            return Some(Part::End(v1::SliceEnd { hash }));
        }
        let chunk = bytes.split_to(next);
        hasher.as_mut()?.update(&chunk);
        Some(Part::Chunk(chunk))
    });
    std::iter::once(Part::Header(header)).chain(rest).map(|part| v1::PutSliceRequest { part: Some(part) })
}
