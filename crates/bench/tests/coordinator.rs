//! The generator against a real coordinator and checkpoint service of this process.
#![allow(clippy::unwrap_used, clippy::expect_used, clippy::panic)]

use mcl_bench::{Load, Options, Target};
use mcl_checkpoint::{Layout, ServeConfig};
use mcl_config::Job;
use mcl_coordinator::{Coordinator, CoordinatorConfig, JobFacts};
use std::sync::Arc;
use std::time::Duration;
use tokio::net::TcpListener;

/// What `mcl coordinator` does with a submitted job.
fn interpret(job_toml: &str) -> Result<JobFacts, String> {
    let job = Job::parse(job_toml, "job").map_err(|e| e.to_string())?;
    let dataset = mcl_job::open_dataset(&job).map_err(|e| e.to_string())?;
    let plan = mcl_job::plan_spec(&job, &dataset);
    Ok(JobFacts {
        job_digest: job.digest().map_err(|e| e.to_string())?,
        job_toml: job.to_toml().map_err(|e| e.to_string())?,
        schedule: mcl_job::schedule(&job, &plan).map_err(|e| e.to_string())?,
        plan,
        shard_names: dataset.shards().iter().map(|s| s.name.clone()).collect(),
        retention: job.checkpoint().retention(),
        min_workers: job.elastic().min_workers,
        max_lanes_per_rank: job.elastic().max_lanes_per_rank,
        lost_after: Some(job.elastic().lost_after),
    })
}

/// Starts both on free ports; they end with the test's runtime.
async fn coordinator(folder: &std::path::Path) -> String {
    let listen = || TcpListener::bind("127.0.0.1:0");
    let service = listen().await.unwrap();
    let checkpoint_url = format!("http://{}", service.local_addr().unwrap());
    let root = ServeConfig::new(folder.join("checkpoints"), Layout::RunFolders);
    tokio::spawn(mcl_checkpoint::serve(service, root, std::future::pending()));
    let config = CoordinatorConfig::new(folder.join("run"), checkpoint_url, listen().await.unwrap());
    let coordinator = Coordinator::open(config, Arc::new(interpret)).await.unwrap();
    let url = format!("http://{}", coordinator.local_addr().unwrap());
    tokio::spawn(coordinator.serve(std::future::pending()));
    url
}

fn options(url: String) -> Options {
    Options {
        agents: 20,
        ranks_per_agent: 2,
        heartbeats_per_second: Some(10.0),
        load: Load::Training { steps_per_second: 5.0 },
        measure: Duration::from_secs(2),
        target: Target::Running { url, pid: None },
        ..Options::default()
    }
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn twenty_workers_form_a_generation_train_and_are_answered() {
    let folder = tempfile::tempdir().unwrap();
    let url = coordinator(folder.path()).await;
    let report = mcl_bench::run(options(url)).await.unwrap();
    let point = &report.points[0];
    assert_eq!((point.welcomed, point.formed_ranks, point.generations), (20, 40, 1), "{report}");
    assert_eq!((point.connected, point.missed, point.answered), (20, 0, point.sent), "{report}");
    // The machine may be busy with other tests: what is asked for is that work is done, not how fast.
    assert!(point.answered >= 20, "{report}");
    assert!(point.committed_steps.is_some_and(|steps| steps >= 1), "{report}");
    assert_eq!(point.errors.iter().count(), 0, "{report}");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn workers_without_a_job_share_connections() {
    let folder = tempfile::tempdir().unwrap();
    let url = coordinator(folder.path()).await;
    let options = Options { load: Load::Heartbeats, agents_per_connection: 8, ..options(url) };
    let report = mcl_bench::run(options).await.unwrap();
    let point = &report.points[0];
    assert_eq!((point.welcomed, point.connections, point.formed_ranks), (20, 3, 0), "{report}");
    assert_eq!((point.connected, point.missed), (20, 0), "{report}");
    assert_eq!((point.committed_steps, point.errors.iter().count()), (None, 0), "{report}");
}
