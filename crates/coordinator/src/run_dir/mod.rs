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
use mcl_failpoint::{Failpoint, pass};
use mcl_plan::ledger::{Committed, Record};
use mcl_plan::{PlanSpec, Schedule};
use metrics::Metrics;
use std::io::Write;
use std::path::{Path, PathBuf};

pub(crate) use ledger::files as ledger_files;

/// What a run's plan is a function of, in its run directory.
pub const PLAN_FILE: &str = "plan.json";

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

    /// Whether steps of some run are in a directory.
    pub(crate) fn is_used(root: &Path) -> Result<bool, CoordinatorError> {
        let ledger = root.join(ledger::FOLDER);
        Ok(ledger.is_dir() && !ledger_files(&ledger)?.is_empty())
    }

    /// The directory.
    pub(crate) fn root(&self) -> &Path {
        &self.root
    }

    /// Where the job's file lies.
    pub(crate) fn job_path(root: &Path) -> PathBuf {
        root.join("job.toml")
    }

    /// Writes the resolved job, and what its plan is a function of: that one only while nothing is in the ledger,
    /// which is a ledger of one plan.
    pub(crate) fn write_job(&self, job_toml: &str, plan: &PlanSpec) -> Result<(), CoordinatorError> {
        append_file::replace(&Self::job_path(&self.root), |file| file.write_all(job_toml.as_bytes()))?;
        let path = self.root.join(PLAN_FILE);
        if path.is_file() && Self::is_used(&self.root)? {
            return Ok(());
        }
        let json =
            serde_json::to_vec_pretty(plan).map_err(|e| CoordinatorError::file("write", &path)(e.into()))?;
        append_file::replace(&path, |file| file.write_all(&json))
    }

    /// Appends a committed step.
    pub(crate) fn commit(
        &mut self,
        record: Committed,
        metrics: &StepMetrics,
        time: f64,
        schedule: Schedule,
    ) -> Result<(), CoordinatorError> {
        self.metrics.append(metrics, time)?;
        pass(Failpoint::MetricsAppended);
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
        pass(Failpoint::RollBackAppended);
        self.sync()?;
        pass(Failpoint::RollBackSynced);
        self.metrics.roll_back(to)
    }

    /// Whether something waits to be made durable.
    pub(crate) const fn is_dirty(&self) -> bool {
        self.dirty
    }

    /// Makes everything durable.
    pub(crate) fn sync(&mut self) -> Result<(), CoordinatorError> {
        if !self.dirty {
            return Ok(());
        }
        self.metrics.sync()?;
        pass(Failpoint::MetricsSynced);
        self.ledger.sync()?;
        pass(Failpoint::LedgerSynced);
        self.dirty = false;
        Ok(())
    }
}
