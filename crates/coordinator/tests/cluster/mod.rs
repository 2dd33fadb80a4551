//! A cluster in one process: a real coordinator over a real socket, fake workers, a fake checkpoint service.
#![allow(dead_code, reason = "each test file uses its part")]

pub mod store;
pub mod worker;

use mcl_coordinator::{
    Coordinator, CoordinatorConfig, CoordinatorError, CoordinatorHandle, Interpret, JobFacts, JobOutcome,
    Progress, verify_ledger,
};
use mcl_plan::ledger::VerifyReport;
use mcl_plan::{PlanSpec, Schedule, Shuffle};
use mcl_types::{Digest, Retention, RunId, Seed};
use std::net::SocketAddr;
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;
use store::Store;
use tokio::net::TcpListener;
use tokio::sync::oneshot;
use tokio::task::JoinHandle;

pub const LOST_AFTER: Duration = Duration::from_secs(2);

pub fn run_id() -> RunId {
    RunId::new("run").unwrap()
}

pub fn plan() -> PlanSpec {
    PlanSpec {
        seed: Seed::new(3),
        dataset_digest: Digest::of(b"pictures"),
        dataset_len: 50,
        shards: vec![20, 30],
        lanes: 4,
        images_per_lane: 2,
        shuffle: Shuffle::Windowed,
    }
}

/// A job file is its number of steps.
pub fn interpret() -> Interpret {
    Arc::new(|text| {
        let total: u64 =
            text.trim().parse().map_err(|_| format!("job.toml line 1: `{text}` is no number of steps"))?;
        let plan = plan();
        let steps_per_epoch = plan.steps_per_epoch().map_err(|e| e.to_string())?;
        Ok(JobFacts {
            job_toml: text.to_owned(),
            job_digest: Digest::of(b"job"),
            schedule: Schedule::new(steps_per_epoch, total).map_err(|e| e.to_string())?,
            plan,
            shard_names: vec!["a.tar".to_owned(), "b.tar".to_owned()],
            retention: Retention::newest(3),
            min_workers: 1,
            max_lanes_per_rank: None,
            lost_after: None,
        })
    })
}

/// A served coordinator.
pub struct Served {
    pub handle: CoordinatorHandle,
    pub address: SocketAddr,
    pub stop: oneshot::Sender<()>,
    pub task: JoinHandle<Result<JobOutcome, CoordinatorError>>,
}

impl Served {
    pub async fn outcome(self) -> Result<JobOutcome, CoordinatorError> {
        within(self.task).await.unwrap()
    }

    /// Leaves at once; the journal is closed afterwards.
    pub async fn leave(self) {
        let _ = self.stop.send(());
        assert_eq!(within(self.task).await.unwrap().unwrap(), JobOutcome::Stopped);
    }

    pub async fn reaches(&self, what: impl Fn(&Progress) -> bool) {
        let mut progress = self.handle.subscribe();
        let reached = within(progress.wait_for(|p| what(p))).await;
        assert!(reached.is_ok(), "the coordinator ended before");
    }
}

pub async fn within<F: Future>(future: F) -> F::Output {
    tokio::time::timeout(Duration::from_secs(40), future).await.expect("a test step took too long")
}

pub async fn listener(port: u16) -> TcpListener {
    // A port that was just given back may take a moment.
    within(async {
        loop {
            match TcpListener::bind(("127.0.0.1", port)).await {
                Ok(listener) => return listener,
                Err(_) => tokio::time::sleep(Duration::from_millis(20)).await,
            }
        }
    })
    .await
}

pub async fn open(dir: &Path, store: &Store, port: u16) -> Result<Coordinator, CoordinatorError> {
    Coordinator::open(config(dir, store, port).await, interpret()).await
}

pub async fn config(dir: &Path, store: &Store, port: u16) -> CoordinatorConfig {
    let listener = listener(port).await;
    let mut config = CoordinatorConfig::new(dir, store.url.clone(), listener);
    config.heartbeat_interval = Duration::from_millis(50);
    config.settings.lost_after = LOST_AFTER;
    config.settings.expected_workers = Some(2);
    config.settings.leave_when_done = true;
    config
}

pub async fn serve(dir: &Path, store: &Store, port: u16) -> Served {
    serve_with(config(dir, store, port).await).await
}

pub async fn serve_with(config: CoordinatorConfig) -> Served {
    let coordinator = Coordinator::open(config, interpret()).await.unwrap();
    let (handle, address) = (coordinator.handle(), coordinator.local_addr().unwrap());
    let (stop, stopped) = oneshot::channel();
    let task = tokio::spawn(coordinator.serve(async {
        let _ = stopped.await;
    }));
    Served { handle, address, stop, task }
}

pub fn verified(dir: &Path) -> VerifyReport {
    let report = verify_ledger(dir, &plan(), &mut |_, _| {}).unwrap();
    assert!(report.is_exact(), "{report:#?}");
    report
}

/// (step, generation) of each row.
pub fn rows(dir: &Path, file: &str) -> Vec<(u64, u64)> {
    let text = std::fs::read_to_string(dir.join(file)).unwrap_or_default();
    let row = |l: &str| {
        let row: serde_json::Value = serde_json::from_str(l).unwrap();
        (row["step"].as_u64().unwrap(), row["generation"].as_u64().unwrap())
    };
    text.lines().map(row).collect()
}

pub fn each_step_once(dir: &Path, steps: u64) {
    let found: Vec<u64> = rows(dir, "metrics.jsonl").iter().map(|r| r.0).collect();
    assert_eq!(found, (0..steps).collect::<Vec<_>>());
}
