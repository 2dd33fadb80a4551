//! What is told of a run besides metrics and ledger: TensorBoard's files, the chronicle, `GetHistory`.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic, missing_docs)]

mod cluster;

use cluster::store::Store;
use cluster::worker::{Fabrics, Worker};
use cluster::{Served, run_id, serve_with, within};
use mcl_coordinator::{DrawSheet, JobOutcome, Sheet};
use mcl_proto::v1;
use mcl_proto::v1::coordinator_service_client::CoordinatorServiceClient;
use mcl_tensorboard::{Records, ValueKind, event_files};
use std::collections::BTreeMap;
use std::path::Path;
use std::sync::Arc;
use tokio::task::JoinHandle;

struct Scene {
    dir: tempfile::TempDir,
    store: Store,
    fabrics: Fabrics,
}

impl Scene {
    async fn new() -> Self {
        Self { dir: tempfile::tempdir().unwrap(), store: Store::start().await, fabrics: Fabrics::default() }
    }

    async fn serve(&self) -> Served {
        let mut config = cluster::config(self.dir.path(), &self.store, 0).await;
        config.sheets = Some(draw());
        serve_with(config).await
    }

    fn join(&self, served: &Served, name: &str) -> JoinHandle<String> {
        tokio::spawn(Worker::new(name, served.address, &self.store, &self.fabrics).live())
    }
}

/// A sheet that says which job file and step it is of.
fn draw() -> DrawSheet {
    Arc::new(|job, step| Ok(Sheet { width: 3, height: 2, file: format!("{}/{step}", job.trim()).into_bytes() }))
}

/// What TensorBoard shows of a run directory: by step the loss and when, and sheets. A value that would stand twice
/// fails.
#[derive(Debug, Default, PartialEq)]
struct Shown {
    losses: BTreeMap<u64, (f32, f64)>,
    sheets: BTreeMap<u64, Vec<u8>>,
    starts: Vec<u64>,
}

fn shown(dir: &Path) -> Shown {
    let mut shown = Shown::default();
    for (_, path) in event_files(&dir.join("events")).unwrap() {
        for event in Records::open(&path).unwrap() {
            let event = event.unwrap();
            let step = u64::try_from(event.step).unwrap();
            if let Some(start) = event.started_at() {
                shown.losses.retain(|s, _| *s < start);
                shown.sheets.retain(|s, _| *s < start);
                shown.starts.push(start);
            }
            for value in event.values() {
                let twice = match value.kind.clone().unwrap() {
                    ValueKind::Scalar(loss) if value.tag == "loss" => {
                        shown.losses.insert(step, (loss, event.wall_time)).is_some()
                    }
                    ValueKind::Image(image) => shown.sheets.insert(step, image.encoded).is_some(),
                    ValueKind::Scalar(_) => false,
                };
                assert!(!twice, "{} of step {step} stands twice", value.tag);
            }
        }
    }
    shown
}

/// The same of `metrics.jsonl`.
fn committed(dir: &Path) -> BTreeMap<u64, (f32, f64)> {
    let text = std::fs::read_to_string(dir.join("metrics.jsonl")).unwrap();
    let row = |line: &str| {
        let row: serde_json::Value = serde_json::from_str(line).unwrap();
        let loss = row["loss"].as_f64().unwrap();
        (row["step"].as_u64().unwrap(), (loss as f32, row["time"].as_f64().unwrap()))
    };
    text.lines().map(row).collect()
}

fn chronicle(dir: &Path) -> Vec<String> {
    let text = std::fs::read_to_string(dir.join("chronicle.jsonl")).unwrap();
    let entries = text.lines().map(|l| serde_json::from_str::<mcl_history::Entry>(l).unwrap());
    entries.map(|e| e.what.to_string()).collect()
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn files_for_tensorboard_hold_each_committed_step_once_over_a_roll_back_and_restarts() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    served.handle.submit(run_id(), "40".to_owned()).await.unwrap();
    served.reaches(|p| p.step >= 18).await;
    served.leave().await;
    workers.iter().for_each(JoinHandle::abort);
    assert_eq!(shown(scene.dir.path()).losses, committed(scene.dir.path()));
    // Nobody comes back who holds the state: steps after the checkpoint are taken again.
    let served = scene.serve().await;
    let _workers = [scene.join(&served, "w3"), scene.join(&served, "w4")];
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 40 });
    let shown = shown(scene.dir.path());
    assert_eq!(shown.losses, committed(scene.dir.path()));
    assert_eq!(shown.losses.len(), 40);
    assert!(shown.starts.iter().any(|s| (15..18).contains(s)), "rolled back: {:?}", shown.starts);
    let sheets: Vec<_> = shown.sheets.iter().map(|(s, f)| (*s, String::from_utf8(f.clone()).unwrap())).collect();
    let expected: Vec<_> = [0, 16, 32].map(|s| (s, format!("40/{s}"))).into();
    assert_eq!(sheets, expected);
    let told = chronicle(scene.dir.path());
    for line in [
        "submitted",
        "g1 formed of 2 ranks on 2 workers: the run begins",
        "g1 trains from step 0 on, its state from the seed",
        "checkpoint after 15 steps is visible",
        "taken over by a coordinator in term 2",
        "all 40 steps are committed",
    ] {
        assert!(told.iter().any(|t| t == line), "`{line}` is not in {told:#?}");
    }
    assert!(told.iter().any(|t| t.contains("no longer stand")), "{told:#?}");
    assert!(told.iter().any(|t| t.starts_with("g2 formed of 2 ranks") && t.contains("silent")), "{told:#?}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_run_whose_events_cannot_be_written_goes_on_and_is_made_up_for() {
    let scene = Scene::new().await;
    std::fs::write(scene.dir.path().join("events"), "in the way").unwrap();
    std::fs::create_dir(scene.dir.path().join("chronicle.jsonl")).unwrap();
    let served = scene.serve().await;
    let workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    served.handle.submit(run_id(), "10".to_owned()).await.unwrap();
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 10 });
    for worker in workers {
        within(worker).await.unwrap();
    }
    std::fs::remove_file(scene.dir.path().join("events")).unwrap();
    std::fs::remove_dir(scene.dir.path().join("chronicle.jsonl")).unwrap();
    let served = scene.serve().await;
    let _workers = [scene.join(&served, "w1"), scene.join(&served, "w2")];
    served.handle.submit(run_id(), "12".to_owned()).await.unwrap();
    assert_eq!(served.outcome().await.unwrap(), JobOutcome::Done { steps: 12 });
    let shown = shown(scene.dir.path());
    assert_eq!((shown.losses.len(), &shown.losses), (12, &committed(scene.dir.path())));
    assert_eq!(chronicle(scene.dir.path())[0], "submitted; 10 steps stand already");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn history_over_the_wire_is_the_run_and_what_happened_to_it() {
    let scene = Scene::new().await;
    let served = scene.serve().await;
    let mut client = CoordinatorServiceClient::connect(format!("http://{}", served.address)).await.unwrap();
    let empty = client.get_history(v1::GetHistoryRequest { points: 8 }).await.unwrap().into_inner();
    assert_eq!(empty, v1::GetHistoryResponse::default());
    let survivor = scene.join(&served, "w1");
    let victim = scene.join(&served, "w2");
    served.handle.submit(run_id(), "400".to_owned()).await.unwrap();
    served.reaches(|p| p.step >= 7).await;
    victim.abort();
    served.reaches(|p| p.generation == 2 && p.step >= 40).await;
    let history = within(async {
        loop {
            let answer = client.get_history(v1::GetHistoryRequest { points: 8 }).await.unwrap().into_inner();
            if answer.recent.len() >= 40 {
                return answer;
            }
            tokio::time::sleep(std::time::Duration::from_millis(5)).await;
        }
    })
    .await;
    assert_eq!(history.run_id, "run");
    assert!(history.points.len() <= 8 && history.points[0].steps > 1, "{:?}", history.points);
    let steps: u64 = history.points.iter().map(|p| p.steps).sum();
    assert_eq!(history.recent.last().map(|p| p.first_step + 1), Some(steps));
    assert_eq!((history.points[0].loss, history.points[0].loss_per_level.len()), (Some(3.0), 1));
    assert_eq!((history.recent[0].workers, history.recent.last().unwrap().workers), (2, 1));
    let formed: Vec<_> = history.happenings.iter().filter(|h| h.event == "formed").collect();
    assert_eq!(formed.len(), 2, "{:#?}", history.happenings);
    assert_eq!((formed[0].why.as_str(), formed[1].workers), ("the run begins", Some(1)));
    assert!(formed[1].why.contains("w2") && formed[1].why.ends_with("; gone: w2"), "{}", formed[1].why);
    assert!(history.happenings.iter().any(|h| h.event == "checkpoint" && h.step == Some(5)));
    drop(survivor);
    served.leave().await;
}
