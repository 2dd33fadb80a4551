//! Clients that break off, over a real S3 server: no upload of theirs stays open there.

use crate::serve::{ServeConfig, ServeError, serve_store};
use bytes::Bytes;
use mcl_checkpoint_core::{CheckpointStore, Layout};
use mcl_proto::v1::checkpoint_service_client::CheckpointServiceClient;
use mcl_proto::v1::put_slice_request::Part;
use mcl_proto::{CHUNK_BYTES, v1};
use mcl_testkit::{Fault, S3Server};
use mcl_types::{FencingToken, Generation, Term};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::JoinHandle;
use tokio_stream::wrappers::ReceiverStream;
use tonic::transport::Channel;

type Answer = Result<tonic::Response<v1::PutSliceResponse>, tonic::Status>;

/// A service whose store is in an S3 server.
struct Story {
    server: S3Server,
    client: CheckpointServiceClient<Channel>,
    stop: oneshot::Sender<()>,
    service: JoinHandle<Result<(), ServeError>>,
}

impl Story {
    async fn begin() -> Self {
        let server = S3Server::start();
        let settings = server.environment().into_iter().map(|(key, value)| (key.to_owned(), value));
        let location = server.url("p").parse().unwrap();
        let store = CheckpointStore::open_with(&location, Layout::RunFolders, settings).unwrap();
        let config = ServeConfig::new(location, Layout::RunFolders);
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let url = format!("http://{}", listener.local_addr().unwrap());
        let (stop, stopped) = oneshot::channel::<()>();
        let shutdown = async {
            let _ = stopped.await;
        };
        let service = tokio::spawn(async move { serve_store(listener, store, &config, shutdown).await });
        let mut client = CheckpointServiceClient::connect(url).await.unwrap();
        let term = v1::AnnounceTermRequest { run_id: "a".into(), term: 1, incarnation: 0 };
        client.announce_term(term).await.unwrap();
        Self { server, client, stop, service }
    }

    /// An upload that has said what it is about.
    async fn upload(&self, bytes: u64) -> (mpsc::Sender<v1::PutSliceRequest>, JoinHandle<Answer>) {
        let token = FencingToken { term: Term::new(1), generation: Generation::default() };
        let header = v1::SliceHeader {
            token: Some(token.into()),
            run_id: "a".into(),
            step: 7,
            slice: 0,
            slices: 1,
            size: bytes,
            in_memory: false,
        };
        let (sender, receiver) = mpsc::channel(1);
        sender.send(v1::PutSliceRequest { part: Some(Part::Header(header)) }).await.unwrap();
        let mut client = self.client.clone();
        let upload = tokio::spawn(async move { client.put_slice(ReceiverStream::new(receiver)).await });
        (sender, upload)
    }

    async fn until(&self, what: &str, met: impl Fn(&S3Server) -> bool) {
        let met = async {
            while !met(&self.server) {
                tokio::time::sleep(Duration::from_millis(5)).await;
            }
        };
        let met = tokio::time::timeout(Duration::from_secs(10), met).await;
        assert!(met.is_ok(), "{what}: {:?} left in the bucket", self.server.left_of_uploads());
    }
}

async fn send(sender: &mpsc::Sender<v1::PutSliceRequest>, bytes: usize) {
    let chunk = Bytes::from(vec![1; CHUNK_BYTES]);
    for _ in 0..bytes.div_ceil(CHUNK_BYTES) {
        sender.send(v1::PutSliceRequest { part: Some(Part::Chunk(chunk.clone())) }).await.unwrap();
    }
}

#[tokio::test]
async fn a_client_that_resets_its_stream_between_two_parts_leaves_no_upload() {
    let story = Story::begin().await;
    let (sender, upload) = story.upload(64 << 20).await;
    send(&sender, 9 << 20).await;
    story.until("a part is there", |s| s.left_of_uploads().len() == 2).await;
    upload.abort();
    story.until("the upload is ended", |s| s.left_of_uploads().is_empty()).await;
}

#[tokio::test]
async fn a_client_that_resets_its_stream_while_a_part_is_under_way_leaves_no_upload() {
    let story = Story::begin().await;
    let (sender, upload) = story.upload(64 << 20).await;
    story.until("the upload is open", |s| s.left_of_uploads().len() == 1).await;
    let before = story.server.requests();
    story.server.meet([Fault::Slow(Duration::from_millis(300))]);
    send(&sender, 9 << 20).await;
    story.until("a part is under way", |s| s.requests() > before).await;
    upload.abort();
    // The part and the end of the upload.
    story
        .until("the upload is ended", |s| s.requests() >= before + 2 && s.left_of_uploads().is_empty())
        .await;
}

#[tokio::test]
async fn a_client_that_resets_its_stream_while_its_upload_begins_leaves_none() {
    let story = Story::begin().await;
    let before = story.server.requests();
    story.server.meet([Fault::Slow(Duration::from_millis(300))]);
    let (_sender, upload) = story.upload(64 << 20).await;
    story.until("the upload begins", |s| s.requests() > before).await;
    upload.abort();
    story
        .until("the upload is ended", |s| s.requests() >= before + 2 && s.left_of_uploads().is_empty())
        .await;
}

#[tokio::test]
async fn a_service_that_is_told_to_stop_ends_the_uploads_of_clients_that_broke_off() {
    let story = Story::begin().await;
    let (sender, upload) = story.upload(64 << 20).await;
    send(&sender, 9 << 20).await;
    story.until("a part is there", |s| s.left_of_uploads().len() == 2).await;
    // The store takes its time to end it.
    story.server.meet([Fault::Slow(Duration::from_millis(500))]);
    let before = story.server.requests();
    upload.abort();
    drop(sender);
    story.until("the upload is being ended", |s| s.requests() > before).await;
    story.stop.send(()).unwrap();
    drop(story.client);
    story.service.await.unwrap().unwrap();
    assert_eq!(story.server.left_of_uploads(), Vec::<String>::new());
}

#[tokio::test]
async fn a_service_that_is_told_to_stop_ends_the_uploads_that_outlast_its_patience() {
    let story = Story::begin().await;
    let (sender, upload) = story.upload(64 << 20).await;
    send(&sender, 9 << 20).await;
    story.until("a part is there", |s| s.left_of_uploads().len() == 2).await;
    story.stop.send(()).unwrap();
    drop(story.client);
    story.service.await.unwrap().unwrap();
    assert_eq!(story.server.left_of_uploads(), Vec::<String>::new());
    let status = upload.await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::Unavailable, "{status}");
}
