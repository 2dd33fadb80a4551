//! The coordinator as the page sees it: snapshots, wishes, montage sheets.

use super::telling;
use mcl_config::Job;
use mcl_coordinator::{Adopted, CoordinatorHandle, HandleError, Overview};
use mcl_data::Dataset;
use mcl_page::{ActError, Action, Cluster, Snapshot};
use mcl_types::RunId;
use std::sync::{Arc, Mutex, PoisonError};

/// The job that is run, once there is one.
type CurrentJob = Arc<Mutex<Option<Arc<Adopted>>>>;

/// The pictures of the run that was drawn last.
type Pictures = Mutex<Option<(RunId, Arc<Dataset>)>>;

/// See the module.
pub(crate) struct View {
    handle: CoordinatorHandle,
    job: CurrentJob,
    /// Opened for the first sheet of a run: listing pictures takes its time.
    pictures: Arc<Pictures>,
}

impl View {
    pub(super) fn new(handle: CoordinatorHandle) -> Self {
        Self { handle, job: CurrentJob::default(), pictures: Arc::default() }
    }

    /// Keeps it current: to be told of every job that is run.
    pub(super) fn hear_of_jobs(&self) -> impl FnMut(&Adopted) + Send + use<> {
        let job = Arc::clone(&self.job);
        move |adopted| *job.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::new(adopted.clone()))
    }

    fn current(&self) -> Option<Arc<Adopted>> {
        self.job.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }
}

impl Cluster for View {
    async fn snapshot(&self) -> Option<Snapshot> {
        let Overview { status, queue, past_runs, .. } = self.handle.overview().await.ok()?;
        let lanes = self.current().map_or(0, |job| job.facts.plan.lanes);
        Some(telling::snapshot(status, queue, past_runs, lanes))
    }

    async fn act(&self, action: Action) -> Result<(), ActError> {
        let told = match action {
            Action::Pause => self.handle.pause().await,
            Action::Resume => self.handle.resume().await,
            Action::Drain => self.handle.drain().await,
            Action::Cancel(run) => {
                let run = run.map(RunId::new).transpose().map_err(|e| ActError::Refused(e.to_string()))?;
                self.handle.cancel(run).await
            }
        };
        told.map_err(|error| match error {
            HandleError::Rejected(reason) => ActError::Refused(reason),
            HandleError::Gone => ActError::Gone,
        })
    }

    async fn draw(&self, step: u64) -> Result<Vec<u8>, String> {
        let job = self.current().ok_or("no job is run")?;
        let pictures = Arc::clone(&self.pictures);
        let drawn = tokio::task::spawn_blocking(move || draw(&job, &pictures, step)).await;
        drawn.map_err(|e| format!("drawing broke down: {e}"))?.map_err(|e| format!("{e:#}"))
    }
}

fn draw(adopted: &Adopted, pictures: &Pictures, step: u64) -> anyhow::Result<Vec<u8>> {
    let job = Job::parse(&adopted.facts.job_toml, "the job")?;
    let known = pictures.lock().unwrap_or_else(PoisonError::into_inner).clone();
    let dataset = match known.filter(|(run, _)| *run == adopted.run_id) {
        Some((_, dataset)) => dataset,
        None => {
            let dataset = Arc::new(mcl_job::open_dataset(&job)?);
            let entry = (adopted.run_id.clone(), Arc::clone(&dataset));
            *pictures.lock().unwrap_or_else(PoisonError::into_inner) = Some(entry);
            dataset
        }
    };
    crate::montage::draw(&job, dataset, step, 0)
}
