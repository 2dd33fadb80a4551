//! Whole jobs over real sockets: fake workers, a fake checkpoint service, a real coordinator and run directory.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::store::Store;
use cluster::worker::{Fabrics, Worker};
use cluster::{LOST_AFTER, Served, each_step_once, rows, run_id, serve, verified, within};
use mcl_coordinator::{CoordinatorError, JobOutcome, Phase};
use mcl_proto::v1;
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use std::time::Duration;
use tokio::task::JoinHandle;

struct Scene {
    dir: tempfile::TempDir,
    store: Store,
    fabrics: Fabrics,
}

impl Scene {
    async fn new() -> Self {
        let _ =
            tracing_subscriber::fmt().with_env_filter("mcl_coordinator=info").with_test_writer().try_init();
        Self { dir: tempfile::tempdir().unwrap(), store: Store::start().await, fabrics: Fabrics::default() }
    }

    fn worker(&self, served: &Served, name: &str) -> Worker {
        Worker::new(name, served.address, &self.store, &self.fabrics)
    }

    fn join(&self, served: &Served, name: &str) -> JoinHandle<String> {
        tokio::spawn(self.worker(served, name).live())
    }

    async fn serve(&self) -> Served {
        serve(self.dir.path(), &self.store, 0).await
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_job_of_twenty_steps_on_two_workers() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    assert_eq!(served.handle.submit(run_id(), "20".to_owned()).await, Ok(0));
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 20 });
    for worker in workers {
        within(worker).await.unwrap();
    }
    let report = verified(scene.dir.path());
    assert_eq!((report.steps, report.samples, report.rolled_back), (20, 160, 0));
    each_step_once(scene.dir.path(), 20);
    assert_eq!(scene.store.visible(), [5, 10, 15, 20]);
    let meta = scene.store.kept.lock().unwrap().metas[&10].clone();
    let meta: serde_json::Value = serde_json::from_str(&meta).unwrap();
    assert_eq!((meta["epoch"].as_u64(), meta["step_in_epoch"].as_u64()), (Some(1), Some(4)));
    let row = std::fs::read_to_string(scene.dir.path().join("metrics.jsonl")).unwrap();
    let row: serde_json::Value = serde_json::from_str(row.lines().next().unwrap()).unwrap();
    assert_eq!((row["loss"].as_f64(), row["workers"].as_u64()), (Some(3.0), Some(2)));
    assert_eq!(std::fs::read_to_string(scene.dir.path().join("job.toml")).unwrap(), "20");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_worker_killed_in_step_seven_costs_no_sample() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let survivor = scene.join(&served, "w1");
    let victim = scene.join(&served, "w2");
    served.handle.submit(run_id(), "40".to_owned()).await.unwrap();
    served.reaches(|p| p.step >= 7).await;
    victim.abort();
    // The survivor goes on alone after `lost_after`; the worker comes back and is taken in.
    served.reaches(|p| p.generation == 2 && p.phase == Phase::Training).await;
    let back = scene.join(&served, "w2");
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 40 });
    let report = verified(scene.dir.path());
    assert_eq!((report.steps, report.rolled_back), (40, 0), "{report:?}");
    each_step_once(scene.dir.path(), 40);
    let generations: Vec<u64> = rows(scene.dir.path(), "metrics.jsonl").iter().map(|r| r.1).collect();
    assert_eq!(
        (generations[0], *generations.last().unwrap()),
        (1, 3),
        "alone in the second, together in the third"
    );
    for worker in [survivor, back] {
        within(worker).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_comes_back_goes_on_with_the_same_generation() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let port = served.address.port();
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    served.handle.submit(run_id(), "60".to_owned()).await.unwrap();
    served.reaches(|p| p.step >= 12).await;
    served.leave().await;
    // Ranks go on training; the next coordinator is told what happened meanwhile.
    tokio::time::sleep(Duration::from_millis(200)).await;
    let served = serve(scene.dir.path(), &scene.store, port).await;
    assert_eq!(served.handle.submit(run_id(), "60".to_owned()).await.map(|s| s >= 12), Ok(true));
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 60 });
    let report = verified(scene.dir.path());
    assert_eq!((report.steps, report.rolled_back), (60, 0));
    each_step_once(scene.dir.path(), 60);
    assert!(rows(scene.dir.path(), "metrics.jsonl").iter().all(|(_, generation)| *generation == 1));
    assert_eq!(scene.store.kept.lock().unwrap().term, 2);
    for worker in workers {
        within(worker).await.unwrap();
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_coordinator_that_comes_back_to_nobody_starts_from_the_checkpoint() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    served.handle.submit(run_id(), "30".to_owned()).await.unwrap();
    served.reaches(|p| p.step >= 13).await;
    served.leave().await;
    workers.iter().for_each(JoinHandle::abort);
    let served = scene.serve().await;
    let started = std::time::Instant::now();
    let workers = [scene.join(&served, "w3"), scene.join(&served, "w4")];
    served.reaches(|p| p.generation == 2).await;
    assert!(started.elapsed() >= LOST_AFTER, "the old members have that long to come back");
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 30 });
    let report = verified(scene.dir.path());
    assert!(report.rolled_back >= 1);
    each_step_once(scene.dir.path(), 30);
    for worker in workers {
        within(worker).await.unwrap();
    }
}

#[tokio::test]
async fn a_second_coordinator_is_refused() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let error = cluster::open(scene.dir.path(), &scene.store, 0).await.err().unwrap();
    assert!(matches!(error, CoordinatorError::InUse { .. }));
    assert!(error.to_string().starts_with("another run is using "), "{error}");
    served.leave().await;
    assert!(cluster::open(scene.dir.path(), &scene.store, 0).await.is_ok(), "free again");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_drained_job_is_interrupted_and_continued() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    served.handle.submit(run_id(), "40".to_owned()).await.unwrap();
    served.reaches(|p| p.step >= 7).await;
    served.handle.drain().await.unwrap();
    let JobOutcome::Interrupted { step } = served.outcome().await.unwrap() else { panic!("not interrupted") };
    assert!(step >= 7 && scene.store.visible().contains(&step));
    for worker in workers {
        within(worker).await.unwrap();
    }
    let served = scene.serve().await;
    served.reaches(|p| p.phase == Phase::Interrupted).await;
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    assert_eq!(served.handle.submit(run_id(), "40".to_owned()).await, Ok(step));
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 40 });
    assert_eq!(verified(scene.dir.path()).rolled_back, 0);
    each_step_once(scene.dir.path(), 40);
    drop(workers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_checkpoint_service_that_is_away_only_delays_checkpoints() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    scene.store.away(true);
    served.handle.submit(run_id(), "20".to_owned()).await.unwrap();
    served.reaches(|p| p.step == 20).await;
    served.reaches(|p| p.reason == "the checkpoint of step 20 is not visible yet").await;
    assert!(scene.store.visible().is_empty());
    scene.store.away(false);
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 20 });
    assert!(scene.store.visible().contains(&20));
    drop(workers);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_rank_that_feeds_what_the_plan_does_not_say_fails_the_job() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let mut wrong = scene.worker(&served, "w2");
    wrong.wrong_in = Some(9);
    let _workers = [scene.join(&served, "w1"), tokio::spawn(wrong.live())];
    served.handle.submit(run_id(), "20".to_owned()).await.unwrap();
    let JobOutcome::Failed { reason } = served.outcome().await.unwrap() else { panic!("not failed") };
    assert!(reason.starts_with("rank 1 on w2 failed in step 9: lane 2, slot 0 was fed sample"), "{reason}");
    assert_eq!(verified(scene.dir.path()).steps, 9);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_fatal_failure_ends_the_job_by_name() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let mut fatal = scene.worker(&served, "w2");
    fatal.fatal_in = Some(3);
    let _workers = [scene.join(&served, "w1"), tokio::spawn(fatal.live())];
    served.handle.submit(run_id(), "20".to_owned()).await.unwrap();
    let JobOutcome::Failed { reason } = served.outcome().await.unwrap() else { panic!("not failed") };
    assert_eq!(reason, "rank 1 on w2 failed in step 3: the picture index is not what it was");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn submission_and_status_over_the_wire() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let mut client = CoordinatorServiceClient::connect(format!("http://{}", served.address)).await.unwrap();
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.phase.as_str(), status.reason.as_str(), status.term), ("idle", "no job submitted", 1));
    let submit = |run_id: &str, job_toml: &str| v1::SubmitJobRequest {
        run_id: run_id.to_owned(),
        job_toml: job_toml.to_owned(),
        initial_digest: None,
    };
    let bad = client.submit_job(submit("run", "twenty")).await.unwrap_err();
    assert_eq!(
        (bad.code(), bad.message()),
        (tonic::Code::InvalidArgument, "job.toml line 1: `twenty` is no number of steps")
    );
    let bad = client.submit_job(submit("../run", "20")).await.unwrap_err();
    assert!(bad.message().contains("run name `../run` is not usable"), "{bad}");
    let answer = client.submit_job(submit("run", "20")).await.unwrap().into_inner();
    assert_eq!(answer.committed_steps, 0);
    let busy = client.submit_job(submit("other", "20")).await.unwrap_err();
    assert_eq!(busy.code(), tonic::Code::FailedPrecondition);
    let _worker = scene.join(&served, "w1");
    served.reaches(|p| p.workers == 1).await;
    let status = client.get_status(v1::GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.phase.as_str(), status.total_steps, status.steps_per_epoch), ("waiting", 20, 6));
    assert!(status.reason.starts_with("1 of 2 expected workers"), "{}", status.reason);
    assert_eq!(status.workers[0].worker, "w1");
    client.drain_job(v1::DrainJobRequest {}).await.unwrap();
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Interrupted { step: 0 });
}

#[tokio::test]
async fn another_protocol_is_refused_by_name() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let mut client = CoordinatorServiceClient::connect(format!("http://{}", served.address)).await.unwrap();
    let hello = v1::Hello { worker: "old".to_owned(), protocol: 99, ..v1::Hello::default() };
    let request = v1::SessionRequest { message: Some(v1::session_request::Message::Hello(hello)) };
    let mut answers = client.session(tokio_stream::iter([request])).await.unwrap().into_inner();
    let Some(v1::session_response::Message::Refused(refused)) =
        within(answers.message()).await.unwrap().unwrap().message
    else {
        panic!("not refused")
    };
    assert!(refused.reason.contains("worker old speaks protocol 99"), "{}", refused.reason);
    served.leave().await;
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_directory_that_takes_no_more_stops_the_job_with_its_name() {
    let scene = Scene::new().await;
    // Epoch 1 (steps 6 to 11) can be opened and takes nothing, as on a full disk.
    std::fs::create_dir_all(scene.dir.path().join("ledger")).unwrap();
    let full = scene.dir.path().join("ledger/epoch-000001.jsonl");
    std::os::unix::fs::symlink("/dev/full", &full).unwrap();
    let served = scene.serve().await;
    let _workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    served.handle.submit(run_id(), "20".to_owned()).await.unwrap();
    let error = served.outcome().await.unwrap_err().to_string();
    assert!(error.contains("cannot write") && error.contains("epoch-000001.jsonl"), "{error}");
    std::fs::remove_file(&full).unwrap();
    assert_eq!(verified(scene.dir.path()).steps, 6);
    // With space again, the job goes on.
    let served = scene.serve().await;
    let _workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 20 });
    verified(scene.dir.path());
    each_step_once(scene.dir.path(), 20);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_replaced_run_directory_is_told_by_the_store() {
    let scene = Scene::new().await;
    scene.store.kept.lock().unwrap().term = 7;
    let served = scene.serve().await;
    served.handle.submit(run_id(), "20".to_owned()).await.unwrap();
    let error = served.outcome().await.unwrap_err();
    assert!(matches!(error, CoordinatorError::Superseded { .. }), "{error}");
    assert!(error.to_string().contains("term 1 is over, 7 reigns"), "{error}");
}
