//! TensorBoard's files of whatever a coordinator runs.
//!
//! The keeper knows plain data alone, the coordinator no keeper. Here one becomes the other.

use crate::montage;
use crate::row::row;
use anyhow::Result;
use mcl_board::{DrawSheet, Keeper, Sheet, Told};
use mcl_config::Job;
use mcl_coordinator::{Coordinator, Observation, Observed};
use mcl_data::generate::{PictureFormat, encode};
use std::sync::Arc;
use tokio::sync::broadcast::error::RecvError;
use tokio::task::JoinHandle;

/// Quality of sheets that are kept with a run: some hundred KB for one of full-size pictures.
const QUALITY: u8 = 80;

/// Keeps them until the coordinator is gone; then the task ends, within a bounded time.
pub(crate) fn keep(coordinator: &Coordinator) -> JoinHandle<()> {
    let mut observations = coordinator.observe();
    tokio::spawn(async move {
        let keeper = Keeper::start();
        loop {
            match observations.recv().await {
                Ok(observation) => told(observation).into_iter().for_each(|told| keeper.tell(told)),
                Err(RecvError::Lagged(_)) => keeper.tell(Told::Missed),
                Err(RecvError::Closed) => break,
            }
        }
        // It waits for a thread.
        if let Err(error) = tokio::task::spawn_blocking(move || drop(keeper)).await {
            tracing::error!(%error, "TensorBoard's files may lack the last steps");
        }
    })
}

fn told(Observation { time, what }: Observation) -> Option<Told> {
    match what {
        Observed::Adopted(adopted) => Some(Told::Began {
            run_dir: adopted.run_dir,
            committed: adopted.committed,
            draw: Some(drawing(adopted.facts.job_toml)),
        }),
        Observed::Committed(metrics) => Some(Told::Committed(Box::new(row(*metrics, time)))),
        Observed::RolledBack { to } => Some(Told::RolledBack { to }),
        _ => None,
    }
}

/// How the sheets of a job are drawn. They are few: its pictures are opened for each.
fn drawing(job_toml: String) -> DrawSheet {
    Arc::new(move |step| sheet(&job_toml, step).map_err(|e| format!("{e:#}")))
}

fn sheet(job_toml: &str, step: u64) -> Result<Sheet> {
    let job = Job::parse(job_toml, "the run's job")?;
    let picture = montage::paint(&job, Arc::new(mcl_job::open_dataset(&job)?), step, 0)?;
    let file = encode(&picture, PictureFormat::Jpeg(QUALITY))?;
    Ok(Sheet { width: picture.width(), height: picture.height(), file })
}
