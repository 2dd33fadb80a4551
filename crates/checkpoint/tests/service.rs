//! The service and its client over a real connection, told as stories.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use bytes::Bytes;
use mcl_checkpoint::{
    CheckpointClient, ClientError, Draft, Layout, Patience, ServeConfig, ServeError, serve,
};
use mcl_checkpoint_core::{Dtype, TensorInfo, assign, write_slice};
use mcl_proto::v1;
use mcl_types::{Digest, FencingToken, Generation, Retention, RunId, Step, Term, Tier};
use std::path::{Path, PathBuf};
use std::time::Duration;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

/// A running service.
struct Service {
    url: String,
    port: u16,
    stop: Option<oneshot::Sender<()>>,
    task: JoinHandle<Result<(), ServeError>>,
}

impl Service {
    async fn start(root: &Path, layout: Layout) -> Self {
        Self::on(0, ServeConfig::new(root, layout)).await
    }

    async fn on(port: u16, config: ServeConfig) -> Self {
        let listener = TcpListener::bind(("127.0.0.1", port)).await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let (stop, stopped) = oneshot::channel();
        let shutdown = async {
            let _ = stopped.await;
        };
        let task = tokio::spawn(serve(listener, config, shutdown));
        Self { url: format!("http://127.0.0.1:{port}"), port, stop: Some(stop), task }
    }

    async fn client(&self) -> CheckpointClient {
        let patience = Patience {
            call: Duration::from_secs(10),
            commit: Duration::from_secs(20),
            transfer: Duration::from_secs(20),
        };
        CheckpointClient::connect(&self.url, None, Duration::from_secs(10))
            .await
            .unwrap()
            .with_patience(patience)
    }

    async fn stop(mut self) {
        self.stop.take().unwrap().send(()).unwrap();
        self.task.await.unwrap().unwrap();
    }
}

fn run(name: &str) -> RunId {
    RunId::new(name).unwrap()
}

fn token(term: u64, generation: u64) -> FencingToken {
    FencingToken { term: Term::new(term), generation: Generation::new(generation) }
}

/// A state of some megabytes, so that slices take several messages.
fn slices(seed: u8, parts: u32) -> Vec<Bytes> {
    let sizes = [1_500_000, 800_000, 700_000, 12, 0];
    let data: Vec<Vec<u8>> =
        sizes.iter().map(|&n| (0..n).map(|b: usize| (b as u8).wrapping_mul(31) ^ seed).collect()).collect();
    let infos: Vec<TensorInfo> = data
        .iter()
        .enumerate()
        .map(|(i, d)| TensorInfo {
            name: format!("t{i}"),
            dtype: Dtype::U8,
            shape: vec![d.len()],
            bytes: d.len() as u64,
        })
        .collect();
    let slice = |part: Vec<usize>| {
        let tensors: Vec<_> = part
            .into_iter()
            .map(|i| (infos[i].name.clone(), infos[i].dtype, infos[i].shape.clone(), data[i].as_slice()))
            .collect();
        Bytes::from(write_slice(&tensors).unwrap())
    };
    assign(&infos, parts).into_iter().map(slice).collect()
}

/// A durable checkpoint being written.
fn draft(token: FencingToken, run: &RunId, step: u64, slices: u32) -> Draft<'_> {
    Draft { token, run, step: Step::new(step), slices, tier: Tier::Durable }
}

async fn stage(
    client: &CheckpointClient,
    token: FencingToken,
    name: &str,
    step: u64,
    parts: &[Bytes],
) -> Result<(), ClientError> {
    let count = parts.len() as u32;
    let puts = (0..count).zip(parts).map(|(i, bytes)| {
        let run = run(name);
        async move { client.put_slice(draft(token, &run, step, count), i, bytes.clone()).await }
    });
    for put in puts {
        put.await?;
    }
    Ok(())
}

async fn save(
    client: &CheckpointClient,
    name: &str,
    step: u64,
    seed: u8,
    parts: u32,
) -> Result<Digest, ClientError> {
    stage(client, token(1, 1), name, step, &slices(seed, parts)).await?;
    client.commit(draft(token(1, 1), &run(name), step, parts), "{\"cursor\":1}", Retention::ALL).await
}

async fn steps(client: &CheckpointClient, name: &str) -> Vec<u64> {
    client.list(&run(name)).await.unwrap().visible.iter().map(|c| c.step.get()).collect()
}

fn slice_path(root: &Path, step: u64, slice: u32, slices: u32) -> PathBuf {
    root.join(mcl_checkpoint_core::step_folder(Step::new(step)))
        .join(mcl_checkpoint_core::slice_file(slice, slices))
}

#[tokio::test]
async fn a_state_comes_back_and_its_digest_does_not_show_the_slicing() {
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::RunFolders).await;
    let client = service.client().await;
    let two = save(&client, "a", 10, 1, 2).await.unwrap();
    let three = save(&client, "a", 20, 1, 3).await.unwrap();
    assert_eq!(two, three);
    for (step, count) in [(10, 2), (20, 3)] {
        let step = Step::new(step);
        let manifest = client.manifest(&run("a"), step).await.unwrap();
        assert_eq!((manifest.state_digest, &manifest.meta["cursor"]), (two, &1.into()));
        for (i, expected) in (0..count).zip(slices(1, count)) {
            let entry = &manifest.slices[i as usize];
            assert_eq!(client.get_slice(&run("a"), step, i, entry).await.unwrap(), expected);
        }
    }
    let list = client.list(&run("a")).await.unwrap();
    assert_eq!(list.newest().unwrap().step, Step::new(20));
    assert_eq!(list.newest().unwrap().slices, 3);
    let missing = client.manifest(&run("a"), Step::new(30)).await.unwrap_err();
    assert!(matches!(&missing, ClientError::NotFound { .. }), "{missing}");
    assert!(missing.to_string().contains(&service.url), "names the address: {missing}");
    service.stop().await;
}

#[tokio::test]
async fn a_commit_waits_for_every_slice_repeats_and_never_changes() {
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::Flat).await;
    let client = service.client().await;
    let parts = slices(1, 3);
    let put = |i: u32| client.put_slice(draft(token(1, 1), &ID, 5, 3), i, parts[i as usize].clone());
    put(0).await.unwrap();
    put(2).await.unwrap();
    let commit =
        |meta: &'static str| client.commit(draft(token(1, 1), &ID, 5, 3), meta, Retention::newest(2));
    let early = commit("{}").await.unwrap_err();
    assert!(matches!(&early, ClientError::NotStaged { .. }), "{early}");
    assert!(early.to_string().contains("slice 1 of 3"), "{early}");
    assert!(steps(&client, ID.as_str()).await.is_empty());
    put(1).await.unwrap();
    let (a, b, c) = tokio::join!(commit("{}"), commit("{}"), commit("{}"));
    assert_eq!(a.clone().unwrap(), b.unwrap());
    assert_eq!(a.clone().unwrap(), c.unwrap());
    assert_eq!(a.unwrap(), commit("{}").await.unwrap());
    assert!(matches!(commit("{\"x\":1}").await, Err(ClientError::Conflict { .. })));
    assert!(matches!(commit("{").await, Err(ClientError::Refused { .. })));
    assert_eq!(steps(&client, ID.as_str()).await, [5]);
}

static ID: std::sync::LazyLock<RunId> = std::sync::LazyLock::new(|| RunId::new("only").unwrap());

#[tokio::test]
async fn a_stale_token_is_refused_also_after_a_restart() {
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::RunFolders).await;
    let client = service.client().await;
    client.announce_term(&run("a"), Term::new(3), 0).await.unwrap();
    stage(&client, token(3, 2), "a", 1, &slices(1, 1)).await.unwrap();
    client.announce_term(&run("a"), Term::new(3), 0).await.unwrap();
    service.stop().await;

    let service = Service::start(root.path(), Layout::RunFolders).await;
    let client = service.client().await;
    let fenced = |result: Result<(), ClientError>| match result {
        Err(error @ ClientError::Fenced { .. }) => error.to_string(),
        other => panic!("{other:?}"),
    };
    let told = fenced(client.announce_term(&run("a"), Term::new(2), 0).await);
    assert!(told.contains("term 3"), "{told}");
    fenced(stage(&client, token(3, 1), "a", 1, &slices(1, 1)).await);
    fenced(client.commit(draft(token(2, 9), &run("a"), 1, 1), "", Retention::ALL).await.map(drop));
    assert!(steps(&client, "a").await.is_empty());
    // Another run counts for itself, and whoever holds the highest token goes on.
    client.announce_term(&run("b"), Term::new(1), 0).await.unwrap();
    client.commit(draft(token(3, 2), &run("a"), 1, 1), "", Retention::ALL).await.unwrap();
}

/// Two run directories that chose the same name: the second must not go on from the first one's states.
#[tokio::test]
async fn a_name_belongs_to_one_run_directory() {
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::RunFolders).await;
    let client = service.client().await;
    client.announce_term(&run("a"), Term::new(1), 7).await.unwrap();
    stage(&client, token(1, 2), "a", 1, &slices(1, 1)).await.unwrap();
    for term in [1, 2, 9] {
        let error = client.announce_term(&run("a"), Term::new(term), 8).await.unwrap_err();
        assert!(matches!(error, ClientError::Fenced { .. }), "{error}");
        assert!(error.to_string().contains("another run named `a`"), "{error}");
    }
    service.stop().await;
    let service = Service::start(root.path(), Layout::RunFolders).await;
    let client = service.client().await;
    client.announce_term(&run("a"), Term::new(9), 8).await.unwrap_err();
    // Its own goes on, and was not fenced by the other's terms.
    stage(&client, token(1, 2), "a", 1, &slices(1, 1)).await.unwrap();
    client.announce_term(&run("a"), Term::new(2), 7).await.unwrap();
}

/// Two services over one store (as no lock keeps them from in an object store): the one whose coordinator was replaced
/// stages nothing into its successor's checkpoint, and makes nothing visible.
#[tokio::test]
async fn a_token_that_another_service_let_pass_counts_here_too() {
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::RunFolders).await;
    let client = service.client().await;
    client.announce_term(&run("a"), Term::new(1), 7).await.unwrap();
    stage(&client, token(1, 1), "a", 1, &slices(1, 1)).await.unwrap();
    std::fs::write(root.path().join("fence-a.json"), "{\"term\":2,\"generation\":1,\"incarnation\":7}\n")
        .unwrap();
    let staged = stage(&client, token(1, 1), "a", 2, &slices(2, 1)).await;
    assert!(matches!(staged, Err(ClientError::Fenced { .. })), "{staged:?}");
    let committed = client.commit(draft(token(1, 1), &run("a"), 1, 1), "", Retention::ALL).await;
    assert!(matches!(committed, Err(ClientError::Fenced { .. })), "{committed:?}");
    client.commit(draft(token(2, 1), &run("a"), 1, 1), "", Retention::ALL).await.unwrap();
}

/// A fence that was written before there were incarnations belongs to the first that tells one.
#[tokio::test]
async fn an_older_fence_is_adopted() {
    let root = tempfile::tempdir().unwrap();
    std::fs::write(root.path().join("fence-a.json"), "{\"term\":3,\"generation\":4}\n").unwrap();
    let service = Service::start(root.path(), Layout::RunFolders).await;
    let client = service.client().await;
    client.announce_term(&run("a"), Term::new(4), 7).await.unwrap();
    client.announce_term(&run("a"), Term::new(5), 8).await.unwrap_err();
}

/// Sends the head of an upload and then breaks off.
async fn half_an_upload(url: &str, bytes: &Bytes, hang: bool) -> Result<(), tonic::Status> {
    use v1::put_slice_request::Part;
    let header = v1::SliceHeader {
        token: Some(token(1, 1).into()),
        run_id: "a".into(),
        step: 7,
        slice: 0,
        slices: 1,
        size: bytes.len() as u64,
        in_memory: false,
    };
    let message = |part| v1::PutSliceRequest { part: Some(part) };
    let head = vec![message(Part::Header(header)), message(Part::Chunk(bytes.slice(..1000)))];
    let (sender, receiver) = tokio::sync::mpsc::channel(4);
    for part in head {
        sender.send(part).await.unwrap();
    }
    let mut client =
        v1::checkpoint_service_client::CheckpointServiceClient::connect(url.to_owned()).await.unwrap();
    let upload = client.put_slice(tokio_stream::wrappers::ReceiverStream::new(receiver));
    if !hang {
        drop(sender);
        return upload.await.map(drop);
    }
    // The process dies: connection gone, half a slice sent.
    let cut = tokio::time::timeout(Duration::from_millis(200), upload).await;
    assert!(cut.is_err());
    drop(sender);
    Err(tonic::Status::cancelled("killed"))
}

#[tokio::test]
async fn a_killed_upload_leaves_nothing_visible() {
    let root = tempfile::tempdir().unwrap();
    let config =
        ServeConfig { stall: Duration::from_millis(300), ..ServeConfig::new(root.path(), Layout::Flat) };
    let service = Service::on(0, config).await;
    let client = service.client().await;
    let bytes = slices(1, 1).remove(0);
    let ended = half_an_upload(&service.url, &bytes, false).await.unwrap_err();
    assert!(ended.message().contains("1000 bytes came"), "{ended}");
    half_an_upload(&service.url, &bytes, true).await.unwrap_err();
    let error = client.commit(draft(token(1, 1), &run("a"), 7, 1), "", Retention::ALL).await.unwrap_err();
    assert!(matches!(error, ClientError::NotStaged { .. }), "{error}");
    assert!(!slice_path(root.path(), 7, 0, 1).exists());
    stage(&client, token(1, 1), "a", 7, &[bytes]).await.unwrap();
    client.commit(draft(token(1, 1), &run("a"), 7, 1), "", Retention::ALL).await.unwrap();
    // Whatever the killed one left is gone with the commit.
    let left = std::fs::read_dir(slice_path(root.path(), 7, 0, 1).parent().unwrap()).unwrap().count();
    assert_eq!(left, 2, "manifest and slice");
}

#[tokio::test]
async fn an_upload_that_outlives_its_term_is_refused_at_its_end() {
    use v1::put_slice_request::Part;
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::Flat).await;
    let client = service.client().await;
    let bytes = slices(1, 1).remove(0);
    let header = v1::SliceHeader {
        token: Some(token(1, 1).into()),
        run_id: "a".into(),
        step: 7,
        slice: 0,
        slices: 1,
        size: bytes.len() as u64,
        in_memory: false,
    };
    let message = |part| v1::PutSliceRequest { part: Some(part) };
    let (sender, receiver) = tokio::sync::mpsc::channel(1);
    let mut raw =
        v1::checkpoint_service_client::CheckpointServiceClient::connect(service.url.clone()).await.unwrap();
    let upload = tokio::spawn(async move {
        raw.put_slice(tokio_stream::wrappers::ReceiverStream::new(receiver)).await.map(drop)
    });
    sender.send(message(Part::Header(header))).await.unwrap();
    let half = bytes.len() / 2;
    for chunk in bytes[..half].chunks(1 << 20) {
        sender.send(message(Part::Chunk(Bytes::copy_from_slice(chunk)))).await.unwrap();
    }
    // Its coordinator is replaced while half of it is on the way.
    client.announce_term(&run("a"), Term::new(2), 0).await.unwrap();
    for chunk in bytes[half..].chunks(1 << 20) {
        let _ = sender.send(message(Part::Chunk(Bytes::copy_from_slice(chunk)))).await;
    }
    let end = v1::SliceEnd { hash: Digest::of(&bytes).to_string() };
    let _ = sender.send(message(Part::End(end))).await;
    drop(sender);
    let status = upload.await.unwrap().unwrap_err();
    assert_eq!(status.code(), tonic::Code::FailedPrecondition, "{status}");
    assert!(!slice_path(root.path(), 7, 0, 1).exists());
}

#[tokio::test]
async fn a_damaged_newest_checkpoint_gives_way_to_the_one_before() {
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::Flat).await;
    let client = service.client().await;
    save(&client, "a", 10, 1, 2).await.unwrap();
    save(&client, "a", 20, 2, 2).await.unwrap();
    let manifest = client.manifest(&run("a"), Step::new(20)).await.unwrap();
    let path = slice_path(root.path(), 20, 1, 2);
    let mut bytes = std::fs::read(&path).unwrap();
    *bytes.last_mut().unwrap() ^= 1;
    std::fs::write(&path, bytes).unwrap();

    let list = client.list(&run("a")).await.unwrap();
    assert_eq!(list.newest().unwrap().step, Step::new(10));
    assert_eq!(list.damaged.len(), 1);
    assert!(list.damaged[0].reason.contains("slice-001-of-002"), "{:?}", list.damaged);
    let error = client.get_slice(&run("a"), Step::new(20), 1, &manifest.slices[1]).await.unwrap_err();
    assert!(matches!(error, ClientError::Damaged { .. }), "{error}");
    // What is asked for and what is kept differ: found out here.
    let error = client.get_slice(&run("a"), Step::new(10), 1, &manifest.slices[1]).await.unwrap_err();
    assert!(matches!(error, ClientError::Damaged { .. }), "{error}");
}

#[tokio::test]
async fn two_runs_go_on_side_by_side_and_old_checkpoints_go() {
    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::RunFolders).await;
    let story = async |name: &'static str, term: u64, seed: u8| {
        let client = service.client().await;
        client.announce_term(&run(name), Term::new(term), 0).await.unwrap();
        for step in [10, 20, 30] {
            stage(&client, token(term, 1), name, step, &slices(seed ^ step as u8, 2)).await.unwrap();
            client
                .commit(draft(token(term, 1), &run(name), step, 2), "", Retention::newest(2))
                .await
                .unwrap();
        }
        steps(&client, name).await
    };
    let (a, b) = tokio::join!(story("a", 9, 1), story("b", 1, 2));
    assert_eq!(a, [20, 30]);
    assert_eq!(b, [20, 30]);
    assert!(!root.path().join("a/step-0000000010").exists());
}

#[tokio::test]
async fn requests_that_make_no_sense_are_refused() {
    let root = tempfile::tempdir().unwrap();
    let config = ServeConfig { max_slice_bytes: 1000, ..ServeConfig::new(root.path(), Layout::Flat) };
    let service = Service::on(0, config).await;
    let client = service.client().await;
    let error = stage(&client, token(1, 1), "a", 1, &slices(1, 1)).await.unwrap_err();
    assert!(error.to_string().contains("the limit is 1000"), "{error}");
    let small = Bytes::from_static(b"x");
    let error = client.put_slice(draft(token(1, 1), &run("a"), 1, 3), 3, small).await.unwrap_err();
    assert!(matches!(error, ClientError::Refused { .. }), "{error}");

    let mut raw =
        v1::checkpoint_service_client::CheckpointServiceClient::connect(service.url.clone()).await.unwrap();
    let status = raw
        .list_checkpoints(v1::ListCheckpointsRequest { run_id: "../../etc".into(), at_most: None })
        .await
        .unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let status = raw.announce_term(v1::AnnounceTermRequest::default()).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
    let status = raw.put_slice(tokio_stream::iter([v1::PutSliceRequest::default()])).await.unwrap_err();
    assert_eq!(status.code(), tonic::Code::InvalidArgument);
}

#[tokio::test]
async fn a_client_waits_for_its_service_and_says_where_it_looked() {
    let none =
        CheckpointClient::connect("http://127.0.0.1:1", None, Duration::from_millis(200)).await.unwrap_err();
    assert!(matches!(none, ClientError::Unreachable { .. }), "{none}");
    assert!(none.to_string().contains("127.0.0.1:1"), "{none}");
    for bad in ["127.0.0.1:7002", "http://host", "https://host:1", "", "http://:x"] {
        assert!(matches!(CheckpointClient::lazy(bad, None), Err(ClientError::Url { .. })), "{bad}");
    }

    let root = tempfile::tempdir().unwrap();
    let service = Service::start(root.path(), Layout::Flat).await;
    let (client, port) = (service.client().await, service.port);
    save(&client, "a", 10, 1, 1).await.unwrap();
    service.stop().await;
    // A call made while the service is away is answered by the one that takes its place.
    let call = tokio::spawn({
        let client = client.clone();
        async move { steps(&client, "a").await }
    });
    tokio::task::yield_now().await;
    let service = Service::on(port, ServeConfig::new(root.path(), Layout::Flat)).await;
    assert_eq!(call.await.unwrap(), [10]);
    service.stop().await;
}

#[tokio::test]
async fn a_snapshot_in_memory_lasts_until_a_later_durable_one_or_the_end_of_the_service() {
    let root = tempfile::tempdir().unwrap();
    let config = ServeConfig { memory_bytes: 8 << 20, ..ServeConfig::new(root.path(), Layout::Flat) };
    let service = Service::on(0, config.clone()).await;
    let (client, port) = (service.client().await, service.port);
    let run = run("a");
    let keep = async |step: u64, seed: u8, tier: Tier| {
        let draft = Draft { tier, ..draft(token(1, 1), &run, step, 2) };
        for (i, bytes) in (0..).zip(slices(seed, 2)) {
            client.put_slice(draft, i, bytes).await?;
        }
        client.commit(draft, "", Retention::newest(2)).await
    };
    let listed = async || -> Vec<(u64, Tier)> {
        client.list(&run).await.unwrap().visible.iter().map(|c| (c.step.get(), c.tier)).collect()
    };
    keep(10, 1, Tier::Durable).await.unwrap();
    for step in [12, 14] {
        keep(step, 2, Tier::Memory).await.unwrap();
    }
    // The one before it is gone; the newest of both kinds is last, and reads back.
    assert_eq!(listed().await, [(10, Tier::Durable), (14, Tier::Memory)]);
    let manifest = client.manifest(&run, Step::new(14)).await.unwrap();
    let bytes = client.get_slice(&run, Step::new(14), 1, &manifest.slices[1]).await.unwrap();
    assert_eq!(bytes, slices(2, 2)[1]);
    keep(20, 3, Tier::Durable).await.unwrap();
    assert_eq!(listed().await, [(10, Tier::Durable), (20, Tier::Durable)], "14 is of no more use");
    let steps = std::fs::read_dir(root.path()).unwrap().filter(|e| e.as_ref().unwrap().path().is_dir());
    assert_eq!(steps.count(), 2, "nothing of it was on the disk");
    keep(22, 4, Tier::Memory).await.unwrap();
    // What does not fit is refused by name, and what is there stays.
    let small = Draft { tier: Tier::Memory, ..draft(token(1, 1), &run, 24, 1) };
    let error = client.put_slice(small, 0, Bytes::from(vec![0; 6 << 20])).await.unwrap_err().to_string();
    assert!(error.contains("in memory") && error.contains("limit"), "{error}");
    assert_eq!(listed().await.last(), Some(&(22, Tier::Memory)));
    // Two that fit one by one, at once: one of them is refused.
    let half = |slice| client.put_slice(Draft { slices: 2, ..small }, slice, Bytes::from(vec![0; 3 << 20]));
    let (a, b) = tokio::join!(half(0), half(1));
    assert_eq!([&a, &b].iter().filter(|put| put.is_ok()).count(), 1, "{a:?} {b:?}");
    service.stop().await;
    let again = Service::on(port, config).await;
    assert_eq!(listed().await, [(10, Tier::Durable), (20, Tier::Durable)]);
    drop(again);
}
