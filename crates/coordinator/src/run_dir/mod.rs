//! The run directory: `job.toml`, `metrics.jsonl`, `ledger/`.
//!
//! Invariant: a step's ledger line is durable only after its metrics row is, and nothing is acknowledged
//! before both are.

mod append_file;
mod ledger;
mod metrics;
#[cfg(test)]
mod tests;

use crate::CoordinatorError;
use ledger::Ledger;
use mcl_coordinator_core::{Started, StepMetrics};
use mcl_plan::Schedule;
use mcl_plan::ledger::{Committed, Record};
use metrics::Metrics;
use std::io::Write;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

pub(crate) use ledger::files as ledger_files;

/// The open run directory.
#[derive(Debug)]
pub(crate) struct RunDir {
    root: PathBuf,
    ledger: Ledger,
    metrics: Metrics,
    dirty: bool,
}

impl RunDir {
    /// Opens it, brings its files in order after a crash, and says how many steps stand. `last` is the
    /// last generation that was started, with the schedule of its job.
    pub(crate) fn open(
        root: &Path,
        last: Option<(&Started, Schedule)>,
    ) -> Result<(Self, u64), CoordinatorError> {
        let mut ledger = Ledger::open(root)?;
        let committed = match last {
            Some((record, schedule)) => ledger.recover(record, schedule)?,
            None => 0,
        };
        let metrics = Metrics::open(root, committed)?;
        Ok((Self { root: root.to_owned(), ledger, metrics, dirty: false }, committed))
    }

    /// Where the job's file lies.
    pub(crate) fn job_path(root: &Path) -> PathBuf {
        root.join("job.toml")
    }

    /// Writes the resolved job.
    pub(crate) fn write_job(&self, job_toml: &str) -> Result<(), CoordinatorError> {
        append_file::replace(&Self::job_path(&self.root), |file| file.write_all(job_toml.as_bytes()))
    }

    /// Appends a committed step.
    pub(crate) fn commit(
        &mut self,
        record: Committed,
        metrics: &StepMetrics,
        schedule: Schedule,
    ) -> Result<(), CoordinatorError> {
        let since_1970 = SystemTime::now().duration_since(SystemTime::UNIX_EPOCH).unwrap_or_default();
        self.metrics.append(metrics, since_1970.as_secs_f64())?;
        self.append(&Record::Committed(record), schedule)
    }

    /// Appends another record to the ledger.
    pub(crate) fn append(&mut self, record: &Record, schedule: Schedule) -> Result<(), CoordinatorError> {
        self.dirty = true;
        self.ledger.append(record, schedule)
    }

    /// Steps from `to` on no longer stand.
    pub(crate) fn roll_back(
        &mut self,
        to: u64,
        record: &Record,
        schedule: Schedule,
    ) -> Result<(), CoordinatorError> {
        self.append(record, schedule)?;
        self.sync()?;
        self.metrics.roll_back(to)
    }

    /// Whether something waits to be made durable.
    pub(crate) const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Makes everything durable.
    pub(crate) fn sync(&mut self) -> Result<(), CoordinatorError> {
        self.metrics.sync()?;
        self.ledger.sync()?;
        self.dirty = false;
        Ok(())
    }
}
