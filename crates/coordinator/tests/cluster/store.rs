//! A checkpoint service that keeps no bytes: what is staged, what is visible, who may speak.

use mcl_proto::v1;
use mcl_proto::v1::checkpoint_service_server::{CheckpointService, CheckpointServiceServer};
use std::collections::{BTreeMap, BTreeSet};
use std::sync::{Arc, Mutex};
use tokio::net::TcpListener;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::server::TcpIncoming;
use tonic::{Request, Response, Status, Streaming};

#[derive(Debug, Default)]
pub struct Kept {
    pub term: u64,
    /// (step, generation) -> slices.
    pub staged: BTreeMap<(u64, u64), BTreeSet<u32>>,
    pub visible: BTreeSet<u64>,
    pub metas: BTreeMap<u64, String>,
    /// While true, every call is answered "unavailable".
    pub away: bool,
}

#[derive(Debug, Clone)]
pub struct Store {
    pub url: String,
    pub kept: Arc<Mutex<Kept>>,
}

impl Store {
    pub async fn start() -> Self {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let store = Self { url, kept: Arc::default() };
        let service = CheckpointServiceServer::new(store.clone());
        let server = tonic::transport::Server::builder().add_service(service);
        tokio::spawn(server.serve_with_incoming(TcpIncoming::from(listener)));
        store
    }

    pub fn stage(&self, step: u64, generation: u64, rank: u32) {
        self.kept.lock().unwrap().staged.entry((step, generation)).or_default().insert(rank);
    }

    pub fn visible(&self) -> Vec<u64> {
        self.kept.lock().unwrap().visible.iter().copied().collect()
    }

    pub fn away(&self, away: bool) {
        self.kept.lock().unwrap().away = away;
    }

    fn here(&self) -> Result<std::sync::MutexGuard<'_, Kept>, Status> {
        let kept = self.kept.lock().unwrap();
        if kept.away { Err(Status::unavailable("away")) } else { Ok(kept) }
    }
}

#[tonic::async_trait]
impl CheckpointService for Store {
    async fn announce_term(
        &self,
        request: Request<v1::AnnounceTermRequest>,
    ) -> Result<Response<v1::AnnounceTermResponse>, Status> {
        let mut kept = self.here()?;
        let term = request.into_inner().term;
        if term < kept.term {
            return Err(Status::failed_precondition(format!("term {term} is over, {} reigns", kept.term)));
        }
        kept.term = term;
        Ok(Response::new(v1::AnnounceTermResponse {}))
    }

    async fn put_slice(
        &self,
        _: Request<Streaming<v1::PutSliceRequest>>,
    ) -> Result<Response<v1::PutSliceResponse>, Status> {
        Err(Status::unimplemented("fake ranks stage directly"))
    }

    async fn commit_checkpoint(
        &self,
        request: Request<v1::CommitCheckpointRequest>,
    ) -> Result<Response<v1::CommitCheckpointResponse>, Status> {
        let mut kept = self.here()?;
        let request = request.into_inner();
        let token = request.token.unwrap();
        if token.term < kept.term {
            return Err(Status::failed_precondition("stale term"));
        }
        let staged = kept.staged.get(&(request.step, token.generation)).map_or(0, BTreeSet::len);
        if staged != request.slices as usize {
            return Err(Status::aborted(format!("{staged} of {} slices are staged", request.slices)));
        }
        kept.visible.insert(request.step);
        kept.metas.insert(request.step, request.meta_json);
        Ok(Response::new(v1::CommitCheckpointResponse { digest: "00".repeat(32) }))
    }

    async fn list_checkpoints(
        &self,
        _: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let summary =
            |step: &u64| v1::CheckpointSummary { step: *step, slices: 1, ..v1::CheckpointSummary::default() };
        let checkpoints = self.here()?.visible.iter().map(summary).collect();
        Ok(Response::new(v1::ListCheckpointsResponse { checkpoints, damaged: Vec::new() }))
    }

    async fn get_manifest(
        &self,
        _: Request<v1::GetManifestRequest>,
    ) -> Result<Response<v1::GetManifestResponse>, Status> {
        Err(Status::unimplemented("fake ranks load nothing"))
    }

    type GetSliceStream = ReceiverStream<Result<v1::GetSliceResponse, Status>>;

    async fn get_slice(
        &self,
        _: Request<v1::GetSliceRequest>,
    ) -> Result<Response<Self::GetSliceStream>, Status> {
        Err(Status::unimplemented("fake ranks load nothing"))
    }
}
