//! The five calls: parse, check the token, hand over to the store, say what went wrong.
//!
//! Invariants: whatever changes the store runs in a task of its own that holds the token's pass, so that a
//! client that hangs up can neither cut it in two nor let it outlive its token; an upload that breaks off is
//! ended in the store before its task is over. Left out: transport.

use crate::fence::{Fence, FenceError, Pass};
use crate::tiers::Tiers;
use mcl_checkpoint_core::{CommitSpec, SliceReader, SliceSpec, SliceUpload, StoreError};
use mcl_failpoint::Failpoint;
use mcl_proto::v1::put_slice_request::Part;
use mcl_proto::{CHUNK_BYTES, WireError, v1};
use mcl_types::{Digest, FencingToken, Retention, RunId, Step, Term, Tier};
use std::io;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::{Duration, SystemTime, UNIX_EPOCH};
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status, Streaming};

/// Longest meta of a checkpoint; a cursor and some digests take a kilobyte.
const MAX_META_BYTES: usize = 1 << 20;
/// Chunks read ahead of a client that downloads.
const READ_AHEAD: usize = 2;

#[derive(Debug, Clone)]
pub(crate) struct Service {
    tiers: Tiers,
    fence: Arc<Fence>,
    stall: Duration,
    closing: Closing,
}

/// Whether uploads under way are to be given up. Each of them listens while it is under way, so that the sender knows
/// when the last one is over.
pub(crate) type Closing = Arc<watch::Sender<bool>>;

impl Service {
    pub fn new(tiers: Tiers, fence: Fence, stall: Duration, closing: Closing) -> Self {
        Self { tiers, fence: Arc::new(fence), stall, closing }
    }

    async fn pass(&self, run: &RunId, token: FencingToken) -> Result<Pass, Status> {
        self.fence.admit(run, token).await.map_err(|e| fence_status(&e))
    }

    /// The same, where no other service over the same store has seen a higher token either.
    async fn confirmed_pass(&self, run: &RunId, token: FencingToken) -> Result<Pass, Status> {
        let pass = self.pass(run, token).await?;
        self.fence.confirm(run, token).await.map_err(|e| fence_status(&e))?;
        Ok(pass)
    }

    /// Takes one slice in. What it is cut off by, the client's end above all, it hears of between two parts: none is
    /// cut off half-way, which a store could still take in after the upload was ended.
    async fn take_slice(
        self,
        token: FencingToken,
        spec: SliceSpec,
        tier: Tier,
        mut stream: Streaming<v1::PutSliceRequest>,
    ) -> Result<(), Status> {
        let mut closing = self.closing.subscribe();
        let run = spec.run.clone();
        let mut upload = self.tiers.begin_slice(spec, tier).await.map_err(|e| store_status(&e))?;
        let passed = match receive(&mut upload.slice, &mut stream, self.stall, &mut closing).await {
            Ok(hash) => self.confirmed_pass(&run, token).await.map(|pass| (hash, pass)),
            Err(status) => Err(status),
        };
        match passed {
            Ok((hash, _pass)) => upload.finish(hash).await.map_err(|e| store_status(&e)),
            Err(status) => {
                upload.abort().await;
                Err(status)
            }
        }
    }
}

/// Why a commit did not happen.
enum Refused {
    Fence(FenceError),
    Store(StoreError),
}

impl From<StoreError> for Refused {
    fn from(error: StoreError) -> Self {
        Self::Store(error)
    }
}

impl Refused {
    fn status(&self) -> Status {
        match self {
            Self::Fence(error) => fence_status(error),
            Self::Store(error) => store_status(error),
        }
    }
}

/// Feeds an upload from the client; nothing is staged yet. Gives the hash that the client came to.
async fn receive(
    upload: &mut SliceUpload,
    stream: &mut Streaming<v1::PutSliceRequest>,
    stall: Duration,
    closing: &mut watch::Receiver<bool>,
) -> Result<Digest, Status> {
    loop {
        let part = tokio::select! {
            // First: a client that sends without a pause is to hear of it too.
            biased;
            _ = closing.wait_for(|closing| *closing) => {
                return Err(Status::unavailable("the service stops; nothing was staged, send it again"));
            }
            part = next_part(stream, stall) => part?,
        };
        match part {
            Some(Part::Chunk(chunk)) => upload.write(chunk).await.map_err(|e| store_status(&e))?,
            Some(Part::End(end)) => {
                return mcl_proto::digest("hash", &end.hash).map_err(|e| wire_status(&e));
            }
            Some(Part::Header(_)) => {
                return Err(Status::invalid_argument("a second header; expected chunks after the first"));
            }
            None => return Err(store_status(&upload.wrong_length())),
        }
    }
}

/// The next part of an upload; nothing at its end.
async fn next_part(
    stream: &mut Streaming<v1::PutSliceRequest>,
    stall: Duration,
) -> Result<Option<Part>, Status> {
    let message = tokio::time::timeout(stall, stream.message()).await.map_err(|_| {
        Status::deadline_exceeded(format!(
            "the upload sent nothing for {} s; nothing was staged, send it again",
            stall.as_secs()
        ))
    })??;
    let Some(message) = message else { return Ok(None) };
    let missing = || wire_status(&WireError::Missing { field: "part" });
    message.part.map(Some).ok_or_else(missing)
}

fn slice_spec(header: v1::SliceHeader) -> Result<(FencingToken, SliceSpec, Tier), WireError> {
    let token = mcl_proto::token(header.token)?;
    let tier = mcl_proto::tier(header.in_memory);
    let spec = SliceSpec {
        run: mcl_proto::run_id(&header.run_id)?,
        step: Step::new(header.step),
        slice: header.slice,
        slices: header.slices,
        size: header.size,
    };
    Ok((token, spec, tier))
}

fn commit_spec(request: &v1::CommitCheckpointRequest) -> Result<CommitSpec, WireError> {
    let malformed = |reason| WireError::Malformed { field: "meta_json", reason };
    let text = &request.meta_json;
    if text.len() > MAX_META_BYTES {
        return Err(malformed(format!("{} bytes, expected at most {MAX_META_BYTES}", text.len())));
    }
    let meta = match text.as_str() {
        "" => serde_json::Value::Null,
        text => serde_json::from_str(text).map_err(|e| malformed(format!("not JSON: {e}")))?,
    };
    // A clock before 1970 is no reason to lose a checkpoint.
    let created = SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |d| d.as_secs());
    let (run, step) = (mcl_proto::run_id(&request.run_id)?, Step::new(request.step));
    Ok(CommitSpec { run, step, slices: request.slices, created, meta })
}

#[tonic::async_trait]
impl v1::checkpoint_service_server::CheckpointService for Service {
    async fn announce_term(
        &self,
        request: Request<v1::AnnounceTermRequest>,
    ) -> Result<Response<v1::AnnounceTermResponse>, Status> {
        let request = request.into_inner();
        let run = mcl_proto::run_id(&request.run_id).map_err(|e| wire_status(&e))?;
        let (term, incarnation) = (Term::new(request.term), NonZeroU64::new(request.incarnation));
        self.fence.announce(&run, term, incarnation).await.map_err(|e| fence_status(&e))?;
        mcl_failpoint::pass(Failpoint::BeforeTermAnswer);
        Ok(Response::new(v1::AnnounceTermResponse {}))
    }

    async fn put_slice(
        &self,
        request: Request<Streaming<v1::PutSliceRequest>>,
    ) -> Result<Response<v1::PutSliceResponse>, Status> {
        let mut stream = request.into_inner();
        let Some(Part::Header(header)) = next_part(&mut stream, self.stall).await? else {
            return Err(Status::invalid_argument("the upload does not begin with a header"));
        };
        let (token, spec, tier) = slice_spec(header).map_err(|e| wire_status(&e))?;
        // Early, to spare the bytes; what counts is the pass below.
        drop(self.pass(&spec.run, token).await?);
        let taken = tokio::spawn(self.clone().take_slice(token, spec.clone(), tier, stream));
        taken.await.map_err(join_status)??;
        tracing::debug!(run = %spec.run, step = spec.step.get(), slice = spec.slice, bytes = spec.size, "slice staged");
        mcl_failpoint::pass(Failpoint::BeforeSliceAnswer);
        Ok(Response::new(v1::PutSliceResponse {}))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        let request = request.into_inner();
        let token = mcl_proto::token(request.token).map_err(|e| wire_status(&e))?;
        let spec = commit_spec(&request).map_err(|e| wire_status(&e))?;
        let pass = self.pass(&spec.run, token).await?;
        let (fence, run) = (Arc::clone(&self.fence), spec.run.clone());
        let leave = async move { fence.confirm(&run, token).await.map_err(Refused::Fence) };
        let (tiers, tier) = (self.tiers.clone(), mcl_proto::tier(request.in_memory));
        let retention = Retention { keep: request.keep, keep_every: request.keep_every };
        let commit = async move {
            let manifest = tiers.commit(&spec, tier, retention, leave).await;
            drop(pass);
            manifest
        };
        let manifest = tokio::spawn(commit).await.map_err(join_status)?.map_err(|e| e.status())?;
        mcl_failpoint::pass(Failpoint::BeforeCommitAnswer);
        Ok(Response::new(v1::CommitCheckpointResponse { digest: manifest.state_digest.to_string() }))
    }

    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let request = request.into_inner();
        let run = mcl_proto::run_id(&request.run_id).map_err(|e| wire_status(&e))?;
        // Whoever asks may go on from the newest one: that one is looked at byte by byte.
        let at_most = Step::new(request.at_most.unwrap_or(u64::MAX));
        let listing = self.tiers.list(&run, at_most).await.map_err(|e| store_status(&e))?;
        let summary = |(entry, tier): (mcl_checkpoint_core::InventoryEntry, Tier)| v1::CheckpointSummary {
            in_memory: tier == Tier::Memory,
            step: entry.manifest.step.get(),
            digest: entry.manifest.state_digest.to_string(),
            bytes: entry.manifest.file_bytes(),
            slices: entry.manifest.slice_count(),
        };
        let damaged = |(step, damage): (Step, mcl_checkpoint_core::Damage)| {
            tracing::warn!(%run, step = step.get(), %damage, "checkpoint is damaged");
            v1::DamagedCheckpoint { step: step.get(), reason: damage.to_string() }
        };
        Ok(Response::new(v1::ListCheckpointsResponse {
            checkpoints: listing.visible.into_iter().map(summary).collect(),
            damaged: listing.damaged.into_iter().map(damaged).collect(),
        }))
    }

    async fn get_manifest(
        &self,
        request: Request<v1::GetManifestRequest>,
    ) -> Result<Response<v1::GetManifestResponse>, Status> {
        let request = request.into_inner();
        let run = mcl_proto::run_id(&request.run_id).map_err(|e| wire_status(&e))?;
        let text = self.tiers.manifest_text(&run, Step::new(request.step)).await;
        let manifest_json = text.map_err(|e| store_status(&e))?;
        Ok(Response::new(v1::GetManifestResponse { manifest_json }))
    }

    type GetSliceStream = ReceiverStream<Result<v1::GetSliceResponse, Status>>;

    async fn get_slice(
        &self,
        request: Request<v1::GetSliceRequest>,
    ) -> Result<Response<Self::GetSliceStream>, Status> {
        let request = request.into_inner();
        let run = mcl_proto::run_id(&request.run_id).map_err(|e| wire_status(&e))?;
        let step = Step::new(request.step);
        let reader = self.tiers.slice_reader(&run, step, request.slice, CHUNK_BYTES).await;
        let reader = reader.map_err(|e| store_status(&e))?;
        let (sender, receiver) = mpsc::channel(READ_AHEAD);
        tokio::spawn(send_slice(reader, sender));
        Ok(Response::new(ReceiverStream::new(receiver)))
    }
}

/// Ends when the slice does, at the first fault, or when the client hangs up.
async fn send_slice(mut reader: SliceReader, sender: mpsc::Sender<Result<v1::GetSliceResponse, Status>>) {
    loop {
        let message = match reader.next().await {
            Ok(None) => return,
            Ok(Some(chunk)) => Ok(v1::GetSliceResponse { chunk }),
            Err(error) => {
                tracing::warn!(%error, "download broken off");
                Err(store_status(&error))
            }
        };
        let last = message.is_err();
        if sender.send(message).await.is_err() || last {
            return;
        }
    }
}

fn wire_status(error: &WireError) -> Status {
    Status::invalid_argument(error.to_string())
}

fn join_status(error: tokio::task::JoinError) -> Status {
    Status::internal(format!("the service's own task failed: {error}"))
}

fn fence_status(error: &FenceError) -> Status {
    tracing::warn!(%error, "refused");
    match error {
        FenceError::Stale { .. } | FenceError::NameTaken { .. } => {
            Status::failed_precondition(error.to_string())
        }
        FenceError::Store { .. } | FenceError::Contended { .. } | FenceError::Parse { .. } => {
            Status::internal(error.to_string())
        }
    }
}

/// The codes that [`crate::ClientError`] is made from again.
fn store_status(error: &StoreError) -> Status {
    let message = error.to_string();
    match error {
        StoreError::NoCheckpoint { .. } => Status::not_found(message),
        StoreError::Damaged { .. } => Status::data_loss(message),
        StoreError::Conflict { .. } => Status::already_exists(message),
        StoreError::NotStaged { .. }
        | StoreError::BadStage { .. }
        | StoreError::Length { .. }
        | StoreError::Hash { .. } => Status::aborted(message),
        StoreError::SliceNumber { .. } | StoreError::TooLarge { .. } | StoreError::Manifest { .. } => {
            Status::invalid_argument(message)
        }
        StoreError::Write { source, .. } if disk_full(source) => Status::resource_exhausted(message),
        StoreError::Root { .. }
        | StoreError::Open { .. }
        | StoreError::Write { .. }
        | StoreError::Unreadable { .. }
        | StoreError::Read { .. } => Status::internal(message),
    }
}

fn disk_full(error: &(dyn std::error::Error + 'static)) -> bool {
    let here = error.downcast_ref::<io::Error>().map(io::Error::kind);
    matches!(here, Some(io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded))
        || error.source().is_some_and(disk_full)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_told_from_a_broken_one() {
        let write = |kind: io::ErrorKind| {
            let source = Box::new(io::Error::from(kind));
            let source = object_store::Error::Generic { store: "test", source };
            StoreError::Write { path: "p".into(), advice: "do this", source }
        };
        let full = store_status(&write(io::ErrorKind::StorageFull));
        assert_eq!(full.code(), tonic::Code::ResourceExhausted);
        assert!(full.message().contains("do this"), "{full}");
        assert_eq!(store_status(&write(io::ErrorKind::BrokenPipe)).code(), tonic::Code::Internal);
        let client = crate::ClientError::from_status("http://h:1", "PutSlice", &full);
        assert!(matches!(client, crate::ClientError::Full { .. }) && !client.is_final());
    }
}
