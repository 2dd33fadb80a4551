//! Several jobs, one coordinator: who is run, who waits, what outlives a restart.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::store::Store;
use cluster::{Served, config, serve_with};
use mcl_proto::v1;
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use std::path::Path;
use tonic::transport::Channel;
use tonic::{Code, Status};

type Client = CoordinatorServiceClient<Channel>;

async fn start(dir: &Path, store: &Store) -> (Served, Client) {
    let mut config = config(dir, store, 0).await;
    config.settings.leave_when_done = false;
    config.settings.many_runs = true;
    let served = serve_with(config).await;
    let client = CoordinatorServiceClient::connect(format!("http://{}", served.address)).await.unwrap();
    (served, client)
}

async fn submit(client: &mut Client, run_id: &str, steps: u64) -> Result<(u64, u32), Status> {
    let (run_id, job_toml) = (run_id.to_owned(), steps.to_string());
    let request = v1::SubmitJobRequest { run_id, job_toml, initial_digest: None };
    client.submit_job(request).await.map(|a| (a.get_ref().committed_steps, a.get_ref().jobs_before))
}

async fn cancel(client: &mut Client, run_id: Option<&str>) -> Result<(), Status> {
    let run_id = run_id.map(str::to_owned);
    client.cancel_job(v1::CancelJobRequest { run_id }).await.map(drop)
}

/// The run of the moment, its phase, and who waits.
async fn status(client: &mut Client) -> (String, String, Vec<String>) {
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    (status.run_id, status.phase, status.queue.into_iter().map(|w| w.run_id).collect())
}

/// Waits until this run is the one of the moment.
async fn runs(client: &mut Client, run_id: &str) {
    cluster::within(async {
        while status(client).await.0 != run_id {
            tokio::time::sleep(std::time::Duration::from_millis(10)).await;
        }
    })
    .await;
}

/// Steps of a run that no journal here knows.
fn put_foreign_steps(dir: &Path, run_id: &str) {
    let ledger = dir.join(run_id).join("ledger");
    std::fs::create_dir_all(&ledger).unwrap();
    std::fs::write(ledger.join("epoch-000000.jsonl"), "{}\n").unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn jobs_wait_in_the_order_in_which_they_came() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Store::start().await);
    let (served, mut client) = start(dir.path(), &store).await;
    assert_eq!(submit(&mut client, "a", 20).await.unwrap(), (0, 0));
    assert_eq!(submit(&mut client, "b", 20).await.unwrap(), (0, 1));
    assert_eq!(submit(&mut client, "c", 20).await.unwrap(), (0, 2));
    assert_eq!(submit(&mut client, "d", 20).await.unwrap(), (0, 3));
    assert_eq!(submit(&mut client, "b", 20).await.unwrap(), (0, 1), "the same again is no harm");
    assert_eq!(submit(&mut client, "a", 20).await.unwrap(), (0, 0));
    let changed = submit(&mut client, "b", 30).await.unwrap_err();
    assert_eq!(changed.code(), Code::FailedPrecondition);
    assert!(changed.message().contains("`b` waits in the queue with another job file"), "{changed}");

    cancel(&mut client, Some("c")).await.unwrap();
    let unknown = cancel(&mut client, Some("c")).await.unwrap_err();
    assert_eq!(unknown.code(), Code::NotFound);
    assert!(unknown.message().contains("no job `c`"), "{unknown}");
    let (run, _, queue) = status(&mut client).await;
    assert_eq!((run.as_str(), queue), ("a", vec!["b".to_owned(), "d".to_owned()]));

    // Who waits finds its place again in the next coordinator.
    served.leave().await;
    let (_served, mut client) = start(dir.path(), &store).await;
    let (run, phase, queue) = status(&mut client).await;
    assert_eq!((run.as_str(), phase.as_str()), ("a", "waiting"));
    assert_eq!(queue, ["b", "d"]);
    cancel(&mut client, None).await.unwrap();
    runs(&mut client, "b").await;
    assert_eq!(status(&mut client).await.2, ["d"]);
    cancel(&mut client, Some("b")).await.unwrap();
    runs(&mut client, "d").await;
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    let past: Vec<_> = status.past_runs.iter().map(|p| p.run_id.as_str()).collect();
    assert_eq!(past, ["a", "b"]);
    assert!(status.past_runs[0].outcome.starts_with("cancelled"), "{:?}", status.past_runs[0].outcome);
    for run in ["a", "b", "d"] {
        assert!(dir.path().join(run).join("job.toml").is_file(), "{run}");
    }
    assert!(!dir.path().join("c").exists(), "a job that never ran leaves no directory");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_was_away_begins_with_who_waited() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Store::start().await);
    let (served, mut client) = start(dir.path(), &store).await;
    submit(&mut client, "a", 20).await.unwrap();
    submit(&mut client, "b", 20).await.unwrap();
    submit(&mut client, "c", 20).await.unwrap();
    cancel(&mut client, None).await.unwrap();
    served.leave().await;
    let (_served, mut client) = start(dir.path(), &store).await;
    runs(&mut client, "b").await;
    assert_eq!(status(&mut client).await.2, ["c"]);
    // The cancelled one may be handed in again, and waits like others.
    assert_eq!(submit(&mut client, "a", 20).await.unwrap(), (0, 2));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_folder_of_runs_is_no_run_directory() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Store::start().await);
    let (served, _) = start(dir.path(), &store).await;
    served.leave().await;
    let refused = cluster::open(dir.path(), &store, 0).await.err().unwrap().to_string();
    assert!(refused.contains("is a folder of runs: start the coordinator with --runs"), "{refused}");
    let one = tempfile::tempdir().unwrap();
    cluster::serve(one.path(), &store, 0).await.leave().await;
    let mut config = config(one.path(), &store, 0).await;
    config.settings.many_runs = true;
    let refused = mcl_coordinator::Coordinator::open(config, cluster::interpret()).await.err().unwrap();
    assert!(refused.to_string().contains("start the coordinator with --run-dir"), "{refused}");
}

/// The head of the queue cannot be run any more: the next one is, and the status says why.
#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_that_can_no_longer_be_run_does_not_hold_up_the_queue() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Store::start().await);
    let (_served, mut client) = start(dir.path(), &store).await;
    submit(&mut client, "a", 20).await.unwrap();
    submit(&mut client, "b", 20).await.unwrap();
    submit(&mut client, "c", 20).await.unwrap();
    // While it waits somebody puts another run's steps where its own are to be.
    put_foreign_steps(dir.path(), "b");
    cancel(&mut client, None).await.unwrap();
    runs(&mut client, "c").await;
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert!(status.queue.is_empty());
    let told = status.past_runs.iter().find(|p| p.run_id == "b").unwrap();
    assert!(told.outcome.starts_with("could not be run: "), "{}", told.outcome);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn steps_that_nobody_knows_of_are_not_overwritten() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Store::start().await);
    put_foreign_steps(dir.path(), "a");
    let (_served, mut client) = start(dir.path(), &store).await;
    let refused = submit(&mut client, "a", 20).await.unwrap_err();
    assert!(refused.message().contains("knows nothing of"), "{refused}");
    submit(&mut client, "b", 20).await.unwrap();
    let refused = submit(&mut client, "a", 20).await.unwrap_err();
    assert!(refused.message().contains("knows nothing of"), "not let into the queue either: {refused}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_name_that_would_be_no_directory_of_its_own_is_refused_and_harms_nobody() {
    let (dir, store) = (tempfile::tempdir().unwrap(), Store::start().await);
    let (_served, mut client) = start(dir.path(), &store).await;
    let long = "x".repeat(65);
    for bad in ["", ".", "..", "../up", "a/b", "/etc", "a\\b", "a\0b", "\u{ff0e}\u{ff0e}", "\u{430}", &long] {
        let refused = submit(&mut client, bad, 20).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}: {refused}");
        let refused = cancel(&mut client, Some(bad)).await.unwrap_err();
        assert_eq!(refused.code(), Code::InvalidArgument, "{bad:?}: {refused}");
    }
    // The journal lies in the folder of runs.
    let taken = submit(&mut client, "coordinator.redb", 20).await.unwrap_err();
    assert!(taken.message().contains("not a directory"), "{taken}");
    assert_eq!(submit(&mut client, "a", 20).await.unwrap(), (0, 0), "it serves on");
    let inside: Vec<_> = std::fs::read_dir(dir.path()).unwrap().map(|e| e.unwrap().file_name()).collect();
    assert!(!inside.iter().any(|name| name.to_string_lossy().contains("up")), "{inside:?}");
}
